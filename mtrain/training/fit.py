"""Fit before flight: does the largest micro-batch fit, and what will the run cost?"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from mtrain import console, runtime
from mtrain.data.batching import BatchPlan, Indices
from mtrain.errors import DeviceError
from mtrain.training.budget import Plan
from mtrain.training.graphs import PASSES_WITHOUT
from mtrain.training.learner import Learner
from mtrain.training.meter import peak_bytes
from mtrain.training.state import Progress

N_TIMED = 2  # updates


@dataclass(frozen=True)
class Trial:
    """What was found before the first step."""

    update_s: float  # forward and backward of an update, on average
    tokens_per_s: float  # source and target, of all processes
    peak_bytes: int
    n_micro_batches: float  # an update, on average


def try_out(learner: Learner, plan: BatchPlan, progress: Progress) -> Trial:
    """Run the largest micro-batch forward and backward, then time the first updates of a plan.

    Where memory runs out the micro-batch is halved in `progress`. Weights stay as they are.
    """
    while not _fits(learner, plan, progress):
        pass
    return _time(learner, plan, progress)


def compile_if_faster(learner: Learner, plan: BatchPlan, progress: Progress, trial: Trial) -> Trial:
    """Compile the layers and try again; -> the trial of what training goes on with

    Where the config asks for it, they stay compiled even if that is no faster.
    """
    is_wanted = learner.config.train.compile is True
    uncompiled = _time(learner, plan, progress)  # again, now that all kernels are loaded
    console.message("compiling the layers")
    learner.compile_layers()
    try:
        try_out(learner, plan, progress)  # this compiles
        compiled = try_out(learner, plan, progress)
    except RuntimeError as error:  # which torch's errors of compiling are
        problem = _not_compiled(error)
        if is_wanted:
            raise DeviceError(problem, "set `train.compile` to `auto` or `false`") from error
        console.warn(f"{problem}; training goes on without")
        learner.workers.drop_gradients()
    else:
        if is_wanted or compiled.update_s < uncompiled.update_s:
            progress.is_compiled = True
            return compiled
    runtime.leave_compiled()
    return trial


def record_if_faster(learner: Learner, plan: BatchPlan, progress: Progress, trial: Trial) -> Trial:
    """Record CUDA graphs and try again; -> the trial of what training goes on with

    Where the config asks for them, they stay even if that is no faster.
    """
    is_wanted = learner.config.train.cuda_graphs is True
    unrecorded = _time(learner, plan, progress)  # again, now that all kernels are loaded
    learner.record()
    assert learner.recorder is not None
    if learner.recorder.record is None:
        raise DeviceError(
            "`train.cuda_graphs` needs a GPU, and this run trains on the CPU",
            "set it to `auto` or `false`",
        )
    for _ in range(PASSES_WITHOUT + 1):
        try_out(learner, plan, progress)  # this records
    recorded = try_out(learner, plan, progress)
    if learner.processes.any(not learner.recorder.recordings.is_able):  # which was said
        if is_wanted:
            raise DeviceError(
                "CUDA graphs cannot be recorded here",
                "set `train.cuda_graphs` to `auto` or `false`",
            )
    elif is_wanted or recorded.update_s < unrecorded.update_s:
        progress.is_recorded = True
        return recorded
    learner.recorder = None
    return trial


def compile_again(learner: Learner, plan: BatchPlan, progress: Progress) -> None:
    """Compile the layers of a run that was trained so before it was stopped.

    Raises a DeviceError where that fails: without, other dropout masks are drawn.
    """
    learner.compile_layers()
    try:
        try_out(learner, plan, progress)
    except RuntimeError as error:
        raise DeviceError(
            f"{_not_compiled(error)}, and this run was trained with compiled layers before",
            "set `train.compile` to `false`: it goes on, though not to the same bytes",
        ) from error


def _not_compiled(error: RuntimeError) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"the layers cannot be compiled here: {reason}"


def _time(learner: Learner, plan: BatchPlan, progress: Progress) -> Trial:
    """Time the first updates of a plan."""
    numbers = [number for number in range(N_TIMED) if plan.has(number)]
    n_micro_batches = sum(len(learner.micro_batches(plan, number, progress)) for number in numbers)
    n_tokens = 0
    began_at = time.perf_counter()
    for number in numbers:
        learner.gradients(plan, number, progress)
        sentences = plan.sentences(number)
        n_tokens += int(plan.src_lengths[sentences].sum() + plan.tgt_lengths[sentences].sum())
    learner.workers.drop_gradients()
    if learner.device.type == "cuda":
        torch.cuda.synchronize(learner.device)
    elapsed_s = learner.processes.as_first(time.perf_counter() - began_at)
    return Trial(
        elapsed_s / len(numbers),
        n_tokens / elapsed_s,
        _peak_bytes(learner),
        n_micro_batches / len(numbers),
    )


def show(learner: Learner, plan: Plan, epoch: BatchPlan, trial: Trial, progress: Progress) -> None:
    """One table: parameters, memory, speed, updates and epochs planned, time left."""
    steps, n_left = plan.max_steps, max(0, plan.max_steps - progress.step)
    left = plan.left_s() if plan.train.budget else n_left * trial.update_s
    rows = [
        ("parameters", f"{learner.n_parameters:,}"),
        ("memory at its peak", f"{trial.peak_bytes / 2**20:,.0f} MiB"),
        ("tokens/s, source and target", f"{trial.tokens_per_s:,.0f}"),
        ("target tokens an update", f"{plan.train.batch_tokens:,}"),
        (
            "micro-batches an update",
            f"{trial.n_micro_batches:.1f} of at most {learner.micro_batch_tokens(progress):,}",
        ),
        ("updates an epoch", f"{len(epoch):,}"),
        ("updates planned", f"{steps:,}"),
        ("epochs planned", f"{steps / len(epoch):,.1f}"),
        ("time left, without validations", console.duration(left)),
    ]
    if progress.is_recorded:
        rows.insert(3, ("forward and backward", "CUDA graphs"))
    if progress.is_compiled:
        rows.insert(3, ("layers", "compiled"))
    if plan.train.budget:
        rows[-1] = ("time left, with validations", console.duration(left))
    console.table(("plan", ""), rows)


def _fits(learner: Learner, plan: BatchPlan, progress: Progress) -> bool:
    """Whether the largest micro-batch does; if not, the next try has half of it."""
    largest = learner.batch(largest_micro_batch(plan, learner.micro_batch_tokens(progress)))
    try:
        learner.forward_backward({0: largest}, largest.n_target_tokens, step=0)
    except torch.OutOfMemoryError as error:
        learner.workers.drop_gradients()
        learner.shrink([largest], progress, error)
        return False
    learner.workers.drop_gradients()
    return True


def largest_micro_batch(plan: BatchPlan, max_tokens: int) -> Indices:
    """As many of the longest pairs as one micro-batch can hold."""
    longest = np.maximum(plan.src_lengths, plan.tgt_lengths)
    order = np.argsort(longest, kind="stable")[::-1]
    return order[: max(1, max_tokens // int(longest[order[0]]))]


def _peak_bytes(learner: Learner) -> int:
    """Of this process; on a GPU with the optimizers' moments, and with the copies to be saved."""
    if learner.device.type != "cuda":
        return peak_bytes()
    weights = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    moments, averages = 2 * weights, weights if learner.ema is not None else 0
    later = moments + (weights + averages + moments)
    return torch.cuda.max_memory_allocated(learner.device) + later
