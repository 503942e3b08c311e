"""Files that are written whole, locks, and JSON of known shapes."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from mtrain.errors import DataError, StorageError
from mtrain.storage import (
    atomic_write,
    check_writable,
    lock_file,
    new_directory,
    parse_json,
    read_json,
    remove_partials,
)

NUMBERS: TypeAdapter[dict[str, int]] = TypeAdapter(dict[str, int])


def test_no_link_is_followed_to_write(tmp_path):
    """Neither one in the place of the file, nor one under the name that was predictable before."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("scores.json", "scores.json.tmp"):
        (tmp_path / name).symlink_to(precious)
    atomic_write(tmp_path / "scores.json", "theirs")
    assert precious.read_text() == "mine"
    assert not (tmp_path / "scores.json").is_symlink()
    assert (tmp_path / "scores.json").read_text() == "theirs"


def test_names_of_partial_files_cannot_be_guessed(tmp_path, monkeypatch):
    made: list[str] = []

    def refuse(source: Path, target: Path) -> None:
        made.append(Path(source).name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    for _ in range(2):
        with pytest.raises(StorageError):
            atomic_write(tmp_path / "a", "text")
    assert len(set(made)) == 2
    assert list(tmp_path.iterdir()) == []


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    atomic_write(tmp_path / "ours", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")}
    assert len(modes) == 1


def test_a_name_as_long_as_the_system_allows(tmp_path):
    atomic_write(tmp_path / ("a" * 255), "text")
    assert (tmp_path / ("a" * 255)).read_text() == "text"


def test_a_directory_is_there_whole_or_not_at_all(tmp_path):
    place = tmp_path / "step-1"

    def fail() -> None:
        with new_directory(place) as partial:
            (partial / "a").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    for content in ("old", "new"):
        with new_directory(place) as partial:
            (partial / content).touch()
    assert [path.name for path in place.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [place]


def test_partial_files_of_a_killed_process_go(tmp_path):
    (tmp_path / "kept").touch()
    (tmp_path / "a.0123.tmp").mkdir()
    (tmp_path / "b.0123.tmp").symlink_to(tmp_path / "kept")
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_lock_is_held_by_one(tmp_path):
    place = tmp_path / "sub" / ".lock"
    with lock_file(place) as is_first:
        with lock_file(place) as is_second:
            assert (is_first, is_second) == (True, False)
        assert place.exists()
    assert not place.exists()


def test_a_lock_that_is_a_link_truncates_nothing(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError), lock_file(tmp_path / ".lock"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"null", b'{"a": "1"}', b'{"a": 1.5}', b'{"a": true}', b"\xff"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1' + b"0" * 10_000 + b"}", b'{"a": NaN}'),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_json_of_another_shape_is_told_in_a_line(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(DataError, match=r"^error: cannot read .*a\.json: [^\n]+\n  fix: mend it$"):
        read_json(tmp_path / "a.json", NUMBERS, "mend it")


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory", "absent"):
        with pytest.raises(DataError, match=f"cannot read .*{name}"):
            read_json(tmp_path / name, NUMBERS, "mend it")


def test_values_come_back_in_their_order():
    assert list(parse_json('{"b": 1, "a": 2}', NUMBERS)) == ["b", "a"]


def test_whether_a_directory_can_be_written(tmp_path):
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(StorageError, match="cannot write"):
        check_writable(tmp_path / "file")


def test_a_device_is_written_and_never_replaced():
    atomic_write(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(StorageError, match="no space left"):
        atomic_write(Path("/dev/full"), "text")
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interrupted_write_leaves_nothing(tmp_path, error):
    def parts() -> Iterator[bytes]:
        yield b"some"
        raise error

    with pytest.raises(error):
        atomic_write(tmp_path / "file", parts())
    assert list(tmp_path.iterdir()) == []
