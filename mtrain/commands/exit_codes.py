"""The exit code and the last message of every command."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mtrain import console
from mtrain.commands import output
from mtrain.errors import MtrainError, OutOfMemoryError, UsageError, is_out_of_memory
from mtrain.storage import storage_errors

CLOSED_OUTPUT = 141  # as shells report a write to a closed pipe


class _Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP outside training, which has its own handlers and saves first."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def outcomes() -> Iterator[None]:
    """Turn errors and signals into messages and exit codes; bugs keep their traceback."""
    try:
        with _signals_raise(), _known_failures():
            yield
            output.flush()
    except MtrainError as error:
        console.error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        number = signal.Signals(error.number if isinstance(error, _Stopped) else signal.SIGINT)
        console.message(f"stopped by {number.name}")
        sys.exit(128 + number)
    except BrokenPipeError:
        sys.exit(CLOSED_OUTPUT)
    finally:
        output.finish()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that partial files are removed."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread may set handlers
        yield
        return
    before = {
        number: signal.signal(number, _raise_stopped)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise _Stopped(number)


@contextmanager
def _known_failures() -> Iterator[None]:
    """Out of memory and storage errors that can happen anywhere."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            _raise_as_ours(error)
        said = str(error).partition("\n")[0].partition(". ")[0]
        raise OutOfMemoryError(
            f"out of memory{f' ({said})' if said else ''}",
            "set train.micro_batch_tokens or decode.batch_tokens lower, use a smaller beam, or "
            "stop other programs that use this memory",
        ) from error


def _raise_as_ours(error: BaseException) -> NoReturn:
    """Raise an error of the operating system as one of ours, any other unchanged."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        path = console.shortened(str(error.filename))
        raise UsageError(f"this path is too long: {path}", "choose a shorter one") from error
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        with storage_errors(Path(error.filename or "the output")):
            raise error
    raise error


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
