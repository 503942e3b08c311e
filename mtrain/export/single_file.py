"""A run as one safetensors file that is used like the run; `mtrain.single_file` reads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from mtrain import __version__
from mtrain.data.tokenizer import model_files
from mtrain.decoding.alignment import head_of_run
from mtrain.decoding.translate import Translator
from mtrain.errors import ModelError, StorageError, UsageError
from mtrain.model.weights import save_tensors, weights_of
from mtrain.run import RunDir
from mtrain.single_file import FILE, MANIFEST
from mtrain.storage import partial_path, storage_errors


def export_safetensors(path: Path, file: Path, checkpoint: str | None = None) -> int:
    """Write a run into one file, and check that it translates like the run; -> size in bytes.

    It holds weights, config, tokenizer, scores, the attention head for word links, and the manifest
    of the data with the hashes of all text, but not the text itself.
    """
    if file.suffix != ".safetensors":
        raise UsageError(f"{file} does not end in .safetensors", "choose such a name with -o")
    if file.is_dir() or not file.absolute().parent.is_dir():
        problem = "it is a directory" if file.is_dir() else "its directory does not exist"
        raise StorageError(f"cannot write {file}: {problem}", "choose another place with -o")
    run = RunDir.open(path)
    translator = Translator.from_run(path, checkpoint, device="cpu", precision="fp32")
    if not run.is_exported:
        head_of_run(run, translator)
    contents = _small_files(run)
    tensors = weights_of(translator.model) | {
        FILE + name: torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for name, content in contents.items()
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    facts = {"mtrain": __version__, "name": translator.config.name, "files": hashes}
    partial = partial_path(file).with_suffix(".safetensors")
    try:
        save_tensors(partial, tensors, facts)
        _check(partial, translator, run)
        with storage_errors(file):
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file.stat().st_size


def _small_files(run: RunDir) -> dict[str, bytes]:
    """The small files of a run by name; the manifest without the path of the prepared data."""
    manifest = {key: value for key, value in run.read_manifest().items() if key != "path"}
    paths = [run.config, *model_files(run.files), run.scores, run.alignment]
    contents = {path.name: path.read_bytes() for path in paths if path.is_file()}
    return contents | {MANIFEST: json.dumps(manifest, indent=2, ensure_ascii=False).encode()}


def _check(file: Path, translator: Translator, run: RunDir) -> None:
    """Raise a ModelError if the file does not translate like the run."""
    reread = Translator.from_run(file, device="cpu", precision="fp32")
    if translator.needs_tag:
        tag = translator.src_tokenizer.tags()[0]
        reread, translator = reread.tagged(tag), translator.tagged(tag)
    lines = ["A dog.", "1 2 3"] if run.is_exported else run.read_split("valid").sources[:3]
    if reread.translate(lines) != translator.translate(lines):
        raise ModelError(f"{file} does not translate like {run.path}", "export it again")
