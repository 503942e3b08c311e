"""Training states on disk: what is kept, pruned, restored, and recognised as damaged."""

import hashlib
import json
import shutil

import pytest
import torch

from mtrain.config.sections import ModelConfig, OptimConfig, TrainConfig
from mtrain.errors import CheckpointError
from mtrain.model.transformer import Transformer
from mtrain.model.weights import load_tensors, weights_of
from mtrain.run import RunDir
from mtrain.training.checkpoints import (
    copies,
    copy_state,
    load_newest,
    save_state,
    save_validated,
)
from mtrain.training.optim import Ema, make_optimizers, optimizer_state
from mtrain.training.schedule import Progress

SIZES = {"d_model": 8, "d_ff": 8, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}


class Trained:
    """A tiny model, its average and its optimizers, after one update."""

    def __init__(self, seed: int = 0, with_ema: bool = True) -> None:
        torch.manual_seed(seed)
        self.model = Transformer(ModelConfig.model_validate(SIZES), 11, 11)
        self.ema = Ema(weights_of(self.model), 0.9) if with_ema else None
        self.optimizers = make_optimizers(self.model, OptimConfig(), torch.float32)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for optimizer in self.optimizers:
            optimizer.step()

    def save(self, run: RunDir, progress: Progress, keep: int = 9) -> None:
        save_state(run, copy_state(self, progress), keep)  # type: ignore[arg-type]

    def load(self, run: RunDir) -> Progress | None:
        return load_newest(run, self)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, torch.Tensor]:
        averages = {f"ema/{k}": v for k, v in (self.ema.weights if self.ema else {}).items()}
        return weights_of(self.model) | averages | optimizer_state(self.model, self.optimizers)


@pytest.mark.parametrize(
    ("spare", "is_full", "is_cloned"),
    [(None, False, True), (8, False, True), (7, False, False), (8, True, False)],
)
def test_copies_are_made_where_there_is_room(monkeypatch, spare, is_full, is_cloned):
    """On a CPU `.cpu()` gives the tensor itself, which shows that it was asked for."""
    tensors = {"a": torch.ones(2)}
    monkeypatch.setattr("mtrain.machine.runtime.spare_bytes", lambda device: spare)
    if is_full:
        monkeypatch.setattr("mtrain.machine.runtime.unless_out_of_memory", lambda function: None)
    [copy] = copies(tensors).values()
    assert torch.equal(copy, tensors["a"])
    assert (copy.data_ptr() != tensors["a"].data_ptr()) == is_cloned


def assert_equal(one: Trained, other: Trained) -> None:
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


def steps(run: RunDir) -> list[int]:
    return [step for step, _ in run.step_checkpoints()]


@pytest.mark.parametrize("with_ema", [True, False])
def test_a_state_comes_back_as_it_was(run, with_ema):
    saved, other = Trained(with_ema=with_ema), Trained(seed=1, with_ema=with_ema)
    progress = Progress(7, 1, 3, 5, 0.1 + 0.2, 2, n_target_tokens=12345, elapsed_s=1.5)
    saved.save(run, progress)
    assert other.load(run) == progress
    assert_equal(saved, other)
    files = {path.name for path in (run.checkpoints / "step-7").iterdir()}
    assert ("ema.safetensors" in files) == with_ema


def test_nothing_saved_is_nothing_loaded(run):
    trained = Trained()
    assert trained.load(run) is None
    assert_equal(trained, Trained())


def test_only_the_newest_are_kept(run):
    trained = Trained()
    for step in (8, 9, 10, 11):
        trained.save(run, Progress(step), keep=2)
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-10", "step-11"]


def test_the_newest_goes_by_number_not_by_name(run):
    for step in (9, 10):
        Trained(seed=step).save(run, Progress(step))
    other = Trained()
    assert other.load(run) == Progress(10)
    assert_equal(other, Trained(seed=10))


def test_a_state_of_the_same_step_is_replaced(run):
    Trained(seed=1).save(run, Progress(5))
    Trained(seed=2).save(run, Progress(5, epoch=3))
    other = Trained()
    assert other.load(run) == Progress(5, epoch=3)
    assert_equal(other, Trained(seed=2))


def test_leftovers_of_a_kill_are_removed(run):
    Trained().save(run, Progress(5))
    shutil.copytree(run.checkpoints / "step-5", run.checkpoints / "step-6.tmp")
    (run.checkpoints / "best-6.safetensors.tmp").touch()
    assert Trained().load(run) == Progress(5)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-5"]


