"""The entries of a config's `data`, read as a stream of sentence pairs, thousands at a time.

Read `read_chunks` first: each kind of entry has its reader in `_READERS`. Whatever would shift one
side against the other is an error that names file and line. Where the bytes come from stands in
`stored_files` and `downloads`, how lines are told apart in `text_files`, columns in `tables`,
what is known by name in `hub` and `catalogues`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrain.config.entries import (
    CodedEntry,
    Entry,
    FilesEntry,
    HubEntry,
    JsonlEntry,
    MonoEntry,
    OpusEntry,
    ParquetEntry,
    SacrebleuEntry,
    TsvEntry,
    is_url,
)
from mtrain.config.root import Config
from mtrain.data.catalogues import (
    FilePair,
    fetch_opus,
    fetch_sacrebleu,
    locate_opus,
    locate_sacrebleu,
    opus_label,
    opus_url,
    sacrebleu_label,
    sacrebleu_urls,
)
from mtrain.data.downloads import Lock, fetch
from mtrain.data.files import StoredFile, split_member
from mtrain.data.hub import hub_label, known_split, read_hub, resolve
from mtrain.data.lines import Unreadable, decode, note_or_raise, read_blocks
from mtrain.data.misalignment import Lengths, lines_that_fit
from mtrain.data.tables import Texts, read_parquet
from mtrain.errors import DataError

Chunk = tuple[list[str], list[str]]  # sources and their targets, as many of each
RawChunk = tuple[Texts, Texts]  # None: a line that is no text
_CHUNK_LINES = 20_000


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation."""

    src: str
    tgt: str


def entries_of(config: Config) -> Iterator[tuple[str, Entry]]:
    """(key in the config, entry) of test sets, valid and train; languages are filled in."""
    languages = (config.source, config.target)
    keyed = {f"data.test.{name}": entry for name, entry in config.data.test.items()}
    if config.data.valid is not None:
        keyed["data.valid"] = config.data.valid
    keyed |= {f"data.train.{i}": entry for i, entry in enumerate(config.data.train)}
    for key, entry in keyed.items():
        if isinstance(entry, CodedEntry) and entry.languages is None:
            entry = entry.model_copy(update={"languages": languages})
        yield key, entry


def languages_of(entry: Entry, config: Config) -> tuple[str, str]:
    """Of the source and the target of an entry."""
    return entry.languages or (config.source, config.target)


def mono_of(config: Config) -> Iterator[tuple[str, MonoEntry]]:
    """(key in the config, entry) of texts in one language."""
    for i, entry in enumerate(config.data.mono):
        yield f"data.mono.{i}", entry


def local_files(config: Config) -> Iterator[str]:
    """The paths that a config's data names, without members of archives."""
    for _, entry in (*entries_of(config), *mono_of(config)):
        for location in _named_files(entry):
            container, _ = split_member(location)
            if not is_url(container):
                yield container


# -- reading ---------------------------------------------------------------------------------


def read_entry(
    entry: Entry, where: str, lock: Lock, unreadable: Unreadable | None = None
) -> Iterator[Pair]:
    """The pairs of an entry, one by one; see `read_chunks`."""
    for sources, targets in read_chunks(entry, where, lock, _CHUNK_LINES, unreadable):
        yield from map(Pair, sources, targets)


def read_chunks(
    entry: Entry, where: str, lock: Lock, n: int, unreadable: Unreadable | None = None
) -> Iterator[Chunk]:
    """The pairs of an entry in order, up to `n` in a chunk: its sources, and their targets.

    where       names the entry in messages (`data.train.0`)
    unreadable  drops and counts pairs that are no text (not UTF-8, or with a NUL), up to its
                share; without it (valid and test sets, whose lines must stay), an error

    A `cldr` entry has no reader here: see `data.cldr`.
    """
    where = f"{where} ({entry.name})" if entry.name else where
    n_read = 0
    for sources, targets in _READERS[type(entry)](entry, where, lock, n, unreadable):
        n_read += len(sources)
        chunk = _readable(sources, targets)
        if unreadable is not None:
            unreadable.drop(len(sources) - len(chunk[0]), n_read, where)
        for start in range(0, len(chunk[0]), n):
            yield chunk[0][start : start + n], chunk[1][start : start + n]
    if unreadable is not None:
        unreadable.check(n_read, where)
    lock.describe(label_of(entry), name=entry.name, pairs=n_read)


