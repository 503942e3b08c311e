"""Standard output, which is for results only, and files that must not be overwritten."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from mtrain.console import printable
from mtrain.errors import UsageError
from mtrain.run import RunDir


def stdout() -> TextIO:
    """Standard output as UTF-8 with plain newlines, whatever the locale.

    Raises a BrokenPipeError if it was closed from the start.
    """
    if sys.stdout is None:  # `>&-`
        raise BrokenPipeError(errno.EPIPE, "standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        if isinstance(sys.stdout.buffer, io.RawIOBase):  # unbuffered: may write only a part
            sys.stdout = io.TextIOWrapper(io.BufferedWriter(sys.stdout.detach()))
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    return sys.stdout


def check_output(output: Path, kind: str, inputs: Iterable[Path], force: bool) -> None:
    """Raise a UsageError if OUTPUT is a file that is read, or one of another kind.

    kind of the output: `text`, `a web page`, `a model`, `a model card`, `a picture`.
    """
    if force or not os.path.isfile(output):
        return
    fix = "choose another place with -o, or overwrite it with --force"
    for path in inputs:
        with suppress(OSError, ValueError):
            if path.samefile(output):
                raise UsageError(f"{output} is an input, and would be overwritten", fix)
    with suppress(OSError):
        found = _kind_of(output)
        if found not in (kind, ""):
            raise UsageError(f"{output} holds {found}, and would be replaced by {kind}", fix)


def _kind_of(path: Path) -> str:
    """The kind of a file, by its name and its first bytes; empty for an empty file."""
    with open(path, "rb") as file:
        start = file.read(1 << 12)
    if not start:
        return ""
    if start.lstrip().lower().startswith(b"<!doctype html"):
        return "a web page"
    if start.startswith(b"\x89PNG") or b"<svg" in start:
        return "a picture"
    if start.startswith(b"---\n") and path.suffix == ".md":
        return "a model card"
    if any((parent / "config.yaml").is_file() for parent in list(path.absolute().parents)[:3]):
        return "a file of a run"
    if (path.parent / "train.source.ids").is_file():
        return "a file of prepared data"
    if path.suffix == ".safetensors":
        return "a model"
    if b"\0" in start:
        return "binary data"
    return {".yaml": "a config", ".yml": "a config", ".lock": "a lock"}.get(path.suffix, "text")


def files_of_run(run: Path) -> list[Path]:
    """The files in a run, or the exported file, and the local files that its config names."""
    from mtrain.config.load import read_run_config
    from mtrain.data.sources import local_files

    opened = RunDir.open(run)
    names = [Path(os.path.expanduser(name)) for name in local_files(read_run_config(opened))]
    return [*names, *([run] if run.is_file() else run.rglob("*"))]


def print_line(text: str) -> None:
    """Write a line of results; on a terminal, control characters are escaped."""
    out = stdout()
    out.write((printable(text) if out.isatty() else text) + "\n")


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line("  ".join(cells).rstrip())


def flush() -> None:
    """Flush standard output; a BrokenPipeError if its reader has gone away."""
    if sys.stdout is not None:
        sys.stdout.flush()


def finish() -> None:
    """Flush standard output, or drop the rest: Python's own flush at exit must not fail."""
    try:
        flush()
    except OSError:  # reported already: the disk is full, or the reader has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
