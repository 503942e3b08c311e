"""Which part of the training data is a sentence most like?

Each training entry is taken as a language model of piece trigrams; a sentence is nearest to the
entry under which its own trigrams are most frequent. One pass over the stored ids counts them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtrain.data.cleaning import normalize
from mtrain.data.store import TokenStore
from mtrain.data.tokenizer import Tokenizer

TOO_SHORT = "too short to tell"

_CHUNK_PAIRS = 200_000
_SMOOTHING = 0.1  # counts of a trigram that an entry does not hold
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)  # large odd numbers

Keys = NDArray[np.uint64]


def nearest_entries(
    sources: Sequence[str], tokenizer: Tokenizer, store: TokenStore, names: Sequence[str]
) -> list[str]:
    """The name of the training entry that each source is most like, or TOO_SHORT."""
    encoded = [np.array(ids) for ids in tokenizer.encode([normalize(text) for text in sources])]
    keys_of = [_trigrams(ids) for ids in encoded]
    keys = np.unique(np.concatenate(keys_of))
    counts = _count(store, keys, len(names))  # (keys, entries)
    totals = np.bincount(store.entries, weights=store.src_lengths, minlength=len(names))
    log_share = np.log((counts + _SMOOTHING) / np.maximum(totals, 1))
    return [
        names[int(log_share[np.searchsorted(keys, own)].sum(0).argmax())] if len(own) else TOO_SHORT
        for own in keys_of
    ]


def _trigrams(ids: NDArray[np.integer]) -> Keys:
    """(max(n - 2, 0),) one number for each three pieces in a row."""
    parts = [ids[i : len(ids) - 2 + i].astype(np.uint64) for i in range(3)] if len(ids) > 2 else []
    keys = np.zeros(max(len(ids) - 2, 0), np.uint64)
    for part, factor in zip(parts, _FACTORS, strict=False):
        keys += (part + np.uint64(1)) * np.uint64(factor)
    return keys


def _count(store: TokenStore, keys: Keys, n_entries: int) -> NDArray[np.float64]:
    """How often each key occurs in the sources of each entry (keys, entries)."""
    counts = np.zeros((len(keys), n_entries))
    for start in range(0, len(store), _CHUNK_PAIRS):
        end = min(start + _CHUNK_PAIRS, len(store))
        offsets = store.src_offsets[start : end + 1]
        found = _trigrams(store.src_ids[offsets[0] : offsets[-1]])
        pair = np.repeat(np.arange(start, end), np.diff(offsets))
        is_inside = pair[: len(found)] == pair[2:]  # of one sentence, not across two
        at = np.minimum(np.searchsorted(keys, found), max(len(keys) - 1, 0))
        is_wanted = is_inside & (keys[at] == found) if len(keys) else np.zeros(len(found), bool)
        entries = store.entries[pair[: len(found)][is_wanted]]
        np.add.at(counts, (at[is_wanted], entries), 1)
    return counts
