"""Memory-mapped token ids: what training reads.

A store of n pairs named `train` is a few files in a directory, little-endian:

    train.json              number of pairs and tokens, types of ids
    train.source.ids        all source ids, one sentence after the other, without BOS and EOS
    train.source.offsets    n + 1 int64: sentence i is ids[offsets[i]:offsets[i + 1]]
    train.target.ids        the same for the target
    train.target.offsets
    train.sources           n uint16: the number of each pair's entry in data.train, ascending
    train.target.hashes     n uint64: `cleaning.hash_text` of each target, where stored
    train.text              `source TAB target` a line, where pieces are drawn anew every epoch

Ids are uint16 where the vocabulary allows, uint32 otherwise. Opening maps the files and compares
their sizes with train.json; nothing is read, however large the store. `check` reads all of it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from mtrain.errors import DataError
from mtrain.storage import parse_json, read_bytes, sha256_of, storage_errors, write_json

FORMAT = 2
SIDES = ("source", "target")


_Count = Annotated[int, Field(ge=0, lt=1 << 48)]


class _Header(TypedDict):
    format: Literal[2]
    n_pairs: _Count
    n_tokens: tuple[_Count, _Count]
    dtypes: tuple[Literal["<u2", "<u4"], Literal["<u2", "<u4"]]


_HEADER: TypeAdapter[dict[str, Any]] = TypeAdapter[Any](_Header)

Ids = NDArray[Any]  # uint16 or uint32
_OFFSET_DTYPE, _ENTRY_DTYPE, _HASH_DTYPE = np.dtype("<i8"), np.dtype("<u2"), np.dtype("<u8")
_READ_AT_ONCE = 1 << 20  # offsets


@dataclass(frozen=True, slots=True)
class Sentences:
    """One side of some pairs: all ids, one sentence after the other, and how many each has."""

    ids: Ids
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]], dtype: np.dtype[Any]) -> Sentences:
        """From a list of ids a sentence."""
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        ids = np.fromiter(chain.from_iterable(sentences), dtype, int(lengths.sum()))
        return cls(ids, lengths)


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds the ids of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclass(frozen=True)
class StoreCounts:
    """What a finished store holds; sha256 of each file by its name."""

    n_pairs: int
    n_source_tokens: int
    n_target_tokens: int
    sha256: dict[str, str]


class StoreWriter:
    """Writes a store, some pairs at a time; it is readable once closed.

    The directory is one under construction: whoever owns it renames it when all is written.
    As a context manager it leaves no file open; only `close` finishes the store.
    """

    def __init__(self, directory: Path, name: str, vocab_sizes: tuple[int, int]) -> None:
        self._header = directory / f"{name}.json"
        self._n_pairs = 0
        self._entries = _HashedFile(directory / f"{name}.sources")
        self._hashes_path = directory / f"{name}.target.hashes"
        self._hashes: _HashedFile | None = None
        self._text_path = directory / f"{name}.text"
        self._text: _HashedFile | None = None
        self._source, self._target = (
            _SideWriter(directory, f"{name}.{side}", vocab_size)
            for side, vocab_size in zip(SIDES, vocab_sizes, strict=True)
        )

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close_files()

    def append(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Add pairs of (source ids, target ids), without specials, of entry 0."""
        self.extend(
            Sentences.of([source for source, _ in pairs], self._source.dtype),
            Sentences.of([target for _, target in pairs], self._target.dtype),
        )

    def extend(
        self,
        source: Sentences,
        target: Sentences,
        entry: int = 0,
        target_hashes: NDArray[np.uint64] | None = None,
    ) -> None:
        """Add pairs of one entry of data.train; with hashes always, or never."""
        self._source.extend(source)
        self._target.extend(target)
        self._entries.write(np.full(len(source.lengths), entry, _ENTRY_DTYPE).tobytes())
        if target_hashes is not None:
            if self._hashes is None:
                self._hashes = _HashedFile(self._hashes_path)
            self._hashes.write(target_hashes.tobytes())
        self._n_pairs += len(source.lengths)

    def keep_text(self, lines: bytes) -> None:
        """Add the text of pairs, as `source TAB target LF` each; of all pairs, or of none."""
        if self._text is None:
            self._text = _HashedFile(self._text_path)
        self._text.write(lines)

    def close(self) -> StoreCounts:
        """Finish the files; the header comes last, so a store without one is no store."""
        sha256 = self._close_files()
        write_json(
            self._header,
            {
                "format": FORMAT,
                "n_pairs": self._n_pairs,
                "n_tokens": [self._source.n_tokens, self._target.n_tokens],
                "dtypes": [self._source.dtype.str, self._target.dtype.str],
            },
        )
        sha256[self._header.name] = sha256_of(self._header)
        return StoreCounts(self._n_pairs, self._source.n_tokens, self._target.n_tokens, sha256)

    def _close_files(self) -> dict[str, str]:
        files = [*self._source.files, *self._target.files, self._entries]
        files += [file for file in (self._hashes, self._text) if file is not None]
        return {file.path.name: file.close() for file in files}


