"""Files by URL: downloaded once, resumed after a broken connection, checked by their sha256.

Read `fetch` first: it looks in the cache, then in the mirror (`MTRAIN_MIRROR`), then asks the
network.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import math
import os
import re
import sys
import time
import zlib
from contextlib import suppress
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request

from mtrain import console
from mtrain.config.entries import URL_CHARACTERS
from mtrain.data.connections import open_url
from mtrain.data.lock import Lock
from mtrain.errors import DataError, DownloadError, UsageError
from mtrain.storage import lock_file, sha256_of, storage_errors

ATTEMPTS = 4  # in succession without progress
TIMEOUT_S = 30.0
WAIT_S = 0.5  # before the second attempt, doubled before each further one
CHUNK_BYTES = 1 << 18
PROGRESS_BYTES = 1 << 16  # fewer new bytes do not count as progress
MAX_OVERHEAD_BYTES = 1 << 18  # read in a row that are not content: headers, trailers
_START_BYTES = 1 << 24  # of a file, examined for HTML
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_XML_PROLOGUE = re.compile(rb"\s*(?:<\?.*?\?>|<!--.*?-->)", re.DOTALL)
_HTML = re.compile(
    rb"\s*<(?:!doctype\s+html|html|head|body|title|meta|style|script|iframe|div|h1)(?=[\s/>]|\Z)",
    re.IGNORECASE,
)
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


def fetch(url: str, sha256: str | None, lock: Lock) -> Path:
    """Return a local file with the content of `url`, and record it in the lock.

    It must have the given sha256, or else the recorded one; without either, any content will do.
    """
    expected = sha256 or lock.expect(url)
    path = cache_dir() / _cache_name(url)
    if (actual := _sha256_if_valid(path, expected)) is None:
        if expected and (mirrored := find_in_mirror(base_name(url), expected)):
            path, actual = mirrored, expected
        else:
            waiting = f"another process is downloading {url}: waiting for it"
            with lock_file(path.with_name(f"{path.name}.lock"), waiting):
                if (actual := _sha256_if_valid(path, expected)) is None:
                    console.message(f"downloading {url}")
                    recorded_in = lock.path if sha256 is None else None
                    actual = _Download(url, path, expected, recorded_in).run()
    lock.record(url, actual, path.stat().st_size)
    return path


def _sha256_if_valid(path: Path, expected: str | None) -> str | None:
    """The sha256 of a file in the cache; None if it is absent or not the expected one."""
    actual = sha256_of(path) if path.is_file() else None
    return actual if expected in (None, actual) else None


def cache_dir() -> Path:
    """Return `$MTRAIN_CACHE`, or `mtrain` in the user's cache directory."""
    if named := os.environ.get("MTRAIN_CACHE"):
        try:
            return Path(named).expanduser()
        except RuntimeError as error:
            raise UsageError(
                f"MTRAIN_CACHE is {named}: {error}", "correct it, or unset it"
            ) from error
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mtrain"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mtrain")


def base_name(url: str) -> str:
    """`https://host/a/b.gz?x=1` -> `b.gz`; a DownloadError for an invalid URL."""
    try:
        return PurePosixPath(unquote(urlsplit(url).path)).name
    except ValueError as error:
        raise DownloadError(f"{url} is not a valid URL: {error}", "check the address") from error


def _cache_name(url: str) -> str:
    """A readable name, different for URLs with the same base name."""
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    return f"{key}-{re.sub(r'[^A-Za-z0-9._+-]', '_', base_name(url))[-100:]}"


def find_in_mirror(name: str, sha256: str) -> Path | None:
    """Find the file with this base name and sha256 anywhere below `$MTRAIN_MIRROR`."""
    mirror = os.environ.get("MTRAIN_MIRROR")
    if not mirror:
        return None
    if not Path(mirror).is_dir():
        raise DataError(
            f"MTRAIN_MIRROR is {mirror}, which is not a directory", "correct it, or unset it"
        )
    candidates = [
        Path(folder, name) for folder, _, files in sorted(os.walk(mirror)) if name in files
    ]
    for path in candidates:
        if sha256_of(path) == sha256:
            return path
    if candidates:
        console.warn(
            f"{', '.join(map(str, candidates))} in MTRAIN_MIRROR: not used, "
            f"the sha256 of {name} must be {sha256}"
        )
    return None


def _limit(variable: str, default: float) -> float:
    """A positive number from the environment."""
    text = os.environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UsageError(
            f"{variable} is {text!r}, not a positive number", "correct it, or unset it"
        )
    return value


