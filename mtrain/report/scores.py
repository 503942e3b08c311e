"""The chapter of scores: recorded by `eval`, by test set and run, with settings and signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtrain import console
from mtrain.config.literals import METRIC_NAMES
from mtrain.evaluation.comparison import LOWER_IS_BETTER, compare
from mtrain.report.facts import RunFacts, SideBySide
from mtrain.run import ScoreKey

_MOST_TESTED = 2500  # sentences for paired tests, which take long


@dataclass(frozen=True)
class Fact:
    """A name and a value, for lists of facts and tiles."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class ScoredSet:
    """A test set and the runs that were scored on it."""

    name: str
    rows: list[tuple[int, dict[str, Any]]]  # number of the run, its entry in scores.json

    def is_best(self, metric: str, score: float) -> bool:
        """Whether no other run scores better; False for a single run."""
        scores = [entry[metric]["score"] for _, entry in self.rows if metric in entry]
        best = min(scores) if metric in LOWER_IS_BETTER else max(scores)
        return len(scores) > 1 and score == best


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
        return [f"{METRIC_NAMES[m]} {'↓' if m in LOWER_IS_BETTER else '↑'}" for m in self.metrics]


def score_table(runs: Sequence[RunFacts]) -> ScoreTable:
    """The scores recorded by `eval`, by test set and run."""
    own: dict[tuple[str, str], ScoredSet] = {}  # by key and text of the test set
    other: dict[tuple[str, str], ScoredSet] = {}
    entries = []
    for number, run in enumerate(runs):
        for name, entry in run.scores.items():
            group, text = (
                other if ScoreKey.parse(name).settings else own,
                entry.get("test_set_sha256", ""),
            )
            group.setdefault((name, text), ScoredSet(name, [])).rows.append((number, entry))
            entries.append((name, entry))
    metrics = list(
        dict.fromkeys(key for _, entry in entries for key in entry if key in METRIC_NAMES)
    )
    signatures = _signatures(entries, metrics)
    return ScoreTable(metrics, list(own.values()), list(other.values()), signatures)


def how_scored(entry: Mapping[str, Any]) -> str:
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


def interval(score: Mapping[str, Any]) -> str:
    """The ends of the 95 % interval of a score; empty if none was computed."""
    low, high = score.get("low"), score.get("high")
    return "" if low is None or high is None else f"{low:.2f}–{high:.2f}"


def _signatures(
    entries: Sequence[tuple[str, dict[str, Any]]], metrics: Sequence[str]
) -> list[Fact]:
    """Each signature once per metric, with its test sets if a metric has several."""
    facts = []
    for metric in metrics:
        names: dict[str, list[str]] = {}
        for name, entry in entries:
            if metric in entry:
                names.setdefault(entry[metric].get("signature", "none recorded"), []).append(name)
        for signature, of_sets in names.items():
            note = ", ".join(dict.fromkeys(of_sets)) if len(names) > 1 else ""
            facts.append(Fact(METRIC_NAMES[metric], signature, note))
    return facts


def significance(runs: Sequence[RunFacts], test_sets: Sequence[SideBySide]) -> list[str]:
    """Each run against the first one, a sentence per metric, up to a limit on time."""
    sentences: list[str] = []
    n_left = _MOST_TESTED
    settings = runs[0].config.evaluate
    for test_set in test_sets:
        baseline, *others = test_set.outputs
        for other in others if baseline.run == 0 else []:
            run = runs[other.run]
            n_left -= len(test_set.sources)
            if n_left < 0:
                command = console.command("mtrain", "eval", run.path, "--against", runs[0].path)
                return [*sentences, f"For more comparisons, run `{command}`."]
            comparison = compare(
                other.translations,
                baseline.translations,
                test_set.references,
                test_set.target_lang,
                settings.tokenize,
                settings.lowercase,
                baseline_name=runs[0].label,
            )
            told = comparison.sentences()
            sentences += [f"{test_set.name}, {run.label}: {sentence}." for sentence in told]
    return sentences
