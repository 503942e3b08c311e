"""Fixtures for all tests: the command line as a user meets it, and one small trained run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

from mtrain.cli import app

if TYPE_CHECKING:
    from forking import Forker

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")

REPOSITORY = Path(__file__).parent.parent
WORDS = [a + b for a, b in zip("bdfghjklmnprstvx", "aeouiaeiuoaiouae", strict=True)]


def pytest_configure(config: pytest.Config) -> None:
    """Only `pytest -m gpu` sees a GPU, so that all other tests mean the same on every machine.

    One thread a process: several processes of tests, each with a thread for every core, take turns.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU here")


def run_mtrain(
    *arguments: str | Path, cwd: Path, stdin: str | bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`mtrain ARGUMENTS` in a process of its own, as `python -m mtrain`; output as text."""
    done = subprocess.run(
        mtrain_command(*arguments),
        cwd=cwd,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        env=mtrain_environment() | (env or {}),
        capture_output=True,
        timeout=300,
        check=False,
    )
    stdout, stderr = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)


def invoke(
    *arguments: str | Path, cwd: Path, stdin: str | bytes = b""
) -> subprocess.CompletedProcess[str]:
    """The same within this process, which imports torch only once; defects are raised."""
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(app, list(map(str, arguments)), input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def mtrain_command(*arguments: str | Path) -> list[str]:
    """The command line of a process that runs mtrain."""
    return [sys.executable, "-m", "mtrain", *map(str, arguments)]


def mtrain_environment() -> dict[str, str]:
    """This environment, with the checkout importable from any directory, and without CUDA."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def reverse(line: str) -> str:
    """What the trained run has learnt: the same words from the last to the first."""
    return " ".join(reversed(line.split()))


@dataclass(frozen=True)
class TrainedRun:
    """A run that was prepared and trained by the commands, to reverse the order of words."""

    directory: Path  # where the commands ran
    path: Path  # the run directory
    test_sources: list[str]


def write_reverse_task(directory: Path, n_train: int = 3000, seed: int = 1) -> Path:
    """Text files of sentences and their reversals, and a config for them; its path."""
    generator = random.Random(seed)
    lines: dict[str, None] = {}
    while len(lines) < n_train + 160:
        lines[" ".join(generator.choices(WORDS, k=generator.randint(1, 4)))] = None
    unique = list(lines)
    generator.shuffle(unique)
    parts = {"test": unique[:80], "valid": unique[80:160], "train": unique[160:]}
    for name, part in parts.items():
        write_lines(directory / f"{name}.src", part)
        write_lines(directory / f"{name}.tgt", map(reverse, part))
    config = directory / "reverse.yaml"
    config.write_text(
        """\
name: reverse
source: en
target: de
data:
  train: {source: train.src, target: train.tgt}
  valid: {source: valid.src, target: valid.tgt}
  test: {reversed: {source: test.src, target: test.tgt}}
  clean: false  # half of the pairs have the same words on both sides
tokenizer: {vocab_size: 300}
model: {d_model: 64, d_ff: 128, n_heads: 4, n_encoder_layers: 1, n_decoder_layers: 1, dropout: 0}
train:
  max_steps: 420
  batch_tokens: 600
  validate_every: 140
  save_every: 140
  precision: fp32  # the same on every CPU
  both_directions: 0
  optim:
    optimizer: adamw
    learning_rate: 0.003
    schedule: inverse_sqrt
    warmup_steps: 60
    weight_decay: 0.01
    label_smoothing: 0
    ema_decay: 0.9
decode: {precision: fp32}
""",
        encoding="utf-8",
    )
    return config


def write_lines(path: Path, lines: Sequence[str] | map[str]) -> None:
    """One line each, with a newline at the end of every one."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    """Commands set threads and denormals for the whole process: Hypothesis refuses such floats."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
        torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Starts processes that run mtrain."""
    from forking import Forker

    with Forker() as forker:
        yield forker


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Trained once by the commands; each process of tests has a copy."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with open(shared / "trained.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "trained").exists():
            (shared / "training").mkdir()
            write_reverse_task(shared / "training")
            for command in ("prepare", "train"):
                done = invoke(command, "reverse.yaml", cwd=shared / "training")
                assert (done.returncode, done.stdout) == (0, ""), done.stderr
            (shared / "training").rename(shared / "trained")
    directory = Path(shutil.copytree(shared / "trained", tmp_path_factory.mktemp("run") / "copy"))
    sources = (directory / "test.src").read_text(encoding="utf-8").split("\n")[:-1]
    return TrainedRun(directory, directory / "runs" / "reverse", sources)
