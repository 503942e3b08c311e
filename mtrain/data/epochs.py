"""The epochs of a run: the ids of their pairs, and the plan of their updates.

With subword sampling (`tokenizer.sampling`), each epoch has its own store, sampled from the text in
the prepared data. In an epoch of both directions (`train.both_directions`) a random half of the
pairs is reversed, and in the next one the other half. All this is a function of (seed, epoch), so a
resumed run repeats it exactly.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrain import console
from mtrain.config.root import Config
from mtrain.data.batching import BatchPlan, Mixture
from mtrain.data.corpus import CHUNK_PAIRS, read_pairs
from mtrain.data.encoding import SubwordSampler
from mtrain.data.reading import Pairs
from mtrain.data.store import StoreWriter, TokenStore, TurnedStore
from mtrain.data.tokenizer import load_tokenizers
from mtrain.machine.distributed import Distributed
from mtrain.machine.process_pool import map_in_order
from mtrain.storage import storage_errors


@dataclass(frozen=True)
class Epoch:
    """The ids of an epoch, and the pairs that form each of its updates."""

    store: TokenStore
    plan: BatchPlan


class Epochs:
    """The epochs of a run on prepared data; sampled subwords are stored in `directory`.

    As a context manager, it removes them at the end.
    """

    def __init__(
        self, config: Config, prepared: Path, directory: Path, distributed: Distributed
    ) -> None:
        self.store = TokenStore.open(prepared)
        self._config, self._prepared, self._directory = config, prepared, directory
        self._distributed = distributed
        self._sampled: int | None = None  # the epoch in `directory`
        self._mixture = Mixture.of(config.data, self.store.entries)

    def open(self, number: int, in_both_directions: bool = False) -> Epoch:
        """An epoch; all processes must open it together, as the first one samples its subwords."""
        train, store = self._config.train, self.store
        if self._config.tokenizer.sampling:
            if self._distributed.is_first and self._sampled != number:
                self._sample(number)
            self._distributed.barrier()
            store = TokenStore.open(self._path(number))
        if in_both_directions:
            store = TurnedStore(store, half_of(len(store), train.seed, number))
        plan = BatchPlan.of_store(store, train.batch_tokens, train.seed, number, self._mixture)
        return Epoch(store, plan)

    def __enter__(self) -> Epochs:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._distributed.is_first:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._directory / f"epoch-{number}"

    def _sample(self, number: int) -> None:
        """Replace the directory by the subwords of an epoch."""
        partial = self._directory / "partial"
        with storage_errors(self._directory):
            shutil.rmtree(self._directory, ignore_errors=True)
            partial.mkdir(parents=True)
            with (
                StoreWriter(partial, "train", self._sampler.vocab_sizes) as writer,
                console.bar(len(self.store), "sampling subwords", "pairs") as bar,
                closing(map_in_order(self._sampler, self._text_chunks(number))) as chunks,
            ):
                for chunk in chunks:
                    writer.extend(chunk.source, chunk.target, chunk.entry)
                    bar.update(len(chunk.source.lengths))
                writer.close()
            partial.rename(self._path(number))
        self._sampled = number

    @cached_property
    def _sampler(self) -> SubwordSampler:
        """Shared by all epochs, as it caches the segmentations of words."""
        return SubwordSampler(
            load_tokenizers(self._prepared),
            [entry.tag for entry in self._config.data.train],
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
    # More numbers than in other seeds (see data.batching); zeros count from the fifth on.
    is_first_half = np.random.default_rng((seed, epoch // 2, 0, 0, 0)).random(n) < 0.5
    return ~is_first_half if epoch % 2 else is_first_half
