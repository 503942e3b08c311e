"""`mtrain train`: from a config to a run."""

from __future__ import annotations

from typing import Annotated

import typer

from mtrain.commands.options import ConfigPath, Overrides, Reverse, load, refuse_without_effect

EXAMPLES = (
    "mtrain train configs/quickstart.yaml",
    "mtrain train my.yaml --plan",
    "mtrain train my.yaml --set train.budget=30min",
    "mtrain train my.yaml --reverse",
)

Fresh = Annotated[
    bool, typer.Option("--fresh", help="Rename an earlier run, and start from the beginning.")
]
Plan = Annotated[
    bool,
    typer.Option("--plan", help="Try the largest batch, print memory, speed and time, and exit."),
]


def train(
    context: typer.Context,
    config: ConfigPath,
    overrides: Overrides = None,
    fresh: Fresh = False,
    plan: Plan = False,
    reverse: Reverse = False,
) -> None:
    """Train or resume training, after preparing the data.

    With several processes: torchrun --nproc-per-node 2 -m mtrain train CONFIG.
    """
    refuse_without_effect(context, {"fresh": (not plan, "training, not for --plan")})
    loaded = load(config, overrides, reverse)
    from mtrain.training import train as training  # torch is not needed to reject a config

    if plan:
        training.show_plan(loaded, config)
    else:
        training.train(loaded, config, fresh=fresh)
