"""Other outputs than those of beam search: random or diverse tokens, and the choice among samples.

`Sampler` and `Diverse` choose the tokens of `search.generate`: N sentences, B of them open, K
hypotheses of each, R = B * K rows, V vocabulary; row r belongs to sentence r // K.

`by_agreement` is minimum Bayes risk decoding (Kumar and Byrne, 2004): samples of a model stand for
the translations that it thinks possible, and each is a reference for all others. The best has the
highest expected utility, here sacreBLEU's chrF2 of a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrain.machine.runtime import seed_of

MAX_ORDER = 6  # characters in an n-gram of chrF
BETA = 2  # the weight of recall against precision


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


# -- minimum Bayes risk ----------------------------------------------------------------------


def by_agreement(samples: Sequence[str]) -> list[int]:
    """Indices of the distinct samples, ordered by their mean chrF2 with all others."""
    times = Counter(samples)
    first = {text: number for number, text in reversed([*enumerate(samples)])}
    texts = list(times)
    expected = pairwise_chrf(texts) @ np.array([*times.values()], np.float64) / len(samples)
    return [first[texts[i]] for i in sorted(range(len(texts)), key=lambda i: -expected[i])]


def pairwise_chrf(texts: Sequence[str]) -> NDArray[np.float64]:
    """(n, n): chrF2 of text i against text j as its reference, as sacreBLEU computes it."""
    counts = [_ngram_counts(texts, order) for order in range(1, MAX_ORDER + 1)]
    totals = np.stack([c.sum(1) for c in counts], 1).astype(np.float64)  # (n, orders)
    scores = np.zeros((len(texts), len(texts)))
    for i in range(len(texts)):
        matches = np.stack([np.minimum(c[i], c).sum(1) for c in counts], 1)  # (n, orders)
        scores[i] = _f_score(matches, totals[i], totals)
    return scores


def _ngram_counts(texts: Sequence[str], order: int) -> NDArray[np.int32]:
    """(n, distinct n-grams of all texts), ignoring white space."""
    columns: dict[str, int] = {}
    per_text = []
    for text in texts:
        characters = "".join(text.split())
        ngrams = Counter(characters[i : i + order] for i in range(len(characters) - order + 1))
        per_text.append({columns.setdefault(g, len(columns)): n for g, n in ngrams.items()})
    counts = np.zeros((len(texts), len(columns)), np.int32)
    for row, found in zip(counts, per_text, strict=True):
        row[list(found)] = list(found.values())
    return counts


def _f_score(
    matches: NDArray[np.int64],
    in_hypothesis: NDArray[np.float64],
    in_reference: NDArray[np.float64],
) -> NDArray[np.float64]:
    """matches and in_reference (n, orders), in_hypothesis (orders,) -> (n,)

    Precision and recall are averaged over the n-gram orders that both texts have.
    """
    counts = (in_hypothesis > 0) & (in_reference > 0)  # (n, orders)
    n_orders = np.maximum(counts.sum(1), 1)
    precision = (np.where(counts, matches / np.maximum(in_hypothesis, 1), 0)).sum(1) / n_orders
    recall = (np.where(counts, matches / np.maximum(in_reference, 1), 0)).sum(1) / n_orders
    weighted = BETA**2 * precision + recall
    both = (1 + BETA**2) * precision * recall
    f_score: NDArray[np.float64] = 100 * both / np.where(weighted > 0, weighted, 1)
    return f_score
