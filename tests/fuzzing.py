"""Hostile inputs for everything that mtrain reads, each made from a random seed.

    python tests/fuzzing.py 1000000                        a table of a million inputs, by kind
    python tests/fuzzing.py 20000 --kinds config override  of some kinds only
    python tests/fuzzing.py --input "1 config 4711"        print and try one input

An input must end in one of two ways: an MtrainError, or success with a round trip that gives the
same. Anything else is a failure: another exception, a broken round trip, a crash of the process,
too much time or memory, a file that appears outside of the directory of the input. What is made
and tried for each kind is in `fuzz_kinds`; how bytes and trees are damaged is in `mutations`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType

from fuzz_kinds import KINDS, Bench

import mtrain
from mtrain.errors import MtrainError

LIMIT_S = 20.0  # for one input
LIMIT_MIB = 512  # by which an input may raise the peak of the process's memory
REFUSED, ACCEPTED, FAILED = range(3)
_RECORD = struct.Struct("<Bf")  # what a worker notes of an input: its outcome, seconds
_PACKAGE = str(Path(mtrain.__file__).parent)


class BrokenPromise(BaseException):
    """An input took too much, or wrote where it must not; `except Exception` lets it pass."""


@dataclass
class Failure:
    """What went wrong in one place, and the shortest input seen that shows it."""

    place: str  # type of the exception, innermost function of mtrain
    input: str  # seed, kind and number, as --input takes them
    shown: str
    trace: str
    n: int = 1


@dataclass
class Tally:
    """What became of the inputs of a kind."""

    counts: list[int] = field(default_factory=lambda: [0, 0, 0])  # refused, accepted, failed
    seconds: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, outcome: int, seconds: float) -> None:
        """Count an input."""
        self.counts[outcome] += 1
        self.seconds += seconds

    def note(self, failure: Failure) -> None:
        """Keep the shortest input of each place."""
        known = self.failures.get(failure.place, failure)
        shorter = min(known, failure, key=lambda each: len(each.shown))
        shorter.n = failure.n if known is failure else known.n + failure.n
        self.failures[failure.place] = shorter


Tallies = dict[str, Tally]  # by kind
Numbered = tuple[str, int]  # kind and number of an input; with the seed they make it


# -- one input -------------------------------------------------------------------------------


def generator_of(seed: int, kind: str, number: int) -> random.Random:
    """What an input is drawn from: it depends on nothing else."""
    return random.Random(f"{seed} {kind} {number}")


def try_one(bench: Bench, seed: int, kind: str, number: int) -> tuple[int, float, Failure | None]:
    """Make an input and try it: (outcome, seconds, what went wrong)."""
    bench.enter(kind)
    given = KINDS[kind].make(generator_of(seed, kind, number), bench)
    started_s, peak_mib = time.perf_counter(), _peak_mib()
    outcome, failure = ACCEPTED, None
    try:
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            KINDS[kind].check(given, bench)
        except MtrainError as error:
            str(error)
            outcome = REFUSED
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if (n_mib := _peak_mib() - peak_mib) > LIMIT_MIB:
            raise BrokenPromise(f"{n_mib:,} MiB of memory")
        if strangers := bench.strangers():
            raise BrokenPromise(f"files outside of its directory: {strangers}")
    except (Exception, BrokenPromise) as error:
        trace = "".join(traceback.format_exception(error, limit=-12))[-3000:]
        outcome = FAILED
        failure = Failure(_place_of(error), f"{seed} {kind} {number}", repr(given), trace)
    return outcome, time.perf_counter() - started_s, failure


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _place_of(error: BaseException) -> str:
    """The type of an exception, and the innermost function of mtrain that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_PACKAGE)]
    inner = (ours or frames)[-1]
    what = type(error).__name__
    if isinstance(error, AssertionError | BrokenPromise):
        what += f" ({str(error)[:80]})"
    return f"{what} in {os.path.relpath(inner.filename, Path(_PACKAGE).parent)}: {inner.name}"


