"""The entries of a config's `data`, read as a stream of sentence pairs, thousands at a time.

Whatever would shift one side against the other is an error that names file and line. How lines
are told apart stands in `data.text_files`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mtrain.config import FilesEntry, JsonlEntry, TsvEntry
from mtrain.data.downloads import Lock
from mtrain.data.text_files import TextFile, Unreadable
from mtrain.errors import DataError

Chunk = tuple[list[str], list[str]]  # sources and their targets, as many of each
_RawChunk = tuple[list[str | None], list[str | None]]  # None: a line that is no text


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation."""

    src: str
    tgt: str


def read_entry(
    entry: FilesEntry | TsvEntry | JsonlEntry,
    where: str,
    lock: Lock,
    unreadable: Unreadable | None = None,
) -> Iterator[Pair]:
    """The pairs of an entry, one by one; see `read_chunks`."""
    for sources, targets in read_chunks(entry, where, lock, 10_000, unreadable):
        yield from map(Pair, sources, targets)


def read_chunks(
    entry: FilesEntry | TsvEntry | JsonlEntry,
    where: str,
    lock: Lock,
    n: int,
    unreadable: Unreadable | None = None,
) -> Iterator[Chunk]:
    """The pairs of an entry in order, up to `n` in a chunk: its sources, and their targets.

    where       names the entry in messages (`data.train.0`)
    unreadable  drops and counts pairs that are no text (not UTF-8, or with a NUL), up to its
                share; without it (valid and test sets, whose lines must stay), an error
    """
    if isinstance(entry, FilesEntry):
        chunks = _read_files(entry, where, lock, n, unreadable)
    elif isinstance(entry, TsvEntry):
        chunks = _read_tsv(entry, where, lock, n, unreadable)
    else:
        chunks = _read_jsonl(entry, where, lock, n, unreadable)
    n_read = 0
    for sources, targets in chunks:
        n_read += len(sources)
        chunk = _readable(sources, targets)
        if unreadable is not None:
            unreadable.drop(len(sources) - len(chunk[0]), n_read, where)
        if chunk[0]:
            yield chunk
    if unreadable is not None:
        unreadable.check(n_read, where)


def _readable(sources: list[str | None], targets: list[str | None]) -> Chunk:
    """The pairs of which both sides are text."""
    if None in sources or None in targets:
        pairs = zip(sources, targets, strict=True)
        readable = [(src, tgt) for src, tgt in pairs if src is not None and tgt is not None]
        return [src for src, _ in readable], [tgt for _, tgt in readable]
    return sources, targets  # type: ignore[return-value]  # None is in neither


class _Lines:
    """The lines of a file, as many at a time as are asked for."""

    def __init__(self, file: TextFile, unreadable: Unreadable | None) -> None:
        self._blocks = file.blocks(unreadable)
        self._waiting: list[str | None] = []
        self.n_taken = 0

    def take(self, n: int) -> list[str | None]:
        """The next n lines, fewer at the end of the file."""
        while len(self._waiting) < n and (block := next(self._blocks, None)) is not None:
            self._waiting += block
        lines, self._waiting = self._waiting[:n], self._waiting[n:]
        self.n_taken += len(lines)
        return lines

    def count_rest(self) -> int:
        """Read to the end of the file; returns how many lines it has in all."""
        while self.take(100_000):
            pass
        return self.n_taken


def _read_files(
    entry: FilesEntry, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[_RawChunk]:
    source = TextFile.locate(entry.source, entry.sha256.get("source"), where, lock)
    target = TextFile.locate(entry.target, entry.sha256.get("target"), where, lock)
    source_lines, target_lines = _Lines(source, unreadable), _Lines(target, unreadable)
    while True:
        sources, targets = source_lines.take(n), target_lines.take(n)
        if len(sources) != len(targets):
            break
        if not sources:
            source.record(lock, source_lines.n_taken)
            target.record(lock, target_lines.n_taken)
            return
        yield sources, targets
    raise DataError(
        f"{where}: {source.location} has {source_lines.count_rest():,} lines but "
        f"{target.location} has {target_lines.count_rest():,}",
        "line n of one file must translate line n of the other; find where they part",
    )


def _read_tsv(
    entry: TsvEntry, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[_RawChunk]:
    file = TextFile.locate(entry.tsv, entry.sha256.get("tsv"), where, lock)
    source_column, target_column = entry.columns
    n_needed = max(entry.columns) + 1
    lines = _Lines(file, unreadable)
    while chunk := lines.take(n):
        rows = [None if line is None else line.split("\t") for line in chunk]
        for number, cells in enumerate(rows, start=lines.n_taken - len(rows) + 1):
            if cells is not None and len(cells) < n_needed:
                raise DataError(
                    f"{file.location}:{number}: {_count(len(cells), 'column')}, "
                    f"but column {n_needed - 1} (counted from 0) is asked for",
                    f"mend the line, or correct `columns` of {where}",
                )
        yield (
            [None if cells is None else cells[source_column] for cells in rows],
            [None if cells is None else cells[target_column] for cells in rows],
        )
    file.record(lock, lines.n_taken)


def _read_jsonl(
    entry: JsonlEntry, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[_RawChunk]:
    file = TextFile.locate(entry.jsonl, entry.sha256.get("jsonl"), where, lock)
    lines = _Lines(file, unreadable)
    while chunk := lines.take(n):
        sources: list[str | None] = []
        targets: list[str | None] = []
        for number, line in enumerate(chunk, start=lines.n_taken - len(chunk) + 1):
            if line is None:
                sources.append(None)
                targets.append(None)
            elif line.strip():
                place = f"{file.location}:{number}"
                value = _json_object(line, place)
                key = f"source_field of {where}"
                sources.append(_text_field(value, entry.source_field, place, key))
                key = f"target_field of {where}"
                targets.append(_text_field(value, entry.target_field, place, key))
        yield sources, targets
    file.record(lock, lines.n_taken)


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}", "mend or remove the line") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: not a JSON object", 'write {"source": "...", "target": "..."}')
    return value


def _text_field(value: dict[str, Any], field: str, place: str, key: str) -> str:
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


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
