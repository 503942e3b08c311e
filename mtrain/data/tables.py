"""Pairs in the columns of tables: parquet files, and the batches of `datasets`.

A column is named by its path: `text`, or `translation.en` inside a column of structures.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from mtrain.config.entries import ParquetEntry, TableEntry
from mtrain.data.files import StoredFile
from mtrain.data.lines import decode
from mtrain.data.reading import PairSource, Reading, Texts
from mtrain.errors import DataError

ROWS_PER_BATCH = 20_000


class ParquetSource(PairSource):
    """`{parquet}`"""

    entry: ParquetEntry

    def texts(self) -> Iterator[tuple[Texts, Texts]]:
        yield from read_parquet(self.locate("parquet"), self.entry, self.reading)


def read_parquet(
    file: StoredFile, entry: TableEntry, reading: Reading
) -> Iterator[tuple[Texts, Texts]]:
    """Yield the sources and targets in a parquet file, many at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with _seekable(file) as stream:
            table = parquet.ParquetFile(stream)
            columns = find_columns(table.schema_arrow, entry, file.location, reading)
            n_rows = 0
            for batch in table.iter_batches(ROWS_PER_BATCH, columns=list(columns)):
                yield texts_of(batch, columns, file.location, n_rows, reading)
                n_rows += batch.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise DataError(
            f"{file.location} is not a complete parquet file: {first_line}", "get the file again"
        ) from error


def find_columns(schema: Any, entry: TableEntry, place: str, reading: Reading) -> tuple[str, str]:
    """Return the paths of the source and the target column in an Arrow schema."""
    paths = list(_text_columns(schema))
    assert entry.languages is not None
    found = []
    for side, language in zip(("source", "target"), entry.languages, strict=True):
        given = getattr(entry, f"{side}_column")
        candidates = [given] if given else [f"translation.{language}", language, side]
        path = next((candidate for candidate in candidates if candidate in paths), None)
        if path is None:
            wanted = " or ".join(f"`{candidate}`" for candidate in candidates)
            raise DataError(
                f"{place}: no column of text {wanted} (found: {', '.join(paths) or 'none'})",
                f"name it: `{side}_column` of {reading.where}",
            )
        found.append(path)
    return found[0], found[1]


def _text_columns(schema: Any) -> Iterator[str]:
    """Yield the paths of all columns of strings."""
    from pyarrow import types

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return bool(types.is_string(kind) or types.is_large_string(kind))

    for field in schema:
        if types.is_struct(field.type):
            inner = [field.type.field(i) for i in range(field.type.num_fields)]
            yield from (f"{field.name}.{item.name}" for item in inner if is_text(item.type))
        elif is_text(field.type):
            yield field.name


def texts_of(
    table: Any, columns: Sequence[str], place: str, n_before: int, reading: Reading
) -> tuple[Texts, Texts]:
    """Return two columns of an Arrow table or batch; a null is an empty text.

    n_before  rows that precede the table, for the row numbers in messages
    """
    source, target = (
        _texts(_column(table, path), f"{place}: row ", n_before, reading) for path in columns
    )
    return source, target


def _column(table: Any, path: str) -> Any:
    from pyarrow import compute

    name, _, inner = path.partition(".")
    if name not in table.schema.names or path in table.schema.names:
        return table.column(path)
    return compute.struct_field(table.column(name), inner)


def _texts(column: Any, place: str, n_before: int, reading: Reading) -> Texts:
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    raw = [value or b"" for value in column.cast(pyarrow.large_binary()).to_pylist()]
    try:
        whole = b"".join(raw).decode()  # the writer may not have checked what it wrote
    except UnicodeDecodeError:
        whole = "\0"
    if "\0" not in whole:
        return [text.decode() for text in raw]
    return [
        decode(text, f"{place}{number}", reading)
        for number, text in enumerate(raw, start=n_before + 1)
    ]


@contextmanager
def _seekable(file: StoredFile) -> Iterator[IO[bytes]]:
    """Open a parquet file, which is read from its end: an archived one is unpacked temporarily."""
    with file.open() as stream:
        if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
            yield stream
        else:
            with tempfile.TemporaryFile() as unpacked:
                shutil.copyfileobj(stream, unpacked)
                unpacked.seek(0)
                yield unpacked
