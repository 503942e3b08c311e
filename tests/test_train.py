"""Training as a whole, on a task small enough to be trained dozens of times: stopped anywhere, it
goes on as if it had not been."""

import errno
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import invoke, mtrain_command, mtrain_environment, write_lines

from mtrain.config.load import load_config, read_run_config
from mtrain.data import micro_batches
from mtrain.data.batching import Batch
from mtrain.data.epochs import Epochs
from mtrain.data.micro_batches import cut, token_limit
from mtrain.data.tokenizer import BOS, EOS, load_tokenizers
from mtrain.errors import (
    CheckpointError,
    NonFiniteError,
    OutOfMemoryError,
    StoppedBySignal,
    StorageError,
    UsageError,
)
from mtrain.machine import runtime
from mtrain.model.loss import Loss
from mtrain.model.weights import average, digest, load_model, load_tensors, weights_of
from mtrain.run import RunDir
from mtrain.training import checkpoints, learner, log, optim
from mtrain.training import train as training
from mtrain.training.resume import alone_in
from mtrain.training.train import Observer, train
from mtrain.training.validate import validate

CONFIG = """\
name: copy
source: en
target: de
data:
  train: {source: train.txt, target: train.txt}
  valid: {source: valid.txt, target: valid.txt}
  max_length: 40
tokenizer: {vocab_size: 300}
model: {d_model: 16, d_ff: 24, n_heads: 2, n_encoder_layers: 1, n_decoder_layers: 1, dropout: 0.1}
train:
  max_steps: 12
  batch_tokens: 160
  micro_batch_tokens: 80
  validate_every: 4
  save_every: 3
  log_every: 1
  threads: 1
  device: cpu
  precision: fp32
  both_directions: 0
  optim:
    optimizer: adamw
    learning_rate: 0.01
    schedule: inverse_sqrt
    warmup_steps: 4
    weight_decay: 0.01
    ema_decay: 0.9
decode: {beam_size: 2}
"""
TIMES = {"elapsed_s", "tokens_per_s", "memory_bytes", "validation_s"}


class Killed(BaseException):
    """What no part of the program expects."""


@dataclass
class Workspace:
    """A directory with a config and its texts; runs of it go anywhere."""

    config: Path

    def train(
        self,
        run: Path | str,
        *overrides: str,
        fresh: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        validate: Any = validate,
        **observed: Callable[[int], None],
    ) -> RunDir:
        config = load_config(self.config, [f"run={run}", *overrides])
        train(config, self.config, fresh, Observer(**observed), clock, validate)
        return RunDir(run)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("copy")
    generator = random.Random(0)
    lines: dict[str, None] = {}
    while len(lines) < 126:
        words = ["".join(generator.choices("abcdef", k=generator.randint(1, 3))) for _ in range(4)]
        lines[" ".join(words[: generator.randint(1, 4)])] = None
    write_lines(directory / "train.txt", list(lines)[6:])
    write_lines(directory / "valid.txt", list(lines)[:6])
    (directory / "copy.yaml").write_text(CONFIG)
    return directory


@pytest.fixture
def workspace(directory, monkeypatch):
    monkeypatch.chdir(directory)
    return Workspace(Path("copy.yaml"))


@pytest.fixture(scope="module")
def straight(directory, tmp_path_factory):
    """A run of 12 steps that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        return Workspace(Path("copy.yaml")).train(run)


@dataclass
class Outcome:
    """All that a run leaves but times: tensors by file and name, facts, metrics, progress."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def outcome(run: RunDir) -> Outcome:
    found = Outcome(metrics=[without_times(record) for record in run.read_metrics()])
    for path in sorted(run.path.rglob("*.safetensors")):
        tensors, _ = load_tensors(path)
        name = path.relative_to(run.path)
        found.tensors |= {f"{name}: {key}": tensor for key, tensor in tensors.items()}
    newest = run.step_checkpoints()[-1][1]
    numbers = json.loads((newest / "state.json").read_text())
    found.progress = {
        k: v
        for k, v in numbers.items()
        if k not in {"elapsed_s", "validating_s", "validation_s", "used_s", "sha256"}
    }
    return found


def assert_alike(run: RunDir, other: RunDir) -> None:
    """Bit for bit, but for times and for `config` lines."""
    ours, theirs = outcome(run), outcome(other)
    assert ours.tensors.keys() == theirs.tensors.keys()
    differing = [k for k in ours.tensors if not torch.equal(ours.tensors[k], theirs.tensors[k])]
    assert differing == []
    assert [r for r in ours.metrics if r["kind"] != "config"] == theirs.metrics
    assert ours.progress == theirs.progress
    assert not list(run.path.rglob("*.tmp"))


def raise_signal(number: int, at: int) -> Callable[[int], None]:
    def action(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), number)

    return action


# -- an undisturbed run ----------------------------------------------------------------------


def test_a_run_leaves_what_it_should(straight):
    assert sorted(path.name for path in straight.path.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "data",
        "environment.json",
        "metrics.jsonl",
        "model.safetensors",
        "tokenizer.model",
    ]
    assert [step for step, _ in straight.step_checkpoints()] == [9, 12]
    trained = [r for r in straight.read_metrics() if r["kind"] == "train"]
    assert [record["step"] for record in trained] == list(range(1, 13))
    scored = [r for r in straight.read_metrics() if r["kind"] == "valid"]
    assert [record["step"] for record in scored] == [4, 8, 12]
    assert all((r["contaminated"], r["n_leaked"]) == (False, 0) for r in scored)
    rates = [record["learning_rate"] for record in trained]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert trained[-1]["loss"] < trained[0]["loss"] - 0.5
    assert all(0.5 < record["real_token_share"] <= 1 for record in trained)
    assert trained[-1]["epoch"] > 0  # so that the tests below pass the border of an epoch


