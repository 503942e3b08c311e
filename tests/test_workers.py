"""Threads side by side: the same gradients as one after the other, and the same ones again."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrain.config.sections import ModelConfig
from mtrain.model.dropout import dropout, seed_dropout
from mtrain.model.transformer import Transformer
from mtrain.training.workers import Workers, share_out

IDS = [torch.randint(4, 50, (3, n), generator=torch.Generator().manual_seed(n)) for n in (7, 4, 9)]
SIZES = [ids.numel() for ids in IDS]


def make_model(rate: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_ff": 12, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    config = ModelConfig.model_validate({**sizes, "dropout": rate, "attention_dropout": rate})
    return Transformer(config, 50, 50).train()


def gradients(model: Transformer, n_workers: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    workers = Workers(model, n_workers)
    for replica in workers.models:
        replica.train()

    def forward_backward(replica: Transformer, i: int) -> float:
        seed_dropout(i)
        loss = replica(IDS[i], IDS[i], None).square().mean()
        loss.backward()
        return float(loss.detach())

    losses = workers.run(forward_backward, range(len(IDS)), SIZES)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    workers.drop_gradients()
    assert all(p.grad is None for replica in workers.models for p in replica.parameters())
    return losses, found


@pytest.mark.parametrize("n_workers", [2, 3, 5])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_any_number_of_threads_computes_the_same(n_workers, rate):
    model = make_model(rate)
    alone_losses, alone = gradients(model, 1)
    losses, found = gradients(model, n_workers)
    assert losses == pytest.approx(alone_losses, rel=1e-6)
    assert found.keys() == alone.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, alone[name], rtol=1e-4, atol=1e-6)


def test_the_same_number_of_threads_gives_the_same_bytes():
    model = make_model(0.4)
    first_losses, first = gradients(model, 2)
    for _ in range(5):
        losses, found = gradients(model, 2)
        assert losses == first_losses
        assert all(torch.equal(found[name], first[name]) for name in first)


def test_replicas_see_every_change_of_the_weights():
    model = make_model()
    workers = Workers(model, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for original, parameter in zip(model.parameters(), workers.models[1].parameters(), strict=True):
        assert torch.equal(original, parameter)


def test_the_callers_threads_stay_as_they_were():
    torch.set_num_threads(2)
    gradients(make_model(), 2)
    assert torch.get_num_threads() == 2


def test_an_error_of_a_thread_reaches_the_caller():
    def fail(model: Transformer, i: int) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        Workers(make_model(), 2).run(fail, range(3), SIZES)


def test_when_an_error_reaches_the_caller_nobody_computes_any_more():
    done = []

    def fail(model: Transformer, i: int) -> None:
        if i == 0:
            raise torch.OutOfMemoryError("full")
        time.sleep(0.2)
        done.append(i)

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        Workers(make_model(), 2).run(fail, range(2), [1, 1])
    assert done == [1]


def test_masks_of_a_thread_depend_on_its_seed_alone():
    def mask(_: Transformer, seed: int) -> torch.Tensor:
        seed_dropout(seed)
        return torch.stack([dropout(torch.ones(1000), 0.5, training=True) for _ in range(20)])

    workers = Workers(make_model(), 2)
    first = workers.run(mask, [1, 2, 1, 2], [1, 1, 1, 1])
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], first[3])
    assert not torch.equal(first[0], first[1])


def test_shares_by_hand():
    assert share_out([5, 9, 4, 1], 2) == [[1, 3], [0, 2]]
    assert share_out([3], 2) == [[0], []]


@given(st.lists(st.integers(0, 100)), st.integers(1, 6))
def test_shares_hold_each_item_once_and_are_about_even(sizes, n_shares):
    shares = share_out(sizes, n_shares)
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    sums = [sum(sizes[i] for i in share) for share in shares]
    assert max(sums) - min(sums) <= max(sizes, default=0)
