"""What a model thinks of given translations: teacher forcing, as in training.

B pairs, S source length, T target length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtrain.data.tokenizer import BOS, EOS, PAD
from mtrain.decoding.steps import log_normaliser
from mtrain.model.transformer import Transformer

LOGITS_BYTES = 512 << 20  # of float32 at a time; as much again is computed from them


@torch.inference_mode()
def token_log_probs(
    models: Sequence[Transformer],
    src: Tensor,
    src_mask: Tensor | None,
    targets: Sequence[Sequence[int]],
) -> list[list[float]]:
    """log P of every token of each target and of its EOS, given the source and those before it.

    src (B, S) ends in EOS, src_mask (B, 1, 1, S) or None; of several models, the mean of their
    probabilities counts, as in `steps.EnsembleScorer`.
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
    x = model.decode(tgt_in, model.encode(src, src_mask), src_mask).flatten(0, 1)  # (B*T, D)
    n_rows = max(1, LOGITS_BYTES // (4 * model.output.out_features))
    targets, parts = tgt_out.flatten(), []
    for rows, gold in zip(torch.split(x, n_rows), torch.split(targets, n_rows), strict=True):
        logits = model.project(rows).float()  # (n, V)
        parts.append(logits.gather(1, gold[:, None])[:, 0] - log_normaliser(logits))
    return torch.cat(parts).view_as(tgt_out)
