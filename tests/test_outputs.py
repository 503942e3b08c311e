"""Outputs: nothing is overwritten by mistake, two writers are told apart, no option is ignored."""

import fcntl
import gzip
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import invoke, mtrain_command, mtrain_environment, write_lines

from mtrain import console
from mtrain.cli import app
from mtrain.commands import translate
from mtrain.commands.output import check_output


@pytest.fixture
def here(trained_run, tmp_path):
    """A directory with a copy of the run, its corpora, and a file to translate."""
    shutil.copytree(trained_run.path, tmp_path / "run")
    for path in trained_run.directory.glob("*.???"):
        shutil.copy(path, tmp_path)
    write_lines(tmp_path / "in.txt", trained_run.test_sources[:5])
    return tmp_path


# -- what is overwritten ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["translate", "run", "in.txt", "-o"], "in.txt"),
        (["translate", "run", "in.txt", "-o"], "./in.txt"),
        (["translate", "run", "in.txt", "-o"], "linked"),
        (["translate", "run", "in.txt", "-o"], "train.src"),
        (["translate", "run", "in.txt", "-o"], "run/config.yaml"),
        (["translate", "run", "in.txt", "-o"], "run/data/valid.source"),
        (["translate", "run", "in.txt", "-o"], "page.html"),
        (["translate", "run", "--score", "in.txt", "in.txt", "-o"], "in.txt"),
        (["translate", "run", "in.txt", "--prefix", "valid.src", "-o"], "valid.src"),
        (["report", "run", "-o"], "valid.src"),
        (["report", "run", "-o"], "in.txt"),
        (["report", "run", "--markdown", "-o"], "in.txt"),
        (["export", "run", "--to", "safetensors", "-o"], "run/model.safetensors"),
        (["export", "run", "--to", "safetensors", "-o"], "in.txt"),
    ],
)
def test_an_output_is_no_input_and_no_file_of_another_kind(here, arguments, output):
    (here / "linked").symlink_to("in.txt")
    (here / "page.html").write_text("<!doctype html>\n<title>a page</title>")
    before = (here / output).read_bytes()
    done = invoke(*arguments, output, cwd=here)
    assert done.returncode == 2, done.stderr
    assert "--force" in done.stderr
    assert (here / output).read_bytes() == before


def test_prepared_data_is_not_overwritten(here):
    prepared = here / "data" / "x" / "hash"
    prepared.mkdir(parents=True)
    names = ("manifest.json", "valid.source", "train.source.ids")
    for name in names:
        (prepared / name).write_text("kept\n")
    for name in names:
        done = invoke("translate", "run", "in.txt", "-o", prepared / name, cwd=here)
        assert done.returncode == 2, done.stderr
        assert (prepared / name).read_text() == "kept\n"


def test_two_outputs_with_one_name(here):
    done = invoke("translate", "run", "in.txt", "-o", "x.svg", "--attention", "x.svg", cwd=here)
    assert done.returncode == 2
    assert "--attention both name" in done.stderr


def test_standard_input_is_an_input_too(here):
    before = (here / "in.txt").read_bytes()
    with open(here / "in.txt", "rb") as stdin:
        done = subprocess.run(
            mtrain_command("translate", "run", "-o", "in.txt"),
            stdin=stdin,
            cwd=here,
            env=mtrain_environment(),
            capture_output=True,
            check=False,
        )
    assert done.returncode == 2
    assert (here / "in.txt").read_bytes() == before


GZIP = gzip.compress(b"text", mtime=0)
CYRILLIC = "кот видит собаку\n"


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        ("run bad", GZIP),
        ("run bad", "text\n".encode("utf-16")),
        ("run bad", CYRILLIC.encode("utf-16-le")),
        ("run bad", CYRILLIC.encode("utf-16-be")),
        ("run bad", b"one\rtwo\r"),
        ("run in.txt --prefix bad", GZIP),
        ("run --score in.txt bad", GZIP),
        ("run --score bad one.txt", GZIP),
        ("run bad --attention x.html", GZIP),
    ],
)
def test_every_input_is_recognised_as_text(here, arguments, content):
    (here / "bad").write_bytes(content)
    (here / "one.txt").write_text("ba\n")
    done = invoke("translate", *arguments.split(), cwd=here)
    assert done.returncode == 3, done.stderr
    assert "error: bad " in done.stderr


