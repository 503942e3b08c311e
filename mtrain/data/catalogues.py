"""Corpora by name: those of OPUS, and the test sets of sacreBLEU.

Both are archives at a URL, for which lock, cache and MTRAIN_MIRROR work as for any other file.
sacreBLEU extracts the text of its test sets, but does not download them: its downloader has neither
a mirror nor limits, and records no sha256.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import URLError

from mtrain.config.entries import OpusEntry, SacrebleuEntry
from mtrain.data.downloads import cache_dir, fetch
from mtrain.data.files import StoredFile
from mtrain.data.lines import read_aligned
from mtrain.data.reading import PairSource, Texts
from mtrain.errors import DataError, DownloadError
from mtrain.storage import lock_file, new_directory, sha256_of

OPUS_URL = "https://object.pouta.csc.fi/OPUS-{corpus}/{version}/moses/{languages}.txt.zip"
_LICENCE_CHARACTERS = 300

# Exceptions of sacreBLEU for a damaged or hostile archive.
_ARCHIVE_ERRORS = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RecursionError),
    *(KeyError, ValueError, gzip.BadGzipFile, URLError, NotImplementedError),
)


class OpusSource(PairSource):
    """`{opus}`: an archive with a text file for each language."""

    entry: OpusEntry

    @property
    def label(self) -> str:
        return f"opus:{self.entry.opus} {_pair(self.entry)}"

    @property
    def url(self) -> str:
        """The archive; OPUS sorts the two language codes in its name."""
        assert self.entry.languages is not None
        corpus, version = self.entry.opus.split("/")
        languages = "-".join(sorted(self.entry.languages))
        return OPUS_URL.format(corpus=corpus, version=version, languages=languages)

    def named_files(self) -> dict[str, str | None]:
        return {self.url: self.entry.sha256.get("opus")}

    def download(self, url: str) -> Path:
        try:
            return fetch(url, self.entry.sha256.get("opus"), self.reading.lock)
        except DownloadError as error:
            raise DownloadError(
                f"{self.reading.where}: {error.message}",
                f"{error.fix}; https://opus.nlpl.eu lists corpora, versions and languages",
            ) from error

    def texts(self) -> Iterator[tuple[Texts, Texts]]:
        archive = StoredFile(self.url, self.download(self.url))
        names = archive.member_names()
        assert self.entry.languages is not None
        source, target = (self._side(names, code) for code in self.entry.languages)
        licence = _licence(archive, names)
        self.reading.lock.describe(self.label, url=self.url, licence=licence)
        yield from read_aligned(source, target, self.reading)

    def _side(self, names: list[str], language: str) -> StoredFile:
        found = [name for name in names if name.endswith(f".{language}")]
        if len(found) != 1:
            raise DataError(
                f"{self.reading.where}: {self.url} has {len(found)} files in `{language}` "
                f"(files: {', '.join(names)})",
                f"correct `languages` of {self.reading.where}, or name the files: "
                f"`{self.url}!FILE`",
            )
        return self.reading.locate(f"{self.url}!{found[0]}", self.entry.sha256.get("opus"))


def _licence(archive: StoredFile, names: list[str]) -> str | None:
    """The beginning of the archive's LICENSE on one line."""
    for name in names:
        if Path(name).stem.upper() in ("LICENSE", "LICENCE"):
            with archive.inside(name).open() as stream:
                text = stream.read(4 * _LICENCE_CHARACTERS).decode(errors="replace")
            return " ".join(text.split())[:_LICENCE_CHARACTERS] or None
    return None


