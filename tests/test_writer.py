"""Writes beside training: one at a time, waited for at the end, and their errors raised."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable

import pytest
import torch

from mtrain.errors import StorageError
from mtrain.training.writer import Writer

TIMEOUT_S = 20


@pytest.fixture
def writer() -> Writer:
    return Writer(torch.device("cpu"))


def gated(gate: threading.Event, name: str, written: list[str]) -> Callable[[], None]:
    def write() -> None:
        assert gate.wait(TIMEOUT_S)
        written.append(name)

    return write


def fail() -> None:
    raise StorageError("no space left")


def test_a_write_is_waited_for_at_the_end_and_not_before(writer):
    gate, written = threading.Event(), []
    with writer:
        writer.start(gated(gate, "a", written))
        writer.check()
        assert written == []
        gate.set()
    assert written == ["a"]


def test_a_second_write_waits_for_the_first(writer):
    gate, written = threading.Event(), []
    with writer:
        writer.start(gated(gate, "a", written))
        threading.Timer(0.02, gate.set).start()
        writer.start(lambda: written.append("b"))
        assert written[0] == "a"


def test_an_error_is_raised_once_at_the_next_look(writer):
    with writer:
        writer.start(fail)
        assert writer.pending is not None
        concurrent.futures.wait([writer.pending])
        with pytest.raises(StorageError, match="no space left"):
            writer.check()
        writer.check()


@pytest.mark.parametrize("at", ["start", "wait", "end"])
def test_an_error_that_was_not_looked_for_is_raised_too(writer, at):
    def go_on() -> None:
        with writer:
            writer.start(fail)
            if at == "start":
                writer.start(lambda: None)
            elif at == "wait":
                writer.wait()

    with pytest.raises(StorageError, match="no space left"):
        go_on()
