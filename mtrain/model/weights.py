"""Weights on disk, by name: safetensors with a digest, so that damage is detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtrain.config.load import read_run_config
from mtrain.errors import CheckpointError
from mtrain.model.transformer import Transformer
from mtrain.run import RunDir
from mtrain.single_file import FILE, FIX, FORMAT, open_tensors, read_note
from mtrain.storage import atomic_write

# The dtypes of our files, with their names in safetensors.
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write tensors and facts (any JSON) into one file, atomically."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    note = {"format": FORMAT, "sha256": digest(on_cpu, facts), "facts": facts}
    metadata = {"mtrain": json.dumps(note, sort_keys=True)}
    atomic_write(path, safetensors_parts(on_cpu, metadata))


def safetensors_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """A safetensors file in parts, without copies: length of the header, header, each tensor.

    The bytes equal the library's. Its `save` holds the GIL while it copies all tensors, which would
    pause training; its `save_file` reports a full disk in its own words, makes the file private to
    the user, and leaves a partial file when killed.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield _bytes_of(tensors[name])


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    data: memoryview = tensor.flatten().view(torch.uint8).numpy().data
    return data


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the facts; a CheckpointError if the file is damaged."""
    with open_tensors(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    note = read_note(path, metadata)
    facts: dict[str, Any] = note["facts"]
    if strange := {str(t.dtype) for t in tensors.values() if t.dtype not in DTYPES}:
        raise CheckpointError(f"{path} holds tensors of type {', '.join(sorted(strange))}", FIX)
    if digest(tensors, facts) != note["sha256"]:
        raise CheckpointError(f"{path} is damaged: its contents do not match its own sha256", FIX)
    return tensors, facts


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a file of `save_tensors`, without its tensors."""
    with open_tensors(path, "pt") as file:
        facts: dict[str, Any] = read_note(path, file.metadata())["facts"]
    return facts


def digest(tensors: Mapping[str, Tensor], facts: Mapping[str, object] | None = None) -> str:
    """sha256 over the facts, then names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(_bytes_of(tensor))
    return total.hexdigest()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once, by name; tied ones under the name of the first."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def set_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Copy weights into the model, or raise the CheckpointError of `check_fit`."""
    check_fit(model, weights, origin)
    for name, parameter in weights_of(model).items():
        parameter.copy_(weights[name])


def check_fit(model: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Raise a CheckpointError that names missing, unknown or misshapen tensors."""
    own = weights_of(model)
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    if missing or unknown:
        lacks = f"lacks {', '.join(sorted(missing)[:3])}" if missing else ""
        has = f"has unknown {', '.join(sorted(unknown)[:3])}" if unknown else ""
        raise CheckpointError(
            f"{origin} was made for another model: it {' and '.join(filter(None, (lacks, has)))}"
        )
    for name, parameter in own.items():
        if parameter.shape != weights[name].shape:
            raise CheckpointError(
                f"{origin} was made for another model: {name} is "
                f"{tuple(weights[name].shape)}, not {tuple(parameter.shape)}"
            )


def load_model(run: RunDir, checkpoint: str | None, device: torch.device) -> Transformer:
    """A run's model with the weights of a named checkpoint (None: the winner), ready to use."""
    files = run.checkpoint_files(checkpoint)
    weights = average(_weights_in(path) for path in files)
    sizes = read_run_config(run).model, *vocab_sizes(weights, files[0])
    with torch.device("meta"):  # the sizes in a config may exceed the memory
        check_fit(Transformer(*sizes), weights, files[0])
    model = Transformer(*sizes)
    set_weights(model, weights, files[0])
    return model.eval().to(device)


def _weights_in(path: Path) -> dict[str, Tensor]:
    """The weights in a file; an exported run also contains other files."""
    tensors, _ = load_tensors(path)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(FILE)}


def vocab_sizes(weights: Mapping[str, Tensor], origin: Path) -> tuple[int, int]:
    """The number of rows of the source embedding and of the output projection."""
    for name in ("output.weight", "tgt_embedding.weight", "src_embedding.weight"):
        if name in weights and "src_embedding.weight" in weights:
            return len(weights["src_embedding.weight"]), len(weights[name])
    raise CheckpointError(f"{origin} does not hold an mtrain model: it has no source embedding")


def average(many: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several sets of weights, summed in double precision."""
    first, *others = many
    total = {name: tensor.double() for name, tensor in first.items()}
    for weights in others:
        if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in first.items()}:
            raise CheckpointError("checkpoints of different models cannot be averaged")
        for name in total:
            total[name] += weights[name]
    n = 1 + len(others)
    return {name: (tensor / n).to(first[name].dtype) for name, tensor in total.items()}
