"""What each chapter of the report says: the facts of the runs, worded and numbered for readers.

The page and the model card are two dresses of the same chapters. Text is plain here; the templates
escape it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mtrain import console
from mtrain.config.literals import METRIC_NAMES
from mtrain.delivery.facts import RunFacts
from mtrain.delivery.side_by_side import SideBySide
from mtrain.evaluation.samples import samples
from mtrain.languages import language
from mtrain.run import ScoreKey

LOWER_IS_BETTER = {"ter"}
_UNREMARKABLE = ("power",)  # the form of length penalty that everybody means


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
    """The scores of one run on one test set; `cells` in the order of the table's metrics."""

    run: int
    cells: list[Cell | None]
    how: str  # checkpoint, decoding, number of sentences
    warning: str  # why the scores are not to be believed; mostly empty


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
    other_settings: list[ScoredSet]  # other checkpoints and decodings than the runs' own
    signatures: list[Fact]  # each signature that occurs, and what it belongs to

    @property
    def headers(self) -> list[str]:
        """The names of the metrics, with an arrow towards better."""
        return [f"{metric_name(m)} {'↓' if m in LOWER_IS_BETTER else '↑'}" for m in self.metrics]


@dataclass(frozen=True)
class Example:
    """A sentence that shows what to expect."""

    grade: str
    source: str
    reference: str
    translation: str
    chrf: float


# -- words -----------------------------------------------------------------------------------


def metric_name(metric: str) -> str:
    """chrf -> chrF2"""
    return METRIC_NAMES.get(metric, metric)


def rounded_count(n: int) -> str:
    """1965568 -> '1.97 million'; 28993 -> '28,993'"""
    for limit, unit in ((1_000_000_000, "billion"), (1_000_000, "million")):
        if n >= limit:
            return f"{n / limit:.3g} {unit}"
    return f"{n:,}"


def file_size(n_bytes: int) -> str:
    """7890000 -> '7.9 MB'"""
    if n_bytes < 1000:
        return f"{n_bytes} bytes"
    for limit, unit in ((1_000_000_000, "GB"), (1_000_000, "MB")):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.3g} {unit}"
    return f"{n_bytes / 1000:.3g} kB"


# -- what the model is -----------------------------------------------------------------------


def summary(runs: Sequence[RunFacts]) -> str:
    """What the page is about, in a sentence."""
    run = runs[0]
    config, manifest = run.config, run.manifest
    if len(runs) > 1:
        pairs = dict.fromkeys(languages(run) for run in runs)
        return f"{len(runs)} models side by side: {' and '.join(pairs)}."
    size = f"with {rounded_count(run.weights.n_parameters)} parameters, " if run.weights else ""
    return (
        f"A Transformer {size}trained on {manifest['n_train_pairs']:,} sentence pairs, that "
        f"translates {language(config.source).name} into {language(config.target).name}."
    )


def languages(run: RunFacts) -> str:
    """English → German"""
    return f"{language(run.config.source).name} → {language(run.config.target).name}"


def status(run: RunFacts) -> str:
    """How far training has come; empty when it is done."""
    if run.is_finished:
        return ""
    trained = run.logged("train")
    if not trained:
        return "Training has not logged a step yet."
    last, train = trained[-1], run.config.train
    step, elapsed_s = last["step"], last.get("elapsed_s", 0.0)
    if train.max_steps is None:
        assert train.budget_s is not None  # the config has either
        left_s, of = train.budget_s - elapsed_s, f", with a budget of {train.budget}"
    else:
        left_s, of = elapsed_s / step * (train.max_steps - step), f" of {train.max_steps:,}"
    left = f", about {console.duration(left_s)} left" if left_s > 0 else ""
    return f"Not finished: step {step:,}{of}{left}."


def model_facts(run: RunFacts) -> list[Fact]:
    """The sizes of the model and of its vocabulary."""
    model, tokenizer = run.config.model, run.config.tokenizer
    sizes = run.manifest["vocab_sizes"]
    shared = "shared by both languages" if tokenizer.shared else "source and target"
    facts = [
        Fact(
            "Languages",
            languages(run),
            f"{run.config.source} → {run.config.target}",
        ),
        Fact(
            "Architecture",
            f"{model.n_encoder_layers} encoder and {model.n_decoder_layers} decoder layers, "
            f"width {model.d_model:,}, feed-forward {model.d_ff:,}, {model.n_heads} heads",
            f"{model.norm}-norm Transformer",
        ),
        Fact(
            "Vocabulary",
            f"{sizes[0]:,} pieces" if tokenizer.shared else f"{sizes[0]:,} and {sizes[1]:,} pieces",
            f"SentencePiece {tokenizer.type}, {shared}",
        ),
    ]
    if run.weights:
        facts.append(
            Fact(
                "Parameters",
                f"{run.weights.n_parameters:,}",
                f"{file_size(run.weights.size_bytes)} on disk",
            )
        )
    return facts


