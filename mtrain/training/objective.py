"""What training minimises on a micro-batch: the loss of one pass, or of two that should agree."""

from __future__ import annotations

import torch

from mtrain.config.sections import OptimConfig
from mtrain.data.batching import Batch
from mtrain.model.dropout import dropout
from mtrain.model.loss import Loss, consistency_loss, label_smoothed_loss, r_drop, sim_cut
from mtrain.model.transformer import Transformer

USUAL_WEIGHT = {"rdrop": 5.0, "simcut": 3.0}  # of the papers, for translation


def n_passes(optim: OptimConfig) -> int:
    """How often each pair goes through the model in one forward."""
    return 1 if optim.consistency == "none" else 2


def loss_of(model: Transformer, batch: Batch, optim: OptimConfig) -> Loss:
    """The sums over the real target tokens of a micro-batch."""
    if optim.consistency == "none":
        memory = model.encode(batch.src, batch.src_mask)
        x = model.decode(batch.tgt_in, memory, batch.src_mask)  # (B, T, D)
        return label_smoothed_loss(x, model.output.weight, batch.tgt_out, optim.label_smoothing)
    weight = optim.consistency_weight or USUAL_WEIGHT[optim.consistency]
    agreement = r_drop(weight) if optim.consistency == "rdrop" else sim_cut(weight)
    src, tgt_in = torch.cat([batch.src] * 2), torch.cat([batch.tgt_in] * 2)  # (2*B, ...)
    src_mask = None if batch.src_mask is None else torch.cat([batch.src_mask] * 2)
    src_kept = tgt_kept = None
    if optim.consistency == "simcut":
        src_kept, tgt_kept = (words_kept(ids, optim.cut) for ids in (src, tgt_in))
    memory = model.encode(src, src_mask, src_kept)
    x = model.decode(tgt_in, memory, src_mask, tgt_kept)  # (2*B, T, D)
    return consistency_loss(x, model.output.weight, batch.tgt_out, optim.label_smoothing, agreement)


def add_gradients(loss: Loss, n_target_tokens: int) -> Loss:
    """Add those of a micro-batch to the model's, divided by the target tokens of the whole update.

    -> the loss alone, which keeps no graph
    """
    (loss.smoothed / n_target_tokens).backward()  # type: ignore[no-untyped-call]
    return loss._replace(smoothed=loss.smoothed.detach())


def words_kept(ids: torch.Tensor, cut: float) -> torch.Tensor:
    """ids (2*B, T) -> the same shape, True where a word keeps its vector: in the first half all"""
    is_kept = torch.ones(ids.shape, device=ids.device)
    second = is_kept[len(ids) // 2 :]
    second.copy_(dropout(second, cut, training=True))
    return is_kept > 0
