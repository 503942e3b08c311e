"""The training loop: teacher forcing, one update of the weights after the other, exactly resumed.

Read `train` first: it prepares, starts or resumes, and loops. What an update is made of (order,
dropout) is a function of (seed, epoch, step, micro-batch), so that a run that was stopped goes on
as if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mtrain import console, runtime
from mtrain.config import Config
from mtrain.data.batching import Batch, BatchPlan, collate
from mtrain.data.prepare import Prepared, find_prepared, prepare
from mtrain.data.store import TokenStore
from mtrain.errors import NonFiniteError, OutOfMemoryError
from mtrain.model.loss import Loss
from mtrain.model.transformer import Transformer, seed_dropout
from mtrain.model.weights import load_tensors, save_tensors, weights_of
from mtrain.run import RunDir
from mtrain.training.meter import Meter
from mtrain.training.objective import loss_of, n_passes
from mtrain.training.optim import Ema, learning_rate, make_optimizers
from mtrain.training.resume import alone_in, drop_lines_beyond, open_run
from mtrain.training.signals import StopRequest
from mtrain.training.state import Progress, load_newest, save_best, save_state
from mtrain.training.validate import Validation, validate
from mtrain.training.workers import Workers

MOST_SKIPPED_IN_A_ROW = 20


def train(config: Config, config_path: Path, fresh: bool = False) -> None:
    """Prepare if needed, then train to the end, from the newest checkpoint if there is one.

    Raises StoppedBySignal after saving, where SIGINT or SIGTERM asks for it.
    """
    prepared = find_prepared(config, config_path) or prepare(config, config_path)
    device = runtime.choose_device(config.train.device)
    runtime.set_up(device, config.train.threads)
    with alone_in(RunDir(config.run_dir)):
        _train(config, prepared, device, fresh)


def _train(config: Config, prepared: Prepared, device: torch.device, fresh: bool) -> None:
    run = open_run(config, prepared, fresh)
    loop = _Loop(config, run, prepared, device)
    progress = load_newest(run, loop.model, loop.ema, loop.optimizers)
    if progress is None:
        console.message(f"training {run.path}: {loop.describe()}")
    elif progress.step >= config.train.max_steps and run.weights.exists():
        console.message(f"{run.path} is trained to step {progress.step}: nothing to do")
        return
    else:
        console.message(f"resuming {run.path} at step {progress.step}: {loop.describe()}")
    drop_lines_beyond(run, progress)
    run.weights.unlink(missing_ok=True)  # of an earlier end: `best` holds the same
    progress = progress or Progress()
    with StopRequest() as stop:
        loop.run_to_the_end(progress, stop)
    _install_winner(run, progress)


class _Loop:
    """What stays the same from update to update."""

    def __init__(
        self, config: Config, run: RunDir, prepared: Prepared, device: torch.device
    ) -> None:
        self.config, self.run, self.device = config, run, device
        self.precision = runtime.choose_precision(config.train.precision, device)
        self.store = TokenStore.open(prepared.path)
        self.src_lengths = self.store.src_lengths.astype(np.int64) + 1  # with EOS
        self.tgt_lengths = self.store.tgt_lengths.astype(np.int64) + 1
        torch.manual_seed(config.train.seed)
        source_size, target_size = prepared.manifest["vocab_sizes"]
        self.model = Transformer(config.model, source_size, target_size).to(device)
        self.optimizers = make_optimizers(self.model, config.train.optim)
        decay = config.train.optim.ema_decay
        self.ema = Ema(weights_of(self.model), decay) if decay else None
        n_workers = torch.get_num_threads() if device.type == "cpu" else 1
        self.workers = Workers(self.model, n_workers)
        self.validation = Validation(config, run, device, self.precision)

    def run_to_the_end(self, progress: Progress, stop: StopRequest) -> None:
        """Update after update until max_steps, or until patience is over."""
        train = self.config.train
        meter = Meter(progress, self.device)
        self.n_skipped_told = progress.n_skipped
        with console.bar(train.max_steps, "train", "step", initial=progress.step) as bar:
            # A state is saved just before its validation. Where max_steps or validate_every had
            # another value then, a best checkpoint tells that there was one.
            was_best = progress.step in dict(self.run.best_checkpoints())
            if progress.step and (was_best or self.is_validation_due(progress.step)):
                self.validate(progress, stop)
                meter.begin_lap()
            for update in self.updates(progress):
                if self.is_over(progress):
                    break
                self.step(update, progress, meter)
                bar.update()
                is_last = progress.step == train.max_steps
                if is_last or _due(progress.step, train.log_every):
                    bar.set_postfix_str(self.log(progress, meter), refresh=False)
                if stop.signal is not None:
                    console.message(f"{stop.signal.name}: saving after this step")
                    self.save(progress, meter)
                    stop.leave(f"saved {self.run.path} at step {progress.step}")
                is_validation_due = self.is_validation_due(progress.step)
                if is_validation_due or _due(progress.step, train.save_every):
                    self.save(progress, meter)  # before validating, so nothing is lost
                if is_validation_due:
                    meter.end_lap(progress)
                    self.validate(progress, stop)
                    meter.begin_lap()

    def is_validation_due(self, step: int) -> bool:
        """Every so many steps, and at the end."""
        train = self.config.train
        return step >= train.max_steps or _due(step, train.validate_every)

    def is_over(self, progress: Progress) -> bool:
        """True after max_steps, or where no validation was better for `patience` of them."""
        train = self.config.train
        if train.patience and progress.n_worse >= train.patience:
            console.message(
                f"stopping early at step {progress.step}: {progress.n_worse} validations "
                f"without a better {train.best_metric} than at step {progress.best_step}"
            )
            return True
        return progress.step >= train.max_steps

    def updates(self, progress: Progress) -> Iterator[_Update]:
        """The updates from where progress stands, epoch after epoch, each from its own plan."""
        train = self.config.train
        while True:
            plan = BatchPlan(
                self.src_lengths, self.tgt_lengths, train.batch_tokens, train.seed, progress.epoch
            )
            while progress.update < len(plan):
                progress.update += 1
                yield _Update(plan, progress.update - 1)
            progress.epoch, progress.update = progress.epoch + 1, 0

    def step(self, update: _Update, progress: Progress, meter: Meter) -> None:
        """One update of the weights: gradients summed over micro-batches, clipped, applied."""
        train, step = self.config.train, progress.step + 1
        for model in self.workers.models:
            model.train()
        while not self.accumulate(update, progress, meter):
            pass  # out of memory: again, in smaller micro-batches
        clip_norm = train.optim.clip_norm or float("inf")
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        is_bad = ~torch.isfinite(grad_norm)
        rate = learning_rate(step, train.max_steps, train.optim)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Where this is 1, weights and moments stay as they are: no wait for the device.
            optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(weights_of(self.model), step)
        progress.step = step
        meter.add_step(grad_norm, is_bad, rate)

    def accumulate(self, update: _Update, progress: Progress, meter: Meter) -> bool:
        """The gradients of an update, micro-batch after micro-batch.

        False where the memory does not suffice: the micro-batch is halved, and nothing was counted.
        """
        seed, step = self.config.train.seed, progress.step + 1
        n_target_tokens = update.plan.n_target_tokens(update.number)
        parts = update.plan.micro_batches(update.number, self.micro_batch_tokens(progress))
        batches = [collate(self.store, part) for part in parts]

        def forward_backward(model: Transformer, i: int) -> Loss:
            seed_dropout(runtime.seed_of(seed, step, i))
            with runtime.autocast(self.device, self.precision):
                loss = loss_of(model, batches[i].to(self.device), self.config.train.optim)
            (loss.smoothed / n_target_tokens).backward()  # type: ignore[no-untyped-call]
            return loss._replace(smoothed=loss.smoothed.detach())

        try:
            sizes = [batch.n_positions for batch in batches]
            losses = self.workers.run(forward_backward, range(len(batches)), sizes)
        except torch.OutOfMemoryError as error:
            self.workers.drop_gradients()
            self.shrink(batches, progress, error)
            return False
        for batch, loss in zip(batches, losses, strict=True):
            meter.add_batch(batch, loss)
        progress.n_target_tokens += n_target_tokens
        return True

    def micro_batch_tokens(self, progress: Progress) -> int:
        """The micro-batch in force. `auto`: what stays in a CPU's caches, or keeps a GPU busy."""
        wanted = self.config.train.micro_batch_tokens
        busy = min(self.config.train.batch_tokens, 1024 if self.device.type == "cpu" else 32768)
        whole = max(busy, self.config.data.max_length + 1) if wanted == "auto" else wanted
        return max(1, (whole >> progress.n_halvings) // n_passes(self.config.train.optim))

    def shrink(
        self, batches: list[Batch], progress: Progress, error: torch.OutOfMemoryError
    ) -> None:
        """Halve the micro-batch, which changes no update; an error where it is one pair already."""
        batch = max(batches, key=lambda batch: batch.n_positions)
        rows, source, target = *batch.src.shape, batch.tgt_in.shape[1]
        problem = (
            f"a micro-batch of {rows} pairs of {source} source and {target} target pieces does not "
            f"fit into the memory of {self.device}"
        )
        if rows == 1:
            raise OutOfMemoryError(
                problem, "set data.max_length lower, or choose a smaller model"
            ) from error
        progress.n_halvings += 1
        console.warn(f"{problem}; going on with {self.micro_batch_tokens(progress):,} tokens")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def log(self, progress: Progress, meter: Meter) -> str:
        """Write a line of metrics; the only place that waits for the device. -> text for the bar"""
        record: dict[str, Any] = {"kind": "train", "step": progress.step, "epoch": progress.epoch}
        record |= meter.read(progress)
        self.run.log(record)
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
            console.message(self.plain_line(progress, text))
        return text

    def plain_line(self, progress: Progress, text: str) -> str:
        """A line of the log where there is no terminal to draw a bar on."""
        max_steps = self.config.train.max_steps
        left_s = progress.elapsed_s / progress.step * (max_steps - progress.step)
        left = console.duration(left_s)
        return f"step {progress.step}/{max_steps}  epoch {progress.epoch + 1}  {text}, {left} left"

    def save(self, progress: Progress, meter: Meter) -> None:
        """Write the whole state of training."""
        meter.end_lap(progress)
        save_state(
            self.run, self.model, self.ema, self.optimizers, progress, self.config.train.keep
        )

    def validate(self, progress: Progress, stop: StopRequest) -> None:
        """Score the weights on valid, and keep them if they are the best so far."""
        weights = self.ema.weights if self.ema is not None else weights_of(self.model)
        with stop.at_once():  # the state was saved before this
            record = validate(self.validation, weights, progress.step)
        metric = self.config.train.best_metric
        score = -record[metric] if metric == "loss" else record[metric]
        is_best = progress.best_score is None or score > progress.best_score
        self.run.log({"kind": "valid", "step": progress.step, "is_best": is_best} | record)
        console.message(
            f"step {progress.step}: valid loss {record['loss']:.3f}, BLEU {record['bleu']:.2f}, "
            f"chrF {record['chrf']:.2f}{', the best so far' if is_best else ''}"
        )
        if is_best:
            progress.best_score, progress.best_step, progress.n_worse = score, progress.step, 0
            facts = {"step": progress.step, "valid": record}
            save_best(self.run, weights, facts)
        else:
            progress.n_worse += 1

    def describe(self) -> str:
        """The run in one line."""
        n_parameters = sum(p.numel() for p in self.model.parameters())
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return (
            f"{n_parameters:,} parameters, {len(self.store):,} pairs, "
            f"{self.device.type} {self.precision}{threads}"
        )


@dataclass(frozen=True)
class _Update:
    plan: BatchPlan
    number: int  # in the plan


def _install_winner(run: RunDir, progress: Progress) -> None:
    """The best weights become the run's model."""
    weights, facts = load_tensors(run.best_checkpoints()[-1][1])
    save_tensors(run.weights, weights, facts)
    console.message(
        f"done: {run.path} holds the weights of step {facts['step']} "
        f"({console.duration(progress.elapsed_s)} of training)"
    )


def _due(step: int, every: int) -> bool:
    return step % every == 0
