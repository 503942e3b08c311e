"""Pairs come out as they are stored; whatever would misalign them is an error with its place."""

import gzip
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtrain.config.entries import Entry, FilesEntry, JsonlEntry, MonoEntry, TsvEntry
from mtrain.data import lines
from mtrain.data.lock import Lock
from mtrain.data.reading import Pair, Reading
from mtrain.data.sources import read_mono, read_pairs
from mtrain.errors import DataError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lock(tmp_path):
    return Lock.open(tmp_path / "configs" / "my.yaml")


FILES = FilesEntry(source="x.en", target="x.de")


def write(**contents: str | bytes) -> None:
    """write(en="a\\n") -> the file x.en"""
    for suffix, content in contents.items():
        Path(f"x.{suffix}").write_bytes(content if isinstance(content, bytes) else content.encode())


def pairs_of(entry: Entry, reading: Reading) -> list[Pair]:
    return [
        Pair(*pair)
        for chunk in read_pairs(entry, reading)
        for pair in zip(chunk.src, chunk.tgt, strict=True)
    ]


def read(entry: Entry, lock: Lock) -> list[Pair]:
    return pairs_of(entry, Reading("data.train.0", lock))


def tolerant(lock: Lock, max_unreadable: float) -> Reading:
    return Reading("data.train.0", lock, max_unreadable=max_unreadable)


class TestFiles:
    """Two line-aligned files."""

    def test_line_n_goes_with_line_n(self, lock):
        write(en="A dog.\n\nTwo cats.\n", de="Ein Hund.\n\nZwei Katzen.")
        assert read(FILES, lock) == [
            Pair("A dog.", "Ein Hund."),
            Pair("", ""),
            Pair("Two cats.", "Zwei Katzen."),
        ]

    def test_only_line_feeds_end_lines(self, lock):
        odd = "a\u2028b\u2029c\u0085d\x0ce\x0bf\x1cg\rh"
        write(en=f"{odd}\nnext\n", de="1\n2\n")
        assert read(FILES, lock) == [Pair(odd, "1"), Pair("next", "2")]

    def test_windows_line_ends_and_byte_order_mark(self, lock):
        write(en=b"\xef\xbb\xbfa\r\nb\r\r\n\xef\xbb\xbfc", de="1\n2\n3\n")
        assert [pair.src for pair in read(FILES, lock)] == ["a", "b\r", "\ufeffc"]

    def test_gzip_is_known_by_its_bytes(self, lock):
        members = gzip.compress(b"a\n") + gzip.compress("ü\n".encode())
        write(en=members, de="1\n2\n")
        assert read(FILES, lock) == [Pair("a", "1"), Pair("ü", "2")]
        Path("x.de").rename("plain.gz")
        assert len(read(FilesEntry(source="x.en", target="plain.gz"), lock)) == 2

    @pytest.mark.parametrize(("n_source", "n_target"), [(3, 1200), (1200, 3), (0, 1)])
    def test_unequal_counts_name_both(self, lock, n_source, n_target):
        write(en="a\n" * n_source, de="b\n" * n_target)
        with pytest.raises(DataError) as error:
            read(FILES, lock)
        expected = f"data.train.0: x.en has {n_source:,} lines but x.de has {n_target:,}"
        assert error.value.message == expected
        assert error.value.exit_code == 3

    @pytest.mark.parametrize("n_before", [0, 3, 700, 1900, 1999])
    def test_the_line_where_they_part_is_found_by_the_lengths(self, lock, n_before):
        generator = random.Random(1)
        sources = ["x" * generator.randint(5, 90) for _ in range(2000)]
        targets = ["y" * round(len(line) * generator.uniform(1.0, 1.4)) for line in sources]
        del targets[n_before]
        write(en="\n".join(sources), de="\n".join(targets))
        with pytest.raises(DataError, match=r"2,000 lines but x\.de has 1,999; by") as error:
            read(FILES, lock)
        if n_before == 1999:
            assert "all lines of the shorter one match" in error.value.message
        elif n_before:
            (said,) = re.findall(r"up to about line ([0-9,]+), and", error.value.message)
            assert abs(int(said.replace(",", "")) - n_before) <= 20
        else:
            assert "they do not match from the first line on" in error.value.message

    def test_lengths_that_tell_nothing_are_not_asked(self, lock):
        write(en="same\n" * 500, de="gleich\n" * 499)
        with pytest.raises(DataError) as error:
            read(FILES, lock)
        assert error.value.message == "data.train.0: x.en has 500 lines but x.de has 499"

    def test_empty_files_have_no_pairs(self, lock):
        write(en="", de=gzip.compress(b""))
        assert read(FILES, lock) == []

    def test_other_encodings_are_found_out(self, lock):
        write(en="a\nb\n", de="1\ngrün\n".encode("latin-1"))
        with pytest.raises(DataError, match=r"x\.de:2: not UTF-8 \(byte 0xfc at position 2\)"):
            read(FILES, lock)

    def test_the_lock_tells_what_was_read(self, lock):
        write(en="a\nb", de=gzip.compress(b"1\n2\n"))
        read(FILES, lock)
        assert lock.files["x.en"] == {
            "sha256": hashlib.sha256(b"a\nb").hexdigest(),
            "size_bytes": 3,
            "lines": 2,
        }
        assert lock.files["x.de"]["size_bytes"] == Path("x.de").stat().st_size
        assert lock.files["x.de"]["lines"] == 2

    def test_a_local_file_is_held_to_the_config_but_not_to_the_lock(self, lock):
        write(en="a\n", de="1\n")
        read(FILES, lock)
        write(en="b\n")
        assert read(FILES, lock) == [Pair("b", "1")]
        entry = FilesEntry(source="x.en", target="x.de", sha256={"source": "0" * 64})
        with pytest.raises(DataError, match=r"data.train.0: x\.en has the wrong sha256: expected"):
            read(entry, lock)

    @settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8")), min_size=1))
    def test_any_text_is_read_back(self, lock, lines):
        lines[0] = lines[0].removeprefix("\ufeff")
        content = "".join(f"{line}\n" for line in lines)
        write(en=content, de=gzip.compress(content.encode()))
        assert read(FILES, lock) == [Pair(line, line) for line in lines]


