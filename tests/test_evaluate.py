"""Validation, `eval` and the scoring of a given file: one code path, equal numbers, kept scores."""

import gzip
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sacrebleu.significance import PairedTest

from mtrain.config.load import dump_config, read_run_config
from mtrain.data.catalogues import SacrebleuSource
from mtrain.data.cleaning import hash_text
from mtrain.data.files import StoredFile
from mtrain.data.store import Sentences, StoreWriter
from mtrain.decoding.engine import Search
from mtrain.decoding.translate import Translation
from mtrain.errors import DataError, MtrainError, UsageError
from mtrain.evaluation import evaluate, metrics
from mtrain.evaluation.analysis import ANALYSIS
from mtrain.evaluation.evaluate import (
    compare_with,
    evaluate_hypotheses,
    evaluate_run,
    evaluate_split,
)
from mtrain.evaluation.given import GivenFiles
from mtrain.evaluation.metrics import Score, score_all
from mtrain.evaluation.results import Evaluation
from mtrain.evaluation.summary import (
    Spread,
    mean_sentences,
    remarks,
    score_rows,
    spreads_of_seeds,
    to_json,
)
from mtrain.model.weights import digest, save_tensors
from mtrain.run import RunDir, TranslatedLine
from mtrain.storage import write_json

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
    engine: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(precision="fp32"))
    model: torch.nn.Module = field(default_factory=lambda: torch.nn.Linear(1, 1))

    def translate_detailed(
        self,
        lines: list[str],
        search: Search,
        progress: Callable[[int], object] | None = None,
    ) -> list[Translation]:
        self.asked.append({"beam_size": search.beam_size, "length_penalty": search.length_penalty})
        table = dict(zip(SOURCES, self.outputs, strict=True))
        if progress:
            progress(len(lines))
        return [Translation(line, table[line], -len(line) / 100, []) for line in lines]


def evaluate_files(run: Path, source: Path, reference: Path) -> dict[str, Evaluation]:
    """Translate one pair of files."""
    return evaluate_run(run, files=[GivenFiles((reference,), source)])


def evaluate_hypothesis(run: Path, hypothesis: Path, reference: Path) -> dict[str, Evaluation]:
    """Score one hypothesis file without its source."""
    return evaluate_hypotheses(run, [GivenFiles((reference,), hypothesis=hypothesis)])


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
    save_tensors(run.weights, {}, {"checkpoint": "best"})
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


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """Intervals in less time."""
    monkeypatch.setattr(metrics, "BOOTSTRAP_SAMPLES", 50)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "toy", ["valid", "flickr", "news"])


@pytest.fixture
def table(monkeypatch):
    """Stands for the translator of every run."""
    table = Table()
    monkeypatch.setattr(evaluate, "_open_translator", lambda *arguments: table)
    monkeypatch.setattr(evaluate, "keep_attention", lambda *arguments: None)  # it has no model
    return table


@pytest.fixture
def config(run):
    return read_run_config(run)


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def test_all_test_sets_are_scored_and_kept(run, table):
    results = evaluate_run(run.path)
    assert list(results) == ["flickr", "news"]
    assert results["flickr"].scores == score_all(TRANSLATIONS, REFERENCES, "de")
    assert results["flickr"].hypotheses == TRANSLATIONS
    assert table.asked == [{"beam_size": 3, "length_penalty": 0.7}] * 2
    kept = run.translations / "news.best.txt"
    assert kept.read_text(encoding="utf-8").split("\n") == [*TRANSLATIONS, ""]
    recorded = run.read_scores()
    assert recorded["news"].pop("translations") == "news.best"
    assert recorded["news"] == results["news"].to_json()


def test_the_json_object_of_the_contract(run, table):
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
        "normal_form": "NFC",
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


def test_validation_eval_and_hypothesis_agree_to_the_last_digit(run, table, config, tmp_path):
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


def test_other_settings_are_kept_beside(run, table):
    evaluate_run(run.path, ["flickr"])
    other: dict[str, Any] = {"checkpoint": "last", "beam_size": 1}
    evaluate_run(run.path, ["flickr"], **other)
    evaluate_run(run.path, ["flickr"], **other)
    evaluate_run(run.path, ["flickr"], beam_size=3)  # the run's own
    assert table.asked[1] == {"beam_size": 1, "length_penalty": 0.7}
    scores = run.read_scores()
    assert list(scores) == ["flickr", "flickr[checkpoint=last,beam_size=1]"]
    beside = scores["flickr[checkpoint=last,beam_size=1]"]
    assert beside["checkpoint"] == "last"
    assert (beside["decode"]["beam_size"], beside["decode"]["length_penalty"]) == (1, 0.7)
    assert beside["translations"] == "flickr.last.beam_size=1"  # the own ones are not replaced
    assert (run.translations / "flickr.last.beam_size=1.txt").is_file()
    assert (run.translations / "flickr.best.txt").is_file()


