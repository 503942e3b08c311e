"""Phrase pairs in any two languages, generated from Unicode CLDR through the Babel library.

A phrase is a random value (a date, an amount of money, a list of places) formatted by the rules of
both locales. The translations are correct by construction, need no download, and anyone can check
them. `cldr_pairs` is the entry point; each method of `_Phrases` generates one kind of phrase.

Every source text must have a single correct translation. Therefore only one-to-one names are used,
and if two formats look alike in the source (in English, the medium `May 7, 2024` is also the long
one) the fuller format is meant.
"""

from __future__ import annotations

import difflib
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Literal, TypeVar

from mtrain.data.reading import Pair
from mtrain.errors import DataError, UsageError
from mtrain.languages import language

if TYPE_CHECKING:
    from babel import Locale

T = TypeVar("T")
Style = Literal["full", "long", "medium", "short"]
Length = Literal["long", "short"]

VERSION = 2  # increased when the same arguments give other phrases

# After this many repetitions in a row, a kind of phrase counts as exhausted.
MAX_REPEATS = 1000

# Within a hundred years, two digits identify a year.
FIRST_DAY, LAST_DAY = date(1950, 1, 1), date(2049, 12, 31)
# Currencies in use on this day, which is fixed: phrases must not depend on the current date.
CURRENCIES_OF = date(2024, 1, 1)
MAIN_CURRENCIES = ["AUD", "BRL", "CAD", "CHF", "CNY", "EUR", "GBP", "INR", "JPY", "KRW", "MXN"]
MAIN_CURRENCIES += ["NOK", "PLN", "SEK", "TRY", "USD", "ZAR"]
NO_PLACES = {"QO", "XA", "XB", "ZZ"}
# The four styles of CLDR, fullest first; the other formats are skeletons: the fields of a date.
STYLES: tuple[Style, ...] = ("full", "long", "medium", "short")
DATE_FORMATS = ["full", "long", "yMMMM", "yQQQQ", "MMMMd", "yMMMEd", "MMMEd", "medium", "short"]
TIME_FORMATS = ["medium", "short", "Hm"]
# Skeleton -> days from start to end, at least and at most.
INTERVALS = {"yMMMd": (1, 900), "MMMd": (1, 90), "yMMMEd": (1, 90), "yMMMM": (31, 1500)}
RelativeUnit = Literal["year", "month", "week", "day", "hour", "minute", "second"]
SECONDS: dict[RelativeUnit, int] = {"year": 365 * 86400, "month": 30 * 86400}  # as Babel counts
SECONDS |= {"week": 7 * 86400, "day": 86400, "hour": 3600, "minute": 60, "second": 1}
LIST_STYLES: tuple[Literal["standard", "or"], ...] = ("standard", "or")
MAX_LISTED = 5
UNIT_SORTS = ["area", "digital", "duration", "electric", "energy", "frequency", "length", "mass"]
UNIT_SORTS += ["power", "pressure", "speed", "temperature", "volume"]


def cldr_pairs(source: str, target: str, counts: Sequence[int], seed: int) -> list[list[Pair]]:
    """One list of pairs per count; no text occurs twice, in any list, on either side.

    The same arguments and the same version of Babel give the same pairs.
    """
    stream = _Phrases(_locale(source), _locale(target), random.Random(seed)).distinct()
    parts = [list(islice(stream, count)) for count in counts]
    n_made, n_wanted = sum(map(len, parts)), sum(counts)
    if n_made < n_wanted:
        raise DataError(
            f"only {n_made:,} different phrase pairs can be generated from CLDR for "
            f"{source}-{target}, but {n_wanted:,} are requested",
            "lower the counts of the `cldr` entries",
        )
    return parts


def _locale(code: str) -> Locale:
    """`pt_BR`, `pt-BR`: Brazilian Portuguese."""
    from babel import Locale, UnknownLocaleError
    from babel.localedata import locale_identifiers

    name = code.replace("-", "_")
    try:
        return Locale.parse(language(code).canonical)
    except (UnknownLocaleError, ValueError) as error:
        similar = difflib.get_close_matches(name, locale_identifiers(), n=3)
        hint = f"did you mean {' or '.join(similar)}? " if similar else ""
        raise UsageError(
            f"Unicode CLDR has no locale `{code}`, which a `cldr` entry needs",
            f"{hint}Use a language code such as en, de or pt_BR",
        ) from error


