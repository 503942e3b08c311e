"""The output of `mtrain eval`: rows, sentences, JSON, and the mean of several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from mtrain import console
from mtrain.config.literals import METRIC_NAMES
from mtrain.config.load import read_run_config
from mtrain.config.root import Config
from mtrain.evaluation.diagnostics import Diagnostic
from mtrain.evaluation.metrics import Score
from mtrain.evaluation.results import Evaluation
from mtrain.run import RunDir

Results = Mapping[str, Evaluation]  # by test set

HEADER = ("test set", "metric", "score", "95 % interval", "signature")

_MAX_DETAIL = 70  # characters of an example
# Keys that may differ between runs that are seeds of one config.
_NOT_OF_THE_MODEL = {
    *("name", "run", "data.seed", "train.seed", "train.device", "train.threads"),
    "train.micro_batch_tokens",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over several runs."""

    mean: float
    std: float  # of a sample: n - 1 in the denominator
    n_runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value per run."""
        return cls(mean(values), stdev(values), len(values))


Spreads = Mapping[str, Mapping[str, Spread]]  # test set -> metric


def score_rows(results: Results) -> list[tuple[str, str, str, str, str]]:
    """Test set, metric, score, interval, signature, as text."""
    return [
        (name, METRIC_NAMES[metric], f"{score.score:.2f}", _interval(score), score.signature)
        for name, result in results.items()
        for metric, score in result.scores.items()
    ]


def remarks(results: Results) -> list[str]:
    """Sentences about comparisons and noteworthy diagnostics."""
    found = []
    for name, result in results.items():
        if n := result.facts.get("n_normalized"):
            found.append(
                f"{name}: {n:,} lines of references and hypotheses are not in Unicode's form NFC; "
                "all are compared in it"
            )
        if result.comparison is not None:
            found += [f"{name}: {sentence}" for sentence in result.comparison.sentences()]
        if result.analysis is not None:
            noteworthy = [d for d in result.analysis.diagnosis.diagnostics if d.is_noteworthy]
            found += [f"{name}: {_remark(diagnostic)}" for diagnostic in noteworthy]
    return found


def spreads_of_seeds(runs: Mapping[str, Results]) -> Spreads:
    """Mean and spread over runs of one config, for their common test sets; empty otherwise.

    `runs`: run directory -> its results. If the configs differ in more than their seeds, a message
    says so and nothing is averaged.
    """
    if len(runs) < 2:
        return {}
    differences = differing_keys([read_run_config(RunDir.open(path)) for path in runs])
    if keys := [key for key in differences if key not in _NOT_OF_THE_MODEL]:
        console.warn(
            f"these runs are no seeds of one config, so no mean is shown: they differ in "
            f"{', '.join(f'`{key}`' for key in keys)}"
        )
        return {}
    first, *others = runs.values()
    shared = [name for name in first if all(name in results for results in others)]
    return {
        name: {
            metric: Spread.of([results[name].scores[metric].score for results in runs.values()])
            for metric in first[name].scores
        }
        for name in shared
    }


def to_json(runs: Mapping[str, Results], means: Spreads) -> dict[str, Any]:
    """For one run: test set -> metric -> score, low, high, signature, and other facts.

    For several runs: `runs`: run directory -> that; `mean`: test set -> metric -> mean, std,
    n_runs.
    """
    objects = {
        path: {
            name: result.to_json() | ({} if result.analysis is None else asdict(result.analysis))
            for name, result in results.items()
        }
        for path, results in runs.items()
    }
    if len(runs) == 1:
        return next(iter(objects.values()))
    spreads = {
        name: {metric: asdict(spread) for metric, spread in metrics.items()}
        for name, metrics in means.items()
    }
    return {"runs": objects, "mean": spreads}


def mean_sentences(means: Spreads) -> list[str]:
    """One per test set: flickr: 41.20 ± 0.31 BLEU, ... (mean and standard deviation of 3 runs)"""
    sentences = []
    for name, metrics in means.items():
        scores = ", ".join(
            f"{spread.mean:.2f} ± {spread.std:.2f} {METRIC_NAMES[metric]}"
            for metric, spread in metrics.items()
        )
        n_runs = next(iter(metrics.values())).n_runs
        sentences.append(f"{name}: {scores} (mean and standard deviation of {n_runs} runs)")
    return sentences


def _remark(entry: Diagnostic) -> str:
    """2.1% of outputs: repeats itself (references: 0.1%), such as line 17: ..."""
    usual = "" if entry.reference_rate is None else f" (references: {entry.reference_rate:.1%})"
    line, detail = entry.worst[0].line + 1, entry.worst[0].detail
    if len(detail) > _MAX_DETAIL:
        detail = detail[:_MAX_DETAIL] + "..."
    return f"{entry.rate:.1%} of outputs: {entry.title}{usual}, such as line {line}: {detail}"


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f"[{score.low:.2f}, {score.high:.2f}]"


def differing_keys(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Dotted key -> the value in each config (None: it has none), where these differ."""
    flat = [dict(_leaves(config.model_dump(mode="json"))) for config in configs]
    keys = dict.fromkeys(key for leaves in flat for key in leaves)
    values = {key: [leaves.get(key) for leaves in flat] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that nested mappings and lists hold."""
    if isinstance(value, dict | list) and value:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
