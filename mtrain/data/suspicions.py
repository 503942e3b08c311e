"""What an expert would notice in a sample of a corpus, said in sentences with a fix.

Nothing is known of any language but what CLDR has (by way of Babel): names of languages, scripts,
months and days, and its words for "and" and "or". The corpus itself tells the rest. Where the
extra `mtrain[langid]` is installed, its identifier is asked as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from mtrain.data.identifier import Identifier
from mtrain.data.statistics import Norms
from mtrain.data.store import SIDES
from mtrain.errors import DataError
from mtrain.languages import (
    WORD,
    is_kind_of,
    language,
    main_script,
    n_letters,
    name_of_script,
    primary,
    runs_outside,
    scripts_of,
)

TextPair = tuple[str, str]  # source, target

_WORTH_SAYING = 0.02  # of a side's lines
_MIN_LINES = 20  # fewer tell nothing of a side
_MIN_FOREIGN_LINES = 5  # that were identified; one or two may be a mistake
_MOSTLY = 0.5
_NEARLY_ALL = 0.95
_MIN_OCCURRENCES = 3  # of a word, before it may tell the sides apart
_MIN_TELLING_WORDS = 2  # of each language
_MIN_CHARACTERS = 20  # of a line whose language can be identified
_IMPROBABLE = 0.01  # a language: less finds right ones too, more finds little else
_NO_LANGUAGE = "zxx"  # the identifier's word for it
_N_IDENTIFIED = 400  # lines of a side, at half a millisecond each

_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,5});")
_TOKENIZED = re.compile(r" [.?!。]$")
_SUBWORDS = re.compile(r"@@ |(?:^| )\u2581")


def check_sides(sample: Sequence[TextPair], languages: tuple[str, str], where: str) -> None:
    """A DataError if the two sides of an entry stand in each other's place.

    `sample` holds normalised pairs, `where` names their entry (`data.train.0`). Silent where the
    text does not tell.
    """
    if not (
        _scripts_are_swapped(sample, languages)
        or _words_are_swapped(sample, languages)
        or _languages_are_swapped(sample, languages)
    ):
        return
    source, target = (language(code).name for code in languages)
    raise DataError(
        f"{where}: the sides are swapped: its source text is {target}, its target text {source}",
        f"exchange the two sides of {where}, or `source: {languages[0]}` and "
        f"`target: {languages[1]}` of the config",
    )


def suspicions(
    sample: Sequence[TextPair], languages: tuple[str, str], norms: Norms, where: str
) -> list[str]:
    """Sentences on what is odd about an entry, from normalised pairs drawn from all of it."""
    if len(sample) < _MIN_LINES:
        return []
    found = []
    for side, name in enumerate(SIDES):
        lines = [pair[side] for pair in sample]
        what = f"the {name} side of {where}"
        found += [
            *_other_scripts(lines, norms.scripts_of(side, languages[side]), languages[side], what),
            *_other_languages(sample, side, languages, norms, what),
            *_looks(lines, what),
        ]
    return found


# -- the sides -------------------------------------------------------------------------------


def _scripts_are_swapped(sample: Sequence[TextPair], languages: tuple[str, str]) -> bool:
    """Each side is in the script of the other language."""
    source, target = (set(scripts_of(language(code).script or "")) for code in languages)
    found = (main_script(pair[side] for pair in sample) for side in (0, 1))
    in_source, in_target = (set(scripts_of(script or "")) for script in found)
    if not (in_source <= target and in_target <= source and in_source and in_target):
        return False
    return not (in_source <= source or in_target <= target)


def _words_are_swapped(sample: Sequence[TextPair], languages: tuple[str, str]) -> bool:
    """Most words that CLDR has of one language only are on the other language's side."""
    source, target = (language(code).words() for code in languages)
    source, target = source - target, target - source
    telling = source | target
    counts = [
        Counter(
            word for pair in sample for word in WORD.findall(pair[side].lower()) if word in telling
        )
        for side in (0, 1)
    ]

    def are_on_side(words: set[str], side: int) -> bool:
        votes = [
            counts[side][word] > counts[1 - side][word]
            for word in words
            if counts[0][word] + counts[1][word] >= _MIN_OCCURRENCES
        ]
        return len(votes) >= _MIN_TELLING_WORDS and sum(votes) >= 2 / 3 * len(votes)

    return are_on_side(source, 1) and are_on_side(target, 0)


