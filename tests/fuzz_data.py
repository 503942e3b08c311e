"""Hostile data: text, archives, tables, catalogues, tokenizer models, locks, prepared stores."""

from __future__ import annotations

import bz2
import copy
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from fuzz_bench import Bench, Given, Random, Refused
from mutations import (
    PATHS,
    TEXTS,
    URLS,
    altered,
    damaged,
    json_bytes,
    maybe_damaged,
    yaml_bytes,
)
from pyarrow import parquet
from pydantic import ValidationError

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
from mtrain.config.sections import TokenizerConfig
from mtrain.data.lock import Lock
from mtrain.data.reading import Reading
from mtrain.data.sources import read_pairs

# -- readers ---------------------------------------------------------------------------------

_LINES = (
    "A dog runs.\nZwei  Katzen \u2028 \u0085 schlafen\n\n4 \U0001f600 e\u0301\n\tb\r\n".encode()
)
TEXT_FILES = [
    _LINES,
    b"\xef\xbb\xbfa\nb\nc\nd\ne\n",
    b"a\nb\r\n\nd\ne",
    "a\nä\nб\n字\nx\n".encode(),
]
_TSV = 'a\tb\tc\nä\t"x\ty"\n\t\t\n字\tz\t\n'.encode()
_JSON_LINES = [{"source": "a b", "target": "ä"}, {"source": "", "target": "x\ny", "z": [1, None]}]


def read_all(entry: Entry, may_drop: bool) -> list[tuple[str, str]]:
    """The pairs of an entry, which are text on both sides."""
    lock = Lock.open(Path("c.yaml"))
    reading = Reading("data.train.0", lock, max_unreadable=1 if may_drop else None, chunk_pairs=3)
    pairs = []
    for chunk in read_pairs(entry, reading):
        pairs += zip(chunk.src, chunk.tgt, strict=True)
    for text in (text for pair in pairs for text in pair):
        text.encode()
        assert "\0" not in text
    return pairs


def entry_of(kind: type[Any], **keys: Any) -> Any:
    """An entry of a config; Refused where its keys are none."""
    try:
        return kind(**keys)
    except ValidationError as error:
        raise Refused(str(error)) from error


