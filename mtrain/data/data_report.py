"""What happened to the training text, in numbers and examples: `report.json` of prepared data.

A `DataReport` is filled chunk by chunk, perhaps in several processes, and merged: its memory is
bounded whatever the size of the corpus, and which examples it shows depends on the text alone,
not on the order in which it came.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrain.data.cleaning import hash_text
from mtrain.data.filters import REASONS
from mtrain.data.overlap import NearMatch
from mtrain.data.store import SIDES

TextPair = tuple[str, str]  # source, target
IdPair = tuple[Sequence[int], Sequence[int]]

N_EXAMPLES = 5
_MAX_EXAMPLE_CHARACTERS = 300
N_REPEATED = 20  # targets shown
_MAX_COLUMNS = 6  # of a table on the terminal
_MUCH_DROPPED = 0.2  # of an entry by one filter: worth a look
_MANY_BYTES = 0.01  # of a side's pieces
_OFTEN, _MANY_PAIRS = 0.01, 1000  # share of the targets that are the same, of how many


@dataclass
class Dropped:
    """The pairs of one entry that left for one reason."""

    n_pairs: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)  # hash, source, target

    def add(self, n_pairs: int, examples: Sequence[tuple[int, str, str]]) -> None:
        """Count pairs; of all examples ever offered, those with the smallest hashes stay."""
        self.n_pairs += n_pairs
        self.examples = heapq.nsmallest(N_EXAMPLES, {*self.examples, *examples})


@dataclass
class SideStatistics:
    """One side of the pairs that were kept."""

    n_characters: int = 0
    n_words: int = 0
    n_tokens: int = 0
    n_byte_tokens: int = 0
    lengths: Counter[int] = field(default_factory=Counter)  # tokens of a sentence -> sentences
    characters: Counter[str] = field(default_factory=Counter)

    def add_texts(self, texts: Sequence[str]) -> None:
        """Count words and characters of normalised texts."""
        joined = " ".join(texts)
        points = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        counts = np.bincount(points)
        counts[ord(" ")] -= max(0, len(texts) - 1)  # those that join
        self.characters.update({chr(p): int(counts[p]) for p in np.flatnonzero(counts)})
        self.n_characters += sum(map(len, texts))
        self.n_words += joined.count(" ") + 1 if texts else 0

    def add_ids(self, ids: Sequence[Sequence[int]], is_byte: NDArray[np.bool_]) -> None:
        """Count pieces; is_byte (vocabulary size,) marks those that spell a character in bytes."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        self.n_tokens += len(flat)
        self.n_byte_tokens += int(is_byte[flat].sum())
        counts = np.bincount(lengths)
        self.lengths.update({int(n): int(counts[n]) for n in np.flatnonzero(counts)})

    def merge(self, other: SideStatistics) -> None:
        """Take in what another process counted."""
        self.n_characters += other.n_characters
        self.n_words += other.n_words
        self.n_tokens += other.n_tokens
        self.n_byte_tokens += other.n_byte_tokens
        self.lengths.update(other.lengths)
        self.characters.update(other.characters)

    def to_json(self) -> dict[str, Any]:
        """Counts, means, the histogram of lengths and the characters, most frequent first."""
        return {
            "n_characters": self.n_characters,
            "n_words": self.n_words,
            "n_tokens": self.n_tokens,
            "n_byte_tokens": self.n_byte_tokens,
            "tokens_per_word": self.n_tokens / max(1, self.n_words),
            "byte_share": self.n_byte_tokens / max(1, self.n_tokens),
            "lengths": [self.lengths[n] for n in range(max(self.lengths, default=-1) + 1)],
            "characters": _by_count(self.characters),
        }


