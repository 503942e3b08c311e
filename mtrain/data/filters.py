"""Why a training pair is dropped: the filters that judge one pair at a time.

A filter is a method of `PairFilter` with the name of its key in `data.clean`, which is its
threshold. All see normalised text (`cleaning.normalize`), and none needs more than the pair and the
norms of the corpus, so that pairs can be filtered in any order and in many processes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from mtrain.config.clean import CleanConfig
from mtrain.data.cleaning import count_words, loosen, normalize
from mtrain.data.mojibake import is_mojibake
from mtrain.data.statistics import Norms
from mtrain.languages import (
    WORD,
    identifies,
    language,
    n_letters,
    probability,
    require_identifier,
    runs_outside,
    unspaced,
)

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

_NEED_NORMS = {"length_ratio", "wrong_side"}
_OF_PAIRS = {  # all other filters judge one side
    *("length_ratio", "copies", "numbers", "markup", "script", "wrong_side", "language"),
}
_MIN_COPIED_WORDS = 3  # fewer different ones may be a name
_MIN_REPEATING_WORDS = 10  # of a side that may count as repetitive
_MIN_REPEATING_CHARACTERS = 20  # of a word
_HOURS = 12
_NEITHER_COPIED = 0.2  # of a side's letters, even where all others are names

_ALL_BYTES = bytes(range(256))
_DIGITS = b"0123456789"
_LETTERS = bytes(byte for byte in _ALL_BYTES if chr(byte).isalpha() and byte < 128)
_LATIN_BYTES = bytes(range(0xC9 + 1))  # in the UTF-8 of characters up to U+027F
_NO_DIGITS = bytes(set(_ALL_BYTES) - set(_DIGITS))
_NO_LETTERS = bytes(set(_ALL_BYTES) - set(_LETTERS))

# A digit within a word is a sound, as in Arabic with Latin letters: mar7aba, 3omor.
_NUMBER = re.compile(
    r"\d{2,4000}|(?<=\d[.,])\d|(?<![a-z\d])\d(?!(?!nd|rd|th)[a-z]{2}|[a-z]\d[a-z]|\d)"
)  # the longest that Python converts
_SEPARATOR = re.compile(  # of thousands, and of lakhs and crores: 1,50,000
    r"(?<=\d)(?:[.,'’٬ \u00a0\u202f](?=\d{3}(?!\d))|[,٬](?=(?:\d\d[,٬])+\d{3}(?!\d)))"
)
_DIGIT = re.compile(r"\d")
_DECIMAL = re.compile(r"(?<=\d)[.,٫](?=\d)")
# Multipliers after a number, as powers of ten: Chinese, Japanese and Korean count in ten thousands,
# the languages of India in lakhs and crores.
_TENS = {"十": 1, "십": 1, "百": 2, "백": 2, "千": 3, "천": 3}
_MYRIADS = {"万": 4, "萬": 4, "만": 4, "億": 8, "亿": 8, "억": 8, "兆": 12, "조": 12}
_LAKH = "lakh|लाख|লাখ|লক্ষ|લાખ|ਲੱਖ|లక్ష|ಲಕ್ಷ|ലക്ഷം|லட்சம்|ଲକ୍ଷ|لاکھ"
_CRORE = "crore|करोड़|कोटी|কোটি|કરોડ|ਕਰੋੜ|కోటి|ಕೋಟಿ|കോടി|கோடி|କୋଟି|کروڑ"
_INDIAN_UNIT = normalize(f"{_LAKH}|{_CRORE}")
_POWERS = {
    **_TENS,
    **_MYRIADS,
    **dict.fromkeys(normalize(_LAKH).split("|"), 5),
    **dict.fromkeys(normalize(_CRORE).split("|"), 7),
}
_UNIT = (
    f"[{''.join(_TENS)}]?[{''.join(_MYRIADS)}]|[{''.join(_TENS)}]"
    f"|(?i:(?:{_INDIAN_UNIT})s?(?: (?:{_INDIAN_UNIT})s?)?)"
)
_SIGN = re.compile("|".join(_POWERS), re.IGNORECASE)
_PART = re.compile(rf"(\d{{1,400}})(?:[.,٫](\d{{1,400}}))? ?({_UNIT})")
_AMOUNT = re.compile(rf"{_PART.pattern}(?: ?{_PART.pattern})*(\d{{0,400}})")
_TAGS = (  # of HTML; other words in angle brackets are often part of the text
    "a|abbr|b|big|body|br|button|center|code|col|dd|div|dl|dt|em|font|form|frame|h[1-6]|head|hr|"
    "html|i|iframe|img|input|label|li|link|meta|object|ol|option|p|param|pre|s|script|select|"
    "small|span|strong|style|sub|sup|table|tbody|td|textarea|th|thead|title|tr|tt|u|ul"
)
_MARKUP = re.compile(rf"</?(?:{_TAGS})(?:\s[^<>]*)?/?>|[{{}}]", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\S+")


class Side:
    """One side of a pair, with properties that several filters need."""

    __slots__ = ("digits", "longest", "n_ascii_letters", "n_characters", "text", "utf8", "words")

    def __init__(self, text: str) -> None:
        self.text = text  # normalised: single spaces
        self.words = words = text.split(" ")
        self.n_characters = len(text) - len(words) + 1  # spaces aside
        self.longest = max(map(len, words))  # characters of a word
        self.utf8 = utf8 = text.encode()
        self.digits = utf8.translate(None, _NO_DIGITS)
        if utf8.translate(None, _LATIN_BYTES):  # other scripts have digits of their own
            self.digits = "".join(str(int(digit)) for digit in _DIGIT.findall(text)).encode()
        self.n_ascii_letters = len(utf8.translate(None, _NO_LETTERS))

    def letter_share(self) -> float:
        """Share of letters in any script, with their marks, among the characters except spaces."""
        return n_letters(self.text) / self.n_characters


class PairFilter:
    """Judges normalised pairs of two languages by the thresholds of a config.

    Without norms, the filters that need them drop nothing.
    """

    def __init__(
        self, config: CleanConfig, source_lang: str, target_lang: str, norms: Norms | None = None
    ) -> None:
        # Each method runs only if its key is set; thresholds are numbers then.
        self._limits: dict[str, float] = {key: value for key, value in config if value is not False}
        self._norms = norms
        self._scripts = [
            norms.scripts_of(side, code) if norms else language(code).scripts
            for side, code in enumerate((source_lang, target_lang))
        ]
        self._languages = (source_lang, target_lang)
        if "language" in self._limits:
            require_identifier()  # here, before any work
        self._keys = [
            key
            for key in REASONS
            if hasattr(self, key)
            and key in self._limits
            and (norms is not None or key not in _NEED_NORMS)
        ]

    def reason(self, source: str, target: str) -> str | None:
        """The key of the first filter that would drop a pair; None if there is none."""
        return next(self._reasons(source, target), None)

    def reasons(self, source: str, target: str) -> list[str]:
        """The keys of all filters that would drop a pair."""
        return list(self._reasons(source, target))

    def _reasons(self, source: str, target: str) -> Iterator[str]:
        sides = Side(source), Side(target)
        for key in self._keys:
            drops = getattr(self, key)
            if drops(*sides) if key in _OF_PAIRS else (drops(sides[0]) or drops(sides[1])):
                yield key

    # -- one side ----------------------------------------------------------------------------

    def max_characters(self, side: Side) -> bool:
        """A side has too many characters."""
        return len(side.text) > self._limits["max_characters"]

    def max_words(self, side: Side) -> bool:
        """A side has too many words."""
        limit = self._limits["max_words"]
        return len(side.text) >= 2 * limit and count_words(side.text) > limit

    def max_word_characters(self, side: Side) -> bool:
        """A word between spaces is too long; scripts without spaces are exempt."""
        limit = self._limits["max_word_characters"]
        return side.longest > limit and any(
            len(word) > limit and not unspaced().search(word) for word in side.words
        )

    def min_letters(self, side: Side) -> bool:
        """A side has few letters; marks on letters count as letters."""
        share = self._limits["min_letters"]
        return side.n_ascii_letters < share * side.n_characters and side.letter_share() < share

    def max_digits(self, side: Side) -> bool:
        """A side is mostly digits."""
        return len(side.digits) > self._limits["max_digits"] * side.n_characters

    def max_punctuation(self, side: Side) -> bool:
        """A side is mostly characters other than letters, marks, digits and spaces."""
        share, n_rest = self._limits["max_punctuation"], side.n_characters - len(side.digits)
        if n_rest - side.n_ascii_letters <= share * side.n_characters:
            return False
        return n_rest / side.n_characters - side.letter_share() > share

    def repetition(self, side: Side) -> bool:
        """A side repeats the same words or characters."""
        share, words = self._limits["repetition"], side.words
        if len(words) >= _MIN_REPEATING_WORDS and len(set(words)) < share * len(words):
            return True
        return side.longest >= _MIN_REPEATING_CHARACTERS and any(
            len(word) >= _MIN_REPEATING_CHARACTERS and _n_distinct(word) < share * len(word)
            for word in words
        )

    def urls(self, side: Side) -> bool:
        """A side is mostly web or mail addresses."""
        text = side.text
        if "@" not in text and "//" not in text and "www." not in text:
            return False
        return sum(map(len, _ADDRESS.findall(text))) > self._limits["urls"] * side.n_characters

    def garbled(self, side: Side) -> bool:
        """A side was decoded with the wrong character encoding."""
        return is_mojibake(side.text)

    # -- both sides --------------------------------------------------------------------------

    def length_ratio(self, source: Side, target: Side) -> bool:
        """One side is much longer than the other, for this corpus and pairs of this length."""
        assert self._norms is not None
        deviation, limit = self._norms.length_ratio.deviation, self._limits["length_ratio"]
        if deviation(len(source.text), len(target.text)) <= limit:
            return False
        # Names with the same spelling have the same length on both sides.
        shared = set(WORD.findall(source.text)).intersection(WORD.findall(target.text))
        n_shared = sum(map(len, shared))
        n_source, n_target = len(source.text) - n_shared, len(target.text) - n_shared
        return not n_shared or deviation(max(1, n_source), max(1, n_target)) > limit

    def copies(self, source: Side, target: Side) -> bool:
        """A side of several words consists of the other's words: it was hardly translated."""
        n_shortest = min(len(source.words), len(target.words))
        if n_shortest < _MIN_COPIED_WORDS:
            return source.text == target.text and count_words(source.text) >= _MIN_COPIED_WORDS
        if source.n_ascii_letters == target.n_ascii_letters and _is_copy(source.text, target.text):
            return True
        shared = set(source.words).intersection(target.words)
        if len(shared) < _MIN_COPIED_WORDS:
            return False
        least = self._limits["copies"] * n_shortest
        return (Counter(source.words) & Counter(target.words)).total() >= least

    def numbers(self, source: Side, target: Side) -> bool:
        """Each side has a number that is not in the other one."""
        return source.digits != target.digits and numbers_differ(source.text, target.text)

    def markup(self, source: Side, target: Side) -> bool:
        """The two sides have different tags or braces."""
        return _markup_of(source.text) != _markup_of(target.text)

    def script(self, source: Side, target: Side) -> bool:
        """A side is not in the script of its language; one without letters is in any script."""
        share = self._limits["script"]
        return _is_in_other_script(source, target, self._scripts[0], share) or _is_in_other_script(
            target, source, self._scripts[1], share
        )

    def wrong_side(self, source: Side, target: Side) -> bool:
        """The words of a side are those of the other side in this corpus."""
        assert self._norms is not None
        leaning = self._norms.leaning
        return leaning(source.words) > 0 or leaning(target.words) < 0

    def language(self, source: Side, target: Side) -> bool:
        """A language identifier takes a side for another language."""
        least = self._limits["language"]
        return any(
            identifies(code) and probability(side.text, code) < least
            for side, code in zip((source, target), self._languages, strict=True)
        )


