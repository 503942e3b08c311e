"""The settings of a search, the protocol of engines, and our own engine.

A `Search` holds the settings. An `Engine` takes batches of segments, as ids, and returns their
hypotheses: `TorchEngine` by the searches of this package, `ctranslate2.CTranslate2Engine` by those
of CTranslate2. Text is handled in `translate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mtrain.config import literals
from mtrain.config.sections import DecodeConfig
from mtrain.data.batching import pad, source_mask
from mtrain.data.tokenizer import EOS, PAD
from mtrain.decoding.sampling import Diverse, Sampler
from mtrain.decoding.scorers import EnsembleScorer, Scorer, TransformerScorer, token_log_probs
from mtrain.decoding.search import Hypothesis, LengthPenalty, Sources, beam_search, generate
from mtrain.errors import UsageError
from mtrain.machine import runtime, threads
from mtrain.model.transformer import Transformer

# The kernels of a smaller model, on one sentence, are too short for several threads.
SMALL_MODEL = 20_000_000  # parameters

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Search:
    """How to search for translations: the `decode` settings of a run, with any changes."""

    beam_size: int
    length_penalty: float
    length_penalty_form: literals.PenaltyForm = "power"
    n_best: int = 1
    exact_stop: bool = False
    method: literals.Method = "beam"
    diversity: float = 0.5  # diverse: penalty for a token that another hypothesis has just chosen
    samples: int = 32  # mbr: the number of samples
    temperature: float = 1.0  # sample and mbr, like the next three: see sampling.Sampler
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1

    @classmethod
    def of(cls, decode: DecodeConfig, **changes: Any) -> Search:
        """The settings of a run with some changes; None keeps the run's own value."""
        own = decode.model_dump(include={"beam_size", "length_penalty", "length_penalty_form"})
        return cls(**own | {name: value for name, value in changes.items() if value is not None})

    def __post_init__(self) -> None:
        if not 1 <= self.n_best <= self.n_hypotheses:
            what, how = (
                (f"{self.samples} samples hold", "draw more samples (--samples)")
                if self.method == "mbr"
                else (f"a beam of {self.beam_size} finds", "use a wider beam (--beam-size)")
            )
            raise UsageError(
                f"{self.n_best} hypotheses per line were requested, but {what} 1 to "
                f"{self.n_hypotheses}",
                f"{how}, or request fewer (--n-best)",
            )

    @property
    def n_hypotheses(self) -> int:
        """The number of hypotheses of a sentence that are searched at the same time."""
        return {"sample": self.n_best, "mbr": self.samples}.get(self.method, self.beam_size)

    @property
    def penalty(self) -> LengthPenalty:
        return LengthPenalty(self.length_penalty, self.length_penalty_form)


@dataclass(frozen=True, slots=True)
class Segment:
    """The unit of search: a line, or a part of a line that is too long."""

    line: int  # its number among the lines of the call
    ids: list[int]  # without EOS
    max_length: int  # most tokens of the output, EOS included
    prefix: list[int]  # start of the output
    key: int  # random key of its samples


Pair = tuple[list[int], list[int]]  # the ids, without EOS, of a source and a given translation


class Engine(Protocol):
    """A search program over the weights of `models`."""

    models: Sequence[Transformer]  # their probabilities are averaged
    program: literals.Engine
    precision: str

    def check(self, search: Search) -> None:
        """Raise a UsageError if this engine does not support the search."""

    def search(
        self, batches: Sequence[Sequence[Segment]], search: Search
    ) -> Iterator[tuple[int, list[list[Hypothesis]]]]:
        """The number of a batch and the hypotheses of its segments, best first, in any order."""

    def log_probs(
        self, batches: Sequence[Sequence[Pair]]
    ) -> Iterator[tuple[int, list[list[float]]]]:
        """The number of a batch and, for each of its pairs, log P of all target tokens and EOS."""


