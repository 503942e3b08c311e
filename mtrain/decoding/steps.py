"""What the search asks of a model, and the models that answer: one Transformer, or several.

B open sentences, K hypotheses of each, R = B * K rows, S source length, V vocabulary; row r
belongs to sentence r // K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mtrain.machine.runtime import Precision
from mtrain.model.bf16_linear import in_bf16
from mtrain.model.cache import Cache
from mtrain.model.transformer import Transformer


class Scorer(Protocol):
    """A model, step by step. A network, a table in a test, or several networks at once."""

    def start(self, src: Tensor, src_mask: Tensor | None, beam_size: int) -> Any:
        """Read the sources, src (N, S); the state it returns belongs to the scorer."""

    def step(self, state: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Feed one token a row, tokens (R,) -> logits (R, V) of the next, log_z (R,).

        logits - log_z are log-probabilities. The search writes into the logits.
        """

    def reorder(self, state: Any, rows: Tensor) -> None:
        """Row r goes on from what was row rows[r], of the same sentence; rows (R,)."""

    def keep(self, state: Any, sentences: Tensor) -> None:
        """Only these open sentences, (B',) in rising order, go on; the rows of others are gone."""


class TransformerScorer:
    """A Transformer, step by step through its key/value cache."""

    def __init__(self, model: Transformer, precision: Precision = "fp32") -> None:
        """In bf16, a copy of the model is made that multiplies so; see `in_bf16`."""
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

    On a CPU the kernel of log_softmax, which reads a row while it is near, takes half the time of
    logsumexp, which goes over all rows four times.
    """
    if logits.device.type != "cpu":
        return logits.logsumexp(-1)
    return logits[..., 0] - logits.log_softmax(-1)[..., 0]
