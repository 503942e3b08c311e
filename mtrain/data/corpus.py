"""The training text on its way through the filters: what is kept, and what was dropped why.

Text waits in a temporary file, so that memory holds no more than two hashes and a flag a pair.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, compress, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mtrain import console
from mtrain.config import DataConfig
from mtrain.data.cleaning import (
    EvaluationText,
    HashedPair,
    choose_valid,
    find_repeats,
    normalize,
)
from mtrain.data.tokenizer import MAX_PIECE_CHARACTERS
from mtrain.errors import DataError
from mtrain.run import storage_errors

T = TypeVar("T")
TextPair = tuple[str, str]  # source, target

# Why pairs leave, in the order in which the filters look at them, as the user reads it.
UNREADABLE = "not UTF-8 text"
EMPTY = "with an empty side"
LEAKED = "in valid or test"
REPEATED = "repeated"
HELD_OUT = "held out as valid"
BESIDE_HELD_OUT = "sharing a sentence with valid"
OVER_LONG = "over-long"
FILTERS = (EMPTY, LEAKED, REPEATED, OVER_LONG)

_CHUNK_PAIRS = 20_000
_MAX_VALID_PAIRS, _PAIRS_PER_VALID_PAIR = 2000, 50  # held out: the smaller of 2,000 and 2 %


class Corpus:
    """Normalised training pairs: text in a file, `source TAB target` a line; hashes in memory.

    n_read   pairs that came in
    dropped  reason -> pairs that went for it
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_read = 0
        self.dropped = dict.fromkeys(
            (UNREADABLE, EMPTY, LEAKED, REPEATED, HELD_OUT, BESIDE_HELD_OUT, OVER_LONG), 0
        )
        # Of each pair in the file:
        self._sources = self._targets = np.empty(0, np.uint64)
        self._is_kept: NDArray[np.bool_] = np.empty(0, np.bool_)

    @property
    def n_kept(self) -> int:
        """Pairs that no filter has dropped."""
        return self.n_read - sum(self.dropped.values())

    def fill(
        self, pairs: Iterable[TextPair], config: DataConfig, splits: Iterable[list[TextPair]]
    ) -> None:
        """Read the raw pairs and apply the filters; splits are the valid and test sets."""
        evaluation = EvaluationText()
        if config.decontaminate:
            evaluation.add(chain.from_iterable(splits))
        # No piece has more characters, so what is longer than this is over-long in pieces too.
        self._write(self._clean(pairs, evaluation, config.max_length * MAX_PIECE_CHARACTERS))
        if config.deduplicate:
            is_repeat = find_repeats(self._sources, self._targets)
            self.dropped[REPEATED] = int(is_repeat.sum())
            self._is_kept &= ~is_repeat
        self._check_not_empty()

    def hold_out_valid(self, seed: int) -> list[TextPair]:
        """Take a validation set out of the pairs that are left; it shares no sentence with them."""
        n_before = self.n_kept
        candidates = np.flatnonzero(self._is_kept)
        chosen, leaving = choose_valid(
            self._sources[candidates],
            self._targets[candidates],
            min(_MAX_VALID_PAIRS, max(1, n_before // _PAIRS_PER_VALID_PAIR)),
            seed,
        )
        is_valid = np.zeros(len(self._is_kept), dtype=bool)
        is_valid[candidates[chosen]] = True
        self._is_kept[candidates[leaving]] = False
        self.dropped[HELD_OUT] = len(chosen)
        self.dropped[BESIDE_HELD_OUT] = int(leaving.sum()) - len(chosen)
        self._check_not_empty()
        console.message(
            f"no `data.valid` is given: {len(chosen):,} of {n_before:,} training pairs are held "
            f"out for it (seed {seed}); they share no sentence with the rest"
        )
        return list(self._select(is_valid))

    def count_unreadable(self, n_pairs: int) -> None:
        """Note that so many pairs were no text, and never came in."""
        self.n_read += n_pairs
        self.dropped[UNREADABLE] += n_pairs

    def count_over_long(self, n_pairs: int) -> None:
        """Note that so many kept pairs turned out to be over-long in pieces."""
        self.dropped[OVER_LONG] += n_pairs
        self._check_not_empty()

    def kept(self) -> Iterator[TextPair]:
        """The pairs that are left, in order."""
        return self._select(self._is_kept)

    def _clean(
        self, pairs: Iterable[TextPair], evaluation: EvaluationText, max_characters: int
    ) -> Iterator[HashedPair]:
        """The pairs that pass the filters that look at one pair alone."""
        for texts in pairs:
            self.n_read += 1
            source, target = map(normalize, texts)
            if not (source and target):
                self.dropped[EMPTY] += 1
            elif max(len(source), len(target)) > max_characters:
                self.dropped[OVER_LONG] += 1
            elif evaluation.gives_away(pair := HashedPair.of(source, target)):
                self.dropped[LEAKED] += 1
            else:
                yield pair

    def _write(self, pairs: Iterable[HashedPair]) -> None:
        sources, targets = array("Q"), array("Q")  # 64 bits each
        with storage_errors(self.path):
            file = open(self.path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
        with file, console.bar(None, "reading", "pairs") as bar:
            for chunk in chunks(pairs):
                sources.extend(pair.source_hash for pair in chunk)
                targets.extend(pair.target_hash for pair in chunk)
                with storage_errors(self.path):
                    file.writelines(f"{pair.source}\t{pair.target}\n" for pair in chunk)
                    file.flush()
                bar.update(len(chunk))
        self._sources = np.array(sources, np.uint64)
        self._targets = np.array(targets, np.uint64)
        self._is_kept = np.ones(len(self._sources), dtype=bool)

    def _select(self, flags: NDArray[np.bool_]) -> Iterator[TextPair]:
        """The flagged pairs, in order; normalised text holds no tab and no line break."""
        with open(self.path, encoding="utf-8", newline="\n") as file:
            for line in compress(file, flags):
                source, target = line[:-1].split("\t")
                yield source, target

    def _check_not_empty(self) -> None:
        """An error that names the filters, when they left nothing to train on."""
        if self.n_read == 0:
            raise DataError(
                "data.train holds no sentence pairs", "correct the paths in `data.train`"
            )
        if self.n_kept == 0:
            dropped = ", ".join(f"{n:,} {reason}" for reason, n in self.dropped.items() if n)
            raise DataError(
                f"no training pair is left of {self.n_read:,}: {dropped}",
                "look at the text, or at `data.max_length`, `data.decontaminate`, `data.valid`",
            )


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Lists of many items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK_PAIRS)):
        yield chunk
