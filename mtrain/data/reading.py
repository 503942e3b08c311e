"""Shared by all readers of data: the pairs they yield, and the context of one entry."""

from __future__ import annotations

import posixpath
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mtrain.config.entries import is_url
from mtrain.data.downloads import fetch
from mtrain.data.files import StoredFile, split_member
from mtrain.data.lock import Lock
from mtrain.errors import DataError
from mtrain.storage import sha256_of

Texts = list[str | None]  # None: not readable as text, and counted in `Reading`


class Pair(NamedTuple):
    """A sentence and its translation."""

    src: str
    tgt: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """Consecutive sentence pairs of one entry."""

    entry: int  # index in data.train
    src: list[str]
    tgt: list[str]


@dataclass
class Reading:
    """The context in which one entry is read, and a count of its unreadable pairs.

    where           the entry in messages, such as `data.train.0`
    lock            records the files, and facts about the entry
    entry           index in data.train
    max_unreadable  largest share of pairs that may be dropped because they are not text (not
                    UTF-8, or with a NUL); None for valid and test sets, where one is an error
    chunk_pairs     pairs read at a time
    """

    where: str
    lock: Lock
    entry: int = 0
    max_unreadable: float | None = None
    chunk_pairs: int = 5000
    n_unreadable: int = 0
    first_problem: DataError | None = None

    def locate(self, location: str, sha256: str | None = None) -> StoredFile:
        """Find a local file or download a URL, check its sha256, and record it in the lock."""
        container, member = split_member(location)
        if member is not None:
            member = self._normal_member(member, location)
        if is_url(container):
            path = fetch(container, sha256, self.lock)
            actual = self.lock.expect(container)
            assert actual is not None  # recorded by fetch
        else:
            path = Path(container).expanduser()
            if not path.is_file():
                raise self._missing(container, path)
            try:
                actual = sha256_of(path)
            except OSError as error:
                raise DataError(
                    f"{self.where}: cannot read {container}: {error.strerror}"
                ) from error
            if sha256 not in (None, actual):
                raise DataError(
                    f"{self.where}: {container} has the wrong sha256: expected {sha256}, got "
                    f"{actual}",
                    f"correct `sha256` of {self.where}, if this is the right file",
                )
        self.lock.record(location, actual, path.stat().st_size)
        return StoredFile(location, path, member)

    def reject(self, problem: DataError) -> None:
        """Record why a pair will be dropped; raise it if every pair must be readable."""
        if self.max_unreadable is None:
            raise problem
        self.first_problem = self.first_problem or problem

    def drop(self, n_pairs: int, n_read: int) -> None:
        """Count dropped pairs among the `n_read` so far; an error if there are too many."""
        self.n_unreadable += n_pairs
        # Checked on at least ten thousand pairs: a few at the start are no reason to stop.
        if self.n_unreadable > (self.max_unreadable or 0) * max(n_read, 10_000):
            self.check(n_read)

    def check(self, n_read: int) -> None:
        """Raise if more than the allowed share of all pairs was dropped."""
        max_share = self.max_unreadable or 0
        if self.n_unreadable <= max_share * n_read:
            return
        assert self.first_problem is not None
        raise DataError(
            f"{self.where}: {self.n_unreadable:,} of the first {n_read:,} pairs cannot be read, "
            f"more than {max_share:.1%}; the first of them: {self.first_problem.message}",
            f"{self.first_problem.fix}; or raise `data.max_unreadable`",
        )

    def _normal_member(self, member: str, location: str) -> str:
        normal = posixpath.normpath(member)
        if not member or member.startswith("/") or normal.split("/")[0] in ("..", "."):
            raise DataError(
                f"{self.where}: {location} leads out of the archive, or names no file in it",
                "write the path as the archive lists it, such as `corpus.tgz!train/a.en`",
            )
        return normal

    def _missing(self, location: str, path: Path) -> DataError:
        if path.exists():
            return DataError(f"{self.where}: {location} is not a regular file")
        missing = f"{self.where}: there is no file {location}"
        beside = self.lock.path.parent / path
        if beside.is_file():
            return DataError(
                f"{missing} here, but there is one beside the config: {beside}",
                f"relative paths start at the current directory: write {beside}, or run from there",
            )
        return DataError(
            f"{missing} (current directory: {Path.cwd()})",
            "correct the path; relative paths start at the current directory",
        )


@dataclass
class Source:
    """What an entry stands for: its label and its files.

    This class serves entries of text in one language, and those without files, whose pairs are
    generated; the others are a `PairSource`.
    """

    entry: Any
    reading: Reading

    @property
    def label(self) -> str:
        """The key of the entry in the lock; equal for entries with the same content."""
        return " | ".join(self.named_files()) or "cldr"

    def named_files(self) -> dict[str, str | None]:
        """Path or URL -> sha256, if given in the entry."""
        return {getattr(self.entry, k): self.entry.sha256.get(k) for k in self.entry.file_keys}

    def files(self, may_ask: bool) -> dict[str, str | None]:
        """Location -> sha256 of what the entry depends on; None for local files, which may change.

        may_ask whether to look up or download files that are not in the lock yet
        """
        lock = self.reading.lock
        files: dict[str, str | None] = {}
        for location, sha256 in self.named_files().items():
            container, _ = split_member(location)
            files[container] = None
            if is_url(container):
                if may_ask and not (sha256 or lock.expect(container)):
                    self.download(container)
                files[container] = sha256 or lock.expect(container)
        return files

    def download(self, url: str) -> Path:
        """Return the content of a URL, which is recorded in the lock."""
        return fetch(url, None, self.reading.lock)

    def locate(self, key: str) -> StoredFile:
        """Find the file that a key of the entry names."""
        return self.reading.locate(getattr(self.entry, key), self.entry.sha256.get(key))


class PairSource(Source, ABC):
    """An entry with pairs of its own; each kind is a subclass."""

    @abstractmethod
    def texts(self) -> Iterator[tuple[Texts, Texts]]:
        """Yield sources and targets, many at a time."""
