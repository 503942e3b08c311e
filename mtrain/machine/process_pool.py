"""Many chunks through one function, on all cores; results come in the order of the chunks.

The first chunks are worked off in this process, so that little work starts no others. What a chunk
becomes depends on it alone, so the number of processes never changes a result.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from mtrain.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

N_HERE = 8  # chunks worked off before other processes are started
_WAITING = 3  # chunks a process, on their way to it or back: bounds the memory


def n_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], n_processes: int | None = None
) -> Generator[Result, None, None]:
    """function(item) for each item, in order; function, items and results can be pickled.

    By default as many processes as cores; one computes everything here. Close the iterator
    (`contextlib.closing`) to be sure that no process outlives it.
    """
    n_processes = n_cores() if n_processes is None else n_processes
    remaining = iter(items)
    n_here = None if n_processes == 1 else N_HERE
    yield from map(function, islice(remaining, n_here))
    for item in remaining:  # there is more: worth starting processes for
        yield from _map_by_processes(function, _before(item, remaining), n_processes)


def _before(item: Item, others: Iterator[Item]) -> Iterator[Item]:
    yield item
    yield from others


def _map_by_processes(
    function: Callable[[Item], Result], items: Iterator[Item], n_processes: int
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

    threads = ThreadPoolExecutor(n_processes)  # each waits for one process
    try:
        for _ in range(n_processes):
            workers.append(_Worker(function))
            idle.put(workers[-1])
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(threads.submit(work, item))
            if len(pending) >= _WAITING * n_processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for worker in workers:
            worker.stop()  # threads that wait for it go on
        threads.shutdown(cancel_futures=True)


class _Worker:
    """A process that applies a function to one item after the other.

    It has a pipe of its own: when either end dies the other one notices at once. Spawned, as a fork
    would copy locks that threads of this process (of torch, of the progress bar) may hold.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = get_context("spawn")
        self._connection, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end, function), daemon=True)
        with _interrupts_held_back():
            self._process.start()
        its_end.close()

    def call(self, item: Any) -> Any:
        """The function's result, or what it raised."""
        try:
            self._connection.send(item)
            result, error = self._connection.recv()
        except (EOFError, OSError) as lost:
            raise DataError(
                "a process that works on the training text was killed, perhaps for want of memory",
                "repeat to go on after the last whole step, with --processes 1 if memory is short",
            ) from lost
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Until the other end is gone."""
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
def _interrupts_held_back() -> Iterator[None]:
    """Processes started here never see Ctrl-C: this one tells them when to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
