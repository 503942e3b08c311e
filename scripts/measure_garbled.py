"""Measure the filter `garbled`: its recall of wrongly decoded text, and its false alarms.

    python scripts/measure_garbled.py --data DIR [--show CODE]

DIR holds the sentences of FLORES-200's devtest in every language, as `devtest.CODE.gz`. Those with
characters beyond ASCII are encoded in UTF-8 and decoded as Windows-1252 (its undefined bytes as
control characters) and as Latin-1: recall is the share that the filter finds. The other rows count
false alarms in correct text: the same sentences untouched, and with typography
behind every word, also in capitals. The columns are the scripts of the sentences.

`--show CODE` prints the sentences of one language that are judged wrongly.
"""

from __future__ import annotations

import argparse
import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, cycle
from pathlib import Path

from mtrain.data.cleaning import normalize
from mtrain.data.mojibake import is_mojibake
from mtrain.languages import main_script

COLUMNS = ("Latin", "Greek, Cyrillic", "other")
COLUMN_OF = {"Latn": "Latin", "Grek": "Greek, Cyrillic", "Cyrl": "Greek, Cyrillic"}

# Behind every word of a sentence, for its spaces; each sentence has another.
JOINTS = [
    "…", "… ", "—", " – ", "–", "” “", "“, „", "’s ", "’ ‘", "® ", "™ ", "®” ", "² ", "º ", "»—«",
]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--show", metavar="CODE")
    options = parser.parse_args(arguments)
    n_found: Counter[tuple[str, str]] = Counter()  # by row and column
    n_sentences: Counter[tuple[str, str]] = Counter()
    for path in sorted(options.data.glob("devtest.*.gz")):
        code = path.name.split(".")[1]
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = [line for line in map(normalize, file) if not line.isascii()]
        column = COLUMN_OF.get(main_script(lines) or "", "other")
        for row, text in chain.from_iterable(map(versions, lines, cycle(JOINTS))):
            n_sentences[row, column] += 1
            is_found = is_mojibake(text)
            n_found[row, column] += is_found
            if options.show == code and is_found != row.startswith("decoded"):
                print(f"{row}: {text}")
    print_table(n_found, n_sentences)


def versions(line: str, joint: str) -> Iterator[tuple[str, str]]:
    """The sentence of each row, normalised as in `mtrain prepare`."""
    as_latin_1 = line.encode().decode("latin-1")
    yield "decoded as cp1252", normalize("".join(map(as_cp1252, as_latin_1)))
    yield "decoded as latin-1", normalize(as_latin_1)
    yield "untouched", line
    yield "typography behind each word", line.replace(" ", joint) + joint
    yield "the same in capitals", line.upper().replace(" ", joint) + joint


def as_cp1252(character: str) -> str:
    """The character of Windows-1252 for a byte of Latin-1; itself if undefined."""
    return character.encode("latin-1").decode("cp1252", errors="ignore") or character


def print_table(n_found: Counter[tuple[str, str]], n_sentences: Counter[tuple[str, str]]) -> None:
    """Shares for wrongly decoded text, numbers of sentences for correct text."""
    print(f"| text | {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * len(COLUMNS)}")
    for row in dict.fromkeys(row for row, _ in n_sentences):
        cells = [(n_found[row, column], n_sentences[row, column]) for column in COLUMNS]
        is_wrong = row.startswith("decoded")
        shown = (f"{n / total:.3f}" if is_wrong else f"{n:,} of {total:,}" for n, total in cells)
        print(f"| {row} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
