"""The values of keys that are `auto`, chosen from the data, the machine and the time.

A key in the config is kept, and the others follow from it: `train.optim.optimizer: adamw` has a
learning rate of its own, `train.max_steps: 500` a warm-up of 25 steps. The constants are measured:
see "Recipes" in scripts/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isclass
from typing import Any, TypeVar

from mtrain.config.entries import Automatic, Section
from mtrain.config.root import Config
from mtrain.config.sections import PRESETS, TrainConfig

# (n, value): the value for fewer pairs (or epochs) than n; None: for any number.
VOCAB_SIZE = (
    (4_000, 1_000),
    (15_000, 2_000),
    (60_000, 4_000),
    (300_000, 8_000),
    (2_000_000, 16_000),
    (None, 32_000),
)
LARGEST_PRESET = ((40_000, "tiny"), (200_000, "small"), (None, "base"))
BATCH_TOKENS = {
    "cpu": ((100_000, 2048), (1_000_000, 4096), (None, 8192)),
    "cuda": ((100_000, 4096), (1_000_000, 16_384), (None, 32_768)),
}

PIECES_PER_CHARACTER = 1.5  # at least, for scripts with thousands of characters
MANY_CHARACTERS = 1000  # of which the rarest are encoded as bytes

TRAINING_SHARE = 0.85  # of a budget; the rest is validation and saving
TOKENS_PER_PARAMETER = 8  # target tokens in the whole training, for a larger preset
COST = {  # of a token, relative to `tiny`
    "cpu": {"tiny": 1.0, "small": 2.2, "base": 9.0, "big": 30.0},
    "cuda": {"tiny": 1.0, "small": 1.0, "base": 2.0, "big": 5.0},
}
MUON_RATE = {"tiny": 4e-3, "small": 3e-3, "base": 2e-3, "big": 1e-3}
ADAMW_RATE = {"tiny": 2e-3, "small": 1e-3, "base": 7e-4, "big": 5e-4}
WEIGHT_DECAY = {"muon": 0.1, "adamw": 0.01}
DROPOUT = ((10, 0.1), (60, 0.2), (None, 0.3))  # (epochs, dropout)
SIMCUT_EPOCHS = 100  # as it needs twice the time
BOTH_DIRECTIONS_PAIRS, BOTH_DIRECTIONS = 200_000, 0.4
BOTH_DIRECTIONS_EPOCHS = 10  # of fewer, the target side alone needs all

MOST_STEPS = 100_000  # without an end in the config
USUAL_STEPS = 10_000  # of such a training, for its warm-up and averages
PATIENCE = 10
WARMUP_SHARE, MOST_WARMUP = 1 / 20, 4000
EMA_SHARE, HIGHEST_EMA = 1 / 15, 0.9995

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Choice:
    """A value of a key that is `auto`, and the reason in a few words."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Facts:
    """What the choice of a model and its training depends on."""

    n_pairs: int  # of the training data
    n_target_tokens: int  # in an epoch, EOS included
    vocab_sizes: tuple[int, int]
    batch_tokens: int  # of an update, see `batch_tokens`
    device: str  # cpu or cuda
    tokens_per_s: float  # target tokens of `tiny`, in training


def choose_vocabulary(config: Config, n_pairs: int, n_characters: int) -> dict[str, Choice]:
    """Choices for the keys of `tokenizer`; none if its models exist already.

    n_characters  different characters in the text, the rarest 0.05 % of it left out
    """
    choices = _Choices(config)
    if config.tokenizer.model is not None:
        return {}
    key = "tokenizer.character_coverage"
    if n_characters > MANY_CHARACTERS:
        choices.make(key, 0.9995, f"{n_characters:,} different characters")
    else:
        choices.make(key, 1.0, "few different characters")
    size = _by(VOCAB_SIZE, n_pairs)
    needed = round(PIECES_PER_CHARACTER * n_characters, -3)
    if needed > size:
        choices.make("tokenizer.vocab_size", int(needed), f"{n_characters:,} different characters")
    else:
        choices.make("tokenizer.vocab_size", size, f"{n_pairs:,} pairs")
    return choices.made


