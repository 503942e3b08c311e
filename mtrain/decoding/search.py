"""Search: source ids in, the best target ids out. Text is handled in `translate`.

N sentences at the start, B of them still open, K hypotheses per sentence (the beam), R = B * K
rows, S source length, T target length, V vocabulary; row r belongs to open sentence r // K.

The model is seen through a small protocol, `scorers.Scorer`. A hypothesis y of length |y| (its
generated tokens, the closing EOS included) has the score

    score(y) = log P(y | x) / |y|^p                p: the length penalty; 0 compares plain
    score(y) = log P(y | x) / ((5 + |y|) / 6)^p    log-probabilities. The second form is GNMT's

How a step of `beam_search` works: each of the K live hypotheses proposes its continuations, in the
form of logits; their log-probability is logit - log_z, with log_z the log-sum-exp of the row, so
that no full log-softmax is computed. The best 2K of a sentence are its candidates. Those that end
in EOS and rank among the first K are finished; the best K of the others live on. As each hypothesis
proposes EOS once, at least K of the 2K do. What was generated is kept as back-pointers, (token,
parent) of every step, and followed once at the end: no prefix is ever copied.

`generate` never compares hypotheses: each continues by a choice that is passed in. The likeliest
token makes it greedy search; `sampling` has other choices.

Nothing here is random: the same scores give the same output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from mtrain.config.literals import PenaltyForm
from mtrain.data.tokenizer import BOS, EOS, PAD
from mtrain.decoding.scorers import Scorer

MINUS_INFINITY = float("-inf")
BLOCKS = 100  # of the vocabulary; only the most promising ones are searched

Length = TypeVar("Length", float, Tensor)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One finished output: its ids without EOS, and its scores."""

    tokens: list[int]
    score: float  # log_prob, divided by the length penalty of len(tokens) + 1
    log_prob: float  # of all tokens and EOS, natural logarithm


@dataclass(frozen=True, slots=True)
class LengthPenalty:
    """The divisor of log-probabilities that makes outputs of different lengths comparable."""

    power: float = 1.0
    form: PenaltyForm = "power"

    def divisor(self, length: Length) -> Length:
        """`length` counts tokens and EOS."""
        base: Length = (length + 5) / 6 if self.form == "gnmt" else length
        divisor: Length = base**self.power
        return divisor


@dataclass(frozen=True, slots=True)
class Sources:
    """A batch of sentences to translate."""

    src: Tensor  # (N, S)
    mask: Tensor | None  # (N, 1, 1, S); None if no source is padded
    max_lengths: Tensor  # (N,) maximum tokens of an output, EOS included
    prefixes: Tensor | None = None  # (N, P) the start of each output, then PAD

    def __len__(self) -> int:
        return len(self.src)


