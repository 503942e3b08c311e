"""Splits a line that is longer than the model's maximum length, where it does the least harm.

First between sentences; a sentence that is still too long between clauses, then between words, and
an overlong word anywhere. The parts are translated separately and joined by spaces.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

CountPieces = Callable[[Sequence[str]], list[int]]

_CLOSING = "[\"'”’»)\\]」』）]*"

# A full stop after a short capitalised word or a small number rarely ends: Dr. Mr. J. 3. Mai
_FULL_STOP = r"(?<!\b[A-Z])(?<!\b[A-Z][a-z])(?<!\b[A-Z][a-z]{2})(?<!\b\d)(?<!\b\d\d)\."
_SENTENCE_END = re.compile(rf"(?:{_FULL_STOP}|[!?…।؟]){_CLOSING}\s+|[。！？]{_CLOSING}\s*")
_CLAUSE_END = re.compile(r"[,;:،؛–—]\s+|\s[–—-]\s|[，、；：]\s*")
_WORD_END = re.compile(r"\s+")


def split_text(text: str, count_pieces: CountPieces, limit: int) -> list[str]:
    """A normalised text in parts of at most `limit` pieces, in order; a short text unchanged.

    Every sentence becomes a part, as in training; an overlong one is split into parts of about
    equal length. Only white space at the cuts is lost.
    """
    if count_pieces([text])[0] <= limit:
        return [text]
    sentences = _cut(text, _SENTENCE_END)
    return [part for s in sentences for part in _split_sentence(s, count_pieces, limit)]


def _split_sentence(text: str, count_pieces: CountPieces, limit: int) -> list[str]:
    for boundary in (_CLAUSE_END, _WORD_END):
        if count_pieces([text])[0] <= limit:
            return [text]
        units = _cut(text, boundary)
        if len(units) > 1:
            parts = _pack(text, units, count_pieces(units), limit)
            if len(parts) > 1:
                return [p for part in parts for p in _split_sentence(part, count_pieces, limit)]
    return _split_anywhere(text, count_pieces, limit)


def _cut(text: str, boundary: re.Pattern[str]) -> list[str]:
    """The text split after every boundary, without the white space there."""
    ends = [match.end() for match in boundary.finditer(text)]
    starts = [0, *ends]
    units = [text[start:end].strip() for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return [unit for unit in units if unit]


def _pack(text: str, units: list[str], sizes: list[int], limit: int) -> list[str]:
    """Neighbouring units joined, as in the text, into parts of about equal length."""
    target = sum(sizes) / math.ceil(sum(sizes) / limit)
    parts: list[str] = []
    start = end = size = total = 0
    for unit, unit_size in zip(units, sizes, strict=True):
        unit_start = text.index(unit, end)
        is_beyond_target = total + unit_size / 2 > target * (len(parts) + 1)
        if size and (size + unit_size > limit or is_beyond_target):
            parts.append(text[start:end])
            start, size = unit_start, 0
        end = unit_start + len(unit)
        size, total = size + unit_size, total + unit_size
    return [*parts, text[start:end]]


def _split_anywhere(text: str, count_pieces: CountPieces, limit: int) -> list[str]:
    n_pieces = count_pieces([text])[0]
    if n_pieces <= limit or len(text) == 1:
        return [text]
    width = math.ceil(len(text) / math.ceil(n_pieces / limit))
    width = min(width, len(text) - 1)
    parts = [text[i : i + width] for i in range(0, len(text), width)]
    return [p for part in parts for p in _split_anywhere(part, count_pieces, limit)]
