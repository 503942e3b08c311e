"""What is wrong with the translations of the runs, and where: diagnostics and breakdowns in words.

Runs that were scored on the same text stand side by side. What an older run does not hold is
missing in its column; where no run holds anything, the chapter says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mtrain import console
from mtrain.delivery.facts import RunFacts
from mtrain.delivery.side_by_side import Output, SideBySide
from mtrain.evaluation.breakdown import Breakdown, Calibration, Group, Grouping, WordBalance
from mtrain.evaluation.comparison import compare
from mtrain.evaluation.diagnostics import TITLES, Diagnosis, Diagnostic

N_SHOWN = 1  # of the worst sentences of a fault; the list of sentences has twenty
_MOST_NAMED = 4  # faults in one sentence
_MOST_TESTED = 2500  # sentences that paired tests are made of
_SOFT_GAP = 5.0  # points of chrF between groups that are worth a sentence


@dataclass(frozen=True)
class FaultRow:
    """One question, and what was found in the outputs of each run (None: it was not asked)."""

    name: str
    title: str
    found: list[Diagnostic | None]
    reference_rate: float | None

    @property
    def is_noteworthy(self) -> bool:
        """Whether any run has more of it than the references."""
        return any(one is not None and one.is_noteworthy for one in self.found)


@dataclass(frozen=True)
class WorstCase:
    """A sentence to show what a fault looks like."""

    run: int
    fault: str
    line: int  # from 0
    detail: str
    source: str
    translation: str


@dataclass(frozen=True)
class Faults:
    """The diagnostics of one test set."""

    number: int  # of the test set on the page
    name: str
    runs: list[int]
    rows: list[FaultRow]  # of what was found anywhere
    clean: list[str]  # titles of what was found nowhere
    skipped: list[str]  # what was not asked, and why
    worst: list[WorstCase]


@dataclass(frozen=True)
class GroupRow:
    """A group of sentences, and how each run does on them; None where a run has no such group."""

    label: str
    n_sentences: int
    groups: list[Group | None]


@dataclass(frozen=True)
class GroupTable:
    """A test set cut by one property."""

    title: str
    rows: list[GroupRow]


@dataclass(frozen=True)
class RunWords:
    """Words that one run says too often, and too seldom."""

    run: int
    over: list[WordBalance]
    under: list[WordBalance]


@dataclass(frozen=True)
class Where:
    """The breakdown of one test set."""

    number: int
    name: str
    runs: list[int]
    tables: list[GroupTable]
    spread: list[tuple[str, list[tuple[int, float]]]]  # band of chrF -> each run's n, share of most
    words: list[RunWords]
    calibration: list[tuple[int, Calibration, str]]  # run, numbers, sentence
    skipped: list[str]


# -- faults ----------------------------------------------------------------------------------


def faults(test_sets: Sequence[SideBySide]) -> list[Faults]:
    """The diagnostics of every test set that has any."""
    return [
        _faults(number, test_set, outputs)
        for number, test_set in enumerate(test_sets)
        if (outputs := _analysed(test_set))
    ]


def _faults(number: int, test_set: SideBySide, outputs: Sequence[Output]) -> Faults:
    diagnoses = [_diagnosis(output) for output in outputs]
    by_name = [{one.name: one for one in diagnosis.diagnostics} for diagnosis in diagnoses]
    names = dict.fromkeys(name for found in by_name for name in found)
    rows = [_fault_row(name, [found.get(name) for found in by_name]) for name in names]
    skipped = {name: reason for one in diagnoses for name, reason in one.skipped.items()}
    is_found = {row.name: any(one and one.n_found for one in row.found) for row in rows}
    return Faults(
        number,
        test_set.name,
        [output.run for output in outputs],
        [row for row in rows if is_found[row.name] or row.reference_rate],
        [row.title for row in rows if not (is_found[row.name] or row.reference_rate)],
        [f"{TITLES[name]}: {reason}" for name, reason in skipped.items()],
        [case for output in outputs for case in _worst_cases(output)],
    )


def _fault_row(name: str, found: list[Diagnostic | None]) -> FaultRow:
    known = [one for one in found if one is not None]
    return FaultRow(name, known[0].title, found, known[0].reference_rate)


def _worst_cases(output: Output) -> Iterator[WorstCase]:
    """A few sentences for each noteworthy fault."""
    text = output.translated
    for fault in _diagnosis(output).diagnostics:
        for suspect in fault.worst[:N_SHOWN] if fault.is_noteworthy else []:
            yield WorstCase(
                output.run,
                fault.title,
                suspect.line,
                suspect.detail,
                text.sources[suspect.line],
                text.translations[suspect.line],
            )


# -- where it goes wrong ---------------------------------------------------------------------


def where_it_goes_wrong(test_sets: Sequence[SideBySide]) -> list[Where]:
    """The breakdown of every test set that has one."""
    return [
        _where(number, test_set, outputs)
        for number, test_set in enumerate(test_sets)
        if (outputs := _analysed(test_set))
    ]


def _where(number: int, test_set: SideBySide, outputs: Sequence[Output]) -> Where:
    breakdowns = [_breakdown(output) for output in outputs]
    titles = dict.fromkeys(
        grouping.name
        for breakdown in breakdowns
        for grouping in breakdown.groupings
        if grouping.name != "sentence_chrf"
    )
    skipped = dict.fromkeys(reason for one in breakdowns for reason in one.skipped.values())
    runs = [output.run for output in outputs]
    return Where(
        number,
        test_set.name,
        runs,
        [_group_table([_grouping(one, name) for one in breakdowns]) for name in titles],
        _spread(breakdowns),
        [
            RunWords(run, one.over_produced, one.under_produced)
            for run, one in zip(runs, breakdowns, strict=True)
        ],
        [
            (run, one.calibration, calibration_sentence(one.calibration))
            for run, one in zip(runs, breakdowns, strict=True)
            if one.calibration
        ],
        [_as_sentence(reason) for reason in skipped],
    )


def _grouping(breakdown: Breakdown, name: str) -> Grouping | None:
    return next((one for one in breakdown.groupings if one.name == name), None)


def _group_table(groupings: Sequence[Grouping | None]) -> GroupTable:
    known = [grouping for grouping in groupings if grouping is not None]
    by_label = [{g.label: g for g in one.groups} if one else {} for one in groupings]
    labels = dict.fromkeys(label for groups in by_label for label in groups)
    rows = []
    for label in labels:
        groups = [found.get(label) for found in by_label]
        n_sentences = max(group.n_sentences for group in groups if group is not None)
        rows.append(GroupRow(label, n_sentences, groups))
    return GroupTable(known[0].title, rows)


def _spread(breakdowns: Sequence[Breakdown]) -> list[tuple[str, list[tuple[int, float]]]]:
    """How many sentences lie in each band of chrF, and that as a share of the fullest band."""
    counts = [[0] * 10 for _ in breakdowns]
    for of_run, breakdown in zip(counts, breakdowns, strict=True):
        for score in breakdown.sentence_chrf:
            of_run[min(9, int(score // 10))] += 1
    most = max(map(max, counts))
    return [
        (f"{10 * i}–{10 * i + 10}", [(of_run[i], of_run[i] / most) for of_run in counts])
        for i in range(10)
    ]


def calibration_sentence(calibration: Calibration) -> str:
    """What the correlation of the model's own score with quality means."""
    if calibration.low <= 0:
        says = "nothing"
    else:
        limits = ((0.6, "much"), (0.3, "something"), (0.0, "little"))
        says = next(word for limit, word in limits if calibration.correlation >= limit)
    numbers = (calibration.correlation, calibration.low, calibration.high)
    correlation, low, high = (f"{number:.2f}".replace("-", "−") for number in numbers)
    return (
        f"The model's own score says {says} about the quality of an output: its rank correlation "
        f"with chrF is {correlation} ({low} to {high})."
    )


