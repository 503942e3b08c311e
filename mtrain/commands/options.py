"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mtrain.config.literals import DeviceOrAuto, Quantization
from mtrain.errors import UsageError

if TYPE_CHECKING:
    from mtrain.config.root import Config

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
RunPath = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run directory, such as runs/quickstart, or an exported .safetensors file.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the config; may be repeated."
    ),
]
Reverse = Annotated[
    bool,
    typer.Option("--reverse", help="From target to source, as the run NAME-reverse."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="best (the default), last, ema, avg, avg-best, or step-12000."
    ),
]
BeamSize = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=100, help="Size of the beam; 1 is greedy.")
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        min=0.0,
        max=10.0,
        help="Score = log-probability / length^P.",
    ),
]
OfTag = Annotated[
    str | None,
    typer.Option(
        metavar="TAG", help="Tag in front of each source sentence, as set by `tag` in the config."
    ),
]
OnDevice = Annotated[
    DeviceOrAuto, typer.Option(metavar="auto|cpu|cuda", help="auto: a GPU if there is one.")
]
InQuantization = Annotated[
    Quantization | None,
    typer.Option(
        metavar="TYPE",
        help="Number type of CTranslate2: float32, float16, bfloat16, int16, int8, int8_float32, "
        "int8_float16 or int8_bfloat16.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Overwrite the output even if it is an input, or a file of another kind."
    ),
]


def load(path: Path, overrides: list[str] | None, reverse: bool) -> Config:
    """The config of a command line."""
    from mtrain.config.load import load_config
    from mtrain.config.reverse import reverse as reversed_config

    config = load_config(path, overrides or ())
    return reversed_config(config) if reverse else config


class Command(TyperCommand):
    """A command whose usage line names required arguments without braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [
            piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)
        ]


# Parameter -> whether it has an effect with the other options given, and what it is for.
Needs = Mapping[str, tuple[bool, str]]


def refuse_without_effect(context: typer.Context, needs: Needs) -> None:
    """A UsageError for the first option on the command line that would change nothing."""
    for parameter in context.command.params:
        has_effect, needed = needs.get(parameter.name or "", (True, ""))
        source = context.get_parameter_source(parameter.name or "")
        if not has_effect and source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"{parameter.opts[0]} has no effect here: it is for {needed}",
                "leave it out",
            )
