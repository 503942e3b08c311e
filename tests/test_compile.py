"""Compiled layers compute what they did before, and training takes them where they are faster."""

import re
import signal
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import test_train
import torch
from test_train import outcome, raise_signal
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mtrain.config.sections import ModelConfig
from mtrain.errors import DeviceError, StoppedBySignal
from mtrain.machine import runtime
from mtrain.model.transformer import Transformer
from mtrain.training import trial
from mtrain.training.schedule import Progress
from mtrain.training.trial import WORTH_COMPILING_S, Trial, compile_if_faster, should_compile

TRIAL = Trial(update_s=1.0, tokens_per_s=100.0, peak_bytes=1, n_micro_batches=1.0)


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    torch.compiler.set_stance("default")


# -- the layers ------------------------------------------------------------------------------


def small_model() -> Transformer:
    torch.manual_seed(0)
    layers = {"n_encoder_layers": 2, "n_decoder_layers": 2}
    return Transformer(ModelConfig(d_model=16, d_ff=24, n_heads=2, dropout=0.0, **layers), 30, 30)


def gradients(model: Transformer, rows: int, length: int, is_padded: bool) -> dict[str, Tensor]:
    """Of a batch that is a function of its shape."""
    torch.manual_seed(rows * length)
    src, tgt = torch.randint(4, 30, (rows, length)), torch.randint(4, 30, (rows, length + 3))
    lengths = torch.arange(rows) % length + 1
    mask = (torch.arange(length) < lengths[:, None])[:, None, None] if is_padded else None
    model.zero_grad()
    model.decode(tgt, model.encode(src, mask), mask).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, on its way
def test_compiled_layers_give_the_same_gradients_and_one_graph_serves_all_shapes():
    model = small_model()
    shapes = [(3, 5, False), (4, 5, True), (6, 9, False), (2, 7, True), (5, 12, False)]
    expected = [gradients(model, *shape) for shape in shapes]
    names = model.state_dict().keys()
    runtime.compile_layers([*model.encoder, *model.decoder], backend="aot_eager")
    for shape, wanted in zip(shapes, expected, strict=True):
        found = gradients(model, *shape)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    # An encoder's and a decoder's layer, each with a mask and without.
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]
    assert model.state_dict().keys() == names


def test_layers_that_are_left_compute_as_before_without_being_compiled():
    model = small_model()
    expected = gradients(model, 3, 5, False)
    runtime.compile_layers([*model.encoder, *model.decoder], backend="aot_eager")
    torch.compiler.set_stance("force_eager")
    found = gradients(model, 3, 5, False)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert counters["stats"]["unique_graphs"] == 0


# -- whether to compile ----------------------------------------------------------------------


class FakeLearner:
    """Takes `compiled_s` for an update when compiled; an error breaks compiling."""

    def __init__(self, wish: Any, compiled_s: float | Exception) -> None:
        self.config = SimpleNamespace(train=SimpleNamespace(compile=wish))
        self.replicas = SimpleNamespace(zero_grad=lambda: None)
        self.distributed = SimpleNamespace(any=bool)
        self.compiled_s = compiled_s
        self.is_compiled = False

    def compile_layers(self) -> None:
        self.is_compiled = True

    def run_largest(self, *_: Any) -> None:
        if self.is_compiled and isinstance(self.compiled_s, Exception):
            raise self.compiled_s

    def trial(self, *_: Any) -> Trial:
        assert self.is_compiled
        return replace(TRIAL, update_s=self.compiled_s)


def choose(learner: FakeLearner, monkeypatch: pytest.MonkeyPatch) -> tuple[Progress, Trial]:
    monkeypatch.setattr(trial, "try_out", FakeLearner.trial)
    monkeypatch.setattr(trial, "run_largest", FakeLearner.run_largest)
    progress = Progress()
    epoch: Any = SimpleNamespace(plan=None)
    chosen = compile_if_faster(learner, epoch, progress, TRIAL, time.perf_counter)  # type: ignore[arg-type]
    return progress, chosen


def stance() -> str:
    return str(torch._dynamo.eval_frame._stance.stance)


def test_compiled_layers_are_kept_where_they_are_faster(monkeypatch):
    progress, chosen = choose(FakeLearner("auto", compiled_s=0.5), monkeypatch)
    assert progress.is_compiled
    assert chosen.update_s == 0.5
    assert stance() == "default"


def test_compiled_layers_are_left_where_they_are_slower(monkeypatch):
    progress, chosen = choose(FakeLearner("auto", compiled_s=1.5), monkeypatch)
    assert not progress.is_compiled
    assert chosen is TRIAL
    assert stance() == "force_eager"


def test_where_it_is_asked_for_the_layers_stay_compiled(monkeypatch):
    progress, chosen = choose(FakeLearner(True, compiled_s=1.5), monkeypatch)
    assert progress.is_compiled
    assert chosen.update_s == 1.5


