"""Text in, text out: a trained model as a translator of lines; `stream` reads and writes files.

A line is normalised and cut into pieces as in training, translated together with lines of similar
length, and comes back in its own place: n lines in, n lines out. A blank line is never decoded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mtrain import runtime
from mtrain.config import Config, read_run_config
from mtrain.data.cleaning import normalize
from mtrain.data.tokenizer import EOS, PAD, Tokenizer, load_tokenizers
from mtrain.decoding.engine import CTranslate2
from mtrain.decoding.search import Hypothesis, TransformerScorer, beam_search
from mtrain.decoding.sentences import split_text
from mtrain.errors import ModelError, UsageError
from mtrain.model.transformer import Transformer
from mtrain.model.weights import load_model
from mtrain.run import RunDir

EXTRA_TOKENS = 10  # an output may always be so much longer than its source

Progress = Callable[[int], object]  # told how many more lines are done


@dataclass(frozen=True, slots=True)
class TextHypothesis:
    """One way to translate a line."""

    text: str
    score: float  # log-probability / length^p, see decoding.search
    tokens: list[str]  # pieces


@dataclass(frozen=True, slots=True)
class Translation:
    """A line and what became of it; `text` and `score` are those of the best hypothesis.

    A blank line has one empty hypothesis with a score of 0.
    """

    source: str
    text: str
    score: float
    hypotheses: list[TextHypothesis]  # best first
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Options:
    """How to translate, and how a stream of translations is written.

    None stands for the run's own `decode` setting.
    """

    beam_size: int | None = None
    length_penalty: float | None = None
    n_best: int = 1
    exact_stop: bool = False
    format: Literal["text", "jsonl"] = "text"


class Translator:
    """A model with all it needs to read and write text."""

    def __init__(
        self,
        model: Transformer,
        tokenizers: tuple[Tokenizer, Tokenizer],
        config: Config,
        length_ratio: Mapping[str, float],
        engine: CTranslate2 | None = None,
    ) -> None:
        """`length_ratio` holds `mean` and `std` of target / source pieces, both with EOS; `engine`
        searches in the place of `model`, whose weights it shares."""
        self.model = model
        self.src_tokenizer, self.tgt_tokenizer = tokenizers
        self.config = config
        self.length_ratio = length_ratio
        self.engine = engine

    @classmethod
    def from_run(
        cls, path: str | Path, checkpoint: str | None = None, device: str = "auto"
    ) -> Translator:
        """The translator that a run directory holds; it needs nothing outside of it."""
        run = RunDir.open(path)
        chosen = runtime.choose_device(device)
        runtime.set_up(chosen, "auto")
        tokenizers = load_tokenizers(run.path)
        length_ratio = run.read_manifest()["length_ratio"]
        model = load_model(run, checkpoint, chosen)
        return cls(model, tokenizers, read_run_config(run), length_ratio)

    def with_ctranslate2(self, quantization: str | None = None) -> Translator:
        """The same translator, but that CTranslate2 computes and searches; see decoding.engine."""
        tokenizers = (self.src_tokenizer, self.tgt_tokenizer)
        longest = self.config.data.max_length + 1
        n_positions = max(longest, int(self._max_lengths(torch.tensor([longest]))))
        device = next(self.model.parameters()).device.type
        engine = CTranslate2.of_model(self.model, tokenizers, n_positions, device, quantization)
        return Translator(self.model, tokenizers, self.config, self.length_ratio, engine)

    def translate(
        self,
        lines: Sequence[str],
        beam_size: int | None = None,
        length_penalty: float | None = None,
    ) -> list[str]:
        """One translation for each line, in order; None stands for the run's own setting."""
        return [t.text for t in self.translate_detailed(lines, beam_size, length_penalty)]

    def translate_detailed(
        self,
        lines: Sequence[str],
        beam_size: int | None = None,
        length_penalty: float | None = None,
        n_best: int = 1,
        exact_stop: bool = False,
        progress: Progress | None = None,
    ) -> list[Translation]:
        """The same with scores, the `n_best` hypotheses of each line (fewer where fewer exist), and
        warnings.

        A line too long for the model is cut into parts. Its hypotheses are the joined first,
        second, ... ones of its parts; their score is the sum of log-probabilities / (sum of
        lengths)^p.
        """
        if isinstance(lines, str):
            raise TypeError("give a list of lines: translate([line])")
        options = self.resolve(Options(beam_size, length_penalty, n_best, exact_stop))
        parts_of_line, warnings = self._read(lines)
        owners = [i for i, parts in enumerate(parts_of_line) for _ in parts]
        parts = [part for line_parts in parts_of_line for part in line_parts]
        n_waiting = Counter(owners)  # parts of each line
        found: list[list[Hypothesis]] = [[] for _ in parts]
        if progress:
            progress(len(lines) - len(n_waiting))
        for batch, results in self._search(parts, options):
            for i, hypotheses in zip(batch, results, strict=True):
                found[i] = hypotheses
            n_waiting.subtract(owners[i] for i in batch)
            if progress:
                progress(sum(n_waiting[owner] == 0 for owner in {owners[i] for i in batch}))
        written = iter(self._write(found))
        return [
            self._assemble(line, [next(written) for _ in line_parts], line_warnings, options)
            for line, line_parts, line_warnings in zip(lines, parts_of_line, warnings, strict=True)
        ]

    def resolve(self, options: Options) -> Options:
        """The options with the run's own settings where they leave them open."""
        decode = self.config.decode
        beam_size = decode.beam_size if options.beam_size is None else options.beam_size
        penalty = options.length_penalty
        if not 1 <= options.n_best <= beam_size:
            raise UsageError(
                f"{options.n_best} hypotheses a line were asked for, but a beam of {beam_size} "
                f"finds 1 to {beam_size}",
                "search with a wider beam (--beam-size), or ask for fewer (--n-best)",
            )
        if options.exact_stop and self.engine is not None:
            raise UsageError(
                "CTranslate2 stops when enough hypotheses are finished, and knows no exact stop",
                "leave out --exact-stop, or --engine",
            )
        return replace(
            options,
            beam_size=beam_size,
            length_penalty=decode.length_penalty if penalty is None else penalty,
        )

    def _read(self, lines: Sequence[str]) -> tuple[list[list[list[int]]], list[list[str]]]:
        """Each line as the ids of its parts (none: blank; several: it was too long); warnings."""
        texts = [normalize(line) for line in lines]
        parts_of_line = [[ids] if ids else [] for ids in self.src_tokenizer.encode(texts)]
        warnings: list[list[str]] = [[] for _ in lines]
        limit = self.config.data.max_length
        for i, parts in enumerate(parts_of_line):
            if parts and len(parts[0]) > limit:
                pieces = split_text(texts[i], self._count_pieces, limit)
                parts_of_line[i] = self.src_tokenizer.encode(pieces)
                warnings[i].append(
                    f"{len(parts[0]):,} pieces are more than the {limit:,} the model was trained "
                    f"with, so it was translated in {len(pieces):,} parts"
                )
        return parts_of_line, warnings

    def _count_pieces(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.src_tokenizer.encode(texts)]

    def _search(
        self, parts: Sequence[Sequence[int]], options: Options
    ) -> Iterator[tuple[list[int], list[list[Hypothesis]]]]:
        """Batch after batch, the longest parts first: their numbers, their hypotheses."""
        assert options.beam_size is not None
        assert options.length_penalty is not None
        batches = self._batches([len(part) + 1 for part in parts], options.beam_size)
        if self.engine is not None:
            yield from self._search_elsewhere(self.engine, parts, list(batches), options)
            return
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in batches:
                src, src_mask, max_lengths = self._collate([parts[i] for i in batch])
                yield (
                    batch,
                    beam_search(
                        TransformerScorer(self.model),
                        src,
                        src_mask,
                        max_lengths,
                        options.beam_size,
                        options.length_penalty,
                        options.n_best,
                        options.exact_stop,
                    ),
                )
        finally:
            self.model.train(was_training)

    def _search_elsewhere(
        self,
        engine: CTranslate2,
        parts: Sequence[Sequence[int]],
        batches: list[list[int]],
        options: Options,
    ) -> Iterator[tuple[list[int], list[list[Hypothesis]]]]:
        """The same by another engine, which knows one maximum length a batch: the largest."""
        assert options.beam_size is not None
        assert options.length_penalty is not None
        sources = (
            (
                [parts[i] for i in batch],
                int(self._max_lengths(torch.tensor([len(parts[i]) + 1 for i in batch])).max()),
            )
            for batch in batches
        )
        found = engine.search(sources, options.beam_size, options.length_penalty, options.n_best)
        yield from zip(batches, found, strict=True)

    def _batches(self, lengths: Sequence[int], beam_size: int) -> Iterator[list[int]]:
        """Numbers of parts of similar length, within the budget of tokens x beam."""
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        start = 0
        while start < len(order):
            longest = lengths[order[start]]
            end = start + max(1, self.config.decode.batch_tokens // (longest * beam_size))
            yield order[start:end]
            start = end

    def _collate(self, parts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Sources (B, S) ending in EOS, mask (B, 1, 1, S) or None where none is padded, maximum
        lengths (B,).
        """
        rows = [[*part, EOS] for part in parts]
        width = max(map(len, rows))
        src = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])  # (B, S)
        lengths = torch.tensor([len(row) for row in rows])  # (B,)
        is_padded = bool((lengths < width).any())
        src_mask = (torch.arange(width) < lengths[:, None])[:, None, None] if is_padded else None
        device = next(self.model.parameters()).device
        src_mask = None if src_mask is None else src_mask.to(device)
        return src.to(device), src_mask, self._max_lengths(lengths)

    def _max_lengths(self, lengths: Tensor) -> Tensor:
        """The most tokens of outputs, with EOS, for sources of `lengths` (B,) with EOS -> (B,)

        The learnt ratio of lengths and four standard deviations, and always EXTRA_TOKENS more than
        the source.
        """
        ratio = self.length_ratio["mean"] + 4 * self.length_ratio["std"]
        return torch.maximum((lengths * ratio).ceil().long(), lengths + EXTRA_TOKENS)

    def _write(self, found: Sequence[Sequence[Hypothesis]]) -> list[list[_Written]]:
        """Every hypothesis of every part with its text."""
        texts = iter(self.tgt_tokenizer.decode([h.tokens for hs in found for h in hs]))
        return [[_Written(h, next(texts)) for h in hypotheses] for hypotheses in found]

    def _assemble(
        self, line: str, parts: list[list[_Written]], warnings: list[str], options: Options
    ) -> Translation:
        """A line's hypotheses from those of its parts."""
        if not parts:
            return Translation(line, "", 0.0, [TextHypothesis("", 0.0, [])], warnings)
        assert options.length_penalty is not None
        hypotheses = []
        for ranked in zip(*parts, strict=False):  # the first of all parts, the second, ...
            log_prob = sum(part.hypothesis.log_prob for part in ranked)
            length = sum(len(part.hypothesis.tokens) + 1 for part in ranked)
            text = " ".join(part.text for part in ranked if part.text)
            ids = [i for part in ranked for i in part.hypothesis.tokens]
            score = log_prob / length**options.length_penalty
            hypotheses.append(TextHypothesis(text, score, self.tgt_tokenizer.pieces(ids)))
        if not hypotheses or not math.isfinite(hypotheses[0].score):
            raise ModelError(
                "the model gives no finite probabilities: its weights are not usable",
                "use another checkpoint, or train again with a lower train.optim.learning_rate",
            )
        hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        return Translation(line, hypotheses[0].text, hypotheses[0].score, hypotheses, warnings)


@dataclass(frozen=True, slots=True)
class _Written:
    hypothesis: Hypothesis
    text: str
