"""Files by URL: fetched once, resumed when cut, held to their sha256. And the lock.

Read `fetch` first: the cache, then the mirror (`MTRAIN_MIRROR`), then the network. The lock,
`<config stem>.lock` beside the config, says what every file of a config was when it was first
read; a URL that later holds something else is an error, a local file is simply recorded anew.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from mtrain import console
from mtrain.config.entries import check_url
from mtrain.errors import DataError, DownloadError, StorageError, UsageError
from mtrain.run_shapes import LOCK
from mtrain.storage import atomic_write, read_json, sha256_of, storage_errors

ATTEMPTS = 4  # without progress between them
TIMEOUT_S = 30.0
WAIT_S = 0.5  # before the second attempt, doubled before each further one
CHUNK_BYTES = 1 << 18
PROGRESS_BYTES = 1 << 16  # more than ever came before: less is no progress
_START_BYTES = 1 << 16  # of a file, by which a web page is told
_COMMENTS = re.compile(rb"\s*(?:<\?.*?\?>|<!--.*?-->)", re.DOTALL)
LOCK_FORMAT = 1


class Lock:
    """What the data of a config was.

    files    URL or path -> sha256, size_bytes and lines
    sources  an entry's label -> its name, pairs and files; where there are such: revision, licence
    """

    def __init__(
        self,
        path: Path,
        files: dict[str, dict[str, Any]],
        sources: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.path = path
        self.files = files
        self.sources = sources or {}
        self._as_stored = self._text()

    @classmethod
    def open(cls, config_path: Path, fallback_dir: Path | None = None) -> Lock:
        """The lock beside the config, or the one that `save` had to put into `fallback_dir`."""
        path = config_path.with_suffix(".lock")
        places = [path] if fallback_dir is None else [path, fallback_dir / path.name]
        found = next((place for place in places if place.is_file()), None)
        return cls(path, *_read_lock(found)) if found else cls(path, {})

    @property
    def config_dir(self) -> Path:
        """The directory of the config."""
        return self.path.parent

    def expect(self, url: str) -> str | None:
        """The sha256 that was recorded for a URL, if any."""
        return self.files.get(url, {}).get("sha256")

    def record(
        self, location: str, sha256: str, size_bytes: int, n_lines: int | None = None
    ) -> None:
        """Note what a URL or path holds; the lines already counted of the same bytes are kept."""
        before = self.files.get(location, {})
        if n_lines is None and before.get("sha256") == sha256:
            n_lines = before.get("lines")
        entry: dict[str, Any] = {"sha256": sha256, "size_bytes": size_bytes}
        self.files[location] = entry if n_lines is None else entry | {"lines": n_lines}

    def describe(self, label: str, **facts: Any) -> None:
        """Note what is known of a source beside its files; None is unknown."""
        known = {key: value for key, value in facts.items() if value is not None}
        self.sources[label] = self.sources.get(label, {}) | known

    def _text(self) -> str:
        content = {"format": LOCK_FORMAT, "files": self.files, "sources": self.sources}
        return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save(self, fallback_dir: Path) -> Path:
        """Write the lock if it changed; returns where it is."""
        text = self._text()
        if text == self._as_stored:
            return self.path
        path = self.path
        try:
            atomic_write(path, text)
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC:
                raise
            path = fallback_dir / self.path.name
            atomic_write(path, text)
            console.message(f"note: {self.config_dir} cannot be written; the lock is {path}")
        self._as_stored = text
        return path


def _read_lock(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Files and sources."""
    fix = "restore it, or delete it: what the files are is then recorded again"
    content = read_json(path, LOCK, fix)
    return content["files"], content.get("sources", {})


def cache_dir() -> Path:
    """`$MTRAIN_CACHE`, or `mtrain` in the user's cache directory."""
    if named := os.environ.get("MTRAIN_CACHE"):
        try:
            return Path(named).expanduser()
        except RuntimeError as error:
            raise UsageError(
                f"MTRAIN_CACHE is {named}: {error}", "correct it, or unset it"
            ) from error
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "mtrain"


def fetch(url: str, sha256: str | None, lock: Lock) -> Path:
    """A local file with the bytes of `url`, from the cache, the mirror or the network.

    They must have the given sha256, or else the recorded one. With neither, what comes is
    recorded in the lock.
    """
    expected = sha256 or lock.expect(url)
    path = cache_dir() / _cache_name(url)
    if path.is_file():
        actual = sha256_of(path)
        if expected in (None, actual):
            lock.record(url, actual, path.stat().st_size)
            return path
    if expected and (mirrored := find_in_mirror(base_name(url), expected)):
        lock.record(url, expected, mirrored.stat().st_size)
        return mirrored
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    console.message(f"downloading {url}")
    actual = _Download(url, path, expected, is_recorded=sha256 is None, lock=lock).run()
    lock.record(url, actual, path.stat().st_size)
    return path


