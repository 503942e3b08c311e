"""HTTP servers on loopback, in a thread of the tests' own process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol


class Told(Protocol):
    """What a server is told by a test, and tells it."""

    address: str


class Handler(BaseHTTPRequestHandler):
    """Answers by what `self.server.told` says."""

    def log_message(self, *args: object) -> None:
        """Keep the tests quiet."""


@contextmanager
def serving(told: Told, handler: type[Handler]) -> Iterator[None]:
    """Answer at `told.address`, which is set here, until the block ends."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.told = told  # type: ignore[attr-defined]
    told.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
