"""Everything a resume needs, saved whole or not at all, kept and pruned.

    checkpoints/
      step-12000/              a training state: the newest few are kept
        weights.safetensors    the model
        ema.safetensors        the moving average of its weights, where there is one
        optimizer.safetensors  the optimizer's moments
        state.json             progress, readable
      best-9000.safetensors    the weights that scored best on valid
      good-8000.safetensors    the next best, as many as the config keeps

Order is a function of (seed, epoch) and dropout of (seed, step, micro-batch), so no generator
state is kept. A directory gets its name only when all of it is on the disk.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, with_config
from torch import nn
from typing_extensions import TypedDict

from mtrain import console
from mtrain.config.sections import TrainConfig
from mtrain.errors import CheckpointError
from mtrain.machine import runtime
from mtrain.model.weights import (
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
from mtrain.training.optim import Ema, optimizer_state, set_optimizer_state

FORMAT = 1


@with_config({"extra": "allow"})
class _Seal(TypedDict):
    format: int
    sha256: str


_STATE: TypeAdapter[dict[str, Any]] = TypeAdapter[Any](_Seal)


@dataclass
class Progress:
    """Where training stands; the numbers of a checkpoint that are not tensors."""

    step: int = 0  # updates done
    epoch: int = 0
    update: int = 0  # updates done of this epoch's plan
    best_step: int = 0
    best_score: float | None = None
    n_worse: int = 0  # validations since the best one
    n_both: int = 0  # epochs, the first ones, that are trained in both directions
    n_target_tokens: int = 0  # trained on so far
    n_halvings: int = 0  # of the micro-batch, out of memory
    is_compiled: bool = False  # the layers: on a GPU their dropout draws other masks then
    n_skipped: int = 0  # updates with a gradient that was not finite
    n_skipped_in_a_row: int = 0  # up to the last update
    elapsed_s: float = 0.0  # spent training, over all resumes
    validating_s: float = 0.0  # spent on validations
    plan: list[list[int]] = field(default_factory=list)  # see training.budget


_PROGRESS: TypeAdapter[Progress] = TypeAdapter(Progress)


@dataclass(frozen=True)
class State:
    """A training as it stood after one step: copies, which may be written while it goes on."""

    progress: Progress
    weights: dict[str, torch.Tensor]
    averages: dict[str, torch.Tensor] | None
    moments: dict[str, torch.Tensor]


def copy_state(
    model: nn.Module, ema: Ema | None, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> State:
    """The state of now; waits for nothing."""
    return State(
        copy.deepcopy(progress),
        copies(weights_of(model)),
        copies(ema.weights) if ema is not None else None,
        copies(optimizer_state(model, optimizers)),
    )


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of now, by name; what is on a GPU is copied there, in the order of its work, if there is room
    beside what training takes up at times. The CPU has room, but training waits for it.
    """
    device = next(iter(tensors.values())).device
    spare = runtime.spare_bytes(device)
    if spare is None or sum(tensor.nbytes for tensor in tensors.values()) <= spare:
        clones = runtime.unless_out_of_memory(lambda: {k: t.clone() for k, t in tensors.items()})
        if clones is not None:
            return clones
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def save_state(run: RunDir, state: State, keep: int) -> None:
    """Write `step-N`, then drop all but the newest `keep` states."""
    progress = state.progress
    path = run.checkpoints / f"step-{progress.step}"
    with new_directory(path) as partial:
        facts = {"step": progress.step}
        save_tensors(partial / "weights.safetensors", state.weights, facts)
        if state.averages is not None:
            save_tensors(partial / "ema.safetensors", state.averages, facts)
        save_tensors(partial / "optimizer.safetensors", state.moments, facts)
        numbers = asdict(progress)
        seal = {"format": FORMAT, "sha256": _digest(numbers)}
        write_json(partial / "state.json", seal | numbers)
    with storage_errors(path):
        for _, old in run.step_checkpoints()[:-keep]:  # renamed first: half of one has no name
            shutil.rmtree(old.rename(partial_path(old)))


