"""The report: every chapter from files alone, text that stays text, and a browser that agrees."""

import base64
import gzip
import hashlib
import json
import shutil
import threading
import time
from dataclasses import asdict
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import invoke
from sacrebleu.metrics.chrf import CHRF
from safetensors.numpy import save_file

from mtrain.config.load import dump_config, read_run_config
from mtrain.config.root import Config
from mtrain.decoding.attention import AttentionMaps
from mtrain.errors import CheckpointError, DataError, UsageError
from mtrain.evaluation.analysis import TrainingText, analyse
from mtrain.evaluation.breakdown import Calibration
from mtrain.evaluation.metrics import score_all
from mtrain.evaluation.sweep import Point
from mtrain.report import scores
from mtrain.report.attention import Selection, attention_page
from mtrain.report.chapters import examples, rounded_count
from mtrain.report.charts import (
    MOST_POINTS,
    Line,
    length_chart,
    line_chart,
    short_number,
    thinned,
)
from mtrain.report.facts import put_side_by_side, read_runs
from mtrain.report.findings import calibration_sentence
from mtrain.report.page import watch_report, write_model_card, write_report
from mtrain.run import RunDir
from mtrain.storage import write_json

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 1">',
    "<!--<script> nul \x00 escape \x1b[31m separators \u2028\u2029\x85 override \u202e end",
    "{{ 7 * 7 }} {% raw %} & &amp; 'single' \"double\" `tick` | pipe",
]
PAIRS = [
    ("A dog is asleep.", "Ein Hund schläft.", "Ein Hund schläft."),
    ("Two cats eat 12 fish.", "Zwei Katzen fressen 12 Fische.", "Zwei Katzen essen Fische."),
    ("The man reads.", "Der Mann liest.", "Der Mann liest."),
    ("Good night!", "Gute Nacht!", "Good night!"),
    *((text, text, text) for text in HOSTILE),
]
RIVALS = {"last": 25.5, "avg": 26.25}  # chrF of candidates at the end of training
SOURCES, REFERENCES, OUTPUTS = map(list, zip(*PAIRS, strict=True))


