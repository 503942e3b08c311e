"""The pairs of every epoch: their ids, and the plan of their updates.

Where subwords are drawn (`tokenizer.sampling`), each epoch has a store of its own, made from the
text that the prepared data keeps. In an epoch of both directions (`train.both_directions`) half of
the pairs are turned, and in the next one the others are. All of it is a function of (seed, epoch),
so a resumed run finds the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrain import console
from mtrain.config.root import Config
from mtrain.data.batching import BatchPlan
from mtrain.data.corpus import CHUNK_PAIRS, read_pairs
from mtrain.data.encoding import SubwordSampler
from mtrain.data.identity import train_tags
from mtrain.data.order import Mixture
from mtrain.data.reading import Pairs
from mtrain.data.store import StoreWriter, TokenStore, TurnedStore
from mtrain.data.tokenizer import load_tokenizers
from mtrain.machine.process_pool import map_in_order
from mtrain.storage import storage_errors


class Epochs:
    """The epochs of a run on prepared data; drawn subwords lie in `directory` meanwhile."""

    def __init__(self, config: Config, prepared: Path, directory: Path) -> None:
        self._config, self._prepared, self._directory = config, prepared, directory
        self.store = TokenStore.open(prepared)
        self._drawn: int | None = None  # epoch
        self._mixture = Mixture.of(config.data, self.store.entries)

    def make(self, number: int) -> None:
        """Draw the subwords of an epoch, if they are drawn at all; those of others go.

        Of several processes that train together, one does this before any opens the epoch.
        """
        if not self._config.tokenizer.sampling or self._drawn == number:
            return
        partial = self._directory / "partial"
        with storage_errors(self._directory):
            shutil.rmtree(self._directory, ignore_errors=True)
            partial.mkdir(parents=True)
            self._draw(number, partial)
            partial.rename(self._path(number))
        self._drawn = number

    def open(self, number: int, in_both_directions: bool = False) -> tuple[TokenStore, BatchPlan]:
        """The ids of an epoch, and which of its pairs form each update."""
        train = self._config.train
        if self._config.tokenizer.sampling:
            store = TokenStore.open(self._path(number))
        else:
            store = self.store
        if in_both_directions:
            store = TurnedStore(store, half_of(len(store), train.seed, number))
        plan = BatchPlan.of_store(store, train.batch_tokens, train.seed, number, self._mixture)
        return store, plan

    def clear(self) -> None:
        """Remove drawn subwords; they can be drawn again."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._directory / f"epoch-{number}"

    def _draw(self, number: int, directory: Path) -> None:
        with (
            StoreWriter(directory, "train", self._sampler.vocab_sizes) as writer,
            console.bar(len(self.store), "drawing subwords", "pairs") as bar,
            closing(map_in_order(self._sampler, self._text_chunks(number))) as chunks,
        ):
            for chunk in chunks:
                writer.extend(chunk.source, chunk.target, chunk.entry)
                bar.update(len(chunk.source.lengths))
            writer.close()

    @cached_property
    def _sampler(self) -> SubwordSampler:
        """Kept from epoch to epoch, as it remembers how words are cut."""
        return SubwordSampler(
            load_tokenizers(self._prepared),
            train_tags(self._config),
            self._config.tokenizer.sampling,
            self._config.data.max_length,
        )

    def _text_chunks(self, epoch: int) -> Iterator[tuple[Pairs, tuple[int, ...]]]:
        """The text of all pairs, and the random seed of each chunk."""
        n_chunks = 0
        with open(self._prepared / "train.text", "rb") as file:
            for entry, size in enumerate(self._mixture.sizes):
                for start in range(0, size, CHUNK_PAIRS):
                    pairs = read_pairs(entry, islice(file, min(CHUNK_PAIRS, size - start)))
                    yield pairs, (self._config.train.seed, epoch, n_chunks)
                    n_chunks += 1


def half_of(n: int, seed: int, epoch: int) -> NDArray[np.bool_]:
    """(n,) True for a random half of the pairs in an even epoch, for the others in the next."""
    # More numbers than other draws have (see data.order); zeros count from the fifth on.
    is_first_half = np.random.default_rng((seed, epoch // 2, 0, 0, 0)).random(n) < 0.5
    return ~is_first_half if epoch % 2 else is_first_half
