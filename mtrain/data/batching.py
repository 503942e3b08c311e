"""The updates of an epoch in their deterministic order, and padded batches.

The plan of an epoch is a pure function of (lengths, batch_tokens, seed, epoch, mixture). It holds
sentence indices only: sentences are shuffled, grouped by length within large windows, and cut into
updates of the token budget, which are shuffled again. `data.micro_batches` cuts each update
further. Lengths include EOS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrain.config.sections import DataConfig
from mtrain.data.micro_batches import Indices, Lengths
from mtrain.data.store import TokenStore
from mtrain.data.tokenizer import BOS, EOS, PAD

Ids = np.ndarray[tuple[int], np.dtype[np.integer]]

WINDOW = 1 << 20  # sentences grouped by length at a time


# -- the order of the pairs ------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """How often the pairs of each entry of data.train occur in an epoch.

    With a weight of 0.5, half of the pairs of an entry occur (the other half in the next epoch),
    with 2 all of them occur twice.

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

    def order(self, seed: int, epoch: int, rng: np.random.Generator) -> NDArray[np.uint32]:
        """The pairs of an epoch in random order; rng is seeded by (seed, epoch)."""
        pairs = np.arange(sum(self.sizes), dtype=np.uint32)
        if set(self.weights) != {1.0}:
            pairs = np.concatenate([pairs[:0], *self._parts(seed, epoch)])
        rng.shuffle(pairs)
        rng.integers(0, 2**63, 8)  # once keys of an own permutation; keeps the order of updates
        return pairs

    def _parts(self, seed: int, epoch: int) -> Iterator[NDArray[np.uint32]]:
        """From each entry, repeated endlessly, the next `weight * size` pairs."""
        first = 0
        for number, (size, weight) in enumerate(zip(self.sizes, self.weights, strict=True)):
            start, end = int(epoch * weight * size), int((epoch + 1) * weight * size)
            while start < end:
                repetition, offset = divmod(start, size)
                n = min(end - start, size - offset)
                # Every repetition has its own order. The seed has one number more than that of an
                # epoch, so that the two never coincide.
                of_entry = np.arange(first, first + size, dtype=np.uint32)
                np.random.default_rng((seed, number, repetition, 1)).shuffle(of_entry)
                yield of_entry[offset : offset + n]
                start += n
            first += size


# -- updates ---------------------------------------------------------------------------------


class BatchPlan:
    """The sentences of each update of one epoch.

    Planned window by window as updates are requested: training on a huge corpus starts after one
    window. `len` and `updates` plan the whole epoch.
    """

    def __init__(
        self,
        src_lengths: Lengths,
        tgt_lengths: Lengths,
        batch_tokens: int,
        seed: int,
        epoch: int,
        mixture: Mixture | None = None,
    ) -> None:
        """src_lengths, tgt_lengths (n,) with EOS; without a mixture every sentence occurs once."""
        self.src_lengths, self.tgt_lengths = src_lengths, tgt_lengths
        self._batch_tokens = batch_tokens
        self._rng = np.random.default_rng((seed, epoch))
        mixture = mixture or Mixture((len(src_lengths),), (1.0,))
        self._order = mixture.order(seed, epoch, self._rng)
        self._n_planned = 0  # sentences
        self._n_windows = 0
        self._rest: Indices = np.empty(0, np.int64)  # too few for an update: for the next window
        self._updates: list[Indices] = []

    @classmethod
    def of_store(
        cls,
        store: TokenStore,
        batch_tokens: int,
        seed: int,
        epoch: int,
        mixture: Mixture | None = None,
    ) -> BatchPlan:
        """The plan for the sentences of a store."""
        lengths = (store.src_lengths + np.uint16(1), store.tgt_lengths + np.uint16(1))
        return cls(*lengths, batch_tokens, seed, epoch, mixture)

    def __len__(self) -> int:
        return len(self.updates)

    @property
    def updates(self) -> list[Indices]:
        """The sentences of every update."""
        while self._plan_window():
            pass
        return self._updates

    def has(self, update: int) -> bool:
        """Whether the epoch has this many updates; plans no further."""
        while update >= len(self._updates) and self._plan_window():
            pass
        return update < len(self._updates)

    def sentences(self, update: int) -> Indices:
        """The sentences of an update."""
        if not self.has(update):
            raise IndexError(f"the epoch has {len(self)} updates, not {update + 1}")
        return self._updates[update]

    def _plan_window(self) -> bool:
        """Append the updates of the next window, in random order; False at the end."""
        start, end = self._n_planned, min(self._n_planned + WINDOW, len(self._order))
        if start == end:
            return False
        window = np.concatenate([self._rest, self._order[start:end]])
        window = self._grouped_by_length(window)
        ends = _cut_by_budget(self.tgt_lengths[window], self._batch_tokens)
        if end < len(self._order) and len(ends) > 1:
            self._rest, window = window[ends[-2] :], window[: ends[-2]]
            ends = ends[:-1]
        else:
            self._rest = self._rest[:0]
        updates = np.split(window, ends[:-1])
        self._updates += [updates[i] for i in self._rng.permutation(len(updates))]
        self._n_planned, self._n_windows = end, self._n_windows + 1
        return True

    def _grouped_by_length(self, window: Indices) -> Indices:
        """Sorted by (source, target) length; every second window runs from long to short."""
        window = window[np.lexsort((self.tgt_lengths[window], self.src_lengths[window]))]
        return window[::-1] if self._n_windows % 2 else window

    def n_target_tokens(self, update: int) -> int:
        """Real target tokens of an update, EOS included."""
        return int(self.tgt_lengths[self.sentences(update)].sum(dtype=np.int64))