FILES = ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damage_to_any_file_leads_to_the_state_before(run, capsys, name, damage):
    for step in (5, 6):
        Trained(seed=step).save(run, Progress(step, n_target_tokens=4096))
    path = run.checkpoints / "step-6" / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif name == "state.json":
        path.write_bytes(data.replace(b"4096", b"4097"))
    else:
        data[-5] ^= 1
        path.write_bytes(data)
    other = Trained()
    assert other.load(run) == Progress(5, n_target_tokens=4096)
    assert_equal(other, Trained(seed=5))
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}")
    assert said.count("\n") == 1
    assert "kept as damaged-step-6, resuming from step-5" in said
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["damaged-step-6", "step-5"]


@pytest.mark.parametrize("content", ["", "[]", "3", "null", "{}", '"x"', '{"format": 1}'])
def test_any_other_state_file_is_damage(run, content):
    Trained().save(run, Progress(5))
    (run.checkpoints / "step-5" / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"is intact: .*state\.json is damaged"):
        Trained().load(run)
    assert steps(run) == [5]  # left where it is, for another try


def test_a_state_of_another_format_is_named(run):
    Trained().save(run, Progress(5))
    path = run.checkpoints / "step-5" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(CheckpointError, match="it has format 2, not 1"):
        Trained().load(run)


@pytest.mark.parametrize("change", [{"step": "x"}, {"plan": 3}, {"elapsed_s": None}])
def test_numbers_of_other_types_are_damage_even_with_the_right_sha256(run, change):
    Trained().save(run, Progress(7))
    path = run.checkpoints / "step-7" / "state.json"
    numbers = json.loads(path.read_text()) | change
    del numbers["format"], numbers["sha256"]
    digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"format": 1, "sha256": digest} | numbers))
    with pytest.raises(CheckpointError, match=r"state.json is damaged"):
        Trained().load(run)


def test_the_best_replaces_the_one_before(run):
    weights = Trained().tensors()
    for step in (4, 9, 10):
        save_validated(run, weights, {"step": step, "valid": {"chrf": 1.5}}, TrainConfig(), True)
    assert [path.name for path in run.checkpoints.iterdir()] == ["best-10.safetensors"]
    loaded, facts = load_tensors(run.best_checkpoints()[0][1])
    assert facts == {"step": 10, "valid": {"chrf": 1.5}}
    assert all(torch.equal(weights[name], loaded[name]) for name in loaded)


def test_the_next_best_are_kept_by_their_scores(run):
    """Of equal ones the earlier; by loss, lower is better."""
    train = TrainConfig.model_validate({"keep_best": 3, "best_metric": "loss"})
    weights = Trained().tensors()
    for step, loss in enumerate([5.0, 3.0, 4.0, 2.0, 3.5, 3.5, 2.5]):
        facts = {"step": step, "valid": {"loss": loss}}
        is_best = loss in (5.0, 3.0, 2.0)
        save_validated(run, weights, facts, train, is_best)
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["best-3.safetensors", "good-1.safetensors", "good-6.safetensors"]
    files = run.checkpoint_files("avg-best")
    assert sorted(path.name for path in files) == names


def test_without_wanting_more_only_the_best_is_kept(run):
    weights = Trained().tensors()
    save_validated(run, weights, {"step": 1, "valid": {"chrf": 1.0}}, TrainConfig(), True)
    save_validated(run, weights, {"step": 2, "valid": {"chrf": 0.5}}, TrainConfig(), False)
    assert [path.name for path in run.checkpoints.iterdir()] == ["best-1.safetensors"]
    with pytest.raises(CheckpointError, match="no checkpoint named `avg-best`"):
        run.checkpoint_files("avg-best")


def test_a_state_that_does_not_fit_as_a_whole_is_not_cloned(monkeypatch):
    """Weights, average and moments share the room: each alone would fit."""
    trained = Trained()
    largest = max(
        sum(tensor.nbytes for tensor in part.values())
        for part in (weights_of(trained.model), optimizer_state(trained.model, trained.optimizers))
    )
    monkeypatch.setattr("mtrain.machine.runtime.spare_bytes", lambda device: largest)
    state = copy_state(trained, Progress())  # type: ignore[arg-type]
    originals = {tensor.data_ptr() for tensor in trained.tensors().values()}
    copied = [*state.weights.values(), *(state.averages or {}).values(), *state.moments.values()]
    assert {tensor.data_ptr() for tensor in copied} <= originals
