"""Memory-mapped token ids: the input of training.

A store of n pairs named `train` consists of these files in a directory, little-endian:

    train.json              number of pairs and tokens, types of ids
    train.source.ids        all source ids, sentence after sentence, without BOS and EOS
    train.source.offsets    n + 1 int64: sentence i is ids[offsets[i]:offsets[i + 1]]
    train.target.ids        the same for the target
    train.target.offsets
    train.sources           n uint16: the index of each pair's entry in data.train, ascending
    train.target.hashes     optional, n uint64: `cleaning.hash_text` of each target
    train.text              optional, `source TAB target` per line: for sampled subwords

Ids are uint16 if the vocabulary allows, uint32 otherwise. Opening maps the files and compares their
sizes with train.json; nothing is read, however large the store. `check` reads all of it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
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
from mtrain.storage import parse_json, read_bytes, storage_errors, write_json

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
_CHUNK = 1 << 20  # items read at a time


@dataclass(frozen=True, slots=True)
class Sentences:
    """One side of some pairs: all ids, sentence after sentence, and the number in each."""

    ids: Ids
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]], dtype: np.dtype[Any]) -> Sentences:
        """From one list of ids per sentence."""
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        ids = np.fromiter(chain.from_iterable(sentences), dtype, int(lengths.sum()))
        return cls(ids, lengths)


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type for the ids of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class StoreWriter:
    """Writes a store, some pairs at a time; it is readable once closed.

    The directory is one under construction, which its owner renames when all is written. As a
    context manager it leaves no file open; only `close` finishes the store.
    """

    def __init__(self, directory: Path, name: str, vocab_sizes: tuple[int, int]) -> None:
        self._directory, self._name = directory, name
        self._dtypes = [id_dtype(vocab_size) for vocab_size in vocab_sizes]
        self._n_pairs, self._n_tokens = 0, [0, 0]
        self._files: dict[str, OutputFile] = {}
        self._open_files = ExitStack()
        self._write("sources", b"")
        for side in SIDES:
            self._write(f"{side}.ids", b"")
            self._write(f"{side}.offsets", np.zeros(1, _OFFSET_DTYPE).tobytes())

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open_files.close()

    def append(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Add pairs of (source ids, target ids), without special symbols, of entry 0."""
        source, target = ([pair[side] for pair in pairs] for side in (0, 1))
        self.extend(Sentences.of(source, self._dtypes[0]), Sentences.of(target, self._dtypes[1]))

    def extend(
        self,
        source: Sentences,
        target: Sentences,
        entry: int = 0,
        target_hashes: NDArray[np.uint64] | None = None,
        text: bytes = b"",
    ) -> None:
        """Add pairs of one entry of data.train; hashes and text are those of all pairs, or none.

        text  `source TAB target LF` per pair
        """
        for side, sentences in enumerate((source, target)):
            ids = sentences.ids.astype(self._dtypes[side], copy=False)
            self._write(f"{SIDES[side]}.ids", ids.tobytes())
            offsets = self._n_tokens[side] + np.cumsum(sentences.lengths)
            self._write(f"{SIDES[side]}.offsets", offsets.astype(_OFFSET_DTYPE).tobytes())
            self._n_tokens[side] += len(ids)
        n_pairs = len(source.lengths)
        self._write("sources", np.full(n_pairs, entry, _ENTRY_DTYPE).tobytes())
        if target_hashes is not None:
            self._write("target.hashes", target_hashes.tobytes())
        if text:
            self._write("text", text)
        self._n_pairs += n_pairs

    def close(self) -> None:
        """Finish the files; the header comes last, so that a store without one is unfinished."""
        self._open_files.close()
        header = {
            "format": FORMAT,
            "n_pairs": self._n_pairs,
            "n_tokens": self._n_tokens,
            "dtypes": [dtype.str for dtype in self._dtypes],
        }
        write_json(self._directory / f"{self._name}.json", header)

    def _write(self, suffix: str, data: bytes) -> None:
        """Append to a file of the store."""
        if suffix not in self._files:
            file = OutputFile(self._directory / f"{self._name}.{suffix}")
            self._files[suffix] = self._open_files.enter_context(closing(file))
        self._files[suffix].write(data)


