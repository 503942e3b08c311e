"""What the files of a run say, read once: the material of the report. No torch, no formatting.

What a run does not hold (it was trained before a feature, or is still being trained) is None or
empty; whoever shows it says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mtrain.config import Config, read_run_config
from mtrain.errors import CheckpointError, DataError, UsageError
from mtrain.run import RunDir, sha256_of

BEST = "best"


@dataclass(frozen=True)
class Weights:
    """The file that `translate` would load, from its header."""

    name: str
    step: int | None
    n_parameters: int
    size_bytes: int
    sha256: str  # of the file


@dataclass(frozen=True)
class Translated:
    """A test set with a run's translations of it."""

    name: str
    sha256: str  # of the sources and references
    checkpoint: str
    sources: list[str]
    references: list[str]
    translations: list[str]
    model_scores: list[float] | None  # log-probability / length^p of each translation


@dataclass(frozen=True)
class RunFacts:
    """One run, as its files tell it."""

    path: Path  # as it was given
    label: str  # what the page calls it; no two runs share one
    run: RunDir
    config: Config
    manifest: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: dict[str, Any]
    weights: Weights | None

    @property
    def is_finished(self) -> bool:
        """Whether training has come to its end."""
        return self.run.weights.exists()

    @property
    def test_sets(self) -> list[str]:
        """The names of the test sets, in the config's order."""
        return [name for name in self.manifest["splits"] if name != "valid"]

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind: `train`, `valid` or `config`."""
        return [record for record in self.metrics if record.get("kind") == kind]

    @cached_property
    def translated(self) -> list[Translated]:
        """The test sets (and valid) that were translated, in the config's order."""
        found = (_read_translated(self.run, name) for name in [*self.test_sets, "valid"])
        return [test_set for test_set in found if test_set is not None]

    def read_object(self, path: Path) -> Any:
        """A JSON file that newer runs hold; None where it is not there."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot read {path}: {error}", "remove the file, and make it again"
            ) from error


def read_runs(paths: Sequence[Path]) -> list[RunFacts]:
    """Everything there is to say of some runs; an error where a path is none, or comes twice."""
    runs = [RunDir.open(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError("the same run is named twice", "name each run once")
    return [_read(run, label) for run, label in zip(runs, _labels(paths), strict=True)]


def _read(run: RunDir, label: str) -> RunFacts:
    return RunFacts(
        path=run.path,
        label=label,
        run=run,
        config=read_run_config(run),
        manifest=run.read_manifest(),
        metrics=run.read_metrics(),
        scores=run.read_scores(),
        weights=_read_weights(run),
    )


def _labels(paths: Sequence[Path]) -> list[str]:
    """The name of each directory, or its whole path where two have one name."""
    names = [path.absolute().name for path in paths]
    return [
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, paths, strict=True)
    ]


def _read_weights(run: RunDir) -> Weights | None:
    """None before the first checkpoint."""
    try:
        path = run.checkpoint_files(None)[0]
        with safe_open(path, "np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
            note = json.loads((file.metadata() or {}).get("mtrain", "{}"))
    except FileNotFoundError:  # pruned by training meanwhile
        return None
    except CheckpointError:
        return None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({error})", "use another run, or train again"
        ) from error
    return Weights(
        name=path.relative_to(run.path).as_posix(),
        step=note.get("facts", {}).get("step"),
        n_parameters=sum(_product(shape) for shape in shapes),
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _read_translated(run: RunDir, name: str) -> Translated | None:
    """What `eval` wrote of a test set: of the best checkpoint, else of the one scored last."""
    files = sorted(run.translations.glob(f"{name}.*.txt"), key=lambda path: path.stat().st_mtime)
    best = run.translations / f"{name}.{BEST}.txt"
    if not files:
        return None
    path = best if best in files else files[-1]
    split = run.read_split(name)
    translations = path.read_text(encoding="utf-8").split("\n")[:-1]
    if len(translations) != len(split.sources):
        raise DataError(
            f"{path} has {len(translations):,} lines, but {name} has {len(split.sources):,}",
            f"translate it again: mtrain eval {run.path} --split {name}",
        )
    return Translated(
        name=name,
        sha256=split.sha256,
        checkpoint=path.name.removeprefix(f"{name}.").removesuffix(".txt"),
        sources=split.sources,
        references=split.references,
        translations=translations,
        model_scores=_read_model_scores(path.with_suffix(".jsonl"), translations),
    )


def _read_model_scores(path: Path, translations: list[str]) -> list[float] | None:
    """The model's own score of each translation; None where no such file goes with them."""
    if not path.exists():
        return None
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    if [record["translation"] for record in records] != translations:
        return None
    scores = [record["score"] for record in records]
    return None if None in scores else scores
