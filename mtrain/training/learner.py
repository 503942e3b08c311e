"""One update of the weights: gradients of micro-batches, summed, clipped and applied.

The result does not depend on how an update is computed: the plan lists its sentences, and
`data.micro_batches` distributes them over processes and threads. `loss` is the training loss: label
smoothing, and consistency terms if configured. Dropout is a function of (seed, step, number of the
micro-batch).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrain import console
from mtrain.config.root import Config
from mtrain.config.sections import OptimConfig
from mtrain.data.batching import Batch, BatchPlan, collate
from mtrain.data.epochs import Epoch
from mtrain.data.micro_batches import Indices, cut, n_positions, token_limit
from mtrain.errors import OutOfMemoryError
from mtrain.machine import runtime
from mtrain.machine.distributed import Distributed
from mtrain.machine.threads import Replicas, share_out
from mtrain.model.dropout import dropout, give_thread_its_own_dropout, seed_dropout
from mtrain.model.loss import Loss, consistency_loss, label_smoothed_loss, r_drop, sim_cut
from mtrain.model.transformer import Transformer
from mtrain.model.weights import weights_of
from mtrain.training.optim import Ema, make_optimizers
from mtrain.training.schedule import Progress

CONSISTENCY_WEIGHT = {"rdrop": 5.0, "simcut": 3.0}  # of the papers, for translation


class Update(NamedTuple):
    """The results of an update; tensors are on the device."""

    micro_batches: list[tuple[Batch, Loss]]  # of this process
    grad_norm: Tensor
    is_skipped: Tensor  # as the gradient was not finite
    learning_rate: float


class Learner:
    """The model, its optimizers and the moving average of its weights."""

    def __init__(
        self, config: Config, vocab_sizes: tuple[int, int], distributed: Distributed
    ) -> None:
        self.config, self.distributed, self.device = config, distributed, distributed.device
        self.precision = runtime.choose_precision(config.train.precision, self.device)
        torch.manual_seed(config.train.seed)
        self.model = Transformer(config.model, *vocab_sizes).to(self.device)
        dtype = runtime.dtype_of_products(self.precision)
        self.optimizers = make_optimizers(self.model, config.train.optim, dtype)
        self.ema = self.new_ema()
        n_workers = runtime.n_workers(self.device)
        self.replicas = Replicas(self.model, n_workers, give_thread_its_own_dropout)

    def new_ema(self) -> Ema | None:
        """The moving average of the weights, starting from the present ones."""
        decay = self.config.train.optim.ema_decay
        return Ema(weights_of(self.model), decay) if decay else None

    @property
    def averaged_weights(self) -> dict[str, Tensor]:
        """The weights to be validated: their moving average if there is one."""
        return weights_of(self.model) if self.ema is None else self.ema.weights

    @property
    def n_parameters(self) -> int:
        """The number of parameters of the model; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    def compile_layers(self) -> None:
        """Compile the layers at their next call."""
        for model in self.replicas.models:
            runtime.compile_layers([*model.encoder, *model.decoder])

    def update(self, epoch: Epoch, number: int, rate: float, progress: Progress) -> Update:
        """Make update `number` of an epoch with this learning rate."""
        micro_batches = self.gradients(epoch, number, progress)
        progress.n_target_tokens += epoch.plan.n_target_tokens(number)
        clip_norm = self.config.train.optim.clip_norm or float("inf")
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        is_skipped = ~torch.isfinite(grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            # If this is 1, weights and moments stay as they are, without waiting for the device.
            optimizer.found_inf = is_skipped.float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if self.ema is not None:
            self.ema.update(weights_of(self.model), progress.step)
        return Update(micro_batches, grad_norm, is_skipped, rate)

    def gradients(self, epoch: Epoch, number: int, progress: Progress) -> list[tuple[Batch, Loss]]:
        """Add up the gradients of an update; -> the micro-batches of this process, their losses."""
        lengths = (epoch.plan.src_lengths, epoch.plan.tgt_lengths)

        def own_batches() -> dict[int, Batch]:
            parts = self.micro_batches(epoch.plan, number, progress)
            sizes = [n_positions(part, *lengths) for part in parts]
            own = share_out(sizes, self.distributed.world_size)[self.distributed.rank]
            return {i: collate(epoch.store, parts[i]) for i in sorted(own)}

        n_target_tokens, step = epoch.plan.n_target_tokens(number), progress.step + 1
        batches, losses = self.in_memory(
            own_batches, lambda b: self.forward_backward(b, n_target_tokens, step), progress
        )
        self.distributed.sum_gradients(self.model.parameters())
        return [*zip(batches.values(), losses, strict=True)]

    def micro_batches(self, plan: BatchPlan, number: int, progress: Progress) -> list[Indices]:
        """The sentences of an update, in micro-batches for all workers of all processes."""
        return cut(
            plan.sentences(number),
            plan.src_lengths,
            plan.tgt_lengths,
            self.micro_batch_tokens(progress),
            len(self.replicas.models),
            self.distributed.world_size,
        )

    def micro_batch_tokens(self, progress: Progress) -> int:
        """The present limit of a micro-batch, in rows x longest side."""
        train = self.config.train
        limit = token_limit(
            train.micro_batch_tokens,
            train.batch_tokens,
            self.config.data.max_length,
            len(self.replicas.models),
            self.device.type,
        )
        n_passes = 1 if train.optim.consistency == "none" else 2
        return max(1, (limit >> progress.n_halvings) // n_passes)

    def forward_backward(
        self, batches: dict[int, Batch], n_target_tokens: int, step: int
    ) -> list[Loss]:
        """Add up the gradients of micro-batches, by their numbers in an update; -> their losses."""
        self.replicas.train()

        def work(model: Transformer, i: int) -> Loss:
            batch = batches[i].to(self.device)
            seed_dropout(runtime.seed_of(self.config.train.seed, step, i))
            with runtime.autocast(self.device, self.precision):
                loss = loss_of(model, batch, self.config.train.optim)
            return add_gradients(loss, n_target_tokens)

        return self.replicas.run(work, [*batches], [b.n_positions for b in batches.values()])

    def in_memory(
        self,
        make_batches: Callable[[], dict[int, Batch]],
        work: Callable[[dict[int, Batch]], list[Loss]],
        progress: Progress,
    ) -> tuple[dict[int, Batch], list[Loss]]:
        """Return the batches and work(batches); out of memory, halve the micro-batch and retry."""
        while True:
            batches = make_batches()
            losses = runtime.unless_out_of_memory(lambda: work(batches))  # noqa: B023 (called here)
            if losses is not None:
                return batches, losses
            self.replicas.zero_grad()
            self.halve_micro_batch(max(batches.values(), key=lambda b: b.n_positions), progress)

    def halve_micro_batch(self, batch: Batch, progress: Progress) -> None:
        """Halve the limit, which changes no update; an OutOfMemoryError if that cannot help."""
        rows, source, target = *batch.src.shape, batch.tgt_in.shape[1]
        problem = (
            f"a micro-batch of {rows} pairs of {source} source and {target} target pieces does not "
            f"fit into the memory of {self.device}"
        )
        if rows == 1:
            raise OutOfMemoryError(problem, "set data.max_length lower, or choose a smaller model")
        if self.distributed.world_size > 1:  # the others are past this point, or wait for gradients
            tokens = self.micro_batch_tokens(progress) // 2
            raise OutOfMemoryError(problem, f"set train.micro_batch_tokens to {tokens}")
        progress.n_halvings += 1
        console.warn(f"{problem}; continuing with {self.micro_batch_tokens(progress):,} tokens")


def loss_of(model: Transformer, batch: Batch, optim: OptimConfig) -> Loss:
    """The training loss, summed over the real target tokens of a micro-batch.

    For consistency training, each pair goes through the model twice.
    """
    if optim.consistency == "none":
        memory = model.encode(batch.src, batch.src_mask)
        x = model.decode(batch.tgt_in, memory, batch.src_mask)  # (B, T, D)
        return label_smoothed_loss(x, model.output.weight, batch.tgt_out, optim.label_smoothing)
    weight = optim.consistency_weight or CONSISTENCY_WEIGHT[optim.consistency]
    agreement = r_drop(weight) if optim.consistency == "rdrop" else sim_cut(weight)
    src, tgt_in = torch.cat([batch.src] * 2), torch.cat([batch.tgt_in] * 2)  # (2*B, ...)
    src_mask = None if batch.src_mask is None else torch.cat([batch.src_mask] * 2)
    src_kept = tgt_kept = None
    if optim.consistency == "simcut":
        src_kept, tgt_kept = (words_kept(ids, optim.cut) for ids in (src, tgt_in))
    memory = model.encode(src, src_mask, src_kept)
    x = model.decode(tgt_in, memory, src_mask, tgt_kept)  # (2*B, T, D)
    return consistency_loss(x, model.output.weight, batch.tgt_out, optim.label_smoothing, agreement)


def words_kept(ids: Tensor, cut: float) -> Tensor:
    """ids (2*B, T) -> (2*B, T), False for words to be cut, at this rate, in the second half"""
    is_kept = torch.ones(ids.shape, device=ids.device)
    second = is_kept[len(ids) // 2 :]
    second.copy_(dropout(second, cut, training=True))
    return is_kept > 0


def add_gradients(loss: Loss, n_target_tokens: int) -> Loss:
    """Add the gradients of a micro-batch, divided by the target tokens of the whole update.

    -> the loss without its graph
    """
    (loss.smoothed / n_target_tokens).backward()  # type: ignore[no-untyped-call]
    return loss._replace(smoothed=loss.smoothed.detach())
