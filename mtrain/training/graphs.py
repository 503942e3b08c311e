"""Micro-batches of few shapes, as CUDA graphs: one launch in the place of thousands.

Forward and backward of a micro-batch are some thousand kernels, and with a small model a GPU is
done with each before Python has launched the next. A CUDA graph launches all of them at once; but
it does again exactly what was recorded, at the same addresses. So a micro-batch is padded to the
nearest of few shapes and copied into buffers, and its gradients are added to buffers too. Dropout
masks come from the seed of the moment, also in what was recorded.

Whether a shape is recorded changes nothing but the time: without, the same padded micro-batch goes
through the same kernels and draws the same masks. A shape is recorded when it comes again, which
takes as long as several passes, and is used if it then gives the same loss and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrain.cuda_graphs import Recordings
from mtrain.data.batching import Batch
from mtrain.data.tokenizer import EOS, PAD
from mtrain.model.loss import Loss
from mtrain.model.transformer import seed_dropout
from mtrain.training.objective import add_gradients

MOST_SHAPES = 64  # recorded, and kept with their buffers
PASSES_WITHOUT = 1  # of a shape, before it is recorded
ROUNDING = 2e-3  # of loss and gradient: sums in another order

Pass = Callable[[], Loss]


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a padded micro-batch."""

    n_rows: int
    src_length: int
    tgt_length: int

    @classmethod
    def of(cls, batch: Batch) -> Shape:
        return cls(len(batch.src), batch.src.shape[1], batch.tgt_in.shape[1])

    @property
    def around(self) -> Shape:
        """The smallest of few that holds this one."""
        sizes = (self.n_rows, self.src_length, self.tgt_length)
        return Shape(*(_rounded_up(size) for size in sizes))