class SacrebleuSource(PairSource):
    """`{sacrebleu}`: a test set as sacreBLEU itself reads it, with its first reference."""

    entry: SacrebleuEntry

    @property
    def label(self) -> str:
        return f"sacrebleu:{self.entry.sacrebleu} {_pair(self.entry)}"

    def named_files(self) -> dict[str, str | None]:
        return dict.fromkeys(self._test_set().data)

    def download(self, url: str) -> Path:
        """Return the archives of the test set: from sacreBLEU's own cache, or through ours."""
        test_set, lock = self._test_set(), self.reading.lock
        md5 = dict(zip(test_set.data, test_set.md5 or (), strict=False)).get(url)
        path = Path(test_set._rawdir, test_set._get_tarball_filename(url))
        if path.is_file() and md5 in (None, _md5_of(path)):
            sha256 = sha256_of(path)
            if lock.expect(url) in (None, sha256):
                lock.record(url, sha256, path.stat().st_size)
                return path
        path = fetch(url, None, lock)
        if md5 not in (None, actual := _md5_of(path)):
            raise DownloadError(
                f"{self.reading.where}: {url} has the wrong md5: sacreBLEU expects {md5}, got "
                f"{actual}",
                f"delete {path} and repeat; the file may have changed since this sacreBLEU was "
                "released",
            )
        return path

    def texts(self) -> Iterator[tuple[Texts, Texts]]:
        source, reference, *_ = self.sides()
        for file in (source, reference):
            size_bytes = file.path.stat().st_size
            self.reading.lock.record(file.location, sha256_of(file.path), size_bytes)
        yield from read_aligned(source, reference, self.reading)

    def sides(self) -> list[StoredFile]:
        """The source and all references, as text files."""
        test_set = self._test_set()
        archives = [self.download(url) for url in test_set.data]
        digest = hashlib.sha256("".join(map(sha256_of, archives)).encode()).hexdigest()
        name = f"{self.entry.sacrebleu.replace('/', '_')}-{_pair(self.entry)}-{digest[:16]}"
        directory = cache_dir() / "sacrebleu" / name
        waiting = f"another process is unpacking {self.label}: waiting for it"
        if not directory.is_dir():
            with lock_file(directory.with_name(f"{name}.lock"), waiting):
                if not directory.is_dir():
                    self._unpack(test_set, archives, directory)
        source, reference, *others = self._text_files(test_set, directory)
        sides = {"source": source, "reference": reference}
        sides |= {f"reference {number}": path for number, path in enumerate(others, start=2)}
        return [StoredFile(f"{self.label} {side}", path) for side, path in sides.items()]

    def _test_set(self) -> Any:
        """sacreBLEU's description of the test set."""
        from sacrebleu.dataset import DATASETS

        name, where = self.entry.sacrebleu, self.reading.where
        test_set = DATASETS.get(name)
        if test_set is None:
            near = get_close_matches(name, DATASETS, 3, cutoff=0.5)
            raise DataError(
                f"{where}: sacreBLEU has no test set `{name}`",
                f"did you mean {' or '.join(near)}?" if near else "`sacrebleu --list` shows all",
            )
        pair = _pair(self.entry)
        if pair not in test_set.langpairs:
            raise DataError(
                f"{where}: sacreBLEU's `{name}` has no {pair} "
                f"(found: {', '.join(test_set.langpairs)})",
                f"choose another test set, or give its codes as `languages` of {where}",
            )
        return test_set

    def _unpack(self, test_set: Any, archives: list[Path], directory: Path) -> None:
        """Unpack the archives as sacreBLEU does, and let it extract the text; all or nothing."""
        with new_directory(directory) as made:
            try:
                (made / "raw").mkdir()
                for url, archive in zip(test_set.data, archives, strict=True):
                    _extract(archive, made / "raw", test_set._get_tarball_filename(url))
                self._text_files(test_set, made)
            except _ARCHIVE_ERRORS as error:
                raise DataError(
                    f"sacreBLEU cannot use  {', '.join(map(str, archives))} cannot be read: "
                    f"{error}",
                    "delete the file, so that it is downloaded again",
                ) from error

    def _text_files(self, test_set: Any, directory: Path) -> list[Path]:
        """The files of source and references, extracted unless they exist."""
        placed = copy.copy(test_set)  # in this directory instead of ~/.sacrebleu
        placed._outdir, placed._rawdir = str(directory), str(directory / "raw")
        pair = _pair(self.entry)
        return list(map(Path, (placed.get_source_file(pair), *placed.get_reference_files(pair))))


def _extract(archive: Path, directory: Path, name: str) -> None:
    """Copy an archive into a directory under this name, and extract it there."""
    copied = directory / name
    copied.write_bytes(archive.read_bytes())
    if tarfile.is_tarfile(copied):
        with tarfile.open(copied) as tar:
            tar.extractall(directory, filter="data")
    elif zipfile.is_zipfile(copied):
        with zipfile.ZipFile(copied) as zipped:
            zipped.extractall(directory)


def _pair(entry: OpusEntry | SacrebleuEntry) -> str:
    """The languages, such as `en-de`."""
    assert entry.languages is not None
    return "-".join(entry.languages)


def _md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
