"""Normalises text, and decides which training pairs stay.

`normalize` is applied to every training text and, the same, to whatever is translated. The other
functions answer one question each about a pair; `prepare` asks them in turn and counts.
Sentences are compared by 64-bit hashes, so that a corpus need not be held in memory.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# A side of so many words identifies a sentence; fewer may be said in many places.
MIN_WORDS_ALONE = 5

# All control characters that are no white space, and the byte order mark. The joiners U+200C and
# U+200D stay: Persian, Hindi and emoji are spelled with them.
_DROPPED = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")

# Scripts written without spaces: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def normalize(text: str) -> str:
    """One clean line: NFC, no control characters, white space of any kind as single spaces.

    Applying it twice changes nothing. Half a surrogate pair, which no UTF-8 file can hold, becomes
    U+FFFD.
    """
    if not (text.isascii() and text.isprintable()):
        text = _SURROGATES.sub("\ufffd", _DROPPED.sub("", text))
        text = unicodedata.normalize("NFC", " ".join(text.split()))
    return " ".join(text.split())


def count_words(text: str) -> int:
    """Words between spaces; where a script has no spaces, two characters count as one."""
    n_words = len(text.split())
    return n_words if text.isascii() else n_words + len(UNSPACED.findall(text)) // 2


def hash_text(text: str) -> int:
    """64 bits that stand for a text, the same on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class HashedPair:
    """A normalised training pair, and what its sides are compared by."""

    source: str
    target: str
    source_hash: int
    target_hash: int

    @classmethod
    def of(cls, source: str, target: str) -> HashedPair:
        """Of two normalised texts."""
        return cls(source, target, hash_text(source), hash_text(target))


@dataclass
class EvaluationText:
    """The sentences of valid and test sets, by which leaked training pairs are recognised."""

    sources: set[int] = field(default_factory=set)
    targets: set[int] = field(default_factory=set)

    def add(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Take in an evaluation set; an empty line identifies nothing."""
        for pair in pairs:
            for text, known in zip(map(normalize, pair), (self.sources, self.targets), strict=True):
                if text:
                    known.add(hash_text(text))

    def gives_away(self, pair: HashedPair) -> bool:
        """True if a normalised training pair would give an evaluation sentence away.

        One side of five words or more is enough; of shorter ones both sides must be known.
        """
        has_source = pair.source_hash in self.sources
        has_target = pair.target_hash in self.targets
        if has_source and has_target:
            return True
        return (has_source and count_words(pair.source) >= MIN_WORDS_ALONE) or (
            has_target and count_words(pair.target) >= MIN_WORDS_ALONE
        )


def find_repeats(sources: Hashes, targets: Hashes) -> NDArray[np.bool_]:
    """(n,) True where both sides occurred together before; the first occurrence is no repeat."""
    pairs = sources * np.uint64(0x9E3779B97F4A7C15) ^ targets  # the order of the sides matters
    _, first = np.unique(pairs, return_index=True)
    is_repeat = np.ones(len(pairs), dtype=bool)
    is_repeat[first] = False
    return is_repeat


def choose_valid(
    sources: Hashes, targets: Hashes, n_valid: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw a validation set from the training pairs.

    Returns the (n_valid,) ascending indices of the drawn pairs, preferably of sentences that
    occur once, and (n,) True for every pair that shares a sentence with one of them (itself
    included) and so cannot stay in training.
    """
    shares = np.maximum(_n_occurrences(sources), _n_occurrences(targets)) > 1
    order = np.random.default_rng(seed).permutation(len(sources))
    order = order[np.argsort(shares[order], kind="stable")]
    chosen = np.sort(order[:n_valid])
    leaves = np.isin(sources, sources[chosen]) | np.isin(targets, targets[chosen])
    return chosen, leaves


def _n_occurrences(hashes: Hashes) -> NDArray[np.int64]:
    """(n,) how often each hash occurs."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    occurrences: NDArray[np.int64] = counts[inverse]
    return occurrences
