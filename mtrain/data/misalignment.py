"""Where two files of unequal length part: translations are about as long as their sources.

The logarithm of a pair's length ratio strays little from its median where line n translates line
n, and much where it does not; how much, a shift by a few lines tells. The place where the strays
change for good is found with a cumulative sum (Page 1954).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]  # characters of each line

_SHIFT = 7  # lines; few, as neighbours may be alike in sorted corpora
_TELLING = 0.85  # of the stray of shifted lines: what strays less is aligned
_NEAR_END = 50  # lines: too few to tell an end from a break


def lines_that_fit(source: Lengths, target: Lengths) -> int | None:
    """How many lines from the start translate each other, by their lengths.

    The length of the shorter file stands for all of it; None: the lengths do not tell.
    """
    n = min(len(source), len(target))
    if n < 2 * _NEAR_END:
        return None
    ratios = np.log((source[:n] + 1) / (target[:n] + 1))
    typical = np.median(ratios)
    stray = np.abs(ratios - typical)
    shifted = np.log((source[: n - _SHIFT] + 1) / (target[_SHIFT:n] + 1))
    unrelated = float(np.abs(shifted - typical).mean())
    excess = np.cumsum(stray - 0.75 * unrelated)
    n_fit = int(np.argmin(excess)) + 1 if excess.min() < 0 else 0
    if n_fit and stray[:n_fit].mean() > _TELLING * unrelated:
        return None
    from_end = np.log((source[len(source) - n :] + 1) / (target[len(target) - n :] + 1))
    stray_from_end = np.abs(from_end - typical)
    if n_fit >= n - _NEAR_END:
        is_cut_short = stray[-_NEAR_END:].mean() <= stray_from_end[-_NEAR_END:].mean()
        return n if is_cut_short else n_fit
    fits_from_end = stray_from_end[n_fit:].mean() < _TELLING * unrelated
    is_clear = stray[n_fit:].mean() > _TELLING * unrelated
    return n_fit if is_clear and (n_fit or fits_from_end) else None
