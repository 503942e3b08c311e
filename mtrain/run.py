"""The run directory: the only place that knows the names of the files in it.

    runs/<name>/
      config.yaml              the resolved config
      tokenizer.model          SentencePiece (tokenizer.source.model and .target.model, one a side)
      model.safetensors        the winner
      checkpoints/             step-12000/, best-9000.safetensors: see training.state
      metrics.jsonl            one line for every logged step and validation
      tensorboard/             the same numbers, where the config asks for them
      alignment.json           the attention head that shows word links, once they were asked for
      sweep.json, sweep.svg    quality against speed, once `eval --sweep` measured it
      environment.json         versions and machines it was trained with
      attention.json           of a few test sentences
      scores.json              test set -> metric -> score, low, high, signature; facts
      translations/            what `eval` scored: <split>.<checkpoint>.txt, with sources and model
                               scores .jsonl, what was found in them .analysis.json
      data/                    manifest.json; raw text of valid and every test set

Every file is written whole or not at all: beside its place first, then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrain.errors import CheckpointError, DataError, StorageError, UsageError
from mtrain.portable import unpack

# What is wrong with a place, rather than with the program.
REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EIO, errno.EFBIG),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a full disk or a closed directory into our words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left on the disk while writing {path}", "free some space; then repeat"
            ) from error
        if error.errno in REFUSALS:
            raise StorageError(
                f"cannot write {path}: {(error.strerror or 'refused').lower()}",
                "check the permissions of the directory, or choose another place",
            ) from error
        raise


def atomic_write(path: Path, content: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all: beside its place, flushed to the disk, then renamed.

    What is large may come in parts.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(path.name + ".tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: object) -> None:
    """Readable JSON, written whole or not at all."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """Of the bytes as stored."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Split:
    """Raw text that came with the run: a valid or test set."""

    name: str
    sources: list[str]
    references: list[str]
    sha256: str  # of both sides as stored in the run
    tag: str | None = None  # in front of every source, see `tag` of the config's entries


@dataclass(frozen=True, slots=True)
class TranslatedLine:
    """A line of a test set, and what a run made of it."""

    source: str
    reference: str
    translation: str
    score: float | None  # log-probability / length^p; None where it was not kept


