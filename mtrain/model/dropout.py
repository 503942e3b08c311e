"""Dropout with masks that are a function of a seed, even in several threads on a CPU."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor


class _ThisThread(threading.local):
    """The generator of each thread; None: that of torch, shared by all threads."""

    generator: torch.Generator | None = None


_this_thread = _ThisThread()


def give_thread_its_own_dropout() -> None:
    """Make the masks of this thread (on a CPU) independent of other threads."""
    _this_thread.generator = torch.Generator()


def seed_dropout(seed: int) -> None:
    """Seed the next masks of this thread."""
    if _this_thread.generator is None:
        torch.manual_seed(seed)
    else:
        _this_thread.generator.manual_seed(seed)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set elements to zero with probability p and scale the rest by 1 / (1 - p).

    On a CPU one 64-bit draw serves eight elements, which is several times cheaper than a draw per
    element. p is then rounded to a multiple of 1/256, and the scale uses the rounded p.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    threshold = max(1, min(255, round(p * 256)))
    draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64)
    draws.random_(-(2**63), None, generator=_this_thread.generator)
    keep = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
    mask = keep.to(x.dtype).mul_(256 / (256 - threshold))
    return x * mask