def test_a_machine_that_cannot_compile_trains_without(monkeypatch, capsys):
    no_compiler = RuntimeError("Failed to find C compiler.\nPlease specify via CC")
    progress, chosen = choose(FakeLearner("auto", no_compiler), monkeypatch)
    assert not progress.is_compiled
    assert chosen is TRIAL
    assert stance() == "force_eager"
    assert "cannot be compiled here: Failed to find C compiler.; training continues" in (
        capsys.readouterr().err
    )


def test_what_another_process_cannot_compile_is_compiled_by_none(monkeypatch, capsys):
    learner = FakeLearner("auto", compiled_s=0.5)
    learner.distributed.any = lambda has_failed: True
    progress, chosen = choose(learner, monkeypatch)
    assert not progress.is_compiled
    assert chosen is TRIAL
    assert "cannot be compiled in another process; training continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("no compiler"), "no compiler"), (NotImplementedError(), "NotImplementedError")],
)
def test_a_machine_that_cannot_compile_says_so_where_it_is_asked_to(monkeypatch, error, said):
    with pytest.raises(DeviceError, match=f"cannot be compiled here: {said}") as raised:
        choose(FakeLearner(True, error), monkeypatch)
    assert raised.value.exit_code == 2
    assert raised.value.fix == "set `train.compile` to `auto` or `false`"


@pytest.mark.parametrize(
    ("wish", "device", "training_s", "expected"),
    [
        ("auto", "cuda", WORTH_COMPILING_S + 1, True),
        ("auto", "cuda", WORTH_COMPILING_S, False),
        ("auto", "cpu", WORTH_COMPILING_S + 1, False),
        (True, "cpu", 1, True),
        (False, "cuda", WORTH_COMPILING_S + 1, False),
    ],
)
def test_when_compiling_is_tried(wish, device, training_s, expected):
    assert should_compile(wish, torch.device(device), training_s) is expected


# -- a whole training ------------------------------------------------------------------------

directory, workspace = test_train.directory, test_train.workspace


def compile_in_python(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let layers be traced, but not turned into C++; -> how many were, each time"""
    numbers: list[int] = []

    def compile_layers(layers: list[nn.Module]) -> None:
        numbers.append(len(layers))
        for layer in layers:
            layer.compile(backend="eager", dynamic=True)

    monkeypatch.setattr(runtime, "compile_layers", compile_layers)
    return numbers


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, on its way
def test_a_compiled_run_is_the_same_and_resumes_compiled(workspace, tmp_path, monkeypatch, capsys):
    expected = workspace.train(tmp_path / "straight", "train.max_steps=4")
    numbers = compile_in_python(monkeypatch)
    settings = ["train.max_steps=4", "train.compile=true"]
    with pytest.raises(StoppedBySignal):
        workspace.train(tmp_path / "run", *settings, on_step=raise_signal(signal.SIGTERM, at=2))
    assert re.search(r"^layers +compiled$", capsys.readouterr().err, re.MULTILINE)
    assert numbers == [2]
    run = workspace.train(tmp_path / "run", settings[0], "train.compile=auto")
    assert numbers == [2, 2]
    assert outcome(run).progress["is_compiled"]
    ours, theirs = outcome(run).tensors, outcome(expected).tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resumed_run_may_leave_compiling(workspace, tmp_path, monkeypatch):
    numbers: list[int] = []
    monkeypatch.setattr(runtime, "compile_layers", lambda layers: numbers.append(len(layers)))
    workspace.train(tmp_path / "run", "train.compile=true", "train.max_steps=1")
    run = workspace.train(tmp_path / "run", "train.compile=false", "train.max_steps=2")
    assert numbers == [2]
    assert not outcome(run).progress["is_compiled"]


def test_a_compiled_run_says_where_it_cannot_be_compiled_again(
    workspace, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runtime, "compile_layers", lambda layers: None)
    workspace.train(tmp_path / "run", "train.compile=true", "train.max_steps=1")

    def break_layers(layers: list[nn.Module]) -> None:
        def fail(module: nn.Module, args: Any) -> None:
            raise RuntimeError("Failed to find C compiler.")

        for layer in layers:
            layer.register_forward_pre_hook(fail)

    monkeypatch.setattr(runtime, "compile_layers", break_layers)
    with pytest.raises(DeviceError, match="C compiler") as raised:
        workspace.train(tmp_path / "run", "train.max_steps=2", "train.compile=auto")
    assert "`train.compile` to `false`" in raised.value.fix
    workspace.train(tmp_path / "run", "train.max_steps=1")  # nothing to do, so nothing compiled
    assert "nothing to do" in capsys.readouterr().err
    run = workspace.train(tmp_path / "run", "train.max_steps=2", "train.compile=false")
    assert outcome(run).progress["step"] == 2
