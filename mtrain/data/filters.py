"""The filters that look at one training pair: each says whether the pair should be dropped.

A filter is a method of `PairFilter` with the name of its key in `data.clean`, and has its
threshold there. All see normalised text (`cleaning.normalize`), and none needs more than the
pair and the corpus's norms, so pairs can be judged in any order and in many processes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

from mtrain.clean_config import CleanConfig
from mtrain.data.cleaning import UNSPACED, count_words
from mtrain.data.norms import Norms
from mtrain.data.scripts import letters_outside, script_of_language
from mtrain.errors import UsageError

# Each filter in words, as tables and reports name it.
REASONS = {
    "max_characters": "too many characters",
    "max_words": "too many words",
    "max_word_characters": "an over-long word",
    "min_letters": "few letters",
    "max_digits": "mostly digits",
    "max_punctuation": "mostly punctuation",
    "garbled": "garbled characters",
    "script": "in another script",
    "copies": "not translated",
    "length_ratio": "lengths that do not fit",
    "numbers": "other numbers",
    "repetition": "repeated words or characters",
    "markup": "markup on one side",
    "urls": "mostly addresses",
    "wrong_side": "in the other side's language",
    "language": "in another language",
    "normalized_duplicates": "repeated but for case and punctuation",
    "max_target_repeats": "a target seen too often",
}

_MIN_COPIED_WORDS = 3  # fewer may be a name
_MIN_REPEATING = 10  # words, or characters of a word, that may be told to repeat themselves
_MIN_SIDED_WORDS = 4  # known words of a side, before their language is judged
_MAX_SPELLED_NUMBER = 12  # numbers up to this are often words: hours, months, small counts
_HOURS = 12

_ALL_BYTES = bytes(range(256))
_DIGITS = b"0123456789"
_LETTERS = bytes(byte for byte in _ALL_BYTES if chr(byte).isalpha() and byte < 128)
_NO_DIGITS = bytes(set(_ALL_BYTES) - set(_DIGITS))
_NO_LETTERS = bytes(set(_ALL_BYTES) - set(_LETTERS))

_NUMBER = re.compile(r"\d+")
# UTF-8 read as Latin-1 or Windows-1252: the first byte of a character, then one that continues it.
_GARBLED = re.compile(
    "[\u00c2-\u00c5\u00c8-\u00cb\u00d0\u00d1\u00e2\u00e3][\u0080-\u00a0\u00a2\u00a4-\u00aa\u00ac-\u00ba"
    "\u00bc-\u00be\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014"
    "\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]|\ufffd"
)
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|&(?:[a-zA-Z]{2,8}|#\d{2,5});|[{}]")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\S+")


class Side:
    """A side of a pair, and what several filters ask of it."""

    __slots__ = ("digits", "n_characters", "text", "utf8", "words")

    def __init__(self, text: str) -> None:
        self.text = text  # normalised: single spaces
        self.words = text.split(" ")
        self.n_characters = len(text) - len(self.words) + 1  # spaces aside
        self.utf8 = text.encode()
        self.digits = self.utf8.translate(None, _NO_DIGITS)


Check = Callable[[Side, Side], bool]


class PairFilter:
    """Judges normalised pairs of two languages, under the thresholds of a config.

    Without norms, the filters that need them keep everything.
    """

    def __init__(
        self, config: CleanConfig, source_lang: str, target_lang: str, norms: Norms | None = None
    ) -> None:
        # Each method runs only where its key is on; thresholds are numbers then.
        self._limits: dict[str, float] = {key: value for key, value in config if value is not False}
        self._norms = norms
        self._scripts = [
            script_of_language(language) or (norms and norms.scripts[side])
            for side, language in enumerate((source_lang, target_lang))
        ]
        self._languages = (source_lang, target_lang)
        self._identifier: Any = None  # loaded when first needed, in each process
        needs_norms = ("length_ratio", "wrong_side")
        self._checks: list[tuple[str, Check]] = [
            (key, getattr(self, key))
            for key in REASONS
            if hasattr(self, key)
            and getattr(config, key) is not False
            and (norms is not None or key not in needs_norms)
        ]

    def reason(self, source: str, target: str) -> str | None:
        """The key of the first filter that would drop a pair; None if it may stay."""
        sides = Side(source), Side(target)
        for key, drops in self._checks:
            if drops(*sides):
                return key
        return None

    def reasons(self, source: str, target: str) -> list[str]:
        """The keys of all filters that would drop a pair."""
        sides = Side(source), Side(target)
        return [key for key, drops in self._checks if drops(*sides)]

    # -- amounts -----------------------------------------------------------------------------

    def max_characters(self, source: Side, target: Side) -> bool:
        """A side has too many characters."""
        return max(len(source.text), len(target.text)) > self._limits["max_characters"]

    def max_words(self, source: Side, target: Side) -> bool:
        """A side has too many words."""
        limit = self._limits["max_words"]
        return any(
            len(side.text) > limit and count_words(side.text) > limit for side in (source, target)
        )

    def max_word_characters(self, source: Side, target: Side) -> bool:
        """A word between spaces is too long; scripts without spaces are spared."""
        limit = self._limits["max_word_characters"]
        for side in (source, target):
            if len(side.text) > limit:
                longest = max(side.words, key=len)
                if len(longest) > limit and not UNSPACED.search(longest):
                    return True
        return False

    def min_letters(self, source: Side, target: Side) -> bool:
        """A side has few letters; marks on letters count as such."""
        share = self._limits["min_letters"]
        return any(
            _n_ascii_letters(side) < share * side.n_characters
            and _n_letters(side.text) < share * side.n_characters
            for side in (source, target)
        )

    def max_digits(self, source: Side, target: Side) -> bool:
        """A side is mostly digits."""
        share = self._limits["max_digits"]
        return (
            len(source.digits) > share * source.n_characters
            or len(target.digits) > share * target.n_characters
        )

    def max_punctuation(self, source: Side, target: Side) -> bool:
        """A side is mostly characters that are no letters, marks, digits or spaces."""
        share = self._limits["max_punctuation"]
        for side in (source, target):
            allowed = share * side.n_characters
            rest = side.n_characters - len(side.digits)
            if rest - _n_ascii_letters(side) > allowed and rest - _n_letters(side.text) > allowed:
                return True
        return False

    def length_ratio(self, source: Side, target: Side) -> bool:
        """One side is much longer than the other, for this corpus and for so short a pair."""
        assert self._norms is not None
        deviation = self._norms.length_ratio.deviation(len(source.text), len(target.text))
        return deviation > self._limits["length_ratio"]

    def repetition(self, source: Side, target: Side) -> bool:
        """A side says the same again and again."""
        share = self._limits["repetition"]
        return any(_repeats_itself(side, share) for side in (source, target))

    def urls(self, source: Side, target: Side) -> bool:
        """A side is mostly web or mail addresses."""
        share = self._limits["urls"]
        return any(
            ("." in side.text and ("@" in side.text or "//" in side.text or "www." in side.text))
            and sum(map(len, _ADDRESS.findall(side.text))) > share * side.n_characters
            for side in (source, target)
        )

    # -- one side against the other ----------------------------------------------------------

    def copies(self, source: Side, target: Side) -> bool:
        """A side of several words consists of the other's, so it was hardly translated."""
        if source.text == target.text:
            return len(source.words) >= _MIN_COPIED_WORDS
        known = set(source.words)
        n_shared = len(known.intersection(target.words))
        if n_shared < _MIN_COPIED_WORDS:
            return False
        n_shortest = min(len(known), len(set(target.words)))
        return n_shared > self._limits["copies"] * n_shortest

    def numbers(self, source: Side, target: Side) -> bool:
        """Each side has a number that the other one lacks."""
        return source.digits != target.digits and numbers_differ(source.text, target.text)

    def markup(self, source: Side, target: Side) -> bool:
        """Tags, entities or braces on one side that the other one lacks."""
        return _markup_of(source.text) != _markup_of(target.text)

    # -- language ----------------------------------------------------------------------------

    def garbled(self, source: Side, target: Side) -> bool:
        """Characters that come from reading text in the wrong encoding."""
        return any(
            not side.text.isascii() and _GARBLED.search(side.text) is not None
            for side in (source, target)
        )

    def script(self, source: Side, target: Side) -> bool:
        """A side is not in the script of its language; a side without letters is in any."""
        for side, script in zip((source, target), self._scripts, strict=True):
            if script is None or (script == "Latn" and side.text.isascii()):
                continue
            foreign = letters_outside(script).findall(side.text)
            if foreign:
                n_foreign = sum(map(len, foreign))
                n_letters = _n_letters(side.text)
                if n_letters - n_foreign < self._limits["script"] * n_letters:
                    return True
        return False

    def wrong_side(self, source: Side, target: Side) -> bool:
        """The words of a side are those that this corpus has on the other side."""
        assert self._norms is not None
        sides = self._norms.words
        return _leans(source, sides) > 0 or _leans(target, sides) < 0

    def language(self, source: Side, target: Side) -> bool:
        """A language identifier takes a side for another language."""
        if self._identifier is None:
            self._identifier = load_identifier()
        return any(
            self._probability(side.text, language) < self._limits["language"]
            for side, language in zip((source, target), self._languages, strict=True)
        )

    def _probability(self, text: str, language: str) -> float:
        """Of a text to be in a language; 1 where the identifier does not know the language."""
        ranked = dict(self._identifier.rank(text))
        return float(ranked.get(re.split("[-_]", language)[0], 1.0))

    def __getstate__(self) -> dict[str, Any]:
        """Without the identifier, which each process loads itself."""
        return self.__dict__ | {"_identifier": None}


