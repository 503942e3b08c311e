"""How fast `mtrain prepare` is, and how much memory it takes, on millions of pairs.

    python scripts/bench_prepare.py --pairs 3000000 --data DIR
    python scripts/bench_prepare.py --pairs 10000000 --text generated

Text: `generated` (random words with the frequencies of language), or `tatoeba` (the pairs of
`tatoeba.en-de`, each joined with its neighbours at growing distances, all distinct). Prints pairs a
second with and without the training of SentencePiece, the peak memory of all processes (PSS), the
time of a second run, and what opening the store and planning an epoch's first updates take.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

CONFIG = """\
name: bench
source: en
target: de
data:
  train: {{source: train.en, target: train.de}}
  valid: {{source: valid.en, target: valid.de}}
tokenizer: {{vocab_size: {vocab_size}, max_sentences: {max_sentences}}}
"""
N_VALID = 1000

OPENING = """
import json, resource, sys, time
import numpy, torch
from pathlib import Path
from mtrain.data.batching import BatchPlan
from mtrain.data.micro_batches import cut
from mtrain.data.store import TokenStore
def memory_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started_at = memory_mb(), time.perf_counter()
store = TokenStore.open(Path(sys.argv[1]))
plan = BatchPlan.of_store(store, 25_000, seed=1, epoch=0)
first = cut(plan.sentences(0), plan.src_lengths, plan.tgt_lengths, 4096)
opened_s = time.perf_counter() - started_at
print(json.dumps({"pairs": len(store), "open_s": opened_s, "memory_mb": memory_mb() - before}))
"""


@dataclass
class Watched:
    """A finished command: when each line of its standard error came, and its peak memory."""

    elapsed_s: float
    lines: list[tuple[float, str]] = field(default_factory=list)  # seconds from its start
    peak_mb: float = 0.0

    def started_s(self, words: str) -> float:
        """When the line that starts with these words came."""
        return next(at for at, line in self.lines if line.startswith(words))


def main() -> None:
    """Make text, prepare it, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=3_000_000)
    parser.add_argument("--text", choices=["generated", "tatoeba", "both"], default="both")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--max-sentences", type=int, default=2_000_000)
    parser.add_argument("--processes", type=int, help="default: the cores")
    arguments = parser.parse_args()
    names = ["generated", "tatoeba"] if arguments.text == "both" else [arguments.text]
    for name in names:
        with tempfile.TemporaryDirectory(prefix="bench-prepare-") as directory:
            bench(name, Path(directory), arguments)


