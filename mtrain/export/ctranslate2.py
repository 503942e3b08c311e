"""A run as a CTranslate2 model, checked on the valid set before it is put in place."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from mtrain import __version__, console
from mtrain.data.cleaning import normalize
from mtrain.data.tokenizer import model_files
from mtrain.decoding.ctranslate2 import CTranslate2Engine, import_ctranslate2, save_ctranslate2
from mtrain.decoding.translate import Translator
from mtrain.errors import ModelError, UsageError
from mtrain.evaluation.metrics import score_all, scoring_of
from mtrain.model.weights import digest, weights_of
from mtrain.run import RunDir, Split
from mtrain.storage import new_directory, write_json

N_SENTENCES = 200  # of valid, translated by both engines
MAX_BLEU_LOSS = 1.0  # points on these; int8 and a different stopping rule cost less
MAX_DIFFERENCE = {"float32": 1e-3}  # mean difference of token log-probabilities, by quantization
NOTE = "mtrain.json"  # marks an exported directory: what was exported, and the result of the check


@dataclass(frozen=True)
class Check:
    """The same sentences of valid, translated by both engines."""

    n_sentences: int
    n_same: int  # identical translations
    bleu: float  # of mtrain
    bleu_ctranslate2: float
    difference: float  # of the log-probability of a token of mtrain's translations, on average

    def rows(self) -> list[tuple[str, str]]:
        """A table for the terminal."""
        loss = f"{self.bleu_ctranslate2 - self.bleu:+.2f}"
        return [
            ("sentences of valid", f"{self.n_sentences:,}"),
            ("identical translations", f"{self.n_same:,}"),
            ("BLEU by mtrain", f"{self.bleu:.2f}"),
            ("BLEU by CTranslate2", f"{self.bleu_ctranslate2:.2f} ({loss})"),
            ("log-probability per piece", f"differs by {self.difference:.1g} on average"),
        ]

    def require(self, quantization: str | None) -> None:
        """Raise a ModelError if CTranslate2 is much worse, or computes something else."""
        if self.bleu - self.bleu_ctranslate2 > MAX_BLEU_LOSS:
            raise ModelError(
                f"CTranslate2 translates {self.n_sentences:,} sentences of valid with BLEU "
                f"{self.bleu_ctranslate2:.2f}, mtrain with {self.bleu:.2f}: a loss of more than "
                f"{MAX_BLEU_LOSS:g}",
                "export with another --quantization, such as float32",
            )
        limit = MAX_DIFFERENCE.get(quantization or "float32")
        if limit is not None and self.difference > limit:
            raise ModelError(
                f"CTranslate2's log-probabilities differ from ours by {self.difference:.4f} per "
                f"piece, more than {limit:g}",
                "report this with the config of the run: the conversion is wrong",
            )


def export_ctranslate2(
    path: Path, directory: Path, quantization: str | None = None, checkpoint: str | None = None
) -> Check | None:
    """Write a run's model and tokenizer for CTranslate2, and compare the translations of both.

    The result is None if the run has no valid set (an exported file). Raises a ModelError, and
    leaves no files, if CTranslate2 translates much worse; a UsageError if the directory holds
    anything but an earlier export.
    """
    import_ctranslate2()
    run = RunDir.open(path)
    translator = Translator.from_run(path, checkpoint, device="cpu", precision="fp32")
    is_empty = directory.is_dir() and not any(directory.iterdir())
    if directory.exists() and not is_empty and not (directory / NOTE).is_file():
        raise UsageError(
            f"{directory} exists already, and is not an exported model",
            "choose another place with -o",
        )
    with new_directory(directory) as partial:
        pieces = translator.src_tokenizer.all_pieces(), translator.tgt_tokenizer.all_pieces()
        save_ctranslate2(translator.model, pieces, partial, translator.n_positions(), quantization)
        for file in model_files(run.files):
            shutil.copyfile(file, partial / file.name)
        check = None
        if not run.is_exported:
            check = compare(translator, partial, run.read_split("valid"), quantization)
            check.require(quantization)
        note = {
            "mtrain": __version__,
            "name": translator.config.name,
            "source": translator.config.source,
            "target": translator.config.target,
            "weights_sha256": digest(weights_of(translator.model)),
            "quantization": quantization or "float32",
            "text": "normalise to NFC and single spaces before SentencePiece",
            "check": asdict(check) if check else None,
        }
        write_json(partial / NOTE, note)
    return check


def compare(
    translator: Translator, directory: Path, valid: Split, quantization: str | None = None
) -> Check:
    """Translate the start of valid with both engines; both score mtrain's translations."""
    translator = translator.tagged(valid.tag)
    settings = scoring_of(translator.config, valid.languages)
    tokenizers = translator.src_tokenizer, translator.tgt_tokenizer
    engine = CTranslate2Engine(directory, tokenizers, translator.model)
    other = translator.with_engine(engine)
    if quantization and not engine.compute_type.startswith(quantization):
        console.message(
            f"this machine does not compute in {quantization}: the check is made in "
            f"{engine.compute_type}, to which CTranslate2 converts the model here"
        )
    sources, references = valid.sources[:N_SENTENCES], valid.references[:N_SENTENCES]
    console.message(f"translating {len(sources):,} sentences of valid with both engines")
    ours = translator.translate(sources)
    theirs = other.translate(sources)
    bleu, bleu_ctranslate2 = (
        score_all(texts, references, *settings, intervals=False, metrics=("bleu",))["bleu"].score
        for texts in (ours, theirs)
    )
    n_same = sum(text == other for text, other in zip(ours, theirs, strict=True))
    difference = _difference(translator, other, sources, ours)
    return Check(len(sources), n_same, bleu, bleu_ctranslate2, difference)


def _difference(
    translator: Translator, other: Translator, sources: list[str], targets: list[str]
) -> float:
    """Mean absolute difference of token log-probabilities, over pairs within the length limit."""
    limit = translator.config.data.max_length
    src_ids = translator.src_tokenizer.encode([normalize(line) for line in sources])
    tgt_ids = translator.tgt_tokenizer.encode([normalize(line) for line in targets])
    fitting = [i for i, ids in enumerate(src_ids) if ids and max(len(ids), len(tgt_ids[i])) < limit]
    if not fitting:
        return 0.0
    pairs = [sources[i] for i in fitting], [targets[i] for i in fitting]
    ours, theirs = (
        [value for pair in by.score(*pairs) for value in pair.token_log_probs]
        for by in (translator, other)
    )
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