def test_the_best_of_all_that_was_scored_wins(straight):
    """And was written, with the weights that its name stands for."""
    records = straight.read_metrics()
    valid = {r["step"]: r["chrf"] for r in records if r["kind"] == "valid"}
    best = max(valid, key=lambda step: (valid[step], -step))
    assert [step for step, _ in straight.best_checkpoints()] == [best]
    rivals = {r["checkpoint"]: r["chrf"] for r in records if r["kind"] == "rival"}
    assert rivals.keys() == {"last", "avg"} | (set() if best == 12 else {"ema"})
    scores = {"best": valid[best]} | rivals
    weights, facts = load_tensors(straight.weights)
    assert scores[facts["checkpoint"]] == max(scores.values()) == facts["valid"]["chrf"]
    named = average(load_tensors(p)[0] for p in straight.checkpoint_files(facts["checkpoint"]))
    assert all(torch.equal(weights[name], named[name]) for name in weights)


def test_the_validation_loss_is_that_of_each_pair_alone(straight):
    """-log p of the references in nats a piece, EOS included, without smoothing."""
    model = load_model(straight, "best", torch.device("cpu"))
    source, target = load_tokenizers(straight.path)
    split = straight.read_split("valid")
    total, n_pieces = 0.0, 0
    for src_text, tgt_text in zip(split.sources, split.references, strict=True):
        (src,), (tgt,) = source.encode([src_text]), target.encode([tgt_text])
        with torch.no_grad():
            logits = model(torch.tensor([[*src, EOS]]), torch.tensor([[BOS, *tgt]]), None)
        tgt_out = torch.tensor([*tgt, EOS])
        total += torch.nn.functional.cross_entropy(logits[0], tgt_out, reduction="sum").item()
        n_pieces += len(tgt_out)
    ((best, _),) = straight.best_checkpoints()
    (record,) = (r for r in straight.read_metrics() if r["kind"] == "valid" and r["step"] == best)
    assert record["loss"] == pytest.approx(total / n_pieces, rel=1e-5)
    assert record["perplexity"] == pytest.approx(math.exp(total / n_pieces), rel=1e-4)
    assert record["test_set_sha256"] == split.sha256
    assert record["decode"]["beam_size"] == read_run_config(straight).decode.beam_size
    assert record["checkpoint_sha256"] == digest(weights_of(model))  # as `eval` gives it


# -- stopped and resumed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "at", "code"),
    [(signal.SIGTERM, 1, 143), (signal.SIGINT, 5, 130), (signal.SIGTERM, 8, 143)],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    workspace, straight, tmp_path, capsys, number, at, code
):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(StoppedBySignal, match=f"at step {at}") as raised:
        workspace.train(tmp_path / "run", on_step=raise_signal(number, at))
    assert raised.value.exit_code == code
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert RunDir(tmp_path / "run").step_checkpoints()[-1][0] == at
    assert f"{number.name}: saving after step" in capsys.readouterr().err
    run = workspace.train(tmp_path / "run")
    assert f"resuming {run.path} at step {at}" in capsys.readouterr().err
    assert_alike(run, straight)


ENTRY = "source: train.txt, target: train.txt"
OPTIM = "train.optim."
SETTINGS = {
    "no ties": (2, ["model.tied=none", "train.max_steps=4"]),
    "muon": (2, [f"{OPTIM}optimizer=muon", "train.max_steps=4"]),
    "rdrop": (2, [f"{OPTIM}consistency=rdrop", "train.max_steps=4"]),
    "simcut": (2, [f"{OPTIM}consistency=simcut", "train.max_steps=4"]),
    "two threads": (2, ["train.threads=2", "train.max_steps=4"]),
    "the last step, which is no multiple of validate_every": (3, ["train.max_steps=3"]),
    "subwords drawn in each epoch, tags and weights": (
        5,
        [
            "tokenizer.sampling=0.3",
            "tokenizer.type=bpe",
            f"data.train=[{{{ENTRY}, tag: a, weight: 0.5}}, {{{ENTRY}, tag: b}}]",
            "data.deduplicate=false",
            "data.valid.tag=b",
            "train.batch_tokens=1000",  # a few updates an epoch
            "train.max_steps=8",
        ],
    ),
}


@pytest.mark.parametrize(("at", "settings"), SETTINGS.values(), ids=SETTINGS)
def test_a_stop_changes_nothing_whatever_the_settings(workspace, tmp_path, at, settings):
    expected = workspace.train(tmp_path / "straight", *settings)
    with pytest.raises(StoppedBySignal):
        workspace.train(tmp_path / "run", *settings, on_step=raise_signal(signal.SIGTERM, at))
    assert_alike(workspace.train(tmp_path / "run", *settings), expected)
    records = [r for r in expected.read_metrics() if r["kind"] == "train"]
    is_consistent = "consistency" in settings[0]
    assert all(("divergence" in r and r["divergence"] > 0) is is_consistent for r in records)
    if "tokenizer.sampling=0.3" in settings:
        assert len({r["epoch"] for r in records}) > 2
        assert expected.read_split("valid").tag == "b"
    assert not list(tmp_path.glob(".*.epoch"))