def load_newest(
    run: RunDir, model: nn.Module, ema: Ema | None, optimizers: list[torch.optim.Optimizer]
) -> Progress | None:
    """Restore the newest whole state; None where training has not saved one yet.

    A damaged state is put aside under another name with a warning, and the one before it is used.
    """
    remove_partials(run.checkpoints)
    damaged: list[tuple[Path, CheckpointError]] = []
    for _, path in reversed(run.step_checkpoints()):
        try:
            progress = _load(path, model, ema, optimizers)
        except CheckpointError as error:
            damaged.append((path, error))
            continue
        for bad, damage in damaged:
            aside = bad.with_name("damaged-" + bad.name)
            shutil.rmtree(aside, ignore_errors=True)
            bad.rename(aside)
            console.warn(f"{damage.message}; kept as {aside.name}, going on from {path.name}")
        return progress
    if damaged:
        newest = damaged[0][1]
        raise CheckpointError(
            f"no checkpoint in {run.checkpoints} is whole: {newest.message}",
            "start again with --fresh",
        ) from newest
    return None


def _load(
    path: Path, model: nn.Module, ema: Ema | None, optimizers: list[torch.optim.Optimizer]
) -> Progress:
    try:
        numbers = parse_json(read_bytes(path / "state.json"), _STATE)
        version, sha256 = numbers.pop("format"), numbers.pop("sha256")
        if version == FORMAT and sha256 != _digest(numbers):
            raise ValueError("its contents do not match its own sha256")
        if version != FORMAT:
            raise ValueError(f"it has format {version}, not {FORMAT}")
        numbers.pop("is_recorded", None)  # of versions that could record CUDA graphs
        progress = _PROGRESS.validate_json(json.dumps(numbers), strict=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()[:20])
        raise CheckpointError(f"{path / 'state.json'} is damaged ({reason})") from error
    weights = load_tensors(path / "weights.safetensors")[0]
    averages = load_tensors(path / "ema.safetensors")[0] if ema is not None else {}
    moments = load_tensors(path / "optimizer.safetensors")[0]
    set_weights(model, weights, path)
    if ema is not None:
        for name, tensor in ema.weights.items():
            tensor.copy_(averages[name])
    set_optimizer_state(model, optimizers, moments)
    return progress


def _digest(numbers: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


def score_of(valid: dict[str, Any], metric: str) -> float:
    """What a validation found by `metric`; higher is better."""
    score: float = valid[metric]
    return -score if metric == "loss" else score


def save_best(
    run: RunDir, weights: dict[str, torch.Tensor], facts: dict[str, Any], train: TrainConfig
) -> None:
    """Write `best-N`; the one it replaces is good, or goes."""
    step = facts["step"]
    save_tensors(run.checkpoints / f"best-{step}.safetensors", weights, facts)
    for old_step, old in run.best_checkpoints():
        if old_step != step:
            old.rename(old.with_name(f"good-{old_step}.safetensors"))
    _drop_all_but_good(run, train)


def save_good(
    run: RunDir, weights: dict[str, torch.Tensor], facts: dict[str, Any], train: TrainConfig
) -> None:
    """Write `good-N`, weights that were not the best, where the config keeps such."""
    if train.keep_best > 1:
        save_tensors(run.checkpoints / f"good-{facts['step']}.safetensors", weights, facts)
        _drop_all_but_good(run, train)


def _drop_all_but_good(run: RunDir, train: TrainConfig) -> None:
    """Keep the next best after the best, `keep_best` together; of equal ones the earlier."""
    bests = {step for step, _ in run.best_checkpoints()}
    good = [(step, path) for step, path in run.good_checkpoints() if step not in bests]

    def rank(item: tuple[int, Path]) -> tuple[float, int]:
        step, path = item
        return -score_of(read_facts(path)["valid"], train.best_metric), step

    kept = sorted(good, key=rank)[: train.keep_best - 1] if train.keep_best > 1 else []
    for step, path in run.good_checkpoints():
        if (step, path) not in kept:
            path.unlink()
