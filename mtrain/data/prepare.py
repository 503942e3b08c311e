"""Corpora in; tokenizer, token store, test sets and a manifest out; nothing when nothing changed.

    data/<name>/<hash>/            hash of what determines the content: config keys, input files
      manifest.json                counts, hashes of all files, what was dropped and why
      tokenizer*.model             see data.tokenizer
      train.*                      see data.store
      valid.source, valid.target   raw text, one sentence a line; the same for each test set

The directory is built as `<hash>.tmp-<process>` and renamed when complete. Training text passes
through a temporary file there (see data.corpus).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np

from mtrain import console
from mtrain.config import CldrEntry, Config
from mtrain.data.corpus import FILTERS, Corpus, TextPair, chunks
from mtrain.data.downloads import Lock
from mtrain.data.sources import Pair, entries_of, inputs_of, label_of, read_entry
from mtrain.data.store import SIDES, StoreCounts, StoreWriter
from mtrain.data.text_files import Unreadable
from mtrain.data.tokenizer import Tokenizer, model_files, train_tokenizers
from mtrain.errors import DataError
from mtrain.run import RunDir, atomic_write, sha256_of, storage_errors, write_json

FORMAT = 1  # part of the hash: raised when the same config would give other files

_MANIFEST = "manifest.json"
_COPIED_SHARE = 0.1  # of training pairs whose target is the source: worth a warning
_TOKENIZED_SHARE = 0.5  # of references that end in " .": worth a warning


@dataclass(frozen=True)
class Prepared:
    """A complete directory of prepared data, and its manifest."""

    path: Path
    manifest: dict[str, Any]


def prepare(config: Config, config_path: Path, force: bool = False) -> Prepared:
    """Make the data that a config asks for, unless it is there already (and `force` is not set)."""
    directory = Path("data", config.name)
    lock = _open_lock(config, config_path)
    path = directory / _identify(config, lock, download=True)
    found = _open(path)
    if found is not None and not force:
        console.message(f"{path} is up to date")
        return found
    if found is None and path.exists():
        console.warn(f"{path} is damaged and is prepared again")
    _remove_leftovers(directory)
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with storage_errors(partial):
            partial.mkdir(parents=True)
        manifest = _build(config, lock, partial)
        _install(partial, path)
    except BaseException:  # also Ctrl-C: nothing half-written stays
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _report(path, manifest)
    return Prepared(path, manifest)


def find_prepared(config: Config, config_path: Path) -> Prepared | None:
    """The data of a config if it was prepared before; writes and downloads nothing."""
    lock = _open_lock(config, config_path)
    return _open(Path("data", config.name, _identify(config, lock, download=False)))


def copy_into_run(prepared: Prepared, run: RunDir) -> None:
    """Give a run what it needs to translate and evaluate without the prepared data."""
    models = [path.name for path in model_files(prepared.path)]
    texts = [f"{split}.{side}" for split in prepared.manifest["splits"] for side in SIDES]
    for name in models:
        atomic_write(run.path / name, (prepared.path / name).read_bytes())
    for name in texts:
        atomic_write(run.data / name, (prepared.path / name).read_bytes())
    atomic_write(run.manifest, (prepared.path / _MANIFEST).read_bytes())


# -- the directory ---------------------------------------------------------------------------


def _open(path: Path) -> Prepared | None:
    """A prepared directory whose files are all there, in the sizes they were written in."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: (path / name).stat().st_size for name in manifest["sizes"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        raise DataError(
            f"cannot read the prepared data {path}: {error.strerror}", "check its permissions"
        ) from error
    return Prepared(path, manifest) if sizes == manifest["sizes"] else None


