"""Parts of a sentence that a translation must preserve: numbers, URLs, names.

Numbers are equal however they are written: 1,000.5 and 1.000,5 and 1 000,5, "12" and "zwölf", 12/05
and "12 May", 17:30 and "5:30 pm", 1.5 million and 1.500.000, 1980s and "80er". In doubt a number
counts as kept: nobody reads a diagnostic that cries wolf.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mtrain.evaluation import number_words
from mtrain.evaluation.faults import Fault, Sentence

# -- numbers ---------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"""(?:
        \d{1,3}(?:(?P<mark>[.,'’ \u00a0\u202f\u2009])\d{3})(?:(?P=mark)\d{3})*(?!\d)  # in thousands
        | \d+
    )
    (?:[.,]\d+(?![.,:/-]?\d))?  # decimals, but not of 12.5.2010""",
    re.VERBOSE,
)
_RUN = re.compile(r"\d+")
_MAX_SAID = 999_999  # larger numbers in words are only recognised by their thousands
_ROMAN = re.compile(r"\b[IVXLCDM]+(?=\b|[a-zè])")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_SMALL = 12  # numbers up to here are commonly written in words


@dataclass(frozen=True)
class _Number:
    """A number as written, and the digits that stay the same in every notation."""

    text: str
    digits: str  # all of them, without leading zeros
    runs: tuple[str, ...]  # between separators

    @property
    def significant(self) -> str:
        """Without zeros that may be written as "million" or as two decimals."""
        return self.digits.rstrip("0") or "0"

    @property
    def n_zeros(self) -> int:
        return len(self.digits) - len(self.significant)

    @property
    def has_mark(self) -> bool:
        return len(self.runs) > 1


@dataclass(frozen=True)
class _Reading:
    """Everything in a text that may express a number."""

    text: str  # casefolded
    numbers: tuple[_Number, ...]
    forms: frozenset[str]
    digits: str  # all of the text, in order
    romans: frozenset[int]


@lru_cache(maxsize=8192)
def _read(text: str) -> _Reading:
    ascii_digits = "".join(str(int(c)) if c.isdecimal() else c for c in text)
    numbers = tuple(_number(match[0]) for match in _NUMBER.finditer(ascii_digits))
    forms = {number.digits for number in numbers} | {run for n in numbers for run in n.runs}
    romans = frozenset(_roman(match[0]) for match in _ROMAN.finditer(text))
    digits = "".join(_RUN.findall(ascii_digits))
    return _Reading(text.casefold(), numbers, frozenset(forms), digits, romans)


def _number(text: str) -> _Number:
    runs = _RUN.findall(text)
    return _Number(text, _strip("".join(runs)), tuple(map(_strip, runs)))


def _strip(digits: str) -> str:
    return digits.lstrip("0") or "0"


def _roman(text: str) -> int:
    values = [_ROMAN_VALUES[letter] for letter in text]
    following = [*values[1:], 0]
    return sum(-a if a < b else a for a, b in zip(values, following, strict=True))


@dataclass(frozen=True)
class Numbers:
    """Judges of lost and invented numbers, for two languages."""

    source_lang: str
    target_lang: str

    def lost(self, sentence: Sentence) -> Fault | None:
        """Numbers in the source (and in the witness), but not in the output."""
        wanted = _read(sentence.source).numbers
        if sentence.witness is not None:
            witness = _read(sentence.witness)
            wanted = tuple(n for n in wanted if _has_digits(n, witness))
        output = _read(sentence.output)
        is_sure = sentence.witness is not None
        return _fault(
            "missing",
            (n for n in wanted if not self._is_in(n, output, self.target_lang, is_sure)),
        )

    def invented(self, sentence: Sentence) -> Fault | None:
        """Numbers in the output, but neither in the source nor in the witness."""
        source, witness = _read(sentence.source), _read(sentence.witness or "")
        return _fault(
            "invented",
            (
                number
                for number in _read(sentence.output).numbers
                if not self._is_in(number, source, self.source_lang, is_sure=False)
                and not self._is_in(number, witness, self.target_lang, is_sure=False)
            ),
        )

    def _is_in(self, number: _Number, reading: _Reading, language: str, is_sure: bool) -> bool:
        """True if a text has the number in some form, or in doubt may have it.

        `is_sure`: another text has it in digits, so words of an unknown language are no excuse.
        """
        if _has_digits(number, reading):
            return True
        value = int(number.digits)
        if value in reading.romans or number_words.says(reading.text, value, language):
            return True
        if not number_words.knows(language):
            return value <= _SMALL and not is_sure
        parts = [int(run) for run in number.runs]
        return number.has_mark and all(
            str(part) in reading.forms or number_words.says(reading.text, part, language)
            for part in parts
        )


def _has_digits(number: _Number, reading: _Reading) -> bool:
    """True if the digits occur, with any characters between them."""
    if number.digits in reading.forms or all(_has_run(run, reading) for run in number.runs):
        return True
    if len(number.digits) >= 3 and number.digits in reading.digits:
        return True
    return any(_is_same(number, other) for other in reading.numbers)


def _has_run(run: str, reading: _Reading) -> bool:
    """True if the digits between two separators occur, or the same hour of the 12-hour clock."""
    if run in reading.forms:
        return True
    value = int(run)
    return value <= 24 and any(str(value + half) in reading.forms for half in (12, -12))


def _is_same(one: _Number, other: _Number) -> bool:
    """Another notation of the same: 1.5 million, 80er."""
    if one.significant == other.significant:
        n_zeros = abs(one.n_zeros - other.n_zeros)
        if n_zeros % 3 == 0 or n_zeros % 4 == 0 or one.has_mark or other.has_mark:
            return True
    short, long = sorted((one.digits, other.digits), key=len)
    is_year = (len(short), len(long)) == (2, 4) and long[:2] in ("18", "19", "20")
    return is_year and long.endswith(short)


def _fault(what: str, numbers: Iterable[_Number]) -> Fault | None:
    texts = list(dict.fromkeys(number.text for number in numbers))
    return Fault(len(texts), f"{', '.join(texts)} {what}") if texts else None


# -- URLs ------------------------------------------------------------------------------------

_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"“”«»]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


def urls(sentence: Sentence) -> Fault | None:
    """A URL or mail address of the source is missing, or a new one was invented."""
    source, output = _urls(sentence.source), _urls(sentence.output)
    witness = source if sentence.witness is None else _urls(sentence.witness)
    lost = sorted(source & witness - output)
    invented = sorted(output - source - witness)
    return _lost_or_invented(lost, invented)


def _lost_or_invented(lost: Sequence[str], invented: Sequence[str]) -> Fault | None:
    if not (lost or invented):
        return None
    parts = [f"{', '.join(lost)} missing"] if lost else []
    parts += [f"{', '.join(invented)} invented"] if invented else []
    return Fault(len(lost) + len(invented), "; ".join(parts))


def _urls(text: str) -> set[str]:
    return {match.rstrip(".,;:!?)]}'’/").casefold() for match in _URL.findall(text)}


# -- names -----------------------------------------------------------------------------------

_LATIN = "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ"
_LATIN_WORD = re.compile(f"[{_LATIN}]+(?:[-'’.][{_LATIN}]+)*")


@dataclass(frozen=True)
class Names:
    """Judges names in Latin script: capitalised words that source and reference spell alike."""

    common: frozenset[str]  # words that also occur without a capital, so are not names
    is_latin: bool  # the target language is written in Latin letters

    @classmethod
    def learn(cls, sources: Sequence[str], references: Sequence[str]) -> Names:
        """From all texts of a test set."""
        words = (word for side in (sources, references) for text in side for word in _latin(text))
        common = frozenset(word for word in words if word[0].islower())
        n_latin = sum(len("".join(_latin(text))) for text in references)
        n_letters = sum(map(str.isalpha, "".join(references)))
        return cls(common, 2 * n_latin > n_letters)

    def __call__(self, sentence: Sentence) -> Fault | None:
        """A name shared by source and witness is missing; or, in another script, one is new."""
        if sentence.witness is None:
            return None
        witness = set(_latin(sentence.witness))
        output = sentence.output.casefold()
        lost = [
            name
            for name in dict.fromkeys(_latin(sentence.source))
            if self._is_name(name) and name in witness and _stem(name) not in output
        ]
        invented = [] if self.is_latin else self._invented(sentence)
        return _lost_or_invented(lost, invented)

    def _invented(self, sentence: Sentence) -> list[str]:
        known = f"{sentence.source} {sentence.witness}".casefold()
        words = dict.fromkeys(_latin(sentence.output))
        return [word for word in words if len(word) > 1 and _stem(word) not in known]

    def _is_name(self, word: str) -> bool:
        return word[0].isupper() and len(word) > 1 and word.casefold() not in self.common


def _latin(text: str) -> list[str]:
    return _LATIN_WORD.findall(text)


def _stem(name: str) -> str:
    """The part of a name that inflection does not change: Obama, Obamas, Obamy."""
    return name[: max(3, len(name) - 2)].casefold()
