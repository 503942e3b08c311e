"""CTranslate2 as an engine: the model in its format, and its search instead of ours.

Where CTranslate2 expects two matrices instead of one of ours (queries separate from keys and
values), it is split; otherwise only names change. Its beam search differs from ours: it stops as
soon as K hypotheses are finished, even if a live one is better; and the score of an output cut off
at the maximum length includes no EOS. It may output PAD and BOS, unlike ours: forbidding them would
change the probabilities of all other pieces.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mtrain.config import literals
from mtrain.data.tokenizer import BOS, EOS, UNK, Tokenizer
from mtrain.decoding.engine import Pair, Search, Segment
from mtrain.decoding.search import Hypothesis
from mtrain.errors import UsageError
from mtrain.machine import runtime
from mtrain.model.transformer import (
    FeedForward,
    MultiHeadAttention,
    Residual,
    Transformer,
    sinusoids,
)
from mtrain.storage import storage_errors

BATCHES_AHEAD = 3  # waiting for each worker, so that none is ever idle
ERRORS_ONLY = 40  # a level of Python's logging
MIN_POSITIONS = 1024  # CTranslate2's own maximum length of an input


# -- the engine ------------------------------------------------------------------------------


class CTranslate2Engine:
    """A converted model; on a CPU with as many workers as torch has threads, of one thread each."""

    program: literals.Engine = "ctranslate2"

    def __init__(
        self,
        directory: Path,
        tokenizers: tuple[Tokenizer, Tokenizer],
        model: Transformer,
        quantization: str | None = None,
    ) -> None:
        """Load a model saved by `save_ctranslate2`, on the device of the original model.

        `quantization` is the type to compute in; None: as stored.
        """
        self.models: Sequence[Transformer] = [model]
        self.precision = quantization or "default"
        device = next(model.parameters()).device
        self.n_workers = runtime.n_workers(device)
        self.src_pieces, self.tgt_pieces = (t.all_pieces() for t in tokenizers)
        self.tgt_ids = {piece: i for i, piece in enumerate(self.tgt_pieces)}
        try:
            self.translator: Any = import_ctranslate2().Translator(
                str(directory),
                device.type,
                device_index=device.index or 0,
                compute_type=self.precision,
                inter_threads=self.n_workers,
                intra_threads=1,
            )
        except (ValueError, RuntimeError) as error:
            raise UsageError(
                f"CTranslate2 cannot compute in `{self.precision}` on `{device.type}`: "
                f"{str(error).rstrip('.')}",
                "choose another --quantization, such as float32 or int8",
            ) from error
        self.compute_type: str = self.translator.compute_type  # as supported by this machine

    @classmethod
    def of_model(
        cls,
        model: Transformer,
        tokenizers: tuple[Tokenizer, Tokenizer],
        n_positions: int,
        quantization: str | None = None,
    ) -> CTranslate2Engine:
        """The weights of a model in CTranslate2, for at most `n_positions` positions."""
        with tempfile.TemporaryDirectory() as name:
            pieces = tokenizers[0].all_pieces(), tokenizers[1].all_pieces()
            save_ctranslate2(model, pieces, Path(name), n_positions)
            return cls(Path(name), tokenizers, model, quantization)

    def check(self, search: Search) -> None:
        """Raise a UsageError for a search that CTranslate2 does not support."""
        unknown = {
            "exact stop": search.exact_stop,
            f"--method {search.method}": search.method != "beam",
            "length penalty of GNMT": search.length_penalty_form == "gnmt",
        }
        for what, is_wanted in unknown.items():
            if is_wanted:
                raise UsageError(
                    f"CTranslate2 has no {what}", "leave it out, or leave out --engine"
                )

    def search(
        self, batches: Sequence[Sequence[Segment]], search: Search
    ) -> Iterator[tuple[int, list[list[Hypothesis]]]]:
        """Results in order; the largest maximum length of a batch applies to all of it."""
        pending: deque[tuple[int, list[Any]]] = deque()
        for number, batch in enumerate(batches):
            if any(segment.prefix for segment in batch):
                raise UsageError("CTranslate2 does not support prefixes", "leave out --engine")
            results = self.translator.translate_batch(
                [[self.src_pieces[i] for i in segment.ids] for segment in batch],
                beam_size=search.beam_size,
                num_hypotheses=search.n_best,
                length_penalty=search.length_penalty,
                max_decoding_length=max(segment.max_length for segment in batch),
                min_decoding_length=0,
                max_input_length=0,
                return_scores=True,
                return_end_token=True,  # which makes it part of the length, as in our score
                asynchronous=True,
            )
            pending.append((number, results))
            if len(pending) > BATCHES_AHEAD * self.n_workers:
                yield self._found(*pending.popleft(), search)
        while pending:
            yield self._found(*pending.popleft(), search)

    def log_probs(
        self, batches: Sequence[Sequence[Pair]]
    ) -> Iterator[tuple[int, list[list[float]]]]:
        for number, batch in enumerate(batches):
            results = self.translator.score_batch(
                [[self.src_pieces[i] for i in source] for source, _ in batch],
                [[self.tgt_pieces[i] for i in target] for _, target in batch],
                max_input_length=0,
            )
            yield number, [result.log_probs for result in results]

    def _found(
        self, number: int, results: list[Any], search: Search
    ) -> tuple[int, list[list[Hypothesis]]]:
        """Wait for a batch."""
        batch = []
        for found in (waiting.result() for waiting in results):
            hypotheses = []
            for pieces, score in zip(found.hypotheses, found.scores, strict=True):
                ids = [self.tgt_ids[piece] for piece in pieces]
                log_prob = score * len(ids) ** search.length_penalty
                hypotheses.append(Hypothesis(ids[:-1] if ids[-1] == EOS else ids, score, log_prob))
            batch.append(hypotheses)
        return number, batch


# -- the model in its format -----------------------------------------------------------------


def import_ctranslate2() -> ModuleType:
    """The library, an optional extra; a UsageError says how to install it."""
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

    `pieces` are the vocabularies of source and target, in the order of their ids. `n_positions` is
    the maximum length of either side. `quantization` is one of `float32` (None), `float16`,
    `bfloat16`, `int16`, `int8`, `int8_float32`, ...
    """
    specification = _specify(model, pieces, max(n_positions, MIN_POSITIONS))
    specification.validate()
    specification.optimize(quantization=quantization)
    with storage_errors(directory):
        specification.save(str(directory))


