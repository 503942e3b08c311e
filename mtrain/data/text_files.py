"""The lines of a stored file, thousands at a time.

Text is passed on as it is stored: lines end at `\\n` and nowhere else (not at U+2028, U+0085 or a
form feed), one trailing `\\r` goes, a UTF-8 byte order mark at the start of a file goes. What is
no text (bytes that are not UTF-8, a NUL) is an error, or counted where the caller can do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from mtrain.data.stored_files import StoredFile
from mtrain.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
BLOCK_BYTES = 1 << 21  # decoded at once: far quicker than line by line


class Unreadable:
    """Pairs of a training entry that cannot be read: dropped, counted, up to a share of them.

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
            f"{where}: {self.n_pairs:,} of the first {n_read:,} pairs cannot be read, more than "
            f"{self.max_share:.1%}; the first of them: {self.first.message}",
            f"{self.first.fix}; or raise `data.max_unreadable`",
        )


def read_lines(file: StoredFile) -> Iterator[str]:
    """All lines; one that is no text is an error."""
    for block in read_blocks(file):
        yield from cast(list[str], block)


def read_blocks(
    file: StoredFile, unreadable: Unreadable | None = None
) -> Iterator[list[str | None]]:
    """The lines, many at a time.

    One that is no text is None and noted in `unreadable`, or an error where none is given.
    """
    n_lines = 0
    for block in _whole_lines(file):
        lines = _decode(block, file.location, n_lines, unreadable)
        n_lines += len(lines)
        yield lines


def decode(raw: bytes, place: str, unreadable: Unreadable | None) -> str | None:
    """The text at a place, or None and a note in `unreadable` (an error without) if it is none."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        problem = DataError(
            f"{place}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start})",
            "convert the file, for example with `iconv -f latin1 -t utf-8`",
        )
    else:
        if "\0" not in text:
            return text
        problem = DataError(
            f"{place}: a NUL character at position {text.index(chr(0))}",
            "mend or remove the line; many of them mean that the file is no text",
        )
    note_or_raise(problem, unreadable)
    return None


def note_or_raise(problem: DataError, unreadable: Unreadable | None) -> None:
    """Remember why a pair is dropped, where pairs may be."""
    if unreadable is None:
        raise problem
    unreadable.note(problem)


def _whole_lines(file: StoredFile) -> Iterator[bytes]:
    """The text in blocks that end where a line ends, without byte order mark."""
    parts: list[bytes] = []
    is_start = True
    with file.open() as stream:
        while block := stream.read(BLOCK_BYTES):
            if is_start:
                _refuse_what_is_no_text(block, file.location)
                block = block.removeprefix(BYTE_ORDER_MARK)
                is_start = False
            end = block.rfind(b"\n") + 1
            if end:
                yield b"".join([*parts, block[:end]])
                parts.clear()
            parts.append(block[end:])
    if last := b"".join(parts):
        yield last


def _refuse_what_is_no_text(start: bytes, location: str) -> None:
    """Tell by its first bytes a file that is something else as a whole."""
    if start.startswith(UTF_16_MARKS):
        raise DataError(
            f"{location} is UTF-16, not UTF-8", "convert the file: `iconv -f utf-16 -t utf-8`"
        )
    if start.startswith(LFS_POINTER):
        raise DataError(
            f"{location} is a pointer of Git LFS, not the file that it stands for",
            "get the file itself with `git lfs pull`",
        )


def _decode(
    block: bytes, location: str, n_before: int, unreadable: Unreadable | None
) -> list[str | None]:
    """The lines of a block, of which `n_before` lines of the file come before."""
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
        decode(line.removesuffix(b"\r"), f"{location}:{number}", unreadable)
        for number, line in enumerate(raw_lines, start=n_before + 1)
    ]
