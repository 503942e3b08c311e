"""Where hostile inputs are tried: a directory, good files to damage, and no network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from mtrain.cli import app
from mtrain.config.load import load_config
from mtrain.config.root import Config
from mtrain.errors import MtrainError

if TYPE_CHECKING:
    from hub_server import Hub

    from mtrain.decoding.translate import Translator

Given = dict[str, Any]  # an input, by names: files, options
Random = random.Random

SOURCES = ["a b", "b a", "a dog runs", "two cats", "c", "A dog.", "the man sleeps", "1 2 3"] * 6
CONFIG = """\
name: x
source: en
target: de
data:
  train: {source: train.en, target: train.de}
  valid: {source: valid.en, target: valid.de}
  test: {source: valid.en, target: valid.de}
  clean: false
  decontaminate: false
  deduplicate: false
tokenizer: {vocab_size: 300, sampling: 0.1}
model: {d_model: 8, d_ff: 8, n_heads: 1, n_encoder_layers: 1, n_decoder_layers: 1, dropout: 0}
train:
  max_steps: 2
  batch_tokens: 64
  validate_every: 2
  save_every: 2
  log_every: 1
  threads: 1
  precision: fp32
  optim: {warmup_steps: 1}
decode: {precision: fp32, beam_size: 1}
"""


class Refused(MtrainError):
    """A command ended with the exit code of an expected failure."""


class Bench:
    """The directories of the inputs, deep inside one in which nothing else may appear.

    work    the current directory, one for each kind: an input may leave there what it likes
    good    a prepared, trained, scored and exported run: `data`, `runs/x`, `x.safetensors`
    own     caches and temporary files; `own/secret` must stay what it is
    """

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root, self._stack = root, stack
        self.work = self._above = root / "a" / "b" / "work"
        self._kinds: set[str] = set()
        self.own, self.secret = root / "own", root / "own" / "secret"
        self._good = root / "own" / "good"

    @classmethod
    @contextmanager
    def open(cls, root: Path) -> Iterator[Bench]:
        """Enter the directory, with caches in it, without messages and without a network."""
        with ExitStack() as stack:
            bench = cls(root, stack)
            bench._above.mkdir(parents=True)
            for name in ("cache", "home", "c/d/temporary", "mirror", "good"):
                (bench.own / name).mkdir(parents=True)
            bench.secret.write_text("secret\n")
            stack.enter_context(contextlib.chdir(bench._above))
            stack.enter_context(_environment(bench.own))
            silent = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            stack.enter_context(silent)
            stack.enter_context(contextlib.redirect_stderr(silent))
            stack.enter_context(_no_network())
            yield bench

    def enter(self, kind: str) -> None:
        """Go to the directory of a kind."""
        self.work = self._above / kind
        if kind not in self._kinds:
            self._kinds.add(kind)
            self.work.mkdir()
        os.chdir(self.work)

    def strangers(self) -> list[str]:
        """What has appeared outside of the directories of the inputs, or was changed there."""
        found = []
        for directory, expected in (
            (self.root, {"a", "own"}),
            (self.root / "a", {"b"}),
            (self.root / "a" / "b", {"work"}),
            (self._above, self._kinds),
            (self.own, {"cache", "home", "c", "mirror", "good", "secret"}),
            (self.own / "c", {"d"}),
            (self.own / "c" / "d", {"temporary"}),
            (self.own / "c" / "d" / "temporary", None),
        ):
            for name in os.listdir(directory):
                if name == "up" if expected is None else name not in expected:
                    found.append(str(directory / name))
                    _remove(directory / name)
        if self.secret.read_bytes() != b"secret\n":
            found.append("the link to `secret` was followed")
            self.secret.write_text("secret\n")
        return found

    def clear(self) -> None:
        """Empty the current directory."""
        for name in os.listdir(self.work):
            _remove(self.work / name)

    def write(self, files: dict[str, bytes]) -> None:
        """Put files into the current directory, in the place of links as well."""
        for name, content in files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                path.unlink()
            path.write_bytes(content)

    def command(self, *arguments: str, stdin: bytes = b"") -> str:
        """`mtrain ARGUMENTS`: its standard output; Refused, or whatever defect it has."""
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code:
            assert result.exit_code in (2, 3, 4), f"exit code {result.exit_code}: {result.stderr}"
            raise Refused(result.stderr)
        return result.stdout

    # -- good files, made when they are first asked for --------------------------------------

    @cached_property
    def good(self) -> Path:
        """The directory of a run with all that belongs to it."""
        with contextlib.chdir(self._good):
            targets = [" ".join(reversed(line.split())) for line in SOURCES]
            for name, lines in (
                ("train.en", SOURCES),
                ("train.de", targets),
                ("valid.en", SOURCES[:4]),
                ("valid.de", targets[:4]),
            ):
                Path(name).write_text("".join(f"{line}\n" for line in lines))
            Path("c.yaml").write_text(CONFIG)
            for arguments in (
                ("prepare", "c.yaml", "--processes", "1"),
                ("train", "c.yaml"),
                ("eval", "runs/x"),
                ("eval", "runs/x", "--sweep"),
                ("export", "runs/x", "--to", "safetensors", "-o", "x.safetensors"),
            ):
                self.command(*arguments)
            _forget_times(Path("runs/x"))
        return self._good

    @cached_property
    def config(self) -> Config:
        """The config of that run."""
        return load_config(self.good / "c.yaml")

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Every file of that run, its data and its export, by its path from `good`."""
        paths = [path for path in sorted(self.good.rglob("*")) if path.is_file()]
        return {path.relative_to(self.good).as_posix(): path.read_bytes() for path in paths}

    def files_in(self, directory: str) -> dict[str, bytes]:
        """Those in one of its directories, by their paths from there."""
        prefix = f"{directory}/"
        return {k.removeprefix(prefix): v for k, v in self.files.items() if k.startswith(prefix)}

    @cached_property
    def prepared(self) -> str:
        """Where the prepared data is, from `good`."""
        return next(k for k in self.files if k.endswith("/train.json")).removesuffix("/train.json")

    @cached_property
    def translator(self) -> Translator:
        """The model of that run, loaded."""
        import mtrain

        return mtrain.load(self.good / "runs/x", device="cpu")

    @cached_property
    def hub(self) -> Hub:
        """A hub of data sets on loopback, which stays for all inputs."""
        import pytest
        from hub_server import running_hub, use_hub

        hub = self._stack.enter_context(running_hub())
        use_hub(hub, self.own / "cache", self._stack.enter_context(pytest.MonkeyPatch.context()))
        os.environ["MTRAIN_MIRROR"] = str(self.own / "mirror")
        return hub


