"""Faults of form: empty, copied, too short or long, repeated, unknown characters, memorised.

A judge takes one output with its source, and with the reference as a witness if there is one, and
returns a fault or None. The thresholds separate planted faults from real references
(scripts/measure_diagnostics.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mtrain.languages import unspaced


class Sentence(NamedTuple):
    """An output to judge."""

    line: int  # from 0
    source: str
    output: str
    witness: str | None  # the reference; None where there is none, or it is itself judged


class Fault(NamedTuple):
    """A fault of an output."""

    severity: float  # larger is worse
    detail: str  # in words


Judge = Callable[[Sentence], Fault | None]

# -- empty, unknown characters, seen in training ---------------------------------------------

_UNKNOWN_MARKS = re.compile(r"<unk>|<0x[0-9A-F]{2}>|⁇|\ufffd", re.IGNORECASE)
_UNKNOWN_CATEGORIES = {"Cc", "Cn", "Co", "Cs"}  # control, unassigned, private use, half a pair


def empty(sentence: Sentence) -> Fault | None:
    """The output is empty, but the source is not."""
    if sentence.output.strip() or not sentence.source.strip():
        return None
    if sentence.witness is not None and not sentence.witness.strip():
        return None
    return Fault(len(sentence.source), "empty")


def unknown_characters(sentence: Sentence) -> Fault | None:
    """The output has placeholders for unknown characters, and the reference has none."""
    unknown = _unknown(sentence.output)
    if sentence.witness is not None:
        unknown -= _unknown(sentence.witness)
    if not unknown:
        return None
    return Fault(unknown.total(), ", ".join(map(_named, unknown)))


def seen(was_seen: Callable[[str], bool]) -> Judge:
    """Judges memorised outputs; severity is the length in characters."""

    def judge(sentence: Sentence) -> Fault | None:
        output = sentence.output
        return Fault(len(output), "a training target") if output and was_seen(output) else None

    return judge


def _unknown(text: str) -> Counter[str]:
    found = Counter(_UNKNOWN_MARKS.findall(text))
    if not (text.isascii() and text.isprintable()):
        found.update(
            c for c in text if unicodedata.category(c) in _UNKNOWN_CATEGORIES and c != "\t"
        )
    return found


def _named(character: str) -> str:
    return character if character.isprintable() else f"U+{ord(character):04X}"


# -- copied ----------------------------------------------------------------------------------

_WORD = re.compile(r"\w+")
_MIN_COPIED_WORDS = 3  # fewer words may be the same in both languages
_COPIED_SHARE = 0.8  # of the words of an output


def copied(sentence: Sentence) -> Fault | None:
    """The output repeats the source, wholly or nearly, and the reference does not."""
    source, output = (_words(text) for text in (sentence.source, sentence.output))
    if not any(word.isalpha() for word in output):
        return None
    witness = None if sentence.witness is None else _words(sentence.witness)
    if source == output:
        if witness is None:
            return Fault(len(output), "all") if len(output) >= _MIN_COPIED_WORDS else None
        return Fault(len(output), "all") if witness != source else None
    if len(output) < _MIN_COPIED_WORDS + 1:
        return None
    share = _shared(source, output) / len(output)
    if share < _COPIED_SHARE or (witness is not None and _shared(source, witness) > share / 2):
        return None
    return Fault(share * len(output), f"{share:.0%} of its words")


def _shared(source: list[str], output: list[str]) -> int:
    """Number of output words that occur in the source in the same order."""
    matcher = SequenceMatcher(None, source, output, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


# -- too short, too long ---------------------------------------------------------------------

_EXTRA = 3  # characters added to all lengths, so that short sentences may vary more
_FINAL = re.compile(r"[.!?…。！？।。፧።؟:;»”\"'’)\]]\s*$")


@dataclass(frozen=True)
class UsualLengths:
    """The usual length of a translation, in characters, given the length of its source."""

    ratio: float  # median of target / source
    shortest: float  # bounds of length / expected length, where there is no witness
    longest: float

    @classmethod
    def learn(cls, sources: Sequence[str], targets: Sequence[str]) -> UsualLengths:
        """From the pairs of a test set that are not empty."""
        pairs = [
            (len(source), len(target))
            for source, target in zip(sources, targets, strict=True)
            if source and target
        ]
        if not pairs:
            return cls(1.0, 0.5, 2.0)
        ratios = np.array([(target + _EXTRA) / (source + _EXTRA) for source, target in pairs])
        middle = float(np.median(ratios))
        low, high = np.quantile(ratios / middle, (0.003, 0.997))
        return cls(middle, min(0.6, float(low)), max(1.75, float(high)))

    def too_short(self, sentence: Sentence) -> Fault | None:
        """Far shorter than usual; the threshold is milder if the closing mark is missing too."""
        if not sentence.output.strip():
            return None  # which is `empty`
        by_source, by_witness = self._relative(sentence)
        is_open = _is_cut_off(sentence)
        if by_witness is None:
            is_short = by_source < (0.8 if is_open else self.shortest)
        else:
            is_short = by_witness < (0.8 if is_open else 0.65) and by_source < 0.9
        if not is_short:
            return None
        share = by_source if by_witness is None else by_witness
        ending = ", without a closing mark" if is_open else ""
        return Fault(1 - share, f"{share:.0%} of the expected length{ending}")

    def too_long(self, sentence: Sentence) -> Fault | None:
        """Far longer than usual."""
        by_source, by_witness = self._relative(sentence)
        if by_witness is None:
            is_long = by_source > self.longest
        else:
            is_long = by_witness > 1.6 and by_source > 1.4
        if not is_long:
            return None
        share = by_source if by_witness is None else by_witness
        return Fault(share, f"{share:.0%} of the expected length")

    def _relative(self, sentence: Sentence) -> tuple[float, float | None]:
        """Length divided by the length expected from the source, and by that of the witness."""
        length = len(sentence.output) + _EXTRA
        by_source = length / (self.ratio * (len(sentence.source) + _EXTRA))
        if not sentence.witness:
            return by_source, None
        return by_source, length / (len(sentence.witness) + _EXTRA)


def _is_cut_off(sentence: Sentence) -> bool:
    """True if source (and witness) end in a closing mark and the output does not."""
    if _FINAL.search(sentence.output) or not _FINAL.search(sentence.source):
        return False
    return sentence.witness is None or bool(_FINAL.search(sentence.witness))


# -- repetition ------------------------------------------------------------------------------

_MAX_PERIOD = 40  # of the longest phrase, in words
_DOUBLING_SHARE = 0.006  # of references with a doubled word, where a language does that
_MIN_APART = 5  # of a phrase that occurs again elsewhere in the sentence, in words


@dataclass(frozen=True)
class Repetition:
    """Judges phrases repeated in a row, and long phrases repeated elsewhere in the sentence."""

    doubled: Counter[str]  # words that people double: in how many references
    may_double: bool  # the language doubles words as a matter of course

    @classmethod
    def learn(cls, references: Sequence[str]) -> Repetition:
        """Learn from the references which words people double, as in "that that"."""
        doubled: Counter[str] = Counter()
        for words in map(units, references):
            doubled.update({a for a, b in pairwise(words) if a == b and a.isalpha()})
        return cls(doubled, doubled.total() > _DOUBLING_SHARE * len(references))

    def __call__(self, sentence: Sentence) -> Fault | None:
        words = units(sentence.output)
        others = [units(text) for text in (sentence.source, sentence.witness or "")]
        # A judged reference doubles its own words; that alone is not an excuse.
        phrase, extra = self._in_a_row(words, 1 if sentence.witness is None else 0)
        if phrase and extra > max(self._in_a_row(other, 0)[1] for other in others):
            n_times = extra // len(phrase) + 1
            return Fault(extra, f"“{_join(phrase)}” {n_times} times in a row")
        phrase = _again(words, _MIN_APART)
        if phrase and not any(map(_says_twice, others)):
            return Fault(len(phrase), f"“{_join(phrase)}” again")
        return None

    def _in_a_row(self, words: list[str], n_own: int) -> tuple[list[str], int]:
        """The phrase whose repetition takes up most words, and their number.

        A word that is doubled in more than `n_own` references may be doubled.
        """
        best: tuple[list[str], int] = ([], 0)
        for period in range(1, min(_MAX_PERIOD, len(words) // 2) + 1):
            run = 0
            for i in range(period, len(words)):
                run = run + 1 if words[i] == words[i - period] else 0
                extra = run - run % period
                if extra > best[1]:
                    phrase = words[i - period + 1 : i + 1]
                    if self._is_fault(phrase, extra // period + 1, n_own):
                        best = phrase, extra
        return best

    def _is_fault(self, phrase: list[str], n_times: int, n_own: int) -> bool:
        """Repeated words; of characters, four or more twice, two three times, one four times."""
        if any(unspaced().match(word) for word in phrase):
            n_characters = sum(map(len, phrase))
            return n_times >= (2 if n_characters >= 4 else 3 if n_characters >= 2 else 4)
        n_words = sum(len(word) > 1 and word[0].isalnum() for word in phrase)
        if n_words == 0 or n_times > 2:
            return n_words > 0  # signs and initials are not a fault
        if len(phrase) == 1:
            return phrase[0].isalpha() and not self.may_double and self.doubled[phrase[0]] <= n_own
        return n_words > 1 or all(word[0].isalnum() for word in phrase)  # "very, very" is none


def _again(words: list[str], length: int) -> list[str]:
    """A phrase of this length that occurs twice without overlap; empty if there is none."""
    if any(unspaced().match(word) for word in words):
        length *= 2
    first: dict[tuple[str, ...], int] = {}
    for i in range(len(words) - length + 1):
        phrase = tuple(words[i : i + length])
        if not all(word[0].isalnum() for word in phrase):
            continue
        if i - first.setdefault(phrase, i) >= length:
            return list(phrase)
    return []


def _says_twice(words: list[str]) -> bool:
    """True if a longer word, or three words in a row, occur twice, so an output may too."""
    long = [word for word in words if len(word) >= 5]
    return len(long) > len(set(long)) or bool(_again(words, 3))


def units(text: str) -> list[str]:
    """Casefolded words and signs; single characters in scripts without spaces."""
    return _unit().findall(text.casefold())


@cache
def _unit() -> re.Pattern[str]:
    alone = unspaced().pattern
    return re.compile(rf"{alone}|(?:(?!{alone})\w)+|[^\w\s]+")


def _join(words: list[str]) -> str:
    return ("" if any(unspaced().match(word) for word in words) else " ").join(words)
