"""Data sets of the Hugging Face hub, through `datasets`.

What a split consists of is asked once, and stands in the lock: revision, files and their sha256.
Parquet files are then fetched like other downloads (cache, MTRAIN_MIRROR, network) and read here;
larger sets than an entry allows, and other formats, are streamed by `datasets`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mtrain import console
from mtrain.config.entries import HubEntry
from mtrain.data.downloads import Lock, cache_dir, find_in_mirror
from mtrain.data.files import StoredFile
from mtrain.data.lines import Unreadable
from mtrain.data.tables import ROWS_PER_BATCH, Texts, find_columns, read_parquet, texts_of
from mtrain.errors import DataError, DownloadError, MtrainError
from mtrain.storage import sha256_of

GIB = 1 << 30
_PATH_IN_HUB = re.compile(r"^hf://datasets/[^@]+@[^/]+/")  # what comes before it


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set at one revision, as the lock has it."""

    revision: str
    format: str  # the name of the reader in `datasets`: parquet, json, csv
    files: dict[str, int]  # path in the repository -> size in bytes

    def location(self, entry: HubEntry, path: str) -> str:
        """What the lock calls a file."""
        return f"hub:{entry.hub}@{self.revision}/{path}"

    def locations(self, entry: HubEntry) -> list[str]:
        """What the lock calls the files."""
        return [self.location(entry, path) for path in self.files]


def hub_label(entry: HubEntry) -> str:
    """What the lock calls the split."""
    revision = f"@{entry.revision}" if entry.revision else ""
    return " ".join(filter(None, [f"hub:{entry.hub}{revision}", entry.config, entry.split]))


def known_split(entry: HubEntry, lock: Lock) -> HubSplit | None:
    """The split as the lock has it."""
    facts = lock.sources.get(hub_label(entry), {})
    if not {"revision", "format", "files"} <= facts.keys():
        return None
    return HubSplit(facts["revision"], facts["format"], facts["files"])


def resolve(entry: HubEntry, where: str, lock: Lock) -> HubSplit:
    """The split as the lock has it, or as the hub has it now, which is then locked."""
    if (known := known_split(entry, lock)) is not None:
        return known
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _hub_errors(entry, where):
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
        found = {file.path: file for file in listed if isinstance(file, RepoFile)}
    format_name = type(builder).__module__.rsplit(".", 1)[-1]
    split = HubSplit(str(info.sha), format_name, {path: found[path].size for path in paths})
    for path in paths:
        if (large := found[path].lfs) is not None:
            lock.record(split.location(entry, path), large.sha256, large.size)
    licence = info.card_data.get("license") if info.card_data else None
    lock.describe(
        hub_label(entry),
        revision=split.revision,
        format=split.format,
        files=split.files,
        licence=", ".join(licence) if isinstance(licence, list) else licence,
    )
    return split


def read_hub(
    entry: HubEntry, where: str, lock: Lock, unreadable: Unreadable | None
) -> Iterator[tuple[Texts, Texts]]:
    """Sources and targets of a split, many at a time."""
    split = resolve(entry, where, lock)
    found = {path: _find_local(entry, split, path, lock) for path in split.files}
    n_missing_bytes = sum(split.files[path] for path, file in found.items() if file is None)
    if split.format != "parquet" or n_missing_bytes > entry.stream_above_gib * GIB:
        yield from _stream(entry, split, where, unreadable)
        return
    for path, file in found.items():
        file = file or _fetch(entry, split, path, where, lock)
        yield from read_parquet(file, entry, where, unreadable)


def _find_local(entry: HubEntry, split: HubSplit, path: str, lock: Lock) -> StoredFile | None:
    """A file of a split that was fetched before, or that the mirror has."""
    location = split.location(entry, path)
    expected = lock.expect(location)
    name = PurePosixPath(path).name
    if expected and (mirrored := find_in_mirror(name, expected)):
        return StoredFile(location, mirrored, expected)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(
        entry.hub, path, _hub_cache(), revision=split.revision, repo_type="dataset"
    )
    if isinstance(cached, str) and (actual := sha256_of(Path(cached))) == (expected or actual):
        lock.record(location, actual, Path(cached).stat().st_size)
        return StoredFile(location, Path(cached), actual)
    return None


def _fetch(entry: HubEntry, split: HubSplit, path: str, where: str, lock: Lock) -> StoredFile:
    from huggingface_hub import hf_hub_download

    console.message(f"downloading {path} of {entry.hub}")
    location = split.location(entry, path)
    with _hub_errors(entry, where):
        downloaded = Path(
            hf_hub_download(
                entry.hub,
                path,
                repo_type="dataset",
                revision=split.revision,
                cache_dir=_hub_cache(),
                endpoint=_endpoint(),
            )
        )
    expected, actual = lock.expect(location), sha256_of(downloaded)
    if expected not in (None, actual):
        raise DownloadError(
            f"{where}: {path} of {entry.hub} has the wrong sha256: {lock.path} recorded "
            f"{expected}, now it is {actual}",
            f"delete {downloaded} and repeat; to accept the new file, delete its entry in "
            f"{lock.path}",
        )
    lock.record(location, actual, downloaded.stat().st_size)
    return StoredFile(location, downloaded, actual)


def _stream(
    entry: HubEntry, split: HubSplit, where: str, unreadable: Unreadable | None
) -> Iterator[tuple[Texts, Texts]]:
    """Rows as they come over the network."""
    import datasets

    place = hub_label(entry)
    n_rows = 0
    with _hub_errors(entry, where):
        stream = datasets.load_dataset(
            entry.hub,
            entry.config,
            split=entry.split,
            revision=split.revision,
            streaming=True,
            cache_dir=str(cache_dir() / "datasets"),
        )
        for table in stream.with_format("arrow").iter(batch_size=ROWS_PER_BATCH):
            columns = find_columns(table.schema, entry, place, where)
            yield texts_of(table, columns, place, n_rows, unreadable)
            n_rows += table.num_rows


def _hub_cache() -> str:
    return str(cache_dir() / "hub")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


@contextmanager
def _hub_errors(entry: HubEntry, where: str) -> Iterator[None]:
    """What the hub's libraries raise, in our words: they have no common base class."""
    from datasets import disable_progress_bars
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars as disable_progress_bars_of_files

    what = f"{where}: the hub data set {entry.hub}"
    if not console.is_terminal():
        disable_progress_bars()
        disable_progress_bars_of_files()
    try:
        yield
    except MtrainError:
        raise
    except GatedRepoError as error:
        raise DownloadError(
            f"{what} needs a login: its owner lets in only who accepts its terms",
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
        if configs := re.search(
            r"(?i)config.*?(?:available|configs)[^\[]*\[(.*?)\]", str(error), re.S
        ):
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