def test_weights_are_called_what_won(run, table):
    save_tensors(run.weights, {}, {"checkpoint": "avg"})
    for checkpoint in (None, "best", "avg"):
        evaluate_run(run.path, ["flickr"], checkpoint=checkpoint)
    called = {key: entry["checkpoint"] for key, entry in run.read_scores().items()}
    assert called == {"flickr": "avg", "flickr[checkpoint=best]": "best"}


def test_a_run_without_best_checkpoint_says_last(run, table):
    run.weights.unlink()
    assert evaluate_run(run.path, ["flickr"])["flickr"].facts["checkpoint"] == "last"
    assert (run.translations / "flickr.last.txt").is_file()


def test_files_leave_the_run_alone(run, table, tmp_path):
    source, reference = tmp_path / "src.gz", write_lines(tmp_path / "ref", REFERENCES)
    source.write_bytes(gzip.compress("".join(f"{line}\r\n" for line in SOURCES).encode()))
    result = evaluate_files(run.path, source, reference)
    assert result["file"].scores == score_all(TRANSLATIONS, REFERENCES, "de")
    assert not run.scores.exists()
    assert not run.translations.exists()


def test_a_run_without_test_set_points_to_valid(tmp_path, table):
    run = make_run(tmp_path / "bare", ["valid"])
    with pytest.raises(UsageError, match="has no test set") as caught:
        evaluate_run(run.path)
    assert caught.value.fix is not None
    assert "--split valid" in caught.value.fix
    assert list(evaluate_run(run.path, ["valid"])) == ["valid"]


def test_unequal_files_name_both_counts(run, table, tmp_path):
    short = write_lines(tmp_path / "short", REFERENCES[:29])
    whole = write_lines(tmp_path / "whole", REFERENCES)
    with pytest.raises(DataError, match=r"short has 29 lines, but .*whole has 30"):
        evaluate_hypothesis(run.path, short, whole)
    with pytest.raises(DataError, match=r"whole has 30 lines, but .*short has 29"):
        evaluate_files(run.path, whole, short)
    assert table.asked == []  # found before anything was translated


def test_empty_and_broken_files(run, tmp_path):
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


def test_hypothesis_follows_the_config(tmp_path):
    settings = {"tokenize": "char", "lowercase": True}
    run = make_run(tmp_path / "run", ["valid"], target="zh", evaluate=settings)
    hypothesis = write_lines(tmp_path / "hyp", ["ABC 小狗"])
    reference = write_lines(tmp_path / "ref", ["abc 小狗"])
    result = evaluate_hypothesis(run.path, hypothesis, reference)["file"]
    assert result.scores["bleu"].score == pytest.approx(100)
    assert "case:lc|eff:no|tok:char|" in result.scores["bleu"].signature
    assert "norm:yes|punct:yes|asian:yes" in result.scores["ter"].signature
    assert result.facts["sentences"] == 1


def test_notices_reach_the_user_once(run, tmp_path, capsys):
    tokenised = write_lines(tmp_path / "tok", ["Ein Hund ."] * 20)
    evaluate_hypothesis(run.path, tokenised, tokenised)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: file: 20 of 20 hypotheses end in a period")
    assert lines[1].startswith("warning: file: 20 of 20 references end in a period")


# -- several test sets, comparisons, seeds ---------------------------------------------------


def test_any_number_of_files(run, table, tmp_path):
    source, reference = (
        write_lines(tmp_path / "s", SOURCES),
        write_lines(tmp_path / "r", REFERENCES),
    )
    results = evaluate_run(run.path, files=[GivenFiles((reference,), source)] * 2)
    assert list(results) == ["file", "file2"]
    assert results["file"].scores == results["file2"].scores


def test_several_references_of_one_source(run, table, tmp_path, capsys):
    source = write_lines(tmp_path / "s", SOURCES)
    references = (
        write_lines(tmp_path / "r1", REFERENCES),
        write_lines(tmp_path / "r2", TRANSLATIONS),
    )
    [result] = evaluate_run(run.path, files=[GivenFiles(references, source)]).values()
    assert result.scores == score_all(TRANSLATIONS, [REFERENCES, TRANSLATIONS], "de")
    assert result.scores["bleu"].signature.startswith("nrefs:2|")
    assert result.facts["normal_form"] == "NFC"
    short = write_lines(tmp_path / "r3", REFERENCES[:-1])
    with pytest.raises(DataError, match=r"r3 has .* lines, but .*r1 has"):
        evaluate_run(run.path, files=[GivenFiles((*references, short), source)])


