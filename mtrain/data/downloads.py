"""Files by URL: downloaded once, resumed after a broken connection, checked by their sha256.

Read `fetch` first: it looks in the cache, then in the mirror (`MTRAIN_MIRROR`), then asks the
network.
"""

from __future__ import annotations

import hashlib
import http.client
import math
import os
import re
import sys
import time
from http.client import HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from mtrain import console
from mtrain.config.entries import URL_CHARACTERS, check_url
from mtrain.data.lock import Lock
from mtrain.errors import DataError, DownloadError, UsageError
from mtrain.storage import lock_file, sha256_of, storage_errors

ATTEMPTS = 4  # in succession without progress
TIMEOUT_S = 30.0
WAIT_S = 0.5  # before the second attempt, doubled before each further one
CHUNK_BYTES = 1 << 18
PROGRESS_BYTES = 1 << 16  # fewer new bytes than this are no progress
_START_BYTES = 1 << 16  # of a file, examined for HTML
_XML_PROLOGUE = re.compile(rb"\s*(?:<\?.*?\?>|<!--.*?-->)", re.DOTALL)
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body")


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
        raise DownloadError(f"{url} is no valid URL: {error}", "check the address") from error


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


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but never from https to an unencrypted address."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        check_url(newurl)
        if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
            raise DownloadError(
                f"{req.full_url} is redirected to {newurl}, which is not encrypted",
                "put that address into the config, if you trust it",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
        # The ETag or date of the version that .part belongs to, for `If-Range`.
        self.version = path.with_name(path.name + ".part.version")
        self.max_stall_s = _limit("MTRAIN_DOWNLOAD_STALL", 120)
        self.max_bytes = _limit("MTRAIN_DOWNLOAD_GIB", 100) * 2**30
        self.n_reached = 0  # bytes at the last progress
        self.progress_at = time.monotonic()

    def run(self) -> str:
        """Download, check and rename; returns the sha256."""
        with storage_errors(self.part), open(self.part, "a+b") as file:
            if not self.expected and not self.version.exists():
                file.truncate(0)  # no way to tell whether the rest would fit
            n_kept = self.n_reached = file.seek(0, os.SEEK_END)
            self._fill(file)
            actual = sha256_of(self.part)
            if n_kept and self.expected not in (None, actual):
                file.truncate(0)  # perhaps only the part from before is wrong
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
        while True:
            n_before = self.n_reached
            n_bytes = file.seek(0, os.SEEK_END)
            problem = self._try(file, n_bytes)
            if problem is None:
                return
            n_failed = 1 if self.n_reached > n_before else n_failed + 1
            if n_failed >= ATTEMPTS:
                given = "" if self.expected else "give its `sha256` in the config and "
                raise DownloadError(
                    f"{self.url} could not be downloaded ({file.seek(0, os.SEEK_END):,} bytes "
                    f"received): {problem}",
                    f"repeat to resume, or {given}put the file into a directory that "
                    "MTRAIN_MIRROR names",
                )
            time.sleep(WAIT_S * 2 ** (n_failed - 1))

    def _try(self, file: IO[bytes], n_bytes: int) -> str | None:
        """Make one request; returns a problem that may be temporary, or None if all is there."""
        try:
            return None if self._request(file, n_bytes) else "the connection was closed early"
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
                f"{self.url} is no valid URL: {error}", "check the address"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            return str(reason) or type(reason).__name__

    def _request(self, file: IO[bytes], n_bytes: int) -> bool:
        """Request what is missing and append it; True when the file is complete."""
        headers = {"User-Agent": "mtrain"}
        if n_bytes:
            headers["Range"] = f"bytes={n_bytes}-"
            if self.version.exists():
                headers["If-Range"] = self.version.read_text()
        request = Request(quote(self.url, safe=URL_CHARACTERS), headers=headers)
        try:
            response = build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
        except HTTPError as error:
            if error.code != 416:
                raise
            error.close()
            if error.headers.get("Content-Range") == f"bytes */{n_bytes}":
                return True
            file.truncate(0)  # the part is longer than the file, so it belongs to another one
            return False
        with response:
            if response.status == 204:
                raise DownloadError(
                    f"{self.url} answered 204: there is no content", "check the address"
                )
            content_range = response.headers.get("Content-Range") or ""
            if response.status == 206 and not re.match(rf"bytes {n_bytes}-\d", content_range):
                file.truncate(0)  # another range than requested
                return False
            if response.status != 206:
                n_bytes = 0
                file.truncate(0)
                self._keep_version(response.headers)
            length = response.headers.get("Content-Length") or ""
            total = n_bytes + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
            return self._copy(response, file, n_bytes, total)

    def _keep_version(self, headers: http.client.HTTPMessage) -> None:
        """Store the version of the file for `If-Range`, which needs a strong ETag or a date."""
        etag = headers.get("ETag", "")
        version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
        if version:
            with storage_errors(self.version):
                self.version.write_text(version)
        else:
            self.version.unlink(missing_ok=True)

    def _copy(
        self, response: HTTPResponse, file: IO[bytes], n_bytes: int, total: int | None
    ) -> bool:
        """Append the body of a response; True if it has the announced length."""
        with console.bar(total, base_name(self.url), "B", initial=n_bytes) as bar:
            while chunk := response.read1(CHUNK_BYTES):  # returns what is there, without waiting
                with storage_errors(self.part):  # no problem of the network
                    file.write(chunk)
                    file.flush()
                n_bytes += len(chunk)
                bar.update(len(chunk))
                self._check_progress(n_bytes)
        return total is None or n_bytes == total

    def _check_progress(self, n_bytes: int) -> None:
        """Raise if too much is sent, or hardly anything for a long time."""
        now = time.monotonic()
        if n_bytes > self.n_reached + PROGRESS_BYTES:
            self.n_reached, self.progress_at = n_bytes, now
        if now > self.progress_at + self.max_stall_s:
            raise DownloadError(
                f"{self.url} sends less than {PROGRESS_BYTES:,} bytes in {self.max_stall_s:g} "
                f"seconds ({n_bytes:,} bytes received)",
                "try again later, or allow more seconds: MTRAIN_DOWNLOAD_STALL=600",
            )
        if n_bytes > self.max_bytes:
            raise DownloadError(
                f"{self.url} has more than {self.max_bytes / 2**30:g} GiB",
                "check the address, or allow more GiB: MTRAIN_DOWNLOAD_GIB=500",
            )

    def _problem(self, actual: str) -> DownloadError | None:
        """An error if .part has not the expected sha256 or, without one, cannot be data."""
        if self.expected == actual:
            return None
        with open(self.part, "rb") as file:
            start = file.read(_START_BYTES).removeprefix(b"\xef\xbb\xbf")
        if not start:
            return DownloadError(f"{self.url} is empty", "check the address")
        is_html = _is_html(start)
        if self.expected is None:
            if not is_html:
                return None
            return DownloadError(
                f"{self.url} is an HTML page, not a data file",
                "use the address of the file itself (on GitHub: the one behind `Raw`)",
            )
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


def _is_html(start: bytes) -> bool:
    """Whether a file begins as HTML does, after declarations and comments."""
    while match := _XML_PROLOGUE.match(start):
        start = start[match.end() :]
    return start.lstrip().lower().startswith(_HTML)
