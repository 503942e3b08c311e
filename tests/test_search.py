"""The search, against scorers that are tables, against brute force, and over a real Transformer."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mtrain.config.sections import ModelConfig
from mtrain.data.tokenizer import BOS, EOS, PAD
from mtrain.decoding.scorers import EnsembleScorer, Scorer, TransformerScorer, log_normaliser
from mtrain.decoding.search import (
    Hypothesis,
    LengthPenalty,
    Sources,
    _candidates,
    beam_search,
)
from mtrain.model.transformer import Transformer

A, B, C = 4, 5, 6  # words
PENALTIES = [0.0, 0.6, 1.0, 2.0]


@dataclass
class Rows:
    """What was fed so far: prefixes (R, t), BOS first, and the source of each row (R, S)."""

    src: Tensor
    prefixes: Tensor
    beam_size: int


class PrefixScorer:
    """Any function of (source ids, generated ids) -> logits (V,), one row at a time."""

    def __init__(self) -> None:
        self.rows_per_step: list[int] = []

    def logits(self, src: tuple[int, ...], generated: tuple[int, ...]) -> Tensor:
        raise NotImplementedError

    def start(self, src: Tensor, src_mask: Tensor | None, beam_size: int) -> Rows:
        rows = src.repeat_interleave(beam_size, 0)
        return Rows(rows, torch.empty(len(rows), 0, dtype=torch.int64), beam_size)

    def step(self, state: Rows, tokens: Tensor) -> tuple[Tensor, Tensor]:
        assert len(tokens) == len(state.prefixes)
        self.rows_per_step.append(len(tokens))
        state.prefixes = torch.cat([state.prefixes, tokens.unsqueeze(1)], 1)
        rows = zip(state.src.tolist(), state.prefixes.tolist(), strict=True)
        logits = torch.stack(
            [self.logits(tuple(i for i in src if i != PAD), tuple(p[1:])) for src, p in rows]
        )
        return logits, logits.logsumexp(-1)

    def reorder(self, state: Rows, rows: Tensor) -> None:
        sentences = torch.arange(len(rows)) // state.beam_size
        assert torch.equal(rows // state.beam_size, sentences)
        state.prefixes = state.prefixes[rows]

    def keep(self, state: Rows, sentences: Tensor) -> None:
        rows = (sentences.unsqueeze(1) * state.beam_size + torch.arange(state.beam_size)).flatten()
        state.src, state.prefixes = state.src[rows], state.prefixes[rows]


class Table(PrefixScorer):
    """Probabilities by hand; after a prefix that is not listed, the sentence ends."""

    def __init__(self, table: dict[tuple[int, ...], dict[int, float]]) -> None:
        super().__init__()
        self.table = table

    def logits(self, src: tuple[int, ...], generated: tuple[int, ...]) -> Tensor:
        row = torch.full((7,), -math.inf)
        for token, probability in self.table.get(generated, {EOS: 1.0}).items():
            row[token] = math.log(probability)
        return row + 3.0  # unnormalised, as logits are


class RandomTable(PrefixScorer):
    """Random logits, a fixed function of the source and the prefix; PAD and BOS look tempting."""

    def __init__(self, vocab_size: int = 6, spread: float = 1.5) -> None:
        super().__init__()
        self.vocab_size, self.spread = vocab_size, spread

    def logits(self, src: tuple[int, ...], generated: tuple[int, ...]) -> Tensor:
        seed = hash((src, generated)) % 2**31  # hashes of tuples of integers are not salted
        row = torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(seed))
        row[PAD], row[BOS] = 2.0, 3.0
        return row * self.spread


def search(scorer: Scorer, n: int = 1, max_length: int = 5, **options: object) -> list:
    src = torch.arange(n).unsqueeze(1) + 10  # (N, 1)
    sources = Sources(src, None, torch.full((n,), max_length), options.pop("prefixes", None))
    options = {
        "beam_size": 2,
        "penalty": LengthPenalty(options.pop("length_penalty", 1.0)),
    } | options
    return beam_search(scorer, sources, **options)


def log_prob_of(scorer: PrefixScorer, src: tuple[int, ...], tokens: list[int]) -> float:
    """Teacher forcing: the sum over all tokens and EOS."""
    total = 0.0
    for i, token in enumerate([*tokens, EOS]):
        total += float(scorer.logits(src, tuple(tokens[:i])).log_softmax(-1)[token])
    return total


def brute_force(
    scorer: PrefixScorer, src: tuple[int, ...], max_length: int, length_penalty: float
) -> list[tuple[list[int], float]]:
    """Every output of at most max_length tokens (EOS included), best first."""
    words = [i for i in range(scorer.vocab_size) if i not in (PAD, BOS, EOS)]
    outputs = [
        (list(tokens), log_prob_of(scorer, src, list(tokens)) / (n + 1) ** length_penalty)
        for n in range(max_length)
        for tokens in itertools.product(words, repeat=n)
    ]
    return sorted(outputs, key=lambda output: -output[1])


# -- by hand ---------------------------------------------------------------------------------

GARDEN_PATH = Table(
    {(): {A: 0.6, B: 0.4}, (A,): {A: 0.5, C: 0.5}, (B,): {EOS: 0.9, C: 0.1}}
)  # A looks better at first: 0.6 * 0.5 = 0.30; but B ends well: 0.4 * 0.9 = 0.36


def test_greedy_follows_the_likeliest_token():
    [[best]] = search(GARDEN_PATH, beam_size=1, length_penalty=0.0)
    assert best.tokens == [A, A]
    assert best.log_prob == pytest.approx(math.log(0.6 * 0.5 * 1.0))


def test_a_beam_sees_past_a_good_beginning():
    [[best]] = search(GARDEN_PATH, beam_size=2, length_penalty=0.0)
    assert best.tokens == [B]
    assert best.log_prob == pytest.approx(math.log(0.4 * 0.9))


@pytest.mark.parametrize("beam_size", [1, 2])
def test_the_score_divides_by_the_length_with_eos(beam_size):
    [[best]] = search(Table({(): {A: 0.5, B: 0.5}}), beam_size=beam_size, length_penalty=0.7)
    assert best.log_prob == pytest.approx(math.log(0.5))
    assert best.score == pytest.approx(math.log(0.5) / 2**0.7)


def test_the_length_penalty_prefers_longer_outputs():
    table = Table({(): {A: 0.5, B: 0.5}, (A,): {EOS: 1.0}, (B,): {C: 0.9}, (B, C): {EOS: 1.0}})
    short, long = math.log(0.5), math.log(0.5 * 0.9)
    table.table[(B,)][A] = 0.1
    [[plain]] = search(table, length_penalty=0.0, beam_size=3, exact_stop=True)
    [[normalised]] = search(table, length_penalty=1.0, beam_size=3, exact_stop=True)
    assert (plain.tokens, plain.score) == ([A], pytest.approx(short))
    assert (normalised.tokens, normalised.score) == ([B, C], pytest.approx(long / 3))


@pytest.mark.parametrize("beam_size", [1, 2])
def test_gnmts_penalty_is_the_papers(beam_size):
    [[best]] = search(
        Table({(): {A: 0.5, B: 0.5}}), beam_size=beam_size, penalty=LengthPenalty(0.6, "gnmt")
    )
    assert best.score == pytest.approx(math.log(0.5) / ((5 + 2) / 6) ** 0.6)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_the_maximum_length_forces_eos_at_its_true_price(beam_size):
    endless = Table({(A,) * n: {A: 0.9, EOS: 0.1} for n in range(10)})
    [[best]] = search(endless, beam_size=beam_size, max_length=4, length_penalty=9.0)
    assert best.tokens == [A, A, A]
    assert best.log_prob == pytest.approx(3 * math.log(0.9) + math.log(0.1))


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_maximum_of_one_leaves_only_eos(beam_size):
    scorer = RandomTable()
    [[best]] = search(scorer, max_length=1, beam_size=beam_size)
    assert best.tokens == []
    assert best.log_prob == pytest.approx(log_prob_of(scorer, (10,), []))


@pytest.mark.parametrize(("beam_size", "n_steps"), [(1, 2), (2, 2)])
def test_it_stops_as_soon_as_the_rule_allows(beam_size, n_steps):
    """Two finished after two steps, and no live one better: step 3 never happens."""
    table = Table({(): {A: 0.6, B: 0.4}, (A,): {EOS: 0.9, C: 0.1}, (B,): {EOS: 0.9, C: 0.1}})
    search(table, beam_size=beam_size, length_penalty=1.0)
    assert len(table.rows_per_step) == n_steps


def test_a_live_hypothesis_that_beats_the_best_at_its_present_length_goes_on():
    table = Table(
        {
            (): {EOS: 0.3, A: 0.6, B: 0.1},
            (A,): {C: 0.95, EOS: 0.05},  # EOS after A and after nothing: two finished, A C leads
            (A, C): {EOS: 1.0},
        }
    )
    [[best]] = search(table, beam_size=2, length_penalty=1.0)
    assert best.tokens == [A, C]
    assert best.score == pytest.approx(math.log(0.6 * 0.95) / 3)


def test_exact_stop_waits_for_what_length_could_still_bring():
    """After two steps two are finished, and A C (0.06) is far behind; but it is sure to go on."""
    long = (A, C, C, C, C)
    table = Table({(): {A: 0.6, B: 0.4}, (A,): {EOS: 0.9, C: 0.1}, (B,): {EOS: 0.9, C: 0.1}})
    table.table |= {long[:n]: {C: 1.0} for n in range(2, 5)}
    [[early]] = search(table, beam_size=2, length_penalty=2.0, max_length=7)
    [[exact]] = search(table, beam_size=2, length_penalty=2.0, max_length=7, exact_stop=True)
    assert (early.tokens, early.score) == ([A], pytest.approx(math.log(0.54) / 4))
    assert (exact.tokens, exact.score) == (list(long), pytest.approx(math.log(0.06) / 36))


# -- against brute force ---------------------------------------------------------------------


@pytest.mark.parametrize("length_penalty", PENALTIES)
def test_a_wide_beam_with_exact_stop_equals_brute_force(length_penalty):
    scorer = RandomTable()
    found = search(
        scorer, n=12, max_length=4, beam_size=30, length_penalty=length_penalty, n_best=5,
        exact_stop=True,
    )  # fmt: skip
    for i, hypotheses in enumerate(found):
        expected = brute_force(scorer, (10 + i,), 4, length_penalty)[:5]
        assert [h.tokens for h in hypotheses] == [tokens for tokens, _ in expected]
        assert [h.score for h in hypotheses] == pytest.approx([score for _, score in expected])


def test_a_narrow_beam_with_exact_stop_never_scores_worse_than_without():
    for length_penalty in PENALTIES:
        options = {"n": 30, "max_length": 8, "beam_size": 3, "length_penalty": length_penalty}
        fast = search(RandomTable(9), **options)
        exact = search(RandomTable(9), exact_stop=True, **options)
        pairs = list(zip(fast, exact, strict=True))
        assert all(b[0].score >= a[0].score for a, b in pairs)


def test_greedy_equals_the_definition():
    scorer = RandomTable(9)
    for i, [best] in enumerate(search(scorer, n=40, max_length=6, beam_size=1)):
        generated: list[int] = []
        while len(generated) < 5:
            logits = scorer.logits((10 + i,), tuple(generated))
            logits[[PAD, BOS]] = -math.inf
            token = int(logits.argmax())
            if token == EOS:
                break
            generated.append(token)
        assert best.tokens == generated


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("length_penalty", PENALTIES)
def test_the_score_is_that_of_teacher_forcing(beam_size, length_penalty):
    scorer = RandomTable(9)
    found = search(scorer, n=20, max_length=6, beam_size=beam_size, length_penalty=length_penalty,
                   n_best=beam_size)  # fmt: skip
    for i, hypotheses in enumerate(found):
        assert hypotheses
        for hypothesis in hypotheses:
            expected = log_prob_of(scorer, (10 + i,), hypothesis.tokens)
            length = len(hypothesis.tokens) + 1
            assert length <= 6
            assert not {PAD, BOS, EOS} & set(hypothesis.tokens)
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-5)
            assert hypothesis.score == pytest.approx(expected / length**length_penalty, abs=1e-5)


def test_n_best_is_sorted_distinct_and_starts_with_the_best():
    one = search(RandomTable(9), n=20, beam_size=5)
    many = search(RandomTable(9), n=20, beam_size=5, n_best=5)
    for [best], hypotheses in zip(one, many, strict=True):
        assert hypotheses[0] == best
        assert 1 < len(hypotheses) <= 5
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(h.tokens) for h in hypotheses}) == len(hypotheses)


@pytest.mark.parametrize("n_best", [0, 3])
def test_n_best_beyond_the_beam_is_refused(n_best):
    with pytest.raises(ValueError, match="must be from 1 to the beam size 2"):
        search(GARDEN_PATH, beam_size=2, n_best=n_best)


def test_no_sentences_give_no_hypotheses():
    assert search(GARDEN_PATH, n=0) == []


@pytest.mark.parametrize("vocab_size", [7, 100, 101, 799, 1600, 3333])
def test_the_best_candidates_are_found_block_by_block(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(12, vocab_size, generator=generator)  # 4 sentences, a beam of 3
    logits[:, [PAD, BOS]] = -math.inf
    logits[3, -5:] = torch.arange(5) + 10.0  # all of the best in one row, at its end
    live = torch.randn(4, 3, generator=generator)
    live[2, 1:] = -math.inf
    log_z = logits.logsumexp(1)
    found = _candidates(logits.clone(), log_z, live)
    whole = (live.unsqueeze(2) + (logits - log_z.unsqueeze(1)).view(4, 3, -1)).flatten(1)
    expected = whole.topk(6)
    finite = expected.values > -math.inf
    torch.testing.assert_close(found.log_probs, expected.values)
    where = found.parents * vocab_size + found.tokens
    assert torch.equal(where[finite], expected.indices[finite])


# -- beginnings that are given ---------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 3])
def test_an_output_begins_as_it_is_told_to_and_pays_for_it(beam_size):
    scorer = RandomTable(9)
    prefixes = torch.tensor([[4, 7, 5], [6, PAD, PAD], [PAD, PAD, PAD], [8, 8, PAD]])
    found = search(scorer, n=4, max_length=7, beam_size=beam_size, prefixes=prefixes)
    free = search(scorer, n=4, max_length=7, beam_size=beam_size)
    for i, (prefix, [best]) in enumerate(zip(prefixes.tolist(), found, strict=True)):
        given = [token for token in prefix if token != PAD]
        assert best.tokens[: len(given)] == given
        assert best.log_prob == pytest.approx(log_prob_of(scorer, (10 + i,), best.tokens), abs=1e-5)
    assert found[2] == free[2]


def test_the_best_with_a_beginning_is_the_best_of_those_that_begin_so():
    scorer = RandomTable()
    prefixes = torch.tensor([[4], [5], [4]])
    found = search(
        scorer, n=3, max_length=4, beam_size=30, exact_stop=True, prefixes=prefixes, n_best=3
    )
    for i, hypotheses in enumerate(found):
        beginning = prefixes[i].tolist()
        every = brute_force(scorer, (10 + i,), 4, 1.0)
        expected = [tokens for tokens, _ in every if tokens[:1] == beginning][:3]
        assert [h.tokens for h in hypotheses] == expected


# -- several models --------------------------------------------------------------------------


class Other(RandomTable):
    """Another table of the same size."""

    def logits(self, src: tuple[int, ...], generated: tuple[int, ...]) -> Tensor:
        return super().logits((*src, 99), generated)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_an_ensemble_averages_probabilities(beam_size):
    members = [RandomTable(9), Other(9), RandomTable(9)]
    found = search(EnsembleScorer(members), n=8, max_length=6, beam_size=beam_size)
    for i, [best] in enumerate(found):
        total = 0.0
        for t, token in enumerate([*best.tokens, EOS]):
            prefix = tuple(best.tokens[:t])
            rows = [m.logits((10 + i,), prefix).softmax(-1)[token] for m in members]
            total += math.log(float(sum(rows)) / 3)
        assert best.log_prob == pytest.approx(total, abs=1e-5)


# -- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("exact_stop", [False, True])
def test_companions_change_nothing(beam_size, exact_stop):
    scorer = RandomTable(9)
    src = torch.arange(24).unsqueeze(1) + 10
    max_lengths = torch.arange(24) % 7 + 2
    options = {"beam_size": beam_size, "penalty": LengthPenalty(), "n_best": beam_size,
               "exact_stop": exact_stop}  # fmt: skip
    together = beam_search(scorer, Sources(src, None, max_lengths), **options)
    for i, expected in enumerate(together):
        one = Sources(src[i : i + 1], None, max_lengths[i : i + 1])
        [alone] = beam_search(scorer, one, **options)
        assert alone == expected


@pytest.mark.parametrize("beam_size", [1, 4])
def test_finished_sentences_leave_the_batch(beam_size):
    class Counted(PrefixScorer):
        """Sentence n (source 10 + n) is n words long, whatever it says."""

        def logits(self, src: tuple[int, ...], generated: tuple[int, ...]) -> Tensor:
            row = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0, 2.0, 1.0])
            row[EOS] = 30.0 if len(generated) >= src[0] - 10 else -30.0
            return row

    scorer = Counted()
    found = search(scorer, n=8, max_length=20, beam_size=beam_size)
    assert [len(hypotheses[0].tokens) for hypotheses in found] == list(range(8))
    rows = scorer.rows_per_step
    assert rows[0] == 8 * beam_size
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == beam_size


# -- over a Transformer ----------------------------------------------------------------------

VOCAB = 23


class Uncached:
    """The same model, run over the whole prefix at every step."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def start(self, src: Tensor, src_mask: Tensor | None, beam_size: int) -> dict:
        return {"beam": beam_size, "src": src, "mask": src_mask, "prefix": torch.empty(0)}

    def step(self, state: dict, tokens: Tensor) -> tuple[Tensor, Tensor]:
        known = state["prefix"].view(len(tokens), -1).long()
        state["prefix"] = torch.cat([known, tokens.unsqueeze(1)], 1)
        src = state["src"].repeat_interleave(state["beam"], 0)
        mask = state["mask"]
        mask = mask if mask is None else mask.repeat_interleave(state["beam"], 0)
        logits = self.model(src, state["prefix"], mask)[:, -1].float()
        return logits, logits.logsumexp(-1)

    def reorder(self, state: dict, rows: Tensor) -> None:
        state["prefix"] = state["prefix"][rows]

    def keep(self, state: dict, sentences: Tensor) -> None:
        rows = sentences.unsqueeze(1) * state["beam"] + torch.arange(state["beam"])
        state["prefix"] = state["prefix"][rows.flatten()]
        state["src"] = state["src"][sentences]
        state["mask"] = None if state["mask"] is None else state["mask"][sentences]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = ModelConfig(
        d_model=16, d_ff=32, n_heads=2, n_encoder_layers=2, n_decoder_layers=2, dropout=0.0
    )
    model = Transformer(config, VOCAB, VOCAB).eval()
    with torch.no_grad():  # spread the logits, so that no two hypotheses are close to equal
        model.output.weight.mul_(2.0)
    return model