def test_a_hypothesis_with_its_source_is_diagnosed(run, tmp_path):
    files = [write_lines(tmp_path / "r", REFERENCES), write_lines(tmp_path / "s", SOURCES)]
    [result] = evaluate_hypotheses(run.path, [GivenFiles(files[:1], *files[1:], files[1])]).values()
    assert result.analysis is not None
    assert result.analysis.breakdown.calibration is None
    assert any("copied from the source" in text for text in remarks({"file": result}))


def test_a_test_set_of_sacrebleu(run, table, tmp_path, monkeypatch):
    asked = []

    def sides(source: SacrebleuSource) -> list[StoredFile]:
        entry = source.entry
        asked.append((entry.sacrebleu, entry.languages, source.reading.where))
        texts = {"src": SOURCES, "ref": REFERENCES}
        return [StoredFile(n, write_lines(tmp_path / n, text)) for n, text in texts.items()]

    monkeypatch.setattr(SacrebleuSource, "sides", sides)
    [name] = evaluate_run(run.path, sacrebleu=["wmt14/full"])
    assert name == "wmt14/full"
    assert asked == [("wmt14/full", ("en", "de"), "--sacrebleu wmt14/full")]


def test_an_unknown_test_set_of_sacrebleu(run, table):
    with pytest.raises(MtrainError, match="--sacrebleu wmt41: sacreBLEU has no test set `wmt41`"):
        evaluate_run(run.path, sacrebleu=["wmt41"])


@pytest.fixture
def few_trials(monkeypatch):
    monkeypatch.setattr(PairedTest, "_DEFAULT_SAMPLES", {"ar": 50, "bs": 50})


@pytest.mark.usefixtures("few_trials")
def test_against_another_run(run, table, tmp_path):
    other = make_run(tmp_path / "other", ["flickr"])
    table.outputs = REFERENCES
    evaluate_run(other.path)
    table.outputs = TRANSLATIONS
    results = evaluate_run(run.path, ["flickr"])
    n_asked = len(table.asked)
    compared = compare_with(run.path, results, other.path)["flickr"]
    assert len(table.asked) == n_asked  # the translations that it keeps are of the same weights
    assert compared.comparison is not None
    assert compared.comparison.metrics["bleu"].baseline_score == pytest.approx(100)
    [sentence, *_] = remarks({"flickr": compared})
    assert sentence.startswith("flickr: ")
    assert f"BLEU worse than {other.path}, p = " in sentence
    kept = run.read_scores()["flickr"]["against"]
    assert kept == compared.comparison.to_json()
    assert set(kept) == {"baseline", "bleu", "chrf", "ter"}

    table.model = torch.nn.Linear(2, 1)  # other weights: what is kept of them is not asked for
    compare_with(run.path, results, other.path)
    assert len(table.asked) == n_asked + 1


@pytest.mark.usefixtures("few_trials")
def test_against_a_file(run, table, tmp_path):
    theirs = write_lines(tmp_path / "theirs", TRANSLATIONS)
    compared = compare_with(run.path, evaluate_run(run.path, ["flickr"]), theirs)
    assert remarks(compared)[0] == f"flickr: BLEU equals that of {theirs}"
    with pytest.raises(UsageError, match="is one file, and 2 test sets are scored: flickr, news"):
        compare_with(run.path, evaluate_run(run.path), theirs)
    short = write_lines(tmp_path / "short", TRANSLATIONS[:-1])
    with pytest.raises(DataError, match="short has 29 lines, but the reference of flickr has 30"):
        compare_with(run.path, evaluate_run(run.path, ["flickr"]), short)


def test_against_a_run_with_another_text(run, table, tmp_path):
    other = make_run(tmp_path / "other", ["flickr"])
    replace_text(other, "flickr", REFERENCES[::-1])
    with pytest.raises(DataError, match=r"the test set `flickr` of .*other is another text"):
        compare_with(run.path, evaluate_run(run.path, ["flickr"]), other.path)
    with pytest.raises(DataError, match="is another text"):  # before any work
        evaluate.check_baseline([run.path], ["flickr"], other.path)
    evaluate.check_baseline([run.path], [], run.path)