def test_a_line_that_is_too_long_to_be_scored(here):
    (here / "long").write_bytes(b"x" * (1 << 20) + b"x\n" * 5)
    for files in (("in.txt", "long"), ("long", "in.txt")):
        done = invoke("translate", "run", "--score", *files, cwd=here)
        assert done.returncode == 3
        assert "more than 1,048,576 bytes" in done.stderr
    (here / "nul").write_bytes(b"\0\n")
    done = invoke("translate", "run", "nul", cwd=here)
    assert done.returncode == 0
    assert "more than" not in done.stderr


def test_the_same_kind_is_overwritten_and_force_overwrites_all(here):
    for _ in range(2):
        assert invoke("translate", "run", "in.txt", "-o", "out.txt", cwd=here).returncode == 0
        assert invoke("report", "run", "-o", "page.html", cwd=here).returncode == 0
    expected = (here / "out.txt").read_bytes()
    forced = invoke("translate", "run", "in.txt", "-o", "page.html", "--force", cwd=here)
    assert forced.returncode == 0, forced.stderr
    assert (here / "page.html").read_bytes() == expected


def test_a_new_or_empty_file_may_be_written(tmp_path):
    (tmp_path / "empty").touch()
    for name in ("new", "empty"):
        check_output(tmp_path / name, "text", [], force=False)
    check_output(Path("/dev/null"), "text", [Path("/dev/null")], force=False)


# -- two at once -----------------------------------------------------------------------------


