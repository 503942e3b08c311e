"""The root of the config, and the rules for keys of different sections.

The sections are declared in `sections`, the data entries in `entries`; `load` reads and writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mtrain.config.entries import SLUG, Location, Section
from mtrain.config.problems import Conflict
from mtrain.config.sections import (
    MOST,
    DataConfig,
    DecodeConfig,
    EvaluateConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
)


class Config(Section):
    """All settings of a run."""

    name: str = Field(pattern=SLUG, max_length=100, description="name of the run and its data")
    source: str = Field(min_length=2, description="language code of the source, such as en")
    target: str = Field(min_length=2, description="language code of the target, such as de")
    run: Location | None = Field(
        default=None, description="the run directory; default: runs/<name>"
    )
    data: DataConfig = Field(description="the text: `train`, `valid`, `test`")
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}))
    decode: DecodeConfig = DecodeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def run_dir(self) -> Path:
        """The run directory, relative to the current directory."""
        return Path(self.run if self.run is not None else f"runs/{self.name}")

    @model_validator(mode="before")
    @classmethod
    def _tie_what_is_shared(cls, value: Any) -> Any:
        """Without a shared vocabulary, `model.tied` defaults to `output`."""
        if not isinstance(value, dict):
            return value
        tokenizer, model = value.get("tokenizer"), value.get("model")
        shared = getattr(tokenizer, "shared", True)
        if isinstance(tokenizer, dict):
            shared = tokenizer.get("shared", True)
        if shared is False and (model is None or isinstance(model, dict)):
            return value | {"model": {"tied": "output"} | ModelConfig.given(model or {})}
        return value

    @model_validator(mode="before")
    @classmethod
    def _share_with_another_run(cls, value: Any) -> Any:
        """With `train.init_from`, the tokenizer defaults to that run's."""
        if not isinstance(value, dict) or not isinstance(value.get("train"), dict):
            return value
        origin, tokenizer = value["train"].get("init_from"), value.get("tokenizer")
        tokenizer = {} if tokenizer is None else tokenizer
        is_given = not isinstance(tokenizer, dict) or tokenizer.get("model") is not None
        if not isinstance(origin, str) or is_given:
            return value
        files = {"source": "tokenizer.source.model", "target": "tokenizer.target.model"}
        model: Any = {side: f"{origin}/{name}" for side, name in files.items()}
        if tokenizer.get("shared") is not False:
            model = f"{origin}/tokenizer.model"
        return value | {"tokenizer": tokenizer | {"model": model}}

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if conflicts := list(_conflicts(self)):
            text = "; ".join(f"`{conflict.key}` {conflict.message}" for conflict in conflicts)
            raise PydanticCustomError("conflicts", "{text}", {"text": text, "all": conflicts})
        return self


# -- keys that must fit together -------------------------------------------------------------


def _conflicts(config: Config) -> list[Conflict]:
    return [
        *_model_conflicts(config),
        *_tokenizer_conflicts(config),
        *_tag_conflicts(config.data),
        *_train_conflicts(config),
    ]


def _model_conflicts(config: Config) -> list[Conflict]:
    model, found = config.model, []
    if model.d_model % 2:
        found.append(
            Conflict(
                "model.d_model",
                "model.preset",
                f"must be even, not `{model.d_model}`: positions are pairs of sine and cosine",
                f"set `model.d_model: {model.d_model + 1}`",
            )
        )
    if model.d_model % model.n_heads:
        divisors = [f"`{n}`" for n in range(1, model.d_model) if model.d_model % n == 0]
        found.append(
            Conflict(
                "model.n_heads",
                "model.d_model",
                f"is `{model.n_heads}`, which does not divide `model.d_model: {model.d_model}`",
                f"choose {', '.join(divisors[:8])}",
            )
        )
    if model.tied == "all" and not config.tokenizer.shared:
        found.append(
            Conflict(
                "model.tied",
                "tokenizer.shared",
                "is `all`, which needs one vocabulary for both sides (`tokenizer.shared: true`)",
                "set `model.tied: output`, or share the vocabulary",
            )
        )
    return found


