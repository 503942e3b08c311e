"""Files are read where they are: compressed, or inside an archive that nothing leaves."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from mtrain.config import FilesEntry, TsvEntry
from mtrain.data.downloads import Lock
from mtrain.data.sources import Pair, read_entry
from mtrain.data.stored_files import StoredFile, split_member
from mtrain.data.text_files import read_lines
from mtrain.errors import DataError

TEXT = "".join(f"{word} ü\n" for word in random.Random(1).choices(["a", "bb", "ccc"], k=999))


def zstd(data: bytes) -> bytes:
    compressed: bytes = pyarrow.Codec("zstd").compress(data, asbytes=True)
    return compressed


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstd,
}
each_compression = pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock.open(tmp_path / "my.yaml")


def read(location: str, lock: Lock) -> str:
    file = StoredFile.locate(location, None, "data.train.0", lock)
    return "".join(f"{line}\n" for line in read_lines(file))


def make_tar(path: str, members: dict[str, bytes], mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def make_zip(path: str, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


class TestCompression:
    """Known by the first bytes."""

    @each_compression
    def test_text_comes_out_whole_whatever_the_name(
        self, compress: Callable[[bytes], bytes], lock: Lock
    ) -> None:
        half = len(TEXT) // 2
        Path("x.txt").write_bytes(compress(TEXT[:half].encode()) + compress(TEXT[half:].encode()))
        assert read("x.txt", lock) == TEXT

    @each_compression
    def test_what_is_cut_short_is_said_to_be(
        self, compress: Callable[[bytes], bytes], lock: Lock
    ) -> None:
        whole = compress(random.Random(1).randbytes(5000).hex().encode())
        for n_bytes in (10, len(whole) // 2, len(whole) - 5):
            Path("x").write_bytes(whole[:n_bytes])
            with pytest.raises(DataError, match="x is cut short: its compressed data has no end"):
                read("x", lock)

    @pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
    def test_damage_is_found(self, compress: Callable[[bytes], bytes], lock: Lock) -> None:
        whole = bytearray(compress(random.Random(1).randbytes(5000).hex().encode()))
        whole[len(whole) // 2] ^= 0xFF
        Path("x").write_bytes(whole)
        with pytest.raises(DataError, match=r"^error: x cannot be read"):
            read("x", lock)


class TestArchives:
    """`archive!member`"""

    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    def test_members_of_a_tar(self, mode: str, lock: Lock) -> None:
        members = {"./deep/a.en": b"one\ntwo\n", "deep/a.de": gzip.compress(b"eins\nzwei\n")}
        make_tar("c.tar", members, mode)
        entry = FilesEntry(source="c.tar!deep/a.en", target="c.tar!./deep/a.de")
        pairs = list(read_entry(entry, "data.train.0", lock))
        assert pairs == [Pair("one", "eins"), Pair("two", "zwei")]
        assert lock.files["c.tar!deep/a.en"]["lines"] == 2

    def test_members_of_a_zstd_tar(self, lock: Lock) -> None:
        make_tar("c.tar", {"a.en": TEXT.encode()}, "w")
        Path("c.tar.zst").write_bytes(zstd(Path("c.tar").read_bytes()))
        assert read("c.tar.zst!a.en", lock) == TEXT

    def test_members_of_a_zip(self, lock: Lock) -> None:
        make_zip(
            "c.zip", {"x/": b"", "x/a.tsv": b"\xef\xbb\xbfa\tb\r\n", "b.xz": lzma.compress(b"c")}
        )
        entry = TsvEntry(tsv="c.zip!x/a.tsv")
        assert list(read_entry(entry, "data.train.0", lock)) == [Pair("a", "b")]
        assert read("c.zip!b.xz", lock) == "c\n"

    def test_a_file_whose_own_name_has_the_sign(self, lock: Lock) -> None:
        Path("wow!.en").write_text("a\n")
        assert read("wow!.en", lock) == "a\n"
        assert split_member("https://x.org/c.tgz!a/b") == ("https://x.org/c.tgz", "a/b")

    @pytest.mark.parametrize("make", [make_tar, make_zip])
    def test_an_absent_member_is_named_with_those_that_are_there(
        self, make: Callable[[str, dict[str, bytes]], None], lock: Lock
    ) -> None:
        make("c", {"train/corpus.en": b"", "train/corpus.de": b"", "README": b""})
        with pytest.raises(DataError, match=r"c!corpus\.en: the archive has no file") as error:
            read("c!corpus.en", lock)
        assert "did you mean train/corpus.en" in str(error.value)
        with pytest.raises(DataError, match="no file xyz") as error:
            read("c!xyz", lock)
        assert "it has README, train/corpus.de, train/corpus.en" in str(error.value)

    @pytest.mark.parametrize("member", ["../a", "/etc/passwd", "a/../../b", "", ".", "./.."])
    def test_a_path_may_not_climb_out(self, member: str, lock: Lock) -> None:
        make_tar("c.tgz", {"../a": b"x\n", "/etc/passwd": b"x\n"})
        with pytest.raises(DataError, match=r"data.train.0: c\.tgz!.* leads out of the archive"):
            read(f"c.tgz!{member}", lock)

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
    def test_a_link_is_not_followed(self, kind: bytes, lock: Lock, here: Path) -> None:
        (here / "secret").write_text("secret\n")
        with tarfile.open("c.tgz", "w:gz") as archive:
            info = tarfile.TarInfo("a.en")
            info.type, info.linkname = kind, "../secret"
            archive.addfile(info)
        with pytest.raises(DataError, match=r"c\.tgz!a\.en is no file but a link to \.\./secret"):
            read("c.tgz!a.en", lock)

    def test_nothing_is_written(self, lock: Lock, here: Path) -> None:
        make_tar("c.tgz", {"../up": b"x\n", "a.en": b"y\n"})
        before = sorted(here.parent.rglob("*"))
        assert read("c.tgz!a.en", lock) == "y\n"
        assert sorted(here.parent.rglob("*")) == before

    def test_no_archive_and_a_cut_one(self, lock: Lock) -> None:
        Path("c.tgz").write_bytes(b"just text\n" * 999)
        with pytest.raises(DataError, match=r"c\.tgz!a\.en cannot be read"):
            read("c.tgz!a.en", lock)
        make_tar("d.tgz", {"a.en": random.Random(1).randbytes(9999).hex().encode()})
        Path("d.tgz").write_bytes(Path("d.tgz").read_bytes()[:5000])
        with pytest.raises(DataError, match=r"d\.tgz!a\.en is cut short"):
            read("d.tgz!a.en", lock)
        make_zip("e.zip", {"a.en": b"x\n" * 999})
        Path("e.zip").write_bytes(Path("e.zip").read_bytes()[:-30])
        with pytest.raises(DataError, match=r"e\.zip!a\.en cannot be read: File is not a zip"):
            read("e.zip!a.en", lock)
