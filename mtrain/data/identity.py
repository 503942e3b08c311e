"""The entries of a config: which files they stand for, what these hold, and their text.

The prepared data is named by a hash of all that it depends on (`identify`): keys of the config,
and the bytes of the files that its entries name.
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

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from mtrain import console
from mtrain.config.entries import CldrEntry, Entry
from mtrain.config.root import Config
from mtrain.config.sections import TokenizerModels
from mtrain.data.cldr import VERSION as CLDR_VERSION
from mtrain.data.cleaning import TextPair, normalize
from mtrain.data.corpus import CHUNK_PAIRS
from mtrain.data.downloads import Lock
from mtrain.data.lines import Unreadable
from mtrain.data.reading import Pairs
from mtrain.data.sources import (
    Chunk,
    entries_of,
    inputs_of,
    label_of,
    languages_of,
    mono_of,
    read_chunks,
    read_mono,
)
from mtrain.data.store import SIDES
from mtrain.errors import DataError
from mtrain.storage import parse_json, read_bytes, sha256_of, write_json

FORMAT = 3  # part of the hash: raised when the same config would give other files

# Not how often each pair is trained on, nor what says nothing of an entry (see `spared_entries`).
_ASIDE: Any = {
    "temperature": True,
    "train": {"__all__": {"weight", "clean"}},
    "valid": {"weight", "clean"},
    "test": {"__all__": {"weight", "clean"}},
}

# The norms of a corpus are learnt from the first chunk of each entry, and from a pair in so many
# of so many chunks behind it.
_SAMPLED_CHUNKS, _SAMPLED_ONE_IN = 100, 25


# -- what the content depends on -------------------------------------------------------------


def open_lock(config: Config, config_path: Path) -> Lock:
    """The lock of a config, wherever it could be written."""
    return Lock.open(config_path, fallback_dir=Path("data", config.name))


def identify(config: Config, lock: Lock, download: bool) -> str:
    """16 hexadecimal digits that change with any key or file that the prepared data depends on."""
    known = _KnownFiles(Path("data", config.name, "inputs.json"))
    inputs = {}
    for key, entry in chain(entries_of(config), mono_of(config)):
        for location, sha256 in inputs_of(entry, key, lock, may_ask=download):
            inputs[location] = sha256 or known.sha256_of(location)
    for location in _tokenizer_models(config):
        inputs[location] = known.sha256_of(location)
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
        "data": config.data.model_dump(mode="json", exclude=_ASIDE),
        # Not how a pair is cut anew in every epoch.
        "tokenizer": config.tokenizer.model_dump(mode="json", exclude={"sampling"}),
        "keeps_text": config.tokenizer.sampling > 0,
    }
    if spared := spared_entries(config):
        identity["spared"] = spared
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def describe_sources(config: Config, lock: Lock) -> list[dict[str, Any]]:
    """Each entry of the config as it is there, with what the lock says of it and its files."""
    described = []
    for key, entry in chain(entries_of(config), mono_of(config)):
        locations = [location for location, _ in inputs_of(entry, key, lock, may_ask=False)]
        files = {location: _sorted(lock.files.get(location, {})) for location in locations}
        facts = _sorted(lock.sources.get(label_of(entry), {}))
        is_train = key.startswith("data.train.")
        keys = entry.model_dump(
            mode="json", exclude={"weight"} if is_train else {"weight", "clean"}
        )
        described.append({"entry": key, **facts, **keys, "files": files})
    return described


def _sorted(facts: dict[str, Any]) -> dict[str, Any]:
    """In one order, whether they were just learnt or read from the lock."""
    return dict(sorted(facts.items()))


def train_keys(config: Config) -> list[str]:
    """The keys of the training entries."""
    return [f"data.train.{i}" for i in range(len(config.data.train))]


def train_names(config: Config) -> list[str]:
    """What messages call the training entries: their own names, or else their keys."""
    return [
        entry.name or key for entry, key in zip(config.data.train, train_keys(config), strict=True)
    ]


def spared_entries(config: Config) -> list[int]:
    """The numbers of the training entries that the filters of `data.clean` spare, if any are on."""
    if all(threshold is False for _, threshold in config.data.clean):
        return []
    return [number for number, entry in enumerate(config.data.train) if not entry.clean]


def train_tags(config: Config) -> list[str | None]:
    """The tag of each training entry, if it has one."""
    return [entry.tag for entry in config.data.train]


def split_tags(config: Config) -> dict[str, str]:
    """The tags of valid and test sets, where they have any."""
    tags = {name: entry.tag for name, entry in _sets(config).items()}
    if config.data.valid is None and len(known := set(train_tags(config))) == 1:
        tags["valid"] = known.pop()  # held out from entries that all have this one
    return {name: tag for name, tag in tags.items() if tag is not None}


def split_languages(config: Config) -> dict[str, tuple[str, str]]:
    """The languages of valid and test sets, where they are not the config's own."""
    return {name: e.languages for name, e in _sets(config).items() if e.languages is not None}


def _sets(config: Config) -> dict[str, Entry]:
    """Valid, unless it is held out, and the test sets."""
    data = config.data
    return data.test if data.valid is None else {"valid": data.valid} | data.test


def _tokenizer_models(config: Config) -> list[str]:
    """The paths of models to take over."""
    model = config.tokenizer.model
    if isinstance(model, TokenizerModels):
        return [model.source, model.target]
    return [] if model is None else [model]