def _rounded_up(n: int) -> int:
    """To a multiple of 8, of 16 from 64 on, of 32 from 128 on, and so forth."""
    step = 1 << max(3, n.bit_length() - 3)
    return -(-n // step) * step


def padded(batch: Batch) -> Batch:
    """The same pairs in the nearest of few shapes; on a CPU, before they go to the device.

    A row that is added has one source token, as attention needs something to attend to, and no
    target token: it adds nothing to the loss.
    """
    shape, n_rows = Shape.of(batch).around, len(batch.src)

    def enlarged(ids: Tensor, length: int) -> Tensor:
        large = ids.new_full((shape.n_rows, length), PAD)
        large[:n_rows, : ids.shape[1]] = ids
        return large

    src = enlarged(batch.src, shape.src_length)
    src[n_rows:, 0] = EOS
    return Batch(
        src,
        enlarged(batch.tgt_in, shape.tgt_length),
        enlarged(batch.tgt_out, shape.tgt_length),
        _mask(src),
        batch.n_source_tokens,
        batch.n_target_tokens,
    )


def _mask(src: Tensor) -> Tensor:
    return (src != PAD)[:, None, None]


class RecordedPass:
    """Forward and backward of a micro-batch of one shape, with its buffers."""

    def __init__(
        self,
        batch: Batch,
        parameters: list[nn.Parameter],
        gradients: list[Tensor],
        loss_of: Callable[[Batch], Loss],
        record: Callable[[Pass], Pass],
    ) -> None:
        """`batch` is any of the shape, on the device. What `gradients` then hold is of no use."""
        self.buffers = [ids.clone() for ids in (batch.src, batch.tgt_in, batch.tgt_out)]
        self.n_target_tokens = torch.ones((), device=batch.src.device)  # of the whole update

        def work() -> Loss:
            src, tgt_in, tgt_out = self.buffers
            loss = loss_of(Batch(src, tgt_in, tgt_out, _mask(src), 0, 0))
            own = torch.autograd.grad(loss.smoothed / self.n_target_tokens, parameters)
            torch._foreach_add_(gradients, own)
            return loss._replace(smoothed=loss.smoothed.detach())

        self.again = record(work)

    def run(self, batch: Batch, n_target_tokens: int) -> Loss:
        """Another micro-batch of the shape; its gradients are added to the buffers."""
        for buffer, ids in zip(self.buffers, (batch.src, batch.tgt_in, batch.tgt_out), strict=True):
            buffer.copy_(ids)
        self.n_target_tokens.fill_(n_target_tokens)
        smoothed, nll, divergence = self.again()
        return Loss(
            smoothed.clone(), nll.clone(), None if divergence is None else divergence.clone()
        )


class Recorder:
    """Forward and backward of padded micro-batches, recorded once for each shape."""

    def __init__(
        self,
        model: nn.Module,
        loss_of: Callable[[Batch], Loss],
        record: Callable[[Pass], Pass] | None,
    ) -> None:
        """Without `record`, as on a CPU, nothing is recorded."""
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.loss_of, self.record = loss_of, record
        self.gradients: list[Tensor] = []  # what recorded passes add to, made with the first
        self.recordings: Recordings[Shape, RecordedPass] = Recordings(
            "training", PASSES_WITHOUT, MOST_SHAPES
        )

    def run(self, batch: Batch, n_target_tokens: int, seed: int) -> Loss:
        """The loss of a padded micro-batch on the device; its gradients are added to the model's.

        They are divided by the target tokens of the whole update. Dropout is drawn from the seed.
        """
        record, recorded = self.record, None
        if record is not None:
            recorded = self.recordings.get(
                Shape.of(batch), lambda: self._checked(record, batch, n_target_tokens, seed)
            )
            if not self.recordings.is_able:
                self.record, self.gradients = None, []
        return self._pass(recorded, batch, n_target_tokens, seed)

    def forget(self) -> None:
        """Let go of what was recorded, and of its memory."""
        self.recordings.forget()
        self.gradients = []

    def _pass(
        self, recorded: RecordedPass | None, batch: Batch, n_target_tokens: int, seed: int
    ) -> Loss:
        seed_dropout(seed)
        if recorded is not None:
            self._let_gradients_be_buffers()
            return recorded.run(batch, n_target_tokens)
        return add_gradients(self.loss_of(batch), n_target_tokens)

    def _let_gradients_be_buffers(self) -> None:
        """Those of the model so far are where recorded passes add theirs, if they were not yet."""
        pairs = [*zip(self.parameters, self.gradients, strict=True)]
        if empty := [buffer for p, buffer in pairs if p.grad is None]:
            torch._foreach_zero_(empty)
        for parameter, buffer in pairs:
            if parameter.grad is not None and parameter.grad is not buffer:
                buffer.copy_(parameter.grad)
            parameter.grad = buffer

    def _checked(
        self, record: Callable[[Pass], Pass], batch: Batch, n_target_tokens: int, seed: int
    ) -> RecordedPass:
        """A new one, once it has given what the pass gives without; else a RuntimeError.

        The model's gradients stay as they are.
        """
        so_far = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        if not self.gradients:
            self.gradients = [torch.zeros_like(p) for p in self.parameters]
        try:
            recorded = RecordedPass(batch, self.parameters, self.gradients, self.loss_of, record)
            outcomes = []
            for way in (None, recorded):
                for parameter in self.parameters:
                    parameter.grad = None
                loss = self._pass(way, batch, n_target_tokens, seed)
                norm = nn.utils.get_total_norm(
                    [p.grad for p in self.parameters if p.grad is not None]
                )
                outcomes.append(torch.stack([loss.smoothed, norm]))
        finally:
            for parameter, gradient in zip(self.parameters, so_far, strict=True):
                parameter.grad = gradient
        expected, found = outcomes
        if not torch.allclose(found, expected, rtol=ROUNDING, atol=0.0, equal_nan=True):
            raise RuntimeError(
                f"loss and gradient of {expected.tolist()} become {found.tolist()} with one"
            )
        return recorded
