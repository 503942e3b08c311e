"""Many chunks on several processes: order, errors, and ends of all kinds."""

import os
import signal
from contextlib import closing

import pytest

from mtrain.errors import DataError
from mtrain.machine import process_pool
from mtrain.machine.process_pool import map_in_order


def square(n: int) -> int:
    if n == 23:
        raise DataError("no squares of 23", "try another")
    return n * n


def die_at_50(n: int) -> bytes:
    if n == 50:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(300_000)  # more than a pipe holds


def test_few_items_start_no_process(monkeypatch):
    monkeypatch.setattr(process_pool, "_Worker", None)
    few = range(process_pool.N_HERE)
    assert list(map_in_order(square, few, 2)) == [n * n for n in few]
    assert list(map_in_order(square, range(20), 1)) == [n * n for n in range(20)]


def test_results_come_in_order_and_errors_as_they_were():
    found = []
    with pytest.raises(DataError, match="no squares of 23") as caught:
        found.extend(map_in_order(square, range(10**9), 2))  # endless: read as it is needed
    assert caught.value.fix == "try another"
    found = []
    with closing(map_in_order(square, range(10**9), 2)) as results:
        found = [next(results) for _ in range(20)]
    assert found == [n * n for n in range(20)]


def test_a_killed_process_is_an_error_and_no_wait():
    with pytest.raises(DataError, match="was killed"):
        list(map_in_order(die_at_50, range(200), 2))
