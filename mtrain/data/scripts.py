"""Writing systems: which one a language is written in, and which letters belong to it.

A script goes by its ISO 15924 code (`Latn`, `Cyrl`, `Jpan`). Languages come from CLDR by way of
Babel, letters from the names of Unicode characters, so that nothing here is a list of our own but
for the few scripts that are several in one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache

# The words that begin the Unicode names of a script's letters, where the script's own name is none.
_HAN = ("CJK", "IDEOGRAPHIC")
_KANA = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH")
_NAMES = {
    "Hans": (*_HAN, "BOPOMOFO"),
    "Hant": (*_HAN, "BOPOMOFO"),
    "Jpan": (*_HAN, *_KANA),
    "Kore": (*_HAN, "HANGUL"),
    "Latn": ("LATIN", "FULLWIDTH"),
    "Mymr": ("MYANMAR",),
    "Cans": ("CANADIAN",),
    "Mong": ("MONGOLIAN",),
}
_OF_ALL_SCRIPTS = ("MODIFIER", "MICRO", "FEMININE", "MASCULINE")  # such as the letters in 5 µm, 2º


def script_of_language(code: str) -> str | None:
    """The script that a language is usually written in; None where CLDR does not know it.

    A code may name its script: `sr_Latn`, `zh-Hant`. Three-letter codes are known as well.
    """
    from babel.core import get_global

    language, *subtags = re.split("[-_]", code)
    for subtag in subtags:
        if len(subtag) == 4 and subtag.isalpha():
            return subtag.title()
    aliases, likely = get_global("language_aliases"), get_global("likely_subtags")
    known = likely.get("_".join([language, *subtags])) or likely.get(language)
    known = known or likely.get(aliases.get(language, ""))
    return known.split("_")[1] if known else None


def name_of_script(script: str) -> str:
    """`Latin` for `Latn`."""
    from babel import Locale

    return str(Locale("en").scripts.get(script, script))


@cache
def letters_outside(script: str) -> re.Pattern[str]:
    """Matches runs of letters of all scripts but this one."""
    return re.compile(rf"[^\W\d_{_letter_ranges(script)}]+")


@cache
def _letter_ranges(script: str) -> str:
    """The inside of a character class: all letters of a script."""
    names = _NAMES.get(script, (name_of_script(script).upper().split(" ")[0],)) + _OF_ALL_SCRIPTS
    ranges: list[list[int]] = []
    for point in range(0x32400):  # the letters that Unicode has
        character = chr(point)
        if not character.isalpha() or _first_name(character) not in names:
            continue
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


def main_script(texts: Iterable[str]) -> str | None:
    """The script of most letters in some texts; None where there are no letters."""
    counts = Counter(character for text in texts for character in text if character.isalpha())
    scripts: Counter[str] = Counter()
    for character, n in counts.items():
        scripts[_script_of_letter(character)] += n
    return scripts.most_common(1)[0][0] if scripts else None


def _script_of_letter(letter: str) -> str:
    name = _first_name(letter)
    return _codes_by_name().get(name, name)


@cache
def _codes_by_name() -> dict[str, str]:
    """First word of a Unicode name -> script; kana stand for all of Japanese, Han for Chinese."""
    from babel import Locale

    codes = {
        name.upper().split(" ")[0]: code
        for code, name in sorted(Locale("en").scripts.items(), reverse=True)
    }
    for code in ("Kore", "Jpan", "Hans"):  # the last one gets what they share
        codes |= dict.fromkeys(_NAMES[code], code)
    return codes


def _first_name(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0]
