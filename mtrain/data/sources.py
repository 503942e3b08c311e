"""The entries of a config's `data`, read as a stream of sentence pairs, thousands at a time.

A new kind of entry is a section in `config.entries` and a class in `SOURCES`, which knows its label
in the lock, its files and the text of its pairs. Anything that would shift one side against the
other is an error with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

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
    Section,
    TsvEntry,
    is_url,
)
from mtrain.config.root import Config
from mtrain.data.catalogues import OpusSource, SacrebleuSource
from mtrain.data.files import split_member
from mtrain.data.hub import HubSource
from mtrain.data.lines import decode, read_aligned, read_chunks
from mtrain.data.reading import Pairs, PairSource, Reading, Source, Texts
from mtrain.data.tables import ParquetSource
from mtrain.errors import DataError


def entries_of(config: Config) -> Iterator[tuple[str, Entry]]:
    """Yield (config key, entry) of test sets, valid and train, with their languages filled in."""
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
    """Return the source and target language of an entry."""
    return entry.languages or (config.source, config.target)


def mono_of(config: Config) -> Iterator[tuple[str, MonoEntry]]:
    """Yield (config key, entry) of texts in one language."""
    for i, entry in enumerate(config.data.mono):
        yield f"data.mono.{i}", entry


def local_files(config: Config) -> Iterator[str]:
    """Yield the paths of all local files and archives that a config's data names."""
    for _, entry in (*entries_of(config), *mono_of(config)):
        for key in entry.file_keys:
            container, _ = split_member(getattr(entry, key))
            if not is_url(container):
                yield container


def read_pairs(entry: Entry, reading: Reading) -> Iterator[Pairs]:
    """Yield the pairs of an entry in order; those that are not text are dropped, or an error.

    The pairs of a `cldr` entry are generated, not read: see `data.cldr`.
    """
    source = SOURCES[type(entry)](entry, reading)
    n, n_read = reading.chunk_pairs, 0
    for src, tgt in source.texts():
        n_read += len(src)
        if None in src or None in tgt:
            readable = [pair for pair in zip(src, tgt, strict=True) if None not in pair]
            reading.drop(len(src) - len(readable), n_read)
            src, tgt = [pair[0] for pair in readable], [pair[1] for pair in readable]
        for i in range(0, len(src), n):
            chunk = src[i : i + n], tgt[i : i + n]
            yield Pairs(reading.entry, *cast(tuple[list[str], list[str]], chunk))
    reading.check(n_read)
    reading.lock.describe(source.label, name=entry.name, pairs=n_read)


def read_mono(entry: MonoEntry, reading: Reading) -> Iterator[list[str]]:
    """Yield the lines of a text in one language; those that are not text are left out."""
    source, n_lines = open_source(entry, reading), 0
    for _, lines in read_chunks(source.locate("mono"), reading):
        n_lines += len(lines)
        yield [line for line in lines if line is not None]
    reading.lock.describe(source.label, name=entry.name, lines=n_lines)


# -- kinds of entries ------------------------------------------------------------------------


class FilesSource(PairSource):
    """`{source, target}`: line n of one file with line n of the other."""

    entry: FilesEntry

    def texts(self) -> Iterator[tuple[Texts, Texts]]:
        yield from read_aligned(self.locate("source"), self.locate("target"), self.reading)


class TsvSource(PairSource):
    """`{tsv}`: two columns of a file, whose lines have as many columns as the first."""

    entry: TsvEntry

    def texts(self) -> Iterator[tuple[Texts, Texts]]:
        file, columns = self.locate("tsv"), self.entry.columns
        n_columns = 0  # in the first line
        for first, lines in read_chunks(file, self.reading):
            rows = [None if line is None else line.split("\t") for line in lines]
            for i, cells in enumerate(rows):
                if cells is None or len(cells) == n_columns:
                    continue
                n_columns = n_columns or len(cells)
                place = f"{file.location}:{first + i}"
                if len(cells) <= max(columns):
                    raise DataError(
                        f"{place}: too few columns ({len(cells)}): column {max(columns)} (counted "
                        "from 0) is needed",
                        f"fix the line, or correct `columns` of {self.reading.where}",
                    )
                if len(cells) > n_columns:  # a tab has cut a sentence in two
                    problem = DataError(
                        f"{place}: {len(cells)} columns, but {n_columns} in the first line",
                        "a tab inside a text starts a new column, even in quotes: replace it by a "
                        "space",
                    )
                    self.reading.reject(problem)
                    rows[i] = None
            src, tgt = (
                [None if row is None else row[column] for row in rows] for column in columns
            )
            yield src, tgt


class JsonlSource(PairSource):
    """`{jsonl}`: one object per line; blank lines are skipped."""

    entry: JsonlEntry

    def texts(self) -> Iterator[tuple[Texts, Texts]]:
        file = self.locate("jsonl")
        for first, lines in read_chunks(file, self.reading):
            src: Texts = []
            tgt: Texts = []
            for number, line in enumerate(lines, start=first):
                if line is not None and not line.strip():
                    continue
                place = f"{file.location}:{number}"
                value = None if line is None else _json_object(line, place)
                src.append(self._field("source_field", value, place))
                tgt.append(self._field("target_field", value, place))
            yield src, tgt

    def _field(self, key: str, value: dict[str, Any] | None, place: str) -> str | None:
        """The text of a field, None if it is not text."""
        if value is None:
            return None
        field = getattr(self.entry, key)
        if field not in value:
            raise DataError(
                f"{place}: no field `{field}` (found: {', '.join(value) or 'none'})",
                f"fix the line, or correct {key} of {self.reading.where}",
            )
        text = value[field]
        if not isinstance(text, str):
            shown = json.dumps(text, ensure_ascii=False)[:40]
            raise DataError(f"{place}: field `{field}` is {shown}, not a string")
        try:
            return decode(text.encode(), place, self.reading)
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: field `{field}` holds half of a surrogate pair, not a character",
                "write whole characters, or fix the program that wrote the file",
            ) from error


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # also an endless number or nesting
        problem = str(error)
        if isinstance(error, json.JSONDecodeError):
            problem = f"{error.msg} at character {error.colno}"
        raise DataError(f"{place}: not JSON: {problem}", "mend or remove the line") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: not a JSON object", 'write {"source": "...", "target": "..."}')
    return value


SOURCES: dict[type[Section], type[PairSource]] = {
    FilesEntry: FilesSource,
    TsvEntry: TsvSource,
    JsonlEntry: JsonlSource,
    ParquetEntry: ParquetSource,
    HubEntry: HubSource,
    OpusEntry: OpusSource,
    SacrebleuEntry: SacrebleuSource,
}


def open_source(entry: Entry | MonoEntry, reading: Reading) -> Source:
    """Return the source of an entry; `cldr` and `mono` need no class of their own."""
    return SOURCES.get(type(entry), Source)(entry, reading)
