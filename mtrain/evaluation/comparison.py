"""Is one system better than another, or is it chance? sacreBLEU's paired tests in plain words.

Both tests estimate how often a difference this large would occur if the two systems were equally
good: approximate randomisation swaps outputs between them at random (10,000 trials), the paired
bootstrap resamples test sets (1,000 samples). Numbers equal those of `sacrebleu REF -i BASELINE
SYSTEM --paired-ar` and `--paired-bs` to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sacrebleu.metrics.base import Metric
from sacrebleu.significance import PairedTest, Result

from mtrain.config.literals import METRIC_NAMES
from mtrain.evaluation.metrics import (
    METRICS,
    References,
    check_counts,
    composed,
    fixed_seed,
    make_metric,
    reference_streams,
)

SIGNIFICANT = 0.05  # significance level
LOWER_IS_BETTER = {"ter"}


@dataclass(frozen=True, slots=True)
class PairedScore:
    """One metric of a system and of its baseline, in percent."""

    score: float
    baseline_score: float
    p_randomization: float
    p_bootstrap: float
    signature_randomization: str
    signature_bootstrap: str

    @property
    def difference(self) -> float:
        """System minus baseline, whichever direction is better."""
        return self.score - self.baseline_score

    @property
    def p(self) -> float:
        """The larger of both p values: on few sentences, or few that differ, one is too small."""
        return max(self.p_randomization, self.p_bootstrap)

    @property
    def is_significant(self) -> bool:
        """True if both tests agree that the difference is not chance."""
        return self.p <= SIGNIFICANT


@dataclass(frozen=True, slots=True)
class Comparison:
    """A system against a baseline on one test set."""

    baseline: str  # its run directory or file
    metrics: Mapping[str, PairedScore]

    def to_json(self) -> dict[str, Any]:
        """`baseline`, and metric -> the two scores, their difference, both p values, signatures."""
        scores = {
            name: {"difference": score.difference, **asdict(score)}
            for name, score in self.metrics.items()
        }
        return {"baseline": self.baseline, **scores}

    def sentences(self) -> list[str]:
        """The result in words, one sentence per metric."""
        return [_sentence(name, score, self.baseline) for name, score in self.metrics.items()]


def compare(
    hypotheses: Sequence[str],
    baseline: Sequence[str],
    references: References,
    target_language: str,
    tokenize: str = "auto",
    lowercase: bool = False,
    *,
    baseline_name: str = "the baseline",
    metrics: Sequence[str] = METRICS,
) -> Comparison:
    """Test whether `hypotheses` differ from `baseline` by more than chance."""
    check_counts(len(baseline), len(hypotheses))
    streams = reference_streams(references, len(hypotheses))
    made = {name: make_metric(name, target_language, tokenize, lowercase) for name in metrics}
    systems: list[tuple[str, Sequence[str]]] = [
        ("baseline", composed(baseline)),
        ("system", composed(hypotheses)),
    ]
    by_randomization = _paired_test("ar", systems, streams, made)
    by_bootstrap = _paired_test("bs", systems, streams, made)
    scores = {}
    for name, (old, new, signature) in by_randomization.items():
        _, resampled, signature_bootstrap = by_bootstrap[name]
        assert new.p_value is not None
        assert resampled.p_value is not None
        scores[name] = PairedScore(
            score=float(new.score),
            baseline_score=float(old.score),
            p_randomization=float(new.p_value),
            p_bootstrap=float(resampled.p_value),
            signature_randomization=signature,
            signature_bootstrap=signature_bootstrap,
        )
    return Comparison(baseline_name, scores)


def _paired_test(
    test_type: str,
    systems: list[tuple[str, Sequence[str]]],
    references: list[list[str]],
    metrics: dict[str, Metric],
) -> dict[str, tuple[Result, Result, str]]:
    """sacreBLEU's test of all metrics on the same samples, as its command line does it.

    Returns the results of baseline and system, and the signature: kind of test, trials and seed.
    """
    with fixed_seed():
        signatures, results = PairedTest(systems, metrics, references, test_type)()
    outcomes = {}
    for ours, theirs in zip(metrics, signatures, strict=True):  # bleu and BLEU, chrf and chrF2
        baseline, system = results[theirs]
        assert isinstance(baseline, Result)
        assert isinstance(system, Result)
        outcomes[ours] = baseline, system, signatures[theirs].format()
    return outcomes


def _sentence(metric: str, score: PairedScore, baseline: str) -> str:
    label, size = METRIC_NAMES[metric], abs(score.difference)
    p = f"p = {score.p:.2g}" if score.p >= 0.001 else "p < 0.001"
    if score.difference == 0:
        return f"{label} equals that of {baseline}"
    if not score.is_significant:
        return f"the difference of {size:.1f} {label} to {baseline} is within noise, {p}"
    is_better = (score.difference > 0) != (metric in LOWER_IS_BETTER)
    return f"{size:.1f} {label} {'better' if is_better else 'worse'} than {baseline}, {p}"
