"""Starts a model from the weights of another run, which shares its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mtrain import console
from mtrain.data.prepare import Prepared
from mtrain.data.tokenizer import load_tokenizers
from mtrain.errors import CheckpointError, UsageError
from mtrain.model.weights import load_tensors, weights_of
from mtrain.run import RunDir

# Where a tied model keeps what an untied one has apart.
TIED_TO = {"tgt_embedding.weight": "src_embedding.weight", "output.weight": "tgt_embedding.weight"}


def start_from(model: nn.Module, path: Path, prepared: Prepared) -> None:
    """Copy every tensor of a run's model that fits, and say which ones do not."""
    run = RunDir.open(path)
    _check_tokenizer(run, prepared)
    file = run.checkpoint_files(None)[0]
    theirs, _ = load_tensors(file)
    own = weights_of(model)
    taken = {}
    for name, tensor in own.items():
        found = _find(theirs, name)
        if found is None:
            console.message(f"{name} begins at random: {file} has none")
        elif found.shape != tensor.shape:
            was, now = ("x".join(map(str, x.shape)) for x in (found, tensor))
            console.message(f"{name} begins at random: it is {now}, and {was} in {file}")
        else:
            taken[name] = found
    for name in theirs.keys() - own.keys():
        console.message(f"{name} of {file} is not taken: this model has none")
    if not taken:
        raise CheckpointError(
            f"nothing in {file} fits this model", "give `model` the sizes of that run's"
        )
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    console.message(f"begins with {len(taken)} of {len(own)} tensors of {file}")


def _find(weights: Mapping[str, Tensor], name: str) -> Tensor | None:
    """A tensor by its name in a model that may tie it to another."""
    while name not in weights and name in TIED_TO:
        name = TIED_TO[name]
    return weights.get(name)


def _check_tokenizer(run: RunDir, prepared: Prepared) -> None:
    """The ids of the data must mean the pieces of the run."""
    own, theirs = (
        [side.all_pieces() for side in load_tokenizers(path)] for path in (prepared.path, run.path)
    )
    if own != theirs:
        raise UsageError(
            f"`train.init_from` is {run.path}, but the data was prepared with another tokenizer",
            "take over that run's with `tokenizer.model`, and prepare again",
        )