class TestMissing:
    """A file that is not there, or not a file."""

    def test_it_is_named(self, lock, here):
        write(de="1\n")
        with pytest.raises(DataError, match=r"data.train.0: there is no file x\.en") as error:
            read(FILES, lock)
        assert str(here) in error.value.message

    def test_it_may_lie_beside_the_config(self, lock, here):
        (here / "configs").mkdir()
        (here / "configs" / "x.en").write_text("a\n")
        with pytest.raises(DataError, match="there is one beside the config") as error:
            read(FILES, lock)
        assert f"write {here}/configs/x.en" in str(error.value)

    def test_a_directory_is_no_file(self, lock):
        Path("x.en").mkdir()
        with pytest.raises(DataError, match=r"x\.en is not a regular file"):
            read(FILES, lock)


class TestTsv:
    """Tab-separated columns without quoting."""

    def test_columns_are_chosen(self, lock):
        write(tsv='1\t"a" b\tx\t"c\n2\t\ty\td\n')
        entry = TsvEntry(tsv="x.tsv", columns=(1, 3))
        assert read(entry, lock) == [Pair('"a" b', '"c'), Pair("", "d")]
        assert lock.files["x.tsv"]["lines"] == 2

    def test_a_missing_column_is_located(self, lock):
        write(tsv="a\tb\nc\n")
        with pytest.raises(DataError, match=r"x\.tsv:2: too few columns \(1\): column 1"):
            read(TsvEntry(tsv="x.tsv"), lock)

    def test_quotes_do_not_protect_a_tab(self, lock):
        write(tsv='a\tb\n"c\tc"\td\n"e"\t"f"\n')
        entry = TsvEntry(tsv="x.tsv")
        with pytest.raises(DataError, match=r"x\.tsv:2: 3 columns, but 2 in the first line"):
            read(entry, lock)
        reading = tolerant(lock, 0.5)
        assert pairs_of(entry, reading) == [Pair("a", "b"), Pair('"e"', '"f"')]
        assert reading.n_unreadable == 1


class TestJsonl:
    """One object per line."""

    def test_fields_are_chosen(self, lock):
        write(jsonl='{"en": "a\\u2028b", "de": "ü", "n": 1}\n\n{"de": "2", "en": ""}')
        entry = JsonlEntry(jsonl="x.jsonl", source_field="en", target_field="de")
        assert read(entry, lock) == [Pair("a\u2028b", "ü"), Pair("", "2")]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"source": "a"', "not JSON"),
            ("[" * 100_000, "not JSON"),
            ('["a", "b"]', "not a JSON object"),
            ('{"source": "a", "tgt": "b"}', r"no field `target` \(found: source, tgt\)"),
            ("{}", r"no field `source` \(found: none\)"),
            ('{"source": "a", "target": ["b"]}', r'field `target` is \["b"\], not a string'),
            (
                '{"source": "\\ud800", "target": "b"}',
                "field `source` holds half of a surrogate pair",
            ),
        ],
    )
    def test_a_bad_line_is_located(self, lock, line, message):
        good = json.dumps({"source": "a", "target": "b"})
        write(jsonl=f"{good}\n{line}\n{good}\n")
        with pytest.raises(DataError, match=rf"x\.jsonl:2: {message}"):
            read(JsonlEntry(jsonl="x.jsonl"), lock)


