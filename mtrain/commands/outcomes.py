"""Every way in which a command ends: its message and its exit code, decided here and only here."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mtrain import console
from mtrain.commands import output
from mtrain.errors import MtrainError, OutOfMemoryError
from mtrain.run import storage_errors

CLOSED_OUTPUT = 141  # what a shell shows for a program that wrote into a closed pipe


class _Terminated(KeyboardInterrupt):
    """SIGTERM, outside training (which saves first, with handlers of its own)."""


@contextmanager
def outcomes() -> Iterator[None]:
    """Give every way to end its message and its exit code; defects of ours pass with a trace."""
    try:
        with _sigterm_raises(), _known_failures():
            yield
            output.flush()
    except MtrainError as error:
        console.error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT
        console.message(f"stopped by {number.name}")
        sys.exit(128 + number)
    except BrokenPipeError:
        output.discard()
        sys.exit(CLOSED_OUTPUT)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that half-written files are cleared away."""
    if threading.current_thread() is not threading.main_thread():  # may not set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise _Terminated


@contextmanager
def _known_failures() -> Iterator[None]:
    """What no stage can foresee, in our words."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError("out of memory", "use smaller batches or a smaller beam") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            with storage_errors(Path(error.filename or "the output")):
                raise
        raise
