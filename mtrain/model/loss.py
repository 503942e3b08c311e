"""Label-smoothed cross-entropy over real tokens, in chunks: the whole (B, T, V) never exists.

With the true next token y and smoothing e, the loss of a position is (paper, section 5.4)

    (1 - e) * -log p(y) + e * mean over the vocabulary of -log p(v)

The gradient is computed together with the loss, while a chunk of logits is in the cache, and
without ever writing the smoothed target distribution.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrain.data.tokenizer import PAD

CHUNK_BYTES = 8 << 20  # of float32 logits on a CPU: stays in the cache
CHUNK_BYTES_CUDA = 512 << 20


class Loss(NamedTuple):
    """Sums over the real target tokens of a batch, float32 scalars."""

    smoothed: Tensor  # what training minimises
    nll: Tensor  # -log p(y) alone, in nats; no gradient


def label_smoothed_loss(x: Tensor, weight: Tensor, tgt_out: Tensor, smoothing: float) -> Loss:
    """x (B, T, D), output projection (V, D), tgt_out (B, T) with PAD after the end -> sums"""
    x, targets = x.flatten(0, 1), tgt_out.flatten()  # (B*T, D), (B*T,)
    if x.device.type == "cpu":  # elsewhere this would wait for the device: PAD gets weight 0 below
        real = (targets != PAD).nonzero()[:, 0]
        if len(real) < len(targets):
            x, targets = x[real], targets[real]
    if not torch.is_grad_enabled():  # else autograd would say that the weights need a gradient
        x, weight = x.detach(), weight.detach()
    smoothed, nll = _ChunkedCrossEntropy.apply(x, weight, targets, smoothing)  # type: ignore[no-untyped-call]
    return Loss(smoothed, nll)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """(N, D), (V, D), (N,) -> the two sums; both gradients are ready when forward returns."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        needs_grad = any(ctx.needs_input_grad)
        dtype = torch.get_autocast_dtype(x.device.type) if _in_autocast(x) else weight.dtype
        x_low, weight_low = x.to(dtype), weight.to(dtype)
        n_rows, vocab_size = x.shape[0], weight.shape[0]
        weight_sum = weight_low.float().sum(0)  # (D,)
        grad_x = torch.empty_like(x_low) if needs_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        smoothed = x.new_zeros((), dtype=torch.float32)
        nll = torch.zeros_like(smoothed)
        chunk_bytes = CHUNK_BYTES if x.device.type == "cpu" else CHUNK_BYTES_CUDA
        chunk = max(64, chunk_bytes // (4 * vocab_size))
        for start in range(0, n_rows, chunk):
            part = slice(start, start + chunk)
            h, y = x_low[part], targets[part]
            is_real = (y != PAD).float()  # (n,)
            logits = (h @ weight_low.T).float()  # (n, V)
            logit_y = logits.gather(1, y[:, None])[:, 0]  # (n,)
            top = logits.amax(1, keepdim=True)  # (n, 1)
            p = logits.sub_(top).exp_()  # (n, V), each row to be divided by z
            z = p.sum(1)  # (n,)
            log_z = top[:, 0] + z.log()
            mean_logit = (h.float() @ weight_sum) / vocab_size
            nll_part = ((log_z - logit_y) * is_real).sum()
            uniform_part = ((log_z - mean_logit) * is_real).sum()
            nll += nll_part
            smoothed += (1 - smoothing) * nll_part + smoothing * uniform_part
            if grad_x is None or grad_weight is None:
                continue
            # d loss / d logits = p / z - (1 - e) onehot(y) - e / V: rows are scaled after the
            # product with p, and the last two terms are added as vectors.
            p = p.to(dtype)
            even = smoothing / vocab_size
            of_y = ((1 - smoothing) * is_real)[:, None]
            of_row = (is_real / z)[:, None]
            grad_h = (p @ weight_low).float() * of_row
            grad_h -= of_y * weight_low[y].float() + even * is_real[:, None] * weight_sum
            grad_x[part] = grad_h
            grad_weight += (p.T @ (h * of_row).to(dtype)).float()
            grad_weight -= even * (h.float() * is_real[:, None]).sum(0)
            grad_weight.index_add_(0, y, h.float() * of_y, alpha=-1)
        ctx.save_for_backward(*(g for g in (grad_x, grad_weight) if g is not None))
        ctx.mark_non_differentiable(nll)
        ctx.dtypes = x.dtype, weight.dtype
        return smoothed, nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        return (grad_x * grad).to(x_dtype), (grad_weight * grad).to(weight_dtype), None, None


def _in_autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)
