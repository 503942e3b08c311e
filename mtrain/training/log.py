"""The log of a training: metrics.jsonl, TensorBoard, messages, and warnings about its course."""

from __future__ import annotations

import math
import resource
import sys
from typing import Any

import torch
from torch import Tensor

from mtrain import console
from mtrain.errors import NonFiniteError, UsageError
from mtrain.machine.distributed import Distributed
from mtrain.run import RunDir
from mtrain.training.learner import Update
from mtrain.training.schedule import Clock, Progress, Schedule

MOST_SKIPPED_IN_A_ROW = 20

SAMPLE_WIDTH = 66  # of 80 columns

# For warnings
FIRST_JUDGED_STEP = 500
LITTLE_LEARNT = 0.9  # of the loss of a uniform distribution
EPOCHS_TO_LEARN = 5  # before a poor score says something about the data
RISE = 1.0  # nats above the lowest loss


class Meter:
    """Sums over the updates since the last record, kept on the device until they are read."""

    def __init__(self, progress: Progress, distributed: Distributed, clock: Clock) -> None:
        self.progress, self.distributed, self.clock = progress, distributed, clock
        device = distributed.device
        self.n_skipped = torch.full((), float(progress.n_skipped), device=device)  # over all laps
        self.n_skipped_in_a_row = torch.full((), float(progress.n_skipped_in_a_row), device=device)
        self.restart()

    def restart(self) -> None:
        """Reset the sums, except the skipped updates."""
        self.smoothed = torch.zeros((), device=self.distributed.device)
        self.nll = torch.zeros((), device=self.distributed.device)
        self.divergence: Tensor | None = None  # between two passes, if there are two
        self.n_source = self.n_target = self.n_positions = 0
        self.elapsed_s = 0.0
        self.begin_lap()

    def begin_lap(self) -> None:
        """Start the clock: the time before does not count as training."""
        self.lap_began_at = self.clock()

    def end_lap(self) -> None:
        """Add the seconds of the lap and the skipped updates to the progress; begin the next lap.

        This waits for the device.
        """
        self.progress.n_skipped = int(self.n_skipped.item())
        self.progress.n_skipped_in_a_row = int(self.n_skipped_in_a_row.item())
        now = self.clock()
        lap_s, self.lap_began_at = now - self.lap_began_at, now
        self.elapsed_s += lap_s
        self.progress.elapsed_s += lap_s

    def add(self, update: Update) -> None:
        """Add up an update, without waiting for the device."""
        for batch, loss in update.micro_batches:
            self.smoothed += loss.smoothed
            self.nll += loss.nll
            if loss.divergence is not None:
                before = 0 if self.divergence is None else self.divergence
                self.divergence = loss.divergence + before
            self.n_source += batch.n_source_tokens
            self.n_target += batch.n_target_tokens
            self.n_positions += batch.n_positions
        self.grad_norm, self.rate = update.grad_norm, update.learning_rate
        self.n_skipped += update.is_skipped
        self.n_skipped_in_a_row = (self.n_skipped_in_a_row + 1) * update.is_skipped

    def read(self) -> dict[str, Any]:
        """A record of the means over all processes since the last one; resets the sums."""
        self.end_lap()
        losses = [self.smoothed, self.nll, *([] if self.divergence is None else [self.divergence])]
        losses = self.distributed.all_reduce(torch.stack(losses)).tolist()
        counts = torch.tensor([self.n_source, self.n_target, self.n_positions])
        n_source, n_target, n_positions = self.distributed.all_reduce(counts).tolist()
        record = {
            "loss": losses[0] / n_target,
            "nll": losses[1] / n_target,
            "grad_norm": float(self.grad_norm),
            "learning_rate": self.rate,
            "tokens_per_s": (n_source + n_target) / self.elapsed_s,
            "real_token_share": (n_source + n_target) / n_positions,
            "n_skipped": self.progress.n_skipped,
            "memory_bytes": peak_bytes(self.distributed.device),
            "elapsed_s": round(self.progress.elapsed_s, 3),
        }
        if len(losses) > 2:
            record["divergence"] = losses[2] / n_target
        self.restart()
        return record


