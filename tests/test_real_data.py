"""Every kind of source on real text, converted on the fly: all give what the gzip files give.

Needs the shared data beside the checkout; skipped without.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from conftest import REPOSITORY
from hub_server import Repository, card, running_hub, translations, use_hub
from pyarrow import parquet
from test_files import make_tar, make_zip, zstd
from web_server import Server, running_server

from mtrain.config.entries import (
    Entry,
    FilesEntry,
    HubEntry,
    JsonlEntry,
    OpusEntry,
    ParquetEntry,
    SacrebleuEntry,
    TsvEntry,
)
from mtrain.data import catalogues
from mtrain.data.lock import Lock
from mtrain.data.reading import Reading
from mtrain.data.sources import read_pairs
from mtrain.errors import DataError

SHARED = REPOSITORY.parent / "shared" / "data"
PYTHON_DOCS = SHARED / "python-docs.en-fr" / "dev"  # markup, code, quotes, long paragraphs
LANGUAGES = ("en", "fr")

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")


@pytest.fixture
def server():
    with running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MTRAIN_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    url = server.address + "/OPUS-{corpus}/{version}/moses/{languages}.txt.zip"
    monkeypatch.setattr(catalogues, "OPUS_URL", url)


def raw(stem: Path, language: str) -> bytes:
    return gzip.decompress(stem.with_name(f"{stem.name}.{language}.gz").read_bytes())


def lines(stem: Path, language: str) -> list[str]:
    return raw(stem, language).decode().split("\n")[:-1]


def read(entry: Entry) -> tuple[list[str], list[str]]:
    lock = Lock.open(Path("my.yaml"))
    chunks = list(read_pairs(entry, Reading("data.valid", lock, chunk_pairs=100)))
    return [s for chunk in chunks for s in chunk.src], [t for chunk in chunks for t in chunk.tgt]


def compressed(compress: Callable[[bytes], bytes]) -> Entry:
    for language in LANGUAGES:
        Path(f"x.{language}").write_bytes(compress(raw(PYTHON_DOCS, language)))
    return FilesEntry(source="x.en", target="x.fr")


def as_tsv(server: Server) -> Entry:
    rows = zip(lines(PYTHON_DOCS, "fr"), lines(PYTHON_DOCS, "en"), strict=True)
    assert all("\t" not in cell for row in rows for cell in row)
    rows = zip(lines(PYTHON_DOCS, "fr"), lines(PYTHON_DOCS, "en"), strict=True)
    text = "".join(f"{i}\t{fr}\t{en}\r\n" for i, (fr, en) in enumerate(rows))
    Path("x.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return TsvEntry(tsv="x.tsv", columns=(2, 1))


def as_jsonl(server: Server) -> Entry:
    rows = zip(lines(PYTHON_DOCS, "en"), lines(PYTHON_DOCS, "fr"), strict=True)
    text = "".join(json.dumps({"en": en, "fr": fr}) + "\n" for en, fr in rows)
    server.files["/x.jsonl.zst"] = zstd(text.encode())
    url = server.url("/x.jsonl.zst")
    return JsonlEntry(jsonl=url, source_field="en", target_field="fr")


def as_parquet(server: Server) -> Entry:
    rows = zip(lines(PYTHON_DOCS, "en"), lines(PYTHON_DOCS, "fr"), strict=True)
    column = pyarrow.array([{"en": en, "fr": fr} for en, fr in rows])
    parquet.write_table(pyarrow.table({"translation": column}), "x.parquet", row_group_size=100)
    return ParquetEntry(parquet="x.parquet", languages=LANGUAGES)


def in_a_tar(server: Server) -> Entry:
    members = {f"docs/dev.{language}": raw(PYTHON_DOCS, language) for language in LANGUAGES}
    make_tar("x.tar.xz", members, "w:xz")
    return FilesEntry(source="x.tar.xz!docs/dev.en", target="x.tar.xz!docs/dev.fr")


def in_a_remote_zip(server: Server) -> Entry:
    make_zip("x.zip", {f"dev.{language}": raw(PYTHON_DOCS, language) for language in LANGUAGES})
    server.files["/x.zip"] = Path("x.zip").read_bytes()
    url = server.url("/x.zip")
    return FilesEntry(source=f"{url}!dev.en", target=f"{url}!dev.fr")


def in_opus(server: Server) -> Entry:
    names = {f"PyDocs.en-fr.{language}": raw(PYTHON_DOCS, language) for language in LANGUAGES}
    make_zip("en-fr.txt.zip", names)
    server.files["/OPUS-PyDocs/v3.13/moses/en-fr.txt.zip"] = Path("en-fr.txt.zip").read_bytes()
    return OpusEntry(opus="PyDocs/v3.13", languages=LANGUAGES)


KINDS: dict[str, Callable[[Server], Entry]] = {
    "plain": lambda _: compressed(lambda data: data),
    "xz": lambda _: compressed(lzma.compress),
    "bz2": lambda _: compressed(bz2.compress),
    "zst": lambda _: compressed(zstd),
    "tsv": as_tsv,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
    "tar": in_a_tar,
    "zip": in_a_remote_zip,
    "opus": in_opus,
}


@pytest.mark.parametrize("convert", KINDS.values(), ids=KINDS)
def test_python_docs_come_out_whole(convert, server):
    assert read(convert(server)) == (lines(PYTHON_DOCS, "en"), lines(PYTHON_DOCS, "fr"))


def test_a_hub_data_set(tmp_path, monkeypatch):
    """Tatoeba's validation set as two shards of a data set."""
    stem = SHARED / "tatoeba.en-de" / "valid"
    pairs = list(zip(lines(stem, "en"), lines(stem, "de"), strict=True))
    files = {
        f"de-en/train-{i:05d}-of-00002.parquet": translations(shard, ("en", "de"))
        for i, shard in enumerate((pairs[:1500], pairs[1500:]))
    }
    files["README.md"] = card({"de-en": {"train": "de-en/train-*"}}, "cc-by-2.0")
    with running_hub() as hub:
        use_hub(hub, tmp_path, monkeypatch)
        hub.repositories["toy/tatoeba"] = Repository(files)
        entry = HubEntry(hub="toy/tatoeba", config="de-en", languages=("en", "de"))
        assert read(entry) == (lines(stem, "en"), lines(stem, "de"))


