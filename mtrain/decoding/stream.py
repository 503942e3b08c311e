"""Translates streams and files: n lines in, n lines out, in order, as they arrive.

All lines available at a time are translated together, without waiting for more: a typed line is
answered at once, a full pipe is read in batches. A job that writes a file can be resumed.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from mtrain import console
from mtrain.config.literals import Format
from mtrain.data.lines import (
    BYTE_ORDER_MARK,
    MAX_LINE_BYTES,
    OVERLONG,
    check_is_text,
    limited_lines,
)
from mtrain.decoding.alignment import Alignment, AlignmentHead, align
from mtrain.decoding.engine import Search
from mtrain.decoding.translate import Progress, Translation, Translator
from mtrain.errors import DataError, StorageError, UsageError
from mtrain.machine import runtime
from mtrain.model.weights import digest, weights_of
from mtrain.run_shapes import ANY
from mtrain.storage import atomic_write, lock_file, read_json, storage_errors, write_json

LINES_AT_A_TIME = 2000  # sorted by length and translated together
READ_BYTES = 1 << 20
WARNINGS_SHOWN = 20
_TOO_LONG = f"more than {MAX_LINE_BYTES:,} bytes"


@dataclass(frozen=True)
class SecondFile:
    """A second input; its line n belongs to line n of the first."""

    lines: BinaryIO
    role: Literal["prefix", "target"]  # starts of the translations; translations to score

    def take(self, n: int) -> list[str]:
        """The next n lines; a DataError if there are fewer."""
        lines = list(islice(limited_lines(self.lines), n))
        if len(lines) < n:
            raise self._of_another_length("fewer lines than the input")
        lines = list(map(_without_end, lines))
        if OVERLONG in lines:
            raise DataError(f"{self.name}: a line of {_TOO_LONG}", "cut or remove the line")
        return list(map(_text, lines))

    def check_end(self) -> None:
        """Raise a DataError if lines are left at the end of the input."""
        if self.lines.readline():
            raise self._of_another_length("more lines than the input")

    def check_length(self, source: BinaryIO) -> None:
        """Raise the same errors before any work, if both are files whose lines can be counted."""
        if _regular_file(source) and _regular_file(self.lines):
            n_own, n_wanted = _count_lines(self.lines), _count_lines(source)
            if n_own != n_wanted:
                raise self._of_another_length(f"{n_own:,} lines, but the input {n_wanted:,}")

    @property
    def name(self) -> str:
        return str(getattr(self.lines, "name", f"the {self.role} file"))

    def _of_another_length(self, fact: str) -> DataError:
        return DataError(
            f"{self.name} has {fact}",
            f"give one line (it may be empty) for each line of the input: its {self.role}",
        )


@dataclass(frozen=True)
class Job:
    """A stream to translate, or to score with targets as the second file, and the output format.

    As text, the output is the translation; with n_best above 1, that many lines
    `number<TAB>score<TAB>text` per input line, the last repeated if the search found fewer; or the
    log-probability of the target. With `head`, `<TAB>word links` follow. jsonl: one object per
    input line.
    """

    translator: Translator
    source: BinaryIO
    search: Search
    second: SecondFile | None = None
    head: AlignmentHead | None = None  # the head for word links
    format: Format = "text"

    @property
    def scores(self) -> bool:
        return self.second is not None and self.second.role == "target"

    @property
    def lines_per_answer(self) -> int:
        """Output lines for a line of input."""
        return 1 if self.scores or self.format == "jsonl" else self.search.n_best

    def check(self) -> None:
        """Raise the errors that can be known before any work."""
        self.translator.check(self.search)
        if self.second is not None:
            self.second.check_length(self.source)

    def to_stream(self, out: TextIO) -> int:
        """Translate lines as they arrive, flush each batch, and return the number of lines.

        Raises BrokenPipeError if the reader has gone away.
        """
        self.check()
        if _is_same_file(_regular_file(self.source), _regular_file(out)):
            raise UsageError("the input is standard output as well", "write to another file")
        n_lines, is_terminal = 0, out.isatty()
        with _progress(self.source, 0, is_shown=not is_terminal) as progress:
            for texts in self._answers(0, progress):
                out.write("".join(map(console.printable, texts) if is_terminal else texts))
                out.flush()
                n_lines += len(texts)
        return n_lines

    def to_file(self, output: Path) -> int:
        """Translate into a file and return the number of lines.

        OUT.part grows in order, and is renamed to OUT at the end. OUT.part.json records the input,
        the model and the settings: after a kill, the same job resumes after the last line of
        OUT.part; any other job starts over, and so does a job whose input is a pipe, which cannot
        be read twice.
        """
        if output.exists() and not output.is_file() and not output.is_dir():  # such as /dev/null
            with storage_errors(output), open(output, "w", encoding="utf-8", newline="\n") as out:
                return self.to_stream(out)
        if output.is_dir() or not output.absolute().parent.is_dir():
            problem = "it is a directory" if output.is_dir() else "its directory does not exist"
            raise StorageError(f"cannot write {output}: {problem}", "choose another place with -o")
        self.check()
        with lock_file(output.with_name(f".{output.name}.lock")) as is_held:
            if not is_held:
                raise UsageError(
                    f"another process is writing {output}",
                    "wait for it to end, or choose another file",
                )
            return self._write(output)

    def _write(self, output: Path) -> int:
        """Write OUTPUT, which is locked."""
        part = output.with_name(output.name + ".part")
        note_path = part.with_name(part.name + ".json")
        self._check_partial(part, note_path)
        with storage_errors(part):
            n_done = self._resume(part, note_path)
            n_lines = n_done
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with (
                open(os.open(part, flags, 0o666), "ab") as file,
                _progress(self.source, n_done, True) as progress,
            ):
                try:
                    for texts in self._answers(n_done, progress):
                        file.write("".join(texts).encode())
                        file.flush()
                        n_lines += len(texts)
                except KeyboardInterrupt:
                    console.message(f"{part} holds {n_lines:,} lines; the same command resumes")
                    raise
                os.fsync(file.fileno())
            os.replace(part, output)
            note_path.unlink()
        return n_lines

    def _check_partial(self, part: Path, note_path: Path) -> None:
        """Raise a UsageError if OUT.part or its note is an input, or not a file of ours."""
        inputs = [self.source] if self.second is None else [self.source, self.second.lines]
        with storage_errors(part):
            for path in (part, note_path):
                if not os.path.lexists(path):
                    continue
                status = path.lstat()
                is_input = any(_is_same_file(_regular_file(file), status) for file in inputs)
                is_foreign = not stat.S_ISREG(status.st_mode) or not _is_note(note_path)
                if is_input or is_foreign:
                    what = "is an input" if is_input else "was not written by mtrain"
                    raise UsageError(
                        f"{path} {what}, but mtrain collects the output there until it is complete",
                        "rename it, or choose another output with -o",
                    )

    def _resume(self, part: Path, note_path: Path) -> int:
        """The number of input lines already translated in OUT.part; 0 for a new job."""
        note = self._note()
        n_done = 0
        if part.exists() and note_path.exists():
            if because := _difference(note, note_path):
                console.message(f"starting over instead of resuming {part}: {because}")
            else:
                n_done = _whole_answers(part, self.lines_per_answer)
        if n_done:
            console.message(f"resuming at line {n_done + 1:,}: {part} holds the lines before it")
        else:
            write_json(note_path, note)  # first: OUT.part without a note is a file of others
            atomic_write(part, b"")
        return n_done

    def _note(self) -> dict[str, Any]:
        """Everything that determines the content of OUT.part."""
        identity = _identity(self.source)
        if self.second is not None and identity is not None:
            other = _identity(self.second.lines)
            identity = None if other is None else {**identity, self.second.role: other}
        engine = self.translator.engine
        return {
            "input": identity,
            "model": [digest(weights_of(model)) for model in engine.models],
            "engine": f"{engine.program} {engine.precision}",
            "options": asdict(self.search) | {"format": self.format},
            "tag": self.translator.src_tokenizer.tag,
            "alignment": None if self.head is None else asdict(self.head),
        }

    def _answers(self, n_done: int, progress: Progress) -> Iterator[list[str]]:
        """The output for each line after the first `n_done`, as many as are available at a time."""
        number = n_warnings = n_since_trim = 0
        for raw in waiting_lines(self.source):
            others = self.second.take(len(raw)) if self.second is not None else None
            n_skipped = min(len(raw), max(0, n_done - number))
            number += n_skipped
            raw, others = raw[n_skipped:], others and others[n_skipped:]
            if not raw:
                continue
            if self.scores and OVERLONG in raw:
                place = f"line {number + raw.index(OVERLONG) + 1:,} of the source"
                raise DataError(f"{place}: {_TOO_LONG}", "cut or remove the line")
            if self.scores:
                yield self._scored(list(map(_text, raw)), others or [], number)
                progress(len(raw))
            else:
                translations = self._translated(raw, others, number, progress)
                n_warnings = _warn(translations, number, n_warnings)
                yield self._formatted(translations, number)
            number += len(raw)
            n_since_trim += len(raw)
            if n_since_trim >= LINES_AT_A_TIME:
                runtime.give_memory_back()
                n_since_trim = 0
        if self.second is not None:
            self.second.check_end()
        if n_warnings > WARNINGS_SHOWN:
            console.warn(
                f"{n_warnings - WARNINGS_SHOWN:,} more such warnings; --format jsonl shows them all"
            )

    def _translated(
        self, raw: list[bytes], prefixes: list[str] | None, first: int, progress: Progress
    ) -> list[Translation]:
        """Translations, with warnings about the bytes of their lines added."""
        lines = list(map(_text, raw))
        found = self.translator.translate_detailed(lines, self.search, progress, prefixes, first)
        return [
            replace(translation, warnings=[*_encoding_warnings(line), *translation.warnings])
            for line, translation in zip(raw, found, strict=True)
        ]

    def _formatted(self, translations: list[Translation], first: int) -> list[str]:
        """The output for each translation; `first` counts the input lines before them."""
        found = [(t.source, hypothesis.tokens) for t in translations for hypothesis in t.hypotheses]
        links = self._links(found)
        answers = []
        for number, translation in enumerate(translations, first + 1):
            hypotheses = [(hypothesis, next(links)) for hypothesis in translation.hypotheses]
            if self.format == "jsonl":
                value = {
                    "line": number,
                    "source": translation.source,
                    "translation": translation.text,
                    "score": translation.score,
                    "hypotheses": [asdict(h) | _as_json(alignment) for h, alignment in hypotheses],
                    "warnings": translation.warnings,
                }
                answers.append(json.dumps(value, ensure_ascii=False) + "\n")
            elif self.search.n_best == 1:
                [(hypothesis, alignment)] = hypotheses
                answers.append(f"{hypothesis.text}{_as_column(alignment)}\n")
            else:
                lines = [
                    f"{number}\t{h.score:.4f}\t{h.text}{_as_column(alignment)}\n"
                    for h, alignment in hypotheses
                ]
                answers.append("".join(lines + lines[-1:] * (self.search.n_best - len(lines))))
        return answers

    def _scored(self, lines: list[str], targets: list[str], first: int) -> list[str]:
        """The output for each pair."""
        pairs = self.translator.score(lines, targets, self.search)
        links = self._links([(pair.source, pair.tokens[:-1]) for pair in pairs])
        answers = []
        for number, pair in enumerate(pairs, first + 1):
            if self.format == "jsonl":
                value = {"line": number} | asdict(pair) | _as_json(next(links))
                answers.append(json.dumps(value, ensure_ascii=False) + "\n")
            else:
                answers.append(f"{pair.log_prob:.4f}{_as_column(next(links))}\n")
        return answers

    def _links(self, found: list[tuple[str, list[str]]]) -> Iterator[Alignment | None]:
        """The word links of each source with the pieces of a translation; None without a head."""
        if self.head is None:
            return repeat(None)
        sources, targets = [source for source, _ in found], [pieces for _, pieces in found]
        return iter(align(self.translator, self.head, sources, targets))


def _as_json(alignment: Alignment | None) -> dict[str, Any]:
    return {} if alignment is None else {"alignment": asdict(alignment)}


def _as_column(alignment: Alignment | None) -> str:
    return "" if alignment is None else f"\t{alignment}"


def _warn(translations: list[Translation], first: int, n_warnings: int) -> int:
    """Show the warnings, up to WARNINGS_SHOWN, and return how many there have been."""
    for number, translation in enumerate(translations, first + 1):
        for warning in translation.warnings:
            n_warnings += 1
            if n_warnings <= WARNINGS_SHOWN:
                console.warn(f"line {number:,}: {warning}")
    return n_warnings


def waiting_lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of a stream, without their ends, as many at a time as wait to be read.

    Lines end with \\n; a \\r before it goes too. A last line without an end is a line. Without a
    file descriptor to read from, lines are taken as the object gives them.
    """
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError):
        while lines := list(islice(limited_lines(stream), LINES_AT_A_TIME)):
            yield [_without_end(line) for line in lines]
        return
    begun: list[bytes] = []  # the line whose end has not been seen
    is_start = True
    while data := os.read(descriptor, READ_BYTES):  # waits only for the first byte
        if is_start:
            check_is_text(data, str(getattr(stream, "name", "the input")))
            data, is_start = data.removeprefix(BYTE_ORDER_MARK), False
        begun.append(data)
        if b"\n" in data:
            *lines, rest = b"".join(begun).split(b"\n")
            begun = [rest]
            for i in range(0, len(lines), LINES_AT_A_TIME):
                yield [_without_end(line) for line in lines[i : i + LINES_AT_A_TIME]]
        elif sum(map(len, begun)) > MAX_LINE_BYTES:  # the rest of this line is only skipped
            begun = [OVERLONG]
    if any(begun):
        yield [_without_end(b"".join(begun))]