def sentences(n: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 9, (n,), generator=generator).tolist()
    return [[*torch.randint(4, VOCAB, (m,), generator=generator).tolist(), EOS] for m in lengths]


def padded(rows: list[list[int]], extra: int = 0) -> tuple[Tensor, Tensor | None]:
    """Source ids (N, S) and their mask, with `extra` columns of padding more than needed."""
    width = max(map(len, rows)) + extra
    src = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = (src != PAD)[:, None, None, :]
    return src, None if bool(mask.all()) else mask


def translate(
    scorer: Scorer, rows: list[list[int]], extra: int = 0, beam_size: int = 4, **options: object
) -> list[list[Hypothesis]]:
    src, mask = padded(rows, extra)
    limits = torch.tensor([len(row) + 6 for row in rows])
    sources = Sources(src, mask, limits)
    return beam_search(
        scorer, sources, beam_size, LengthPenalty(), n_best=min(3, beam_size), **options
    )


def assert_same(a: list[list[Hypothesis]], b: list[list[Hypothesis]]) -> None:
    for left, right in zip(a, b, strict=True):
        assert [h.tokens for h in left] == [h.tokens for h in right]
        assert [h.score for h in left] == pytest.approx([h.score for h in right], abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("extra", [0, 3])
def test_a_transformer_translates_alone_as_in_company(model, beam_size, extra):
    scorer, rows = TransformerScorer(model), sentences()
    together = translate(scorer, rows, extra, beam_size)
    alone = [translate(scorer, [row], 0, beam_size)[0] for row in rows]
    assert_same(together, alone)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_the_cache_changes_nothing(model, beam_size):
    rows = sentences()
    cached = translate(TransformerScorer(model), rows, 1, beam_size)
    assert_same(cached, translate(Uncached(model), rows, 1, beam_size))


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_transformers_score_is_that_of_teacher_forcing(model, beam_size):
    rows = sentences()
    for row, hypotheses in zip(
        rows, translate(TransformerScorer(model), rows, beam_size=beam_size), strict=True
    ):
        for hypothesis in hypotheses:
            tgt = torch.tensor([[BOS, *hypothesis.tokens, EOS]])
            with torch.no_grad():
                logits = model(torch.tensor([row]), tgt[:, :-1], None)
            log_probs = logits.log_softmax(-1).gather(2, tgt[:, 1:, None])
            assert hypothesis.log_prob == pytest.approx(float(log_probs.sum()), abs=1e-4)


def test_a_transformers_widest_beam_is_exact(model):
    """Outputs of at most 3 tokens over 21 words: 1 + 20 + 400 of them, and none is missed."""
    rows = sentences(2)
    src, mask = padded(rows)
    words = [i for i in range(VOCAB) if i not in (PAD, BOS, EOS)]
    outputs = [list(t) for n in range(3) for t in itertools.product(words, repeat=n)]
    sources = Sources(src, mask, torch.tensor([3, 3]))
    scorer = TransformerScorer(model)
    found = beam_search(scorer, sources, 420, LengthPenalty(0.8), 3, exact_stop=True)
    for row, hypotheses in zip(rows, found, strict=True):
        tgt = torch.tensor([[BOS, *o, EOS] + [PAD] * (2 - len(o)) for o in outputs])  # (O, 4)
        with torch.no_grad():
            logits = model(torch.tensor([row]).expand(len(outputs), -1), tgt[:, :-1], None)
        gold = tgt[:, 1:]
        log_probs = logits.log_softmax(-1).gather(2, gold.unsqueeze(2)).squeeze(2)
        lengths = (gold != PAD).sum(1)
        scores = (log_probs * (gold != PAD)).sum(1) / lengths**0.8
        best, where = scores.topk(3)
        assert [h.tokens for h in hypotheses] == [outputs[i] for i in where.tolist()]
        assert [h.score for h in hypotheses] == pytest.approx(best.tolist(), abs=1e-5)


def test_the_normaliser_is_the_log_of_the_sum():
    logits = torch.randn(3, 5, 700, generator=torch.Generator().manual_seed(1)) * 9
    torch.testing.assert_close(log_normaliser(logits), logits.logsumexp(-1))


def test_bfloat16_products_change_little(model):
    """The same search, but for rounding; the model itself is left as it is."""
    rows = sentences()
    precise = translate(TransformerScorer(model), rows)
    before = model.output.weight.clone()
    scorer = TransformerScorer(model, "bf16")
    rough = translate(scorer, rows)
    assert scorer.model.decoder[0].feed_forward.inner.weight.dtype == torch.bfloat16
    assert scorer.model.src_embedding.weight.dtype == torch.float32
    assert torch.equal(model.output.weight, before)
    scores = [[found[0].score for found in both] for both in (precise, rough)]
    assert scores[1] == pytest.approx(scores[0], abs=0.05)
    assert scores[1] != scores[0]