def test_a_run_cannot_translate_a_missing_source(run, table, tmp_path):
    given = write_lines(tmp_path / "ref", REFERENCES)
    with pytest.raises(UsageError, match="only if it has a source"):
        compare_with(run.path, evaluate_hypothesis(run.path, given, given), run.path)


def test_mean_and_spread_of_seeds(run, table, tmp_path):
    other = make_run(tmp_path / "seed2", ["flickr"], train={"seed": 2})
    first = evaluate_run(run.path, ["flickr"])
    table.outputs = REFERENCES
    runs = {str(run.path): first, str(other.path): evaluate_run(other.path)}
    replace_config(run, other)
    means = spreads_of_seeds(runs)
    low = first["flickr"].scores["bleu"].score
    assert means["flickr"]["bleu"] == Spread(
        pytest.approx((low + 100) / 2), pytest.approx((100 - low) / 2**0.5), 2
    )
    [sentence] = mean_sentences(means)
    assert sentence.startswith("flickr: ")
    assert sentence.endswith("TER (mean and standard deviation of 2 runs)")
    found = to_json(runs, means)
    assert list(found["runs"]) == [str(run.path), str(other.path)]
    assert found["mean"]["flickr"]["bleu"]["n_runs"] == 2


def test_different_models_have_no_mean(run, table, tmp_path, capsys):
    other = make_run(tmp_path / "big", ["valid", "flickr", "news"], model={"preset": "big"})
    runs = {str(path): evaluate_run(path, ["flickr"]) for path in (run.path, other.path)}
    assert spreads_of_seeds(runs) == {}
    assert "they differ in `model.preset`, `model.d_model`" in capsys.readouterr().err
    assert spreads_of_seeds({str(run.path): runs[str(run.path)]}) == {}


# -- what is kept, and what is said of it ----------------------------------------------------


def replace_text(run: RunDir, name: str, references: list[str]) -> None:
    """Another reference, with its hash in the manifest."""
    texts = ["".join(f"{line}\n" for line in side).encode() for side in (SOURCES, references)]
    (run.data / f"{name}.target").write_bytes(texts[1])
    manifest = run.read_manifest()
    manifest["split_sha256"][name] = hashlib.sha256(b"\0".join(texts)).hexdigest()
    write_json(run.manifest, manifest)


def replace_config(run: RunDir, other: RunDir) -> None:
    """The same data in both configs; the seeds stay."""
    config = yaml.safe_load(other.config.read_text(encoding="utf-8"))
    config["data"] = yaml.safe_load(run.config.read_text(encoding="utf-8"))["data"]
    other.config.write_text(yaml.safe_dump(config), encoding="utf-8")


def test_translations_and_analysis_are_kept(run, table):
    [result] = evaluate_run(run.path, ["flickr"]).values()
    lines = run.read_translations("flickr")
    assert [line.translation for line in lines] == TRANSLATIONS
    assert lines[0] == TranslatedLine(SOURCES[0], REFERENCES[0], TRANSLATIONS[0], -0.24)
    kept = run.read_analysis("flickr")
    assert kept is not None
    assert ANALYSIS.validate_python(kept) == result.analysis
    with pytest.raises(DataError, match="has no translations of `news`"):
        run.read_translations("news")


def test_a_run_of_before_diagnostics_is_read(run, table):
    write_json(run.scores, {"flickr": {"bleu": {"score": 1.0}, "checkpoint": "best"}})
    run.translations.mkdir()
    write_lines(run.translations / "flickr.best.txt", TRANSLATIONS)
    line = run.read_translations("flickr")[1]
    assert line == TranslatedLine(SOURCES[1], REFERENCES[1], TRANSLATIONS[1], None)
    assert run.read_analysis("flickr") is None
    [result] = evaluate_run(run.path, ["flickr"]).values()
    assert result.analysis is not None
    assert "seen_in_training" in result.analysis.diagnosis.skipped
    assert "rarest_word" in result.analysis.breakdown.skipped
    assert "contaminated" not in result.facts  # nobody counted


def test_a_changed_test_set_is_told(run, table, capsys):
    evaluate_run(run.path, ["flickr"])
    assert "has changed" not in capsys.readouterr().err
    replace_text(run, "flickr", REFERENCES[::-1])
    evaluate_run(run.path, ["flickr"])
    assert "the text of `flickr` has changed since it was last scored" in capsys.readouterr().err
    evaluate_run(run.path, ["flickr"])
    assert "has changed" not in capsys.readouterr().err


