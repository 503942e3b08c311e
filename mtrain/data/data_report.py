"""What happened to the training text, in numbers and examples: `report.json` of prepared data.

A `DataReport` is filled chunk by chunk, possibly in several processes, and merged. Its memory is
bounded whatever the size of the corpus, and its examples depend on the text alone, not on the order
in which it came.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrain.data.cleaning import NearMatch, TextPair, hash_text
from mtrain.data.filters import REASONS
from mtrain.data.store import SIDES, Sentences
from mtrain.errors import DataError

# Reasons for dropping pairs: in the words that users see, or a key of data.filters.REASONS.
UNREADABLE = "unreadable"
EMPTY = "with an empty side"
OVER_LONG = "over-long"
LEAKED = "in valid or test"
REPEATED = "repeated"
HELD_OUT = "held out as valid"
BESIDE_HELD_OUT = "sharing a sentence with valid"
_ORDER = (
    *(UNREADABLE, EMPTY, LEAKED, *REASONS),
    *(REPEATED, HELD_OUT, BESIDE_HELD_OUT, OVER_LONG),
)
_ALWAYS_SHOWN = (EMPTY, LEAKED, REPEATED, OVER_LONG)  # even if no pair was dropped

N_EXAMPLES = 5
N_REPEATED = 20  # targets shown
_MAX_EXAMPLE_CHARACTERS = 300
_MAX_COLUMNS = 6  # of a table on the terminal


@dataclass
class CountedPairs:
    """A number of pairs, with some of them as examples."""

    n_pairs: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)  # hash and two texts

    def add(self, n_pairs: int, examples: Iterable[tuple[int, str, str]]) -> None:
        """Count pairs; the examples with the smallest hashes are kept."""
        self.n_pairs += n_pairs
        self.examples = heapq.nsmallest(N_EXAMPLES, {*self.examples, *examples})


@dataclass
class EntryReport:
    """What happened to the pairs of one training entry."""

    name: str
    n_read: int = 0
    dropped: dict[str, CountedPairs] = field(default_factory=dict)  # by reason

    @property
    def n_kept(self) -> int:
        """Pairs that were not dropped."""
        return self.n_read - sum(dropped.n_pairs for dropped in self.dropped.values())

    def by_count(self) -> list[tuple[str, CountedPairs]]:
        """Reasons and the pairs dropped for them, most common reason first."""
        return sorted(self.dropped.items(), key=lambda item: (-item[1].n_pairs, item[0]))

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values."""
        return {
            "name": self.name,
            "n_read": self.n_read,
            "n_kept": self.n_kept,
            "dropped": [
                {
                    "reason": reason,
                    "words": REASONS.get(reason, reason),
                    "n_pairs": dropped.n_pairs,
                    "examples": [list(texts) for _, *texts in dropped.examples],
                }
                for reason, dropped in self.by_count()
            ],
        }


