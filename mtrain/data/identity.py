"""The entries of a config: the files they depend on, hashes of their contents, and their text.

The prepared data is named by a hash of everything that it depends on (`identify`): keys of the
config, and the content of the files that its entries name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from mtrain import console
from mtrain.config.entries import CldrEntry, Entry
from mtrain.config.recipe import is_given
from mtrain.config.root import Config
from mtrain.config.sections import TokenizerModels
from mtrain.data.cldr import VERSION as CLDR_VERSION
from mtrain.data.cleaning import TextPair, normalize
from mtrain.data.corpus import CHUNK_PAIRS
from mtrain.data.lock import Lock
from mtrain.data.reading import Pairs, Reading, Source
from mtrain.data.sources import (
    entries_of,
    languages_of,
    mono_of,
    open_source,
    read_mono,
    read_pairs,
)
from mtrain.data.store import SIDES
from mtrain.errors import DataError
from mtrain.storage import parse_json, read_bytes, sha256_of, write_json

FORMAT = 3  # part of the hash: increased when the same config would give other files

# Not part of the hash: how often pairs are trained on, and `clean` (see `spared_entries`).
_EXCLUDED: Any = {
    "temperature": True,
    "train": {"__all__": {"weight", "clean"}},
    "valid": {"weight", "clean"},
    "test": {"__all__": {"weight", "clean"}},
}

CHOSEN = ("vocab_size", "character_coverage")  # by `config.recipe`, from the text

# The statistics of a corpus are computed from the first chunk of each entry, and from one in 25
# pairs of the next chunks.
_SAMPLED_CHUNKS, _SAMPLED_ONE_IN = 100, 25


# -- dependencies of the content -------------------------------------------------------------


def open_lock(config: Config, config_path: Path) -> Lock:
    """Open the lock of a config, in the place where it could be written."""
    return Lock.open(config_path, fallback_dir=Path("data", config.name))


def identify(config: Config, lock: Lock, download: bool) -> str:
    """Return 16 hexadecimal digits that change with any relevant key or file."""
    known = _KnownFiles(Path("data", config.name, "inputs.json"))
    inputs = {}
    for _, source in _sources(config, lock):
        for location, sha256 in source.files(may_ask=download).items():
            inputs[location] = sha256 or known.sha256_of(location)
    model = config.tokenizer.model
    models = [model.source, model.target] if isinstance(model, TokenizerModels) else [model]
    inputs |= {path: known.sha256_of(path) for path in models if path is not None}
    if download:
        known.save()
        lock.save(Path("data", config.name))
    is_generated = any(isinstance(entry, CldrEntry) for _, entry in entries_of(config))
    identity: dict[str, Any] = {
        "format": FORMAT,
        # Generated phrases change with CLDR and with their generator.
        "cldr": f"{version('babel')} {CLDR_VERSION}" if is_generated else None,
        "inputs": inputs,
        "source": config.source,
        "target": config.target,
        "data": config.data.model_dump(mode="json", exclude=_EXCLUDED),
        # Without `sampling`, which cuts a pair differently in every epoch.
        "tokenizer": config.tokenizer.model_dump(mode="json", exclude={"sampling"})
        | {key: "auto" for key in CHOSEN if not is_given(config, f"tokenizer.{key}")},
        "keeps_text": config.tokenizer.sampling > 0,
    }
    if spared := spared_entries(config):
        identity["spared"] = spared
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def describe_sources(config: Config, lock: Lock) -> list[dict[str, Any]]:
    """Describe each entry: its keys, and the facts in the lock about it and its files."""
    described = []
    for key, source in _sources(config, lock):
        # Sorted, so that new facts and facts read from the lock have the same order.
        files = {
            location: dict(sorted(lock.files.get(location, {}).items()))
            for location in source.files(may_ask=False)
        }
        facts = dict(sorted(lock.sources.get(source.label, {}).items()))
        excluded = {"weight"} if key.startswith("data.train.") else {"weight", "clean"}
        keys = source.entry.model_dump(mode="json", exclude=excluded)
        described.append({"entry": key, **facts, **keys, "files": files})
    return described


def _sources(config: Config, lock: Lock) -> Iterator[tuple[str, Source]]:
    """Yield (config key, source) of all entries."""
    for key, entry in chain(entries_of(config), mono_of(config)):
        yield key, open_source(entry, Reading(key, lock))


def train_keys(config: Config) -> list[str]:
    """The keys of the training entries."""
    return [f"data.train.{i}" for i in range(len(config.data.train))]


def train_names(config: Config) -> list[str]:
    """The names of the training entries in messages: their `name`, or else their key."""
    return [
        entry.name or key for entry, key in zip(config.data.train, train_keys(config), strict=True)
    ]


def spared_entries(config: Config) -> list[int]:
    """The indices of the training entries to which the filters of `data.clean` do not apply."""
    if all(threshold is False for _, threshold in config.data.clean):
        return []
    return [number for number, entry in enumerate(config.data.train) if not entry.clean]


def split_tags(config: Config) -> dict[str, str]:
    """The tags of those valid and test sets that have one."""
    tags = {name: entry.tag for name, entry in _splits(config).items()}
    if config.data.valid is None and len(known := {entry.tag for entry in config.data.train}) == 1:
        tags["valid"] = known.pop()  # held out from entries that all have this tag
    return {name: tag for name, tag in tags.items() if tag is not None}


def split_languages(config: Config) -> dict[str, tuple[str, str]]:
    """The languages of those valid and test sets that differ from the config's."""
    return {name: e.languages for name, e in _splits(config).items() if e.languages is not None}


