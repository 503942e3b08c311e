"""Text files, plain or compressed, as blocks of lines.

Text is passed on as it is stored: lines end at `\\n` and nowhere else (not at U+2028, U+0085 or a
form feed), one trailing `\\r` goes, a UTF-8 byte order mark at the start of a file goes. What is
no text (bytes that are not UTF-8, a NUL) is an error, or counted where the caller can do without.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from mtrain.data.downloads import Lock, fetch, is_url
from mtrain.errors import DataError
from mtrain.run import sha256_of

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BLOCK_BYTES = 1 << 21  # decoded at once: far quicker than line by line


class Unreadable:
    """Pairs of a training entry that are no text: dropped and counted, up to a share of them.

    n_pairs  so many were dropped
    first    why the first of them was, with its file and line
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self.n_pairs = 0
        self.first: DataError | None = None

    def note(self, problem: DataError) -> None:
        """Remember the first problem; the pairs are counted by whoever drops them."""
        self.first = self.first or problem

    def drop(self, n_pairs: int, n_read: int, where: str) -> None:
        """Count dropped pairs of `n_read` so far; an error when they are too many."""
        self.n_pairs += n_pairs
        # Judged by ten thousand pairs at least, so that a few at the start are no reason to stop.
        if self.n_pairs > self.max_share * max(n_read, 10_000):
            self.check(n_read, where)

    def check(self, n_read: int, where: str) -> None:
        """An error when more than the share of all the pairs were dropped."""
        if self.n_pairs <= self.max_share * n_read:
            return
        assert self.first is not None
        raise DataError(
            f"{where}: {self.n_pairs:,} of the first {n_read:,} pairs are no UTF-8 text, which is "
            f"more than {self.max_share:.1%}; the first of them: {self.first.message}",
            "convert the file, for example with `iconv -f latin1 -t utf-8`, "
            "or raise `data.max_unreadable`",
        )


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file, plain or compressed, that knows what the config calls it."""

    location: str  # the path or URL as in the config
    path: Path
    sha256: str  # of the bytes as stored

    @classmethod
    def locate(cls, location: str, sha256: str | None, where: str, lock: Lock) -> TextFile:
        """Find a local file or fetch a URL, check its sha256, and note it in the lock."""
        if is_url(location):
            path = fetch(location, sha256, lock)
            actual = lock.expect(location)
            assert actual is not None  # fetch recorded it
            return cls(location, path, actual)
        path = Path(location).expanduser()
        if not path.is_file():
            raise _missing(location, path, where, lock.config_dir)
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise DataError(f"{where}: cannot read {location}: {error.strerror}") from error
        if sha256 not in (None, actual):
            raise DataError(
                f"{where}: {location} has the wrong sha256: expected {sha256}, got {actual}",
                f"correct `sha256` of {where}, if the file is the one that is wanted",
            )
        file = cls(location, path, actual)
        file.record(lock)
        return file

    def record(self, lock: Lock, n_lines: int | None = None) -> None:
        """Note in the lock what the file is, and how many lines it has once that is known."""
        lock.record(self.location, self.sha256, self.path.stat().st_size, n_lines)

    def lines(self) -> Iterator[str]:
        """All lines; one that is no text is an error."""
        for block in self.blocks():
            yield from cast(list[str], block)

    def blocks(self, unreadable: Unreadable | None = None) -> Iterator[list[str | None]]:
        """The lines, many at a time.

        One that is no text is None and noted in `unreadable`, or an error where none is given.
        """
        n_lines = 0
        for block in self._whole_lines():
            lines = self._decode(block, n_lines, unreadable)
            n_lines += len(lines)
            yield lines

    def _whole_lines(self) -> Iterator[bytes]:
        """The text in blocks that end where a line ends, without byte order mark."""
        parts: list[bytes] = []
        is_start = True
        with self.open() as file:
            while block := file.read(BLOCK_BYTES):
                if is_start:
                    self._refuse_utf_16(block)
                    block = block.removeprefix(BYTE_ORDER_MARK)
                    is_start = False
                end = block.rfind(b"\n") + 1
                if end:
                    yield b"".join([*parts, block[:end]])
                    parts.clear()
                parts.append(block[end:])
        if last := b"".join(parts):
            yield last

    def _refuse_utf_16(self, start: bytes) -> None:
        if start.startswith(UTF_16_MARKS):
            raise DataError(
                f"{self.location} is UTF-16, not UTF-8",
                "convert the file: `iconv -f utf-16 -t utf-8`",
            )

    def _decode(
        self, block: bytes, n_before: int, unreadable: Unreadable | None
    ) -> list[str | None]:
        """The lines of a block; `n_before` of the file come before it."""
        try:
            text = block.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" not in text:
            lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
            if text.endswith("\r"):  # the last line of the file, without its \n
                lines[-1] = lines[-1].removesuffix("\r")
            return cast(list[str | None], lines)
        raw_lines = block.removesuffix(b"\n").split(b"\n")
        return [
            self._decode_line(line, number, unreadable)
            for number, line in enumerate(raw_lines, start=n_before + 1)
        ]

    def _decode_line(self, line: bytes, number: int, unreadable: Unreadable | None) -> str | None:
        place = f"{self.location}:{number}"
        try:
            text = line.removesuffix(b"\r").decode()
            if "\0" not in text:
                return text
            problem = DataError(
                f"{place}: a NUL character at position {text.index(chr(0))}",
                "mend or remove the line; many of them mean that the file is no text",
            )
        except UnicodeDecodeError as error:
            problem = DataError(
                f"{place}: not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start})",
                "convert the file, for example with `iconv -f latin1 -t utf-8`",
            )
        if unreadable is None:
            raise problem
        unreadable.note(problem)
        return None

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The text as bytes, decompressed; what fails while it is read is an error in our words."""
        try:
            with open(self.path, "rb") as stored:
                yield decompressed(stored)
        except EOFError as error:
            raise DataError(
                f"{self.location} is cut short: its compressed data has no end",
                "get the file again",
            ) from error
        except (OSError, zlib.error, lzma.LZMAError) as error:
            if "Truncated compressed stream" in str(error):  # pyarrow, of .zst
                message = f"{self.location} is cut short: its compressed data has no end"
            else:
                message = f"{self.location} cannot be read: {error}"
            raise DataError(message, "get the file again") from error


def decompressed(stored: io.BufferedReader) -> IO[bytes]:
    """What is inside a compressed file, known by its first bytes, whatever the name says."""
    start = stored.peek(6)[:6]
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return opener(stored)
    return stored


def _open_zstd(stored: io.BufferedReader) -> IO[bytes]:
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(stored, "r"), "zstd")
    return io.BufferedReader(stream, 1 << 18)


_OPENERS: dict[bytes, Callable[[io.BufferedReader], IO[bytes]]] = {
    b"\x1f\x8b": lambda stored: cast(IO[bytes], gzip.GzipFile(fileobj=stored)),
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


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
