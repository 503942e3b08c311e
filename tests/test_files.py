"""Files are read where they are: compressed, or inside an archive that nothing leaves."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import re
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from test_sources import pairs_of, tolerant
from test_sources import read as read_entry

from mtrain.config.entries import FilesEntry, TsvEntry
from mtrain.data import lines
from mtrain.data.files import split_member
from mtrain.data.lines import read_lines
from mtrain.data.lock import Lock
from mtrain.data.reading import Pair, Reading
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
    file = Reading("data.train.0", lock).locate(location)
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
        assert read_entry(entry, lock) == [Pair("one", "eins"), Pair("two", "zwei")]
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
        assert read_entry(entry, lock) == [Pair("a", "b")]
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
        with pytest.raises(DataError, match=r"c\.tgz!a\.en is a link to \.\./secret"):
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


class TestSeveralStreams:
    """Compressed files that were put one behind the other, as `cat a.bz2 b.bz2` does."""

    COMPRESS = (gzip.compress, bz2.compress, lzma.compress)

    @pytest.mark.parametrize("compress", COMPRESS)
    @pytest.mark.parametrize("padding", [b"", b"\0" * 512])
    def test_all_of_them_are_read(
        self, compress: Callable[[bytes], bytes], padding: bytes, lock: Lock
    ) -> None:
        parts = [compress(text) + padding for text in (b"a\n", b"", b"b\n")]
        Path("x").write_bytes(b"".join(parts))
        assert read("x", lock) == "a\nb\n"

    @pytest.mark.parametrize("compress", COMPRESS)
    @pytest.mark.parametrize("offset", [0, 1, 3])
    def test_damage_at_a_seam_is_an_error(
        self, compress: Callable[[bytes], bytes], offset: int, lock: Lock
    ) -> None:
        first, second = compress(b"a\n" * 50), bytearray(compress(b"b\n" * 50))
        second[offset] ^= 0x55
        Path("x").write_bytes(first + bytes(second))
        with pytest.raises(DataError, match=r"^error: x (cannot be read|is cut short)"):
            read("x", lock)

    @pytest.mark.parametrize("compress", COMPRESS)
    def test_what_follows_and_is_no_stream_is_an_error(
        self, compress: Callable[[bytes], bytes], lock: Lock
    ) -> None:
        Path("x").write_bytes(compress(b"a\n") + b"and more")
        with pytest.raises(DataError, match=r"^error: x (cannot be read|is cut short)"):
            read("x", lock)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04" + b"\0" * 60, "a zip archive or an Office document"),
        ("Hello\n".encode("utf-16"), "UTF-16"),
        ("Hello, you there\n".encode("utf-16-le"), "UTF-16LE"),
        ("Hello, you there\n".encode("utf-16-be"), "UTF-16BE"),
        ("你好世界\n今天天气很好\n".encode("utf-16-be"), "UTF-16BE"),
        ("Hello, you there\n".encode("utf-32-le"), "UTF-32LE"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4">', "TMX"),
        (b'\xef\xbb\xbf<xliff version="1.2">\n', "XLIFF"),
        (b"one\rtwo\rthree\r", "a carriage return alone"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"PAR1\x15\x04", "a parquet file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Office document"),
        (b"{\\rtf1\\ansi", "an RTF document"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
def test_what_is_no_text_is_named(
    content: bytes, what: str, compress: Callable[[bytes], bytes], lock: Lock
) -> None:
    Path("x").write_bytes(compress(content))
    with pytest.raises(DataError, match=re.escape(what)) as found:
        read("x", lock)
    assert "\n  fix: " in str(found.value)


def test_the_member_that_is_to_be_named_is_of_this_archive(lock: Lock) -> None:
    make_zip("words.xlsx", {"xl/strings.xml": b"a\n"})
    with pytest.raises(DataError, match=r"\(`words\.xlsx!member`\)"):
        read("words.xlsx", lock)


def test_text_about_xml_is_text(lock: Lock) -> None:
    Path("x").write_bytes(b"<html>Hello</html>\nThe <tmx> element\n")
    assert read("x", lock) == "<html>Hello</html>\nThe <tmx> element\n"


def test_an_archive_without_a_member_is_named(lock: Lock) -> None:
    make_tar("c.tgz", {"a.en": b"a\n" * 300}, "w:gz")
    with pytest.raises(DataError, match=r"c\.tgz is a tar archive, not text") as found:
        read("c.tgz", lock)
    assert "c.tgz!member" in str(found.value)


@pytest.mark.parametrize("method", [9, 6, 19, 93, 98])
def test_a_method_that_zipfile_lacks(method: int, lock: Lock) -> None:
    make_zip("c.zip", {"a.en": b"text\n"})
    content = bytearray(Path("c.zip").read_bytes())
    content[8] = method
    content[content.index(b"PK\x01\x02") + 10] = method
    Path("c.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"c\.zip!a\.en cannot be read: "):
        read("c.zip!a.en", lock)


class TestLongLines:
    """A line that never ends is not held in memory, and is no sentence."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
        monkeypatch.setattr(lines, "BLOCK_BYTES", 512)

    @pytest.mark.parametrize("n_bytes", [1001, 5000, 100_000])
    def test_a_pair_of_it_is_unreadable(self, n_bytes: int, lock: Lock) -> None:
        Path("a").write_bytes(b"one\n" + b"x" * n_bytes + b"\nthree\n")
        Path("b").write_text("eins\nzwei\ndrei\n")
        reading = tolerant(lock, 1)
        entry = FilesEntry(source="a", target="b")
        assert pairs_of(entry, reading) == [Pair("one", "eins"), Pair("three", "drei")]
        assert reading.first_problem is not None
        assert reading.first_problem.message == "a:2: a line of more than 1,000 bytes"
        with pytest.raises(DataError, match="a:2: a line of more than 1,000 bytes"):
            read_entry(entry, lock)

    def test_the_longest_that_is_read(self, lock: Lock) -> None:
        Path("a").write_bytes(b"x" * 1000 + b"\n" + b"y" * 1000)
        assert read("a", lock) == "x" * 1000 + "\n" + "y" * 1000 + "\n"

    def test_little_memory_is_used(self, lock: Lock) -> None:
        Path("a.gz").write_bytes(gzip.compress(b"x" * 50_000_000))
        tracemalloc.start()
        with pytest.raises(DataError, match="a line of more than"):
            read("a.gz", lock)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 5_000_000

    def test_lines_of_a_stream(self) -> None:
        stream = io.BytesIO(b"a\n" + b"x" * 5000 + b"\nb\n" + b"y" * 3000)
        assert list(lines.limited_lines(stream)) == [b"a\n", lines.OVERLONG, b"b\n", lines.OVERLONG]
