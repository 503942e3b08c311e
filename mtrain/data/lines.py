"""The lines of a stored file, thousands at a time.

Text is passed on as stored: lines end at `\\n` and nowhere else (not at U+2028, U+0085 or a form
feed); one `\\r` before it and a UTF-8 byte order mark at the start of the file are removed. A line
that is not text (not UTF-8, or with a NUL) is an error, or noted where the caller allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from mtrain.data.files import StoredFile
from mtrain.data.reading import Reading, Texts
from mtrain.errors import DataError

Lengths = NDArray[np.int64]  # characters of each line

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 1 << 20  # a longer line is not a sentence, and may have no end
BLOCK_BYTES = MAX_LINE_BYTES  # decoded at once: far faster than line by line
OVERLONG = b"\0" * (MAX_LINE_BYTES + 1)  # stands for such a line

# First bytes of files that are not text, and what to do with them.
_EXTRACT = "extract the text from it, and name that file"
_FORMATS = {
    b"PK\x03\x04": (
        "a zip archive or an Office document",
        "name the member (`FILE!member`), or extract the text of a document",
    ),
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
    b"version https://git-lfs.github.com/spec/": (
        "a pointer of Git LFS, not the file itself",
        "get the file with `git lfs pull`",
    ),
}
_XML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!doctype[^>]*>\s*)?<(tmx|xliff)\b",
    re.DOTALL | re.IGNORECASE,
)
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")

_SHIFT = 7  # lines; few, as neighbours may be alike in sorted corpora
_PARALLEL = 0.85  # share of the deviation of shifted lines; lines that deviate less are parallel
_NEAR_END = 50  # lines: too few to tell an end from a break


# -- files -----------------------------------------------------------------------------------


def read_lines(file: StoredFile) -> Iterator[str]:
    """Yield all lines; one that is not text is an error."""
    for block in _read_blocks(file, None):
        yield from cast(list[str], block)


def read_chunks(file: StoredFile, reading: Reading) -> Iterator[tuple[int, Texts]]:
    """Yield (number of the first line, lines), `chunk_pairs` lines at a time but for the last.

    A line that is not text is None. The number of lines is recorded in the lock at the end.
    """
    n_read, waiting = 0, list[str | None]()
    for block in _read_blocks(file, reading):
        waiting += block
        while len(waiting) >= reading.chunk_pairs:
            chunk, waiting = waiting[: reading.chunk_pairs], waiting[reading.chunk_pairs :]
            yield n_read + 1, chunk
            n_read += len(chunk)
    if waiting:
        yield n_read + 1, waiting
    reading.lock.record_lines(file.location, n_read + len(waiting))


def read_aligned(
    source: StoredFile, target: StoredFile, reading: Reading
) -> Iterator[tuple[Texts, Texts]]:
    """Yield line n of one file with line n of the other, `chunk_pairs` lines at a time."""
    chunks = (read_chunks(file, reading) for file in (source, target))
    for (_, src), (_, tgt) in zip_longest(*chunks, fillvalue=(0, [])):
        if len(src) != len(tgt):
            raise _misaligned(source, target, reading)
        yield src, tgt


def _misaligned(source: StoredFile, target: StoredFile, reading: Reading) -> DataError:
    """An error with both line counts and, if the line lengths show it, the location."""
    lengths = _lengths(source, reading), _lengths(target, reading)
    n_source, n_target = map(len, lengths)
    n_fit = lines_that_fit(*lengths)
    if n_fit is None:
        place = ""
    elif n_fit == 0:
        place = "; by their lengths they do not match from the first line on"
    elif n_fit == min(n_source, n_target):
        place = "; by their lengths all lines of the shorter one match: its end may be missing"
    else:
        place = f"; by their lengths they match up to about line {n_fit:,}, and not after it"
    return DataError(
        f"{reading.where}: {source.location} has {n_source:,} lines but {target.location} has "
        f"{n_target:,}{place}",
        "line n of one file must translate line n of the other; find where they diverge",
    )


def _lengths(file: StoredFile, reading: Reading) -> Lengths:
    """Characters of each line."""
    tolerant = Reading(reading.where, reading.lock, max_unreadable=1)
    blocks = [np.array([len(line or "") for line in b]) for b in _read_blocks(file, tolerant)]
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)


def lines_that_fit(source: Lengths, target: Lengths) -> int | None:
    """The number of lines from the start that translate each other, judged by their lengths.

    It is the length of the shorter file if all of it does; None if the lengths do not tell. The
    logarithm of a pair's length ratio deviates little from its median where line n translates line
    n; a shift by a few lines shows how much it deviates elsewhere. The change point is found with a
    cumulative sum (Page 1954).
    """
    n = min(len(source), len(target))
    if n < 2 * _NEAR_END:
        return None
    ratios = np.log((source[:n] + 1) / (target[:n] + 1))
    typical = np.median(ratios)
    deviations = np.abs(ratios - typical)
    shifted = np.log((source[: n - _SHIFT] + 1) / (target[_SHIFT:n] + 1))
    unrelated = float(np.abs(shifted - typical).mean())
    excess = np.cumsum(deviations - 0.75 * unrelated)
    n_fit = int(np.argmin(excess)) + 1 if excess.min() < 0 else 0
    if n_fit and deviations[:n_fit].mean() > _PARALLEL * unrelated:
        return None
    from_end = np.log((source[len(source) - n :] + 1) / (target[len(target) - n :] + 1))
    end_deviations = np.abs(from_end - typical)
    if n_fit >= n - _NEAR_END:
        is_cut_short = deviations[-_NEAR_END:].mean() <= end_deviations[-_NEAR_END:].mean()
        return n if is_cut_short else n_fit
    fits_from_end = end_deviations[n_fit:].mean() < _PARALLEL * unrelated
    is_clear = deviations[n_fit:].mean() > _PARALLEL * unrelated
    return n_fit if is_clear and (n_fit or fits_from_end) else None


def _read_blocks(file: StoredFile, reading: Reading | None) -> Iterator[Texts]:
    """Yield the lines of one block after the other."""
    n_lines = 0
    for block in _whole_lines(file):
        lines = _decode_lines(block, file.location, n_lines, reading)
        n_lines += len(lines)
        yield lines


def _whole_lines(file: StoredFile) -> Iterator[bytes]:
    """Yield the text in blocks that end at the end of a line, without byte order mark."""
    parts: list[bytes] = []
    is_start = True
    with file.open() as stream:
        while block := stream.read(BLOCK_BYTES):
            if is_start:
                check_is_text(block, file.location)
                block = block.removeprefix(BYTE_ORDER_MARK)
                is_start = False
            end = block.rfind(b"\n") + 1
            if end:
                yield b"".join([*parts, block[:end]])
                parts.clear()
            parts.append(block[end:])
            if sum(map(len, parts)) > MAX_LINE_BYTES:  # the rest of this line is only skipped
                parts = [OVERLONG]
    if last := b"".join(parts):
        yield last


def _decode_lines(block: bytes, location: str, n_before: int, reading: Reading | None) -> Texts:
    """The lines of a block; `n_before` lines of the file precede it."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text = "\0"
    # Blocks are no longer than a line may be, so only the first line can be too long.
    is_overlong = len(block) > MAX_LINE_BYTES and block.find(b"\n", 0, MAX_LINE_BYTES + 1) < 0
    if "\0" not in text and not is_overlong:
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        if text.endswith("\r"):  # the last line of the file, without its \n
            lines[-1] = lines[-1].removesuffix("\r")
        return cast(Texts, lines)
    raw_lines = block.removesuffix(b"\n").split(b"\n")
    return [
        decode(line.removesuffix(b"\r"), f"{location}:{number}", reading)
        for number, line in enumerate(raw_lines, start=n_before + 1)
    ]


