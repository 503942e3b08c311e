"""Several processes train one model: the same mathematics as one, whatever their number."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import invoke, mtrain_environment, write_lines
from forking import Forker
from hypothesis import given
from hypothesis import strategies as st

from mtrain.data.micro_batches import cut
from mtrain.errors import DeviceError
from mtrain.machine.distributed import process_group
from mtrain.model.weights import load_tensors
from mtrain.run import RunDir

CONFIG = """\
name: words
source: en
target: de
data:
  train: {source: train.txt, target: train.txt}
  valid: {source: valid.txt, target: valid.txt}
  max_length: 40
tokenizer: {vocab_size: 300}
model: {d_model: 16, d_ff: 24, n_heads: 2, n_encoder_layers: 1, n_decoder_layers: 1, dropout: 0}
train:
  max_steps: 6
  batch_tokens: 160
  micro_batch_tokens: 60
  validate_every: 3
  save_every: 3
  log_every: 1
  threads: 1
  device: cpu
  precision: fp32
  both_directions: 0
  optim:
    optimizer: adamw
    learning_rate: 0.01
    schedule: inverse_sqrt
    warmup_steps: 2
    weight_decay: 0.01
    ema_decay: 0.9
    epsilon: 1e-4  # see assert_near
decode: {beam_size: 1}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("words")
    generator = random.Random(0)
    lines = {" ".join(generator.choices("abcdef", k=generator.randint(2, 9))) for _ in range(90)}
    write_lines(directory / "train.txt", sorted(lines)[5:])
    write_lines(directory / "valid.txt", sorted(lines)[:5])
    (directory / "words.yaml").write_text(CONFIG)
    assert invoke("prepare", "words.yaml", cwd=directory).returncode == 0
    return directory


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Together:
    """`mtrain train` in n processes, with the environment that torchrun gives them."""

    def __init__(self, forker: Forker, directory: Path, run: Path, n: int, *settings: str) -> None:
        self.forker = forker
        self.log = run.with_name(run.name + ".log")
        arguments = ["train", "words.yaml"]
        for setting in (f"run={run}", *settings):
            arguments += ["--set", setting]
        shared = {
            "TORCHELASTIC_RUN_ID": "test",
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(n),
            "LOCAL_WORLD_SIZE": str(n),
        }
        self.pids = [
            forker.start(
                arguments, directory, self.log, shared | {"RANK": str(i), "LOCAL_RANK": str(i)}
            )
            for i in range(n)
        ]

    def wait(self) -> list[int]:
        return [self.forker.wait(pid) for pid in self.pids]


def train(forker: Forker, directory: Path, run: Path, n: int, *settings: str) -> RunDir:
    together = Together(forker, directory, run, n, *settings)
    assert together.wait() == [0] * n, together.log.read_text()
    return RunDir(run)


def assert_near(run: RunDir, other: RunDir) -> None:
    """The same but for the order in which floats are added up.

    The biases of keys change no attention: their gradient is rounding, whose sign Adam would take
    for a direction if its epsilon were small.
    """
    for name in ("last", "ema"):
        ours, theirs = (load_tensors(r.checkpoint_files(name)[0])[0] for r in (run, other))
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5)
    keys = ("step", "loss", "nll", "grad_norm", "learning_rate", "real_token_share")
    ours, theirs = (
        [[r[key] for key in keys] for r in x.read_metrics() if r["kind"] == "train"]
        for x in (run, other)
    )
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


@pytest.fixture(scope="module")
def alone(forker, directory, tmp_path_factory):
    return train(forker, directory, tmp_path_factory.mktemp("alone") / "run", 1)


def test_two_processes_do_what_one_does_with_accumulation(forker, directory, alone, tmp_path):
    """Also in the last update of an epoch, too small for two micro-batches of its own accord."""
    assert_near(train(forker, directory, tmp_path / "run", 2), alone)
    said = (tmp_path / "run.log").read_text()
    assert said.count("done: ") == 1  # one of them speaks
    assert "2 processes of cpu fp32" in said


def test_dropout_goes_by_the_number_of_the_micro_batch(forker, directory, tmp_path):
    """And not by the process; an epoch is one update here, of many micro-batches."""
    settings = ["model.dropout=0.2", "train.batch_tokens=10000", "train.max_steps=2"]
    runs = [train(forker, directory, tmp_path / str(n), n, *settings) for n in (1, 2)]
    assert_near(runs[1], runs[0])


