"""Text from outside a run: files named on the command line, and sacreBLEU's test sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtrain.config.entries import SacrebleuEntry
from mtrain.config.root import Config
from mtrain.data.catalogues import SacrebleuSource
from mtrain.data.files import StoredFile
from mtrain.data.lines import read_lines as read_stored_lines
from mtrain.data.lock import Lock
from mtrain.data.reading import Reading
from mtrain.errors import DataError
from mtrain.run import Split

FILE = "file"  # the first given pair of files among the results; then file2, file3, ...


@dataclass(frozen=True)
class GivenFiles:
    """Line-aligned files: a source to translate, or a hypothesis (optionally with its source)."""

    references: tuple[Path, ...]  # of the same sentences
    source: Path | None = None
    hypothesis: Path | None = None


def read_lines(path: Path) -> list[str]:
    """The lines of a given file, plain or compressed, as stored."""
    if path.is_dir() or not path.exists():
        raise DataError(
            f"{path} is a directory" if path.exists() else f"there is no file {path}",
            "correct the path; relative paths start at the current directory",
        )
    return list(read_stored_lines(StoredFile(str(path), path)))


def read_files(files: Sequence[GivenFiles]) -> Iterator[Split]:
    for number, given in enumerate(files, start=1):
        name = FILE if number == 1 else f"{FILE}{number}"
        first, *others = given.references
        references = read_lines(first)
        more = tuple(map(read_lines, others))
        for path, lines in zip(others, more, strict=True):
            check_aligned(path, lines, first, references)
        sources = []
        if given.source is not None:
            sources = read_lines(given.source)
            check_aligned(given.source, sources, first, references)
        digest = _digest(sources, references, *more)
        yield Split(name, sources, references, digest, more_references=more)


def read_sacrebleu(name: str, config: Config) -> Split:
    """A test set by its name in sacreBLEU, in a run's languages; downloaded if necessary."""
    entry = SacrebleuEntry(sacrebleu=name, languages=(config.source, config.target))
    reading = Reading(f"--sacrebleu {name}", Lock(Path("sacrebleu.lock")))
    sides = SacrebleuSource(entry, reading).sides()
    sources, references, *more = (list(read_stored_lines(file)) for file in sides)
    digest = _digest(sources, references, *more)
    return Split(name, sources, references, digest, more_references=tuple(more))


def check_aligned(
    first: Path, first_lines: Sequence[str], second: Path, second_lines: Sequence[str]
) -> None:
    """Two files, line n of one belonging to line n of the other."""
    if len(first_lines) != len(second_lines):
        raise DataError(
            f"{first} has {len(first_lines):,} lines, but {second} has {len(second_lines):,}",
            "give two files in which line n of one belongs to line n of the other",
        )
    if not first_lines:
        raise DataError(f"{first} and {second} are empty", "give files with at least one sentence")


def _digest(*files: list[str]) -> str:
    """The hash of given files, as `prepare` computes it for the two sides of its splits."""
    sides = ("".join(f"{line}\n" for line in side).encode() for side in files)
    return hashlib.sha256(b"\0".join(sides)).hexdigest()
