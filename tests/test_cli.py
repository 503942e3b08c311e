"""The commands end to end: a small task is prepared, trained, translated and scored."""

import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import (
    REPOSITORY,
    invoke,
    mtrain_command,
    mtrain_environment,
    reverse,
    run_mtrain,
    write_lines,
)
from typer.testing import CliRunner

import mtrain
from mtrain import cli
from mtrain.cli import app

COMMANDS = ["prepare", "train", "translate", "eval", "runs", "report", "export", "new"]


# -- help and version ------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_in_80_columns(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert all(len(line) <= 80 for line in result.output.split("\n"))
    options = [line for line in result.output.split("\n") if line.startswith("  -")]
    assert options
    for line in options:  # each says what it does
        assert len(line.split()) > 2 or line.endswith(">"), line


def test_the_overview_names_all_commands_uncut():
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
    assert "..." not in result.output.split("Commands:")[1]
    listed = [line.split()[0] for line in result.output.split("Commands:")[1].split("\n") if line]
    assert listed[:-1] == COMMANDS


def test_help_is_quick_and_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'pydantic', 'yaml', 'datasets', 'sentencepiece', 'sacrebleu'}"
    code = f"import sys, mtrain.cli; print({heavy} & set(sys.modules))"
    assert run_python("-c", code) == "set()\n"

    def seconds(*arguments: str) -> float:
        """Of the processor, which a busy machine slows down as well: both are compared."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(3):
            run_python(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert seconds("-m", "mtrain", "--help") < 3 * seconds("-c", "import typer")


def run_python(*arguments: str) -> str:
    """The standard output of a program of Python's."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=mtrain_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_version(tmp_path):
    assert run_mtrain("--version", cwd=tmp_path).stdout == f"mtrain {mtrain.__version__}\n"


