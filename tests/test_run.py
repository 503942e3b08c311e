"""The run directory: names, damage, and files that are written whole or not at all."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from mtrain.errors import CheckpointError, DataError, StorageError, UsageError
from mtrain.run import RunDir
from mtrain.storage import atomic_write, write_json


@pytest.fixture
def run(tmp_path):
    """A run with a config and one split, and no checkpoint yet."""
    run = RunDir(tmp_path / "x")
    run.data.mkdir(parents=True)
    run.checkpoints.mkdir()
    run.config.write_text("name: x\n")
    source, target = "a b\u2028c\r\n\n".encode(), "ä\n\n".encode()
    (run.data / "valid.source").write_bytes(source)
    (run.data / "valid.target").write_bytes(target)
    sha256 = hashlib.sha256(source + b"\0" + target).hexdigest()
    write_json(
        run.manifest,
        {
            "splits": ["valid", "flickr"],
            "split_sha256": {"valid": sha256, "flickr": sha256},
            "files": {},
            "length_ratio": {"mean": 1.0, "std": 0.1},
        },
    )
    return run


def add_step(run: RunDir, step: int, ema: bool = False) -> None:
    directory = run.checkpoints / f"step-{step}"
    directory.mkdir()
    (directory / "weights.safetensors").touch()
    if ema:
        (directory / "ema.safetensors").touch()


def names(run: RunDir, checkpoint: str | None) -> list[str]:
    return [path.relative_to(run.path).as_posix() for path in run.checkpoint_files(checkpoint)]


# -- what is a run ---------------------------------------------------------------------------


def test_a_run_opens(run):
    assert RunDir.open(str(run.path)).config == run.config


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_what_is_no_run_is_called_so(tmp_path, kind):
    path = tmp_path / "there"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.touch()
    with pytest.raises(UsageError) as raised:
        RunDir.open(path)
    said = "does not exist" if kind == "absent" else "is not a run directory"
    assert said in raised.value.message
    assert str(path) in raised.value.message
    assert raised.value.exit_code == 2


# -- checkpoints by name ---------------------------------------------------------------------


def test_checkpoints_by_name(run):
    for step in (900, 1000, 12000):
        add_step(run, step, ema=True)
    (run.checkpoints / "best-900.safetensors").touch()
    assert names(run, "last") == ["checkpoints/step-12000/weights.safetensors"]
    assert names(run, "ema") == ["checkpoints/step-12000/ema.safetensors"]
    assert names(run, "step-900") == ["checkpoints/step-900/weights.safetensors"]
    assert names(run, "best") == ["checkpoints/best-900.safetensors"]
    assert names(run, "avg") == [
        f"checkpoints/step-{step}/weights.safetensors" for step in (900, 1000, 12000)
    ]


def test_none_is_the_winner_then_the_best_then_the_last(run):
    add_step(run, 5)
    assert names(run, None) == ["checkpoints/step-5/weights.safetensors"]
    (run.checkpoints / "best-3.safetensors").touch()
    assert names(run, None) == ["checkpoints/best-3.safetensors"]
    run.weights.touch()
    assert names(run, None) == ["model.safetensors"]


def test_of_two_best_ones_the_newer_is_meant(run):
    """A kill came between writing the one and removing the other."""
    for step in (9, 10):
        (run.checkpoints / f"best-{step}.safetensors").touch()
    assert names(run, "best") == ["checkpoints/best-10.safetensors"]


def test_half_written_and_damaged_checkpoints_have_no_name(run):
    for name in ("step-7.tmp", "damaged-step-8", "step-9x", "best-9.safetensors.tmp"):
        (run.checkpoints / name).mkdir()
    assert run.step_checkpoints() == []
    assert run.best_checkpoints() == []


def test_a_run_without_checkpoints(run):
    for name in (None, "best"):
        with pytest.raises(CheckpointError, match="has no checkpoint yet") as raised:
            run.checkpoint_files(name)
        assert raised.value.exit_code == 4


def test_a_name_that_is_not_there_lists_those_that_are(run):
    add_step(run, 5)
    with pytest.raises(CheckpointError) as raised:
        run.checkpoint_files("best")
    assert "no checkpoint named `best` (found: avg, last, step-5)" in raised.value.message
    assert "--checkpoint" in (raised.value.fix or "")


# -- text and manifest -----------------------------------------------------------------------


def test_a_split_is_cut_at_newlines_only(run):
    split = run.read_split("valid")
    assert split.sources == ["a b\u2028c\r", ""]
    assert split.references == ["ä", ""]
    assert run.splits() == ["valid", "flickr"]


def test_text_that_was_changed_is_noticed(run):
    with open(run.data / "valid.target", "a") as file:
        file.write("x")
    with pytest.raises(DataError, match="was changed since it was prepared") as raised:
        run.read_split("valid")
    assert raised.value.exit_code == 3


def test_a_split_that_is_not_there_lists_those_that_are(run):
    with pytest.raises(UsageError, match=r"no split named `test` \(found: valid, flickr\)"):
        run.read_split("test")


def test_a_split_whose_text_is_missing(run):
    with pytest.raises(DataError, match=r"flickr\.source"):
        run.read_split("flickr")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"splits": ["valid"]}', "\xff"])
def test_a_damaged_manifest(run, content):
    run.manifest.write_bytes(content.encode("latin-1"))
    for read in (run.splits, run.read_manifest, lambda: run.read_split("valid")):
        with pytest.raises(DataError, match=r"cannot read .*manifest\.json") as raised:
            read()
        assert raised.value.fix is not None


def test_scores_are_empty_before_the_first(run):
    assert run.read_scores() == {}
    write_json(run.scores, {"flickr": {"bleu": {"score": 1.5}}})
    assert run.read_scores() == {"flickr": {"bleu": {"score": 1.5}}}


# -- metrics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scores", [{"a/../b": {}}, {"test/x[beam_size=1]": {}}, {"test": {"checkpoint": "../x"}}]
)
def test_scores_under_a_name_that_is_a_path_are_damaged(run, scores):
    run.scores.write_text(json.dumps(scores))
    with pytest.raises(DataError, match=r"cannot read .*scores\.json"):
        run.read_scores()


def test_scores_of_other_settings_are_read(run):
    scores = {"test[beam_size=1,length_penalty=0.5]": {"checkpoint": "avg-best"}}
    run.scores.write_text(json.dumps(scores))
    assert run.read_scores() == scores


def test_metrics_come_back_in_order_without_a_line_cut_short(run):
    assert run.read_metrics() == []
    records = [
        {"kind": "train", "step": 1, "loss": 2.5},
        {"kind": "valid", "step": 1, "text": "ä\n"},
    ]
    for record in records:
        run.log(record)
    with open(run.metrics, "a") as file:
        file.write('{"kind": "train", "st')
    assert run.read_metrics() == records


def test_metrics_are_replaced_as_a_whole(run):
    first, *others = ({"kind": "train", "step": step} for step in (1, 2, 3))
    run.log(first)
    run.write_metrics(others)
    assert run.read_metrics() == others


def test_damaged_metrics_are_named(run):
    run.metrics.write_text('{"step": 1}\n{"step" 2}\n')
    with pytest.raises(DataError, match=r"cannot read .*metrics\.jsonl"):
        run.read_metrics()


# -- whole or not at all ---------------------------------------------------------------------


def test_writing_replaces_and_makes_directories(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    atomic_write(path, "ä\n")
    assert path.read_bytes() == b"\xc3\xa4\n"
    atomic_write(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert list(path.parent.iterdir()) == [path]


def test_json_is_readable(tmp_path):
    write_json(tmp_path / "x.json", {"ä": [1]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "ä" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"ä": [1]}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, number):
    path = tmp_path / "file"
    atomic_write(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left on the disk while writing") as raised:
        atomic_write(path, "new")
    assert raised.value.exit_code == 3
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(StorageError, match=r"cannot write .*file: permission denied"):
        atomic_write(tmp_path / "file", "x")


def test_places_where_no_file_can_be(tmp_path):
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "below", tmp_path / "file" / "far" / "below", tmp_path]
    for path in [*places, Path("/proc/mtrain/file"), tmp_path / ("x" * 300)]:
        with pytest.raises(StorageError, match="cannot write"):
            atomic_write(path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not list(tmp_path.parent.glob("*.tmp"))


def test_logging_to_a_full_disk(run, monkeypatch):
    run.metrics.mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        run.log({"step": 1})
