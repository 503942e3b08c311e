"""The lines of a stored file, thousands at a time.

Text is passed on as it is stored: lines end at `\\n` and nowhere else (not at U+2028, U+0085 or a
form feed), one trailing `\\r` goes, a UTF-8 byte order mark at the start of a file goes. What is
no text (bytes that are not UTF-8, a NUL) is an error, or counted where the caller can do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, cast

from mtrain.data.files import StoredFile
from mtrain.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
BLOCK_BYTES = 1 << 21  # decoded at once: far quicker than line by line
MAX_LINE_BYTES = 1 << 20  # a longer line is no sentence, and may have no end
OVERLONG = b"\0"  # stands for such a line

# What other files than text begin with, and what to do with them.
_EXTRACT = "extract the text from it, and name that file"
_FORMATS = {
    b"PK\x03\x04": ("a zip archive or an Office document", "name the member: `FILE.zip!member`"),
    b"\x1f\x8b": ("compressed by gzip", "decompress it: `zcat FILE`"),
    b"BZh": ("compressed by bzip2", "decompress it: `bzcat FILE`"),
    b"\xfd7zXZ\0": ("compressed by xz", "decompress it: `xzcat FILE`"),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "decompress it: `zstdcat FILE`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _EXTRACT),
    b"Rar!": ("a RAR archive", _EXTRACT),
    b"%PDF": ("a PDF document", _EXTRACT),
    b"{\\rtf": ("an RTF document", _EXTRACT),
    b"\xd0\xcf\x11\xe0": ("an old Office document", _EXTRACT),
    b"SQLite format 3\0": ("an SQLite database", _EXTRACT),
    b"PAR1": ("a parquet file", "name it as `{parquet: FILE}`, or extract the text"),
    b"\x89PNG": ("a picture", _EXTRACT),
    b"\xff\xd8\xff": ("a picture", _EXTRACT),
    b"\x7fELF": ("a program", _EXTRACT),
    LFS_POINTER: (
        "a pointer of Git LFS, not the file that it stands for",
        "get the file itself with `git lfs pull`",
    ),
}


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


def _has_longer_line(block: bytes) -> bool:
    """Whether a line has more than MAX_LINE_BYTES."""
    start = 0
    while len(block) - start > MAX_LINE_BYTES:
        end = block.rfind(b"\n", start, start + MAX_LINE_BYTES + 1) + 1
        if not end:
            return True
        start = end
    return False


def decode(raw: bytes, place: str, unreadable: Unreadable | None) -> str | None:
    """The text at a place, or None and a note in `unreadable` (an error without) if it is none."""
    try:
        text = raw.decode()
        if len(raw) > MAX_LINE_BYTES:
            text = "\0"
    except UnicodeDecodeError as error:
        problem = DataError(
            f"{place}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start})",
            "convert the file, for example with `iconv -f latin1 -t utf-8`",
        )
    else:
        if "\0" not in text:
            return text
        problem = (
            DataError(
                f"{place}: a line of more than {MAX_LINE_BYTES:,} bytes",
                "cut or remove the line; a file without line ends is no text",
            )
            if len(raw) > MAX_LINE_BYTES
            else DataError(
                f"{place}: a NUL character at position {text.index(chr(0))}",
                "mend or remove the line; many of them mean that the file is no text",
            )
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
                refuse_what_is_no_text(block, file.location)
                block = block.removeprefix(BYTE_ORDER_MARK)
                is_start = False
            end = block.rfind(b"\n") + 1
            if end:
                yield b"".join([*parts, block[:end]])
                parts.clear()
            parts.append(block[end:])
            if sum(map(len, parts)) > MAX_LINE_BYTES:  # the rest of this line is only skipped
                parts = [OVERLONG * (MAX_LINE_BYTES + 1)]
    if last := b"".join(parts):
        yield last


def refuse_what_is_no_text(start: bytes, location: str) -> None:
    """A DataError that names what a file is, by its first bytes, where that is no UTF-8 text."""
    for magic, (kind, fix) in _FORMATS.items():
        if start.startswith(magic):
            raise DataError(f"{location} is {kind}, not text", fix.replace("FILE", location))
    if start[257:262] == b"ustar":
        raise DataError(
            f"{location} is a tar archive, not text", f"name the member: `{location}!member`"
        )
    if start.startswith(UTF_16_MARKS) or _has_every_second_byte_zero(start):
        raise DataError(
            f"{location} is UTF-16, not UTF-8", "convert the file: `iconv -f utf-16 -t utf-8`"
        )
    if b"\r" in start.rstrip(b"\r\n") and b"\n" not in start:
        raise DataError(
            f"{location} has lines that end in a carriage return alone",
            "convert the file: `tr '\\r' '\\n'`",
        )


def _has_every_second_byte_zero(start: bytes) -> bool:
    """As UTF-16 has, without a mark, where most characters are ASCII."""
    n_pairs = len(start) // 2
    shares = [start[i : 2 * n_pairs : 2].count(0) / max(1, n_pairs) for i in (0, 1)]
    return n_pairs > 2 and max(shares) > 0.4 and min(shares) < 0.1


def limited_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream with their ends; OVERLONG for one of more than MAX_LINE_BYTES."""
    while line := stream.readline(MAX_LINE_BYTES + 2):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            line = OVERLONG
        yield line


def _decode(
    block: bytes, location: str, n_before: int, unreadable: Unreadable | None
) -> list[str | None]:
    """The lines of a block, of which `n_before` lines of the file come before."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text and not _has_longer_line(block):
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        if text.endswith("\r"):  # the last line of the file, without its \n
            lines[-1] = lines[-1].removesuffix("\r")
        return cast(list[str | None], lines)
    raw_lines = block.removesuffix(b"\n").split(b"\n")
    return [
        decode(line.removesuffix(b"\r"), f"{location}:{number}", unreadable)
        for number, line in enumerate(raw_lines, start=n_before + 1)
    ]
