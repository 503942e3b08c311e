"""Every file of a trained and scored run, damaged in every way, before every command.

Each command either says in a sentence what is wrong (exit code 2, 3 or 4), or does exactly what it
does with the whole run. It never ends in a traceback, and never in another translation.
"""

import builtins
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import invoke, write_reverse_task

from mtrain.training import checkpoints

REFUSED = {2, 3, 4}
SIDES = ("src", "tgt")
DEEP = b"[" * 100_000
SMALL = tuple(
    f"--set={change}"
    for change in (
        "model={d_model: 64, d_ff: 64, n_heads: 4, n_encoder_layers: 1, n_decoder_layers: 1}",
        "train.validate_every=75",
        "train.save_every=145",
        "decode.beam_size=2",
        "evaluate.tokenize=char",
    )
)
FILES = (
    *("config.yaml", "tokenizer.model", "model.safetensors", "metrics.jsonl", "environment.json"),
    *("scores.json", "attention.json", "alignment.json", "data/manifest.json", "data/report.json"),
    *("data/word_counts.json", "data/choices.json", "data/reversed.source", "data/reversed.target"),
    *("data/valid.source", "data/valid.target", "translations/reversed.best.txt"),
    *("translations/reversed.best.jsonl", "translations/reversed.best.analysis.json"),
    *("checkpoints/best-150.safetensors", "checkpoints/step-150/state.json"),
    *("checkpoints/step-150/weights.safetensors", "checkpoints/step-150/ema.safetensors"),
    "checkpoints/step-150/optimizer.safetensors",
)


def flipped(content: bytes) -> bytes:
    """One bit, in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def retyped(content: bytes) -> bytes:
    """JSON whose numbers are texts, and whose texts are numbers; other files as they are."""

    def turn(value: object) -> object:
        if isinstance(value, dict):
            return {key: turn(item) for key, item in value.items()}
        if isinstance(value, list):
            return [turn(item) for item in value]
        return 3 if isinstance(value, str) else "x"

    lines = content.split(b"\n") if content.count(b"\n{") else [content]
    try:
        return b"\n".join(json.dumps(turn(json.loads(line))).encode() for line in lines if line)
    except ValueError:
        return content


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "lines lost": lambda content: b"".join(content.splitlines(keepends=True)[:-2]),
    "empty": lambda _: b"",
    "object": lambda _: b"{}\n",
    "list": lambda _: b"[]\n",
    "list of lists": lambda _: b"[[1]]\n",
    "null": lambda _: b"null\n",
    "number": lambda _: b"1" * 5000,
    "retyped": retyped,
    "flipped": flipped,
    "deep": lambda _: DEEP,
    "deep object": lambda _: b'{"a":' * 100_000,
    "not UTF-8": lambda content: content[:9] + b"\xff\xfe" + content[9:],
    "NUL": lambda content: content[:9] + b"\0" + content[9:],
    "surrogate": lambda content: content.replace(b'": "', b'": "\\ud800', 1),
    "not a number": lambda content: content.replace(b": 0.", b": NaN, 0.", 1),
}
PLACES = ("directory", "removed", "pipe", "broken link", "loop")


def damage(path: Path, kind: str) -> None:
    if kind in DAMAGES:
        path.write_bytes(DAMAGES[kind](path.read_bytes()))
        return
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "broken link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)


RUN = "runs/reverse"
LINES = "bada\nfemo gopu bada\ndeha jolu kamu bada\n"


def translated(directory: Path) -> tuple[int, object]:
    done = invoke("translate", RUN, cwd=directory, stdin=LINES)
    return done.returncode, done.stdout


def aligned(directory: Path) -> tuple[int, object]:
    done = invoke("translate", RUN, "--alignment", "--format=jsonl", cwd=directory, stdin=LINES)
    return done.returncode, done.stdout


def reported(directory: Path) -> tuple[int, object]:
    return invoke("report", RUN, cwd=directory).returncode, None


def summed_up(directory: Path) -> tuple[int, object]:
    return invoke("report", RUN, "--markdown", cwd=directory).returncode, None


def exported(directory: Path) -> tuple[int, object]:
    to = ("--to=safetensors", "-o=m.safetensors", "--force")
    done = invoke("export", RUN, *to, cwd=directory)
    if done.returncode != 0:
        return done.returncode, None
    return 0, invoke("translate", "m.safetensors", cwd=directory, stdin=LINES).stdout


def scored(directory: Path) -> tuple[int, object]:
    done = invoke("eval", RUN, "--json", cwd=directory)
    found = done.returncode == 0 and json.loads(done.stdout)["reversed"]
    return done.returncode, found and {name: found[name] for name in ("bleu", "chrf", "ter")}


def trained_on(directory: Path) -> tuple[int, object]:
    done = invoke("train", "reverse.yaml", *SMALL, "--set=train.max_steps=151", cwd=directory)
    weights = directory / RUN / "checkpoints" / "step-151" / "weights.safetensors"
    return done.returncode, done.returncode == 0 and weights.read_bytes()


COMMANDS = {  # those that change the run come last
    "translate": translated,
    "translate --alignment": aligned,
    "report": reported,
    "report --markdown": summed_up,
    "export": exported,
    "eval": scored,
    "train": trained_on,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run that was trained for 150 steps, scored, and asked for word links."""
    directory = tmp_path_factory.mktemp("whole")
    write_reverse_task(directory, n_train=600)
    for path in (directory / f"{name}.{side}" for name in ("test", "valid") for side in SIDES):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:12]))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(checkpoints, "rivals", lambda run, progress: [])  # `best` wins
        for command in (
            ("train", "reverse.yaml", *SMALL, "--set=train.max_steps=150"),
            ("eval", RUN),
            ("translate", RUN, "--alignment", "--format=jsonl"),
        ):
            done = invoke(*command, cwd=directory, stdin=LINES)
            assert done.returncode == 0, done.stderr
    run = directory / RUN
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {name for name in found if "step-145" not in name} == set(FILES)
    return directory