def numbers_differ(source: str, target: str) -> bool:
    """True if each text has a number that is not in the other one, however written.

    Separators of thousands and decimals, order, leading zeros, zeros instead of a word (1.5
    million), centuries (1998, '98), the years of other calendars and the 12-hour clock make no
    difference. A number on one side alone may be a word or the name of a month on the other.
    """
    if not _differ(source, target):
        return False
    if _AMOUNT.search(source) or _AMOUNT.search(target):
        return _differ(_in_digits(source), _in_digits(target))
    return True


def _in_digits(text: str) -> str:
    """Each amount as one number: 3億5000万 is 350000000. Decimals lose their point: 1.5 is 15."""
    text = _AMOUNT.sub(_sum, _SEPARATOR.sub("", text))
    return _DECIMAL.sub("", text)


def _sum(amount: re.Match[str]) -> str:
    parts = _PART.findall(amount[0])
    return str(sum(_value(*part) for part in parts) + int(amount.groups()[-1] or 0))


def _value(whole: str, fraction: str, unit: str) -> int:
    exponent = sum(_POWERS[sign.lower()] for sign in _SIGN.findall(unit))
    return int(whole + fraction) * int("1" + "0" * max(0, exponent - len(fraction)))


def _differ(source: str, target: str) -> bool:
    sources, targets = _numbers_of(source), _numbers_of(target)
    only_source, only_target = sources - targets, targets - sources
    # One after the other: the same for 1.5 and 15, for 14:30 and 1430.
    spelled = ["".join(map(str, numbers.elements())) for numbers in (only_source, only_target)]
    if spelled[0] == spelled[1] or _are_equal_but_for_zeros(*spelled):
        return False
    return _has_other(only_source, only_target) and _has_other(only_target, only_source)


