"""Translates streams and files: n lines in, n lines out, in order, as they come.

What waits to be read is translated together, and nothing waits for more: a typed line is answered
at once, a full pipe is read in batches. A job that writes a file goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from mtrain import console
from mtrain.data.lines import (
    BYTE_ORDER_MARK,
    MAX_LINE_BYTES,
    OVERLONG,
    check_is_text,
    limited_lines,
)
from mtrain.decoding.alignment import Alignment, AlignmentHead, align
from mtrain.decoding.translate import Options, Progress, ScoredPair, Translation, Translator
from mtrain.errors import DataError, StorageError, UsageError
from mtrain.machine import runtime
from mtrain.model.weights import digest, weights_of
from mtrain.storage import lock_file, storage_errors, write_json

LINES_AT_A_TIME = 2000  # sorted by length and translated together
READ_BYTES = 1 << 20
WARNINGS_SHOWN = 20


@dataclass(frozen=True)
class Beside:
    """A second file, whose line n belongs to line n of the input."""

    lines: BinaryIO
    role: Literal["prefix", "target"]  # what the output begins with; a translation to be scored

    def take(self, n: int) -> list[str]:
        """The next n lines; a DataError where there are fewer."""
        lines = list(islice(limited_lines(self.lines), n))
        if len(lines) < n:
            raise self._of_another_length("fewer lines than the input")
        return [_text(_without_end(line)) for line in lines]

    def close(self) -> None:
        """A DataError where lines are left when the input has ended."""
        if self.lines.readline():
            raise self._of_another_length("more lines than the input")

    def check(self, source: BinaryIO) -> None:
        """The same error before any work, where both are files whose lines can be counted."""
        if _regular_file(source) and _regular_file(self.lines):
            n_own, n_wanted = _count_lines(self.lines), _count_lines(source)
            if n_own != n_wanted:
                raise self._of_another_length(f"{n_own:,} lines, but the input {n_wanted:,}")

    def _of_another_length(self, fact: str) -> DataError:
        return DataError(
            f"{getattr(self.lines, 'name', f'the {self.role} file')} has {fact}",
            f"give one line (it may be empty) for each line of the input: its {self.role}",
        )


def translate_stream(
    translator: Translator,
    source: BinaryIO,
    out: TextIO,
    options: Options | None = None,
    beside: Beside | None = None,
    head: AlignmentHead | None = None,
) -> int:
    """Translate a stream as it comes, and return how many lines it had.

    What waits is translated together and flushed; nothing waits for more. See `_format` for what
    is written. A reader that goes away raises BrokenPipeError. With targets beside it, they are
    scored instead; with a `head`, translations come with the word links that it shows.
    """
    options = translator.resolve(options or Options())
    if beside is not None:
        beside.check(source)
    n_lines = 0
    with _progress(source, 0, is_shown=not out.isatty()) as progress:
        answers = _answers(translator, source, options, beside, 0, progress, head)
        for texts in _in_bounded_memory(answers):
            out.write("".join(texts))
            out.flush()
            n_lines += len(texts)
    return n_lines


def translate_file(
    translator: Translator,
    source: BinaryIO,
    output: Path,
    options: Options | None = None,
    beside: Beside | None = None,
    head: AlignmentHead | None = None,
) -> int:
    """Translate a stream into a file, and return how many lines it had; see `translate_stream`.

    OUT.part grows in order, and becomes OUT at the end. Beside it OUT.part.json notes from which
    file, with which model and options it was made: the same job, begun again after it was killed,
    goes on behind the last line there; any other begins anew. A pipe cannot be gone back to, so
    from one it always begins anew.
    """
    options = translator.resolve(options or Options())
    if output.exists() and not output.is_file() and not output.is_dir():  # such as /dev/null
        with storage_errors(output), open(output, "w", encoding="utf-8", newline="\n") as out:
            return translate_stream(translator, source, out, options, beside, head)
    if output.is_dir() or not output.absolute().parent.is_dir():
        problem = "it is a directory" if output.is_dir() else "its directory does not exist"
        raise StorageError(f"cannot write {output}: {problem}", "choose another place with -o")
    if beside is not None:
        beside.check(source)
    with lock_file(output.with_name(f".{output.name}.lock")) as is_held:
        if not is_held:
            raise UsageError(
                f"another process is writing {output}", "wait for it to end, or choose another file"
            )
        return _translate_whole(translator, source, output, options, beside, head)


def _translate_whole(
    translator: Translator,
    source: BinaryIO,
    output: Path,
    options: Options,
    beside: Beside | None,
    head: AlignmentHead | None,
) -> int:
    """Write OUTPUT, which no other process does meanwhile."""
    part = output.with_name(output.name + ".part")
    note_path = part.with_name(part.name + ".json")
    note = _note(translator, source, options, beside, head)
    with storage_errors(part):
        lines_an_answer = _lines_an_answer(options, beside)
        n_done = _lines_done(part, note_path, note, lines_an_answer)
        if n_done:
            console.message(f"going on from line {n_done + 1:,}: {part} holds those before")
        else:
            part.write_bytes(b"")
            write_json(note_path, note)
        n_lines = n_done
        with open(part, "ab") as file, _progress(source, n_done, is_shown=True) as progress:
            answers = _answers(translator, source, options, beside, n_done, progress, head)
            for texts in _in_bounded_memory(answers):
                file.write("".join(texts).encode())
                file.flush()
                n_lines += len(texts)
            os.fsync(file.fileno())
        os.replace(part, output)
        note_path.unlink()
    return n_lines


def waiting_lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of a stream, without their ends, as many at a time as wait to be read.

    Lines end with \\n; a \\r before it goes too. A last line without an end is a line. Where there
    is no file descriptor to read from, lines are taken as the object gives them.
    """
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError):
        while lines := list(islice(limited_lines(stream), LINES_AT_A_TIME)):
            yield [_without_end(line) for line in lines]
        return
    begun: list[bytes] = []  # the line whose end has not been seen
    is_start = True
    while data := os.read(descriptor, READ_BYTES):  # all that waits; sleeps only for the first byte
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
            begun = [OVERLONG * (MAX_LINE_BYTES + 1)]
    if any(begun):
        yield [_without_end(b"".join(begun))]


