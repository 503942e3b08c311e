"""The chunked loss and its gradients, against torch's own cross-entropy over all logits at once."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtrain.data.tokenizer import PAD
from mtrain.model import loss
from mtrain.model.loss import Loss, consistency_loss, label_smoothed_loss, r_drop, sim_cut

B, T, D, V = 5, 60, 8, 50


def example(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, T, D) and weight (V, D), both with gradients; targets (B, T), padded at the end."""
    torch.manual_seed(0)
    x = (torch.randn(B, T, D) * scale).requires_grad_()
    weight = torch.randn(V, D, requires_grad=True)
    targets = torch.randint(PAD + 1, V, (B, T))
    for row, length in enumerate([T, 50, 7, 1, 33]):
        targets[row, length:] = PAD
    return x, weight, targets


def whole(x: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """What label_smoothed_loss should be, from torch."""
    return F.cross_entropy(
        (x @ weight.T).flatten(0, 1),
        targets.flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing,
        reduction="sum",
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * V * 100, 8 << 20])  # 64 rows, 100 rows, all
def test_value_and_gradients_equal_those_of_the_whole(smoothing, chunk_bytes, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    x, weight, targets = example()
    found = label_smoothed_loss(x, weight, targets, smoothing)
    expected = whole(x, weight, targets, smoothing)
    torch.testing.assert_close(found.smoothed, expected)
    torch.testing.assert_close(found.nll, whole(x, weight, targets, 0.0))
    gradients = torch.autograd.grad(found.smoothed, (x, weight))
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (x, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_two_words_by_hand():
    """Logits 0 and a: -log p(1) = log(1 + e^-a), -log p(0) = a + log(1 + e^-a)."""
    a, e = 1.5, 0.2
    weight = torch.tensor([[0.0], [a]])
    found = label_smoothed_loss(torch.ones(1, 1, 1), weight, torch.tensor([[1]]), e)
    right = math.log1p(math.exp(-a))
    assert found.nll.item() == pytest.approx(right)
    assert found.smoothed.item() == pytest.approx((1 - e) * right + e * (right + a / 2))


def test_padding_adds_nothing_and_gets_no_gradient():
    x, weight, targets = example()
    found = label_smoothed_loss(x, weight, targets, 0.1)
    changed = torch.where((targets == PAD)[..., None], 9.0, x.detach())
    assert label_smoothed_loss(changed, weight, targets, 0.1).smoothed == found.smoothed
    (grad_x,) = torch.autograd.grad(found.smoothed, x)
    assert not grad_x[targets == PAD].any()
    assert grad_x[targets != PAD].abs().sum(-1).all()


def test_nothing_but_padding_is_zero_with_zero_gradients():
    x, weight, targets = example()
    found = label_smoothed_loss(x, weight, torch.full_like(targets, PAD), 0.1)
    assert (found.smoothed.item(), found.nll.item()) == (0.0, 0.0)
    assert not any(g.any() for g in torch.autograd.grad(found.smoothed, (x, weight)))


def test_large_logits_overflow_nothing():
    x, weight, targets = example(scale=300.0)
    found = label_smoothed_loss(x, weight, targets, 0.1)
    expected = whole(x, weight, targets, 0.1)
    torch.testing.assert_close(found.smoothed, expected, rtol=1e-5, atol=0.0)
    for ours, theirs in zip(
        torch.autograd.grad(found.smoothed, (x, weight)),
        torch.autograd.grad(expected, (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


def test_an_outer_factor_scales_the_gradients():
    x, weight, targets = example()
    plain = torch.autograd.grad(label_smoothed_loss(x, weight, targets, 0.1).smoothed, (x, weight))
    scaled = label_smoothed_loss(x, weight, targets, 0.1).smoothed / 8
    for ours, one in zip(torch.autograd.grad(scaled, (x, weight)), plain, strict=True):
        torch.testing.assert_close(ours, one / 8)


def test_gradients_pass_on_to_what_x_was_made_from():
    x, weight, targets = example()
    label_smoothed_loss(x * 2, weight, targets, 0.1).smoothed.backward()
    y = x.detach().clone().requires_grad_()
    whole(y * 2, weight.detach(), targets, 0.1).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)


def test_the_plain_loss_has_no_gradient():
    assert not label_smoothed_loss(*example(), 0.1).nll.requires_grad


class CountProducts(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def count_products(mode: torch.no_grad | torch.enable_grad) -> tuple[int, Loss]:
    x, weight, targets = example()
    with mode, CountProducts() as products:
        found = label_smoothed_loss(x, weight, targets, 0.1)
    return products.n, found


def test_no_gradient_is_computed_where_none_is_wanted():
    """Not even where the weights could have one: validation reads the loss alone."""
    n_with, expected = count_products(torch.enable_grad())
    n_without, found = count_products(torch.no_grad())
    assert (n_with, n_without) == (3, 1)
    assert not found.smoothed.requires_grad
    assert found.smoothed == expected.smoothed
    assert found.nll == expected.nll


def test_bf16_stays_near():
    x, weight, targets = example()
    expected = whole(x, weight, targets, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = label_smoothed_loss(x, weight, targets, 0.1)
    assert found.smoothed.dtype is torch.float32
    torch.testing.assert_close(found.smoothed, expected, rtol=0.01, atol=0.0)
    gradients = torch.autograd.grad(found.smoothed, (x, weight))
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (x, weight)), strict=True):
        assert ours.dtype is torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


# -- two passes that should agree ------------------------------------------------------------


def consistency_from_torch(
    x: Tensor, weight: Tensor, targets: Tensor, smoothing: float, name: str, alpha: float
) -> Tensor:
    """The papers' formulas, over all logits at once."""
    real = targets.flatten() != PAD
    y = targets.flatten()[real]
    log_p, log_q = ((half.flatten(0, 1)[real] @ weight.T).log_softmax(1) for half in (x[:B], x[B:]))
    losses = [
        F.cross_entropy(log, y, label_smoothing=smoothing, reduction="sum")
        for log in (log_p, log_q)
    ]
    kl_pq = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    kl_qp = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    if name == "r_drop":
        return losses[0] + losses[1] + alpha * (kl_pq + kl_qp) / 2
    return losses[0] + alpha * kl_pq


def two_passes() -> tuple[Tensor, Tensor, Tensor]:
    x, weight, targets = example()
    torch.manual_seed(1)
    other = x.detach() + torch.randn(B, T, D) * 0.3
    return torch.cat([x.detach(), other]).requires_grad_(), weight, targets


@pytest.mark.parametrize("name", ["r_drop", "sim_cut"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_bytes", [1, 8 << 20])
def test_consistency_and_its_gradients_equal_the_papers_formulas(
    name, smoothing, chunk_bytes, monkeypatch
):
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    x, weight, targets = two_passes()
    agreement = {"r_drop": r_drop, "sim_cut": sim_cut}[name](3.0)
    found = consistency_loss(x, weight, targets, smoothing, agreement)
    expected = consistency_from_torch(x, weight, targets, smoothing, name, 3.0)
    torch.testing.assert_close(found.smoothed, expected)
    torch.testing.assert_close(found.nll, whole(x[:B], weight, targets, 0.0))
    gradients = torch.autograd.grad(found.smoothed / 7, (x, weight))
    for ours, theirs in zip(gradients, torch.autograd.grad(expected / 7, (x, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_equal_passes_do_not_diverge():
    x, weight, targets = example()
    found = consistency_loss(torch.cat([x, x]), weight, targets, 0.1, sim_cut(3.0))
    assert found.divergence.item() == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(found.smoothed, whole(x, weight, targets, 0.1))


def test_consistency_in_bf16_stays_near():
    x, weight, targets = two_passes()
    expected = consistency_from_torch(x, weight, targets, 0.1, "r_drop", 3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = consistency_loss(x, weight, targets, 0.1, r_drop(3.0))
    torch.testing.assert_close(found.smoothed, expected, rtol=0.02, atol=0.0)
    gradients = torch.autograd.grad(found.smoothed, (x, weight))
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (x, weight)), strict=True):
        assert ours.dtype is torch.float32
        assert (ours - theirs).norm() < 0.03 * theirs.norm()
