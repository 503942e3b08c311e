"""The entries of a config's `data`, read as a stream of sentence pairs.

Text is passed on as it is stored: lines end at `\\n` and nowhere else (not at U+2028, U+0085 or a
form feed), one trailing `\\r` goes, a UTF-8 byte order mark at the start of a file goes. Whatever
would shift one side against the other is an error that names file and line.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mtrain.config import FilesEntry, JsonlEntry, TsvEntry
from mtrain.data.downloads import Lock, fetch, is_url
from mtrain.errors import DataError
from mtrain.run import sha256_of

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation."""

    src: str
    tgt: str


def read_entry(entry: FilesEntry | TsvEntry | JsonlEntry, where: str, lock: Lock) -> Iterator[Pair]:
    """The pairs of an entry, in order; `where` names the entry in messages (`data.train.0`)."""
    if isinstance(entry, FilesEntry):
        return _read_files(entry, where, lock)
    if isinstance(entry, TsvEntry):
        return _read_tsv(entry, where, lock)
    return _read_jsonl(entry, where, lock)


def _read_files(entry: FilesEntry, where: str, lock: Lock) -> Iterator[Pair]:
    source = TextFile.locate(entry.source, entry.sha256.get("source"), where, lock)
    target = TextFile.locate(entry.target, entry.sha256.get("target"), where, lock)
    n_source = n_target = 0
    for src, tgt in zip_longest(source.raw_lines(), target.raw_lines()):
        n_source += src is not None
        n_target += tgt is not None
        if src is not None and tgt is not None:
            yield Pair(source.decode(src, n_source), target.decode(tgt, n_target))
    if n_source != n_target:
        raise DataError(
            f"{where}: {source.location} has {n_source:,} lines but {target.location} has "
            f"{n_target:,}",
            "line n of one file must translate line n of the other; find where they part",
        )
    source.record(lock, n_source)
    target.record(lock, n_target)


def _read_tsv(entry: TsvEntry, where: str, lock: Lock) -> Iterator[Pair]:
    file = TextFile.locate(entry.tsv, entry.sha256.get("tsv"), where, lock)
    source_column, target_column = entry.columns
    n_needed = max(entry.columns) + 1
    n_lines = 0
    for n_lines, line in file.lines():
        cells = line.split("\t")
        if len(cells) < n_needed:
            raise DataError(
                f"{file.location}:{n_lines}: {_count(len(cells), 'column')}, "
                f"but column {n_needed - 1} (counted from 0) is asked for",
                f"mend the line, or correct `columns` of {where}",
            )
        yield Pair(cells[source_column], cells[target_column])
    file.record(lock, n_lines)


def _read_jsonl(entry: JsonlEntry, where: str, lock: Lock) -> Iterator[Pair]:
    file = TextFile.locate(entry.jsonl, entry.sha256.get("jsonl"), where, lock)
    n_lines = 0
    for n_lines, line in file.lines():
        if not line.strip():
            continue
        place = f"{file.location}:{n_lines}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}", "mend or remove the line") from error
        yield Pair(
            _text_field(value, entry.source_field, place, f"source_field of {where}"),
            _text_field(value, entry.target_field, place, f"target_field of {where}"),
        )
    file.record(lock, n_lines)


def _text_field(value: Any, field: str, place: str, key: str) -> str:
    if not isinstance(value, dict):
        raise DataError(f"{place}: not a JSON object", 'write {"source": "...", "target": "..."}')
    if field not in value:
        raise DataError(
            f"{place}: no field `{field}` (found: {', '.join(value) or 'none'})",
            f"mend the line, or correct {key}",
        )
    text = value[field]
    if not isinstance(text, str):
        raise DataError(
            f"{place}: field `{field}` is {json.dumps(text, ensure_ascii=False)[:40]}, not a string"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: field `{field}` holds half of a surrogate pair, not a character",
            "write whole characters, or mend what wrote the file",
        ) from error
    return text


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

    def lines(self) -> Iterator[tuple[int, str]]:
        """(line number from 1, text)."""
        for number, line in enumerate(self.raw_lines(), start=1):
            yield number, self.decode(line, number)

    def raw_lines(self) -> Iterator[bytes]:
        """The lines as bytes, without line ends and byte order mark."""
        try:
            with open(self.path, "rb") as stored, _decompressed(stored) as file:
                is_first = True
                for line in file:
                    if is_first:
                        line = line.removeprefix(BYTE_ORDER_MARK)
                        is_first = False
                    yield line.removesuffix(b"\n").removesuffix(b"\r")
        except EOFError as error:
            raise DataError(
                f"{self.location} is cut short: its gzip stream has no end", "get the file again"
            ) from error
        except (OSError, zlib.error) as error:
            raise DataError(
                f"{self.location} cannot be read: {error}", "get the file again"
            ) from error

    def decode(self, line: bytes, number: int) -> str:
        """The text of line `number`."""
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.location}:{number}: not UTF-8 "
                f"(byte 0x{line[error.start]:02x} at position {error.start})",
                "convert the file, for example with `iconv -f latin1 -t utf-8`",
            ) from error


def _decompressed(stored: io.BufferedReader) -> io.BufferedReader:
    """The text of a file: gzip is known by its first bytes, whatever the name says."""
    if stored.peek(2)[:2] == GZIP_MAGIC:
        return io.BufferedReader(gzip.GzipFile(fileobj=stored), 1 << 18)
    return stored


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


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
