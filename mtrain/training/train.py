"""The training loop: teacher forcing, one update of the weights after the other, exactly resumed.

Read `train` first: it prepares, starts or resumes, and loops. What an update is made of (order,
dropout) is a function of (seed, epoch, step, micro-batch), so that a run that was stopped goes on
as if it had not been. `learner` makes the updates, `budget` says how many there are.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtrain import console
from mtrain.config.root import Config, in_languages
from mtrain.data.batching import BatchPlan
from mtrain.data.epochs import Epochs
from mtrain.data.identity import train_names
from mtrain.data.prepare import Prepared, find_prepared, prepare
from mtrain.errors import DataError, NonFiniteError
from mtrain.evaluation.metrics import bleu_tokenizer
from mtrain.machine import runtime
from mtrain.machine.distributed import Processes, is_under_torchrun, join
from mtrain.model.weights import weights_of
from mtrain.run import RunDir
from mtrain.training.budget import Plan
from mtrain.training.final_choice import install_winner
from mtrain.training.init_from import start_from
from mtrain.training.journal import Journal
from mtrain.training.learner import Learner
from mtrain.training.meter import Meter
from mtrain.training.resume import (
    alone_in,
    check_whole,
    drop_lines_beyond,
    note_environment,
    open_run,
)
from mtrain.training.signals import StopRequest
from mtrain.training.state import (
    Progress,
    copies,
    copy_state,
    load_newest,
    save_best,
    save_good,
    save_state,
    score_of,
)
from mtrain.training.trial import compile_again, compile_if_faster, show, try_out
from mtrain.training.validate import Validation, validate
from mtrain.training.warnings import Watch
from mtrain.training.writer import Writer

MOST_SKIPPED_IN_A_ROW = 20
WORTH_COMPILING_S = 600  # of training; compiling takes a minute or two


def train(config: Config, config_path: Path, fresh: bool = False) -> None:
    """Prepare if needed, then train to the end, from the newest checkpoint if there is one.

    Raises StoppedBySignal after saving, where SIGINT or SIGTERM asks for it.
    """
    valid = config.data.valid
    target = in_languages(config, None if valid is None else valid.languages).target
    bleu_tokenizer(target, config.evaluate.tokenize)  # missing? better now than in an hour
    prepared = _prepared(config, config_path)
    with join(config.train.device) as processes:
        runtime.set_up(processes.device, config.train.threads, "training")
        with alone_in(RunDir(config.run_dir), is_first=processes.is_first):
            if processes.is_first:
                open_run(config, prepared, fresh)
            processes.wait()
            _train(config, prepared, processes)


def show_plan(config: Config, config_path: Path) -> None:
    """Try the largest batch, time some updates and print what a whole run would take."""
    prepared = _prepared(config, config_path)
    with join(config.train.device) as processes:
        runtime.set_up(processes.device, config.train.threads, "training")
        loop = _Loop(config, prepared, processes)
        loop.take_off(Progress())
        if processes.is_first:
            loop.epochs.clear()


def _prepared(config: Config, config_path: Path) -> Prepared:
    found = find_prepared(config, config_path)
    if found is None and is_under_torchrun():
        raise DataError(
            f"the data of {config_path} is not prepared, and that is work for one process",
            f"run `{console.command('mtrain', 'prepare', config_path)}` first",
        )
    return found or prepare(config, config_path)


def _train(config: Config, prepared: Prepared, processes: Processes) -> None:
    loop = _Loop(config, prepared, processes)
    run = loop.run
    progress = loop.restore()
    check_whole(run, progress)
    if progress is None:
        console.message(f"training {run.path}: {loop.describe()}")
        progress = Progress()
        loop.take_off(progress)
    elif progress.step >= Plan(config.train, progress).max_steps and run.weights.exists():
        console.message(f"{run.path} is trained to step {progress.step}: nothing to do")
        return
    else:
        console.message(f"resuming {run.path} at step {progress.step}: {loop.describe()}")
        loop.resume(progress)
    if processes.is_first:
        note_environment(run, runtime.environment(processes.device))
        drop_lines_beyond(run, progress)
        run.weights.unlink(missing_ok=True)  # of an earlier end: `best` holds the same
    try:
        with StopRequest(lambda: loop.unsaved(progress)) as stop:
            loop.run_to_the_end(progress, stop)
    finally:
        if processes.is_first:
            loop.epochs.clear()
    if processes.is_first:
        install_winner(run, config.train, progress, loop.score)
    processes.wait()


class _Loop:
    """What stays the same from update to update."""

    def __init__(self, config: Config, prepared: Prepared, processes: Processes) -> None:
        self.config, self.prepared, self.processes = config, prepared, processes
        self.run = RunDir(config.run_dir)
        self.epochs = Epochs(config, prepared.path, self.run.epoch)
        self.store = self.epochs.store
        source_size, target_size = prepared.manifest["vocab_sizes"]
        self.store.check(
            (source_size, target_size), config.data.max_length + 1, len(train_names(config))
        )
        self.learner = Learner(config, self.store, (source_size, target_size), processes)
        self.watch = Watch(target_size, config.train.optim.warmup_steps)

    @cached_property
    def validation(self) -> Validation:
        """Made when it is first needed, by the process that validates."""
        learner = self.learner
        return Validation(self.config, self.run, learner.device, learner.precision)

    def restore(self) -> Progress | None:
        """Take up the newest whole state, the first process first: it clears damage away."""
        state = (self.learner.model, self.learner.ema, self.learner.optimizers)
        progress = load_newest(self.run, *state) if self.processes.is_first else None
        self.processes.wait()
        if not self.processes.is_first:
            progress = load_newest(self.run, *state)
        if progress is not None and self.config.train.compile != "auto":
            progress.is_compiled = self.config.train.compile
        return progress

    def resume(self, progress: Progress) -> None:
        """Everything before the next step of a run that was stopped."""
        if progress.is_compiled:
            epoch = self.epoch(progress.epoch, progress.epoch < progress.n_both)
            compile_again(self.learner, epoch, progress)

    def shall_compile(self, training_s: float) -> bool:
        """As the config says; `auto` is on a GPU where training takes long enough."""
        wanted = self.config.train.compile
        if wanted == "auto":
            wanted = self.learner.device.type == "cuda" and training_s > WORTH_COMPILING_S
        return self.processes.as_first(wanted)

    def take_off(self, progress: Progress) -> None:
        """Everything before the first step: weights of another run, a trial, the plan.

        A budget includes the time of the trial, as compiling for it takes a minute or two.
        """
        began_at = time.perf_counter()
        if self.config.train.init_from is not None:
            start_from(self.learner.model, Path(self.config.train.init_from), self.prepared)
            self.learner.ema = self.learner.make_ema()
        epoch = self.epoch(0, self.config.train.both_directions > 0)
        trial = try_out(self.learner, epoch, progress)
        plan = Plan(self.config.train, progress)
        if self.shall_compile(plan.expected_s(trial.update_s)):
            trial = compile_if_faster(self.learner, epoch, progress, trial)
        if self.config.train.budget is not None:
            progress.elapsed_s = self.processes.as_first(time.perf_counter() - began_at)
        plan.begin(trial.update_s)
        show(self.learner, plan, epoch, trial, progress)

    def run_to_the_end(self, progress: Progress, stop: StopRequest) -> None:
        """Update after update until the last, or until patience is over."""
        train, plan = self.config.train, Plan(self.config.train, progress)
        self.journal = Journal(
            self.run, train.tensorboard, not self.processes.is_first, progress.step
        )
        meter = Meter(progress, self.processes)
        self.n_skipped_told = progress.n_skipped
        self.writer = Writer(self.learner.device)
        bar = console.bar(plan.max_steps, "train", "step", progress.step)
        with self.journal, self.writer, bar:
            # A state is saved just before its validation. Where max_steps or validate_every had
            # another value then, a best checkpoint tells that there was one.
            was_best = progress.step in dict(self.run.best_checkpoints())
            if progress.step and (was_best or plan.is_validation_due(progress.step)):
                self.validate(progress, plan, stop)
                meter.begin_lap()
            for epoch, number in self.updates(progress):
                if self.is_over(progress, plan):
                    break
                rate = plan.learning_rate(progress.step + 1)
                self.learner.update(epoch, number, rate, progress, meter)
                self.writer.check()
                bar.update()
                is_last = progress.step == plan.max_steps
                if is_last or _due(progress.step, train.log_every):
                    bar.set_postfix_str(self.log(progress, plan, meter), refresh=False)
                if self.processes.any(stop.signal is not None):
                    self.stop(progress, meter, stop)
                is_validation_due = plan.is_validation_due(progress.step)
                if is_validation_due or _due(progress.step, train.save_every):
                    self.save(progress, meter)  # before validating, so nothing is lost
                if plan.is_warmed_up(progress.step):
                    meter.end_lap(progress)
                    plan.measure()
                    self.agree(progress)
                if is_validation_due:
                    meter.end_lap(progress)
                    self.validate(progress, plan, stop)
                    meter.begin_lap()
                bar.total = plan.max_steps

    def is_over(self, progress: Progress, plan: Plan) -> bool:
        """True after the last step, or where no validation was better for `patience` of them."""
        train = self.config.train
        if train.patience and progress.n_worse >= train.patience:
            console.message(
                f"stopping early at step {progress.step}: {progress.n_worse} validations "
                f"without a better {train.best_metric} than at step {progress.best_step}"
            )
            return True
        return progress.step >= plan.max_steps

    def updates(self, progress: Progress) -> Iterator[tuple[BatchPlan, int]]:
        """(plan of the epoch, number in it) of each update, from where progress stands."""
        while True:
            epoch = self.epoch(progress.epoch, self.is_in_both_directions(progress))
            while epoch.has(progress.update):
                progress.update += 1
                yield epoch, progress.update - 1
            progress.epoch, progress.update = progress.epoch + 1, 0

    def is_in_both_directions(self, progress: Progress) -> bool:
        """Whether the epoch at hand is, which is decided when it begins."""
        train = self.config.train
        if progress.update == 0 and progress.n_both == progress.epoch:  # all so far were
            if progress.step < train.both_directions * Plan(train, progress).max_steps:
                progress.n_both += 1
            elif progress.step:
                sides = f"{self.config.source} to {self.config.target}"
                console.message(f"step {progress.step}: from now on only from {sides}")
        return progress.epoch < progress.n_both

    def epoch(self, number: int, in_both_directions: bool) -> BatchPlan:
        """Which sentences form each update of an epoch, whose ids the learner takes up."""
        if self.processes.is_first:
            self.epochs.make(number)
        self.processes.wait()
        self.learner.store, plan = self.epochs.open(number, in_both_directions)
        return plan

    def log(self, progress: Progress, plan: Plan, meter: Meter) -> str:
        """Write a line of metrics; the only place that waits for the device. -> text for the bar"""
        record: dict[str, Any] = {"kind": "train", "step": progress.step, "epoch": progress.epoch}
        record |= meter.read(progress)
        self.journal.add(record)
        self.watch.see(record)
        text = f"loss {record['loss']:.3f}, {record['tokens_per_s']:,.0f} tokens/s"
        if progress.n_skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"the gradient was not finite for {progress.n_skipped_in_a_row} steps in a row, "
                f"up to step {progress.step}",
                "lower train.optim.learning_rate, or set train.precision to fp32",
            )
        if progress.n_skipped > self.n_skipped_told:
            console.warn(
                f"skipped {progress.n_skipped - self.n_skipped_told} updates up to step "
                f"{progress.step}: their gradients were not finite"
            )
            self.n_skipped_told = progress.n_skipped
        if not console.is_terminal():
            console.message(
                f"step {progress.step}/{plan.max_steps}  epoch {progress.epoch + 1}  {text}, "
                f"{console.duration(plan.left_s())} left"
            )
        return text

    def stop(self, progress: Progress, meter: Meter, stop: StopRequest) -> None:
        """Save and end, as a signal to this process or another one asked for."""
        stop.signal = stop.signal or signal.SIGTERM
        console.message(f"{stop.signal.name}: saving after step {progress.step}")
        self.save(progress, meter)
        self.writer.wait()
        stop.leave(f"saved {self.run.path} at step {progress.step}")

    def unsaved(self, progress: Progress) -> str:
        """What a process that ends now loses."""
        saved = max((step for step, _ in self.run.step_checkpoints()), default=0)
        return f"the {progress.step - saved:,} updates since step {saved:,} are lost"

    def save(self, progress: Progress, meter: Meter) -> None:
        """Have the whole state of training written, which goes on meanwhile."""
        meter.end_lap(progress)
        if self.processes.is_first:
            learner, keep = self.learner, self.config.train.keep
            self.writer.wait()  # before the copies are made: one set of them is enough
            state = copy_state(learner.model, learner.ema, learner.optimizers, progress)
            self.writer.start(lambda: save_state(self.run, state, keep))

    def validate(self, progress: Progress, plan: Plan, stop: StopRequest) -> None:
        """Score the weights on valid, and keep them if they are the best so far."""
        began_at = time.perf_counter()
        if self.processes.is_first:
            learner = self.learner
            weights = learner.ema.weights if learner.ema is not None else weights_of(learner.model)
            with stop.at_once():  # nothing is lost: the state is being written, or was
                record = self.score(weights, progress.step)
            self.writer.wait()  # a validation is written down when its state is
            self.judge(record, weights, progress)
        runtime.give_memory_back()  # a gigabyte after ten validations
        validation_s = time.perf_counter() - began_at
        progress.validating_s += validation_s
        plan.measure(validation_s)
        self.agree(progress)

    def score(self, weights: dict[str, Tensor], step: int) -> dict[str, Any]:
        """Loss, BLEU and chrF of weights on valid."""
        return validate(self.validation, weights, step)

    def judge(self, record: dict[str, Any], weights: dict[str, Tensor], progress: Progress) -> None:
        """Write down a validation, and keep its weights where they are good enough."""
        train = self.config.train
        score = score_of(record, train.best_metric)
        is_best = progress.best_score is None or score > progress.best_score
        record = {"kind": "valid", "step": progress.step, "is_best": is_best} | record
        self.journal.add(record)
        self.watch.see(record)
        console.message(
            f"step {progress.step}: valid loss {record['loss']:.3f}, BLEU {record['bleu']:.2f}, "
            f"chrF {record['chrf']:.2f}{', the best so far' if is_best else ''}"
        )
        facts = {"step": progress.step, "valid": record}
        if is_best:
            progress.best_score, progress.best_step, progress.n_worse = score, progress.step, 0
        else:
            progress.n_worse += 1
        save, kept = save_best if is_best else save_good, copies(weights)
        self.writer.start(lambda: save(self.run, kept, facts, train))

    def agree(self, progress: Progress) -> None:
        """All processes go on with the numbers of the first."""
        vars(progress).update(self.processes.as_first(vars(progress)))

    def describe(self) -> str:
        """The run in one line."""
        learner, n = self.learner, self.processes.n
        threads = f", {torch.get_num_threads()} threads" if learner.device.type == "cpu" else ""
        return (
            f"{learner.n_parameters:,} parameters, {len(self.store):,} pairs, "
            f"{f'{n} processes of ' if n > 1 else ''}{learner.device.type} {learner.precision}"
            f"{threads}"
        )


def _due(step: int, every: int) -> bool:
    return step % every == 0