def make_run(
    directory: Path,
    outputs: list[str] | None = None,
    learning_rate: float = 0.001,
    sources: list[str] = SOURCES,
    references: list[str] = REFERENCES,
    n_steps: int = 0,
) -> Path:
    """A run as training and `eval` leave it, but for a model that can translate."""
    config = Config.model_validate(
        {
            "name": "tiny",
            "source": "en",
            "target": "de",
            "data": {"train": ({"source": "train.en", "target": "train.de"},)},
            "train": {"max_steps": 200, "optim": {"learning_rate": learning_rate}},
        }
    )
    data = directory / "data"
    data.mkdir(parents=True)
    (directory / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (directory / "tokenizer.model").write_bytes(b"pieces")
    manifest = MANIFEST | {"splits": ["valid", "news"], "split_sha256": {}}
    for split in ("valid", "news"):
        digest = write_split(data, split, sources, references)
        manifest["split_sha256"][split] = digest
    (data / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_jsonl(directory / "metrics.jsonl", metrics(n_steps))
    write_weights(directory, {"step": 200})
    if outputs is not None:
        write_translations(directory, "news", sources, references, outputs)
    return directory


def write_weights(run: Path, facts: dict[str, Any]) -> None:
    note = {"format": 1, "sha256": "0", "facts": facts}
    weights = {"a": np.zeros((300, 8), np.float32), "b": np.zeros(100, np.float32)}
    save_file(weights, run / "model.safetensors", {"mtrain": json.dumps(note)})


def write_split(data: Path, name: str, sources: list[str], references: list[str]) -> str:
    texts = ["".join(f"{line}\n" for line in side).encode() for side in (sources, references)]
    (data / f"{name}.source").write_bytes(texts[0])
    (data / f"{name}.target").write_bytes(texts[1])
    return sha256(texts[0] + b"\0" + texts[1]).hexdigest()


def write_translations(
    run: Path, split: str, sources: list[str], references: list[str], outputs: list[str]
) -> None:
    directory = run / "translations"
    directory.mkdir(exist_ok=True)
    text = "".join(f"{line}\n" for line in outputs)
    (directory / f"{split}.best.txt").write_bytes(text.encode())
    write_jsonl(
        directory / f"{split}.best.jsonl",
        [
            {"source": source, "reference": reference, "translation": output, "score": -0.25}
            for source, reference, output in zip(sources, references, outputs, strict=True)
        ],
    )
    opened = RunDir(run)
    training = TrainingText.of(opened)
    found = analyse(opened.read_split(split), outputs, read_run_config(opened), training)
    write_json(directory / f"{split}.best.analysis.json", asdict(found))
    manifest = json.loads((run / "data" / "manifest.json").read_text(encoding="utf-8"))
    found_scores = score_all(outputs, references, "de")
    entry: dict[str, Any] = {name: asdict(score) for name, score in found_scores.items()} | {
        "sentences": len(outputs),
        "checkpoint": "best",
        "decode": {"beam_size": 5, "length_penalty": 1.0},
        "seconds": 1.5,
        "test_set_sha256": manifest["split_sha256"][split],
        "translations": f"{split}.best",
    }
    path = run / "scores.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | {split: entry}), encoding="utf-8")


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def metrics(n_steps: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(50, n_steps + 1, 50):
        records.append(
            {
                "kind": "train",
                "step": step,
                "epoch": step // 100,
                "nll": 6 - step / 100,
                "grad_norm": None if step == 100 else 0.5,  # it was not finite
                "learning_rate": step / 1e5,
                "tokens_per_s": 12345.6,
                "elapsed_s": step / 2,
            }
        )
        valid = {"loss": 5 - step / 100, "bleu": step / 10, "chrf": step / 8, "is_best": True}
        records.append({"kind": "valid", "step": step} | valid)
    return records


MANIFEST: dict[str, Any] = {
    "source": "en",
    "target": "de",
    "n_train_pairs": 28_993,
    "vocab_sizes": [8000, 8000],
    "length_ratio": {"mean": 1.07, "std": 0.21},
    "table": [
        {"split": "train", "reason": "read", "pairs": 29_000},
        {"split": "train", "reason": "repeated <b>", "pairs": 7},
        {"split": "train", "reason": "kept", "pairs": 28_993},
        {"split": "news", "reason": "kept", "pairs": 8},
    ],
    "files": {"tokenizer.model": "ab" * 32, "train.ids": "cd" * 32},
}


_WEIGHTS = np.full((1, 2, 3, 3), 1 / 3, np.float32)
MAPS = AttentionMaps(["▁A", "</script>", "</s>"], ["▁Ein", "x", "</s>"], *[_WEIGHTS] * 3)


class Page(HTMLParser):
    """The elements and the text that a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.blocks: list[str] = []  # of its scripts
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":  # in one, as the parser of the library says
            self.blocks.append(data)
        else:
            self.text += data

    def chapters(self) -> list[str]:
        """The ids of the chapters; the navigation has the same."""
        ids = [str(attrs["id"]) for tag, attrs in self.elements if tag == "section"]
        links = [str(attrs.get("href")) for tag, attrs in self.elements if tag == "a"]
        assert links[: len(ids)] == [f"#{id}" for id in ids]
        return ids


def unpacked(block: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(block)))


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "tiny", OUTPUTS)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A run with everything in it, and its page."""
    run = make_run(tmp_path_factory.mktemp("runs") / "tiny", OUTPUTS, n_steps=200)
    written = write_report([run])
    assert written == run / "report.html"
    return run, written.read_text(encoding="utf-8")


# -- the page --------------------------------------------------------------------------------


def test_the_page_tells_what_the_run_is(page):
    run, html = page
    found = Page(html)
    for expected in (
        "A Transformer with 2,500 parameters, trained on 28,993 sentence pairs, that translates "
        "English into German.",
        "4 heads",
        "28,993",
        "repeated <b>",
        "0.02 %",
        "tok:13a",
        "step 200",
        "learning_rate: 0.001",
        f"mtrain translate {run}",
        "ab" * 32,
        "12,346 tokens/s",
    ):
        assert expected in found.text, expected
    score = json.loads((run / "scores.json").read_text(encoding="utf-8"))["news"]["bleu"]
    assert f"{score['score']:.2f}" in found.text
    assert f"{score['low']:.2f}–{score['high']:.2f}" in found.text
    assert sum(tag == "svg" for tag, _ in found.elements) == 6


def test_the_page_is_whole_without_a_network(page):
    for html in (page[1], attention_page([MAPS])):
        check_nothing_is_loaded(html)


def check_nothing_is_loaded(html: str) -> None:
    found = Page(html)
    for tag, attributes in found.elements:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    policy = next(a["content"] for _, a in found.elements if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    digest = hashlib.sha256(found.blocks[-1].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_no_sentence_can_run_or_break_the_page(page):
    found = Page(page[1])
    scripts = [attributes for tag, attributes in found.elements if tag == "script"]
    assert [attributes.get("type") for attributes in scripts] == ["application/gzip", None]
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
    assert "hacked" not in found.blocks[-1]
    assert not set(page[1]) & {chr(code) for code in (*range(9), 11, 12, *range(14, 32), 127)}
    sentences = unpacked(found.blocks[0])
    assert sentences["sources"] == SOURCES
    assert sentences["outputs"][0]["texts"] == OUTPUTS


def test_hostile_names_are_text_as_well(tmp_path):
    run = make_run(tmp_path / "<script>alert(1)<" / "script>", OUTPUTS)
    page = Page(write_report([run], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert "alert(1)" in page.text


def test_sentences_are_scored_as_sacrebleu_does(run):
    [comparison] = put_side_by_side(read_runs([run]))
    expected = [
        CHRF().sentence_score(output, [reference]).score
        for output, reference in zip(OUTPUTS, REFERENCES, strict=True)
    ]
    assert comparison.outputs[0].chrf == pytest.approx(expected)
    block = unpacked(comparison.block())
    assert block["outputs"][0]["chrf"] == [round(score, 1) for score in expected]
    assert block["outputs"][0]["scores"] == [-0.25] * len(OUTPUTS)
    assert comparison.block() == comparison.block()


def test_the_examples_stand_at_the_quartiles(tmp_path):
    references = [f"eins zwei drei vier fünf {i:03d}" for i in range(101)]
    outputs = [text[: 8 + i // 8] for i, text in enumerate(references)]
    run = make_run(tmp_path / "run", outputs, sources=references, references=references)
    comparisons = put_side_by_side(read_runs([run]))
    chrf = comparisons[0].outputs[0].chrf
    grades = {grade: chrf[line] for grade, line in examples(comparisons).items()}
    ranked = sorted(chrf)
    assert grades == {"good": ranked[75], "typical": ranked[50], "poor": ranked[25]}


# -- several runs ----------------------------------------------------------------------------


@pytest.fixture
def _without_paired_tests(monkeypatch):
    """They take a second."""
    monkeypatch.setattr(scores, "_MOST_TESTED", 0)


@pytest.mark.usefixtures("_without_paired_tests")
def test_runs_side_by_side(run, tmp_path):
    better = make_run(tmp_path / "runs" / "better", REFERENCES, learning_rate=0.002)
    written = write_report([run, better], tmp_path / "both.html")
    page = Page(written.read_text(encoding="utf-8"))
    assert "tiny and better" in page.text
    assert "2 models side by side: English → German." in page.text
    assert f"mtrain eval {better} --against {run}" in page.text
    assert "train.optim.learning_rate" in page.text
    block = unpacked(page.blocks[0])
    assert [output["run"] for output in block["outputs"]] == [0, 1]
    assert block["outputs"][1]["chrf"][0] == 100.0
    assert page.text.count("28,993") == 1  # the same data is told once


def test_test_sets_of_one_name_and_other_text_stay_apart(run, tmp_path):
    other = make_run(tmp_path / "other", ["x"], sources=["one"], references=["eins"])
    first, second = put_side_by_side(read_runs([run, other]))
    assert (first.name, second.name) == ("news", "news")
    assert [output.run for output in first.outputs] == [0]
    assert [output.run for output in second.outputs] == [1]


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    other = make_run(tmp_path / "old" / "tiny", OUTPUTS)
    assert [facts.label for facts in read_runs([run, other])] == [str(run), str(other)]
    with pytest.raises(UsageError, match="named twice"):
        read_runs([run, run / ".." / "tiny"])


def test_whether_a_difference_is_chance(run, tmp_path):
    other = make_run(tmp_path / "runs" / "other", OUTPUTS)
    page = Page(write_report([run, other], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "news, other: BLEU equals that of tiny." in page.text


# -- what is wrong, and where ----------------------------------------------------------------


def test_faults_lead_to_their_sentences(page):
    found = Page(page[1])
    links = [a["href"] for tag, a in found.elements if tag == "a" and "flag=" in (a["href"] or "")]
    assert "#sentences?set=set-0&flag=numbers_lost&sort=worst" in links
    faults = unpacked(found.blocks[0])["outputs"][0]["faults"]
    assert faults["numbers_lost"] == {"lines": [1], "worst": [[1, "12 missing"]]}
    assert "In news, no fault is more frequent than in the references." in found.text  # it is one


def test_faults_of_several_sentences_are_said_in_short(tmp_path):
    sources = [f"Cat {n} eats {n} fish." for n in range(12, 20)]
    references = [f"Katze {n} frisst {n} Fische." for n in range(12, 20)]
    outputs = ["Katze frisst Fische." for _ in sources]
    run = make_run(tmp_path / "tiny", outputs, sources=sources, references=references)
    page = Page(write_report([run], tmp_path / "page.html").read_text(encoding="utf-8"))
    faults = "more frequent than in the references: lost a number 100.0% (references 0.0%)."
    assert f"Faults in news, {faults}" in page.text


def test_contaminated_scores_say_so(run):
    entries = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    entries["news"] |= {"contaminated": True, "n_leaked": 1234}
    (run / "scores.json").write_text(json.dumps(entries), encoding="utf-8")
    page = Page(write_report([run]).read_text(encoding="utf-8"))
    assert "contaminated: 1,234 training pairs contain sentences of this test set" in page.text
    assert "The scores of news are too good" in page.text


def test_what_the_model_is_unsure_of():
    def calibration(correlation: float, low: float) -> Calibration:
        return Calibration(correlation, low, 0.9, [])

    assert " does not predict " in calibration_sentence(calibration(0.1, -0.2))
    assert " weakly predicts " in calibration_sentence(calibration(0.2, 0.1))
    assert " partly predicts " in calibration_sentence(calibration(0.5, 0.4))
    assert "score predicts " in calibration_sentence(calibration(0.7, 0.6))
    assert "(−0.20 to 0.90)" in calibration_sentence(calibration(0.1, -0.2))


# -- attention, speed, data ------------------------------------------------------------------


def test_attention_speed_and_the_data_report(run):
    write_json(run / "attention.json", [MAPS.to_json()])
    write_json(run / "sweep.json", [sweep_point(5, 1.0), sweep_point(1, 1.0), sweep_point(5, 0.6)])
    environment = {"torch": "2.99", "device": "cpu: <b>"}
    write_json(run / "environment.json", [environment])
    write_json(run / "data" / "report.json", DATA_REPORT)
    page = Page(write_report([run]).read_text(encoding="utf-8"))
    assert json.loads(page.blocks[1])["sentences"] == [MAPS.to_json()]
    assert (
        "Recommended: beam 5, length penalty 1.0, mtrain fp32, with BLEU 38.00, chrF2 60.00, "
        "1,234.5 sentences per second." in page.text
    )
    assert "All 3 settings" in page.text
    assert "2.99" in page.text
    assert "train.0: 10 read, 8 kept; not filtered by data.clean" in page.text
    assert "look at <this>" in page.text
    assert sum(tag == "svg" for tag, _ in page.elements) == 3  # BLEU and chrF2 by speed, lengths


def sweep_point(beam: int, penalty: float) -> dict[str, Any]:
    point = Point(beam, penalty, "fp32", "mtrain", 38.0, 60.0, 1234.5, (beam, penalty) == (5, 1.0))
    return asdict(point)


def test_an_exported_file_has_a_page(trained_run, tmp_path):
    file = tmp_path / "model.safetensors"
    done = invoke("export", trained_run.path, "--to", "safetensors", "-o", file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert invoke("report", file, cwd=tmp_path).returncode == 0
    page = Page((tmp_path / "model.report.html").read_text(encoding="utf-8"))
    [weights] = [facts.weights for facts in read_runs([trained_run.path])]
    assert weights is not None
    assert f"{weights.n_parameters:,}" in page.text
    assert page.chapters() == ["model", "scores", "training", "data", "repeat"]
    assert " adds " not in page.text


def test_lengths_are_drawn_to_the_end():
    svg = length_chart("Lengths", [[0, 5, 3] + [0] * 97 + [1], [0, 9]])
    assert "var(--run-1)" in svg
    assert "var(--run-2)" in svg


DATA_REPORT = {
    "entries": [
        {
            "name": "train.0",
            "n_read": 10,
            "n_kept": 8,
            "is_spared": True,
            "dropped": [
                {
                    "reason": "ratio",
                    "words": "of unlike length",
                    "n_pairs": 2,
                    "examples": [[HOSTILE[0], "b"]],
                }
            ],
        }
    ],
    "sides": {"source": {"lengths": [0, 3, 5]}, "target": {"lengths": [0, 4, 4]}},
    "repeated_targets": [{"text": "Ja.", "n_pairs": 3}],
    "near_matches": [{"split": "news", "n_pairs": 1, "examples": [["a b", "a c"]]}],
    "suspicions": ["look at <this>"],
}


# -- what is not there -----------------------------------------------------------------------


def test_a_run_that_has_just_begun(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "model.safetensors").unlink()
    (run / "metrics.jsonl").unlink()
    page = Page(write_report([run]).read_text(encoding="utf-8"))
    assert "Training has not logged a step yet." in page.text
    evaluate = f"mtrain eval {run}"
    assert f"{evaluate} adds scores, faults, weak spots, sentences and attention." in page.text
    assert f"{evaluate} --sweep adds quality against speed." in page.text
    assert page.chapters() == ["model", "scores", "training", "data", "repeat"]
    assert "No step has been logged yet." in page.text
    assert "Not scored yet." in write_model_card(run).read_text(encoding="utf-8")


def test_the_chosen_checkpoint_is_that_of_the_model_and_not_the_last_best(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    old = {"kind": "rival", "step": 100, "checkpoint": "last", "chrf": 24.5}  # before a resume
    rivals = [{"kind": "rival", "step": 200, "checkpoint": n, "chrf": c} for n, c in RIVALS.items()]
    write_jsonl(run / "metrics.jsonl", [old, *metrics(200), *rivals])
    write_weights(run, {"step": 200, "checkpoint": "avg", "valid": {"chrf": 26.25}})
    written = write_report([run]).read_text(encoding="utf-8")
    chosen = "avg, of step 200 chrF2 on valid: 26.25, against 25.00 of best, 25.50 of last"
    assert chosen in " ".join(Page(written).text.split())
    assert "reached epoch 3" in written


def test_the_checkpoint_of_a_run_in_training_is_the_best_so_far(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_steps=200)
    (run / "checkpoints").mkdir()
    (run / "model.safetensors").rename(run / "checkpoints" / "best-200.safetensors")
    page = Page(write_report([run]).read_text(encoding="utf-8"))
    assert "best, of step 200" in " ".join(page.text.split())


def test_progress_and_time_left_while_it_trains(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "model.safetensors").unlink()
    write_jsonl(run / "metrics.jsonl", metrics(150))
    page = Page(write_report([run]).read_text(encoding="utf-8"))
    assert "Not finished: step 150 of 200, about 25.0s left." in page.text


def test_a_run_of_an_older_version(run):
    (run / "translations" / "news.best.jsonl").unlink()
    (run / "translations" / "news.best.analysis.json").unlink()
    [comparison] = put_side_by_side(read_runs([run]))
    assert unpacked(comparison.block())["outputs"][0]["scores"] is None
    assert comparison.outputs[0].chrf[0] == 100.0
    page = Page(write_report([run]).read_text(encoding="utf-8"))
    assert f"mtrain eval {run} adds faults and weak spots." in page.text
    assert f"mtrain eval {run} --sweep adds quality against speed." in page.text
    chapters = ["model", "scores", "sentences", "training", "data", "repeat"]
    assert page.chapters() == chapters
    assert "Zwei Katzen" in json.dumps(unpacked(page.blocks[0]))


def test_translations_of_another_text_are_an_error(run):
    path = run / "translations" / "news.best.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("asleep", "awake"), encoding="utf-8")
    with pytest.raises(DataError, match="of another text"):
        write_report([run])


def test_damaged_weights_are_an_error(run):
    (run / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all!")
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        write_report([run])


# -- the command, the live view, the card ----------------------------------------------------


def test_the_command(run, tmp_path):
    done = invoke("report", run, "-o", "page.html", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "wrote page.html\n")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    done = invoke("report", run, "--markdown", cwd=tmp_path)
    assert done.stdout == f"wrote {run / 'model_card.md'}\n"
    assert invoke("report", run, "--markdown", "--watch", cwd=tmp_path).returncode == 2
    done = invoke("report", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "not a run directory" in done.stderr


def test_watching_ends_with_training(tmp_path):
    run = make_run(tmp_path / "run")
    weights = run / "model.safetensors"
    weights.rename(tmp_path / "aside")
    watching = threading.Thread(target=watch_report, args=([run], None, 0.01))
    watching.start()
    page = run / "report.html"
    wait_for(lambda: page.exists() and 'data-refresh="15"' in page.read_text(encoding="utf-8"))
    before = page.stat().st_mtime_ns
    write_jsonl(run / "metrics.jsonl", metrics(150))
    wait_for(lambda: page.stat().st_mtime_ns != before)
    (tmp_path / "aside").rename(weights)
    watching.join(timeout=20)
    assert not watching.is_alive()
    assert "data-refresh" not in page.read_text(encoding="utf-8")


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_model_card(run):
    card = write_model_card(run).read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: [en, de]\n")
    assert "translates English into German" in card
    assert "| repeated &lt;b&gt; | 7 |" in card
    assert "learning_rate: 0.001" in card
    assert f'mtrain.load("{run}")' in card
    rows = [line for line in card.split("\n") if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_the_model_card_says_what_is_wrong(tmp_path):
    sources = [f"The dog number {n} sleeps under the old tree." for n in range(40)]
    references = [f"Hund Nummer {n} schläft unter dem alten Baum." for n in range(40)]
    bad = make_run(tmp_path / "bad", sources, sources=sources, references=references)
    assert "- news: copied from the source 100.0 % [" in write_model_card(bad).read_text()
    good = make_run(tmp_path / "good", references, sources=sources, references=references)
    assert "- news: none\n\n## Data" in write_model_card(good).read_text()


def test_hostile_sentences_in_a_model_card(tmp_path):
    run = make_run(tmp_path / "run", HOSTILE * 2, sources=HOSTILE * 2, references=HOSTILE * 2)
    card = write_model_card(run).read_text(encoding="utf-8")
    table = [
        line for line in card.split("\n") if line.startswith(("| good", "| typical", "| poor"))
    ]
    assert len(table) == 3
    assert not any("<" in line for line in table)


# -- pictures and words ----------------------------------------------------------------------


def test_a_chart_takes_its_colours_from_the_page():
    svg = line_chart("Loss <b>", [Line(0, [1, 2], [3, 4]), Line(7, [1, 2], [4, 5], True)])
    assert "var(--run-1)" in svg
    assert "var(--run-2)" in svg  # six colours, then again
    assert 'aria-label="Loss &lt;b&gt;"' in svg
    for foreign in ("<style", "#fe", "#fd", "font-family", "<?xml", "http://purl"):
        assert foreign not in svg
    assert svg == line_chart("Loss <b>", [Line(0, [1, 2], [3, 4]), Line(7, [1, 2], [4, 5], True)])


def test_long_curves_are_thinned_to_means():
    x, y = thinned(range(10 * MOST_POINTS), [1.0, 3.0] * (5 * MOST_POINTS))
    assert len(x) == MOST_POINTS
    assert x[0] == 4.5
    assert set(y) == {2.0}
    assert thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_words_for_numbers():
    assert [short_number(n) for n in (0.0025, 1500, 20_000, 3e6)] == ["0.0025", "1.5k", "20k", "3M"]
    assert [rounded_count(n) for n in (28_993, 1_965_568)] == ["28,993", "1.97 million"]


# -- in a browser ----------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, where there is one and playwright to drive it."""
    playwright = pytest.importorskip("playwright.sync_api")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.usefixtures("_without_paired_tests")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(browser, tmp_path, width):
    run = make_run(tmp_path / "runs" / "tiny", OUTPUTS, n_steps=200)
    better = make_run(tmp_path / "runs" / "better", REFERENCES, n_steps=150)
    written = write_report([run, better], tmp_path / "page.html")
    page = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(written.as_uri())
    page.wait_for_selector("dl.sentence bdi >> nth=8")
    assert page.inner_text("#count").startswith("8 of 8 sentences · tiny: mean chrF ")
    assert page.evaluate("document.documentElement.scrollWidth") == width

    texts = page.evaluate("[...document.querySelectorAll('#list bdi')].map((e) => e.textContent)")
    assert texts[4 * 4] == HOSTILE[0]
    assert "nul ␀ escape ␛[31m" in texts[4 * 6]
    assert page.evaluate("document.querySelectorAll('#list script, #list img').length") == 0

    page.fill("#by-text", "FISCHE")
    assert page.inner_text("#count").startswith("1 of 8 sentences")
    assert page.inner_text("#list .other") == "essen"
    page.fill("#by-text", "")
    page.click("#faults a >> nth=0")
    page.wait_for_function("document.querySelector('#by-flag').value !== ''")
    assert page.input_value("#by-sort") == "worst"
    assert page.inner_text("#list .flag >> nth=0")
    page.select_option("#by-flag", "differ")
    assert page.inner_text("#count").startswith("2 of 8 sentences")
    page.select_option("#by-flag", "")
    page.select_option("#by-sort", "chrf-up")
    assert page.inner_text("#list .head >> nth=0") == "sentence 4"
    page.select_option("#by-against", "first")
    assert page.inner_text("#list dl >> nth=0 >> .other") == "Gute Nacht"
    assert page.evaluate("window.hacked") is None
    page.emulate_media(media="print")
    assert not page.is_visible("nav")
    assert page.evaluate("getComputedStyle(document.querySelector('.sentence')).display") == "grid"
    assert complaints == []
    page.close()


@pytest.mark.slow
def test_attention_in_a_browser(browser, run, tmp_path):
    write_json(run / "attention.json", [MAPS.to_json()] * 2)
    write_report([run], tmp_path / "report.html")
    selection = Selection(("cross", "decoder"), 1, (1, 2))
    (tmp_path / "attention.html").write_text(attention_page([MAPS], selection), encoding="utf-8")
    for name, n_pictures in (("report", 3), ("attention", 4)):  # a mean and two heads, of one kind
        page = browser.new_page(viewport={"width": 390, "height": 800})
        complaints: list[str] = []
        page.on("console", lambda message, seen=complaints: seen.append(message.text))
        page.on("pageerror", lambda error, seen=complaints: seen.append(str(error)))
        page.goto((tmp_path / f"{name}.html").as_uri())
        assert page.locator(".maps svg").count() == n_pictures
        assert page.inner_text("#attention-target") == "→ Einx"
        assert page.locator(".maps svg >> nth=0 >> text=</script>").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.hover(".maps svg .frame >> nth=0", force=True)
        assert page.inner_text("#attention-reading").endswith("“x” looks at “</script>”: 0.33")
        page.select_option("#attention-heads", "2")
        page.select_option("#attention-kind", "decoder")
        assert page.inner_text("#attention-maps figcaption") == "head 2"
        assert page.locator(".maps path.masked").count() == 1
        assert complaints == []
        page.close()