def choose(config: Config, facts: Facts) -> dict[str, Choice]:
    """Choices for the keys of `model` and `train`."""
    choices = _Choices(config)
    kind = "cuda" if facts.device == "cuda" else "cpu"
    choices.make("train.batch_tokens", facts.batch_tokens, f"{facts.n_pairs:,} pairs")
    preset = _choose_preset(choices, facts, kind)
    n_tokens = _n_tokens(config.train, facts, COST[kind][preset])
    n_epochs = math.inf if n_tokens is None else n_tokens / facts.n_target_tokens
    reason = "no end is given" if n_tokens is None else f"about {n_epochs:,.0f} epochs"
    choices.make("model.dropout", _by(DROPOUT, n_epochs), reason)
    is_long = SIMCUT_EPOCHS <= n_epochs < math.inf
    choices.make("train.optim.consistency", "simcut" if is_long else "none", reason)
    _choose_optimizer(choices, preset)
    n_steps = None if n_tokens is None else max(1, round(n_tokens / facts.batch_tokens))
    reason = "no end is given" if n_steps is None else f"about {n_steps:,} updates"
    _choose_length(choices, n_steps, reason)
    _choose_directions(choices, facts, n_epochs)
    return choices.made


def batch_tokens(config: Config, n_pairs: int, device: str) -> int:
    """Target tokens in an update, as given or by the number of pairs."""
    if is_given(config, "train.batch_tokens"):
        return config.train.batch_tokens
    return int(_by(BATCH_TOKENS["cuda" if device == "cuda" else "cpu"], n_pairs))


def with_choices(config: Config, choices: Mapping[str, Choice]) -> Config:
    """The config with the chosen values."""
    return apply(config, {key: choice.value for key, choice in choices.items()})