class TorchEngine:
    """The searches of this package, over one model or an ensemble."""

    program: literals.Engine = "mtrain"

    def __init__(
        self,
        models: Sequence[Transformer],
        precision: literals.PrecisionOrAuto = "auto",
        scorer: Scorer | None = None,
    ) -> None:
        """Read the weights of models in evaluation mode; make a new one when they change.

        The search sees `scorer` instead of the models.
        """
        self.models = models
        self.device = next(models[0].parameters()).device
        in_force = runtime.choose_precision(precision, self.device)
        self.precision: str = in_force
        if scorer is None:
            members = [TransformerScorer(model, in_force) for model in models]
            scorer = members[0] if len(members) == 1 else EnsembleScorer(members)
        self.scorer = scorer
        n_parameters = sum(parameter.numel() for parameter in models[0].parameters())
        self.threads_of_one = 1 if n_parameters < SMALL_MODEL else None

    def check(self, search: Search) -> None:
        """This engine supports every search."""

    def search(
        self, batches: Sequence[Sequence[Segment]], search: Search
    ) -> Iterator[tuple[int, list[list[Hypothesis]]]]:
        return self._each(lambda batch: self._search(batch, search), batches)

    def log_probs(
        self, batches: Sequence[Sequence[Pair]]
    ) -> Iterator[tuple[int, list[list[float]]]]:
        return self._each(self._log_probs, batches)

    def _search(self, segments: Sequence[Segment], search: Search) -> list[list[Hypothesis]]:
        scorer, sources, penalty = self.scorer, self._collate(segments), search.penalty
        if search.method == "beam":
            return beam_search(
                scorer, sources, search.beam_size, penalty, search.n_best, search.exact_stop
            )
        if search.method == "diverse":
            diverse = Diverse(search.diversity)
            found = generate(scorer, sources, search.n_hypotheses, diverse, penalty)
            return [_distinct(hypotheses)[: search.n_best] for hypotheses in found]
        keys = [segment.key for segment in segments]
        sampler = Sampler(keys, search.temperature, search.top_k, search.top_p)
        return generate(scorer, sources, search.n_hypotheses, sampler, penalty)

    def _collate(self, segments: Sequence[Segment]) -> Sources:
        src, mask = self._pad([segment.ids for segment in segments])
        prefixes, _ = pad([segment.prefix for segment in segments])
        prefixes = prefixes[:, :-1].masked_fill(prefixes[:, :-1] == EOS, PAD)  # no prefix has EOS
        return Sources(
            src,
            mask,
            torch.tensor([segment.max_length for segment in segments]),
            prefixes.to(self.device) if prefixes.shape[1] else None,
        )

    def _log_probs(self, pairs: Sequence[Pair]) -> list[list[float]]:
        src, mask = self._pad([source for source, _ in pairs])
        return token_log_probs(self.models, src, mask, [target for _, target in pairs])

    def _pad(self, sources: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """Ids -> (B, S) with EOS, and the mask (B, 1, 1, S), on the device."""
        src, lengths = pad(sources)
        mask = source_mask(lengths)
        return src.to(self.device), None if mask is None else mask.to(self.device)

    def _each(
        self,
        function: Callable[[Sequence[Item]], list[Result]],
        batches: Sequence[Sequence[Item]],
    ) -> Iterator[tuple[int, list[Result]]]:
        """Yield function(batch) for every batch, in any order.

        A batch that does not fit into memory is halved until it fits.
        """

        def in_memory(batch: Sequence[Item]) -> list[Result]:
            if len(batch) == 1:
                return function(batch)
            results = runtime.unless_out_of_memory(lambda: function(batch))
            if results is not None:
                return results
            middle = len(batch) // 2
            return in_memory(batch[:middle]) + in_memory(batch[middle:])

        return threads.side_by_side(
            lambda number: in_memory(batches[number]),
            range(len(batches)),
            runtime.n_workers(self.device),
            self.threads_of_one,
        )


def _distinct(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """The outputs without repetitions, in order of first occurrence."""
    first: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in hypotheses:
        first.setdefault(tuple(hypothesis.tokens), hypothesis)
    return list(first.values())
