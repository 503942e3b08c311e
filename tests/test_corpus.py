"""The filters in their order, and how much is held out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mtrain.config.clean import CleanConfig, as_filters
from mtrain.config.entries import CldrEntry, FilesEntry
from mtrain.config.sections import DataConfig
from mtrain.data.cleaning import TextPair
from mtrain.data.corpus import Cleaner, Corpus
from mtrain.data.data_report import BESIDE_HELD_OUT, HELD_OUT, LEAKED, OVER_LONG
from mtrain.data.filters import PairFilter
from mtrain.data.reading import Pairs
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
        Pairs(number, [source for source, _ in pairs], [target for _, target in pairs])
        for number, pairs in enumerate(entries)
    ]
    directory.mkdir(exist_ok=True)
    corpus = Corpus.clean(directory, chunks, cleaner, None, 1)
    corpus.select(config)
    return corpus


def kept(corpus: Corpus) -> list[TextPair]:
    return [pair for pairs in corpus.kept() for pair in zip(pairs.src, pairs.tgt, strict=True)]


def numbered(n: int) -> list[TextPair]:
    return [(f"s {i}", f"t {i}") for i in range(n)]


def test_what_is_kept_is_normalised_and_in_order(tmp_path):
    corpus = clean(tmp_path, [("b\u00a0 1", "x\t2"), ("a", "\u2028y\r"), ("a", "z")])
    assert kept(corpus) == [("b 1", "x 2"), ("a", "y"), ("a", "z")]
    assert kept(corpus) == [("b 1", "x 2"), ("a", "y"), ("a", "z")]  # and again
    assert (corpus.report.n_read, corpus.report.n_kept) == (3, 3)


def test_text_of_more_characters_than_its_pieces_can_hold_is_over_long(tmp_path):
    corpus = clean(tmp_path, [("x" * 32, "y"), ("x" * 33, "y"), ("x", "y" * 33)])
    assert corpus.report.n_dropped[OVER_LONG] == 2
    assert kept(corpus) == [("x" * 32, "y")]


def test_a_pair_is_counted_once_by_the_first_filter_that_drops_it(tmp_path):
    corpus = clean(tmp_path, [("a", "b"), ("a", "b"), ("c", "d")], splits={"v": [("a", "b")]})
    assert corpus.report.n_dropped[LEAKED] == 2
    assert sum(corpus.report.n_dropped.values()) == 2
    assert corpus.report.n_leaked == {"v": 2}


def test_pairs_of_several_entries_are_told_apart(tmp_path):
    corpus = clean(tmp_path, numbered(3), [("", "")], numbered(5))
    assert [(pairs.entry, pairs.src, pairs.tgt) for pairs in corpus.kept()] == [
        (0, ["s 0", "s 1", "s 2"], ["t 0", "t 1", "t 2"]),
        (2, ["s 3", "s 4"], ["t 3", "t 4"]),
    ]
    dropped = [entry.dropped for entry in corpus.report.entries]
    n_dropped = [{reason: d.n_pairs for reason, d in entry.items()} for entry in dropped]
    assert n_dropped == [{}, {"with an empty side": 1}, {"repeated": 3}]
    assert dropped[2]["repeated"].examples != []


def test_what_is_saved_is_loaded(tmp_path):
    corpus = clean(tmp_path, [*numbered(60), ("", "x")], config=HELD_OUT_CONFIG)
    corpus.save()
    assert Corpus.load(tmp_path) == corpus
    assert Corpus.load(tmp_path).report.n_leaked["unknown"] == 0


@pytest.mark.parametrize(
    ("n_pairs", "n_valid"),
    [(10, 1), (149, 2), (150, 3), pytest.param(101_000, 2000, id="many", marks=pytest.mark.slow)],
)
def test_the_smaller_of_2000_pairs_and_2_percent_is_held_out(tmp_path, n_pairs, n_valid):
    corpus = clean(tmp_path, numbered(n_pairs), config=HELD_OUT_CONFIG)
    assert len(corpus.valid) == n_valid
    assert corpus.report.n_dropped[HELD_OUT] == n_valid
    assert corpus.report.n_dropped[BESIDE_HELD_OUT] == 0
    assert sorted([*corpus.valid, *kept(corpus)]) == sorted(numbered(n_pairs))


def test_the_seed_decides_what_is_held_out(tmp_path):
    held_out = [
        clean(
            tmp_path,
            numbered(1000),
            config=HELD_OUT_CONFIG.model_copy(update={"seed": seed}),
        ).valid
        for seed in (1, 1, 2)
    ]
    assert held_out[0] == held_out[1] != held_out[2]


def test_repeats_are_not_held_out_twice(tmp_path):
    corpus = clean(tmp_path, numbered(100) * 2, config=HELD_OUT_CONFIG)
    assert len(set(corpus.valid)) == len(corpus.valid) == 2
    assert not set(corpus.valid) & set(kept(corpus))


def test_over_long_pairs_found_later_may_leave_nothing(tmp_path):
    report = clean(tmp_path, numbered(3)).report
    report.add_dropped(0, OVER_LONG, n_pairs=2)
    report.check_not_empty()
    report.add_dropped(0, OVER_LONG)
    with pytest.raises(DataError, match="left of 3: 3 over-long"):
        report.check_not_empty()
