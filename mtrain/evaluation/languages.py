"""Is an output in the right script and the right language? Judged from the test set alone.

A script is right if the references, the source or the witness use it. The language is judged by
character trigrams of the test set's sources and references, which works for any two languages: an
output is wrong if it looks more like a source than like a reference. Each half of the lines is
judged by a model of the other half, so that no sentence is compared with itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtrain.evaluation.faults import Fault, Sentence
from mtrain.languages import name_of_script, script_of

_USED = 0.001  # minimum share of the references' letters for a script to be in use
_MAIN = 0.05  # ... to be a script of the language
_MIN_LETTERS = 4  # fewer letters cannot show the main script

_MIN_SENTENCES = 50  # to learn a language from
_MIN_TRIGRAMS = 15
_SMOOTHING = 0.1


@dataclass(frozen=True)
class Scripts:
    """The scripts of the target language."""

    used: frozenset[str]
    main: frozenset[str]

    @classmethod
    def learn(cls, references: Sequence[str]) -> Scripts:
        """From the letters of all references."""
        counts: Counter[str] = Counter()
        for reference in references:
            counts.update(_scripts(reference))
        n_letters = max(1, counts.total())
        used, main = (
            frozenset(script for script, n in counts.items() if n >= share * n_letters)
            for share in (_USED, _MAIN)
        )
        return cls(used, main)

    def wrong(self, sentence: Sentence) -> Fault | None:
        """The output has letters of an unexplained script, or none of the target's main script."""
        found = _scripts(sentence.output)
        n_letters = found.total()
        witness = _scripts(sentence.witness or "")
        explained = self.used | _scripts(sentence.source).keys() | witness.keys()
        if foreign := {script: n for script, n in found.items() if script not in explained}:
            scripts = " and ".join(map(name_of_script, foreign))
            return Fault(sum(foreign.values()) / n_letters, f"letters of {scripts}")
        enough = _MIN_LETTERS if sentence.witness else 3 * _MIN_LETTERS
        if n_letters < enough or self.main & found.keys() or not self.main:
            return None
        if sentence.witness and not self.main & witness.keys():
            return None
        return Fault(1.0, f"nothing but {' and '.join(map(name_of_script, found))}")


def _scripts(text: str) -> Counter[str]:
    if text.isascii():
        n_letters = sum(map(str.isalpha, text))
        return Counter({"Latn": n_letters} if n_letters else {})
    return Counter(script for script in map(script_of, text) if script)


@dataclass(frozen=True)
class _Trigrams:
    """Log-odds of each trigram: target language against source language."""

    odds: dict[str, float]  # 0 for any other

    @classmethod
    def learn(cls, sources: Sequence[str], targets: Sequence[str]) -> _Trigrams:
        counts = [
            Counter(t for text in side for t in _trigrams(text)) for side in (sources, targets)
        ]
        kinds = counts[0].keys() | counts[1].keys()
        totals = [side.total() + _SMOOTHING * len(kinds) for side in counts]

        def odds(trigram: str) -> float:
            source, target = (
                (side[trigram] + _SMOOTHING) / total
                for side, total in zip(counts, totals, strict=True)
            )
            return float(np.log(target / source))

        return cls({trigram: odds(trigram) for trigram in kinds})

    def mean_odds(self, trigrams: Sequence[str]) -> float:
        return sum(self.odds.get(trigram, 0.0) for trigram in trigrams) / len(trigrams)


@dataclass(frozen=True)
class TwoLanguages:
    """Distinguishes the target language from the source language."""

    halves: tuple[_Trigrams, _Trigrams]  # learnt from even lines, from odd lines

    @classmethod
    def learn(cls, sources: Sequence[str], targets: Sequence[str]) -> TwoLanguages | None:
        """Learn from a test set; None if it is too small, or both sides are the same."""
        if len(sources) < _MIN_SENTENCES:
            return None
        even, odd = (_Trigrams.learn(sources[i::2], targets[i::2]) for i in (0, 1))
        return cls((even, odd))

    def wrong(self, sentence: Sentence) -> Fault | None:
        """More like the sources than like the references, unlike the witness."""
        odds = self._odds(sentence.line, sentence.output)
        if odds is None or odds >= 0:
            return None
        if sentence.witness is not None:
            expected = self._odds(sentence.line, sentence.witness)
            if expected is not None and expected < 0.5:
                return None
        return Fault(-odds, "looks like the source language")

    def _odds(self, line: int, text: str) -> float | None:
        trigrams = _trigrams(text)
        if len(trigrams) < _MIN_TRIGRAMS:
            return None
        return self.halves[1 - line % 2].mean_odds(trigrams)


def _trigrams(text: str) -> list[str]:
    """Trigrams of letters only: digits and signs belong to no language."""
    letters = "".join(c if c.isalpha() else " " for c in text.casefold())
    padded = f" {' '.join(letters.split())} "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]
