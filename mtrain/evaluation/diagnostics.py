"""Faults of translations that scores do not show: their rates and worst cases.

`diagnose` asks a list of questions about every output: is it copied from the source, is it too
short, does it repeat itself, did it lose a number? No outside knowledge is used: normal behaviour
is learnt from the test set's own sources and references. The questions are answered in `faults`
(form), `entities` (numbers, URLs, names) and `languages` (script and language).

If there are references, each output has a *witness*: anything that the reference does as well is
not a fault. The same questions are also asked about the references, as if they were outputs without
a witness; that rate estimates false alarms and free translation. Rates are fractions of all
sentences, with Wilson's (1927) 95 % intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mtrain.evaluation import entities, faults, languages, number_words
from mtrain.evaluation.faults import Judge, Sentence
from mtrain.evaluation.metrics import check_counts

N_WORST = 20
_MIN_NOTEWORTHY = 3  # outputs
_Z95 = 1.959963984540054  # a normal variable stays within so many deviations 95 times of 100

# The questions in the order of tables: name -> words for a table.
TITLES = {
    "empty": "empty",
    "copied": "copied from the source",
    "short": "too short",
    "long": "too long",
    "repeated": "repeats itself",
    "numbers_lost": "lost a number",
    "numbers_invented": "invented a number",
    "urls": "lost or invented a URL",
    "names": "lost or invented a name",
    "script": "wrong script",
    "language": "wrong language",
    "unknown_characters": "unknown characters",
    "seen_in_training": "word for word in the training data",
}


@dataclass(frozen=True, slots=True)
class Suspect:
    """One output with a fault."""

    line: int  # from 0
    severity: float  # larger is worse; only comparable within one diagnostic
    detail: str  # such as "1999 is missing"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """The answers to one question over a test set; rates are fractions from 0 to 1."""

    name: str  # a key of TITLES
    title: str
    n_found: int
    rate: float
    low: float  # ends of the 95 % interval
    high: float
    reference_rate: float | None  # None: references were not, or cannot be, judged
    lines: list[int]  # of all suspects, ascending
    worst: list[Suspect]  # at most N_WORST, worst first

    @property
    def is_noteworthy(self) -> bool:
        """True if found more often than in the references, and in more than a case or two."""
        return self.n_found >= _MIN_NOTEWORTHY and self.low > (self.reference_rate or 0.0)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All diagnostics of one test set, in the order of TITLES."""

    n_sentences: int
    diagnostics: list[Diagnostic]
    skipped: dict[str, str] = field(default_factory=dict)  # name -> why it was not asked


def diagnose(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    source_lang: str,
    target_lang: str,
    was_seen: Callable[[str], bool] | None = None,
) -> Diagnosis:
    """Ask all questions of the outputs of one test set.

    Lines n of all lists belong together. `was_seen` tells whether a sentence is a target in the
    training data; None if that is missing.
    """
    check_counts(len(hypotheses), len(sources))
    if references is not None:
        check_counts(len(hypotheses), len(references))
    judges, skipped = _judges(sources, hypotheses, references, source_lang, target_lang, was_seen)
    outputs = _sentences(sources, hypotheses, references)
    as_outputs = None if references is None else _sentences(sources, references, None)
    needs_witness = {"names"}  # these need a reference, so references cannot be asked
    if not number_words.knows(target_lang):
        needs_witness.add("numbers_lost")  # people may have written them in words
    if not number_words.knows(source_lang):
        needs_witness.add("numbers_invented")
    found = [
        _ask(name, judges[name], outputs, None if name in needs_witness else as_outputs)
        for name in TITLES
        if name in judges
    ]
    return Diagnosis(len(hypotheses), found, skipped)


def wilson_interval(n_found: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a fraction n_found / n; also valid for 0 and for n."""
    share = n_found / n
    centre = share + _Z95**2 / (2 * n)
    half_width = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n * n))
    scale = 1 + _Z95**2 / n
    low, high = (centre - half_width) / scale, (centre + half_width) / scale
    return max(0.0, min(share, low)), min(1.0, max(share, high))  # rounding stays out of it


def _judges(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str] | None,
    source_lang: str,
    target_lang: str,
    was_seen: Callable[[str], bool] | None,
) -> tuple[dict[str, Judge], dict[str, str]]:
    """The judge for each question by its name, and why other questions cannot be asked."""
    usual = hypotheses if references is None else references
    lengths = faults.UsualLengths.learn(sources, usual)
    numbers = entities.Numbers(source_lang, target_lang)
    scripts = languages.Scripts.learn(usual)
    judges: dict[str, Judge] = {
        "empty": faults.empty,
        "copied": faults.copied,
        "short": lengths.too_short,
        "long": lengths.too_long,
        "repeated": faults.Repetition.learn(usual),
        "numbers_lost": numbers.lost,
        "numbers_invented": numbers.invented,
        "urls": entities.urls,
        "script": scripts.wrong,
        "unknown_characters": faults.unknown_characters,
    }
    skipped = {}
    if references is None:
        skipped["names"] = "names are recognised with the help of references, which are missing"
    else:
        judges["names"] = entities.Names.learn(sources, references)
    if language := languages.TwoLanguages.learn(sources, usual):
        judges["language"] = language.wrong
    else:
        skipped["language"] = "too few sentences to tell the two languages apart"
    if was_seen is None:
        skipped["seen_in_training"] = "the prepared training data is missing"
    else:
        judges["seen_in_training"] = faults.seen(was_seen)
    return judges, skipped


def _sentences(
    sources: Sequence[str], outputs: Sequence[str], references: Sequence[str] | None
) -> list[Sentence]:
    witnesses = [None] * len(outputs) if references is None else references
    triples = zip(sources, outputs, witnesses, strict=True)
    return [Sentence(line, *triple) for line, triple in enumerate(triples)]


def _ask(
    name: str, judge: Judge, outputs: list[Sentence], references: list[Sentence] | None
) -> Diagnostic:
    suspects = [
        Suspect(sentence.line, fault.severity, fault.detail)
        for sentence in outputs
        if (fault := judge(sentence))
    ]
    low, high = wilson_interval(len(suspects), len(outputs))
    reference_rate = None
    if references is not None:
        reference_rate = sum(judge(s) is not None for s in references) / len(references)
    return Diagnostic(
        name,
        TITLES[name],
        len(suspects),
        len(suspects) / len(outputs),
        low,
        high,
        reference_rate,
        [suspect.line for suspect in suspects],
        sorted(suspects, key=lambda suspect: -suspect.severity)[:N_WORST],
    )
