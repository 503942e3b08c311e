"""The run directory: the only place that knows the names of the files in it.

    runs/<name>/
      config.yaml              the resolved config
      tokenizer.model          SentencePiece (or tokenizer.source.model and tokenizer.target.model)
      model.safetensors        the best weights
      checkpoints/             step-12000/, best-9000.safetensors: see training.checkpoints
      metrics.jsonl            one line per logged step and validation
      tensorboard/             the same metrics, if the config asks for them
      alignment.json           the attention head that `translate --alignment` uses
      sweep.json               quality against speed, from `eval --sweep`
      environment.json         versions and machines used in training
      attention.json           attention weights of a few test sentences
      scores.json              test set -> metric -> score, low, high, signature; facts
      translations/            outputs scored by `eval`: <split>.<checkpoint>.txt; .jsonl with
                               sources and model scores; .analysis.json with diagnostics
      data/                    manifest.json; raw text of valid and the test sets

Every file is written whole or not at all (see `storage`), and checked when it is read, since a run
may come from a stranger: a damaged file is a DataError, and no name in it leads out of the run.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mtrain.errors import CheckpointError, DataError, StorageError, UsageError
from mtrain.single_file import unpack
from mtrain.storage import (
    atomic_write,
    lock_file,
    parse_json,
    read_bytes,
    read_json,
    storage_errors,
)

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True)
class Split:
    """The raw text of a valid or test set."""

    name: str
    sources: list[str]
    references: list[str]
    sha256: str  # of both sides as stored in the run
    tag: str | None = None  # prepended to every source: see `tag` of the config's entries
    languages: tuple[str, str] | None = None  # None: the config's
    more_references: tuple[list[str], ...] = ()  # of given files, each as long as the sources

    @property
    def all_references(self) -> list[list[str]]:
        """One or more lists, each with one line per source."""
        return [self.references, *self.more_references]


@dataclass(frozen=True, slots=True)
class TranslatedLine:
    """A line of a test set and its translation."""

    source: str
    reference: str
    translation: str
    score: float | None  # log-probability / length^p; None where it was not kept


class ScoreKey(NamedTuple):
    """A key of scores.json: `flickr`, or `flickr[beam_size=1]` with settings unlike the run's."""

    split: str
    settings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> ScoreKey:
        """The inverse of `str`."""
        split, _, settings = text.removesuffix("]").partition("[")
        return cls(split, tuple(settings.split(",")) if settings else ())

    def __str__(self) -> str:
        return f"{self.split}[{','.join(self.settings)}]" if self.settings else self.split


