"""Standard output, where results go, and nothing else does."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import TextIO


def stdout() -> TextIO:
    """Standard output as UTF-8 with plain newlines, whatever the locale says.

    Raises a BrokenPipeError where it was closed from the start.
    """
    if sys.stdout is None:  # `>&-`
        raise BrokenPipeError(errno.EPIPE, "standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    return sys.stdout


def print_line(text: str) -> None:
    """Write a line of results."""
    stdout().write(text + "\n")


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line("  ".join(cells).rstrip())


def flush() -> None:
    """Hand over what is buffered; a BrokenPipeError where nobody reads it."""
    if sys.stdout is not None:
        sys.stdout.flush()


def discard() -> None:
    """Nobody reads any more: let what is buffered go nowhere when Python flushes it at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
