"""Finds the line from which two files of unequal length are no longer parallel.

The logarithm of a pair's length ratio deviates little from its median if line n translates line n,
and much if it does not; shifting by a few lines shows how much. The change point is found with a
cumulative sum (Page 1954).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]  # characters of each line

_SHIFT = 7  # lines; few, as neighbours may be alike in sorted corpora
_PARALLEL = 0.85  # share of the deviation of shifted lines; lines that deviate less are parallel
_NEAR_END = 50  # lines: too few to tell an end from a break


def lines_that_fit(source: Lengths, target: Lengths) -> int | None:
    """The number of lines from the start that translate each other, judged by their lengths.

    It is the length of the shorter file if all of it does; None if the lengths do not tell.
    """
    n = min(len(source), len(target))
    if n < 2 * _NEAR_END:
        return None
    ratios = np.log((source[:n] + 1) / (target[:n] + 1))
    typical = np.median(ratios)
    deviations = np.abs(ratios - typical)
    shifted = np.log((source[: n - _SHIFT] + 1) / (target[_SHIFT:n] + 1))
    unrelated = float(np.abs(shifted - typical).mean())
    excess = np.cumsum(deviations - 0.75 * unrelated)
    n_fit = int(np.argmin(excess)) + 1 if excess.min() < 0 else 0
    if n_fit and deviations[:n_fit].mean() > _PARALLEL * unrelated:
        return None
    from_end = np.log((source[len(source) - n :] + 1) / (target[len(target) - n :] + 1))
    end_deviations = np.abs(from_end - typical)
    if n_fit >= n - _NEAR_END:
        is_cut_short = deviations[-_NEAR_END:].mean() <= end_deviations[-_NEAR_END:].mean()
        return n if is_cut_short else n_fit
    fits_from_end = end_deviations[n_fit:].mean() < _PARALLEL * unrelated
    is_clear = deviations[n_fit:].mean() > _PARALLEL * unrelated
    return n_fit if is_clear and (n_fit or fits_from_end) else None
