"""Padded and recorded micro-batches against those as they are, and whether training takes them.

Only a GPU records CUDA graphs. Elsewhere `played_again` stands in for one: it makes the same pass
anew, on the same buffers, and leaves its results where the first ones were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrain.config import ModelConfig, OptimConfig
from mtrain.cuda_graphs import as_cuda_graph
from mtrain.data.batching import Batch, batch_of
from mtrain.data.tokenizer import PAD
from mtrain.errors import DeviceError
from mtrain.model.loss import Loss
from mtrain.model.transformer import Transformer, seed_dropout
from mtrain.training import fit, graphs
from mtrain.training.fit import Trial, record_if_faster
from mtrain.training.graphs import PASSES_WITHOUT, Pass, Recorder, Shape, padded
from mtrain.training.objective import loss_of
from mtrain.training.state import Progress

VOCAB = 31
N_TARGET_TOKENS = 100  # of an update
TRIAL = Trial(update_s=1.0, tokens_per_s=100.0, peak_bytes=1, n_micro_batches=1.0)


def played_again(work: Pass) -> Pass:
    kept = work()

    def again() -> Loss:
        for old, new in zip(kept, work(), strict=True):
            if old is not None and new is not None:
                old.copy_(new)
        return kept

    return again


def make_model(dropout: float) -> Transformer:
    torch.manual_seed(1)
    layers = {"n_encoder_layers": 1, "n_decoder_layers": 1, "dropout": dropout}
    return Transformer(ModelConfig(d_model=16, d_ff=24, n_heads=2, **layers), VOCAB, VOCAB)


def make_batch(n_rows: int, seed: int, longest: int = 7) -> Batch:
    draw = np.random.default_rng(seed)
    sides = [
        [draw.integers(4, VOCAB, n) for n in [longest, *draw.integers(1, longest, n_rows - 1)]]
        for _ in range(2)
    ]
    return batch_of(*sides)


BATCHES = [make_batch(n_rows, seed) for seed, n_rows in enumerate([3, 5, 8, 9, 2, 16, 7])]
SHAPES = {Shape.of(batch).around for batch in BATCHES}


def passes(model: Transformer, optim: OptimConfig, run: Callable[..., Loss]) -> Iterator[Any]:
    """The losses and the summed gradients of updates of two micro-batches each."""
    for update in range(len(BATCHES) - 1):
        model.zero_grad()
        for i in (update, update + 1):
            yield [float(x) for x in run(BATCHES[i], i) if x is not None]
        yield {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def recorder_of(
    model: Transformer, optim: OptimConfig, record: Callable[[Pass], Pass] | None
) -> tuple[Recorder, Callable[[Batch, int], Loss]]:
    """A recorder, and how to run a micro-batch with it."""
    recorder = Recorder(model, lambda batch: loss_of(model, batch, optim), record)
    return recorder, lambda batch, seed: recorder.run(padded(batch), N_TARGET_TOKENS, seed)


def unpadded(model: Transformer, optim: OptimConfig, batch: Batch, seed: int) -> Loss:
    seed_dropout(seed)
    loss = loss_of(model, batch, optim)
    (loss.smoothed / N_TARGET_TOKENS).backward()  # type: ignore[no-untyped-call]
    return loss._replace(smoothed=loss.smoothed.detach())


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, list):
            assert a == b
        else:
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)


# -- padding ---------------------------------------------------------------------------------


def test_shapes_are_few_and_hold_what_they_are_for():
    for n in range(1, 3000):
        shape = Shape(n, n, n).around
        assert n <= shape.n_rows < max(n + 8, 1.25 * n + 1)
        assert shape == Shape(*[shape.n_rows] * 3) == shape.around
    assert len({Shape(n, 1, 1).around for n in range(1, 2049)}) == 28


def test_a_padded_batch_has_the_same_pairs():
    batch = BATCHES[0]
    larger = padded(batch)
    assert Shape.of(larger) == Shape(8, 8, 8)
    for name in ("src", "tgt_in", "tgt_out"):
        few, many = getattr(batch, name), getattr(larger, name)
        assert torch.equal(many[:3, : few.shape[1]], few)
    assert (larger.tgt_out != PAD).sum() == batch.n_target_tokens == larger.n_target_tokens
    assert larger.src_mask is not None
    assert larger.src_mask.flatten(1).sum(1).tolist() == [*(batch.src != PAD).sum(1), *[1] * 5]
    assert larger.n_positions == 2 * 8 * 8


@pytest.mark.parametrize("consistency", ["none", "rdrop"])  # what SimCut cuts depends on the shape
def test_padding_changes_no_loss_and_no_gradient(consistency):
    model, optim = make_model(dropout=0.0).train(), OptimConfig(consistency=consistency)
    _, run = recorder_of(model, optim, None)
    found = [*passes(model, optim, run)]
    expected = [*passes(model, optim, partial(unpadded, model, optim))]
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, list):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
        else:
            for name in b:
                torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-6)


# -- recording -------------------------------------------------------------------------------


@pytest.mark.parametrize("consistency", ["none", "rdrop", "simcut"])
def test_recorded_passes_are_those_without_to_the_bit(consistency):
    model, optim = make_model(dropout=0.2).train(), OptimConfig(consistency=consistency)
    recorder, run = recorder_of(model, optim, played_again)
    found = [*passes(model, optim, run)]
    _, run = recorder_of(model, optim, None)
    assert_equal(found, [*passes(model, optim, run)])
    assert recorder.recordings.by_shape.keys() == SHAPES
    assert len(SHAPES) == 2


def test_a_shape_is_recorded_when_it_comes_again():
    model, optim = make_model(dropout=0.1).train(), OptimConfig()
    recorder, run = recorder_of(model, optim, played_again)
    for _ in range(PASSES_WITHOUT):
        run(BATCHES[0], 1)
        assert not recorder.recordings.by_shape
    run(BATCHES[0], 1)
    assert [*recorder.recordings.by_shape] == [Shape(8, 8, 8)]


def test_the_shapes_that_were_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_SHAPES", 2)
    model, optim = make_model(dropout=0.1).train(), OptimConfig()
    recorder, run = recorder_of(model, optim, played_again)
    batches = {n: make_batch(n, seed=n) for n in (8, 16, 24)}
    for n in (8, 8, 16, 16, 8, 24, 24):
        run(batches[n], 1)
    assert [shape.n_rows for shape in recorder.recordings.by_shape] == [8, 24]


def test_gradients_survive_that_recordings_are_forgotten():
    """As where memory runs out, and the update goes on."""
    model, optim = make_model(dropout=0.1).train(), OptimConfig()
    recorder, run = recorder_of(model, optim, played_again)

    def forgetful(batch: Batch, seed: int) -> Loss:
        loss = run(batch, seed)
        if seed % 2:
            recorder.forget()
        return loss

    found = [*passes(model, optim, forgetful)]
    _, run = recorder_of(model, optim, None)
    assert_equal(found, [*passes(model, optim, run)])


def with_other_masks(work: Pass) -> Pass:
    """A recording that draws what it drew when it was made."""
    again = played_again(work)

    def other() -> Loss:
        seed_dropout(123)
        return again()

    return other


def broken(work: Pass) -> Pass:
    work()
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nMore.")


@pytest.mark.parametrize(
    ("record", "said"), [(with_other_masks, "become"), (broken, "stream is capturing\n")]
)
def test_a_recording_that_fails_is_not_used(record, said, capsys):
    model, optim = make_model(dropout=0.2).train(), OptimConfig()
    recorder, run = recorder_of(model, optim, record)
    found = [*passes(model, optim, run)]
    _, run = recorder_of(model, optim, None)
    assert_equal(found, [*passes(model, optim, run)])
    assert not recorder.recordings.is_able
    assert not recorder.gradients
    err = capsys.readouterr().err
    assert err.count("training goes on without CUDA graphs") == 1
    assert said in err


# -- whether to record -----------------------------------------------------------------------


class FakeLearner:
    """Takes 1 s for an update, and `recorded_s` with CUDA graphs; None: it cannot record."""

    def __init__(self, wish: Any, recorded_s: float | None, update_s: float = 1.0) -> None:
        self.config = SimpleNamespace(train=SimpleNamespace(cuda_graphs=wish))
        self.processes = SimpleNamespace(any=bool)
        self.update_s, self.recorded_s = update_s, recorded_s
        self.recorder: Any = None
        self.n_trials = 0

    def record(self) -> None:
        recordings = SimpleNamespace(is_able=True)
        self.recorder = SimpleNamespace(record=played_again, recordings=recordings)

    def trial(self, *_: Any) -> Trial:
        if self.recorder is None:
            return replace(TRIAL, update_s=self.update_s)
        self.n_trials += 1
        if self.recorded_s is None:
            self.recorder.recordings.is_able = False
        recording = self.recorded_s is None or self.n_trials <= PASSES_WITHOUT + 1
        return replace(TRIAL, update_s=9.0 if recording else self.recorded_s)


def choose(learner: FakeLearner, monkeypatch: pytest.MonkeyPatch) -> tuple[Progress, Trial]:
    monkeypatch.setattr(fit, "try_out", FakeLearner.trial)
    monkeypatch.setattr(fit, "_time", FakeLearner.trial)
    progress = Progress()
    chosen = record_if_faster(learner, None, progress, TRIAL)  # type: ignore[arg-type]
    assert (learner.recorder is not None) == progress.is_recorded
    return progress, chosen


@pytest.mark.parametrize(
    ("wish", "recorded_s", "update_s", "expected"),
    [
        ("auto", 0.5, 1.0, 0.5),
        ("auto", 1.5, 1.0, None),
        ("auto", 0.5, 0.4, None),  # the first trial said 1 s, but this is what it takes once warm
        (True, 1.5, 1.0, 1.5),
        ("auto", None, 1.0, None),
    ],
)
def test_graphs_are_taken_where_they_are_faster(monkeypatch, wish, recorded_s, update_s, expected):
    progress, chosen = choose(FakeLearner(wish, recorded_s, update_s), monkeypatch)
    assert progress.is_recorded == (expected is not None)
    assert chosen.update_s == (expected or TRIAL.update_s)


def test_graphs_that_are_asked_for_must_be_possible(monkeypatch):
    with pytest.raises(DeviceError, match="cannot be recorded here") as raised:
        choose(FakeLearner(True, None), monkeypatch)
    assert raised.value.fix == "set `train.cuda_graphs` to `auto` or `false`"


# -- on a GPU --------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("consistency", ["none", "rdrop", "simcut"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_graph_is_the_pass(consistency, dtype):
    model, optim = make_model(dropout=0.2).cuda().train(), OptimConfig(consistency=consistency)

    def loss(batch: Batch) -> Loss:
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return loss_of(model, batch, optim)

    results: list[list[Any]] = []
    for record in (as_cuda_graph, None):
        recorder = Recorder(model, loss, record)

        def run(batch: Batch, seed: int, recorder: Recorder = recorder) -> Loss:
            return recorder.run(padded(batch).to(torch.device("cuda")), N_TARGET_TOKENS, seed)

        results.append([*passes(model, optim, run)])
        assert recorder.recordings.is_able
        assert recorder.recordings.by_shape.keys() == (SHAPES if record else set())
    for a, b in zip(*results, strict=True):
        if isinstance(a, list):
            assert a == pytest.approx(b, rel=1e-3)
        else:
            norms: list[Tensor] = [
                torch.linalg.vector_norm(torch.cat([x.flatten() for x in each.values()]))
                for each in (a, b)
            ]
            assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-2)