def _splits(config: Config) -> dict[str, Entry]:
    """The entries of valid, unless it is held out, and of the test sets."""
    data = config.data
    return data.test if data.valid is None else {"valid": data.valid} | data.test


class _Seen(TypedDict):
    size_bytes: int
    mtime_ns: int
    sha256: str


_SEEN: TypeAdapter[dict[str, dict[str, Any]]] = TypeAdapter[Any](dict[str, _Seen])


class _KnownFiles:
    """Remembers the sha256 of local files by size and time, so that large ones are read once.

    The sha256 of a deleted file stays known: data prepared from it can still be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, dict[str, Any]] = {}
        with suppress(OSError, ValueError):  # without it, files are read once more
            self._files = parse_json(read_bytes(path), _SEEN)
        self._is_changed = False

    def sha256_of(self, location: str) -> str | None:
        """Return the sha256 of a local file now; None if it does not exist and never did."""
        path = Path(location).expanduser()
        key = str(path.absolute())
        known = self._files.get(key, {})
        with suppress(OSError):  # reading the entry will report the problem
            status = path.stat()
            stamp = {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
            if path.is_file() and not stamp.items() <= known.items():
                self._files[key] = known = stamp | {"sha256": sha256_of(path)}
                self._is_changed = True
        return known.get("sha256")

    def save(self) -> None:
        """Write the file if anything changed."""
        if self._is_changed:
            write_json(self._path, self._files)


# -- their text ------------------------------------------------------------------------------


class Inputs:
    """The text of a config's entries."""

    def __init__(self, config: Config, lock: Lock) -> None:
        self._config, self._lock = config, lock
        self._entries = dict(entries_of(config))
        self.n_unreadable = [0] * len(config.data.train)  # pairs that were not text

    def splits(self) -> dict[str, list[TextPair]]:
        """The valid and test sets by name, unchanged, so that n lines stay n lines."""
        keys = [key for key in self._entries if not key.startswith("data.train.")]
        return {
            key.removeprefix("data.").removeprefix("test."): self._read_split(key) for key in keys
        }

    def training_chunks(self) -> Iterator[Pairs]:
        """Yield the training text, entry after entry; counts what is not text."""
        for number, key in enumerate(train_keys(self._config)):
            reading = self._reading(key, number, self._config.data.max_unreadable)
            yield from self._read(key, reading)
            self.n_unreadable[number] = reading.n_unreadable

    def samples(self) -> dict[str, list[TextPair]]:
        """Some normalised pairs of every training entry by key, always the same."""
        return {key: self._sample(key) for key in train_keys(self._config)}

    def mono_texts(self, side: int) -> Iterator[str]:
        """Normalised monolingual text of one side (0 or 1), for the tokenizer."""
        for key, entry in mono_of(self._config):
            if entry.side == SIDES[side]:
                reading = Reading(key, self._lock, max_unreadable=1, chunk_pairs=CHUNK_PAIRS)
                for lines in read_mono(entry, reading):
                    yield from filter(None, map(normalize, lines))

    def n_training_pairs(self) -> int | None:
        """The number of training pairs, if all entries were read before."""
        n_pairs = 0
        for key in train_keys(self._config):
            entry, reading = self._entries[key], Reading(key, self._lock)
            known = self._lock.sources.get(open_source(entry, reading).label, {}).get("pairs")
            n_entry = entry.cldr if isinstance(entry, CldrEntry) else known
            if n_entry is None:
                return None
            n_pairs += n_entry
        return n_pairs

    def _sample(self, key: str) -> list[TextPair]:
        pairs: list[TextPair] = []
        # Too many unreadable pairs are an error later, when the whole entry is read.
        chunks = self._read(key, self._reading(key, max_unreadable=1))
        for number, chunk in enumerate(islice(chunks, _SAMPLED_CHUNKS)):
            every = _SAMPLED_ONE_IN if number else 1
            pairs += islice(zip(chunk.src, chunk.tgt, strict=True), None, None, every)
        normalized = [(normalize(source), normalize(target)) for source, target in pairs]
        return [pair for pair in normalized if all(pair)]

    def _read_split(self, key: str) -> list[TextPair]:
        """Read a valid or test set; line breaks inside a text, as in JSON, become spaces."""
        pairs = [
            (source.replace("\n", " "), target.replace("\n", " "))
            for chunk in self._read(key, self._reading(key))
            for source, target in zip(chunk.src, chunk.tgt, strict=True)
        ]
        if not pairs:
            raise DataError(
                f"{key} holds no sentence pairs", "correct its path, or remove the entry"
            )
        n_empty = sum(not (source.strip() and target.strip()) for source, target in pairs)
        if n_empty:
            console.warn(
                f"{key}: {n_empty:,} of {len(pairs):,} pairs have an empty side; they are kept"
            )
        return pairs

    def _reading(self, key: str, number: int = 0, max_unreadable: float | None = None) -> Reading:
        name = self._entries[key].name
        where = f"{key} ({name})" if name else key
        return Reading(where, self._lock, number, max_unreadable, CHUNK_PAIRS)

    def _read(self, key: str, reading: Reading) -> Iterable[Pairs]:
        entry = self._entries[key]
        if not isinstance(entry, CldrEntry):
            yield from read_pairs(entry, reading)
            return
        pairs = self._generated[key]
        for start in range(0, len(pairs), CHUNK_PAIRS):
            src, tgt = zip(*pairs[start : start + CHUNK_PAIRS], strict=True)
            yield Pairs(reading.entry, list(src), list(tgt))

    @cached_property
    def _generated(self) -> dict[str, list[TextPair]]:
        """Generated phrases of all entries, made together so that none is in two of them."""
        from mtrain.data.cldr import cldr_pairs

        config = self._config
        counts: dict[tuple[str, str], dict[str, int]] = {}  # languages -> key -> pairs
        for key, entry in self._entries.items():
            if isinstance(entry, CldrEntry):
                counts.setdefault(languages_of(entry, config), {})[key] = entry.cldr
        generated: dict[str, list[TextPair]] = {}
        for languages, of_entries in counts.items():
            parts = cldr_pairs(*languages, list(of_entries.values()), config.data.seed)
            generated |= zip(of_entries, map(list[TextPair], parts), strict=True)
        n_pairs = sum(map(len, generated.values()))
        self._lock.describe("cldr", pairs=n_pairs, babel=version("babel"))
        return generated
