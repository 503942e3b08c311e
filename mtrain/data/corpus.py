"""The training text on its way through the filters: the kept pairs, and a report of the others.

First, each pair is normalised and filtered separately, in many processes, and written to a file if
it is kept. Then pairs are compared by their hashes: repeats, targets that occur too often, a
held-out valid set. All data that grows with the corpus is in files, which are mapped and read in
order:

    corpus.text             normalised pairs, `source TAB target` per line
    corpus.source.hashes    64 bits per pair, and the same of targets
    corpus.target.hashes
    corpus.loose.hashes     of both sides without case, digits and punctuation, if needed
    corpus.kept             one byte per pair: 1 as long as no filter has dropped it
    corpus.json             the report and the held-out valid set
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import compress, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from mtrain import console
from mtrain.config.sections import DataConfig
from mtrain.data.cleaning import (
    EvaluationText,
    Hashes,
    NearMatches,
    TextPair,
    choose_valid,
    digest,
    find_excess,
    find_repeats,
    hashes_of,
    loosen,
    normalize,
)
from mtrain.data.data_report import (
    BESIDE_HELD_OUT,
    EMPTY,
    HELD_OUT,
    LEAKED,
    N_EXAMPLES,
    OVER_LONG,
    REPEATED,
    DataReport,
)
from mtrain.data.filters import PairFilter
from mtrain.data.reading import Pairs
from mtrain.data.store import OutputFile, map_array
from mtrain.data.tokenizer import MAX_PIECE_CHARACTERS
from mtrain.machine.process_pool import map_in_order
from mtrain.storage import atomic_write

CHUNK_PAIRS = 5000
_MAX_VALID_PAIRS, _PAIRS_PER_VALID_PAIR = 2000, 50  # held out: the smaller of 2,000 and 2 %


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The kept pairs of one entry, and a report of all pairs that were read."""

    entry: int
    lines: bytes  # `source TAB target LF` per pair
    hashes: dict[str, Hashes]  # kind -> one hash per pair
    report: DataReport


class Cleaner:
    """The filters of single pairs, as a picklable function of `Pairs`."""

    def __init__(
        self,
        config: DataConfig,
        filters: Sequence[PairFilter],
        splits: Mapping[str, Sequence[TextPair]],
        entries: Sequence[str],
    ) -> None:
        """splits: the valid and test sets; filters, entries: filter and name of each entry."""
        self._filters = filters
        self._evaluation = EvaluationText(splits)
        self._near_matches = NearMatches(splits)
        self.entries = entries
        self._decontaminate = config.decontaminate
        self._is_judged = [entry.clean for entry in config.train]
        self.hash_kinds = ["source", "target"]
        if config.clean.normalized_duplicates:
            self.hash_kinds.append("loose")
        # No piece has more characters, so a longer text also has too many pieces.
        self._max_characters = config.max_length * MAX_PIECE_CHARACTERS

    def __call__(self, pairs: Pairs) -> Cleaned:
        """Normalise and filter each pair."""
        entry, lines = pairs.entry, []
        digests: dict[str, list[bytes]] = {kind: [] for kind in self.hash_kinds}
        report = DataReport.of(self.entries)
        report.entries[entry].n_read = len(pairs.src)
        for pair in zip(pairs.src, pairs.tgt, strict=True):
            source, target = map(normalize, pair)
            pair_digests = digest(source), digest(target)
            reason = self._reason(source, target, pair_digests, report)
            if reason is None and self._is_judged[entry]:
                reason = self._filters[entry].reason(source, target)
            if reason is not None:
                report.add_dropped(entry, reason, (source, target))
                continue
            if (match := self._near_matches.find(source, target)) is not None:
                report.add_near_match(match, (source, target))
            lines.append(f"{source}\t{target}\n")
            digests["source"].append(pair_digests[0])
            digests["target"].append(pair_digests[1])
            if "loose" in digests:
                digests["loose"].append(digest(f"{loosen(source)}\t{loosen(target)}"))
        hashes = {kind: hashes_of(found) for kind, found in digests.items()}
        return Cleaned(entry, "".join(lines).encode(), hashes, report)

    def _reason(
        self, source: str, target: str, digests: tuple[bytes, bytes], report: DataReport
    ) -> str | None:
        """Why a normalised pair of any entry is dropped, or None; leaks are counted."""
        if not (source and target):
            return EMPTY
        if max(len(source), len(target)) > self._max_characters:
            return OVER_LONG
        if sets := self._evaluation.find(source, target, digests):
            report.n_leaked.update(sets)
            if self._decontaminate:
                return LEAKED
        return None


