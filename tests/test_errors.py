"""Bad input through the commands: one clear sentence, a way to mend it, and the right exit code."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import invoke, mtrain_environment, run_mtrain, write_lines

from mtrain import errors
from mtrain.config.sections import TokenizerConfig
from mtrain.data.tokenizer import train_tokenizers
from mtrain.errors import MtrainError, is_out_of_memory
from mtrain.storage import sha256_of, write_json


def fails(*arguments: str | Path, cwd: Path) -> tuple[int, str]:
    """Exit code and standard error of a command that must fail in sentences, without output."""
    done = invoke(*arguments, cwd=cwd)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


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


# -- the command line, configs, data, runs ---------------------------------------------------

COMMANDS = [
    ("trian x.yaml", 2, "Did you mean 'train'?"),
    ("train", 2, "Missing argument 'CONFIG'"),
    ("train x.yaml --steps 5", 2, "No such option: --steps"),
    ("eval r --device tpu", 2, "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
    ("prepare missing.yaml", 2, "there is no config file missing.yaml"),
    ("prepare reverse.yaml --set data.train.source=gone", 3, "there is no file gone"),
    ("prepare reverse.yaml --set data.train.target=short", 3, "3,000 lines but short has 3"),
    ("train reverse.yaml --set run=valid.src/run", 3, "error: cannot write valid.src/run"),
    ("translate runs/none", 2, "runs/none does not exist"),
    ("translate .", 2, "is not a run directory"),
    ("translate RUN missing", 3, "error: cannot read missing: "),
    ("translate RUN .", 3, "error: cannot read .: "),
    ("translate RUN test.src -o missing/out", 3, "error: cannot write missing/out: "),
    ("translate RUN test.src -o .", 3, "error: cannot write .: "),
    ("translate RUN test.src -o test.src/out", 3, "error: cannot write test.src/out: "),
    ("translate RUN test.src -o /dev/full", 3, "no space left on the disk while writing /dev/full"),
    ("translate RUN --tag bt", 2, "knows no tag `bt` (it knows: none)"),
    ("translate RUN --beam-size 2 --n-best 3", 2, "--beam-size"),
    ("translate RUN --method mbr --samples 3 --n-best 4", 2, "3 samples hold 1 to 3"),
    ("translate RUN --with runs/none", 2, "runs/none does not exist"),
    ("translate RUN test.src --prefix short", 3, "short has 3 lines, but the input 80"),
    ("translate RUN --score test.src short", 3, "short has 3 lines, but the input 80"),
    ("translate RUN --score test.src missing", 3, "cannot read missing"),
    ("translate RUN test.src --prefix -", 2, "`-` cannot be read together with"),
    ("translate RUN test.src --score test.src test.tgt", 2, "give either --score"),
    ("eval .", 2, "is not a run directory"),
    ("eval RUN --device cuda", 2, "error: device `cuda` was requested"),
    ("eval RUN --tag bt", 2, "knows no tag `bt` (it knows: none)"),
    ("eval RUN --checkpoint step-7", 4, "no checkpoint named `step-7` (found: "),
    ("eval RUN --split test", 2, "found: valid, reversed"),
    ("eval RUN --source test.src --reference short", 3, "80 lines, but short has 3"),
    ("eval RUN --hypothesis test.src --reference short", 3, "80 lines, but short has 3"),
]


@pytest.mark.parametrize(("command", "code", "said"), COMMANDS, ids=[row[0] for row in COMMANDS])
def test_a_command_that_fails_says_why(trained_run, command, code, said):
    write_lines(trained_run.directory / "short", ["ba"] * 3)
    arguments = ["runs/reverse" if word == "RUN" else word for word in command.split()]
    found = fails(*arguments, cwd=trained_run.directory)
    assert (found[0], said in found[1]) == (code, True), found[1]


def test_all_problems_of_a_config_at_once_each_with_its_line(tmp_path):
    text = "name: a\nsource: en\ntarget: no\ndata: {train: {cldr: 5}}\nmodel: {droput: 0.1}\n"
    (tmp_path / "a.yaml").write_text(text + "decode: {beam_size: five}\nname: twice\n")
    code, said = fails("train", "a.yaml", "--set", "data.trian=x", cwd=tmp_path)
    assert code == 2
    for place, words in (
        ("a.yaml:3:", "quote"),
        ("a.yaml:5:", "model.dropout"),
        ("a.yaml:6:", "beam_size"),
        ("a.yaml:7:", "name"),
        ("--set data.trian=x:", "data.train"),
    ):
        (start,) = [part for part in said.split("error: ") if part.startswith(place)]
        assert words in start


@pytest.fixture
def copied_run(trained_run, tmp_path):
    """A copy of the trained run, to be damaged."""
    return Path(shutil.copytree(trained_run.path, tmp_path / "run"))


@pytest.mark.parametrize("command", ["translate", "eval"])
def test_a_run_without_checkpoints(command, copied_run):
    (copied_run / "model.safetensors").unlink()
    shutil.rmtree(copied_run / "checkpoints")
    code, said = fails(command, "run", cwd=copied_run.parent)
    assert code == 4
    assert "checkpoint" in said
    assert "fix: " in said


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("config.yaml", 2),
        ("tokenizer.model", 3),
        ("data/manifest.json", 3),
        ("model.safetensors", 4),
    ],
)
def test_a_file_of_a_run_cut_short(name, code, copied_run):
    """All kinds of damage, with any exit code, are in test_damage."""
    path = copied_run / name
    path.write_bytes(path.read_bytes()[:20])
    found, said = fails("translate", "run", cwd=copied_run.parent)
    assert (found, path.name in said) == (code, True), said


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


TRANSLATE = ("mtrain.decoding.translate.load_model", ["translate", "runs/reverse", "test.src"])
EVAL = ("mtrain.decoding.translate.load_model", ["eval", "runs/reverse"])
TRAIN = ("mtrain.training.learner.Transformer", ["train", "reverse.yaml", "--set", "run=x"])
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize(
    ("where", "error", "shown"),
    [
        (TRANSLATE, MemoryError(), "error: out of memory\n"),
        (EVAL, CUDA, "error: out of memory (CUDA out of memory)\n"),
        (TRAIN, CUDA, "error: out of memory (CUDA out of memory)\n"),
        (TRANSLATE, CUBLAS, "error: out of memory (CUDA error: CUBLAS_STATUS_ALLOC_FAILED when "),
        (TRANSLATE, RuntimeError("CUDA error: out of memory\nmore"), "(CUDA error: out of memory)"),
    ],
)
def test_memory_that_runs_out_is_a_sentence(trained_run, monkeypatch, where, error, shown):
    def run_out(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(where[0], run_out)
    code, said = fails(*where[1], cwd=trained_run.directory)
    assert code == 4
    assert shown in said
    assert "  fix: set train.micro_batch_tokens or decode.batch_tokens lower" in said


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
