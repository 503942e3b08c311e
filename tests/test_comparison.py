"""Paired tests are sacreBLEU's to the last digit, and say in words what they mean."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.significance import PairedTest

from mtrain.errors import DataError
from mtrain.evaluation.comparison import Comparison, PairedScore, compare

WORDS = re.findall(r"\w+", "Der kleine Hund läuft schnell über die grüne Wiese und bellt laut")
LABELS = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}


def make_systems(n_lines: int = 60) -> tuple[list[str], list[str], list[str]]:
    """A system, a slightly worse baseline, and references."""
    rng = random.Random(3)
    references = [" ".join(rng.sample(WORDS, rng.randint(4, 11))) for _ in range(n_lines)]

    def worse(share: float) -> list[str]:
        return [" ".join(w for w in r.split() if rng.random() > share) for r in references]

    return worse(0.2), worse(0.25), references


def run_sacrebleu(directory: Path, *options: str) -> str:
    """What its command line prints of `baseline` and `system` against `ref`."""
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "baseline", "system"]
    environment = {key: value for key, value in os.environ.items() if key != "SACREBLEU_SEED"}
    done = subprocess.run(
        [*command, "-m", "bleu", "chrf", "ter", *options],
        cwd=directory,
        env=environment | {"NO_COLOR": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def compared():
    """The system against the baseline."""
    return compare(*make_systems(), "de")


@pytest.fixture(autouse=True)
def another_seed(monkeypatch):
    """In the environment, which would change sacreBLEU's trials."""
    monkeypatch.setenv("SACREBLEU_SEED", "1")


@pytest.fixture
def files(tmp_path):
    """A directory with `system`, `baseline` and `ref`."""
    for name, lines in zip(("system", "baseline", "ref"), make_systems(), strict=True):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return tmp_path


def test_one_metric_alone_is_tested_as_among_others(compared):
    alone = compare(*make_systems(), "de", metrics=["bleu"])
    assert alone.metrics == {"bleu": compared.metrics["bleu"]}


def test_every_digit_of_approximate_randomization(compared, files):
    baseline, system = json.loads(run_sacrebleu(files, "--paired-ar", "-f", "json"))
    for name, label in LABELS.items():
        score = compared.metrics[name]
        assert score.score == system[label]["score"]
        assert score.baseline_score == baseline[label]["score"]
        assert score.p_randomization == system[label]["p_value"]
        assert "ar:10000|seed:12345" in score.signature_randomization


def test_every_digit_of_the_paired_bootstrap(compared, files):
    """Its JSON cannot be printed (sacreBLEU 2.6); its table shows four digits of p."""
    printed = run_sacrebleu(files, "--paired-bs", "-w", "8", "-f", "text")
    p_values = [float(p) for p in re.findall(r"p = (\d\.\d+)", printed)]
    assert p_values == [round(score.p_bootstrap, 4) for score in compared.metrics.values()]
    for score in compared.metrics.values():
        assert f"{score.score:.8f}" in printed
        assert f"{score.baseline_score:.8f}" in printed
        assert score.signature_bootstrap in printed.replace("\n", "")


def test_lowercase_and_tokenizer_are_those_of_the_scores(monkeypatch):
    monkeypatch.setattr(PairedTest, "_DEFAULT_SAMPLES", {"ar": 10, "bs": 10})
    found = compare(["A b c d"], ["a c"], ["a b c d"], "zh", lowercase=True).metrics
    assert "ar:10|seed:12345|case:lc|eff:no|tok:zh" in found["bleu"].signature_randomization
    assert found["bleu"].score == pytest.approx(100)
    assert found["chrf"].score == pytest.approx(100)


def test_equal_systems_do_not_differ(monkeypatch):
    monkeypatch.setattr(PairedTest, "_DEFAULT_SAMPLES", {"ar": 10, "bs": 10})
    system, _, references = make_systems()
    comparison = compare(system, system, references, "de")
    assert all(score.difference == 0 for score in comparison.metrics.values())
    assert comparison.sentences()[0] == "BLEU equals that of the baseline"


def test_json_has_the_difference(compared):
    found: dict[str, Any] = compared.to_json()
    assert found["baseline"] == "the baseline"
    assert found["ter"]["difference"] == found["ter"]["score"] - found["ter"]["baseline_score"] < 0


@pytest.mark.parametrize(
    ("metric", "score", "baseline", "p", "sentence"),
    [
        (
            "bleu",
            41.2,
            40.8,
            0.21,
            "the difference of 0.4 BLEU to runs/b is within noise, p = 0.21",
        ),
        ("bleu", 41.2, 39.1, 0.012, "2.1 BLEU better than runs/b, p = 0.012"),
        ("chrf", 60.0, 61.5, 0.0001, "1.5 chrF2 worse than runs/b, p < 0.001"),
        ("ter", 40.0, 43.0, 0.001, "3.0 TER better than runs/b, p = 0.001"),
        ("bleu", 40.0, 40.0, 1.0, "BLEU equals that of runs/b"),
    ],
)
def test_what_it_means(metric, score, baseline, p, sentence):
    paired = PairedScore(score, baseline, p, p, "", "")
    assert Comparison("runs/b", {metric: paired}).sentences() == [sentence]


def test_both_tests_must_agree():
    assert not PairedScore(41.0, 40.0, 0.04, 0.06, "", "").is_significant
    assert PairedScore(41.0, 40.0, 0.04, 0.05, "", "").is_significant
    unsure = Comparison("b", {"bleu": PairedScore(45.5, 40.0, 0.0001, 0.09, "", "")})
    assert unsure.sentences() == ["the difference of 5.5 BLEU to b is within noise, p = 0.09"]


def test_unequal_counts_are_refused():
    with pytest.raises(DataError, match="2 hypotheses cannot be scored against 1 references"):
        compare(["a"], ["a", "b"], ["a"], "de")
