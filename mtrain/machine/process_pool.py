"""A parallel map over processes that returns results in the order of the items.

The first items are computed in this process, so that a small job starts no others. A result
depends on its item alone, so the number of processes never changes a result.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from mtrain.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

N_HERE = 8  # items computed here before other processes are started
_PENDING = 3  # items per process in flight: bounds the memory


def n_cores() -> int:
    """The number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], n_processes: int | None = None
) -> Generator[Result, None, None]:
    """Yield function(item) for each item, in order; all three must be picklable.

    By default one process per core; with one, everything is computed here. Close the iterator
    (`contextlib.closing`) to make sure that no process outlives it.
    """
    n_processes = n_cores() if n_processes is None else n_processes
    remaining = iter(items)
    n_here = None if n_processes == 1 else N_HERE
    yield from map(function, islice(remaining, n_here))
    for item in remaining:  # a longer job: worth starting processes for
        yield from _map_by_processes(function, chain([item], remaining), n_processes)


def _map_by_processes(
    function: Callable[[Item], Result], items: Iterable[Item], n_processes: int
) -> Iterator[Result]:
    workers: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def work(item: Item) -> Result:
        worker = idle.get()
        try:
            result: Result = worker.call(item)
        finally:
            idle.put(worker)
        return result

    threads = ThreadPoolExecutor(n_processes)  # one per process, to wait for it
    try:
        for _ in range(n_processes):
            workers.append(_Worker(function))
            idle.put(workers[-1])
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(threads.submit(work, item))
            if len(pending) >= _PENDING * n_processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for worker in workers:
            worker.stop()  # which ends the wait of its thread
        threads.shutdown(cancel_futures=True)


class _Worker:
    """A process that applies a function to one item after another.

    Each has its own pipe, so that either end notices at once when the other dies. It is spawned:
    a fork would copy locks held by threads of this process (of torch, of the progress bar).
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = get_context("spawn")
        self._connection, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_end, function), daemon=True)
        with _interrupts_blocked():
            self._process.start()
        child_end.close()

    def call(self, item: Any) -> Any:
        """Return the function's result, or raise its exception."""
        try:
            self._connection.send(item)
            result, error = self._connection.recv()
        except (EOFError, OSError) as lost:
            raise DataError(
                "a process working on the training text was killed, perhaps for lack of memory",
                "run the command again to resume after the last complete step, with --processes 1 "
                "if memory is short",
            ) from lost
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """Kill the process, even in the middle of an item."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer requests until the other end is closed."""
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Exception | None] = (function(item), None)
        except Exception as error:
            answer = None, error
        try:
            connection.send(answer)
        except BrokenPipeError:
            return


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started here ignore Ctrl-C: the parent stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