@torch.inference_mode()
def beam_search(
    scorer: Scorer,
    sources: Sources,
    beam_size: int,
    penalty: LengthPenalty,
    n_best: int = 1,
    exact_stop: bool = False,
) -> list[list[Hypothesis]]:
    """The best `n_best` outputs of every source sentence, best first; fewer if fewer exist.

    A hypothesis is ended at its maximum length; its score includes EOS and the tokens of a prefix.
    A beam of 1 is greedy and stops at its first EOS; for wider beams see `_is_done`.
    """
    if not 1 <= n_best <= beam_size:
        raise ValueError(f"n_best is {n_best}, but must be from 1 to the beam size {beam_size}")
    if len(sources) == 0:
        return []
    if beam_size == 1:
        return generate(scorer, sources, 1, likeliest, penalty)

    n, device = len(sources), sources.src.device
    batch = _Batch(sources)
    state = scorer.start(sources.src, sources.mask, beam_size)
    live = torch.full((n, beam_size), MINUS_INFINITY, device=device)  # (B, K) log-probabilities
    live[:, 0] = 0.0  # the one empty hypothesis; those of -inf are dead
    tokens = torch.full((n, beam_size), BOS, device=device)  # (B, K)
    finished = _Finished.none(n, beam_size, device)  # of the open sentences
    results = _Finished.none(n, beam_size, device)  # of all, filled as sentences are done
    history: list[tuple[Tensor, Tensor]] = []  # after each step: (N, K) tokens, (N, K) parents

    for length in range(1, batch.longest + 1):
        logits, log_z = scorer.step(state, tokens.flatten())  # (R, V), (R,)
        _allow_only(batch.forced(length), logits, beam_size)
        candidates = _candidates(logits, log_z, live)  # (B, 2K)
        finished = finished.joined_by(candidates, length, penalty)
        unfinished = candidates.log_probs.masked_fill(candidates.tokens == EOS, MINUS_INFINITY)
        live, chosen = unfinished.topk(beam_size)  # (B, K)
        tokens, parents = candidates.tokens.gather(1, chosen), candidates.parents.gather(1, chosen)
        history.append((batch.spread(tokens), batch.spread(parents)))

        is_done = _is_done(
            live[:, 0], finished, length, batch.max_lengths, penalty, n_best, exact_stop
        )  # (B,)
        n_done = int(is_done.sum())  # the one device-to-host sync of a step
        if batch.is_worth_leaving(n_done):
            done, others = is_done.nonzero().flatten(), (~is_done).nonzero().flatten()
            results.fill(batch.sentences[done], finished, done)
            if n_done == len(is_done):
                break
            batch.keep(others)
            finished = finished.keep(others)
            live, tokens, parents = live[others], tokens[others], parents[others]
            scorer.keep(state, others)
        elif n_done:
            live = live.masked_fill(is_done.unsqueeze(1), MINUS_INFINITY)
        first_rows = torch.arange(0, parents.numel(), beam_size, device=device).unsqueeze(1)
        scorer.reorder(state, (first_rows + parents).flatten())  # (R,)

    return _hypotheses(results, history, n_best)


def _is_done(
    best_live: Tensor,
    finished: _Finished,
    length: int,
    max_lengths: Tensor,
    penalty: LengthPenalty,
    n_best: int,
    exact_stop: bool,
) -> Tensor:
    """best_live, max_lengths (B,) -> (B,) whether the search of a sentence has ended.

    It ends when K hypotheses are finished and no live one, at its present length, beats the best of
    them; with `exact_stop`, when no live one could still reach the `n_best`, even if every further
    token up to the maximum length had probability 1.
    """
    if exact_stop:  # log-probabilities only fall, so the longest output has the best divisor
        attainable = best_live / penalty.divisor(max_lengths)
        has_won = attainable <= finished.scores[:, n_best - 1]
    else:
        has_won = best_live / penalty.divisor(float(length)) <= finished.scores[:, 0]
        has_won &= finished.counts >= finished.scores.shape[1]
    return has_won | (best_live == MINUS_INFINITY)


class Choice(Protocol):
    """Chooses the next token of the hypotheses in `generate`, K for each of B open sentences."""

    def __call__(
        self, logits: Tensor, log_z: Tensor, sentences: Tensor, is_open: Tensor, length: int
    ) -> Tensor:
        """logits (R, V), log_z (R,) -> the next token of each hypothesis, (B, K).

        `sentences` (B,) are the open ones of the N, `is_open` (B, K) is True for hypotheses that
        have not ended (other choices are ignored), `length` counts from 1.
        """


def likeliest(
    logits: Tensor, log_z: Tensor, sentences: Tensor, is_open: Tensor, length: int
) -> Tensor:
    """The choice of greedy search."""
    return logits.argmax(-1).view_as(is_open)