def _cut_by_budget(lengths: Lengths, budget: int) -> list[int]:
    """Ends of consecutive parts with sums as close as possible to the budget."""
    total = np.cumsum(lengths, dtype=np.int64)
    ends: list[int] = []
    done = 0
    while done < total[-1]:
        end = int(np.searchsorted(total, done + budget, side="left")) + 1  # reaches the budget
        if end < len(total):
            over = total[end - 1] - done - budget
            under = done + budget - (total[end - 2] if end > 1 else 0)
            if under < over and end - 1 > (ends[-1] if ends else 0):
                end -= 1
        end = min(end, len(total))
        ends.append(end)
        done = int(total[end - 1])
    return ends


# -- padded batches --------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Padded ids of B sentence pairs, with the target also shifted by one (teacher forcing)."""

    src: Tensor  # (B, S), ends in EOS
    tgt_in: Tensor  # (B, T), begins with BOS
    tgt_out: Tensor  # (B, T), ends in EOS
    src_mask: Tensor | None  # (B, 1, 1, S), True at real positions; None if all are
    n_source_tokens: int  # real positions, EOS included
    n_target_tokens: int

    def to(self, device: torch.device) -> Batch:
        """A copy on a device, without waiting for it."""
        if device.type == "cpu":
            return self
        src, tgt_in, tgt_out = (
            x.pin_memory().to(device, non_blocking=True)
            for x in (self.src, self.tgt_in, self.tgt_out)
        )
        mask = None if self.src_mask is None else (src != PAD)[:, None, None]
        return Batch(src, tgt_in, tgt_out, mask, self.n_source_tokens, self.n_target_tokens)

    @property
    def n_positions(self) -> int:
        """The positions computed on both sides, padding included."""
        return self.src.numel() + self.tgt_in.numel()


def collate(store: TokenStore, sentences: Sequence[int] | Indices) -> Batch:
    """The batch of these sentences of a store."""
    return batch_of([store.src(int(i)) for i in sentences], [store.tgt(int(i)) for i in sentences])


def batch_of(
    sources: Sequence[Ids | Sequence[int]], targets: Sequence[Ids | Sequence[int]]
) -> Batch:
    """Ids without special symbols -> a padded batch."""
    src, src_lengths = pad(sources)
    tgt_out, tgt_lengths = pad(targets)
    tgt_in = torch.empty_like(tgt_out)
    tgt_in[:, 0] = BOS
    tgt_in[:, 1:] = tgt_out[:, :-1]  # the EOS of a shorter target: no loss there
    return Batch(src, tgt_in, tgt_out, source_mask(src_lengths), sum(src_lengths), sum(tgt_lengths))


def pad(sentences: Sequence[Ids | Sequence[int]]) -> tuple[Tensor, list[int]]:
    """Ids without special symbols -> (B, S) ending in EOS and PAD, and the lengths with EOS."""
    lengths = [len(ids) + 1 for ids in sentences]
    padded = np.full((len(sentences), max(lengths)), PAD, dtype=np.int64)
    for row, ids, length in zip(padded, sentences, lengths, strict=True):
        row[: length - 1] = ids
        row[length - 1] = EOS
    return torch.from_numpy(padded), lengths


def source_mask(lengths: Sequence[int]) -> Tensor | None:
    """(B, 1, 1, S), True at real positions; None if all are."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    return (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None, None]