class DataReport:
    """Counts and examples of what was dropped and kept; picklable and mergeable.

    entries  the names of `data.train`, in the order of their numbers
    is_byte  of each side's vocabulary, what spells a character in bytes; needed by `add_kept`
    """

    def __init__(
        self,
        entries: Sequence[str],
        is_byte: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    ) -> None:
        self.entries = list(entries)
        self.n_kept = [0] * len(self.entries)
        self.dropped: dict[tuple[int, str], Dropped] = {}
        self.near_matches: dict[str, Dropped] = {}
        self.sides = (SideStatistics(), SideStatistics())
        self.repeated_targets: list[tuple[str, int]] = []  # see find_repeated; filled at the end
        self.suspicions: list[str] = []
        self._is_byte = is_byte

    def add_dropped(
        self, entry: int, reason: str, pair: TextPair | None = None, n_pairs: int = 1
    ) -> None:
        """Count pairs of an entry that left for a reason, with one of them as an example."""
        examples = [] if pair is None else [_example(*pair)]
        self.dropped.setdefault((entry, reason), Dropped()).add(n_pairs, examples)

    def add_near_match(self, match: NearMatch, pair: TextPair) -> None:
        """Count a pair that is nearly one of an evaluation set; it stays in the training text."""
        text = pair[SIDES.index(match.side)]
        self.near_matches.setdefault(match.split, Dropped()).add(1, [_example(text, match.text)])

    def add_kept(
        self, entries: Sequence[int], texts: Sequence[TextPair], ids: Sequence[IdPair]
    ) -> None:
        """Take in kept pairs: the number of each one's entry, its normalised text, its pieces."""
        assert self._is_byte is not None
        for entry, n_pairs in Counter(entries).items():
            self.n_kept[entry] += n_pairs
        for side, statistics in enumerate(self.sides):
            statistics.add_texts([pair[side] for pair in texts])
            statistics.add_ids([pair[side] for pair in ids], self._is_byte[side])

    def merge(self, other: DataReport) -> None:
        """Take in the report of another part of the same entries."""
        self.n_kept = [own + n for own, n in zip(self.n_kept, other.n_kept, strict=True)]
        for key, dropped in other.dropped.items():
            self.dropped.setdefault(key, Dropped()).add(dropped.n_pairs, dropped.examples)
        for split, near in other.near_matches.items():
            self.near_matches.setdefault(split, Dropped()).add(near.n_pairs, near.examples)
        for own, side in zip(self.sides, other.sides, strict=True):
            own.merge(side)
        self.suspicions += [text for text in other.suspicions if text not in self.suspicions]

    def to_json(self) -> dict[str, Any]:
        """The whole report as a tree of plain values."""
        return {
            "entries": [self._entry(number) for number in range(len(self.entries))],
            "sides": {name: side.to_json() for name, side in zip(SIDES, self.sides, strict=True)},
            "repeated_targets": [
                {"text": _shortened(text), "n_pairs": n} for text, n in self.repeated_targets
            ],
            "near_matches": [
                {
                    "split": split,
                    "n_pairs": near.n_pairs,
                    "examples": [[found, known] for _, found, known in near.examples],
                }
                for split, near in sorted(self.near_matches.items())
            ],
            "suspicions": [*self.suspicions, *self._later_suspicions()],
        }

    def of_cleaning(self) -> dict[str, Any]:
        """What was noted before any pair was kept, as plain values, for `from_cleaning`."""
        return {
            "entries": self.entries,
            "dropped": [[*key, d.n_pairs, d.examples] for key, d in self.dropped.items()],
            "near_matches": [[key, d.n_pairs, d.examples] for key, d in self.near_matches.items()],
            "suspicions": self.suspicions,
        }

    @classmethod
    def from_cleaning(cls, noted: dict[str, Any]) -> DataReport:
        """The report that `of_cleaning` told of."""
        report = cls(noted["entries"])
        for entry, reason, n_pairs, examples in noted["dropped"]:
            found = [(number, source, target) for number, source, target in examples]
            report.dropped[entry, reason] = Dropped(n_pairs, found)
        for split, n_pairs, examples in noted["near_matches"]:
            found = [(number, text, known) for number, text, known in examples]
            report.near_matches[split] = Dropped(n_pairs, found)
        report.suspicions = noted["suspicions"]
        return report

    def _entry(self, number: int) -> dict[str, Any]:
        """What became of the pairs of one entry, the commonest reason first."""
        found = {reason: d for (entry, reason), d in self.dropped.items() if entry == number}
        by_count = sorted(found.items(), key=lambda item: (-item[1].n_pairs, item[0]))
        n_dropped = sum(dropped.n_pairs for dropped in found.values())
        return {
            "name": self.entries[number],
            "n_read": n_dropped + self.n_kept[number],
            "n_kept": self.n_kept[number],
            "dropped": [
                {
                    "reason": reason,
                    "words": REASONS.get(reason, reason),
                    "n_pairs": dropped.n_pairs,
                    "examples": [list(texts) for _, *texts in dropped.examples],
                }
                for reason, dropped in by_count
            ],
        }

    def _later_suspicions(self) -> list[str]:
        """What only the counts of all the text can tell."""
        found = []
        for number in range(len(self.entries)):
            entry = self._entry(number)
            for dropped in entry["dropped"]:
                reason, share = dropped["reason"], dropped["n_pairs"] / entry["n_read"]
                if reason in REASONS and share > _MUCH_DROPPED:
                    found.append(
                        f"`data.clean.{reason}` drops {_percent(share)} of {entry['name']} "
                        f"({REASONS[reason]}): look at its examples in report.json, and set "
                        "another threshold, or `false`, if they are good"
                    )
        for name, side in zip(SIDES, self.sides, strict=True):
            share = side.n_byte_tokens / max(1, side.n_tokens)
            if share > _MANY_BYTES:
                found.append(
                    f"{_percent(share)} of the {name} pieces spell a character in bytes: a larger "
                    "`tokenizer.vocab_size` or `tokenizer.character_coverage` would have it whole"
                )
        n_kept = sum(self.n_kept)
        for text, n in self.repeated_targets[:1]:
            if n > _OFTEN * n_kept and n_kept > _MANY_PAIRS:
                found.append(
                    f"{_percent(n / n_kept)} of the targets are `{_shortened(text)}`: the model "
                    "will say it too often; `data.clean.max_target_repeats` limits it"
                )
        return found


