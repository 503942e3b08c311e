"""Minimum Bayes risk: chrF as sacreBLEU computes it, and the choice that it leads to."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from mtrain.decoding.sampling import by_agreement, pairwise_chrf

TEXTS = st.lists(st.text("abc dä漢.", max_size=14), min_size=1, max_size=5)


@given(texts=TEXTS)
@settings(max_examples=60)
def test_it_is_sacrebleus_sentence_chrf(texts):
    chrf = CHRF()
    scores = pairwise_chrf(texts)
    for i, hypothesis in enumerate(texts):
        for j, reference in enumerate(texts):
            expected = chrf.sentence_score(hypothesis, [reference]).score
            assert scores[i, j] == pytest.approx(expected, abs=1e-9)


def test_samples_are_ordered_by_agreement_each_text_once():
    assert by_agreement(["cats sleep", "a dog runs", "a dog ran", "a dog runs"]) == [1, 2, 0]
    assert by_agreement(["A dog runs.", "A dog is running.", *["Cats sleep."] * 20])[0] == 2


def test_one_text_is_its_own_reference():
    assert by_agreement(["A dog."] * 3) == [0]
    assert pairwise_chrf(["A dog."])[0, 0] == pytest.approx(100.0)