def _install(partial: Path, path: Path) -> None:
    """Rename a complete directory into its place; what stood there goes."""
    with storage_errors(path):
        if path.exists():
            old = partial.with_name(f"{partial.name}-old")
            os.rename(path, old)
            shutil.rmtree(old, ignore_errors=True)
        os.rename(partial, path)


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left half-written."""
    for path in directory.glob("*.tmp-*"):
        match = re.search(r"\.tmp-(\d+)(-old)?$", path.name)
        if match and (int(match[1]) == os.getpid() or not _is_running(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        return True
    return True


# -- what the content depends on -------------------------------------------------------------


def _open_lock(config: Config, config_path: Path) -> Lock:
    return Lock.open(config_path, fallback_dir=Path("data", config.name))


def _identify(config: Config, lock: Lock, download: bool) -> str:
    """16 hexadecimal digits that change with any key or file that the prepared data depends on."""
    known = _KnownFiles(Path("data", config.name, "inputs.json"))
    inputs = {}
    for key, entry in entries_of(config):
        for location, sha256 in inputs_of(entry, key, lock, may_ask=download):
            inputs[location] = sha256 or known.sha256_of(location)
    if download:
        known.save()
        lock.save(Path("data", config.name))
    is_generated = any(isinstance(entry, CldrEntry) for _, entry in entries_of(config))
    identity = {
        "format": FORMAT,
        "cldr": version("babel") if is_generated else None,  # its phrases change with CLDR
        "inputs": inputs,
        "source": config.source,
        "target": config.target,
        "data": config.data.model_dump(mode="json"),
        "tokenizer": config.tokenizer.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


class _KnownFiles:
    """Remembers the sha256 of local files by size and time, so that big ones are read once.

    A file that is gone counts as what it was: what was prepared from it can still be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, dict[str, Any]] = {}
        with suppress(OSError, ValueError):  # a lost memory costs one more reading
            self._files = json.loads(path.read_text(encoding="utf-8"))
        self._is_changed = False

    def sha256_of(self, location: str) -> str | None:
        """Of a local file as it is now; None if it is not there and never was."""
        path = Path(location).expanduser()
        key = str(path.absolute())
        known = self._files.get(key, {})
        with suppress(OSError):  # reading the entry will say what is wrong with the file
            status = path.stat()
            stamp = {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
            if path.is_file() and not stamp.items() <= known.items():
                self._files[key] = known = stamp | {"sha256": sha256_of(path)}
                self._is_changed = True
        return known.get("sha256")

    def save(self) -> None:
        """Write what was learnt, if anything."""
        if self._is_changed:
            write_json(self._path, self._files)


# -- the work --------------------------------------------------------------------------------


def _build(config: Config, lock: Lock, directory: Path) -> dict[str, Any]:
    """Write everything into an empty directory; returns the manifest, which is written last."""
    unreadable = [Unreadable(config.data.max_unreadable) for _ in config.data.train]
    readers = _readers(config, lock, unreadable)
    splits = {
        key.removeprefix("data.").removeprefix("test."): _read_split(key, readers.pop(key))
        for key in list(readers)
        if not key.startswith("data.train.")
    }
    corpus = Corpus(directory / "corpus.tmp")
    corpus.fill(chain.from_iterable(readers.values()), config.data, splits.values())
    corpus.count_unreadable(sum(entry.n_pairs for entry in unreadable))
    if config.data.valid is None:
        splits["valid"] = corpus.hold_out_valid(config.data.seed)
    splits = {"valid": splits.pop("valid"), **splits}

    tokenizers = train_tokenizers(
        config.tokenizer, corpus.kept, corpus.n_kept, directory, config.data.seed
    )
    statistics = _Statistics(tokenizers)
    stored = _encode(config, corpus, tokenizers, directory, statistics)
    corpus.path.unlink()
    split_sha256 = {name: _write_split(directory, name, pairs) for name, pairs in splits.items()}
    _warn_of_suspicions(splits, statistics)
    lock.save(Path("data", config.name))

    files = sorted(path for path in directory.iterdir())
    manifest = {
        "format": FORMAT,
        "source": config.source,
        "target": config.target,
        "splits": list(splits),
        "split_sha256": split_sha256,
        "n_train_pairs": stored.n_pairs,
        "n_source_tokens": stored.n_source_tokens,
        "n_target_tokens": stored.n_target_tokens,
        "vocab_sizes": [side.vocab_size for side in tokenizers],
        **statistics.summary(),
        "table": _table(corpus, splits),
        "sources": _describe_sources(config, lock),
        "files": {path.name: stored.sha256.get(path.name) or sha256_of(path) for path in files},
        "sizes": {path.name: path.stat().st_size for path in files},
    }
    write_json(directory / _MANIFEST, manifest)
    return manifest


def _readers(
    config: Config, lock: Lock, unreadable: Sequence[Unreadable]
) -> dict[str, Iterable[TextPair]]:
    """The pairs of each entry, by its key; generated phrases all together, so none is in two.

    unreadable counts what is dropped of each training entry.
    """
    entries = dict(entries_of(config))
    generated = {key: entry.cldr for key, entry in entries.items() if isinstance(entry, CldrEntry)}
    readers: dict[str, Iterable[TextPair]] = {}
    if generated:
        from mtrain.data.cldr import cldr_pairs

        parts = cldr_pairs(config.source, config.target, list(generated.values()), config.data.seed)
        readers = {key: map(_texts, part) for key, part in zip(generated, parts, strict=True)}
    counters = {f"data.train.{i}": counter for i, counter in enumerate(unreadable)}
    for key, entry in entries.items():
        if not isinstance(entry, CldrEntry):
            readers[key] = map(_texts, read_entry(entry, key, lock, counters.get(key)))
    return {key: readers[key] for key in entries}


def _texts(pair: Pair) -> TextPair:
    return pair.src, pair.tgt


def _read_split(key: str, reader: Iterable[TextPair]) -> list[TextPair]:
    """A valid or test set as it is, so that n lines stay n lines; JSON may hold line breaks."""
    pairs = [(src.replace("\n", " "), tgt.replace("\n", " ")) for src, tgt in reader]
    if not pairs:
        raise DataError(f"{key} holds no sentence pairs", "correct its path, or remove the entry")
    n_empty = sum(not (src.strip() and tgt.strip()) for src, tgt in pairs)
    if n_empty:
        console.warn(f"{key}: {n_empty:,} of {len(pairs):,} pairs have an empty side; they stay")
    return pairs


def _encode(
    config: Config,
    corpus: Corpus,
    tokenizers: tuple[Tokenizer, Tokenizer],
    directory: Path,
    statistics: _Statistics,
) -> StoreCounts:
    """Turn the kept text into ids and store them, but for over-long pairs."""
    source, target = tokenizers
    vocab_sizes = (source.vocab_size, target.vocab_size)
    with (
        StoreWriter(directory, "train", vocab_sizes) as writer,
        console.bar(corpus.n_kept, "encoding", "pairs") as bar,
    ):
        for chunk in chunks(corpus.kept()):
            ids = list(
                zip(
                    source.encode([pair[0] for pair in chunk]),
                    target.encode([pair[1] for pair in chunk]),
                    strict=True,
                )
            )
            fits = [max(map(len, pair)) <= config.data.max_length for pair in ids]
            corpus.count_over_long(len(chunk) - sum(fits))
            ids = list(compress(ids, fits))
            writer.append(ids)
            statistics.add(list(compress(chunk, fits)), ids)
            bar.update(len(chunk))
        return writer.close()


class _Statistics:
    """Sums over the stored pairs, from which the manifest's shares and means come."""

    def __init__(self, tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
        self._is_byte = []  # of each side: (vocabulary size,)
        for side in tokenizers:
            is_byte = np.zeros(side.vocab_size, dtype=bool)
            is_byte[side.byte_ids()] = True
            self._is_byte.append(is_byte)
        self._n_pairs = self._n_copied = 0
        self._n_words, self._n_tokens, self._n_bytes = [0, 0], [0, 0], [0, 0]
        self._sum_ratio = self._sum_squared_ratio = 0.0

    def add(self, texts: Sequence[TextPair], ids: Sequence[tuple[list[int], list[int]]]) -> None:
        """Take in some pairs, as text and as ids."""
        self._n_pairs += len(texts)
        self._n_copied += sum(source == target for source, target in texts)
        lengths = np.array([[len(source), len(target)] for source, target in ids]).reshape(-1, 2)
        for side in (0, 1):
            n_tokens = int(lengths[:, side].sum())
            flat = np.fromiter(chain.from_iterable(pair[side] for pair in ids), np.int64, n_tokens)
            self._n_tokens[side] += n_tokens
            self._n_bytes[side] += int(self._is_byte[side][flat].sum())
            self._n_words[side] += sum(len(pair[side].split()) for pair in texts)
        ratios = (lengths[:, 1] + 1) / (lengths[:, 0] + 1)  # EOS counts
        self._sum_ratio += float(ratios.sum())
        self._sum_squared_ratio += float((ratios**2).sum())

    @property
    def copied_share(self) -> float:
        """Of pairs whose target is the source."""
        return self._n_copied / self._n_pairs

    def summary(self) -> dict[str, Any]:
        """What the manifest says of the stored pairs."""
        mean = self._sum_ratio / self._n_pairs
        variance = max(0.0, self._sum_squared_ratio / self._n_pairs - mean**2)
        return {
            "length_ratio": {"mean": mean, "std": variance**0.5},
            "copied_share": self.copied_share,
            "sides": {
                name: {
                    "n_tokens": self._n_tokens[side],
                    "n_words": self._n_words[side],
                    "tokens_per_word": self._n_tokens[side] / self._n_words[side],
                    "byte_share": self._n_bytes[side] / self._n_tokens[side],
                }
                for side, name in enumerate(SIDES)
            },
        }


def _write_split(directory: Path, name: str, pairs: list[TextPair]) -> str:
    """Store a valid or test set as text; returns the sha256 of both sides, as a run checks it."""
    contents = []
    for side, texts in zip(SIDES, zip(*pairs, strict=True), strict=True):
        contents.append("".join(f"{text}\n" for text in texts).encode())
        atomic_write(directory / f"{name}.{side}", contents[-1])
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


# -- what is said about it -------------------------------------------------------------------


def _table(corpus: Corpus, splits: dict[str, list[TextPair]]) -> list[dict[str, Any]]:
    """Rows of what was read, dropped for each reason, and kept."""
    dropped = {reason: n for reason, n in corpus.dropped.items() if n or reason in FILTERS}
    train = {"read": corpus.n_read, **dropped, "kept": corpus.n_kept}
    rows = [{"split": "train", "reason": reason, "pairs": n} for reason, n in train.items()]
    return rows + [
        {"split": name, "reason": "kept", "pairs": len(pairs)} for name, pairs in splits.items()
    ]


def _describe_sources(config: Config, lock: Lock) -> list[dict[str, Any]]:
    """Each entry of the config as it is there, with what the lock says of its files."""
    described = []
    for key, entry in entries_of(config):
        locations = [location for location, _ in inputs_of(entry, key, lock, may_ask=False)]
        files = {location: lock.files.get(location, {}) for location in locations}
        facts = lock.sources.get(label_of(entry), {})
        described.append({"entry": key, **facts, **entry.model_dump(mode="json"), "files": files})
    return described


def _warn_of_suspicions(splits: dict[str, list[TextPair]], statistics: _Statistics) -> None:
    """What an expert would notice."""
    if statistics.copied_share > _COPIED_SHARE:
        console.warn(
            f"in {statistics.copied_share:.0%} of the training pairs the target is the source: "
            "the model will learn to copy"
        )
    for name, pairs in splits.items():
        share = sum(target.rstrip().endswith(" .") for _, target in pairs) / len(pairs)
        if share > _TOKENIZED_SHARE:
            console.warn(
                f"{share:.0%} of the references of `{name}` end in ` .`: they look tokenised, and "
                "scores on them cannot be compared with those on raw text"
            )


def _report(path: Path, manifest: dict[str, Any]) -> None:
    rows = [(row["split"], row["reason"], row["pairs"]) for row in manifest["table"]]
    console.table(("split", "", "pairs"), rows)
    console.message(
        f"{path}: {manifest['n_train_pairs']:,} training pairs, "
        f"{manifest['n_source_tokens']:,} source and {manifest['n_target_tokens']:,} target tokens"
    )
