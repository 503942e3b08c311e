"""Parameter groups, the learning rate as a pure function of the step, the average of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mtrain.config import OptimConfig


def learning_rate(step: int, max_steps: int, config: OptimConfig) -> float:
    """The rate of update `step` (1, 2, ...): linear warm-up to the peak, then the schedule.

    inverse_sqrt   peak * sqrt(warmup / step)        (paper, equation 3, with the peak named)
    linear         to zero, reached after max_steps
    """
    warmup = config.warmup_steps
    if step <= warmup:
        return config.learning_rate * step / warmup
    if config.schedule == "linear":
        return config.learning_rate * max(0, max_steps + 1 - step) / (max_steps + 1 - warmup)
    return config.learning_rate * math.sqrt(max(1, warmup) / step)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, as norms and biases have no scale to shrink."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


class Ema:
    """Exponential moving average of the weights, one update at a time.

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that the
    average of a short run does not remember its random beginning.
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
