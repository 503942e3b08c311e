"""Writes to the disk beside training: one file or directory at a time, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class Writer:
    """Whatever a write raises is raised where training next looks at it: nothing is lost quietly.

    As a context, it ends when all is written.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Call `write()` in the thread, once the write before is done."""
        self.wait()
        self.pending = self.pool.submit(self._apart, write)

    def check(self) -> None:
        """Raise the error of a write that has failed; never waits."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Until all is written; raises what the write raised."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _apart(self, write: Callable[[], None]) -> None:
        if self.device.type != "cuda":
            write()
            return
        # On a stream of its own, copies to the CPU wait for what training had asked of the GPU
        # until now, and training does not wait for them.
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
