"""What the files of a run say, read once: the material of the report. No torch, no formatting.

What a run does not hold (it was trained before a feature, or is still being trained) is None or
empty; whoever shows it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from mtrain import console
from mtrain.config.load import read_run_config
from mtrain.config.root import Config
from mtrain.errors import CheckpointError, DataError, UsageError
from mtrain.evaluation.analysis import Analysis
from mtrain.run import RunDir
from mtrain.single_file import FILE, open_tensors, read_note
from mtrain.storage import sha256_of


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
    languages: tuple[str, str] | None  # None: the config's
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


def read_runs(paths: Sequence[Path]) -> list[RunFacts]:
    """Everything there is to say of some runs; an error where a path is none, or comes twice."""
    runs = [RunDir.open(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError("the same run is named twice", "name each run once")
    return [_read(run, label) for run, label in zip(runs, _labels(paths), strict=True)]


def _read(run: RunDir, label: str) -> RunFacts:
    for name in [] if run.is_exported else run.splits():
        run.read_split(name)  # its text is that of the manifest, even where nothing shows it
    return RunFacts(
        path=run.path,
        label=label,
        run=run,
        config=read_run_config(run),
        manifest=_read_manifest(run),
        metrics=run.read_metrics(),
        scores=run.read_scores(),
        weights=_read_weights(run),
    )


def _read_manifest(run: RunDir) -> dict[str, Any]:
    """With all that the report says in any case; a translation needs less."""
    manifest = run.read_manifest()
    if missing := {"source", "target", "n_train_pairs", "vocab_sizes"} - manifest.keys():
        raise DataError(
            f"{run.manifest} is damaged: it has no `{min(missing)}`",
            "restore the file, or train again",
        )
    return manifest


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
    except CheckpointError:
        return None
    try:
        with open_tensors(path, "np") as file:
            names = [name for name in file.keys() if not name.startswith(FILE)]  # noqa: SIM118
            shapes = [file.get_slice(name).get_shape() for name in names]
            step = read_note(path, file.metadata())["facts"].get("step")
    except CheckpointError:
        if path.exists():
            raise
        return None  # pruned by training meanwhile
    return Weights(
        name=path.name if path == run.path else path.relative_to(run.path).as_posix(),
        step=step,
        n_parameters=sum(map(prod, shapes)),
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def _read_translated(run: RunDir, name: str) -> Translated:
    """A scored test set, with what `eval` kept of it."""
    split = run.read_split(name)
    lines = run.read_translations(name)
    if [(line.source, line.reference) for line in lines] != list(
        zip(split.sources, split.references, strict=True)
    ):
        raise DataError(
            f"the translations of {name} in {run.translations} are of another text",
            "make them again: " + console.command("mtrain", "eval", run.path, "--split", name),
        )
    scores = [line.score for line in lines if line.score is not None]
    found = run.read_analysis(name)
    try:
        analysis = None if found is None else Analysis.from_json(found)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"what was found in the translations of {name} is damaged: {reason}",
            "make it again: " + console.command("mtrain", "eval", run.path, "--split", name),
        ) from error
    if analysis is not None and not analysis.fits(len(lines)):
        raise DataError(
            f"what was found in the translations of {name} is of another text",
            "make it again: " + console.command("mtrain", "eval", run.path, "--split", name),
        )
    return Translated(
        name=name,
        sha256=split.sha256,
        sources=split.sources,
        references=split.references,
        translations=[line.translation for line in lines],
        model_scores=scores if len(scores) == len(lines) else None,
        languages=split.languages,
        analysis=analysis,
    )
