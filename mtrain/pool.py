"""Many chunks through one function, on all cores; results come in the order of the chunks.

The first chunks are worked off in this process, so that little work starts no others. What a chunk
becomes depends on it alone, so the number of processes never changes a result.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from mtrain.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

N_HERE = 8  # chunks worked off before other processes are started
_WAITING = 3  # chunks a process, on their way to it or back: bounds the memory

_function: Callable[[Any], Any]  # of a worker process


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
    # Spawned: a fork would copy locks that threads of this process (of torch, of the progress
    # bar) may hold.
    pool = ProcessPoolExecutor(n_processes, get_context("spawn"), _start, (function,))
    try:
        pending: deque[Future[Result]] = deque()
        for item in items:
            with _interrupts_held_back():
                pending.append(pool.submit(_call, item))
            if len(pending) >= _WAITING * n_processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that works on the training text was killed, perhaps for want of memory",
            "repeat to go on after the last whole step, with --processes 1 if memory is short",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Processes started here never see Ctrl-C: this one tells them when to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Even a killed parent leaves no process behind."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _call(item: Any) -> Any:
    return _function(item)
