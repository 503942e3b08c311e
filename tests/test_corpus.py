"""The filters in their order, and how much is held out."""

from pathlib import Path

import pytest

from mtrain.config import CldrEntry, DataConfig
from mtrain.data.corpus import BESIDE_HELD_OUT, HELD_OUT, LEAKED, OVER_LONG, Corpus
from mtrain.errors import DataError

CONFIG = DataConfig(train=(CldrEntry(cldr=1),), max_length=2)  # at most 2 x 16 characters


def fill(directory: Path, pairs: list[tuple[str, str]], *splits: list[tuple[str, str]]) -> Corpus:
    corpus = Corpus(directory / "corpus.tmp")
    corpus.fill(pairs, CONFIG, splits)
    return corpus


def numbered(n: int) -> list[tuple[str, str]]:
    return [(f"s {i}", f"t {i}") for i in range(n)]


def test_what_is_kept_is_normalised_and_in_order(tmp_path: Path) -> None:
    corpus = fill(tmp_path, [("b\u00a0 1", "x\t2"), ("a", "\u2028y\r"), ("a", "z")])
    assert list(corpus.kept()) == [("b 1", "x 2"), ("a", "y"), ("a", "z")]
    assert list(corpus.kept()) == [("b 1", "x 2"), ("a", "y"), ("a", "z")]  # and again
    assert (corpus.n_read, corpus.n_kept) == (3, 3)


def test_text_of_more_characters_than_its_pieces_can_hold_is_over_long(tmp_path: Path) -> None:
    corpus = fill(tmp_path, [("x" * 32, "y"), ("x" * 33, "y"), ("x", "y" * 33)])
    assert corpus.dropped[OVER_LONG] == 2
    assert list(corpus.kept()) == [("x" * 32, "y")]


def test_a_pair_is_counted_once_by_the_first_filter_that_drops_it(tmp_path: Path) -> None:
    corpus = fill(tmp_path, [("a", "b"), ("a", "b"), ("c", "d")], [("a", "b")])
    assert corpus.dropped[LEAKED] == 2
    assert sum(corpus.dropped.values()) == 2


@pytest.mark.parametrize(
    ("n_pairs", "n_valid"), [(10, 1), (149, 2), (150, 3), pytest.param(101_000, 2000, id="many")]
)
def test_the_smaller_of_2000_pairs_and_2_percent_is_held_out(
    tmp_path: Path, n_pairs: int, n_valid: int
) -> None:
    corpus = fill(tmp_path, numbered(n_pairs))
    valid = corpus.hold_out_valid(seed=1)
    assert len(valid) == n_valid
    assert corpus.dropped[HELD_OUT] == n_valid
    assert corpus.dropped[BESIDE_HELD_OUT] == 0
    assert sorted([*valid, *corpus.kept()]) == sorted(numbered(n_pairs))


def test_the_seed_decides_what_is_held_out(tmp_path: Path) -> None:
    held_out = [fill(tmp_path, numbered(1000)).hold_out_valid(seed) for seed in (1, 1, 2)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_repeats_are_not_held_out_twice(tmp_path: Path) -> None:
    corpus = fill(tmp_path, numbered(100) * 2)
    valid = corpus.hold_out_valid(seed=1)
    assert len(set(valid)) == len(valid) == 2
    assert not set(valid) & set(corpus.kept())


def test_over_long_pairs_found_later_may_leave_nothing(tmp_path: Path) -> None:
    corpus = fill(tmp_path, numbered(3))
    corpus.count_over_long(2)
    with pytest.raises(DataError, match="left of 3: 3 over-long"):
        corpus.count_over_long(1)
