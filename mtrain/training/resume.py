"""Opens a run directory for training: a new one, or one to resume if the config allows it.

The state that a resumed run restores is listed in `checkpoints`.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mtrain import console
from mtrain.config.load import dump_config, read_run_config
from mtrain.config.recipe import Choice, apply, chosen_in, to_json
from mtrain.config.root import Config
from mtrain.data.prepare import Prepared, copy_into_run, verify
from mtrain.errors import CheckpointError, UsageError
from mtrain.run import RunDir
from mtrain.storage import (
    atomic_write,
    lock_file,
    new_directory,
    remove_partials,
    storage_errors,
    write_json,
)
from mtrain.training.schedule import Progress

# Changes that would mean another model, order or optimum are refused on resume.
FIXED = ("source", "target", "data", "tokenizer", "model")
FIXED_IN_TRAIN = (
    "seed",
    "batch_tokens",
    "optim",
    "best_metric",
    "budget",
    "init_from",
    "both_directions",
)


def open_run(
    config: Config, prepared: Prepared, fresh: bool, choices: Mapping[str, Choice]
) -> RunDir:
    """The directory for training, with its config, the choices in it, and its data in place."""
    run = RunDir(config.run_dir)
    if fresh and run.path.exists():
        _set_aside(run)
    for path in (run.checkpoints, run.metrics, run.data, run.tensorboard):
        if path.is_symlink():
            raise UsageError(f"{path} is a symbolic link", "replace it by what it points to")
    if run.config.exists():
        if not run.step_checkpoints():
            check_complete(run, None)  # before anything is changed
        check_changes(run, config, prepared)
    elif run.weights.exists() or run.checkpoints.exists():
        raise UsageError(
            f"{run.path} holds a trained model, but its config.yaml is gone",
            "restore it, or train from the beginning with --fresh, which keeps the old run under "
            "another name",
        )
    elif run.path.exists() and not (run.path.is_dir() and not any(run.path.iterdir())):
        raise UsageError(
            f"{run.path} exists and is not a run directory (it holds no config.yaml)",
            "choose another directory with --set run=DIR, or remove it",
        )
    else:
        _create(run, config, prepared, choices)
    for directory in (run.path, run.data):
        remove_partials(directory)
    atomic_write(run.config, dump_config(config))
    with storage_errors(run.path):
        run.checkpoints.mkdir(exist_ok=True)
    return run


def note_environment(run: RunDir, environment: dict[str, str]) -> None:
    """Record versions and machine of a run; one entry for each that it was trained with."""
    known = run.read_environments()
    if environment not in known:
        write_json(run.environment, [*known, environment])


@contextmanager
def alone_in(run: RunDir, is_first: bool = True) -> Iterator[None]:
    """Refuse a second training in the same run directory; a killed one holds no lock.

    In distributed training, the first process holds the lock.
    """
    if not is_first:
        yield
        return
    with storage_errors(run.path):
        run.lock.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(run.lock) as is_held:
        if not is_held:
            raise UsageError(
                f"another process is training in {run.path}",
                "wait for it to end, or name another directory with --set run=DIR",
            )
        yield


def _create(run: RunDir, config: Config, prepared: Prepared, choices: Mapping[str, Choice]) -> None:
    """Make a run directory atomically: without its config it would not be recognised as one."""
    verify(prepared)
    remove_partials(run.path.parent, f"{glob.escape(run.path.name[:200])}.{'[0-9a-f]' * 8}")
    with new_directory(run.path) as partial:
        copy_into_run(prepared, RunDir(partial))
        write_json(RunDir(partial).choices, to_json(choices))
        atomic_write(RunDir(partial).config, dump_config(config))


def _set_aside(run: RunDir) -> None:
    """Rename an old run to the first free of <run>.1, .2, ..."""
    number = 1
    while (aside := run.path.with_name(f"{run.path.name}.{number}")).exists():
        number += 1
    with storage_errors(run.path):
        run.path.rename(aside)
    console.message(f"renamed {run.path} to {aside}")


def as_in_run(config: Config, run: RunDir) -> Config:
    """The config with the values of a run for all keys that are `auto`."""
    return apply(config, chosen_in(read_run_config(run), config))


def check_config(run: RunDir, config: Config) -> dict[str, tuple[Any, Any]]:
    """The changes of the config; a UsageError, with a diff, if they make it another training."""
    changes = differences(read_run_config(run).model_dump(), config.model_dump())
    changes.pop("run", None)  # its place: it may have been moved
    refused = {key: change for key, change in changes.items() if is_fixed(key)}
    if refused:
        diff = "".join(f"\n    {key}: {old} -> {new}" for key, (old, new) in refused.items())
        raise UsageError(
            f"{run.path} was trained with another config:{diff}",
            "undo the change, name another directory with --set run=DIR, or start with --fresh",
        )
    return changes


def check_changes(run: RunDir, config: Config, prepared: Prepared) -> None:
    """Refuse another config or other data, and log the changes that are allowed."""
    changes = check_config(run, config)
    if run.read_manifest()["files"] != prepared.manifest["files"]:
        raise UsageError(
            f"{run.path} was trained on other text: a data file or mtrain's filters have changed",
            "restore the file, name another directory with --set run=DIR, or start with --fresh",
        )
    for key, (old, new) in changes.items():
        console.message(f"changed since the run was started: {key}: {old} -> {new}")
    if changes:  # rewritten, as the last line may be incomplete
        records = [
            {"kind": "config", "key": key, "old": old, "new": new}
            for key, (old, new) in changes.items()
        ]
        run.write_metrics([*run.read_metrics(), *records])


def is_fixed(key: str) -> bool:
    """Whether a dotted key may not change within a run."""
    first, *rest = key.split(".")
    return first in FIXED or (first == "train" and rest[0] in FIXED_IN_TRAIN)


def differences(old: Any, new: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new), for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in [*old, *(name for name in new if name not in old)]:
            path = f"{key}.{name}" if key else name
            found |= differences(old.get(name), new.get(name), path)
        return found
    return {} if old == new else {key: (old, new)}


def check_complete(run: RunDir, progress: Progress | None) -> None:
    """Raise a CheckpointError if files are missing and results would be overwritten.

    progress is that of the newest state, or None. A run that was killed before it saved a state has
    nothing to lose; one with a model, a best checkpoint or a validation must have had a state.
    """
    best = run.best_checkpoints()
    if progress is not None:
        missing = "best checkpoint" if progress.best_score is not None and not best else None
    else:
        was_validated = any(record["kind"] == "valid" for record in run.read_metrics())
        had_one = run.weights.exists() or best or run.good_checkpoints() or was_validated
        missing = "training state to resume from" if had_one else None
    if missing:
        has = "a trained model" if run.weights.exists() else "results"
        raise CheckpointError(
            f"{run.path} holds {has}, but its {missing} is gone from {run.checkpoints}",
            "restore it, or train from the beginning with --fresh, which keeps the old run under "
            "another name",
        )


def drop_records_beyond(run: RunDir, progress: Progress) -> None:
    """Remove the lines of metrics.jsonl that will be written again.

    A state is saved after the training record of its step and before the validation.
    """
    kept = [
        record
        for record in run.read_metrics()
        if record["kind"] == "config"
        or record["step"] < progress.step
        or (record["step"] == progress.step and record["kind"] == "train")
    ]
    if run.metrics.exists():
        run.write_metrics(kept)
