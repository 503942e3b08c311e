"""Data sets of the Hugging Face hub, through `datasets` and `huggingface_hub`.

The contents of a split are looked up once and recorded in the lock: revision, files and their
sha256. Parquet files are then looked up in MTRAIN_MIRROR and in the cache, or downloaded. Splits
larger than the entry allows, and other formats, are streamed by `datasets`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from mtrain import console
from mtrain.config.entries import HubEntry
from mtrain.data.downloads import cache_dir, find_in_mirror
from mtrain.data.files import StoredFile
from mtrain.data.reading import PairSource, Texts
from mtrain.data.tables import ROWS_PER_BATCH, find_columns, read_parquet, texts_of
from mtrain.errors import DataError, DownloadError, MtrainError
from mtrain.storage import sha256_of

GIB = 1 << 30
_PATH_IN_HUB = re.compile(r"^hf://datasets/[^@]+@[^/]+/")  # the part before the path
_CONFIGS = re.compile(r"(?i)config.*?(?:available|configs)[^\[]*\[(.*?)\]", re.DOTALL)

# A split, as the lock has it: its `revision`, its `format` (the reader in `datasets`: parquet,
# json, csv) and its `files`, path in the repository -> size in bytes.
Split = dict[str, Any]


class HubSource(PairSource):
    """`{hub}`"""

    entry: HubEntry

    @property
    def label(self) -> str:
        entry = self.entry
        revision = f"@{entry.revision}" if entry.revision else ""
        return " ".join(filter(None, [f"hub:{entry.hub}{revision}", entry.config, entry.split]))

    def files(self, may_ask: bool) -> dict[str, str | None]:
        split = self._locked_split() or (self._ask_for_split() if may_ask else {"files": {}})
        locations = (self._location(split, path) for path in split["files"])
        return {location: self.reading.lock.expect(location) for location in locations}

    def texts(self) -> Iterator[tuple[Texts, Texts]]:
        split = self._locked_split() or self._ask_for_split()
        found = {path: self._find(split, path) for path in split["files"]}
        n_missing_bytes = sum(split["files"][path] for path in found if found[path] is None)
        if split["format"] != "parquet" or n_missing_bytes > self.entry.stream_above_gib * GIB:
            yield from self._stream(split)
            return
        for path, local in found.items():
            file = StoredFile(self._location(split, path), local or self._download(split, path))
            yield from read_parquet(file, self.entry, self.reading)

    def _location(self, split: Split, path: str) -> str:
        """The key of a file in the lock."""
        return f"hub:{self.entry.hub}@{split['revision']}/{path}"

    def _locked_split(self) -> Split | None:
        facts = self.reading.lock.sources.get(self.label, {})
        return facts if {"revision", "format", "files"} <= facts.keys() else None

    def _ask_for_split(self) -> Split:
        """Look the split up on the hub, and lock it."""
        import datasets
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        entry, lock, where = self.entry, self.reading.lock, self.reading.where
        with self._hub_errors():
            api = HfApi(endpoint=_endpoint())
            info = api.dataset_info(entry.hub, revision=entry.revision)
            builder = datasets.load_dataset_builder(
                info.id, entry.config, revision=info.sha, cache_dir=str(cache_dir() / "datasets")
            )
            by_split = builder.config.data_files or {}
            if entry.split not in by_split:
                raise DataError(
                    f"{where}: {entry.hub} has no split `{entry.split}` "
                    f"(found: {', '.join(by_split) or 'none'})",
                    f"correct `split` of {where}",
                )
            paths = [_PATH_IN_HUB.sub("", str(url)) for url in by_split[entry.split]]
            listed = api.get_paths_info(info.id, paths, revision=info.sha, repo_type="dataset")
            files = {file.path: file for file in listed if isinstance(file, RepoFile)}
        split = {
            "revision": str(info.sha),
            "format": type(builder).__module__.rsplit(".", 1)[-1],
            "files": {path: files[path].size for path in paths},
        }
        for path in paths:
            if (large := files[path].lfs) is not None:
                lock.record(self._location(split, path), large.sha256, large.size)
        licence = info.card_data.get("license") if info.card_data else None
        licence = ", ".join(licence) if isinstance(licence, list) else licence
        lock.describe(self.label, **split, licence=licence)
        return split

    def _find(self, split: Split, path: str) -> Path | None:
        """A file in the mirror or in the cache, with the locked sha256."""
        from huggingface_hub import try_to_load_from_cache

        location, lock = self._location(split, path), self.reading.lock
        expected = lock.expect(location)
        if expected and (mirrored := find_in_mirror(PurePosixPath(path).name, expected)):
            return mirrored
        cached = try_to_load_from_cache(
            self.entry.hub, path, _cache(), revision=split["revision"], repo_type="dataset"
        )
        if isinstance(cached, str) and (actual := sha256_of(Path(cached))) == (expected or actual):
            lock.record(location, actual, Path(cached).stat().st_size)
            return Path(cached)
        return None

    def _download(self, split: Split, path: str) -> Path:
        from huggingface_hub import hf_hub_download

        hub, location, lock = self.entry.hub, self._location(split, path), self.reading.lock
        console.message(f"downloading {path} of {hub}")
        with self._hub_errors():
            downloaded = Path(
                hf_hub_download(
                    hub,
                    path,
                    repo_type="dataset",
                    revision=split["revision"],
                    cache_dir=_cache(),
                    endpoint=_endpoint(),
                )
            )
        expected, actual = lock.expect(location), sha256_of(downloaded)
        if expected not in (None, actual):
            raise DownloadError(
                f"{self.reading.where}: {path} of {hub} has the wrong sha256: {lock.path} "
                f"recorded {expected}, now it is {actual}",
                f"delete {downloaded} and repeat; to accept the new file, delete its entry in "
                f"{lock.path}",
            )
        lock.record(location, actual, downloaded.stat().st_size)
        return downloaded

    def _stream(self, split: Split) -> Iterator[tuple[Texts, Texts]]:
        """Read rows over the network, and keep nothing."""
        import datasets

        n_rows = 0
        with self._hub_errors():
            stream = datasets.load_dataset(
                self.entry.hub,
                self.entry.config,
                split=self.entry.split,
                revision=split["revision"],
                streaming=True,
                cache_dir=str(cache_dir() / "datasets"),
            )
            for table in stream.with_format("arrow").iter(batch_size=ROWS_PER_BATCH):
                columns = find_columns(table.schema, self.entry, self.label, self.reading)
                yield texts_of(table, columns, self.label, n_rows, self.reading)
                n_rows += table.num_rows

    @contextmanager
    def _hub_errors(self) -> Iterator[None]:
        """Turn exceptions of the hub's libraries (no common base class) into our errors."""
        from datasets import disable_progress_bars
        from datasets.exceptions import DatasetNotFoundError
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
        from huggingface_hub.utils.tqdm import disable_progress_bars as disable_file_progress_bars

        entry, where = self.entry, self.reading.where
        what = f"{where}: the hub data set {entry.hub}"
        if not console.is_terminal():
            disable_progress_bars()
            disable_file_progress_bars()
        try:
            yield
        except MtrainError:
            raise
        except GatedRepoError as error:
            raise DownloadError(
                f"{what} needs a login, and its owner's terms to be accepted",
                "accept them on its page on the hub, then run `hf auth login`, or set HF_TOKEN",
            ) from error
        except RevisionNotFoundError as error:
            raise DownloadError(
                f"{what} has no revision `{entry.revision}`", f"correct `revision` of {where}"
            ) from error
        except (RepositoryNotFoundError, DatasetNotFoundError) as error:
            raise DownloadError(
                f"{what} does not exist, or needs a login",
                "correct the name; for a private one run `hf auth login`, or set HF_TOKEN",
            ) from error
        except Exception as error:
            if configs := _CONFIGS.search(str(error)):
                raise DataError(
                    f"{what} has no configuration `{entry.config or 'default'}` "
                    f"(found: {configs[1].replace(chr(39), '')})",
                    f"correct `config` of {where}",
                ) from error
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise DownloadError(
                f"{what} cannot be read: {reason}",
                "repeat when the hub can be reached, or put the files that the lock names into a "
                "directory that MTRAIN_MIRROR names",
            ) from error


def _cache() -> str:
    return str(cache_dir() / "hub")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