@torch.inference_mode()
def generate(
    scorer: Scorer, sources: Sources, n_hypotheses: int, choose: Choice, penalty: LengthPenalty
) -> list[list[Hypothesis]]:
    """K = n_hypotheses outputs of every source, each token by `choose`; best first, possibly equal.

    Each has a separate row from the beginning.
    """
    n, device = len(sources), sources.src.device
    batch = _Batch(sources)
    mask = None if sources.mask is None else sources.mask.repeat_interleave(n_hypotheses, 0)
    state = scorer.start(sources.src.repeat_interleave(n_hypotheses, 0), mask, 1)
    log_probs = torch.zeros(n, n_hypotheses, device=device)  # (N, K)
    lengths = torch.zeros(n, n_hypotheses, dtype=torch.int64, device=device)  # 0: not yet finished
    tokens = torch.full((n, n_hypotheses), BOS, device=device)  # (B, K)
    history = []  # (N, K) tokens of each step

    for length in range(1, batch.longest + 1):
        logits, log_z = scorer.step(state, tokens.flatten())  # (R, V), (R,)
        _rule_out_specials(logits)
        is_open = lengths[batch.sentences] == 0  # (B, K)
        tokens = choose(logits, log_z, batch.sentences, is_open, length)
        forced = batch.forced(length)
        if forced is not None:
            tokens = torch.where((forced != PAD).unsqueeze(1), forced.unsqueeze(1), tokens)
        gained = logits.gather(1, tokens.view(-1, 1)).squeeze(1) - log_z  # (R,)
        log_probs[batch.sentences] += gained.view_as(is_open).masked_fill(~is_open, 0.0)
        history.append(batch.spread(tokens))
        ends_here = is_open & (tokens == EOS)
        lengths[batch.sentences] += ends_here * length

        is_done = (~is_open | ends_here).all(1)  # (B,)
        n_done = int(is_done.sum())
        if n_done == len(is_done):
            break
        if batch.is_worth_leaving(n_done):
            others = (~is_done).nonzero().flatten()
            batch.keep(others)
            tokens = tokens[others]
            rows = others.unsqueeze(1) * n_hypotheses + torch.arange(n_hypotheses, device=device)
            scorer.keep(state, rows.flatten())

    scores = log_probs / penalty.divisor(lengths)
    generated = torch.stack(history, 2)  # (N, K, T)
    columns = (generated, lengths, scores, log_probs)
    return [
        sorted(
            (
                Hypothesis(row[: n_tokens - 1], score, log_prob)
                for row, n_tokens, score, log_prob in zip(*sentence, strict=True)
            ),
            key=lambda hypothesis: -hypothesis.score,
        )
        for sentence in zip(*(column.tolist() for column in columns), strict=True)
    ]


class _Batch:
    """The B of N sentences that are still being searched, and their limits."""

    def __init__(self, sources: Sources) -> None:
        self.n_sentences, device = len(sources), sources.src.device
        self.sentences = torch.arange(self.n_sentences, device=device)  # (B,)
        limits = sources.max_lengths
        self.max_lengths = limits.to(device)  # (B,)
        self.shortest, self.longest = int(limits.min()), int(limits.max())
        self.prefixes = sources.prefixes  # (B, P)

    def forced(self, length: int) -> Tensor | None:
        """(B,) the only token allowed at position `length`, PAD if any is; None: any for all.

        It is that of the prefix, and EOS at the last position.
        """
        has_prefix = self.prefixes is not None and length <= self.prefixes.shape[1]
        if not has_prefix and length < self.shortest:
            return None
        tokens = torch.full_like(self.sentences, PAD)
        if has_prefix:
            assert self.prefixes is not None
            tokens = self.prefixes[:, length - 1]
        return tokens.masked_fill(self.max_lengths <= length, EOS)

    def spread(self, values: Tensor) -> Tensor:
        """values (B, ...) of the open sentences -> (N, ...), 0 for the others."""
        if len(values) == self.n_sentences:
            return values
        return values.new_zeros(self.n_sentences, *values.shape[1:]).index_copy_(
            0, self.sentences, values
        )

    def is_worth_leaving(self, n_done: int) -> bool:
        """Removal copies caches, keeping costs arithmetic: it pays from an eighth of the batch."""
        return n_done > 0 and 8 * n_done >= len(self.sentences)

    def keep(self, positions: Tensor) -> None:
        self.sentences, self.max_lengths = self.sentences[positions], self.max_lengths[positions]
        if self.prefixes is not None:
            self.prefixes = self.prefixes[positions]


