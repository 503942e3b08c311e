"""Search: source ids in, the best target ids out. Nothing here knows of text.

N sentences at the start, B of them still open, K hypotheses a sentence (the beam), R = B * K rows,
S source length, T target length, V vocabulary; row r belongs to open sentence r // K.

The model is seen through a small protocol, `Scorer`: a network, a table in a test, or several
networks at once. A hypothesis y of length |y| (its generated tokens, the closing EOS included)
has the score

    score(y) = log P(y | x) / |y|^p        p: the length penalty; 0 compares plain log-probabilities

How a step works: each of the K live hypotheses proposes its best continuations, taken from the
logits; their log-probability is logit - log_z, with log_z the log-sum-exp of the row, so that no
full log-softmax is computed. The best 2K of a sentence are its candidates. Those that end in EOS
and rank among the first K are finished; the best K of the others live on. As each hypothesis
proposes EOS once, at least K of the 2K do.

What was generated is kept as back-pointers, (token, parent) of every step, and followed once at
the end: no prefix is ever copied. Nothing is random: the same scores give the same output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mtrain.data.tokenizer import BOS, EOS, PAD
from mtrain.model.transformer import Cache, Transformer

NEVER_GENERATED = [PAD, BOS]
MINUS_INFINITY = float("-inf")
TOP_K_BLOCK = 80


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One finished output: its ids without EOS, and what the model thinks of it."""

    tokens: list[int]
    score: float  # log_prob / (len(tokens) + 1)^p
    log_prob: float  # of all tokens and EOS, natural logarithm