def _without_end(line: bytes) -> bytes:
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    return line if len(line) <= MAX_LINE_BYTES else OVERLONG


def _text(line: bytes) -> str:
    """The text to translate; empty for a line that is too long to be a sentence."""
    return "" if line == OVERLONG else line.decode("utf-8", errors="replace")


def _encoding_warnings(line: bytes) -> list[str]:
    if line == OVERLONG:
        return [f"{_TOO_LONG}: not translated, the output line is empty"]
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return [
            f"not valid UTF-8 (byte {line[error.start]:#04x} at position {error.start + 1:,}); "
            "invalid bytes were replaced by U+FFFD"
        ]
    return []


@contextmanager
def _progress(source: BinaryIO, n_done: int, is_shown: bool) -> Iterator[Progress]:
    """A progress bar over lines, if a file is read and standard error is a terminal."""
    if is_shown and _regular_file(source) and console.is_terminal():
        with console.bar(_count_lines(source), "translating", " lines", initial=n_done) as bar:
            yield bar.update
    else:
        yield lambda n_lines: None


def _count_lines(file: BinaryIO) -> int:
    """The number of lines not yet read from a regular file."""
    n_lines, position, last = 0, file.tell(), b"\n"
    while data := os.pread(file.fileno(), READ_BYTES, position):
        n_lines, position, last = n_lines + data.count(b"\n"), position + len(data), data[-1:]
    return n_lines + (last != b"\n")


