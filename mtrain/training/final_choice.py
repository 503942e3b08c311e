"""At the end of a run, what could become its model is compared on valid, and the best does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mtrain import console
from mtrain.config.sections import TrainConfig
from mtrain.model.weights import average, load_tensors, save_tensors
from mtrain.run import RunDir
from mtrain.training.state import Progress, score_of

METRICS = {"chrf": "chrF", "bleu": "BLEU", "loss": "loss"}

Scorer = Callable[[dict[str, Tensor], int], dict[str, Any]]  # weights and their step -> scores


def install_winner(run: RunDir, train: TrainConfig, progress: Progress, scorer: Scorer) -> None:
    """Score `last`, `ema` and the averages as `best` was scored; write the winner's weights.

    A draw goes to the one named first.
    """
    metric = train.best_metric
    weights, facts = load_tensors(run.best_checkpoints()[-1][1])
    winner, winning = "best", facts
    records = {"best": facts["valid"]}
    for name in rivals(run, progress):
        averaged = average(load_tensors(path)[0] for path in run.checkpoint_files(name))
        record = records[name] = scorer(averaged, progress.step)
        run.log({"kind": "rival", "step": progress.step, "checkpoint": name} | record)
        if score_of(record, metric) > score_of(records[winner], metric):
            winner, weights = name, averaged
            winning = {"step": progress.step, "valid": record}
    save_tensors(run.weights, weights, winning | {"checkpoint": winner})
    others = [
        f"{in_words(record, metric)} of `{name}`"
        for name, record in records.items()
        if name != winner
    ]
    console.message(
        f"done: {run.path} holds `{winner}`, of step {winning['step']}, with "
        f"{in_words(records[winner], metric)} on valid"
        f"{' against ' if others else ''}{', '.join(others)} "
        f"({console.duration(progress.elapsed_s)} of training)"
    )


def rivals(run: RunDir, progress: Progress) -> list[str]:
    """Names of the checkpoints whose weights no validation has scored yet."""
    named = run.named_checkpoints()
    has_ema = "ema" in named
    was_scored = {"ema" if has_ema else "last"} if progress.best_step == progress.step else set()
    return [
        name
        for name in ("last", "ema", "avg", "avg-best")
        if name in named
        and name not in was_scored
        and (len(named[name]) > 1 or not name.startswith("avg"))
    ]


def in_words(record: dict[str, Any], metric: str) -> str:
    """What a validation found by `metric`."""
    return f"{METRICS[metric]} {record[metric]:.2f}"
