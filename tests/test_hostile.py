"""Runs and files from strangers, and damaged ones: they may translate, and do nothing else."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import invoke
from safetensors import safe_open
from safetensors.torch import save_file

from mtrain.config.sections import TokenizerConfig
from mtrain.data.tokenizer import train_tokenizers
from mtrain.errors import CheckpointError, DataError
from mtrain.evaluation import evaluate, results
from mtrain.evaluation.evaluate import evaluate_run
from mtrain.export.single_file import export_safetensors
from mtrain.run import RunDir
from mtrain.single_file import RUN_FILES
from mtrain.storage import sha256_of, write_json


@pytest.fixture(scope="module")
def evaluated(trained_run, tmp_path_factory):
    """A copy of the run that has everything: scores, translations, attention, an exported file."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained_run.path, run)
    evaluate_run(run)
    return run


@pytest.fixture
def run(evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def exported(evaluated, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    export_safetensors(evaluated, path)
    return path


def rewrite(path: Path, target: Path, change: Callable[[dict, dict], None]) -> Path:
    """A copy of an exported file whose tensors and note were changed."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        note = json.loads(file.metadata()["mtrain"])
    change(tensors, note["facts"])
    save_file(tensors, target, {"mtrain": json.dumps(note)})
    return target


@pytest.mark.parametrize(
    "name",
    [
        *("../up", "/tmp/mtrain-was-here", "data/../../up", "..", ".", "", "a\0b", "config.yaml/x"),
        *("checkpoints/step-1", "metrics.jsonl", "data/valid.source", "~/x", "data\\manifest.json"),
    ],
)
def test_a_single_file_writes_no_other_files_than_a_run_has(exported, tmp_path, monkeypatch, name):
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(unpacked))

    def add(tensors: dict, facts: dict) -> None:
        content = b"mine"
        tensors[f"file:{name}"] = torch.tensor(list(content), dtype=torch.uint8)
        facts["files"][name] = "0" * 64

    hostile = rewrite(exported, tmp_path / "hostile.safetensors", add)
    with pytest.raises(CheckpointError, match="which is not a file of a run"):
        RunDir.open(hostile)
    assert list(unpacked.rglob("*")) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"unpacked", "hostile.safetensors"}


def _wrong_hash(tensors: dict, facts: dict) -> None:
    facts["files"]["tokenizer.model"] = "0" * 64


def _missing(tensors: dict, facts: dict) -> None:
    del tensors["file:config.yaml"]


def _no_bytes(tensors: dict, facts: dict) -> None:
    tensors["file:config.yaml"] = tensors["file:config.yaml"].float()


def _no_mapping(tensors: dict, facts: dict) -> None:
    facts["files"] = ["config.yaml"]


@pytest.mark.parametrize("change", [_wrong_hash, _missing, _no_bytes, _no_mapping])
def test_nothing_is_written_before_all_is_checked(exported, tmp_path, monkeypatch, change):
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(unpacked))
    with pytest.raises(CheckpointError, match="is damaged"):
        RunDir.open(rewrite(exported, tmp_path / "hostile.safetensors", change))
    assert list(unpacked.rglob("*")) == []


def test_an_exported_file_holds_only_what_may_be_in_one(exported):
    with safe_open(exported, "pt") as file:
        files = {name[5:] for name in file.keys() if name.startswith("file:")}  # noqa: SIM118
    assert files <= RUN_FILES


@pytest.mark.parametrize("name", ["../../up", "/tmp/x", "a/b", "", ".hidden", "a" * 300, "a\0b"])
def test_a_split_name_leads_nowhere(run, name):
    manifest = json.loads((run / "data" / "manifest.json").read_text(encoding="utf-8"))
    manifest["splits"] = ["valid", name]
    write_json(run / "data" / "manifest.json", manifest)
    with pytest.raises(DataError, match=r"cannot read .*manifest.json"):
        evaluate_run(run, ["valid"])


@pytest.mark.parametrize(
    "facts", [{"checkpoint": "../../up"}, {"checkpoint": 3}, {"step": "x"}, {"files": []}]
)
def test_what_a_checkpoint_says_of_itself_is_checked(run, facts):
    """The name of the checkpoint becomes part of the names of files."""
    weights = run / "model.safetensors"
    rewrite(weights, weights, lambda _, known: known.update(facts))
    with pytest.raises(CheckpointError, match="its header cannot be read"):
        results.own_checkpoint(RunDir(run))
    for command in ("translate", "eval", "report"):
        done = invoke(command, run, cwd=run, stdin="ba\n")
        assert (done.returncode, "is damaged" in done.stderr) == (4, True)


def test_translations_that_are_a_link_are_not_followed(run, tmp_path, capsys):
    shutil.rmtree(run / "translations")
    (tmp_path / "elsewhere").mkdir()
    (run / "translations").symlink_to(tmp_path / "elsewhere")
    [result] = evaluate_run(run, ["valid"]).values()
    assert result.scores["bleu"].score > 0
    assert "are not kept in the run" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_config_of_a_run_loads_no_comet_model(run, monkeypatch, capsys):
    def fail(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(evaluate, "comet_score", fail)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    assert "comet: null" in text
    (run / "config.yaml").write_text(text.replace("comet: null", "comet: evil/model; rm -rf x"))
    evaluate_run(run, ["valid"])
    assert "add --comet 'evil/model; rm -rf x'" in capsys.readouterr().err


def test_a_tokenizer_is_held_to_its_hash(run):
    path = run / "tokenizer.model"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = invoke("translate", run, cwd=run, stdin="ba de\n")
    assert done.returncode == 3
    assert "tokenizer.model is damaged" in done.stderr


def test_a_tokenizer_that_is_none(run):
    manifest = json.loads((run / "data" / "manifest.json").read_text(encoding="utf-8"))
    for content in (b"", b"\x0a\xff\xff\xff\xff\x0f", b"text"):
        (run / "tokenizer.model").write_bytes(content)
        manifest["files"]["tokenizer.model"] = sha256_of(run / "tokenizer.model")
        write_json(run / "data" / "manifest.json", manifest)
        done = invoke("translate", run, cwd=run, stdin="ba\n")
        assert (done.returncode, "Traceback" in done.stderr) == (3, False)


# -- sizes ---------------------------------------------------------------------------------------


def test_no_memory_is_taken_for_sizes_that_the_weights_do_not_have(run):
    config = (run / "config.yaml").read_text(encoding="utf-8")
    for key, value in {"d_model": 65_536, "d_ff": 1_048_576, "n_encoder_layers": 300}.items():
        huge = re.sub(rf"\b{key}: \d+", f"{key}: {value}", config)
        assert huge != config
        (run / "config.yaml").write_text(huge, encoding="utf-8")
        done = invoke("translate", run, cwd=run, stdin="ba\n")
        assert (done.returncode, "made for another model" in done.stderr) == (4, True)


def test_a_tokenizer_of_another_size_than_the_model(run, tmp_path):
    """Its ids would lie beyond the embeddings, or those of the model beyond its pieces."""
    texts = [(f"{i} {'abcdefgh'[i % 8]}", f"{i}") for i in range(500)]
    train_tokenizers(TokenizerConfig(vocab_size=400), lambda: texts, 500, tmp_path, seed=1)
    shutil.copy(tmp_path / "tokenizer.model", run / "tokenizer.model")
    manifest = json.loads((run / "data" / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["tokenizer.model"] = sha256_of(run / "tokenizer.model")
    write_json(run / "data" / "manifest.json", manifest)
    done = invoke("translate", run, cwd=run, stdin="ba\n")
    assert (done.returncode, "pieces" in done.stderr) == (4, True)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "scores.json"])
def test_pipes_and_devices_are_not_read(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    for command in (["translate", run], ["report", run]):
        assert invoke(*command, cwd=run, stdin="ba\n").returncode in (0, 3, 4)
    (run / name).unlink()
    (run / name).symlink_to("/dev/zero")
    for command in (["translate", run], ["report", run]):
        assert invoke(*command, cwd=run, stdin="ba\n").returncode in (0, 3, 4)
