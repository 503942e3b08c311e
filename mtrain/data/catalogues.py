"""Corpora that are known by a name: of OPUS, and the test sets of sacreBLEU.

Both come as archives by URL, which the lock, the cache and MTRAIN_MIRROR treat as any other.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import URLError

from mtrain.config.entries import OpusEntry, SacrebleuEntry
from mtrain.data.downloads import Lock, cache_dir, fetch
from mtrain.data.files import StoredFile, member_names
from mtrain.errors import DataError, DownloadError
from mtrain.storage import sha256_of, storage_errors

OPUS_URL = "https://object.pouta.csc.fi/OPUS-{corpus}/{version}/moses/{languages}.txt.zip"
_LICENCE_CHARACTERS = 300

FilePair = tuple[StoredFile, StoredFile]  # source, target


# -- OPUS ------------------------------------------------------------------------------------


def opus_url(entry: OpusEntry) -> str:
    """The archive of a language pair; OPUS names it by the codes in alphabetical order."""
    assert entry.languages is not None
    corpus, version = entry.opus.split("/")
    languages = "-".join(sorted(entry.languages))
    return OPUS_URL.format(corpus=corpus, version=version, languages=languages)


def fetch_opus(entry: OpusEntry, where: str, lock: Lock) -> StoredFile:
    """The archive."""
    url = opus_url(entry)
    try:
        path = fetch(url, entry.sha256.get("opus"), lock)
    except DownloadError as error:
        raise DownloadError(
            f"{where}: {error.message}",
            f"{error.fix}; https://opus.nlpl.eu lists corpora, versions and languages",
        ) from error
    sha256 = lock.expect(url)
    assert sha256 is not None  # fetch recorded it
    return StoredFile(url, path, sha256)


def locate_opus(entry: OpusEntry, where: str, lock: Lock) -> FilePair:
    """The two sides inside the archive; its licence goes into the lock."""
    archive = fetch_opus(entry, where, lock)
    names = member_names(archive)
    assert entry.languages is not None
    source, target = (
        archive.inside(_side(names, language, archive.location, where))
        for language in entry.languages
    )
    lock.describe(opus_label(entry), url=archive.location, licence=_licence(archive, names))
    return source, target


def opus_label(entry: OpusEntry) -> str:
    """What the lock calls the corpus."""
    assert entry.languages is not None
    return f"opus:{entry.opus} {'-'.join(entry.languages)}"


def _side(names: list[str], language: str, url: str, where: str) -> str:
    found = [name for name in names if name.endswith(f".{language}")]
    if len(found) != 1:
        raise DataError(
            f"{where}: {url} has {len(found)} files in `{language}` (files: {', '.join(names)})",
            f"correct `languages` of {where}, or name the files: `{url}!FILE`",
        )
    return found[0]


def _licence(archive: StoredFile, names: list[str]) -> str | None:
    """The beginning of the archive's LICENSE, as one line."""
    for name in names:
        if Path(name).stem.upper() in ("LICENSE", "LICENCE"):
            with archive.inside(name).open() as stream:
                text = stream.read(4 * _LICENCE_CHARACTERS).decode(errors="replace")
            return " ".join(text.split())[:_LICENCE_CHARACTERS] or None
    return None


# -- sacreBLEU -------------------------------------------------------------------------------


def sacrebleu_label(entry: SacrebleuEntry) -> str:
    """What the lock calls the test set."""
    assert entry.languages is not None
    return f"sacrebleu:{entry.sacrebleu} {'-'.join(entry.languages)}"


def sacrebleu_urls(entry: SacrebleuEntry, where: str) -> list[str]:
    """What sacreBLEU downloads for a test set."""
    return list(_test_set(entry, where).data)


def fetch_sacrebleu(entry: SacrebleuEntry, where: str, lock: Lock) -> list[Path]:
    """What sacreBLEU downloads for a test set, from its own cache or through ours."""
    test_set = _test_set(entry, where)
    checksums = test_set.md5 or [None] * len(test_set.data)
    return [
        _archive(test_set, url, md5, where, lock)
        for url, md5 in zip(test_set.data, checksums, strict=True)
    ]


def locate_sacrebleu(entry: SacrebleuEntry, where: str, lock: Lock) -> FilePair:
    """Source and first reference, as sacreBLEU makes them from what it downloads."""
    source, first, *_ = _located(entry, where, lock)
    return source, first


def other_references(entry: SacrebleuEntry, where: str, lock: Lock) -> list[StoredFile]:
    """The references behind the first one, of a test set that has several."""
    return _located(entry, where, lock)[2:]