def _numbers_of(text: str) -> Counter[int]:
    return Counter(map(int, _NUMBER.findall(_SEPARATOR.sub("", text))))


def _has_other(numbers: Counter[int], others: Counter[int]) -> bool:
    """True if some number is the same as none of the others."""
    return any(not any(_may_be_same(number, other) for other in others) for number in numbers)


def _may_be_same(number: int, other: int) -> bool:
    """3 and 15 o'clock, 98 and 1998, 2 and 2000000."""
    small, large = sorted((number, other))
    return (
        (large - small == _HOURS and large < 2 * _HOURS)
        or (9 < small < 100 < large < 10_000 and large % 100 == small)
        or (large % 100 == 0 and large == 100 * (small - 1))  # Swedish 1400-talet: the 15th century
        or (1200 < small < large < 2700 and _is_same_year(small, large))
        or _are_equal_but_for_zeros(str(small), str(large))
    )


def _is_same_year(small: int, large: int) -> bool:
    """A Gregorian year and one of the Buddhist, the solar or the lunar Hijri calendar."""
    lunar = (large - 621.57) * 33 / 32
    return large - small in (543, 621, 622) or abs(small - lunar) < 1.5


def _are_equal_but_for_zeros(number: str, other: str) -> bool:
    """True if one is the other with at least two zeros, as in a word for hundred or million."""
    short, long = sorted((number, other), key=len)
    return bool(short) and len(long) >= len(short) + 2 and long.rstrip("0") == short.rstrip("0")


