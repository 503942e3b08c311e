"""Settings that are `auto`: measures what `config.recipe` chooses them by, and shows them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from mtrain import console
from mtrain.config.load import read_run_config
from mtrain.config.recipe import (
    COST,
    Choice,
    Facts,
    apply,
    batch_tokens,
    choose,
    from_json,
    is_given,
    value_of,
    with_choices,
)
from mtrain.config.root import Config
from mtrain.config.sections import PRESETS
from mtrain.data.epochs import Epochs
from mtrain.data.prepare import Prepared
from mtrain.machine.distributed import Distributed
from mtrain.run import RunDir
from mtrain.training.learner import Learner
from mtrain.training.schedule import Clock, Progress
from mtrain.training.trial import try_out


def choose_settings(
    config: Config, prepared: Prepared, distributed: Distributed, clock: Clock
) -> dict[str, Choice]:
    """Choose and print the value of each key that is `auto`, for a new run."""
    manifest = prepared.manifest
    device = distributed.device.type
    choices = from_json(manifest.get("choices", ()))
    if config.train.init_from is not None:
        choices |= _sizes_of(RunDir.open(config.train.init_from), config)
    config = with_choices(config, choices)
    source_size, target_size = manifest["vocab_sizes"]
    n_pairs = manifest["n_train_pairs"]
    facts = Facts(
        n_pairs,
        manifest["n_target_tokens"] + n_pairs,
        (source_size, target_size),
        batch_tokens(config, n_pairs, device),
        device,
        _tokens_per_s(config, prepared, distributed, clock) if config.train.budget else 0.0,
    )
    choices |= choose(config, facts)
    rows = [(key, _shown(choice.value), choice.reason) for key, choice in choices.items()]
    if rows:
        console.table(("auto", "", "because of"), rows)
    return choices


def _sizes_of(run: RunDir, config: Config) -> dict[str, Choice]:
    """The sizes of the model whose weights are taken."""
    origin = read_run_config(run)
    keys = [f"model.{size}" for size in PRESETS["tiny"]]
    return {
        key: Choice(value_of(origin, key), f"as in {run.path}")
        for key in keys
        if not is_given(config, key) and not is_given(config, "model.preset")
    }


def _tokens_per_s(
    config: Config, prepared: Prepared, distributed: Distributed, clock: Clock
) -> float:
    """Target tokens of `tiny` in a second of training, or as many as the given sizes suggest."""
    sizes = [f"model.{size}" for size in PRESETS["tiny"]]
    preset = "tiny"
    if any(is_given(config, key) for key in ("model.preset", *sizes)):
        preset = config.model.preset
    n_pairs = prepared.manifest["n_train_pairs"]
    size = batch_tokens(config, n_pairs, distributed.device.type)
    probe = apply(config, {"model.preset": preset, "train.batch_tokens": size})
    with (
        TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        Epochs(probe, prepared.path, Path(directory), distributed) as epochs,
    ):
        source_size, target_size = prepared.manifest["vocab_sizes"]
        learner = Learner(probe, (source_size, target_size), distributed)
        epoch = epochs.open(0)
        trial = try_out(learner, epoch, Progress(), clock)
    n_tokens = epoch.plan.n_target_tokens(0)
    return n_tokens / trial.update_s * COST[learner.device.type][preset]


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
