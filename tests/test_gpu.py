"""What only a GPU can show, on a small model that learns: `pytest -m gpu`."""

import json
from pathlib import Path

import pytest
import torch
from conftest import invoke, reverse, write_reverse_task

from mtrain.decoding.translate import Translator
from mtrain.model.weights import load_tensors
from mtrain.run import RunDir

# torch warns of its own ways to compile and to multiply.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

DEVICE = "cuda"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A config whose data is prepared."""
    config = write_reverse_task(tmp_path_factory.mktemp("gpu"))
    assert invoke("prepare", config.name, cwd=config.parent).returncode == 0
    return config


def train(task: Path, name: str, *settings: str) -> RunDir:
    run = task.parent / "runs" / name
    overrides = [f"run={run}", f"train.device={DEVICE}", *settings]
    options = [part for override in overrides for part in ("--set", override)]
    done = invoke("train", task.name, *options, cwd=task.parent)
    assert done.returncode == 0, done.stderr
    return RunDir(run)


@pytest.fixture(scope="module")
def run(task):
    return train(task, "plain")


def sources_of(task: Path) -> list[str]:
    return (task.parent / "test.src").read_text(encoding="utf-8").splitlines()


def n_right(run: RunDir, sources: list[str]) -> int:
    outputs = Translator.from_run(run.path, device=DEVICE).translate(sources)
    return sum(o == reverse(s) for o, s in zip(outputs, sources, strict=True))


def test_a_model_learns(run, task):
    assert n_right(run, sources_of(task)) >= 72


@pytest.mark.parametrize("settings", [("bf16", "false"), ("bf16", "true"), ("fp32", "true")])
def test_a_model_learns_in_every_arithmetic(task, settings):
    precision, compiled = settings
    name = f"{precision}-{compiled}"
    found = train(task, name, f"train.precision={precision}", f"train.compile={compiled}")
    assert n_right(found, sources_of(task)) >= 72


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_has_the_same_order_and_masks(task, optimizer):
    """The order of sums is a GPU's own, so losses are equal up to rounding."""
    settings = [f"train.optim.optimizer={optimizer}", "model.dropout=0.2", "train.log_every=1"]
    straight = train(task, f"{optimizer}-straight", *settings, "train.max_steps=30")
    train(task, f"{optimizer}-resumed", *settings, "train.max_steps=15")
    resumed = train(task, f"{optimizer}-resumed", *settings, "train.max_steps=30")
    expected, found = (
        [record["loss"] for record in each.read_metrics() if record["kind"] == "train"]
        for each in (straight, resumed)
    )
    assert len(found) == 30
    assert found == pytest.approx(expected, rel=2e-3)


def test_a_model_translates_as_on_a_cpu(run, task):
    sources = sources_of(task)
    lines = [*sources, "", "x" * 600, *sources[:5]]
    there, here = (
        Translator.from_run(run.path, device=device).translate_detailed(lines)
        for device in (DEVICE, "cpu")
    )
    same = sum(a.text == b.text for a, b in zip(there, here, strict=True))
    assert same >= len(lines) - 2  # where two outputs are as good as each other
    scores = [[line.score for line in each[:80]] for each in (there, here)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-2)


def test_lines_one_by_one_are_those_of_the_batch(run, task):
    sources = sources_of(task)[:40]
    translator = Translator.from_run(run.path, device=DEVICE)
    together = translator.translate_detailed(sources)
    alone = [translator.translate_detailed([line])[0] for line in sources]
    assert [line.text for line in alone] == [line.text for line in together]


def test_the_table_before_training_knows_the_memory(task):
    done = invoke("train", task.name, "--plan", "--set", f"train.device={DEVICE}", cwd=task.parent)
    memory = next(line for line in done.stderr.splitlines() if line.startswith("memory"))
    assert int(memory.split()[-2].replace(",", "")) > 0


def test_what_is_written_does_not_know_the_device(run):
    tensors, facts = load_tensors(run.weights)
    assert {tensor.device for tensor in tensors.values()} == {torch.device("cpu")}
    assert DEVICE not in json.dumps(facts)
