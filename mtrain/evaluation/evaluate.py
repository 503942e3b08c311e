"""Source text to translations to scores: for validation, `eval`, and any pair of files.

All go through `_evaluate` and `metrics.score_all`, so that a validation, `mtrain eval` and the
scoring of a saved hypothesis file give equal numbers to the last digit. Scores of the run's own
test sets are kept in its scores.json, their translations in its translations/.

Torch is imported only where something is translated: scoring a given file does not need it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtrain import console
from mtrain.config import Config, DecodeConfig, read_run_config
from mtrain.data.stored_files import StoredFile
from mtrain.data.text_files import read_lines as read_stored_lines
from mtrain.errors import DataError, UsageError
from mtrain.evaluation.metrics import METRICS, Score, notices, score_all
from mtrain.run import RunDir, Split, atomic_write, write_json

if TYPE_CHECKING:
    from mtrain.decoding.translate import Translator

FILE = "file"  # what a given pair of files is called among the results
BEST = "best"  # the checkpoint that is taken where none is named


@dataclass(frozen=True)
class Evaluation:
    """One test set, translated and scored."""

    scores: dict[str, Score]  # bleu, chrf, ter
    hypotheses: list[str]
    facts: dict[str, Any] = field(default_factory=dict)  # beside the scores in JSON


@dataclass(frozen=True)
class Decoding:
    """What the command line changes of a run's own way of translating; None changes nothing."""

    checkpoint: str | None = None
    beam_size: int | None = None
    length_penalty: float | None = None
    device: str = "auto"

    def settings(self, config: Config) -> DecodeConfig:
        """The settings in force."""
        changed = {"beam_size": self.beam_size, "length_penalty": self.length_penalty}
        return config.decode.model_copy(
            update={key: value for key, value in changed.items() if value is not None}
        )


def evaluate_split(translator: Translator, split: Split, config: Config) -> Evaluation:
    """Validation: BLEU and chrF under the run's own decoding, without intervals."""
    return _evaluate(
        translator, split, config, config.decode, intervals=False, metrics=("bleu", "chrf")
    )


def evaluate_run(
    path: str | Path, split: str | None = None, decoding: Decoding | None = None
) -> dict[str, Evaluation]:
    """Translate and score one split of a run, or all its test sets; keep texts and scores there."""
    decoding = decoding or Decoding()
    run = RunDir.open(path)
    config = read_run_config(run)
    names = [split] if split else [name for name in run.splits() if name != "valid"]
    if not names:
        raise UsageError(f"{run.path} has no test set", "score its valid set: --split valid")
    splits = [run.read_split(name) for name in names]
    translator = _open_translator(run, decoding)
    results = {}
    for part in splits:
        results[part.name] = _evaluate_checkpoint(run, translator, part, config, decoding)
        _record(run, part.name, results[part.name], config)
    return results


def evaluate_files(
    path: str | Path, source: Path, reference: Path, decoding: Decoding | None = None
) -> dict[str, Evaluation]:
    """Translate any file with a run and score it; the run keeps nothing of it."""
    decoding = decoding or Decoding()
    run = RunDir.open(path)
    config = read_run_config(run)
    sources, references = _read_aligned(source, reference)
    given = Split(FILE, sources, references, _digest(sources, references))
    translator = _open_translator(run, decoding)
    return {FILE: _evaluate_checkpoint(run, translator, given, config, decoding)}


def evaluate_hypothesis(
    path: str | Path, hypothesis: Path, reference: Path
) -> dict[str, Evaluation]:
    """Score a given translation under a run's target language and settings, without its model."""
    config = read_run_config(RunDir.open(path))
    hypotheses, references = _read_aligned(hypothesis, reference)
    scores = _score(hypotheses, references, config)
    result = Evaluation(scores, hypotheses, {"sentences": len(hypotheses)})
    _give_notice(FILE, result, references, config)
    return {FILE: result}


def read_lines(path: Path) -> list[str]:
    """The lines of a given file, plain or compressed, as stored."""
    if path.is_dir() or not path.exists():
        raise DataError(
            f"{path} is a directory" if path.exists() else f"there is no file {path}",
            "correct the path; relative paths start at the current directory",
        )
    # No hash: it would read the file twice, which `<(zcat FILE)` does not allow.
    return list(read_stored_lines(StoredFile(str(path), path, sha256="")))


