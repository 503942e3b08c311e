"""Fit before flight: does the largest micro-batch fit, and what will the run cost?"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrain import console
from mtrain.data.batching import Batch, BatchPlan
from mtrain.data.tokenizer import EOS
from mtrain.errors import DeviceError
from mtrain.machine import runtime
from mtrain.model.loss import Loss
from mtrain.training.budget import Plan
from mtrain.training.learner import Learner
from mtrain.training.meter import peak_bytes
from mtrain.training.optim import Muon
from mtrain.training.state import Progress

# Updates that warm up, and updates that are timed. A GPU loads kernels and grows its memory first.
N_UPDATES = {"cpu": (0, 2), "cuda": (3, 10)}


@dataclass(frozen=True)
class Trial:
    """What was found before the first step."""

    update_s: float  # forward and backward of an update, on average
    tokens_per_s: float  # source and target, of all processes
    peak_bytes: int  # on a GPU with the optimizers' moments
    n_micro_batches: float  # an update, on average


def try_out(learner: Learner, plan: BatchPlan, progress: Progress) -> Trial:
    """Run the largest micro-batch forward and backward, then time the first updates of a plan.

    Where memory runs out the micro-batch is halved in `progress`. Weights stay as they are.
    """
    while not _fits(learner, plan, progress):
        pass
    n_warm_up, n_timed = N_UPDATES[learner.device.type]
    for number in filter(plan.has, range(n_warm_up)):
        learner.gradients(plan, number, progress)
    return _time(learner, plan, progress, n_timed)


def compile_if_faster(learner: Learner, plan: BatchPlan, progress: Progress, trial: Trial) -> Trial:
    """Compile the layers and try again; -> the trial of what training goes on with

    Where the config asks for it, they stay compiled even if that is no faster.
    """
    is_wanted = learner.config.train.compile is True
    console.message("compiling the layers")
    if problem := _compile(learner, plan, progress):
        if is_wanted:
            raise DeviceError(problem, "set `train.compile` to `auto` or `false`")
        console.warn(f"{problem}; training goes on without")
    else:
        compiled = try_out(learner, plan, progress)
        if is_wanted or compiled.update_s < trial.update_s:
            progress.is_compiled = True
            return compiled
    runtime.leave_compiled()
    return trial


def compile_again(learner: Learner, plan: BatchPlan, progress: Progress) -> None:
    """Compile the layers of a run that was trained so before it was stopped.

    Raises a DeviceError where that fails: without, other dropout masks are drawn.
    """
    if problem := _compile(learner, plan, progress):
        raise DeviceError(
            f"{problem}, and this run was trained with compiled layers before",
            "set `train.compile` to `false`: it goes on, though not to the same bytes",
        )


def _compile(learner: Learner, plan: BatchPlan, progress: Progress) -> str | None:
    """Compile the layers, for sources with padding and without; -> why a process could not

    Each does so alone, so that none waits for the gradients of one that has failed.
    """
    learner.compile_layers()
    problem = None
    try:
        for is_padded in (True, False):
            _fits(learner, plan, progress, is_padded)
    except RuntimeError as error:  # which torch's errors of compiling are
        learner.workers.drop_gradients()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"the layers cannot be compiled here: {reason}"
    if learner.processes.any(problem is not None):
        return problem or "the layers cannot be compiled in another process"
    return None


def _time(learner: Learner, plan: BatchPlan, progress: Progress, n_updates: int) -> Trial:
    """Time the first updates of a plan."""
    numbers = [*filter(plan.has, range(n_updates))]
    n_micro_batches = sum(len(learner.micro_batches(plan, number, progress)) for number in numbers)
    n_tokens = 0
    runtime.synchronize(learner.device)
    began_at = time.perf_counter()
    for number in numbers:
        learner.gradients(plan, number, progress)
        sentences = plan.sentences(number)
        n_tokens += int(plan.src_lengths[sentences].sum() + plan.tgt_lengths[sentences].sum())
    learner.workers.drop_gradients()
    runtime.synchronize(learner.device)
    elapsed_s = learner.processes.as_first(time.perf_counter() - began_at)
    return Trial(
        elapsed_s / len(numbers),
        n_tokens / elapsed_s,
        peak_bytes(learner.device),
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
    if progress.is_compiled:
        rows.insert(3, ("layers", "compiled"))
    if plan.train.budget:
        rows[-1] = ("time left, with validations", console.duration(left))
    console.table(("plan", ""), rows)


def _fits(learner: Learner, plan: BatchPlan, progress: Progress, is_padded: bool = True) -> bool:
    """Whether the largest micro-batch does, in each worker; if not, the next try has half of it."""
    largest = largest_batch(plan, learner.micro_batch_tokens(progress), is_padded)
    batches = dict.fromkeys(range(len(learner.workers.models)), largest)
    if learner.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(learner.device)

    def work() -> tuple[list[Tensor], list[Loss]]:
        held = _held_in_training(learner)
        return held, learner.forward_backward(batches, largest.n_target_tokens, step=0)

    fits = runtime.unless_out_of_memory(work) is not None
    if not fits:
        learner.shrink([largest], progress)
    learner.workers.drop_gradients()
    return fits


def largest_batch(plan: BatchPlan, max_tokens: int, is_padded: bool) -> Batch:
    """As many positions of both sides as one micro-batch can hold, in the longest rows there are.

    No micro-batch of the plan needs more memory, but for what rounding takes off.
    """
    length = int(max(plan.src_lengths.max(), plan.tgt_lengths.max()))
    n_rows = -(-max_tokens // length)
    length = length if n_rows == 1 else max_tokens // n_rows
    ids = torch.full((n_rows, length), EOS)
    mask = torch.ones(n_rows, 1, 1, length, dtype=torch.bool) if is_padded else None
    return Batch(ids, ids, ids, mask, ids.numel(), ids.numel())


def _held_in_training(learner: Learner) -> list[Tensor]:
    """Memory of a GPU as from the first update on: gradients, and moments that are still to come.

    The gradients are the parameters', as where this is the second micro-batch of an update.
    """
    if learner.device.type != "cuda":
        return []
    held = []
    for optimizer in learner.optimizers:
        n_moments = 1 if isinstance(optimizer, Muon) else 2
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
            if parameter not in optimizer.state:
                held += [torch.empty_like(parameter) for _ in range(n_moments)]
    return held
