"""Text in, text out: a trained model as a translator of lines; `stream` reads and writes files.

A line is normalised and cut into pieces as in training, translated together with lines of similar
length, and comes back in its own place: n lines in, n lines out. A blank line is never decoded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mtrain.config.literals import Format, Method, PenaltyForm, PrecisionOrAuto
from mtrain.config.load import read_run_config
from mtrain.config.root import Config
from mtrain.data.cleaning import normalize
from mtrain.data.tokenizer import EOS, PAD, Tokenizer, tokenizers_of
from mtrain.decoding.engine import CTranslate2
from mtrain.decoding.rerank import expected_chrf
from mtrain.decoding.sampling import Diverse, Sampler
from mtrain.decoding.search import Hypothesis, LengthPenalty, Sources, beam_search, walk
from mtrain.decoding.sentences import split_text
from mtrain.decoding.steps import EnsembleScorer, Scorer, TransformerScorer
from mtrain.decoding.teacher_forcing import token_log_probs
from mtrain.errors import CheckpointError, DataError, ModelError, UsageError
from mtrain.machine import runtime, threads
from mtrain.model.transformer import Transformer
from mtrain.model.weights import load_model
from mtrain.run import RunDir

EXTRA_TOKENS = 10  # an output may always be so much longer than its source or its prefix
AUTO_BATCH_TOKENS = {"cpu": 12_288, "cuda": 65_536}
# Parameters. The kernels of a smaller model, on one sentence, are over before threads have met.
SMALL_MODEL = 20_000_000

Progress = Callable[[int], object]  # told how many more lines are done


@dataclass(frozen=True, slots=True)
class TextHypothesis:
    """One way to translate a line."""

    text: str
    score: float  # log-probability, divided by the length penalty: see decoding.search
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
class ScoredPair:
    """A given translation of a line, and what the model thinks of it."""

    source: str
    target: str
    log_prob: float  # of all pieces and EOS, natural logarithm
    score: float  # log_prob, divided by the length penalty
    tokens: list[str]  # pieces, and </s> at the end
    token_log_probs: list[float]


@dataclass(frozen=True, slots=True)
class Options:
    """How to translate, and how a stream of translations is written.

    None stands for the run's own `decode` setting.
    """

    beam_size: int | None = None
    length_penalty: float | None = None
    n_best: int = 1
    exact_stop: bool = False
    format: Format = "text"
    length_penalty_form: PenaltyForm | None = None
    method: Method = "beam"
    diversity: float = 0.5  # of `diverse`: what a token costs that a neighbour has just chosen
    samples: int = 32  # of `mbr`: how many translations vote
    temperature: float = 1.0  # of `sample` and `mbr`, like the next three: see sampling.Sampler
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1
    tab_prefix: bool = False  # a tab ends the source, and what its translation begins with follows

    @property
    def n_rows(self) -> int:
        """Rows that a sentence takes up in a batch."""
        assert self.beam_size is not None
        return {"sample": self.n_best, "mbr": self.samples}.get(self.method, self.beam_size)

    @property
    def penalty(self) -> LengthPenalty:
        """Of options that `Translator.resolve` has filled in."""
        assert self.length_penalty is not None
        assert self.length_penalty_form is not None
        return LengthPenalty(self.length_penalty, self.length_penalty_form)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is searched at once: a line, or a piece of one that is too long."""

    ids: list[int]  # without EOS
    prefix: list[int]  # what its translation begins with
    key: int  # what its random draws come from