def base_name(url: str) -> str:
    """`https://host/a/b.gz?x=1` -> `b.gz`; a DownloadError where it is no URL."""
    try:
        return PurePosixPath(unquote(urlsplit(url).path)).name
    except ValueError as error:
        raise DownloadError(f"{url} is no valid URL: {error}", "check the address") from error


def _cache_name(url: str) -> str:
    """Readable, and different for different URLs of one base name."""
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    return f"{key}-{re.sub(r'[^A-Za-z0-9._+-]', '_', base_name(url))[-100:]}"


def find_in_mirror(name: str, sha256: str) -> Path | None:
    """The file of that base name anywhere below `$MTRAIN_MIRROR` that has the right bytes."""
    mirror = os.environ.get("MTRAIN_MIRROR")
    if not mirror:
        return None
    if not Path(mirror).is_dir():
        raise DataError(
            f"MTRAIN_MIRROR is {mirror}, which is not a directory", "correct it, or unset it"
        )
    namesakes = [
        Path(folder, name) for folder, _, files in sorted(os.walk(mirror)) if name in files
    ]
    for path in namesakes:
        if sha256_of(path) == sha256:
            return path
    if namesakes:
        console.warn(
            f"{', '.join(map(str, namesakes))} in MTRAIN_MIRROR: not used, "
            f"the sha256 of {name} must be {sha256}"
        )
    return None


def is_web_page(start: bytes) -> bool:
    """Whether a file begins as HTML does, behind declarations and comments."""
    while match := _COMMENTS.match(start):
        start = start[match.end() :]
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