class _SideWriter:
    """Appends one side's ids and offsets to their two files, hashing as it goes."""

    def __init__(self, directory: Path, name: str, vocab_size: int) -> None:
        self.dtype = id_dtype(vocab_size)
        self.n_tokens = 0
        self._ids = _HashedFile(directory / f"{name}.ids")
        self._offsets = _HashedFile(directory / f"{name}.offsets")
        self._offsets.write(np.zeros(1, _OFFSET_DTYPE).tobytes())
        self.files = (self._ids, self._offsets)

    def extend(self, sentences: Sentences) -> None:
        self._ids.write(sentences.ids.astype(self.dtype, copy=False).tobytes())
        offsets = self.n_tokens + np.cumsum(sentences.lengths)
        self._offsets.write(offsets.astype(_OFFSET_DTYPE, copy=False).tobytes())
        self.n_tokens += len(sentences.ids)


class _HashedFile:
    """A file that is written once, in order, and knows its sha256 at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        with storage_errors(path):
            self._file = open(path, "wb")  # noqa: SIM115 (closed by close)

    def write(self, data: bytes) -> None:
        with storage_errors(self.path):
            self._file.write(data)
        self._digest.update(data)

    def close(self) -> str:
        with storage_errors(self.path):
            self._file.close()
        return self._digest.hexdigest()


class TokenStore:
    """A finished store: ids and lengths of n pairs, read from disk only as they are touched.

    src_ids, tgt_ids          all ids of a side, one sentence after the other
    src_offsets, tgt_offsets  (n + 1,) int64: sentence i is ids[offsets[i]:offsets[i + 1]]
    entries                   (n,) uint16, ascending: the number of each pair's entry in data.train
    """

    def __init__(self, arrays: Sequence[NDArray[Any]], offset_files: Sequence[Path]) -> None:
        self.src_ids, self.src_offsets, self.tgt_ids, self.tgt_offsets, self.entries = arrays
        self._offset_files = offset_files

    @classmethod
    def open(cls, directory: Path, name: str = "train") -> TokenStore:
        """Map a store's files, or raise a DataError that names the one that is damaged."""
        header = _read_header(directory / f"{name}.json")
        n_pairs = header["n_pairs"]
        arrays, offset_files = [], []
        for side, n_tokens, dtype in zip(SIDES, header["n_tokens"], header["dtypes"], strict=True):
            path = directory / f"{name}.{side}.offsets"
            offsets = _map(path, _OFFSET_DTYPE, n_pairs + 1)
            if offsets[0] != 0 or offsets[-1] != n_tokens:
                raise _damaged(path, f"its ends are not 0 and {n_tokens}")
            arrays += [_map(directory / f"{name}.{side}.ids", np.dtype(dtype), n_tokens), offsets]
            offset_files.append(path)
        arrays.append(_map(directory / f"{name}.sources", _ENTRY_DTYPE, n_pairs))
        return cls(arrays, offset_files)

    def check(self, vocab_sizes: tuple[int, int], max_length: int, n_entries: int) -> None:
        """A DataError where some number cannot be right: damage that `open` does not see.

        Ids are below the size of their vocabulary, sentences have 1 to `max_length` of them, and
        the numbers of entries ascend below `n_entries`.
        """
        sides = (self.src_ids, self.src_offsets), (self.tgt_ids, self.tgt_offsets)
        for (ids, offsets), vocab_size, path in zip(
            sides, vocab_sizes, self._offset_files, strict=True
        ):
            if any(part.max() >= vocab_size for part in _parts(ids)):
                raise _damaged(path.with_suffix(".ids"), f"an id is not below {vocab_size}")
            lengths = (np.diff(part) for part in _parts(offsets, overlap=1))
            if any(part.min() < 1 or part.max() > max_length for part in lengths if len(part)):
                raise _damaged(path, f"a sentence has not 1 to {max_length} pieces")
        for part in _parts(self.entries, overlap=1):
            if part[-1] >= n_entries or (part[1:] < part[:-1]).any():
                path = self._offset_files[0].with_name("train.sources")
                raise _damaged(path, "the numbers of entries do not ascend")

    def __len__(self) -> int:
        return len(self.src_offsets) - 1

    @cached_property
    def src_lengths(self) -> NDArray[np.uint16]:
        """(n,) source pieces of each pair, without specials."""
        return _lengths(self._offset_files[0], len(self))

    @cached_property
    def tgt_lengths(self) -> NDArray[np.uint16]:
        """(n,) target pieces of each pair, without specials."""
        return _lengths(self._offset_files[1], len(self))

    def src(self, index: int) -> Ids:
        """The source ids of a pair."""
        return self.src_ids[self.src_offsets[index] : self.src_offsets[index + 1]]

    def tgt(self, index: int) -> Ids:
        """The target ids of a pair."""
        return self.tgt_ids[self.tgt_offsets[index] : self.tgt_offsets[index + 1]]


