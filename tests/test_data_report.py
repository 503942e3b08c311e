"""Tests of mtrain.data.data_report: counts and examples, however they were gathered."""

import json
import pickle
import random
from collections.abc import Sequence

import numpy as np

from mtrain.data.cleaning import NearMatch
from mtrain.data.data_report import (
    N_EXAMPLES,
    N_REPEATED,
    DataReport,
    find_repeated,
    table_of_entries,
)
from mtrain.data.store import Sentences
from mtrain.data.suspicions import suspicions_of_report

IS_BYTE = (np.arange(10) == 9, np.arange(10) == 8)
Kept = tuple[int, tuple[str, str], tuple[list[int], list[int]]]


def make(kept: Sequence[Kept], dropped: Sequence[tuple[int, str, tuple[str, str]]]) -> DataReport:
    """A report of two entries."""
    report = DataReport.of(["crawl", "news"])
    for entry, reason, pair in dropped:
        report.entries[entry].n_read += 1
        report.add_dropped(entry, reason, pair)
    for entry, texts, ids in kept:
        report.entries[entry].n_read += 1
        for side, statistics in enumerate(report.sides):
            statistics.add_texts([texts[side]])
            statistics.add_ids(Sentences.of([ids[side]], np.dtype("<u2")), IS_BYTE[side])
    return report


def test_what_is_counted():
    report = make(
        [(0, ("ein Haus", "a house"), ([4, 9], [5])), (1, ("ja", "a house"), ([4], [8, 8, 8]))],
        [(1, "numbers", ("3 Häuser", "4 houses"))],
    )
    report.entries[1].n_read += 3
    report.add_dropped(1, "repeated", n_pairs=3)
    tree = json.loads(json.dumps(report.to_json()))
    crawl, news = tree["entries"]
    assert (crawl["name"], crawl["n_read"], crawl["n_kept"], crawl["dropped"]) == (
        "crawl",
        1,
        1,
        [],
    )
    assert (news["n_read"], news["n_kept"]) == (5, 1)
    repeated, numbers = news["dropped"]  # the commonest first
    assert (repeated["reason"], repeated["n_pairs"], repeated["examples"]) == ("repeated", 3, [])
    assert numbers["words"] == "other numbers"
    assert numbers["examples"] == [["3 Häuser", "4 houses"]]
    source, target = tree["sides"]["source"], tree["sides"]["target"]
    assert (source["n_words"], source["n_characters"]) == (3, 10)
    assert source["tokens_per_word"] == 1.0
    assert source["byte_share"] == 1 / 3
    assert source["lengths"] == [0, 1, 1]
    assert target["lengths"] == [0, 1, 0, 1]
    assert target["byte_share"] == 3 / 4
    assert source["characters"][0] == ["a", 2]
    assert ["H", 1] in source["characters"]
    assert [" ", 1] in source["characters"]
    assert table_of_entries(tree) == (
        ["training text", "crawl", "news", "pairs"],
        [
            ["read", 1, 5, 6],
            ["repeated", 0, 3, 3],
            ["other numbers", 0, 1, 1],
            ["kept", 1, 1, 2],
        ],
    )
    assert table_of_entries({"entries": tree["entries"] * 4})[0] == ["training text", "pairs"]


def test_parts_merge_to_the_same_report_in_any_order():
    generator = random.Random(1)
    kept: list[Kept] = [
        (generator.randrange(2), (f"satz {i}", "sentence"), ([i % 10], [1, 2])) for i in range(40)
    ]
    dropped = [(i % 2, "copies", (f"q{i}", f"z{i}")) for i in range(60)]
    whole = make(kept, dropped)
    for cut in (0, 13, 40):
        parts = [make(kept[:cut], dropped[cut:]), make(kept[cut:], dropped[:cut])]
        generator.shuffle(parts)
        merged = pickle.loads(pickle.dumps(parts[0]))
        merged.merge(parts[1])
        for key in ("entries", "sides"):
            assert merged.to_json()[key] == whole.to_json()[key]
    examples = whole.to_json()["entries"][0]["dropped"][0]["examples"]
    assert len({tuple(example) for example in examples}) == N_EXAMPLES


def test_near_matches_show_both_sentences():
    report = make([], [])
    match = NearMatch("valid", 7, "target", "known text", 0.8)
    report.add_near_match(match, ("source", "found text"))
    assert report.to_json()["near_matches"] == [
        {"split": "valid", "n_pairs": 1, "examples": [["found text", "known text"]]}
    ]


def test_suspicions_that_counts_give_rise_to():
    kept: list[Kept] = [(0, (f"s{i}", f"t{i}"), ([9] * 5, [1])) for i in range(30)]
    report = make(kept, [(0, "numbers", (f"{i}", "x")) for i in range(20)])
    numbers, in_bytes = suspicions_of_report(report, {})
    assert "`data.clean.numbers` drops 40% of crawl" in numbers
    assert "100% of the source pieces spell a character in bytes" in in_bytes


def test_repeated_texts_are_counted_by_their_hashes():
    hashes = np.array([7, 5, 9, 5, 7, 5, 1], np.uint64)
    assert find_repeated(hashes) == [(1, 3), (0, 2)]
    assert find_repeated(hashes[:0]) == []
    assert find_repeated(np.arange(9, dtype=np.uint64)) == []
    many = np.repeat(np.arange(50, dtype=np.uint64), np.arange(50) + 1)
    assert find_repeated(many)[0] == (49 * 50 // 2, 50)
    assert len(find_repeated(many)) == N_REPEATED


def test_a_target_that_is_too_frequent_is_suspicious():
    report = make([(0, (f"s{i}", "t"), ([1], [1])) for i in range(1001)], [])
    report.repeated_targets = [("Page not found", 20)]
    tree = report.to_json()
    assert tree["repeated_targets"] == [{"text": "Page not found", "n_pairs": 20}]
    assert "2.0% of the targets are `Page not found`" in suspicions_of_report(report, {})[0]
