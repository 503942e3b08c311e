"""The Transformer of "Attention Is All You Need" (Vaswani et al., 2017), in the order of the paper.

Read it from the bottom (`Transformer`) for the whole, or from the top for the parts. Axes:
B batch, S source length, T target length, D model width, H heads, E = D/H head width, F inner
width of the feed-forward, V vocabulary, K beam, R = B*K rows of a beam search.
Masks are boolean; True means may attend.

To add an architecture, write a module with a class like `Transformer` and its public methods. It is
created in `model.weights`, `training.learner` and `training.validate`, and searched through
`decoding.scorers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrain.config.sections import ModelConfig
from mtrain.model.bf16_linear import Linear
from mtrain.model.cache import Cache
from mtrain.model.dropout import dropout

# -- attention (section 3.2) -----------------------------------------------------------------


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, dropout_rate: float
) -> Tensor:
    """softmax(q k^T / sqrt(E)) v (equation 1), with the fastest kernel of the device.

    q (B, H, T, E), k and v (B, H, S, E), mask broadcastable to (B, H, T, S) -> (B, H, T, E)
    """
    if q.device.type == "cpu":
        # Autocast would choose bf16, whose backward pass is 8 times slower.
        with torch.autocast("cpu", enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            if not dropout_rate:
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
            # The kernel would use the random generator that all threads share.
            weights = attention_weights(q, k, mask, is_causal)  # (B, H, T, S)
            return dropout(weights, dropout_rate, training=True) @ v
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_rate, is_causal=is_causal
    )


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(E)), step by step: q (B, H, T, E), k (B, H, S, E) -> (B, H, T, S)"""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each over E = D/H dimensions (section 3.2.2)."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.in_projection = Linear(d_model, 3 * d_model)  # queries, keys, values in one matrix
        self.out_projection = Linear(d_model, d_model)

    def forward(
        self, x: Tensor, memory: Tensor | None, mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Attend from x to `memory`, or to x itself if that is None.

        x (B, T, D), memory (B, S, D), mask (B, 1, 1, S) -> (B, T, D)
        """
        if memory is None:
            q, k, v = self.split(self.in_projection(x))  # (B, H, T, E) each
        else:
            q = self.queries(x)  # (B, H, T, E)
            k, v = self.keys_values(memory)  # (B, H, S, E) each
        heads = scaled_dot_product_attention(
            q, k, v, mask, is_causal, self.dropout if self.training else 0.0
        )
        return self.merge(heads)

    def queries(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, H, T, E)"""
        return self.split(self.in_projection.outputs(x, slice(x.shape[-1])))[0]

    def keys_values(self, memory: Tensor) -> list[Tensor]:
        """memory (B, S, D) -> keys and values (B, H, S, E)"""
        return self.split(self.in_projection.outputs(memory, slice(memory.shape[-1], None)))

    def split(self, x: Tensor) -> list[Tensor]:
        """x (B, T, n*D) -> n tensors (B, H, T, E)"""
        batch, length, width = x.shape
        d_head = self.out_projection.in_features // self.n_heads
        x = x.view(batch, length, width // (self.n_heads * d_head), self.n_heads, d_head)
        return [part.transpose(1, 2) for part in x.unbind(2)]

    def merge(self, heads: Tensor) -> Tensor:
        """heads (B, H, T, E) -> (B, T, D), through the output projection"""
        x = heads.transpose(1, 2).flatten(2)  # (B, T, D)
        projected: Tensor = self.out_projection(x)
        return projected


# -- feed-forward, residual connections (sections 3.1, 3.3, 5.4) --------------------


class FeedForward(nn.Module):
    """max(0, x W1 + b1) W2 + b2 at every position (equation 2), or with a later activation.

    SwiGLU (Shazeer, 2020) is swish(x W1 + b1) * (x W3 + b3) before W2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inner = Linear(config.d_model, config.d_ff)
        self.outer = Linear(config.d_ff, config.d_model)
        is_gated = config.activation == "swiglu"
        self.factor = Linear(config.d_model, config.d_ff) if is_gated else None
        self.activation = ACTIVATIONS[config.activation]
        self.activation_dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        hidden = self.activation(self.inner(x))  # (B, T, F)
        if self.factor is not None:
            hidden = hidden * self.factor(x)
        out: Tensor = self.outer(dropout(hidden, self.activation_dropout, self.training))
        return out


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swiglu": F.silu,
}


def make_norm(config: ModelConfig) -> nn.Module:
    """Per position: LayerNorm (Ba et al., 2016) or RMSNorm (Zhang and Sennrich, 2019)."""
    if config.norm_type == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=1e-6)
    return nn.LayerNorm(config.d_model)


class Residual(nn.Module):
    """x + sublayer(x), normalised before the sub-layer, or after the sum as in the paper.

    Two calls around the sub-layer, so that the layers below read like the figure:
    `x = residual.add(x, sublayer(residual.enter(x)))`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.is_pre_norm = config.norm == "pre"
        self.dropout = config.dropout

    def enter(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.is_pre_norm else x

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + dropout(y, self.dropout, self.training)
        return x if self.is_pre_norm else self.norm(x)


# -- encoder and decoder (section 3.1, figure 1) ---------------------------------------------


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward (figure 1, left)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(
            config.d_model, config.n_heads, config.attention_dropout
        )
        self.feed_forward = FeedForward(config)
        self.around_attention = Residual(config)
        self.around_feed_forward = Residual(config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, S, D), mask (B, 1, 1, S) -> (B, S, D)"""
        residual = self.around_attention
        x = residual.add(x, self.attention(residual.enter(x), None, mask, is_causal=False))
        residual = self.around_feed_forward
        return residual.add(x, self.feed_forward(residual.enter(x)))


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the encoder, feed-forward (figure 1, right)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(
            config.d_model, config.n_heads, config.attention_dropout
        )
        self.cross_attention = MultiHeadAttention(
            config.d_model, config.n_heads, config.attention_dropout
        )
        self.feed_forward = FeedForward(config)
        self.around_attention = Residual(config)
        self.around_cross_attention = Residual(config)
        self.around_feed_forward = Residual(config)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, T, D), memory (B, S, D), mask (B, 1, 1, S) -> (B, T, D)"""
        x = self.attend_to_itself(x)
        residual = self.around_cross_attention
        x = residual.add(x, self.cross_attention(residual.enter(x), memory, mask, is_causal=False))
        residual = self.around_feed_forward
        return residual.add(x, self.feed_forward(residual.enter(x)))

    def attend_to_itself(self, x: Tensor) -> Tensor:
        """The masked self-attention: x (B, T, D) -> (B, T, D)"""
        residual = self.around_attention
        return residual.add(x, self.attention(residual.enter(x), None, None, is_causal=True))

    def step(self, x: Tensor, cache: Cache, layer: int) -> Tensor:
        """`forward` for one new position of K hypotheses per sentence: (B, K, D) -> (B, K, D)"""
        residual = self.around_attention
        q, k, v = self.attention.split(self.attention.in_projection(residual.enter(x)))
        k, v = cache.append(layer, k, v)  # (B, H, n, E)
        heads = scaled_dot_product_attention(q, k, v, cache.mask, False, 0.0)
        x = residual.add(x, self.attention.merge(heads))

        residual = self.around_cross_attention
        q = self.cross_attention.queries(residual.enter(x))  # (B, H, K, E)
        k, v = cache.cross[layer]  # (B, H, S, E)
        heads = scaled_dot_product_attention(q, k, v, cache.src_mask, False, 0.0)
        x = residual.add(x, self.cross_attention.merge(heads))

        residual = self.around_feed_forward
        return residual.add(x, self.feed_forward(residual.enter(x)))


# -- embeddings (sections 3.4, 3.5) and the whole --------------------------------------------


def sinusoids(n_positions: int, d_model: int) -> Tensor:
    """sin and cos of every position at wavelengths from 2 pi to 20,000 pi -> (n_positions, D)"""
    position = torch.arange(n_positions, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * -(math.log(1e4) / d_model))
    table = torch.zeros(n_positions, d_model, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table.float()


class Transformer(nn.Module):
    """Encoder and decoder, from token ids to logits (figure 1)."""

    positions: Tensor  # (n, D), extended for longer sentences

    def __init__(self, config: ModelConfig, src_vocab_size: int, tgt_vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.src_embedding = nn.Embedding(src_vocab_size, config.d_model)
        if config.tied == "all":
            assert src_vocab_size == tgt_vocab_size
            self.tgt_embedding = self.src_embedding
        else:
            self.tgt_embedding = nn.Embedding(tgt_vocab_size, config.d_model)
        self.output = Linear(config.d_model, tgt_vocab_size, bias=False)
        if config.tied != "none":
            self.output.weight = self.tgt_embedding.weight
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        # Pre-norm never normalises the residual stream itself, so each stack ends in a norm.
        is_pre_norm = config.norm == "pre"
        self.encoder_norm = make_norm(config) if is_pre_norm else nn.Identity()
        self.decoder_norm = make_norm(config) if is_pre_norm else nn.Identity()
        self.register_buffer("positions", sinusoids(512, config.d_model), persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Xavier for matrices, N(0, 1/D) for embeddings (they are multiplied by sqrt(D))."""
        for module in self.modules():
            matrices: list[Tensor] = []
            if isinstance(module, MultiHeadAttention):
                matrices = [*module.in_projection.weight.chunk(3), module.out_projection.weight]
            elif isinstance(module, FeedForward):
                parts = (module.inner, module.outer, module.factor)
                matrices = [part.weight for part in parts if part is not None]
            elif isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            for matrix in matrices:
                nn.init.xavier_uniform_(matrix)
        tables = (self.src_embedding.weight, self.tgt_embedding.weight, self.output.weight)
        for weight in dict.fromkeys(tables):  # tied ones once, in a fixed order for the random seed
            nn.init.normal_(weight, std=self.config.d_model**-0.5)

    def forward(self, src: Tensor, tgt_in: Tensor, src_mask: Tensor | None) -> Tensor:
        """src (B, S), tgt_in (B, T), src_mask (B, 1, 1, S) or None -> logits (B, T, V)"""
        return self.project(self.decode(tgt_in, self.encode(src, src_mask), src_mask))

    def encode(self, src: Tensor, src_mask: Tensor | None, is_kept: Tensor | None = None) -> Tensor:
        """src (B, S), src_mask (B, 1, 1, S), None if no source is padded -> memory (B, S, D)

        is_kept (B, S) is False for words whose vector is set to zero (SimCut).
        """
        x = self.embed(self.src_embedding, src, 0, is_kept)
        for layer in self.encoder:
            x = layer(x, src_mask)
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def decode(
        self,
        tgt_in: Tensor,
        memory: Tensor,
        src_mask: Tensor | None,
        is_kept: Tensor | None = None,
    ) -> Tensor:
        """tgt_in (B, T), memory (B, S, D), src_mask (B, 1, 1, S), is_kept (B, T) -> (B, T, D)

        No position sees a later one, so padding at the end of a target needs no mask.
        """
        x = self.embed(self.tgt_embedding, tgt_in, 0, is_kept)
        for layer in self.decoder:
            x = layer(x, memory, src_mask)
        return self.decoder_norm(x)  # type: ignore[no-any-return]

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) -> logits (..., V)"""
        return self.output(x)  # type: ignore[no-any-return]

    def embed(
        self,
        embedding: nn.Embedding,
        ids: Tensor,
        first_position: int,
        is_kept: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) at first_position and after, is_kept (B, T) -> (B, T, D)"""
        x = embedding(ids) * math.sqrt(self.config.d_model)
        if is_kept is not None:
            x = x * is_kept[..., None]
        x = x + self.positions_between(first_position, first_position + ids.shape[1])
        return dropout(x, self.config.dropout, self.training)

    def positions_between(self, first: int, end: int) -> Tensor:
        """The encodings of these positions -> (end - first, D)"""
        if end > self.positions.shape[0]:
            self.positions = sinusoids(2 * end, self.config.d_model).to(self.positions.device)
        return self.positions[first:end]

    def start_cache(self, memory: Tensor, src_mask: Tensor | None, beam_size: int) -> Cache:
        """memory (B, S, D) -> an empty cache for R = B*K rows"""
        cross = []
        for layer in self.decoder:
            assert isinstance(layer, DecoderLayer)
            k, v = layer.cross_attention.keys_values(memory)
            if memory.device.type == "cpu":  # where attention is computed in float32
                k, v = k.float(), v.float()
            cross.append((k.contiguous(), v.contiguous()))
        return Cache(cross, src_mask, beam_size)

    def decode_step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """The next position of every row: tokens (R,) -> logits (R, V); the cache grows by one."""
        of_sentences = tokens.view(-1, cache.beam_size)  # (B, K)
        is_shared = cache.step == 0 and bool((of_sentences == of_sentences[:, :1]).all())
        if is_shared:  # BOS: computed once for all hypotheses
            of_sentences = of_sentences[:, :1]
        cache.open_step(is_shared)
        position = self.positions_between(cache.step, cache.step + 1)  # (1, D)
        x = self.tgt_embedding(of_sentences) * math.sqrt(self.config.d_model) + position
        for i, layer in enumerate(self.decoder):
            assert isinstance(layer, DecoderLayer)
            x = layer.step(x, cache, i)
        cache.step += 1
        logits = self.project(self.decoder_norm(x))  # (B, K, V) or (B, 1, V)
        return logits.expand(-1, cache.beam_size, -1).contiguous().flatten(0, 1)
