"""Steps of small batches as CUDA graphs: fixed shapes, and one launch in the place of hundreds.

A decoder's step is some hundred small kernels, and with few rows a GPU is done with each before
Python has launched the next. A CUDA graph launches all of them at once; but it does again exactly
what was recorded, at the same addresses. So a step is recorded for a `Shape` that is larger than
the search at hand, and what does not exist is masked: sentences beyond the last are computed and
not looked at, nodes that were not written yet cannot be attended to. Nothing that is recorded
depends on what only the host knows, such as the number of the step.

To record a step takes as long as several. It is done once a shape has had enough without, and what
was recorded is used if it gives the same logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrain.cuda_graphs import Recordings, as_cuda_graph
from mtrain.decoding.scorers import TransformerScorer, log_normaliser
from mtrain.model.transformer import Cache, Transformer
from mtrain.runtime import Precision

MOST_SENTENCES = 64
MOST_NODES = 16_384  # of all sentences; `base` keeps 12 KiB a node in bf16
MOST_SHAPES = 16  # recorded, and kept with their buffers
STEPS_WITHOUT = 16  # of a shape, before it is recorded
ROUNDING = 0.05  # of the largest logit: bf16 in another order

Results = tuple[Tensor, Tensor]  # logits (R, V), log_z (R,)
Step = Callable[[], Results]


@dataclass(frozen=True, slots=True)
class Shape:
    """What there is room for."""

    n_sentences: int
    beam_size: int  # K
    src_length: int  # S
    max_length: int  # T, which makes K * T nodes of a sentence: see transformer.Cache

    @classmethod
    def around(
        cls, n_sentences: int, beam_size: int, src_length: int, max_length: int
    ) -> Shape | None:
        """The smallest of few that holds a search; None where that search is too large."""
        shape = cls(
            next((n for n in (1, 4, 16, MOST_SENTENCES) if n >= n_sentences), n_sentences),
            beam_size,
            -(-src_length // 16) * 16,
            -(-max_length // 32) * 32,
        )
        n_nodes = shape.n_sentences * beam_size * shape.max_length
        return shape if shape.n_sentences <= MOST_SENTENCES and n_nodes <= MOST_NODES else None


class RecordedStep:
    """A step of one shape with its buffers, which are the model's `KeysValues`.

    It serves one search at a time, the one that took it last.
    """

    def __init__(
        self, model: Transformer, like: Cache, shape: Shape, record: Callable[[Step], Step]
    ) -> None:
        """`like` has the sizes, types and device of the model's keys and values."""
        n_sentences, beam_size, length = shape.n_sentences, shape.beam_size, shape.max_length
        n_layers, _, n_heads, d_head = like.past.shape[2:]
        self.model, self.beam_size = model, beam_size
        self.n_open = n_sentences  # the first of the buffers, which the search is using

        def zeros(*sizes: int) -> Tensor:  # what is masked must be finite too
            return like.past.new_zeros(sizes)

        self.past = zeros(n_sentences, beam_size * length, n_layers, 2, n_heads, d_head)
        self.mask = zeros(n_sentences, 1, beam_size, beam_size * length)  # 0 or -inf, to be added
        self.src_mask = zeros(n_sentences, 1, 1, shape.src_length)  # likewise
        source = (n_sentences, n_heads, shape.src_length, d_head)
        self.cross = [(zeros(*source), zeros(*source)) for _ in range(n_layers)]
        self.positions = model.positions_between(0, length).clone()  # (T, D)

        # What a step is given: tokens, their position and where their nodes are to be written.
        device = like.past.device
        self.tokens = torch.zeros(n_sentences, beam_size, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.nodes = torch.arange(beam_size, device=device)
        own = zeros(beam_size, beam_size).fill_(float("-inf")).fill_diagonal_(0.0)
        self.own = own.expand(n_sentences, 1, -1, -1)  # each sees its own new node, and no other's
        self.again = record(self._step)

    def _step(self) -> Results:
        self.mask.index_copy_(3, self.nodes, self.own)
        position = self.positions.index_select(0, self.position)  # (1, D)
        logits = self.model.decode_nodes(self.tokens, position, self).flatten(0, 1).float()
        log_z = log_normaliser(logits)
        self.position.add_(1)
        self.nodes.add_(self.beam_size)
        return logits, log_z

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past = self.past[:, :, layer]  # (B, n, 2, H, E)
        past[:, :, 0].index_copy_(1, self.nodes, k.transpose(1, 2).to(past.dtype))
        past[:, :, 1].index_copy_(1, self.nodes, v.transpose(1, 2).to(past.dtype))
        return past[:, :, 0].transpose(1, 2), past[:, :, 1].transpose(1, 2)

    def take_over(self, cache: Cache) -> None:
        """Go on where a search with the other kind of cache has come to."""
        n, _, n_nodes = cache.paths.shape
        length = cache.cross[0][0].shape[2]
        self.n_open = n
        self.past[:n, :n_nodes] = cache.past[:, :n_nodes]
        self.mask[:n] = float("-inf")
        self.mask[:n, 0, :, :n_nodes].masked_fill_(cache.paths, 0.0)
        for own, theirs in zip(self.cross, cache.cross, strict=True):
            own[0][:n, :, :length], own[1][:n, :, :length] = theirs
        self.src_mask[:n] = float("-inf")
        if cache.src_mask is None:
            self.src_mask[:n, :, :, :length] = 0.0
        else:
            self.src_mask[:n, :, :, :length].masked_fill_(cache.src_mask, 0.0)
        self.position.fill_(cache.step)
        torch.arange(n_nodes, n_nodes + self.beam_size, out=self.nodes)

    def step(self, tokens: Tensor) -> Results:
        """tokens (R,) -> logits (R, V), log_z (R,), which stay until the next step"""
        self.tokens[: self.n_open] = tokens.view(-1, self.beam_size)
        logits, log_z = self.again()
        return logits[: len(tokens)], log_z[: len(tokens)]

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from what was row `rows[r]` (R,), of the same sentence."""
        mask = self.mask[: self.n_open]
        mask.copy_(mask.flatten(0, 2).index_select(0, rows).view_as(mask))

    def keep_sentences(self, sentences: Tensor) -> None:
        """Go on with these sentences (B',) only."""
        self.n_open = len(sentences)
        cross = (keys_or_values for pair in self.cross for keys_or_values in pair)
        for buffer in (self.past, self.mask, self.src_mask, *cross):
            buffer[: self.n_open] = buffer.index_select(0, sentences)


@dataclass(slots=True)
class _Search:
    """Where the keys and values of a search are."""

    cache: Cache | RecordedStep
    max_length: int
    step: int = 0


class GraphScorer:
    """A Transformer whose steps are recorded, once for each shape, where that pays."""

    def __init__(
        self,
        model: Transformer,
        precision: Precision = "fp32",
        record: Callable[[Step], Step] = as_cuda_graph,
    ) -> None:
        self.unrecorded = TransformerScorer(model, precision)
        self.record = record
        self.recordings: Recordings[Shape, RecordedStep] = Recordings(
            "decoding", STEPS_WITHOUT, MOST_SHAPES
        )

    def start(
        self, src: Tensor, src_mask: Tensor | None, beam_size: int, max_length: int
    ) -> _Search:
        return _Search(self.unrecorded.start(src, src_mask, beam_size, max_length), max_length)

    def step(self, state: _Search, tokens: Tensor) -> Results:
        state.step += 1
        cache = state.cache
        if isinstance(cache, RecordedStep):
            return cache.step(tokens)
        recorded = None
        if state.step > 1:  # the first is different: all hypotheses share its node
            recorded = self._recorded_for(cache, state.max_length, tokens)
        if recorded is None:
            return self.unrecorded.step(cache, tokens)
        recorded.take_over(cache)
        state.cache = recorded
        return recorded.step(tokens)

    def reorder(self, state: _Search, rows: Tensor) -> None:
        state.cache.reorder(rows)

    def keep(self, state: _Search, sentences: Tensor) -> None:
        state.cache.keep_sentences(sentences)

    def _recorded_for(self, cache: Cache, max_length: int, tokens: Tensor) -> RecordedStep | None:
        """The step for a search that is about to feed these tokens; None: better without."""
        n_sentences, beam_size, _ = cache.paths.shape
        shape = Shape.around(n_sentences, beam_size, cache.cross[0][0].shape[2], max_length)
        if shape is None:
            return None
        return self.recordings.get(shape, lambda: self._checked(shape, cache, tokens))

    def _checked(self, shape: Shape, cache: Cache, tokens: Tensor) -> RecordedStep:
        """A new one, once it has given what the step gives without; else a RuntimeError."""
        recorded = RecordedStep(self.unrecorded.model, cache, shape, self.record)
        recorded.take_over(cache)
        found, _ = recorded.step(tokens)
        expected, _ = self.unrecorded.step(copy.deepcopy(cache), tokens)
        difference, largest = (found - expected).abs().max(), expected.abs().max()
        if not difference <= ROUNDING * largest:
            raise RuntimeError(f"logits of up to {largest:.3g} differ by {difference:.3g} with one")
        return recorded