class TestChunks:
    """The same pairs, thousands at a time."""

    @pytest.mark.parametrize("block_bytes", [3, 64, 1 << 20])
    def test_chunks_hold_n_pairs_but_for_the_last(self, lock, block_bytes, monkeypatch):
        monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
        sources = [f"zeile {i} " + "ü" * (i % 50) for i in range(100)]
        targets = [f"{i}" for i in range(100)]
        write(en="\r\n".join(sources) + "\r", de=gzip.compress("\n".join(targets).encode()))
        chunks = list(read_pairs(FILES, Reading("data.train.7", lock, 7, chunk_pairs=30)))
        assert [len(chunk.src) for chunk in chunks] == [30, 30, 30, 10]
        assert [line for chunk in chunks for line in chunk.src] == sources
        assert [line for chunk in chunks for line in chunk.tgt] == targets
        assert {chunk.entry for chunk in chunks} == {7}


class TestUnreadable:
    """Bytes that are no text: dropped in training, counted, and too many are an error."""

    def test_a_few_are_dropped_with_their_partners(self, lock):
        write(en=b"a\n\xff\nc\nd\n" + b"e\n" * 196, de="1\n2\n3\0\n4\n" + "5\n" * 196)
        reading = tolerant(lock, 0.01)
        pairs = pairs_of(FILES, reading)
        assert pairs[:3] == [Pair("a", "1"), Pair("d", "4"), Pair("e", "5")]
        assert (len(pairs), reading.n_unreadable) == (198, 2)
        assert reading.first_problem is not None
        assert reading.first_problem.message.startswith("x.en:2: not UTF-8 (byte 0xff")
        assert lock.files["x.en"]["lines"] == 200

    def test_more_than_the_share_is_an_error(self, lock):
        write(en="grün\n".encode("latin-1") * 3 + b"e\n" * 197, de="1\n" * 200)
        message = r"data.train.0: 3 of the first 200 pairs cannot be read.*1\.0%.*x\.en:1"
        with pytest.raises(DataError, match=message):
            pairs_of(FILES, tolerant(lock, 0.01))

    def test_a_wholly_wrong_file_is_not_read_to_its_end(self, lock):
        write(en=b"\xe4\n" * 200_000, de="1\n" * 200_000)
        with pytest.raises(DataError, match=r"5,000 of the first 5,000 pairs cannot be read"):
            pairs_of(FILES, tolerant(lock, 0.01))

    def test_json_and_tsv_lines_are_dropped_too(self, lock):
        good = b'{"source": "a", "target": "b"}\n'
        write(jsonl=good + b'{"source": "\xff", "target": "b"}\n' + good, tsv=b"a\tb\n\xff\n")
        for entry, n_good in ((JsonlEntry(jsonl="x.jsonl"), 2), (TsvEntry(tsv="x.tsv"), 1)):
            reading = tolerant(lock, 0.5)
            assert len(pairs_of(entry, reading)) == n_good
            assert reading.n_unreadable == 1

    def test_in_valid_and_test_sets_every_line_counts(self, lock):
        write(en="a\nb\0\n", de="1\n2\n")
        with pytest.raises(DataError, match=r"x\.en:2: a NUL character at position 1"):
            read(FILES, lock)

    def test_a_pointer_of_git_lfs_is_named(self, lock):
        write(en="version https://git-lfs.github.com/spec/v1\noid sha256:0\n", de="1\n2\n")
        with pytest.raises(DataError, match=r"x\.en is a pointer of Git LFS"):
            read(FILES, lock)


def test_text_in_one_language(lock):
    Path("x.en").write_bytes(gzip.compress(b"a\n\xff\nb\r\nc"))
    entry = MonoEntry(mono="x.en", side="source", name="web")
    reading = Reading("data.mono.0", lock, max_unreadable=1, chunk_pairs=2)
    assert list(read_mono(entry, reading)) == [["a"], ["b", "c"]]
    assert lock.sources["x.en"] == {"name": "web", "lines": 4}
