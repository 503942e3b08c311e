"""Drawn cuts: as SentencePiece cuts where nothing is left to chance, as the formulas say else."""

import io
import math
from collections import Counter
from random import Random

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from mtrain.data.subwords import BpeCutter, UnigramCutter, merge

WORDS = ["dog", "dogs", "doggy", "fog", "foggy", "go", "goggles", "log", "logged", "gods", "do"]


def processor(kind: str) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" ".join(Random(i).choices(WORDS, k=6)) for i in range(200)),
        model_writer=model,
        model_type=kind,
        vocab_size=310,
        hard_vocab_limit=False,
        byte_fallback=True,
        user_defined_symbols=["@g@"],
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=3,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


UNIGRAM, BPE = processor("unigram"), processor("bpe")
words = st.text(st.sampled_from("dogslfey@ä"), min_size=1, max_size=12)


@given(words)
def test_without_dropout_bpe_is_sentencepieces(word):
    assert BpeCutter(BPE, 0.0, ["@g@"])(word, 0.7) == BPE.encode(word)


@given(words)
def test_the_first_cut_of_a_unigram_model_is_sentencepieces(word):
    assert UnigramCutter(UNIGRAM, 0.3)(word, 0.0) == UNIGRAM.encode(word)


@given(words, st.floats(0, 1, exclude_max=True))
def test_every_cut_spells_the_word(word, u):
    assert UNIGRAM.decode(UnigramCutter(UNIGRAM, 0.1)(word, u)) == word
    assert BPE.decode(BpeCutter(BPE, 0.5, ["@g@"])(word, u)) == word


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_unigram_cuts_come_in_proportion_to_their_probability(strength):
    cutter = UnigramCutter(UNIGRAM, strength)
    n = 20_000
    drawn = Counter(tuple(cutter("doggy", (i + 0.5) / n)) for i in range(n))
    logs = {cut: strength * sum(map(UNIGRAM.get_score, cut)) for cut in drawn}
    total = sum(map(math.exp, logs.values()))
    assert len(drawn) > 2
    for cut, count in drawn.items():
        assert count / n == pytest.approx(math.exp(logs[cut]) / total, abs=2e-3)


def test_dropout_leaves_out_so_many_merges():
    random = Random(1)
    n = 4000
    joined = sum(merge(["a", "b"], {"ab": -1.0}, 0.3, random) == ["ab"] for _ in range(n))
    assert joined / n == pytest.approx(0.7, abs=0.03)
    assert merge(list("abcd"), {"ab": -2.0, "bc": -1.0}, 0.0, random) == ["a", "bc", "d"]


def test_what_is_forgotten_is_cut_the_same(monkeypatch):
    kept = [BpeCutter(BPE, 0.5, []), UnigramCutter(UNIGRAM, 0.2)]
    expected = [[cutter(word, u) for word in WORDS for u in (0.1, 0.6)] for cutter in kept]
    monkeypatch.setattr("mtrain.data.subwords._MAX_WORDS", 2)
    monkeypatch.setattr("mtrain.data.subwords._MAX_CUTS", 2)
    forgetful = [BpeCutter(BPE, 0.5, []), UnigramCutter(UNIGRAM, 0.2)]
    for _ in range(2):
        found = [[cutter(word, u) for word in WORDS for u in (0.1, 0.6)] for cutter in forgetful]
        assert found == expected