class Translator:
    """A model, or several, with all that is needed to read and write text."""

    def __init__(
        self,
        model: Transformer,
        tokenizers: tuple[Tokenizer, Tokenizer],
        config: Config,
        length_ratio: Mapping[str, float],
        engine: CTranslate2 | None = None,
        precision: PrecisionOrAuto | None = None,
        companions: Sequence[Transformer] = (),
    ) -> None:
        """`length_ratio` holds `mean` and `std` of target / source pieces, both with EOS; `engine`
        searches in the place of `model`, whose weights it shares.

        The weights are read here: make another translator when they change. `precision` None is
        the run's own; `companions` are further models, whose probabilities are averaged with the
        first one's.
        """
        self.model = model
        self.src_tokenizer, self.tgt_tokenizer = tokenizers
        self.config = config
        self.length_ratio = length_ratio
        self.engine = engine
        self.device = next(model.parameters()).device
        self.precision = runtime.choose_precision(precision or config.decode.precision, self.device)
        self.models = [model, *companions]
        members: list[Scorer] = [TransformerScorer(each, self.precision) for each in self.models]
        self.scorer = members[0] if len(members) == 1 else EnsembleScorer(members)
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._threads_of_one = 1 if n_parameters < SMALL_MODEL else None
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
        """The translator that a run directory holds; it needs nothing outside of it.

        `companions` are further runs with the same vocabulary, for an ensemble with the first.
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
        return cls(
            model,
            tokenizers,
            read_run_config(run),
            run.read_manifest()["length_ratio"],
            None,
            precision,
            [load_model(other, None, chosen) for other in others],
        )

    @property
    def needs_tag(self) -> bool:
        """Whether all of the training text had a tag, so that the model knows no text without."""
        return all(entry.tag is not None for entry in self.config.data.train)

    def tagged(self, tag: str | None) -> Translator:
        """The same translator, but that every source begins with a tag; None: with none.

        Raises a UsageError for a tag that no training text had.
        """
        translator = copy(self)
        translator.src_tokenizer = self.src_tokenizer.tagged(tag)
        return translator

    def with_ctranslate2(self, quantization: str | None = None) -> Translator:
        """The same translator, but that CTranslate2 computes and searches; see decoding.engine."""
        if len(self.models) > 1:
            raise UsageError(
                "CTranslate2 knows no ensembles of models", "leave out --with, or --engine"
            )
        tokenizers = (self.src_tokenizer, self.tgt_tokenizer)
        return self.with_engine(
            CTranslate2.of_model(
                self.model, tokenizers, self.n_positions(), self.device.type, quantization
            )
        )

    def with_engine(self, engine: CTranslate2) -> Translator:
        """The same translator with another search, over the same weights."""
        tokenizers = (self.src_tokenizer, self.tgt_tokenizer)
        return Translator(self.model, tokenizers, self.config, self.length_ratio, engine)

    def n_positions(self) -> int:
        """The longest source or output there can be, with EOS."""
        longest = self.config.data.max_length + 1
        return max(longest, int(self._max_lengths(torch.tensor([longest]))))

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
        """
        options = Options(beam_size, length_penalty, n_best, exact_stop)
        return self.translate_lines(lines, options, progress)

    def translate_lines(
        self,
        lines: Sequence[str],
        options: Options,
        progress: Progress | None = None,
        prefixes: Sequence[str] | None = None,
        first_line: int = 0,
    ) -> list[Translation]:
        """Every line in every way that there is.

        `prefixes` says what the translation of each line begins with ("": anything). `first_line`
        is the number of lines before these, where they are part of a longer text: what is drawn at
        random for a line depends on its place in the whole.

        A line too long for the model is cut into parts. Its hypotheses are the joined first,
        second, ... ones of its parts; their score is the sum of log-probabilities, divided by the
        penalty of the sum of lengths.
        """
        if isinstance(lines, str):
            raise TypeError("give a list of lines: translate([line])")
        options = self.resolve(options)
        if self.engine is not None and prefixes is not None:
            raise UsageError("CTranslate2 is given no prefixes", "leave out --engine")
        parts_of_line, warnings = self._read(lines, prefixes, options.seed, first_line)
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
        written = self._write(found)
        if options.method == "mbr":
            written = [_by_agreement(hypotheses)[: options.n_best] for hypotheses in written]
        of_parts = iter(written)
        return [
            self._assemble(line, [next(of_parts) for _ in line_parts], line_warnings, options)
            for line, line_parts, line_warnings in zip(lines, parts_of_line, warnings, strict=True)
        ]

    def score(
        self, sources: Sequence[str], targets: Sequence[str], options: Options | None = None
    ) -> list[ScoredPair]:
        """What the model thinks of given translations, one a source; nothing is cut."""
        options = self.resolve(options or Options())
        src_ids = self.src_tokenizer.encode([normalize(line) for line in sources])
        tgt_ids = self.tgt_tokenizer.encode([normalize(line) for line in targets])
        lengths = [max(len(s), len(t)) + 1 for s, t in zip(src_ids, tgt_ids, strict=True)]
        log_probs: list[list[float]] = [[] for _ in src_ids]

        def score_batch(batch: list[int]) -> list[list[float]]:
            given = self._collate([_Part(src_ids[i], [], 0) for i in batch])
            return token_log_probs(self.models, given.src, given.mask, [tgt_ids[i] for i in batch])

        batches = list(self._batches(lengths, rows_a_sentence=1))
        for batch, results in self._side_by_side(score_batch, batches):
            for i, result in zip(batch, results, strict=True):
                log_probs[i] = result
        return [
            ScoredPair(
                source,
                target,
                math.fsum(of_tokens),
                math.fsum(of_tokens) / options.penalty.divisor(float(len(of_tokens))),
                self.tgt_tokenizer.pieces([*ids, EOS]),
                of_tokens,
            )
            for source, target, ids, of_tokens in zip(
                sources, targets, tgt_ids, log_probs, strict=True
            )
        ]

    def resolve(self, options: Options) -> Options:
        """The options with the run's own settings where they leave them open.

        A UsageError where the model needs a tag and has none.
        """
        if self.needs_tag and self.src_tokenizer.tag is None:
            raise UsageError(
                "all training text of this model had a tag, so it translates none without "
                f"(it knows: {', '.join(self.src_tokenizer.tags())})",
                "choose one with --tag; in Python: translator.tagged(TAG)",
            )
        decode = self.config.decode
        beam_size = decode.beam_size if options.beam_size is None else options.beam_size
        penalty = options.length_penalty
        limit = {"sample": options.n_best, "mbr": options.samples}.get(options.method, beam_size)
        if not 1 <= options.n_best <= limit:
            what, how = (
                (f"{limit} samples hold", "draw more samples (--samples)")
                if options.method == "mbr"
                else (f"a beam of {beam_size} finds", "search with a wider beam (--beam-size)")
            )
            raise UsageError(
                f"{options.n_best} hypotheses a line were asked for, but {what} 1 to {limit}",
                f"{how}, or ask for fewer (--n-best)",
            )
        form = options.length_penalty_form or decode.length_penalty_form
        if self.engine is not None:
            self._check_engine_can(replace(options, length_penalty_form=form))
        return replace(
            options,
            beam_size=beam_size,
            length_penalty=decode.length_penalty if penalty is None else penalty,
            length_penalty_form=form,
        )

    def _check_engine_can(self, options: Options) -> None:
        """A UsageError that names what CTranslate2's search has no equal of."""
        unknown = {
            "exact stop": options.exact_stop,
            f"--method {options.method}": options.method != "beam",
            "length penalty of GNMT": options.length_penalty_form == "gnmt",
        }
        for what, is_wanted in unknown.items():
            if is_wanted:
                raise UsageError(
                    f"CTranslate2 knows no {what}",
                    "leave that out, or leave out --engine",
                )

    def _read(
        self, lines: Sequence[str], prefixes: Sequence[str] | None, seed: int, first_line: int
    ) -> tuple[list[list[_Part]], list[list[str]]]:
        """Each line as its parts (none: blank; several: it was too long); warnings."""
        texts = [normalize(line) for line in lines]
        limit = self.config.data.max_length
        warnings: list[list[str]] = [[] for _ in lines]
        prefix_ids = self._read_prefixes(prefixes, first_line, warnings)
        parts_of_line: list[list[_Part]] = []
        for i, ids in enumerate(self.src_tokenizer.encode(texts)):
            of_parts = [ids] if ids else []
            if len(ids) > limit:
                pieces = split_text(texts[i], self._count_pieces, limit)
                of_parts = self.src_tokenizer.encode(pieces)
                warnings[i].append(
                    f"{len(ids):,} pieces are more than the {limit:,} the model was trained "
                    f"with, so it was translated in {len(pieces):,} parts"
                )
            parts_of_line.append(
                [
                    _Part(
                        part_ids,
                        prefix_ids[i] if prefix_ids and number == 0 else [],
                        runtime.seed_of(seed, first_line + i, number),
                    )
                    for number, part_ids in enumerate(of_parts)
                ]
            )
        return parts_of_line, warnings

    def _read_prefixes(
        self, prefixes: Sequence[str] | None, first_line: int, warnings: list[list[str]]
    ) -> list[list[int]]:
        """What each output must begin with, as ids; adds to the warnings of the lines."""
        if prefixes is None:
            return []
        texts = [normalize(prefix) for prefix in prefixes]
        ids_of = self.tgt_tokenizer.encode(texts)
        limit = self.config.data.max_length
        for i, ids in enumerate(ids_of):
            if len(ids) > limit:
                raise DataError(
                    f"the prefix of line {first_line + i + 1:,} has {len(ids):,} pieces, more than "
                    f"the {limit:,} the model was trained with",
                    "give a shorter prefix, or translate the line in several",
                )
            if self._byte_ids.intersection(ids):
                warnings[i].append(
                    f"the prefix `{texts[i]}` holds characters that the vocabulary knows only as "
                    "bytes; what follows them may be poor"
                )
        return ids_of

    def _count_pieces(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.src_tokenizer.encode(texts)]

    def _search(
        self, parts: Sequence[_Part], options: Options
    ) -> Iterator[tuple[list[int], list[list[Hypothesis]]]]:
        """Batch after batch: the numbers of its parts, their hypotheses."""

        def search_batch(batch: list[int]) -> list[list[Hypothesis]]:
            return self._search_batch([parts[i] for i in batch], options)

        lengths = [len(part.ids) + 1 for part in parts]
        batches = list(self._batches(lengths, options.n_rows))
        if self.engine is not None:
            yield from self._search_elsewhere(self.engine, parts, batches, options)
            return
        yield from self._side_by_side(search_batch, batches)

    def _search_batch(self, parts: Sequence[_Part], options: Options) -> list[list[Hypothesis]]:
        sources, scorer, penalty = self._collate(parts), self.scorer, options.penalty
        if options.method == "beam":
            assert options.beam_size is not None
            return beam_search(
                scorer, sources, options.beam_size, penalty, options.n_best, options.exact_stop
            )
        if options.method == "diverse":
            found = walk(scorer, sources, options.n_rows, Diverse(options.diversity), penalty)
            return [_distinct(hypotheses)[: options.n_best] for hypotheses in found]
        sampler = Sampler(
            [part.key for part in parts], options.temperature, options.top_k, options.top_p
        )
        return walk(scorer, sources, options.n_rows, sampler, penalty)

    def _search_elsewhere(
        self,
        engine: CTranslate2,
        parts: Sequence[_Part],
        batches: list[list[int]],
        options: Options,
    ) -> Iterator[tuple[list[int], list[list[Hypothesis]]]]:
        """The same by another engine, which knows one maximum length a batch: the largest."""
        assert options.beam_size is not None
        assert options.length_penalty is not None
        sources = (
            (
                [parts[i].ids for i in batch],
                int(self._max_lengths(torch.tensor([len(parts[i].ids) + 1 for i in batch])).max()),
            )
            for batch in batches
        )
        found = engine.search(sources, options.beam_size, options.length_penalty, options.n_best)
        yield from zip(batches, found, strict=True)

    def _side_by_side(
        self,
        function: Callable[[list[int]], list[runtime.Result]],
        batches: Sequence[list[int]],
    ) -> Iterator[tuple[list[int], list[runtime.Result]]]:
        """function(batch) of each, with models that are ready for inference; in any order.

        A batch for which the memory does not suffice is halved until it does.
        """
        were_training = [model.training for model in self.models]
        for model in self.models:
            model.eval()

        def in_memory(batch: list[int]) -> list[runtime.Result]:
            if len(batch) == 1:
                return function(batch)
            results = runtime.unless_out_of_memory(lambda: function(batch))
            if results is not None:
                return results
            middle = len(batch) // 2
            return in_memory(batch[:middle]) + in_memory(batch[middle:])

        try:
            yield from threads.side_by_side(
                in_memory, batches, runtime.n_workers(self.device), self._threads_of_one
            )
        finally:
            for model, was_training in zip(self.models, were_training, strict=True):
                model.train(was_training)

    def _batches(self, lengths: Sequence[int], rows_a_sentence: int) -> Iterator[list[int]]:
        """Numbers of sentences of similar length, the longest first.

        A batch keeps the budget of tokens x rows, fits into what is free of a GPU's memory, and
        leaves enough for all workers.
        """
        budget = self.config.decode.batch_tokens
        if budget == "auto":
            budget = AUTO_BATCH_TOKENS[self.device.type]
        most = math.ceil(len(lengths) / runtime.n_workers(self.device))
        free = runtime.free_bytes(self.device)  # of which half is for the rest, and for gaps
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        start = 0
        while start < len(order):
            length = lengths[order[start]]
            fitting = budget // (length * rows_a_sentence)
            if free is not None:
                fitting = min(
                    fitting, free // 2 // (rows_a_sentence * self._bytes_of_a_row(length))
                )
            end = start + max(1, min(most, fitting))
            yield order[start:end]
            start = end

    def _bytes_of_a_row(self, length: int) -> int:
        """The most that one hypothesis of a source of this length takes up, roughly.

        Its logits and what is computed from them, and the keys and values of an output of twice its
        length, once more where the cache grows.
        """
        model = self.config.model
        logits = 4 * 4 * self.tgt_tokenizer.vocab_size
        keys_values = 2 * 4 * model.d_model * model.n_decoder_layers
        return len(self.models) * (logits + 2 * (2 * length + EXTRA_TOKENS) * keys_values)

    def _collate(self, parts: Sequence[_Part]) -> Sources:
        """Sources ending in EOS, with the lengths that their outputs may have."""
        src, lengths = _padded([[*part.ids, EOS] for part in parts])
        width = src.shape[1]
        is_padded = bool((lengths < width).any())
        src_mask = (torch.arange(width) < lengths[:, None])[:, None, None] if is_padded else None
        prefixes, prefix_lengths = _padded([part.prefix for part in parts])
        return Sources(
            src.to(self.device),
            None if src_mask is None else src_mask.to(self.device),
            torch.maximum(self._max_lengths(lengths), prefix_lengths + EXTRA_TOKENS),
            prefixes.to(self.device) if prefixes.shape[1] else None,
        )

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
        hypotheses = []
        for ranked in zip(*parts, strict=False):  # the first of all parts, the second, ...
            log_prob = sum(part.hypothesis.log_prob for part in ranked)
            length = sum(len(part.hypothesis.tokens) + 1 for part in ranked)
            text = " ".join(part.text for part in ranked if part.text)
            ids = [i for part in ranked for i in part.hypothesis.tokens]
            score = log_prob / options.penalty.divisor(float(length))
            hypotheses.append(TextHypothesis(text, score, self.tgt_tokenizer.pieces(ids)))
        if not hypotheses or not math.isfinite(hypotheses[0].score):
            raise ModelError(
                "the model gives no finite probabilities: its weights are not usable",
                "use another checkpoint, or train again with a lower train.optim.learning_rate",
            )
        if options.method != "mbr":  # whose order is that of agreement
            hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        return Translation(line, hypotheses[0].text, hypotheses[0].score, hypotheses, warnings)


