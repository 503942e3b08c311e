"""How long a run lasts: to max_steps, or to the last step that a time budget allows.

A budget becomes steps by measurement: before the first step from a trial, after warm-up and at
validations from the steps since. Each result is kept in the state as (step, max_steps, number of
validations from there to the end), so learning rate and validations stay functions of (step, plan),
and a resumed run keeps its plan.
"""

from __future__ import annotations

from mtrain.config.sections import TrainConfig
from mtrain.training.optim import learning_rate
from mtrain.training.state import Progress

USUAL_VALIDATE_EVERY = 1000
MOST_VALIDATIONS = 10  # of a budget
VALIDATION_SHARE = 0.15  # of what is left of a budget, at most
LONGEST_WARMUP = 0.1  # of a budget


class Plan:
    """The number of steps, the learning rate and the validations of a run."""

    def __init__(self, train: TrainConfig, progress: Progress) -> None:
        self.train, self.progress = train, progress
        self.anchor = (progress.step, progress.elapsed_s)  # where the present pace is measured from

    @property
    def corrections(self) -> list[tuple[int, int]]:
        """(step, max_steps), oldest first; none without a budget."""
        return [(step, max_steps) for step, max_steps, _ in self.progress.plan]

    @property
    def max_steps(self) -> int:
        """The last step, as far as is known."""
        if self.train.budget_s is None:
            assert self.train.max_steps is not None
            return self.train.max_steps
        return self.corrections[-1][1]

    @property
    def warmup_steps(self) -> int:
        """As configured, but of a budget at most a tenth of what the trial promised."""
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
        """At the end; every so many steps, or evenly over the way through a budget."""
        if step >= self.max_steps:
            return True
        every = self.train.validate_every
        if every == "auto" and self.train.budget_s is None:
            every = USUAL_VALIDATE_EVERY
        if every != "auto":
            return step % every == 0
        return self._n_validations_left(step) < self._n_validations_left(step - 1)

    def expected_s(self, step_s: float) -> float:
        """Seconds that training takes if an update takes step_s."""
        return self.train.budget_s or step_s * (self.train.max_steps or 0)

    def begin(self, step_s: float) -> None:
        """Turn a budget into steps before the first one, from how long a trial took."""
        if self.train.budget_s is not None:
            self._correct(self.left_s() / step_s, MOST_VALIDATIONS)

    def is_warmed_up(self, step: int) -> bool:
        """True once, where the pace of a budget is first measured."""
        return self.train.budget_s is not None and step == max(self.warmup_steps, 1)

    def measure(self, validation_s: float = 0.0) -> None:
        """Correct the end by the pace since the last time; `validation_s` is that of another one.

        Does nothing without a budget, or where no step was made since.
        """
        progress, (step, elapsed_s) = self.progress, self.anchor
        self.anchor = (progress.step, progress.elapsed_s)
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
        """Seconds to go, at the pace so far."""
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
