"""The values of keys that are `auto`, as a function of data, time and what is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import invoke, run_mtrain, write_reverse_task

from mtrain.config.load import load_config
from mtrain.config.recipe import (
    Facts,
    apply,
    choose,
    choose_vocabulary,
    chosen_in,
    from_json,
    is_given,
    to_json,
    with_choices,
)
from mtrain.config.root import Config
from mtrain.config.sections import PRESETS

BASE: dict[str, Any] = {
    "name": "x",
    "source": "en",
    "target": "de",
    "data": {"train": {"source": "a", "target": "b"}},
}
FACTS = Facts(30_000, 500_000, (4000, 4000), 2048, "cpu", 8000.0)


def config(**sections: Any) -> Config:
    return Config.model_validate(BASE | sections)


def values(settings: Config, facts: Facts = FACTS) -> dict[str, Any]:
    return {key: choice.value for key, choice in choose(settings, facts).items()}


def test_null_and_auto_are_not_given() -> None:
    found = config(model={"dropout": "auto", "n_heads": 8}, train={"optim": {"beta1": None}})
    assert found == config(model={"n_heads": 8})
    assert is_given(found, "model.n_heads")
    assert not any(is_given(found, f"model.{key}") for key in ("dropout", "d_model", "preset"))
    assert is_given(found, "data.train")
    assert not is_given(found, "train.optim.beta1")


def test_auto_is_refused_where_nothing_is_chosen(tmp_path: Path) -> None:
    write_reverse_task(tmp_path)
    done = invoke("prepare", "reverse.yaml", "--set", "model.d_ff=auto", cwd=tmp_path)
    assert done.returncode == 2
    assert "`model.d_ff` must be a whole number, not `auto`" in done.stderr


@pytest.mark.parametrize(
    ("n_pairs", "n_characters", "size", "coverage"),
    [
        (3_000, 80, 1_000, 1.0),
        (30_000, 80, 4_000, 1.0),
        (30_000, 3_000, 4_000, 0.9995),
        (3_000, 3_000, 4_000, 0.9995),  # three thousand characters need as many pieces
        (9_000_000, 80, 32_000, 1.0),
    ],
)
def test_pieces_follow_from_pairs_and_characters(
    n_pairs: int, n_characters: int, size: int, coverage: float
) -> None:
    chosen = choose_vocabulary(config(), n_pairs, n_characters)
    assert chosen["tokenizer.vocab_size"].value == size
    assert chosen["tokenizer.character_coverage"].value == coverage


def test_an_existing_tokenizer_leaves_nothing_to_choose() -> None:
    assert choose_vocabulary(config(tokenizer={"model": "x.model"}), 3000, 80) == {}


def test_what_is_given_is_kept_and_the_rest_follows() -> None:
    muon, adamw = config(), config(train={"optim": {"optimizer": "adamw"}})
    assert "train.optim.optimizer" not in values(adamw)
    rate = "train.optim.learning_rate"
    assert values(adamw)[rate] < values(muon)[rate]
    both = config(train={"optim": {"optimizer": "adamw", "learning_rate": 0.5}})
    assert rate not in values(both)


def test_warm_up_and_averaging_follow_the_number_of_updates() -> None:
    short, long = (values(config(train={"max_steps": n})) for n in (500, 50_000))
    assert short["train.optim.warmup_steps"] == 25
    assert long["train.optim.warmup_steps"] == 2500
    assert short["train.optim.ema_decay"] < long["train.optim.ema_decay"] < 1
    assert short["train.optim.schedule"] == long["train.optim.schedule"] == "linear"
    assert "train.max_steps" not in short


def test_without_an_end_patience_ends_the_training() -> None:
    chosen = values(config())
    assert chosen["train.patience"] == 10
    assert chosen["train.max_steps"] == 100_000
    assert chosen["train.optim.warmup_steps"] == 500
    assert chosen["train.optim.schedule"] == "inverse_sqrt"
    assert values(config(train={"max_steps": 500}))["train.patience"] == 0


def test_a_resumed_training_without_an_end_changes_nothing() -> None:
    settled = with_choices(config(), choose(config(), FACTS))
    assert apply(config(), chosen_in(settled, config())) == settled


def test_the_model_grows_with_pairs_and_time() -> None:
    many = Facts(5_000_000, 100_000_000, (32_000, 32_000), 8192, "cpu", 8000.0)
    presets = [
        values(config(train={"budget": budget}), many)["model.preset"]
        for budget in ("10min", "10h", "500h")
    ]
    assert presets == ["tiny", "small", "base"]
    assert values(config(), many)["model.preset"] == "base"
    assert values(config())["model.preset"] == "tiny"


def test_dropout_and_consistency_grow_with_the_epochs() -> None:
    budgets = ("10min", "10h", "50h")
    chosen = [values(config(train={"budget": budget})) for budget in budgets]
    dropouts = [found["model.dropout"] for found in chosen]
    assert dropouts == sorted(dropouts)
    assert dropouts[0] < dropouts[-1]
    key = "train.optim.consistency"
    assert (chosen[0][key], chosen[-1][key]) == ("none", "simcut")


def test_with_a_size_in_the_config_the_others_are_of_the_preset_small() -> None:
    settings = config(model={"d_model": 320})
    assert values(settings)["model.preset"] == "small"
    assert settings.model.d_ff == PRESETS["small"]["d_ff"]


def test_sizes_follow_the_chosen_preset() -> None:
    settings = apply(config(), {"model.preset": "big"})
    assert settings.model.d_model == 1024
    assert config().model.d_model == 256


@pytest.mark.parametrize(
    "sections",
    [
        {"tokenizer": {"shared": False}},
        {"data": {"train": {"source": "a", "target": "b", "tag": "x"}, "valid": None}},
    ],
)
def test_both_directions_need_one_vocabulary_without_tags(sections: dict[str, Any]) -> None:
    key = "train.both_directions"
    assert values(config())[key] > 0
    assert values(config(**sections))[key] == 0


def test_a_short_training_has_one_direction() -> None:
    key = "train.both_directions"
    short, long = (values(config(train={"max_steps": n}))[key] for n in (500, 5000))
    assert (short, long) == (0, 0.4)


@pytest.mark.parametrize("train", [{}, {"max_steps": 7}, {"budget": "1h"}])
def test_every_choice_makes_a_valid_config(train: dict[str, Any], tmp_path: Path) -> None:
    """Also with the numbers of the smallest corpus, and it is written and read as it is."""
    for facts in (FACTS, Facts(1, 2, (300, 300), 2048, "cuda", 1.0)):
        chosen = choose_vocabulary(config(), facts.n_pairs, 80)
        chosen |= choose(config(train=train), facts)
        settled = with_choices(config(train=train), chosen)
        assert from_json(to_json(chosen)) == chosen
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(settled.model_dump(mode="json")), encoding="utf-8")
        assert load_config(path) == settled
        assert chosen_in(settled, settled) == {}


def test_a_run_keeps_what_was_chosen_and_a_resumed_one_takes_it(tmp_path: Path) -> None:
    text = write_reverse_task(tmp_path, n_train=300).read_text(encoding="utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(text.split("tokenizer:")[0], encoding="utf-8")
    settings = ("--set", "train.max_steps=4", "--set", "data.clean=false")
    done = invoke("train", own.name, *settings, "--set", "train.save_every=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("train.optim.optimizer", "tokenizer.vocab_size", "model.preset"):
        assert line in done.stderr
    kept = yaml.safe_load((tmp_path / "runs/reverse/config.yaml").read_text(encoding="utf-8"))
    assert kept["model"]["preset"] == "tiny"
    assert kept["tokenizer"]["vocab_size"] == 1000
    longer = ("--set", "train.max_steps=6", *settings[2:])
    again = invoke("train", own.name, *longer, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "because of" not in again.stderr
    assert "train.max_steps: 4 -> 6" in again.stderr
    changed = invoke("train", own.name, "--set", "train.optim.optimizer=adamw", cwd=tmp_path)
    assert changed.returncode == 2
    assert "train.optim.optimizer: muon -> adamw" in changed.stderr


def test_the_plan_names_each_choice_with_its_reason(tmp_path: Path) -> None:
    text = write_reverse_task(tmp_path, n_train=300).read_text(encoding="utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(text.split("tokenizer:")[0], encoding="utf-8")
    done = run_mtrain("train", "own.yaml", "--plan", "--set", "train.budget=20s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train.optim.learning_rate" in done.stderr
    assert "validation " in done.stderr
    assert not (tmp_path / "runs").exists()
