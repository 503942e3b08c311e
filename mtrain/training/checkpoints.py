"""Checkpoints: everything that a resumed run restores, saved atomically, and the best weights.

    checkpoints/
      step-12000/              a training state; the newest few are kept
        weights.safetensors    the model
        ema.safetensors        the moving average of its weights, if there is one
        optimizer.safetensors  the moments of the optimizer
        state.json             progress, readable
      best-9000.safetensors    the weights with the best score on valid
      good-8000.safetensors    the next best, as many as the config keeps

Order is a function of (seed, epoch) and dropout of (seed, step, micro-batch), so no state of a
random generator is saved. A directory gets its name only when all of it is on the disk.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, with_config
from torch import Tensor
from typing_extensions import TypedDict

from mtrain import console
from mtrain.config.sections import TrainConfig
from mtrain.errors import CheckpointError
from mtrain.machine import runtime
from mtrain.machine.threads import Writer
from mtrain.model.weights import (
    average,
    load_tensors,
    read_facts,
    save_tensors,
    set_weights,
    weights_of,
)
from mtrain.run import RunDir
from mtrain.storage import (
    new_directory,
    parse_json,
    partial_path,
    read_bytes,
    remove_partials,
    storage_errors,
    write_json,
)
from mtrain.training.learner import Learner
from mtrain.training.optim import optimizer_state, set_optimizer_state
from mtrain.training.schedule import Progress, Schedule

FORMAT = 1
Key = TypeVar("Key")
METRICS = {"chrf": "chrF", "bleu": "BLEU", "loss": "loss"}

Scorer = Callable[[dict[str, Tensor], int], dict[str, Any]]  # (weights, step) -> scores


@with_config({"extra": "allow"})
class _Seal(TypedDict):
    format: int
    sha256: str


_STATE: TypeAdapter[dict[str, Any]] = TypeAdapter[Any](_Seal)
_PROGRESS: TypeAdapter[Progress] = TypeAdapter(Progress)


class Checkpoints:
    """Writes the checkpoints of a run in a thread, from copies, while training continues.

    Only the first process writes. As a context manager, it ends when everything is written.
    """

    def __init__(
        self, run: RunDir, train: TrainConfig, learner: Learner, on_save: Callable[[int], None]
    ) -> None:
        self.run, self.train, self.learner, self.on_save = run, train, learner, on_save
        self.writer = Writer(learner.device)

    def save(self, progress: Progress) -> None:
        """Save the training state."""
        if not self.learner.distributed.is_first:
            return
        self.writer.wait()  # before copying: one set of copies is enough
        state = copy_state(self.learner, progress)

        def write() -> None:
            self.on_save(state.progress.step)
            save_state(self.run, state, self.train.keep)

        self.writer.start(write)

    def keep(self, weights: dict[str, Tensor], facts: dict[str, Any], is_best: bool) -> None:
        """Save validated weights if they are the best, or among the next best to be kept."""
        copied = copies(weights)
        self.writer.start(lambda: save_validated(self.run, copied, facts, self.train, is_best))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.writer.__exit__(*exception)


# -- training states -------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """Copies of a training after one step, to be written while it continues."""

    progress: Progress
    weights: dict[str, Tensor]
    averages: dict[str, Tensor] | None
    moments: dict[str, Tensor]


def copy_state(learner: Learner, progress: Progress) -> State:
    """The present state; never waits for the device."""
    parts = [weights_of(learner.model), optimizer_state(learner.model, learner.optimizers)]
    if learner.ema is not None:
        parts.append(learner.ema.weights)
    # All together, since they share the memory left beside the peak.
    tensors = {(i, name): t for i, part in enumerate(parts) for name, t in part.items()}
    copied = copies(tensors)
    weights, moments, *averages = (
        {name: copied[i, name] for name in part} for i, part in enumerate(parts)
    )
    return State(copy.deepcopy(progress), weights, averages[0] if averages else None, moments)


def copies(tensors: dict[Key, Tensor]) -> dict[Key, Tensor]:
    """Copies on the same device, or on the CPU if a GPU lacks memory beside its peak use.

    Copies on a GPU are queued behind its work; copies on the CPU block training.
    """
    device = next(iter(tensors.values())).device
    spare = runtime.spare_bytes(device)
    if spare is None or sum(tensor.nbytes for tensor in tensors.values()) <= spare:
        clones = runtime.unless_out_of_memory(lambda: {k: t.clone() for k, t in tensors.items()})
        if clones is not None:
            return clones
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def save_state(run: RunDir, state: State, keep: int) -> None:
    """Write `step-N`, then delete all but the newest `keep` states."""
    path = run.checkpoints / f"step-{state.progress.step}"
    with new_directory(path) as partial:
        facts = {"step": state.progress.step}
        save_tensors(partial / "weights.safetensors", state.weights, facts)
        if state.averages is not None:
            save_tensors(partial / "ema.safetensors", state.averages, facts)
        save_tensors(partial / "optimizer.safetensors", state.moments, facts)
        numbers = asdict(state.progress)
        seal = {"format": FORMAT, "sha256": _digest(numbers)}
        write_json(partial / "state.json", seal | numbers)
    with storage_errors(path):
        for _, old in run.step_checkpoints()[:-keep]:  # renamed first: a partial one has no name
            shutil.rmtree(old.rename(partial_path(old)))


def load_newest(run: RunDir, learner: Learner) -> Progress | None:
    """Restore the newest intact state; None if there is none yet.

    A damaged state is renamed with a warning, and the previous one is used.
    """
    remove_partials(run.checkpoints)
    damaged: list[tuple[Path, CheckpointError]] = []
    for _, path in reversed(run.step_checkpoints()):
        try:
            progress = _load(path, learner)
        except CheckpointError as error:
            damaged.append((path, error))
            continue
        for bad, damage in damaged:
            aside = bad.with_name("damaged-" + bad.name)
            shutil.rmtree(aside, ignore_errors=True)
            bad.rename(aside)
            console.warn(f"{damage.message}; kept as {aside.name}, resuming from {path.name}")
        return progress
    if damaged:
        newest = damaged[0][1]
        raise CheckpointError(
            f"no checkpoint in {run.checkpoints} is intact: {newest.message}",
            "start again with --fresh",
        ) from newest
    return None


def _load(path: Path, learner: Learner) -> Progress:
    try:
        numbers = parse_json(read_bytes(path / "state.json"), _STATE)
        version, sha256 = numbers.pop("format"), numbers.pop("sha256")
        if version != FORMAT:
            raise ValueError(f"it has format {version}, not {FORMAT}")
        if sha256 != _digest(numbers):
            raise ValueError("its contents do not match its own sha256")
        numbers.pop("is_recorded", None)  # of versions that could record CUDA graphs
        progress = _PROGRESS.validate_json(json.dumps(numbers), strict=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()[:20])
        raise CheckpointError(f"{path / 'state.json'} is damaged ({reason})") from error
    ema = learner.ema
    weights, _ = load_tensors(path / "weights.safetensors")
    averages = load_tensors(path / "ema.safetensors")[0] if ema is not None else {}
    moments, _ = load_tensors(path / "optimizer.safetensors")
    set_weights(learner.model, weights, path)
    if ema is not None:
        for name, tensor in ema.weights.items():
            tensor.copy_(averages[name])
    set_optimizer_state(learner.model, learner.optimizers, moments)
    return progress


def _digest(numbers: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


# -- the best weights ------------------------------------------------------------------------


def score_of(valid: dict[str, Any], metric: str) -> float:
    """The score of a validation by `metric`; higher is better."""
    score: float = valid[metric]
    return -score if metric == "loss" else score


def save_validated(
    run: RunDir,
    weights: dict[str, Tensor],
    facts: dict[str, Any],
    train: TrainConfig,
    is_best: bool,
) -> None:
    """Write `best-N`, or `good-N` if the config keeps more than the best.

    The previous best becomes good; the best `keep_best` - 1 of the good ones are kept; in a tie,
    the earlier.
    """
    step = facts["step"]
    if is_best:
        save_tensors(run.checkpoints / f"best-{step}.safetensors", weights, facts)
        for old_step, old in run.best_checkpoints():
            if old_step != step:
                old.rename(old.with_name(f"good-{old_step}.safetensors"))
    elif train.keep_best > 1:
        save_tensors(run.checkpoints / f"good-{step}.safetensors", weights, facts)

    bests = dict(run.best_checkpoints())
    good = [(step, path) for step, path in run.good_checkpoints() if step not in bests]

    def rank(item: tuple[int, Path]) -> tuple[float, int]:
        step, path = item
        return -score_of(read_facts(path)["valid"], train.best_metric), step

    kept = sorted(good, key=rank)[: train.keep_best - 1] if train.keep_best > 1 else []
    for item in run.good_checkpoints():
        if item not in kept:
            item[1].unlink()


def install_winner(run: RunDir, schedule: Schedule, scorer: Scorer) -> None:
    """Write the model of a finished run: the winner on valid of `best`, `last`, `ema`, averages.

    A tie goes to the one named first. At the end of a budget, those that there is no
    time to validate do not compete.
    """
    progress, metric = schedule.progress, schedule.train.best_metric
    weights, facts = load_tensors(run.best_checkpoints()[-1][1])
    winner, winning = "best", facts
    records = {"best": facts["valid"]}
    for name in rivals(run, progress):
        if not schedule.has_time_to_validate():
            console.message(f"no time is left to validate `{name}`")
            continue
        averaged = average(load_tensors(path)[0] for path in run.checkpoint_files(name))
        record = records[name] = scorer(averaged, progress.step)
        run.log({"kind": "rival", "step": progress.step, "checkpoint": name} | record)
        if score_of(record, metric) > score_of(records[winner], metric):
            winner, weights = name, averaged
            winning = {"step": progress.step, "valid": record}
    save_tensors(run.weights, weights, winning | {"checkpoint": winner})
    scores = {name: f"{METRICS[metric]} {record[metric]:.2f}" for name, record in records.items()}
    others = [f"{score} of `{name}`" for name, score in scores.items() if name != winner]
    console.message(
        f"done: {run.path} holds `{winner}`, of step {winning['step']}, with {scores[winner]} "
        f"on valid{' against ' if others else ''}{', '.join(others)} "
        f"({console.duration(progress.elapsed_s)} of training, "
        f"{console.duration(schedule.used_s())} in all)"
    )


def rivals(run: RunDir, progress: Progress) -> list[str]:
    """Names of the checkpoints with weights that no validation has scored yet."""
    named = run.named_checkpoints()
    was_scored = {"ema" if "ema" in named else "last"}
    if progress.best_step != progress.step:
        was_scored = set()
    return [
        name
        for name in ("last", "ema", "avg", "avg-best")
        if name in named
        and name not in was_scored
        and (len(named[name]) > 1 or not name.startswith("avg"))
    ]