class OutputFile:
    """A new file that is written in order; its errors are StorageErrors that name it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            self._file = open(path, "wb")  # noqa: SIM115 (closed by close)

    def write(self, data: bytes) -> None:
        """Append, and flush so that a full disk is an error at once."""
        with storage_errors(self._path):
            self._file.write(data)
            self._file.flush()

    def close(self) -> None:
        """Close the file; may be repeated."""
        with storage_errors(self._path):
            self._file.close()


class TokenStore:
    """A finished store: ids and lengths of n pairs, read from disk when accessed.

    src_ids, tgt_ids          all ids of a side, sentence after sentence
    src_offsets, tgt_offsets  (n + 1,) int64: sentence i is ids[offsets[i]:offsets[i + 1]]
    entries                   (n,) uint16, ascending: the index of each pair's entry in data.train
    """

    def __init__(self, arrays: Sequence[NDArray[Any]], offset_files: Sequence[Path]) -> None:
        self.src_ids, self.src_offsets, self.tgt_ids, self.tgt_offsets, self.entries = arrays
        self._offset_files = offset_files

    @classmethod
    def open(cls, directory: Path, name: str = "train") -> TokenStore:
        """Map a store's files; a DataError names a damaged one."""
        header = _read_header(directory / f"{name}.json")
        n_pairs = header["n_pairs"]
        arrays, offset_files = [], []
        for side, n_tokens, dtype in zip(SIDES, header["n_tokens"], header["dtypes"], strict=True):
            path = directory / f"{name}.{side}.offsets"
            offsets = map_array(path, _OFFSET_DTYPE, n_pairs + 1)
            if offsets[0] != 0 or offsets[-1] != n_tokens:
                raise _damaged(path, f"its ends are not 0 and {n_tokens}")
            arrays += [
                map_array(directory / f"{name}.{side}.ids", np.dtype(dtype), n_tokens),
                offsets,
            ]
            offset_files.append(path)
        arrays.append(map_array(directory / f"{name}.sources", _ENTRY_DTYPE, n_pairs))
        return cls(arrays, offset_files)

    def check(self, vocab_sizes: tuple[int, int], max_length: int, n_entries: int) -> None:
        """Raise a DataError for impossible numbers: damage that `open` does not detect.

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
                raise _damaged(path, f"a sentence does not have 1 to {max_length} pieces")
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
    """The pairs of a store, some of them reversed: their target is the source here."""

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
    """(n,) from a file of n + 1 offsets, read in order: if mapped, it would stay in memory."""
    lengths = np.empty(n_sentences, np.uint16)  # `data.max_length` is far below 2^16
    with open(path, "rb") as file:
        for start in range(0, n_sentences, _CHUNK):
            file.seek(start * _OFFSET_DTYPE.itemsize)
            offsets = np.fromfile(file, _OFFSET_DTYPE, _CHUNK + 1)
            lengths[start : start + _CHUNK] = np.diff(offsets)
    return lengths


def _parts(array: NDArray[Any], overlap: int = 0) -> Iterator[NDArray[Any]]:
    """An array in parts that share `overlap` items, so that little of it is in memory."""
    for start in range(0, max(0, len(array) - overlap), _CHUNK):
        yield array[start : start + _CHUNK + overlap]


def read_target_hashes(directory: Path, name: str = "train") -> NDArray[np.uint64] | None:
    """(n,) `cleaning.hash_text` of each normalised target, mapped; None if not stored."""
    path = directory / f"{name}.target.hashes"
    if not path.exists():
        return None
    return map_array(path, _HASH_DTYPE, _read_header(directory / f"{name}.json")["n_pairs"])


def _read_header(path: Path) -> dict[str, Any]:
    try:
        return parse_json(read_bytes(path), _HEADER)
    except OSError as error:
        raise _damaged(path, str(error.strerror).lower()) from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def map_array(path: Path, dtype: np.dtype[Any], n_items: int) -> NDArray[Any]:
    """A file as a read-only array; a DataError if it has another size."""
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