@pytest.fixture
def directory(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture(scope="module")
def expected(whole, tmp_path_factory):
    """What each command makes of the whole run."""
    copy = Path(shutil.copytree(whole, tmp_path_factory.mktemp("expected") / "copy"))
    results = {name: command(copy) for name, command in COMMANDS.items()}
    assert {code for code, _ in results.values()} == {0}
    return {name: made for name, (_, made) in results.items()}


def check(directory: Path, expected: dict[str, object], name: str, kind: str) -> None:
    damage(directory / RUN / name, kind)
    for command, do in COMMANDS.items():
        code, made = do(directory)
        assert code in {0, *REFUSED}, (name, kind, command)
        assert code != 0 or made == expected[command], (name, kind, command)


EVERY = [(name, kind) for name in FILES for kind in (*DAMAGES, *PLACES)]


@pytest.mark.parametrize(("name", "kind"), [*EVERY[::61], ("config.yaml", "pipe")])
def test_some_damage_before_every_command(directory, expected, name, kind):
    check(directory, expected, name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_more_damage_before_every_command(whole, expected, tmp_path, name):
    """Every sixteenth; `MTRAIN_DAMAGE_STRIDE=1` for all."""
    stride = int(os.environ.get("MTRAIN_DAMAGE_STRIDE", "16"))
    for number, (file, kind) in enumerate(EVERY):
        if file == name and number % stride == 0:
            copy = Path(shutil.copytree(whole, tmp_path / str(number)))
            check(copy, expected, name, kind)
            shutil.rmtree(copy)


def test_translations_of_an_older_run_that_are_cut_short(directory):
    """It has the text alone, without its sources."""
    stem = directory / RUN / "translations" / "reversed.best"
    stem.with_name("reversed.best.jsonl").unlink()
    assert reported(directory)[0] == 0
    damage(stem.with_name("reversed.best.txt"), "lines lost")
    done = invoke("report", RUN, cwd=directory)
    assert (done.returncode, "10 lines instead of 12" in done.stderr) == (3, True)


@pytest.mark.parametrize("name", ["valid.source", "reversed.target"])
def test_a_report_says_that_text_was_changed(directory, name):
    damage(directory / RUN / "data" / name, "lines lost")
    done = invoke("report", RUN, cwd=directory)
    split = name.partition(".")[0]
    assert (done.returncode, f"the text of `{split}`" in done.stderr) == (3, True)


# -- what is gone ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gone",
    [
        ["checkpoints"],
        ["checkpoints/*"],
        ["checkpoints/step-*"],
        ["checkpoints/step-*", "model.safetensors"],
        ["checkpoints", "metrics.jsonl"],
        ["checkpoints/best-*"],
        ["config.yaml"],
        ["config.yaml", "model.safetensors"],
        ["checkpoints", "model.safetensors"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("max_steps", [150, 151])
def test_training_deletes_no_results(directory, gone, max_steps):
    """Part of a run is gone, perhaps to save room: the rest stays, and --fresh is named."""
    run = directory / RUN
    for path in [path for pattern in gone for path in run.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = invoke(
        "train", "reverse.yaml", *SMALL, f"--set=train.max_steps={max_steps}", cwd=directory
    )
    assert done.returncode in REFUSED, done.stderr
    assert "--fresh" in done.stderr
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    noted = [run / name for name in ("config.yaml", "metrics.jsonl")]  # the new max_steps
    if gone == ["checkpoints/best-*"]:  # missed only when the state was read
        before, after = ({**files, **dict.fromkeys(noted)} for files in (before, after))
    assert after == before


def test_fresh_keeps_the_rest_under_another_name(directory):
    run = directory / RUN
    shutil.rmtree(run / "checkpoints")
    weights = (run / "model.safetensors").read_bytes()
    arguments = ("train", "reverse.yaml", *SMALL, "--set=train.max_steps=75", "--fresh")
    assert invoke(*arguments, cwd=directory).returncode == 0
    assert (directory / f"{RUN}.1" / "model.safetensors").read_bytes() == weights


# -- prepared data ---------------------------------------------------------------------------

SOME = ("cut", "empty", "list of lists", "retyped", "deep", "not UTF-8", "directory", "removed")
PREPARED = ("source.ids", "target.ids", "source.offsets", "target.offsets", "sources")


@pytest.mark.parametrize("resumes", [False, True], ids=["new", "resumed"])
@pytest.mark.parametrize("name", [f"train.{name}" for name in PREPARED])
def test_prepared_numbers_that_cannot_be_are_refused(directory, name, resumes):
    """All bits of some number in the middle are set: the size of the file is what it was."""
    if not resumes:
        shutil.rmtree(directory / RUN)
    [path] = directory.glob(f"data/reverse/*/{name}")
    content = path.read_bytes()
    middle = len(content) // 16 * 8
    path.write_bytes(content[:middle] + b"\xff" * 8 + content[middle + 8 :])
    done = invoke("train", "reverse.yaml", *SMALL, "--set=train.max_steps=151", cwd=directory)
    assert (done.returncode, str(path.name) in done.stderr) == (3, True), done.stderr
    assert "mtrain prepare" in done.stderr
    assert "--force" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        *(f"train.{name}" for name in (*PREPARED, "target.hashes", "json")),
        *("valid.source", "valid.target", "reversed.source", "tokenizer.model"),
        *("word_counts.json", "report.json"),
    ],
)
def test_a_new_run_takes_no_prepared_file_with_a_flipped_bit(directory, name):
    shutil.rmtree(directory / RUN)
    [path] = directory.glob(f"data/reverse/*/{name}")
    path.write_bytes(flipped(path.read_bytes()))
    done = invoke("train", "reverse.yaml", *SMALL, "--set=train.max_steps=1", cwd=directory)
    assert (done.returncode, name in done.stderr) == (3, True), done.stderr
    assert "mtrain prepare" in done.stderr
    assert not (directory / RUN / "config.yaml").exists()


@pytest.mark.parametrize("kind", SOME)
def test_the_manifest_of_prepared_data(directory, kind):
    """Data without a whole manifest is prepared again, or refused."""
    shutil.rmtree(directory / RUN)
    [path] = directory.glob("data/reverse/*/manifest.json")
    damage(path, kind)
    done = invoke("train", "reverse.yaml", *SMALL, "--set=train.max_steps=1", cwd=directory)
    assert done.returncode in {0, *REFUSED}, done.stderr


@pytest.mark.parametrize("name", ["reverse.lock", "data/reverse/inputs.json"])
@pytest.mark.parametrize("kind", SOME)
def test_what_prepare_remembers_of_its_sources(directory, name, kind):
    damage(directory / name, kind)
    done = invoke("train", "reverse.yaml", *SMALL, "--set=train.max_steps=151", cwd=directory)
    assert done.returncode in {0, *REFUSED}, done.stderr


# -- a run that cannot be written ------------------------------------------------------------


def test_eval_of_a_run_that_cannot_be_written_shows_its_scores(directory, expected, monkeypatch):
    closed = (directory / RUN).resolve()
    with monkeypatch.context() as patch:
        close(patch, closed)
        code, made = scored(directory)
        assert (code, made) == (0, expected["eval"])
        done = invoke("eval", RUN, "--against", RUN, cwd=directory)
        assert (done.returncode, "are not kept in the run" in done.stderr) == (0, True)
        assert "BLEU" in done.stdout
        done = invoke("eval", RUN, "--sweep", cwd=directory)
        assert (done.returncode, "cannot write" in done.stderr) == (3, True)
        assert "translating" not in done.stderr  # 45 times for nothing
        done = invoke("translate", RUN, "--alignment", "--format=jsonl", cwd=directory, stdin=LINES)
        assert done.returncode == 0, done.stderr


def close(patch: pytest.MonkeyPatch, closed: Path) -> None:
    """No file can be made or replaced below a directory, as on a read-only file system.

    The tests may run as root, whom no permission stops.
    """
    real = os.open, builtins.open

    def is_refused(path: object) -> bool:
        return isinstance(path, str | Path) and Path(path).absolute().is_relative_to(closed)

    def os_open(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and is_refused(path):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real[0](path, flags, *rest, **more)

    def io_open(file: str, mode: str = "r", *rest: object, **more: object) -> object:
        if set(mode) & set("wxa+") and is_refused(file):
            raise OSError(errno.EROFS, "Read-only file system", str(file))
        return real[1](file, mode, *rest, **more)  # type: ignore[call-overload]

    patch.setattr(os, "open", os_open)
    patch.setattr(builtins, "open", io_open)
