"""The norms of a corpus: usual length ratios, and the script and words of each side.

Filters compare pairs with them, without any knowledge of the languages. They are estimated on a
sample of the data to be cleaned, by medians and counts, which are robust to noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from mtrain.data.cleaning import TextPair
from mtrain.languages import language, main_script

_SCRIPT_PAIRS = 2000  # enough to know the main script
_MIN_PAIRS = 50  # of one length, to learn its deviation
_MIN_DEVIATION = 0.1  # of the logarithm, against a corpus of copies or numbers with a single ratio
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_MIN_COUNT, _MAX_WORDS = 5, 100_000  # of the words whose side is learnt
_MAX_ODDS = 2.0  # of one word, so that it takes several to be sure
_CLEAR_ODDS = 5.0


@dataclass(frozen=True, slots=True)
class LengthRatio:
    """Median and deviation of log(target / source characters), for pairs of similar length.

    Pairs of 2^i up to 2^(i+1) characters, both sides together, have `middles[i]` and
    `deviations[i]`; short pairs deviate more. Deviations are medians of absolute deviations.
    """

    middles: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def learn(cls, pairs: Iterable[TextPair]) -> LengthRatio:
        """From normalised pairs; rare lengths get the norms of the nearest frequent length."""
        lengths = np.array([(len(source), len(target)) for source, target in pairs]).reshape(-1, 2)
        lengths = lengths[lengths.min(axis=1, initial=1) > 0]
        ratios = np.log(lengths[:, 1] / lengths[:, 0])
        sizes = np.log2(lengths.sum(axis=1)).astype(int)
        learnt = {
            size: _middle_and_deviation(ratios[sizes == size])
            for size in range(int(sizes.max(initial=0)) + 1)
            if (sizes == size).sum() >= _MIN_PAIRS
        }
        learnt = learnt or {0: _middle_and_deviation(ratios)}
        nearest = [
            learnt[min(learnt, key=lambda known: abs(known - size))]
            for size in range(max(learnt) + 1)
        ]
        return cls(tuple(norm[0] for norm in nearest), tuple(norm[1] for norm in nearest))

    def deviation(self, n_source: int, n_target: int) -> float:
        """The distance of a pair's length ratio from the median, in deviations."""
        size = min((n_source + n_target).bit_length() - 1, len(self.middles) - 1)
        return abs(math.log(n_target / n_source) - self.middles[size]) / self.deviations[size]


@dataclass(frozen=True, slots=True)
class Norms:
    """The statistics of a corpus that the filters use."""

    length_ratio: LengthRatio
    scripts: tuple[str | None, str | None]  # of most letters of source and target
    words: dict[str, float]  # log-odds of a word to be of the target side rather than the source

    @classmethod
    def learn(cls, pairs: Iterable[TextPair]) -> Norms:
        """From a sample of normalised pairs, a few thousand or more."""
        sample = list(pairs)
        few = sample[:: max(1, len(sample) // _SCRIPT_PAIRS)]
        return cls(
            LengthRatio.learn(sample),
            (main_script(pair[0] for pair in few), main_script(pair[1] for pair in few)),
            _sides_of_words(sample),
        )

    def scripts_of(self, side: int, code: str) -> tuple[str, ...]:
        """The scripts of a side: those of its language and, if its code names none, the main one.

        Not the main one if it is also that of the other side, as the text may be untranslated, and
        CLDR has data of the language, so that its script is certain.
        """
        known, found = language(code), self.scripts[side]
        is_sure = found == self.scripts[1 - side] and known.scripts and known.locale() is not None
        if known.names_script or is_sure or found is None:
            return known.scripts
        return tuple(dict.fromkeys((*known.scripts, found)))

    def leaning(self, words: Sequence[str]) -> float:
        """Log-odds of words to be in the target language; 0 if they are not clear."""
        odds = sum(map(self.words.get, words, repeat(0.0)))
        return odds if abs(odds) > _CLEAR_ODDS else 0.0


def _middle_and_deviation(ratios: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """Median, and the standard deviation of a normal distribution with the same MAD."""
    if not len(ratios):
        return 0.0, 1.0
    middle = float(np.median(ratios))
    spread = _MAD_TO_DEVIATION * float(np.median(np.abs(ratios - middle)))
    return middle, max(spread, _MIN_DEVIATION)


def _sides_of_words(sample: list[TextPair]) -> dict[str, float]:
    """Log-odds of each frequent lower-case word to be on the target side.

    Capitalised words are left out: names are the same on both sides.
    """
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for pair in sample:
        for text, counter in zip(pair, counts, strict=True):
            counter.update(text.split(" "))
    source, target = counts
    n_source, n_target = source.total() or 1, target.total() or 1
    odds = {
        word: math.log((target[word] + 0.5) / n_target * n_source / (source[word] + 0.5))
        for word, n in (source + target).most_common(_MAX_WORDS)
        if n >= _MIN_COUNT and word[:1].isalpha() and word == word.lower()
    }
    return {word: round(max(-_MAX_ODDS, min(_MAX_ODDS, value)), 2) for word, value in odds.items()}
