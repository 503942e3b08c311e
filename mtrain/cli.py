"""The command line: the list of commands and the entry point.

Each command is a module of `commands` that imports its stage when called, so that `mtrain --help`
is fast and scoring a file does not load torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mtrain import __version__, console
from mtrain.commands import evaluate, export, new, prepare, report, runs, train, translate
from mtrain.commands.exit_codes import outcomes
from mtrain.commands.options import Command


class Commands(TyperGroup):
    """The group of all commands; their exceptions pass through `outcomes`."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with outcomes():  # `--help` and `--version` print here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with outcomes():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Run mtrain COMMAND --help for options and examples.",
)


def main() -> None:
    """The entry point of `mtrain` and of `python -m mtrain`."""
    console.open_standard_streams()
    # Read when torch is loaded. By default, waiting OpenMP threads spin, which slows training down
    # many times when another program uses a core; without spinning they wake up too late. 5,000
    # iterations take a fraction of a millisecond.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    # Batches of varying sizes fragment GPU memory. PYTORCH_CUDA_ALLOC_CONF takes precedence.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    app(prog_name="mtrain")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mtrain {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version),
    ] = False,
) -> None:
    """Train, evaluate and run Transformer models for machine translation."""


def _add(
    name: str,
    command: Callable[..., None],
    examples: Sequence[str],
    cls: type[Command] = Command,
) -> None:
    """Add a command; its docstring and option types are its help."""
    shown = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
    app.command(name, cls=cls, epilog=shown)(command)


_add("prepare", prepare.prepare, prepare.EXAMPLES)
_add("train", train.train, train.EXAMPLES)
_add("translate", translate.translate, translate.EXAMPLES, translate.GroupedOptions)
_add("eval", evaluate.evaluate, evaluate.EXAMPLES)
_add("runs", runs.runs, runs.EXAMPLES)
_add("report", report.report, report.EXAMPLES)
_add("export", export.export, export.EXAMPLES)
_add("new", new.new, new.EXAMPLES)