class TurnedStore(TokenStore):
    """The pairs of a store, some of them the other way round: their target is the source here."""

    def __init__(self, store: TokenStore, is_turned: NDArray[np.bool_]) -> None:
        """is_turned (n,)"""
        sides = (store.src_ids, store.src_offsets, store.tgt_ids, store.tgt_offsets)
        super().__init__([*sides, store.entries], store._offset_files)
        self._store, self._is_turned = store, is_turned

    @cached_property
    def src_lengths(self) -> NDArray[np.uint16]:
        return np.where(self._is_turned, self._store.tgt_lengths, self._store.src_lengths)

    @cached_property
    def tgt_lengths(self) -> NDArray[np.uint16]:
        return np.where(self._is_turned, self._store.src_lengths, self._store.tgt_lengths)

    def src(self, index: int) -> Ids:
        return self._store.tgt(index) if self._is_turned[index] else self._store.src(index)

    def tgt(self, index: int) -> Ids:
        return self._store.src(index) if self._is_turned[index] else self._store.tgt(index)


def _lengths(path: Path, n_sentences: int) -> NDArray[np.uint16]:
    """(n,) from a file of n + 1 offsets, read in order: mapped, all of it would stay in memory."""
    lengths = np.empty(n_sentences, np.uint16)  # `data.max_length` is far below 2^16
    with open(path, "rb") as file:
        for start in range(0, n_sentences, _READ_AT_ONCE):
            file.seek(start * _OFFSET_DTYPE.itemsize)
            offsets = np.fromfile(file, _OFFSET_DTYPE, _READ_AT_ONCE + 1)
            lengths[start : start + _READ_AT_ONCE] = np.diff(offsets)
    return lengths


def _parts(array: NDArray[Any], overlap: int = 0) -> Iterator[NDArray[Any]]:
    """An array in parts that share `overlap` items, so that little of it is in memory."""
    for start in range(0, max(0, len(array) - overlap), _READ_AT_ONCE):
        yield array[start : start + _READ_AT_ONCE + overlap]


def read_target_hashes(directory: Path, name: str = "train") -> NDArray[np.uint64] | None:
    """(n,) `cleaning.hash_text` of each normalised target, mapped; None where none were stored."""
    path = directory / f"{name}.target.hashes"
    if not path.exists():
        return None
    return _map(path, _HASH_DTYPE, _read_header(directory / f"{name}.json")["n_pairs"])


def _read_header(path: Path) -> dict[str, Any]:
    try:
        return parse_json(read_bytes(path), _HEADER)
    except OSError as error:
        raise _damaged(path, str(error.strerror).lower()) from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _map(path: Path, dtype: np.dtype[Any], n_items: int) -> NDArray[Any]:
    """The file as a read-only array, after a look at its size."""
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise _damaged(path, str(error.strerror).lower()) from error
    if size_bytes != n_items * dtype.itemsize:
        raise _damaged(path, f"{size_bytes:,} bytes instead of {n_items * dtype.itemsize:,}")
    if n_items == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"the prepared data is damaged: {path} ({reason})", "make it again: mtrain prepare --force"
    )