@dataclass
class Corpus:
    """The files of a cleaned corpus in a directory, and its report.

    n_lines  pairs of each entry in the files
    valid    held-out pairs, if no valid set is given
    """

    directory: Path
    report: DataReport
    n_lines: list[int] = field(default_factory=list)
    valid: list[TextPair] = field(default_factory=list)

    @classmethod
    def clean(
        cls,
        directory: Path,
        chunks: Iterable[Pairs],
        cleaner: Cleaner,
        n_pairs: int | None,
        n_processes: int | None,
    ) -> Corpus:
        """Filter each pair and write the kept ones; n_pairs is the expected number, if known."""
        corpus = cls(directory, DataReport.of(cleaner.entries), [0] * len(cleaner.entries))
        names = ["text", *(f"{kind}.hashes" for kind in cleaner.hash_kinds)]
        with (
            ExitStack() as files,
            console.bar(n_pairs, "cleaning", "pairs") as bar,
            closing(map_in_order(cleaner, chunks, n_processes)) as cleaned,
        ):
            text, *hashes = [
                files.enter_context(closing(OutputFile(corpus._path(name)))) for name in names
            ]
            for chunk in cleaned:
                text.write(chunk.lines)
                for file, values in zip(hashes, chunk.hashes.values(), strict=True):
                    file.write(values.tobytes())
                corpus.n_lines[chunk.entry] += len(chunk.hashes["source"])
                corpus.report.merge(chunk.report)
                bar.update(chunk.report.n_read)
        return corpus

    @classmethod
    def load(cls, directory: Path) -> Corpus:
        """The corpus that `save` left in a directory."""
        corpus = _CORPUS.validate_json((directory / "corpus.json").read_bytes())
        corpus.directory = directory
        return corpus

    def save(self) -> None:
        """Write all remaining state to the files, so that an interrupted run can resume."""
        atomic_write(self._path("json"), _CORPUS.dump_json(self))

    def select(self, config: DataConfig) -> None:
        """Drop repeated pairs, and hold out a valid set if none is given."""
        targets = self._hashes("target")
        is_kept = np.ones(len(targets), dtype=bool)
        is_judged = np.repeat([entry.clean for entry in config.train], self.n_lines)
        if config.deduplicate:
            self._drop(REPEATED, find_repeats(self._hashes("source"), targets), is_kept)
        if config.clean.normalized_duplicates:
            repeats = _find_excess_among(is_kept & is_judged, self._hashes("loose"), 1)
            self._drop("normalized_duplicates", repeats, is_kept)
        if limit := config.clean.max_target_repeats:
            excess = _find_excess_among(is_kept & is_judged, targets, limit)
            self._drop("max_target_repeats", excess, is_kept)
        self.report.check_not_empty()
        if config.valid is None:
            self.valid = self._hold_out_valid(is_kept, config.seed)
        with closing(OutputFile(self._path("kept"))) as file:
            file.write(is_kept.tobytes())

    def kept(self) -> Iterator[Pairs]:
        """The pairs that no filter has dropped, in order."""
        is_kept = map_array(self._path("kept"), np.dtype(bool), sum(self.n_lines))
        with open(self._path("text"), "rb") as file:
            for entry, part in enumerate(self._parts()):
                for start in range(part.start, part.stop, CHUNK_PAIRS):
                    flags = is_kept[start : min(start + CHUNK_PAIRS, part.stop)]
                    lines = list(compress(islice(file, len(flags)), flags.tolist()))
                    if lines:
                        yield read_pairs(entry, lines)

    def _drop(self, reason: str, is_bad: NDArray[np.bool_], is_kept: NDArray[np.bool_]) -> None:
        """Drop the bad pairs among those still kept, with examples of each entry."""
        is_bad &= is_kept
        is_kept &= ~is_bad
        is_example = np.zeros(len(is_bad), dtype=bool)
        for entry, part in enumerate(self._parts()):
            bad = np.flatnonzero(is_bad[part])
            is_example[part.start + bad[:N_EXAMPLES]] = True
            if n_without := len(bad) - len(bad[:N_EXAMPLES]):
                self.report.add_dropped(entry, reason, n_pairs=n_without)
        for entry, pair in self._read(is_example):
            self.report.add_dropped(entry, reason, pair)

    def _hold_out_valid(self, is_kept: NDArray[np.bool_], seed: int) -> list[TextPair]:
        """Take a validation set that shares no sentence with the remaining pairs."""
        n_before = self.report.n_kept
        candidates = np.flatnonzero(is_kept)
        chosen, leaving = choose_valid(
            self._hashes("source")[candidates],
            self._hashes("target")[candidates],
            min(_MAX_VALID_PAIRS, max(1, n_before // _PAIRS_PER_VALID_PAIR)),
            seed,
        )
        is_held_out, is_beside = np.zeros((2, len(is_kept)), dtype=bool)
        is_held_out[candidates[chosen]] = True
        is_beside[candidates[leaving]] = True
        self._drop(HELD_OUT, is_held_out, is_kept)
        self._drop(BESIDE_HELD_OUT, is_beside, is_kept)
        self.report.check_not_empty()
        console.message(
            f"no `data.valid` is given: {len(chosen):,} of {n_before:,} training pairs are held "
            f"out for it (seed {seed}); they share no sentence with the rest"
        )
        return [pair for _, pair in self._read(is_held_out)]

    def _parts(self) -> Iterator[slice]:
        """The range of each entry's pairs in the files."""
        ends = np.cumsum([0, *self.n_lines]).tolist()
        yield from map(slice, ends[:-1], ends[1:])

    def _read(self, flags: NDArray[np.bool_]) -> Iterator[tuple[int, TextPair]]:
        """(entry, pair) of the flagged pairs, in order; reads no further than the last one."""
        chosen = np.flatnonzero(flags)
        ends = np.cumsum(self.n_lines)
        with open(self._path("text"), "rb") as file:
            lines = compress(file, flags[: chosen.max(initial=-1) + 1].tolist())
            for position, line in zip(chosen, lines, strict=True):
                entry = int(np.searchsorted(ends, position, side="right"))
                pairs = read_pairs(entry, [line])
                yield entry, (pairs.src[0], pairs.tgt[0])

    def _hashes(self, kind: str) -> Hashes:
        return map_array(self._path(f"{kind}.hashes"), np.dtype("<u8"), sum(self.n_lines))

    def _path(self, name: str) -> Path:
        return self.directory / f"corpus.{name}"


_CORPUS = TypeAdapter(Corpus)


def read_pairs(entry: int, lines: Iterable[bytes]) -> Pairs:
    """The pairs of an entry in `source TAB target LF` lines."""
    columns = [line.split("\t") for line in b"".join(lines).decode().split("\n")[:-1]]
    return Pairs(entry, [source for source, _ in columns], [target for _, target in columns])


def _find_excess_among(
    is_candidate: NDArray[np.bool_], hashes: Hashes, limit: int
) -> NDArray[np.bool_]:
    """(n,) True where a candidate's hash had occurred `limit` times among the candidates."""
    positions = np.flatnonzero(is_candidate)
    is_excess = np.zeros(len(hashes), dtype=bool)
    is_excess[positions] = find_excess(hashes[positions], limit)
    return is_excess