class RunDir:
    """The files of a run directory: their paths, and methods that read and write them."""

    def __init__(self, path: str | Path, files: Path | None = None) -> None:
        """`files`: the directory of the files, if `path` is an exported file."""
        self.path = Path(path)
        self.files = files or self.path
        self.config = self.files / "config.yaml"
        self.weights = self.path if files else self.path / "model.safetensors"
        self.checkpoints = self.files / "checkpoints"
        self.metrics = self.files / "metrics.jsonl"
        self.tensorboard = self.files / "tensorboard"
        self.scores = self.files / "scores.json"
        self.alignment = self.files / "alignment.json"  # see decoding.alignment
        self.environment = self.files / "environment.json"  # see runtime.environment
        self.attention = self.files / "attention.json"  # of a few sentences
        self.sweep = self.files / "sweep.json"  # see evaluation.sweep
        self.translations = self.files / "translations"
        self.data = self.files / "data"
        self.manifest = self.data / "manifest.json"
        self.word_counts = self.data / "word_counts.json"
        self.data_report = self.data / "report.json"  # see data.data_report
        beside = self.path.absolute()
        self.lock = beside.with_name(f".{beside.name}.lock")  # held while it is trained
        self.epoch = beside.with_name(f".{beside.name}.epoch")  # drawn subwords: see data.epochs

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """Open an existing run.

        An exported file is unpacked into a temporary directory that lives as long as the object.
        Raises a UsageError if this is not a run, a CheckpointError if the file is damaged.
        """
        run = cls(path)
        if run.path.suffix == ".safetensors" and run.path.is_file():
            return cls._unpacked(run.path)
        if not run.path.exists():
            raise UsageError(
                f"{path} does not exist", "name a run directory, such as runs/quickstart"
            )
        if not run.config.is_file():
            raise UsageError(
                f"{path} is not a run directory (it holds no config.yaml)",
                "name the directory that `mtrain train` wrote, such as runs/quickstart",
            )
        return run

    @classmethod
    def _unpacked(cls, path: Path) -> RunDir:
        files = Path(tempfile.mkdtemp(prefix="mtrain-"))
        run = cls(path, files)
        weakref.finalize(run, shutil.rmtree, files, ignore_errors=True)
        unpack(path, files)
        return run

    @property
    def is_exported(self) -> bool:
        """Whether this is one file, without checkpoints, history and test sets."""
        return self.files != self.path

    def step_checkpoints(self) -> list[tuple[int, Path]]:
        """(step, directory) of every training state, oldest first."""
        return _numbered(self.checkpoints.glob("step-*"), r"step-(\d+)")

    def best_checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file) of the best weights; more than one only after a kill."""
        return _numbered(self.checkpoints.glob("best-*"), r"best-(\d+)\.safetensors")

    def good_checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file) of the next best weights, if the config keeps more than the best."""
        return _numbered(self.checkpoints.glob("good-*"), r"good-(\d+)\.safetensors")

    def named_checkpoints(self) -> dict[str, list[Path]]:
        """Name -> files of weights; several files are averaged."""
        steps = {
            f"step-{step}": path / "weights.safetensors" for step, path in self.step_checkpoints()
        }
        named: dict[str, list[Path]] = {key: [path] for key, path in steps.items()}
        if steps:
            newest = self.step_checkpoints()[-1][1]
            named["last"] = [newest / "weights.safetensors"]
            named["avg"] = list(steps.values())
            if (newest / "ema.safetensors").exists():
                named["ema"] = [newest / "ema.safetensors"]
        if best := self.best_checkpoints():
            named["best"] = [best[-1][1]]
            if good := self.good_checkpoints():
                named["avg-best"] = [best[-1][1], *(path for _, path in good)]
        return named

    def checkpoint_files(self, name: str | None) -> list[Path]:
        """The files of weights with a name; several files are averaged.

        None means model.safetensors or, during training, `best` or else `last`.
        """
        named = self.named_checkpoints()
        if self.is_exported and name is not None:
            raise CheckpointError(
                f"{self.path} is an exported model, whose weights have no name",
                "leave out --checkpoint",
            )
        if name is None:
            if self.weights.exists():
                return [self.weights]
            name = "best" if "best" in named else "last"
        if name in named:
            return named[name]
        if not named:
            raise CheckpointError(
                f"{self.path} has no checkpoint yet", "train it: `mtrain train CONFIG`"
            )
        raise CheckpointError(
            f"{self.path} has no checkpoint named `{name}` (found: {', '.join(sorted(named))})",
            "choose one of these with --checkpoint",
        )

    def splits(self) -> list[str]:
        """`valid` and the names of the test sets, in the config's order."""
        names: list[str] = self.read_manifest()["splits"]
        return names

    def read_manifest(self) -> dict[str, Any]:
        """The record of `prepare`: counts, hashes, split names, dropped pairs."""
        manifest: dict[str, Any] = _read(self.manifest, "MANIFEST")
        return manifest

    def read_word_counts(self) -> dict[str, dict[str, int]] | None:
        """Counts in the training text of the lower-cased words of valid and the test sets.

        {"source": {word: n}, "target": {word: n}}; None in runs of older versions.
        """
        counts: dict[str, dict[str, int]] | None = _read_if_there(self.word_counts, "WORD_COUNTS")
        return counts

    def prepared_data(self) -> Path | None:
        """The prepared data of the run; None if it no longer exists."""
        path = self.read_manifest().get("path")
        return Path(path) if path is not None and Path(path).is_dir() else None

    def read_environments(self) -> list[dict[str, str]]:
        """Versions and machines used in training, in order."""
        return _read_if_there(self.environment, "ENVIRONMENTS") or []

    def read_choices(self) -> list[dict[str, Any]]:
        """Values chosen for keys that are `auto`: key, value, reason; empty in older runs."""
        return _read_if_there(self.choices, "CHOICES") or []

    def read_data_report(self) -> dict[str, Any] | None:
        """The report of data.data_report; None in runs of older versions."""
        report: dict[str, Any] | None = _read_if_there(self.data_report, "DATA_REPORT")
        return report

    def read_sweep(self) -> list[dict[str, Any]]:
        """The fields of every evaluation.sweep.Point; empty before the first sweep."""
        return _read_if_there(self.sweep, "SWEEP") or []

    def read_attention(self) -> list[dict[str, Any]]:
        """The attention of a few sentences, as from decoding.attention.AttentionMaps.to_json."""
        return _read_if_there(self.attention, "ATTENTION") or []

    def read_split(self, name: str) -> Split:
        """The raw sentences of `valid` or of a test set."""
        if name not in self.splits():
            raise UsageError(
                f"{self.path} has no split named `{name}` (found: {', '.join(self.splits())})",
                "choose one of these with --split",
            )
        if self.is_exported:
            raise UsageError(
                f"{self.path} is an exported model, which holds no test sets",
                "give files: --source FILE --reference FILE",
            )
        sides = [self.data / f"{name}.{side}" for side in ("source", "target")]
        texts = [_read_text(side).encode() for side in sides]
        digest = hashlib.sha256(texts[0] + b"\0" + texts[1]).hexdigest()
        manifest = self.read_manifest()
        if digest != manifest["split_sha256"].get(name):
            raise DataError(
                f"the text of `{name}` in {self.data} was changed since it was prepared",
                "restore it, or train again with --fresh",
            )
        sources, references = (text.decode().split("\n")[:-1] for text in texts)
        tag, languages = (manifest.get(key, {}).get(name) for key in ("tags", "languages"))
        return Split(
            name, sources, references, digest, tag, None if languages is None else tuple(languages)
        )

    def read_alignment(self) -> dict[str, Any]:
        """sha256 of weights -> the fields of a decoding.alignment.AlignmentHead."""
        return _read_if_there(self.alignment, "HEADS") or {}

    def read_scores(self) -> dict[str, Any]:
        """All recorded scores; empty before the first."""
        return _read_if_there(self.scores, "SCORES") or {}

    @contextmanager
    def scores_locked(self) -> Iterator[None]:
        """Lock scores and translations for an update; other processes wait.

        Raises a StorageError if `translations` is a symbolic link.
        """
        if self.translations.is_symlink():
            raise StorageError(
                f"{self.translations} is a symbolic link", "replace it by a directory"
            )
        waiting = f"another process is writing the scores of {self.path}: waiting for it"
        with lock_file(self.files / ".scores.lock", waiting):
            yield

    def read_translations(self, key: str) -> list[TranslatedLine]:
        """The translations of a test set from `eval`; `key` is a key of scores.json."""
        stem = self._translations_stem(key)
        path = self.translations / f"{stem}.jsonl"
        is_old = not path.exists()  # runs of older versions have the text only
        path = path.with_name(f"{stem}.txt") if is_old else path
        lines = _read_text(path).split("\n")[:-1]
        if not is_old:
            return [
                TranslatedLine(**{name: line[name] for name in TranslatedLine.__slots__})
                for line in _parse_lines(path, lines, "TRANSLATED_LINE")
            ]
        split = self.read_split(ScoreKey.parse(key).split)
        if len(lines) != len(split.sources):
            raise _damaged(path, f"{len(lines):,} lines instead of {len(split.sources):,}")
        texts = zip(split.sources, split.references, lines, strict=True)
        return [TranslatedLine(*line, score=None) for line in texts]

    def read_analysis(self, key: str) -> dict[str, Any] | None:
        """The analysis of these translations; None in runs of older versions."""
        path = self.translations / f"{self._translations_stem(key)}.analysis.json"
        found: dict[str, Any] | None = _read_if_there(path, "ANY")
        return found

    def _translations_stem(self, key: str) -> str:
        """The file name, without suffix, of the translations of a key."""
        entry = self.read_scores().get(key)
        if entry is None:
            raise DataError(
                f"{self.path} has no translations of `{key}`",
                f"make one: mtrain eval {shlex.quote(str(self.path))}",
            )
        older = f"{ScoreKey.parse(key).split}.{entry.get('checkpoint', 'best')}"
        return str(entry.get("translations", older))

    @property
    def choices(self) -> Path:
        """What was chosen for the keys of the config that are `auto`."""
        return self.data / "choices.json"

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with storage_errors(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(_json_line(record))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines of metrics.jsonl; one cut short by a kill is skipped."""
        if not self.metrics.exists():
            return []
        lines = _read_text(self.metrics).split("\n")[:-1]
        return _parse_lines(self.metrics, filter(None, lines), "RECORD")

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        """Replace metrics.jsonl, whole or not at all."""
        atomic_write(self.metrics, "".join(_json_line(record) for record in records))


def _numbered(paths: Iterable[Path], pattern: str) -> list[tuple[int, Path]]:
    found = [(match, path) for path in paths if (match := re.fullmatch(pattern, path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def _json_line(record: dict[str, Any]) -> str:
    """One line of JSON; NaN and infinity become null."""
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_FIX = "restore the file, or train again"


def _damaged(path: Path, reason: object) -> DataError:
    return DataError(f"cannot read {path}: {reason}", _FIX)


def _shape(name: str) -> TypeAdapter[Any]:
    """One of `run_shapes`, imported late: pydantic would slow down `--help`."""
    from mtrain import run_shapes

    shape: TypeAdapter[Any] = getattr(run_shapes, name)
    return shape


def _read(path: Path, shape: str) -> Any:
    return read_json(path, _shape(shape), _FIX)


def _read_if_there(path: Path, shape: str) -> Any:
    return _read(path, shape) if path.exists() else None


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    except ValueError as error:
        raise _damaged(path, error) from error


def _parse_lines(path: Path, lines: Iterable[str], shape: str) -> list[dict[str, Any]]:
    """The objects of some JSON lines of a file."""
    try:
        return [parse_json(line, _shape(shape)) for line in lines]
    except ValueError as error:
        raise _damaged(path, error) from error
