"""The warnings of `prepare`: problems of a corpus that an expert would notice, each with a fix.

All knowledge of languages comes from CLDR (`mtrain.languages`), from the corpus itself, and from
the language identifier where the extra `mtrain[langid]` is installed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random

from mtrain.data.cleaning import TextPair
from mtrain.data.data_report import DataReport, shortened
from mtrain.data.filters import REASONS
from mtrain.data.statistics import Norms
from mtrain.data.store import SIDES
from mtrain.errors import DataError
from mtrain.languages import (
    WORD,
    can_identify,
    identifies,
    identify,
    is_kind_of,
    language,
    main_script,
    n_letters,
    name_of_script,
    primary,
    probability,
    runs_outside,
    scripts_of,
)

# Scripts of published text besides the usual one of CLDR.
_ALSO_WRITTEN_IN = {"crh": "Latn", "tzm": "Tfng"}

# Of a sample of lines.
_NOTEWORTHY = 0.02  # share of a side's lines
_MOSTLY = 0.5
_NEARLY_ALL = 0.95
_MIN_LINES = 20  # in a sample
_MIN_OCCURRENCES = 3  # of a word that tells the sides apart
_MIN_TELLING_WORDS = 2  # of each language
_MIN_CHARACTERS = 20  # of a line whose language can be identified
_MIN_FOREIGN_LINES = 5  # of an identified language; one or two may be mistakes
_IMPROBABLE = 0.01  # probability of the right language; higher finds few more
_NO_LANGUAGE = "zxx"  # a label of the identifier
_N_IDENTIFIED = 400  # lines of a side, at half a millisecond each

# Of all pairs.
_MANY_DROPPED = 0.2  # share of an entry that one filter drops
_MANY_BYTES = 0.01  # share of a side's tokens
_MANY_REPEATS, _MIN_PAIRS = 0.01, 1000  # share of the targets that are the same, and of how many
_MANY_COPIES = 0.1  # share of the pairs whose target is the source

_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,5});")
_TOKENIZED = re.compile(r" [.?!。]$")
_SUBWORDS = re.compile(r"@@ |(?:^| )\u2581")


def check_sides(sample: Sequence[TextPair], languages: tuple[str, str], where: str) -> None:
    """Raise a DataError if the two sides of an entry are swapped, as far as the text shows.

    sample  normalised pairs
    where   names their entry: `data.train.0`
    """
    checks = (_scripts_are_swapped, _words_are_swapped, _languages_are_swapped)
    if not any(are_swapped(sample, languages) for are_swapped in checks):
        return
    source, target = (language(code).name for code in languages)
    raise DataError(
        f"{where}: the sides are swapped: its source text is {target}, its target text {source}",
        f"exchange the two sides of {where}, or `source: {languages[0]}` and "
        f"`target: {languages[1]}` of the config",
    )


def suspicions_of_sample(
    sample: Sequence[TextPair], languages: tuple[str, str], norms: Norms, where: str
) -> list[str]:
    """Suspicions about an entry, from a sample of its normalised pairs."""
    if len(sample) < _MIN_LINES:
        return []
    found = []
    for side, name in enumerate(SIDES):
        lines = [pair[side] for pair in sample]
        what, code = f"the {name} side of {where}", languages[side]
        scripts = norms.scripts_of(side, code)
        found += [
            *(_another_script(lines, code, what) or _other_scripts(lines, scripts, code, what)),
            *_other_languages(sample, side, languages, norms, what),
            *_looks(lines, what),
        ]
    return found


def suspicions_of_report(report: DataReport, splits: Mapping[str, Sequence[TextPair]]) -> list[str]:
    """Suspicions about dropped pairs, kept pairs, and evaluation sets."""
    found = []
    for entry in report.entries:
        for reason, dropped in entry.by_count():
            share = dropped.n_pairs / entry.n_read
            if reason in REASONS and share > _MANY_DROPPED:
                found.append(
                    f"`data.clean.{reason}` drops {_percent(share)} of {entry.name} "
                    f"({REASONS[reason]}): look at its examples in report.json, and set "
                    "another threshold, or `false`, if they are good"
                )
    for name, side in zip(SIDES, report.sides, strict=True):
        if side.byte_share > _MANY_BYTES:
            found.append(
                f"{_percent(side.byte_share)} of the {name} pieces spell a character in bytes: a "
                "larger `tokenizer.vocab_size` or `tokenizer.character_coverage` would have it "
                "whole"
            )
    for text, n in report.repeated_targets[:1]:
        if n > _MANY_REPEATS * report.n_kept and report.n_kept > _MIN_PAIRS:
            found.append(
                f"{_percent(n / report.n_kept)} of the targets are `{shortened(text)}`: the model "
                "will say it too often; `data.clean.max_target_repeats` limits it"
            )
    if report.n_kept and report.copied_share > _MANY_COPIES:
        found.append(
            f"in {report.copied_share:.0%} of the training pairs the target is the source: "
            "the model will learn to copy"
        )
    for name, pairs in splits.items():
        share = sum(target.rstrip().endswith(" .") for _, target in pairs) / len(pairs)
        if share > _MOSTLY:
            found.append(
                f"{share:.0%} of the references of `{name}` end in ` .`: they look tokenised, and "
                "scores on them cannot be compared with those on raw text"
            )
    return found


# -- swapped sides ---------------------------------------------------------------------------


def _scripts_are_swapped(sample: Sequence[TextPair], languages: tuple[str, str]) -> bool:
    """Each side is in the script of the other language."""
    source, target = (set(scripts_of(language(code).script or "")) for code in languages)
    found = (main_script(pair[side] for pair in sample) for side in (0, 1))
    in_source, in_target = (set(scripts_of(script or "")) for script in found)
    if not (in_source <= target and in_target <= source and in_source and in_target):
        return False
    return not (in_source <= source or in_target <= target)


def _words_are_swapped(sample: Sequence[TextPair], languages: tuple[str, str]) -> bool:
    """Most words that CLDR has for one language only are on the other side."""
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
    """The identifier, if installed, takes most of each side for the other language."""
    if not can_identify():
        return False
    return all(
        _identified([pair[side] for pair in sample], languages[side]).get(
            primary(languages[1 - side]), 0.0
        )
        > _MOSTLY
        for side in (0, 1)
    )


# -- the text --------------------------------------------------------------------------------


def _another_script(lines: Sequence[str], code: str, what: str) -> list[str]:
    """A side that is as a whole in another script than its language, such as Russian for `de`."""
    found, usual = main_script(lines), language(code).scripts
    if found is None or not usual or _ALSO_WRITTEN_IN.get(primary(code)) == found:
        return []
    if {*scripts_of(found)} & {part for script in usual for part in scripts_of(script)}:
        return []
    return [
        f"{what} is in the {name_of_script(found)} script, and {language(code).name} usually in "
        f"{name_of_script(usual[0])}: give the right text, or, if this is right, name the script "
        f"in the language code, as in `{primary(code)}_{found}`"
    ]


def _other_scripts(
    lines: Sequence[str], scripts: tuple[str, ...], code: str, what: str
) -> list[str]:
    if not scripts:
        return []
    foreign, script = runs_outside(*scripts), scripts[0]
    share = _share(
        lines, lambda line: 2 * sum(map(n_letters, foreign.findall(line))) > n_letters(line)
    )
    if share < _NOTEWORTHY:
        return []
    return [
        f"{share:.0%} of {what} is not in the {name_of_script(script)} script of "
        f"{language(code).name}: where that is right, name the script in the language code"
    ]


def _other_languages(
    sample: Sequence[TextPair], side: int, languages: tuple[str, str], norms: Norms, what: str
) -> list[str]:
    """Wrong languages on a side: identified, or recognised by the other side's words."""
    if can_identify():
        shares = _identified([pair[side] for pair in sample], languages[side])
    else:
        wrong = [norms.leaning(pair[side].split(" ")) for pair in sample]
        sign = 1 if side == 0 else -1
        n_wrong = sum(sign * leaning > 0 for leaning in wrong)
        share = n_wrong / max(1, sum(map(bool, wrong)))  # of the lines that tell
        shares = {languages[1 - side]: share} if n_wrong >= _MIN_FOREIGN_LINES else {}
    return [
        f"{share:.0%} of {what} is {language(code).name}: "
        + (_fix_of_side if share > _MOSTLY else _fix_of_lines)(side, code, languages)
        for code, share in shares.items()
        if share >= _NOTEWORTHY and not is_kind_of(languages[side], code)
    ]


