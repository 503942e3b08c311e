"""x W^T + b in bfloat16 on a CPU, for training: in few shapes.

oneDNN makes a kernel for every shape of a product, in half a millisecond and of up to a quarter of
a MiB, and hardly two micro-batches have as many positions. With rows rounded up to a multiple of
64, some hundreds serve a whole training (`tiny`: 1.2 GB after 160 updates, where it had 2.7 with
4,096 kernels kept), and time is not lost on making them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 64  # more: fewer kernels, but more rows for nothing


def is_wanted(x: Tensor) -> bool:
    """Whether `linear` stands for what autocast would do with x."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K) of any dtype, weight (N, K) and bias (N,) float32 -> (..., N) bfloat16"""
    product: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


class _Linear(torch.autograd.Function):
    """Rows of zeros are added, and taken away from what comes out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, weight_low = _rounded_up(x), weight.bfloat16()
        ctx.save_for_backward(rows, weight_low)
        ctx.shape, ctx.dtype, ctx.has_bias = x.shape, x.dtype, bias is not None
        y = F.linear(rows, weight_low, None if bias is None else bias.bfloat16())
        return y[: _n_rows(x)].view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        rows, weight_low = ctx.saved_tensors
        grad_rows = _rounded_up(grad)
        grad_x = (grad_rows @ weight_low)[: _n_rows(grad)].view(ctx.shape).to(ctx.dtype)
        grad_weight = (grad_rows.T @ rows).float()
        return grad_x, grad_weight, grad_rows.sum(0).float() if ctx.has_bias else None


def _rounded_up(x: Tensor) -> Tensor:
    """(..., K) -> (rows, K) bfloat16, with rows of zeros at the end"""
    n = _n_rows(x)
    rows = x.new_empty(-(-n // ROWS) * ROWS, x.shape[-1], dtype=torch.bfloat16)
    rows[:n].view(x.shape).copy_(x)
    rows[n:].zero_()
    return rows


def _n_rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