def _without_end(line: bytes) -> bytes:
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    return line if len(line) <= MAX_LINE_BYTES else OVERLONG


def _text(line: bytes) -> str:
    """What is translated; nothing of a line that is too long to be a sentence."""
    return "" if line == OVERLONG else line.decode("utf-8", errors="replace")


def _answers(
    translator: Translator,
    source: BinaryIO,
    options: Options,
    beside: Beside | None,
    n_done: int,
    progress: Progress | None,
    head: AlignmentHead | None,
) -> Iterator[list[str]]:
    """What to write for each line after the first `n_done`, as many at a time as were waiting."""
    number = n_warnings = 0
    for raw in waiting_lines(source):
        others = beside.take(len(raw)) if beside is not None else None
        n_skipped = min(len(raw), max(0, n_done - number))
        number += n_skipped
        raw = raw[n_skipped:]
        others = others[n_skipped:] if others is not None else None
        if not raw:
            continue
        lines = list(map(_text, raw))
        if beside is not None and beside.role == "target":
            assert others is not None
            scored = translator.score(lines, others, options)
            links = _links(translator, head, [(s.source, [s.tokens[:-1]]) for s in scored])
            yield [
                _format_score(number + 1 + i, s, options, links[i]) for i, s in enumerate(scored)
            ]
            number += len(raw)
            if progress:
                progress(len(raw))
            continue
        if options.tab_prefix:
            lines, others = _split_at_tab(lines)
        translations = translator.translate_lines(lines, options, progress, others, number)
        links = _links(
            translator, head, [(t.source, [h.tokens for h in t.hypotheses]) for t in translations]
        )
        texts = []
        for bytes_, translation, alignments in zip(raw, translations, links, strict=True):
            number += 1
            warnings = [*_encoding_warnings(bytes_), *translation.warnings]
            for warning in warnings:
                n_warnings += 1
                if n_warnings <= WARNINGS_SHOWN:
                    console.warn(f"line {number:,}: {warning}")
            answer = replace(translation, warnings=warnings)
            texts.append(_format(number, answer, options, alignments))
        yield texts
    if beside is not None:
        beside.close()
    if n_warnings > WARNINGS_SHOWN:
        console.warn(
            f"{n_warnings - WARNINGS_SHOWN:,} more such warnings; --format jsonl shows them all"
        )


def _in_bounded_memory(answers: Iterator[list[str]]) -> Iterator[list[str]]:
    """The same; between them, after many lines, what their translation has freed is given back."""
    n_lines = 0
    for texts in answers:
        yield texts
        n_lines += len(texts)
        if n_lines >= LINES_AT_A_TIME:
            runtime.give_memory_back()
            n_lines = 0


def _links(
    translator: Translator,
    head: AlignmentHead | None,
    found: list[tuple[str, list[list[str]]]],
) -> list[list[Alignment]]:
    """Of each line with the pieces of its translations; none where there is no head to show them"""
    if head is None:
        return [[] for _ in found]
    pairs = [(source, pieces) for source, translations in found for pieces in translations]
    links = iter(align(translator, head, [s for s, _ in pairs], [pieces for _, pieces in pairs]))
    return [[next(links) for _ in translations] for _, translations in found]


