"""`mtrain runs`: the table of runs, and what --clean removes."""

from __future__ import annotations

import shutil

from conftest import invoke


def copy_of(trained_run, directory, name):
    shutil.copytree(trained_run.path, directory / "runs" / name)
    return directory / "runs" / name


def test_each_run_is_a_row(trained_run, tmp_path):
    for name in ("a", "b", "c"):
        copy_of(trained_run, tmp_path, name)
    (tmp_path / "runs/b/model.safetensors").unlink()
    (tmp_path / "runs/c/data/manifest.json").write_text("{}")
    (tmp_path / "runs/notes").mkdir()
    done = invoke("runs", cwd=tmp_path)
    header, *rows = done.stdout.splitlines()
    assert done.returncode == 0
    assert header.split() == ["run", "languages", "pairs", "state", "score", "MB"]
    assert [row.split()[0] for row in rows] == ["a", "b", "c"]
    assert "en-de" in rows[0]
    assert "finished, step " in rows[0]
    assert "valid: BLEU" in rows[0]
    assert "stopped, step " in rows[1]
    assert "damaged" in rows[2]


def test_scores_stand_with_their_interval(trained_run, tmp_path):
    run = copy_of(trained_run, tmp_path, "a")
    invoke("eval", run, cwd=tmp_path)
    assert "reversed: BLEU" in invoke("runs", cwd=tmp_path).stdout


def test_clean_asks_and_keeps_the_model(trained_run, tmp_path):
    run = copy_of(trained_run, tmp_path, "a")
    unfinished = copy_of(trained_run, tmp_path, "b")
    (unfinished / "model.safetensors").unlink()
    invoke("runs", "--clean", cwd=tmp_path, stdin="n\n")
    assert (run / "checkpoints").exists()
    done = invoke("runs", "--clean", cwd=tmp_path, stdin="y\n")
    assert done.returncode == 0, done.stderr
    assert not (run / "checkpoints").exists()
    assert (unfinished / "checkpoints").exists()
    assert invoke("translate", run, cwd=tmp_path, stdin="ba de\n").returncode == 0
    assert "nothing to remove" in invoke("runs", "--clean", "--yes", cwd=tmp_path).stderr


def test_without_runs_one_sentence_says_so(tmp_path):
    assert invoke("runs", cwd=tmp_path).returncode == 2
    (tmp_path / "runs").mkdir()
    assert "holds no runs" in invoke("runs", cwd=tmp_path).stdout
    assert invoke("runs", "--yes", cwd=tmp_path).returncode == 2
