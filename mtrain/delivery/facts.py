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
from mtrain.evaluation.analysis import Analysis
from mtrain.portable import FILE
from mtrain.run import RunDir, sha256_of


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
    sources: list[str]
    references: list[str]
    translations: list[str]
    model_scores: list[float] | None  # log-probability / length^p of each translation
    analysis: (
        Analysis | None
    )  # diagnostics and breakdown; None in runs scored before there were any


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
        """The test sets (and valid) that `eval` scored, in the config's order."""
        names = [] if self.run.is_exported else [*self.test_sets, "valid"]
        return [_read_translated(self.run, name) for name in names if name in self.scores]

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
            names = [name for name in file.keys() if not name.startswith(FILE)]  # noqa: SIM118
            shapes = [file.get_slice(name).get_shape() for name in names]
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
        name=path.name if path == run.path else path.relative_to(run.path).as_posix(),
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


def _read_translated(run: RunDir, name: str) -> Translated:
    """A scored test set, with what `eval` kept of it."""
    split = run.read_split(name)
    lines = run.read_translations(name)
    if [(line.source, line.reference) for line in lines] != list(
        zip(split.sources, split.references, strict=True)
    ):
        raise DataError(
            f"the translations of {name} in {run.translations} are of another text",
            f"make them again: mtrain eval {run.path} --split {name}",
        )
    scores = [line.score for line in lines if line.score is not None]
    analysis = run.read_analysis(name)
    return Translated(
        name=name,
        sha256=split.sha256,
        sources=split.sources,
        references=split.references,
        translations=[line.translation for line in lines],
        model_scores=scores if len(scores) == len(lines) else None,
        analysis=None if analysis is None else Analysis.from_json(analysis),
    )
