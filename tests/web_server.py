"""A web server on loopback that misbehaves as told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from loopback import Handler, serving


@dataclass
class Server:
    """A web server on loopback that misbehaves as told, and records the requests."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"v1"'
    cut_after: int | None = None  # bytes of an answer before the connection closes
    knows_range: bool = True
    status: int = 200
    said_length: int | None = None  # what Content-Length claims, whatever is sent
    redirects: dict[str, str] = field(default_factory=dict)
    n_busy: int = 0  # so many requests are answered 503 first
    length_header: str | None = None  # instead of a number
    said_range: str | None = None  # what Content-Range claims, whatever is sent
    refuses_range: bool = False  # every range is answered 416
    is_endless: bool = False  # the content comes again and again
    pause_s: float = 0  # before each byte
    content_type: str | None = None
    ranges: list[str | None] = field(default_factory=list)

    def url(self, path: str) -> str:
        return self.address + path


class _Handler(Handler):
    def do_GET(self) -> None:
        server: Server = self.server.told  # type: ignore[attr-defined]
        wanted = self.headers["Range"]
        server.ranges.append(wanted)
        if server.n_busy:
            server.n_busy -= 1
            self._head(503, 0)
            return
        if self.path in server.redirects:
            self._head(302, 0, {"Location": server.redirects[self.path]})
            return
        content = server.files.get(self.path)
        if content is None or server.status != 200:
            self._head(404 if content is None else server.status, 0)
            return
        first = 0
        if wanted and server.knows_range and self.headers["If-Range"] in (None, server.etag):
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(content) or server.refuses_range:
                self._head(416, 0, {"Content-Range": f"bytes */{len(content)}"})
                return
            span = server.said_range or f"bytes {first}-{len(content) - 1}/{len(content)}"
            self._head(206, len(content) - first, {"Content-Range": span})
        else:
            self._head(200, len(content) if server.said_length is None else server.said_length)
        end = len(content) if server.cut_after is None else first + server.cut_after
        with suppress(ConnectionError):  # the client has given up
            while server.is_endless:
                self.wfile.write(content)
            for byte in content[first:end] if server.pause_s else ():
                self.wfile.write(bytes([byte]))
                time.sleep(server.pause_s)
            if not server.pause_s:
                self.wfile.write(content[first:end])

    def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        told: Server = self.server.told  # type: ignore[attr-defined]
        if not told.is_endless:
            self.send_header("Content-Length", told.length_header or str(length))
        if self.server.told.etag:  # type: ignore[attr-defined]
            self.send_header("ETag", self.server.told.etag)  # type: ignore[attr-defined]
        if told.content_type:
            self.send_header("Content-Type", told.content_type)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that answers until the block ends."""
    told = Server()
    with serving(told, _Handler):
        yield told


@dataclass
class RawServer:
    """A server on loopback that sends any bytes: `answer` makes them from the request."""

    answer: Callable[[str], Iterable[bytes]]
    address: str = ""
    requests: list[str] = field(default_factory=list)
    n_sent: int = 0


class _RawHandler(Handler):
    def do_GET(self) -> None:
        server: RawServer = self.server.told  # type: ignore[attr-defined]
        request = f"{self.requestline}\n{self.headers}"
        server.requests.append(request)
        self.close_connection = True
        with suppress(ConnectionError):  # the client has given up
            for piece in server.answer(request):
                self.wfile.write(piece)
                server.n_sent += len(piece)


@contextmanager
def raw_server(answer: Callable[[str], Iterable[bytes]]) -> Iterator[RawServer]:
    """A server that sends what `answer` yields and then closes the connection."""
    told = RawServer(answer)
    with serving(told, _RawHandler):
        yield told
