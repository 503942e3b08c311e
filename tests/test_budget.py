"""A time budget becomes steps: by hand, and for a machine of any speed."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrain.config.sections import TrainConfig
from mtrain.training.schedule import N_RIVALS, Progress, Schedule


class Run:
    """A training on a clock of its own; updates take step_s, validations validation_s."""

    def __init__(
        self, train: TrainConfig, step_s: float, validation_s: float = 0.0, epoch_steps: int = 100
    ) -> None:
        self.now = 0.0
        self.progress = Progress(validation_s=validation_s)
        self.schedule = Schedule(train, self.progress, clock=lambda: self.now)
        self.schedule.begin(step_s, epoch_steps)

    def update(self, step_s: float) -> None:
        self.progress.step += 1
        self.progress.elapsed_s += step_s
        self.now += step_s

    def validate(self, validation_s: float) -> None:
        self.progress.validating_s += validation_s
        self.progress.validation_s = validation_s
        self.now += validation_s


def config(**settings: object) -> TrainConfig:
    optim = {"warmup_steps": 20, "learning_rate": 0.01, "schedule": "linear"}
    return TrainConfig.model_validate({"optim": optim, **settings})


def due(run: Run, last: int) -> list[int]:
    return [step for step in range(1, last + 1) if run.schedule.is_validation_due(step)]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30min", 1800), ("90s", 90), ("1h30min", 5400), ("0.5h", 1800), ("2min30s", 150)],
)
def test_budgets_as_they_are_written(text, seconds):
    assert config(budget=text).budget_s == seconds


@pytest.mark.parametrize("text", ["30", "min", "30 min", "half an hour", "-1h", "1d"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ValueError, match="pattern"):
        config(budget=text)


def test_without_a_budget_max_steps_is_the_end() -> None:
    run = Run(config(max_steps=5000), 1.0)
    assert run.schedule.max_steps == 5000
    assert run.schedule.warmup_steps == 20
    assert due(run, 5000) == [*range(500, 5001, 500)]


@pytest.mark.parametrize(("epoch_steps", "every"), [(100, 500), (800, 833)])
def test_without_an_end_validations_follow_the_epochs(epoch_steps: int, every: int) -> None:
    run = Run(config(max_steps=10_000, patience=10), 1.0, epoch_steps=epoch_steps)
    assert due(run, 2600) == [*range(every, 2601, every)]


def test_the_trial_gives_the_first_end() -> None:
    run = Run(config(budget="101s"), 0.125)
    assert run.progress.plan == [[0, 799, 10]]  # 1 % is for saving
    assert due(run, 799) == [-(-799 * i // 10) for i in range(1, 11)]


def test_warm_up_is_at_most_a_tenth_of_the_trials_promise() -> None:
    train = TrainConfig.model_validate({"budget": "100s", "optim": {"warmup_steps": 4000}})
    schedule = Run(train, 0.125).schedule
    assert schedule.warmup_steps == 79
    assert schedule.learning_rate(79) == pytest.approx(train.optim.learning_rate)
    assert schedule.learning_rate(80) < train.optim.learning_rate


def test_a_correction_moves_the_end_and_nothing_jumps() -> None:
    run = Run(config(budget="100s"), 0.1)
    before = run.schedule.learning_rate(301)
    for _ in range(300):
        run.update(0.2)  # twice as slow as promised
    run.schedule.measure()
    assert run.progress.plan[1][:2] == [300, 300 + 194]  # 39 s of 0.2 s each
    assert run.schedule.learning_rate(301) == pytest.approx(before, rel=0.01)
    rates = [run.schedule.learning_rate(step) for step in range(295, 495)]
    assert rates == sorted(rates, reverse=True)
    assert all(a - b < 0.01 / 200 for a, b in itertools.pairwise(rates))
    assert rates[-1] < 0.01 / 200
    assert run.schedule.learning_rate(495) == 0


@pytest.mark.parametrize(("validation_s", "n_left"), [(0.1, 9), (2.0, 3), (50.0, 1)])
def test_the_number_of_validations_follows_from_their_cost(
    validation_s: float, n_left: int
) -> None:
    """With those of two rivals, they take a tenth of the 100 s; one is made in any case."""
    run = Run(config(budget="100s"), 0.1)
    for _ in range(100):
        run.update(0.1)
    run.validate(validation_s)
    run.schedule.measure()
    start, end, n = run.progress.plan[-1]
    assert (start, n) == (100, n_left)
    assert len(due(run, end)) - len(due(run, 100)) == n_left


def test_within_a_lap_only_a_long_one_is_measured() -> None:
    run = Run(config(budget="100s"), 0.1)
    for _ in range(19):
        run.update(0.1)
    run.schedule.measure(is_lap_over=False)
    assert len(run.progress.plan) == 1
    run.update(0.2)
    run.schedule.measure(is_lap_over=False)
    assert len(run.progress.plan) == 2


def test_a_resumed_plan_is_the_same_and_its_time_goes_on() -> None:
    run = Run(config(budget="100s"), 0.1)
    for _ in range(300):
        run.update(0.1)
    run.progress.used_s = run.schedule.used_s()
    resumed = Schedule(run.schedule.train, run.progress, clock=lambda: 1005.0, began_at=1000.0)
    plan = [*run.progress.plan]
    resumed.measure()  # no step since: nothing to learn
    assert resumed.progress.plan == plan
    assert resumed.learning_rate(301) == run.schedule.learning_rate(301)
    assert resumed.left_s() == pytest.approx(100 - 30 - 5)


def test_max_steps_is_the_most_of_a_budget() -> None:
    assert Run(config(budget="100s", max_steps=70), 0.1).schedule.max_steps == 70


@given(
    step_s=st.floats(0.05, 1.0),
    slower=st.floats(0.3, 4.0),
    validation_s=st.floats(0.01, 3.0),
    expected_s=st.floats(0.01, 6.0),
    budget_s=st.integers(120, 600),
)
@settings(max_examples=50)
def test_a_budget_is_kept_at_a_rate_near_zero(
    step_s: float, slower: float, validation_s: float, expected_s: float, budget_s: int
) -> None:
    """Whatever the trial promised: training, validations, rivals and saving together."""
    optim = {"warmup_steps": 50, "learning_rate": 1.0, "schedule": "linear"}
    train = TrainConfig.model_validate({"budget": f"{budget_s}s", "optim": optim})
    run, rate = Run(train, step_s, expected_s), 0.0
    schedule, progress = run.schedule, run.progress
    while progress.step < schedule.max_steps:
        rate = schedule.learning_rate(progress.step + 1)
        run.update(step_s * slower)
        if progress.step % 10 == 0:
            schedule.measure(is_lap_over=False)
        if schedule.is_warmed_up(progress.step):
            schedule.measure()
        if schedule.is_validation_due(progress.step):
            run.validate(validation_s)
            schedule.measure()
    for _ in range(N_RIVALS):
        if schedule.has_time_to_validate():
            run.validate(validation_s)
    over_s = run.now - budget_s
    assert -0.12 * budget_s < over_s < max(15.0, 0.03 * budget_s)
    assert progress.validating_s <= 0.15 * budget_s
    assert rate < 0.15