def _located(entry: SacrebleuEntry, where: str, lock: Lock) -> list[StoredFile]:
    """Source and references."""
    test_set = _test_set(entry, where)
    archives = fetch_sacrebleu(entry, where, lock)
    assert entry.languages is not None
    pair = "-".join(entry.languages)
    digest = hashlib.sha256("".join(sha256_of(path) for path in archives).encode()).hexdigest()
    name = f"{entry.sacrebleu.replace('/', '_')}-{pair}-{digest[:16]}"
    directory = cache_dir() / "sacrebleu" / name
    if not directory.is_dir():
        _unpack(test_set, archives, pair, directory)
    return [
        StoredFile(f"{sacrebleu_label(entry)} {side}", path, sha256_of(path))
        for path, side in zip(
            _sides(test_set, pair, directory),
            ("source", "reference", *(f"reference {n}" for n in range(2, 100))),
            strict=False,
        )
    ]


def _test_set(entry: SacrebleuEntry, where: str) -> Any:
    """sacreBLEU's own description of a test set that has the languages."""
    from sacrebleu.dataset import DATASETS

    test_set = DATASETS.get(entry.sacrebleu)
    if test_set is None:
        near = get_close_matches(entry.sacrebleu, DATASETS, 3, cutoff=0.5)
        raise DataError(
            f"{where}: sacreBLEU has no test set `{entry.sacrebleu}`",
            f"did you mean {' or '.join(near)}?" if near else "`sacrebleu --list` shows all",
        )
    assert entry.languages is not None
    pair = "-".join(entry.languages)
    if pair not in test_set.langpairs:
        raise DataError(
            f"{where}: sacreBLEU's `{entry.sacrebleu}` has no {pair} "
            f"(found: {', '.join(test_set.langpairs)})",
            f"choose another test set, or give its codes as `languages` of {where}",
        )
    return test_set


def _archive(test_set: Any, url: str, md5: str | None, where: str, lock: Lock) -> Path:
    """What sacreBLEU would download, from its own cache or through ours."""
    path = Path(test_set._rawdir, test_set._get_tarball_filename(url))
    if path.is_file() and md5 in (None, _md5_of(path)):
        actual = sha256_of(path)
        if lock.expect(url) in (None, actual):
            lock.record(url, actual, path.stat().st_size)
            return path
    path = fetch(url, None, lock)
    if md5 not in (None, _md5_of(path)):
        raise DownloadError(
            f"{where}: {url} has the wrong md5: sacreBLEU expects {md5}, got {_md5_of(path)}",
            f"delete {path} and repeat; the file may have changed since this sacreBLEU was made",
        )
    return path


def _unpack(test_set: Any, archives: list[Path], pair: str, directory: Path) -> None:
    """Lay the archives out as sacreBLEU does, and let it make its text; whole or not at all."""
    with storage_errors(directory), _archive_errors(archives):
        directory.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=directory.parent))
        try:
            raw = made / "raw"
            raw.mkdir()
            for url, archive in zip(test_set.data, archives, strict=True):
                named = raw / test_set._get_tarball_filename(url)
                shutil.copyfile(archive, named)
                if tarfile.is_tarfile(named):
                    with tarfile.open(named) as tar:
                        tar.extractall(raw, filter="data")
                elif zipfile.is_zipfile(named):
                    with zipfile.ZipFile(named) as zipped:
                        zipped.extractall(raw)
            _sides(test_set, pair, made)
            if not directory.is_dir():  # no other process was quicker
                made.rename(directory)
        finally:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _archive_errors(archives: list[Path]) -> Iterator[None]:
    """What reading a damaged or hostile archive may raise, in our words."""
    try:
        yield
    except (
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RecursionError),
        *(KeyError, ValueError, gzip.BadGzipFile, URLError, NotImplementedError),
    ) as error:
        names = ", ".join(map(str, archives))
        raise DataError(
            f"what sacreBLEU needs of {names} cannot be read: {error}",
            "delete the file, so that it is downloaded again",
        ) from error


def _sides(test_set: Any, pair: str, directory: Path) -> list[Path]:
    """The files of source and references, made where they are not there yet."""
    placed = copy.copy(test_set)  # with another directory than ~/.sacrebleu
    placed._outdir, placed._rawdir = str(directory), str(directory / "raw")
    return list(map(Path, (placed.get_source_file(pair), *placed.get_reference_files(pair))))


def _md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
