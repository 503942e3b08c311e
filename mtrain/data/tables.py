"""Pairs in the columns of tables: parquet files, and what `datasets` yields.

A column is named by its path: `text`, or `translation.en` inside a column of structures.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from mtrain.config.entries import HubEntry, ParquetEntry
from mtrain.data.files import StoredFile
from mtrain.data.lines import Unreadable, decode
from mtrain.errors import DataError

Texts = list[str | None]  # None: no text, and noted so
ROWS_PER_BATCH = 20_000


def read_parquet(
    file: StoredFile, entry: ParquetEntry | HubEntry, where: str, unreadable: Unreadable | None
) -> Iterator[tuple[Texts, Texts]]:
    """Sources and targets of a parquet file, many at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with _seekable(file) as stream:
            table = parquet.ParquetFile(stream)
            columns = find_columns(table.schema_arrow, entry, file.location, where)
            n_rows = 0
            for batch in table.iter_batches(ROWS_PER_BATCH, columns=list(columns)):
                yield texts_of(batch, columns, file.location, n_rows, unreadable)
                n_rows += batch.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.location} is no whole parquet file: {_first_line(error)}", "get the file again"
        ) from error


def find_columns(
    schema: Any, entry: ParquetEntry | HubEntry, place: str, where: str
) -> tuple[str, str]:
    """The paths of the source and the target column in an Arrow schema."""
    paths = _text_columns(schema)
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
                f"name it: `{side}_column` of {where}",
            )
        found.append(path)
    return found[0], found[1]


def _text_columns(schema: Any) -> list[str]:
    """The paths of all columns of strings."""
    import pyarrow

    paths = []
    for field in schema:
        if pyarrow.types.is_struct(field.type):
            inner = [field.type.field(i) for i in range(field.type.num_fields)]
            paths += [f"{field.name}.{item.name}" for item in inner if _is_text(item.type)]
        elif _is_text(field.type):
            paths.append(field.name)
    return paths


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def texts_of(
    table: Any, columns: Sequence[str], place: str, n_before: int, unreadable: Unreadable | None
) -> tuple[Texts, Texts]:
    """Two columns of an Arrow table or batch; a null is an empty text.

    n_before rows of the same place come before, for the numbers in messages.
    """
    source, target = (
        _texts(_column(table, path), f"{place}: row ", n_before, unreadable) for path in columns
    )
    return source, target


def _column(table: Any, path: str) -> Any:
    from pyarrow import compute

    name, _, inner = path.partition(".")
    if name not in table.schema.names or path in table.schema.names:
        name, inner = path, ""
    column = table.column(name)
    return compute.struct_field(column, inner) if inner else column


def _texts(column: Any, place: str, n_before: int, unreadable: Unreadable | None) -> Texts:
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
        decode(text, f"{place}{number}", unreadable)
        for number, text in enumerate(raw, start=n_before + 1)
    ]


@contextmanager
def _seekable(file: StoredFile) -> Iterator[IO[bytes]]:
    """A parquet file is read from its end: one in an archive is unpacked to a temporary file."""
    with file.open() as stream:
        if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
            yield stream
        else:
            with tempfile.TemporaryFile() as unpacked:
                shutil.copyfileobj(stream, unpacked)
                unpacked.seek(0)
                yield unpacked


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
