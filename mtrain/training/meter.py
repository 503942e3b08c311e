"""What a line of metrics.jsonl says, summed where the work is done and read only when it is due."""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import Tensor

from mtrain.data.batching import Batch
from mtrain.machine.distributed import Processes
from mtrain.model.loss import Loss
from mtrain.training.state import Progress


class Meter:
    """Sums since the last line of the log, kept on the device until they are read."""

    def __init__(self, progress: Progress, processes: Processes) -> None:
        self.processes, device = processes, processes.device
        self.n_skipped = torch.full((), float(progress.n_skipped), device=device)  # of all updates
        self.n_skipped_in_a_row = torch.full((), float(progress.n_skipped_in_a_row), device=device)
        self.restart()

    def restart(self) -> None:
        """Begin a new stretch."""
        self.smoothed = torch.zeros((), device=self.processes.device)
        self.nll = torch.zeros((), device=self.processes.device)
        self.divergence: Tensor | None = None  # of two passes, where there are two
        self.n_source = self.n_target = self.n_positions = 0
        self.elapsed_s = 0.0
        self.begin_lap()

    def begin_lap(self) -> None:
        """Start the clock: what came before was not training."""
        self.lap_began_at = time.perf_counter()

    def end_lap(self, progress: Progress) -> None:
        """Add the seconds since the lap began, and the skipped updates; waits for the device."""
        progress.n_skipped = int(self.n_skipped.item())
        progress.n_skipped_in_a_row = int(self.n_skipped_in_a_row.item())
        now = time.perf_counter()
        lap_s, self.lap_began_at = now - self.lap_began_at, now
        self.elapsed_s += lap_s
        progress.elapsed_s += lap_s

    def add_batch(self, batch: Batch, loss: Loss) -> None:
        """Count a micro-batch."""
        self.smoothed += loss.smoothed
        self.nll += loss.nll
        if loss.divergence is not None:
            self.divergence = loss.divergence + (0 if self.divergence is None else self.divergence)
        self.n_source += batch.n_source_tokens
        self.n_target += batch.n_target_tokens
        self.n_positions += batch.n_positions

    def add_step(self, grad_norm: Tensor, is_bad: Tensor, rate: float) -> None:
        """Count an update."""
        self.grad_norm, self.rate = grad_norm, rate
        self.n_skipped += is_bad
        self.n_skipped_in_a_row = (self.n_skipped_in_a_row + 1) * is_bad

    def read(self, progress: Progress) -> dict[str, float]:
        """The means since the last reading; begins a new stretch."""
        self.end_lap(progress)
        losses = [self.smoothed, self.nll, *([] if self.divergence is None else [self.divergence])]
        losses = self.processes.sum(torch.stack(losses)).tolist()
        counts = torch.tensor([self.n_source, self.n_target, self.n_positions])
        n_source, n_target, n_positions = self.processes.sum(counts).tolist()
        record = {
            "loss": losses[0] / n_target,
            "nll": losses[1] / n_target,
            "grad_norm": float(self.grad_norm),
            "learning_rate": self.rate,
            "tokens_per_s": (n_source + n_target) / self.elapsed_s,
            "real_token_share": (n_source + n_target) / n_positions,
            "n_skipped": progress.n_skipped,
            "memory_bytes": peak_bytes(self.processes.device),
            "elapsed_s": round(progress.elapsed_s, 3),
        }
        if len(losses) > 2:
            record["divergence"] = losses[2] / n_target
        self.restart()
        return record


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held: of the GPU where there is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
