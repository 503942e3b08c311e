"""Sentences that stand for a test set, and what is kept of their attention."""

import json
import shutil

from conftest import invoke

from mtrain.decoding.attention import AttentionMaps
from mtrain.evaluation.results import samples


def test_samples_stand_at_the_quartiles_of_usual_sentences():
    sources = ["too short"] + [f"a sentence of {n} words" for n in range(101)] + ["long " * 30]
    chrf = [100.0] + [float(n) for n in range(101)] + [0.0]
    found = samples(sources, chrf)
    assert {grade: chrf[line] for grade, line in found.items()} == {
        "good": 75.0,
        "typical": 50.0,
        "poor": 25.0,
    }


def test_samples_of_a_test_set_without_usual_sentences() -> None:
    assert samples(["a"], [12.0]) == {"good": 0, "typical": 0, "poor": 0}


def test_eval_keeps_the_attention_of_the_samples(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run.path, run, ignore=shutil.ignore_patterns("attention.json"))
    done = invoke("eval", run, "--beam-size", "1", cwd=trained_run.directory)
    assert done.returncode == 0, done.stderr
    assert not (run / "attention.json").exists()  # not the run's own way of decoding
    done = invoke("eval", run, cwd=trained_run.directory)
    assert done.returncode == 0, done.stderr
    kept = [
        AttentionMaps.from_json(maps)
        for maps in json.loads((run / "attention.json").read_text(encoding="utf-8"))
    ]
    assert len(kept) == 3
    for maps in kept:
        assert maps.cross.shape == (1, 4, len(maps.written), len(maps.source))
        assert abs(maps.cross.sum(-1) - 1).max() < 0.05
