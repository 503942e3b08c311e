"""Hostile inputs, a few of each kind; `slow`: 100,000; `tests/fuzzing.py N`: any number."""

import os
import tempfile
import time
from pathlib import Path

import fuzzing
import pytest
from fuzz_bench import Bench, Given
from fuzz_kinds import KINDS, Kind
from fuzzing import ACCEPTED, FAILED, REFUSED, numbered

from mtrain.errors import DataError

SEED = 1
INPUTS = numbered(2000, list(KINDS))


@pytest.fixture(scope="module")
def bench():
    with fuzzing.opened_bench() as opened:
        yield opened


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_inputs_are_refused_or_come_back(kind, bench):
    inputs = [each for each in INPUTS if each[0] == kind]
    tallies = fuzzing.tally(bench, SEED, inputs)
    assert sum(tallies[kind].counts) == len(inputs)
    assert not fuzzing.failures_of(tallies), fuzzing.described(fuzzing.failures_of(tallies))


@pytest.mark.slow
def test_a_hundred_thousand_of_them():
    n_inputs = int(os.environ.get("MTRAIN_FUZZ_INPUTS", "100000"))
    n_processes = 1 if "PYTEST_XDIST_WORKER" in os.environ else os.cpu_count() or 1
    tallies = fuzzing.tally_in_processes(SEED, n_inputs, list(KINDS), n_processes)
    print(fuzzing.table(tallies))
    failures = fuzzing.failures_of(tallies)
    assert not failures, fuzzing.described(failures)
    for kind, tally in tallies.items():
        if sum(tally.counts) >= 100:  # fewer may all be refused by chance
            assert min(tally.counts[:2]) > 0, f"{kind}: {tally.counts} refused, accepted, failed"


# -- the suite itself ------------------------------------------------------------------------


def refuse(given: Given, bench: Bench) -> None:
    raise DataError("no text")


def fail(given: Given, bench: Bench) -> None:
    raise KeyError("a defect")


def write_above(given: Given, bench: Bench) -> None:
    Path("..", "up").write_text("x")


def write_beside_temporary_files(given: Given, bench: Bench) -> None:
    Path(tempfile.mkdtemp(), "../../../../up").write_text("x")


def write_through_a_link(given: Given, bench: Bench) -> None:
    Path("link").symlink_to(bench.secret)
    Path("link").write_text("x")


def take_long(given: Given, bench: Bench) -> None:
    try:
        while time.monotonic():
            pass
    except Exception as error:  # must not hide the interruption
        raise DataError("hidden") from error


def take_memory(given: Given, bench: Bench) -> None:
    assert len(b"x" * (fuzzing._peak_mib() + fuzzing.LIMIT_MIB + 64 << 20))


@pytest.mark.parametrize(
    ("check", "outcome", "place"),
    [
        (lambda given, bench: None, ACCEPTED, ""),
        (refuse, REFUSED, ""),
        (fail, FAILED, "KeyError"),
        (write_above, FAILED, "a/b/work/up"),
        (write_beside_temporary_files, FAILED, "own/up"),
        (write_through_a_link, FAILED, "secret"),
        (take_long, FAILED, "seconds"),
        (take_memory, FAILED, "MiB"),
    ],
)
def test_what_an_input_does_is_noticed(bench, monkeypatch, check, outcome, place):
    if check is take_long:
        monkeypatch.setattr(fuzzing, "LIMIT_S", 0.2)
    monkeypatch.setitem(KINDS, "tried", Kind(1, lambda random, bench: {"a": 1}, check))
    tallies = fuzzing.tally(bench, SEED, [("tried", 0)])
    assert tallies["tried"].counts[outcome] == 1
    assert [place in failure.place for failure in fuzzing.failures_of(tallies)] == (
        [True] if place else []
    )
    assert bench.strangers() == []


def test_a_seed_gives_the_same_inputs(bench):
    for kind in KINDS.values():
        kind.prepare(bench)
        once, again = (kind.make(fuzzing.generator_of(SEED, "x", 1), bench) for _ in range(2))
        assert once == again


def test_a_crash_is_noted_and_the_rest_tried(tmp_path, monkeypatch):
    """The process of the inputs ends by a signal: here before its second one, by hand."""
    crashing = tmp_path / "fuzzing.py"
    crashing.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "records = Path(sys.argv[sys.argv.index('--part') + 1], 'records')\n"
        f"done = records.stat().st_size // {fuzzing._RECORD.size}\n"
        "with open(records, 'ab') as file:\n"
        f"    file.write({fuzzing._RECORD.pack(ACCEPTED, 0.5)!r} * (2 if done else 1))\n"
        "if not done:\n"
        "    os.kill(os.getpid(), 11)\n"
    )
    monkeypatch.setattr(fuzzing, "__file__", str(crashing))
    tallies = fuzzing.tally_in_processes(SEED, 4, ["tsv"], 1)
    assert tallies["tsv"].counts == [0, 3, 1]
    (failure,) = fuzzing.failures_of(tallies)
    assert (failure.place, failure.input) == ("crash: SIGSEGV", f"{SEED} tsv 1")
