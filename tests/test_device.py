"""What training and search ask of a GPU, without one: no copies, no waiting, no more launches.

They run on PyTorch's `meta` device, which knows shapes and types and computes nothing. With a CUDA
build of torch (scripts/check_cuda_build.sh), also on fake tensors that say they are on a GPU, which
takes the paths that only CUDA has; but such tensors cannot go backwards without a GPU.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtrain.config.root import Config
from mtrain.config.sections import ModelConfig
from mtrain.data import micro_batches
from mtrain.data.batching import BatchPlan
from mtrain.data.epochs import Epoch
from mtrain.data.tokenizer import EOS
from mtrain.decoding.sampling import Diverse, Sampler
from mtrain.decoding.scorers import EnsembleScorer, TransformerScorer, token_log_probs
from mtrain.decoding.search import LengthPenalty, Sources, beam_search, generate, likeliest
from mtrain.machine.distributed import Distributed
from mtrain.model import bf16_linear
from mtrain.model import loss as loss_module
from mtrain.model.loss import Loss
from mtrain.model.transformer import Transformer
from mtrain.training import learner as learner_module
from mtrain.training.learner import Learner
from mtrain.training.log import Meter
from mtrain.training.schedule import Progress

VOCAB = 211
SIZES = {"d_model": 16, "d_ff": 32, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}


def is_index(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype == torch.int64


def where() -> str:
    """The line of mtrain that is at work."""
    frame = sys._getframe()
    while frame.f_back is not None and not frame.f_globals["__name__"].startswith("mtrain."):
        frame = frame.f_back
    return f"{frame.f_code.co_name}:{frame.f_lineno}"


NO_LAUNCH = {"_unsafe_view", "empty", "new_empty", "empty_like"}  # beside what is a view


class Watch(TorchDispatchMode):
    """Counts what is launched, waited for and copied, on a device whose values nobody knows."""

    def __init__(self, device: torch.device, value_on_cpu: int = 0) -> None:
        """`value_on_cpu` is what fake tensors on the CPU hold, where their value is asked for."""
        super().__init__()
        self.device, self.value_on_cpu = device, value_on_cpu
        self.launches: Counter[str] = Counter()
        self.made: dict[int, Tensor] = {}  # indices, which stay so that no other has their `id`
        self.waits: Counter[str] = Counter()  # for the device, whose values the CPU asks for
        self.uploads = 0  # of tensors that were made on the CPU
        self.mixed: list[str] = []  # operations on tensors here and there

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (
            torch.is_inference_mode_enabled() and func.namespace == "aten"
        ):  # where operations arrive that consist of others
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        name, inputs = func.overloadpacket.__name__, self.places((args, kwargs))
        if name == "_local_scalar_dense":
            if self.device.type in inputs:
                self.waits[where()] += 1
                return self.answer(args[0].dtype)
            if isinstance(args[0], FakeTensor):
                return self.value_on_cpu
        is_copy = name in ("_to_copy", "copy_")
        if is_copy and self.device.type in inputs and self.target(args, kwargs) == "cpu":
            self.waits[where()] += 1
            return torch.zeros(args[-1 if name == "copy_" else 0].shape, dtype=args[0].dtype)
        if name == "nonzero":
            self.waits[where()] += 1
            return torch.empty(0, args[0].dim(), dtype=torch.int64, device=self.device)
        if name in ("index", "index_put_"):  # by a list, which no operation has made
            indices = [i for i in args[1] if i is not None]
            self.uploads += sum(
                id(i) not in self.made and i.device == args[0].device for i in indices
            )
        out = func(*args, **(kwargs or {}))
        self.made |= {id(leaf): leaf for leaf in tree_leaves(out) if is_index(leaf)}
        outputs = self.places(out)
        if "cpu" in inputs and self.device.type in inputs | outputs:
            if is_copy:
                self.uploads += 1
            else:
                self.mixed.append(f"{where()}: {name} of {inputs} to {outputs}")
        if self.device.type in outputs and not func.is_view and name not in NO_LAUNCH:
            self.launches[name] += 1
        return out

    def places(self, tree: Any) -> set[str]:
        """Where tensors are; single numbers may be on the CPU, as they travel with a launch."""
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        return {t.device.type for t in tensors if t.dim() or t.device.type != "cpu"}

    def target(self, args: Any, kwargs: dict[str, Any] | None) -> str:
        """Where a copy goes."""
        device = (kwargs or {}).get("device")
        return torch.device(device).type if device is not None else args[0].device.type

    def answer(self, dtype: torch.dtype) -> Any:
        """A value on the device: nothing is done yet; of the nodes in a cache all are needed."""
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_name != "_make_room":
            frame = frame.f_back
        if frame is not None:
            return frame.f_locals["is_needed"].shape[1]
        return dtype == torch.bool  # all hypotheses begin with the same token


@pytest.fixture(params=["meta", "cuda"])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """Where all tensors seem to be."""
    device = torch.device(request.param)
    if device.type == "cuda" and not torch.version.cuda:
        pytest.skip("needs a CUDA build of torch")
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    for table in (micro_batches.SUITABLE_TOKENS, micro_batches.ROOM):
        monkeypatch.setitem(table, "meta", table["cuda"])
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"],
        "_get_fused_kernels_supported_devices",
        lambda: ["meta", "cuda"],
    )
    if device.type == "meta":  # which autocast does not know
        monkeypatch.setattr(loss_module, "_dtype_of_products", lambda x, weight: weight.dtype)
        yield device
        return
    with FakeTensorMode(allow_non_fake_inputs=True):
        monkeypatch.setattr(FakeTensor, "tolist", one_copy)  # which would ask one by one
        monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda *_: None)
        answers = {
            "is_available": True,
            "is_bf16_supported": True,
            "get_device_capability": (9, 0),
            "is_current_stream_capturing": False,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        # Such a model cannot be moved, and a copy of it has no memory.
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
        monkeypatch.setattr(bf16_linear, "copy", SimpleNamespace(deepcopy=lambda model: model))
        yield device


def one_copy(tensor: FakeTensor) -> Any:
    """What `tolist` of a tensor on a GPU asks for; the values are zeros."""
    zeros = np.zeros(tensor.cpu().shape, dtype=float if tensor.is_floating_point() else int)
    return zeros.tolist()


# -- training --------------------------------------------------------------------------------


def config_of(device: torch.device, **optim: Any) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "source": "en",
            "target": "de",
            "data": {"train": ({"source": "a", "target": "b"},)},
            "model": {**SIZES, "dropout": 0.1},
            "train": {
                "batch_tokens": 400,
                "micro_batch_tokens": 300,
                "precision": "bf16" if device.type == "cuda" else "fp32",
                "optim": optim,
            },
        }
    )


class Store:
    """Sentences of given lengths."""

    def __init__(self, lengths: list[int]) -> None:
        self.src_lengths = self.tgt_lengths = np.array(lengths)

    def src(self, i: int) -> np.ndarray[Any, Any]:
        return np.full(self.src_lengths[i] - 1, EOS)

    tgt = src


def make_learner(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, **optim: Any
) -> tuple[Learner, Epoch]:
    store: Any = Store([10] * 20 + [*range(11, 31)] * 2)
    with device:  # where parameters are made
        learner = Learner(config_of(device, **optim), (VOCAB, VOCAB), Distributed(device))

    def without_backward(loss: Loss, n_target_tokens: int) -> Loss:
        for parameter in learner.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return loss._replace(smoothed=loss.smoothed.detach())

    if device.type == "cuda":
        monkeypatch.setattr(learner_module, "add_gradients", without_backward)
    plan = BatchPlan(store.src_lengths, store.tgt_lengths, 400, seed=1, epoch=0)
    return learner, Epoch(store, plan)


def watched_update(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, **optim: Any
) -> tuple[Watch, int]:
    """The second update, as the first makes the moments; and of how many micro-batches it was."""
    learner, epoch = make_learner(device, monkeypatch, **optim)
    progress = Progress()
    meter = Meter(progress, learner.distributed, time.perf_counter)
    meter.add(learner.update(epoch, 0, 1e-3, progress))
    with Watch(device) as watch:
        meter.add(learner.update(epoch, 1, 1e-3, progress))
    return watch, len(learner.micro_batches(epoch.plan, 1, progress))


OPTIMS = [
    {"optimizer": "adamw", "ema_decay": 0.0},
    {"optimizer": "muon"},
    {"consistency": "rdrop"},
    {"consistency": "simcut"},
]


@pytest.mark.parametrize("optim", OPTIMS, ids=str)
def test_an_update_waits_for_nothing_and_copies_only_ids(device, optim, monkeypatch):
    watch, n_micro_batches = watched_update(device, monkeypatch, **optim)
    assert n_micro_batches > 1
    assert not watch.waits
    assert not watch.mixed
    assert watch.uploads == 3 * n_micro_batches
    assert watch.launches.total() > 100


# -- search ----------------------------------------------------------------------------------

N, BEAM = 3, 4
CHOICES = {"greedy": likeliest, "sample": Sampler([1] * N), "diverse": Diverse(0.5)}


def make_scorer(device: torch.device) -> TransformerScorer:
    with device:
        model = Transformer(ModelConfig(**SIZES), VOCAB, VOCAB).eval()
    return TransformerScorer(model, "bf16" if device.type == "cuda" else "fp32")


def watched_search(
    device: torch.device, kind: str, max_length: int, shortest: int | None = None
) -> Watch:
    """Of padded sources, two tokens of whose outputs are given, to the longest output.

    From the maximum length of the shortest on, a step has tokens that are forced.
    """
    given = Sources(
        torch.full((N, 7), EOS, device=device),
        torch.ones(N, 1, 1, 7, dtype=torch.bool, device=device),
        torch.tensor([shortest or max_length - 2, max_length - 1, max_length]),
        torch.full((N, 2), EOS, device=device),
    )
    scorer: Any = make_scorer(device)
    if kind == "ensemble":
        scorer = EnsembleScorer([scorer, make_scorer(device)])
    with Watch(device, max_length) as watch:
        if kind in CHOICES:
            generate(scorer, given, 1 if kind == "greedy" else BEAM, CHOICES[kind], LengthPenalty())
        else:
            beam_search(scorer, given, BEAM, LengthPenalty())
    return watch


# What ten steps wait for: in each, whether all is done; and the room in the caches, now and then.
WAITS = {"beam": 10 + 3, "ensemble": 10 + 6, "greedy": 10 + 3, "diverse": 10 + 3, "sample": 20 + 3}


@pytest.mark.parametrize("kind", WAITS)
def test_a_step_of_a_search_waits_once_and_copies_nothing(device, kind):
    short, long = (watched_search(device, kind, max_length, shortest=3) for max_length in (5, 15))
    assert not long.mixed
    assert long.waits.total() - short.waits.total() <= WAITS[kind]
    assert long.uploads - short.uploads <= (10 if kind == "sample" else 0)  # what is drawn
    assert short.waits.total() <= WAITS[kind] * 2 + 20  # and what comes back at the end


def test_scoring_waits_for_its_result_alone(device):
    scorer = make_scorer(device)
    src = torch.full((N, 7), EOS, device=device)
    with Watch(device, 1) as watch:
        token_log_probs([scorer.model] * 2, src, None, [[EOS] * 5] * N)
    assert not watch.mixed
    assert watch.waits.total() <= 1
    assert watch.uploads <= 1  # the targets


# -- launches --------------------------------------------------------------------------------

# A small model takes as long as its launches do. Lower the limits where they can be.
LAUNCHES = {"adamw": 310, "muon": 370, "beam": 108, "greedy": 67}


@pytest.mark.parametrize("device", ["meta"], indirect=True)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_has_no_more_launches_than_it_had(device, optimizer, monkeypatch):
    watch, n = watched_update(device, monkeypatch, optimizer=optimizer)
    assert watch.launches.total() / n <= LAUNCHES[optimizer]


@pytest.mark.parametrize("device", ["meta"], indirect=True)
@pytest.mark.parametrize("kind", ["beam", "greedy"])
def test_a_step_of_a_search_has_no_more_launches_than_it_had(device, kind):
    short, long = (watched_search(device, kind, n) for n in (5, 15))
    assert (long.launches.total() - short.launches.total()) / 10 <= LAUNCHES[kind]