class Scorer(Protocol):
    """What the search asks of a model."""

    def start(self, src: Tensor, src_mask: Tensor | None, beam_size: int, max_length: int) -> Any:
        """Read the sources, src (N, S); the state it returns belongs to the scorer."""

    def step(self, state: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Feed one token a row, tokens (R,) -> logits (R, V) of the next, log_z (R,).

        logits - log_z are log-probabilities. The search writes into the logits.
        """

    def reorder(self, state: Any, rows: Tensor) -> None:
        """Row r goes on from what was row rows[r], of the same sentence; rows (R,)."""

    def keep(self, state: Any, sentences: Tensor) -> None:
        """Only these open sentences, (B',) in rising order, go on; the rows of others are gone."""


class TransformerScorer:
    """A Transformer, step by step through its key/value cache."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def start(self, src: Tensor, src_mask: Tensor | None, beam_size: int, max_length: int) -> Cache:
        memory = self.model.encode(src, src_mask)  # (N, S, D)
        return self.model.start_cache(memory, src_mask, beam_size)

    def step(self, state: Cache, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.decode_step(tokens, state).float()  # (R, V)
        return logits, logits.logsumexp(-1)

    def reorder(self, state: Cache, rows: Tensor) -> None:
        state.reorder(rows)

    def keep(self, state: Cache, sentences: Tensor) -> None:
        state.keep_sentences(sentences)


@torch.inference_mode()
def beam_search(
    scorer: Scorer,
    src: Tensor,
    src_mask: Tensor | None,
    max_lengths: Tensor,
    beam_size: int,
    length_penalty: float,
    n_best: int = 1,
    exact_stop: bool = False,
) -> list[list[Hypothesis]]:
    """The best `n_best` outputs of every source sentence, best first.

    src (N, S), src_mask (N, 1, 1, S) or None, max_lengths (N,): most tokens of an output, EOS
    included; a hypothesis that has come so far is ended there, and pays the price of its EOS.

    A beam of 1 is greedy and stops at its first EOS. A wider search of a sentence stops when K
    hypotheses are finished and no live one, at its present length, beats the best of them; with
    `exact_stop` it goes on until no live one could be among the `n_best` even at the maximum
    length, should every further token be certain. Fewer than `n_best` come back where fewer exist.
    """
    if not 1 <= n_best <= beam_size:
        raise ValueError(f"n_best is {n_best}, but must lie between 1 and the beam, {beam_size}")
    if len(src) == 0:
        return []
    if beam_size == 1:
        return _greedy_search(scorer, src, src_mask, max_lengths, length_penalty)

    n, device = len(src), src.device
    batch = _Batch(n, max_lengths, device)
    state = scorer.start(src, src_mask, beam_size, batch.longest)
    live = torch.full((n, beam_size), MINUS_INFINITY, device=device)  # (B, K) log-probabilities
    live[:, 0] = 0.0  # the one empty hypothesis; those of -inf are dead
    tokens = torch.full((n, beam_size), BOS, device=device)  # (B, K)
    finished = _Finished.none(n, beam_size, device)  # of the open sentences
    results = _Finished.none(n, beam_size, device)  # of all, filled as sentences are done
    history: list[tuple[Tensor, Tensor]] = []  # after each step: (N, K) tokens, (N, K) parents

    for length in range(1, batch.longest + 1):
        logits, log_z = scorer.step(state, tokens.flatten())  # (R, V), (R,)
        candidates = _candidates(logits, log_z, live, batch.at_limit(length))  # (B, 2K)
        finished = finished.joined_by(candidates, length, length_penalty)
        unfinished = candidates.log_probs.masked_fill(candidates.tokens == EOS, MINUS_INFINITY)
        live, chosen = unfinished.topk(beam_size)  # (B, K)
        tokens, parents = candidates.tokens.gather(1, chosen), candidates.parents.gather(1, chosen)
        history.append((batch.spread(tokens), batch.spread(parents)))

        best_live = live[:, 0]
        if exact_stop:  # log-probabilities only fall, so the longest output divides them best
            attainable = best_live / batch.max_lengths**length_penalty
            has_won = attainable <= finished.scores[:, n_best - 1]
        else:
            has_won = best_live / length**length_penalty <= finished.scores[:, 0]
            has_won &= finished.counts >= beam_size
        is_done = has_won | (best_live == MINUS_INFINITY)  # (B,)

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


def _greedy_search(
    scorer: Scorer,
    src: Tensor,
    src_mask: Tensor | None,
    max_lengths: Tensor,
    length_penalty: float,
) -> list[list[Hypothesis]]:
    """The likeliest token at every step, until EOS."""
    n, device = len(src), src.device
    batch = _Batch(n, max_lengths, device)
    state = scorer.start(src, src_mask, 1, batch.longest)
    log_probs = torch.zeros(n, device=device)  # (N,)
    lengths = torch.zeros(n, dtype=torch.int64, device=device)  # (N,) 0: not yet finished
    tokens = torch.full((n,), BOS, device=device)  # (B,)
    history = []  # (N,) tokens of each step

    for length in range(1, batch.longest + 1):
        logits, log_z = scorer.step(state, tokens)  # (B, V), (B,)
        logits[:, NEVER_GENERATED] = MINUS_INFINITY
        tokens = logits.argmax(-1)
        is_last = batch.at_limit(length)
        if is_last is not None:
            tokens = tokens.masked_fill(is_last, EOS)
        chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)  # (B,)
        is_open = lengths[batch.sentences] == 0
        log_probs[batch.sentences] += (chosen - log_z).masked_fill(~is_open, 0.0)
        history.append(batch.spread(tokens))
        ends_here = is_open & (tokens == EOS)
        lengths[batch.sentences] += ends_here * length

        is_done = ~is_open | ends_here
        n_done = int(is_done.sum())
        if n_done == len(is_done):
            break
        if batch.is_worth_leaving(n_done):
            others = (~is_done).nonzero().flatten()
            batch.keep(others)
            tokens = tokens[others]
            scorer.keep(state, others)

    rows = torch.stack(history, 1).tolist()  # (N, T)
    return [
        [Hypothesis(row[: length - 1], log_prob / length**length_penalty, log_prob)]
        for row, length, log_prob in zip(rows, lengths.tolist(), log_probs.tolist(), strict=True)
    ]


class _Batch:
    """Which of the N sentences are still searched: B of them, and their limits."""

    def __init__(self, n_sentences: int, max_lengths: Tensor, device: torch.device) -> None:
        self.n_sentences = n_sentences
        self.sentences = torch.arange(n_sentences, device=device)  # (B,)
        self.max_lengths = max_lengths.to(device)  # (B,)
        self.shortest, self.longest = int(max_lengths.min()), int(max_lengths.max())

    def at_limit(self, length: int) -> Tensor | None:
        """(B,) True where `length` is the last token allowed; None where no sentence is there."""
        return self.max_lengths <= length if length >= self.shortest else None

    def spread(self, values: Tensor) -> Tensor:
        """values (B, ...) of the open sentences -> (N, ...), 0 for the others."""
        if len(values) == self.n_sentences:
            return values
        return values.new_zeros(self.n_sentences, *values.shape[1:]).index_copy_(
            0, self.sentences, values
        )

    def is_worth_leaving(self, n_done: int) -> bool:
        """Removal copies caches, staying costs arithmetic: an eighth of the batch is worth it."""
        return n_done > 0 and 8 * n_done >= len(self.sentences)

    def keep(self, positions: Tensor) -> None:
        self.sentences, self.max_lengths = self.sentences[positions], self.max_lengths[positions]


@dataclass(slots=True)
class _Candidates:
    """Continuations of the live hypotheses, best first; each tensor (B, 2K)."""

    log_probs: Tensor
    tokens: Tensor
    parents: Tensor  # which of the K is continued


def _candidates(logits: Tensor, log_z: Tensor, live: Tensor, is_last: Tensor | None) -> _Candidates:
    """The 2K likeliest continuations of each sentence's live hypotheses.

    logits (R, V), log_z (R,), live (B, K) log-probabilities, is_last (B,): only EOS may follow.
    """
    n_open, beam_size = live.shape
    logits[:, NEVER_GENERATED] = MINUS_INFINITY
    values, tokens = _top_k(logits, min(2 * beam_size, logits.shape[1]))  # (R, C)
    if is_last is not None:
        rows = is_last.repeat_interleave(beam_size).nonzero().flatten()
        values[rows], tokens[rows] = MINUS_INFINITY, EOS
        values[rows, 0] = logits[rows, EOS]
    log_probs = (values - log_z.unsqueeze(1)).view(n_open, beam_size, -1)  # (B, K, C)
    flat = (live.unsqueeze(2) + log_probs).flatten(1)  # (B, K * C)
    best, where = flat.topk(2 * beam_size)  # (B, 2K)
    return _Candidates(
        best,
        tokens.view(n_open, -1).gather(1, where),
        where.div(values.shape[1], rounding_mode="floor"),
    )


def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, largest first: logits (R, V) -> values and indices (R, k).

    The k largest lie in the k blocks with the largest maxima, and maxima are quick to find: on a
    CPU this takes half the time of `topk` over whole rows.
    """
    n_rows, vocab_size = logits.shape
    n_blocks = vocab_size // TOP_K_BLOCK
    if n_blocks < 2 * k or logits.device.type != "cpu":
        return logits.topk(k)
    blocks = logits[:, : n_blocks * TOP_K_BLOCK].view(n_rows, n_blocks, TOP_K_BLOCK)
    chosen = blocks.amax(2).topk(k).indices  # (R, k) blocks
    ids = (chosen.unsqueeze(2) * TOP_K_BLOCK + torch.arange(TOP_K_BLOCK)).flatten(1)
    rest = torch.arange(n_blocks * TOP_K_BLOCK, vocab_size).expand(n_rows, -1)
    ids = torch.cat([ids, rest], 1)  # (R, k * block + rest)
    values, where = logits.gather(1, ids).topk(k)  # (R, k)
    return values, ids.gather(1, where)


@dataclass(slots=True)
class _Finished:
    """The best K finished hypotheses of each sentence, best first; -inf where there are fewer."""

    scores: Tensor  # (B, K)
    log_probs: Tensor  # (B, K)
    lengths: Tensor  # (B, K) tokens with EOS
    parents: Tensor  # (B, K) which of the K live ones of the step before was ended
    counts: Tensor  # (B,) all that were finished, remembered here or not

    @classmethod
    def none(cls, n_sentences: int, beam_size: int, device: torch.device) -> _Finished:
        scores = torch.full((n_sentences, beam_size), MINUS_INFINITY, device=device)
        zeros = torch.zeros_like(scores, dtype=torch.int64)
        return cls(scores, scores.clone(), zeros, zeros.clone(), zeros[:, 0].clone())

    def joined_by(self, candidates: _Candidates, length: int, length_penalty: float) -> _Finished:
        """With the candidates that end here and rank among the first K."""
        beam_size = self.scores.shape[1]
        log_probs = candidates.log_probs[:, :beam_size]  # (B, K)
        is_end = (candidates.tokens[:, :beam_size] == EOS) & (log_probs > MINUS_INFINITY)
        log_probs = log_probs.masked_fill(~is_end, MINUS_INFINITY)
        scores = log_probs / length**length_penalty
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
        """Sentences of this are from now on what `other` holds at `positions`."""
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
    position = finished.parents[:, :n_best].cpu()  # (N, n_best) which of the K, at the step before
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