@dataclass
class SideStatistics:
    """Counts on one side of the pairs that were kept."""

    n_characters: int = 0
    n_words: int = 0
    n_tokens: int = 0
    n_byte_tokens: int = 0  # that encode a byte of a character without a piece
    lengths: Counter[int] = field(default_factory=Counter)  # tokens of a sentence -> sentences
    characters: Counter[str] = field(default_factory=Counter)
    evaluation_words: Counter[str] = field(default_factory=Counter)  # words of valid and test

    def add_texts(self, texts: Sequence[str]) -> None:
        """Count words and characters of normalised texts."""
        joined = " ".join(texts)
        points = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        counts = np.bincount(points)
        counts[ord(" ")] -= max(0, len(texts) - 1)  # those that join
        self.characters.update({chr(p): int(counts[p]) for p in np.flatnonzero(counts)})
        self.n_characters += sum(map(len, texts))
        self.n_words += joined.count(" ") + 1 if texts else 0

    def add_ids(self, sentences: Sentences, is_byte: NDArray[np.bool_]) -> None:
        """Count tokens; is_byte (vocabulary size,) is True for those of bytes."""
        self.n_tokens += len(sentences.ids)
        self.n_byte_tokens += int(is_byte[sentences.ids].sum())
        counts = np.bincount(sentences.lengths)
        self.lengths.update({int(n): int(counts[n]) for n in np.flatnonzero(counts)})

    def merge(self, other: SideStatistics) -> None:
        """Add the counts of other pairs."""
        self.n_characters += other.n_characters
        self.n_words += other.n_words
        self.n_tokens += other.n_tokens
        self.n_byte_tokens += other.n_byte_tokens
        self.lengths.update(other.lengths)
        self.characters.update(other.characters)
        self.evaluation_words.update(other.evaluation_words)

    @property
    def byte_share(self) -> float:
        """Share of tokens that encode a byte."""
        return self.n_byte_tokens / max(1, self.n_tokens)

    def to_json(self) -> dict[str, Any]:
        """Counts, means, the histogram of lengths, and the characters, most frequent first."""
        by_count = sorted(self.characters.items(), key=lambda item: (-item[1], item[0]))
        return {
            "n_characters": self.n_characters,
            "n_words": self.n_words,
            "n_tokens": self.n_tokens,
            "n_byte_tokens": self.n_byte_tokens,
            "tokens_per_word": self.n_tokens / max(1, self.n_words),
            "byte_share": self.byte_share,
            "lengths": [self.lengths[n] for n in range(max(self.lengths, default=-1) + 1)],
            "characters": by_count,
        }


@dataclass
class DataReport:
    """Counts and examples of the pairs that were read, dropped and kept; mergeable.

    entries           those of `data.train`, in their order
    near_matches      evaluation set -> training pairs that nearly equal one of its sentences
    n_leaked          evaluation set -> training pairs with one of its sentences
    repeated_targets  the most frequent ones and their counts: see `find_repeated`
    """

    entries: list[EntryReport]
    sides: tuple[SideStatistics, SideStatistics] = field(
        default_factory=lambda: (SideStatistics(), SideStatistics())
    )
    near_matches: dict[str, CountedPairs] = field(default_factory=dict)
    n_leaked: Counter[str] = field(default_factory=Counter)
    n_copied: int = 0  # kept pairs whose target equals the source
    sum_ratio: float = 0.0  # of target by source tokens, both with EOS
    sum_squared_ratio: float = 0.0
    repeated_targets: list[tuple[str, int]] = field(default_factory=list)
    suspicions: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, names: Iterable[str]) -> DataReport:
        """An empty report of training entries by their names."""
        return cls([EntryReport(name) for name in names])

    def add_dropped(
        self, entry: int, reason: str, pair: TextPair | None = None, n_pairs: int = 1
    ) -> None:
        """Count dropped pairs of an entry, with one of them as an example."""
        examples = [] if pair is None else [_example(*pair)]
        dropped = self.entries[entry].dropped
        dropped.setdefault(reason, CountedPairs()).add(n_pairs, examples)

    def add_near_match(self, match: NearMatch, pair: TextPair) -> None:
        """Count a pair that nearly equals one of an evaluation set; it is not dropped."""
        example = _example(pair[SIDES.index(match.side)], match.text)
        self.near_matches.setdefault(match.split, CountedPairs()).add(1, [example])

    def merge(self, other: DataReport) -> None:
        """Add the report of other pairs of the same entries."""
        for own, entry in zip(self.entries, other.entries, strict=True):
            own.n_read += entry.n_read
            for reason, counted in entry.dropped.items():
                own.dropped.setdefault(reason, CountedPairs()).add(
                    counted.n_pairs, counted.examples
                )
        for split, near in other.near_matches.items():
            self.near_matches.setdefault(split, CountedPairs()).add(near.n_pairs, near.examples)
        for own_side, side in zip(self.sides, other.sides, strict=True):
            own_side.merge(side)
        self.n_leaked.update(other.n_leaked)
        self.n_copied += other.n_copied
        self.sum_ratio += other.sum_ratio
        self.sum_squared_ratio += other.sum_squared_ratio

    @property
    def n_read(self) -> int:
        """Pairs of all entries."""
        return sum(entry.n_read for entry in self.entries)

    @property
    def n_kept(self) -> int:
        """Pairs that were not dropped."""
        return sum(entry.n_kept for entry in self.entries)

    @property
    def n_dropped(self) -> Counter[str]:
        """Reason -> dropped pairs."""
        counts: Counter[str] = Counter()
        for entry in self.entries:
            counts.update({reason: dropped.n_pairs for reason, dropped in entry.dropped.items()})
        return counts

    @property
    def copied_share(self) -> float:
        """Share of kept pairs whose target equals the source."""
        return self.n_copied / self.n_kept

    def length_ratio(self) -> dict[str, float]:
        """Mean and standard deviation, which bound the length of translations."""
        mean = self.sum_ratio / self.n_kept
        variance = max(0.0, self.sum_squared_ratio / self.n_kept - mean**2)
        return {"mean": mean, "std": variance**0.5}

    def rows(self) -> dict[str, int]:
        """Pairs read, dropped by each filter in their order, and kept."""
        counts = self.n_dropped
        dropped = {
            REASONS.get(reason, reason): counts[reason]
            for reason in _ORDER
            if counts[reason] or reason in _ALWAYS_SHOWN
        }
        return {"read": self.n_read, **dropped, "kept": self.n_kept}

    def check_not_empty(self) -> None:
        """Raise a DataError that names the filters, if they left nothing to train on."""
        if self.n_read == 0:
            raise DataError(
                "data.train holds no sentence pairs", "correct the paths in `data.train`"
            )
        if self.n_kept == 0:
            rows = [f"{n:,} {reason}" for reason, n in self.rows().items() if n]
            [(commonest, _)] = self.n_dropped.most_common(1)
            keys = "`data.max_length`, `data.decontaminate`, `data.valid`"
            if commonest in REASONS:
                keys = f"`data.clean.{commonest}` (`false` turns it off)"
            raise DataError(
                f"no training pairs are left of {self.n_read:,}: {', '.join(rows[1:])}",
                f"check the text, or change {keys}",
            )

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "entries": [entry.to_json() for entry in self.entries],
            "sides": {name: side.to_json() for name, side in zip(SIDES, self.sides, strict=True)},
            "repeated_targets": [
                {"text": shortened(text), "n_pairs": n} for text, n in self.repeated_targets
            ],
            "near_matches": [
                {
                    "split": split,
                    "n_pairs": near.n_pairs,
                    "examples": [[found, known] for _, found, known in near.examples],
                }
                for split, near in sorted(self.near_matches.items())
            ],
            "suspicions": self.suspicions,
        }


