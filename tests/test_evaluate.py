"""Validation, `eval` and the scoring of a given file: one code path, equal numbers, kept scores."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtrain.config import Config, dump_config, read_run_config
from mtrain.decoding.translate import Translation
from mtrain.errors import DataError, UsageError
from mtrain.evaluation import evaluate
from mtrain.evaluation.evaluate import (
    Decoding,
    Evaluation,
    GivenFiles,
    evaluate_hypotheses,
    evaluate_run,
    evaluate_split,
    scores_and_facts,
)
from mtrain.evaluation.metrics import score_all
from mtrain.evaluation.summary import to_json
from mtrain.model.weights import digest
from mtrain.run import RunDir, write_json

SOURCES = [f"A man buys {number} red apples." for number in range(30)]
REFERENCES = [f"Ein Mann kauft {number} rote Äpfel." for number in range(30)]
TRANSLATIONS = [
    line.replace("rote", "grüne") if i % 3 else line for i, line in enumerate(REFERENCES)
]


@dataclass
class Table:
    """A translator that looks everything up, and remembers how it was asked."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=lambda: TRANSLATIONS)
    precision: str = "fp32"
    model: torch.nn.Module = field(default_factory=lambda: torch.nn.Linear(1, 1))

    def translate_detailed(
        self,
        lines: list[str],
        beam_size: int | None = None,
        length_penalty: float | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> list[Translation]:
        self.asked.append({"beam_size": beam_size, "length_penalty": length_penalty})
        table = dict(zip(SOURCES, self.outputs, strict=True))
        if progress:
            progress(len(lines))
        return [Translation(line, table[line], -len(line) / 100, []) for line in lines]


def evaluate_files(run: Path, source: Path, reference: Path) -> dict[str, Evaluation]:
    """Translate one pair of files."""
    return evaluate_run(run, files=[GivenFiles(reference, source)])


def evaluate_hypothesis(run: Path, hypothesis: Path, reference: Path) -> dict[str, Evaluation]:
    """Score one hypothesis file without its source."""
    return evaluate_hypotheses(run, [GivenFiles(reference, hypothesis=hypothesis)])


def make_run(path: Path, splits: list[str], **sections: Any) -> RunDir:
    """A run directory that holds all but a model."""
    run = RunDir(path)
    config = {
        "name": "toy",
        "source": "en",
        "target": "de",
        "data": {
            "train": {"source": "a", "target": "b"},
            "test": {name: {"source": "a", "target": "b"} for name in splits if name != "valid"},
        },
        "decode": {"beam_size": 3, "length_penalty": 0.7},
    }
    run.data.mkdir(parents=True)
    run.weights.touch()
    run.config.write_text(yaml.safe_dump(config | sections), encoding="utf-8")
    run.config.write_text(dump_config(read_run_config(run)), encoding="utf-8")
    texts = ["".join(f"{line}\n" for line in side).encode() for side in (SOURCES, REFERENCES)]
    for name in splits:
        (run.data / f"{name}.source").write_bytes(texts[0])
        (run.data / f"{name}.target").write_bytes(texts[1])
    digest = hashlib.sha256(b"\0".join(texts)).hexdigest()
    manifest = {"splits": splits, "split_sha256": dict.fromkeys(splits, digest)}
    write_json(run.manifest, manifest | {"files": {}, "length_ratio": {"mean": 1.0, "std": 0.1}})
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "runs" / "toy", ["valid", "flickr", "news"])


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    """Stands for the translator of every run."""
    table = Table()
    monkeypatch.setattr(evaluate, "_open_translator", lambda run, decoding: table)
    monkeypatch.setattr(evaluate, "keep_attention", lambda *arguments: None)  # it has no model
    return table


