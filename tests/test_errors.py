"""Bad input through the commands: one clear sentence, a way to mend it, and the right exit code."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import (
    invoke,
    mtrain_environment,
    run_mtrain,
    write_lines,
    write_reverse_task,
)

from mtrain import errors
from mtrain.config.sections import TokenizerConfig
from mtrain.data.tokenizer import train_tokenizers
from mtrain.errors import MtrainError, is_out_of_memory
from mtrain.storage import sha256_of, write_json

CONFIG = """\
name: tiny
source: en
target: de
data:
  train: {source: train.src, target: train.tgt}
  valid: {source: valid.src, target: valid.tgt}
tokenizer: {vocab_size: 300}
model: {preset: tiny}
"""


def fails(*arguments: str | Path, cwd: Path) -> tuple[int, str]:
    """Exit code and standard error of a command that must fail in sentences, without output."""
    done = invoke(*arguments, cwd=cwd)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def write_config(directory: Path, text: str = CONFIG) -> None:
    (directory / "tiny.yaml").write_text(text, encoding="utf-8")


# -- the exceptions --------------------------------------------------------------------------


def test_every_error_has_an_exit_code_of_the_contract():
    documented = {
        errors.UsageError: 2,
        errors.ConfigError: 2,
        errors.DeviceError: 2,
        errors.DataError: 3,
        errors.DownloadError: 3,
        errors.StorageError: 3,
        errors.ModelError: 4,
        errors.CheckpointError: 4,
        errors.OutOfMemoryError: 4,
        errors.NonFiniteError: 4,
    }
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, MtrainError)
    }
    assert classes - {MtrainError, errors.StoppedBySignal} == set(documented)
    assert {kind: kind.exit_code for kind in documented} == documented
    stopped = [errors.StoppedBySignal(n, "saved") for n in (signal.SIGINT, signal.SIGTERM)]
    assert [error.exit_code for error in stopped] == [130, 143]
    assert str(errors.DataError("no text", "add some")) == "error: no text\n  fix: add some"


# -- the command line and the config ---------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian", "x.yaml"],
        ["train"],
        ["train", "x.yaml", "--steps", "5"],
        ["eval", "r", "--device", "tpu"],
    ],
)
def test_a_command_that_does_not_exist(arguments, tmp_path):
    code, said = fails(*arguments, cwd=tmp_path)
    assert code == 2
    assert "--help" in said or "-h" in said


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_config_that_is_not_there(command, tmp_path):
    code, said = fails(command, "missing.yaml", cwd=tmp_path)
    assert code == 2
    assert "missing.yaml" in said


def test_all_problems_of_a_config_at_once_each_with_its_line(tmp_path):
    text = CONFIG.replace("target: de", "target: no").replace("{preset", "{droput: 0.1, preset")
    write_config(tmp_path, text + "decode: {beam_size: five}\nname: twice\n")
    code, said = fails("train", "tiny.yaml", cwd=tmp_path)
    assert code == 2
    for line, words in [(3, "quote"), (8, "model.dropout"), (9, "beam_size"), (10, "name")]:
        (start,) = [part for part in said.split("error: ") if part.startswith(f"tiny.yaml:{line}:")]
        assert words in start


def test_a_problem_of_an_override_is_located_there(tmp_path):
    write_config(tmp_path)
    code, said = fails("prepare", "tiny.yaml", "--set", "data.trian=x", cwd=tmp_path)
    assert code == 2
    assert "--set data.trian=x" in said
    assert "data.train" in said


# -- data ------------------------------------------------------------------------------------


def test_a_missing_file_of_text(tmp_path):
    write_config(tmp_path)
    code, said = fails("prepare", "tiny.yaml", cwd=tmp_path)
    assert code == 3
    assert "train.src" in said or "valid.src" in said


def test_a_missing_file_that_lies_beside_the_config(tmp_path):
    (tmp_path / "project").mkdir()
    config = write_reverse_task(tmp_path / "project", n_train=20)
    code, said = fails("prepare", config.relative_to(tmp_path), cwd=tmp_path)
    assert code == 3
    assert "project/" in said


def test_unequal_line_counts_are_both_named(tmp_path):
    config = write_reverse_task(tmp_path, n_train=50)
    write_lines(tmp_path / "train.tgt", ["xa"] * 49)
    code, said = fails("prepare", config.name, cwd=tmp_path)
    assert code == 3
    assert "50" in said
    assert "49" in said


def test_nothing_left_after_cleaning(tmp_path):
    config = write_reverse_task(tmp_path, n_train=50)
    for side in ("src", "tgt"):
        write_lines(tmp_path / f"train.{side}", ["  "] * 50)
    code, said = fails("prepare", config.name, cwd=tmp_path)
    assert code == 3
    assert "error: " in said
    assert not list(tmp_path.glob("data/*/*.tmp*"))


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    config = write_reverse_task(tmp_path, n_train=50)

    def is_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", is_full)
    code, said = fails("prepare", config.name, cwd=tmp_path)
    assert code == 3
    assert "no space left" in said
    assert not [path for path in tmp_path.glob("data/**/*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "place"),
    [(["prepare"], "data"), (["train", "--set", "run=valid.src/run"], "valid.src/run")],
)
def test_a_place_that_cannot_be_written(arguments, place, tmp_path):
    config = write_reverse_task(tmp_path, n_train=50)
    if place == "data":
        (tmp_path / "data").write_text("a file where a directory must be\n")
    code, said = fails(*arguments, config.name, cwd=tmp_path)
    assert code == 3
    assert f"error: cannot write {place}" in said


# -- runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["translate", "eval"])
def test_a_path_that_is_no_run(command, tmp_path):
    code, said = fails(command, "runs/none", cwd=tmp_path)
    assert (code, "runs/none does not exist" in said) == (2, True)
    code, said = fails(command, ".", cwd=tmp_path)
    assert (code, "is not a run directory" in said) == (2, True)


@pytest.fixture
def copied_run(trained_run, tmp_path):
    """A copy of the trained run, to be damaged."""
    shutil.copytree(trained_run.path, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["translate", "eval"])
def test_a_run_without_checkpoints(command, copied_run):
    (copied_run / "model.safetensors").unlink()
    shutil.rmtree(copied_run / "checkpoints")
    code, said = fails(command, "run", cwd=copied_run.parent)
    assert code == 4
    assert "checkpoint" in said
    assert "fix: " in said


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty"])
def test_a_damaged_checkpoint(damage, copied_run):
    weights = copied_run / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "one bit":
        content[-100] ^= 1
    else:
        del content[len(content) // 2 if damage == "cut short" else 0 :]
    weights.write_bytes(content)
    code, said = fails("translate", "run", cwd=copied_run.parent)
    assert code == 4
    assert "model.safetensors" in said


@pytest.mark.parametrize(
    ("name", "code"),
    [("config.yaml", 2), ("tokenizer.model", 3), ("data/manifest.json", 3)],
)
def test_other_files_of_a_run_cut_short(name, code, copied_run):
    path = copied_run / name
    path.write_bytes(path.read_bytes()[:20])
    found, said = fails("translate", "run", cwd=copied_run.parent)
    assert (found, path.name in said) == (code, True), said


def test_a_checkpoint_that_is_not_there(trained_run):
    code, said = fails("eval", "runs/reverse", "--checkpoint", "step-7", cwd=trained_run.directory)
    assert code == 4
    assert "no checkpoint named `step-7`" in said
    assert "best" in said


def test_a_split_that_is_not_there(trained_run):
    code, said = fails("eval", "runs/reverse", "--split", "test", cwd=trained_run.directory)
    assert code == 2
    assert "found: valid, reversed" in said


def test_cuda_where_there_is_none(trained_run):
    done = run_mtrain("eval", "runs/reverse", "--device", "cuda", cwd=trained_run.directory)
    assert (done.returncode, done.stdout) == (2, "")  # run_mtrain hides what CUDA there is
    assert done.stderr.startswith("error: device `cuda` was requested")
    assert "\n  fix: " in done.stderr


# -- input and output ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_an_input_that_cannot_be_read(name, trained_run):
    code, said = fails("translate", "runs/reverse", name, cwd=trained_run.directory)
    assert code == 3
    assert said.startswith(f"error: cannot read {name}: ")


@pytest.mark.parametrize("name", ["missing/out.txt", ".", "test.src/out.txt"])
def test_an_output_that_cannot_be_written(name, trained_run):
    code, said = fails(
        "translate", "runs/reverse", "test.src", "-o", name, cwd=trained_run.directory
    )
    assert code == 3
    assert said.startswith(f"error: cannot write {name}: ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_output(trained_run):
    code, said = fails(
        "translate", "runs/reverse", "test.src", "-o", "/dev/full", cwd=trained_run.directory
    )
    assert code == 3
    assert "no space left on the disk while writing /dev/full" in said


def test_more_hypotheses_than_the_beam_holds(trained_run):
    code, said = fails(
        "translate", "runs/reverse", "--beam-size", "2", "--n-best", "3", cwd=trained_run.directory
    )
    assert code == 2
    assert "--beam-size" in said


def test_an_ensemble_of_different_vocabularies(copied_run, trained_run):
    config = TokenizerConfig(vocab_size=300)
    texts = [(f"quite other words {n}", f"ganz andere {n}") for n in range(50)]
    train_tokenizers(config, lambda: texts, len(texts), copied_run, 1)
    manifest = json.loads((copied_run / "data" / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["tokenizer.model"] = sha256_of(copied_run / "tokenizer.model")
    write_json(copied_run / "data" / "manifest.json", manifest)
    code, said = fails("translate", "runs/reverse", "--with", copied_run, cwd=trained_run.directory)
    assert code == 2
    assert f"runs/reverse and {copied_run} have different vocabularies" in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["test.src", "--prefix", "short"], 3, "short has 3 lines, but the input 80"),
        (["--score", "test.src", "short"], 3, "short has 3 lines, but the input 80"),
        (["--score", "test.src", "missing"], 3, "cannot read missing"),
        (["test.src", "--prefix", "-"], 2, "`-` cannot be read together with"),
        (["test.src", "--score", "test.src", "test.tgt"], 2, "give either --score"),
        (["--prefix", "short", "--tab-prefix"], 2, "give one of them"),
        (["--method", "mbr", "--samples", "3", "--n-best", "4"], 2, "3 samples hold 1 to 3"),
        (["--with", "runs/none"], 2, "runs/none does not exist"),
    ],
)
def test_what_does_not_go_together(trained_run, arguments, code, said):
    write_lines(trained_run.directory / "short", ["ba"] * 3)
    found = fails("translate", "runs/reverse", *arguments, cwd=trained_run.directory)
    assert (found[0], said in found[1]) == (code, True), found[1]


@pytest.mark.parametrize("pair", [["--source", "test.src"], ["--hypothesis", "test.src"]])
def test_files_of_unequal_length_cannot_be_scored(pair, trained_run, tmp_path):
    write_lines(tmp_path / "ref", ["ba"] * 79)
    code, said = fails(
        "eval", "runs/reverse", *pair, "--reference", tmp_path / "ref", cwd=trained_run.directory
    )
    assert code == 3
    assert "80" in said
    assert "79" in said


# -- ends that are nobody's fault, and defects -----------------------------------------------


def test_a_defect_shows_its_trace(trained_run, tmp_path):
    (tmp_path / "sacrebleu.py").write_text("raise RuntimeError('a defect')\n")
    paths = os.pathsep.join([str(tmp_path), mtrain_environment()["PYTHONPATH"]])
    given = ["--hypothesis", "test.src", "--reference", "test.tgt"]
    directory = trained_run.directory
    done = run_mtrain("eval", "runs/reverse", *given, cwd=directory, env={"PYTHONPATH": paths})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback")
    assert "RuntimeError: a defect" in done.stderr


@pytest.mark.parametrize(
    ("kind", "said", "shown"),
    [
        (MemoryError, "", "error: out of memory\n"),
        (
            torch.OutOfMemoryError,
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...",
            "error: out of memory (CUDA out of memory)\n",
        ),
        (
            RuntimeError,
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "error: out of memory (CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ",
        ),
        (RuntimeError, "CUDA error: out of memory\nmore", "error: out of memory (CUDA error: out"),
    ],
)
@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("mtrain.decoding.translate.load_model", ["translate", "runs/reverse", "test.src"]),
        ("mtrain.decoding.translate.load_model", ["eval", "runs/reverse"]),
        ("mtrain.training.learner.Transformer", ["train", "reverse.yaml", "--set", "run=x"]),
    ],
)
def test_memory_that_runs_out_is_a_sentence(
    trained_run, monkeypatch, kind, said, shown, where, command
):
    def run_out(*arguments: object) -> None:
        raise kind(said)

    monkeypatch.setattr(where, run_out)
    code, stderr = fails(*command, cwd=trained_run.directory)
    assert code == 4
    assert shown in stderr
    assert "  fix: set train.micro_batch_tokens or decode.batch_tokens lower" in stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA failed with error out of memory"),  # CTranslate2
        RuntimeError("NCCL error: Cuda failure 2 'out of memory'"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_known_by_all_its_names(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
