"""Threads: independent work on the cores of a CPU, micro-batches on replicas, writes to the disk.

A CPU is used best by one thread per core, each with single-threaded kernels on its own work: the
cores synchronize at the end of the work instead of after each of its thousands of kernels. On two
quiet cores both ways are equally fast. Next to other programs, this way trains 1.4 times as fast in
float32 and 2.8 times in bf16 (`tiny`, 2 cores, load 6), at the CPU time of a single thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
Model = TypeVar("Model", bound=nn.Module)
Result = TypeVar("Result")


def _init_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


@contextmanager
def _kernel_threads(n: int) -> Iterator[None]:
    """Run kernels on n threads; OpenMP and oneDNN have one setting for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    n_workers: int,
    threads_of_one: int | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, function(item)) as they finish, on n_workers threads.

    With one worker or one item, everything runs in the calling thread, with kernels on
    `threads_of_one` threads (None: the current setting).
    """
    if n_workers == 1 or len(items) == 1:
        with _kernel_threads(threads_of_one or torch.get_num_threads()):
            for item in items:
                yield item, function(item)
        return
    with _kernel_threads(1):
        pool = ThreadPoolExecutor(n_workers, initializer=_init_thread)
        try:
            futures = {pool.submit(function, item): item for item in items}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class Replicas(Generic[Model]):
    """A model and n - 1 replicas, one per thread; with one, everything runs in the calling thread.

    The replicas share the memory of the weights and have their own gradients. `run` adds these up
    in a fixed order: the same number of threads gives the same bytes.
    """

    def __init__(self, model: Model, n: int, init_thread: Callable[[], None]) -> None:
        """`init_thread` is called at the start of each thread."""

        def initialise() -> None:
            _init_thread()
            init_thread()

        self.models = [model, *(_replica(model) for _ in range(n - 1))]
        self.pool = ThreadPoolExecutor(n, initializer=initialise) if n > 1 else None

    def run(
        self,
        function: Callable[[Model, Item], Result],
        items: Sequence[Item],
        sizes: Sequence[int],
    ) -> list[Result]:
        """Return function(model, item) for each item, with all gradients in the first model."""
        if self.pool is None:
            return [function(self.models[0], item) for item in items]

        def work(model: Model, share: list[int]) -> list[tuple[int, Result]]:
            return [(i, function(model, items[i])) for i in share]

        with _kernel_threads(1):
            shares = share_out(sizes, len(self.models))
            futures = [
                self.pool.submit(work, model, share)
                for model, share in zip(self.models, shares, strict=True)
            ]
            wait(futures)  # after an error too: no thread computes while it is handled
            results = dict(pair for future in futures for pair in future.result())
        self._sum_gradients()
        return [results[i] for i in range(len(items))]

    def train(self) -> None:
        """Turn dropout on."""
        for model in self.models:
            model.train()

    def zero_grad(self) -> None:
        """Drop the gradients of all replicas."""
        for model in self.models:
            model.zero_grad(set_to_none=True)

    def _sum_gradients(self) -> None:
        for total, *others in zip(*(model.parameters() for model in self.models), strict=True):
            for other in others:
                if other.grad is not None:
                    total.grad = other.grad if total.grad is None else total.grad.add_(other.grad)
                    other.grad = None


def _replica(model: Model) -> Model:
    """The same weights, in the same memory, with their own gradients."""
    replica = copy.deepcopy(model)
    for original, parameter in zip(model.parameters(), replica.parameters(), strict=True):
        parameter.data = original.data
    return replica


def share_out(sizes: Sequence[int], n_shares: int) -> list[list[int]]:
    """Indices of the items of each share, with sums of sizes that are about even."""
    shares: list[list[int]] = [[] for _ in range(n_shares)]
    sums = [0] * n_shares
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = sums.index(min(sums))
        shares[least].append(i)
        sums[least] += sizes[i]
    return shares


class Writer:
    """Writes to the disk in a thread while training continues, one write at a time.

    An error of a write is raised by the next call: none goes unnoticed. As a context manager, it
    ends when everything is written.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Call `write()` in the thread, after the previous write."""
        self.wait()
        self.pending = self.pool.submit(self._run, write)

    def check(self) -> None:
        """Raise the error of a failed write; never waits."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the pending write, and raise its error."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _run(self, write: Callable[[], None]) -> None:
        if self.device.type != "cuda":
            write()
            return
        # On their own stream, copies to the CPU wait for the work that training has queued on the
        # GPU so far, and training does not wait for the copies.
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.default_stream(self.device))
        with torch.cuda.stream(stream):
            write()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.wait()
        finally:
            self.pool.shutdown()
