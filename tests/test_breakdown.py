"""Groups are test sets of their own, words are counted on both sides, ranks tell of calibration."""

import numpy as np
import pytest

from mtrain.evaluation.breakdown import Breakdown, Grouping, WordBalance, break_down
from mtrain.evaluation.metrics import score_all, statistics

SOURCES = [" ".join(["word"] * (1 + i % 10)) for i in range(100)]
REFERENCES = [" ".join(f"wort{k}" for k in range(1 + i % 10)) for i in range(100)]
# Long sentences lose their second half; "wort0" becomes "immer" in every other line.
OUTPUTS = [
    " ".join(text.split()[:5]).replace("wort0", "immer" if i % 2 else "wort0")
    for i, text in enumerate(REFERENCES)
]


def break_lines(**facts: object) -> Breakdown:
    bleu, chrf = (statistics(name, OUTPUTS, REFERENCES, "de") for name in ("bleu", "chrf"))
    return break_down(SOURCES, OUTPUTS, REFERENCES, bleu, chrf, **facts)  # type: ignore[arg-type]


def grouping(breakdown: Breakdown, name: str) -> Grouping:
    return next(found for found in breakdown.groupings if found.name == name)


def test_every_sentence_is_in_one_group_of_each_grouping():
    counts = {"word": 5}
    breakdown = break_lines(training_counts=counts)
    names = ["source_length", "sentence_chrf", "rarest_word"]
    assert [found.name for found in breakdown.groupings] == names
    for found in breakdown.groupings:
        assert sum(group.n_sentences for group in found.groups) == 100
    assert [group.label for group in grouping(breakdown, "rarest_word").groups] == ["1-9 times"]


def test_a_group_scores_as_a_test_set_of_its_own():
    found = grouping(break_lines(), "source_length")
    assert [group.label for group in found.groups] == [
        *("1-2 words", "3-4 words", "5-6 words", "7-8 words", "9-10 words")
    ]
    lines = [i for i, source in enumerate(SOURCES) if len(source.split()) in (7, 8)]
    texts = ([OUTPUTS[i] for i in lines], [REFERENCES[i] for i in lines])
    expected = score_all(*texts, "de", intervals=False)
    assert found.groups[3].bleu == pytest.approx(expected["bleu"].score, abs=1e-9)
    assert found.groups[3].chrf == pytest.approx(expected["chrf"].score, abs=1e-9)
    assert found.groups[1].chrf > found.groups[4].chrf


def test_the_whole_scores_as_score_all_does():
    expected = score_all(OUTPUTS, REFERENCES, "de", intervals=False)
    for name, score in expected.items():
        found = statistics(name, OUTPUTS, REFERENCES, "de").score(range(100))
        assert found == pytest.approx(score.score, abs=1e-9)


def test_sentences_are_banded_by_their_own_chrf():
    breakdown = break_lines()
    alone = score_all([OUTPUTS[9]], [REFERENCES[9]], "de", intervals=False)["chrf"].score
    assert breakdown.sentence_chrf[9] == pytest.approx(alone, abs=1e-9)
    groups = grouping(breakdown, "sentence_chrf").groups
    best = sum(chrf >= 90 for chrf in breakdown.sentence_chrf)
    assert (groups[-1].label, groups[-1].n_sentences) == ("90-100", best)


def test_words_produced_too_often_and_too_seldom():
    breakdown = break_lines()
    assert breakdown.over_produced == [WordBalance("immer", 50, 0)]
    assert breakdown.under_produced[0] == WordBalance("wort5", 0, 50)
    assert {word.word for word in breakdown.under_produced} == {
        *("wort0", "wort5", "wort6", "wort7", "wort8", "wort9")
    }


def test_a_model_that_knows_when_it_is_wrong():
    chrf = np.array(break_lines().sentence_chrf)
    knows = break_lines(model_scores=(chrf**3).tolist()).calibration  # ranks are all that counts
    assert knows is not None
    assert knows.correlation == pytest.approx(1)
    assert [group.chrf for group in knows.groups] == sorted(group.chrf for group in knows.groups)
    opposite = break_lines(model_scores=(-chrf).tolist()).calibration
    assert opposite is not None
    assert opposite.correlation == pytest.approx(-1)
    noise = break_lines(model_scores=np.random.default_rng(1).random(100).tolist()).calibration
    assert noise is not None
    assert noise.low < 0 < noise.high


def test_what_cannot_be_known_is_skipped_with_a_sentence():
    skipped = break_lines().skipped
    assert set(skipped) == {"rarest_word", "calibration"}
    assert break_lines(model_scores=[0.0] * 100).skipped["calibration"].startswith("too few")
