"""Training pairs that nearly equal a sentence of valid or test: they share most long n-grams.

Exact matches are removed (`cleaning.EvaluationText`); near matches are found here and reported, but
not dropped. Only the evaluation text is indexed, so that memory does not grow with the training
text, and a pair takes a few microseconds unless all its words are indexed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mtrain.data.cleaning import TextPair, normalize
from mtrain.data.store import SIDES
from mtrain.languages import unspaced

N_WORDS = 8  # of an n-gram; in scripts without spaces, twice as many characters
MIN_SHARE = 0.5  # of an evaluation sentence's n-grams, for a near match


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