def find_repeated(hashes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """The most repeated of hashed texts: (index of the first occurrence, number of occurrences).

    hashes (n,) are sorted in a copy of 8 bytes each. Texts that occur once are left out.
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
    """Header and rows of a table of the training pairs, from a report's JSON.

    One column per entry and one for all, or only the latter if there are too many entries.
    """
    entries = report["entries"]
    columns = [
        {
            "read": entry["n_read"],
            **{dropped["words"]: dropped["n_pairs"] for dropped in entry["dropped"]},
            "kept": entry["n_kept"],
        }
        for entry in entries
    ]
    totals: Counter[str] = Counter()
    for column in columns:
        totals.update(column)
    reasons = [words for words, _ in totals.most_common() if words not in ("read", "kept")]
    names = [entry["name"] for entry in entries]
    if not 1 < len(entries) <= _MAX_COLUMNS:
        names, columns = [], []
    rows: list[list[object]] = [
        [label, *(column.get(label, 0) for column in columns), totals[label]]
        for label in ("read", *reasons, "kept")
    ]
    return ["training text", *names, "pairs"], rows


def shortened(text: str) -> str:
    """A text of at most 300 characters."""
    if len(text) <= _MAX_EXAMPLE_CHARACTERS:
        return text
    return text[: _MAX_EXAMPLE_CHARACTERS - 1] + "…"


def _example(source: str, target: str) -> tuple[int, str, str]:
    """A pair and the hash by which examples are chosen."""
    return hash_text(f"{source}\t{target}"), shortened(source), shortened(target)
