"""Text in, text out: a trained model as a translator of lines; `stream` reads and writes files.

A line is normalised and cut into pieces as in training, split if it is too long (`sentences`),
translated together with lines of similar length, and returned in its place: n lines in, n lines
out. A blank line is never decoded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from mtrain.config.literals import PrecisionOrAuto
from mtrain.config.load import read_run_config
from mtrain.config.root import Config
from mtrain.data.cleaning import normalize
from mtrain.data.tokenizer import EOS, Tokenizer, tokenizers_of
from mtrain.decoding.ctranslate2 import CTranslate2Engine
from mtrain.decoding.engine import Engine, Search, Segment, TorchEngine
from mtrain.decoding.sampling import by_agreement
from mtrain.decoding.search import Hypothesis
from mtrain.decoding.sentences import split_text
from mtrain.errors import CheckpointError, DataError, ModelError, UsageError
from mtrain.machine import runtime
from mtrain.model.transformer import Transformer
from mtrain.model.weights import load_model
from mtrain.run import RunDir

EXTRA_TOKENS = 10  # by which an output may always exceed its source or prefix
AUTO_BATCH_TOKENS = {"cpu": 12_288, "cuda": 65_536}

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int], object]  # called with the number of completed lines


@dataclass(frozen=True, slots=True)
class TextHypothesis:
    """One translation of a line."""

    text: str
    score: float  # log-probability, divided by the length penalty: see decoding.search
    tokens: list[str]  # pieces


@dataclass(frozen=True, slots=True)
class Translation:
    """A line and its translations; `text` and `score` are those of the best hypothesis.

    A blank line has one empty hypothesis with a score of 0.
    """

    source: str
    text: str
    score: float
    hypotheses: list[TextHypothesis]  # best first
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A line, a given translation, and its probability by the model."""

    source: str
    target: str
    log_prob: float  # of all pieces and EOS, natural logarithm
    score: float  # log_prob, divided by the length penalty
    tokens: list[str]  # pieces, and </s> at the end
    token_log_probs: list[float]