def test_a_run_goes_on_with_another_number_of_processes(forker, directory, alone, tmp_path):
    run = train(forker, directory, tmp_path / "run", 2, "train.max_steps=3")
    train(forker, directory, tmp_path / "run", 1)
    assert_near(run, alone)
    said = (tmp_path / "run.log").read_text()
    assert "at step 3: " in said
    assert "2 processes of cpu" in said


def test_a_signal_to_one_process_saves_and_ends_all(forker, directory, tmp_path):
    together = Together(forker, directory, tmp_path / "run", 2, "train.max_steps=100000")
    while not RunDir(tmp_path / "run").step_checkpoints():
        time.sleep(0.02)
    os.kill(together.pids[1], signal.SIGTERM)
    assert together.wait() == [143, 143], together.log.read_text()
    assert "SIGTERM: saving after step" in together.log.read_text()


def test_nothing_is_prepared_by_several_processes(forker, directory, tmp_path):
    (tmp_path / "words.yaml").write_text(CONFIG)
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_text((directory / name).read_text())
    together = Together(forker, tmp_path, tmp_path / "run", 2)
    assert together.wait() == [3, 3]
    assert "run `mtrain prepare words.yaml` first" in together.log.read_text()
    assert not (tmp_path / "run").exists()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 8))
def test_every_process_gets_a_micro_batch_where_there_are_sentences(lengths, world_size):
    sentences, sides = np.arange(len(lengths)), [np.array(lengths)] * 2
    alone = cut(sentences, *sides, 30)
    parts = cut(sentences, *sides, 30, world_size=world_size)
    assert len(parts) >= min(world_size, len(lengths))
    assert all(len(part) for part in parts)
    assert np.concatenate(parts).tolist() == np.concatenate(alone).tolist()
    if len(alone) >= world_size:
        assert [part.tolist() for part in parts] == [part.tolist() for part in alone]


@pytest.mark.slow
def test_the_same_number_of_processes_gives_the_same_bytes(forker, directory, tmp_path):
    one, other = (train(forker, directory, tmp_path / name, 2) for name in ("a", "b"))
    for path in one.path.rglob("*.safetensors"):
        ours, theirs = (
            load_tensors(run.path / path.relative_to(one.path))[0] for run in (one, other)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def under_torchrun(monkeypatch: pytest.MonkeyPatch, local_rank: int, n_gpus: int) -> None:
    """Pretend to be a process of several that torchrun has started, on a machine with GPUs."""
    started = {"RANK": "1", "LOCAL_RANK": str(local_rank), "WORLD_SIZE": "8"}
    for name, value in {"TORCHELASTIC_RUN_ID": "none", **started}.items():
        monkeypatch.setenv(name, value)
    answers = {"is_available": True, "device_count": n_gpus, "get_arch_list": []}
    for name, answer in {**answers, "get_device_capability": (9, 0)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr("mtrain.machine.distributed.console.silence", lambda: None)


@pytest.mark.parametrize("local_rank", [1, 7])
def test_more_processes_than_gpus_are_an_error(monkeypatch, local_rank):
    under_torchrun(monkeypatch, local_rank, n_gpus=1)
    expected = f"`cuda:{local_rank}`.* this machine has 1 GPU"
    with pytest.raises(DeviceError, match=expected) as raised, process_group("auto"):
        pass
    assert raised.value.exit_code == 2
    assert "one process per GPU at most" in raised.value.fix


def test_a_process_takes_its_own_gpu_before_it_meets_the_others(monkeypatch):
    under_torchrun(monkeypatch, 3, n_gpus=4)
    events: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", events.append)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, timeout: events.append(backend)
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: events.append("end"))
    with process_group("auto") as distributed:
        assert (distributed.device, distributed.rank) == (torch.device("cuda", 3), 1)
    assert events == [torch.device("cuda", 3), "cpu:gloo,cuda:nccl", "end"]


@pytest.mark.slow
def test_torchrun_itself(directory, alone, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", str(free_port()), "-m", "mtrain", "train", "words.yaml"),
            *("--set", f"run={tmp_path / 'run'}"),
        ],
        cwd=directory,
        env=mtrain_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_near(RunDir(tmp_path / "run"), alone)