@contextmanager
def time_limit() -> Iterator[None]:
    """An input that takes too long is interrupted."""

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        raise BrokenPromise(f"more than {LIMIT_S:g} seconds")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


# -- many inputs -----------------------------------------------------------------------------


def numbered(n_inputs: int, kinds: Sequence[str]) -> list[Numbered]:
    """The inputs, each kind in proportion to its weight, all kinds in turn."""
    total = sum(KINDS[kind].weight for kind in kinds)
    counts = {kind: max(4, round(n_inputs * KINDS[kind].weight / total)) for kind in kinds}
    places = [((i + 0.5) / n, kind, i) for kind, n in counts.items() for i in range(n)]
    return [(kind, number) for _, kind, number in sorted(places)]


Note = Callable[[str, int, float, Failure | None], None]  # kind, outcome, seconds, what failed


@contextmanager
def opened_bench() -> Iterator[Bench]:
    """A bench in a directory of its own, in memory where the system offers it."""
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="mtrain-fuzz-", dir=fast))
    try:
        with Bench.open(root) as bench:
            yield bench
    finally:
        shutil.rmtree(root, ignore_errors=True)


def try_all(bench: Bench, seed: int, inputs: Sequence[Numbered], note: Note) -> None:
    """Try inputs in this process, which a crash takes along; `note` is told of each."""
    for kind in dict.fromkeys(kind for kind, _ in inputs):
        KINDS[kind].prepare(bench)
    with time_limit():
        for kind, number in inputs:
            note(kind, *try_one(bench, seed, kind, number))


def tally(bench: Bench, seed: int, inputs: Sequence[Numbered]) -> Tallies:
    """Try inputs in this process, and count."""
    tallies = {kind: Tally() for kind, _ in inputs}

    def note(kind: str, outcome: int, seconds: float, failure: Failure | None) -> None:
        tallies[kind].add(outcome, seconds)
        if failure:
            tallies[kind].note(failure)

    try_all(bench, seed, inputs, note)
    return tallies


def tally_in_processes(seed: int, n_inputs: int, kinds: Sequence[str], n: int) -> Tallies:
    """Try inputs in n processes, so that a crash is noted as well."""
    tallies = {kind: Tally() for kind in kinds}
    arguments = [str(n_inputs), "--seed", str(seed), "--kinds", *kinds]
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(n) as threads:
        parts = [_Part(Path(directory, str(i)), arguments, (i, n)) for i in range(n)]
        list(threads.map(_Part.run, parts))
        for i, part in enumerate(parts):
            inputs = islice(numbered(n_inputs, kinds), i, None, n)
            part.add_to(tallies, seed, list(inputs))
    return tallies


class _Part:
    """Every n-th input, tried by one process after the other: a crash ends the process.

    They append to two files: a record for each input, and a line of JSON for each failure.
    """

    def __init__(self, path: Path, arguments: Sequence[str], share: tuple[int, int]) -> None:
        self.path, self._arguments, self._share = path, arguments, share
        self._crashes: dict[int, str] = {}  # position of the input -> what ended the process

    def run(self) -> None:
        """Until all inputs have been tried."""
        self.path.mkdir()
        (self.path / "records").touch()
        (self.path / "failures").touch()
        while True:
            share = [str(self.path), *map(str, self._share)]
            with open(self.path / "stderr", "w+b") as stderr:
                ended = subprocess.run(
                    [sys.executable, __file__, *self._arguments, "--part", *share],
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    check=False,
                )
                stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - 2000))
                said = stderr.read().decode(errors="replace")
            if ended.returncode == 0:
                return
            if ended.returncode > 0:
                raise RuntimeError(f"the process of the inputs failed:\n{said}")
            name = signal.Signals(-ended.returncode).name
            self._crashes[self._n_records()] = f"{name}\n{said}"
            with open(self.path / "records", "ab") as file:
                file.write(_RECORD.pack(FAILED, 0.0))

    def _n_records(self) -> int:
        return (self.path / "records").stat().st_size // _RECORD.size

    def work(self, seed: int, inputs: Sequence[Numbered]) -> None:
        """Try what is left of the inputs, in the process that was started for it."""
        with (
            open(self.path / "records", "ab", buffering=0) as records,
            open(self.path / "failures", "a", buffering=1) as failures,
        ):

            def note(kind: str, outcome: int, seconds: float, failure: Failure | None) -> None:
                if failure:
                    failures.write(json.dumps([kind, asdict(failure)]) + "\n")
                records.write(_RECORD.pack(outcome, seconds))

            with opened_bench() as bench:
                try_all(bench, seed, inputs[self._n_records() :], note)

    def add_to(self, tallies: Tallies, seed: int, inputs: Sequence[Numbered]) -> None:
        """Count what became of the inputs."""
        records = _RECORD.iter_unpack((self.path / "records").read_bytes())
        for (kind, _), (outcome, seconds) in zip(inputs, records, strict=True):
            tallies[kind].add(outcome, seconds)
        for line in (self.path / "failures").read_text().splitlines():
            kind, failure = json.loads(line)
            tallies[kind].note(Failure(**failure))
        for position, what in self._crashes.items():
            kind, number = inputs[position]
            place = f"crash: {what.splitlines()[0]}"
            tallies[kind].note(Failure(place, f"{seed} {kind} {number}", "", what))