def _folded(text: str) -> str:
    """A text with all kinds of spaces made equal."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class _Phrases:
    """Random phrases of all kinds in two locales."""

    def __init__(self, source: Locale, target: Locale, rng: random.Random) -> None:
        self.source = source
        self.target = target
        self.rng = rng
        self.meaning: dict[str, str] = {}  # source name -> target name, over all tables
        self.places = self._name_table(source.territories, _place)
        self.languages = self._name_table(source.languages, _language)
        self.currencies = self._name_table(_currencies_in_use(), _currency)
        self.amounts = self._name_table(_currencies_in_use(), _currency_symbol)
        self.units = self._name_table(source.unit_display_names, _five_of_unit)
        self.date_formats, self.time_formats = (
            self._shared(formats, lambda form, at: form in STYLES or form in at.datetime_skeletons)
            for formats in (DATE_FORMATS, TIME_FORMATS)
        )
        self.intervals = self._shared(INTERVALS, lambda form, at: form in at.interval_formats)
        self.list_styles = self._shared(
            LIST_STYLES,
            lambda style, at: (
                {"start", "middle", "end", "2"} <= at.list_patterns.get(style, {}).keys()
            ),
        )

    def kinds(self) -> dict[Callable[[], Pair], int]:
        """The kinds that both locales have data for, and the share of each."""
        kinds: list[tuple[Callable[[], Pair], int, object]] = [
            (self.calendar_date, 18, self.date_formats),
            (self.clock_time, 5, self.time_formats),
            (self.date_time, 10, True),
            (self.relative_time, 5, True),
            (self.date_interval, 9, self.intervals),
            (self.money, 13, self.amounts),
            (self.measure, 9, self.units),
            (self.name, 2, self.places),
            (self.list_of_names, 15, self.list_styles and len(self.places) >= MAX_LISTED),
        ]
        return {make: share for make, share, data in kinds if data}

    def distinct(self) -> Iterator[Pair]:
        """Phrases of all kinds without repeated texts, until all kinds are exhausted."""
        seen: tuple[set[str], set[str]] = (set(), set())
        kinds = self.kinds()
        n_repeats = dict.fromkeys(kinds, 0)
        while kinds:
            make = self.rng.choices(list(kinds), list(kinds.values()))[0]
            pair = make()
            texts = _folded(pair.src), _folded(pair.tgt)
            if texts[0] in seen[0] or texts[1] in seen[1]:
                n_repeats[make] += 1
                if n_repeats[make] == MAX_REPEATS:
                    del kinds[make]
                continue
            n_repeats[make] = 0
            seen[0].add(texts[0])
            seen[1].add(texts[1])
            yield pair

    # -- dates and times ---------------------------------------------------------------------

    def calendar_date(self) -> Pair:
        """`Tuesday, May 7, 2024`, `2nd quarter 2024`, `5/7/24`"""
        moment = datetime.combine(self._day(), datetime.min.time())
        return self._in_a_format(self.date_formats, partial(_date, moment))

    def clock_time(self) -> Pair:
        """`3:04:09 PM`, `15:04`"""
        return self._in_a_format(self.time_formats, partial(_time, self._moment()))

    def date_time(self) -> Pair:
        """`May 7, 2024, 3:04 PM`"""
        from babel.dates import get_datetime_format

        moment = self._moment()

        def write(form: tuple[Style, Style], locale: Locale) -> str:
            pattern = str(get_datetime_format(form[0], locale=locale)).replace("'", "")
            return pattern.replace("{0}", _time(moment, form[1], locale)).replace(
                "{1}", _date(moment, form[0], locale)
            )

        forms: list[tuple[Style, Style]] = [(day, t) for day in STYLES for t in ("medium", "short")]
        return self._in_a_format(forms, write)

    def relative_time(self) -> Pair:
        """`in 3 days`, `12 min. ago`"""
        unit = self.rng.choice(list(SECONDS))
        number = self.rng.randint(1, 120) * self.rng.choice((-1, 1))
        forms: tuple[Length, ...] = ("long", "long", "short")
        return self._in_a_format(forms, partial(_relative, number, unit))

    def date_interval(self) -> Pair:
        """`May 7 – 10, 2024`, `May – June 2024`"""
        from babel.dates import format_interval

        skeleton = self.rng.choice(self.intervals)
        least, most = INTERVALS[skeleton]
        # Near ends as often as far ones: the fields that both ends share are then left out.
        n_days = self.rng.choice(
            (self.rng.randint(least, least + 20), self.rng.randint(least, most))
        )
        start = self._day(before_last=n_days)
        if skeleton == "MMMd":  # without a year, both ends must be in the same one
            start = start.replace(month=self.rng.randint(1, 9), day=min(start.day, 28))
        end = start + timedelta(days=n_days)
        return self._pair(lambda locale: format_interval(start, end, skeleton, locale=locale))

    # -- numbers -----------------------------------------------------------------------------

    def money(self) -> Pair:
        """`€1,234.50`, `1,234.50 euros`"""
        from babel.numbers import format_currency, get_currency_precision

        main = [code for code in MAIN_CURRENCIES if code in self.amounts]
        codes = main if main and self.rng.random() < 0.6 else list(self.amounts)
        code = self.rng.choice(codes)
        amount = Decimal(int(10 ** self.rng.uniform(0, 6)))
        if self.rng.random() < 0.5:
            amount += Decimal(self.rng.randint(1, 99)) / 100
        amount = round(amount, get_currency_precision(code))
        form: Literal["name", "standard"] = self.rng.choice(("name", "standard"))
        if code not in self.currencies:
            form = "standard"
        return self._pair(
            lambda locale: format_currency(amount, code, format_type=form, locale=locale)
        )

    def measure(self) -> Pair:
        """`5 square kilometers`"""
        unit, number = self.rng.choice(list(self.units)), self._number()
        return self._pair(lambda locale: _measure(number, unit, locale))

    # -- names and lists ---------------------------------------------------------------------

    def name(self) -> Pair:
        """`South Korea`, `Welsh`, `Swiss franc`"""
        tables = [self.places, self.languages, self.currencies]
        return self.rng.choice([name for table in tables for name in table.values()])

    def list_of_names(self) -> Pair:
        """`Peru, Japan, and Chad`, all of one kind"""
        from babel.lists import format_list

        tables = [self.places, self.languages, self.places, self.languages, self.currencies]
        table = self.rng.choice([table for table in tables if len(table) >= MAX_LISTED])
        n_items = self.rng.choice((2, 2, 3, 3, 4, MAX_LISTED))
        items = self.rng.sample(list(table.values()), n_items)
        style = self.rng.choice(self.list_styles)
        return Pair(
            format_list([item.src for item in items], style, locale=self.source),
            format_list([item.tgt for item in items], style, locale=self.target),
        )

    # -- parts of phrases --------------------------------------------------------------------

    def _pair(self, write: Callable[[Locale], str]) -> Pair:
        return Pair(write(self.source), write(self.target))

    def _shared(self, forms: Iterable[T], has: Callable[[T, Locale], bool]) -> list[T]:
        """The forms available in both locales."""
        return [form for form in forms if has(form, self.source) and has(form, self.target)]

    def _in_a_format(self, forms: Sequence[T], write: Callable[[T, Locale], str]) -> Pair:
        """In a random format, or in an earlier one that looks the same in the source."""
        drawn = self.rng.randrange(len(forms))
        src = write(forms[drawn], self.source)
        for form in forms[:drawn]:
            if _folded(write(form, self.source)) == _folded(src):
                return Pair(src, write(form, self.target))
        return Pair(src, write(forms[drawn], self.target))

    def _name_table(
        self, codes: Iterable[str], name: Callable[[str, Locale], str | None]
    ) -> dict[str, Pair]:
        """Code -> names, where both locales have one and the source name has one meaning."""
        table: dict[str, Pair] = {}
        for code in sorted(set(codes)):
            src, tgt = name(code, self.source), name(code, self.target)
            if not src or not tgt or self.meaning.get(src, tgt) != tgt:
                continue
            if any(src == other.src or tgt == other.tgt for other in table.values()):
                continue
            self.meaning[src] = tgt
            table[code] = Pair(src, tgt)
        return table

    def _day(self, before_last: int = 0) -> date:
        return date.fromordinal(
            self.rng.randint(FIRST_DAY.toordinal(), LAST_DAY.toordinal() - before_last)
        )

    def _moment(self) -> datetime:
        return datetime.combine(self._day(), datetime.min.time()) + timedelta(
            seconds=self.rng.randrange(86400)
        )

    def _number(self) -> Decimal:
        """12, 4.5 or 1,200; most often a small whole number."""
        draw = self.rng.random()
        if draw < 0.25:
            return Decimal(self.rng.randint(1, 999)) / 10
        return Decimal(self.rng.randint(1, 9_999) if draw < 0.4 else self.rng.randint(1, 999))


# -- one value in one locale -----------------------------------------------------------------


def _date(moment: datetime, form: str, locale: Locale) -> str:
    """In a style, or with the fields of a skeleton."""
    from babel.dates import format_date, format_skeleton

    if form in STYLES:
        return format_date(moment, form, locale)
    return format_skeleton(form, moment, fuzzy=False, locale=locale)


def _time(moment: datetime, form: str, locale: Locale) -> str:
    from babel.dates import format_skeleton, format_time

    if form in STYLES:
        return format_time(moment, form, locale=locale)
    return format_skeleton(form, moment, fuzzy=False, locale=locale)


def _relative(number: int, unit: RelativeUnit, form: Length, locale: Locale) -> str:
    """In a single unit; spelled out where the locale has no short form."""
    from babel.dates import format_timedelta

    write = partial(
        format_timedelta,
        timedelta(seconds=number * SECONDS[unit]),
        granularity=unit,
        threshold=float("inf"),
        add_direction=True,
        locale=locale,
    )
    try:
        return write(format=form)
    except KeyError:  # Babel does not follow CLDR's inheritance from short to long
        return write(format="long")


def _measure(number: Decimal | int, unit: str, locale: Locale) -> str:
    """With the unit spelled out, or abbreviated where the locale has no long form; else empty."""
    from babel.units import UnknownUnitError, format_unit

    lengths: tuple[Length, ...] = ("long", "short")
    try:
        texts = [format_unit(number, unit, length, locale=locale) for length in lengths]
    except UnknownUnitError:
        return ""
    return next(
        (text for text in texts if unit not in text), ""
    )  # Babel writes missing ones as codes


def _five_of_unit(unit: str, locale: Locale) -> str:
    """A name for the unit, which not every locale has."""
    is_everyday = unit.split("-")[0] in UNIT_SORTS and unit != "temperature-generic"
    return _measure(5, unit, locale) if is_everyday else ""


def _place(code: str, locale: Locale) -> str | None:
    return None if code in NO_PLACES else _known(locale.territories.get(code), code)


def _language(code: str, locale: Locale) -> str | None:
    """Only for languages with a two-letter code: the better known ones."""
    return _known(locale.languages.get(code), code) if len(code) == 2 else None


def _currencies_in_use() -> list[str]:
    from babel.core import get_global
    from babel.numbers import get_territory_currencies

    return [
        code
        for territory in get_global("territory_currencies")
        for code in get_territory_currencies(territory, CURRENCIES_OF, CURRENCIES_OF)
    ]


def _currency(code: str, locale: Locale) -> str | None:
    return _known(locale.currencies.get(code), code)


def _currency_symbol(code: str, locale: Locale) -> str:
    """The code if there is no symbol, as it is then written instead."""
    return str(locale.currency_symbols.get(code, code))


def _known(name: str | None, code: str) -> str | None:
    """None if the name is missing, or is just the code."""
    return None if name == code else name
