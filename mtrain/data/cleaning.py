"""Normalises text, and decides which training pairs stay.

`normalize` is applied to every training text and, the same, to whatever is translated. The other
functions answer one question each about a pair; `prepare` asks them in turn and counts.
Sentences are compared by 64-bit hashes, so that a corpus need not be held in memory.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mtrain.languages import unspaced

Hashes = NDArray[np.uint64]

# A side of so many words identifies a sentence; fewer may be said in many places.
MIN_WORDS_ALONE = 5

# All control characters that are no white space, and the byte order mark. The joiners U+200C and
# U+200D stay: Persian, Hindi and emoji are spelled with them.
_DROPPED = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
_NO_LETTERS = re.compile(r"[\W\d_]+")
_SURROGATES = re.compile("[\ud800-\udfff]")

_SORTED_AT_ONCE = 1 << 21  # hashes


def normalize(text: str) -> str:
    """One clean line: NFC, no control characters, white space of any kind as single spaces.

    Applying it twice changes nothing. Half a surrogate pair, which no UTF-8 file can hold, becomes
    U+FFFD.
    """
    if not (text.isascii() and text.isprintable()):
        text = _SURROGATES.sub("\ufffd", _DROPPED.sub("", text))
        text = unicodedata.normalize("NFC", " ".join(text.split()))
    return " ".join(text.split())


def count_words(text: str) -> int:
    """Words between spaces; where a script has no spaces, two characters count as one."""
    n_words = len(text.split())
    return n_words if text.isascii() else n_words + len(unspaced().findall(text)) // 2


def digest(text: str) -> bytes:
    """8 bytes that stand for a text, the same on every machine."""
    return blake2b(text.encode(), digest_size=8).digest()


def hash_text(text: str) -> int:
    """The digest as a number of 64 bits."""
    return int.from_bytes(digest(text), "little")


def hashes_of(digests: Sequence[bytes]) -> Hashes:
    """(n,) the digests as numbers."""
    return np.frombuffer(b"".join(digests), "<u8")


def loosen(text: str) -> str:
    """What is left of a text without case, digits and punctuation; itself where that is nothing."""
    return " ".join(_NO_LETTERS.sub(" ", text.casefold()).split()) or text


class EvaluationText:
    """The sentences of valid and test sets, by which leaked training pairs are recognised.

    names  of the sets; a sentence knows its sets by the bits of a number, the first set's is 1
    """

    def __init__(self, splits: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        self.names = list(splits)
        self._sources: dict[bytes, int] = {}  # digest -> bits of the sets that hold the sentence
        self._targets: dict[bytes, int] = {}
        for number, pairs in enumerate(splits.values()):
            for pair in pairs:
                self._add(pair, 1 << number)

    def _add(self, pair: tuple[str, str], bit: int) -> None:
        """Know both sides; an empty line identifies nothing."""
        for text, known in zip(map(normalize, pair), (self._sources, self._targets), strict=True):
            if text:
                key = digest(text)
                known[key] = known.get(key, 0) | bit

    def find(self, source: str, target: str, digests: tuple[bytes, bytes]) -> list[str]:
        """The sets of which a normalised training pair would give a sentence away.

        One side of five words or more is enough; of shorter ones both sides must be known.
        """
        in_source = self._sources.get(digests[0], 0)
        in_target = self._targets.get(digests[1], 0)
        if not (in_source or in_target):
            return []
        if not (in_source and in_target):
            alone = source if in_source else target
            if count_words(alone) < MIN_WORDS_ALONE:
                return []
        bits = in_source | in_target
        return [name for i, name in enumerate(self.names) if bits >> i & 1]


# -- many pairs against each other -----------------------------------------------------------


def find_repeats(sources: Hashes, targets: Hashes) -> NDArray[np.bool_]:
    """(n,) True where both sides occurred together before; the first occurrence is no repeat."""
    # The order of the sides matters.
    return find_excess(sources * np.uint64(0x9E3779B97F4A7C15) ^ targets, 1)


def find_excess(hashes: Hashes, limit: int) -> NDArray[np.bool_]:
    """(n,) True where a hash had occurred `limit` times before."""
    is_excess = np.zeros(len(hashes), dtype=bool)
    for positions in _groups(hashes):
        values = hashes[positions]
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        sizes = np.diff(starts, append=len(values))
        n_before = np.arange(len(values)) - np.repeat(starts, sizes)
        is_excess[positions[n_before >= limit]] = True
    return is_excess


def _groups(hashes: Hashes) -> Iterator[NDArray[np.int64]]:
    """Positions sorted by (hash, position), in parts that never separate equal hashes.

    A part is sorted at a time, so that memory stays small beside the hashes themselves.
    """
    bits = max(0, len(hashes) // _SORTED_AT_ONCE).bit_length()
    top = hashes.view("<u2")[3::4] >> (16 - bits) if bits else np.zeros(len(hashes), np.uint16)
    for part in range(1 << bits):
        positions = np.flatnonzero(top == part)
        yield positions[np.argsort(hashes[positions], kind="stable")]


def choose_valid(
    sources: Hashes, targets: Hashes, n_valid: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw a validation set from the training pairs.

    Returns the (n_valid,) ascending indices of the drawn pairs, preferably of sentences that
    occur once, and (n,) True for every pair that shares a sentence with one of them (itself
    included) and so cannot stay in training.
    """
    shares = _occurs_again(sources) | _occurs_again(targets)
    order = np.random.default_rng(seed).permutation(len(sources))
    order = np.concatenate([order[~shares[order]], order[shares[order]]])
    chosen = np.sort(order[:n_valid])
    leaves = np.isin(sources, sources[chosen]) | np.isin(targets, targets[chosen])
    return chosen, leaves


def _occurs_again(hashes: Hashes) -> NDArray[np.bool_]:
    """(n,) True where a hash occurs more than once."""
    occurs_again = np.zeros(len(hashes), dtype=bool)
    for positions in _groups(hashes):
        is_same = np.diff(hashes[positions]) == 0  # as the next one
        occurs_again[positions[:-1][is_same]] = True
        occurs_again[positions[1:][is_same]] = True
    return occurs_again
