"""The training text on its way through the filters: what is kept, and what was dropped why.

First every pair by itself, in many processes: normalised and judged, what stays goes to a file.
Then pairs against each other, by their hashes: repeats, targets seen too often, a held-out valid
set. All that grows with the corpus lies in files, which are mapped and read in order:

    corpus.text             normalised pairs, `source TAB target` a line
    corpus.source.hashes    64 bits a pair, and the same of targets
    corpus.loose.hashes     of both sides without case, digits and punctuation, where asked for
    corpus.kept             a byte a pair: 1 as long as no filter has dropped it
    corpus.counts           how many pairs left for which reason, with examples
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrain import console
from mtrain.config.sections import DataConfig
from mtrain.data.cleaning import (
    EvaluationText,
    Hashes,
    choose_valid,
    digest,
    find_excess,
    find_repeats,
    hashes_of,
    loosen,
    normalize,
)
from mtrain.data.data_report import N_EXAMPLES, DataReport
from mtrain.data.filters import REASONS, PairFilter
from mtrain.data.overlap import NearMatches
from mtrain.data.tokenizer import MAX_PIECE_CHARACTERS
from mtrain.errors import DataError
from mtrain.machine.process_pool import map_in_order
from mtrain.storage import storage_errors, write_json

TextPair = tuple[str, str]  # source, target

# Why pairs leave: in words, as the user reads them, or a key of data.filters.REASONS.
UNREADABLE = "unreadable"
EMPTY = "with an empty side"
OVER_LONG = "over-long"
LEAKED = "in valid or test"
REPEATED = "repeated"
HELD_OUT = "held out as valid"
BESIDE_HELD_OUT = "sharing a sentence with valid"
ORDER = (
    *(UNREADABLE, EMPTY, LEAKED, *REASONS),
    *(REPEATED, HELD_OUT, BESIDE_HELD_OUT, OVER_LONG),
)
ALWAYS_TOLD = (EMPTY, LEAKED, REPEATED, OVER_LONG)  # also where none was dropped

CHUNK_PAIRS = 5000
_MAX_VALID_PAIRS, _PAIRS_PER_VALID_PAIR = 2000, 50  # held out: the smaller of 2,000 and 2 %


@dataclass(frozen=True, slots=True)
class RawChunk:
    """Some neighbouring pairs of one training entry, as they were read."""

    entry: int  # its number in data.train
    sources: list[str]
    targets: list[str]


@dataclass(slots=True)
class CleanChunk:
    """What is left of a RawChunk, and why the rest is not."""

    entry: int
    n_read: int
    lines: bytes  # `source TAB target LF`, as many as there are hashes of each kind
    hashes: dict[str, Hashes]
    report: DataReport
    dropped: Counter[str] = field(default_factory=Counter)
    leaked: Counter[str] = field(default_factory=Counter)  # set -> pairs that give it away


class Cleaner:
    """The filters that look at one pair alone, as a function of chunks for other processes."""

    def __init__(
        self,
        config: DataConfig,
        filters: Sequence[PairFilter],
        splits: Mapping[str, Sequence[TextPair]],
        entries: Sequence[str],
    ) -> None:
        """splits: the valid and test sets; filters, entries: that and the name of each entry."""
        self._filters = filters
        self._evaluation = EvaluationText(splits)
        self._near_matches = NearMatches(splits)
        self.entries = entries
        self._decontaminate = config.decontaminate
        self._is_judged = [entry.clean for entry in config.train]
        self._with_loose_hashes = config.clean.normalized_duplicates
        # No piece has more characters, so what is longer than this is over-long in pieces too.
        self._max_characters = config.max_length * MAX_PIECE_CHARACTERS

    def __call__(self, chunk: RawChunk) -> CleanChunk:
        """Normalise and judge each pair."""
        lines: list[str] = []
        digests: dict[str, list[bytes]] = {kind: [] for kind in self.hash_kinds()}
        report = DataReport(self.entries)
        cleaned = CleanChunk(chunk.entry, len(chunk.sources), b"", {}, report)
        for pair in zip(chunk.sources, chunk.targets, strict=True):
            source, target = map(normalize, pair)
            pair_digests = digest(source), digest(target)
            reason = self._reason(source, target, pair_digests, cleaned.leaked)
            if reason is None and self._is_judged[chunk.entry]:
                reason = self._filters[chunk.entry].reason(source, target)
            if reason is not None:
                cleaned.dropped[reason] += 1
                report.add_dropped(chunk.entry, reason, (source, target))
                continue
            if (match := self._near_matches.find(source, target)) is not None:
                report.add_near_match(match, (source, target))
            lines.append(f"{source}\t{target}\n")
            digests["source"].append(pair_digests[0])
            digests["target"].append(pair_digests[1])
            if self._with_loose_hashes:
                digests["loose"].append(digest(f"{loosen(source)}\t{loosen(target)}"))
        cleaned.lines = "".join(lines).encode()
        cleaned.hashes = {kind: hashes_of(found) for kind, found in digests.items()}
        return cleaned

    def hash_kinds(self) -> list[str]:
        """What pairs are compared by."""
        return ["source", "target", *(["loose"] if self._with_loose_hashes else [])]

    def _reason(
        self, source: str, target: str, digests: tuple[bytes, bytes], leaked: Counter[str]
    ) -> str | None:
        """Why a normalised pair of any entry is dropped, or None; counts what it gives away."""
        if not (source and target):
            return EMPTY
        if max(len(source), len(target)) > self._max_characters:
            return OVER_LONG
        if sets := self._evaluation.find(source, target, digests):
            leaked.update(sets)
            if self._decontaminate:
                return LEAKED
        return None


@dataclass
class CorpusCounts:
    """What came in, what went, and which pairs of the files belong to which entry."""

    n_read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> pairs
    n_leaked: dict[str, int] = field(default_factory=dict)  # set -> training pairs found in it
    n_lines: list[int] = field(default_factory=list)  # of each entry, in the files

    def add(self, chunk: CleanChunk) -> None:
        """Take in what became of a chunk."""
        self.n_read += chunk.n_read
        _add(self.dropped, chunk.dropped)
        _add(self.n_leaked, chunk.leaked)
        self.n_lines += [0] * (chunk.entry + 1 - len(self.n_lines))
        self.n_lines[chunk.entry] += len(chunk.hashes["source"])

    def count(self, reason: str, n_pairs: int) -> None:
        """Note that pairs went for a reason."""
        _add(self.dropped, {reason: n_pairs})

    @property
    def n_kept(self) -> int:
        """Pairs that no filter has dropped."""
        return self.n_read - sum(self.dropped.values())

    def rows(self) -> dict[str, int]:
        """Read, dropped by each filter in their order, kept: as a table shows it."""
        dropped = {
            REASONS.get(reason, reason): self.dropped.get(reason, 0)
            for reason in ORDER
            if self.dropped.get(reason) or reason in ALWAYS_TOLD
        }
        return {"read": self.n_read, **dropped, "kept": self.n_kept}

    def check_not_empty(self) -> None:
        """An error that names the filters, when they left nothing to train on."""
        if self.n_read == 0:
            raise DataError(
                "data.train holds no sentence pairs", "correct the paths in `data.train`"
            )
        if self.n_kept == 0:
            dropped = ", ".join(f"{n:,} {reason}" for reason, n in self.rows().items() if n)
            dropped = dropped.removeprefix(f"{self.n_read:,} read, ")
            commonest = max(self.dropped, key=lambda reason: self.dropped[reason])
            keys = "`data.max_length`, `data.decontaminate`, `data.valid`"
            if commonest in REASONS:
                keys = f"`data.clean.{commonest}`, which may have another threshold or be `false`"
            raise DataError(
                f"no training pair is left of {self.n_read:,}: {dropped}",
                f"look at the text, or at {keys}",
            )


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for key, n in more.items():
        counts[key] = counts.get(key, 0) + n


class Corpus:
    """The files of a cleaned corpus in a directory, their counts and examples."""

    def __init__(self, directory: Path, counts: CorpusCounts, report: DataReport) -> None:
        self.counts, self.report = counts, report
        self.valid: list[TextPair] = []  # held out, where no valid set is given
        self._directory = directory
        self.text = directory / "corpus.text"

    @classmethod
    def clean(
        cls,
        directory: Path,
        chunks: Iterable[RawChunk],
        cleaner: Cleaner,
        n_pairs: int | None,
        n_processes: int | None,
    ) -> Corpus:
        """Judge each pair by itself and write those that stay; n_pairs (if known) are expected."""
        corpus = cls(directory, CorpusCounts(), DataReport(cleaner.entries))
        paths = [corpus.text, *map(corpus._hash_file, cleaner.hash_kinds())]
        with (
            ExitStack() as files,
            console.bar(n_pairs, "cleaning", "pairs") as bar,
            closing(map_in_order(cleaner, chunks, n_processes)) as cleaned,
        ):
            text, *hashes = [files.enter_context(_OutputFile(path)) for path in paths]
            for chunk in cleaned:
                text.write(chunk.lines)
                for file, values in zip(hashes, chunk.hashes.values(), strict=True):
                    file.write(values.tobytes())
                corpus.counts.add(chunk)
                corpus.report.merge(chunk.report)
                bar.update(chunk.n_read)
        return corpus

    @classmethod
    def load(cls, directory: Path) -> Corpus:
        """The corpus that `save` left in a directory."""
        saved = json.loads((directory / "corpus.counts").read_text(encoding="utf-8"))
        report = DataReport.from_cleaning(saved["report"])
        corpus = cls(directory, CorpusCounts(**saved["counts"]), report)
        corpus.valid = [(source, target) for source, target in saved["valid"]]
        return corpus

    def save(self) -> None:
        """Keep all the rest beside the files, for an interrupted run to go on from."""
        saved = {
            "counts": asdict(self.counts),
            "report": self.report.of_cleaning(),
            "valid": self.valid,
        }
        write_json(self._directory / "corpus.counts", saved)

    def drop_unread(self, entry: int, reason: str, n_pairs: int) -> None:
        """Note that pairs of an entry never came in."""
        self.counts.n_read += n_pairs
        self.counts.count(reason, n_pairs)
        if n_pairs:
            self.report.add_dropped(entry, reason, n_pairs=n_pairs)

    def select(self, config: DataConfig) -> None:
        """Drop pairs for what other pairs are, and hold out a valid set if none is given."""
        targets = self._hashes("target")
        is_kept = np.ones(len(targets), dtype=bool)
        is_judged = self._expand([entry.clean for entry in config.train])
        if config.deduplicate:
            self._drop(REPEATED, find_repeats(self._hashes("source"), targets), is_kept)
        if config.clean.normalized_duplicates:
            repeats = _find_excess_among(is_kept & is_judged, self._hashes("loose"), 1)
            self._drop("normalized_duplicates", repeats, is_kept)
        if limit := config.clean.max_target_repeats:
            excess = _find_excess_among(is_kept & is_judged, targets, limit)
            self._drop("max_target_repeats", excess, is_kept)
        self.counts.check_not_empty()
        if config.valid is None:
            self.valid = self._hold_out_valid(is_kept, config.seed)
        with _OutputFile(self._directory / "corpus.kept") as file:
            file.write(is_kept.tobytes())

    def _drop(self, reason: str, is_bad: NDArray[np.bool_], is_kept: NDArray[np.bool_]) -> None:
        """Drop the bad pairs of those that are kept so far, with examples of each entry."""
        is_bad &= is_kept
        is_kept &= ~is_bad
        self.counts.count(reason, int(is_bad.sum()))
        is_example = np.zeros(len(is_bad), dtype=bool)
        for entry, part in enumerate(self._parts()):
            bad = np.flatnonzero(is_bad[part])
            is_example[part.start + bad[:N_EXAMPLES]] = True
            if n_without := len(bad) - len(bad[:N_EXAMPLES]):
                self.report.add_dropped(entry, reason, n_pairs=n_without)
        for entry, pair in self._select(is_example):
            self.report.add_dropped(entry, reason, pair)

    def _expand(self, of_entries: Sequence[bool]) -> NDArray[np.bool_]:
        """(n,) of each pair of the files what is true of its entry."""
        n_lines = self.counts.n_lines
        return np.repeat(np.array(of_entries[: len(n_lines)], dtype=bool), n_lines)

    def _parts(self) -> Iterator[slice]:
        """Which pairs of the files each entry has."""
        ends = np.cumsum([0, *self.counts.n_lines]).tolist()
        yield from map(slice, ends[:-1], ends[1:])

    def _select(self, flags: NDArray[np.bool_]) -> Iterator[tuple[int, TextPair]]:
        """(entry, pair) of the flagged pairs, in order; reads no further than the last one."""
        chosen = np.flatnonzero(flags)
        ends = np.cumsum(self.counts.n_lines)
        with open(self.text, "rb") as file:
            lines = compress(file, flags[: chosen.max(initial=-1) + 1].tolist())
            for position, line in zip(chosen, lines, strict=True):
                [pair] = read_lines(line)
                yield int(np.searchsorted(ends, position, side="right")), pair

    def _hold_out_valid(self, is_kept: NDArray[np.bool_], seed: int) -> list[TextPair]:
        """Take a validation set out of the pairs that are left; it shares no sentence with them."""
        n_before = self.counts.n_kept
        candidates = np.flatnonzero(is_kept)
        chosen, leaving = choose_valid(
            self._hashes("source")[candidates],
            self._hashes("target")[candidates],
            min(_MAX_VALID_PAIRS, max(1, n_before // _PAIRS_PER_VALID_PAIR)),
            seed,
        )
        is_held_out = np.zeros(len(is_kept), dtype=bool)
        is_held_out[candidates[chosen]] = True
        is_beside = np.zeros(len(is_kept), dtype=bool)
        is_beside[candidates[leaving]] = True
        is_beside &= ~is_held_out
        self._drop(HELD_OUT, is_held_out, is_kept)
        self._drop(BESIDE_HELD_OUT, is_beside, is_kept)
        self.counts.check_not_empty()
        console.message(
            f"no `data.valid` is given: {len(chosen):,} of {n_before:,} training pairs are held "
            f"out for it (seed {seed}); they share no sentence with the rest"
        )
        return [pair for _, pair in self._select(is_held_out)]

    @property
    def is_kept(self) -> NDArray[np.bool_]:
        """(n,) which pairs of the files are left."""
        return self._map("corpus.kept", np.dtype(bool))

    def kept_lines(self) -> Iterator[tuple[int, list[bytes], Hashes]]:
        """(entry, lines, hashes of their targets) of the pairs that are left, some at a time."""
        targets, is_kept = self._hashes("target"), self.is_kept
        with open(self.text, "rb") as file:
            for entry, part in enumerate(self._parts()):
                for first in range(part.start, part.stop, CHUNK_PAIRS):
                    chunk = slice(first, min(first + CHUNK_PAIRS, part.stop))
                    flags = is_kept[chunk]
                    lines = list(compress(islice(file, len(flags)), flags.tolist()))
                    if lines:
                        yield entry, lines, targets[chunk][flags]

    def kept(self) -> Iterator[TextPair]:
        """The pairs that are left, in order."""
        for _, lines, _ in self.kept_lines():
            yield from read_lines(b"".join(lines))

    def _hash_file(self, kind: str) -> Path:
        return self._directory / f"corpus.{kind}.hashes"

    def _hashes(self, kind: str) -> Hashes:
        return self._map(self._hash_file(kind).name, np.dtype("<u8"))

    def _map(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        path = self._directory / name
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.empty(0, dtype)
        return np.memmap(path, dtype, mode="r").view(np.ndarray)


def _find_excess_among(
    is_looked_at: NDArray[np.bool_], hashes: Hashes, limit: int
) -> NDArray[np.bool_]:
    """(n,) True where a hash had occurred `limit` times before, as if the others were not there."""
    positions = np.flatnonzero(is_looked_at)
    is_excess = np.zeros(len(hashes), dtype=bool)
    is_excess[positions] = find_excess(hashes[positions], limit)
    return is_excess


def read_lines(lines: bytes) -> list[TextPair]:
    """The pairs of whole lines; normalised text holds no tab and no line break."""
    pairs = [line.split("\t") for line in lines.decode().split("\n")[:-1]]
    return [(source, target) for source, target in pairs]


class _OutputFile:
    """A file written in order, whose troubles are told in our words."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _OutputFile:
        with storage_errors(self._path):
            self._file = open(self._path, "wb")
        return self

    def write(self, data: bytes) -> None:
        """Append; on the disk before the next one, so that a full disk is told at once."""
        with storage_errors(self._path):
            self._file.write(data)
            self._file.flush()

    def __exit__(self, *exception: object) -> None:
        with storage_errors(self._path):
            self._file.close()
