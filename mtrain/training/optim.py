"""Optimizers, the learning rate as a pure function of the step, the moving average of weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtrain.config.sections import OptimConfig

# Newton-Schulz iteration x <- a x + (b A + c A^2) x with A = x x^T: these coefficients (Jordan et
# al., 2024) bring every singular value near 1 in five rounds.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_ROUNDS = 5


def learning_rate(
    step: int,
    max_steps: int,
    config: OptimConfig,
    corrections: Sequence[tuple[int, int]] = (),
) -> float:
    """The rate of update `step` (1, 2, ...): linear warm-up to the peak, then the schedule.

    inverse_sqrt   peak * sqrt(warmup / step)        (paper, equation 3, with the peak named)
    linear         to zero, reached just after max_steps
    cosine         the same, along half a cosine
    constant       the peak

    `corrections` are (step, max_steps), see `share_left`.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    if config.schedule == "inverse_sqrt":
        return peak * math.sqrt(max(1, warmup) / step)
    if config.schedule == "constant":
        return peak
    if config.schedule == "linear":
        return share_left(step, max_steps, warmup, corrections, of=peak)
    left = share_left(step, max_steps, warmup, corrections)
    return peak * (1 - math.cos(math.pi * left)) / 2


def share_left(
    step: int,
    max_steps: int,
    warmup_steps: int,
    corrections: Sequence[tuple[int, int]] = (),
    of: float = 1.0,
) -> float:
    """The fraction of the decay that is left: 1 at the end of warm-up, 0 just after max_steps.

    A correction (step, max_steps) moves the end. The share left at that step is then spread evenly
    up to the new end, so that nothing jumps.
    """
    share, start = of, warmup_steps
    for corrected_at, corrected_end in corrections:
        if corrected_at >= step:
            break
        if corrected_at > start:
            share *= max(0, max_steps + 1 - corrected_at) / (max_steps + 1 - start)
            start = corrected_at
        max_steps = corrected_end
    if step <= start:
        return share
    return share * max(0, max_steps + 1 - step) / max(1, max_steps + 1 - start)


def make_optimizers(
    model: nn.Module, config: OptimConfig, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the layers' matrices and AdamW for the rest.

    Weight decay applies to matrices only, not to norms and biases. `dtype` is that of matrix
    products.
    """
    hidden = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and name.startswith(("encoder.", "decoder."))
    }
    by_muon = set(map(id, hidden.values())) if config.optimizer == "muon" else set()
    by_adamw = [parameter for parameter in model.parameters() if id(parameter) not in by_muon]
    groups = [
        {"params": [p for p in by_adamw if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in by_adamw if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    return [Muon(hidden, config, dtype), adamw] if by_muon else [adamw]


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised before it is applied (Jordan et al., 2024).

    The update of an (m, n) matrix is scaled by 0.2 sqrt(max(m, n)), which gives its elements the
    size of AdamW's (Liu et al., 2025), so one learning rate serves both. The stacked projections
    of attention are orthogonalised one by one.

    torch.optim.Muon handles one matrix at a time, in bf16; with the small matrices of a translation
    model, on a CPU without bf16, that costs half as much as the training step. Here all matrices of
    one shape go through each product together, in the dtype that suits the device.
    """

    def __init__(
        self, matrices: Mapping[str, Tensor], config: OptimConfig, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype  # of the products in `orthogonal`
        stacked = [p for name, p in matrices.items() if name.endswith("in_projection.weight")]
        others = [p for name, p in matrices.items() if not name.endswith("in_projection.weight")]
        super().__init__(
            [{"params": stacked, "n_parts": 3}, {"params": others, "n_parts": 1}],
            {
                "lr": config.learning_rate,
                "weight_decay": config.weight_decay,
                "momentum": config.momentum,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; if `found_inf` is set to 1, weights and momentum stay as they are."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._step(matrices, group)

    def _step(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Update n matrices of one shape (m, columns), all in each operation."""
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        momentum = torch.stack(buffers)  # (n, m, columns)
        direction = torch.stack([p.grad for p in matrices if p.grad is not None])
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None:
            direction = torch.where(found_inf > 0, momentum, direction)  # so that it stays as it is
        momentum.lerp_(direction, 1 - group["momentum"])
        torch._foreach_copy_(buffers, momentum.unbind())
        direction.lerp_(momentum, group["momentum"])  # Nesterov's
        decay = group["lr"] * group["weight_decay"]
        if found_inf is not None:
            direction.mul_(1 - found_inf)
            decay = decay * (1 - found_inf)
        torch._foreach_mul_(matrices, 1 - decay)
        _, m, columns = direction.shape
        rows = m // group["n_parts"]
        update = orthogonal(direction.view(-1, rows, columns), self.dtype).view_as(direction)
        scale = -group["lr"] * 0.2 * math.sqrt(max(rows, columns))
        torch._foreach_add_(matrices, update.unbind(), alpha=scale)


def orthogonal(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The approximately nearest orthogonal matrices: x (n, rows, columns) -> the same, float32

    `dtype` is that of the products; bfloat16 is exact enough for an approximation.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = x.shape[1] > x.shape[2]
    y = x.mT if is_tall else x
    y = y.to(dtype)
    y = y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_ROUNDS):
        gram = y @ y.mT  # (n, m, m)
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if is_tall else y).float()


class Ema:
    """Exponential moving average of the weights, one update at a time.

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that the
    average of a short run forgets the random initialisation.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.clone() for name, tensor in weights.items()}

    def update(self, weights: dict[str, Tensor], step: int) -> None:
        """Move towards `weights`, those after update `step` (1, 2, ...)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.weights.values()), [weights[name] for name in self.weights], 1 - decay
        )


def optimizer_state(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Every tensor in the optimizers' state, named `parameter/key`."""
    merged: dict[Tensor, dict[str, Any]] = {}
    for optimizer in optimizers:
        merged |= optimizer.state
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in merged.get(parameter, {}).items()
    }


def set_optimizer_state(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    """Restore the tensors of `optimizer_state`."""
    named = dict(model.named_parameters())
    owner = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, tensor in tensors.items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = named[parameter_name]
        owner[parameter].state[parameter][key] = tensor.to(parameter.device)
