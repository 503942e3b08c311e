"""The files of the runs of a report, read once and checked. No torch, no formatting.

Facts that a run lacks (it was trained by an older version, or is still training) are None or empty;
the chapters say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mtrain.config.load import read_run_config
from mtrain.config.root import Config
from mtrain.errors import CheckpointError, DataError, UsageError
from mtrain.run import RunDir
from mtrain.single_file import FILE, open_tensors, read_note
from mtrain.storage import sha256_of


@dataclass(frozen=True)
class Weights:
    """The weights that `translate` would load, from the header of their file."""

    name: str
    n_parameters: int
    size_bytes: int
    sha256: str  # of the file
    checkpoint: str  # best, last, avg ...
    step: int | None  # None in files of older versions
    valid: dict[str, Any]  # the record of their validation; empty if there was none


@dataclass(frozen=True)
class RunFacts:
    """The contents of one run."""

    path: Path  # as given
    label: str  # its unique name on the page
    run: RunDir
    config: Config
    manifest: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: dict[str, Any]
    weights: Weights | None

    @property
    def is_finished(self) -> bool:
        """Whether training has ended."""
        return self.run.weights.exists()

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind: `train`, `valid`, `rival` or `config`."""
        return [record for record in self.metrics if record.get("kind") == kind]


def read_runs(paths: Sequence[Path]) -> list[RunFacts]:
    """Read the runs; a UsageError where a path is not a run, or a run is named twice."""
    runs = [RunDir.open(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError("the same run is named twice", "name each run once")
    names = [path.absolute().name for path in paths]
    labels = [
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, paths, strict=True)
    ]
    return [_read(run, label) for run, label in zip(runs, labels, strict=True)]


def _read(run: RunDir, label: str) -> RunFacts:
    manifest = run.read_manifest()
    if missing := {"source", "target", "n_train_pairs", "vocab_sizes"} - manifest.keys():
        raise DataError(
            f"{run.manifest} is damaged: it has no `{min(missing)}`",
            "restore the file, or train again",
        )
    for name in [] if run.is_exported else run.splits():
        run.read_split(name)  # checks its hash, even where no chapter shows the text
    return RunFacts(
        path=run.path,
        label=label,
        run=run,
        config=read_run_config(run),
        manifest=manifest,
        metrics=run.read_metrics(),
        scores=run.read_scores(),
        weights=_read_weights(run),
    )


def _read_weights(run: RunDir) -> Weights | None:
    """None before the first checkpoint."""
    try:
        path = run.checkpoint_files(None)[0]
    except CheckpointError:
        return None
    try:
        with open_tensors(path, "np") as file:
            facts = read_note(path, file.metadata())["facts"]
            names = [name for name in file.keys() if not name.startswith(FILE)]  # noqa: SIM118
            shapes = [file.get_slice(name).get_shape() for name in names]
    except CheckpointError:
        if path.exists():
            raise
        return None  # deleted by training in the meantime
    name = path.name if path == run.path else path.relative_to(run.path).as_posix()
    return Weights(
        name=name,
        n_parameters=sum(map(prod, shapes)),
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        checkpoint=facts.get("checkpoint", "last" if "/step-" in name else "best"),
        step=facts.get("step"),
        valid=facts.get("valid", {}),
    )
