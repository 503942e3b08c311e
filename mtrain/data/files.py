"""Files of the config on disk: plain or compressed, or inside an archive.

`corpus.tgz!train/a.en` is the member `train/a.en` of the archive `corpus.tgz`. Members are read in
place: nothing is extracted, so nothing can be written outside of a directory.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, cast

from mtrain.config.entries import is_url
from mtrain.errors import DataError

# Exceptions for damaged files. The last two come from zipfile, for an unsupported compression
# method and for a broken header.
_DAMAGE = (
    *(OSError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
    *(NotImplementedError, struct.error),
)
_CUT_SHORT = re.compile("Truncated compressed stream|unexpected end of data")
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # the second: of an empty archive
_BUFFER_BYTES = 1 << 18
_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file on disk, or a member of an archive."""

    location: str  # as in messages and in the lock: the path or URL, with `!member` if any
    path: Path  # on disk; that of the archive for a member
    member: str | None = None

    def inside(self, member: str) -> StoredFile:
        """Return a member of this archive."""
        return StoredFile(f"{self.location}!{member}", self.path, member)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open for reading, decompressed; damage found while reading is a DataError."""
        try:
            with open(self.path, "rb") as stored:
                if self.member is None:
                    yield _decompressed(stored)
                else:
                    is_zip = stored.peek(4)[:4] in _ZIP_MAGIC
                    open_member = _open_in_zip if is_zip else _open_in_tar
                    with open_member(stored, self.member, self.location) as member:
                        yield _decompressed(member)
        except (EOFError, *_DAMAGE) as error:
            problem = f"cannot be read: {error}"
            if isinstance(error, EOFError) or _CUT_SHORT.search(str(error)):
                problem = "is cut short: its compressed data has no end"
            raise DataError(f"{self.location} {problem}", "get the file again") from error

    def member_names(self) -> list[str]:
        """List the files in a zip archive."""
        with self.open() as stored, _zip(stored) as archive:
            return [info.filename for info in archive.infolist() if not info.is_dir()]


def split_member(location: str) -> tuple[str, str | None]:
    """`corpus.tgz!train/a.en` -> (`corpus.tgz`, `train/a.en`); a plain file has no member."""
    container, mark, member = location.partition("!")
    if not mark:
        return location, None
    with suppress(OSError, RuntimeError, ValueError):  # not a path on this system
        if not is_url(location) and Path(location).expanduser().exists():
            return location, None
    return container, member


# -- compression -----------------------------------------------------------------------------


def _decompressed(stored: io.BufferedReader) -> io.BufferedReader:
    """The content of a compressed file, recognised by its first bytes and not by its name."""
    start = stored.peek(6)[:6]
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return _buffered(opener(stored))
    return stored


def _buffered(stream: Any) -> io.BufferedReader:
    return io.BufferedReader(cast(io.RawIOBase, stream), _BUFFER_BYTES)


class _Streams(io.RawIOBase):
    """Concatenated compressed streams: Python's own readers stop silently at a damaged one.

    Zeros between and after them, as on tapes, are no damage.
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


def _open_zstd(stored: io.BufferedReader) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stored, mode="r"), "zstd")


_OPENERS: dict[bytes, Callable[[io.BufferedReader], Any]] = {
    b"\x1f\x8b": lambda stored: gzip.GzipFile(fileobj=stored),
    b"\xfd7zXZ\x00": lambda stored: _Streams(stored, lzma.LZMADecompressor),
    b"BZh": lambda stored: _Streams(stored, bz2.BZ2Decompressor),
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


# -- archives --------------------------------------------------------------------------------


def _zip(stored: IO[bytes]) -> zipfile.ZipFile:
    """Open an archive and check its list of files; a BadZipFile if that is damaged."""
    try:
        archive = zipfile.ZipFile(stored)
    except (ValueError, struct.error) as error:  # such as names that are not in their encoding
        raise zipfile.BadZipFile(f"its list of files is damaged: {error}") from error
    if not all(info.filename for info in archive.infolist()):
        raise zipfile.BadZipFile("its list of files is damaged: a file has no name")
    return archive


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
            yield _buffered(file)


@contextmanager
def _open_in_tar(
    stored: io.BufferedReader, member: str, location: str
) -> Iterator[io.BufferedReader]:
    """Read from the start up to the member: a compressed archive has no index."""
    names = []
    with tarfile.open(fileobj=_decompressed(stored), mode="r|") as archive:
        for info in archive:
            name = posixpath.normpath(info.name)
            if name == member:
                if info.issym() or info.islnk():
                    raise DataError(
                        f"{location} is a link to {info.linkname}, and links in archives are not "
                        "followed",
                        "name the member that it links to",
                    )
                if file := archive.extractfile(info):
                    yield _buffered(file)
                    return
            if info.isfile():
                names.append(name)
    raise _no_member(member, location, names)


def _no_member(member: str, location: str, names: list[str]) -> DataError:
    near = get_close_matches(member, names, _NAMES_SHOWN, cutoff=0.5)
    near = near or [name for name in names if name.endswith(posixpath.basename(member))]
    shown = near or sorted(names)
    rest = f" and {len(shown) - _NAMES_SHOWN:,} more" if len(shown) > _NAMES_SHOWN else ""
    found = f"{', '.join(shown[:_NAMES_SHOWN])}{rest}" if names else "no files at all"
    return DataError(
        f"{location}: the archive has no file {member}",
        f"did you mean {found}?" if near else f"it has {found}",
    )
