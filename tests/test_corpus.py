"""The filters in their order, and how much is held out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mtrain.config.clean import CleanConfig, as_filters
from mtrain.config.entries import CldrEntry, FilesEntry
from mtrain.config.sections import DataConfig
from mtrain.data.corpus import (
    BESIDE_HELD_OUT,
    HELD_OUT,
    LEAKED,
    OVER_LONG,
    Cleaner,
    Corpus,
    RawChunk,
    TextPair,
)
from mtrain.data.filters import PairFilter
from mtrain.errors import DataError

NO_FILTERS = CleanConfig.model_validate(as_filters(False))
HELD_OUT_CONFIG = DataConfig(train=(CldrEntry(cldr=1),), max_length=2, clean=NO_FILTERS)
VALID = FilesEntry(source="-", target="-")  # never read
CONFIG = HELD_OUT_CONFIG.model_copy(update={"valid": VALID})  # at most 2 x 16 characters


def clean(
    directory: Path,
    *entries: Sequence[TextPair],
    config: DataConfig = CONFIG,
    splits: Mapping[str, Sequence[TextPair]] | None = None,
) -> Corpus:
    names = [f"entry {i}" for i in range(len(entries))]
    config = config.model_copy(update={"train": config.train * len(entries)})
    cleaner = Cleaner(config, PairFilter(config.clean, "en", "de"), splits or {}, names)
    chunks = [
        RawChunk(number, [source for source, _ in pairs], [target for _, target in pairs])
        for number, pairs in enumerate(entries)
    ]
    directory.mkdir(exist_ok=True)
    corpus = Corpus.clean(directory, chunks, cleaner, None, 1)
    corpus.select(config)
    return corpus


def numbered(n: int) -> list[TextPair]:
    return [(f"s {i}", f"t {i}") for i in range(n)]


def test_what_is_kept_is_normalised_and_in_order(tmp_path: Path) -> None:
    corpus = clean(tmp_path, [("b\u00a0 1", "x\t2"), ("a", "\u2028y\r"), ("a", "z")])
    assert list(corpus.kept()) == [("b 1", "x 2"), ("a", "y"), ("a", "z")]
    assert list(corpus.kept()) == [("b 1", "x 2"), ("a", "y"), ("a", "z")]  # and again
    assert (corpus.counts.n_read, corpus.counts.n_kept) == (3, 3)


def test_text_of_more_characters_than_its_pieces_can_hold_is_over_long(tmp_path: Path) -> None:
    corpus = clean(tmp_path, [("x" * 32, "y"), ("x" * 33, "y"), ("x", "y" * 33)])
    assert corpus.counts.dropped[OVER_LONG] == 2
    assert list(corpus.kept()) == [("x" * 32, "y")]


def test_a_pair_is_counted_once_by_the_first_filter_that_drops_it(tmp_path: Path) -> None:
    corpus = clean(tmp_path, [("a", "b"), ("a", "b"), ("c", "d")], splits={"v": [("a", "b")]})
    assert corpus.counts.dropped[LEAKED] == 2
    assert sum(corpus.counts.dropped.values()) == 2
    assert corpus.counts.n_leaked == {"v": 2}


def test_pairs_of_several_entries_are_told_apart(tmp_path: Path) -> None:
    corpus = clean(tmp_path, numbered(3), [("", "")], numbered(5))
    assert [(entry, lines) for entry, lines, _ in corpus.kept_lines()] == [
        (0, [b"s 0\tt 0\n", b"s 1\tt 1\n", b"s 2\tt 2\n"]),
        (2, [b"s 3\tt 3\n", b"s 4\tt 4\n"]),
    ]
    repeated = {key: dropped.n_pairs for key, dropped in corpus.report.dropped.items()}
    assert repeated == {(1, "with an empty side"): 1, (2, "repeated"): 3}
    assert [pair for _, *pair in sorted(corpus.report.dropped[2, "repeated"].examples)] != []


@pytest.mark.parametrize(
    ("n_pairs", "n_valid"),
    [(10, 1), (149, 2), (150, 3), pytest.param(101_000, 2000, id="many", marks=pytest.mark.slow)],
)
def test_the_smaller_of_2000_pairs_and_2_percent_is_held_out(
    tmp_path: Path, n_pairs: int, n_valid: int
) -> None:
    corpus = clean(tmp_path, numbered(n_pairs), config=HELD_OUT_CONFIG)
    assert len(corpus.valid) == n_valid
    assert corpus.counts.dropped[HELD_OUT] == n_valid
    assert corpus.counts.dropped[BESIDE_HELD_OUT] == 0
    assert sorted([*corpus.valid, *corpus.kept()]) == sorted(numbered(n_pairs))


def test_the_seed_decides_what_is_held_out(tmp_path: Path) -> None:
    held_out = [
        clean(
            tmp_path,
            numbered(1000),
            config=HELD_OUT_CONFIG.model_copy(update={"seed": seed}),
        ).valid
        for seed in (1, 1, 2)
    ]
    assert held_out[0] == held_out[1] != held_out[2]


def test_repeats_are_not_held_out_twice(tmp_path: Path) -> None:
    corpus = clean(tmp_path, numbered(100) * 2, config=HELD_OUT_CONFIG)
    assert len(set(corpus.valid)) == len(corpus.valid) == 2
    assert not set(corpus.valid) & set(corpus.kept())


def test_over_long_pairs_found_later_may_leave_nothing(tmp_path: Path) -> None:
    counts = clean(tmp_path, numbered(3)).counts
    counts.count(OVER_LONG, 2)
    counts.check_not_empty()
    counts.count(OVER_LONG, 1)
    with pytest.raises(DataError, match="left of 3: 3 over-long"):
        counts.check_not_empty()
