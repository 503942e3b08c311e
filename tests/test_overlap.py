"""Tests of mtrain.data.overlap: training pairs that are nearly evaluation sentences."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from mtrain.data.cleaning import MIN_SHARE, N_WORDS, NearMatches

SENTENCE = "the committee met in the old town hall on a cold morning in may"  # 14 words
TRANSLATION = "der ausschuss traf sich im alten rathaus an einem kalten morgen im mai"
INDEX = NearMatches({"valid": [("a b", "c d")], "news": [(SENTENCE, TRANSLATION)]})


def test_a_sentence_inside_a_longer_one_is_found():
    match = INDEX.find(f"Yesterday {SENTENCE.upper()} again", "ganz anders")
    assert match is not None
    assert (match.split, match.line, match.side, match.text) == ("news", 1, "source", SENTENCE)
    assert match.share == 1.0
    match = pickle.loads(pickle.dumps(INDEX)).find("something else", TRANSLATION)
    assert match is not None
    assert match.side == "target"


def test_the_share_is_that_of_the_evaluation_sentence():
    words = SENTENCE.split()  # 14 words make 7 n-grams of 8
    match = INDEX.find(" ".join(words[:11]), "x")
    assert match is not None
    assert match.share == 4 / 7
    assert INDEX.find(" ".join(words[:10]), "x") is None  # 3 of 7
    assert INDEX.find(" ".join(reversed(words)), "x") is None


def test_characters_count_where_a_script_has_no_spaces():
    sentence = "今日はとても寒い日だったので私たちは家にいました"
    index = NearMatches({"test": [("x", sentence)]})
    assert index.find("x", f"実は{sentence}よ") is not None
    assert index.find("x", "".join(reversed(sentence))) is None


words = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30)


@given(words, words)
def test_it_equals_counting_all_n_grams(known, text):
    def grams(units: list[str]) -> set[tuple[str, ...]]:
        return {tuple(units[i : i + N_WORDS]) for i in range(len(units) - N_WORDS + 1)}

    share = len(grams(known) & grams(text)) / max(1, len(grams(known)))
    match = NearMatches({"t": [(" ".join(known), "-")]}).find(" ".join(text), "+")
    assert (match.share if match else None) == (share if share >= MIN_SHARE else None)
