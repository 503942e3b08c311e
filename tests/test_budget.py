"""A time budget becomes steps: by hand, and for a machine of any speed."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrain.config.sections import TrainConfig
from mtrain.training.schedule import Progress, Schedule


def config(**settings: object) -> TrainConfig:
    optim = {"warmup_steps": 20, "learning_rate": 0.01}
    return TrainConfig.model_validate({"optim": optim, **settings})


def begun(train: TrainConfig, step_s: float) -> Schedule:
    plan = Schedule(train, Progress())
    plan.begin(step_s)
    return plan


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


def test_without_a_budget_max_steps_is_the_end():
    plan = begun(config(), 1.0)
    assert plan.max_steps == 100_000
    assert plan.warmup_steps == 20
    assert plan.progress.plan == []
    due = [step for step in range(1, 4001) if plan.is_validation_due(step)]
    assert due == [1000, 2000, 3000, 4000]


def test_a_budget_makes_the_schedule_linear_unless_given():
    assert config(budget="1h").optim.schedule == "linear"
    assert config().optim.schedule == "inverse_sqrt"
    given_one = {"budget": "1h", "optim": {"schedule": "cosine"}}
    assert TrainConfig.model_validate(given_one).optim.schedule == "cosine"


def test_the_trial_gives_the_first_end():
    plan = begun(config(budget="100s"), 0.1)
    assert plan.max_steps == 1000
    assert plan.progress.plan == [[0, 1000, 10]]
    assert [plan.is_validation_due(step) for step in (1, 20, 999, 1000)] == [False] * 3 + [True]


def test_a_budget_validates_ten_times():
    plan = begun(config(budget="100s"), 0.1)
    due = [step for step in range(1, 1001) if plan.is_validation_due(step)]
    assert due == list(range(100, 1001, 100))


def test_warm_up_is_at_most_a_tenth_of_the_trials_promise():
    train = TrainConfig.model_validate({"budget": "100s", "optim": {"warmup_steps": 4000}})
    plan = begun(train, 0.1)
    assert plan.warmup_steps == 100
    assert plan.learning_rate(100) == pytest.approx(train.optim.learning_rate)
    assert plan.learning_rate(101) < train.optim.learning_rate


def test_a_correction_moves_the_end_and_nothing_jumps():
    plan = begun(config(budget="100s"), 0.1)  # 1,000 steps
    before = plan.learning_rate(500)
    plan.progress.step, plan.progress.elapsed_s = 500, 100 - 25.0  # twice as slow as promised
    plan.lap = (400, 75.0 - 20.0)  # 0.2 s a step
    plan.measure()
    assert plan.progress.plan == [[0, 1000, 10], [500, 625, 5]]
    assert plan.learning_rate(500) == before
    rates = [plan.learning_rate(step) for step in range(495, 626)]
    assert rates == sorted(rates, reverse=True)
    assert all(a - b < 0.01 / 200 for a, b in itertools.pairwise(rates))
    assert plan.learning_rate(625) < 0.01 / 200
    assert plan.learning_rate(626) == 0


@pytest.mark.parametrize(("validation_s", "n_left"), [(1.0, 9), (3.0, 5), (50.0, 1)])
def test_validations_to_come_take_their_part_but_no_more(validation_s, n_left):
    """At most 15 % of the 86 s that are left; the last one comes after the deadline."""
    plan = begun(config(budget="100s"), 0.1)
    plan.progress.step, plan.progress.elapsed_s = 100, 14.0 - validation_s
    plan.progress.validating_s = validation_s
    plan.lap = (0, 4.0 - validation_s)
    plan.measure(validation_s)
    steps = int((86 - (n_left - 1) * validation_s) / 0.1)
    assert plan.progress.plan[-1] == [100, 100 + steps, n_left]
    due = [step for step in range(101, 101 + steps) if plan.is_validation_due(step)]
    assert len(due) == n_left
    assert due[-1] == 100 + steps


def test_a_resumed_plan_is_the_same_and_measures_only_what_it_saw():
    plan = begun(config(budget="100s"), 0.1)
    plan.progress.step, plan.progress.elapsed_s = 300, 60.0
    resumed = Schedule(plan.train, plan.progress)
    resumed.measure()  # no step since: nothing to learn
    assert resumed.progress.plan == [[0, 1000, 10]]
    assert resumed.learning_rate(301) == plan.learning_rate(301)


def test_max_steps_is_the_most_of_a_budget():
    assert begun(config(budget="100s", max_steps=70), 0.1).max_steps == 70


@given(
    step_s=st.floats(0.1, 2.0),
    slower=st.floats(0.3, 4.0),
    validation_s=st.floats(0.0, 20.0),
    budget_s=st.integers(60, 600),
)
@settings(max_examples=30)
def test_a_run_ends_at_the_deadline_at_a_rate_near_zero(step_s, slower, validation_s, budget_s):
    """Whatever the trial promised; the last validation comes after the deadline."""
    train = TrainConfig.model_validate(
        {"budget": f"{budget_s}s", "optim": {"warmup_steps": 50, "learning_rate": 1.0}}
    )
    plan = begun(train, step_s)
    progress, rate = plan.progress, 0.0
    while progress.step < plan.max_steps:
        rate = plan.learning_rate(progress.step + 1)
        progress.step += 1
        progress.elapsed_s += step_s * slower
        if plan.is_warmed_up(progress.step):
            plan.measure()
        if plan.is_validation_due(progress.step) and progress.step < plan.max_steps:
            progress.validating_s += validation_s
            plan.measure(validation_s)
    spent_s = progress.elapsed_s + progress.validating_s
    if progress.step > 100 and validation_s < budget_s / 10:
        assert spent_s == pytest.approx(budget_s, rel=0.03, abs=2 * step_s * slower)
        assert rate < 0.05
