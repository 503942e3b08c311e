"""Opens a run directory to train in: a new one, or one whose config allows to go on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtrain import console
from mtrain.config import Config, dump_config, read_run_config
from mtrain.data.prepare import Prepared, copy_into_run
from mtrain.errors import UsageError
from mtrain.run import RunDir, atomic_write, storage_errors, write_json
from mtrain.training.state import Progress

# A change of these makes another model, another order or another optimum: refused on resume.
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


def open_run(config: Config, prepared: Prepared, fresh: bool) -> RunDir:
    """The directory to train in, with its config and data in place."""
    run = RunDir(config.run_dir)
    if fresh and run.path.exists():
        aside = set_aside(run)
        console.message(f"renamed {run.path} to {aside}")
    if run.config.exists():
        check_changes(run, config, prepared)
    elif run.path.exists() and not (run.path.is_dir() and not any(run.path.iterdir())):
        raise UsageError(
            f"{run.path} exists and is not a run directory (it holds no config.yaml)",
            "choose another directory with --set run=DIR, or remove it",
        )
    else:
        create(run, config, prepared)
    atomic_write(run.config, dump_config(config))
    with storage_errors(run.path):
        run.checkpoints.mkdir(exist_ok=True)
    return run


def note_environment(run: RunDir, environment: dict[str, str]) -> None:
    """Remember what a run is trained with; several entries where it went on elsewhere."""
    known: list[dict[str, str]] = []
    if run.environment.exists():
        known = json.loads(run.environment.read_text(encoding="utf-8"))
    if environment not in known:
        write_json(run.environment, [*known, environment])


@contextmanager
def alone_in(run: RunDir, is_first: bool = True) -> Iterator[None]:
    """Refuse a second training in the same run directory; a killed one holds no lock.

    Of several processes that train together, the first holds the lock.
    """
    if not is_first:
        yield
        return
    with storage_errors(run.path):
        run.lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(run.lock, "w")  # noqa: SIM115 (held open, and so locked, until the end)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = os.path.samestat(os.fstat(file.fileno()), os.stat(run.lock))
        except (BlockingIOError, FileNotFoundError):
            is_current = False  # taken, or just given back by another process
        if not is_current:
            raise UsageError(
                f"another process is training in {run.path}",
                "wait for it to end, or name another directory with --set run=DIR",
            )
        try:
            yield
        finally:
            run.lock.unlink(missing_ok=True)


def create(run: RunDir, config: Config, prepared: Prepared) -> None:
    """A new run directory, whole or not at all: without its config it would be taken for none."""
    partial = RunDir(run.path.with_name(run.path.name + ".tmp"))
    with storage_errors(run.path):
        shutil.rmtree(partial.path, ignore_errors=True)
        try:
            copy_into_run(prepared, partial)
            atomic_write(partial.config, dump_config(config))
            partial.path.rename(run.path)
        except BaseException:
            shutil.rmtree(partial.path, ignore_errors=True)
            raise


def set_aside(run: RunDir) -> str:
    """Rename an old run to the first free of <run>.1, .2, ...; -> its new name"""
    number = 1
    while (aside := run.path.with_name(f"{run.path.name}.{number}")).exists():
        number += 1
    with storage_errors(run.path):
        run.path.rename(aside)
    return str(aside)


def check_changes(run: RunDir, config: Config, prepared: Prepared) -> None:
    """Refuse, with a diff, what would not continue the same training; log what may change."""
    changes = differences(read_run_config(run).model_dump(), config.model_dump())
    changes.pop("run", None)  # where it lies: it may have been moved
    refused = {key: change for key, change in changes.items() if is_fixed(key)}
    if refused:
        diff = "".join(f"\n    {key}: {old} -> {new}" for key, (old, new) in refused.items())
        raise UsageError(
            f"{run.path} was trained with another config:{diff}",
            "undo the change, name another directory with --set run=DIR, or start with --fresh",
        )
    if run.read_manifest()["files"] != prepared.manifest["files"]:
        raise UsageError(
            f"{run.path} was trained on other text: a data file has changed since",
            "restore the file, name another directory with --set run=DIR, or start with --fresh",
        )
    for key, (old, new) in changes.items():
        console.message(f"changed since the run was started: {key}: {old} -> {new}")
    if changes:  # written anew, as the last line may have been cut short
        records = [
            {"kind": "config", "key": key, "old": old, "new": new}
            for key, (old, new) in changes.items()
        ]
        run.write_metrics([*run.read_metrics(), *records])


def is_fixed(key: str) -> bool:
    """Whether a dotted key must not change within a run."""
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


def drop_lines_beyond(run: RunDir, progress: Progress | None) -> None:
    """Forget the lines of metrics.jsonl that will be written again.

    The state of a step is saved after its training line and before its validation.
    """
    step = progress.step if progress is not None else 0
    kept = [
        record
        for record in run.read_metrics()
        if record["kind"] == "config"
        or record["step"] < step
        or (record["step"] == step and record["kind"] == "train")
    ]
    if run.metrics.exists():
        run.write_metrics(kept)
