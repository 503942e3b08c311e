"""Label-smoothed cross-entropy over real tokens, in chunks: (B, T, V) is never materialised.

With the true next token y and smoothing e, the loss of a position is (paper, section 5.4)

    (1 - e) * -log p(y) + e * mean over the vocabulary of -log p(v)

The gradient is computed together with the loss, while a chunk of logits is in the cache, and
the smoothed target distribution is never materialised.

`consistency_loss` also penalises the divergence of two passes over the same tokens (R-Drop,
SimCut).
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

    smoothed: Tensor  # the training loss
    nll: Tensor  # -log p(y) alone, in nats; no gradient
    divergence: Tensor | None = None  # between two passes, in nats; no gradient


class Agreement(NamedTuple):
    """Weights of the terms added to the smoothed loss of the first of two passes, p and q."""

    loss_of_second: float  # weight of the smoothed loss of q
    kl_pq: float  # weight of KL(p || q), the sum over v of p(v) (log p(v) - log q(v))
    kl_qp: float  # weight of KL(q || p)


def r_drop(weight: float) -> Agreement:
    """Two dropout masks, both trained, and their mean divergence (Wu et al., 2021)."""
    return Agreement(1.0, weight / 2, weight / 2)


def sim_cut(weight: float) -> Agreement:
    """q sees inputs with words cut out and follows p, without its own loss (Gao et al., 2022)."""
    return Agreement(0.0, weight, 0.0)


def label_smoothed_loss(x: Tensor, weight: Tensor, tgt_out: Tensor, smoothing: float) -> Loss:
    """x (B, T, D), output projection (V, D), tgt_out (B, T) with PAD after the end -> sums"""
    x, targets = x.flatten(0, 1), tgt_out.flatten()  # (B*T, D), (B*T,)
    if (real := _real_rows(targets)) is not None:
        x, targets = x[real], targets[real]
    if not torch.is_grad_enabled():  # otherwise needs_input_grad would be true for the weights
        x, weight = x.detach(), weight.detach()
    smoothed, nll = _ChunkedCrossEntropy.apply(x, weight, targets, smoothing)  # type: ignore[no-untyped-call]
    return Loss(smoothed, nll)


def consistency_loss(
    x: Tensor, weight: Tensor, tgt_out: Tensor, smoothing: float, agreement: Agreement
) -> Loss:
    """x (2*B, T, D), one pass after the other; the rest as above -> sums

    `nll` is that of the first pass.
    """
    first, second = (half.flatten(0, 1) for half in x.chunk(2))  # (B*T, D) each
    targets = tgt_out.flatten()  # (B*T,)
    if (real := _real_rows(targets)) is not None:
        first, second, targets = first[real], second[real], targets[real]
    total, nll, divergence = _ChunkedConsistency.apply(  # type: ignore[no-untyped-call]
        first, second, weight, targets, smoothing, agreement
    )
    return Loss(total, nll, divergence)


def _real_rows(targets: Tensor) -> Tensor | None:
    """Indices of the rows (N,) that are not PAD; None to keep PAD, which has weight 0 below.

    Only on a CPU: on a GPU this would wait for the device.
    """
    if targets.device.type != "cpu":
        return None
    real = (targets != PAD).nonzero()[:, 0]
    return real if len(real) < len(targets) else None


class _ChunkedCrossEntropy(torch.autograd.Function):
    """(N, D), (V, D), (N,) -> the two sums; both gradients are ready when forward returns."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        needs_grad = any(ctx.needs_input_grad)
        dtype = _dtype_of_products(x, weight)
        x_low, weight_low = x.to(dtype), weight.to(dtype)
        n_rows, vocab_size = x.shape[0], weight.shape[0]
        weight_sum = weight_low.float().sum(0)  # (D,)
        grad_x = torch.empty_like(x_low) if needs_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        smoothed = x.new_zeros((), dtype=torch.float32)
        nll = torch.zeros_like(smoothed)
        chunk = _rows_of_chunk(x, vocab_size)
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


class _ChunkedConsistency(torch.autograd.Function):
    """(N, D), (N, D), (V, D), (N,) -> the three sums; the gradients are ready with them.

    With logits a of p and b of q, and y smoothed to s:

        d loss of p / da = p - s
        d KL(p || q) / da = p (log p - log q - KL(p || q))        d KL(p || q) / db = q - p
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor,
        weight: Tensor,
        targets: Tensor,
        smoothing: float,
        agreement: Agreement,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _dtype_of_products(first, weight)
        weight_low = weight.to(dtype)
        n_rows, vocab_size = first.shape[0], weight.shape[0]
        grads = [torch.zeros_like(x, dtype=torch.float32) for x in (first, second, weight)]
        total, nll, divergence = (first.new_zeros((), dtype=torch.float32) for _ in range(3))
        even = smoothing / vocab_size
        chunk = max(64, _rows_of_chunk(first, vocab_size) // 4)  # four times as much is alive
        for start in range(0, n_rows, chunk):
            part = slice(start, start + chunk)
            y = targets[part, None]  # (n, 1)
            is_real = (y != PAD).float()  # (n, 1)
            h = [x[part].to(dtype) for x in (first, second)]  # (n, D) each
            log_p, log_q = ((x @ weight_low.T).float().log_softmax(1) for x in h)  # (n, V)
            p, q, gap = log_p.exp(), log_q.exp(), log_p - log_q
            kl_pq, kl_qp = (p * gap).sum(1, keepdim=True), -(q * gap).sum(1, keepdim=True)
            nll_p, nll_q = -log_p.gather(1, y), -log_q.gather(1, y)  # (n, 1)
            loss_p, loss_q = (
                (1 - smoothing) * nll_y - smoothing * log.mean(1, keepdim=True)
                for nll_y, log in ((nll_p, log_p), (nll_q, log_q))
            )
            between = agreement.kl_pq * kl_pq + agreement.kl_qp * kl_qp
            total += ((loss_p + agreement.loss_of_second * loss_q + between) * is_real).sum()
            nll += (nll_p * is_real).sum()
            divergence += ((kl_pq + kl_qp) / 2 * is_real).sum()

            smoothed = torch.full_like(p, even).scatter_add_(
                1, y, torch.full_like(is_real, 1 - smoothing)
            )
            of_a = (p - smoothed) + agreement.kl_qp * (p - q)
            of_a += agreement.kl_pq * p * (gap - kl_pq)
            of_b = agreement.loss_of_second * (q - smoothed) + agreement.kl_pq * (q - p)
            of_b -= agreement.kl_qp * q * (gap + kl_qp)
            for i, of_logits in enumerate((of_a, of_b)):
                low = (of_logits * is_real).to(dtype)
                grads[i][part] = low @ weight_low
                grads[2] += (low.T @ h[i]).float()
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(nll, divergence)
        ctx.dtypes = first.dtype, second.dtype, weight.dtype
        return total, nll, divergence

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((of_input * grad).to(dtype) for of_input, dtype in grads), None, None, None


def _rows_of_chunk(x: Tensor, vocab_size: int) -> int:
    chunk_bytes = CHUNK_BYTES if x.device.type == "cpu" else CHUNK_BYTES_CUDA
    return max(64, chunk_bytes // (4 * vocab_size))


def _dtype_of_products(x: Tensor, weight: Tensor) -> torch.dtype:
    is_autocast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if is_autocast else weight.dtype
