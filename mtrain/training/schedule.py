"""The progress of a run, and its schedule: last step, learning rate, validations.

A run lasts `max_steps`, or as many steps as a time budget allows: the time of the whole command, so
the trial, validations and the choice of the best weights are part of it. A budget is turned into
steps by measurement: before the first step from a trial, then from the steps since. Each result is
kept in the state as (step, max_steps, number of validations from there to the end), so learning
rate and validations are functions of (step, plan), and a resumed run keeps its plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mtrain.config.recipe import MOST_STEPS
from mtrain.config.sections import TrainConfig
from mtrain.training.optim import learning_rate

Clock = Callable[[], float]  # -> seconds

USUAL_VALIDATE_EVERY = 1000  # of runs that were started without a plan
FEWEST_STEPS = 500  # between validations, where the end is not known
MOST_VALIDATIONS = 10  # where the end is known
VALIDATION_SHARE = 0.1  # of a budget, at most
N_SIZED_FOR = 5  # validations in that share; they are made small enough for it
N_RIVALS = 2  # weights that are validated after the last step, if there is time
SAVING_SHARE = 0.01  # of a budget, for the last checkpoint and the model
LONGEST_WARMUP = 0.1  # of a budget
MEASURED_SHARE = 0.02  # of a budget between two corrections of its plan


@dataclass
class Progress:
    """The numbers of a training state."""

    step: int = 0  # updates so far
    epoch: int = 0
    update: int = 0  # updates so far in this epoch
    best_step: int = 0
    best_score: float | None = None
    n_worse: int = 0  # validations since the best one
    n_both: int = 0  # the first epochs that are trained in both directions
    n_target_tokens: int = 0  # trained on so far
    n_halvings: int = 0  # of the micro-batch, out of memory
    is_compiled: bool = False  # the layers: on a GPU this changes their dropout masks
    n_skipped: int = 0  # updates with a gradient that was not finite
    n_skipped_in_a_row: int = 0  # up to the last update
    elapsed_s: float = 0.0  # of training, over all resumes
    validating_s: float = 0.0  # of validations
    used_s: float = 0.0  # of a budget
    valid_lines: int = 0  # of valid, in each validation; 0: all
    valid_beam_size: int = 0  # 0: as configured
    validation_s: float = 0.0  # of one validation, the last or as the trial expects it
    plan: list[list[int]] = field(default_factory=list)  # see above

    def count_validation(self, score: float) -> bool:
        """Count a validation with this score (higher is better); -> whether it is the best"""
        if self.best_score is not None and score <= self.best_score:
            self.n_worse += 1
            return False
        self.best_score, self.best_step, self.n_worse = score, self.step, 0
        return True


class Schedule:
    """The number of steps, the learning rate and the validations of a run.

    began_at  the reading of the clock from which this process uses up the budget
    """

    def __init__(
        self,
        train: TrainConfig,
        progress: Progress,
        clock: Clock = time.perf_counter,
        began_at: float | None = None,
    ) -> None:
        self.train, self.progress, self.clock = train, progress, clock
        self.began_at = clock() if began_at is None else began_at
        self.used_before_s = progress.used_s
        self.lap = (progress.step, progress.elapsed_s)  # the start of the measured steps

    @property
    def corrections(self) -> list[tuple[int, int]]:
        """(step, max_steps), oldest first."""
        return [(step, max_steps) for step, max_steps, _ in self.progress.plan]

    @property
    def max_steps(self) -> int:
        """The last step, as presently planned."""
        if self.train.budget_s is None:
            return self.train.max_steps or MOST_STEPS
        return self.corrections[-1][1]

    @property
    def warmup_steps(self) -> int:
        """As configured, but at most a tenth of the first plan of a budget."""
        wanted = self.train.optim.warmup_steps
        if self.train.budget_s is None:
            return wanted
        return min(wanted, int(LONGEST_WARMUP * self.corrections[0][1]))

    def learning_rate(self, step: int) -> float:
        """The rate of update `step` (1, 2, ...)."""
        optim = self.train.optim.model_copy(update={"warmup_steps": self.warmup_steps})
        if self.train.budget_s is None:
            return learning_rate(step, self.max_steps, optim)
        (_, first), *later = self.corrections
        return learning_rate(step, first, optim, later)

    def is_validation_due(self, step: int) -> bool:
        """At the end, and every so many steps or evenly over the plan."""
        if step >= self.max_steps:
            return True
        every = self.train.validate_every
        if every == "auto" and self.train.budget_s is None:
            _, end, n = self.progress.plan[0] if self.progress.plan else (0, 0, 0)
            every = max(1, end // n) if n else USUAL_VALIDATE_EVERY
        if every != "auto":
            return step % every == 0
        return self._n_validations_left(step) < self._n_validations_left(step - 1)

    def is_out_of_patience(self) -> bool:
        """Whether too many validations in a row did not improve on the best."""
        return bool(self.train.patience) and self.progress.n_worse >= self.train.patience

    def expected_s(self, step_s: float) -> float:
        """The duration of training in seconds if an update takes step_s."""
        return self.train.budget_s or step_s * (self.train.max_steps or 0)

    def begin(self, step_s: float, epoch_steps: int) -> None:
        """Plan before the first step, from the time of an update and a validation in the trial."""
        self.lap = (self.progress.step, self.progress.elapsed_s)
        if self.train.budget_s is not None:
            self._correct(step_s, MOST_VALIDATIONS)
        elif self.train.validate_every == "auto":  # by the data alone, so that it is the same again
            n = min(MOST_VALIDATIONS, self.max_steps)
            if self.train.patience:  # the end is not known
                n = max(n, self.max_steps // max(epoch_steps, FEWEST_STEPS))
            self.progress.plan.append([self.progress.step, self.max_steps, n])

    def allowance_s(self) -> float:
        """The time that one validation of a budget may take."""
        return (self.train.budget_s or 0.0) * VALIDATION_SHARE / N_SIZED_FOR

    def measure(self, is_lap_over: bool = True) -> None:
        """Correct the end of a budget by the pace since the last correction.

        Does nothing if there was no step since or, in the middle of a lap, if it is short.
        """
        progress, (step, elapsed_s) = self.progress, self.lap
        progress.used_s = self.used_s()
        if self.train.budget_s is None or progress.step in (step, self.max_steps):
            return
        lap_s = progress.elapsed_s - elapsed_s
        if not is_lap_over and lap_s < MEASURED_SHARE * self.train.budget_s:
            return
        self.lap = (progress.step, progress.elapsed_s)
        n_left = self._n_validations_left(progress.step)
        self._correct(lap_s / (progress.step - step), n_left)

    def is_warmed_up(self, step: int) -> bool:
        """True once, when the pace of a budget is first measured."""
        return self.train.budget_s is not None and step == max(self.warmup_steps, 1)

    def used_s(self) -> float:
        """The time of this and earlier processes that a budget counts."""
        return self.used_before_s + self.clock() - self.began_at

    def left_s(self) -> float:
        """The remaining seconds: of the budget, or at the pace so far."""
        progress = self.progress
        if self.train.budget_s is not None:
            return max(0.0, self.train.budget_s - self.used_s())
        return progress.elapsed_s / max(1, progress.step) * (self.max_steps - progress.step)

    def has_time_to_validate(self) -> bool:
        """Whether one more validation fits into the budget, and the model can be saved."""
        budget_s = self.train.budget_s
        if budget_s is None:
            return True
        return self.left_s() >= self.progress.validation_s + SAVING_SHARE * budget_s

    @property
    def _validation_s(self) -> float:
        return max(self.progress.validation_s, 1e-3)

    def _n_validations_left(self, step: int) -> int:
        """After `step`, by the plan in force there."""
        start, end, n = next(entry for entry in reversed(self.progress.plan) if entry[0] <= step)
        return max(1, n - (step - start) * n // (end - start))

    def _correct(self, step_s: float, n_validations: int) -> None:
        """Plan the rest of a budget: the last validation and those of rivals come after it."""
        progress, budget_s = self.progress, self.train.budget_s
        assert budget_s is not None
        validation_s = self._validation_s
        share_s = VALIDATION_SHARE * budget_s - progress.validating_s
        n_at_end = 1 + min(N_RIVALS, max(0, int(share_s / (2 * validation_s)) - 1))
        left_s = self.left_s() - SAVING_SHARE * budget_s - n_at_end * validation_s
        if self.train.validate_every != "auto":
            step_s += validation_s / self.train.validate_every
        else:
            n_before = max(0, int(share_s / validation_s) - n_at_end)
            n_validations = 1 + min(n_before, n_validations - 1)
            left_s -= validation_s * (n_validations - 1)
        last = progress.step + max(1, int(left_s / step_s))
        if self.train.max_steps is not None:
            last = min(last, self.train.max_steps)
        progress.plan.append([progress.step, last, n_validations])
