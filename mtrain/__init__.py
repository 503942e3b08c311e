"""mtrain trains, evaluates and runs Transformer models for machine translation.

    >>> import mtrain
    >>> translator = mtrain.load("runs/quickstart")
    >>> translator.translate(["May 3, 2024", "in 5 days"])
    ['3. Mai 2024', 'in 5 Tagen']

Importing mtrain is cheap; torch is imported when a model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtrain.decoding.translate import Translator

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(run: str | Path, checkpoint: str | None = None, device: str = "auto") -> Translator:
    """Load a trained run: `load("runs/x").translate(["A dog."])` returns one line per line.

    `run` is a run directory or a file written by `mtrain export --to safetensors`;
    `checkpoint` is a name such as `best` (the default), `last` or `step-12000`; `device` is
    `auto`, `cpu`, `cuda` or `cuda:1`. `load(...).with_ctranslate2("int8")` returns the same
    translator with another engine. Raises subclasses of `mtrain.errors.MtrainError`.
    """
    from mtrain.decoding.translate import Translator

    return Translator.from_run(run, checkpoint=checkpoint, device=device)