def training_facts(run: RunFacts) -> list[Fact]:
    """How it was trained, and how long that took."""
    trained, valid = run.logged("train"), run.logged("valid")
    facts = []
    if trained:
        last = trained[-1]
        passes = f"{last['epoch'] + 1:,} passes over the data" if "epoch" in last else ""
        facts.append(Fact("Steps", f"{last['step']:,}", passes))
    if trained and "elapsed_s" in trained[-1]:
        speeds = [record.get("tokens_per_s") for record in trained]
        known = [speed for speed in speeds if speed is not None]
        facts.append(
            Fact(
                "Training time",
                console.duration(trained[-1]["elapsed_s"]),
                f"{median(known):,.0f} tokens/s" if known else "",
            )
        )
    best = [record for record in valid if record.get("is_best")]
    if best:
        metric = run.config.train.best_metric
        score = best[-1].get(metric)
        facts.append(
            Fact(
                "Chosen checkpoint",
                f"step {best[-1]['step']:,}",
                "" if score is None else f"best validation {metric_name(metric)}: {score:.2f}",
            )
        )
    return facts


def tiles(run: RunFacts, table: ScoreTable) -> list[Fact]:
    """The few numbers that stand at the top of a page about one run."""
    found = []
    for test_set in table.test_sets[:2]:
        for row in test_set.rows:
            cell = row.cells[0] if row.cells else None
            if cell is not None:
                interval = f"\n{cell.interval}" if cell.interval else ""
                found.append(
                    Fact(metric_name(table.metrics[0]), cell.score, f"{test_set.name}{interval}")
                )
    pairs = Fact("Training pairs", rounded_count(run.manifest["n_train_pairs"]))
    size = [fact for fact in model_facts(run) if fact.name == "Parameters"]
    size = [Fact(fact.name, _in_short(run), fact.note) for fact in size]
    time = [fact for fact in training_facts(run) if fact.name == "Training time"]
    return [*found, *size, pairs, *time]


def _in_short(run: RunFacts) -> str:
    assert run.weights is not None
    return (
        rounded_count(run.weights.n_parameters).replace(" million", " M").replace(" billion", " G")
    )


def examples(comparisons: Sequence[SideBySide]) -> list[Example]:
    """A poor, a usual and a good translation of the first run: at three quantiles of chrF."""
    if not comparisons or comparisons[0].outputs[0].run != 0:
        return []
    output = comparisons[0].outputs[0]
    text = output.translated
    return [
        Example(grade, text.sources[i], text.references[i], text.translations[i], output.chrf[i])
        for grade, i in samples(text.sources, output.chrf).items()
    ]


def usage(run: RunFacts) -> dict[str, str]:
    """Commands that a reader can copy."""
    translated = run.translated
    sentence = translated[0].sources[0] if translated else "A sentence."
    translate, evaluate = (
        console.command("mtrain", word, run.path) for word in ("translate", "eval")
    )
    return {
        "command": f"{translate} input.txt -o output.txt\n"
        f"{translate}          # what you type, or a pipe\n"
        f"{evaluate}               # score it again",
        "python": f"import mtrain\n\ntranslator = mtrain.load({json.dumps(str(run.path))})\n"
        f"translator.translate([{sentence!r}])",
        "evaluate": evaluate,
    }


# -- scores ----------------------------------------------------------------------------------


def score_table(runs: Sequence[RunFacts]) -> ScoreTable:
    """What `eval` recorded, test set by test set, run by run."""
    own: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    other: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for number, run in enumerate(runs):
        for name, entry in run.scores.items():
            group = other if ScoreKey.parse(name).settings else own
            group.setdefault((name, entry.get("test_set_sha256", "")), []).append((number, entry))
    entries = [entry for _, _, entry in _entries(own, other)]
    metrics = list(dict.fromkeys(metric for entry in entries for metric in scored_metrics(entry)))
    return ScoreTable(
        metrics,
        [_scored_set(name, rows, metrics) for (name, _), rows in own.items()],
        [_scored_set(name, rows, metrics) for (name, _), rows in other.items()],
        _signatures(_entries(own, other), metrics),
    )


def scored_metrics(entry: Mapping[str, Any]) -> list[str]:
    """Which of the keys of a recorded test set are metrics; the others are facts."""
    return [key for key in entry if key in METRIC_NAMES]


def _entries(
    *groups: Mapping[tuple[str, str], Sequence[tuple[int, dict[str, Any]]]],
) -> list[tuple[str, int, dict[str, Any]]]:
    return [
        (name, run, entry)
        for group in groups
        for (name, _), rows in group.items()
        for run, entry in rows
    ]


