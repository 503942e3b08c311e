"""The step-by-step protocol between a search and its model: one network, or an ensemble.

B open sentences, K hypotheses of each, R = B * K rows, S source length, T target length, V
vocabulary; row r belongs to sentence r // K. `token_log_probs` scores whole outputs at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mtrain.data.batching import pad
from mtrain.data.tokenizer import BOS
from mtrain.machine import runtime
from mtrain.machine.runtime import Precision
from mtrain.model.bf16_linear import in_bf16
from mtrain.model.cache import Cache
from mtrain.model.transformer import Transformer

LOGITS_BYTES = 512 << 20  # float32 logits at a time; the results take as much again


class Scorer(Protocol):
    """A model, step by step: a network, several networks, or a table in a test."""

    def start(self, src: Tensor, src_mask: Tensor | None, beam_size: int) -> Any:
        """Encode the sources, src (N, S) -> the state of the scorer."""

    def step(self, state: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Feed one token per row, tokens (R,) -> logits (R, V) of the next, log_z (R,).

        logits - log_z are log-probabilities. The search writes into the logits.
        """

    def reorder(self, state: Any, rows: Tensor) -> None:
        """Row r continues the former row rows[r], of the same sentence; rows (R,)."""

    def keep(self, state: Any, sentences: Tensor) -> None:
        """Keep only these open sentences, (B',) in ascending order, and their rows."""


class TransformerScorer:
    """A Transformer, step by step through its key/value cache."""

    def __init__(self, model: Transformer, precision: Precision = "fp32") -> None:
        """In bf16, the model is copied with matrices in bf16; see `in_bf16`."""
        self.model = model if precision == "fp32" else in_bf16(model)

    def start(self, src: Tensor, src_mask: Tensor | None, beam_size: int) -> Cache:
        memory = self.model.encode(src, src_mask)  # (N, S, D)
        return self.model.start_cache(memory, src_mask, beam_size)

    def step(self, state: Cache, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.decode_step(tokens, state).float()  # (R, V)
        return logits, log_normaliser(logits)

    def reorder(self, state: Cache, rows: Tensor) -> None:
        state.reorder(rows)

    def keep(self, state: Cache, sentences: Tensor) -> None:
        state.keep_sentences(sentences)


class EnsembleScorer:
    """Several models with one vocabulary: the mean of their probabilities."""

    def __init__(self, members: Sequence[Scorer]) -> None:
        self.members = members

    def start(self, src: Tensor, src_mask: Tensor | None, beam_size: int) -> list[Any]:
        return [member.start(src, src_mask, beam_size) for member in self.members]

    def step(self, state: list[Any], tokens: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = []
        for member, own in zip(self.members, state, strict=True):
            logits, log_z = member.step(own, tokens)  # (R, V), (R,)
            log_probs.append(logits - log_z.unsqueeze(1))
        total = torch.stack(log_probs).logsumexp(0)  # (R, V) log of the sum of probabilities
        return total, total.new_full((len(total),), math.log(len(self.members)))

    def reorder(self, state: list[Any], rows: Tensor) -> None:
        for member, own in zip(self.members, state, strict=True):
            member.reorder(own, rows)

    def keep(self, state: list[Any], sentences: Tensor) -> None:
        for member, own in zip(self.members, state, strict=True):
            member.keep(own, sentences)


def log_normaliser(logits: Tensor) -> Tensor:
    """log of the sum of exp over the vocabulary: logits (..., V) -> (...)

    On a CPU the kernel of log_softmax takes half the time of logsumexp, which makes four passes
    over all rows.
    """
    if logits.device.type != "cpu":
        return logits.logsumexp(-1)
    return logits[..., 0] - logits.log_softmax(-1)[..., 0]


@torch.inference_mode()
def token_log_probs(
    models: Sequence[Transformer],
    src: Tensor,
    src_mask: Tensor | None,
    targets: Sequence[Sequence[int]],
) -> list[list[float]]:
    """log P of every token of given targets and of their EOS, by teacher forcing.

    src (B, S) ends in EOS, src_mask (B, 1, 1, S) or None; the probabilities of several models are
    averaged, as in `EnsembleScorer`.
    """
    padded, lengths = pad(targets)
    tgt_out = padded.to(src.device)  # (B, T)
    tgt_in = torch.cat([tgt_out.new_full((len(tgt_out), 1), BOS), tgt_out[:, :-1]], 1)
    of_models = [_log_probs(model, src, src_mask, tgt_in, tgt_out) for model in models]
    log_probs = torch.stack(of_models).logsumexp(0) - math.log(len(models))  # (B, T)
    return [row[:length] for row, length in zip(log_probs.tolist(), lengths, strict=True)]


def _log_probs(
    model: Transformer, src: Tensor, src_mask: Tensor | None, tgt_in: Tensor, tgt_out: Tensor
) -> Tensor:
    """tgt_in, tgt_out (B, T) -> log-probabilities of tgt_out (B, T)"""
    x = model.decode(tgt_in, model.encode(src, src_mask), src_mask).flatten(0, 1)  # (B*T, D)
    free = runtime.free_bytes(tgt_in.device)
    n_bytes = LOGITS_BYTES if free is None else min(LOGITS_BYTES, free // 8)
    n_rows = max(1, n_bytes // (4 * model.output.out_features))
    targets, parts = tgt_out.flatten(), []
    for rows, gold in zip(torch.split(x, n_rows), torch.split(targets, n_rows), strict=True):
        logits = model.project(rows).float()  # (n, V)
        parts.append(logits.gather(1, gold[:, None])[:, 0] - log_normaliser(logits))
    return torch.cat(parts).view_as(tgt_out)
