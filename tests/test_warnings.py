"""Warnings in words: each once, and only where there is reason."""

from typing import Any

import pytest

from mtrain.training.log import Warnings


def train_record(step: int, nll: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "nll": nll, "epoch": step // 100}


def valid_record(step: int, **facts: Any) -> dict[str, Any]:
    usual = {"bleu": 20.0, "n_distinct_outputs": 90, "n_distinct_references": 100}
    return {"kind": "valid", "step": step, "bleu_of_copying": 3.0, **usual, **facts}


def said_of(capsys: pytest.CaptureFixture[str], *records: dict[str, Any], warmup: int = 0) -> str:
    warnings = Warnings(target_vocab_size=5000, warmup_steps=warmup)  # log 5000 = 8.5
    for record in records:
        warnings.see(record)
    return capsys.readouterr().err


def test_a_good_training_is_left_in_peace(capsys):
    records = [train_record(step, max(2.0, 8.5 - step / 200)) for step in range(0, 6000, 50)]
    assert said_of(capsys, *records, valid_record(1000), valid_record(2000)) == ""


def test_a_loss_that_does_not_fall(capsys):
    records = [train_record(step, 8.4) for step in range(50, 2000, 50)]
    said = said_of(capsys, *records)
    assert said.startswith("warning: the loss does not fall: at step 500 it is 8.40 per piece")
    assert said.count("\n") == 1
    assert said_of(capsys, *records, warmup=4000) == ""


def test_a_loss_that_has_risen(capsys):
    said = said_of(capsys, train_record(50, 5.0), train_record(100, 5.9), train_record(150, 6.1))
    assert "the loss has risen again: to 6.10 per piece at step 150, from 5.00" in said
    said = said_of(capsys, train_record(50, 5.0), train_record(100, float("nan")))
    assert said == ""


def test_outputs_that_are_all_equal(capsys):
    assert "gets the same translation" in said_of(capsys, valid_record(9, n_distinct_outputs=1))
    one_reference = {"n_distinct_outputs": 1, "n_distinct_references": 1}
    assert said_of(capsys, valid_record(9, **one_reference)) == ""


def test_worse_than_copying_but_not_at_the_first_validation(capsys):
    bad = [valid_record(step, bleu=2.0) for step in (1000, 2000, 3000)]
    assert said_of(capsys, bad[0]) == ""
    said = said_of(capsys, *bad)
    assert "copying the source scores higher" in said
    assert "at step 2000 (3.0 BLEU against 2.0)" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("step", "warmup", "cause"),
    [
        (200, 4000, "the learning rate is still rising, until step 4000"),
        (200, 0, "the model has seen the training text 3 times"),
        (900, 0, "check that source and target are in the right languages"),
    ],
)
def test_a_poor_score_has_its_likely_cause(capsys, step, warmup, cause):
    bad = [valid_record(n, bleu=2.0) for n in (step - 100, step)]
    assert cause in said_of(capsys, train_record(step, 3.0), *bad, warmup=warmup)
