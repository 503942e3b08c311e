"""All knowledge of languages and scripts.

A language has a code of ISO 639 with an optional script and territory: `bn`, `ben`, `ben_Beng` and
`bn-IN` are one language. Codes, names and usual scripts come from CLDR through Babel, the script of
each character from Unicode through fontTools; both are imported on first use. A script has a code
of ISO 15924 (`Latn`, `Cyrl`, `Jpan`). Text is identified by py3langid, if installed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from unicodedata import category

from mtrain.errors import UsageError

if TYPE_CHECKING:
    from babel import Locale

WORD = re.compile(r"[^\W\d_]+")

# Script codes for writing systems, and the scripts of their characters; the first script tells
# whether words are separated.
_COMPOSITE = {
    **dict.fromkeys(("Hans", "Hant", "Hani", "Hanb"), ("Hani", "Bopo")),
    "Jpan": ("Hira", "Kana", "Hani"),
    "Hrkt": ("Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
    "Jamo": ("Hang",),
    "Aran": ("Arab",),
    "Cyrs": ("Cyrl",),
    "Latf": ("Latn",),
    "Latg": ("Latn",),
    **dict.fromkeys(("Syre", "Syrj", "Syrn"), ("Syrc",)),
    "Geok": ("Geor",),
}
_NO_SCRIPT = {"Zyyy", "Zinh", "Zzzz"}  # common, inherited from the base character, unknown

# Scripts without spaces between words: those of classes SA (complex context) and ID (ideographic)
# of Unicode's line breaking (UAX 14), and scripts of South-East Asia that were added to it later.
_WITHOUT_SPACES = (
    *("Hani", "Hira", "Kana", "Bopo", "Yiii", "Tang", "Nshu"),
    *("Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Lana", "Tale", "Talu", "Tavt", "Ahom"),
    *("Java", "Bali"),
)


@dataclass(frozen=True, slots=True)
class Language:
    """A language, in canonical form.

    primary       the shortest code of ISO 639, in lower case: `bn` for `ben`
    script        the one in the code, or else the usual one; None if CLDR does not know it
    is_unusual    the script is not the usual one of the language
    names_script  the script is in the code
    """

    primary: str
    script: str | None
    territory: str | None
    is_unusual: bool
    names_script: bool

    @property
    def canonical(self) -> str:
        """`zh_Hant_HK`; the usual script is left out."""
        script = self.script if self.is_unusual else None
        return "_".join(filter(None, (self.primary, script, self.territory)))

    @property
    def scripts(self) -> tuple[str, ...]:
        """None or one."""
        return (self.script,) if self.script else ()

    @property
    def has_spaces(self) -> bool:
        """Whether words are separated by spaces; assumed of unknown languages."""
        return scripts_of(self.script or "")[0] not in _WITHOUT_SPACES

    @property
    def name(self) -> str:
        """`German` for `de`, `Chinese (Traditional)` for `zh_Hant`; else the code itself."""
        from babel import Locale

        locale = self.locale()
        if locale is not None and locale.english_name:
            return str(locale.english_name)
        return str(Locale("en").languages.get(self.primary, self.canonical))

    def locale(self) -> Locale | None:
        """CLDR's data of the language, and of its territory if available, as for `pt_BR`."""
        from babel import Locale, UnknownLocaleError

        for code in (self.canonical, self.canonical.removesuffix(f"_{self.territory}")):
            try:
                locale = Locale.parse(code)
            except (UnknownLocaleError, ValueError):
                continue
            # Babel maps unknown text, `und`, to English, and some scripts to the usual one.
            if locale.language == self.primary and locale.script in (None, self.script):
                return locale
        return None

    def months(self) -> dict[int, set[str]]:
        """1 to 12 -> CLDR's names of the month, whole and short, casefolded; empty if unknown."""
        locale = self.locale()
        names: dict[int, set[str]] = {}
        for context in locale.months.values() if locale else ():
            for width in ("wide", "abbreviated"):
                for number, name in context.get(width, {}).items():
                    if len(name) >= 3 and not name[0].isdigit():
                        names.setdefault(number, set()).add(name.casefold().rstrip("."))
        return names

    def words(self) -> set[str]:
        """CLDR's words for "and" and "or", months and days, in lower case; empty if unknown."""
        locale = self.locale()
        if locale is None:
            return set()
        texts = [text for pattern in locale.list_patterns.values() for text in pattern.values()]
        for names in (locale.months, locale.days):
            texts += [name for width in names.values() for name in width["wide"].values()]
        return {word for text in texts for word in WORD.findall(text.lower())}