def _limit(variable: str, default: float) -> float:
    """A number from the environment."""
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
    """Follows redirects, but never from https to what anybody may read or change on the way."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        check_url(newurl)
        if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
            raise DownloadError(
                f"{req.full_url} is redirected to {newurl}, which is not encrypted",
                "name that address in the config, if you trust it",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Download:
    """One URL on its way into the cache: `<path>.part` grows, is checked, is renamed."""

    def __init__(
        self, url: str, path: Path, expected: str | None, is_recorded: bool, lock: Lock
    ) -> None:
        self.url = url
        self.path = path
        self.expected = expected
        self.is_recorded = is_recorded  # `expected` comes from the lock, not from the config
        self.lock = lock
        self.part = path.with_name(path.name + ".part")
        self.n_reached = 0  # the most bytes that were there at any time
        self.progress_at = time.monotonic()
        self.max_stall_s = _limit("MTRAIN_DOWNLOAD_STALL", 120)
        self.max_bytes = _limit("MTRAIN_DOWNLOAD_GIB", 100) * 2**30
        # The ETag or date that the bytes in .part belong to, for `If-Range`.
        self.validator = path.with_name(path.name + ".part.version")

    def run(self) -> str:
        """Fetch, check, rename; returns the sha256."""
        with (
            storage_errors(self.part),
            open(self.part, "a+b") as file,
            _one_process_at_a_time(file),
        ):
            if self.path.is_file():  # another process was quicker
                actual = sha256_of(self.path)
                if self.expected in (None, actual):
                    return actual
            n_kept = file.seek(0, os.SEEK_END)
            if n_kept and not self.expected and not self.validator.exists():
                n_kept = 0  # nothing could tell whether the rest still fits
                file.truncate(0)
            self.n_reached = n_kept
            self._fill(file)
            actual = sha256_of(self.part)
            if n_kept and self.expected not in (None, actual):
                file.truncate(0)  # perhaps only the part kept from before is wrong
                self._fill(file)
                actual = sha256_of(self.part)
            self.validator.unlink(missing_ok=True)
            try:
                self._check(actual)
            except DownloadError:
                file.truncate(0)
                raise
            os.fsync(file.fileno())
            os.replace(self.part, self.path)
        return actual

    def _fill(self, file: IO[bytes]) -> None:
        """Request until the file is whole, going on where the last attempt was cut."""
        n_failed = 0
        while True:
            n_before = self.n_reached
            file.seek(0, os.SEEK_END)
            try:
                if self._request(file):
                    return
                problem = "the connection was closed early"
            except HTTPError as error:
                error.close()
                if 300 <= error.code < 400:
                    raise DownloadError(
                        f"{self.url} is redirected in a circle, or nowhere", "check the address"
                    ) from error
                if error.code < 500 and error.code not in (408, 429):
                    raise DownloadError(
                        f"{self.url} answered {error.code} {error.reason}", "check the address"
                    ) from error
                problem = f"it answered {error.code} {error.reason}"
            except (http.client.InvalidURL, ValueError) as error:  # perhaps where it redirects to
                raise DownloadError(
                    f"{self.url} is no valid URL: {error}", "check the address"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                problem = _in_words(error)
            n_bytes = file.seek(0, os.SEEK_END)
            n_failed = 1 if self.n_reached > n_before else n_failed + 1
            if n_failed >= ATTEMPTS:
                given = "" if self.expected else "give its `sha256` in the config and "
                raise DownloadError(
                    f"{self.url} could not be downloaded ({n_bytes:,} bytes came): {problem}",
                    f"repeat to go on from there, or {given}put the file into a directory that "
                    "MTRAIN_MIRROR names",
                )
            time.sleep(WAIT_S * 2 ** (n_failed - 1))

    def _request(self, file: IO[bytes]) -> bool:
        """Ask for what is missing and append it; True when the file is whole."""
        n_kept = file.tell()
        headers = {"User-Agent": "mtrain"}
        if n_kept:
            headers["Range"] = f"bytes={n_kept}-"
            if self.validator.exists():
                headers["If-Range"] = self.validator.read_text()
        url = quote(self.url, safe="%/:=&?~#+!$,;'@()*[]")  # spaces and other scripts
        try:
            response = build_opener(_Redirects).open(
                Request(url, headers=headers), timeout=TIMEOUT_S
            )
        except HTTPError as error:
            if error.code != 416:
                raise
            error.close()
            # Nothing lies behind what we have: it is whole, or not of this file.
            if error.headers.get("Content-Range") == f"bytes */{n_kept}":
                return True
            file.truncate(0)
            return False
        with response:
            if response.status == 204:
                raise DownloadError(
                    f"{self.url} answered 204: there is no content", "check the address"
                )
            content_range = response.headers.get("Content-Range") or ""
            if response.status == 206 and not re.match(rf"bytes {n_kept}-\d", content_range):
                file.truncate(0)  # some other part of the file
                return False
            if response.status != 206:
                n_kept = 0
                file.truncate(0)
                self._keep_validator(response.headers)
            length = response.headers.get("Content-Length") or ""
            total = n_kept + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
            return self._copy(response, file, n_kept, total)

    def _copy(
        self, response: HTTPResponse, file: IO[bytes], n_bytes: int, total: int | None
    ) -> bool:
        with console.bar(total, base_name(self.url), "B", initial=n_bytes) as bar:
            while chunk := response.read1(CHUNK_BYTES):  # what came, without waiting for more
                with storage_errors(self.part):  # not to be taken for trouble with the network
                    file.write(chunk)
                    file.flush()
                n_bytes += len(chunk)
                bar.update(len(chunk))
                self._check_progress(n_bytes)
        return total is None or n_bytes == total

    def _check_progress(self, n_bytes: int) -> None:
        """A DownloadError where too much comes, or hardly anything for a long time."""
        now = time.monotonic()
        if n_bytes > self.n_reached + PROGRESS_BYTES:
            self.n_reached, self.progress_at = n_bytes, now
        if now > self.progress_at + self.max_stall_s:
            raise DownloadError(
                f"{self.url} sends less than {PROGRESS_BYTES:,} bytes in {self.max_stall_s:g} "
                f"seconds ({n_bytes:,} bytes came)",
                "try again later, or allow more seconds: MTRAIN_DOWNLOAD_STALL=600",
            )
        if n_bytes > self.max_bytes:
            raise DownloadError(
                f"{self.url} has more than {self.max_bytes / 2**30:g} GiB",
                "check the address, or allow more GiB: MTRAIN_DOWNLOAD_GIB=500",
            )

    def _keep_validator(self, headers: http.client.HTTPMessage) -> None:
        """Remember which version of the file this is; a weak ETag says too little."""
        etag = headers.get("ETag", "")
        version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
        if version:
            with storage_errors(self.validator):
                self.validator.write_text(version)
        else:
            self.validator.unlink(missing_ok=True)

    def _check(self, actual: str) -> None:
        """Raise unless the bytes in .part are the expected ones, or can be data at all."""
        if self.expected == actual:
            return
        with open(self.part, "rb") as file:
            start = file.read(_START_BYTES).removeprefix(b"\xef\xbb\xbf")
        is_html = is_web_page(start)
        if not start:
            raise DownloadError(f"{self.url} holds nothing", "check the address")
        if self.expected is None:
            if is_html:
                raise DownloadError(
                    f"{self.url} is an HTML page, not a data file",
                    "use the address of the file itself (on GitHub: the one behind `Raw`)",
                )
            return
        page = " (an HTML page)" if is_html else ""
        if self.is_recorded:
            raise DownloadError(
                f"{self.url} has changed: {self.lock.path} recorded sha256 {self.expected}, "
                f"now it is {actual}{page}",
                f"to accept the new file, delete the entry in {self.lock.path}",
            )
        raise DownloadError(
            f"{self.url} has the wrong sha256: expected {self.expected}, got {actual}{page}",
            "correct `sha256` in the config, if the file is the one that is wanted",
        )


def _in_words(error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    return str(reason) or type(reason).__name__


@contextmanager
def _one_process_at_a_time(file: IO[bytes]) -> Iterator[None]:
    """Let a second process that wants the same URL wait for the first."""
    if sys.platform == "win32":  # opening for append is exclusive enough there
        yield
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