def read_mono(entry: MonoEntry, where: str, lock: Lock, n: int) -> Iterator[list[str]]:
    """The lines of a text in one language, up to `n` at a time; what is no text is left out."""
    file = StoredFile.locate(entry.mono, entry.sha256.get("mono"), where, lock)
    lines = _Lines(file, Unreadable(max_share=1))
    while chunk := lines.take(n):
        yield [line for line in chunk if line is not None]
    file.record(lock, lines.n_taken)
    lock.describe(label_of(entry), name=entry.name, lines=lines.n_taken)


def _readable(sources: Texts, targets: Texts) -> Chunk:
    """The pairs of which both sides are text."""
    if None in sources or None in targets:
        pairs = zip(sources, targets, strict=True)
        readable = [(src, tgt) for src, tgt in pairs if src is not None and tgt is not None]
        return [src for src, _ in readable], [tgt for _, tgt in readable]
    return sources, targets  # type: ignore[return-value]  # None is in neither


class _Lines:
    """The lines of a file, as many at a time as are asked for."""

    def __init__(self, file: StoredFile, unreadable: Unreadable | None) -> None:
        self._blocks = read_blocks(file, unreadable)
        self._waiting: Texts = []
        self.n_taken = 0

    def take(self, n: int) -> Texts:
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
) -> Iterator[RawChunk]:
    source = StoredFile.locate(entry.source, entry.sha256.get("source"), where, lock)
    target = StoredFile.locate(entry.target, entry.sha256.get("target"), where, lock)
    return _read_aligned((source, target), where, lock, n, unreadable)


