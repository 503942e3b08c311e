"""How good are the diagnostics? Plant faults into outputs and see how many are found.

    python scripts/measure_diagnostics.py en de SOURCE REFERENCE [HYPOTHESIS]

Faults of each kind are planted into a tenth of the lines of HYPOTHESIS (a real system's output), or
of REFERENCE where none is given, which stands for a perfect output. A fault is found where one of
the diagnostics that are meant for it names the line. False alarms are the references that a
diagnostic names when they are judged as outputs, by their sources alone.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mtrain.evaluation.diagnostics import Diagnosis, diagnose
from mtrain.evaluation.given import read_lines

SEED = 7
SHARE = 0.1
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

Plant = Callable[[random.Random, str, str], str | None]  # (source, output) -> None: cannot be here


def split(text: str) -> tuple[list[str], str]:
    """Words, and what joins them; characters where a script has no spaces."""
    words = text.split()
    return (list(text), "") if len(text) > 20 * len(words) else (words, " ")


def copy(rng: random.Random, source: str, output: str) -> str | None:
    """The source in place of its translation, where these are not the same."""
    return source if source != output else None


def loop(rng: random.Random, source: str, output: str) -> str | None:
    """The last one to four words come two to five times more."""
    words, joiner = split(output)
    n_words = rng.randint(1, 4) if joiner else rng.randint(2, 8)
    if len(words) < n_words:
        return None
    return joiner.join(words + words[-n_words:] * rng.randint(2, 5))


def stutter(rng: random.Random, source: str, output: str) -> str | None:
    """Two to four words (or four to eight characters) somewhere come twice."""
    words, joiner = split(output)
    n_words = rng.randint(2, 4) if joiner else rng.randint(4, 8)
    if len(words) < n_words:
        return None
    at = rng.randint(0, len(words) - n_words)
    return joiner.join(words[: at + n_words] + words[at:])


def drop_number(rng: random.Random, source: str, output: str) -> str | None:
    """One of the numbers that the output shares with its source is gone."""
    shared = [m for m in NUMBER.finditer(output) if m[0] in NUMBER.findall(source)]
    if not shared:
        return None
    gone = rng.choice(shared)[0]
    return " ".join(re.sub(rf"(?<![\d.,]){re.escape(gone)}(?![\d])", "", output).split())


def change_number(rng: random.Random, source: str, output: str) -> str | None:
    """One of these numbers is another one."""
    shared = [m for m in NUMBER.finditer(output) if m[0] in NUMBER.findall(source)]
    if not shared:
        return None
    gone = rng.choice(shared)
    other = "".join(rng.choice("123456789") if c.isdigit() else c for c in gone[0])
    return None if other == gone[0] else output[: gone.start()] + other + output[gone.end() :]


def truncate(rng: random.Random, source: str, output: str) -> str | None:
    """Less than 60 % of the words are there."""
    words, joiner = split(output)
    if len(words) < 4:
        return None
    return joiner.join(words[: max(1, int(len(words) * rng.uniform(0.2, 0.6)))])


def empty(rng: random.Random, source: str, output: str) -> str | None:
    """Nothing."""
    return ""


def garble(rng: random.Random, source: str, output: str) -> str | None:
    """A character that could not be written."""
    at = rng.randint(0, len(output))
    return output[:at] + rng.choice("⁇\ufffd\x07\ue000") + output[at:]


PLANTS: dict[str, tuple[Plant, set[str]]] = {
    "copies": (copy, {"copied", "language", "script"}),
    "loops": (loop, {"repeated"}),
    "stutters": (stutter, {"repeated"}),
    "dropped numbers": (drop_number, {"numbers_lost"}),
    "changed numbers": (change_number, {"numbers_lost", "numbers_invented"}),
    "truncated": (truncate, {"short"}),
    "empty": (empty, {"empty"}),
    "unknown characters": (garble, {"unknown_characters"}),
}


def main() -> None:
    """Print what was found of the faults of each kind, then the false alarms."""
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    source_lang, target_lang, *files = sys.argv[1:]
    sources, references, *rest = (read_lines(Path(file)) for file in files)
    outputs = rest[0] if rest else references

    def judge(hypotheses: list[str]) -> Diagnosis:
        languages = {"source_lang": source_lang, "target_lang": target_lang}
        return diagnose(sources, hypotheses, references, **languages)

    for name, (plant, meant) in PLANTS.items():
        rng = random.Random(SEED)
        planted: dict[int, str] = {}
        for line in rng.sample(range(len(outputs)), len(outputs)):
            fault = plant(rng, sources[line], outputs[line])
            if fault is not None and len(planted) < SHARE * len(outputs):
                planted[line] = fault
        diagnosis = judge([planted.get(i, text) for i, text in enumerate(outputs)])
        named = {i for d in diagnosis.diagnostics if d.name in meant for i in d.lines}
        n_found = len(named & planted.keys())
        share = f"{n_found / len(planted):7.1%}" if planted else "      -"
        print(f"{name:20}{n_found:6,} of {len(planted):6,} found {share}")
    for diagnostic in judge(outputs).diagnostics:
        rate = diagnostic.reference_rate
        usual = "      -" if rate is None else f"{rate:7.2%}"
        print(f"{diagnostic.title:36} references {usual}   these outputs {diagnostic.rate:7.2%}")


if __name__ == "__main__":
    main()