def find_repeated(hashes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Of hashed texts, (where it first stands, how often it occurs) of the most repeated ones.

    hashes (n,) are sorted in a copy: 8 bytes each. Texts that occur once are left out.
    """
    ordered = np.sort(hashes)
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_first)
    counts = np.diff(starts, append=len(ordered))
    most = np.argsort(-counts, kind="stable")[:N_REPEATED]
    found = [
        (int(np.argmax(hashes == value)), int(n))
        for value, n in zip(ordered[starts[most]], counts[most], strict=True)
        if n > 1
    ]
    return sorted(found, key=lambda place: (-place[1], place[0]))


def table_of_entries(report: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Header and rows for the terminal, from a report's JSON: what became of the training pairs.

    A column for each entry and one for all, or that one alone where the entries are too many.
    """
    entries = report["entries"]
    dropped = [{found["words"]: found["n_pairs"] for found in e["dropped"]} for e in entries]
    totals: Counter[str] = Counter()
    for of_entry in dropped:
        totals.update(of_entry)
    reasons = [words for words, _ in totals.most_common()]
    n_read, n_kept = [e["n_read"] for e in entries], [e["n_kept"] for e in entries]
    columns: list[tuple[str, list[object]]] = []
    if 1 < len(entries) <= _MAX_COLUMNS:
        columns += [
            (e["name"], [e["n_read"], *(of_entry.get(words, 0) for words in reasons), e["n_kept"]])
            for e, of_entry in zip(entries, dropped, strict=True)
        ]
    columns.append(("pairs", [sum(n_read), *(totals[words] for words in reasons), sum(n_kept)]))
    labels = ["read", *reasons, "kept"]
    rows = [list(row) for row in zip(labels, *(cells for _, cells in columns), strict=True)]
    return ["training text", *(name for name, _ in columns)], rows


def _example(source: str, target: str) -> tuple[int, str, str]:
    """A pair with the number by which examples are chosen."""
    return hash_text(f"{source}\t{target}"), _shortened(source), _shortened(target)


def _shortened(text: str) -> str:
    if len(text) <= _MAX_EXAMPLE_CHARACTERS:
        return text
    return text[: _MAX_EXAMPLE_CHARACTERS - 1] + "…"


def _by_count(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first; of equals, the first in the alphabet."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
