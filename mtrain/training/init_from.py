"""Initialises a model with the weights of another run that has the same tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mtrain import console
from mtrain.data.prepare import Prepared
from mtrain.data.tokenizer import load_tokenizers
from mtrain.errors import CheckpointError, UsageError
from mtrain.model.weights import load_tensors, weights_of
from mtrain.run import RunDir

# The tensor that replaces it in a tied model.
TIED_TO = {"tgt_embedding.weight": "src_embedding.weight", "output.weight": "tgt_embedding.weight"}


def init_weights(model: nn.Module, path: Path, prepared: Prepared) -> None:
    """Copy every tensor of the run's model that fits, and report the others."""
    run = RunDir.open(path)
    _check_tokenizer(run, prepared)
    file = run.checkpoint_files(None)[0]
    theirs, _ = load_tensors(file)
    own = weights_of(model)
    fitting = {}
    for name, tensor in own.items():
        source = name
        while source not in theirs and source in TIED_TO:
            source = TIED_TO[source]
        if source not in theirs:
            console.message(f"{name} is initialised randomly: {file} has none")
        elif theirs[source].shape != tensor.shape:
            was, now = ("x".join(map(str, x.shape)) for x in (theirs[source], tensor))
            console.message(f"{name} is initialised randomly: it is {now}, and {was} in {file}")
        else:
            fitting[name] = theirs[source]
    for name in theirs.keys() - own.keys():
        console.message(f"{name} of {file} is not used: this model has none")
    if not fitting:
        raise CheckpointError(
            f"no tensor of {file} fits this model", "give `model` the sizes of that run's"
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    console.message(f"initialised {len(fitting)} of {len(own)} tensors from {file}")


def _check_tokenizer(run: RunDir, prepared: Prepared) -> None:
    """The ids in the data must mean the pieces of the run."""
    own, theirs = (
        [side.all_pieces() for side in load_tokenizers(path)] for path in (prepared.path, run.path)
    )
    if own != theirs:
        raise UsageError(
            f"`train.init_from` is {run.path}, but the data was prepared with another tokenizer",
            "use that run's, with `tokenizer.model`, and prepare again",
        )