def decode(raw: bytes, place: str, reading: Reading | None) -> str | None:
    """The text of a line, or None if it is not text, which is noted in `reading`, if any."""
    if len(raw) > MAX_LINE_BYTES:
        problem = DataError(
            f"{place}: a line of more than {MAX_LINE_BYTES:,} bytes",
            "cut or remove the line; a file without line ends is not text",
        )
    else:
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
                "fix or remove the line; if there are many, the file is not text",
            )
    if reading is None:
        raise problem
    reading.reject(problem)
    return None


# -- streams ---------------------------------------------------------------------------------


def limited_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a stream with their ends; OVERLONG instead of an over-long one.

    Raises a DataError if the stream is not text; a byte order mark at its start is removed.
    """
    is_start = True
    while line := stream.readline(MAX_LINE_BYTES + 2):
        if is_start:
            check_is_text(line, str(getattr(stream, "name", "the input")))
            line, is_start = line.removeprefix(BYTE_ORDER_MARK), False
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            line = OVERLONG
        yield line


def _wide_encoding(start: bytes) -> str | None:
    """The encoding of text in units of two or four bytes, with a mark or not; None for others."""
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if start.startswith(_UTF_16_MARKS):
        return "UTF-16"
    # In text that is mostly ASCII, every second byte is zero.
    n_pairs = len(start) // 2
    zeros = [start[i : 2 * n_pairs : 2].count(0) / max(1, n_pairs) for i in (0, 1)]
    is_wide = n_pairs > 2 and max(zeros) > 0.4
    # In other scripts, only spaces and line ends have a zero.
    pairs = [start[i : i + 2] for i in range(0, min(len(start), 1 << 12), 2)]
    n_spaces = sum(pair in (b" \0", b"\n\0", b"\0 ", b"\0\n") for pair in pairs)
    is_spaced = n_spaces > 1 and max(zeros) > 0.05 and min(zeros) < 0.01
    is_big = zeros[0] > zeros[1]  # the zero comes first
    if (is_wide and min(zeros) < 0.1) or is_spaced:
        return "UTF-16BE" if is_big else "UTF-16LE"
    if is_wide and min(zeros) > 0.4:
        return "UTF-32BE" if is_big else "UTF-32LE"
    return None


def check_is_text(start: bytes, location: str) -> None:
    """Raise a DataError that names the format if a file does not begin as UTF-8 text."""
    for magic, (kind, fix) in _FORMATS.items():
        if start.startswith(magic):
            raise DataError(f"{location} is {kind}, not text", fix.replace("FILE", location))
    if start[257:262] == b"ustar":
        raise DataError(
            f"{location} is a tar archive, not text", f"name the member: `{location}!member`"
        )
    if markup := _XML.match(start.removeprefix(BYTE_ORDER_MARK)):
        kind = markup[1].decode().upper()
        raise DataError(f"{location} is {kind}, not plain text", _EXTRACT)
    if encoding := _wide_encoding(start):
        raise DataError(
            f"{location} is {encoding}, not UTF-8",
            f"convert the file: `iconv -f {encoding.lower()} -t utf-8`",
        )
    if b"\r" in start.rstrip(b"\r\n") and b"\n" not in start:
        raise DataError(
            f"{location} has lines that end in a carriage return alone",
            "convert the file: `tr '\\r' '\\n'`",
        )
