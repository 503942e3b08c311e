"""Memory-mapped token ids: what training reads.

A store of n pairs named `train` is five files in a directory, little-endian:

    train.json              number of pairs and tokens, types of ids
    train.source.ids        all source ids, one sentence after the other, without BOS and EOS
    train.source.offsets    n + 1 int64: sentence i is ids[offsets[i]:offsets[i + 1]]
    train.target.ids        the same for the target
    train.target.offsets

Ids are uint16 where the vocabulary allows, uint32 otherwise. Opening maps the files and compares
their sizes with train.json; nothing is read, however large the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrain.errors import DataError
from mtrain.run import sha256_of, storage_errors, write_json

FORMAT = 1
SIDES = ("source", "target")

Ids = NDArray[Any]  # uint16 or uint32
_OFFSET_DTYPE = np.dtype("<i8")


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
        self._source, self._target = (
            _SideWriter(directory, f"{name}.{side}", vocab_size)
            for side, vocab_size in zip(SIDES, vocab_sizes, strict=True)
        )

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._source.close()
        self._target.close()

    def append(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Add pairs of (source ids, target ids), without specials."""
        self._source.append([source for source, _ in pairs])
        self._target.append([target for _, target in pairs])
        self._n_pairs += len(pairs)

    def close(self) -> StoreCounts:
        """Finish the files; the header comes last, so a store without one is no store."""
        sha256 = self._source.close() | self._target.close()
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


class _SideWriter:
    """Appends one side's ids and offsets to their two files, hashing as it goes."""

    def __init__(self, directory: Path, name: str, vocab_size: int) -> None:
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.n_tokens = 0
        self._ids = _HashedFile(directory / f"{name}.ids")
        self._offsets = _HashedFile(directory / f"{name}.offsets")
        self._offsets.write(np.zeros(1, _OFFSET_DTYPE).tobytes())

    def append(self, sentences: Sequence[Sequence[int]]) -> None:
        lengths = np.fromiter(map(len, sentences), _OFFSET_DTYPE, len(sentences))
        n_new = int(lengths.sum())
        ids = np.fromiter(chain.from_iterable(sentences), self.dtype, n_new)
        self._ids.write(ids.tobytes())
        self._offsets.write((self.n_tokens + np.cumsum(lengths)).astype(_OFFSET_DTYPE).tobytes())
        self.n_tokens += n_new

    def close(self) -> dict[str, str]:
        return {file.path.name: file.close() for file in (self._ids, self._offsets)}


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
    """

    def __init__(
        self, src_ids: Ids, src_offsets: NDArray[np.int64], tgt_ids: Ids, tgt_offsets: Any
    ) -> None:
        self.src_ids, self.src_offsets = src_ids, src_offsets
        self.tgt_ids, self.tgt_offsets = tgt_ids, tgt_offsets

    @classmethod
    def open(cls, directory: Path, name: str = "train") -> TokenStore:
        """Map a store's files, or raise a DataError that names the one that is damaged."""
        header = _read_header(directory / f"{name}.json")
        n_pairs = header["n_pairs"]
        arrays = []
        for side, n_tokens, dtype in zip(SIDES, header["n_tokens"], header["dtypes"], strict=True):
            path = directory / f"{name}.{side}.offsets"
            offsets = _map(path, _OFFSET_DTYPE, n_pairs + 1)
            if offsets[0] != 0 or offsets[-1] != n_tokens:
                raise _damaged(path, f"its ends are not 0 and {n_tokens}")
            arrays += [_map(directory / f"{name}.{side}.ids", np.dtype(dtype), n_tokens), offsets]
        return cls(*arrays)

    def __len__(self) -> int:
        return len(self.src_offsets) - 1

    @cached_property
    def src_lengths(self) -> NDArray[np.int32]:
        """(n,) source pieces of each pair, without specials."""
        lengths: NDArray[np.int32] = np.diff(self.src_offsets).astype(np.int32)
        return lengths

    @cached_property
    def tgt_lengths(self) -> NDArray[np.int32]:
        """(n,) target pieces of each pair, without specials."""
        lengths: NDArray[np.int32] = np.diff(self.tgt_offsets).astype(np.int32)
        return lengths

    def src(self, index: int) -> Ids:
        """The source ids of a pair."""
        return self.src_ids[self.src_offsets[index] : self.src_offsets[index + 1]]

    def tgt(self, index: int) -> Ids:
        """The target ids of a pair."""
        return self.tgt_ids[self.tgt_offsets[index] : self.tgt_offsets[index + 1]]


def read_target_hashes(directory: Path, name: str = "train") -> NDArray[np.uint64] | None:
    """(n,) `cleaning.hash_text` of each normalised target, mapped; None where none were stored."""
    path = directory / f"{name}.target.hashes"
    if not path.exists():
        return None
    return _map(path, np.dtype("<u8"), _read_header(directory / f"{name}.json")["n_pairs"])


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _damaged(path, f"it does not say `format: {FORMAT}`")
    return header


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
