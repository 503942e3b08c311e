"""Quality against speed: what is recommended, what is kept, and what becomes the default."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TrainedRun, invoke
from hypothesis import given
from hypothesis import strategies as st

from mtrain.config.load import read_run_config
from mtrain.evaluation import sweep as stage
from mtrain.evaluation.sweep import TOLERANCE, Point, recommend
from mtrain.run import RunDir


def point(beam: int, bleu: float, chrf: float, speed: float, engine: str = "mtrain") -> Point:
    return Point(beam, 1.0, "fp32", engine, bleu, chrf, speed)  # type: ignore[arg-type]


def chosen(points: list[Point]) -> Point:
    (found,) = (p for p in recommend(points) if p.recommended)
    return found


def test_the_fastest_that_is_nearly_as_good_is_recommended():
    points = [point(1, 28.0, 50.0, 99), point(2, 29.8, 50.9, 60), point(8, 30.0, 51.0, 10)]
    assert chosen(points).beam == 2


def test_both_metrics_count():
    points = [point(2, 30.0, 50.0, 60), point(4, 29.9, 50.9, 30), point(8, 29.9, 51.0, 10)]
    assert chosen(points).beam == 4


def test_other_engines_are_only_compared_with():
    points = [point(4, 30.0, 51.0, 30), point(4, 35.0, 55.0, 99, "ctranslate2")]
    assert chosen(points).engine == "mtrain"


def test_where_none_is_near_both_bests_the_least_shortfall_decides():
    points = [point(2, 30.0, 50.0, 60), point(4, 29.5, 50.6, 30), point(8, 29.0, 51.0, 10)]
    assert chosen(points).beam == 4


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "fp32", ["fp32", "float32", "int8"]),
        ("cpu", "bf16", ["bf16", "fp32", "float32", "int8"]),
        ("cuda", "bf16", ["bf16", "fp32", "float16", "int8_float16"]),
        ("cuda", "fp32", ["fp32", "float16", "int8_float16"]),  # T4: has no bf16
    ],
)
def test_the_precisions_are_those_that_are_fast_here(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, expected: list[str]
) -> None:
    monkeypatch.setattr(stage, "find_spec", lambda name: name)
    engine = SimpleNamespace(precision=precision)
    first: Any = SimpleNamespace(
        device=torch.device(device), engine=engine, with_ctranslate2=lambda name: None
    )
    assert [name for name, _ in stage._systems(first, "run", None, device)] == expected


SCORES = st.floats(20, 40)


@given(st.lists(st.tuples(SCORES, SCORES, st.floats(1, 1000)), min_size=1, max_size=12))
def test_nothing_is_both_faster_and_near_the_best(found):
    points = [point(i + 1, *numbers) for i, numbers in enumerate(found)]
    best = max(p.bleu for p in points), max(p.chrf for p in points)
    taken = chosen(points)
    for other in points:
        is_near = max(best[0] - other.bleu, best[1] - other.chrf) <= TOLERANCE
        assert not (is_near and other.sentences_per_s > taken.sentences_per_s)


@pytest.fixture
def run(trained_run, tmp_path, monkeypatch):
    """A copy of the trained run, and a sweep that is soon done."""
    monkeypatch.setattr(stage, "N_SENTENCES", 12)
    monkeypatch.setattr(stage, "N_WARM_UP", 1)
    monkeypatch.setattr(stage, "BEAMS", (1, 2))
    monkeypatch.setattr(stage, "PENALTIES", (0.0,))
    return Path(shutil.copytree(trained_run.path, tmp_path / "run"))


def test_a_sweep_is_shown_drawn_and_kept(run, tmp_path):
    done = invoke("eval", run, "--sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    points = [Point(**entry) for entry in json.loads((run / "sweep.json").read_text("utf-8"))]
    assert len(done.stdout.splitlines()) == 1 + len(points)
    ours = {(p.beam, p.length_penalty) for p in points if p.engine == "mtrain"}
    assert ours == {(1, 1.0), (2, 1.0), (2, 0.0)}
    assert sum(p.recommended for p in points) == 1
    assert all(p.sentences_per_s > 0 for p in points)
    assert all(p.chrf > 50 for p in points)
    assert read_run_config(RunDir.open(run)).decode.beam_size == 5  # as before


def test_the_recommendation_becomes_the_default_when_told_to(run, tmp_path, monkeypatch):
    before = read_run_config(RunDir.open(run))
    done = invoke("eval", run, "--sweep", "--adopt", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (taken,) = (entry for entry in json.loads(done.stdout) if entry["recommended"])
    after = read_run_config(RunDir.open(run))
    assert after.decode.beam_size == taken["beam"] != before.decode.beam_size
    assert after.decode.length_penalty == taken["length_penalty"]
    assert after.model_copy(update={"decode": before.decode}) == before
    changes = [r for r in RunDir.open(run).read_metrics() if r["kind"] == "config"]
    assert {"key": "decode.beam_size", "old": 5, "new": taken["beam"], "kind": "config"} in changes


@pytest.mark.parametrize(
    "arguments",
    [
        ["--adopt"],
        ["--sweep", "--split", "valid"],
        ["--sweep", "--sacrebleu", "wmt20"],
        ["--sweep", "--beam-size", "2"],
        ["--sweep", "--tag", "<news>"],
    ],
)
def test_what_does_not_go_together_is_said(
    trained_run: TrainedRun, tmp_path: Path, arguments: list[str]
) -> None:
    done = invoke("eval", trained_run.path, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "--sweep" in done.stderr
