"""HTTP connections: redirects without surprises, and reads that the caller makes itself.

Read `open_url` first.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from mtrain.config.entries import check_url, is_url
from mtrain.errors import DownloadError

# Reads from a socket into a buffer, and returns the number of bytes.
Read = Callable[[io.RawIOBase, memoryview], int]


def open_url(request: Request, timeout_s: float, read: Read) -> HTTPResponse:
    """Send a request and return the response; `read` makes each read, and may raise to end it."""
    response: HTTPResponse = build_opener(Redirects, _Connections(read)).open(
        request, timeout=timeout_s
    )
    return response


class Redirects(HTTPRedirectHandler):
    """Follows redirects over http and https, but never from https to an unencrypted address."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        check_url(newurl)
        if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
            raise DownloadError(
                f"{req.full_url} is redirected to {newurl}, which is not encrypted",
                "put that address into the config, if you trust it",
            )
        if not is_url(newurl):
            return None
        fp.close()  # otherwise urllib reads the body, which may be endless
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Connections(HTTPSHandler, HTTPHandler):
    """Opens connections whose bytes are all read by `read`, those of headers and trailers too."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read

    def do_open(self, http_class: Any, req: Request, **options: Any) -> HTTPResponse:
        def connect(host: str, **more: Any) -> Any:
            connection = http_class(host, **more)
            connection.response_class = self._make_response
            return connection

        return super().do_open(connect, req, **options)

    def _make_response(self, *args: Any, **options: Any) -> HTTPResponse:
        response = HTTPResponse(*args, **options)
        response.fp = io.BufferedReader(_Socket(response.fp.detach(), self.read))
        return response


class _Socket(io.RawIOBase):
    """The file of a socket, read by `read`."""

    def __init__(self, file: io.RawIOBase, read: Read) -> None:
        self.file = file
        self.read_into = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.read_into(self.file, buffer)

    def close(self) -> None:
        self.file.close()
        super().close()
