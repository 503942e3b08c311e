"""What all readers of data share: the pairs that they yield."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pairs:
    """Consecutive sentence pairs of one entry."""

    entry: int  # index in data.train
    src: list[str]
    tgt: list[str]