def test_the_second_writer_of_an_output_is_refused(here):
    with open(here / ".out.txt.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = invoke("translate", "run", "in.txt", "-o", "out.txt", cwd=here)
    assert done.returncode == 2
    assert "another process is writing out.txt" in done.stderr
    assert not (here / "out.txt").exists()
    assert invoke("translate", "run", "in.txt", "-o", "out.txt", cwd=here).returncode == 0
    assert not (here / ".out.txt.lock").exists()


# -- standard streams ------------------------------------------------------------------------


def run_shell(command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A shell command in which $MTRAIN stands for the program."""
    mtrain = " ".join(map(str, mtrain_command()))
    return subprocess.run(
        ["bash", "-c", command.replace("$MTRAIN", mtrain)],
        cwd=cwd,
        env=mtrain_environment() | env,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_told(here, unbuffered):
    many = [f"ba de fi {i}" for i in range(300)]
    write_lines(here / "many.txt", many)
    command = "ulimit -f 1; $MTRAIN translate run many.txt --beam-size 1 > out.txt"
    done = run_shell(command, here, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 3, done.stderr
    assert b"Traceback" not in done.stderr
    done = run_shell("$MTRAIN translate run in.txt > /dev/full", here, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 3, done.stderr


@pytest.mark.slow
def test_with_standard_error_closed_no_warning_is_in_the_translation(here):
    (here / "odd.txt").write_bytes(b"ba \xff de\nfi\n")
    good = run_shell("$MTRAIN translate run odd.txt -o good.txt", here)
    assert b"warning" in good.stderr
    done = run_shell("$MTRAIN translate run odd.txt > out.txt 2>&-", here)
    assert done.returncode == 0
    done = run_shell("$MTRAIN translate run odd.txt -o out2.txt 2>&-", here)
    assert done.returncode == 0
    expected = (here / "good.txt").read_bytes()
    assert (here / "out.txt").read_bytes() == expected
    assert (here / "out2.txt").read_bytes() == expected


def test_control_characters_reach_no_terminal(capsys):
    console.warn("a\x1b]0;title\x07b\x9bc\rd\u202ee\ud800")
    said = capsys.readouterr().err
    assert said == "warning: a\\x1b]0;title\\x07b\\x9bc\\x0dd\\u202ee\\ud800\n"
    assert console.printable("ü – שלום\u200f\tx\n") == "ü – שלום\u200f\tx\n"


def test_commands_are_quoted_for_a_shell():
    assert (
        console.command("mtrain", "eval", Path("runs/a b; rm x")) == "mtrain eval 'runs/a b; rm x'"
    )


# -- options without effect ------------------------------------------------------------------

REFUSED = {
    "translate": [
        *(["--samples", "5"], ["--temperature", "0.5"], ["--top-k", "5"], ["--top-p", "0.9"]),
        *(["--seed", "3"], ["--diversity", "1"], ["--quantization", "int8"]),
        *(["--method", "sample", "--samples", "5"], ["--method", "sample", "--beam-size", "3"]),
        *(["--method", "mbr", "--exact-stop"], ["--method", "diverse", "--top-k", "3"]),
        *(["--engine", "ctranslate2", "--precision", "fp32"], ["--force"]),
        *(["--attention-layer", "1"], ["--attention-head", "1"], ["--attention-kind", "cross"]),
        *(["--attention", "a.svg", "--attention-layer", "9"],),
        *(["--attention", "a.svg", "--attention-head", "9"],),
        *(["--score", "a", "b", "--n-best", "3"], ["--score", "a", "b", "--method", "mbr"]),
        *(["--score", "a", "b", "--engine", "ctranslate2"], ["--score", "a", "b", "--seed", "1"]),
        *(["--score", "a", "b", "--beam-size", "3"], ["--score", "a", "b", "--attention", "a.svg"]),
    ],
    "eval": [
        *(["--hypothesis", "a", "--reference", "b", option, value] for option, value in (
            ("--checkpoint", "last"), ("--beam-size", "2"), ("--tag", "x"),
            ("--length-penalty", "1"), ("--device", "cpu"),
        )),
        *(["--adopt"], ["--sweep", "--beam-size", "3"], ["--sweep", "--split", "valid"]),
        *(["--sweep", "--sacrebleu", "wmt20"], ["--sweep", "--tag", "<news>"]),
    ],
    "report": [["--force"], ["--markdown", "--watch"]],
    "export": [
        ["--to", "safetensors", "-o", "x.safetensors", "--quantization", "int8"],
        ["--to", "ctranslate2", "-o", "x", "--force"],
    ],
    "train": [["--plan", "--fresh"]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "options"),
    [(command, options) for command, many in REFUSED.items() for options in many],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_options_that_would_do_nothing_are_refused(trained_run, command, options):
    first = "reverse.yaml" if command == "train" else "runs/reverse"
    done = invoke(command, first, *options, cwd=trained_run.directory)
    assert done.returncode == 2, done.stderr
    assert "\n  fix: " in done.stderr
    assert done.stdout == ""


def test_every_option_is_known_to_have_an_effect_or_a_condition():
    """A new option must be thought about: in `REFUSED`, or here."""
    always = {
        "prepare": {"overrides", "force", "processes", "reverse"},
        "train": {"overrides", "plan", "reverse"},
        "runs": {"clean", "yes"},
        "translate": {
            *("source", "output", "checkpoint", "length_penalty", "length_penalty_form", "n_best"),
            *("format", "device", "method", "prefix", "companions", "score"),
            *("precision", "tag", "engine", "alignment", "attention", "beam_size"),
        },
        "eval": {
            *("split", "source", "reference", "sacrebleu", "hypothesis", "against", "comet"),
            *("sweep", "as_json"),
        },
        "report": {"output", "markdown", "watch"},
        "export": {"to", "output", "checkpoint"},
        "new": {"name"},
    }
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        options = {p.name: p for p in command.params if p.param_type_name == "option"}
        options.pop("help", None)
        refused = {word for options in REFUSED.get(name, []) for word in options}
        for key, option in options.items():
            has_condition = not refused.isdisjoint(option.opts)
            assert has_condition or key in always[name], (name, key)


def test_the_help_of_translate_groups_every_option():
    group: Any = typer.main.get_command(app)
    named = [name for names in translate.GROUPS.values() for name in names]
    assert sorted(named) == sorted([*(p.name for p in group.commands["translate"].params), "help"])