def _is_same_file(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    return one is not None and other is not None and os.path.samestat(one, other)


def _regular_file(stream: BinaryIO | TextIO) -> os.stat_result | None:
    """The status of the file behind a stream; None for a pipe, or without a file."""
    try:
        status = os.fstat(stream.fileno())
    except (AttributeError, OSError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


# -- resuming --------------------------------------------------------------------------------


def _identity(file: BinaryIO) -> dict[str, Any] | None:
    """The identity of a file and its version; None for a pipe."""
    status = _regular_file(file)
    if status is None:
        return None
    return {
        "path": str(Path(str(file.name)).absolute()),
        "inode": status.st_ino,
        "size_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
    }


def _is_note(path: Path) -> bool:
    """Whether a file is the note of a job."""
    try:
        note: dict[str, Any] = read_json(path, ANY, "")
    except DataError:
        return False
    return {"input", "model", "options"} <= note.keys()


def _difference(note: dict[str, Any], old_path: Path) -> str:
    """Why the job of an old note cannot be resumed; empty if it can."""
    old = read_json(old_path, ANY, "remove it")
    changed = [key for key in note if old.get(key) != note[key]]
    if changed:
        return f"the {' and the '.join(changed)} changed"
    return "the input is a pipe" if note["input"] is None else ""


def _whole_answers(part: Path, lines_per_answer: int) -> int:
    """The number of complete outputs in OUT.part; the rest after the last one is cut off."""
    n_lines = end = offset = 0
    with open(part, "rb") as file:
        for line in file:
            offset += len(line)
            if line.endswith(b"\n"):
                n_lines += 1
                if n_lines % lines_per_answer == 0:
                    end = offset
    os.truncate(part, end)
    return n_lines // lines_per_answer
