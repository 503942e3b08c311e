"""The chapter of scores: what `eval` recorded, by test set and run, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtrain import console
from mtrain.evaluation.comparison import compare
from mtrain.evaluation.metrics import LABELS
from mtrain.report.facts import RunFacts
from mtrain.report.side_by_side import Output, SideBySide

LOWER_IS_BETTER = {"ter"}
_MOST_TESTED = 2500  # sentences for paired tests, which take long


@dataclass(frozen=True)
class Fact:
    """A name and a value, for lists of facts and tiles."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One score, as text."""

    score: str
    interval: str  # empty where none was computed
    is_best: bool  # of several runs on this test set


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one run on one test set."""

    run: int
    cells: list[Cell | None]  # in the order of the table's metrics
    how: str  # checkpoint, decoding, number of sentences
    warning: str  # mostly empty


@dataclass(frozen=True)
class ScoredSet:
    """A test set and the runs that were scored on it."""

    name: str
    rows: list[ScoreRow]


@dataclass(frozen=True)
class ScoreTable:
    """All recorded scores."""

    metrics: list[str]  # keys, such as chrf
    test_sets: list[ScoredSet]
    other_settings: list[ScoredSet]  # other checkpoints and decoding settings than the runs' own
    signatures: list[Fact]  # each signature that occurs, and its test sets

    @property
    def headers(self) -> list[str]:
        """The names of the metrics, with an arrow towards better."""
        return [f"{LABELS[m]} {'↓' if m in LOWER_IS_BETTER else '↑'}" for m in self.metrics]


# Run number and entry of scores.json, by key and text of the test set.
_Entries = dict[tuple[str, str], list[tuple[int, dict[str, Any]]]]


def score_table(runs: Sequence[RunFacts]) -> ScoreTable:
    """What `eval` recorded, test set by test set, run by run."""
    own: _Entries = {}
    other: _Entries = {}
    for number, run in enumerate(runs):
        for name, entry in run.scores.items():
            group = other if "[" in name else own
            group.setdefault((name, entry.get("test_set_sha256", "")), []).append((number, entry))
    entries = [
        (name, entry)
        for group in (own, other)
        for (name, _), rows in group.items()
        for _, entry in rows
    ]
    metrics = list(dict.fromkeys(key for _, entry in entries for key in entry if key in LABELS))
    return ScoreTable(
        metrics,
        [_scored_set(name, rows, metrics) for (name, _), rows in own.items()],
        [_scored_set(name, rows, metrics) for (name, _), rows in other.items()],
        _signatures(entries, metrics),
    )


def _scored_set(
    name: str, rows: Sequence[tuple[int, dict[str, Any]]], metrics: Sequence[str]
) -> ScoredSet:
    best: dict[str, float] = {}  # of each metric, where there is something to compare
    for metric in metrics:
        scores = [entry[metric]["score"] for _, entry in rows if metric in entry]
        if len(scores) > 1:
            best[metric] = min(scores) if metric in LOWER_IS_BETTER else max(scores)
    scored = ScoredSet(name, [])
    for run, entry in rows:
        cells = [_cell(entry.get(metric), best.get(metric)) for metric in metrics]
        n_leaked = f"{entry.get('n_leaked', 0):,}"
        warning = f"contaminated: {n_leaked} training pairs contain sentences of this test set"
        scored.rows.append(
            ScoreRow(run, cells, _how(entry), warning if entry.get("contaminated") else "")
        )
    return scored


def _cell(score: Mapping[str, Any] | None, best: float | None) -> Cell | None:
    if score is None:
        return None
    low, high = score.get("low"), score.get("high")
    interval = "" if low is None or high is None else f"{low:.2f}–{high:.2f}"
    return Cell(f"{score['score']:.2f}", interval, score["score"] == best)


def _how(entry: Mapping[str, Any]) -> str:
    """Number of sentences, checkpoint, decoding settings and time of a recorded score."""
    parts = []
    if "sentences" in entry:
        parts.append(f"{entry['sentences']:,} sentences")
    if "checkpoint" in entry:
        parts.append(f"checkpoint {entry['checkpoint']}")
    for key, value in entry.get("decode", {}).items():
        if value != "power":  # the usual form of length penalty
            parts.append(f"{key.removesuffix('_size').replace('_', ' ')} {value}")
    if "seconds" in entry:
        parts.append(f"{entry['seconds']:,} s")
    return ", ".join(parts)


def _signatures(
    entries: Sequence[tuple[str, dict[str, Any]]], metrics: Sequence[str]
) -> list[Fact]:
    """Each signature once per metric, with its test sets where scores cannot be compared."""
    facts = []
    for metric in metrics:
        names: dict[str, list[str]] = {}
        for name, entry in entries:
            if metric in entry:
                names.setdefault(entry[metric].get("signature", "none recorded"), []).append(name)
        for signature, of_sets in names.items():
            note = ", ".join(dict.fromkeys(of_sets)) if len(names) > 1 else ""
            facts.append(Fact(LABELS[metric], signature, note))
    return facts


def significance(runs: Sequence[RunFacts], test_sets: Sequence[SideBySide]) -> list[str]:
    """Each run against the first one, a sentence per metric, as long as that is quick."""
    sentences: list[str] = []
    n_left = _MOST_TESTED
    for test_set in test_sets:
        first, *others = test_set.outputs
        for other in others if first.run == 0 else []:
            n_left -= len(test_set.sources)
            if n_left < 0:
                paths = runs[other.run].path, "--against", runs[0].path
                command = console.command("mtrain", "eval", *paths)
                return [*sentences, f"For more comparisons, run `{command}`."]
            sentences += _paired_sentences(runs, test_set, first, other)
    return sentences


def _paired_sentences(
    runs: Sequence[RunFacts], test_set: SideBySide, baseline: Output, other: Output
) -> list[str]:
    settings = runs[0].config.evaluate
    comparison = compare(
        other.translations,
        baseline.translations,
        test_set.references,
        test_set.target_lang,
        settings.tokenize,
        settings.lowercase,
        baseline_name=runs[0].label,
    )
    label = runs[other.run].label
    return [f"{test_set.name}, {label}: {sentence}." for sentence in comparison.sentences()]