def _scored_set(
    name: str, rows: Sequence[tuple[int, dict[str, Any]]], metrics: Sequence[str]
) -> ScoredSet:
    best = {metric: _best(metric, [entry for _, entry in rows]) for metric in metrics}
    return ScoredSet(
        name,
        [
            ScoreRow(
                run,
                [
                    _cell(entry.get(m), is_best=m in entry and entry[m]["score"] == best[m])
                    for m in metrics
                ],
                how_scored(entry),
                _contamination(entry),
            )
            for run, entry in rows
        ],
    )


def _best(metric: str, entries: Sequence[Mapping[str, Any]]) -> float | None:
    """The best score of several runs; None where there is nothing to compare."""
    scores = [float(entry[metric]["score"]) for entry in entries if metric in entry]
    if len(scores) < 2:
        return None
    return min(scores) if metric in LOWER_IS_BETTER else max(scores)


def _cell(score: Mapping[str, Any] | None, is_best: bool) -> Cell | None:
    if score is None:
        return None
    low, high = score.get("low"), score.get("high")
    interval = "" if low is None or high is None else f"{low:.2f}–{high:.2f}"
    return Cell(f"{score['score']:.2f}", interval, is_best)


def how_scored(entry: Mapping[str, Any]) -> str:
    """Checkpoint, decoding, sentences and time of a recorded score, in words."""
    parts = []
    if "sentences" in entry:
        parts.append(f"{entry['sentences']:,} sentences")
    if "checkpoint" in entry:
        parts.append(f"checkpoint {entry['checkpoint']}")
    decode = {k: v for k, v in entry.get("decode", {}).items() if v not in _UNREMARKABLE}
    parts += [f"{key.removesuffix('_size').replace('_', ' ')} {v}" for key, v in decode.items()]
    if "seconds" in entry:
        parts.append(f"{entry['seconds']:,} s")
    return ", ".join(parts)


def _contamination(entry: Mapping[str, Any]) -> str:
    if not entry.get("contaminated"):
        return ""
    return f"contaminated: {entry.get('n_leaked', 0):,} training pairs give sentences of it away"


def _signatures(
    entries: Sequence[tuple[str, int, dict[str, Any]]], metrics: Sequence[str]
) -> list[Fact]:
    """Each signature once for each metric; several only where scores cannot be compared."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, _, entry in entries:
        for metric in metrics:
            if metric in entry:
                signature = entry[metric].get("signature", "none recorded")
                found.setdefault((metric, signature), []).append(name)
    n_signatures = {m: sum(metric == m for metric, _ in found) for m in metrics}
    return [
        Fact(
            metric_name(metric),
            signature,
            ", ".join(dict.fromkeys(names)) if n_signatures[metric] > 1 else "",
        )
        for (metric, signature), names in found.items()
    ]


# -- how to make it again -------------------------------------------------------------------


def side_by_side(
    groups: Sequence[Sequence[Fact]],
) -> list[tuple[str, list[Fact | None]]]:
    """Lists of facts of several runs as rows: a name, and what each run has under it."""
    by_name = [{fact.name: fact for fact in group} for group in groups]
    names = dict.fromkeys(name for facts in by_name for name in facts)
    return [(name, [facts.get(name) for facts in by_name]) for name in names]


def config_differences(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """The keys in which the configs of several runs differ, and each run's value."""
    flat = [dict(_leaves(run.config.model_dump(mode="json"))) for run in runs]
    keys = dict.fromkeys(key for leaves in flat for key in leaves)
    rows = [
        (key, ["—" if leaves.get(key) is None else str(leaves[key]) for leaves in flat])
        for key in keys
    ]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a nested config."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, f"{key}.{i}")
    else:
        yield key, value


def environments(run: RunFacts) -> list[list[Fact]]:
    """Versions and machines that the run was trained with, one after the other."""
    known = run.run.read_environments()
    return [[Fact(name, value) for name, value in entry.items()] for entry in known]


def hashes(run: RunFacts) -> list[Fact]:
    """sha256 of what went in and what came out."""
    found = []
    if run.weights:
        found.append(Fact(run.weights.name, run.weights.sha256, "the weights, as a file"))
    files = run.manifest.get("files", {})
    found += [Fact(name, sha256, "") for name, sha256 in files.items() if name.endswith(".model")]
    found += [
        Fact(f"data/{name}", sha256, "source and reference text")
        for name, sha256 in run.manifest["split_sha256"].items()
    ]
    return found


def again(run: RunFacts) -> dict[str, Any]:
    """All that is needed to train the run once more."""
    config = run.run.config.read_text(encoding="utf-8")
    path = f"runs/{run.config.name}-again"
    return {
        "commands": "\n".join(
            (
                console.command("mtrain", "train", run.run.config, "--set", f"run={path}"),
                console.command("mtrain", "eval", path),
            )
        ),
        "config": config,
        "hashes": hashes(run),
        "environments": environments(run),
    }
