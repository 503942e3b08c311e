"""`mtrain runs`: a table of the runs in a directory."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Annotated, Any

import typer

from mtrain import console
from mtrain.commands.output import print_columns, print_line
from mtrain.errors import MtrainError, UsageError
from mtrain.run import RunDir, ScoreKey
from mtrain.storage import lock_file, storage_errors

EXAMPLES = (
    "mtrain runs",
    "mtrain runs experiments --clean",
)

Directory = Annotated[
    Path, typer.Argument(metavar="[DIR]", help="Where the runs are.", show_default=True)
]
Clean = Annotated[
    bool,
    typer.Option(
        "--clean",
        help="Remove the checkpoints of finished runs, which only longer training and "
        "--checkpoint need, after asking.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="With --clean: do not ask.")]

HEADER = ("run", "languages", "pairs", "state", "score", "MB")


def runs(directory: Directory = Path("runs"), clean: Clean = False, yes: Yes = False) -> None:
    """List runs with their languages, state, scores and size."""
    if yes and not clean:
        raise UsageError("--yes has no effect here: it is for --clean", "leave it out")
    if not directory.is_dir():
        raise UsageError(
            f"there is no directory {directory}", "train a run first: mtrain train CONFIG"
        )
    found = [RunDir(path.parent) for path in sorted(directory.glob("*/config.yaml"))]
    if not found:
        print_line(f"{directory} holds no runs")
        return
    if clean:
        _clean([run for run in found if run.weights.exists()], yes)
    print_columns(HEADER, [_row(run) for run in found])


def _row(run: RunDir) -> tuple[str, ...]:
    try:
        manifest = run.read_manifest()
        languages = f"{manifest.get('source', '?')}-{manifest.get('target', '?')}"
        cells = (languages, f"{manifest.get('n_train_pairs', 0):,}", _state(run), _score(run))
    except MtrainError as error:
        cells = ("", "", f"damaged: {error.message}", "")
    return (run.path.name, *cells, f"{_size(run.path) / 1e6:,.0f}")


def _state(run: RunDir) -> str:
    """Finished, or how far training is."""
    steps = [record["step"] for record in run.read_metrics() if record["kind"] == "train"]
    step = f"step {steps[-1]:,}" if steps else "no step yet"
    if run.weights.exists():
        return f"finished, {step}"
    with lock_file(run.lock) as is_free:
        return f"{'stopped' if is_free else 'training'}, {step}"


def _score(run: RunDir) -> str:
    """BLEU and chrF of the first test set, or else of the best validation."""
    for key, entry in run.read_scores().items():
        if not ScoreKey.parse(key).settings:
            return f"{key}: {_with_interval(entry, 'bleu')}, {_with_interval(entry, 'chrf')}"
    validations = [record for record in run.read_metrics() if record.get("kind") == "valid"]
    best = max(validations, key=lambda record: record.get("chrf") or 0.0, default=None)
    if best is None or best.get("chrf") is None:
        return "not scored"
    return f"valid: BLEU {best.get('bleu') or 0.0:.1f}, chrF {best['chrf']:.1f}"


def _with_interval(entry: dict[str, Any], metric: str) -> str:
    name = {"bleu": "BLEU", "chrf": "chrF"}[metric]
    if metric not in entry:
        return f"no {name}"
    score, low, high = (entry[metric].get(key) for key in ("score", "low", "high"))
    interval = "" if low is None or high is None else f" [{low:.1f}, {high:.1f}]"
    return f"{name} {score:.1f}{interval}"


def _size(path: Path) -> int:
    """Bytes of all files below a directory, links left out."""
    states = [file.lstat() for file in path.rglob("*")]
    return sum(state.st_size for state in states if stat.S_ISREG(state.st_mode))


def _clean(finished: list[RunDir], yes: bool) -> None:
    """Remove the checkpoints of these runs."""
    sizes = {run: _size(run.checkpoints) for run in finished if _size(run.checkpoints)}
    if not sizes:
        console.message("nothing to remove: no finished run has checkpoints")
        return
    for run, size in sizes.items():
        print_line(f"{run.checkpoints}: {size / 1e6:,.0f} MB")
    if not yes and not typer.confirm("Remove these? The models stay", default=False):
        return
    for run in sizes:
        with lock_file(run.lock) as is_free:
            if is_free and not run.checkpoints.is_symlink():
                with storage_errors(run.checkpoints):
                    shutil.rmtree(run.checkpoints)