@dataclass(frozen=True, slots=True)
class _Written:
    hypothesis: Hypothesis
    text: str


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids with PAD behind (B, longest), and their lengths (B,)."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], dtype=torch.int64)
    return ids.view(len(rows), width), torch.tensor([len(row) for row in rows])


def _distinct(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Each output once, where it comes first."""
    first: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in hypotheses:
        first.setdefault(tuple(hypothesis.tokens), hypothesis)
    return list(first.values())


def _by_agreement(samples: Sequence[_Written]) -> list[_Written]:
    """The different texts among samples, the one first that all agree with most."""
    times = Counter(sample.text for sample in samples)
    first = {sample.text: sample for sample in reversed(samples)}
    texts = list(times)
    expected = expected_chrf(texts, list(times.values()))
    best_first = sorted(range(len(texts)), key=lambda i: -expected[i])
    return [first[texts[i]] for i in best_first]


def _check_vocabulary(
    run: RunDir, tokenizers: tuple[Tokenizer, Tokenizer], model: Transformer
) -> None:
    """A CheckpointError where ids of the one are none of the other."""
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
    """A UsageError where the pieces of two runs differ."""
    for own, others in zip(tokenizers, tokenizers_of(other), strict=True):
        if own.pieces(range(own.vocab_size)) != others.pieces(range(others.vocab_size)):
            raise UsageError(
                f"{run.path} and {other.path} have different vocabularies, so their probabilities "
                "cannot be averaged",
                "give runs that were trained with the same prepared data",
            )
