"""`mtrain train`: a config in, a run out."""

from __future__ import annotations

from typing import Annotated

import typer

from mtrain.commands.options import ConfigPath, Overrides, refuse_without_effect

EXAMPLES = (
    "mtrain train configs/quickstart.yaml",
    "mtrain train my.yaml --set train.max_steps=500 --set run=runs/trial",
)

Fresh = Annotated[
    bool, typer.Option("--fresh", help="Keep an earlier run under another name; start anew.")
]
Plan = Annotated[
    bool,
    typer.Option("--plan", help="Try the largest batch, say what the run would take, and stop."),
]


def train(
    context: typer.Context,
    config: ConfigPath,
    overrides: Overrides = None,
    fresh: Fresh = False,
    plan: Plan = False,
) -> None:
    """Prepare the data if need be; train, or go on where it stopped.

    Several processes: torchrun --nproc-per-node 2 -m mtrain train CONFIG.
    """
    from mtrain.config.load import load_config

    refuse_without_effect(context, {"fresh": (not plan, "training, not for --plan")})
    loaded = load_config(config, overrides or ())
    from mtrain.training import train as training  # a wrong config is told without torch

    if plan:
        training.show_plan(loaded, config)
    else:
        training.train(loaded, config, fresh=fresh)
