"""CTranslate2 computes with converted weights what we compute with ours."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrain.config.sections import ModelConfig
from mtrain.data.tokenizer import BOS, EOS
from mtrain.decoding.ctranslate2 import save_ctranslate2
from mtrain.errors import UsageError
from mtrain.model.transformer import Transformer

SIZES = {"d_model": 16, "d_ff": 24, "n_heads": 4, "n_encoder_layers": 3, "n_decoder_layers": 2}
SRC_PIECES = ["<pad>", "<unk>", "<s>", "</s>", *(f"s{i}" for i in range(20))]
TGT_PIECES = ["<pad>", "<unk>", "<s>", "</s>", *(f"t{i}" for i in range(13))]
SOURCES = [[4, 5, 6, 7, 8], [11], [9, 9, 20]]
TARGETS = [[5, 5, 12], [8, 7, 6, 5, 4], [16]]


def make(**changes: object) -> Transformer:
    """A model in eval mode, none of whose biases and norms are zeros and ones."""
    torch.manual_seed(1)
    config = ModelConfig.model_validate({**SIZES, "dropout": 0, **changes})
    is_shared = config.tied == "all"
    model = Transformer(config, len(SRC_PIECES), len(SRC_PIECES if is_shared else TGT_PIECES))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def our_log_probs(model: Transformer) -> list[list[float]]:
    found = []
    for source, target in zip(SOURCES, TARGETS, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*source, EOS]]), torch.tensor([[BOS, *target]]), None)
        log_probs: Tensor = logits.log_softmax(-1)[0]
        found.append([float(log_probs[i, token]) for i, token in enumerate([*target, EOS])])
    return found


def their_log_probs(model: Transformer, directory: Path, quantization: str) -> list[list[float]]:
    ctranslate2 = pytest.importorskip("ctranslate2")
    tgt_pieces = SRC_PIECES if model.config.tied == "all" else TGT_PIECES
    save_ctranslate2(model, (SRC_PIECES, tgt_pieces), directory, quantization=quantization)
    translator: Any = ctranslate2.Translator(str(directory), intra_threads=1)
    results = translator.score_batch(
        [[SRC_PIECES[i] for i in ids] for ids in SOURCES],
        [[tgt_pieces[i] for i in ids] for ids in TARGETS],
    )
    return [result.log_probs for result in results]


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "pre", "tied": "all"},
        {"norm": "post", "tied": "output"},
        {"norm": "pre", "tied": "none", "activation": "gelu"},
        {"norm": "post", "tied": "none", "activation": "swiglu"},
        {"norm": "pre", "tied": "output", "activation": "swiglu", "norm_type": "rmsnorm"},
        {"norm": "post", "tied": "all", "norm_type": "rmsnorm"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_model_of_ours_scores_the_same(changes, tmp_path):
    model = make(**changes)
    theirs = their_log_probs(model, tmp_path, "float32")
    for our_row, their_row in zip(our_log_probs(model), theirs, strict=True):
        assert their_row == pytest.approx(our_row, abs=2e-5)


def test_a_quantised_model_scores_nearly_the_same(tmp_path):
    model = make()
    theirs = their_log_probs(model, tmp_path, "int8")  # first: the weights must stay as they were
    ours = our_log_probs(model)
    assert theirs != ours
    # On a CPU without VNNI, sums of int8 products saturate.
    assert np.corrcoef(np.concatenate(ours), np.concatenate(theirs))[0, 1] > 0.9


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "ctranslate2":
            raise ImportError("No module named 'ctranslate2'")
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match="CTranslate2") as caught:
        save_ctranslate2(make(), (SRC_PIECES, SRC_PIECES), tmp_path)
    assert caught.value.fix is not None
    assert "mtrain[ctranslate2]" in caught.value.fix
