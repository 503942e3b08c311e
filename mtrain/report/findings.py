"""The chapters of faults and weak spots: diagnostics and breakdowns, runs side by side.

Facts that an older run lacks are missing in its column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtrain.evaluation.analysis import Analysis
from mtrain.evaluation.breakdown import Breakdown, Calibration, Grouping
from mtrain.evaluation.diagnostics import TITLES, Diagnosis, Diagnostic
from mtrain.report.facts import Output, RunFacts, SideBySide

_MOST_NAMED = 4  # faults in one sentence
_SOFT_GAP = 5.0  # minimum gap in chrF between groups that is worth mentioning
_BREAKDOWNS = {
    "rarest_word": "scores by rarest source word",
    "calibration": "the model's own score",
}
_MIN_GROUP = 20  # sentences of a group with a meaningful score


@dataclass(frozen=True)
class FaultRow:
    """A fault, and its frequency in each run (None: not checked)."""

    name: str
    title: str
    found: list[Diagnostic | None]
    reference_rate: float | None

    @property
    def is_found(self) -> bool:
        """Whether any run has this fault."""
        return any(one is not None and one.n_found for one in self.found)

    @property
    def is_noteworthy(self) -> bool:
        """Whether it is more frequent in any run than in the references."""
        return any(one is not None and one.is_noteworthy for one in self.found)


@dataclass(frozen=True)
class Findings:
    """The analyses of one test set; lists are in the order of `outputs`."""

    number: int  # of the test set on the page
    test_set: SideBySide
    outputs: list[Output]  # those with an analysis

    @property
    def analyses(self) -> list[Analysis]:
        """The analyses of the outputs."""
        return [output.analysis for output in self.outputs if output.analysis]

    @property
    def faults(self) -> list[FaultRow]:
        """All questions that were checked."""
        diagnoses = [analysis.diagnosis for analysis in self.analyses]
        by_name = [{one.name: one for one in diagnosis.diagnostics} for diagnosis in diagnoses]
        rows = []
        for name in dict.fromkeys(name for found in by_name for name in found):
            found = [one.get(name) for one in by_name]
            first = next(one for one in found if one is not None)
            rows.append(FaultRow(name, first.title, found, first.reference_rate))
        return rows

    @property
    def skipped(self) -> dict[str, str]:
        """Questions that were not checked, and why."""
        reasons = {
            n: reason for one in self.analyses for n, reason in one.diagnosis.skipped.items()
        }
        return {TITLES[name]: reason for name, reason in reasons.items()}

    @property
    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """The test set cut by each property of its sentences, under a title."""
        titles = {
            grouping.name: grouping.title
            for analysis in self.analyses
            for grouping in analysis.breakdown.groupings
            if grouping.name != "sentence_chrf"  # see `spread`
        }
        return {title: self._group_rows(name) for name, title in titles.items()}

    def _group_rows(self, name: str) -> list[dict[str, Any]]:
        """Label, size, and the scores of each run; None where a run has no such group."""
        groupings = [_grouping(analysis.breakdown, name) for analysis in self.analyses]
        by_label = [
            {group.label: group for group in one.groups} if one else {} for one in groupings
        ]
        rows = []
        for label in dict.fromkeys(label for groups in by_label for label in groups):
            groups = [one.get(label) for one in by_label]
            n_sentences = max(one.n_sentences for one in groups if one)
            rows.append({"label": label, "n_sentences": n_sentences, "groups": groups})
        return rows

    @property
    def spread(self) -> dict[str, list[int]]:
        """Number of sentences in each band of chrF."""
        counts = [[0] * 10 for _ in self.outputs]
        for of_run, output in zip(counts, self.outputs, strict=True):
            for score in output.chrf:
                of_run[min(9, int(score // 10))] += 1
        return {f"{10 * i}–{10 * i + 10}": [of_run[i] for of_run in counts] for i in range(10)}

    @property
    def not_broken_down(self) -> list[str]:
        """The missing breakdowns, and why they are missing."""
        skipped = (item for one in self.analyses for item in one.breakdown.skipped.items())
        titled = ((_BREAKDOWNS.get(name), reason) for name, reason in dict.fromkeys(skipped))
        return [f"{title}: {reason}." for title, reason in titled if title]  # or of older versions


def findings(test_sets: Sequence[SideBySide]) -> list[Findings]:
    """The findings of all test sets with an analysis."""
    found = []
    for number, test_set in enumerate(test_sets):
        outputs = [output for output in test_set.outputs if output.analysis]
        if outputs:
            found.append(Findings(number, test_set, outputs))
    return found


def _grouping(breakdown: Breakdown, name: str) -> Grouping | None:
    return next((one for one in breakdown.groupings if one.name == name), None)


def calibration_sentence(calibration: Calibration) -> str:
    """The correlation of the model's own score with quality, in words."""
    if calibration.low <= 0:
        predicts = "does not predict"
    else:
        limits = ((0.6, "predicts"), (0.3, "partly predicts"), (0.0, "weakly predicts"))
        predicts = next(word for limit, word in limits if calibration.correlation >= limit)
    numbers = (calibration.correlation, calibration.low, calibration.high)
    correlation, low, high = (f"{number:.2f}".replace("-", "−") for number in numbers)
    return (
        f"The model's own score {predicts} the quality of an output: its rank correlation with "
        f"chrF is {correlation} ({low} to {high})."
    )


# -- in short --------------------------------------------------------------------------------


def in_short(run: RunFacts, found: Sequence[Findings]) -> list[str]:
    """The main findings about one run, from its first test set."""
    sentences = [
        f"The scores of {name} are too good: {entry.get('n_leaked', 0):,} training pairs contain "
        "its sentences."
        for name, entry in run.scores.items()
        if entry.get("contaminated")
    ]
    for first in found[:1] if found and found[0].number == 0 else []:
        (analysis,) = first.analyses
        breakdown = analysis.breakdown
        sentences.append(_fault_sentence(analysis.diagnosis, first.test_set.name))
        for name in ("source_length", "rarest_word"):
            grouping = _grouping(breakdown, name)
            sentences += [] if grouping is None else _gap_sentence(grouping)
        if breakdown.calibration:
            sentences.append(calibration_sentence(breakdown.calibration))
    return sentences


def _fault_sentence(diagnosis: Diagnosis, test_set: str) -> str:
    """The most frequent faults of those that are more frequent than in the references."""
    noteworthy = [fault for fault in diagnosis.diagnostics if fault.is_noteworthy]
    if not noteworthy:
        return f"In {test_set}, no fault is more frequent than in the references."
    named = []
    for fault in sorted(noteworthy, key=lambda fault: -fault.rate)[:_MOST_NAMED]:
        rate = fault.reference_rate
        usual = "" if rate is None else f" (references {rate:.1%})"
        named.append(f"{fault.title} {fault.rate:.1%}{usual}")
    return f"Faults in {test_set}, more frequent than in the references: {', '.join(named)}."


def _gap_sentence(grouping: Grouping) -> list[str]:
    """The hardest and the easiest group if they differ; nothing for a single group."""
    groups = [group for group in grouping.groups if group.n_sentences >= _MIN_GROUP]
    if len(groups) < 2:
        return []
    worst, best = min(groups, key=lambda g: g.chrf), max(groups, key=lambda g: g.chrf)
    if best.chrf - worst.chrf < _SOFT_GAP:
        return [f"Its quality hardly depends on the {grouping.title}."]
    return [
        f"By {grouping.title}: weakest at {worst.label} (chrF {worst.chrf:.1f}), strongest at "
        f"{best.label} ({best.chrf:.1f})."
    ]
