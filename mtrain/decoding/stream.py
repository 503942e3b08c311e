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
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mtrain import console
from mtrain.decoding.translate import Options, Progress, Translation, Translator
from mtrain.errors import StorageError
from mtrain.model.weights import digest, weights_of
from mtrain.run import storage_errors, write_json

LINES_AT_A_TIME = 2000  # sorted by length and translated together
READ_BYTES = 1 << 20
WARNINGS_SHOWN = 20


def translate_stream(
    translator: Translator, source: BinaryIO, out: TextIO, options: Options | None = None
) -> int:
    """Translate a stream as it comes, and return how many lines it had.

    What waits is translated together and flushed; nothing waits for more. See `_format` for what
    is written. A reader that goes away raises BrokenPipeError.
    """
    options = translator.resolve(options or Options())
    n_lines = 0
    with _progress(source, 0, is_shown=not out.isatty()) as progress:
        for texts in _translated(translator, source, options, 0, progress):
            out.write("".join(texts))
            out.flush()
            n_lines += len(texts)
    return n_lines


def translate_file(
    translator: Translator, source: BinaryIO, output: Path, options: Options | None = None
) -> int:
    """Translate a stream into a file, and return how many lines it had.

    OUT.part grows in order, and becomes OUT at the end. Beside it OUT.part.json notes from which
    file, with which model and options it was made: the same job, begun again after it was killed,
    goes on behind the last line there; any other begins anew. A pipe cannot be gone back to, so
    from one it always begins anew.
    """
    options = translator.resolve(options or Options())
    if output.exists() and not output.is_file() and not output.is_dir():  # such as /dev/null
        with storage_errors(output), open(output, "w", encoding="utf-8", newline="\n") as out:
            return translate_stream(translator, source, out, options)
    if output.is_dir() or not output.absolute().parent.is_dir():
        problem = "it is a directory" if output.is_dir() else "its directory does not exist"
        raise StorageError(f"cannot write {output}: {problem}", "choose another place with -o")
    part = output.with_name(output.name + ".part")
    note_path = part.with_name(part.name + ".json")
    note = _note(translator, source, options)
    with storage_errors(part):
        n_done = _lines_done(part, note_path, note, options)
        if n_done:
            console.message(f"going on from line {n_done + 1:,}: {part} holds those before")
        else:
            part.write_bytes(b"")
            write_json(note_path, note)
        n_lines = n_done
        with open(part, "ab") as file, _progress(source, n_done, is_shown=True) as progress:
            for texts in _translated(translator, source, options, n_done, progress):
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
        while lines := list(islice(stream, LINES_AT_A_TIME)):
            yield [_without_end(line) for line in lines]
        return
    begun: list[bytes] = []  # the line whose end has not been seen
    while data := os.read(descriptor, READ_BYTES):  # all that waits; sleeps only for the first byte
        begun.append(data)
        if b"\n" in data:
            *lines, rest = b"".join(begun).split(b"\n")
            begun = [rest]
            for i in range(0, len(lines), LINES_AT_A_TIME):
                yield [_without_end(line) for line in lines[i : i + LINES_AT_A_TIME]]
    if any(begun):
        yield [_without_end(b"".join(begun))]


def _without_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _translated(
    translator: Translator,
    source: BinaryIO,
    options: Options,
    n_done: int,
    progress: Progress | None,
) -> Iterator[list[str]]:
    """What to write for each line after the first `n_done`, as many at a time as were waiting."""
    number = n_warnings = 0
    for raw in waiting_lines(source):
        skipped = min(len(raw), max(0, n_done - number))
        number += skipped
        lines = [line.decode("utf-8", errors="replace") for line in raw[skipped:]]
        if not lines:
            continue
        translations = translator.translate_detailed(
            lines,
            options.beam_size,
            options.length_penalty,
            options.n_best,
            options.exact_stop,
            progress,
        )
        texts = []
        for bytes_, translation in zip(raw[skipped:], translations, strict=True):
            number += 1
            warnings = [*_encoding_warnings(bytes_), *translation.warnings]
            for warning in warnings:
                n_warnings += 1
                if n_warnings <= WARNINGS_SHOWN:
                    console.warn(f"line {number:,}: {warning}")
            texts.append(_format(number, replace(translation, warnings=warnings), options))
        yield texts
    if n_warnings > WARNINGS_SHOWN:
        console.warn(
            f"{n_warnings - WARNINGS_SHOWN:,} more such warnings; --format jsonl shows them all"
        )


def _encoding_warnings(line: bytes) -> list[str]:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return [
            f"not valid UTF-8 (byte {line[error.start]:#04x} at position {error.start + 1:,}); "
            "what could not be read was replaced by U+FFFD"
        ]
    return []


def _format(number: int, translation: Translation, options: Options) -> str:
    """What is written for an input line; `number` counts input lines from 1.

    Text: the translation; with n_best above 1, that many lines `number<TAB>score<TAB>text`, the
    last repeated where the search found fewer. jsonl: one object.
    """
    if options.format == "jsonl":
        value = {
            "line": number,
            "source": translation.source,
            "translation": translation.text,
            "score": translation.score,
            "hypotheses": [asdict(hypothesis) for hypothesis in translation.hypotheses],
            "warnings": translation.warnings,
        }
        return json.dumps(value, ensure_ascii=False) + "\n"
    if options.n_best == 1:
        return translation.text + "\n"
    found = translation.hypotheses
    found = found + [found[-1]] * (options.n_best - len(found))
    return "".join(f"{number}\t{h.score:.4f}\t{h.text}\n" for h in found)


@contextmanager
def _progress(source: BinaryIO, n_done: int, is_shown: bool) -> Iterator[Progress | None]:
    """A bar in lines, where a file is read and a person watches."""
    if not is_shown or _regular_file(source) is None or not console.is_terminal():
        yield None
        return
    n_lines, position, last = 0, source.tell(), b"\n"
    while data := os.pread(source.fileno(), READ_BYTES, position):
        n_lines, position, last = n_lines + data.count(b"\n"), position + len(data), data[-1:]
    n_lines += last != b"\n"
    with console.bar(n_lines, "translating", " lines", initial=n_done) as bar:
        yield bar.update


def _regular_file(stream: BinaryIO) -> os.stat_result | None:
    """What the system knows of the file behind a stream; None where that is a pipe, or nothing."""
    try:
        status = os.fstat(stream.fileno())
    except (AttributeError, OSError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


# -- going on after an interruption ----------------------------------------------------------


def _note(translator: Translator, source: BinaryIO, options: Options) -> dict[str, Any]:
    """All that decides what OUT.part holds."""
    status = _regular_file(source)
    identity = None
    if status is not None:
        identity = {
            "path": str(Path(str(source.name)).absolute()),
            "inode": status.st_ino,
            "size_bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
        }
    weights = {name: tensor.cpu() for name, tensor in weights_of(translator.model).items()}
    engine = "mtrain" if translator.engine is None else translator.engine.description
    return {
        "input": identity,
        "model": digest(weights),
        "engine": engine,
        "options": asdict(options),
    }


def _lines_done(part: Path, note_path: Path, note: dict[str, Any], options: Options) -> int:
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
    lines_an_answer = options.n_best if options.format == "text" else 1
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
