"""The header of our safetensors files, and the single file that holds a whole run.

Such a file is an extended checkpoint: besides the weights, it holds each small file of the run
(config, tokenizer, scores, manifest) as a tensor of bytes named `file:NAME`. To open it as a run,
these are written into a temporary directory, and the weights are read from the file. It may come
from a stranger: only the names in `RUN_FILES` are accepted, and nothing is written before all files
are checked. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtrain.errors import CheckpointError
from mtrain.storage import atomic_write, parse_json

FORMAT = 1
FIX = "use another checkpoint, or train again"
FILE = "file:"  # prefix of the name of a tensor that is a file
MANIFEST = "data/manifest.json"
RUN_FILES = {  # that an exported file may hold
    *("config.yaml", "tokenizer.model", "tokenizer.source.model", "tokenizer.target.model"),
    *("scores.json", "alignment.json", MANIFEST),
}


@contextmanager
def open_tensors(path: Path, framework: str) -> Iterator[Any]:
    """A safetensors file, open; a CheckpointError if it is missing, damaged or cut short.

    Only regular files are opened: reading a pipe or a device may never end.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if not path.exists():
            raise FileNotFoundError
        if not path.is_file():
            raise OSError("not a regular file")
        with safe_open(path, framework) as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged or cut short ({reason})", FIX) from error


def read_note(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """`format`, `sha256` and `facts` of a file; a CheckpointError if it is not ours."""
    if "mtrain" not in (metadata or {}):
        raise CheckpointError(
            f"{path} was not written by mtrain", "name a run, or a file that `mtrain export` wrote"
        )
    assert metadata is not None
    from mtrain.run_shapes import NOTE

    try:
        note: dict[str, Any] = parse_json(metadata["mtrain"], NOTE)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its header cannot be read", FIX) from error
    if note["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {note['format']}; this mtrain reads format {FORMAT}",
            "upgrade mtrain",
        )
    return note


def unpack(path: Path, directory: Path) -> None:
    """Write the files of a run that are in a single file into a directory, without the weights.

    Raises a CheckpointError, before anything is written, if the file is damaged, was written by a
    newer mtrain or another program, or holds only weights.
    """
    with open_tensors(path, "np") as file:
        hashes: dict[str, str] | None = read_note(path, file.metadata())["facts"].get("files")
        if not hashes:
            raise CheckpointError(
                f"{path} holds only weights",
                "name the run directory that it belongs to, or make one file of that run: "
                "mtrain export RUN --to safetensors -o FILE",
            )
        if unknown := sorted(hashes.keys() - RUN_FILES):
            raise CheckpointError(
                f"{path} holds {unknown[0]!r}, which is not a file of a run",
                "do not use a file whose origin you do not trust; export the run again",
            )
        if any(file.get_slice(FILE + name).get_dtype() != "U8" for name in hashes):
            raise ValueError("a file in it is not stored as bytes")
        contents = {name: file.get_tensor(FILE + name).tobytes() for name in hashes}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != hashes[name]:
            raise CheckpointError(f"{path} is damaged: the {name} in it was changed", FIX)
    for name, content in contents.items():
        atomic_write(directory / name, content)