def _allow_only(forced: Tensor | None, logits: Tensor, beam_size: int) -> None:
    """Exclude tokens never generated from logits (R, V), and all but the forced ones (B,)."""
    _rule_out_specials(logits)
    if forced is None:
        return
    tokens = forced.repeat_interleave(beam_size).unsqueeze(1)  # (R, 1)
    allowed = logits.gather(1, tokens)  # of PAD, which forces nothing: -inf, as it was
    logits.masked_fill_(tokens != PAD, MINUS_INFINITY).scatter_(1, tokens, allowed)


def _rule_out_specials(logits: Tensor) -> None:
    """Exclude PAD and BOS from logits (R, V), which are never generated.

    One by one: a list of columns would be copied to the device in every step.
    """
    logits[:, PAD] = MINUS_INFINITY
    logits[:, BOS] = MINUS_INFINITY


@dataclass(slots=True)
class _Candidates:
    """Continuations of the live hypotheses, best first; each tensor (B, 2K)."""

    log_probs: Tensor
    tokens: Tensor
    parents: Tensor  # which of the K is continued


def _candidates(logits: Tensor, log_z: Tensor, live: Tensor) -> _Candidates:
    """The 2K likeliest continuations of each sentence's live hypotheses.

    logits (R, V), log_z (R,), live (B, K) log-probabilities. Each row is cut into n blocks; block i
    holds the tokens i, i + n, i + 2n, ..., so that all maxima are found in one pass over the rows.
    The 2K best tokens of a sentence lie in the 2K blocks with the largest maxima.
    """
    n_open, beam_size = live.shape
    vocab_size = logits.shape[1]
    n_blocks = min(vocab_size, BLOCKS)
    gains = live - log_z.view_as(live)  # (B, K) what turns the logits into log-probabilities
    maxima = _maxima_of_blocks(logits, n_blocks).view(n_open, beam_size, n_blocks)
    maxima = (maxima + gains.unsqueeze(2)).flatten(1)  # (B, K * blocks)
    chosen = maxima.topk(min(2 * beam_size, maxima.shape[1])).indices  # (B, C), C = 2K or less
    parents = chosen.div(n_blocks, rounding_mode="floor")
    block_starts = torch.arange(0, vocab_size, n_blocks, device=logits.device)
    tokens = (chosen % n_blocks).unsqueeze(2) + block_starts  # (B, C, tokens of a block)
    is_beyond = tokens >= vocab_size  # the last row of blocks may be incomplete
    where = parents.unsqueeze(2) * vocab_size + tokens.clamp(max=vocab_size - 1)
    values = logits.reshape(n_open, -1).gather(1, where.flatten(1)).view_as(where)
    values = (values + gains.gather(1, parents).unsqueeze(2)).masked_fill(is_beyond, MINUS_INFINITY)
    log_probs, best = values.flatten(1).topk(2 * beam_size)  # (B, 2K)
    return _Candidates(
        log_probs,
        tokens.flatten(1).gather(1, best),
        parents.gather(1, best.div(len(block_starts), rounding_mode="floor")),
    )


def _maxima_of_blocks(logits: Tensor, n_blocks: int) -> Tensor:
    """(R, V) -> (R, n_blocks): the largest of the tokens i, i + n_blocks, ... of each row."""
    n_rows, vocab_size = logits.shape
    n_whole = vocab_size - vocab_size % n_blocks
    maxima = logits[:, :n_whole].view(n_rows, -1, n_blocks).amax(1)
    if n_whole < vocab_size:
        rest = logits[:, n_whole:]
        first = maxima[:, : rest.shape[1]]
        torch.maximum(first, rest, out=first)
    return maxima


