"""From text to ids, in chunks that any process can encode.

`Encoder` encodes the training text of prepared data and completes its report; `SubwordSampler`
samples the subwords of one epoch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from mtrain import console
from mtrain.data.cleaning import Hashes, TextPair, digest, hashes_of
from mtrain.data.corpus import Corpus
from mtrain.data.data_report import OVER_LONG, DataReport
from mtrain.data.reading import Pairs
from mtrain.data.store import Sentences, StoreWriter, id_dtype
from mtrain.data.tokenizer import Tokenizer
from mtrain.machine.process_pool import map_in_order

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Pairs of one entry as ids."""

    entry: int
    source: Sentences
    target: Sentences


class Encoder:
    """Both tokenizers and the statistics, as a picklable function of `Pairs`."""

    def __init__(
        self,
        tokenizers: tuple[Tokenizer, Tokenizer],
        max_length: int,
        entries: Sequence[str],
        tags: Sequence[str | None],
        splits: Mapping[str, Sequence[TextPair]],
        keeps_text: bool = False,
    ) -> None:
        """entries, tags: name and tag of each training entry."""
        self._tokenizers = tokenizers
        self.vocab_sizes = (tokenizers[0].vocab_size, tokenizers[1].vocab_size)
        self._max_length = max_length
        self._entries, self._tags = entries, tags
        self._keeps_text = keeps_text
        self._evaluation_words = [
            frozenset(_words(pair[side] for pairs in splits.values() for pair in pairs))
            for side in (0, 1)
        ]
        self._is_byte = [np.zeros(tokenizer.vocab_size, dtype=bool) for tokenizer in tokenizers]
        for is_byte, tokenizer in zip(self._is_byte, tokenizers, strict=True):
            is_byte[tokenizer.byte_ids()] = True

    def __call__(self, pairs: Pairs) -> tuple[Encoded, Hashes, bytes, DataReport]:
        """Encode the pairs that are not over-long.

        Returns their ids, the hashes of their targets, their text (if kept) and a report.
        """
        report = DataReport.of(self._entries)
        sides = (pairs.src, pairs.tgt)
        ids = [
            tokenizer.encode(texts, n_threads=1)
            for tokenizer, texts in zip(
                tagged(self._tokenizers, self._tags[pairs.entry]), sides, strict=True
            )
        ]
        fits = [max(map(len, row)) <= self._max_length for row in zip(*ids, strict=True)]
        for pair in compress(zip(*sides, strict=True), np.logical_not(fits)):
            report.add_dropped(pairs.entry, OVER_LONG, pair)
        source, target = (
            Sentences.of(list(compress(side, fits)), id_dtype(tokenizer.vocab_size))
            for tokenizer, side in zip(self._tokenizers, ids, strict=True)
        )
        sources, targets = (list(compress(side, fits)) for side in sides)
        if sources:
            self._count(report, (sources, targets), (source, target))
        text = ""
        if self._keeps_text:
            text = "".join(f"{src}\t{tgt}\n" for src, tgt in zip(sources, targets, strict=True))
        hashes = hashes_of(list(map(digest, targets)))
        return Encoded(pairs.entry, source, target), hashes, text.encode(), report

    def _count(
        self,
        report: DataReport,
        texts: tuple[list[str], list[str]],
        ids: tuple[Sentences, Sentences],
    ) -> None:
        """Add statistics of the kept pairs."""
        for side, statistics in enumerate(report.sides):
            statistics.add_texts(texts[side])
            statistics.add_ids(ids[side], self._is_byte[side])
            counts = Counter(_words(texts[side]))
            for word in counts.keys() & self._evaluation_words[side]:
                statistics.evaluation_words[word] = counts[word]
        report.n_copied = sum(map(str.__eq__, *texts))
        ratios = (ids[1].lengths + 1) / (ids[0].lengths + 1)
        report.sum_ratio = float(ratios.sum())
        report.sum_squared_ratio = float((ratios**2).sum())


def encode_corpus(
    corpus: Corpus,
    encoder: Encoder,
    directory: Path,
    n_processes: int | None,
) -> None:
    """Store the kept pairs of a corpus and complete its report."""
    with (
        StoreWriter(directory, "train", encoder.vocab_sizes) as writer,
        console.bar(corpus.report.n_kept, "encoding", "pairs") as bar,
        closing(map_in_order(encoder, corpus.kept(), n_processes)) as chunks,
    ):
        for encoded, hashes, text, report in chunks:
            writer.extend(encoded.source, encoded.target, encoded.entry, hashes, text)
            corpus.report.merge(report)
            bar.update(len(hashes) + report.n_dropped[OVER_LONG])
        corpus.report.check_not_empty()
        writer.close()


class SubwordSampler:
    """Cuts text into random pieces, as a picklable function of (`Pairs`, random seed)."""

    def __init__(
        self,
        tokenizers: tuple[Tokenizer, Tokenizer],
        tags_of_entries: Sequence[str | None],
        strength: float,
        max_length: int,
    ) -> None:
        self._strength, self._max_length = strength, max_length
        self.vocab_sizes = (tokenizers[0].vocab_size, tokenizers[1].vocab_size)
        # Kept, as they cache the words they have segmented.
        self._tokenizers = [tagged(tokenizers, tag) for tag in tags_of_entries]

    def __call__(self, chunk: tuple[Pairs, tuple[int, ...]]) -> Encoded:
        """Sample both sides; a side that would become over-long gets its best segmentation."""
        pairs, seed = chunk
        seeds = np.random.SeedSequence(seed).generate_state(2)
        source, target = (
            self._sample(tokenizer, side, int(seed))
            for tokenizer, side, seed in zip(
                self._tokenizers[pairs.entry], (pairs.src, pairs.tgt), seeds, strict=True
            )
        )
        return Encoded(pairs.entry, source, target)

    def _sample(self, tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> Sentences:
        ids = tokenizer.sample(texts, self._strength, seed)
        over_long = [i for i, row in enumerate(ids) if len(row) > self._max_length]
        best = tokenizer.encode([texts[i] for i in over_long], n_threads=1)
        for i, row in zip(over_long, best, strict=True):
            ids[i] = row
        return Sentences.of(ids, id_dtype(tokenizer.vocab_size))


def tagged(tokenizers: tuple[Tokenizer, Tokenizer], tag: str | None) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers with a tag in front of sources."""
    return tokenizers[0].tagged(tag), tokenizers[1]


def _words(texts: Iterable[str]) -> list[str]:
    """All words, in lower case."""
    return _WORD.findall("\n".join(texts).lower())