def bench(name: str, directory: Path, arguments: argparse.Namespace) -> None:
    """One text, from files to an opened store."""
    n_pairs = arguments.pairs
    pairs = generated() if name == "generated" else joined_neighbours(arguments.data)
    write(directory, "valid", islice(pairs, N_VALID))
    write(directory, "train", islice(pairs, n_pairs))
    settings = {"vocab_size": arguments.vocab_size, "max_sentences": arguments.max_sentences}
    (directory / "bench.yaml").write_text(CONFIG.format(**settings))
    command = [sys.executable, "-m", "mtrain", "prepare", "bench.yaml"]
    if arguments.processes:
        command += ["--processes", str(arguments.processes)]
    first, second = watch(command, directory), watch(command, directory)
    [prepared] = [path.parent for path in (directory / "data").rglob("manifest.json")]
    manifest = json.loads((prepared / "manifest.json").read_text())
    learning_s = first.started_s("encoding") - first.started_s("training SentencePiece")
    opened = json.loads(
        subprocess.run(
            [sys.executable, "-c", OPENING, str(prepared)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    rest_s = first.elapsed_s - learning_s
    print(
        f"{name}: {n_pairs:,} pairs read, {manifest['n_train_pairs']:,} kept, "
        f"{manifest['n_source_tokens'] + manifest['n_target_tokens']:,} tokens\n"
        f"  prepare                {first.elapsed_s:8.1f} s  {n_pairs / first.elapsed_s:,.0f} "
        f"pairs/s\n"
        f"  of it SentencePiece    {learning_s:8.1f} s\n"
        f"  clean, encode, write   {rest_s:8.1f} s  {n_pairs / rest_s:,.0f} pairs/s\n"
        f"  peak memory            {first.peak_mb:8.0f} MB\n"
        f"  second run             {second.elapsed_s:8.2f} s\n"
        f"  opening in training    {opened['open_s']:8.2f} s  {opened['memory_mb']:.0f} MB",
        flush=True,
    )
    for at_s, line in first.lines:
        print(f"    {at_s:7.1f} s  {line}")


def generated(seed: int = 1, n_words: int = 60_000) -> Iterator[tuple[str, str]]:
    """Sentences of 5 to 24 words; the n-th frequent word has a frequency of about 1 / n."""
    rng = np.random.default_rng(seed)
    sides = []
    for endings in (("a", "en", "ol", "i"), ("er", "ung", "ä", "st")):
        letters = rng.integers(0, 26, (n_words, 6))
        sizes = rng.integers(2, 7, n_words)
        sides.append(
            np.array(
                [
                    "".join(chr(97 + letter) for letter in row[:size]) + endings[size % 4]
                    for row, size in zip(letters, sizes, strict=True)
                ]
            )
        )
    frequencies = 1 / np.arange(2, n_words + 2)
    cumulated = np.cumsum(frequencies / frequencies.sum())
    while True:
        lengths = rng.integers(5, 25, 10_000)
        drawn = np.searchsorted(cumulated, rng.random(int(lengths.sum())))
        drawn = np.minimum(drawn, n_words - 1)
        ends = np.cumsum(lengths)
        source, target = (side[drawn].tolist() for side in sides)
        for start, end in zip(ends - lengths, ends, strict=True):
            yield " ".join(source[start:end]) + ".", " ".join(target[start:end]) + "."


def joined_neighbours(data: Path) -> Iterator[tuple[str, str]]:
    """Every pair of tatoeba.en-de with the one behind it, then with the next but one, ..."""
    sides = []
    for language in ("en", "de"):
        with gzip.open(
            data / "tatoeba.en-de" / f"train.{language}.gz", "rt", encoding="utf-8"
        ) as file:
            sides.append(file.read().split("\n")[:-1])
    for distance in range(1, len(sides[0])):
        source, target = (
            [f"{a} {b}" for a, b in zip(side, side[distance:], strict=False)] for side in sides
        )
        yield from zip(source, target, strict=True)


def write(directory: Path, name: str, pairs: Iterator[tuple[str, str]]) -> None:
    """Two files, a sentence a line."""
    with (
        open(directory / f"{name}.en", "w", encoding="utf-8") as source,
        open(directory / f"{name}.de", "w", encoding="utf-8") as target,
    ):
        for pair in pairs:
            source.write(pair[0] + "\n")
            target.write(pair[1] + "\n")


def watch(command: list[str], directory: Path) -> Watched:
    """Run a command to its end; its children count into its memory."""
    started_at = time.perf_counter()
    process = subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    watched = Watched(0.0)
    stop = threading.Event()
    sampler = threading.Thread(target=sample_memory, args=(process.pid, watched, stop))
    sampler.start()
    for line in process.stderr:
        watched.lines.append((time.perf_counter() - started_at, line.rstrip()))
    code = process.wait()
    watched.elapsed_s = time.perf_counter() - started_at
    stop.set()
    sampler.join()
    if code:
        raise SystemExit("\n".join(line for _, line in watched.lines))
    return watched


def sample_memory(root: int, watched: Watched, stop: threading.Event) -> None:
    """Keep the largest sum over a process and all below it, sampled twice a second."""
    while not stop.wait(0.5):
        total_kb = sum(map(pss_kb, descendants(root)))
        watched.peak_mb = max(watched.peak_mb, total_kb / 1024)


def descendants(root: int) -> list[int]:
    """A process, its children, theirs, and so on."""
    found, pending = [], [root]
    while pending:
        pid = pending.pop()
        found.append(pid)
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                pending += map(int, path.read_text().split())
            except OSError:  # ended meanwhile
                continue
    return found


def pss_kb(pid: int) -> int:
    """Memory of a process, with shared pages counted in proportion."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
