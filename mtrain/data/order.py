"""The random order of the pairs in an epoch, computed in parts as a pure function of (seed, epoch).

Every pair occurs once unless entries of the config have weights: with a weight of 0.5, half of the
pairs of an entry occur (the other half in the next epoch), with 2 all of them occur twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrain.config.sections import DataConfig

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
Seed = tuple[int, ...]

SHUFFLED_WHOLE = 1 << 20  # items up to which a permutation is held in memory
_ROUNDS = 8
_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio


class Permutation:
    """A random order of n items.

    A small one is drawn and kept. A large one is computed where it is read, as a keyed bijection: a
    Feistel network on the bits of the position, repeated for results beyond n.
    """

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self._n = n
        self._whole = rng.permutation(n) if n <= SHUFFLED_WHOLE else None
        self._keys = rng.integers(0, 2**63, _ROUNDS).astype(np.uint64)
        n_bits = max(2, (n - 1).bit_length())
        self._low_bits = n_bits // 2
        self._low_mask = np.uint64((1 << self._low_bits) - 1)
        self._high_mask = np.uint64((1 << (n_bits - self._low_bits)) - 1)

    def at(self, positions: Indices) -> Indices:
        """The items at these positions."""
        if self._whole is not None:
            return self._whole[positions]
        items = self._mix(positions.astype(np.uint64))
        while len(beyond := np.flatnonzero(items >= self._n)):
            items[beyond] = self._mix(items[beyond])
        return items.astype(np.int64)

    def _mix(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """A Feistel network: each half of the bits is changed in turn by a hash of the other."""
        low, high = values & self._low_mask, values >> np.uint64(self._low_bits)
        for number, key in enumerate(self._keys):
            if number % 2:
                low ^= _scramble(high, key) & self._low_mask
            else:
                high ^= _scramble(low, key) & self._high_mask
        return high << np.uint64(self._low_bits) | low


def _scramble(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """A hash of values under a key."""
    mixed = (values ^ key) * np.uint64(_ODD)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(_ODD)
    return mixed >> np.uint64(29)


@dataclass(frozen=True)
class Mixture:
    """How often the pairs of each entry of data.train occur in an epoch.

    sizes    pairs of each entry; the entries are contiguous in the store
    weights  occurrences per epoch
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, config: DataConfig, entries: NDArray[Any]) -> Mixture:
        """The mixture of a config; entries (n,) is `TokenStore.entries`, which ascends."""
        ends = np.searchsorted(entries, np.arange(len(config.train)), side="right")
        sizes = tuple(np.diff(ends, prepend=0).tolist())
        if config.temperature is None:
            return cls(sizes, tuple(entry.weight for entry in config.train))
        shares = [size ** (1 / config.temperature) for size in sizes]
        scale = sum(sizes) / sum(shares)
        pairs = zip(sizes, shares, strict=True)
        return cls(sizes, tuple(share * scale / size if size else 1.0 for size, share in pairs))

    def order(self, seed: int, epoch: int, rng: np.random.Generator) -> EpochOrder:
        """The order of an epoch; rng is seeded by (seed, epoch)."""
        if set(self.weights) == {1.0}:
            return EpochOrder(sum(self.sizes), rng)
        return EpochOrder.of_parts(self._parts(seed, epoch), rng)

    def _parts(self, seed: int, epoch: int) -> list[_Part]:
        """From each entry, repeated endlessly, the next `weight * size` pairs."""
        parts = []
        first = 0
        for number, (size, weight) in enumerate(zip(self.sizes, self.weights, strict=True)):
            start, end = int(epoch * weight * size), int((epoch + 1) * weight * size)
            while start < end:  # every repetition has its own order
                repetition, offset = divmod(start, size)
                n = min(end - start, size - offset)
                parts.append(_Part(first, size, offset, n, (seed, number, repetition)))
                start += n
            first += size
        return parts


@dataclass(frozen=True)
class _Part:
    """n positions from `offset` in the permutation of the pairs of one entry."""

    first: int  # pair of the entry, in the store
    size: int  # of the entry
    offset: int
    n: int
    seed: Seed

    def permutation(self) -> Permutation:
        # One number more than in the seed of an epoch, so that the two never coincide.
        return Permutation(self.size, np.random.default_rng((*self.seed, 1)))


class EpochOrder:
    """The pairs of an epoch in random order; a pair may occur several times or never."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        """Each of n pairs once."""
        self._n = n
        self._permutation = Permutation(n, rng)
        self._parts: list[tuple[_Part, Permutation]] = []
        self._ends = np.empty(0, np.int64)

    @classmethod
    def of_parts(cls, parts: Sequence[_Part], rng: np.random.Generator) -> EpochOrder:
        """The pairs of all parts."""
        order = cls(sum(part.n for part in parts), rng)
        order._parts = [(part, part.permutation()) for part in parts]
        order._ends = np.cumsum([part.n for part in parts])
        return order

    def __len__(self) -> int:
        return self._n

    def stretch(self, start: int, end: int) -> Indices:
        """(end - start,) the pairs at these positions of the order."""
        found = self._permutation.at(np.arange(start, end))
        if not self._parts:
            return found
        owners = np.searchsorted(self._ends, found, side="right")
        sentences = np.empty_like(found)
        for number, (part, permutation) in enumerate(self._parts):
            is_here = owners == number
            positions = found[is_here] - (self._ends[number] - part.n) + part.offset
            sentences[is_here] = part.first + permutation.at(positions)
        return sentences