class Translator:
    """An engine with its tokenizers: translates text."""

    def __init__(
        self,
        engine: Engine,
        tokenizers: tuple[Tokenizer, Tokenizer],
        config: Config,
        length_ratio: Mapping[str, float],
    ) -> None:
        """`length_ratio` holds `mean` and `std` of target / source pieces, both with EOS."""
        self.engine = engine
        self.src_tokenizer, self.tgt_tokenizer = tokenizers
        self.config = config
        self.length_ratio = length_ratio
        self.device = next(self.model.parameters()).device
        self._byte_ids = frozenset(self.tgt_tokenizer.byte_ids())

    @classmethod
    def from_run(
        cls,
        path: str | Path,
        checkpoint: str | None = None,
        device: str = "auto",
        precision: PrecisionOrAuto | None = None,
        companions: Sequence[str | Path] = (),
    ) -> Translator:
        """The translator of a run directory; needs no other files.

        `precision` None is that of the run's config. `companions` are other runs with the same
        vocabulary, for an ensemble.
        """
        run = RunDir.open(path)
        others = [RunDir.open(other) for other in companions]
        chosen = runtime.choose_device(device)
        runtime.set_up(chosen, "auto", "decoding")
        tokenizers = tokenizers_of(run)
        for other in others:
            _check_same_vocabulary(run, tokenizers, other)
        model = load_model(run, checkpoint, chosen)
        _check_vocabulary(run, tokenizers, model)
        config = read_run_config(run)
        models = [model, *(load_model(other, None, chosen) for other in others)]
        engine = TorchEngine(models, precision or config.decode.precision)
        return cls(engine, tokenizers, config, run.read_manifest()["length_ratio"])

    @property
    def model(self) -> Transformer:
        """The first model of an ensemble, or the only one."""
        return self.engine.models[0]

    @property
    def needs_tag(self) -> bool:
        """Whether all training text had a tag, so that the model never saw text without one."""
        return all(entry.tag is not None for entry in self.config.data.train)

    def tagged(self, tag: str | None) -> Translator:
        """A translator that puts a tag in front of every source; None: no tag.

        Raises a UsageError for a tag that no training text had.
        """
        translator = copy(self)
        translator.src_tokenizer = self.src_tokenizer.tagged(tag)
        return translator

    def with_ctranslate2(self, quantization: str | None = None) -> Translator:
        """The same translator with CTranslate2 as its engine; see decoding.ctranslate2."""
        if len(self.engine.models) > 1:
            raise UsageError(
                "CTranslate2 does not support ensembles", "leave out --with, or --engine"
            )
        tokenizers = (self.src_tokenizer, self.tgt_tokenizer)
        return self.with_engine(
            CTranslate2Engine.of_model(self.model, tokenizers, self.n_positions(), quantization)
        )

    def with_engine(self, engine: Engine) -> Translator:
        """The same translator with another engine over the same weights."""
        translator = copy(self)
        translator.engine = engine
        return translator

    def n_positions(self) -> int:
        """The longest possible source or output, with EOS."""
        longest = self.config.data.max_length + 1
        return max(longest, *self._max_lengths([longest]))

    def check(self, search: Search) -> None:
        """Raise a UsageError if the engine does not support a search, or the model needs a tag."""
        if self.needs_tag and self.src_tokenizer.tag is None:
            raise UsageError(
                "all training text of this model had a tag, so it needs one to translate "
                f"(it knows: {', '.join(self.src_tokenizer.tags())})",
                "choose one with --tag; in Python: translator.tagged(TAG)",
            )
        self.engine.check(search)

    def translate(
        self,
        lines: Sequence[str],
        beam_size: int | None = None,
        length_penalty: float | None = None,
    ) -> list[str]:
        """One translation for each line, in order; None keeps the run's own setting."""
        found = self.translate_detailed(lines, beam_size=beam_size, length_penalty=length_penalty)
        return [translation.text for translation in found]

    def translate_detailed(
        self,
        lines: Sequence[str],
        search: Search | None = None,
        progress: Progress | None = None,
        prefixes: Sequence[str] | None = None,
        first_line: int = 0,
        **changes: Any,
    ) -> list[Translation]:
        """Translations with scores, warnings and `n_best` hypotheses (fewer if fewer exist).

        Without a `search`, the run's own settings are used, with `changes` such as `n_best=5`.
        `prefixes` are the starts of the translations ("": none). `first_line` is the number of
        lines before these in a longer text, as samples depend on the place in the whole text.

        A line too long for the model is cut into segments. Its hypotheses are the joined first,
        second, ... ones of its segments; their score is the sum of log-probabilities, divided by
        the penalty of the sum of lengths.
        """
        if isinstance(lines, str):
            raise TypeError("give a list of lines: translate([line])")
        if search is None:
            search = Search.of(self.config.decode, **changes)
        elif changes:
            raise TypeError("give either a search or changes of the run's own")
        self.check(search)
        segments, warnings = self._read(lines, prefixes, search.seed, first_line)
        n_waiting = Counter(segment.line for segment in segments)
        progress = progress or (lambda n_lines: None)
        progress(len(lines) - len(n_waiting))
        found: list[list[Hypothesis]] = [[] for _ in segments]
        lengths = [len(segment.ids) + 1 for segment in segments]
        run = partial(self.engine.search, search=search)
        for i, hypotheses in self._in_batches(run, segments, lengths, search.n_hypotheses):
            found[i] = hypotheses
            n_waiting[segments[i].line] -= 1
            if n_waiting[segments[i].line] == 0:
                progress(1)
        of_lines: list[list[list[tuple[Hypothesis, str]]]] = [[] for _ in lines]
        for segment, decoded in zip(segments, self._decode(found, search), strict=True):
            of_lines[segment.line].append(decoded)
        return [
            self._join(line, of_line, search, of_line_warnings)
            for line, of_line, of_line_warnings in zip(lines, of_lines, warnings, strict=True)
        ]

    def score(
        self, sources: Sequence[str], targets: Sequence[str], search: Search | None = None
    ) -> list[ScoredPair]:
        """The log-probability of a given translation of each source; nothing is split."""
        search = search or Search.of(self.config.decode)
        self.check(search)
        src_ids = self.src_tokenizer.encode([normalize(line) for line in sources])
        tgt_ids = self.tgt_tokenizer.encode([normalize(line) for line in targets])
        pairs = list(zip(src_ids, tgt_ids, strict=True))
        lengths = [max(len(src), len(tgt)) + 1 for src, tgt in pairs]
        log_probs = dict(self._in_batches(self.engine.log_probs, pairs, lengths, n_rows=1))
        return [
            ScoredPair(
                source,
                target,
                math.fsum(log_probs[i]),
                math.fsum(log_probs[i]) / search.penalty.divisor(float(len(log_probs[i]))),
                self.tgt_tokenizer.pieces([*tgt_ids[i], EOS]),
                log_probs[i],
            )
            for i, (source, target) in enumerate(zip(sources, targets, strict=True))
        ]

    # -- text to segments --------------------------------------------------------------------

    def _read(
        self, lines: Sequence[str], prefixes: Sequence[str] | None, seed: int, first_line: int
    ) -> tuple[list[Segment], list[list[str]]]:
        """The segments (none for a blank line, several for a long one) and each line's warnings."""
        warnings: list[list[str]] = [[] for _ in lines]
        prefix_ids: list[list[int]] = [[] for _ in lines]
        if prefixes is not None:
            prefix_ids = self._read_prefixes(prefixes, first_line, warnings)
        cut = [
            (line, number, ids)
            for line, of_line in enumerate(self._cut(lines, warnings))
            for number, ids in enumerate(of_line)
        ]
        max_lengths = self._max_lengths([len(ids) + 1 for _, _, ids in cut])
        segments = []
        for (line, number, ids), max_length in zip(cut, max_lengths, strict=True):
            prefix = prefix_ids[line] if number == 0 else []
            max_length = max(max_length, len(prefix) + EXTRA_TOKENS)
            key = runtime.seed_of(seed, first_line + line, number)
            segments.append(Segment(line, ids, max_length, prefix, key))
        return segments, warnings

    def _cut(self, lines: Sequence[str], warnings: list[list[str]]) -> list[list[list[int]]]:
        """The ids of each line's segments; adds to the warnings of the lines."""
        texts = [normalize(line) for line in lines]
        limit = self.config.data.max_length
        cut = []
        for text, ids, of_line in zip(
            texts, self.src_tokenizer.encode(texts), warnings, strict=True
        ):
            if len(ids) > limit:
                parts = split_text(text, self._count_pieces, limit)
                cut.append(self.src_tokenizer.encode(parts))
                of_line.append(
                    f"{len(ids):,} pieces are more than the {limit:,} the model was trained "
                    f"with, so it was translated in {len(parts):,} parts"
                )
            else:
                cut.append([ids] if ids else [])
        return cut

    def _count_pieces(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.src_tokenizer.encode(texts)]

    def _read_prefixes(
        self, prefixes: Sequence[str], first_line: int, warnings: list[list[str]]
    ) -> list[list[int]]:
        """The prefixes as ids; adds to the warnings of the lines."""
        texts = [normalize(prefix) for prefix in prefixes]
        ids_of = self.tgt_tokenizer.encode(texts)
        limit = self.config.data.max_length
        for i, ids in enumerate(ids_of):
            if len(ids) > limit:
                raise DataError(
                    f"the prefix of line {first_line + i + 1:,} has {len(ids):,} pieces, more than "
                    f"the {limit:,} the model was trained with",
                    "give a shorter prefix, or split the line",
                )
            if self._byte_ids.intersection(ids):
                warnings[i].append(
                    f"the prefix `{texts[i]}` has characters that the vocabulary only has as "
                    "bytes; the translation after them may be poor"
                )
        return ids_of

    def _max_lengths(self, lengths: Sequence[int]) -> list[int]:
        """The maximum tokens of outputs for sources of these lengths, all with EOS.

        The learnt length ratio plus four standard deviations, at least EXTRA_TOKENS more than the
        source.
        """
        src = torch.tensor(lengths, dtype=torch.int64)
        ratio = self.length_ratio["mean"] + 4 * self.length_ratio["std"]
        limits: list[int] = torch.maximum((src * ratio).ceil().long(), src + EXTRA_TOKENS).tolist()
        return limits

    # -- batches -----------------------------------------------------------------------------

    def _in_batches(
        self,
        run: Callable[[list[list[Item]]], Iterator[tuple[int, list[Result]]]],
        items: Sequence[Item],
        lengths: Sequence[int],
        n_rows: int,
    ) -> Iterator[tuple[int, Result]]:
        """The index and the result of every item, in any order, run in batches."""
        batches = list(self._batches(lengths, n_rows))
        for number, results in run([[items[i] for i in batch] for batch in batches]):
            yield from zip(batches[number], results, strict=True)

    def _batches(self, lengths: Sequence[int], n_rows: int) -> Iterator[list[int]]:
        """Batches of sentence indices of similar length, longest first; each takes `n_rows` rows.

        A batch keeps to the budget of tokens x rows, fits into half of the free memory of a GPU
        (the rest is for other buffers and fragmentation), and leaves work for all workers.
        """
        budget = self.config.decode.batch_tokens
        if budget == "auto":
            budget = AUTO_BATCH_TOKENS[self.device.type]
        most = math.ceil(len(lengths) / runtime.n_workers(self.device))
        free = runtime.free_bytes(self.device)
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        start = 0
        while start < len(order):
            length = lengths[order[start]]
            fitting = min(most, budget // (length * n_rows))
            if free is not None:
                fitting = min(fitting, free // 2 // (n_rows * self._bytes_of_a_row(length)))
            end = start + max(1, fitting)
            yield order[start:end]
            start = end

    def _bytes_of_a_row(self, length: int) -> int:
        """The maximum memory of one hypothesis of a source of this length, roughly.

        Logits and results computed from them; keys and values of an output of twice the length, and
        a copy of these when the cache grows.
        """
        model = self.config.model
        logits = 4 * 4 * self.tgt_tokenizer.vocab_size
        keys_values = 2 * 4 * model.d_model * model.n_decoder_layers
        return len(self.engine.models) * (logits + 2 * (2 * length + EXTRA_TOKENS) * keys_values)

    # -- hypotheses to text ------------------------------------------------------------------

    def _decode(
        self, found: Sequence[Sequence[Hypothesis]], search: Search
    ) -> list[list[tuple[Hypothesis, str]]]:
        """The hypotheses of every segment with their texts; for mbr, ordered by agreement."""
        texts = iter(self.tgt_tokenizer.decode([h.tokens for of_one in found for h in of_one]))
        decoded = [[(hypothesis, next(texts)) for hypothesis in of_one] for of_one in found]
        if search.method != "mbr":
            return decoded
        return [
            [samples[i] for i in by_agreement([text for _, text in samples])[: search.n_best]]
            for samples in decoded
        ]

    def _join(
        self,
        line: str,
        segments: list[list[tuple[Hypothesis, str]]],
        search: Search,
        warnings: list[str],
    ) -> Translation:
        """The translation of a line from the hypotheses of its segments."""
        if not segments:
            return Translation(line, "", 0.0, [TextHypothesis("", 0.0, [])], warnings)
        hypotheses = []
        for ranked in zip(*segments, strict=False):  # the first of all segments, the second, ...
            log_prob = sum(hypothesis.log_prob for hypothesis, _ in ranked)
            length = sum(len(hypothesis.tokens) + 1 for hypothesis, _ in ranked)
            ids = [i for hypothesis, _ in ranked for i in hypothesis.tokens]
            hypotheses.append(
                TextHypothesis(
                    " ".join(text for _, text in ranked if text),
                    log_prob / search.penalty.divisor(float(length)),
                    self.tgt_tokenizer.pieces(ids),
                )
            )
        if not hypotheses or not math.isfinite(hypotheses[0].score):
            raise ModelError(
                "the model's probabilities are not finite: its weights are unusable",
                "use another checkpoint, or train again with a lower train.optim.learning_rate",
            )
        if search.method != "mbr":  # which is ordered by agreement
            hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        return Translation(line, hypotheses[0].text, hypotheses[0].score, hypotheses, warnings)


def _check_vocabulary(
    run: RunDir, tokenizers: tuple[Tokenizer, Tokenizer], model: Transformer
) -> None:
    """A CheckpointError if the sizes of tokenizers and model differ."""
    pieces = [tokenizer.vocab_size for tokenizer in tokenizers]
    rows = [len(model.src_embedding.weight), len(model.output.weight)]
    if pieces != rows:
        raise CheckpointError(
            f"{run.path} is damaged: its tokenizers have {pieces[0]:,} and {pieces[1]:,} pieces, "
            f"its model {rows[0]:,} and {rows[1]:,}",
            "restore the run, or train again",
        )


def _check_same_vocabulary(
    run: RunDir, tokenizers: tuple[Tokenizer, Tokenizer], other: RunDir
) -> None:
    """A UsageError if the pieces of two runs differ."""
    for own, others in zip(tokenizers, tokenizers_of(other), strict=True):
        if own.all_pieces() != others.all_pieces():
            raise UsageError(
                f"{run.path} and {other.path} have different vocabularies, so their probabilities "
                "cannot be averaged",
                "give runs that were trained with the same prepared data",
            )
