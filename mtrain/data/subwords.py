"""Samples a segmentation of a word into pieces: subword regularisation.

SentencePiece's own samples differ from process to process whatever the seed, so that no run could
be resumed exactly. Here a segmentation (a cut) is a function of the model, the word and a number u
in [0, 1). No piece has a space inside, so text is segmented word by word.

    unigram  one of the 64 best cuts, with probabilities in proportion to p^strength (Kudo, 2018)
    BPE      merges in their order, each skipped with the probability `strength` when possible
             (BPE-dropout, Provilkov et al., 2020); one of 64 such cuts of a word
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate, chain
from random import Random
from typing import Any

from mtrain.data.cleaning import digest

N_CUTS = 64  # of a word
_SPACE = "\u2581"  # as SentencePiece writes it, in front of every word

# Cached per process: the first words, which are mostly frequent ones.
_MAX_WORDS = 50_000  # unigram, some 2 kB each
_MAX_CUTS = 500_000  # BPE

DrawCut = Callable[[str, float], list[int]]  # (word, u in [0, 1)) -> ids


class UnigramCutter:
    """Samples cuts of words; processor is a SentencePieceProcessor of a unigram model."""

    def __init__(self, processor: Any, strength: float) -> None:
        self._processor, self._strength = processor, strength
        self._scores: list[float] = list(map(processor.get_score, range(processor.vocab_size())))
        self._cached: dict[str, tuple[array[float], array[int], array[int]]] = {}

    def __call__(self, word: str, u: float) -> list[int]:
        """The ids of a cut; u = 0 gives the best one."""
        sums, ids, ends = self._cached.get(word) or self._weigh(word)
        number = min(bisect(sums, u * sums[-1]), len(sums) - 1)
        return ids[ends[number] : ends[number + 1]].tolist()

    def _weigh(self, word: str) -> tuple[array[float], array[int], array[int]]:
        """The best cuts: cumulative probabilities, the ids of all cuts, and where each begins."""
        cuts: list[list[int]] = self._processor.nbest_encode_as_ids(word, nbest_size=N_CUTS)
        logs = [self._strength * sum(self._scores[i] for i in cut) for cut in cuts]
        most = max(logs)
        found = (
            array("d", accumulate(math.exp(log - most) for log in logs)),
            array("L", chain.from_iterable(cuts)),
            array("L", accumulate(map(len, cuts), initial=0)),
        )
        if len(self._cached) < _MAX_WORDS:
            self._cached[word] = found
        return found


class BpeCutter:
    """Samples cuts of words; processor is a SentencePieceProcessor of a BPE model.

    user_defined  pieces that are never joined with others, nor cut
    """

    def __init__(self, processor: Any, dropout: float, user_defined: Collection[str]) -> None:
        numbers = range(processor.vocab_size())
        self._ids: dict[str, int] = {
            processor.id_to_piece(i): i
            for i in numbers
            if not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i))
        }
        self._scores: dict[str, float] = {
            piece: processor.get_score(i)
            for piece, i in self._ids.items()
            if piece not in user_defined
        }
        self._byte_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._has_bytes = processor.is_byte(self._byte_ids[0])
        self._unknown: int = processor.unk_id()
        self._dropout = dropout
        longest_first = sorted(user_defined, key=len, reverse=True)
        self._symbols = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)
        self._cached: dict[tuple[str, int], list[int]] = {}

    def __call__(self, word: str, u: float) -> list[int]:
        """The ids of a cut."""
        number = int(u * N_CUTS)
        ids = self._cached.get((word, number))
        if ids is None:
            random = Random(digest(f"{number} {word}"))
            symbols = merge(
                self._symbols.findall(_SPACE + word), self._scores, self._dropout, random
            )
            ids = [i for symbol in symbols for i in self._spell(symbol)]
            if len(self._cached) < _MAX_CUTS:
                self._cached[word, number] = ids
        return ids

    def _spell(self, symbol: str) -> list[int]:
        """The id of a piece, or those that replace a character without a piece."""
        if symbol in self._ids:
            return [self._ids[symbol]]
        if not self._has_bytes:
            return [self._unknown]
        return [self._byte_ids[byte] for byte in symbol.encode()]


def merge(
    symbols: list[str], scores: Mapping[str, float], dropout: float, random: Random
) -> list[str]:
    """Join neighbours into pieces, that with the best score first, until there are no more.

    In every round each possible piece is skipped with the probability `dropout`.
    """
    while True:
        possible = [
            (-scores[joined], i)
            for i in range(len(symbols) - 1)
            if (joined := symbols[i] + symbols[i + 1]) in scores and random.random() >= dropout
        ]
        if not possible:
            return symbols
        _, i = min(possible)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
