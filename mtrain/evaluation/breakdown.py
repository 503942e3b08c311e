"""Where a model goes wrong: scores by group of sentences, by word, and by the model's confidence.

Groups are scored as small test sets of their own, by the same metrics as the whole. Sentences are
ranked by their chrF, which is meaningful for a single sentence; BLEU is not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtrain.data.cleaning import count_words
from mtrain.evaluation.faults import units
from mtrain.evaluation.metrics import Statistics

N_GROUPS = 5  # of sentences by length, and by the model's score
N_WORDS = 20  # of each list of words
_WORD = re.compile(r"\w+")
_COUNT_EDGES = (1, 10, 100, 1000)  # of a word's count in the training data
_SURPRISE = 2.0  # standard deviations of a difference of two counts


@dataclass(frozen=True, slots=True)
class Group:
    """Some sentences of a test set, scored separately."""

    label: str  # such as "8-11 words"
    n_sentences: int
    bleu: float
    chrf: float


ScoreGroup = Callable[[str, NDArray[np.int64]], Group]  # of a label and line numbers


@dataclass(frozen=True, slots=True)
class Grouping:
    """A test set cut into groups by one property of its sentences."""

    name: str  # source_length, rarest_word, sentence_chrf, model_score
    title: str
    groups: list[Group]


@dataclass(frozen=True, slots=True)
class WordBalance:
    """A target word that is more, or less, frequent in the outputs than in the references."""

    word: str
    n_output: int
    n_reference: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Does the model know when it is wrong?

    `correlation` is Spearman's, of the model's score with chrF over sentences: 1 if the model ranks
    its outputs as chrF does, 0 if its score is unrelated. `low` and `high` are the ends of its 95 %
    interval (Fisher's transformation, with the variance of Bonett and Wright, 2000).
    """

    correlation: float
    low: float
    high: float
    groups: list[Group]  # from the least to the most confident


@dataclass(frozen=True, slots=True)
class Breakdown:
    """All breakdowns of one test set."""

    sentence_chrf: list[float]  # of every line
    groupings: list[Grouping]
    over_produced: list[WordBalance]  # most surprising first
    under_produced: list[WordBalance]
    calibration: Calibration | None
    skipped: dict[str, str] = field(default_factory=dict)  # name -> why it is missing


def break_down(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    bleu: Statistics,
    chrf: Statistics,
    *,
    model_scores: Sequence[float] | None = None,
    training_counts: Mapping[str, int] | None = None,
) -> Breakdown:
    """Split a test set into groups and score each.

    bleu, chrf        of these hypotheses and references, line by line
    model_scores      log-probability / length^p of each output
    training_counts   count in the training data of each lower-cased source word
    """

    def score(label: str, lines: NDArray[np.int64]) -> Group:
        return Group(label, len(lines), bleu.score(lines), chrf.score(lines))

    each = np.array(chrf.of_each())
    lengths = np.array([count_words(source) for source in sources], dtype=float)
    band = np.minimum(each // 10, 9).astype(int)
    bands = [score(f"{10 * i}-{10 * i + 10}", np.flatnonzero(band == i)) for i in np.unique(band)]
    by_length = _by_quantiles(lengths, score, _length_label)
    groupings = [
        Grouping("source_length", "source length", by_length),
        Grouping("sentence_chrf", "chrF of the sentence", bands),  # empty ones are left out
    ]
    skipped = {}
    if training_counts is None:
        skipped["rarest_word"] = "this run has no word counts of its training data"
    else:
        groupings.append(_by_rarest_word(sources, training_counts, score))
    calibration = None
    if model_scores is None:
        skipped["calibration"] = "the model's own scores were not kept"
    else:
        calibration = _calibrate(np.array(model_scores), each, score)
        if calibration is None:
            skipped["calibration"] = "too few sentences, or all with the same score"
    over, under = _word_balance(hypotheses, references)
    return Breakdown(each.tolist(), groupings, over, under, calibration, skipped)


# -- groups ----------------------------------------------------------------------------------


def _length_label(low: float, high: float) -> str:
    return f"{low:.0f} words" if low == high else f"{low:.0f}-{high:.0f} words"


def _by_quantiles(
    values: NDArray[np.float64], score: ScoreGroup, label: Callable[[float, float], str]
) -> list[Group]:
    """N_GROUPS groups of about one size; equal values stay together."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, N_GROUPS + 1)[1:-1]))
    number = np.searchsorted(edges, values, side="left")
    groups = []
    for i in np.unique(number):
        lines = np.flatnonzero(number == i)
        groups.append(score(label(values[lines].min(), values[lines].max()), lines))
    return groups


def _by_rarest_word(
    sources: Sequence[str], counts: Mapping[str, int], score: ScoreGroup
) -> Grouping:
    """Groups by the training count of the rarest source word."""
    rarest = np.array(
        [
            min((counts.get(word, 0) for word in _WORD.findall(source.lower())), default=0)
            for source in sources
        ]
    )
    number = np.searchsorted(_COUNT_EDGES, rarest, side="right")
    labels = ["never", "1-9 times", "10-99 times", "100-999 times", "1,000 times or more"]
    groups = [score(labels[i], np.flatnonzero(number == i)) for i in np.unique(number)]
    return Grouping("rarest_word", "rarest source word in training", groups)


# -- words -----------------------------------------------------------------------------------


def _word_balance(
    hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[list[WordBalance], list[WordBalance]]:
    """Words produced too often, and too rarely, most surprising difference first.

    Two counts with the same expectation differ by at most sqrt(n + m) two times out of three.
    """
    outputs, expected = (
        Counter(unit for text in side for unit in units(text) if unit[0].isalnum())
        for side in (hypotheses, references)
    )
    surprise = {
        word: (outputs[word] - expected[word]) / (outputs[word] + expected[word]) ** 0.5
        for word in outputs.keys() | expected.keys()
    }
    ranked = sorted(surprise, key=lambda word: (-abs(surprise[word]), word))
    balance = {word: WordBalance(word, outputs[word], expected[word]) for word in ranked}
    over = [balance[word] for word in ranked if surprise[word] >= _SURPRISE]
    under = [balance[word] for word in ranked if surprise[word] <= -_SURPRISE]
    return over[:N_WORDS], under[:N_WORDS]


# -- the model's own score -------------------------------------------------------------------


def _calibrate(
    scores: NDArray[np.float64], each: NDArray[np.float64], score: ScoreGroup
) -> Calibration | None:
    n = len(scores)
    if n < 10 or np.ptp(scores) == 0 or np.ptp(each) == 0:
        return None
    correlation = float(np.corrcoef(_ranks(scores), _ranks(each))[0, 1])
    deviation = ((1 + correlation**2 / 2) / (n - 3)) ** 0.5
    centre = np.arctanh(np.clip(correlation, -0.999999, 0.999999))
    low, high = np.tanh([centre - 1.96 * deviation, centre + 1.96 * deviation])
    groups = _by_quantiles(scores, score, lambda low, high: f"{low:.2f} to {high:.2f}")
    return Calibration(correlation, float(low), float(high), groups)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; equal values get the mean of their ranks."""
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    assert len(unique) == len(counts)
    mean_rank = np.cumsum(counts) - (counts + 1) / 2
    return mean_rank[inverse]
