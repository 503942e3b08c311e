"""Learning rates at steps that can be checked by hand, what decays, and the average of weights."""

import math

import pytest
import torch
from torch import Tensor, nn

from mtrain.config.sections import OptimConfig
from mtrain.training.optim import (
    Ema,
    Muon,
    learning_rate,
    make_optimizers,
    optimizer_state,
    orthogonal,
    set_optimizer_state,
)


def optim(**settings: object) -> OptimConfig:
    return OptimConfig.model_validate({"learning_rate": 0.01, "warmup_steps": 100, **settings})


# -- schedules -------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "linear", "cosine", "constant"])
@pytest.mark.parametrize(("step", "rate"), [(1, 0.0001), (50, 0.005), (100, 0.01)])
def test_warm_up_is_linear_to_the_peak(schedule, step, rate):
    assert learning_rate(step, 1000, optim(schedule=schedule)) == pytest.approx(rate)


@pytest.mark.parametrize(("step", "rate"), [(400, 0.005), (900, 0.01 / 3), (10_000, 0.001)])
def test_inverse_square_root(step, rate):
    assert learning_rate(step, 10**6, optim()) == pytest.approx(rate)


def test_the_papers_schedule():
    """Equation 3, d_model^-0.5 min(step^-0.5, step warmup^-1.5), with its peak named."""
    d_model, warmup = 512, 4000
    config = optim(learning_rate=(d_model * warmup) ** -0.5, warmup_steps=warmup)
    for step in (1, 100, 4000, 4001, 100_000):
        paper = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert learning_rate(step, 10**6, config) == pytest.approx(paper)


def test_linear_would_be_zero_just_after_the_last_step():
    config = optim(schedule="linear")
    assert learning_rate(1000, 1000, config) == pytest.approx(0.01 / 901)
    assert learning_rate(1001, 1000, config) == 0
    assert learning_rate(5000, 1000, config) == 0
    assert learning_rate(550, 1000, config) == pytest.approx(0.005, rel=0.01)


def test_half_a_cosine_is_zero_just_after_the_last_step():
    config = optim(schedule="cosine", warmup_steps=0)
    assert learning_rate(25, 99, config) == pytest.approx(0.01 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate(50, 99, config) == pytest.approx(0.005)
    assert 0 < learning_rate(99, 99, config) < 1e-5
    assert learning_rate(100, 99, config) == learning_rate(5000, 99, config) == 0


def test_a_constant_rate_stays():
    assert learning_rate(5000, 1000, optim(schedule="constant")) == 0.01


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_steps", [1, 100])
def test_the_rate_does_not_jump_after_warm_up(schedule, warmup_steps):
    config = optim(schedule=schedule, warmup_steps=warmup_steps)
    rates = [learning_rate(step, 10_000, config) for step in range(1, 10_001)]
    assert max(rates) == rates[warmup_steps - 1] == pytest.approx(0.01)
    assert rates[warmup_steps - 1 :] == sorted(rates[warmup_steps - 1 :], reverse=True)
    assert all(rate > 0 for rate in rates)
    if warmup_steps == 100:
        assert rates[100] == pytest.approx(0.01, rel=0.01)


def test_without_warm_up():
    assert learning_rate(1, 10, optim(warmup_steps=0)) == pytest.approx(0.01)
    assert learning_rate(4, 10, optim(warmup_steps=0)) == pytest.approx(0.005)
    assert learning_rate(1, 10, optim(warmup_steps=0, schedule="linear")) == pytest.approx(
        0.01 * 10 / 11
    )


# -- AdamW -----------------------------------------------------------------------------------


def layer_with_gradients(value: float) -> nn.Linear:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.constant_(layer.bias, 0.5)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, value)
    return layer


def test_only_matrices_decay():
    """With no gradient at all, a step is the decay alone: w (1 - rate * decay)."""
    layer = layer_with_gradients(0.0)
    (adamw,) = make_optimizers(layer, optim(learning_rate=0.1, weight_decay=0.2), torch.float32)
    adamw.step()
    torch.testing.assert_close(layer.weight, torch.full((2, 3), 0.5 * (1 - 0.1 * 0.2)))
    assert layer.bias.tolist() == [0.5, 0.5]


def test_every_parameter_is_optimised_once_even_if_tied():
    embedding, output = nn.Embedding(5, 4), nn.Linear(4, 5)
    output.weight = embedding.weight
    (optimizer,) = make_optimizers(nn.Sequential(embedding, output), optim(), torch.float32)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def test_the_first_step_is_the_rate_against_the_sign():
    layer = layer_with_gradients(-7.0)
    (adamw,) = make_optimizers(layer, optim(learning_rate=0.1, weight_decay=0), torch.float32)
    adamw.step()
    torch.testing.assert_close(layer.weight, torch.full((2, 3), 0.6))


