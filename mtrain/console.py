"""Standard error: messages, warnings, tables and progress bars. Nothing else writes there.

On a terminal, long work shows a tqdm bar; elsewhere (a log file, CI) nothing is redrawn, and
whoever does the work reports in plain lines instead.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from tqdm import tqdm

_is_silent = False

# What could move the cursor, change colours or the order of letters on a terminal: control
# characters but for tab and line feed, and Unicode's
# separators of lines and overrides of direction.
_UNPRINTABLE = {
    code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))
} | {code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}


def printable(text: str) -> str:
    """Text from a config, a corpus or a server as it may reach a terminal."""
    return text.encode(errors="backslashreplace").decode().translate(_UNPRINTABLE)


def command(*words: object) -> str:
    """A command to be copied into a shell, each word quoted where it must be."""
    return shlex.join(map(str, words))


def open_standard_streams() -> None:
    """Give descriptors 0 to 2 something to be, where the caller has closed them (`2>&-`).

    A file that was opened instead would get the number, and with it what others write there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (until the end)


def is_terminal() -> bool:
    """True where a bar can be redrawn in place."""
    return sys.stderr.isatty()


def silence() -> None:
    """Say nothing but errors from here on: of several processes one speaks."""
    global _is_silent
    _is_silent = True


def message(text: str) -> None:
    """One line for the user, printed above any bar that is showing."""
    if not _is_silent:
        error(text)


def error(text: str) -> None:
    """Why the program ends."""
    tqdm.write(printable(text), file=sys.stderr)
    sys.stderr.flush()


def warn(text: str) -> None:
    """Something an expert would notice; work goes on."""
    message(f"warning: {text}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns: text to the left, numbers (with separators) to the right."""
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
    """A progress bar on standard error, silent where that is no terminal."""
    return tqdm(
        total=total,
        initial=initial,
        desc=printable(description),
        unit=unit,
        unit_scale=unit == "B",
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
