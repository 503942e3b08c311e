"""Choices for `search.generate` besides the likeliest token: random, or diverse.

N sentences, B of them open, K hypotheses of each, R = B * K rows, V vocabulary; row r belongs to
sentence r // K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrain.machine.runtime import seed_of


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws each token from the model's distribution, optionally restricted.

    The logits are divided by `temperature`; then only the `top_k` likeliest tokens are kept (0:
    all), and among these the smallest set with probabilities that sum up to `top_p`. A draw depends
    on the key of its sentence, the hypothesis and the position, not on the rest of the batch.
    """

    keys: Sequence[int]  # of the N sentences
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(
        self, logits: Tensor, log_z: Tensor, sentences: Tensor, is_open: Tensor, length: int
    ) -> Tensor:
        n_hypotheses = is_open.shape[1]
        probabilities = self.narrowed(logits)  # (R, V)
        cumulative = probabilities.double().cumsum(-1)
        draws = [
            seed_of(self.keys[sentence], number, length) / 2**63
            for sentence in sentences.tolist()
            for number in range(n_hypotheses)
        ]
        threshold = cumulative.new_tensor(draws).unsqueeze(1) * cumulative[:, -1:]  # (R, 1)
        # `right` skips tokens of probability 0, which do not increase the sum.
        tokens = torch.searchsorted(cumulative, threshold, right=True)
        return tokens.clamp_(max=logits.shape[1] - 1).view_as(is_open)

    def narrowed(self, logits: Tensor) -> Tensor:
        """logits (R, V) -> the probabilities to draw from (R, V), which need not sum up to 1."""
        probabilities = (logits / self.temperature).softmax(-1)
        if self.top_k and self.top_k < logits.shape[1]:
            smallest = probabilities.topk(self.top_k).values[:, -1:]
            probabilities = probabilities.masked_fill(probabilities < smallest, 0.0)
        if self.top_p < 1:
            descending, order = probabilities.sort(-1, descending=True)
            share_before = (descending.cumsum(-1) - descending) / descending.sum(-1, keepdim=True)
            descending = descending.masked_fill(share_before >= self.top_p, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter_(1, order, descending)
        return probabilities


@dataclass(frozen=True, slots=True)
class Diverse:
    """Diverse beam search (Vijayakumar et al., 2018) with groups of one hypothesis each.

    The hypotheses of a sentence choose one after the other. Each takes the token with the largest
    log-probability - strength * (number of earlier hypotheses that chose this token at this step).
    """

    strength: float

    def __call__(
        self, logits: Tensor, log_z: Tensor, sentences: Tensor, is_open: Tensor, length: int
    ) -> Tensor:
        n_open, n_hypotheses = is_open.shape
        # Fewer than K tokens are penalised, so the best is among the first K of each row.
        values, tokens = logits.view(n_open, n_hypotheses, -1).topk(
            min(n_hypotheses, logits.shape[1])
        )
        chosen = torch.full_like(tokens[:, :, 0], -1)  # (B, K) -1: none
        for number in range(n_hypotheses):
            candidates = tokens[:, number]  # (B, K)
            times = (candidates.unsqueeze(2) == chosen.unsqueeze(1)).sum(2)  # (B, K)
            best = (values[:, number] - self.strength * times).argmax(1, keepdim=True)
            chosen[:, number] = torch.where(
                is_open[:, number], candidates.gather(1, best).squeeze(1), -1
            )
        return chosen.clamp(min=0)
