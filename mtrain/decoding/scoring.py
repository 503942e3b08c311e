"""What a model thinks of given translations: teacher forcing, as in training.

B pairs, S source length, T target length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtrain.data.tokenizer import BOS, EOS, PAD
from mtrain.decoding.scorers import log_normaliser
from mtrain.model.transformer import Transformer


@torch.inference_mode()
def token_log_probs(
    models: Sequence[Transformer],
    src: Tensor,
    src_mask: Tensor | None,
    targets: Sequence[Sequence[int]],
) -> list[list[float]]:
    """log P of every token of each target and of its EOS, given the source and those before it.

    src (B, S) ends in EOS, src_mask (B, 1, 1, S) or None; of several models, the mean of their
    probabilities counts, as in `scorers.EnsembleScorer`.
    """
    width = 1 + max(map(len, targets))
    rows = [[*target, EOS] + [PAD] * (width - 1 - len(target)) for target in targets]
    tgt_out = torch.tensor(rows, device=src.device)  # (B, T)
    tgt_in = torch.cat([tgt_out.new_full((len(rows), 1), BOS), tgt_out[:, :-1]], 1)
    of_models = [_log_probs(model, src, src_mask, tgt_in, tgt_out) for model in models]
    log_probs = torch.stack(of_models).logsumexp(0) - math.log(len(models))  # (B, T)
    return [row[: len(target) + 1] for row, target in zip(log_probs.tolist(), targets, strict=True)]


def _log_probs(
    model: Transformer, src: Tensor, src_mask: Tensor | None, tgt_in: Tensor, tgt_out: Tensor
) -> Tensor:
    """tgt_in, tgt_out (B, T) -> log-probabilities of tgt_out (B, T)"""
    logits = model(src, tgt_in, src_mask).float()  # (B, T, V)
    gold = logits.gather(2, tgt_out.unsqueeze(2)).squeeze(2)  # (B, T)
    log_probs: Tensor = gold - log_normaliser(logits)
    return log_probs