# -- new -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
    ],
)
def test_a_gpus_memory_grows_in_place_unless_the_user_says_otherwise(monkeypatch, given, expected):
    for name in ("PYTORCH_ALLOC_CONF", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # to be as it was afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    seen: list[str] = []
    monkeypatch.setattr(cli, "app", lambda **_: seen.append(os.environ["PYTORCH_ALLOC_CONF"]))
    cli.main()
    assert seen == [expected]


def test_new_copies_a_config_that_loads_and_keeps_what_is_there(tmp_path):
    from mtrain.config.load import load_config

    done = invoke("new", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "mine" / "quickstart.yaml"
    assert copy.read_bytes() == (REPOSITORY / "configs" / "quickstart.yaml").read_bytes()
    assert (tmp_path / "mine" / "schema.json").is_file()
    assert "mtrain train mine/quickstart.yaml" in done.stdout
    assert load_config(copy).name == "quickstart"

    copy.write_text("name: changed\n")
    again = invoke("new", "mine", cwd=tmp_path)
    assert (again.returncode, copy.read_text()) == (2, "name: changed\n")
    assert "mine/quickstart.yaml already exists" in again.stderr


def test_new_names_the_configs_there_are(tmp_path):
    done = invoke("new", ".", "--from", "quikstart", cwd=tmp_path)
    assert done.returncode == 2
    assert "no shipped config named `quikstart`" in done.stderr
    assert "my-corpus" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wheel_brings_its_configs(tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("mtrain", "configs"):
        shutil.copytree(
            REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, checkout)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, checkout], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("mtrain-*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", format="zip")
    done = run_mtrain(
        "new", "mine", "--from", "my-corpus", cwd=tmp_path, env={"PYTHONPATH": "site"}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "my-corpus.yaml").is_file()


# -- translate -------------------------------------------------------------------------------


def test_what_was_trained_is_learned(trained_run):
    done = invoke("translate", "runs/reverse", "test.src", cwd=trained_run.directory)
    assert done.returncode == 0, done.stderr
    expected = [reverse(line) for line in trained_run.test_sources]
    got = done.stdout.split("\n")[:-1]
    assert len(got) == len(expected)
    n_right = sum(a == b for a, b in zip(got, expected, strict=True))
    assert n_right >= 0.9 * len(expected)


def test_a_run_needs_nothing_beside_it(trained_run, tmp_path):
    shutil.copytree(trained_run.path, tmp_path / "elsewhere")
    done = invoke("translate", "elsewhere", cwd=tmp_path, stdin="ba de fo\n")
    assert (done.stdout, done.returncode) == ("fo de ba\n", 0)
    assert invoke("eval", "elsewhere", "--json", cwd=tmp_path).returncode == 0


def test_every_way_to_translate(trained_run, tmp_path):
    write_lines(tmp_path / "in", ["ba de fo", "", "gu hi ka"])
    write_lines(tmp_path / "begin", ["xe ja", "", ""])
    run = str(trained_run.path)

    def ways(*options: str) -> list[str]:
        done = invoke("translate", run, "in", "--precision", "fp32", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    plain, greedy = ways(), ways("--beam-size", "1")
    assert len(plain) == 3
    assert ways("--method", "sample", "--top-k", "1", "--seed", "9") == greedy
    assert ways("--method", "mbr", "--samples", "3", "--top-p", "0.01") == greedy
    assert ways("--method", "diverse", "--diversity", "0", "--n-best", "1") == greedy
    assert ways("--with", run, "--with", run) == plain
    assert ways("--penalty-form", "gnmt", "--length-penalty", "0") == ways("--length-penalty", "0")
    begun = ways("--prefix", "begin")
    assert begun[0].startswith("xe ja")
    assert begun[1:] == plain[1:]
    drawn = ways("--method", "sample", "--n-best", "3", "--temperature", "2")
    assert drawn == ways("--method", "sample", "--n-best", "3", "--temperature", "2")
    assert drawn != ways("--method", "sample", "--n-best", "3", "--temperature", "2", "--seed", "2")


def test_scores_of_given_pairs(trained_run, tmp_path):
    done = invoke(
        "translate", "runs/reverse", "--score", "test.src", "test.tgt", cwd=trained_run.directory
    )
    assert done.returncode == 0, done.stderr
    right = [float(line) for line in done.stdout.split("\n")[:-1]]
    assert len(right) == len(trained_run.test_sources)
    write_lines(tmp_path / "wrong", trained_run.test_sources[::-1])
    arguments = ["--score", "test.src", tmp_path / "wrong", "-o", tmp_path / "out"]
    done = invoke("translate", "runs/reverse", *arguments, cwd=trained_run.directory)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = [float(line) for line in (tmp_path / "out").read_text().split()]
    assert sum(a > b for a, b in zip(right, wrong, strict=True)) > 0.9 * len(right)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_typed_line_is_answered_at_once_and_a_signal_ends_it(trained_run, number, exit_code):
    with subprocess.Popen(
        mtrain_command("translate", "runs/reverse"),
        cwd=trained_run.directory,
        env=mtrain_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for line in ("ba de fo", "gu hi"):
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], 60)
            assert ready, "no answer while the input is still open"
            assert process.stdout.readline().decode() == f"{reverse(line)}\n"
        process.send_signal(number)
        assert process.wait(timeout=30) == exit_code
        assert process.stderr.read().decode() == f"stopped by {signal.Signals(number).name}\n"


def test_a_closed_output_ends_quietly(trained_run, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("ba de fo\n" * 5000, encoding="utf-8")
    command = mtrain_command("translate", "runs/reverse", long, "--beam-size", "1")
    with subprocess.Popen(
        command,
        cwd=trained_run.directory,
        env=mtrain_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"fo de ba\n"
        process.stdout.close()
        assert process.wait(timeout=120) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize("arguments", [["--version"], ["eval", "--help"]])
def test_help_into_a_closed_pipe_is_quiet(arguments, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        mtrain_command(*arguments),
        cwd=tmp_path,
        env=mtrain_environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


# -- eval ------------------------------------------------------------------------------------


def test_scores_as_json_and_in_the_run(trained_run):
    done = invoke("eval", "runs/reverse", "--json", cwd=trained_run.directory)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert list(results) == ["reversed"]
    for metric in ("bleu", "chrf", "ter"):
        found = results["reversed"][metric]
        assert set(found) == {"score", "low", "high", "signature"}
        assert found["low"] <= found["score"] <= found["high"]
        assert "bs:1000|seed:12345" in found["signature"]
    assert results["reversed"]["bleu"]["score"] > 80
    recorded = json.loads((trained_run.path / "scores.json").read_text(encoding="utf-8"))
    assert recorded["reversed"]["bleu"] == results["reversed"]["bleu"]


def test_scores_as_a_table(trained_run):
    done = invoke("eval", "runs/reverse", "--split", "valid", cwd=trained_run.directory)
    header, *rows = done.stdout.split("\n")[:-1]
    assert header.split()[:4] == ["test", "set", "metric", "score"]
    assert [row.split()[:2] for row in rows[:3]] == [
        ["valid", "BLEU"],
        ["valid", "chrF2"],
        ["valid", "TER"],
    ]
    assert all(row.startswith("valid: ") for row in rows[3:])  # what is noteworthy of the outputs
    assert "mtrain report runs/reverse" in done.stderr


def test_files_score_like_the_test_set_and_like_their_saved_translation(trained_run, tmp_path):
    run = ["eval", "runs/reverse", "--json"]
    own = json.loads(invoke(*run, cwd=trained_run.directory).stdout)["reversed"]
    pair = ["--source", "test.src", "--reference", "test.tgt"]
    translated = json.loads(invoke(*run, *pair, cwd=trained_run.directory).stdout)["file"]
    assert translated["bleu"] == own["bleu"]

    output = tmp_path / "out.txt"
    invoke("translate", "runs/reverse", "test.src", "-o", output, cwd=trained_run.directory)
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not needed here')\n")
    paths = os.pathsep.join([str(tmp_path), mtrain_environment()["PYTHONPATH"]])
    saved = ["--hypothesis", output, "--reference", "test.tgt"]
    done = run_mtrain(*run, *saved, cwd=trained_run.directory, env={"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    scored = json.loads(done.stdout)["file"]
    assert {name: scored[name] for name in ("bleu", "chrf", "ter")} == {
        name: own[name] for name in ("bleu", "chrf", "ter")
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--source", "a"],
        ["--reference", "a"],
        ["--hypothesis", "a"],
        ["--source", "a", "--source", "b", "--reference", "c"],
        ["--source", "a", "--source", "b", "--hypothesis", "c", "--reference", "d"],
        ["--split", "valid", "--source", "a", "--reference", "b"],
    ],
)
def test_files_to_score_come_in_pairs(arguments):
    result = CliRunner().invoke(app, ["eval", "runs/x", *arguments])
    assert result.exit_code == 2
    assert "fix: give " in result.stderr


# -- paths and streams -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("translate", "LONG"),
        ("report", "LONG"),
        ("new", "LONG"),
        ("eval", "LONG", "--hypothesis", "a", "--reference", "b"),
        ("export", "LONG", "--to", "ctranslate2", "-o", "x"),
        ("train", "LONG"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_path_of_5000_characters(tmp_path, arguments):
    words = ["x" * 5000 if word == "LONG" else word for word in arguments]
    done = invoke(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "too long" in done.stderr


def test_messages_on_a_full_disk_change_no_exit_code(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            mtrain_command("report", "nope"),
            stderr=full,
            cwd=tmp_path,
            env=mtrain_environment(),
            check=False,
        )
    assert done.returncode == 2


def test_an_existing_schema_is_kept(tmp_path):
    (tmp_path / "schema.json").write_text("mine", encoding="utf-8")
    assert invoke("new", ".", cwd=tmp_path).returncode == 0
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == "mine"