# -- is it chance? ---------------------------------------------------------------------------


def significance(runs: Sequence[RunFacts], test_sets: Sequence[SideBySide]) -> list[str]:
    """Each run against the first one, a sentence a metric; tests take long, so not for all text."""
    sentences: list[str] = []
    n_left = _MOST_TESTED
    for test_set in test_sets:
        first, *others = test_set.outputs
        for other in others if first.run == 0 else []:
            n_left -= len(other.translated.sources)
            if n_left < 0:
                baseline, run = runs[0], runs[other.run]
                command = console.command("mtrain", "eval", run.path, "--against", baseline.path)
                return [*sentences, f"More is told by `{command}`."]
            sentences += _paired_sentences(runs, test_set, first, other)
    return sentences


def _paired_sentences(
    runs: Sequence[RunFacts], test_set: SideBySide, baseline: Output, other: Output
) -> list[str]:
    settings = runs[0].config.evaluate
    comparison = compare(
        other.translated.translations,
        baseline.translated.translations,
        test_set.text.references,
        test_set.target_lang,
        settings.tokenize,
        settings.lowercase,
        baseline_name=runs[0].label,
    )
    label = runs[other.run].label
    return [f"{test_set.name}, {label}: {sentence}." for sentence in comparison.sentences()]


# -- in short --------------------------------------------------------------------------------


