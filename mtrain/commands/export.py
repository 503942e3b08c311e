"""`mtrain export`: a run in, the same model for other programs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mtrain import console
from mtrain.commands.options import (
    Checkpoint,
    Force,
    InQuantization,
    RunPath,
    refuse_without_effect,
)
from mtrain.commands.output import check_output, files_of_run, print_columns, print_line

EXAMPLES = (
    "mtrain export runs/my-model --to ctranslate2 -o ct2",
    "mtrain export runs/my-model --to ctranslate2 --quantization int8 -o ct2-int8",
    "mtrain export runs/my-model --to safetensors -o my-model.safetensors",
    "echo 'A dog.' | mtrain translate my-model.safetensors",
)

To = Annotated[
    Literal["ctranslate2", "safetensors"],
    typer.Option(
        metavar="ctranslate2|safetensors",
        help="A directory for CTranslate2 (an extra: mtrain[ctranslate2]), or one file that "
        "is used like the run.",
    ),
]
Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR|FILE", help="Where to write it.")
]


def export(
    context: typer.Context,
    run: RunPath,
    to: To,
    output: Output,
    quantization: InQuantization = None,
    checkpoint: Checkpoint = None,
    force: Force = False,
) -> None:
    """Write the model for other programs, checked by translating.

    With CTranslate2, the first 200 sentences of valid are translated; a loss of more than 1 BLEU is
    an error.
    """
    to_ctranslate2 = to == "ctranslate2"
    refuse_without_effect(
        context,
        {
            "quantization": (to_ctranslate2, "--to ctranslate2"),
            "force": (not to_ctranslate2, "--to safetensors"),
        },
    )
    if to_ctranslate2:
        from mtrain.export.ctranslate2 import export_ctranslate2

        check = export_ctranslate2(run, output, quantization, checkpoint)
        if check is None:
            console.message(f"{run} holds no valid set, so the export was not compared with it")
        else:
            print_columns(("checked", ""), check.rows())
        print_line(f"wrote {output}")
        return
    from mtrain.export.single_file import export_safetensors

    check_output(output, "a model", files_of_run(run), force)
    n_bytes = export_safetensors(run, output, checkpoint)
    after = console.command("mtrain", "translate", output)
    print_line(f"wrote {output} ({n_bytes / 1e6:,.1f} MB); next: {after}")
