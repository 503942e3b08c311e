"""A trained model for use elsewhere: as a CTranslate2 model, or as one portable file.

Neither is trusted before it has translated. What is written stands beside its place first, is
checked there, and then takes its place; what fails the check is gone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mtrain import __version__, console
from mtrain.config.root import in_languages
from mtrain.data.cleaning import normalize
from mtrain.data.tokenizer import model_files
from mtrain.decoding.alignment import head_of_run
from mtrain.decoding.ctranslate2 import CTranslate2Engine, import_ctranslate2, save_ctranslate2
from mtrain.decoding.translate import Translator
from mtrain.errors import ModelError, StorageError, UsageError
from mtrain.evaluation.metrics import score_all
from mtrain.model.weights import digest, save_tensors, weights_of
from mtrain.run import RunDir, Split
from mtrain.single_file import FILE, MANIFEST
from mtrain.storage import new_directory, partial_path, storage_errors, write_json

N_SENTENCES = 200  # of valid, translated by both engines
MAX_BLEU_LOSS = 1.0  # points, on these; int8 and another stopping rule cost less
MAX_DIFFERENCE = {"float32": 1e-3}  # of a token's log-probability, on average
NOTE = "mtrain.json"  # says in a CTranslate2 directory what was exported, and how it did


@dataclass(frozen=True)
class Check:
    """The same sentences of valid, translated by both engines."""

    n_sentences: int
    n_same: int  # translations that are the same text
    bleu: float  # ours
    bleu_ctranslate2: float
    difference: float  # of the log-probability of a token of ours, on average

    def rows(self) -> list[tuple[str, str]]:
        """In words and numbers, for people."""
        return [
            ("sentences of valid", f"{self.n_sentences:,}"),
            ("the same translation", f"{self.n_same:,}"),
            ("BLEU by mtrain", f"{self.bleu:.2f}"),
            (
                "BLEU by CTranslate2",
                f"{self.bleu_ctranslate2:.2f} ({self.bleu_ctranslate2 - self.bleu:+.2f})",
            ),
            ("log-probability of a piece", f"differs by {self.difference:.1g} on average"),
        ]


# -- CTranslate2 -----------------------------------------------------------------------------


def export_ctranslate2(
    path: Path, directory: Path, quantization: str | None = None, checkpoint: str | None = None
) -> Check | None:
    """Write a run's model as a CTranslate2 model, with its tokenizer, and check it.

    The check is None where the run holds no valid set: an exported file. A ModelError where
    CTranslate2 translates much worse than we do.
    """
    import_ctranslate2()
    run = RunDir.open(path)
    translator = Translator.from_run(path, checkpoint, device="cpu", precision="fp32")
    with _new_directory(directory) as partial:
        pieces = translator.src_tokenizer.all_pieces(), translator.tgt_tokenizer.all_pieces()
        save_ctranslate2(translator.model, pieces, partial, translator.n_positions(), quantization)
        for file in model_files(run.files):
            shutil.copyfile(file, partial / file.name)
        check = None
        if not run.is_exported:
            check = compare(translator, partial, run.read_split("valid"), quantization)
            _judge(check, quantization)
        _write_note(partial / NOTE, run, translator, quantization, check)
    return check


def compare(
    translator: Translator, directory: Path, valid: Split, quantization: str | None = None
) -> Check:
    """Translate the beginning of valid by both engines, and let both score our translations."""
    translator = translator.tagged(valid.tag)
    config = in_languages(translator.config, valid.languages)
    tokenizers = translator.src_tokenizer, translator.tgt_tokenizer
    engine = CTranslate2Engine(directory, tokenizers, translator.model)
    theirs = translator.with_engine(engine)
    if quantization and not engine.compute_type.startswith(quantization):
        console.message(
            f"this machine does not compute in {quantization}: the check is made in "
            f"{engine.compute_type}, to which CTranslate2 converts the model here"
        )
    sources, references = valid.sources[:N_SENTENCES], valid.references[:N_SENTENCES]
    console.message(f"translating {len(sources):,} sentences of valid by both engines")
    translations = translator.translate(sources), theirs.translate(sources)
    bleu = [
        score_all(
            hypotheses,
            references,
            config.target,
            config.evaluate.tokenize,
            config.evaluate.lowercase,
            intervals=False,
            metrics=("bleu",),
        )["bleu"].score
        for hypotheses in translations
    ]
    return Check(
        len(sources),
        sum(ours == other for ours, other in zip(*translations, strict=True)),
        bleu[0],
        bleu[1],
        _difference(translator, theirs, sources, translations[0]),
    )


def _difference(
    translator: Translator, theirs: Translator, sources: list[str], targets: list[str]
) -> float:
    """Of the log-probabilities of all tokens of given translations that are not too long."""
    limit = translator.config.data.max_length
    src_ids, tgt_ids = (
        tokenizer.encode([normalize(line) for line in lines])
        for tokenizer, lines in (
            (translator.src_tokenizer, sources),
            (translator.tgt_tokenizer, targets),
        )
    )
    fitting = [i for i, ids in enumerate(src_ids) if ids and max(len(ids), len(tgt_ids[i])) < limit]
    if not fitting:
        return 0.0
    pairs = [sources[i] for i in fitting], [targets[i] for i in fitting]
    values, other_values = (
        [value for pair in by.score(*pairs) for value in pair.token_log_probs]
        for by in (translator, theirs)
    )
    return sum(abs(a - b) for a, b in zip(values, other_values, strict=True)) / len(values)


def _judge(check: Check, quantization: str | None) -> None:
    """A ModelError where the two engines cannot be said to hold the same model."""
    limit = MAX_DIFFERENCE.get(quantization or "float32")
    if check.bleu - check.bleu_ctranslate2 > MAX_BLEU_LOSS:
        raise ModelError(
            f"CTranslate2 translates {check.n_sentences:,} sentences of valid with BLEU "
            f"{check.bleu_ctranslate2:.2f}, mtrain with {check.bleu:.2f}: more than "
            f"{MAX_BLEU_LOSS:g} is lost",
            "export with another --quantization, such as float32",
        )
    if limit is not None and check.difference > limit:
        raise ModelError(
            f"CTranslate2's log-probabilities differ from ours by {check.difference:.4f} a piece, "
            f"more than {limit:g}",
            "report this with the config of the run: the conversion is wrong",
        )


def _write_note(
    path: Path, run: RunDir, translator: Translator, quantization: str | None, check: Check | None
) -> None:
    config = translator.config
    write_json(
        path,
        {
            "mtrain": __version__,
            "name": config.name,
            "source": config.source,
            "target": config.target,
            "weights_sha256": digest(weights_of(translator.model)),
            "quantization": quantization or "float32",
            "text": "normalise to NFC and single spaces before SentencePiece",
            "check": asdict(check) if check else None,
        },
    )


@contextmanager
def _new_directory(directory: Path) -> Iterator[Path]:
    """A directory beside the one wanted, which becomes that one if all goes well.

    An earlier export gives way; anything else that is there is a UsageError.
    """
    if directory.exists() and not (directory / NOTE).is_file() and not _is_empty(directory):
        raise UsageError(
            f"{directory} is there already, and is no exported model",
            "choose another place with -o",
        )
    with new_directory(directory) as partial:
        yield partial


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())


# -- one file --------------------------------------------------------------------------------


def export_safetensors(path: Path, file: Path, checkpoint: str | None = None) -> int:
    """Write a run into one file that is translated with in its place, and check it; -> bytes.

    It holds weights, config, tokenizer, scores, the head that shows word links, and the manifest
    of the data, with hashes of all text; no text itself.
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
    contents = _files(run)
    tensors = weights_of(translator.model) | {
        FILE + name: torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for name, content in contents.items()
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    facts = {"mtrain": __version__, "name": translator.config.name, "files": hashes}
    partial = partial_path(file).with_suffix(".safetensors")
    try:
        save_tensors(partial, tensors, facts)
        _check_file(partial, translator, run)
        with storage_errors(file):
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file.stat().st_size


def _files(run: RunDir) -> dict[str, bytes]:
    """The small files of a run by their names; the manifest without where the data is kept."""
    manifest = {key: value for key, value in run.read_manifest().items() if key != "path"}
    paths = [run.config, *model_files(run.files), run.scores, run.alignment]
    contents = {path.name: path.read_bytes() for path in paths if path.is_file()}
    return contents | {MANIFEST: json.dumps(manifest, indent=2, ensure_ascii=False).encode()}


def _check_file(file: Path, translator: Translator, run: RunDir) -> None:
    """A ModelError where the file does not translate as the run does."""
    again = Translator.from_run(file, device="cpu", precision="fp32")
    if translator.needs_tag:
        tag = translator.src_tokenizer.tags()[0]
        again, translator = again.tagged(tag), translator.tagged(tag)
    lines = ["A dog.", "1 2 3"] if run.is_exported else run.read_split("valid").sources[:3]
    if again.translate(lines) != translator.translate(lines):
        raise ModelError(f"{file} does not translate as {run.path} does", "export it again")