def in_short(run: RunFacts, test_sets: Sequence[SideBySide]) -> list[str]:
    """What a reader in a hurry should know of one run, by its first test set."""
    sentences = [
        f"The scores of {name} are too good: {entry.get('n_leaked', 0):,} training pairs give its "
        "sentences away."
        for name, entry in run.scores.items()
        if entry.get("contaminated")
    ]
    for test_set in test_sets[:1]:
        for output in _analysed(test_set):
            sentences.append(_fault_sentence(_diagnosis(output), test_set.name))
            sentences += _weak_spots(_breakdown(output))
    return sentences


def _fault_sentence(diagnosis: Diagnosis, test_set: str) -> str:
    """The commonest of what is worse than in the references."""
    noteworthy = [fault for fault in diagnosis.diagnostics if fault.is_noteworthy]
    if not noteworthy:
        return f"In {test_set}, no fault is more frequent than in the references."
    commonest = sorted(noteworthy, key=lambda fault: -fault.rate)[:_MOST_NAMED]
    named = [f"{fault.title} {fault.rate:.1%}{_usual(fault)}" for fault in commonest]
    return f"In {test_set}, more often than the references: {', '.join(named)}."


def _usual(fault: Diagnostic) -> str:
    rate = fault.reference_rate
    return "" if rate is None else f" (references {rate:.1%})"


def _weak_spots(breakdown: Breakdown) -> list[str]:
    names = ("source_length", "rarest_word")
    groupings = [one for name in names if (one := _grouping(breakdown, name))]
    sentences = [sentence for one in groupings if (sentence := _gap_sentence(one))]
    if breakdown.calibration:
        sentences.append(calibration_sentence(breakdown.calibration))
    return sentences


def _gap_sentence(grouping: Grouping) -> str:
    """Which group is hardest, where that makes a difference."""
    groups = [group for group in grouping.groups if group.n_sentences >= 20]
    if len(groups) < 2:
        return ""
    worst, best = min(groups, key=lambda g: g.chrf), max(groups, key=lambda g: g.chrf)
    if best.chrf - worst.chrf < _SOFT_GAP:
        return f"Its quality hardly depends on the {grouping.title}."
    return (
        f"By {grouping.title}: weakest at {worst.label} (chrF {worst.chrf:.1f}), strongest at "
        f"{best.label} ({best.chrf:.1f})."
    )


def _analysed(test_set: SideBySide) -> list[Output]:
    return [output for output in test_set.outputs if output.translated.analysis is not None]


def _diagnosis(output: Output) -> Diagnosis:
    assert output.translated.analysis is not None
    return output.translated.analysis.diagnosis


def _breakdown(output: Output) -> Breakdown:
    assert output.translated.analysis is not None
    return output.translated.analysis.breakdown


def _as_sentence(reason: str) -> str:
    return f"{reason[:1].upper()}{reason[1:]}."
