"""The trial before training: the largest micro-batch, the memory held beside it, and the clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrain.config.sections import ModelConfig, OptimConfig
from mtrain.data.batching import Batch, BatchPlan
from mtrain.data.epochs import Epoch
from mtrain.data.micro_batches import cut
from mtrain.model.transformer import Transformer
from mtrain.training import trial
from mtrain.training.learner import Learner
from mtrain.training.optim import make_optimizers
from mtrain.training.schedule import Progress

CUDA = torch.device("cuda")


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=80),
    st.integers(60, 600),
    st.integers(1, 3),
)
def test_no_micro_batch_is_larger_than_the_one_that_is_tried(pairs, max_tokens, n_workers):
    src, tgt = (np.array(lengths) for lengths in zip(*pairs, strict=True))
    plan = BatchPlan(src, tgt, batch_tokens=300, seed=1, epoch=0)
    largest = trial.largest_batch(plan, max_tokens, is_padded=True)
    n_rows, longest = largest.src.shape
    if n_rows > 1:
        assert max_tokens - n_rows < largest.src.numel() <= max_tokens
    for update in range(len(plan)):
        for part in cut(plan.sentences(update), src, tgt, max_tokens, n_workers):
            width, height = int(src[part].max()), int(tgt[part].max())
            assert len(part) * (width + height) <= largest.n_positions + 2 * n_rows
            assert max(width, height) <= 2 * longest


class FakeGpu:
    """Work is launched at once, and done when someone waits; a look at the clock is an event."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.note("wait"))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
        monkeypatch.setattr(trial, "run_largest", lambda *_: self.note("largest"))

    def clock(self) -> float:
        self.note("clock")
        return float(len(self.events))

    def note(self, event: str) -> None:
        self.events.append(event)

    def learner(self, device: torch.device = CUDA) -> Any:
        return SimpleNamespace(
            device=device,
            gradients=lambda plan, number, progress: self.note("update"),
            micro_batches=lambda plan, number, progress: [None] * 3,
            replicas=SimpleNamespace(zero_grad=lambda: None),
            distributed=SimpleNamespace(broadcast=lambda value: value),
        )


def epoch_of(n_updates: int) -> Epoch:
    plan = BatchPlan(np.full(n_updates, 9), np.full(n_updates, 9), 9, seed=1, epoch=0)
    return Epoch(None, plan)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_updates", "n_warm_up", "n_timed"), [(100, 3, 10), (4, 3, 4), (1, 1, 1)]
)
def test_a_gpu_is_warm_and_idle_when_the_clock_starts_and_done_when_it_stops(
    monkeypatch, n_updates, n_warm_up, n_timed
):
    gpu = FakeGpu(monkeypatch)
    found = trial.try_out(gpu.learner(), epoch_of(n_updates), Progress(), gpu.clock)
    timed = ["wait", "clock", *["update"] * n_timed, "wait", "clock"]
    assert gpu.events == ["largest", *["update"] * n_warm_up, *timed]
    assert found.update_s == (n_timed + 2) / n_timed
    assert found.tokens_per_s == 18 * n_timed / (n_timed + 2)
    assert (found.peak_bytes, found.n_micro_batches) == (7, 3)


def test_on_a_cpu_two_updates_are_timed_at_once(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    trial.try_out(gpu.learner(torch.device("cpu")), epoch_of(100), Progress(), gpu.clock)
    assert gpu.events == ["largest", "clock", "update", "update", "clock"]


@pytest.mark.parametrize(("optimizer", "n_of_matrices"), [("adamw", 2), ("muon", 1)])
def test_the_trial_holds_gradients_and_the_moments_that_are_to_come(optimizer, n_of_matrices):
    config = ModelConfig(d_model=8, d_ff=8, n_heads=2, n_encoder_layers=1, n_decoder_layers=1)
    model = Transformer(config, 20, 20)
    optimizers = make_optimizers(model, OptimConfig(optimizer=optimizer), torch.float32)
    learner: Any = SimpleNamespace(device=CUDA, optimizers=optimizers)
    n_matrices = sum(
        p.numel() for p in [*model.encoder.parameters(), *model.decoder.parameters()] if p.dim() > 1
    )
    n_all = sum(p.numel() for p in model.parameters())
    held = sum(tensor.numel() for tensor in trial._held_in_training(learner))
    assert held == 2 * (n_all - n_matrices) + n_of_matrices * n_matrices
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    for each in optimizers:
        each.step()
    assert trial._held_in_training(learner) == []  # the moments are there
    learner.device = torch.device("cpu")
    assert trial._held_in_training(learner) == []


def halving_learner(forward_backward: Callable[..., list[Any]], halved: list[int]) -> Any:
    """With micro-batches of 40 tokens, then 20; `halved` gets the rows of what did not fit."""
    learner: Any = SimpleNamespace(
        device=CUDA,
        replicas=SimpleNamespace(zero_grad=lambda: None, models=[None]),
        micro_batch_tokens=lambda progress: [40, 20][len(halved)],
        forward_backward=forward_backward,
        halve_micro_batch=lambda batch, progress: halved.append(len(batch.src)),
    )
    learner.in_memory = partial(Learner.in_memory, learner)
    return learner


@pytest.mark.parametrize("what", ["the moments", "the micro-batch", "nothing"])
def test_what_does_not_fit_beside_all_that_is_held_is_halved(monkeypatch, what):
    halved: list[int] = []

    def allocate(name: str) -> list[Any]:
        if name == what and not halved:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return []

    learner = halving_learner(lambda *_, step: allocate("the micro-batch"), halved)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(trial, "_held_in_training", lambda learner: allocate("the moments"))
    trial.run_largest(learner, epoch_of(1).plan, Progress())
    assert halved == ([] if what == "nothing" else [5])


def test_the_peak_is_that_of_the_micro_batch_that_fits(monkeypatch):
    peak = 100  # of what was there before, such as another model

    def reset(device: torch.device) -> None:
        nonlocal peak
        peak = 0

    def use(batches: dict[int, Batch], *_: int, step: int) -> list[Any]:
        nonlocal peak
        peak = max(peak, batches[0].src.numel())
        if peak > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return []

    halved: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(trial, "_held_in_training", lambda learner: [])
    trial.run_largest(halving_learner(use, halved), epoch_of(1).plan, Progress())
    assert halved == [5]
    assert peak == 18  # two rows of nine
