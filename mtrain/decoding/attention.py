"""The attention weights of a model for a sentence and its translation, as arrays with pieces.

They are computed by teacher forcing: given the translation, every position sees the same as when it
was written. Reading and writing the arrays as JSON needs no torch.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtrain.data.cleaning import normalize
from mtrain.data.tokenizer import BOS, EOS
from mtrain.errors import UsageError

if TYPE_CHECKING:
    from mtrain.decoding.engine import Search
    from mtrain.decoding.translate import Translator
    from mtrain.model.attention_weights import AttentionWeights
    from mtrain.model.transformer import Transformer

Weights = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class AttentionMaps:
    """One sentence: for each layer and head, the weight of each column in each row.

    Rows of `decoder` and `cross` are the positions that write `written`. A position reads the piece
    before the one it writes, so the columns of `decoder` are `read`.
    """

    source: list[str]  # S pieces, the last is EOS
    written: list[str]  # T pieces, the last is EOS
    encoder: Weights  # (L, H, S, S)
    decoder: Weights  # (L, H, T, T), zero above the diagonal
    cross: Weights  # (L, H, T, S)
    bos: str = "<s>"

    @property
    def read(self) -> list[str]:
        """The T pieces that the decoder reads: BOS, and all written pieces except the last."""
        return [self.bos, *self.written[:-1]]

    def to_json(self) -> dict[str, Any]:
        """Pieces, and weights as base64 of bytes: 0 to 255 stand for 0 to 1."""
        arrays = {"encoder": self.encoder, "decoder": self.decoder, "cross": self.cross}
        return {"source": self.source, "written": self.written, "read": self.read} | {
            name: {"shape": list(array.shape), "bytes": _pack(array)}
            for name, array in arrays.items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> AttentionMaps:
        """The inverse of `to_json`, to the nearest 1/255."""
        encoder, decoder, cross = (_unpack(value[name]) for name in ("encoder", "decoder", "cross"))
        return cls(value["source"], value["written"], encoder, decoder, cross, value["read"][0])


def _pack(array: Weights) -> str:
    return base64.b64encode(np.rint(array * 255).astype(np.uint8).tobytes()).decode()


def _unpack(value: dict[str, Any]) -> Weights:
    flat = np.frombuffer(base64.b64decode(value["bytes"]), dtype=np.uint8)
    return flat.reshape(value["shape"]).astype(np.float32) / np.float32(255)


def maps_of_lines(
    translator: Translator, lines: Sequence[str], search: Search
) -> list[AttentionMaps]:
    """The maps of each non-blank line and its best translation; a UsageError if all are blank."""
    lines = [line for line in lines if line.strip()]
    maps = []
    for translation in translator.translate_detailed(lines, search):
        (src_ids,) = translator.src_tokenizer.encode([normalize(translation.source)])
        tgt_ids = translator.tgt_tokenizer.ids(translation.hypotheses[0].tokens)
        maps.append(maps_of_ids(translator, src_ids, tgt_ids))
    if not maps:
        raise UsageError("the input is blank: there is nothing to draw", "give a sentence")
    return maps


def maps_of_ids(
    translator: Translator, src_ids: Sequence[int], tgt_ids: Sequence[int]
) -> AttentionMaps:
    """The maps of a pair, as ids without special symbols; a UsageError if one side is too long."""
    limit, longest = translator.config.data.max_length, max(len(src_ids), len(tgt_ids))
    if longest > limit:
        raise UsageError(
            f"a sentence of {longest:,} pieces is too long to show: the model was trained with "
            f"at most {limit:,}",
            "give a shorter sentence",
        )
    weights = forced_attention(translator.model, [src_ids], [tgt_ids])
    return AttentionMaps(
        translator.src_tokenizer.pieces([*src_ids, EOS]),
        translator.tgt_tokenizer.pieces([*tgt_ids, EOS]),
        weights.encoder[0].numpy(),
        weights.decoder[0].numpy(),
        weights.cross[0].numpy(),
        translator.tgt_tokenizer.pieces([BOS])[0],
    )


def forced_attention(
    model: Transformer, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> AttentionWeights:
    """The weights, on the CPU, of a batch of given pairs (ids without special symbols).

    Rows and columns after the EOS of a sentence are undefined.
    """
    import torch

    from mtrain.data.batching import batch_of
    from mtrain.model.attention_weights import AttentionWeights, weights_of_forward

    batch = batch_of(sources, targets).to(next(model.parameters()).device)
    with torch.inference_mode():
        weights = weights_of_forward(model, batch.src, batch.tgt_in, batch.src_mask)
    return AttentionWeights(
        *(part.float().cpu() for part in (weights.encoder, weights.decoder, weights.cross))
    )