def test_a_signal_during_validation_need_not_wait(workspace, straight, tmp_path):
    def stopped(validation: Any, weights: Any, step: int) -> Any:
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
            raise AssertionError("the signal waited")
        return validate(validation, weights, step)

    with pytest.raises(StoppedBySignal, match="during validation, after saving"):
        workspace.train(tmp_path / "run", validate=stopped)
    assert_alike(workspace.train(tmp_path / "run"), straight)


@pytest.mark.parametrize("at", [1, 7, 12])
def test_killed_between_checkpoints(workspace, straight, tmp_path, at):
    def kill(step: int) -> None:
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        workspace.train(tmp_path / "run", on_step=kill)
    assert_alike(workspace.train(tmp_path / "run"), straight)


@pytest.mark.parametrize("moment", ["in the last validation", "after it", "in that of a rival"])
def test_killed_around_validation(workspace, straight, tmp_path, moment):
    """Validations are of steps 4, 8 and 12, and then of the rivals of the best."""
    calls: list[int] = []
    n_until_killed = {"in the last validation": 3, "in that of a rival": 4}.get(moment)

    def kill_in_validation(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == n_until_killed:
            raise Killed
        return validate(*arguments)

    def kill_after_validation(step: int) -> None:
        if step == 12 and n_until_killed is None:
            raise Killed

    with pytest.raises(Killed):
        workspace.train(
            tmp_path / "run", validate=kill_in_validation, on_validated=kill_after_validation
        )
    assert_alike(workspace.train(tmp_path / "run"), straight)


def test_what_a_kill_left_of_a_run_directory_is_removed(workspace, straight, tmp_path):
    left = tmp_path / "run.01234567.tmp" / "data"
    left.mkdir(parents=True)
    assert_alike(workspace.train(tmp_path / "run"), straight)
    assert not left.parent.exists()


def test_a_second_call_has_nothing_to_do(workspace, straight, capsys):
    before = {path: path.read_bytes() for path in straight.path.rglob("*") if path.is_file()}
    workspace.train(straight.path)
    assert "is trained to step 12: nothing to do" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in straight.path.rglob("*") if path.is_file()}
    assert [path for path in before | after if before.get(path) != after.get(path)] == []


# -- another config --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    ["model.dropout=0.2", "train.seed=3", "train.optim.beta1=0.8", "train.batch_tokens=200"],
)
def test_what_makes_another_training_is_refused_with_a_diff(workspace, straight, change):
    key, new = change.split("=")
    with pytest.raises(UsageError) as raised:
        workspace.train(straight.path, change)
    assert f"\n    {key}: " in raised.value.message
    assert f" -> {new}" in raised.value.message
    assert "--fresh" in (raised.value.fix or "")
    assert len(raised.value.message.split("\n")) == 2


def test_text_that_changed_is_refused(directory, straight, tmp_path, monkeypatch):
    for name in ("copy.yaml", "valid.txt"):
        shutil.copy(directory / name, tmp_path / name)
    lines = (directory / "train.txt").read_text().split("\n")[:-1]
    write_lines(tmp_path / "train.txt", lines[:-1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="was trained on other text"):
        Workspace(Path("copy.yaml")).train(straight.path)


def test_more_steps_are_allowed_and_logged(workspace, straight, tmp_path, capsys):
    """Also where the first end was validated only because it was the end."""
    run = workspace.train(tmp_path / "run", "train.max_steps=7")
    assert [r["step"] for r in run.read_metrics() if r["kind"] == "valid"] == [4, 7]
    with open(run.metrics, "a") as file:
        file.write('{"kind": "trai')  # cut short
    workspace.train(run.path, "train.keep=2", "train.max_steps=12")
    assert "train.max_steps: 7 -> 12" in capsys.readouterr().err
    logged = run.read_metrics()
    (change,) = [record for record in logged if record["kind"] == "config"]
    assert change == {"kind": "config", "key": "train.max_steps", "old": 7, "new": 12}
    ours = [without_times(r) for r in logged if r["kind"] == "train"]
    theirs = [without_times(r) for r in straight.read_metrics() if r["kind"] == "train"]
    assert ours == theirs
    scored = {r["step"]: r["chrf"] for r in logged if r["kind"] == "valid"}
    ((best, _),) = run.best_checkpoints()
    assert scored[best] == max(scored.values())
    assert load_config(run.config).train.max_steps == 12


def test_more_steps_stopped_at_the_end_are_not_taken_for_done(workspace, tmp_path):
    run = workspace.train(tmp_path / "run", "train.max_steps=4")
    with pytest.raises(StoppedBySignal):
        workspace.train(run.path, "train.max_steps=6", on_step=raise_signal(signal.SIGTERM, at=6))
    workspace.train(run.path, "train.max_steps=6")
    assert [r["step"] for r in run.read_metrics() if r["kind"] == "valid"] == [4, 6]
    assert run.weights.exists()


def test_fresh_renames_the_old_run(workspace, straight, tmp_path, capsys):
    run = RunDir(shutil.copytree(straight.path, tmp_path / "run"))
    for number in (1, 2):
        workspace.train(run.path, "train.max_steps=1", "model.dropout=0.3", fresh=True)
        assert f"renamed {run.path} to {run.path}.{number}" in capsys.readouterr().err
    assert RunDir(f"{run.path}.1").step_checkpoints()[-1][0] == 12
    assert RunDir(f"{run.path}.2").step_checkpoints()[-1][0] == 1
    assert load_config(run.config).model.dropout == 0.3


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_place_that_holds_something_else_is_refused(workspace, tmp_path, kind):
    path = tmp_path / "thesis"
    if kind == "directory":
        path.mkdir()
        (path / "chapter1.tex").touch()
    else:
        path.touch()
    with pytest.raises(UsageError, match="is not a run directory") as raised:
        workspace.train(path)
    assert "--set run=DIR" in (raised.value.fix or "")
    assert [p.name for p in tmp_path.rglob("*")] == (
        ["thesis", "chapter1.tex"] if kind == "directory" else ["thesis"]
    )


@pytest.mark.parametrize("is_there", [False, True])
def test_fresh_needs_no_old_run_and_an_empty_directory_becomes_one(workspace, tmp_path, is_there):
    if is_there:
        (tmp_path / "run").mkdir()
    run = workspace.train(tmp_path / "run", "train.max_steps=1", fresh=not is_there)
    assert run.weights.exists()


# -- updates ---------------------------------------------------------------------------------


def losses(run: RunDir) -> list[float]:
    return [record["loss"] for record in run.read_metrics() if record["kind"] == "train"]


def test_smaller_micro_batches_give_the_same_training(workspace, tmp_path):
    settings = ["model.dropout=0", "train.max_steps=6", "train.validate_every=6"]
    runs = [
        workspace.train(tmp_path / str(tokens), *settings, f"train.micro_batch_tokens={tokens}")
        for tokens in (41, 1000)
    ]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-5)
    shares = [
        [record["real_token_share"] for record in run.read_metrics() if record["kind"] == "train"]
        for run in runs
    ]
    assert sum(shares[0]) > sum(shares[1])