@pytest.fixture
def config(run: RunDir) -> Config:
    return read_run_config(run)


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def test_all_test_sets_are_scored_and_kept(run: RunDir, table: Table) -> None:
    results = evaluate_run(run.path)
    assert list(results) == ["flickr", "news"]
    assert results["flickr"].scores == score_all(TRANSLATIONS, REFERENCES, "de")
    assert results["flickr"].hypotheses == TRANSLATIONS
    assert table.asked == [{"beam_size": 3, "length_penalty": 0.7}] * 2
    kept = run.translations / "news.best.txt"
    assert kept.read_text(encoding="utf-8").split("\n") == [*TRANSLATIONS, ""]
    recorded = run.read_scores()
    assert recorded["news"].pop("translations") == "news.best"
    assert recorded["news"] == scores_and_facts(results["news"])


def test_the_json_object_of_the_contract(run: RunDir, table: Table) -> None:
    found = json.loads(json.dumps(to_json({"toy": evaluate_run(run.path, ["flickr"])}, {})))
    assert list(found) == ["flickr"]
    expected = score_all(TRANSLATIONS, REFERENCES, "de")
    for metric in ("bleu", "chrf", "ter"):
        score = expected[metric]
        assert found["flickr"].pop(metric) == {
            "score": score.score,
            "low": score.low,
            "high": score.high,
            "signature": score.signature,
        }
    assert found["flickr"].pop("seconds") >= 0
    assert found["flickr"].pop("diagnosis")["n_sentences"] == 30
    assert len(found["flickr"].pop("breakdown")["sentence_chrf"]) == 30
    assert found["flickr"] == {
        "sentences": 30,
        "checkpoint": "best",
        "checkpoint_sha256": digest(table.model.state_dict()),
        "decode": {
            "beam_size": 3,
            "length_penalty": 0.7,
            "length_penalty_form": "power",
            "precision": "fp32",
        },
        "test_set_sha256": run.read_split("flickr").sha256,
    }


def test_validation_eval_and_hypothesis_agree_to_the_last_digit(
    run: RunDir, table: Table, config: Config, tmp_path: Path
) -> None:
    validation = evaluate_split(table, run.read_split("valid"), config)  # type: ignore[arg-type]
    assert list(validation.scores) == ["bleu", "chrf"]
    assert validation.scores["bleu"].low is None
    evaluated = evaluate_run(run.path, ["valid"])["valid"]
    references = write_lines(tmp_path / "ref", REFERENCES)
    given = evaluate_hypothesis(run.path, run.translations / "valid.best.txt", references)["file"]
    files = evaluate_files(run.path, write_lines(tmp_path / "src", SOURCES), references)["file"]
    assert given.scores == evaluated.scores == files.scores
    assert files.facts["test_set_sha256"] == evaluated.facts["test_set_sha256"]
    assert all(asked == table.asked[0] for asked in table.asked)
    for metric, score in validation.scores.items():
        assert score.score == evaluated.scores[metric].score


def test_other_settings_are_kept_beside(run: RunDir, table: Table) -> None:
    evaluate_run(run.path, ["flickr"])
    other = Decoding(checkpoint="last", beam_size=1)
    evaluate_run(run.path, ["flickr"], decoding=other)
    evaluate_run(run.path, ["flickr"], decoding=other)
    evaluate_run(run.path, ["flickr"], decoding=Decoding(beam_size=3))  # the run's own
    assert table.asked[1] == {"beam_size": 1, "length_penalty": 0.7}
    scores = run.read_scores()
    assert list(scores) == ["flickr", "flickr[checkpoint=last,beam_size=1]"]
    beside = scores["flickr[checkpoint=last,beam_size=1]"]
    assert beside["checkpoint"] == "last"
    assert (beside["decode"]["beam_size"], beside["decode"]["length_penalty"]) == (1, 0.7)
    assert beside["translations"] == "flickr.last.beam_size=1"  # the own ones are not replaced
    assert (run.translations / "flickr.last.beam_size=1.txt").is_file()
    assert (run.translations / "flickr.best.txt").is_file()


def test_a_run_without_best_checkpoint_says_last(run: RunDir, table: Table) -> None:
    run.weights.unlink()
    assert evaluate_run(run.path, ["flickr"])["flickr"].facts["checkpoint"] == "last"
    assert (run.translations / "flickr.last.txt").is_file()


