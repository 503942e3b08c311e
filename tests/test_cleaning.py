"""Normalisation, and which training pairs are recognised as repeats or as leaks."""

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtrain.data import cleaning
from mtrain.data.cleaning import (
    EvaluationText,
    choose_valid,
    count_words,
    digest,
    find_excess,
    find_repeats,
    hash_text,
    loosen,
    normalize,
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("", ""),
        (" \t ", ""),
        ("A dog.", "A dog."),
        ("  two\u00a0 spaces\t\n", "two spaces"),
        ("3\u202f000\u2009km\u3000now", "3 000 km now"),
        ("a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg", "a b c d e f g"),
        ("\ufeffnul\x00 bell\x07 delete\x7f c1\x9b", "nul bell delete c1"),
        ("cafe\u0301", "caf\u00e9"),
        ("e\x00\u0301", "\u00e9"),  # composed only once the control character is gone
        ("\u212b", "\u00c5"),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("half \ud83d", "half \ufffd"),
        ("\u2581", "\u2581"),
    ],
)
def test_normalize(raw, clean):
    assert normalize(raw) == clean


@given(st.text(st.characters(exclude_categories=[])))
@example("\u00a0\u0301")
@example("\x00 \x00")
def test_normalized_text_is_one_clean_line_and_stays_as_it_is(text):
    clean = normalize(text)
    assert normalize(clean) == clean
    assert unicodedata.is_normalized("NFC", clean)
    assert clean.split() == [word for word in clean.split(" ") if word]
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in clean)
    clean.encode()


@pytest.mark.parametrize(
    ("text", "n_words"),
    [("a dog", 2), ("", 0), ("ein Häuschen", 2), ("犬が走る。", 3), ("Lee 李小龍 x", 4)],
)
def test_count_words(text, n_words):
    assert count_words(text) == n_words


def test_hashes_do_not_depend_on_the_process():
    assert hash_text("A dog.") == 3500680608643026813
    assert hash_text("A dog") != hash_text("A dog.")


LONG_SRC, LONG_TGT = "one two three four five", "eins zwei drei vier fünf"


@pytest.mark.parametrize(
    ("source", "target", "leaks"),
    [
        (LONG_SRC, LONG_TGT, True),
        (LONG_SRC, "etwas anderes", True),
        ("something else", LONG_TGT, True),
        ("Yes.", "Ja.", True),
        ("Yes.", "Doch.", False),  # short: said in many places
        ("No.", "Ja.", False),
        ("Yes.", LONG_TGT, True),
        ("one two three four", "eins zwei drei vier", False),
        (LONG_TGT, LONG_SRC, False),  # the sides are kept apart
    ],
)
def test_a_leak_is_one_long_side_or_two_short_ones(source, target, leaks):
    known = EvaluationText(
        {"a": [(f" {LONG_SRC}\u00a0", LONG_TGT), ("", "")], "b": [("Yes.", "Ja.")]}
    )
    sets = known.find(source, target, (digest(source), digest(target)))
    assert bool(sets) is leaks


def test_a_leak_names_the_sets_it_is_in():
    known = EvaluationText({"a": [("Yes.", "x")], "b": [("y", "Ja.")], "c": [("Yes.", "Ja.")]})
    assert known.find("Yes.", "Ja.", (digest("Yes."), digest("Ja."))) == ["a", "b", "c"]
    assert known.find("Yes.", "x", (digest("Yes."), digest("x"))) == ["a", "c"]


def hashes(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_the_first_of_equal_pairs_stays():
    is_repeat = find_repeats(hashes(1, 2, 1, 1, 2), hashes(5, 6, 5, 6, 1))
    assert is_repeat.tolist() == [False, False, True, False, False]
    assert find_repeats(hashes(), hashes()).tolist() == []


@given(st.lists(st.integers(0, 5)), st.integers(1, 3), st.booleans())
def test_so_many_of_one_hash_stay(values, limit, in_parts):
    spread = [value << 61 for value in values]  # parts are told by the highest bits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaning, "_MAX_SORTED", 2 if in_parts else 1000)
        is_excess = find_excess(hashes(*spread), limit).tolist()
    assert is_excess == [values[:i].count(value) >= limit for i, value in enumerate(values)]


def test_loosened_text_has_neither_case_nor_digits_nor_punctuation():
    assert loosen("A Dog, 3 straßen!") == "a dog strassen"
    assert loosen("12:30") == "12:30"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1), st.data())
def test_chosen_valid_pairs_share_no_sentence_with_what_stays(pairs, data):
    n_valid = data.draw(st.integers(1, len(pairs)))
    sources, targets = (hashes(*side) for side in zip(*pairs, strict=True))
    chosen, leaves = choose_valid(sources, targets, n_valid, seed=1)
    assert len(set(chosen.tolist())) == n_valid
    assert leaves[chosen].all()
    assert not set(sources[chosen]) & set(sources[~leaves])
    assert not set(targets[chosen]) & set(targets[~leaves])
    again, _ = choose_valid(sources, targets, n_valid, seed=1)
    assert again.tolist() == chosen.tolist()


def test_sentences_that_occur_once_are_chosen_first():
    sources, targets = hashes(1, 1, 2, 3, 4), hashes(1, 2, 3, 4, 4)
    chosen, leaves = choose_valid(sources, targets, 1, seed=7)
    assert chosen.tolist() == [2]
    assert leaves.tolist() == [False, False, True, False, False]
