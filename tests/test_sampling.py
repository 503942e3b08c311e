"""Choices of `generate`: random draws against known probabilities, and diverse hypotheses."""

import math
from collections import Counter

import pytest
import torch
from test_search import EOS, GARDEN_PATH, A, B, C, RandomTable, Table, log_prob_of
from torch import Tensor

from mtrain.decoding.sampling import Diverse, Sampler
from mtrain.decoding.search import Hypothesis, LengthPenalty, Sources, generate

PLAIN = LengthPenalty(0.0)
NARROW = {"temperature": 0.7, "top_k": 4, "top_p": 0.9}


def sources(n: int, first: int = 10, max_length: int = 6) -> Sources:
    src = torch.arange(first, first + n).unsqueeze(1)
    return Sources(src, None, torch.full((n,), max_length))


def draw(logits: Tensor, n: int, **options: float) -> Counter[int]:
    """How often each token is drawn from one row of logits, in n draws."""
    sampler = Sampler([7], **options)
    rows = logits.expand(n, -1).clone()
    is_open = torch.ones(1, n, dtype=torch.bool)
    tokens = sampler(rows, rows.logsumexp(-1), torch.tensor([0]), is_open, 1)
    return Counter(tokens.flatten().tolist())


LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0]).log()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3, 0.01 / 0.3]),
        ({"top_k": 2}, [0.4 / 0.7, 0.3 / 0.7]),
        ({"top_p": 0.65}, [0.4 / 0.7, 0.3 / 0.7]),
        ({"top_p": 0.75}, [0.4 / 0.9, 0.3 / 0.9, 0.2 / 0.9]),
        ({"top_k": 3, "top_p": 0.5}, [0.4 / 0.7, 0.3 / 0.7]),
        ({"top_p": 0.01}, [1.0]),
        ({"top_k": 1}, [1.0]),
    ],
)
def test_draws_follow_the_narrowed_distribution(options, expected):
    n = 4000
    counts = draw(LOGITS, n, **options)
    assert set(counts) == set(range(len(expected)))
    for token, probability in enumerate(expected):
        spread = math.sqrt(probability * (1 - probability) / n)
        assert counts[token] / n == pytest.approx(probability, abs=4 * spread + 1e-9)


def test_what_has_no_probability_is_never_drawn():
    logits = torch.full((6,), -math.inf)
    logits[3] = 1.0
    assert set(draw(logits, 500)) == {3}


@pytest.mark.parametrize("options", [{}, NARROW])
def test_samples_depend_on_their_own_key_alone(options):
    scorer, keys = RandomTable(9), [3, 1, 4, 1, 5]
    together = generate(scorer, sources(5), 3, Sampler(keys, **options), PLAIN)
    for i, key in enumerate(keys):
        [alone] = generate(scorer, sources(1, first=10 + i), 3, Sampler([key], **options), PLAIN)
        assert alone == together[i]
    others = generate(scorer, sources(5), 3, Sampler([key + 1 for key in keys], **options), PLAIN)
    assert others != together


def test_a_samples_score_is_that_of_teacher_forcing_however_it_was_drawn():
    scorer = RandomTable(9)
    for i, found in enumerate(generate(scorer, sources(5), 4, Sampler(range(5), **NARROW), PLAIN)):
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        for hypothesis in found:
            expected = log_prob_of(scorer, (10 + i,), hypothesis.tokens)
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-5)


def test_whole_outputs_are_drawn_as_often_as_they_are_likely():
    """From a 0.6 * 0.5 = 0.3: A A and A C; B ends in 0.36, B C in 0.04."""
    n = 2000
    [found] = generate(GARDEN_PATH, sources(1), n, Sampler([1]), PLAIN)
    counts = Counter(tuple(h.tokens) for h in found)
    expected = {(A, A): 0.3, (A, C): 0.3, (B,): 0.36, (B, C): 0.04}
    assert {output: counts[output] / n for output in counts} == pytest.approx(expected, abs=0.04)


def diverse(strength: float, n_hypotheses: int = 3) -> list[Hypothesis]:
    table = Table({(): {A: 0.5, B: 0.3, C: 0.2}, (A,): {EOS: 0.8, B: 0.2}})
    [found] = generate(table, sources(1), n_hypotheses, Diverse(strength), PLAIN)
    return found


def test_without_a_price_all_choose_the_likeliest():
    assert [h.tokens for h in diverse(0.0)] == [[A], [A], [A]]


def test_with_a_price_each_begins_with_another_word():
    assert sorted(h.tokens for h in diverse(5.0)) == [[A], [B], [C]]


def test_the_price_is_paid_once_for_each_that_took_the_word():
    """B beats A by 0.3 - (0.5 - D) when A is taken once: from log(5/3) = 0.51 on."""
    assert sorted(h.tokens for h in diverse(0.50, 2)) == [[A], [A]]
    assert sorted(h.tokens for h in diverse(0.52, 2)) == [[A], [B]]
    assert sorted(h.tokens for h in diverse(0.45, 3)) == [[A], [A], [B]]


def test_a_diverse_score_is_that_of_the_model():
    scorer = RandomTable(9)
    for i, found in enumerate(generate(scorer, sources(4), 3, Diverse(1.0), PLAIN)):
        for hypothesis in found:
            expected = log_prob_of(scorer, (10 + i,), hypothesis.tokens)
            assert hypothesis.score == pytest.approx(expected, abs=1e-5)