def _fix_of_side(side: int, code: str, languages: tuple[str, str]) -> str:
    """What to do about a side that is mostly in another language."""
    if is_kind_of(languages[1 - side], code):
        return f"both sides are in one language; give the text in {language(languages[side]).name}"
    codes = [code if i == side else known for i, known in enumerate(languages)]
    return (
        f"give the text in {language(languages[side]).name}, or correct the code by "
        f"`languages: [{', '.join(codes)}]` of the entry or `{SIDES[side]}: {code}` of the config"
    )


def _fix_of_lines(side: int, code: str, languages: tuple[str, str]) -> str:
    """What to do about some lines in another language."""
    if is_kind_of(languages[1 - side], code):
        return "`data.clean.language` and `data.clean.wrong_side` drop such pairs"
    return "`data.clean.language` drops such pairs"


def _identified(lines: Sequence[str], code: str) -> dict[str, float]:
    """The share of each other language in lines that are long enough, by py3langid."""
    long = [line for line in lines if len(line) >= _MIN_CHARACTERS]
    long = Random(0).sample(long, min(len(long), _N_IDENTIFIED))  # languages may alternate
    if not long or not identifies(code):
        return {}  # lines in an unknown language could be identified as any language
    counts = Counter(identify(line) for line in long if probability(line, code) < _IMPROBABLE)
    del counts[_NO_LANGUAGE]
    return {found: n / len(long) for found, n in counts.most_common() if n >= _MIN_FOREIGN_LINES}


def _looks(lines: Sequence[str], what: str) -> list[str]:
    """Traces of other tools' preprocessing."""
    found = []
    share = _share(lines, lambda line: _ENTITY.search(line) is not None)
    if share >= _NOTEWORTHY:
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


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