@pytest.mark.parametrize(
    ("batch_tokens", "n_workers", "device", "n_shares"),
    [
        (4096, 1, "cpu", 4),
        (4096, 2, "cpu", 4),
        (4096, 3, "cpu", 6),
        (4096, 16, "cpu", 16),
        (25_000, 1, "cuda", 1),
        (100_000, 1, "cuda", 4),
    ],
)
def test_every_worker_has_as_many_micro_batches(batch_tokens, n_workers, device, n_shares):
    tokens = token_limit("auto", batch_tokens, 9, n_workers, device)
    room = micro_batches.ROOM[device]
    assert tokens * n_shares == pytest.approx(room * batch_tokens, abs=n_shares)
    assert tokens < room * micro_batches.SUITABLE_TOKENS[device] + 1


@pytest.mark.parametrize(
    ("n_workers", "expected"),
    [(3, [3, 3, 3]), (1, [6, 3])],
)
def test_an_update_is_cut_for_all_workers(n_workers, expected):
    src_lengths, tgt_lengths = np.array([10] * 6 + [9, 8, 7]), np.full(9, 10)
    parts = cut(np.arange(9), src_lengths, tgt_lengths, 100, n_workers)
    assert [len(part) for part in parts] == expected


def test_dropout_goes_by_seed_and_step_alone(workspace, straight, tmp_path):
    """Random numbers drawn elsewhere, as by another validation, change nothing."""
    settings = ["train.validate_every=3", "train.max_steps=6"]
    run = workspace.train(tmp_path / "run", *settings)
    assert losses(run) == losses(straight)[:6]


def poison(monkeypatch: pytest.MonkeyPatch, bad_steps: set[int]) -> Callable[[int], None]:
    """Make the loss of these steps undefined; -> to be called at each step"""
    now = [0]
    original = learner.loss_of

    def loss_of(*arguments: Any) -> Loss:
        loss = original(*arguments)
        return Loss(loss.smoothed * (float("nan") if now[0] in bad_steps else 1.0), loss.nll)

    monkeypatch.setattr(learner, "loss_of", loss_of)
    return lambda step: now.__setitem__(0, step)


def test_steps_that_are_not_finite_are_skipped_and_counted(
    workspace, tmp_path, monkeypatch, capsys
):
    settings = ["train.max_steps=5", "train.save_every=1", "train.keep=9"]
    run = workspace.train(tmp_path / "run", *settings, on_step=poison(monkeypatch, {2, 4}))
    assert "skipped 1 updates up to step 2: their gradients were not finite" in (
        capsys.readouterr().err
    )
    skipped = [r["n_skipped"] for r in run.read_metrics() if r["kind"] == "train"]
    assert skipped == [0, 1, 1, 2, 2]
    weights = [load_tensors(path / "weights.safetensors")[0] for _, path in run.step_checkpoints()]
    name = "encoder.0.attention.in_projection.weight"
    changed = [not torch.equal(a[name], b[name]) for a, b in pairwise(weights)]
    assert changed == [False, True, False, True]
    assert all(tensor.isfinite().all() for tensor in weights[-1].values())
    assert outcome(run).progress["n_skipped"] == 2


