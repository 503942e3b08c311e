"""The deterministic order of token-budget batches drawn from a store.

An epoch's plan is a pure function of (lengths, batch_tokens, seed, epoch, mixture). It names
sentence indices only: sentences are shuffled (`data.order`), grouped by length within large
windows, and cut into updates of the token budget, whose order is shuffled again. Each update is
then cut into micro-batches, which never changes which sentences form it. Lengths here include EOS.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrain.data.order import EpochOrder, Mixture
from mtrain.data.order import Indices as Indices
from mtrain.data.store import TokenStore
from mtrain.data.tokenizer import BOS, EOS, PAD

Lengths = NDArray[np.integer]
Ids = np.ndarray[tuple[int], np.dtype[np.integer]]

WINDOW = 1 << 20  # sentences grouped by length at a time


@dataclass(frozen=True)
class Batch:
    """Padded ids of B sentence pairs, the target twice: shifted by one (teacher forcing)."""

    src: Tensor  # (B, S), ends in EOS
    tgt_in: Tensor  # (B, T), begins with BOS
    tgt_out: Tensor  # (B, T), ends in EOS
    src_mask: Tensor | None  # (B, 1, 1, S), True at real positions; None where all are real
    n_source_tokens: int  # real positions, EOS included
    n_target_tokens: int

    def to(self, device: torch.device) -> Batch:
        """Copied without waiting, where the device can."""
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
        """Computed positions of both sides, padding included."""
        return self.src.numel() + self.tgt_in.numel()


class BatchPlan:
    """Which sentences form each update of one epoch.

    Made window by window as updates are asked for: the first ones of a huge corpus wait for one
    window only. `len` and `updates` make the whole plan.
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
        """src_lengths, tgt_lengths (n,) with EOS; without a mixture every sentence comes once."""
        self.src_lengths, self.tgt_lengths = src_lengths, tgt_lengths
        self._batch_tokens = batch_tokens
        self._rng = np.random.default_rng((seed, epoch))
        if mixture is None:
            self._order = EpochOrder(len(src_lengths), self._rng)
        else:
            self._order = mixture.order(seed, epoch, self._rng)
        self._n_planned = 0  # sentences
        self._n_windows = 0
        self._rest: Indices = np.empty(0, np.int64)  # too few for an update: the next window's
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
        """Whether the epoch has an update of this number; plans no further than that."""
        while update >= len(self._updates) and self._plan_window():
            pass
        return update < len(self._updates)

    def sentences(self, update: int) -> Indices:
        """The sentences of one update."""
        if not self.has(update):
            raise IndexError(f"the epoch has {len(self)} updates, not {update + 1}")
        return self._updates[update]

    def _plan_window(self) -> bool:
        """Form the updates of the next window, in random order; False where there is none left."""
        start, end = self._n_planned, min(self._n_planned + WINDOW, len(self._order))
        if start == end:
            return False
        window = np.concatenate([self._rest, self._order.stretch(start, end)])
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
        """Real target tokens of an update, EOS included, over all its micro-batches."""
        return int(self.tgt_lengths[self.sentences(update)].sum(dtype=np.int64))

    def micro_batches(self, update: int, max_tokens: int, n_workers: int = 1) -> list[Indices]:
        """The update's sentences in groups of at most max_tokens = rows x longest side.

        Sentences of one source length stand alone where they fill at least half of a micro-batch
        and need no mask then; the rest are grouped with neighbouring lengths. For several workers
        the groups are as many as the workers or a multiple, and their largest is as small as can
        be, so that nobody waits for long.
        """
        sentences = self.sentences(update)
        src = self.src_lengths[sentences].astype(np.int64)
        tgt = self.tgt_lengths[sentences].astype(np.int64)
        if n_workers > 1:
            parts = _cut_for_workers(src, tgt, max_tokens, n_workers)
        else:
            parts = _cut_by_source_length(src, tgt, max_tokens)
        return [sentences[part] for part in parts]


def _cut_by_budget(lengths: Lengths, budget: int) -> list[int]:
    """Ends of consecutive stretches whose sums come closest to the budget."""
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


def _cut_by_source_length(src: Indices, tgt: Indices, max_tokens: int) -> list[Indices]:
    """Parts of one source length where that fills half of one, and parts of what is left."""
    by_length = np.lexsort((tgt, src))
    src, tgt = src[by_length], tgt[by_length]
    parts: list[Indices] = []
    waiting = np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(np.diff(src, prepend=-1))
    for group in np.split(np.arange(len(src)), starts[1:]):
        longest = max(int(src[group[0]]), int(tgt[group].max()))
        if len(group) * longest * 2 >= max_tokens:
            parts += _cut_by_area(group, src, tgt, max_tokens)
        else:
            waiting = np.concatenate([waiting, group])
    if len(waiting):
        parts += _cut_by_area(waiting, src, tgt, max_tokens)
    return [by_length[part] for part in parts]


def _cut_by_area(group: Indices, src: Indices, tgt: Indices, max_tokens: int) -> list[Indices]:
    """Consecutive stretches of even size, each of rows x longest side <= max_tokens.

    A sentence longer than max_tokens gets a stretch of its own.
    """
    longest = np.maximum(src[group], tgt[group])
    if (is_alone := longest > max_tokens).any():
        rest = group[~is_alone]
        alone = np.split(group[is_alone], int(is_alone.sum()))
        return alone + (_cut_by_area(rest, src, tgt, max_tokens) if len(rest) else [])
    n_parts = max(1, -(-int(len(group) * longest.max()) // max_tokens))
    while True:
        parts = [part for part in np.array_split(np.arange(len(group)), n_parts) if len(part)]
        if all(len(part) * longest[part].max() <= max_tokens for part in parts):
            return [group[part] for part in parts]
        n_parts += 1


def _cut_for_workers(src: Indices, tgt: Indices, max_tokens: int, n_workers: int) -> list[Indices]:
    """As few parts as each worker can have the same number of, the largest as small as can be."""
    by_length = np.lexsort((src, tgt))  # the sources of an update are of about one length anyway
    src, tgt = src[by_length], tgt[by_length]
    most = len(src) * int(src.max() + tgt.max())
    n_parts = n_workers * -(-len(_cut_within(src, tgt, max_tokens, most)) // n_workers)

    def suffices(n_positions: int) -> bool:
        return len(_cut_within(src, tgt, max_tokens, n_positions)) <= n_parts

    least = bisect_left(range(most), True, key=suffices)
    return [by_length[part] for part in _cut_within(src, tgt, max_tokens, least)]


def _cut_within(src: Indices, tgt: Indices, max_tokens: int, n_positions: int) -> list[Indices]:
    """Consecutive stretches of rows x longest side <= max_tokens, and of at most n_positions.

    These count both sides and padding. A sentence that is longer gets a stretch of its own.
    """
    rest = np.arange(len(src))
    stretches: list[Indices] = []
    while len(rest):
        n_rows = np.arange(1, len(rest) + 1)
        longest_src, longest_tgt = (np.maximum.accumulate(side[rest]) for side in (src, tgt))
        fits = n_rows * np.maximum(longest_src, longest_tgt) <= max_tokens
        fits &= n_rows * (longest_src + longest_tgt) <= n_positions
        end = max(1, int(fits.sum()))
        stretches.append(rest[:end])
        rest = rest[end:]
    return stretches


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
    tgt_in[:, 1:] = tgt_out[:, :-1]  # where a shorter target has EOS here, its loss is past
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
    """(B, 1, 1, S), True at real positions; None where every position is real."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    return (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None, None]
