"""`mtrain report`: runs in, a page or a model card out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtrain import console
from mtrain.commands.options import Force, refuse_without_effect
from mtrain.commands.output import check_output, files_of_run, print_line
from mtrain.errors import UsageError

EXAMPLES = (
    "mtrain report runs/my-model",
    "mtrain report runs/my-model runs/other -o comparison.html",
    "mtrain report runs/my-model --watch",
    "mtrain report runs/my-model --markdown",
)

Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN", help="One or several run directories, shown side by side."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write here; default: report.html (or model_card.md) in the first run.",
    ),
]
Markdown = Annotated[
    bool, typer.Option("--markdown", help="Write a model card of one run instead.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Keep the page up to date during training.")]


def report(
    context: typer.Context,
    runs: Runs,
    output: Output = None,
    markdown: Markdown = False,
    watch: Watch = False,
    force: Force = False,
) -> None:
    """Write a page about runs: scores, sentences, training, data."""
    from mtrain.report.page import watch_report, write_model_card, write_report

    if markdown and (watch or len(runs) > 1):
        raise UsageError(
            "a model card is about one run, and cannot be watched",
            "give --markdown one run and no --watch",
        )
    refuse_without_effect(context, {"force": (output is not None, "-o OUTPUT")})
    if output is not None:
        kind = "a model card" if markdown else "a web page"
        check_output(output, kind, [path for run in runs for path in files_of_run(run)], force)
    if markdown:
        written = write_model_card(runs[0], output)
    elif watch:
        console.message("watching; stop with Ctrl-C")
        written = watch_report(runs, output)
    else:
        written = write_report(runs, output)
    print_line(f"wrote {written}")