def test_many_bad_steps_in_a_row_end_the_training(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(log, "MOST_SKIPPED_IN_A_ROW", 3)
    on_step = poison(monkeypatch, {1, 2, 4, 5, 6})
    with pytest.raises(NonFiniteError, match="3 steps in a row, up to step 6") as raised:
        workspace.train(tmp_path / "run", on_step=on_step)
    assert raised.value.exit_code == 4
    assert "learning_rate" in (raised.value.fix or "")


def fill_memory(monkeypatch: pytest.MonkeyPatch, above: int) -> None:
    """Let memory run out where a micro-batch has more target positions."""
    loss_of = learner.loss_of

    def within(model: Any, batch: Batch, optim: Any) -> Loss:
        if batch.tgt_out.numel() > above:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ...")
        return loss_of(model, batch, optim)

    monkeypatch.setattr(learner, "loss_of", within)


def test_out_of_memory_halves_the_micro_batch_and_changes_no_update(
    workspace, tmp_path, monkeypatch, capsys
):
    settings = ("model.dropout=0.0", "train.max_steps=6")
    whole = workspace.train(tmp_path / "whole", *settings)
    fill_memory(monkeypatch, 40)
    halved = workspace.train(tmp_path / "halved", *settings)
    said = capsys.readouterr().err
    assert "does not fit into the memory of cpu; continuing with 40 tokens" in said
    for key in ("loss", "grad_norm"):
        ours, theirs = ([r[key] for r in run.read_metrics() if key in r] for run in (halved, whole))
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_what_did_not_fit_is_gone_when_the_micro_batch_is_halved(workspace, tmp_path, monkeypatch):
    """An exception that is still handled would hold all activations."""
    activations: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    loss_of, halve = learner.loss_of, learner.Learner.halve_micro_batch

    def within(model: Any, batch: Batch, optim: Any) -> Loss:
        if batch.tgt_out.numel() > 40:
            activation = torch.ones(3)
            activations.append(weakref.ref(activation))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_of(model, batch, optim)

    def watched(self: Any, *arguments: Any) -> None:
        alive.append(activations[-1]() is not None)
        halve(self, *arguments)

    monkeypatch.setattr(learner, "loss_of", within)
    monkeypatch.setattr(learner.Learner, "halve_micro_batch", watched)
    workspace.train(tmp_path / "run", "train.threads=1", "train.max_steps=1")
    assert alive
    assert not any(alive)


def test_out_of_memory_with_one_pair_is_an_error(workspace, tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(learner, "loss_of", full)
    with pytest.raises(OutOfMemoryError, match="a micro-batch of 1 pairs") as raised:
        workspace.train(tmp_path / "run")
    assert "data.max_length" in (raised.value.fix or "")


def test_a_second_process_in_the_same_directory_is_refused(workspace, tmp_path):
    run = RunDir(tmp_path / "run")
    with alone_in(run), pytest.raises(UsageError, match="another process is training in"):
        workspace.train(run.path)
    workspace.train(run.path, "train.max_steps=1")  # the lock is gone with its holder


# -- validation, best, patience --------------------------------------------------------------


def scored(scores: dict[int, float], metric: str) -> Callable[..., dict[str, Any]]:
    """A validation that finds these scores."""

    def validate(validation: Any, weights: Any, step: int) -> dict[str, Any]:
        return {"loss": 1.0, "bleu": 1.0, "chrf": 1.0, metric: scores[step]}

    return validate


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [
        ("chrf", {2: 1.0, 4: 3.0, 6: 2.0}, 4),
        ("bleu", {2: 1.0, 4: 1.0, 6: 1.0}, 2),
        ("loss", {2: 1.0, 4: 3.0, 6: 0.5}, 6),
    ],
)
def test_the_best_by_the_chosen_metric_wins(workspace, tmp_path, metric, scores, best):
    run = workspace.train(
        tmp_path / "run",
        "train.max_steps=6",
        "train.validate_every=2",
        f"train.best_metric={metric}",
        "train.keep=9",
        validate=scored(scores, metric),
    )
    assert [step for step, _ in run.best_checkpoints()] == [best]
    weights, facts = load_tensors(run.weights)
    assert facts["step"] == best
    averages, _ = load_tensors(run.checkpoints / f"step-{best}" / "ema.safetensors")
    assert all(torch.equal(weights[name], averages[name]) for name in weights)


def test_patience_ends_the_training(workspace, tmp_path, capsys):
    validate = scored({1: 1.0, 2: 5.0, 3: 4.0, 4: 4.5, 5: 9.0}, "chrf")
    settings = ["train.validate_every=1", "train.patience=2"]
    run = workspace.train(tmp_path / "run", *settings, validate=validate)
    said = capsys.readouterr().err
    assert "stopping early at step 4: 2 validations without a better chrf than at step 2" in said
    assert load_tensors(run.weights)[1]["step"] == 2
    before = outcome(run)
    workspace.train(tmp_path / "run", *settings, validate=validate)  # again: the same end
    assert outcome(run).metrics == before.metrics
    assert load_tensors(run.weights)[1]["step"] == 2


def test_without_an_average_the_weights_themselves_are_scored(workspace, tmp_path):
    run = workspace.train(tmp_path / "run", "train.max_steps=1", "train.optim.ema_decay=0")
    weights, last = (load_tensors(run.checkpoint_files(name)[0])[0] for name in ("best", "last"))
    assert all(torch.equal(weights[name], last[name]) for name in last)
    with pytest.raises(CheckpointError, match="no checkpoint named `ema`"):
        run.checkpoint_files("ema")


def test_the_average_of_the_best_competes(workspace, tmp_path):
    settings = ["train.validate_every=1", "train.keep_best=2", "train.max_steps=4"]
    validate = scored({1: 3.0, 2: 1.0, 3: 5.0, 4: 4.0}, "chrf")
    run = workspace.train(tmp_path / "run", *settings, validate=validate)
    assert [step for step, _ in run.best_checkpoints()] == [3]
    assert [step for step, _ in run.good_checkpoints()] == [4]
    rivals = [r["checkpoint"] for r in run.read_metrics() if r["kind"] == "rival"]
    assert rivals == ["last", "ema", "avg", "avg-best"]


def test_the_winner_is_said_in_one_line(workspace, tmp_path, capsys):
    """Validations of both steps; then of last, ema and their average."""
    found = iter([4.0, 3.0, 2.0, 5.0, 6.0])

    def validate(validation: Any, weights: Any, step: int) -> dict[str, Any]:
        return {"loss": 1.0, "bleu": 1.0, "chrf": next(found)}

    settings = ["train.max_steps=2", "train.validate_every=1"]
    run = workspace.train(tmp_path / "run", *settings, validate=validate)
    said = capsys.readouterr().err.split("\n")[-2]
    assert said.startswith(f"done: {run.path} holds `avg`, of step 2, with chrF 6.00 on valid ")
    assert "against chrF 4.00 of `best`, chrF 2.00 of `last`, chrF 5.00 of `ema` (" in said
    weights, facts = load_tensors(run.weights)
    assert facts["checkpoint"] == "avg"
    mean = average(load_tensors(path)[0] for path in run.checkpoint_files("avg"))
    assert all(torch.equal(weights[name], mean[name]) for name in mean)


# -- another run's weights -------------------------------------------------------------------


def test_a_run_begins_with_anothers_weights(workspace, straight, tmp_path, capsys):
    run = workspace.train(tmp_path / "run", f"train.init_from={straight.path}", "train.max_steps=1")
    said = capsys.readouterr().err
    assert re.search(rf"initialised (\d+) of \1 tensors from {straight.weights}\n", said)
    assert losses(run)[0] < losses(straight)[-2]
    assert load_config(run.config).tokenizer.model == f"{straight.path}/tokenizer.model"
    workspace.train(run.path, f"train.init_from={straight.path}", "train.max_steps=2")
    assert "initialised" not in capsys.readouterr().err  # resumed: not again


def test_what_does_not_fit_is_named(workspace, straight, tmp_path, capsys):
    workspace.train(
        tmp_path / "run",
        f"train.init_from={straight.path}",
        "train.max_steps=1",
        "model.d_ff=32",
        "model.tied=output",
        "model.activation=swiglu",
        "model.norm_type=rmsnorm",
    )
    said = capsys.readouterr().err
    where, layer = straight.weights, "encoder.0.feed_forward"
    assert (
        f"{layer}.inner.weight is initialised randomly: it is 32x16, and 24x16 in {where}" in said
    )
    assert f"{layer}.factor.weight is initialised randomly: {where} has none" in said
    assert f"encoder_norm.bias of {where} is not used: this model has none" in said
    assert "tgt_embedding.weight" not in said  # the tied one's


def test_another_tokenizer_is_refused(workspace, straight, tmp_path):
    other = workspace.train(tmp_path / "other", "tokenizer.type=bpe", "train.max_steps=1")
    with pytest.raises(UsageError, match="prepared with another tokenizer") as raised:
        workspace.train(
            tmp_path / "run",
            f"train.init_from={straight.path}",
            f"tokenizer.model={other.path}/tokenizer.model",
        )
    assert "tokenizer.model" in (raised.value.fix or "")


# -- both directions -------------------------------------------------------------------------


def test_the_first_epochs_go_both_ways_and_a_resumed_run_knows_which(
    workspace, tmp_path, monkeypatch, capsys
):
    lines = Path("train.txt").read_text().splitlines()
    write_lines(Path("reversed.txt"), [" ".join(reversed(line.split())) for line in lines])
    settings = ["name=reverse", "data.train.target=reversed.txt", "train.both_directions=0.4"]
    opened: dict[int, bool] = {}
    original = Epochs.open

    def noted(self: Epochs, number: int, in_both_directions: bool = False) -> Any:
        assert opened.setdefault(number, in_both_directions) == in_both_directions
        return original(self, number, in_both_directions)

    monkeypatch.setattr(Epochs, "open", noted)
    straight = workspace.train(tmp_path / "straight", *settings)
    n_both = sum(opened.values())
    assert 0 < n_both < len(opened)
    assert [opened[number] for number in sorted(opened)[:n_both]] == [True] * n_both
    assert capsys.readouterr().err.count("from now on only from en to de") == 1
    for at in (2, 7):
        with pytest.raises(StoppedBySignal):
            workspace.train(tmp_path / "run", *settings, on_step=raise_signal(signal.SIGTERM, at))
    run = workspace.train(tmp_path / "run", *settings)
    assert_alike(run, straight)
    with pytest.raises(UsageError, match="both_directions"):
        workspace.train(tmp_path / "run", *settings[:2], "train.both_directions=0.9")


# -- plans and budgets -----------------------------------------------------------------------


def test_the_plan_says_what_a_run_would_take_and_makes_none(directory, tmp_path, capsys):
    done = invoke("train", "copy.yaml", "--plan", "--set", f"run={tmp_path / 'run'}", cwd=directory)
    assert done.returncode == 0
    shown = done.stderr.split("plan\n")[1].splitlines()
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in shown)
    assert rows["updates planned"].strip() == "12"
    assert rows["target tokens per update"].strip() == "160"
    assert float(rows["tokens/s, source and target"].replace(",", "")) > 100
    assert rows.keys() >= {"parameters", "memory at its peak", "epochs planned"}
    assert not (tmp_path / "run").exists()