class Log:
    """Writes a record for some updates and every validation; ranks other than the first do not.

    As a context manager, it closes TensorBoard's file at the end.
    """

    def __init__(
        self, run: RunDir, with_tensorboard: bool, warnings: Warnings, meter: Meter
    ) -> None:
        self.run, self.warnings, self.meter = run, warnings, meter
        self.progress, self.is_silent = meter.progress, not meter.distributed.is_first
        self.n_skipped_reported = self.progress.n_skipped
        self.board: Any = None
        if with_tensorboard and not self.is_silent:
            # Of an earlier attempt, TensorBoard forgets the steps that are repeated.
            step = self.progress.step + 1
            self.board = _summary_writer()(str(run.tensorboard), purge_step=step)

    def train(self, schedule: Schedule) -> str:
        """Write a record of training, which waits for the device; -> text for the progress bar"""
        progress = self.progress
        record = {"kind": "train", "step": progress.step, "epoch": progress.epoch}
        record |= self.meter.read()
        self._write(record)
        if progress.n_skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"the gradient was not finite for {progress.n_skipped_in_a_row} steps in a row, "
                f"up to step {progress.step}",
                "lower train.optim.learning_rate, or set train.precision to fp32",
            )
        if progress.n_skipped > self.n_skipped_reported:
            console.warn(
                f"skipped {progress.n_skipped - self.n_skipped_reported} updates up to step "
                f"{progress.step}: their gradients were not finite"
            )
            self.n_skipped_reported = progress.n_skipped
        text = f"loss {record['loss']:.3f}, {record['tokens_per_s']:,.0f} tokens/s"
        if not console.is_terminal():
            console.message(
                f"step {progress.step}/{schedule.max_steps}  epoch {progress.epoch + 1}  {text}, "
                f"{console.duration(schedule.left_s())} left"
            )
        return text

    def validation(self, record: dict[str, Any], is_best: bool) -> dict[str, Any]:
        """Write the record of a validation; -> with its step"""
        step = self.progress.step
        record = {"kind": "valid", "step": step, "is_best": is_best, **record}
        self._write(record)
        console.message(
            f"step {step}: valid loss {record['loss']:.3f}, BLEU {record['bleu']:.2f}, "
            f"chrF {record['chrf']:.2f}{', the best so far' if is_best else ''}"
        )
        for texts in record.get("samples", ()):
            for name, text in zip(("source", "reference", "output"), texts, strict=True):
                console.message(f"  {name:9}  {console.shortened(text, SAMPLE_WIDTH)}")
        return record

    def _write(self, record: dict[str, Any]) -> None:
        if not self.is_silent:
            self.run.log(record)
        if self.board is not None:
            for key, value in record.items():
                if key != "step" and isinstance(value, int | float):
                    self.board.add_scalar(f"{record['kind']}/{key}", value, record["step"])
        self.warnings.see(record)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.board is not None:
            self.board.close()


class Warnings:
    """Reads every record, and warns once of each problem that an expert would notice."""

    def __init__(self, target_vocab_size: int, warmup_steps: int) -> None:
        self.uniform_nll = math.log(target_vocab_size)
        self.first_step = max(FIRST_JUDGED_STEP, warmup_steps)
        self.warmup_steps, self.epoch = warmup_steps, 0
        self.lowest_nll = math.inf
        self.n_validations = 0
        self.given: set[str] = set()

    def see(self, record: dict[str, Any]) -> None:
        """A record of `kind` train or valid."""
        if record["kind"] == "valid":
            self._see_validation(record)
            return
        step, nll = record["step"], record["nll"]
        self.epoch = record["epoch"]
        if math.isfinite(nll):
            self.lowest_nll = min(self.lowest_nll, nll)
        if step >= self.first_step and nll > LITTLE_LEARNT * self.uniform_nll:
            self._warn(
                "the loss does not fall",
                f"at step {step} it is {nll:.2f} per piece, against "
                f"{self.uniform_nll:.2f} for random guessing; try another "
                "train.optim.learning_rate, and check that the lines of source and target belong "
                "together",
            )
        elif nll > self.lowest_nll + RISE:
            self._warn(
                "the loss has risen again",
                f"to {nll:.2f} per piece at step {step}, from {self.lowest_nll:.2f}; a lower "
                "train.optim.learning_rate or a longer warm-up prevents that",
            )

    def _see_validation(self, record: dict[str, Any]) -> None:
        self.n_validations += 1
        step = record["step"]
        if record.get("n_distinct_outputs") == 1 and record.get("n_distinct_references", 1) > 1:
            self._warn(
                "every sentence of valid gets the same translation",
                f"at step {step}; if that stays so, the model ignores the source: lower "
                "train.optim.learning_rate, or train on more text",
            )
        copying = record.get("bleu_of_copying", 0.0)
        if self.n_validations > 1 and record["bleu"] < copying:
            self._warn(
                "copying the source scores higher on valid than the model",
                f"at step {step} ({copying:.1f} BLEU against {record['bleu']:.1f}); "
                f"{self._likely_cause(step)}",
            )

    def _likely_cause(self, step: int) -> str:
        """Of a poor score: a short training, or else the data."""
        if step <= self.warmup_steps:
            return f"the learning rate is still rising, until step {self.warmup_steps}"
        if self.epoch < EPOCHS_TO_LEARN:
            return f"the model has seen the training text {self.epoch + 1} times, which is little"
        return "if that stays so, check that source and target are in the right languages"

    def _warn(self, problem: str, details: str) -> None:
        if problem not in self.given:
            self.given.add(problem)
            console.warn(f"{problem}: {details}")


def peak_bytes(device: torch.device) -> int:
    """The peak memory of this process: of the GPU if it uses one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "`train.tensorboard` needs TensorBoard, which is not installed",
            "pip install 'mtrain[tensorboard]', or set train.tensorboard to false",
        ) from error
    return SummaryWriter
