"""The header of our safetensors files, and the one file that a whole run fits into.

Such a file is a checkpoint with more in it: beside the weights, each small file of the run (config,
tokenizer, scores, manifest) is a tensor of bytes named `file:NAME`. Opened as a run, those are
written into a directory of its own, and the weights are read from where they are. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtrain.errors import CheckpointError

FORMAT = 1
FIX = "use another checkpoint, or train again"
FILE = "file:"  # begins the name of a tensor that is a file


def read_note(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """`format`, `sha256` and `facts` of a file; a CheckpointError if it is not ours."""
    if "mtrain" not in (metadata or {}):
        raise CheckpointError(
            f"{path} was not written by mtrain", "name a run, or a file that `mtrain export` wrote"
        )
    assert metadata is not None
    try:
        note: dict[str, Any] = json.loads(metadata["mtrain"])
        version, _, _ = note["format"], note["sha256"], note["facts"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its header cannot be read", FIX) from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}; this mtrain reads format {FORMAT}", "upgrade mtrain"
        )
    return note


def unpack(path: Path, directory: Path) -> None:
    """Write the files of a run that stand in a file into a directory; the weights stay there.

    A CheckpointError where it is damaged, was made by a newer mtrain or another program, or holds
    weights alone.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            hashes = read_note(path, file.metadata())["facts"].get("files")
            if not hashes:
                raise CheckpointError(
                    f"{path} holds weights alone",
                    "name the run directory that it belongs to, or make one file of that run: "
                    "mtrain export RUN --to safetensors -o FILE",
                )
            contents = {name: file.get_tensor(FILE + name).tobytes() for name in hashes}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({error})", "copy or export it again"
        ) from error
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != hashes[name]:
            raise CheckpointError(
                f"{path} is damaged: the {name} in it was changed", "copy or export it again"
            )
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
