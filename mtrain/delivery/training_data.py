"""The chapter of the report about the data: what was read, dropped and kept, and what is odd in it.

From the manifest, which every run holds, and from the report of newer preparations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtrain.data.store import SIDES
from mtrain.delivery.chapters import Fact
from mtrain.delivery.curves import length_chart
from mtrain.delivery.facts import RunFacts
from mtrain.languages import language

_NO_REPORT: dict[str, Any] = {
    "suspicions": [],
    "entries": [],
    "near_matches": [],
    "repeated_targets": [],
}


@dataclass(frozen=True)
class DataChapter:
    """The data of the runs that were trained on the same text."""

    runs: list[int]
    table: list[tuple[str, int, float]]  # what became of the training pairs: name, pairs, share
    splits: list[tuple[str, int]]
    sides: list[Fact]
    sources: list[Fact]
    report: dict[str, Any]  # what data.data_report wrote; empty lists where it did not
    lengths: str  # an <svg>; empty where lengths were not counted


def data_chapters(runs: Sequence[RunFacts]) -> list[DataChapter]:
    """One for each set of prepared data."""
    by_data: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        by_data.setdefault(str(sorted(run.manifest["files"].items())), []).append(number)
    return [_data_chapter(runs[numbers[0]], numbers) for numbers in by_data.values()]


def _data_chapter(run: RunFacts, numbers: list[int]) -> DataChapter:
    manifest, report = run.manifest, run.run.read_data_report()
    rows = [(row["split"], row["reason"], row["pairs"]) for row in manifest.get("table", [])]
    train = [(reason, pairs) for split, reason, pairs in rows if split == "train"]
    n_read = max((pairs for _, pairs in train), default=0)
    return DataChapter(
        numbers,
        [(reason, pairs, pairs / n_read if n_read else 0.0) for reason, pairs in train],
        [(split, pairs) for split, _, pairs in rows if split != "train"],
        list(_sides(manifest)),
        [_source(entry) for entry in manifest.get("sources", [])],
        _NO_REPORT | (report or {}),
        _lengths(report) if report else "",
    )


def _lengths(report: Mapping[str, Any]) -> str:
    counts = [report["sides"][side]["lengths"] for side in SIDES]
    return length_chart("Length of the sentences", counts)


def _sides(manifest: Mapping[str, Any]) -> Iterator[Fact]:
    for side in SIDES:
        counts = manifest.get("sides", {}).get(side)
        if counts:
            yield Fact(
                f"{language(manifest[side]).name} ({side})",
                f"{counts['n_words']:,} words",
                f"{counts['n_tokens']:,} pieces, {counts['tokens_per_word']:.2f} a word, "
                f"{counts['byte_share']:.2%} of them spelled in bytes",
            )
    ratio = manifest["length_ratio"]
    yield Fact(
        "Length of target over source",
        f"{ratio['mean']:.2f} ± {ratio['std']:.2f}",
        "in pieces: mean and standard deviation",
    )
    if "copied_share" in manifest:
        yield Fact(
            "Pairs whose target is the source", f"{manifest['copied_share']:.2%}", "of those kept"
        )


def _source(entry: Mapping[str, Any]) -> Fact:
    """An entry of the config as `prepare` found it."""
    skipped = {"entry", "files", "sha256"}
    parts = [f"{key}: {value}" for key, value in entry.items() if key not in skipped and value]
    hashes = [
        f"{location.rsplit('/', 1)[-1]}: {facts['sha256']}"
        for location, facts in entry.get("files", {}).items()
        if "sha256" in facts
    ]
    hashes = hashes or [f"{side}: {value}" for side, value in entry.get("sha256", {}).items()]
    return Fact(entry["entry"], "\n".join(parts), "\n".join(hashes))