def test_files_leave_the_run_alone(run: RunDir, table: Table, tmp_path: Path) -> None:
    source, reference = tmp_path / "src.gz", write_lines(tmp_path / "ref", REFERENCES)
    source.write_bytes(gzip.compress("".join(f"{line}\r\n" for line in SOURCES).encode()))
    result = evaluate_files(run.path, source, reference)
    assert result["file"].scores == score_all(TRANSLATIONS, REFERENCES, "de")
    assert not run.scores.exists()
    assert not run.translations.exists()


def test_a_run_without_test_set_points_to_valid(tmp_path: Path, table: Table) -> None:
    run = make_run(tmp_path / "bare", ["valid"])
    with pytest.raises(UsageError, match="has no test set") as caught:
        evaluate_run(run.path)
    assert caught.value.fix is not None
    assert "--split valid" in caught.value.fix
    assert list(evaluate_run(run.path, ["valid"])) == ["valid"]


def test_an_unknown_split_names_the_known_ones(run: RunDir, table: Table) -> None:
    with pytest.raises(UsageError, match=r"`flicker` \(found: valid, flickr, news\)"):
        evaluate_run(run.path, ["flicker"])


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        evaluate_run(tmp_path)


def test_unequal_files_name_both_counts(run: RunDir, table: Table, tmp_path: Path) -> None:
    short = write_lines(tmp_path / "short", REFERENCES[:29])
    whole = write_lines(tmp_path / "whole", REFERENCES)
    with pytest.raises(DataError, match=r"short has 29 lines, but .*whole has 30"):
        evaluate_hypothesis(run.path, short, whole)
    with pytest.raises(DataError, match=r"whole has 30 lines, but .*short has 29"):
        evaluate_files(run.path, whole, short)
    assert table.asked == []  # found before anything was translated


def test_empty_and_broken_files(run: RunDir, tmp_path: Path) -> None:
    empty = write_lines(tmp_path / "empty", [])
    with pytest.raises(DataError, match="empty"):
        evaluate_hypothesis(run.path, empty, empty)
    latin = tmp_path / "latin1"
    latin.write_bytes("schön\nÄpfel\n".encode("latin-1"))
    with pytest.raises(DataError, match="latin1:1"):
        evaluate_hypothesis(run.path, latin, write_lines(tmp_path / "ref", ["a", "b"]))
    with pytest.raises(DataError, match=r"there is no file .*absent"):
        evaluate_hypothesis(run.path, tmp_path / "absent", empty)
    with pytest.raises(DataError, match="is a directory"):
        evaluate_hypothesis(run.path, tmp_path, empty)


def test_hypothesis_follows_the_config_and_loads_no_torch(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", ["valid"], target="zh", evaluate={"tokenize": "char", "lowercase": True}
    )
    hypothesis = write_lines(tmp_path / "hyp", ["ABC 小狗"])
    reference = write_lines(tmp_path / "ref", ["abc 小狗"])
    code = (
        "import json, pathlib, sys\n"
        "from mtrain.evaluation.evaluate import GivenFiles, evaluate_hypotheses\n"
        "from mtrain.evaluation.summary import to_json\n"
        "run, hypothesis, reference = map(pathlib.Path, sys.argv[1:])\n"
        "given = GivenFiles(reference, hypothesis=hypothesis)\n"
        "print(json.dumps(to_json({'': evaluate_hypotheses(run, [given])}, {})))\n"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, run.path, hypothesis, reference]
    done = subprocess.run(command, capture_output=True, check=True)
    scores = json.loads(done.stdout)["file"]
    assert scores["bleu"]["score"] == pytest.approx(100)
    assert "case:lc|eff:no|tok:char|" in scores["bleu"]["signature"]
    assert "norm:yes|punct:yes|asian:yes" in scores["ter"]["signature"]
    assert scores["sentences"] == 1


def test_notices_reach_the_user_once(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenised = write_lines(tmp_path / "tok", ["Ein Hund ."] * 20)
    evaluate_hypothesis(run.path, tokenised, tokenised)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: file: 20 of 20 hypotheses end in a period")
    assert lines[1].startswith("warning: file: 20 of 20 references end in a period")
