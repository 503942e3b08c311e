"""Data-parallel training in several processes, started by torchrun; by default just one.

This is the only module that reads torchrun's environment variables.
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
class Distributed:
    """This process among those that train one model together.

    All hold the same weights. On CPUs sums are made in the order of the ranks, so the same world
    size gives the same bytes; on GPUs the last bits may differ.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Rank 0 prints, validates and writes."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes."""
        if self.world_size == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # this process had no micro-batch
                parameter.grad = torch.zeros_like(parameter)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = self.all_reduce(torch.cat([grad.flatten() for grad in grads]))
        parts = torch.split(flat, [grad.numel() for grad in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, is_true: bool) -> bool:
        """Whether the value is true in any process; never waits for the GPU."""
        if self.world_size == 1:
            return is_true
        return bool(self.all_reduce(torch.tensor(float(is_true))))

    def barrier(self) -> None:
        """Wait until all processes are here; a GPU need not have finished its work."""
        self.any(True)

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0, in all processes."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


def is_under_torchrun() -> bool:
    """True also with one process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def process_group(device_name: str) -> Iterator[Distributed]:
    """The processes that torchrun has started; without torchrun, this one alone."""
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if is_under_torchrun() else 1
    if world_size == 1:
        yield Distributed(choose_device(device_name))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if rank:
        console.silence()  # except for errors
    device = choose_device(device_name)
    if device.type == "cuda":
        device = choose_device(f"cuda:{local_rank}")
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # The other ranks wait while rank 0 validates, however long that takes.
    dist.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield Distributed(device, rank, world_size)
    finally:
        dist.destroy_process_group()