class Layers(nn.Module):
    """Names as in the Transformer: what stands in a layer, and what does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.encoder = nn.ModuleList([nn.Linear(4, 12), nn.Linear(4, 8), nn.LayerNorm(4)])

    def gradients(self, value: float | None = None) -> None:
        for parameter in self.parameters():
            parameter.grad = (
                torch.randn_like(parameter) if value is None else torch.full_like(parameter, value)
            )


def snapshot(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    tensors = dict(model.named_parameters()) | optimizer_state(model, optimizers)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def step(optimizers: list[torch.optim.Optimizer], found_inf: float) -> None:
    for optimizer in optimizers:
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_found_to_be_infinite_changes_nothing(optimizer):
    """The training loop relies on this: `found_inf` is read on the device, without waiting."""
    model = Layers()
    optimizers = make_optimizers(model, optim(weight_decay=0.1, optimizer=optimizer), torch.float32)
    model.gradients()
    step(optimizers, 0.0)
    before = snapshot(model, optimizers)
    model.gradients(math.nan)
    step(optimizers, 1.0)
    after = snapshot(model, optimizers)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    model.gradients()
    step(optimizers, 0.0)
    assert snapshot(model, optimizers)["embedding.weight/step"].item() == 2
    assert not torch.equal(before["encoder.0.weight"], model.encoder[0].weight)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_state_of_the_optimizers_goes_into_others(optimizer):
    """One pair of optimizers goes on; another takes over its tensors; both do the same."""
    config = optim(weight_decay=0.1, optimizer=optimizer)
    one, other = Layers(), Layers()
    ours, theirs = (make_optimizers(model, config, torch.float32) for model in (one, other))
    one.gradients()
    step(ours, 0.0)
    other.load_state_dict(one.state_dict())
    kept = {name: tensor.clone() for name, tensor in optimizer_state(one, ours).items()}
    set_optimizer_state(other, theirs, kept)
    for model, optimizers in ((one, ours), (other, theirs)):
        torch.manual_seed(5)
        model.gradients()
        step(optimizers, 0.0)
    expected, found = snapshot(one, ours), snapshot(other, theirs)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


# -- Muon ------------------------------------------------------------------------------------


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest():
    model = Layers()
    muon, adamw = make_optimizers(model, optim(optimizer="muon"), torch.float32)
    assert isinstance(muon, Muon)
    names = {parameter: name for name, parameter in model.named_parameters()}
    taken = [
        {names[p] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (muon, adamw)
    ]
    assert taken[0] == {"encoder.0.weight", "encoder.1.weight"}
    assert taken[0] | taken[1] == set(names.values())
    assert not taken[0] & taken[1]


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 5, 20), (1, 20, 5)])
def test_orthogonal_brings_singular_values_near_one_and_keeps_directions(shape, dtype, rounding):
    torch.manual_seed(0)
    x = torch.randn(shape)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    y = orthogonal(x, dtype)
    assert y.dtype == torch.float32
    inside = u.mT @ y @ v.mT  # the same singular vectors: diagonal
    values = inside.diagonal(dim1=1, dim2=2)
    assert 0.5 < values.min() <= values.max() < 1.3
    torch.testing.assert_close(inside, torch.diag_embed(values), rtol=0, atol=rounding)


def test_orthogonal_treats_each_matrix_alone():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6)
    among_others, alone = orthogonal(x, torch.float32), orthogonal(x[1:2] * 100, torch.float32)
    torch.testing.assert_close(among_others[1:2], alone, rtol=1e-4, atol=1e-5)


def test_muon_equals_torchs_own_but_for_its_rounding():
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(8, 5)) for _ in range(2))
    config = optim(learning_rate=0.1, weight_decay=0.2, momentum=0.9)
    muon = Muon({"inner.weight": ours}, config, torch.float32)
    reference = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        ours.grad = torch.randn(8, 5)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
    assert (ours - theirs).norm() < 0.02 * (1 - ours).norm()  # torch's works in bf16


def test_stacked_projections_are_made_orthogonal_one_by_one():
    torch.manual_seed(0)
    stacked = nn.Parameter(torch.zeros(12, 4))
    stacked.grad = torch.randn(12, 4)
    alone = [nn.Parameter(torch.zeros(4, 4)) for _ in range(3)]
    for parameter, grad in zip(alone, stacked.grad.chunk(3), strict=True):
        parameter.grad = grad.clone()
    Muon({"in_projection.weight": stacked}, optim(), torch.float32).step()
    Muon({str(i): p for i, p in enumerate(alone)}, optim(), torch.float32).step()
    torch.testing.assert_close(stacked.data, torch.cat([p.data for p in alone]))


# -- the moving average ----------------------------------------------------------------------


def test_the_average_by_hand():
    """Decays min(0.25, 2/11), min(0.25, 3/12), min(0.25, 4/13) = 2/11, 1/4, 1/4."""
    weights = {"x": torch.tensor([11.0])}
    ema = Ema(weights, decay=0.25)
    ema.update({"x": torch.tensor([0.0])}, step=1)
    assert ema.weights["x"].item() == pytest.approx(2)
    ema.update({"x": torch.tensor([4.0])}, step=2)
    assert ema.weights["x"].item() == pytest.approx(3.5)
    ema.update({"x": torch.tensor([0.0])}, step=3)
    assert ema.weights["x"].item() == pytest.approx(0.875)
    assert weights["x"].item() == 11.0


def test_late_in_training_the_decay_is_the_configured_one():
    ema = Ema({"x": torch.zeros(1)}, decay=0.99)
    ema.update({"x": torch.ones(1)}, step=100_000)
    assert ema.weights["x"].item() == pytest.approx(0.01)


def test_the_average_follows_weights_by_name():
    ema = Ema({"x": torch.zeros(1), "y": torch.zeros(1)}, decay=0.0)
    ema.update({"y": torch.tensor([2.0]), "x": torch.tensor([1.0])}, step=1)
    assert (ema.weights["x"].item(), ema.weights["y"].item()) == (1.0, 2.0)