def _train_conflicts(config: Config) -> list[Conflict]:
    train, optim, found = config.train, config.train.optim, []
    if config.data.temperature is not None and any(e.weight != 1 for e in config.data.train):
        found.append(
            Conflict(
                "data.temperature",
                "data.train",
                "sets how often each entry is sampled, but some entries also have a `weight`",
                "keep either the temperature or the weights",
            )
        )
    if train.both_directions:
        found += _direction_conflicts(config)
    longest = config.data.max_length + 1
    if train.micro_batch_tokens != "auto" and train.micro_batch_tokens < longest:
        found.append(
            Conflict(
                "train.micro_batch_tokens",
                "data.max_length",
                f"is `{train.micro_batch_tokens}`, too few for one sentence of "
                f"`data.max_length: {config.data.max_length}` and its end",
                f"set it to {longest} or more, or lower `data.max_length`",
            )
        )
    is_to_zero = optim.schedule in ("linear", "cosine") and train.budget is None
    if is_to_zero and optim.warmup_steps >= (train.max_steps or MOST):
        found.append(
            Conflict(
                "train.optim.warmup_steps",
                "train.max_steps",
                f"is `{optim.warmup_steps}`, but a {optim.schedule} schedule ends at "
                f"`train.max_steps: {train.max_steps}`",
                "warm up for a tenth of the steps or less",
            )
        )
    return found


def _tokenizer_conflicts(config: Config) -> list[Conflict]:
    tokenizer, found = config.tokenizer, []
    if tokenizer.sampling and tokenizer.type == "char":
        found.append(
            Conflict(
                "tokenizer.sampling",
                "tokenizer.type",
                f"is `{tokenizer.sampling}`, but characters leave no choice to sample from",
                "remove it, or choose `tokenizer.type: bpe`",
            )
        )
    if tokenizer.model is not None and tokenizer.shared != isinstance(tokenizer.model, str):
        found.append(
            Conflict(
                "tokenizer.model",
                "tokenizer.shared",
                "names one model, which needs `tokenizer.shared: true`"
                if isinstance(tokenizer.model, str)
                else "names one model per side, which needs `tokenizer.shared: false`",
                "give a path with a shared vocabulary, or {source, target} with one per side",
            )
        )
    tags = {f"<{entry.tag}>" for entry in config.data.train if entry.tag is not None}
    return found + [
        Conflict(
            "tokenizer.user_defined_symbols",
            "data.train",
            f"names `{symbol}`, which is the piece of a `tag`",
            "choose another symbol, or another tag",
        )
        for symbol in tokenizer.user_defined_symbols
        if symbol in tags
    ]


def _direction_conflicts(config: Config) -> list[Conflict]:
    """Text that is a source in one epoch and a target in another needs the same ids as both."""
    key, found = "train.both_directions", []
    if not config.tokenizer.shared:
        problem = "needs one vocabulary for both sides (`tokenizer.shared: true`)"
        found.append(
            Conflict(key, "tokenizer.shared", problem, "share the vocabulary, or set it to 0")
        )
    if any(entry.tag is not None for entry in config.data.train):
        problem = "does not support tags, which training entries have"
        found.append(Conflict(key, "data.train", problem, "leave out the tags, or set it to 0"))
    return found


def _tag_conflicts(data: DataConfig) -> list[Conflict]:
    """A tag without training text is meaningless; a tag of all training text is required."""
    known = {entry.tag for entry in data.train}
    sets = {f"data.test.{name}": entry for name, entry in data.test.items()}
    if data.valid is not None:
        sets["data.valid"] = data.valid
    tags = ", ".join(sorted(filter(None, known)))
    missing = []
    if None not in known:
        missing = [
            Conflict(
                key,
                "data.train",
                "has no `tag`, but all training entries have one, so the model needs it",
                f"add `tag`, one of {tags}",
            )
            for key, entry in sets.items()
            if entry.tag is None
        ]
        if data.valid is None and len(known) > 1:
            missing.append(
                Conflict(
                    "data.train",
                    "data.train",
                    f"has several tags ({tags}), so text held out from it has no single tag",
                    "give `data.valid`, with its `tag`",
                )
            )
    return missing + [
        Conflict(
            f"{key}.tag",
            "data.train",
            f"is `{entry.tag}`, which no training entry has",
            f"choose one of {tags}" if tags else "remove it",
        )
        for key, entry in sets.items()
        if entry.tag is not None and entry.tag not in known
    ]


def in_languages(config: Config, languages: tuple[str, str] | None) -> Config:
    """The same settings for text in other languages than the config's own."""
    if languages is None:
        return config
    source, target = languages
    return config.model_copy(update={"source": source, "target": target})
