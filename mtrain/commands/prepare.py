"""`mtrain prepare`: from raw text to a tokenizer and token stores."""

from __future__ import annotations

from typing import Annotated

import typer

from mtrain.commands.options import ConfigPath, Overrides, Reverse, load

EXAMPLES = (
    "mtrain prepare configs/quickstart.yaml",
    "mtrain prepare my.yaml --set tokenizer.vocab_size=16000",
)

Force = Annotated[bool, typer.Option("--force", help="Prepare again, even if nothing has changed.")]
Processes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Number of processes (default: one per core); the result is the same.",
    ),
]


def prepare(
    config: ConfigPath,
    overrides: Overrides = None,
    force: Force = False,
    processes: Processes = None,
    reverse: Reverse = False,
) -> None:
    """Fetch, clean and tokenize the data, if not yet done.

    An interrupted preparation resumes after the last completed step.
    """
    loaded = load(config, overrides, reverse)
    from mtrain.data.prepare import prepare as prepare_data

    prepare_data(loaded, config, force=force, n_processes=processes)