def test_the_trial_halves_what_does_not_fit(workspace, tmp_path, monkeypatch, capsys):
    fill_memory(monkeypatch, 40)
    run = workspace.train(tmp_path / "run", "train.max_steps=1")
    said = capsys.readouterr().err
    assert said.index("continuing with 40 tokens") < said.index("updates planned")
    assert said.count("does not fit into the memory") == 1
    assert outcome(run).progress["n_halvings"] == 1


def test_memory_is_handed_back_after_each_validation(workspace, tmp_path, monkeypatch):
    handed_back: list[int] = []
    monkeypatch.setattr(runtime, "give_memory_back", lambda: handed_back.append(1))
    run = workspace.train(tmp_path / "run", "train.max_steps=8")
    assert [r["step"] for r in run.read_metrics() if r["kind"] == "valid"] == [4, 8]
    assert len(handed_back) == 2


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_muon_multiplies_as_training_does(workspace, tmp_path, monkeypatch, precision, dtype):
    dtypes: set[torch.dtype] = set()
    orthogonal = optim.orthogonal

    def noted(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        dtypes.add(dtype)
        return orthogonal(x, dtype)

    monkeypatch.setattr(optim, "orthogonal", noted)
    settings = ["train.max_steps=1", "train.optim.optimizer=muon", f"train.precision={precision}"]
    workspace.train(tmp_path / "run", *settings)
    assert dtypes == {dtype}


def test_a_run_of_a_version_with_cuda_graphs_resumes_as_it_would_have(
    workspace, straight, tmp_path
):
    """Its resolved config and its states have what this version no longer knows."""
    with pytest.raises(StoppedBySignal):
        workspace.train(tmp_path / "run", on_step=raise_signal(signal.SIGTERM, at=5))
    run = RunDir(tmp_path / "run")
    config = run.config.read_text()
    run.config.write_text(re.sub("^train:$", "train:\n  cuda_graphs: auto", config, flags=re.M))
    path = run.step_checkpoints()[-1][1] / "state.json"
    numbers = json.loads(path.read_text()) | {"is_recorded": True}
    del numbers["format"], numbers["sha256"]
    seal = {"format": checkpoints.FORMAT, "sha256": checkpoints._digest(numbers)}
    path.write_text(json.dumps(seal | numbers))
    assert_alike(workspace.train(run.path), straight)
    assert run.config.read_text() == config


class Clock:
    """A millisecond for each look at it, and what is added."""

    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


def test_a_budget_ends_the_run_in_time_and_survives_a_stop(workspace, tmp_path):
    """A clock of our own: steps of 20 ms, validations of next to nothing."""
    clock = Clock()

    def wait(step: int) -> None:
        clock.now_s += 0.02

    def wait_and_stop(step: int) -> None:
        wait(step)
        raise_signal(signal.SIGTERM, at=12)(step)

    settings = ["train.budget=1s", "train.max_steps=", "train.optim.schedule=linear"]
    settings += ["train.save_every=5", "train.validate_every=auto"]
    with pytest.raises(StoppedBySignal):
        workspace.train(tmp_path / "run", *settings, clock=clock, on_step=wait_and_stop)
    before = outcome(RunDir(tmp_path / "run")).progress["plan"]
    run = workspace.train(tmp_path / "run", *settings, clock=clock, on_step=wait)
    progress = outcome(run).progress
    assert progress["plan"][: len(before)] == before
    assert progress["step"] == progress["plan"][-1][1]
    last = [r for r in run.read_metrics() if r["kind"] == "train"][-1]
    assert last["learning_rate"] < 0.01 * 0.1
    state = json.loads((run.step_checkpoints()[-1][1] / "state.json").read_text())
    assert state["used_s"] == pytest.approx(1, abs=0.05)


def test_a_budget_includes_the_trial(workspace, tmp_path, monkeypatch):
    """Of a second, a trial takes 0.6; steps of 20 ms are left 0.4."""
    clock = Clock()

    def slow(*arguments: Any) -> Any:
        clock.now_s += 0.6
        return original(*arguments)

    def wait(step: int) -> None:
        clock.now_s += 0.02

    original = training.try_out
    monkeypatch.setattr(training, "try_out", slow)
    settings = ["train.budget=1s", "train.max_steps="]
    run = workspace.train(tmp_path / "run", *settings, clock=clock, on_step=wait)
    state = json.loads((run.step_checkpoints()[-1][1] / "state.json").read_text())
    assert 10 <= state["step"] <= 20
    assert state["used_s"] == pytest.approx(1, abs=0.1)


# -- TensorBoard -----------------------------------------------------------------------------


def test_tensorboard_gets_the_numbers_of_metrics_jsonl(workspace, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = workspace.train(tmp_path / "run", "train.tensorboard=true", "train.max_steps=4")
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars("train/loss")]
    records = [r for r in run.read_metrics() if r["kind"] == "train"]
    assert shown == [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in records]
    assert [event.step for event in board.Scalars("valid/chrf")] == [4]


def test_without_tensorboard_the_error_names_the_extra(workspace, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="needs TensorBoard") as raised:
        workspace.train(tmp_path / "run", "train.tensorboard=true")
    assert "mtrain[tensorboard]" in (raised.value.fix or "")


# -- saving beside training ------------------------------------------------------------------


def test_training_goes_on_while_a_state_is_written(workspace, tmp_path):
    """What is written is the step that was saved, though the weights have moved on by then."""
    expected = workspace.train(tmp_path / "expected", "train.max_steps=3")
    moved_on, saving = threading.Event(), []

    def on_save(step: int) -> None:
        assert step != 3 or moved_on.wait(timeout=20)
        saving.append(step)

    def on_step(step: int) -> None:
        if step == 5:  # after update 4
            assert saving == []
            moved_on.set()

    settings = ["train.max_steps=5", "train.validate_every=5"]
    run = workspace.train(tmp_path / "run", *settings, on_save=on_save, on_step=on_step)
    assert saving == [3, 5]
    for name in ("weights", "ema", "optimizer"):
        ours, theirs = (
            load_tensors(r.checkpoints / "step-3" / f"{name}.safetensors")[0]
            for r in (run, expected)
        )
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    numbers = json.loads((run.checkpoints / "step-3" / "state.json").read_text())
    assert (numbers["step"], numbers["epoch"], numbers["update"]) == (3, 1, 1)


# -- a full disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_written", [0, 2, 3])
def test_a_full_disk_while_saving_keeps_the_checkpoint_before(
    workspace, straight, tmp_path, monkeypatch, n_written
):
    """The disk fills up after so many files of the second checkpoint."""
    run = RunDir(tmp_path / "run")
    fsync, left = os.fsync, [n_written]

    def full(descriptor: int) -> None:
        if run.step_checkpoints():
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left on the disk") as raised:
            workspace.train(run.path)
    assert raised.value.exit_code == 3
    assert not list(run.path.rglob("*.tmp"))
    assert run.step_checkpoints()[0][0] == 3
    assert_alike(workspace.train(run.path), straight)


def test_a_state_that_cannot_be_written_stops_training_before_the_next_is_due(workspace, tmp_path):
    steps: list[int] = []

    def fail(step: int) -> None:
        raise StorageError("no space left on the disk")

    settings = ["train.save_every=20", "train.validate_every=10000", "train.max_steps=10000"]
    with pytest.raises(StorageError):
        workspace.train(tmp_path / "run", *settings, on_save=fail, on_step=steps.append)
    assert 20 < max(steps) < 40


@pytest.mark.slow
def test_a_disk_that_is_really_full(directory, straight, tmp_path):
    """A file system too small for the third checkpoint; made larger, the run ends as it should."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    checkpoint = straight.step_checkpoints()[0][1]
    others = [path for path in straight.path.rglob("*") if straight.checkpoints not in path.parents]
    n_pages = sum(-(-path.stat().st_size // 4096) for path in others if path.is_file())
    n_pages += 2.5 * sum(-(-path.stat().st_size // 4096) + 1 for path in checkpoint.iterdir())
    train = " ".join(mtrain_command("train", "copy.yaml", "--set", f"run={disk}/run"))
    program = f"""
        mount -t tmpfs -o size={4 * int(n_pages)}k tmpfs {disk} || exit 90
        {train}; echo "exit code $?"
        ls {disk}/run/checkpoints
        mount -o remount,size=100m {disk}
        {train}; echo "exit code $?"
        cp -r {disk}/run {kept}
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", program],
        cwd=directory,
        env=mtrain_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[0] == "exit code 3", done.stderr
    assert "no space left on the disk" in done.stderr
    assert ".tmp" not in done.stdout
    assert done.stdout.split("\n")[-2] == "exit code 0", done.stderr
    assert_alike(RunDir(kept), straight)


# -- real kills ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_kills", [3, pytest.param(15, marks=pytest.mark.slow)])
def test_killed_by_the_system_at_random_moments(forker, straight, directory, tmp_path, n_kills):
    """SIGKILL wherever it comes; the same command goes on, and ends with the same bytes.

    Of the time, updates take a part, checkpoints and validations another.
    """
    generator = random.Random(n_kills)
    log = tmp_path / "log"
    duration_s, runs, n_killed = 0.0, [RunDir(tmp_path / "0")], 0
    while n_killed < n_kills or not runs[-1].weights.exists():
        if runs[-1].weights.exists():
            assert_alike(runs[-1], straight)
            runs.append(RunDir(tmp_path / str(len(runs))))
        began_at = time.monotonic()
        pid = forker.start(["train", "copy.yaml", "--set", f"run={runs[-1].path}"], directory, log)
        if duration_s and n_killed < n_kills:
            time.sleep(generator.uniform(0, duration_s))
            os.kill(pid, signal.SIGKILL)
        code = forker.wait(pid)
        assert code in (0, -signal.SIGKILL), log.read_text()
        n_killed += code != 0
        duration_s = duration_s or time.monotonic() - began_at  # of the first, undisturbed
    assert_alike(runs[-1], straight)
    resumed = re.findall(r"resuming \S+ at step (\d+)", log.read_text())
    assert len(resumed) >= n_kills // 3