def to_json(results: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Test set -> metric -> score, low, high, signature; facts stand beside the metrics."""
    return {name: _as_object(result) for name, result in results.items()}


def format_scores(results: Mapping[str, Evaluation]) -> list[tuple[str, str, str, str, str]]:
    """Rows for people: test set, metric, score, interval, signature."""
    labels = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}
    return [
        (name, labels[metric], f"{score.score:.2f}", _interval(score), score.signature)
        for name, result in results.items()
        for metric, score in result.scores.items()
    ]


def _evaluate_checkpoint(
    run: RunDir, translator: Translator, split: Split, config: Config, decoding: Decoding
) -> Evaluation:
    console.message(f"{split.name}: translating {len(split.sources):,} sentences")
    result = _evaluate(translator, split, config, decoding.settings(config))
    _give_notice(split.name, result, split.references, config)
    # A run that has not been validated yet translates with its last checkpoint.
    has_best = run.weights.exists() or bool(run.best_checkpoints())
    facts = {
        "checkpoint": decoding.checkpoint or (BEST if has_best else "last"),
        "test_set_sha256": split.sha256,
    }
    return replace(result, facts=result.facts | facts)


def _evaluate(
    translator: Translator,
    split: Split,
    config: Config,
    decode: DecodeConfig,
    intervals: bool = True,
    metrics: Sequence[str] = METRICS,
) -> Evaluation:
    started_at = time.monotonic()
    hypotheses = translator.translate(
        split.sources, beam_size=decode.beam_size, length_penalty=decode.length_penalty
    )
    elapsed_s = time.monotonic() - started_at
    facts = {
        "sentences": len(hypotheses),
        "decode": {"beam_size": decode.beam_size, "length_penalty": decode.length_penalty},
        "seconds": round(elapsed_s, 2),
    }
    scores = _score(hypotheses, split.references, config, intervals, metrics)
    return Evaluation(scores, hypotheses, facts)


def _score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    config: Config,
    intervals: bool = True,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Score]:
    return score_all(
        hypotheses,
        references,
        config.target,
        config.evaluate.tokenize,
        config.evaluate.lowercase,
        intervals,
        metrics,
    )


def _give_notice(name: str, result: Evaluation, references: list[str], config: Config) -> None:
    """Warn of what an expert would see in the texts of one test set."""
    tokenize = config.evaluate.tokenize
    for notice in notices(result.hypotheses, references, config.target, tokenize):
        console.warn(f"{name}: {notice}")


def _open_translator(run: RunDir, decoding: Decoding) -> Translator:
    from mtrain.decoding.translate import Translator

    return Translator.from_run(run.path, checkpoint=decoding.checkpoint, device=decoding.device)


def _read_aligned(first: Path, second: Path) -> tuple[list[str], list[str]]:
    """Two files of which line n of the one belongs to line n of the other."""
    texts = read_lines(first), read_lines(second)
    if len(texts[0]) != len(texts[1]):
        raise DataError(
            f"{first} has {len(texts[0]):,} lines, but {second} has {len(texts[1]):,}",
            "give two files of which line n of the one belongs to line n of the other",
        )
    if not texts[0]:
        raise DataError(f"{first} and {second} are empty", "give files with at least one sentence")
    return texts


def _record(run: RunDir, name: str, result: Evaluation, config: Config) -> None:
    """Keep the translations and the scores of a split in the run.

    Scores stand under the name of the split; those made with another checkpoint or decoding than
    the run's own under the name and what differs, as `flickr[beam_size=1]`. The same settings
    replace what they scored before.
    """
    checkpoint = result.facts["checkpoint"]
    text = "".join(f"{line}\n" for line in result.hypotheses)
    atomic_write(run.translations / f"{name}.{checkpoint}.txt", text)
    own = {"beam_size": config.decode.beam_size, "length_penalty": config.decode.length_penalty}
    used = result.facts["decode"]
    differing = {key: used[key] for key in own if used[key] != own[key]}
    if checkpoint != BEST:
        differing = {"checkpoint": checkpoint, **differing}
    settings = ",".join(f"{key}={value}" for key, value in differing.items())
    scores = run.read_scores()
    scores[f"{name}[{settings}]" if settings else name] = _as_object(result)
    write_json(run.scores, scores)


def _as_object(result: Evaluation) -> dict[str, Any]:
    return {name: asdict(score) for name, score in result.scores.items()} | result.facts


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f"[{score.low:.2f}, {score.high:.2f}]"


def _digest(sources: list[str], references: list[str]) -> str:
    """The hash of two given files, as `prepare` makes it of its splits."""
    sides = ("".join(f"{line}\n" for line in side).encode() for side in (sources, references))
    return hashlib.sha256(b"\0".join(sides)).hexdigest()