def apply(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with other values of dotted keys; sizes follow a preset unless they are given."""
    if "model.preset" in values:
        sizes = {f"model.{key}": size for key, size in PRESETS[values["model.preset"]].items()}
        values = {k: size for k, size in sizes.items() if not is_given(config, k)} | {**values}
    for key, value in values.items():
        config = _with(config, key.split("."), value)
    return config


def is_given(config: Section, key: str) -> bool:
    """Whether a config has a value for a dotted key, other than `auto`."""
    first, _, rest = key.partition(".")
    return first in config.model_fields_set and (not rest or is_given(getattr(config, first), rest))


def value_of(config: Section, key: str) -> Any:
    """The value of a dotted key."""
    first, _, rest = key.partition(".")
    value = getattr(config, first)
    return value_of(value, rest) if rest else value


def chosen_in(run_config: Config, config: Config) -> dict[str, Any]:
    """The values of a run for the keys that `config` leaves to `auto`."""
    keys = [*_automatic_keys(Config), *(f"model.{size}" for size in PRESETS["tiny"])]
    if run_config.train.max_steps is not None:  # chosen if there is no budget either
        keys.append("train.max_steps")
    return {key: value_of(run_config, key) for key in keys if not is_given(config, key)}


def unchosen_as_auto(config: Config) -> dict[str, Any]:
    """All values of a config; `auto` for those to be chosen, None for the sizes of the model."""
    tree: dict[str, Any] = config.model_dump()
    unchosen = [key for key in _automatic_keys(Config) if not is_given(config, key)]
    if "model.preset" in unchosen:
        sizes = [f"model.{size}" for size in PRESETS["tiny"]]
        unchosen += [key for key in sizes if not is_given(config, key)]
    for key in unchosen:
        *path, last = key.split(".")
        section = tree
        for name in path:
            section = section[name]
        section[last] = None if last in PRESETS["tiny"] else "auto"
    return tree


def _automatic_keys(section: type[Section]) -> Iterator[str]:
    """The dotted keys that may be `auto`."""
    for key, info in section.model_fields.items():
        if any(isinstance(mark, Automatic) for mark in info.metadata):
            yield key
        elif isclass(info.annotation) and issubclass(info.annotation, Section):
            yield from (f"{key}.{inner}" for inner in _automatic_keys(info.annotation))


def from_json(choices: Sequence[Mapping[str, Any]]) -> dict[str, Choice]:
    """The inverse of `to_json`."""
    return {choice["key"]: Choice(choice["value"], choice["reason"]) for choice in choices}


@dataclass
class _Choices:
    """Choices made so far; a key in the config is no choice."""

    config: Config
    made: dict[str, Choice] = field(default_factory=dict)

    def make(self, key: str, value: Any, reason: str) -> Any:
        """Choose the value of a key, unless it is given; -> the value in force"""
        if is_given(self.config, key):
            return value_of(self.config, key)
        self.made[key] = Choice(value, reason)
        return value


def _choose_preset(choices: _Choices, facts: Facts, kind: str) -> str:
    """The largest preset that the pairs justify and the time trains well enough; -> its name"""
    config = choices.config
    if any(is_given(config, f"model.{size}") for size in PRESETS["tiny"]):
        return str(choices.make("model.preset", config.model.preset, "sizes are given"))
    largest = _by(LARGEST_PRESET, facts.n_pairs)
    smallest, *others = PRESETS
    reason = f"{facts.n_pairs:,} pairs"
    for name in reversed(others[: others.index(largest) + 1] if largest in others else []):
        n_tokens = _n_tokens(config.train, facts, COST[kind][name])
        if n_tokens is None or n_tokens >= TOKENS_PER_PARAMETER * _n_parameters(name, facts):
            return str(choices.make("model.preset", name, reason))
        reason = f"{n_tokens / 1e6:,.1f} million tokens are too few for `{name}`"
    return str(choices.make("model.preset", smallest, reason))


def _choose_optimizer(choices: _Choices, preset: str) -> None:
    key = "train.optim."
    optimizer = choices.make(f"{key}optimizer", "muon", "fewer steps than AdamW")
    rates = MUON_RATE if optimizer == "muon" else ADAMW_RATE
    choices.make(f"{key}learning_rate", rates[preset], f"{optimizer} and the width of `{preset}`")
    choices.make(f"{key}weight_decay", WEIGHT_DECAY[optimizer], optimizer)


def _choose_length(choices: _Choices, n_steps: int | None, reason: str) -> None:
    """Keys that depend on the number of updates, None if no end is given."""
    key = "train.optim."
    choices.make("train.patience", PATIENCE if n_steps is None else 0, reason)
    if n_steps is None:
        choices.make("train.max_steps", MOST_STEPS, reason)
        n_steps = USUAL_STEPS
        choices.make(f"{key}schedule", "inverse_sqrt", reason)
    else:
        choices.make(f"{key}schedule", "linear", reason)
    choices.make(f"{key}warmup_steps", min(MOST_WARMUP, int(n_steps * WARMUP_SHARE)), reason)
    decay = min(HIGHEST_EMA, 1 - 1 / max(2.0, n_steps * EMA_SHARE))
    choices.make(f"{key}ema_decay", round(decay, 4), reason)


def _choose_directions(choices: _Choices, facts: Facts, n_epochs: float) -> None:
    config, key = choices.config, "train.both_directions"
    if not config.tokenizer.shared or any(entry.tag is not None for entry in config.data.train):
        choices.make(key, 0.0, "needs one vocabulary and no tags")
    elif n_epochs < BOTH_DIRECTIONS_EPOCHS:
        choices.make(key, 0.0, f"about {n_epochs:,.0f} epochs")
    else:
        is_small = facts.n_pairs <= BOTH_DIRECTIONS_PAIRS
        choices.make(key, BOTH_DIRECTIONS if is_small else 0.0, f"{facts.n_pairs:,} pairs")


def _n_tokens(train: TrainConfig, facts: Facts, cost: float) -> float | None:
    """Target tokens in the whole training; None if no end is given."""
    by_time = by_steps = None
    if train.budget_s is not None:
        by_time = TRAINING_SHARE * train.budget_s * facts.tokens_per_s / cost
    if train.max_steps is not None:
        by_steps = float(train.max_steps * facts.batch_tokens)
    known = [n for n in (by_time, by_steps) if n is not None]
    return min(known, default=None)


def _n_parameters(preset: str, facts: Facts) -> int:
    """Of the layers and one embedding; norms and biases are left out."""
    sizes = PRESETS[preset]
    d, f = sizes["d_model"], sizes["d_ff"]
    layers = sizes["n_encoder_layers"] * (4 * d * d + 2 * d * f)
    layers += sizes["n_decoder_layers"] * (8 * d * d + 2 * d * f)
    return layers + max(facts.vocab_sizes) * d


def to_json(choices: Mapping[str, Choice]) -> list[dict[str, Any]]:
    """Choices as they are kept in a manifest and in a run."""
    return [{"key": key, "value": c.value, "reason": c.reason} for key, c in choices.items()]


def _by(table: Sequence[tuple[int | None, Any]], n: float) -> Any:
    """The value of the first row whose number is above n; the last row has None."""
    return next(value for limit, value in table if limit is None or n < limit)


def _with(section: SectionT, path: Sequence[str], value: Any) -> SectionT:
    first, *rest = path
    if rest:
        value = _with(getattr(section, first), rest, value)
    return section.model_copy(update={first: value})
