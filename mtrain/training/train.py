"""The training loop: one update of the weights after another, resumed exactly.

Read `run_updates` first. The sentences and the dropout of an update are functions of (seed, epoch,
step, micro-batch), so an interrupted run resumes as if it had not been interrupted: `checkpoints`
lists what it restores.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mtrain import console
from mtrain.config.recipe import with_choices
from mtrain.config.root import Config, in_languages
from mtrain.data.epochs import Epoch, Epochs
from mtrain.data.identity import train_names
from mtrain.data.prepare import Prepared, copy_into_run, find_prepared, prepare
from mtrain.errors import DataError
from mtrain.evaluation.metrics import bleu_tokenizer
from mtrain.machine import runtime
from mtrain.machine.distributed import Distributed, is_under_torchrun, process_group
from mtrain.run import RunDir
from mtrain.training.checkpoints import (
    Checkpoints,
    Scorer,
    install_winner,
    load_newest,
    score_of,
)
from mtrain.training.choices import choose_settings
from mtrain.training.init_from import init_weights
from mtrain.training.learner import Learner
from mtrain.training.log import Log, Meter, Warnings
from mtrain.training.resume import (
    alone_in,
    as_in_run,
    check_complete,
    check_config,
    drop_records_beyond,
    note_environment,
    open_run,
)
from mtrain.training.schedule import Clock, Progress, Schedule
from mtrain.training.signals import StopRequest
from mtrain.training.trial import (
    compile_again,
    compile_if_faster,
    should_compile,
    show_trial,
    try_out,
)
from mtrain.training.validate import Validation, size_of_validation, validate

Validate = Callable[[Validation, dict[str, Tensor], int], dict[str, Any]]


def _ignore(step: int) -> None:
    pass


@dataclass(frozen=True)
class Observer:
    """Callbacks of a training; each gets the step."""

    on_step: Callable[[int], None] = _ignore  # before update `step` (1, 2, ...)
    on_save: Callable[[int], None] = _ignore  # before a state is written, in the writing thread
    on_validated: Callable[[int], None] = _ignore  # after a validation, before its weights are kept


def train(
    config: Config,
    config_path: Path,
    fresh: bool = False,
    observer: Observer = Observer(),
    clock: Clock = time.perf_counter,
    validate: Validate = validate,
) -> None:
    """Prepare if needed, then train to the end, from the newest checkpoint if there is one.

    Raises StoppedBySignal after saving, on SIGINT or SIGTERM.
    """
    valid = config.data.valid
    target = in_languages(config, None if valid is None else valid.languages).target
    bleu_tokenizer(target, config.evaluate.tokenize)  # if it is missing, fail early
    run = RunDir(config.run_dir)
    is_old = run.config.exists() and not fresh
    if is_old:
        check_config(run, as_in_run(config, run))  # before the data is prepared
    prepared = _prepared(config, config_path)
    began_at = clock()
    with process_group(config.train.device) as distributed:
        runtime.set_up(distributed.device, config.train.threads, "training")
        with alone_in(run, distributed.is_first):
            choices = {} if is_old else choose_settings(config, prepared, distributed, clock)
            config = as_in_run(config, run) if is_old else with_choices(config, choices)
            if distributed.is_first:
                open_run(config, prepared, fresh, choices)
            distributed.barrier()
            with Epochs(config, prepared.path, run.epoch, distributed) as epochs:
                learner = _make_learner(config, prepared, epochs, distributed)
                _train(learner, prepared, epochs, observer, clock, began_at, validate)


def show_plan(config: Config, config_path: Path) -> None:
    """Print what `auto` stands for, try the largest batch, time some updates, and plan a run."""
    prepared, clock = _prepared(config, config_path), time.perf_counter
    with (
        process_group(config.train.device) as distributed,
        TemporaryDirectory(ignore_cleanup_errors=True) as directory,
    ):
        runtime.set_up(distributed.device, config.train.threads, "training")
        choices = choose_settings(config, prepared, distributed, clock)
        config, run = with_choices(config, choices), RunDir(Path(directory))
        copy_into_run(prepared, run)
        with Epochs(config, prepared.path, run.epoch, distributed) as epochs:
            learner = _make_learner(config, prepared, epochs, distributed)
            schedule = Schedule(config.train, Progress(), clock)
            validation = Validation(config, run, learner.device, learner.precision)
            _plan_run(learner, schedule, epochs, prepared, lambda: validation)


def _prepared(config: Config, config_path: Path) -> Prepared:
    found = find_prepared(config, config_path)
    if found is None and is_under_torchrun():
        raise DataError(
            f"the data of {config_path} is not prepared, which only a single process can do",
            f"run `{console.command('mtrain', 'prepare', config_path)}` first",
        )
    return found or prepare(config, config_path)


def _make_learner(
    config: Config, prepared: Prepared, epochs: Epochs, distributed: Distributed
) -> Learner:
    source_size, target_size = prepared.manifest["vocab_sizes"]
    vocab_sizes = (source_size, target_size)
    epochs.store.check(vocab_sizes, config.data.max_length + 1, len(train_names(config)))
    return Learner(config, vocab_sizes, distributed)


def _train(
    learner: Learner,
    prepared: Prepared,
    epochs: Epochs,
    observer: Observer,
    clock: Clock,
    began_at: float,
    validate: Validate,
) -> None:
    """Start or resume, train to the end, and install the winner."""
    config, distributed = learner.config, learner.distributed
    run = RunDir(config.run_dir)
    restored = _restore(run, learner)
    check_complete(run, restored)
    progress = restored or Progress()
    schedule = Schedule(config.train, progress, clock, began_at)

    @cache
    def validation() -> Validation:
        found = Validation(config, run, learner.device, learner.precision)
        if progress.valid_lines:
            found.take(progress.valid_lines, progress.valid_beam_size)
        return found

    def score(weights: dict[str, Tensor], step: int) -> dict[str, Any]:
        return validate(validation(), weights, step)

    if restored is None:
        console.message(f"training {run.path}: {_describe(learner, len(epochs.store))}")
        _plan_run(learner, schedule, epochs, prepared, validation)
    elif progress.step >= schedule.max_steps and run.weights.exists():
        console.message(f"{run.path} is trained to step {progress.step}: nothing to do")
        return
    else:
        about = _describe(learner, len(epochs.store))
        console.message(f"resuming {run.path} at step {progress.step}: {about}")
        if progress.is_compiled:
            epoch = epochs.open(progress.epoch, progress.epoch < progress.n_both)
            compile_again(learner, epoch, progress)
    if distributed.is_first:
        note_environment(run, runtime.environment(distributed.device))
        drop_records_beyond(run, progress)
        run.weights.unlink(missing_ok=True)  # of an earlier end of training; `best` holds the same

    warnings = Warnings(prepared.manifest["vocab_sizes"][1], schedule.warmup_steps)
    with (
        StopRequest(lambda: _unsaved(run, progress)) as stop,
        Log(run, config.train.tensorboard, warnings, Meter(progress, distributed, clock)) as log,
        Checkpoints(run, config.train, learner, observer.on_save) as checkpoints,
    ):

        def validate_and_keep() -> None:
            _validate(learner, schedule, log, checkpoints, stop, score, observer)

        run_updates(learner, epochs, schedule, log, checkpoints, stop, validate_and_keep, observer)
    if distributed.is_first:
        install_winner(run, schedule, score)
    distributed.barrier()


def run_updates(
    learner: Learner,
    epochs: Epochs,
    schedule: Schedule,
    log: Log,
    checkpoints: Checkpoints,
    stop: StopRequest,
    validate_and_keep: Callable[[], None],
    observer: Observer,
) -> None:
    """Update after update until the last, or until patience runs out."""
    train, progress, meter = schedule.train, schedule.progress, log.meter
    with console.bar(schedule.max_steps, "train", "step", progress.step) as bar:
        # A state is saved just before its validation. If max_steps or validate_every have changed
        # since, a best checkpoint shows that there was a validation.
        was_best = progress.step in dict(checkpoints.run.best_checkpoints())
        if progress.step and (was_best or schedule.is_validation_due(progress.step)):
            validate_and_keep()
            meter.begin_lap()
        updates = _updates(learner.config, epochs, schedule)
        while progress.step < schedule.max_steps and not schedule.is_out_of_patience():
            epoch, number = next(updates)
            observer.on_step(progress.step + 1)
            rate = schedule.learning_rate(progress.step + 1)
            meter.add(learner.update(epoch, number, rate, progress))
            checkpoints.writer.check()
            bar.update()
            if progress.step == schedule.max_steps or progress.step % train.log_every == 0:
                bar.set_postfix_str(log.train(schedule), refresh=False)
                schedule.measure(is_lap_over=False)
                _agree(progress, learner.distributed)
            if learner.distributed.any(stop.signal is not None):
                _save_and_stop(schedule, log, checkpoints, stop)
            is_validation_due = schedule.is_validation_due(progress.step)
            if is_validation_due or progress.step % train.save_every == 0:
                meter.end_lap()
                progress.used_s = schedule.used_s()
                checkpoints.save(progress)  # before validating, so nothing is lost
            if schedule.is_warmed_up(progress.step):
                meter.end_lap()
                schedule.measure()
                _agree(progress, learner.distributed)
            if is_validation_due:
                meter.end_lap()
                validate_and_keep()
                meter.begin_lap()
            bar.total = schedule.max_steps
    if progress.step < schedule.max_steps:
        console.message(
            f"stopping early at step {progress.step}: {progress.n_worse} validations "
            f"without a better {train.best_metric} than at step {progress.best_step}"
        )


def _save_and_stop(
    schedule: Schedule, log: Log, checkpoints: Checkpoints, stop: StopRequest
) -> None:
    progress = schedule.progress
    stop.signal = stop.signal or signal.SIGTERM  # if another process got the signal
    console.message(f"{stop.signal.name}: saving after step {progress.step}")
    log.meter.end_lap()
    progress.used_s = schedule.used_s()
    checkpoints.save(progress)
    checkpoints.writer.wait()
    stop.leave(f"saved {checkpoints.run.path} at step {progress.step}")


def _updates(config: Config, epochs: Epochs, schedule: Schedule) -> Iterator[tuple[Epoch, int]]:
    """(epoch, number of the update in it), continuing from the progress, without end."""
    train, progress = config.train, schedule.progress
    while True:
        if progress.update == 0 and progress.n_both == progress.epoch:  # all so far were both ways
            if progress.step < train.both_directions * schedule.max_steps:
                progress.n_both += 1
            elif progress.step:
                direction = f"from {config.source} to {config.target}"
                console.message(f"step {progress.step}: from now on only {direction}")
        epoch = epochs.open(progress.epoch, progress.epoch < progress.n_both)
        while epoch.plan.has(progress.update):
            progress.update += 1
            yield epoch, progress.update - 1
        progress.epoch, progress.update = progress.epoch + 1, 0


def _validate(
    learner: Learner,
    schedule: Schedule,
    log: Log,
    checkpoints: Checkpoints,
    stop: StopRequest,
    score: Scorer,
    observer: Observer,
) -> None:
    """Score the weights on valid, and keep them if they are good enough."""
    progress, metric = schedule.progress, schedule.train.best_metric
    began_at = log.meter.clock()
    if learner.distributed.is_first:
        weights = learner.averaged_weights
        with stop.at_once():  # a signal need not wait, as the state is saved or being written
            record = score(weights, progress.step)
        checkpoints.writer.wait()  # a validation is recorded once its state is on the disk
        is_best = progress.count_validation(score_of(record, metric))
        record = log.validation(record, is_best)
        observer.on_validated(progress.step)
        checkpoints.keep(weights, {"step": progress.step, "valid": record}, is_best)
    runtime.give_memory_back()  # a gigabyte after ten validations
    validation_s = log.meter.clock() - began_at
    progress.validating_s += validation_s
    progress.validation_s = validation_s
    schedule.measure()
    _agree(progress, learner.distributed)


def _plan_run(
    learner: Learner,
    schedule: Schedule,
    epochs: Epochs,
    prepared: Prepared,
    validation: Callable[[], Validation],
) -> None:
    """Before the first step: take the weights of another run, try the largest batch, and plan.

    A budget includes the time of this, as compiling takes a minute or two.
    """
    train, progress, clock = schedule.train, schedule.progress, schedule.clock
    if train.init_from is not None:
        init_weights(learner.model, Path(train.init_from), prepared)
        learner.ema = learner.new_ema()
    epoch = epochs.open(0, train.both_directions > 0)
    trial = try_out(learner, epoch, progress, clock)
    training_s = schedule.expected_s(trial.update_s)
    if should_compile(train.compile, learner.device, training_s):
        trial = compile_if_faster(learner, epoch, progress, trial, clock)
    if train.budget is not None and learner.distributed.is_first:
        size = size_of_validation(
            validation(), learner.averaged_weights, schedule.allowance_s(), clock
        )
        progress.valid_lines, progress.valid_beam_size, progress.validation_s = size
        validation().take(progress.valid_lines, progress.valid_beam_size)
    schedule.begin(trial.update_s, len(epoch.plan))
    _agree(progress, learner.distributed)
    show_trial(learner, schedule, epoch, trial)


def _restore(run: RunDir, learner: Learner) -> Progress | None:
    """Load the newest intact state, the first process first: it renames damaged ones."""
    distributed, compile = learner.distributed, learner.config.train.compile
    progress = load_newest(run, learner) if distributed.is_first else None
    distributed.barrier()
    if not distributed.is_first:
        progress = load_newest(run, learner)
    if progress is not None and compile != "auto":
        progress.is_compiled = compile
    return progress


def _agree(progress: Progress, distributed: Distributed) -> None:
    """Take the progress of the first process."""
    vars(progress).update(distributed.broadcast(vars(progress)))


def _unsaved(run: RunDir, progress: Progress) -> str:
    """The work that is lost if the process ends now."""
    saved = max((step for step, _ in run.step_checkpoints()), default=0)
    return f"the {progress.step - saved:,} updates since step {saved:,} are lost"


def _describe(learner: Learner, n_pairs: int) -> str:
    """The run in one line."""
    n = learner.distributed.world_size
    threads = f", {torch.get_num_threads()} threads" if learner.device.type == "cpu" else ""
    return (
        f"{learner.n_parameters:,} parameters, {n_pairs:,} pairs, "
        f"{f'{n} processes of ' if n > 1 else ''}{learner.device.type} {learner.precision}{threads}"
    )