def _specify(
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
    specification.register_source_vocabulary(list(pieces[0]))
    specification.register_target_vocabulary(list(pieces[1]))
    special = specification.config
    special.unk_token, special.bos_token, special.eos_token = (
        pieces[1][i] for i in (UNK, BOS, EOS)
    )
    special.decoder_start_token = special.bos_token
    special.add_source_eos = True
    norm = next(m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm))
    special.layer_norm_epsilon = norm.eps
    encoder, decoder = specification.encoder, specification.decoder
    positions = sinusoids(n_positions, config.d_model).numpy()
    encoder.position_encodings.encodings = positions
    decoder.position_encodings.encodings = positions
    encoder.embeddings[0].weight = _array(model.src_embedding.weight)
    decoder.embeddings.weight = _array(model.tgt_embedding.weight)
    decoder.projection.weight = _array(model.output.weight)
    ours: Any
    for ours, theirs in zip(model.encoder, encoder.layer, strict=True):
        _set_attention(theirs.self_attention, ours.attention, ours.around_attention)
        _set_feed_forward(theirs.ffn, ours.feed_forward, ours.around_feed_forward)
    for ours, theirs in zip(model.decoder, decoder.layer, strict=True):
        _set_attention(theirs.self_attention, ours.attention, ours.around_attention)
        _set_attention(theirs.attention, ours.cross_attention, ours.around_cross_attention)
        _set_feed_forward(theirs.ffn, ours.feed_forward, ours.around_feed_forward)
    if config.norm == "pre":
        _set_norm(encoder.layer_norm, model.encoder_norm)
        _set_norm(decoder.layer_norm, model.decoder_norm)
    return specification


def _set_attention(theirs: Any, ours: MultiHeadAttention, around: Residual) -> None:
    """Two matrices for self-attention, as in ours; a third for cross-attention: the queries."""
    weight, bias = ours.in_projection.weight, ours.in_projection.bias
    d_model = weight.shape[1]
    sizes = [3 * d_model] if len(theirs.linear) == 2 else [d_model, 2 * d_model]
    parts = zip(torch.split(weight, sizes), torch.split(bias, sizes), strict=True)
    _set_norm(theirs.layer_norm, around.norm)
    for linear, part in zip(theirs.linear, parts, strict=False):
        _set_linear(linear, *part)
    _set_linear(theirs.linear[-1], ours.out_projection.weight, ours.out_projection.bias)


def _set_feed_forward(theirs: Any, ours: FeedForward, around: Residual) -> None:
    _set_norm(theirs.layer_norm, around.norm)
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
