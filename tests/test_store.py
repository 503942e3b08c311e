"""The token store: what is written is what is read, and damage is noticed at opening."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import mtrain_environment

from mtrain.data.store import Sentences, StoreWriter, TokenStore, TurnedStore
from mtrain.errors import DataError

PAIRS = [([5, 6, 7], [8]), ([9], [10, 11]), ([], [12, 13, 14])]


def write(directory: Path, pairs: list[tuple[list[int], list[int]]] = PAIRS) -> None:
    writer = StoreWriter(directory, "train", (1000, 1000))
    writer.append(pairs[:2])
    writer.append(pairs[2:])
    writer.close()


def test_pairs_come_back_in_order(tmp_path):
    write(tmp_path)
    store = TokenStore.open(tmp_path, "train")
    assert len(store) == 3
    assert [(store.src(i).tolist(), store.tgt(i).tolist()) for i in range(3)] == PAIRS
    assert store.src_lengths.tolist() == [3, 1, 0]
    assert store.tgt_lengths.tolist() == [1, 2, 3]
    assert store.src_lengths.dtype == np.uint16
    assert store.src_ids.tolist() == [5, 6, 7, 9]
    assert store.tgt_offsets.tolist() == [0, 1, 3, 6]


def test_some_pairs_are_turned(tmp_path):
    write(tmp_path)
    store = TurnedStore(TokenStore.open(tmp_path), np.array([True, False, True]))
    assert len(store) == 3
    pairs = [(store.src(i).tolist(), store.tgt(i).tolist()) for i in range(3)]
    assert pairs == [([8], [5, 6, 7]), ([9], [10, 11]), ([12, 13, 14], [])]
    assert store.src_lengths.tolist() == [1, 1, 3]
    assert store.tgt_lengths.tolist() == [3, 2, 0]
    assert store.src_lengths.dtype == np.uint16


def test_a_store_without_pairs_opens(tmp_path):
    write(tmp_path, [])
    store = TokenStore.open(tmp_path, "train")
    assert len(store) == 0
    assert store.src_lengths.tolist() == []
    assert store.tgt_ids.tolist() == []


@pytest.mark.parametrize(("vocab_size", "bytes_an_id"), [(65536, 2), (65537, 4)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(tmp_path, vocab_size, bytes_an_id):
    writer = StoreWriter(tmp_path, "train", (300, vocab_size))
    writer.append([([1], [vocab_size - 1])])
    writer.close()
    store = TokenStore.open(tmp_path, "train")
    assert store.tgt(0).tolist() == [vocab_size - 1]
    assert (store.src_ids.itemsize, store.tgt_ids.itemsize) == (2, bytes_an_id)


def test_an_id_beyond_its_type_is_no_silent_overflow(tmp_path):
    with (
        StoreWriter(tmp_path, "train", (300, 300)) as writer,
        pytest.raises(OverflowError),
    ):
        writer.append([([70_000], [1])])


def test_arrays_cannot_be_written(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        TokenStore.open(tmp_path, "train").src_ids[0] = 1


@pytest.mark.parametrize("name", ["source.ids", "source.offsets", "target.ids", "target.offsets"])
def test_a_file_cut_short_is_named(tmp_path, name):
    write(tmp_path)
    path = tmp_path / f"train.{name}"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=f"train.{name}") as caught:
        TokenStore.open(tmp_path, "train")
    assert "prepare --force" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "train.target.ids").unlink()
    with pytest.raises(DataError, match=r"train\.target\.ids \(no such file"):
        TokenStore.open(tmp_path, "train")


def test_offsets_of_other_ids_are_noticed(tmp_path):
    write(tmp_path)
    offsets = np.array([0, 3, 4, 5], "<i8")  # of the right size, but its end is not 4
    (tmp_path / "train.source.offsets").write_bytes(offsets.tobytes())
    with pytest.raises(DataError, match=r"train\.source\.offsets"):
        TokenStore.open(tmp_path, "train")


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"format": 99})])
def test_a_damaged_header_is_named(tmp_path, content):
    write(tmp_path)
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(DataError, match=r"train\.json"):
        TokenStore.open(tmp_path, "train")


def test_an_unfinished_store_is_none(tmp_path):
    with StoreWriter(tmp_path, "train", (1000, 1000)) as writer:
        writer.append(PAIRS)  # and no close()
    with pytest.raises(DataError, match=r"train\.json"):
        TokenStore.open(tmp_path, "train")


OPENING = """
import resource, sys, time
from pathlib import Path
from mtrain.data.batching import BatchPlan
from mtrain.data.store import TokenStore
def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak_mb()
store = TokenStore.open(Path(sys.argv[1]))
plan = BatchPlan.of_store(store, 25_000, seed=1, epoch=0)
store.src(int(plan.sentences(0)[0]))
print(len(store), peak_mb() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_opening_millions_of_pairs_takes_little_memory(tmp_path):
    n_pairs, part = 3_000_000, 100_000
    ones = Sentences(np.ones(20 * part, np.uint16), np.full(part, 20))
    with StoreWriter(tmp_path, "train", (1000, 1000)) as writer:
        for _ in range(n_pairs // part):
            writer.extend(ones, ones)
        writer.close()
    done = subprocess.run(
        [sys.executable, "-c", OPENING, str(tmp_path)],
        env=mtrain_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    n_opened, memory_mb = done.stdout.split()
    assert int(n_opened) == n_pairs
    assert float(memory_mb) < 120  # 10 million would take 127; the files have 290
