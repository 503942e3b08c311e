"""Threads: work side by side, gradients of replicas, and writes beside training."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrain.config.sections import ModelConfig
from mtrain.errors import StorageError
from mtrain.machine.threads import Replicas, Writer, share_out, side_by_side
from mtrain.model.dropout import dropout, give_thread_its_own_dropout, seed_dropout
from mtrain.model.transformer import Transformer

IDS = [torch.randint(4, 50, (3, n), generator=torch.Generator().manual_seed(n)) for n in (7, 4, 9)]
SIZES = [ids.numel() for ids in IDS]
TIMEOUT_S = 20


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -- work side by side -----------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("n_workers", [1, 2])
def test_work_side_by_side_gives_every_result_and_the_threads_back(n_workers):
    torch.set_num_threads(2)
    seen = set()

    def work(item):
        seen.add(torch.get_num_threads())
        return item * item

    assert dict(side_by_side(work, range(9), n_workers)) == {i: i * i for i in range(9)}
    assert seen == {1 if n_workers == 2 else 2}
    assert dict(side_by_side(work, [3], n_workers, threads_of_one=1)) == {3: 9}
    assert 1 in seen
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("threads")
def test_an_error_of_one_worker_ends_them_all():
    torch.set_num_threads(2)
    done = []

    def work(item):
        if item == 1:
            raise ValueError("no")
        time.sleep(0.01)  # all together take seconds, in which the error is seen
        done.append(item)

    with pytest.raises(ValueError, match="no"):
        list(side_by_side(work, range(500), 2))
    assert len(done) < 499
    assert torch.get_num_threads() == 2


# -- replicas --------------------------------------------------------------------------------


def make_model(rate: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_ff": 12, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    config = ModelConfig.model_validate({**sizes, "dropout": rate, "attention_dropout": rate})
    return Transformer(config, 50, 50).train()


def replicas_of(model: Transformer, n: int) -> Replicas[Transformer]:
    return Replicas(model, n, give_thread_its_own_dropout)


def gradients(model: Transformer, n_workers: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    workers = replicas_of(model, n_workers)
    workers.train()

    def forward_backward(replica: Transformer, i: int) -> float:
        seed_dropout(i)
        loss = replica(IDS[i], IDS[i], None).square().mean()
        loss.backward()
        return float(loss.detach())

    losses = workers.run(forward_backward, range(len(IDS)), SIZES)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    workers.zero_grad()
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
    workers = replicas_of(model, 2)
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
        replicas_of(make_model(), 2).run(fail, range(3), SIZES)


def test_when_an_error_reaches_the_caller_nobody_computes_any_more():
    done = []

    def fail(model: Transformer, i: int) -> None:
        if i == 0:
            raise torch.OutOfMemoryError("full")
        time.sleep(0.2)
        done.append(i)

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        replicas_of(make_model(), 2).run(fail, range(2), [1, 1])
    assert done == [1]


def test_masks_of_a_thread_depend_on_its_seed_alone():
    def mask(_: Transformer, seed: int) -> torch.Tensor:
        seed_dropout(seed)
        return torch.stack([dropout(torch.ones(1000), 0.5, training=True) for _ in range(20)])

    workers = replicas_of(make_model(), 2)
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


# -- writes ----------------------------------------------------------------------------------


@pytest.fixture
def writer() -> Writer:
    return Writer(torch.device("cpu"))


def gated(gate: threading.Event, name: str, written: list[str]) -> Callable[[], None]:
    def write() -> None:
        assert gate.wait(TIMEOUT_S)
        written.append(name)

    return write


def fail() -> None:
    raise StorageError("no space left")


def test_a_write_is_waited_for_at_the_end_and_not_before(writer):
    gate, written = threading.Event(), []
    with writer:
        writer.start(gated(gate, "a", written))
        writer.check()
        assert written == []
        gate.set()
    assert written == ["a"]


def test_a_second_write_waits_for_the_first(writer):
    gate, written = threading.Event(), []
    with writer:
        writer.start(gated(gate, "a", written))
        threading.Timer(0.02, gate.set).start()
        writer.start(lambda: written.append("b"))
        assert written[0] == "a"


def test_an_error_is_raised_once_at_the_next_look(writer):
    with writer:
        writer.start(fail)
        assert writer.pending is not None
        concurrent.futures.wait([writer.pending])
        with pytest.raises(StorageError, match="no space left"):
            writer.check()
        writer.check()


@pytest.mark.parametrize("at", ["start", "wait", "end"])
def test_an_error_that_was_not_looked_for_is_raised_too(writer, at):
    def go_on() -> None:
        with writer:
            writer.start(fail)
            if at == "start":
                writer.start(lambda: None)
            elif at == "wait":
                writer.wait()

    with pytest.raises(StorageError, match="no space left"):
        go_on()