@with_config({"extra": "allow"})
class _Seen(TypedDict):
    size_bytes: int
    mtime_ns: int
    sha256: str


_SEEN: TypeAdapter[dict[str, dict[str, Any]]] = TypeAdapter[Any](dict[str, _Seen])


class _KnownFiles:
    """Remembers the sha256 of local files by size and time, so that big ones are read once.

    A file that is gone counts as what it was: what was prepared from it can still be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, dict[str, Any]] = {}
        with suppress(OSError, ValueError):  # a lost memory costs one more reading
            self._files = parse_json(read_bytes(path), _SEEN)
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


# -- their text ------------------------------------------------------------------------------


class Inputs:
    """The text of a config's entries."""

    def __init__(self, config: Config, lock: Lock) -> None:
        self._config, self._lock = config, lock
        self._entries = dict(entries_of(config))
        self.unreadable = [Unreadable(config.data.max_unreadable) for _ in config.data.train]

    def splits(self) -> dict[str, list[TextPair]]:
        """The valid and test sets by their names, as they are, so that n lines stay n lines."""
        keys = [key for key in self._entries if not key.startswith("data.train.")]
        return {
            key.removeprefix("data.").removeprefix("test."): self._read_split(key) for key in keys
        }

    def training_chunks(self) -> Iterator[Pairs]:
        """The training text, entry after entry; what is no text is counted in `unreadable`."""
        for number, key in enumerate(train_keys(self._config)):
            for sources, targets in self._chunks(key, self.unreadable[number]):
                yield Pairs(number, sources, targets)

    def samples(self) -> dict[str, list[TextPair]]:
        """Some normalised pairs of every training entry by its key, always the same."""
        return {key: self._sample(key) for key in train_keys(self._config)}

    def _sample(self, key: str) -> list[TextPair]:
        pairs: list[TextPair] = []
        # Whether too much of it is no text will be told when all of it is read.
        chunks = self._chunks(key, Unreadable(max_share=1))
        for number, chunk in enumerate(islice(chunks, _SAMPLED_CHUNKS)):
            every = _SAMPLED_ONE_IN if number else 1
            pairs += islice(zip(*chunk, strict=True), None, None, every)
        normalized = [(normalize(source), normalize(target)) for source, target in pairs]
        return [pair for pair in normalized if all(pair)]

    def mono_texts(self, side: int) -> Iterator[str]:
        """Normalised text in the language of one side (0 or 1) alone, for the tokenizer."""
        for key, entry in mono_of(self._config):
            if entry.side == SIDES[side]:
                for lines in read_mono(entry, key, self._lock, CHUNK_PAIRS):
                    yield from filter(None, map(normalize, lines))

    def n_training_pairs(self) -> int | None:
        """How many pairs there are, if all of it was read before."""
        n_pairs = 0
        for key in train_keys(self._config):
            entry = self._entries[key]
            known = self._lock.sources.get(label_of(entry), {}).get("pairs")
            n_entry = entry.cldr if isinstance(entry, CldrEntry) else known
            if n_entry is None:
                return None
            n_pairs += n_entry
        return n_pairs

    def _read_split(self, key: str) -> list[TextPair]:
        """JSON may hold line breaks: they become spaces."""
        pairs = [
            (source.replace("\n", " "), target.replace("\n", " "))
            for chunk in self._chunks(key, None)
            for source, target in zip(*chunk, strict=True)
        ]
        if not pairs:
            raise DataError(
                f"{key} holds no sentence pairs", "correct its path, or remove the entry"
            )
        n_empty = sum(not (source.strip() and target.strip()) for source, target in pairs)
        if n_empty:
            console.warn(
                f"{key}: {n_empty:,} of {len(pairs):,} pairs have an empty side; they stay"
            )
        return pairs

    def _chunks(self, key: str, unreadable: Unreadable | None) -> Iterable[Chunk]:
        entry = self._entries[key]
        if isinstance(entry, CldrEntry):
            return _cut(self._generated[key])
        return read_chunks(entry, key, self._lock, CHUNK_PAIRS, unreadable)

    @cached_property
    def _generated(self) -> dict[str, list[TextPair]]:
        """Generated phrases of all entries together, so that none is in two of them."""
        from mtrain.data.cldr import cldr_pairs

        config = self._config
        counts: dict[tuple[str, str], dict[str, int]] = {}  # languages -> entry -> pairs
        for key, entry in self._entries.items():
            if isinstance(entry, CldrEntry):
                counts.setdefault(languages_of(entry, config), {})[key] = entry.cldr
        n_pairs = sum(sum(of_entries.values()) for of_entries in counts.values())
        self._lock.describe("cldr", pairs=n_pairs, babel=version("babel"))
        return {
            key: [(pair.src, pair.tgt) for pair in part]
            for languages, of_entries in counts.items()
            for key, part in zip(
                of_entries,
                cldr_pairs(*languages, list(of_entries.values()), config.data.seed),
                strict=True,
            )
        }


def _cut(pairs: list[TextPair]) -> Iterator[Chunk]:
    for start in range(0, len(pairs), CHUNK_PAIRS):
        part = pairs[start : start + CHUNK_PAIRS]
        yield [source for source, _ in part], [target for _, target in part]