@cache
def language(code: str) -> Language:
    """The language of a code: `deu`, `de-AT`, `zho_Hant`, `pt_BR`; never fails.

    A subtag that is not a script of Unicode is ignored, and `x-klingon` is private as a whole.
    """
    from babel.core import get_global

    aliases, likely = get_global("language_aliases"), get_global("likely_subtags")
    first, *rest = re.split("[-_]", code) if code[1:2] not in ("-", "_") else (code,)
    primary, *implied = aliases.get(first.lower(), first.lower()).split("_")  # prs is fa_AF
    subtags = [*rest, *implied]
    named = next((tag.title() for tag in subtags if _is_script(tag.title())), None)
    territory = next(
        (tag.upper() for tag in subtags if re.fullmatch("[A-Za-z]{2}|[0-9]{3}", tag)), None
    )
    known = likely.get(f"{primary}_{territory}") or likely.get(first.lower()) or likely.get(primary)
    usual = known.split("_")[1] if known and primary != "und" else None
    if named in scripts_of(usual or ""):  # Hang for Korean, which has Chinese characters as well
        named = usual
    is_unusual = named not in (None, usual)
    return Language(primary, named or usual, territory, is_unusual, named is not None)


def primary(code: str) -> str:
    """`zh` of `zho_Hant`."""
    return language(code).primary


def is_kind_of(code: str, other: str) -> bool:
    """True for the same language, and for a variety by its name: Egyptian Arabic is Arabic."""
    return primary(code) == primary(other) or language(code).name.endswith(language(other).name)


# -- scripts ---------------------------------------------------------------------------------


def _is_script(code: str) -> bool:
    if len(code) != 4 or not code.isascii():
        return False
    from fontTools.unicodedata import Scripts

    return code in _COMPOSITE or (code in Scripts.NAMES and code not in _NO_SCRIPT)


def scripts_of(script: str) -> tuple[str, ...]:
    """The scripts of the characters: Hira, Kana and Hani for `Jpan`, `Latn` for itself."""
    return _COMPOSITE.get(script, (script,))


def name_of_script(script: str) -> str:
    """`Latin` for `Latn`."""
    from babel import Locale

    return str(Locale("en").scripts.get(script, script))


@cache
def script_of(character: str) -> str | None:
    """The script of a letter; None for other characters, and for letters of many scripts."""
    from fontTools import unicodedata

    if not character.isalpha():
        return None
    script = str(unicodedata.script(character))
    return None if script in _NO_SCRIPT else script


def main_script(texts: Iterable[str]) -> str | None:
    """The script of most letters in some texts; None if there are no letters.

    Some kana mean `Jpan`, Chinese characters alone `Hans`.
    """
    counts = Counter(character for text in texts for character in text if character.isalpha())
    scripts: Counter[str] = Counter()
    for character, n in counts.items():
        if script := script_of(character):
            scripts[script] += n
    if not scripts:
        return None
    for composite, part in (("Jpan", "Hira"), ("Jpan", "Kana"), ("Kore", "Hang"), ("Hans", "Hani")):
        family = sum(scripts[script] for script in scripts_of(composite))
        if scripts[part] * 20 > family > scripts.total() / 2:
            return composite
    return scripts.most_common(1)[0][0]


def n_letters(text: str) -> int:
    """The number of letters in any script, with their marks."""
    return sum(character.isalpha() or category(character)[0] == "M" for character in text)


@cache
def runs_outside(*scripts: str) -> re.Pattern[str]:
    """Matches runs of characters that are neither in these scripts nor common to several.

    Besides letters, these include marks, digits and signs of other scripts: see `n_letters`.
    """
    inside = {part for script in scripts for part in scripts_of(script)} | _NO_SCRIPT
    return re.compile(f"[^ªº{_ranges(frozenset(inside))}]+")


@cache
def unspaced() -> re.Pattern[str]:
    """Matches a character of a script without spaces between words."""
    return re.compile(f"[{_ranges(frozenset(_WITHOUT_SPACES))}]")


@cache
def _ranges(scripts: frozenset[str]) -> str:
    """The inside of a character class: all characters of some scripts."""
    from fontTools.unicodedata import Scripts

    ends = [*Scripts.RANGES[1:], 0x110000]
    return "".join(
        f"\\U{start:08x}-\\U{end - 1:08x}"
        for start, end, name in zip(Scripts.RANGES, ends, Scripts.VALUES, strict=True)
        if name in scripts
    )


# -- the language of a text ------------------------------------------------------------------


def can_identify() -> bool:
    """True if the extra `langid` is installed."""
    return find_spec("py3langid") is not None


def require_identifier() -> None:
    """A UsageError that names the extra if it is not installed."""
    if not can_identify():
        raise UsageError(
            "`data.clean.language` needs the language identifier py3langid",
            "install it with `pip install 'mtrain[langid]'`, or remove the key",
        )


def identifies(code: str) -> bool:
    """True if py3langid knows a language, in the script that the code names."""
    usual = language(primary(code)).script or ""
    has_usual = scripts_of(language(code).script or "") == scripts_of(usual)
    return primary(code) in _identifier_labels() and has_usual


def identify(text: str) -> str:
    """The primary code of the most probable language of a text."""
    return primary(_identifier().classify(text)[0])


def probability(text: str, code: str) -> float:
    """The probability that a text is in a language which py3langid knows."""
    return float(dict(_identifier().rank(text))[_identifier_labels()[primary(code)]])


@cache
def _identifier_labels() -> dict[str, str]:
    """Primary code -> label of py3langid: `fil` -> `tl`."""
    return {primary(label): label for label in _identifier().labels}


@cache
def _identifier() -> Any:
    """One per process: it takes half a second and some 100 MB."""
    require_identifier()
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
