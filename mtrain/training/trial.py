"""The trial before training: does the largest micro-batch fit, and how long will the run take?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtrain import console
from mtrain.data.batching import Batch, BatchPlan
from mtrain.data.epochs import Epoch
from mtrain.data.tokenizer import EOS
from mtrain.errors import DeviceError
from mtrain.machine import runtime
from mtrain.model.loss import Loss
from mtrain.training.learner import Learner
from mtrain.training.log import peak_bytes
from mtrain.training.optim import Muon
from mtrain.training.schedule import Clock, Progress, Schedule

# Warm-up updates and timed updates. A GPU loads its kernels and grows its memory first.
N_UPDATES = {"cpu": (0, 2), "cuda": (3, 10)}
WORTH_COMPILING_S = 600  # of training; compiling takes a minute or two


@dataclass(frozen=True)
class Trial:
    """The measurements of a trial; averages are over its updates."""

    update_s: float  # forward and backward
    tokens_per_s: float  # source and target, of all processes
    peak_bytes: int  # on a GPU with the moments of the optimizers
    n_micro_batches: float  # per update


def try_out(learner: Learner, epoch: Epoch, progress: Progress, clock: Clock) -> Trial:
    """Run the largest micro-batch forward and backward, then time the first updates of an epoch.

    If memory runs out, the micro-batch is halved in `progress`. Weights stay as they are.
    """
    run_largest(learner, epoch.plan, progress)
    n_warm_up, n_timed = N_UPDATES[learner.device.type]
    for number in filter(epoch.plan.has, range(n_warm_up)):
        learner.gradients(epoch, number, progress)
    numbers = [*filter(epoch.plan.has, range(n_timed))]
    runtime.synchronize(learner.device)
    began_at = clock()
    for number in numbers:
        learner.gradients(epoch, number, progress)
    learner.replicas.zero_grad()
    runtime.synchronize(learner.device)
    elapsed_s = learner.distributed.broadcast(clock() - began_at)
    n_micro_batches = n_tokens = 0
    for number in numbers:
        sentences = epoch.plan.sentences(number)
        lengths = epoch.plan.src_lengths[sentences], epoch.plan.tgt_lengths[sentences]
        n_tokens += sum(int(side.sum()) for side in lengths)
        n_micro_batches += len(learner.micro_batches(epoch.plan, number, progress))
    return Trial(
        elapsed_s / len(numbers),
        n_tokens / elapsed_s,
        peak_bytes(learner.device),
        n_micro_batches / len(numbers),
    )


def show_trial(learner: Learner, schedule: Schedule, epoch: Epoch, trial: Trial) -> None:
    """Print the plan: parameters, memory, speed, updates and epochs, time left."""
    train, progress, steps = schedule.train, schedule.progress, schedule.max_steps
    n_left = max(0, steps - progress.step)
    left = schedule.left_s() if train.budget else n_left * trial.update_s
    beam = progress.valid_beam_size
    limit = learner.micro_batch_tokens(progress)
    rows = [
        ("parameters", f"{learner.n_parameters:,}"),
        ("memory at its peak", f"{trial.peak_bytes / 2**20:,.0f} MiB"),
        ("tokens/s, source and target", f"{trial.tokens_per_s:,.0f}"),
        *([("layers", "compiled")] if progress.is_compiled else []),
        ("target tokens per update", f"{train.batch_tokens:,}"),
        ("micro-batches per update", f"{trial.n_micro_batches:.1f} of at most {limit:,}"),
        ("updates per epoch", f"{len(epoch.plan):,}"),
        ("updates planned", f"{steps:,}"),
        ("epochs planned", f"{steps / len(epoch.plan):,.1f}"),
        *([("validation", f"{progress.valid_lines:,} sentences, beam {beam}")] if beam else []),
        (f"time left, with{'' if train.budget else 'out'} validations", console.duration(left)),
    ]
    console.table(("plan", ""), rows)


# -- compiled layers -------------------------------------------------------------------------


def should_compile(wanted: bool | Literal["auto"], device: torch.device, training_s: float) -> bool:
    """As configured; `auto` compiles on a GPU if training takes long enough."""
    if wanted == "auto":
        return device.type == "cuda" and training_s > WORTH_COMPILING_S
    return wanted


def compile_if_faster(
    learner: Learner, epoch: Epoch, progress: Progress, trial: Trial, clock: Clock
) -> Trial:
    """Compile the layers and try again; -> the trial of the chosen way

    If the config requests it, the layers stay compiled even if that is no faster.
    """
    is_wanted = learner.config.train.compile is True
    console.message("compiling the layers")
    if problem := _compile(learner, epoch.plan, progress):
        if is_wanted:
            raise DeviceError(problem, "set `train.compile` to `auto` or `false`")
        console.warn(f"{problem}; training continues without")
    else:
        compiled = try_out(learner, epoch, progress, clock)
        if is_wanted or compiled.update_s < trial.update_s:
            progress.is_compiled = True
            return compiled
    torch.compiler.set_stance("force_eager")  # ignores what was compiled in this process
    return trial


def compile_again(learner: Learner, epoch: Epoch, progress: Progress) -> None:
    """Compile the layers of a resumed run that was compiled before.

    Raises a DeviceError if that fails: without compiling, the dropout masks would be different.
    """
    if problem := _compile(learner, epoch.plan, progress):
        raise DeviceError(
            f"{problem}, and this run was trained with compiled layers before",
            "set `train.compile` to `false`: it will resume, but not to the same bytes",
        )


def _compile(learner: Learner, plan: BatchPlan, progress: Progress) -> str | None:
    """Compile the layers for sources with padding and without; -> the reason for a failure

    Each process compiles alone, so that none waits for the gradients of one that has failed.
    """
    learner.compile_layers()
    problem = None
    try:
        for is_padded in (True, False):
            run_largest(learner, plan, progress, is_padded)
    except RuntimeError as error:  # a base class of torch's errors of compiling
        learner.replicas.zero_grad()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"the layers cannot be compiled here: {reason}"
    if learner.distributed.any(problem is not None):
        return problem or "the layers cannot be compiled in another process"
    return None


# -- memory ----------------------------------------------------------------------------------


def run_largest(
    learner: Learner, plan: BatchPlan, progress: Progress, is_padded: bool = True
) -> None:
    """Run the largest micro-batch in each worker, halved until it fits the memory."""

    def largest() -> dict[int, Batch]:
        if learner.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(learner.device)
        batch = largest_batch(plan, learner.micro_batch_tokens(progress), is_padded)
        return dict.fromkeys(range(len(learner.replicas.models)), batch)

    def work(batches: dict[int, Batch]) -> list[Loss]:
        held = _held_in_training(learner)
        losses = learner.forward_backward(batches, batches[0].n_target_tokens, step=0)
        del held
        return losses

    learner.in_memory(largest, work, progress)
    learner.replicas.zero_grad()


def largest_batch(plan: BatchPlan, max_tokens: int, is_padded: bool) -> Batch:
    """As many positions of both sides as a micro-batch can have, in rows as long as possible.

    No micro-batch of the plan needs more memory, except for rounding.
    """
    length = int(max(plan.src_lengths.max(), plan.tgt_lengths.max()))
    n_rows = -(-max_tokens // length)
    length = length if n_rows == 1 else max_tokens // n_rows
    ids = torch.full((n_rows, length), EOS)
    mask = torch.ones(n_rows, 1, 1, length, dtype=torch.bool) if is_padded else None
    return Batch(ids, ids, ids, mask, ids.numel(), ids.numel())


def _held_in_training(learner: Learner) -> list[Tensor]:
    """On a GPU, the memory held from the first update on: gradients, and moments still to come.

    The gradients become those of the parameters, as in the second micro-batch of an update.
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
