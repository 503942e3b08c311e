"""The progress of a run, and its schedule: last step, learning rate, validations.

A run lasts `max_steps`, or as many steps as a time budget allows. A budget is converted to steps by
measuring: in a trial before the first step, then after warm-up and at validations. Each result is
kept in the state as (step, max_steps, number of validations from there to the end), so learning
rate and validations are functions of (step, plan), and a resumed run keeps its plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mtrain.config.sections import TrainConfig
from mtrain.training.optim import learning_rate

USUAL_VALIDATE_EVERY = 1000
MOST_VALIDATIONS = 10  # of a budget
VALIDATION_SHARE = 0.15  # maximum fraction of the rest of a budget
LONGEST_WARMUP = 0.1  # of a budget


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
    plan: list[list[int]] = field(default_factory=list)  # of a budget, see above

    def count_validation(self, score: float) -> bool:
        """Count a validation with this score (higher is better); -> whether it is the best"""
        if self.best_score is not None and score <= self.best_score:
            self.n_worse += 1
            return False
        self.best_score, self.best_step, self.n_worse = score, self.step, 0
        return True


class Schedule:
    """The number of steps, the learning rate and the validations of a run."""

    def __init__(self, train: TrainConfig, progress: Progress) -> None:
        self.train, self.progress = train, progress
        self.lap = (progress.step, progress.elapsed_s)  # the start of the measured steps

    @property
    def corrections(self) -> list[tuple[int, int]]:
        """(step, max_steps), oldest first; empty without a budget."""
        return [(step, max_steps) for step, max_steps, _ in self.progress.plan]

    @property
    def max_steps(self) -> int:
        """The last step, as presently planned."""
        if self.train.budget_s is None:
            assert self.train.max_steps is not None
            return self.train.max_steps
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
        """At the end, and every so many steps or evenly over a budget."""
        if step >= self.max_steps:
            return True
        every = self.train.validate_every
        if every == "auto" and self.train.budget_s is None:
            every = USUAL_VALIDATE_EVERY
        if every != "auto":
            return step % every == 0
        return self._n_validations_left(step) < self._n_validations_left(step - 1)

    def is_out_of_patience(self) -> bool:
        """Whether too many validations in a row did not improve on the best."""
        return bool(self.train.patience) and self.progress.n_worse >= self.train.patience

    def expected_s(self, step_s: float) -> float:
        """The duration of training in seconds if an update takes step_s."""
        return self.train.budget_s or step_s * (self.train.max_steps or 0)

    def begin(self, step_s: float) -> None:
        """Turn a budget into steps before the first one, from the time of an update in a trial."""
        self.lap = (self.progress.step, self.progress.elapsed_s)
        if self.train.budget_s is not None:
            self._correct(self.left_s() / step_s, MOST_VALIDATIONS)

    def is_warmed_up(self, step: int) -> bool:
        """True once, when the pace of a budget is first measured."""
        return self.train.budget_s is not None and step == max(self.warmup_steps, 1)

    def measure(self, validation_s: float = 0.0) -> None:
        """Correct the end by the pace since the last call; a validation takes `validation_s`.

        Does nothing without a budget, or if there was no step since.
        """
        progress, (step, elapsed_s) = self.progress, self.lap
        self.lap = (progress.step, progress.elapsed_s)
        if self.train.budget_s is None or progress.step in (step, self.max_steps):
            return
        step_s = (progress.elapsed_s - elapsed_s) / (progress.step - step)
        left_s = self.left_s()
        n_validations = self._n_validations_left(progress.step)
        if self.train.validate_every != "auto":
            step_s += validation_s / self.train.validate_every
        elif validation_s:
            affordable = min(VALIDATION_SHARE * left_s / validation_s, n_validations - 1)
            n_validations = 1 + int(affordable)  # the last is after the deadline
            left_s -= validation_s * (n_validations - 1)
        self._correct(progress.step + left_s / step_s, n_validations)

    def left_s(self) -> float:
        """The remaining seconds: of the budget, or at the pace so far."""
        progress = self.progress
        if self.train.budget_s is not None:
            return max(0.0, self.train.budget_s - progress.elapsed_s - progress.validating_s)
        return progress.elapsed_s / progress.step * (self.max_steps - progress.step)

    def _n_validations_left(self, step: int) -> int:
        """After `step`, by the plan in force there."""
        start, end, n = next(entry for entry in reversed(self.progress.plan) if entry[0] <= step)
        return max(1, n - (step - start) * n // (end - start))

    def _correct(self, max_steps: float, n_validations: int) -> None:
        last = max(self.progress.step + 1, int(max_steps))
        if self.train.max_steps is not None:
            last = min(last, self.train.max_steps)
        self.progress.plan.append([self.progress.step, last, n_validations])