class RunDir:
    """The paths inside a run directory, and what is read from and written to them."""

    def __init__(self, path: str | Path, files: Path | None = None) -> None:
        """`files` is where the files are, if not in `path`: that of an exported one is a file."""
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
        self.attention = self.files / "attention.json"  # of a few sentences: evaluation.samples
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
        """An existing run, or a UsageError that says why this is none.

        An exported file is unpacked into a directory that lives as long as the object; a
        CheckpointError says what is wrong with the file.
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
        """One file, without checkpoints, history and the text of its test sets."""
        return self.files != self.path

    def step_checkpoints(self) -> list[tuple[int, Path]]:
        """(step, directory) of every whole training state, oldest first."""
        return _numbered(self.checkpoints.glob("step-*"), r"step-(\d+)")

    def best_checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file) of the best weights; more than one only where a kill came in between."""
        return _numbered(self.checkpoints.glob("best-*"), r"best-(\d+)\.safetensors")

    def good_checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file) of the next best weights, where the config keeps more than the best."""
        return _numbered(self.checkpoints.glob("good-*"), r"good-(\d+)\.safetensors")

    def named_checkpoints(self) -> dict[str, list[Path]]:
        """Name -> the weights that it stands for, several where they are to be averaged."""
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
        """The weights that a name stands for, several where they are to be averaged.

        None is the winner: model.safetensors, and while training goes on `best`, then `last`.
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
        names = self.read_manifest()["splits"]
        assert isinstance(names, list)
        return names

    def read_manifest(self) -> dict[str, Any]:
        """What `prepare` recorded of the data: counts, hashes, split names, dropped pairs."""
        manifest = _read_json(self.manifest)
        if missing := {"splits", "split_sha256", "files", "length_ratio"} - manifest.keys():
            raise _unreadable(self.manifest, f"it lacks {', '.join(sorted(missing))}")
        return manifest

    def read_word_counts(self) -> dict[str, dict[str, int]] | None:
        """How often each lower-cased word of valid and the test sets occurs in the training text.

        {"source": {word: n}, "target": {word: n}}; None in a run that does not know.
        """
        return _read_json(self.word_counts) if self.word_counts.exists() else None

    def prepared_data(self) -> Path | None:
        """The prepared data that the run was trained on; None where it is not there any more."""
        path = self.read_manifest().get("path")
        return Path(path) if path is not None and Path(path).is_dir() else None

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
        try:
            texts = [side.read_bytes() for side in sides]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        digest = hashlib.sha256(texts[0] + b"\0" + texts[1]).hexdigest()
        if digest != self.read_manifest()["split_sha256"][name]:
            raise DataError(
                f"the text of `{name}` in {self.data} was changed since it was prepared",
                "restore it, or train again with --fresh",
            )
        sources, references = (text.decode().split("\n")[:-1] for text in texts)
        return Split(
            name, sources, references, digest, self.read_manifest().get("tags", {}).get(name)
        )

    def read_alignment(self) -> dict[str, Any]:
        """sha256 of weights -> the fields of a decoding.alignment.AlignmentHead."""
        return _read_json(self.alignment) if self.alignment.exists() else {}

    def read_scores(self) -> dict[str, Any]:
        """All recorded scores; empty before the first."""
        return _read_json(self.scores) if self.scores.exists() else {}

    def read_translations(self, key: str) -> list[TranslatedLine]:
        """What `eval` kept of a test set; `key` is one of scores.json, such as `flickr`."""
        stem = self._translations_stem(key)
        path = self.translations / f"{stem}.jsonl"
        try:
            if path.exists():
                lines = path.read_text(encoding="utf-8").split("\n")[:-1]
                return [TranslatedLine(**json.loads(line)) for line in lines]
            text = path.with_suffix(".txt").read_text(encoding="utf-8")  # older runs have no more
        except (OSError, ValueError, TypeError) as error:
            raise _unreadable(path, error) from error
        split = self.read_split(key.split("[")[0])
        texts = zip(split.sources, split.references, text.split("\n")[:-1], strict=True)
        return [TranslatedLine(*line, score=None) for line in texts]

    def read_analysis(self, key: str) -> dict[str, Any] | None:
        """What `evaluation.analysis` found in these translations; None in an older run."""
        path = self.translations / f"{self._translations_stem(key)}.analysis.json"
        return _read_json(path) if path.exists() else None

    def _translations_stem(self, key: str) -> str:
        """The name, without its suffix, of the files that belong to a key of scores.json."""
        entry = self.read_scores().get(key)
        if entry is None:
            raise DataError(
                f"{self.path} keeps no translation of `{key}`", f"make one: mtrain eval {self.path}"
            )
        older = f"{key.split('[')[0]}.{entry.get('checkpoint', 'best')}"
        return str(entry.get("translations", older))

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with storage_errors(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(_json_line(record))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines of metrics.jsonl; one cut short by a kill is left out."""
        if not self.metrics.exists():
            return []
        try:
            lines = self.metrics.read_text(encoding="utf-8").split("\n")
            return [json.loads(line) for line in lines[:-1] if line]
        except (OSError, ValueError) as error:
            raise _unreadable(self.metrics, error) from error

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        """Replace metrics.jsonl, whole or not at all."""
        atomic_write(self.metrics, "".join(_json_line(record) for record in records))


def _numbered(paths: Iterable[Path], pattern: str) -> list[tuple[int, Path]]:
    found = [(match, path) for path in paths if (match := re.fullmatch(pattern, path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def _json_line(record: dict[str, Any]) -> str:
    """One line of JSON, in which what is not finite is null: JSON knows no NaN."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(value, dict):
        raise _unreadable(path, "it holds no JSON object")
    return value


def _unreadable(path: Path, reason: object) -> DataError:
    return DataError(f"cannot read {path}: {reason}", "restore the file, or train again")
