"""Measure the cleaning filters on 200 languages: what share of good pairs they keep.

    python scripts/measure_languages.py --data DIR [--show CODE]

DIR holds the 1,012 sentences of FLORES-200's devtest in every language, as `devtest.CODE.gz`, which
people translated and checked. Each language is paired with English in both directions; the default
filters learn their norms from the corpus that they judge, as in `mtrain prepare`. The table has the
language with the most losses first; the last line counts the languages that keep all.

`--show CODE` prints every pair of one language that is dropped, with its line, and why.
"""

from __future__ import annotations

import argparse
import gzip
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtrain.config.clean import CleanConfig
from mtrain.data.cleaning import normalize
from mtrain.data.filters import PairFilter
from mtrain.data.statistics import Norms
from mtrain.data.suspicions import check_sides, suspicions_of_sample
from mtrain.errors import DataError
from mtrain.languages import language

PIVOT = "eng"


@dataclass
class Direction:
    """What the filters make of one language pair."""

    n_pairs: int
    reasons: Counter[str] = field(default_factory=Counter)
    dropped: list[tuple[str, str, str]] = field(default_factory=list)  # where, source, target
    warnings: list[str] = field(default_factory=list)

    @property
    def kept(self) -> float:
        return 1 - self.reasons.total() / self.n_pairs


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--show", metavar="CODE")
    options = parser.parse_args(arguments)
    codes = sorted(path.name.split(".")[1] for path in options.data.glob("devtest.*.gz"))
    codes = [options.show] if options.show else [code for code in codes if code != PIVOT]
    english = read(options.data, PIVOT)
    found = {code: judge_both(read(options.data, code), code, english) for code in codes}
    if options.show:
        for direction in found[options.show]:
            print(*("\n".join(pair) for pair in direction.dropped), sep="\n\n")
    print_table(found)


def read(data: Path, code: str) -> list[str]:
    """The normalised sentences of a language."""
    with gzip.open(data / f"devtest.{code}.gz", "rt", encoding="utf-8", newline="\n") as file:
        return [normalize(line) for line in file]


def judge_both(lines: list[str], code: str, english: list[str]) -> tuple[Direction, Direction]:
    """From a language to English, and back."""
    return (
        judge(list(zip(lines, english, strict=True)), (code, PIVOT)),
        judge(list(zip(english, lines, strict=True)), (PIVOT, code)),
    )


def judge(pairs: list[tuple[str, str]], codes: tuple[str, str]) -> Direction:
    """As `mtrain prepare` judges an entry."""
    norms, result = Norms.learn(pairs), Direction(len(pairs))
    pair_filter = PairFilter(CleanConfig(), *codes, norms)
    for line, (source, target) in enumerate(pairs, start=1):
        if reason := pair_filter.reason(source, target):
            result.reasons[reason] += 1
            result.dropped.append((f"line {line}: {reason}", source, target))
    result.warnings = suspicions_of_sample(pairs, codes, norms, "the entry")
    try:
        check_sides(pairs, codes, "the entry")
    except DataError as error:
        result.warnings.append(error.message)
    return result


def print_table(found: dict[str, tuple[Direction, Direction]]) -> None:
    """Worst first; languages that lose nothing are only counted."""
    worst = sorted(found, key=lambda code: (min(d.kept for d in found[code]), code))
    whole = [code for code in worst if not any(d.reasons or d.warnings for d in found[code])]
    print("| code | language | to English | from English | dropped for | warnings |")
    print("| --- | --- | ---: | ---: | --- | --- |")
    for code in worst:
        if code in whole:
            continue
        reasons: Counter[str] = Counter()
        for direction in found[code]:
            reasons |= direction.reasons
        why = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        warnings = dict.fromkeys(text for direction in found[code] for text in direction.warnings)
        kept = " | ".join(f"{direction.kept:.1%}" for direction in found[code])
        print(f"| {code} | {language(code).name} | {kept} | {why} | {'; '.join(warnings)} |")
    print(f"\n{len(whole)} of {len(found)} languages keep all {len(read_any(found)):,} pairs.")


def read_any(found: dict[str, tuple[Direction, Direction]]) -> range:
    """As many as there are pairs in each language."""
    return range(next(iter(found.values()))[0].n_pairs)


if __name__ == "__main__":
    main()
