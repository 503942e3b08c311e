"""Files as a config names them: local or by URL, plain or compressed, or inside an archive.

`corpus.tgz!train/a.en` is the member `train/a.en` of the archive `corpus.tgz`. Members are read
where they are: nothing is extracted, so nothing can be written outside of a folder.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, cast

from mtrain.config.entries import is_url
from mtrain.data.downloads import Lock, fetch
from mtrain.errors import DataError
from mtrain.storage import sha256_of

_DAMAGE = (
    *(OSError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
    *(NotImplementedError, struct.error),  # of zipfile: a method that it lacks, a broken header
)
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # the second: of an empty archive
_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file, or a member of an archive, that knows what the config calls it."""

    location: str  # the path or URL as in the config, with `!member` if there is one
    path: Path  # of the file on disk: of the whole archive, where the text is a member of one
    sha256: str  # of the bytes on disk
    member: str | None = None

    @classmethod
    def locate(cls, location: str, sha256: str | None, where: str, lock: Lock) -> StoredFile:
        """Find a local file or fetch a URL, check its sha256, and note it in the lock."""
        container, member = split_member(location)
        if member is not None:
            member = _safe_member(member, location, where)
        if is_url(container):
            path = fetch(container, sha256, lock)
            actual = lock.expect(container)
            assert actual is not None  # fetch recorded it
            return cls(location, path, actual, member)
        path = Path(container).expanduser()
        if not path.is_file():
            raise _missing(container, path, where, lock.config_dir)
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise DataError(f"{where}: cannot read {container}: {error.strerror}") from error
        if sha256 not in (None, actual):
            raise DataError(
                f"{where}: {container} has the wrong sha256: expected {sha256}, got {actual}",
                f"correct `sha256` of {where}, if the file is the one that is wanted",
            )
        file = cls(location, path, actual, member)
        file.record(lock)
        return file

    def inside(self, member: str) -> StoredFile:
        """A member of this archive."""
        return StoredFile(f"{self.location}!{member}", self.path, self.sha256, member)

    def record(self, lock: Lock, n_lines: int | None = None) -> None:
        """Note in the lock what the file is, and how many lines it has once that is known."""
        lock.record(self.location, self.sha256, self.path.stat().st_size, n_lines)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes, decompressed; what fails while they are read is an error in our words."""
        try:
            with open(self.path, "rb") as stored:
                if self.member is None:
                    yield decompressed(stored)
                else:
                    with open_member(stored, self.member, self.location) as inside:
                        yield decompressed(inside)
        except EOFError as error:
            raise self._cut_short() from error
        except _DAMAGE as error:
            if re.search("Truncated compressed stream|unexpected end of data", str(error)):
                raise self._cut_short() from error
            raise DataError(
                f"{self.location} cannot be read: {error}", "get the file again"
            ) from error

    def _cut_short(self) -> DataError:
        return DataError(
            f"{self.location} is cut short: its compressed data has no end", "get the file again"
        )


def split_member(location: str) -> tuple[str, str | None]:
    """`corpus.tgz!train/a.en` -> (`corpus.tgz`, `train/a.en`); a plain file has no member."""
    if "!" not in location or (not is_url(location) and _exists(location)):
        return location, None
    container, _, member = location.partition("!")
    return container, member


def _exists(location: str) -> bool:
    try:
        return Path(location).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # no path of this system
        return False


def decompressed(stored: io.BufferedReader) -> io.BufferedReader:
    """What is inside a compressed file, known by its first bytes, whatever the name says."""
    start = stored.peek(6)[:6]
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return io.BufferedReader(cast(io.RawIOBase, opener(stored)), 1 << 18)
    return stored


class _Streams(io.RawIOBase):
    """One compressed stream after the other: Python's own readers stop at one that is damaged.

    Zeros between and behind them, as tapes have, are no damage.
    """

    def __init__(
        self, stored: IO[bytes], new: Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]
    ) -> None:
        self._stored, self._new, self._decoder = stored, new, new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            raw = b""
            if self._decoder.eof:
                raw = self._decoder.unused_data.lstrip(b"\0")
                while not raw:
                    block = self._stored.read(1 << 16)
                    if not block:
                        return 0
                    raw = block.lstrip(b"\0")
                self._decoder = self._new()
            elif self._decoder.needs_input:
                raw = self._stored.read(1 << 16)
                if not raw:
                    raise EOFError
            data = self._decoder.decompress(raw, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)


def _open_zstd(stored: io.BufferedReader) -> IO[bytes]:
    import pyarrow

    return cast(
        IO[bytes], pyarrow.CompressedInputStream(pyarrow.PythonFile(stored, mode="r"), "zstd")
    )


_OPENERS: dict[bytes, Callable[[io.BufferedReader], IO[bytes]]] = {
    b"\x1f\x8b": lambda stored: cast(IO[bytes], gzip.GzipFile(fileobj=stored)),
    b"\xfd7zXZ\x00": lambda stored: cast(IO[bytes], _Streams(stored, lzma.LZMADecompressor)),
    b"BZh": lambda stored: cast(IO[bytes], _Streams(stored, bz2.BZ2Decompressor)),
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


# -- archives --------------------------------------------------------------------------------


def member_names(file: StoredFile) -> list[str]:
    """The files in a zip archive."""
    with file.open() as stored, _zip(stored) as archive:
        return [info.filename for info in archive.infolist() if not info.is_dir()]


def _zip(stored: IO[bytes]) -> zipfile.ZipFile:
    """An archive whose list of files can be read; a BadZipFile otherwise."""
    try:
        archive = zipfile.ZipFile(stored)
    except (ValueError, struct.error) as error:  # such as names that are not in their encoding
        raise zipfile.BadZipFile(f"its list of files is damaged: {error}") from error
    if not all(info.filename for info in archive.infolist()):
        raise zipfile.BadZipFile("its list of files is damaged: a file has no name")
    return archive


@contextmanager
def open_member(
    stored: io.BufferedReader, member: str, location: str
) -> Iterator[io.BufferedReader]:
    """A file inside an archive, as bytes; `location` names both in messages."""
    if stored.peek(4)[:4] in ZIP_MAGIC:
        with _open_in_zip(stored, member, location) as file:
            yield file
    else:
        with _open_in_tar(decompressed(stored), member, location) as file:
            yield file


@contextmanager
def _open_in_zip(
    stored: io.BufferedReader, member: str, location: str
) -> Iterator[io.BufferedReader]:
    with _zip(stored) as archive:
        infos = {posixpath.normpath(info.filename): info for info in archive.infolist()}
        if member not in infos or infos[member].is_dir():
            names = [name for name, info in infos.items() if not info.is_dir()]
            raise _no_member(member, location, names)
        if infos[member].flag_bits & 1:
            raise DataError(f"{location} is encrypted", "extract it, and name the extracted file")
        try:
            opened = archive.open(infos[member])
        except ValueError as error:
            raise zipfile.BadZipFile(f"the header of {member} is damaged: {error}") from error
        with opened as file:
            yield io.BufferedReader(cast(io.RawIOBase, file), 1 << 18)


@contextmanager
def _open_in_tar(
    stored: io.BufferedReader, member: str, location: str
) -> Iterator[io.BufferedReader]:
    """Read from the start until the member comes: a compressed archive cannot be searched."""
    names = []
    with tarfile.open(fileobj=stored, mode="r|") as archive:
        for info in archive:
            if posixpath.normpath(info.name) == member:
                if info.issym() or info.islnk():
                    raise DataError(
                        f"{location} is no file but a link to {info.linkname}, and links of "
                        "archives are not followed",
                        "name the member that the link leads to",
                    )
                if file := archive.extractfile(info):
                    yield io.BufferedReader(cast(io.RawIOBase, file), 1 << 18)
                    return
            if info.isfile():
                names.append(posixpath.normpath(info.name))
    raise _no_member(member, location, names)


def _safe_member(member: str, location: str, where: str) -> str:
    """The normal form of a member's name; an error for one that leads out of the archive."""
    normal = posixpath.normpath(member)
    if not member or member.startswith("/") or normal.split("/")[0] in ("..", "."):
        raise DataError(
            f"{where}: {location} leads out of the archive, or names no file in it",
            "write the path as the archive lists it, such as `corpus.tgz!train/a.en`",
        )
    return normal


def _no_member(member: str, location: str, names: list[str]) -> DataError:
    near = get_close_matches(member, names, _NAMES_SHOWN, cutoff=0.5)
    near = near or [name for name in names if name.endswith(posixpath.basename(member))]
    shown = near or sorted(names)
    rest = f" and {len(shown) - _NAMES_SHOWN:,} more" if len(shown) > _NAMES_SHOWN else ""
    found = f"{', '.join(shown[:_NAMES_SHOWN])}{rest}" if names else "no files at all"
    return DataError(
        f"{location}: the archive has no file {member}",
        f"it has {found}" if not near else f"did you mean {found}?",
    )


def _missing(location: str, path: Path, where: str, config_dir: Path) -> DataError:
    if path.exists():
        return DataError(f"{where}: {location} is not a regular file")
    beside = config_dir / path
    if beside.is_file():
        return DataError(
            f"{where}: there is no file {location} here, but there is one beside the config: "
            f"{beside}",
            f"relative paths start at the current directory: write {beside}, or run from there",
        )
    return DataError(
        f"{where}: there is no file {location} (current directory: {Path.cwd()})",
        "correct the path; relative paths start at the current directory",
    )