def _split_at_tab(lines: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first tab of each line, and what behind it."""
    cut = [line.partition("\t") for line in lines]
    return [source for source, _, _ in cut], [prefix for _, _, prefix in cut]


def _encoding_warnings(line: bytes) -> list[str]:
    if line == OVERLONG:
        return [f"more than {MAX_LINE_BYTES:,} bytes: not translated, the output line is empty"]
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return [
            f"not valid UTF-8 (byte {line[error.start]:#04x} at position {error.start + 1:,}); "
            "what could not be read was replaced by U+FFFD"
        ]
    return []


def _format(
    number: int, translation: Translation, options: Options, alignments: list[Alignment]
) -> str:
    """What is written for an input line; `number` counts input lines from 1.

    Text: the translation; with n_best above 1, that many lines `number<TAB>score<TAB>text`, the
    last repeated where the search found fewer; then `<TAB>links` where there are alignments, one a
    hypothesis. jsonl: one object.
    """
    hypotheses = translation.hypotheses
    if options.format == "jsonl":
        shown = [asdict(hypothesis) for hypothesis in hypotheses]
        for value, alignment in zip(shown, alignments, strict=False):
            value["alignment"] = asdict(alignment)
        value = {
            "line": number,
            "source": translation.source,
            "translation": translation.text,
            "score": translation.score,
            "hypotheses": shown,
            "warnings": translation.warnings,
        }
        return json.dumps(value, ensure_ascii=False) + "\n"
    texts = [hypothesis.text for hypothesis in hypotheses]
    if alignments:
        texts = [f"{text}\t{links}" for text, links in zip(texts, alignments, strict=True)]
    if options.n_best == 1:
        return texts[0] + "\n"
    lines = [f"{number}\t{h.score:.4f}\t{t}\n" for h, t in zip(hypotheses, texts, strict=True)]
    return "".join(lines + lines[-1:] * (options.n_best - len(lines)))


def _format_score(
    number: int, scored: ScoredPair, options: Options, alignments: list[Alignment]
) -> str:
    """What is written for a pair: its log-probability, or as jsonl one object; and its links."""
    if options.format == "jsonl":
        shown = {"line": number, **asdict(scored)}
        if alignments:
            shown["alignment"] = asdict(alignments[0])
        return json.dumps(shown, ensure_ascii=False) + "\n"
    return "\t".join([f"{scored.log_prob:.4f}", *map(str, alignments)]) + "\n"


def _lines_an_answer(options: Options, beside: Beside | None) -> int:
    """How many lines are written for a line of input."""
    is_one = options.format == "jsonl" or (beside is not None and beside.role == "target")
    return 1 if is_one else options.n_best


@contextmanager
def _progress(source: BinaryIO, n_done: int, is_shown: bool) -> Iterator[Progress | None]:
    """A bar in lines, where a file is read and a person watches."""
    if not is_shown or _regular_file(source) is None or not console.is_terminal():
        yield None
        return
    with console.bar(_count_lines(source), "translating", " lines", initial=n_done) as bar:
        yield bar.update


def _count_lines(file: BinaryIO) -> int:
    """The lines that are still to be read from a regular file."""
    n_lines, position, last = 0, file.tell(), b"\n"
    while data := os.pread(file.fileno(), READ_BYTES, position):
        n_lines, position, last = n_lines + data.count(b"\n"), position + len(data), data[-1:]
    return n_lines + (last != b"\n")


def _regular_file(stream: BinaryIO) -> os.stat_result | None:
    """What the system knows of the file behind a stream; None where that is a pipe, or nothing."""
    try:
        status = os.fstat(stream.fileno())
    except (AttributeError, OSError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


# -- going on after an interruption ----------------------------------------------------------


def _note(
    translator: Translator,
    source: BinaryIO,
    options: Options,
    beside: Beside | None,
    head: AlignmentHead | None,
) -> dict[str, Any]:
    """All that decides what OUT.part holds."""
    identity = _identity(source)
    if beside is not None and identity is not None:
        other = _identity(beside.lines)
        identity = None if other is None else {**identity, beside.role: other}
    weights = {
        f"{number}.{name}": tensor.cpu()
        for number, model in enumerate(translator.models)
        for name, tensor in weights_of(model).items()
    }
    engine = translator.engine
    description = f"mtrain {translator.precision}" if engine is None else engine.description
    return {
        "input": identity,
        "model": digest(weights),
        "engine": description,
        "options": asdict(options),
        "tag": translator.src_tokenizer.tag,
        "alignment": None if head is None else asdict(head),
    }


def _identity(file: BinaryIO) -> dict[str, Any] | None:
    """What tells a file from any other, and from itself once it is changed; None for a pipe."""
    status = _regular_file(file)
    if status is None:
        return None
    return {
        "path": str(Path(str(file.name)).absolute()),
        "inode": status.st_ino,
        "size_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
    }


def _lines_done(part: Path, note_path: Path, note: dict[str, Any], lines_an_answer: int) -> int:
    """How many input lines OUT.part answers; what follows the last whole answer is cut off."""
    if not part.exists() or not note_path.exists():
        return 0
    try:
        old = json.loads(note_path.read_text(encoding="utf-8"))
    except ValueError:
        old = None
    changed = [key for key in note if not isinstance(old, dict) or old.get(key) != note[key]]
    if changed or note["input"] is None:
        because = f"the {' and the '.join(changed)} changed" if changed else "the input is a pipe"
        console.message(f"starting anew instead of going on with {part}: {because}")
        return 0
    n_lines = end = offset = 0
    with open(part, "rb") as file:
        for line in file:
            offset += len(line)
            if line.endswith(b"\n"):
                n_lines += 1
                if n_lines % lines_an_answer == 0:
                    end = offset
    os.truncate(part, end)
    return n_lines // lines_an_answer