class _Download:
    """A download into the cache: `<path>.part` grows, is checked and renamed.

    recorded_in  the lock in which `expected` is recorded; None if the config gives it
    """

    def __init__(
        self, url: str, path: Path, expected: str | None, recorded_in: Path | None
    ) -> None:
        self.url = url
        self.path = path
        self.expected = expected
        self.recorded_in = recorded_in
        self.part = path.with_name(path.name + ".part")
        # The version that .part belongs to: ETag or date, for `If-Range`, and the size in bytes.
        self.version = path.with_name(path.name + ".part.version")
        self.validator = ""
        self.n_total: int | None = None
        self.max_stall_s = _limit("MTRAIN_DOWNLOAD_STALL", 120)
        self.max_bytes = _limit("MTRAIN_DOWNLOAD_GIB", 100) * 2**30
        self.n_bytes = 0  # in .part
        self.n_overhead = 0  # bytes read since the last ones of the content
        self.n_reached = 0  # bytes at the last progress, the most of all requests
        self.n_marked = 0  # bytes at the last progress of this request
        self.progress_at = 0.0

    def run(self) -> str:
        """Download, check and rename; returns the sha256."""
        with storage_errors(self.part), open(self.part, "a+b") as file:
            self._load_version()
            if not self.expected and not self.validator:
                file.truncate(0)  # no way to tell whether the rest would fit
            n_kept = self.n_reached = file.seek(0, os.SEEK_END)
            self._fill(file)
            actual = sha256_of(self.part)
            if n_kept and self.expected not in (None, actual):
                file.truncate(0)  # perhaps only the earlier part is wrong
                self._fill(file)
                actual = sha256_of(self.part)
            self.version.unlink(missing_ok=True)
            if (problem := self._problem(actual)) is not None:
                file.truncate(0)
                raise problem
            os.fsync(file.fileno())
            os.replace(self.part, self.path)
        return actual

    def _fill(self, file: IO[bytes]) -> None:
        """Send requests until the file is complete, each resuming where the last one broke off."""
        n_failed = 0
        self.progress_at = time.monotonic()
        while True:
            n_before = self.n_reached
            self.n_bytes = self.n_marked = file.seek(0, os.SEEK_END)
            if (problem := self._try(file)) is None:
                return
            n_failed = 1 if self.n_reached > n_before else n_failed + 1
            if n_failed >= ATTEMPTS:
                given = "" if self.expected else "record its sha256 in the lock file and "
                raise DownloadError(
                    f"{self.url} could not be downloaded ({file.seek(0, os.SEEK_END):,} bytes "
                    f"received): {problem}",
                    f"repeat to resume, or {given}put the file into a directory that "
                    "MTRAIN_MIRROR names",
                )
            time.sleep(WAIT_S * 2 ** (n_failed - 1))

    def _try(self, file: IO[bytes]) -> str | None:
        """Make one request; returns a possibly temporary problem, or None at the end."""
        try:
            return self._request(file)
        except HTTPError as error:
            error.close()
            problem = f"answered {error.code} {error.reason}"
            if error.code in (408, 429) or error.code >= 500:
                return f"it {problem}"
            if error.code < 400:
                problem = "is redirected in a circle, or nowhere"
            raise DownloadError(f"{self.url} {problem}", "check the address") from error
        except (http.client.InvalidURL, ValueError) as error:  # perhaps that of a redirect
            raise DownloadError(
                f"{self.url} is not a valid URL: {error}", "check the address"
            ) from error
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            return str(reason) or type(reason).__name__

    def _request(self, file: IO[bytes]) -> str | None:
        """Request and append the missing bytes; returns why the file is incomplete, or None."""
        headers = {"User-Agent": "mtrain"}
        if self.n_bytes:
            headers["Range"] = f"bytes={self.n_bytes}-"
            if self.validator:
                headers["If-Range"] = self.validator
        request = Request(quote(self.url, safe=URL_CHARACTERS), headers=headers)
        self.n_overhead = 0
        try:
            response = open_url(request, TIMEOUT_S, self._read)
        except HTTPError as error:
            if error.code != 416:
                raise
            error.close()
            is_whole = error.headers.get("Content-Range") == f"bytes */{self.n_bytes}"
            if is_whole and self.n_total in (None, self.n_bytes):
                return None
            file.truncate(0)  # the part belongs to another file, or the answer is wrong
            return "its length has changed"
        with response:
            return self._receive(response, file)

    def _receive(self, response: HTTPResponse, file: IO[bytes]) -> str | None:
        """Append the body of a response; returns why the file is incomplete, or None."""
        headers = response.headers
        if response.status == 204:
            raise DownloadError(
                f"{self.url} answered 204: there is no content", "check the address"
            )
        if not self.expected and headers.get_content_type() in _HTML_TYPES:
            raise self._html_error()
        length = _integer(headers.get("Content-Length", ""))
        if response.status == 206:
            n_end = self._end_of_range(headers, length)
            if n_end is None:
                file.truncate(0)
                return "it did not send the requested range"
        else:
            self.n_bytes = self.n_marked = 0
            n_end = self.n_total = length
        if self.n_bytes == 0:
            file.truncate(0)
            self._store_version(headers)
        self._copy(response, file)
        if n_end is not None and self.n_bytes > n_end:
            file.truncate(0)
            return "it sent more than announced"
        if n_end is not None and self.n_bytes < n_end:
            return "the connection was closed early"
        if response.status == 206 and n_end != self.n_total:
            return "it sent only a part of the rest"
        return None

    def _end_of_range(self, headers: HTTPMessage, length: int | None) -> int | None:
        """The end in the file of the body of a 206; None if it does not continue .part."""
        match = _CONTENT_RANGE.fullmatch(_header(headers, "Content-Range"))
        if not match:
            return None
        n_start, n_end, n_total = int(match[1]), int(match[2]) + 1, _integer(match[3])
        if n_start != self.n_bytes or length not in (None, n_end - n_start):
            return None
        if not n_start < n_end <= (n_total or n_end):
            return None
        if n_start == 0:  # no range was requested
            self.n_total = n_total
            return n_end if n_end == n_total else None
        name = "ETag" if self.validator.startswith('"') else "Last-Modified"
        validator = _header(headers, name).removeprefix("W/")
        if self.validator and validator not in ("", self.validator):
            return None
        if None not in (n_total, self.n_total) and n_total != self.n_total:
            return None
        self.n_total = n_total or self.n_total
        return n_end

    def _store_version(self, headers: HTTPMessage) -> None:
        """Keep a strong ETag or a date, which `If-Range` needs, and the announced size."""
        etag = _header(headers, "ETag")
        self.validator = etag if etag.startswith('"') else _header(headers, "Last-Modified")
        with storage_errors(self.version):
            self.version.write_text(f"{self.validator}\n{self.n_total or ''}", "utf-8")

    def _load_version(self) -> None:
        """Read the version that `_store_version` wrote for an earlier, interrupted command."""
        if self.version.exists():
            text = self.version.read_text("utf-8", errors="replace")
            self.validator, _, n_total = text.partition("\n")
            self.n_total = _integer(n_total)

    def _copy(self, response: HTTPResponse, file: IO[bytes]) -> None:
        """Append the body of a response."""
        with console.bar(self.n_total, base_name(self.url), "B", initial=self.n_bytes) as bar:
            while chunk := response.read1(CHUNK_BYTES):  # only available bytes
                with storage_errors(self.part):  # not a problem of the network
                    file.write(chunk)
                    file.flush()
                bar.update(len(chunk))
                self.n_bytes += len(chunk)
                self.n_overhead = 0
                if self.n_bytes > self.n_reached + PROGRESS_BYTES:
                    self.n_reached = self.n_bytes
                if self.n_bytes > self.n_marked + PROGRESS_BYTES:
                    self.n_marked, self.progress_at = self.n_bytes, time.monotonic()
                if self.n_bytes > self.max_bytes:
                    raise DownloadError(
                        f"{self.url} has more than {self.max_bytes / 2**30:g} GiB",
                        "check the address, or allow more GiB: MTRAIN_DOWNLOAD_GIB=500",
                    )

    def _read(self, socket: io.RawIOBase, buffer: memoryview) -> int:
        """Read from the network; raises after a long time, or many headers, without content."""
        if time.monotonic() > self.progress_at + self.max_stall_s:
            raise DownloadError(
                f"{self.url} sends less than {PROGRESS_BYTES:,} bytes in {self.max_stall_s:g} "
                f"seconds ({self.n_bytes:,} bytes received)",
                "try again later, or allow more seconds: MTRAIN_DOWNLOAD_STALL=600",
            )
        if self.n_overhead > MAX_OVERHEAD_BYTES:
            raise HTTPException(f"its headers have more than {MAX_OVERHEAD_BYTES:,} bytes")
        n_read = socket.readinto(buffer) or 0
        self.n_overhead += n_read
        return n_read

    def _problem(self, actual: str) -> DownloadError | None:
        """Raise a DownloadError if .part has the wrong sha256 or, without one, cannot be data."""
        if self.expected == actual:
            return None
        with open(self.part, "rb") as file:
            start = file.read(_START_BYTES)
        if not start.removeprefix(_BOM):
            return DownloadError(f"{self.url} is empty", "check the address")
        is_html = _is_html(start)
        if self.expected is None:
            return self._html_error() if is_html else None
        page = " (an HTML page)" if is_html else ""
        if self.recorded_in:
            return DownloadError(
                f"{self.url} has changed: {self.recorded_in} recorded sha256 {self.expected}, "
                f"now it is {actual}{page}",
                f"to accept the new file, delete the entry in {self.recorded_in}",
            )
        return DownloadError(
            f"{self.url} has the wrong sha256: expected {self.expected}, got {actual}{page}",
            "correct `sha256` in the config, if this is the right file",
        )

    def _html_error(self) -> DownloadError:
        return DownloadError(
            f"{self.url} is an HTML page, not a data file",
            "use the address of the file itself (on GitHub: that of the button `Raw`), or give its "
            "`sha256`, if it is data",
        )


def _header(headers: HTTPMessage, name: str) -> str:
    """A header in one line, even if it was sent in several."""
    return " ".join(headers.get(name, "").split())


def _integer(text: str) -> int | None:
    """The value of decimal digits; None for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _is_html(start: bytes) -> bool:
    """Whether a file, perhaps compressed, starts as HTML, after declarations and comments."""
    if start.startswith(_GZIP):
        with suppress(zlib.error):
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, _START_BYTES)
    position = len(_BOM) if start.startswith(_BOM) else 0
    while match := _XML_PROLOGUE.match(start, position):
        position = match.end()
    return _HTML.match(start, position) is not None