@pytest.mark.parametrize("decontaminated", [False, True])
def test_contaminated_scores_say_so(run, table, capsys, decontaminated):
    facts = {"n_leaked": {"flickr": 7}, "decontaminated": decontaminated}
    write_json(run.manifest, run.read_manifest() | facts)
    [result] = evaluate_run(run.path, ["flickr"]).values()
    assert result.facts["contaminated"] is not decontaminated
    warned = "flickr is contaminated: 7 training pairs" in capsys.readouterr().err
    assert warned is not decontaminated
    assert run.read_scores()["flickr"]["contaminated"] is not decontaminated


def test_given_files_are_looked_up_in_the_training_data(run, table, tmp_path, capsys):
    hashes = np.array([hash_text(text) for text in REFERENCES[:4]], dtype="<u8")
    with StoreWriter(tmp_path, "train", (10, 10)) as writer:
        four = Sentences.of([[5]] * 4, np.dtype("<u2"))
        writer.extend(four, four, target_hashes=hashes)
        writer.close()
    write_json(run.manifest, run.read_manifest() | {"path": str(tmp_path)})
    source, reference = (
        write_lines(tmp_path / "s", SOURCES),
        write_lines(tmp_path / "r", REFERENCES),
    )
    [result] = evaluate_files(run.path, source, reference).values()
    assert result.facts["contaminated"]
    assert "4 of its references are in the training data" in capsys.readouterr().err
    assert result.analysis is not None
    [seen] = [d for d in result.analysis.diagnosis.diagnostics if d.name == "seen_in_training"]
    assert seen.reference_rate == pytest.approx(4 / 30)


def test_the_words_of_the_training_data(run, table):
    write_json(run.word_counts, {"source": {"a": 500, "man": 20, "buys": 5}, "target": {}})
    [result] = evaluate_run(run.path, ["flickr"]).values()
    assert result.analysis is not None
    [rarest] = [g for g in result.analysis.breakdown.groupings if g.name == "rarest_word"]
    assert [(group.label, group.n_sentences) for group in rarest.groups] == [("never", 30)]


# -- COMET -----------------------------------------------------------------------------------


def test_comet_that_is_not_installed_names_the_extra(run, table, monkeypatch):
    monkeypatch.setitem(sys.modules, "comet", None)
    with pytest.raises(UsageError, match="COMET is not installed") as caught:
        evaluate_run(run.path, ["flickr"], comet="Unbabel/wmt22-comet-da")
    assert caught.value.fix is not None
    assert 'pip install "mtrain[comet]"' in caught.value.fix
    assert table.asked == []  # found before anything was translated


@pytest.mark.parametrize("architectures", ["sm_90", "sm_100"])
def test_comet_stands_beside_the_others(
    run: RunDir, table: Table, monkeypatch: pytest.MonkeyPatch, architectures: str
) -> None:
    """With a stand-in for the library, which gives every sentence its length / 100."""

    class Model:
        def predict(self, lines: list[dict[str, str]], **options: Any) -> SimpleNamespace:
            assert lines[0] == {"src": SOURCES[0], "mt": TRANSLATIONS[0], "ref": REFERENCES[0]}
            assert options["gpus"] == (architectures == "sm_90")  # torch supports this GPU
            return SimpleNamespace(scores=[len(line["mt"]) / 100 for line in lines])

    answers = {"is_available": True, "get_device_capability": (9, 0), "get_device_name": "Test"}
    for name, answer in {**answers, "get_arch_list": [architectures]}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    library = SimpleNamespace(download_model=str, load_from_checkpoint=lambda path: Model())
    monkeypatch.setitem(sys.modules, "comet", library)
    monkeypatch.setattr(metrics, "version", lambda package: "2.2")
    [result] = evaluate_run(run.path, ["flickr"], comet="a/model").values()
    score = result.scores["comet"]
    assert score.score == pytest.approx(np.mean([len(text) for text in TRANSLATIONS]))
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.score < score.high
    assert score.signature == "nrefs:1|bs:50|seed:12345|model:a/model|version:2.2"
    assert [row[1] for row in score_rows({"flickr": result})][-1] == "COMET"


def test_rows_for_people(run):
    scores = {
        "bleu": Score(41.237, 40.0, 42.5, "nrefs:1|bs:1000"),
        "ter": Score(30.0, None, None, "nrefs:1"),
    }
    assert score_rows({"flickr": Evaluation(run.read_split("flickr"), scores, [])}) == [
        ("flickr", "BLEU", "41.24", "[40.00, 42.50]", "nrefs:1|bs:1000"),
        ("flickr", "TER", "30.00", "", "nrefs:1"),
    ]