def load_identifier() -> Any:
    """py3langid with probabilities; an error that names the extra where it is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UsageError(
            "`data.clean.language` needs the language identifier py3langid",
            "install it with `pip install 'mtrain[langid]'`, or remove the key",
        ) from error
    return LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)


def numbers_differ(source: str, target: str) -> bool:
    """True if each text has a number that is not in the other one, however written.

    Thousands and decimal separators, order, zeros at the end (1.5 million), centuries (1998, '98)
    and the 12-hour clock make no difference; numbers up to twelve may be words, or months.
    """
    sources, targets = Counter(_NUMBER.findall(source)), Counter(_NUMBER.findall(target))
    only_source, only_target = sources - targets, targets - sources
    if "".join(only_source.elements()) == "".join(only_target.elements()):
        return False
    return _has_other(only_source, only_target) and _has_other(only_target, only_source)


def _has_other(numbers: Counter[str], others: Counter[str]) -> bool:
    """True if some number is too large to be a word and stands for none of the others."""
    values = {int(other) for other in others}
    return any(
        (value := int(number)) > _MAX_SPELLED_NUMBER
        and value - _HOURS not in values
        and value + _HOURS not in values
        and not any(
            other.strip("0").endswith(number.strip("0"))
            or number.strip("0").endswith(other.strip("0"))
            for other in others
        )
        for number in numbers
    )


def _n_ascii_letters(side: Side) -> int:
    return len(side.utf8.translate(None, _NO_LETTERS))


def _n_letters(text: str) -> int:
    """Letters of any script, with the marks that belong to them."""
    return sum(
        character.isalpha() or unicodedata.category(character)[0] == "M" for character in text
    )


def _repeats_itself(side: Side, share: float) -> bool:
    words = side.words
    if len(words) >= _MIN_REPEATING and len(set(words)) < share * len(words):
        return True
    return any(len(word) >= _MIN_REPEATING and len(set(word)) < share * len(word) for word in words)


def _markup_of(text: str) -> list[str]:
    """Tags, entities and braces, sorted."""
    if "<" in text or "&" in text or "{" in text or "}" in text:
        return sorted(_MARKUP.findall(text))
    return []


def _leans(side: Side, words: dict[str, float]) -> float:
    """Log-odds of a side to be in the target's language; 0 where too few words tell."""
    odds = [words[word] for word in side.text.lower().split(" ") if word in words]
    return sum(odds) if len(odds) >= _MIN_SIDED_WORDS else 0.0
