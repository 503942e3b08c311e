"""Signals that stop training at the next moment when it can save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from mtrain.errors import StoppedBySignal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: a closed terminal
FIX = "the same command resumes from there"


class StopRequest:
    """Remembers the first signal; a second one ends the process without saving.

    unsaved describes, for the message, the work that would be lost
    """

    def __init__(self, unsaved: Callable[[], str]) -> None:
        self.unsaved = unsaved
        self.signal: signal.Signals | None = None
        self.is_immediate = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # the only one that can catch them
            self.previous = {
                number: signal.signal(number, self.receive)
                for number in SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN  # such as under nohup
            }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def receive(self, number: int, frame: FrameType | None) -> None:
        is_second, self.signal = self.signal is not None, signal.Signals(number)
        if is_second:
            self.__exit__()
            raise StoppedBySignal(self.signal, f"without saving: {self.unsaved()}", FIX)
        if self.is_immediate:
            self.leave("during validation, after saving")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal takes effect immediately, as everything is saved."""
        self.is_immediate = True
        try:
            if self.signal is not None:
                self.leave("before validation, after saving")
            yield
        finally:
            self.is_immediate = False

    def leave(self, message: str) -> NoReturn:
        """Raise an error that becomes exit code 129, 130 or 143."""
        assert self.signal is not None
        raise StoppedBySignal(self.signal, message, FIX)