@dataclass(slots=True)
class _Finished:
    """The best K finished hypotheses of each sentence, best first; -inf beyond their number."""

    scores: Tensor  # (B, K)
    log_probs: Tensor  # (B, K)
    lengths: Tensor  # (B, K) tokens with EOS
    parents: Tensor  # (B, K) which of the K live ones of the previous step was ended
    counts: Tensor  # (B,) number of all finished ones, kept here or not

    @classmethod
    def none(cls, n_sentences: int, beam_size: int, device: torch.device) -> _Finished:
        scores = torch.full((n_sentences, beam_size), MINUS_INFINITY, device=device)
        zeros = torch.zeros_like(scores, dtype=torch.int64)
        return cls(scores, scores.clone(), zeros, zeros.clone(), zeros[:, 0].clone())

    def joined_by(self, candidates: _Candidates, length: int, penalty: LengthPenalty) -> _Finished:
        """Add the candidates that end here and rank among the first K."""
        beam_size = self.scores.shape[1]
        log_probs = candidates.log_probs[:, :beam_size]  # (B, K)
        is_end = (candidates.tokens[:, :beam_size] == EOS) & (log_probs > MINUS_INFINITY)
        log_probs = log_probs.masked_fill(~is_end, MINUS_INFINITY)
        scores = log_probs / penalty.divisor(float(length))
        parents = candidates.parents[:, :beam_size]

        scores, chosen = torch.cat([self.scores, scores], 1).topk(beam_size)  # (B, K) of 2K

        def choose(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old, new], 1).gather(1, chosen)

        return _Finished(
            scores,
            choose(self.log_probs, log_probs),
            choose(self.lengths, torch.full_like(parents, length)),
            choose(self.parents, parents),
            self.counts + is_end.sum(1),
        )

    def keep(self, positions: Tensor) -> _Finished:
        return _Finished(*(column[positions] for column in self._columns()))

    def fill(self, sentences: Tensor, other: _Finished, positions: Tensor) -> None:
        """Replace the columns of sentences by those of `other` at `positions`."""
        for mine, theirs in zip(self._columns(), other._columns(), strict=True):
            mine[sentences] = theirs[positions]

    def _columns(self) -> list[Tensor]:
        return [self.scores, self.log_probs, self.lengths, self.parents, self.counts]


def _hypotheses(
    finished: _Finished, history: list[tuple[Tensor, Tensor]], n_best: int
) -> list[list[Hypothesis]]:
    """Follow the back-pointers from every EOS to the beginning, all at once."""
    tokens = torch.stack([step_tokens for step_tokens, _ in history]).cpu()  # (T, N, K)
    parents = torch.stack([step_parents for _, step_parents in history]).cpu()  # (T, N, K)
    lengths = finished.lengths[:, :n_best].cpu()  # (N, n_best)
    position = finished.parents[:, :n_best].cpu()  # (N, n_best) which of the K, a step earlier
    written = torch.zeros(len(history), *lengths.shape, dtype=torch.int64)  # (T, N, n_best)
    for t in reversed(range(int(lengths.max()) - 1)):
        is_inside = t < lengths - 1
        written[t] = tokens[t].gather(1, position)
        position = torch.where(is_inside, parents[t].gather(1, position), position)

    rows = written.permute(1, 2, 0).tolist()  # (N, n_best, T)
    columns = [column[:, :n_best].tolist() for column in (finished.scores, finished.log_probs)]
    return [
        [
            Hypothesis(row[: length - 1], score, log_prob)
            for row, length, score, log_prob in zip(*sentence, strict=True)
            if score > MINUS_INFINITY
        ]
        for sentence in zip(rows, lengths.tolist(), *columns, strict=True)
    ]
