"""Processes that run mtrain, forked from one that has loaded everything already.

Started as a program, this file is that warm process: it reads one JSON object a line and answers
with one. `Forker` is its other end, for tests.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conftest import mtrain_environment


class Forker:
    """Starts `mtrain ARGUMENTS` within milliseconds; each is a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=mtrain_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it is warm

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def start(
        self,
        arguments: list[str],
        directory: Path,
        stderr: Path,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """-> the process id"""
        return self._ask(
            arguments=arguments,
            directory=str(directory),
            stderr=str(stderr),
            environment=dict(environment or {}),
        )

    def wait(self, pid: int) -> int:
        """-> the exit code, negative for a signal"""
        return os.waitstatus_to_exitcode(self._ask(wait=pid))

    def _ask(self, **request: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def serve() -> None:
    """Fork for each request, until the other end is closed."""
    print("warm", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[1]
        else:
            answer = os.fork()
            if answer == 0:
                run(**request)
        print(answer, flush=True)


def run(arguments: list[str], directory: str, stderr: str, environment: dict[str, str]) -> None:
    """Become `mtrain ARGUMENTS`; never returns."""
    os.chdir(directory)
    os.environ.update(environment)
    log = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["mtrain", *arguments]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for module in ("mtrain.training.train", "sacrebleu", "sentencepiece", "torch._dynamo"):
        importlib.import_module(module)  # what training loads sooner or later
    from mtrain.cli import main

    serve()
