"""How an update is cut into micro-batches, which never changes the sentences that form it.

A micro-batch is one forward and backward pass of one worker. Its limit, `max_tokens`, is rows x
longest side. All functions are pure; lengths include EOS.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
Lengths = NDArray[np.integer]

# Target tokens of a micro-batch that fit in a core's caches, or keep a GPU busy.
SUITABLE_TOKENS = {"cpu": 1024, "cuda": 32768}
# Rows x longest side per target token: there is padding, and sources may be longer.
ROOM = {"cpu": 1.6, "cuda": 1.2}


def token_limit(
    wanted: int | Literal["auto"],
    batch_tokens: int,
    max_length: int,
    n_workers: int,
    device_type: str,
) -> int:
    """The `max_tokens` of a config: `auto` suits the device and gives all workers equally many.

    The world size plays no part, so that all processes cut an update in the same way.
    """
    if wanted != "auto":
        return wanted
    n_rounds = math.ceil(batch_tokens / (SUITABLE_TOKENS[device_type] * n_workers))
    share = math.ceil(ROOM[device_type] * batch_tokens / (n_rounds * n_workers))
    return max(share, max_length + 1)


def cut(
    sentences: Indices,
    src_lengths: Lengths,
    tgt_lengths: Lengths,
    max_tokens: int,
    n_workers: int = 1,
    world_size: int = 1,
) -> list[Indices]:
    """The sentences (n,) of an update, in micro-batches; lengths are those of the whole epoch.

    For one worker, sentences of one source length get micro-batches of their own, which need no
    mask, if they fill at least half of one; the rest is grouped by similar length. For several,
    the number of micro-batches is a multiple of the workers and the largest is as small as
    possible, so that none waits for long. Every process gets at least one if there are sentences.
    """
    src = src_lengths[sentences].astype(np.int64)
    tgt = tgt_lengths[sentences].astype(np.int64)
    if n_workers > 1:
        parts = _cut_evenly(src, tgt, max_tokens, n_workers)
    else:
        parts = _cut_by_source_length(src, tgt, max_tokens)
    while len(parts) < world_size and max(map(len, parts)) > 1:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        middle = len(parts[largest]) // 2
        parts[largest : largest + 1] = [parts[largest][:middle], parts[largest][middle:]]
    return [sentences[part] for part in parts]


def n_positions(part: Indices, src_lengths: Lengths, tgt_lengths: Lengths) -> int:
    """The positions that a micro-batch computes on both sides, padding included."""
    return len(part) * (int(src_lengths[part].max()) + int(tgt_lengths[part].max()))


def _cut_by_source_length(src: Indices, tgt: Indices, max_tokens: int) -> list[Indices]:
    """Groups of one source length that fill at least half a micro-batch, then the rest."""
    by_length = np.lexsort((tgt, src))
    src, tgt = src[by_length], tgt[by_length]
    parts: list[Indices] = []
    rest = np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(np.diff(src, prepend=-1))
    for group in np.split(np.arange(len(src)), starts[1:]):
        longest = max(int(src[group[0]]), int(tgt[group].max()))
        if len(group) * longest * 2 >= max_tokens:
            parts += _cut_to_equal_rows(group, src, tgt, max_tokens)
        else:
            rest = np.concatenate([rest, group])
    if len(rest):
        parts += _cut_to_equal_rows(rest, src, tgt, max_tokens)
    return [by_length[part] for part in parts]


def _cut_to_equal_rows(
    group: Indices, src: Indices, tgt: Indices, max_tokens: int
) -> list[Indices]:
    """Consecutive parts with equally many rows; a sentence over the limit is a part by itself."""
    longest = np.maximum(src[group], tgt[group])
    over = longest > max_tokens
    if over.any():
        rest = group[~over]
        alone = [group[i : i + 1] for i in np.flatnonzero(over)]
        return alone + (_cut_to_equal_rows(rest, src, tgt, max_tokens) if len(rest) else [])
    n_parts = max(1, -(-int(len(group) * longest.max()) // max_tokens))
    while True:
        parts = [part for part in np.array_split(np.arange(len(group)), n_parts) if len(part)]
        if all(len(part) * longest[part].max() <= max_tokens for part in parts):
            return [group[part] for part in parts]
        n_parts += 1


def _cut_evenly(src: Indices, tgt: Indices, max_tokens: int, n_workers: int) -> list[Indices]:
    """As few rounds of n_workers parts as possible, with the smallest possible largest part."""
    by_length = np.lexsort((src, tgt))  # sources within an update are of similar length anyway
    src, tgt = src[by_length], tgt[by_length]
    most = len(src) * int(src.max() + tgt.max())
    n_parts = n_workers * -(-len(_cut_greedily(src, tgt, max_tokens, most)) // n_workers)

    def suffices(max_positions: int) -> bool:
        return len(_cut_greedily(src, tgt, max_tokens, max_positions)) <= n_parts

    least = bisect_left(range(most), True, key=suffices)
    return [by_length[part] for part in _cut_greedily(src, tgt, max_tokens, least)]


def _cut_greedily(src: Indices, tgt: Indices, max_tokens: int, max_positions: int) -> list[Indices]:
    """Consecutive parts within max_tokens and within max_positions of both sides, with padding.

    A sentence over a limit is a part by itself.
    """
    rest = np.arange(len(src))
    parts: list[Indices] = []
    while len(rest):
        n_rows = np.arange(1, len(rest) + 1)
        longest_src, longest_tgt = (np.maximum.accumulate(side[rest]) for side in (src, tgt))
        fits = n_rows * np.maximum(longest_src, longest_tgt) <= max_tokens
        fits &= n_rows * (longest_src + longest_tgt) <= max_positions
        end = max(1, int(fits.sum()))
        parts.append(rest[:end])
        rest = rest[end:]
    return parts
