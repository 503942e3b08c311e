"""Files on disk: atomic writes, locks, checked reads.

Writes never follow symbolic links: a file is created under a random name in the same directory with
O_EXCL, then renamed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mtrain.errors import DataError, StorageError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
MAX_JSON_BYTES = 1 << 30
PARTIAL = ".tmp"  # suffix of files being written

# Errors caused by the file system, not by the program.
REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EIO, errno.EFBIG, errno.ELOOP),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of a full disk or an unwritable directory into StorageErrors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left on the disk while writing {path}", "free some space; then repeat"
            ) from error
        if error.errno in REFUSALS:
            raise StorageError(
                f"cannot write {path}: {(error.strerror or 'refused').lower()}",
                "check the permissions of the directory, or choose another place",
            ) from error
        raise


def partial_path(path: Path) -> Path:
    """A random name beside a path, for a file or directory to be renamed when complete."""
    return path.with_name(f"{path.name[:200]}.{secrets.token_hex(4)}{PARTIAL}")


def atomic_write(path: Path, content: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all: to a partial file, flushed to disk, then renamed.

    Large content may be given in parts. A character device is written to, and not replaced.
    """
    data = content.encode() if isinstance(content, str) else content
    parts = [data] if isinstance(data, bytes) else data
    with storage_errors(path):
        is_device = path.is_char_device()  # such as /dev/null
    if is_device:
        with storage_errors(path), open(path, "wb") as file:
            file.writelines(parts)
        return
    partial = partial_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "xb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that is renamed to `path` when the context ends, or removed on an error.

    An existing directory at `path` is replaced.
    """
    partial = partial_path(path)
    with storage_errors(path):
        partial.mkdir(parents=True)
        try:
            yield partial
            if path.is_dir() and not path.is_symlink():
                old = path.rename(partial_path(path))
                partial.rename(path)
                shutil.rmtree(old)
            else:
                partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def remove_partials(directory: Path, name: str = "*") -> None:
    """Remove the partial files of a killed process in a directory without other writers."""
    for leftover in directory.glob(f"{name}{PARTIAL}"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def check_writable(directory: Path) -> None:
    """Raise a StorageError if no file can be created in a directory."""
    probe = partial_path(directory / "probe")
    with storage_errors(directory):
        open(probe, "xb").close()
        probe.unlink()


def write_json(path: Path, value: object) -> None:
    """Readable JSON, written whole or not at all."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: bytes | str, shape: TypeAdapter[T]) -> T:
    """The value of a JSON text; a one-line ValueError if it is invalid or has another shape.

    pydantic's parser limits the depth of nesting, unlike `json`.
    """
    from pydantic import ValidationError

    try:
        shape.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"`{place}`: {first['msg']}" if place else first["msg"]) from error
    value: T = json.loads(text)
    if _SURROGATE.search(text if isinstance(text, str) else text.decode()):
        json.dumps(value, ensure_ascii=False).encode()  # a UnicodeError for half a character
    return value


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; an OSError for pipes, devices and more than a gigabyte."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > MAX_JSON_BYTES:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes are too many", str(path))
        return file.read()


def read_json(path: Path, shape: TypeAdapter[T], fix: str) -> T:
    """The value of a JSON file; a DataError with this fix if it is damaged."""
    try:
        return parse_json(read_bytes(path), shape)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", fix) from error
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}", fix) from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock_file(path: Path, waiting: str | None = None) -> Iterator[bool]:
    """Hold a lock during the context; yields False if another process holds it.

    With a `waiting` message, prints it, waits for the other process and yields True. The lock of a
    killed process is free. The file is removed at the end.
    """
    while True:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = open(os.open(path, flags, 0o666), "r+b")  # noqa: SIM115 (closed below)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    yield False
                    return
                from mtrain import console

                console.message(waiting)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):
                continue  # the other process has removed it at its end
            try:
                yield True
                return
            finally:
                if os.fstat(file.fileno()).st_size == 0:  # our locks are empty
                    path.unlink(missing_ok=True)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one that a path names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
