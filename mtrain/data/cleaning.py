"""Normalises text, and finds training pairs that repeat others or leak evaluation sentences.

`normalize` is applied to all training text and to all text that is translated. Sentences are
compared by 64-bit hashes, so that a corpus need not fit into memory. Exact matches with evaluation
text are removed (`EvaluationText`); near matches, which share most long n-grams, are reported for
the user to judge (`NearMatches`). Only the evaluation text is indexed, and a pair takes a few
microseconds unless all its words are indexed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mtrain.data.store import SIDES
from mtrain.languages import unspaced

Hashes = NDArray[np.uint64]
TextPair = tuple[str, str]  # source, target

# A side with at least this many words identifies a sentence; shorter ones may occur anywhere.
MIN_WORDS_ALONE = 5
N_WORDS = 8  # of an n-gram; in scripts without spaces, twice as many characters
MIN_SHARE = 0.5  # of an evaluation sentence's n-grams, for a near match

# All control characters except white space, and the byte order mark. The joiners U+200C and U+200D
# stay: Persian, Hindi and emoji need them.
_DROPPED = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
_NO_LETTERS = re.compile(r"[\W\d_]+")
_SURROGATES = re.compile("[\ud800-\udfff]")

_MAX_SORTED = 1 << 21  # hashes at a time


def normalize(text: str) -> str:
    """One clean line: NFC, no control characters, single spaces instead of any white space.

    Idempotent. Half a surrogate pair, which UTF-8 cannot encode, becomes U+FFFD.
    """
    if not (text.isascii() and text.isprintable()):
        text = _SURROGATES.sub("\ufffd", _DROPPED.sub("", text))
        text = unicodedata.normalize("NFC", " ".join(text.split()))
    return " ".join(text.split())


def count_words(text: str) -> int:
    """Words between spaces; where a script has no spaces, two characters count as one."""
    n_words = len(text.split())
    return n_words if text.isascii() else n_words + len(unspaced().findall(text)) // 2


def digest(text: str) -> bytes:
    """A hash of 8 bytes, the same on every machine."""
    return blake2b(text.encode(), digest_size=8).digest()


def hash_text(text: str) -> int:
    """The digest as a 64-bit number."""
    return int.from_bytes(digest(text), "little")


def hashes_of(digests: Sequence[bytes]) -> Hashes:
    """(n,) the digests as numbers."""
    return np.frombuffer(b"".join(digests), "<u8")


def loosen(text: str) -> str:
    """A text without case, digits and punctuation; unchanged if nothing else is in it."""
    return " ".join(_NO_LETTERS.sub(" ", text.casefold()).split()) or text


class EvaluationText:
    """The sentences of valid and test sets, to recognise leaked training pairs."""

    def __init__(self, splits: Mapping[str, Iterable[TextPair]]) -> None:
        self.names = list(splits)
        # Digest -> the sets with this sentence, as bits; bit 0 is the first set.
        self._sources: dict[bytes, int] = {}
        self._targets: dict[bytes, int] = {}
        for number, pairs in enumerate(splits.values()):
            for pair in pairs:
                for text, known in zip(pair, (self._sources, self._targets), strict=True):
                    if text := normalize(text):  # an empty line identifies nothing
                        key = digest(text)
                        known[key] = known.get(key, 0) | 1 << number

    def find(self, source: str, target: str, digests: tuple[bytes, bytes]) -> list[str]:
        """The sets with a sentence of a normalised training pair.

        One known side of five words or more is enough; otherwise both sides must be known.
        """
        in_source = self._sources.get(digests[0], 0)
        in_target = self._targets.get(digests[1], 0)
        if not (in_source or in_target):
            return []
        if not (in_source and in_target):
            alone = source if in_source else target
            if count_words(alone) < MIN_WORDS_ALONE:
                return []
        bits = in_source | in_target
        return [name for i, name in enumerate(self.names) if bits >> i & 1]


@dataclass(frozen=True, slots=True)
class NearMatch:
    """An evaluation sentence that nearly equals a side of a training pair."""

    split: str  # `valid`, or the name of a test set
    line: int  # of the split, from 1
    side: str  # `source` or `target`
    text: str  # the evaluation sentence, normalised
    share: float  # of its n-grams that are in the training sentence


class NearMatches:
    """The n-grams of evaluation sentences, by side."""

    def __init__(self, splits: Mapping[str, Sequence[TextPair]]) -> None:
        self._indices = tuple(_Index(side, splits) for side in range(len(SIDES)))

    def find(self, source: str, target: str) -> NearMatch | None:
        """An evaluation sentence that nearly equals a side of a normalised training pair."""
        for index, text in zip(self._indices, (source, target), strict=True):
            match = index.find(text)
            if match is not None:
                return match
        return None


class _Index:
    """One side of all splits: n-gram -> the sentences with it."""

    def __init__(self, side: int, splits: Mapping[str, Sequence[TextPair]]) -> None:
        self._side = SIDES[side]
        self._sentences: list[tuple[str, int, str]] = [  # split, line, text
            (split, line, normalize(pair[side]))
            for split, pairs in splits.items()
            for line, pair in enumerate(pairs, start=1)
        ]
        n_unspaced = sum(unspaced().search(text) is not None for _, _, text in self._sentences)
        self._is_spaced = n_unspaced <= len(self._sentences) / 2
        self._n = N_WORDS if self._is_spaced else 2 * N_WORDS
        self._known: set[str] = set()
        self._bigrams: set[tuple[str, str]] = set()
        self._n_grams: list[int] = []  # of each sentence, distinct ones
        self._sentences_with: dict[str, tuple[int, ...]] = {}
        for number, (_, _, text) in enumerate(self._sentences):
            units = self._units(text)
            grams = self._grams(units)
            self._n_grams.append(len(grams))
            if grams:
                self._known.update(units)
                self._bigrams.update(pairwise(units))
            for gram in grams:
                self._sentences_with[gram] = (*self._sentences_with.get(gram, ()), number)

    def find(self, text: str) -> NearMatch | None:
        """The sentence with the largest share of its n-grams in a text, if large enough."""
        units = self._units(text)
        if len(units) < self._n or not self._may_share(units):
            return None
        n_shared = Counter(
            number for gram in self._grams(units) for number in self._sentences_with.get(gram, ())
        )
        shares = {number: n_found / self._n_grams[number] for number, n_found in n_shared.items()}
        best = max(shares, key=lambda number: (shares[number], -number), default=None)
        if best is None or shares[best] < MIN_SHARE:
            return None
        split, line, known = self._sentences[best]
        return NearMatch(split, line, self._side, known, shares[best])

    def _may_share(self, units: list[str]) -> bool:
        """A fast check that fails for nearly all text: n words in a row that are indexed."""
        return b"\1" * self._n in bytes(map(self._known.__contains__, units)) and b"\1" * (
            self._n - 1
        ) in bytes(map(self._bigrams.__contains__, pairwise(units)))

    def _units(self, text: str) -> list[str]:
        """Words in lower case, or characters if most of the evaluation text has no spaces."""
        return text.lower().split(" ") if self._is_spaced else list(text.lower().replace(" ", ""))

    def _grams(self, units: list[str]) -> set[str]:
        return {" ".join(units[i : i + self._n]) for i in range(len(units) - self._n + 1)}


# -- many pairs against each other -----------------------------------------------------------


def find_repeats(sources: Hashes, targets: Hashes) -> NDArray[np.bool_]:
    """(n,) True where the same two sides have occurred before."""
    # The order of the sides matters.
    return find_excess(sources * np.uint64(0x9E3779B97F4A7C15) ^ targets, 1)


def find_excess(hashes: Hashes, limit: int) -> NDArray[np.bool_]:
    """(n,) True where a hash has occurred `limit` times before."""
    is_excess = np.zeros(len(hashes), dtype=bool)
    for positions in _groups(hashes):
        values = hashes[positions]
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        sizes = np.diff(starts, append=len(values))
        n_before = np.arange(len(values)) - np.repeat(starts, sizes)
        is_excess[positions[n_before >= limit]] = True
    return is_excess


def _groups(hashes: Hashes) -> Iterator[NDArray[np.int64]]:
    """Positions sorted by (hash, position), in parts that never separate equal hashes.

    One part is sorted at a time, which needs little memory.
    """
    bits = max(0, len(hashes) // _MAX_SORTED).bit_length()
    top = hashes.view("<u2")[3::4] >> (16 - bits) if bits else np.zeros(len(hashes), np.uint16)
    for part in range(1 << bits):
        positions = np.flatnonzero(top == part)
        yield positions[np.argsort(hashes[positions], kind="stable")]


def choose_valid(
    sources: Hashes, targets: Hashes, n_valid: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw a validation set from the training pairs.

    Returns the (n_valid,) ascending indices of the drawn pairs, preferably of sentences that
    occur once, and (n,) True for every pair that shares a sentence with one of them (itself
    included) and so cannot be trained on.
    """
    shares = _occurs_again(sources) | _occurs_again(targets)
    order = np.random.default_rng(seed).permutation(len(sources))
    order = np.concatenate([order[~shares[order]], order[shares[order]]])
    chosen = np.sort(order[:n_valid])
    leaves = np.isin(sources, sources[chosen]) | np.isin(targets, targets[chosen])
    return chosen, leaves


def _occurs_again(hashes: Hashes) -> NDArray[np.bool_]:
    """(n,) True where a hash occurs more than once."""
    occurs_again = np.zeros(len(hashes), dtype=bool)
    for positions in _groups(hashes):
        is_same = np.diff(hashes[positions]) == 0  # as the next one
        occurs_again[positions[:-1][is_same]] = True
        occurs_again[positions[1:][is_same]] = True
    return occurs_again
