"""One update of the weights: gradients of micro-batches, summed, clipped and applied.

What an update is made of does not depend on how it is computed: the plan names its sentences, and
its micro-batches are shared out among processes and threads. Dropout is a function of (seed, step,
number of the micro-batch).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import nn

from mtrain import console
from mtrain.config.root import Config
from mtrain.data.batching import Batch, BatchPlan, Indices, collate
from mtrain.data.store import TokenStore
from mtrain.errors import OutOfMemoryError
from mtrain.machine import runtime
from mtrain.machine.distributed import Processes
from mtrain.model.dropout import seed_dropout
from mtrain.model.loss import Loss
from mtrain.model.transformer import Transformer
from mtrain.model.weights import weights_of
from mtrain.training.meter import Meter
from mtrain.training.objective import add_gradients, loss_of, n_passes
from mtrain.training.optim import Ema, make_optimizers
from mtrain.training.state import Progress
from mtrain.training.workers import Workers, share_out

# Target tokens of a micro-batch: what stays in a core's caches, or keeps a GPU busy.
SUITABLE_TOKENS = {"cpu": 1024, "cuda": 32768}
# Rows x longest side of a target token: there is padding, and sources may be longer.
ROOM = {"cpu": 1.6, "cuda": 1.2}


class Learner:
    """The model and all that changes its weights."""

    def __init__(
        self,
        config: Config,
        store: TokenStore,
        vocab_sizes: tuple[int, int],
        processes: Processes,
    ) -> None:
        self.config, self.store, self.processes = config, store, processes
        self.device = processes.device
        self.precision = runtime.choose_precision(config.train.precision, self.device)
        torch.manual_seed(config.train.seed)
        self.model = Transformer(config.model, *vocab_sizes).to(self.device)
        dtype = runtime.dtype_of_products(self.precision)
        self.optimizers = make_optimizers(self.model, config.train.optim, dtype)
        self.ema = self.make_ema()
        n_workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.workers = Workers(self.model, n_workers)

    def make_ema(self) -> Ema | None:
        """The average of the weights, which begins with those of now."""
        decay = self.config.train.optim.ema_decay
        return Ema(weights_of(self.model), decay) if decay else None

    def compile_layers(self) -> None:
        """Compute with compiled layers from now on."""
        for model in self.workers.models:
            runtime.compile_layers([*model.encoder, *model.decoder])

    @property
    def n_parameters(self) -> int:
        """Of the model; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    def update(
        self, plan: BatchPlan, number: int, rate: float, progress: Progress, meter: Meter
    ) -> None:
        """The update of this number in an epoch's plan, with this learning rate."""
        for batch, loss in self.gradients(plan, number, progress):
            meter.add_batch(batch, loss)
        progress.n_target_tokens += plan.n_target_tokens(number)
        clip_norm = self.config.train.optim.clip_norm or float("inf")
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        is_bad = ~torch.isfinite(grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Where this is 1, weights and moments stay as they are: no wait for the device.
            optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if self.ema is not None:
            self.ema.update(weights_of(self.model), progress.step)
        meter.add_step(grad_norm, is_bad, rate)

    def gradients(
        self, plan: BatchPlan, number: int, progress: Progress
    ) -> list[tuple[Batch, Loss]]:
        """The gradients of an update, summed over micro-batches and processes; -> this process's

        Where the memory does not suffice, all is done again in micro-batches of half the size.
        """
        losses = None
        while losses is None:
            parts = at_least(self.processes.n, self.micro_batches(plan, number, progress))
            sides = (plan.src_lengths, plan.tgt_lengths)
            sizes = [len(part) * sum(int(side[part].max()) for side in sides) for part in parts]
            own = share_out(sizes, self.processes.n)[self.processes.rank]
            batches = {i: collate(self.store, parts[i]) for i in sorted(own)}
            work = partial(
                self.forward_backward, batches, plan.n_target_tokens(number), progress.step + 1
            )
            if (losses := runtime.unless_out_of_memory(work)) is None:
                self.shrink([*batches.values()], progress)
        self.processes.add_up(self.model.parameters())
        return [*zip(batches.values(), losses, strict=True)]

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        """What is minimised, in this run's precision."""
        with runtime.autocast(self.device, self.precision):
            return loss_of(model, batch, self.config.train.optim)

    def forward_backward(
        self, batches: dict[int, Batch], n_target_tokens: int, step: int
    ) -> list[Loss]:
        """The losses of micro-batches by their numbers in an update; gradients are added up."""
        self.workers.set_training()

        def work(model: Transformer, i: int) -> Loss:
            batch = batches[i].to(self.device)
            seed_dropout(runtime.seed_of(self.config.train.seed, step, i))
            return add_gradients(self.loss(model, batch), n_target_tokens)

        return self.workers.run(work, [*batches], [b.n_positions for b in batches.values()])

    def micro_batches(self, plan: BatchPlan, number: int, progress: Progress) -> list[Indices]:
        """The sentences of an update in groups, as many for every worker."""
        max_tokens, n_workers = self.micro_batch_tokens(progress), len(self.workers.models)
        return plan.micro_batches(number, max_tokens, n_workers)

    def micro_batch_tokens(self, progress: Progress) -> int:
        """The micro-batch in force: the most rows x longest side of one forward pass."""
        train = self.config.train
        wanted, n_workers = train.micro_batch_tokens, len(self.workers.models)
        share = equal_share(train.batch_tokens, n_workers, self.device.type)
        whole = max(share, self.config.data.max_length + 1) if wanted == "auto" else wanted
        return max(1, (whole >> progress.n_halvings) // n_passes(train.optim))

    def shrink(self, batches: Iterable[Batch], progress: Progress) -> None:
        """Halve the micro-batch, which changes no update; an error where that cannot help."""
        self.workers.drop_gradients()
        batch = max(batches, key=lambda batch: batch.n_positions)
        rows, source, target = *batch.src.shape, batch.tgt_in.shape[1]
        problem = (
            f"a micro-batch of {rows} pairs of {source} source and {target} target pieces does not "
            f"fit into the memory of {self.device}"
        )
        if rows == 1:
            raise OutOfMemoryError(problem, "set data.max_length lower, or choose a smaller model")
        if self.processes.n > 1:  # the others are past this point, or wait for these gradients
            tokens = self.micro_batch_tokens(progress) // 2
            raise OutOfMemoryError(problem, f"set train.micro_batch_tokens to {tokens}")
        progress.n_halvings += 1
        console.warn(f"{problem}; going on with {self.micro_batch_tokens(progress):,} tokens")


def equal_share(batch_tokens: int, n_workers: int, device_type: str) -> int:
    """Rows x longest side of micro-batches of which every worker has as many as the others.

    None holds more than suits the device. The number of processes plays no part, so that all of
    them cut an update alike.
    """
    n_rounds = math.ceil(batch_tokens / (SUITABLE_TOKENS[device_type] * n_workers))
    return math.ceil(ROOM[device_type] * batch_tokens / (n_rounds * n_workers))


def at_least(n: int, parts: Sequence[Indices]) -> list[Indices]:
    """The same sentences in n micro-batches or more, the largest cut first; as far as they go."""
    parts = list(parts)
    while len(parts) < n and max(map(len, parts)) > 1:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        middle = len(parts[largest]) // 2
        parts[largest : largest + 1] = [parts[largest][:middle], parts[largest][middle:]]
    return parts