def _languages_are_swapped(sample: Sequence[TextPair], languages: tuple[str, str]) -> bool:
    """The identifier, where installed, takes most of each side for the other language."""
    if not Identifier.is_installed():
        return False
    return all(
        _identified([pair[side] for pair in sample], languages[side]).get(
            primary(languages[1 - side]), 0.0
        )
        > _MOSTLY
        for side in (0, 1)
    )


# -- the text --------------------------------------------------------------------------------


def _other_scripts(
    lines: Sequence[str], scripts: tuple[str, ...], code: str, what: str
) -> list[str]:
    if not scripts:
        return []
    foreign, script = runs_outside(*scripts), scripts[0]
    share = _share(
        lines, lambda line: 2 * sum(map(n_letters, foreign.findall(line))) > n_letters(line)
    )
    if share < _WORTH_SAYING:
        return []
    return [
        f"{share:.0%} of {what} is not in the {name_of_script(script)} script of "
        f"{language(code).name}: where "
        "that is right, name the script in the language code, such as `sr_Latn`"
    ]


def _other_languages(
    sample: Sequence[TextPair], side: int, languages: tuple[str, str], norms: Norms, what: str
) -> list[str]:
    """Languages that a side should not have: identified, or known from the other side's words."""
    if Identifier.is_installed():
        shares = _identified([pair[side] for pair in sample], languages[side])
    else:
        wrong = [norms.leaning(pair[side].split(" ")) for pair in sample]
        sign = 1 if side == 0 else -1
        n_wrong = sum(sign * leaning > 0 for leaning in wrong)
        shares = {languages[1 - side]: n_wrong / max(1, sum(map(bool, wrong)))}
    return [
        f"{share:.0%} of {what} is {language(code).name}: `data.clean.language` and "
        "`data.clean.wrong_side` drop such pairs"
        for code, share in shares.items()
        if share >= _WORTH_SAYING and not is_kind_of(languages[side], code)
    ]


def _identified(lines: Sequence[str], code: str) -> dict[str, float]:
    """The share of each other language in lines that are long enough, by py3langid."""
    long = [line for line in lines if len(line) >= _MIN_CHARACTERS]
    long = long[:: max(1, len(long) // _N_IDENTIFIED)]
    identifier = Identifier()
    if not long or not identifier.knows(code):
        return {}  # unknown to it, its lines would be taken for anything
    counts = Counter(
        identifier.identify(line)
        for line in long
        if identifier.probability(line, code) < _IMPROBABLE
    )
    del counts[_NO_LANGUAGE]
    return {found: n / len(long) for found, n in counts.most_common() if n >= _MIN_FOREIGN_LINES}


def _looks(lines: Sequence[str], what: str) -> list[str]:
    """Traces of other tools' preprocessing."""
    found = []
    share = _share(lines, lambda line: _ENTITY.search(line) is not None)
    if share >= _WORTH_SAYING:
        found.append(
            f"{share:.0%} of {what} holds HTML entities such as `&apos;` or `&amp;`, which the "
            "model will write as well: replace them (Python's html.unescape)"
        )
    share = _share(lines, lambda line: _TOKENIZED.search(line) is not None)
    if share >= _MOSTLY:
        found.append(
            f"{what} looks tokenised ({share:.0%} of it ends in a space and a mark): the model "
            "will expect and write such text; raw text is better"
        )
    if _share(lines, lambda line: _SUBWORDS.search(line) is not None) >= _MOSTLY:
        found.append(f"{what} looks split into subwords: undo that, mtrain learns its own")
    has_case = _share(lines, lambda line: line.lower() != line.upper())
    if has_case >= _MOSTLY and _share(lines, str.islower) >= _NEARLY_ALL * has_case:
        found.append(f"{what} is in lower case: the model will expect and write such text")
    return found


def _share(lines: Sequence[str], is_so: Callable[[str], bool]) -> float:
    return sum(map(is_so, lines)) / len(lines)
