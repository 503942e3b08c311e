"""Pairs in the columns of a parquet file."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from test_files import make_tar, zstd
from test_sources import pairs_of

from mtrain.config.entries import ParquetEntry
from mtrain.data import tables
from mtrain.data.lock import Lock
from mtrain.data.reading import Pair, Reading
from mtrain.errors import DataError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lock(tmp_path):
    return Lock.open(tmp_path / "my.yaml")


def write(path: str = "x.parquet", **columns: Any) -> None:
    parquet.write_table(pyarrow.table(columns), path)


def read(lock: Lock, **keys: Any) -> list[Pair]:
    return pairs_of(entry(**keys), Reading("data.train.0", lock))


def entry(**keys: Any) -> ParquetEntry:
    return ParquetEntry(**{"parquet": "x.parquet", "languages": ("en", "de")} | keys)


ROWS = [{"de": "Hund\u2028", "en": "dog"}, {"de": None, "en": "cat"}, None]


def test_a_translation_column(lock):
    write(translation=ROWS, id=[1, 2, 3])
    assert read(lock) == [Pair("dog", "Hund\u2028"), Pair("cat", ""), Pair("", "")]
    assert lock.sources["x.parquet"] == {"pairs": 3}


def test_columns_by_language_and_by_name(lock):
    write(de=["Hund"], en=["dog"], text=["dog!"])
    assert read(lock) == [Pair("dog", "Hund")]
    assert read(lock, source_column="text") == [Pair("dog!", "Hund")]
    write(source=pyarrow.array(["a", "a"]).dictionary_encode(), target=["b", "c"])
    assert read(lock) == [Pair("a", "b"), Pair("a", "c")]


def test_a_dot_may_be_part_of_a_name(lock):
    write(**{"a.en": ["dog"], "a": [{"de": "Hund"}]})
    assert read(lock, source_column="a.en", target_column="a.de") == [Pair("dog", "Hund")]


def test_many_batches(lock, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_BATCH", 7)
    write(en=[f"a{i}" for i in range(50)], de=[f"b{i}" for i in range(50)])
    assert read(lock) == [Pair(f"a{i}", f"b{i}") for i in range(50)]


def test_in_an_archive_and_compressed(lock):
    write(en=["dog"], de=["Hund"])
    make_tar("c.tgz", {"deep/x.parquet": Path("x.parquet").read_bytes()})
    assert read(lock, parquet="c.tgz!deep/x.parquet") == [Pair("dog", "Hund")]
    Path("x.zst").write_bytes(zstd(Path("x.parquet").read_bytes()))
    assert read(lock, parquet="x.zst") == [Pair("dog", "Hund")]


def test_what_is_no_text_is_dropped_or_located(lock):
    bad = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    write(en=bad, de=["1", "2", "3\0"])
    reading = Reading("data.train.0", lock, max_unreadable=1)
    assert pairs_of(entry(), reading) == [Pair("a", "1")]
    assert reading.n_unreadable == 2
    with pytest.raises(DataError, match=r"x\.parquet: row 2: not UTF-8"):
        read(lock)


def test_missing_columns_are_listed(lock):
    write(translation=ROWS, id=[1, 2, 3])
    message = r"no column of text `translation.fr` or `fr` or `target` \(found: translation.de, tr"
    with pytest.raises(DataError, match=message):
        read(lock, languages=("en", "fr"))
    with pytest.raises(DataError, match="no column of text `id`"):
        read(lock, source_column="id")


def test_no_parquet_and_a_cut_one(lock):
    Path("x.parquet").write_text("a\tb\n")
    with pytest.raises(DataError, match=r"x\.parquet is not a complete parquet file"):
        read(lock)
    write(en=["dog"] * 999, de=["Hund"] * 999)
    Path("x.parquet").write_bytes(Path("x.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"x\.parquet is not a complete parquet file"):
        read(lock)
