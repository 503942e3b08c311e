"""mtrain trains, evaluates and runs Transformer models that translate sentences.

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
    """Load a trained run: `load("runs/x").translate(["A dog."])` gives one line for each line.

    `run` is a run directory, or the one file that `mtrain export --to safetensors` wrote;
    `checkpoint` is a name such as `best` (the default), `last` or `step-12000`; `device` is
    `auto`, `cpu`, `cuda` or `cuda:1`. `load(...).with_ctranslate2("int8")` is the same translator
    on another engine. What goes wrong is raised as an `mtrain.errors.MtrainError`.
    """
    from mtrain.decoding.translate import Translator

    return Translator.from_run(run, checkpoint=checkpoint, device=device)
