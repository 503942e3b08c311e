"""Minimum Bayes risk decoding (Kumar and Byrne, 2004): the sample that agrees most with the others.

The samples represent the model's distribution, and each is a reference for all others. The best one
has the highest expected utility, here sacreBLEU's sentence-level chrF2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 6  # characters in an n-gram
BETA = 2  # the weight of recall against precision


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