def _forget_times(run: Path) -> None:
    """Write the same numbers for what was measured: a seed damages the same bytes again."""
    for name in ("metrics.jsonl", "sweep.json"):
        text = (run / name).read_text()
        (run / name).write_text(re.sub(r"\d+\.\d{2,}", "1.25", text))
    path = run / "checkpoints" / "step-2" / "state.json"
    state = json.loads(path.read_text())
    numbers = {key: value for key, value in state.items() if key not in ("format", "sha256")}
    numbers |= {key: 1.25 for key, value in numbers.items() if isinstance(value, float)}
    sha256 = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"format": state["format"], "sha256": sha256} | numbers))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _environment(own: Path) -> Iterator[None]:
    """The variables that lead to caches and temporary files."""
    import tempfile

    changed = {
        "HOME": str(own / "home"),
        "TMPDIR": str(own / "c" / "d" / "temporary"),
        "MTRAIN_CACHE": str(own / "cache"),
        "MTRAIN_MIRROR": str(own / "mirror"),
        "HF_HOME": str(own / "home" / "hf"),
        "no_proxy": "*",
        "CUDA_VISIBLE_DEVICES": "",
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    tempfile.tempdir = None
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        tempfile.tempdir = None


@contextmanager
def _no_network() -> Iterator[None]:
    """No host has an address but this machine, and nothing waits before it asks again."""
    ask, sleep = socket.getaddrinfo, time.sleep

    def getaddrinfo(host: Any, *arguments: Any, **more: Any) -> Any:
        if host in ("127.0.0.1", "localhost"):
            return ask(host, *arguments, **more)
        if isinstance(host, str):
            host.encode("idna")  # as the real one does, with its errors
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    socket.getaddrinfo = getaddrinfo  # type: ignore[assignment]
    time.sleep = lambda seconds: sleep(0)
    try:
        yield
    finally:
        socket.getaddrinfo, time.sleep = ask, sleep