def check_reading(entry: Entry, may_drop: bool) -> None:
    """What is read comes back when it is written as JSON lines."""
    pairs = read_all(entry, may_drop)
    lines = (json.dumps({"source": source, "target": target}) for source, target in pairs)
    Path("again.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert read_all(JsonlEntry(jsonl="again.jsonl"), False) == pairs, "pairs are others"


def make_text(random: Random, bench: Bench) -> Given:
    files = [maybe_damaged(random, random.choice(TEXT_FILES), TEXT_FILES) for _ in "ab"]
    return {"a": files[0], "b": files[1], "may_drop": random.random() < 0.7}


def check_files(given: Given, bench: Bench) -> None:
    bench.write({"a": given["a"], "b": given["b"]})
    check_reading(FilesEntry(source="a", target="b"), given["may_drop"])


def _zstd(data: bytes) -> bytes:
    packed: bytes = pyarrow.Codec("zstd").compress(data, asbytes=True)
    return packed


_COMPRESSORS: list[Callable[[bytes], bytes]] = [
    lambda data: gzip.compress(data, mtime=0),
    bz2.compress,
    lambda data: lzma.compress(data, preset=0),
    _zstd,
]


@cache
def packed_texts() -> list[bytes]:
    """Compressed texts; of several parts; twice; with much in little."""
    packed = [pack(text) for text in TEXT_FILES for pack in _COMPRESSORS]
    packed += [pack(_LINES[:9]) + pack(_LINES[9:]) for pack in _COMPRESSORS]
    return [*packed, gzip.compress(bz2.compress(_LINES)), gzip.compress(b"\n" * (1 << 20))]


def make_packed(random: Random, bench: Bench) -> Given:
    a = damaged(random, random.choice(packed_texts()), packed_texts())
    return {"a": a, "b": _LINES, "may_drop": random.random() < 0.7}


def make_bomb(random: Random, bench: Bench) -> Given:
    """Much text in few bytes: many lines, or one without an end."""
    lines = ((b"\n", 1 << 20), (b"ab\n", 1 << 20), (b"a", 1 << 25), (b"\0", 1 << 25))
    text, n = random.choice(lines)
    return {"pack": random.randrange(len(_COMPRESSORS)), "text": text, "n": n}


def check_bomb(given: Given, bench: Bench) -> None:
    bench.write({"a": _COMPRESSORS[given["pack"]](given["text"] * given["n"])})
    reading = Reading("data.train.0", Lock.open(Path("c.yaml")))
    chunks = read_pairs(FilesEntry(source="a", target="a"), reading)
    n_lines = given["n"] if given["text"].endswith(b"\n") else 1
    assert sum(len(chunk.src) for chunk in chunks) == n_lines


def make_archive(random: Random, bench: Bench) -> Given:
    names = ["a", "deep/b.en", *random.sample(PATHS, 2)]
    contents = [random.choice([*TEXT_FILES, *packed_texts()[:8]]) for _ in names]
    make = random.choice((_make_zip, _make_zip, _make_tar))
    data = make(random, list(zip(names, contents, strict=True)))
    member = random.choice(("a", "a", "a", "./deep/b.en", *names))
    return {
        "x": maybe_damaged(random, data),
        "location": f"x!{member}",
        "b": random.choice(TEXT_FILES),
        "may_drop": random.random() < 0.7,
    }


def _make_zip(random: Random, members: Iterable[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name.encode(errors="replace").decode().replace("\0", ""))
            info.external_attr = random.choice((0o644, 0o120777, 0o040755)) << 16
            archive.writestr(info, content, method)
    data = bytearray(stream.getvalue())
    if random.random() < 0.3:  # methods and flags that zipfile may not know
        for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = data.find(magic)
            data[start + at] = random.choice((0, 1, 1 << 3, 1 << 5, 1 << 6))
            data[start + at + 2] = random.choice((0, 6, 8, 9, 12, 14, 19, 93, 95, 97, 98, 255))
    return bytes(data)


def _make_tar(random: Random, members: Iterable[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    format_ = random.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    mode = random.choice(("w", "w", "w:gz", "w:bz2", "w:xz"))
    with tarfile.open(fileobj=stream, mode=mode, format=format_) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if random.random() < 0.2:
                info.type = random.choice(
                    (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"L", b"x")
                )
                info.linkname = random.choice(PATHS[:10])
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def check_archive(given: Given, bench: Bench) -> None:
    bench.write({"x": given["x"], "b": given["b"]})
    check_reading(entry_of(FilesEntry, source=given["location"], target="b"), given["may_drop"])


def make_tsv(random: Random, bench: Bench) -> Given:
    columns = random.choice(((0, 1), (0, 1), (1, 2), (2, 2), (0, 10**30)))
    data = maybe_damaged(random, _TSV, [_LINES])
    return {"a": data, "columns": columns, "may_drop": random.random() < 0.7}


def check_tsv(given: Given, bench: Bench) -> None:
    bench.write({"a": given["a"]})
    check_reading(entry_of(TsvEntry, tsv="a", columns=given["columns"]), given["may_drop"])


def make_json_lines(random: Random, bench: Bench) -> Given:
    lines = [json_bytes(random, altered(random, line)) for line in _JSON_LINES]
    lines.append(json_bytes(random, _JSON_LINES[0]))
    data = b"\n".join(lines) + b"\n"
    if random.random() < 0.3:
        data = damaged(random, data)
    field = random.choice(("target", "target", "z", *TEXTS[:8]))
    return {"a": data, "field": field, "may_drop": random.random() < 0.7}


def check_json_lines(given: Given, bench: Bench) -> None:
    bench.write({"a": given["a"]})
    check_reading(entry_of(JsonlEntry, jsonl="a", target_field=given["field"]), given["may_drop"])


@cache
def _tables() -> list[bytes]:
    """Parquet files: plain, dictionaries, structures, bytes that are no text, lists, numbers."""
    texts = pyarrow.array(["a", None, "ä", "字 x"])
    pair = [{"en": "a", "de": "b"}, None, {"en": None, "de": "c"}, {"en": "x", "de": "y"}]
    raw = pyarrow.array([b"a", b"\xff", b"\0", b""], pyarrow.binary()).view(pyarrow.string())
    columns = [
        {"en": texts, "de": texts},
        {"en": texts.dictionary_encode(), "de": texts.cast(pyarrow.large_string())},
        {"translation": pyarrow.array(pair), "n": pyarrow.array([1, 2, 3, 4])},
        {"en": raw, "de": texts},
        {"en": texts, "de": pyarrow.array([[1], [], None, [2]])},
        {"en": pyarrow.array([], pyarrow.string()), "de": pyarrow.array([], pyarrow.string())},
    ]
    files = []
    for table in columns:
        for compression in ("none", "snappy", "zstd"):
            stream = io.BytesIO()
            parquet.write_table(pyarrow.table(table), stream, compression=compression)
            files.append(stream.getvalue())
    return files


def make_parquet(random: Random, bench: Bench) -> Given:
    data = damaged(random, random.choice(_tables()), _tables())
    column = random.choice((None, None, "translation.en", "n", *TEXTS[:6]))
    return {"a": data, "column": column, "may_drop": random.random() < 0.7}


def check_parquet(given: Given, bench: Bench) -> None:
    bench.write({"a": given["a"]})
    entry = entry_of(
        ParquetEntry, parquet="a", languages=("en", "de"), source_column=given["column"]
    )
    check_reading(entry, given["may_drop"])


def make_location(random: Random, bench: Bench) -> Given:
    location = random.choice((*URLS, *PATHS, *TEXTS[:10], "b", "./b", "b!"))
    if random.random() < 0.5:
        location = damaged(random, location.encode("utf-8", "surrogatepass")).decode(
            "utf-8", random.choice(("replace", "surrogateescape"))
        )
    if random.random() < 0.3:
        location = f"http://{location}"
    return {"location": location, "b": _LINES}


def check_location(given: Given, bench: Bench) -> None:
    bench.write({"b": given["b"]})
    check_reading(entry_of(FilesEntry, source=given["location"], target="b"), True)


# -- what is known by name -------------------------------------------------------------------

_CARD = {
    "license": "cc-by-4.0",
    "configs": [
        {"config_name": "de-en", "data_files": [{"split": "train", "path": "de-en/train-*"}]},
        {"config_name": "b", "default": True, "data_files": "x.jsonl"},
    ],
}


_HUB_LOCK = {
    "format": 1,
    "files": {f"hub:wmt/toy@{'a' * 40}/x.jsonl": {"sha256": "a" * 64, "size_bytes": 1}},
    "sources": {
        "hub:wmt/toy de-en train": {
            "revision": "a" * 40,
            "format": "parquet",
            "files": {"de-en/train-0.parquet": 1000},
        }
    },
}


def make_hub(random: Random, bench: Bench) -> Given:
    card = json_bytes(random, _CARD) + b"\n"
    if random.random() < 0.6:
        card = maybe_damaged(random, yaml_bytes(random, altered(random, _CARD)))
    other = random.choice(("y.csv", *PATHS[:3]))
    lock = None
    if random.random() < 0.4:
        lock = json_bytes(random, altered(random, _HUB_LOCK))
    return {
        "lock": lock,
        "files": {
            "README.md": b"---\n" + card + b"---\n",
            "de-en/train-0.parquet": maybe_damaged(random, random.choice(_tables())),
            "x.jsonl": maybe_damaged(random, b'{"en": "a", "de": "b"}\n'),
            other: b"en,de\na,b\n",
        },
        "config": random.choice(("de-en", "de-en", "b", None, "zz")),
        "split": random.choice(("train", "train", "valid")),
    }


def check_hub(given: Given, bench: Bench) -> None:
    from hub_server import Repository

    bench.clear()
    revision = hashlib.sha1(repr(given).encode()).hexdigest()
    if given["lock"] is not None:
        bench.write({"c.lock": given["lock"].replace(b"a" * 40, revision.encode())})
    bench.hub.repositories = {"wmt/toy": Repository(given["files"], revision)}
    keys = {key: given[key] for key in ("config", "split")}
    check_reading(HubEntry(hub="wmt/toy", languages=("en", "de"), **keys), True)


_LICENCE = ("LICENSE", b"CC-BY 4.0:\n  do as you like\n")


def make_opus(random: Random, bench: Bench) -> Given:
    names = ["Toy.de-en.de", random.choice(("Toy.de-en.en", "Toy.de-en.en", *PATHS[:6]))]
    members = [(name, random.choice(TEXT_FILES)) for name in names]
    return {"archive": maybe_damaged(random, _make_zip(random, [*members, _LICENCE]))}


def check_opus(given: Given, bench: Bench) -> None:
    sha256 = hashlib.sha256(given["archive"]).hexdigest()
    (bench.own / "mirror" / "de-en.txt.zip").write_bytes(given["archive"])
    entry = OpusEntry(opus="Toy/v1", languages=("en", "de"), sha256={"opus": sha256})
    check_reading(entry, True)


_SGM = (
    b'<srcset setid="x"><doc docid="1"><seg id="1">One.</seg>\n<seg id="2">Two</seg></doc></srcset>'
)


def make_sacrebleu(random: Random, bench: Bench) -> Given:
    sides = ("src.en", "ref.de", "src.de", "ref.en")
    names = [f"test-full/newstest2014-deen-{side}.sgm" for side in sides]
    members = [(name, maybe_damaged(random, _SGM)) for name in names]
    if random.random() < 0.3:
        members.insert(0, (random.choice(PATHS[:10]).replace("\0", ""), _SGM))
    return {"archive": maybe_damaged(random, _make_tar(random, members))}


def check_sacrebleu(given: Given, bench: Bench) -> None:

    from sacrebleu.dataset import DATASETS

    if "of-the-fuzz" not in DATASETS:
        DATASETS["of-the-fuzz"] = copy.copy(DATASETS["wmt14/full"])
    test_set = DATASETS["of-the-fuzz"]
    test_set.md5, test_set._rawdir = None, str(bench.own / "cache" / "raw")
    archive = Path(test_set._rawdir, test_set._get_tarball_filename(test_set.data[0]))
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(given["archive"])
    try:
        check_reading(SacrebleuEntry(sacrebleu="of-the-fuzz", languages=("en", "de")), True)
    finally:
        del DATASETS["of-the-fuzz"]


# -- tokenizers ------------------------------------------------------------------------------


def make_pieces(random: Random, bench: Bench) -> Given:
    model = damaged(random, bench.files["runs/x/tokenizer.model"])
    return {"given.model": model, "tags": random.choice(((), ("a",), ("a", "unk")))}


def check_pieces(given: Given, bench: Bench) -> None:
    from mtrain.data.tokenizer import train_tokenizers

    bench.write({"given.model": given["given.model"]})

    def adopted(model: str, directory: str) -> Any:
        config = TokenizerConfig(model=model)
        return train_tokenizers(config, lambda: iter(()), 0, Path(directory), 1, given["tags"])[0]

    tokenizer = adopted("given.model", "one")
    texts = ["a dog runs", "ä 字", ""]
    for ids, text in zip(tokenizer.encode(texts), texts, strict=True):
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert "\n" not in tokenizer.decode([ids])[0], text
    again = adopted("one/tokenizer.model", "two")
    assert again.all_pieces() == tokenizer.all_pieces(), "a model that is adopted again is another"


# -- locks and prepared data -----------------------------------------------------------------

_KNOWN = ("c.lock", "data/x/inputs.json")


def make_lock(random: Random, bench: Bench) -> Given:
    name = random.choice(_KNOWN)
    data = bench.files[name]
    if random.random() < 0.7:
        data = json_bytes(random, altered(random, json.loads(data)))
    else:
        data = damaged(random, data)
    return {name: data}


def check_lock(given: Given, bench: Bench) -> None:
    from mtrain.data.prepare import find_prepared

    names = ("train.en", "train.de", "valid.en", "valid.de", "c.yaml", *_KNOWN)
    bench.write({name: bench.files[name] for name in names} | given)
    lock = Lock.open(Path("c.yaml"))
    find_prepared(bench.config, Path("c.yaml"))
    lock.describe("a source", pairs=1)
    lock.save(Path("elsewhere"))
    again = Lock.open(Path("c.yaml"))
    assert (again.files, again.sources) == (lock.files, lock.sources), "the lock is another"


def make_store(random: Random, bench: Bench) -> Given:
    files = bench.files_in(bench.prepared)
    name = random.choice(
        [name for name in files if name.startswith("train.")] * 3 + ["manifest.json"]
    )
    data = files[name]
    if name.endswith("json") and random.random() < 0.8:
        data = json_bytes(random, altered(random, json.loads(data)))
    elif random.random() < 0.5 and data:  # of the same size
        flipped = bytearray(data)
        for _ in range(random.choice((1, 2, 9))):
            flipped[random.randrange(len(data))] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
        data = bytes(flipped)
    else:
        data = damaged(random, data)
    return {name: data}


def check_store(given: Given, bench: Bench) -> None:
    from mtrain.data.batching import BatchPlan
    from mtrain.data.prepare import find_prepared
    from mtrain.data.store import TokenStore, read_target_hashes
    from mtrain.data.tokenizer import load_tokenizers

    names = ("train.en", "train.de", "valid.en", "valid.de", "c.yaml", *_KNOWN)
    files = {f"{bench.prepared}/{name}": data for name, data in given.items()}
    bench.clear()
    data = {name: content for name, content in bench.files.items() if name.startswith("data/")}
    bench.write({name: bench.files[name] for name in names} | data | files)
    prepared = find_prepared(bench.config, Path("c.yaml"))
    if prepared is None:
        raise Refused("the data would be prepared again")
    read_target_hashes(prepared.path)
    store = TokenStore.open(prepared.path)
    sizes = [tokenizer.vocab_size for tokenizer in load_tokenizers(prepared.path)]
    store.check((sizes[0], sizes[1]), bench.config.data.max_length, n_entries=1)
    for ids, offsets, size in zip(
        (store.src_ids, store.tgt_ids), (store.src_offsets, store.tgt_offsets), sizes, strict=True
    ):
        assert int(ids.max(initial=0)) < size, "an id is beyond the vocabulary"
        assert bool((np.diff(offsets) >= 0).all()), "offsets fall"
        assert (offsets[0], offsets[-1]) == (0, len(ids)), "offsets end elsewhere"
    plan = BatchPlan.of_store(store, 64, seed=1, epoch=0)
    sentences = np.concatenate([plan.sentences(i) for i in range(len(plan))])
    assert sorted(sentences.tolist()) == list(range(len(store))), "the plan has other sentences"
    for i in range(len(store)):
        assert len(store.src(i)) == store.src_lengths[i]
        assert len(store.tgt(i)) == store.tgt_lengths[i]
