"""Messages, warnings, tables and progress bars on standard error. No other module writes there.

On a terminal, long work shows a tqdm bar; in a log file, callers print plain lines instead.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from tqdm import tqdm

_is_silent = False

# Characters that could move the cursor, or change colours or the order of letters: control
# characters except tab and line feed, line separators and direction overrides.
_UNPRINTABLE = {
    code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))
} | {code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}


def printable(text: str) -> str:
    """Escape text from a config, a corpus or a server for a terminal."""
    return text.encode(errors="backslashreplace").decode().translate(_UNPRINTABLE)


def shortened(text: str, width: int = 70) -> str:
    """One line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def command(*words: object) -> str:
    """A command to copy into a shell, with its words quoted where necessary."""
    return shlex.join(map(str, words))


def open_standard_streams() -> None:
    """Open descriptors 0 to 2 where the caller has closed them (`2>&-`).

    Otherwise the next opened file would get the number, and messages would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (until the end)


def is_terminal() -> bool:
    """Whether a bar can be redrawn in place."""
    return sys.stderr.isatty()


def silence() -> None:
    """Print nothing but errors from now on: only one of several processes prints."""
    global _is_silent
    _is_silent = True


def message(text: str) -> None:
    """Print one line, above the progress bar if one is shown."""
    if not _is_silent:
        error(text)


def error(text: str) -> None:
    """Print the error that ends the program."""
    try:
        tqdm.write(printable(text), file=sys.stderr)
        sys.stderr.flush()
    except OSError as failure:  # a log on a full disk does not stop the work
        if failure.errno == errno.EPIPE:
            raise


def warn(text: str) -> None:
    """Print a warning."""
    message(f"warning: {text}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns: text left, numbers (with separators) right."""
    body = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    is_number = [bool(body) and all(_is_number(row[i]) for row in body) for i in range(len(header))]
    for row in [list(header), *body]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ]
        message("  ".join(cells).rstrip())


def bar(total: int | None, description: str, unit: str, initial: int = 0) -> tqdm[NoReturn]:
    """A progress bar on standard error, shown only on a terminal."""
    # Without the rate, which would leave no room for a bar in 80 columns.
    short = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return tqdm(
        total=total,
        initial=initial,
        desc=printable(description),
        unit=unit,
        unit_scale=unit == "B",
        bar_format=short if unit == "step" else None,
        dynamic_ncols=True,
        disable=_is_silent or not is_terminal(),
        leave=False,
        file=sys.stderr,
    )


def duration(seconds: float) -> str:
    """3725 -> '1h02m', 62 -> '1m02s', 4.2 -> '4.2s'."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _is_number(cell: str) -> bool:
    return (
        cell.replace(",", "").replace(".", "").replace("%", "").replace("-", "").strip().isdigit()
    )