def _n_distinct(word: str) -> int:
    """Distinct characters of a word, or pairs of them if it is a sentence without spaces."""
    is_whole = unspaced().search(word) is not None
    return len(set(pairwise(word))) if is_whole else len(set(word))


def _is_in_other_script(side: Side, other: Side, scripts: tuple[str, ...], share: float) -> bool:
    """True if few letters are in these scripts, not counting words (names) on both sides."""
    if not scripts or ("Latn" in scripts and not side.utf8.translate(None, _LATIN_BYTES)):
        return False
    foreign = runs_outside(*scripts).findall(side.text)
    if not foreign:
        return False
    n_all = n_letters(side.text)
    n_own = n_all - sum(map(n_letters, foreign))
    if n_own >= share * n_all:
        return False
    n_foreign = sum(n_letters(word) for word in foreign if word not in other.text)
    return n_own < share * (n_own + n_foreign) or n_own < _NEITHER_COPIED * n_all


def _is_copy(source: str, target: str) -> bool:
    """True for the same words but for case, digits and punctuation."""
    words = loosen(source)
    return words == loosen(target) and len(set(words.split())) >= _MIN_COPIED_WORDS


def _markup_of(text: str) -> list[str]:
    """Tags and braces, sorted."""
    if "<" in text or "{" in text or "}" in text:
        return sorted(_MARKUP.findall(text))
    return []