def test_a_sacrebleu_test_set(server, monkeypatch):
    """Multi30k's 2016 test set, packed as sacreBLEU downloads it."""
    from sacrebleu.dataset import DATASETS

    stem = SHARED / "multi30k" / "test_2016_flickr"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for language in ("en", "de", "fr", "cs"):
            info = tarfile.TarInfo(f"test_2016_flickr.{language}")
            info.size = len(raw(stem, language))
            archive.addfile(info, io.BytesIO(raw(stem, language)))
    name = "multi30k_test_sets_d3ec2a38.tar.gz"
    server.files[f"/{name}"] = stream.getvalue()
    test_set: Any = DATASETS["multi30k/2016"]
    monkeypatch.setattr(test_set, "data", [server.url(f"/{name}")])
    monkeypatch.setattr(test_set, "md5", [hashlib.md5(stream.getvalue()).hexdigest()])
    monkeypatch.setattr(test_set, "_rawdir", "nowhere")
    sources, references = read(SacrebleuEntry(sacrebleu="multi30k/2016", languages=("en", "de")))
    assert sources == [line.rstrip() for line in lines(stem, "en")]
    assert references == [line.rstrip() for line in lines(stem, "de")]


@pytest.mark.parametrize("lost", [10, 5_000, 19_900])
def test_a_lost_line_of_europarl_is_found(lost):
    stem = SHARED / "europarl.de-en" / "train-20k"
    english = lines(stem, "en")
    del english[lost]
    Path("x.en").write_text("\n".join(english), encoding="utf-8")
    entry = FilesEntry(source=str(stem.with_name("train-20k.de.gz")), target="x.en")
    with pytest.raises(DataError, match="up to about line") as error:
        read(entry)
    said = error.value.message.rpartition("about line ")[2].partition(", and")[0]
    assert abs(int(said.replace(",", "")) - lost) < 60