def _read_opus(
    entry: OpusEntry, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[RawChunk]:
    return _read_aligned(locate_opus(entry, where, lock), where, lock, n, unreadable)


def _read_sacrebleu(
    entry: SacrebleuEntry, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[RawChunk]:
    return _read_aligned(locate_sacrebleu(entry, where, lock), where, lock, n, unreadable)


def _read_aligned(
    files: FilePair, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[RawChunk]:
    """Line n of one file with line n of the other."""
    source, target = files
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
    n_source, n_target = source_lines.count_rest(), target_lines.count_rest()
    raise DataError(
        f"{where}: {source.location} has {n_source:,} lines but {target.location} has "
        f"{n_target:,}{_where_they_part(source, target)}",
        "line n of one file must translate line n of the other; find where they part",
    )


def _where_they_part(source: StoredFile, target: StoredFile) -> str:
    """What the lengths of the lines tell of that, in words."""
    lengths = _lengths(source), _lengths(target)
    n_fit = lines_that_fit(*lengths)
    if n_fit is None:
        return ""
    if n_fit == 0:
        return "; by their lengths they do not go together from the first line on"
    if n_fit == min(map(len, lengths)):
        return "; by their lengths all lines of the shorter one fit: its end may be missing"
    return f"; by their lengths they go together up to about line {n_fit:,}, and not after it"


def _lengths(file: StoredFile) -> Lengths:
    """Characters of each line."""
    blocks = read_blocks(file, Unreadable(max_share=1))
    lengths = [np.array([len(line or "") for line in block]) for block in blocks]
    return np.concatenate(lengths) if lengths else np.empty(0, np.int64)


def _read_tsv(
    entry: TsvEntry, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[RawChunk]:
    file = StoredFile.locate(entry.tsv, entry.sha256.get("tsv"), where, lock)
    source_column, target_column = entry.columns
    n_needed, n_usual = max(entry.columns) + 1, 0
    lines = _Lines(file, unreadable)
    while chunk := lines.take(n):
        rows = [None if line is None else line.split("\t") for line in chunk]
        for number, cells in enumerate(rows, start=lines.n_taken - len(rows) + 1):
            if cells is None or len(cells) == n_usual:
                continue
            n_usual = n_usual or len(cells)
            place = f"{file.location}:{number}"
            if len(cells) < n_needed:
                raise DataError(
                    f"{place}: {_count(len(cells), 'column')}, "
                    f"but column {n_needed - 1} (counted from 0) is asked for",
                    f"mend the line, or correct `columns` of {where}",
                )
            if len(cells) > n_usual:  # a tab has cut some sentence in two
                note_or_raise(
                    DataError(
                        f"{place}: {len(cells)} columns, but {n_usual} in the first line",
                        "a tab inside a text parts it, quotes or not: replace it by a space",
                    ),
                    unreadable,
                )
                rows[number - 1 - (lines.n_taken - len(rows))] = None
        yield (
            [None if cells is None else cells[source_column] for cells in rows],
            [None if cells is None else cells[target_column] for cells in rows],
        )
    file.record(lock, lines.n_taken)


def _read_jsonl(
    entry: JsonlEntry, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[RawChunk]:
    file = StoredFile.locate(entry.jsonl, entry.sha256.get("jsonl"), where, lock)
    fields = {"source_field": entry.source_field, "target_field": entry.target_field}
    lines = _Lines(file, unreadable)
    while chunk := lines.take(n):
        sides: dict[str, Texts] = {key: [] for key in fields}
        for number, line in enumerate(chunk, start=lines.n_taken - len(chunk) + 1):
            if line is not None and not line.strip():
                continue
            place = f"{file.location}:{number}"
            value = None if line is None else _json_object(line, place)
            for key, field in fields.items():
                if value is None:
                    sides[key].append(None)
                else:
                    text = _text_field(value, field, place, f"{key} of {where}")
                    sides[key].append(decode(text.encode(), place, unreadable))
        yield sides["source_field"], sides["target_field"]
    file.record(lock, lines.n_taken)


def _read_parquet(
    entry: ParquetEntry, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[RawChunk]:
    file = StoredFile.locate(entry.parquet, entry.sha256.get("parquet"), where, lock)
    return read_parquet(file, entry, where, unreadable)


def _read_hub(
    entry: HubEntry, where: str, lock: Lock, n: int, unreadable: Unreadable | None
) -> Iterator[RawChunk]:
    return read_hub(entry, where, lock, unreadable)


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        problem = f"{error.msg} at character {error.colno}"
        raise DataError(f"{place}: not JSON: {problem}", "mend or remove the line") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting that is endless
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


_READERS: dict[type[Any], Callable[..., Iterator[RawChunk]]] = {
    FilesEntry: _read_files,
    TsvEntry: _read_tsv,
    JsonlEntry: _read_jsonl,
    ParquetEntry: _read_parquet,
    HubEntry: _read_hub,
    OpusEntry: _read_opus,
    SacrebleuEntry: _read_sacrebleu,
}


# -- what an entry depends on ----------------------------------------------------------------


def label_of(entry: Entry | MonoEntry) -> str:
    """What the lock calls a source; the same for entries that read the same."""
    if isinstance(entry, HubEntry):
        return hub_label(entry)
    if isinstance(entry, OpusEntry):
        return opus_label(entry)
    if isinstance(entry, SacrebleuEntry):
        return sacrebleu_label(entry)
    return " | ".join(_named_files(entry)) or "cldr"


def inputs_of(
    entry: Entry | MonoEntry, where: str, lock: Lock, may_ask: bool
) -> Iterator[tuple[str, str | None]]:
    """(location, sha256) of the files of an entry; of a local file the sha256 is left open.

    What comes from elsewhere and is not in the lock yet is asked for or downloaded, if it may be.
    """
    if isinstance(entry, HubEntry):
        split = resolve(entry, where, lock) if may_ask else known_split(entry, lock)
        locations = split.locations(entry) if split else []
        yield from ((location, lock.expect(location)) for location in locations)
    elif isinstance(entry, OpusEntry):
        url, sha256 = opus_url(entry), entry.sha256.get("opus")
        if may_ask and not (sha256 or lock.expect(url)):
            fetch_opus(entry, where, lock)
        yield url, sha256 or lock.expect(url)
    elif isinstance(entry, SacrebleuEntry):
        urls = sacrebleu_urls(entry, where)
        if may_ask and not all(map(lock.expect, urls)):
            fetch_sacrebleu(entry, where, lock)
        yield from ((url, lock.expect(url)) for url in urls)
    else:
        for location, sha256 in _named_files(entry).items():
            container, _ = split_member(location)
            if not is_url(container):
                yield container, None
                continue
            if may_ask and not (sha256 or lock.expect(container)):
                fetch(container, None, lock)
            yield container, sha256 or lock.expect(container)


def _named_files(entry: Entry | MonoEntry) -> dict[str, str | None]:
    """The paths and URLs in an entry, and the sha256 that it gives them."""
    given = {key: getattr(entry, key, None) for key in ("source", "target", *_SINGLE_FILE_KEYS)}
    sha256: dict[str, str] = getattr(entry, "sha256", {})
    return {location: sha256.get(key) for key, location in given.items() if location is not None}


_SINGLE_FILE_KEYS = ("tsv", "jsonl", "parquet", "mono")