# -- what is printed -------------------------------------------------------------------------


def table(tallies: Tallies) -> str:
    """How many inputs of each kind ended in which way."""
    titles = ("kind", "inputs", "refused", "accepted", "failed", "inputs/s")
    rows = [
        (kind, sum(tally.counts), *tally.counts, round(sum(tally.counts) / (tally.seconds or 1)))
        for kind, tally in tallies.items()
    ]
    sums = [sum(column) for column in list(zip(*rows, strict=True))[1:5]]
    seconds = sum(tally.seconds for tally in tallies.values())
    rows.append(("all", *sums, round(sums[0] / (seconds or 1))))
    lines = [f"{titles[0]:<16}" + "".join(f"{title:>11}" for title in titles[1:])]
    lines += [f"{row[0]:<16}" + "".join(f"{number:>11,}" for number in row[1:]) for row in rows]
    return "\n".join(lines)


def failures_of(tallies: Tallies) -> list[Failure]:
    """All failures, by place."""
    found = [failure for tally in tallies.values() for failure in tally.failures.values()]
    return sorted(found, key=lambda failure: failure.place)


def described(failures: Sequence[Failure], n_characters: int = 600) -> str:
    """Each failure with the command that repeats it."""
    return "\n\n".join(
        f"{failure.place} ({failure.n:,} inputs)\n"
        f'  python tests/fuzzing.py --input "{failure.input}"\n'
        f"  {failure.shown[:n_characters]}"
        for failure in failures
    )


def main() -> int:
    """The command line; the exit code is 1 where an input failed."""
    parser = argparse.ArgumentParser(description="Tries hostile inputs; see the top of this file.")
    parser.add_argument("n_inputs", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--input", metavar='"SEED KIND NUMBER"', help="print and try this one")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)  # of a process of ours
    chosen = parser.parse_args()
    if chosen.input:
        seed, kind, number = chosen.input.split()
        with opened_bench() as bench:
            try_all(bench, int(seed), [(kind, int(number))], _print_outcome)
        return 0
    if chosen.part:
        path, i, n = chosen.part
        inputs = numbered(chosen.n_inputs, chosen.kinds)[int(i) :: int(n)]
        _Part(Path(path), [], (int(i), int(n))).work(chosen.seed, inputs)
        return 0
    tallies = tally_in_processes(chosen.seed, chosen.n_inputs, chosen.kinds, chosen.processes)
    failures = failures_of(tallies)
    print(table(tallies))
    if failures:
        print("\n" + described(failures))
    return 1 if failures else 0


def _print_outcome(kind: str, outcome: int, seconds: float, failure: Failure | None) -> None:
    print(f"{kind}: {('refused', 'accepted', 'failed')[outcome]} in {seconds:.3f} s")
    if failure:
        print(f"{failure.shown}\n{failure.trace}")


if __name__ == "__main__":
    sys.exit(main())
