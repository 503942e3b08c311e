"""The model in CTranslate2's own format, by its own specification.

Where ours keeps one matrix and CTranslate2 wants two (queries apart from keys and values), it is
cut; nothing else changes but names. A directory holds CTranslate2's files (config.json, model.bin,
the vocabularies); what stands in it beside them is up to who writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from mtrain.data.tokenizer import BOS, EOS, UNK
from mtrain.errors import UsageError
from mtrain.model.transformer import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    Transformer,
    sinusoids,
)
from mtrain.storage import storage_errors

ERRORS_ONLY = 40  # as Python's logging counts
MIN_POSITIONS = 1024  # as many as CTranslate2 lets through unless told otherwise


def import_ctranslate2() -> ModuleType:
    """The library, which is an extra; a UsageError that names it where it is absent."""
    try:
        import ctranslate2
    except ImportError as error:
        raise UsageError(
            f"CTranslate2 cannot be used: {error}", "install it: pip install 'mtrain[ctranslate2]'"
        ) from error
    library: ModuleType = ctranslate2
    library.set_log_level(ERRORS_ONLY)  # it would write to standard error by itself
    return library


def save_ctranslate2(
    model: Transformer,
    pieces: tuple[Sequence[str], Sequence[str]],
    directory: Path,
    n_positions: int = MIN_POSITIONS,
    quantization: str | None = None,
) -> None:
    """Write the model into an existing directory.

    `pieces` are all of the source's and of the target's vocabulary, in the order of their ids.
    CTranslate2 cannot count further than `n_positions`, on either side. `quantization` is one of
    `float32` (None), `float16`, `bfloat16`, `int16`, `int8`, `int8_float32`, ...
    """
    specification = specify(model, pieces, max(n_positions, MIN_POSITIONS))
    specification.validate()
    specification.optimize(quantization=quantization)
    with storage_errors(directory):
        specification.save(str(directory))


def specify(
    model: Transformer, pieces: tuple[Sequence[str], Sequence[str]], n_positions: int
) -> Any:
    """The model as a ctranslate2.specs.TransformerSpec."""
    specs = import_ctranslate2().specs
    config = model.config
    activation = {"relu": "RELU", "gelu": "GELU", "swiglu": "SWISH"}[config.activation]
    specification = specs.TransformerSpec.from_config(
        (len(model.encoder), len(model.decoder)),
        config.n_heads,
        pre_norm=config.norm == "pre",
        activation=getattr(specs.Activation, activation),
        ffn_glu=config.activation == "swiglu",
        rms_norm=config.norm_type == "rmsnorm",
    )
    for tokens, register in zip(
        pieces,
        (specification.register_source_vocabulary, specification.register_target_vocabulary),
        strict=True,
    ):
        register(list(tokens))
    _configure(specification.config, model, pieces[1])
    encoder, decoder = specification.encoder, specification.decoder
    positions = sinusoids(n_positions, config.d_model).numpy()
    encoder.position_encodings.encodings = positions
    decoder.position_encodings.encodings = positions
    encoder.embeddings[0].weight = _array(model.src_embedding.weight)
    decoder.embeddings.weight = _array(model.tgt_embedding.weight)
    decoder.projection.weight = _array(model.output.weight)
    for ours, theirs in zip(model.encoder, encoder.layer, strict=True):
        assert isinstance(ours, EncoderLayer)
        _set_self_attention(theirs.self_attention, ours.attention, ours.around_attention.norm)
        _set_feed_forward(theirs.ffn, ours.feed_forward, ours.around_feed_forward.norm)
    for ours, theirs in zip(model.decoder, decoder.layer, strict=True):
        assert isinstance(ours, DecoderLayer)
        _set_self_attention(theirs.self_attention, ours.attention, ours.around_attention.norm)
        _set_cross_attention(
            theirs.attention, ours.cross_attention, ours.around_cross_attention.norm
        )
        _set_feed_forward(theirs.ffn, ours.feed_forward, ours.around_feed_forward.norm)
    if config.norm == "pre":
        _set_norm(encoder.layer_norm, model.encoder_norm)
        _set_norm(decoder.layer_norm, model.decoder_norm)
    return specification


def _configure(config: Any, model: Transformer, tgt_pieces: Sequence[str]) -> None:
    """What a user of CTranslate2 need not know of: special symbols, and who adds them."""
    config.unk_token, config.bos_token, config.eos_token = (tgt_pieces[i] for i in (UNK, BOS, EOS))
    config.decoder_start_token = tgt_pieces[BOS]
    config.add_source_eos = True
    norm = next(m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm))
    config.layer_norm_epsilon = norm.eps


def _set_self_attention(theirs: Any, ours: MultiHeadAttention, norm: nn.Module) -> None:
    _set_norm(theirs.layer_norm, norm)
    _set_linear(theirs.linear[0], ours.in_projection.weight, ours.in_projection.bias)
    _set_linear(theirs.linear[1], ours.out_projection.weight, ours.out_projection.bias)


def _set_cross_attention(theirs: Any, ours: MultiHeadAttention, norm: nn.Module) -> None:
    """Queries, keys with values, output: three matrices of ours' two."""
    weight, bias = ours.in_projection.weight, ours.in_projection.bias
    d_model = weight.shape[1]
    _set_norm(theirs.layer_norm, norm)
    _set_linear(theirs.linear[0], weight[:d_model], bias[:d_model])
    _set_linear(theirs.linear[1], weight[d_model:], bias[d_model:])
    _set_linear(theirs.linear[2], ours.out_projection.weight, ours.out_projection.bias)


def _set_feed_forward(theirs: Any, ours: FeedForward, norm: nn.Module) -> None:
    _set_norm(theirs.layer_norm, norm)
    _set_linear(theirs.linear_0, ours.inner.weight, ours.inner.bias)
    _set_linear(theirs.linear_1, ours.outer.weight, ours.outer.bias)
    if ours.factor is not None:
        _set_linear(theirs.linear_0_noact, ours.factor.weight, ours.factor.bias)


def _set_norm(theirs: Any, ours: nn.Module) -> None:
    theirs.gamma = _array(ours.weight)
    if isinstance(ours, nn.LayerNorm):
        theirs.beta = _array(ours.bias)


def _set_linear(theirs: Any, weight: Tensor, bias: Tensor) -> None:
    theirs.weight, theirs.bias = _array(weight), _array(bias)


def _array(tensor: Tensor | nn.Module) -> Any:
    """A copy: CTranslate2 quantises in place."""
    assert isinstance(tensor, Tensor)
    return tensor.detach().float().cpu().numpy().copy()
