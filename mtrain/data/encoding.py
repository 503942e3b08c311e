"""From text to ids, chunk by chunk in some process, and stored in order.

`Encoder` makes the store of the prepared data, and counts on the way; `SubwordSampler` makes that
of an epoch whose subwords are drawn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrain import console
from mtrain.data.cleaning import Hashes
from mtrain.data.corpus import OVER_LONG, Corpus, TextPair, read_lines
from mtrain.data.data_report import DataReport
from mtrain.data.store import Sentences, StoreCounts, StoreWriter, id_dtype
from mtrain.data.tokenizer import Tokenizer
from mtrain.machine.process_pool import map_in_order

_WORD = re.compile(r"\w+")


@dataclass
class PairStatistics:
    """Sums over the stored pairs."""

    n_pairs: int = 0
    n_copied: int = 0  # whose target is the source
    sum_ratio: float = 0.0  # of target by source pieces, both with EOS
    sum_squared_ratio: float = 0.0
    word_counts: tuple[Counter[str], Counter[str]] = field(
        default_factory=lambda: (Counter(), Counter())
    )  # of the words of valid and test, by side

    def merge(self, other: PairStatistics) -> None:
        """Take in the sums of more pairs."""
        self.n_pairs += other.n_pairs
        self.n_copied += other.n_copied
        self.sum_ratio += other.sum_ratio
        self.sum_squared_ratio += other.sum_squared_ratio
        for own, more in zip(self.word_counts, other.word_counts, strict=True):
            own.update(more)

    def length_ratio(self) -> dict[str, float]:
        """Mean and standard deviation, which bound the length of translations."""
        mean = self.sum_ratio / self.n_pairs
        variance = max(0.0, self.sum_squared_ratio / self.n_pairs - mean**2)
        return {"mean": mean, "std": variance**0.5}

    @property
    def copied_share(self) -> float:
        """Of pairs whose target is the source."""
        return self.n_copied / self.n_pairs


@dataclass(frozen=True, slots=True)
class KeptChunk:
    """Kept pairs of one training entry: `source TAB target LF` a pair, and target hashes."""

    entry: int
    lines: bytes
    target_hashes: Hashes


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """The pairs of a KeptChunk that are not over-long, as ids."""

    entry: int
    n_read: int
    source: Sentences
    target: Sentences
    target_hashes: Hashes
    statistics: PairStatistics
    report: DataReport
    lines: bytes  # where the text is kept


class Encoder:
    """Both tokenizers and what is counted, as a function of chunks for other processes."""

    def __init__(
        self,
        tokenizers: tuple[Tokenizer, Tokenizer],
        max_length: int,
        entries: Sequence[str],
        tags: Sequence[str | None],
        splits: Mapping[str, Sequence[TextPair]],
        keeps_text: bool = False,
    ) -> None:
        """entries, tags: the name of each training entry, and its tag."""
        self._tokenizers = tokenizers
        self._max_length = max_length
        self._entries, self._tags = entries, tags
        self.keeps_text = keeps_text
        self._known_words = tuple(
            frozenset(_words(pair[side] for pairs in splits.values() for pair in pairs))
            for side in (0, 1)
        )

    def __call__(self, chunk: KeptChunk) -> EncodedChunk:
        """Encode, drop what is over-long, count."""
        pairs = read_lines(chunk.lines)
        texts = list(zip(*pairs, strict=True))
        ids = [
            tokenizer.encode(side, n_threads=1)
            for tokenizer, side in zip(
                tagged(self._tokenizers, self._tags[chunk.entry]), texts, strict=True
            )
        ]
        report = DataReport(self._entries, (self._is_byte(0), self._is_byte(1)))
        fits = [
            max(len(source), len(target)) <= self._max_length
            for source, target in zip(*ids, strict=True)
        ]
        for pair in compress(pairs, [not fit for fit in fits]):
            report.add_dropped(chunk.entry, OVER_LONG, pair)
        kept = list(compress(pairs, fits))
        source, target = (list(compress(side, fits)) for side in ids)
        if kept:
            report.add_kept([chunk.entry] * len(kept), kept, list(zip(source, target, strict=True)))
        sides = [
            Sentences.of(side, id_dtype(tokenizer.vocab_size))
            for tokenizer, side in zip(self._tokenizers, (source, target), strict=True)
        ]
        return EncodedChunk(
            *(chunk.entry, len(pairs), sides[0], sides[1], chunk.target_hashes[np.array(fits)]),
            self._count(kept, sides[0].lengths, sides[1].lengths),
            report,
            _lines(kept) if self.keeps_text else b"",
        )

    def _is_byte(self, side: int) -> NDArray[np.bool_]:
        """(vocabulary size,) True for the ids that stand for a byte of a character."""
        tokenizer = self._tokenizers[side]
        is_byte = np.zeros(tokenizer.vocab_size, dtype=bool)
        is_byte[tokenizer.byte_ids()] = True
        return is_byte

    def _count(
        self, pairs: Sequence[TextPair], src_lengths: NDArray[Any], tgt_lengths: NDArray[Any]
    ) -> PairStatistics:
        ratios = (tgt_lengths + 1) / (src_lengths + 1)
        return PairStatistics(
            len(pairs),
            sum(source == target for source, target in pairs),
            float(ratios.sum()),
            float((ratios**2).sum()),
            (self._count_words(pairs, 0), self._count_words(pairs, 1)),
        )

    def _count_words(self, pairs: Sequence[TextPair], side: int) -> Counter[str]:
        known = self._known_words[side]
        counts = Counter(_words(pair[side] for pair in pairs))
        return Counter({word: counts[word] for word in counts.keys() & known})


def encode_corpus(
    corpus: Corpus,
    encoder: Encoder,
    directory: Path,
    vocab_sizes: tuple[int, int],
    n_processes: int | None,
) -> tuple[StoreCounts, PairStatistics]:
    """Store the kept pairs of a corpus; what is over-long leaves it."""
    statistics = PairStatistics()
    chunks = (
        KeptChunk(entry, b"".join(lines), hashes) for entry, lines, hashes in corpus.kept_lines()
    )
    with (
        StoreWriter(directory, "train", vocab_sizes) as writer,
        console.bar(corpus.counts.n_kept, "encoding", "pairs") as bar,
        closing(map_in_order(encoder, chunks, n_processes)) as encoded,
    ):
        for chunk in encoded:
            writer.extend(chunk.source, chunk.target, chunk.entry, chunk.target_hashes)
            if encoder.keeps_text:
                writer.keep_text(chunk.lines)
            statistics.merge(chunk.statistics)
            corpus.report.merge(chunk.report)
            corpus.counts.count(OVER_LONG, chunk.n_read - len(chunk.target_hashes))
            bar.update(chunk.n_read)
        corpus.counts.check_not_empty()
        return writer.close(), statistics


@dataclass(frozen=True, slots=True)
class TextChunk:
    """Some pairs of one training entry, `source TAB target LF` each."""

    entry: int
    lines: bytes
    seed: tuple[int, ...]  # of what is drawn for these pairs


@dataclass(frozen=True, slots=True)
class DrawnChunk:
    """The same pairs as ids."""

    entry: int
    source: Sentences
    target: Sentences


class SubwordSampler:
    """Cuts text into pieces at random, as a function of chunks for other processes."""

    def __init__(
        self,
        tokenizers: tuple[Tokenizer, Tokenizer],
        tags_of_entries: Sequence[str | None],
        strength: float,
        max_length: int,
    ) -> None:
        self._strength, self._max_length = strength, max_length
        self.vocab_sizes = (tokenizers[0].vocab_size, tokenizers[1].vocab_size)
        # Made once, as they remember what they have cut.
        self._tokenizers = [tagged(tokenizers, tag) for tag in tags_of_entries]

    def __call__(self, chunk: TextChunk) -> DrawnChunk:
        """Draw both sides; a side that becomes over-long keeps its best pieces."""
        texts = list(zip(*read_lines(chunk.lines), strict=True))
        seeds = np.random.SeedSequence(chunk.seed).generate_state(2)
        source, target = (
            self._draw(tokenizer, side, int(seed))
            for tokenizer, side, seed in zip(
                self._tokenizers[chunk.entry], texts, seeds, strict=True
            )
        )
        return DrawnChunk(chunk.entry, source, target)

    def _draw(self, tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> Sentences:
        ids = tokenizer.sample(texts, self._strength, seed)
        over_long = [i for i, row in enumerate(ids) if len(row) > self._max_length]
        best = tokenizer.encode([texts[i] for i in over_long], n_threads=1)
        for i, row in zip(over_long, best, strict=True):
            ids[i] = row
        return Sentences.of(ids, id_dtype(tokenizer.vocab_size))


def tagged(tokenizers: tuple[Tokenizer, Tokenizer], tag: str | None) -> tuple[Tokenizer, Tokenizer]:
    """A tag stands in front of sources only."""
    return tokenizers[0].tagged(tag), tokenizers[1]


def _lines(pairs: Sequence[TextPair]) -> bytes:
    return "".join(f"{source}\t{target}\n" for source, target in pairs).encode()


def _words(texts: Iterable[str]) -> list[str]:
    """All words, in lower case."""
    return _WORD.findall("\n".join(texts).lower())
