"""Several processes that train one model, started by torchrun; most often there is only one.

torchrun's environment is read here and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtrain import console
from mtrain.machine.runtime import choose_device

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together, seen from one of them.

    All hold the same weights. On CPUs sums are made in the order of the ranks, so the same number
    of processes gives the same bytes; on GPUs the last bits may differ.
    """

    device: torch.device
    rank: int = 0
    n: int = 1

    @property
    def is_first(self) -> bool:
        """The one that speaks, validates and writes."""
        return self.rank == 0

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the sum of all processes' gradients in the place of each one's own."""
        if self.n == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # it had no micro-batch
                parameter.grad = torch.zeros_like(parameter)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
        parts = torch.split(flat, [grad.numel() for grad in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all processes, in place."""
        if self.n > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, is_true: bool) -> bool:
        """Whether it is so in one of them at least; never waits for the device."""
        return bool(self.sum(torch.tensor(float(is_true)))) if self.n > 1 else is_true

    def wait(self) -> None:
        """Until all are here."""
        self.any(True)

    def as_first(self, value: Value) -> Value:
        """The value that the first process has, once it has it."""
        if self.n == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


def is_under_torchrun() -> bool:
    """True also for a single process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def join(device_name: str) -> Iterator[Processes]:
    """This process among those that torchrun started; alone where it was not torchrun."""
    n = int(os.environ.get("WORLD_SIZE", "1")) if is_under_torchrun() else 1
    if n == 1:
        yield Processes(choose_device(device_name))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if rank:
        console.silence()  # but for errors
    device = choose_device(device_name)
    if device.type == "cuda":
        device = choose_device(f"cuda:{local_rank}")
        torch.cuda.set_device(device)
    # The others wait while the first validates, for as long as that takes.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield Processes(device, rank, n)
    finally:
        dist.destroy_process_group()
