"""The attention weights of every layer and head, computed in a second forward pass.

The fused kernel of `transformer` never writes them out. Axes as there, and L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtrain.model.transformer import (
    DecoderLayer,
    EncoderLayer,
    MultiHeadAttention,
    Transformer,
    attention_weights,
)


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """The weights of every head of every layer; rows sum to 1."""

    encoder: Tensor  # (B, L, H, S, S)
    decoder: Tensor  # (B, L, H, T, T): zero above the diagonal, where the mask is
    cross: Tensor  # (B, L, H, T, S)


def weights_of_forward(
    model: Transformer, src: Tensor, tgt_in: Tensor, src_mask: Tensor | None
) -> AttentionWeights:
    """The weights in `model(src, tgt_in, src_mask)`, in evaluation mode."""
    encoder, decoder, cross = [], [], []
    x = model.embed(model.src_embedding, src, first_position=0)
    for layer in model.encoder:
        assert isinstance(layer, EncoderLayer)
        normed = layer.around_attention.enter(x)
        encoder.append(_weights(layer.attention, normed, normed, src_mask, is_causal=False))
        x = layer(x, src_mask)
    memory = model.encoder_norm(x)
    x = model.embed(model.tgt_embedding, tgt_in, first_position=0)
    for layer in model.decoder:
        assert isinstance(layer, DecoderLayer)
        normed = layer.around_attention.enter(x)
        decoder.append(_weights(layer.attention, normed, normed, None, is_causal=True))
        normed = layer.around_cross_attention.enter(layer.attend_to_itself(x))
        cross.append(_weights(layer.cross_attention, normed, memory, src_mask, is_causal=False))
        x = layer(x, memory, src_mask)
    return AttentionWeights(*(torch.stack(part, 1) for part in (encoder, decoder, cross)))


def _weights(
    attention: MultiHeadAttention, x: Tensor, memory: Tensor, mask: Tensor | None, is_causal: bool
) -> Tensor:
    """x (B, T, D), memory (B, S, D) -> (B, H, T, S)"""
    k, _ = attention.keys_values(memory)  # (B, H, S, E)
    return attention_weights(attention.queries(x), k, mask, is_causal)
