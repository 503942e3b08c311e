"""Word alignment from cross-attention: the source word that each target word comes from.

The best layer, head (or mean of heads) and row (that of the step that writes a word, or of the next
step, which has read it) differ between models. They are chosen on the run's valid set, without gold
alignments, by agreement with IBM Model 1 (Brown et al., 1993), a table of word translations learnt
by expectation maximisation from the same sentences. Agreement is the mean probability that Model 1
gives to the links. (For a Multi30k model with 40 candidates, the choice was also the best one by
167 links made by hand: 74 % are right, against 56 % of Model 1 itself. Over all candidates the two
measures correlate with 0.98.)

Every target word is linked to one source word, the one with the largest sum of weights over the
pieces of both; a source word may have several links, or none. Words are separated by white space;
in languages without it, pieces count as words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtrain import console
from mtrain.data.cleaning import normalize
from mtrain.decoding.attention import Weights, forced_attention
from mtrain.errors import StorageError, UsageError
from mtrain.languages import language
from mtrain.run import RunDir
from mtrain.storage import write_json

if TYPE_CHECKING:
    from mtrain.decoding.translate import Translator

SPACE = "\u2581"  # begins the piece that begins a word
N_SENTENCES = 500  # of valid, used to choose the head; Model 1 learns from all
N_ITERATIONS = 5
BATCH_POSITIONS = 1024  # pieces per side of a batch, padding included


@dataclass(frozen=True, slots=True)
class AlignmentHead:
    """The part of a decoder whose attention shows the source word being translated."""

    layer: int  # from 0
    head: int | None  # from 0; None: the mean of all
    is_next_row: bool  # use the row that has read the piece, not the one that writes it
    agreement: float  # with IBM Model 1 on the valid set, 0 to 1

    def describe(self) -> str:
        head = "the mean of its heads" if self.head is None else f"head {self.head + 1}"
        row = "after reading" if self.is_next_row else "while writing"
        return f"layer {self.layer + 1}, {head}, {row} each piece"


@dataclass(frozen=True, slots=True)
class Alignment:
    """The words of a line and its translation, counted from 0, and the links between them."""

    source_words: list[str]
    words: list[str]
    links: list[tuple[int, int]]  # (source word, target word), in the order of the source

    def __str__(self) -> str:
        """As in the Pharaoh decoder: `0-0 1-2`."""
        return " ".join(f"{i}-{j}" for i, j in self.links)


def align(
    translator: Translator,
    head: AlignmentHead,
    sources: Sequence[str],
    targets: Sequence[Sequence[str]],
) -> list[Alignment]:
    """The links of given lines to the pieces of their translations.

    A line that was cut because it is too long for the model gets none.
    """
    src_ids = translator.src_tokenizer.encode([normalize(source) for source in sources])
    tgt_ids = [translator.tgt_tokenizer.ids(pieces) for pieces in targets]
    sides = _sides(translator, src_ids, tgt_ids)
    links: list[list[tuple[int, int]]] = [[] for _ in sources]
    for i, cross in _cross_attention(translator, src_ids, tgt_ids):
        shown = cross[head.layer].mean(0) if head.head is None else cross[head.layer, head.head]
        words = _of_words(shown, sides[0][i], sides[1][i], head.is_next_row)  # (words, words)
        links[i] = sorted((int(s), t) for t, s in enumerate(words.argmax(-1)))
    return [
        Alignment(s.words, t.words, links[i]) for i, (s, t) in enumerate(zip(*sides, strict=True))
    ]


def head_of_run(run: RunDir, translator: Translator) -> AlignmentHead:
    """The head chosen on a run's valid set; the run records it for each set of weights."""
    from mtrain.model.weights import digest, weights_of

    key = digest(weights_of(translator.model))
    known = run.read_alignment()
    if key in known:
        return AlignmentHead(**known[key])
    valid = run.read_split("valid")
    head = choose_head(translator.tagged(valid.tag), valid.sources, valid.references)
    console.message(
        f"word links come from {head.describe()}: it agrees with IBM Model 1 on "
        f"{head.agreement:.0%} of the words of valid"
    )
    try:
        write_json(run.alignment, {key: asdict(head)})
    except StorageError as error:
        console.message(f"the choice is not recorded, and will be repeated: {error.message}")
    return head


def choose_head(
    translator: Translator, sources: Sequence[str], references: Sequence[str]
) -> AlignmentHead:
    """The layer, head and row that agree best with IBM Model 1 on given pairs of lines."""
    src_ids = translator.src_tokenizer.encode([normalize(line) for line in sources])
    tgt_ids = translator.tgt_tokenizer.encode([normalize(line) for line in references])
    sides = _sides(translator, src_ids, tgt_ids)
    lowered = [[[word.lower() for word in side.words] for side in part] for part in sides]
    posteriors = model_1(list(zip(*lowered, strict=True)))
    total: Any = 0.0
    n_words = 0
    for i, cross in _cross_attention(translator, src_ids[:N_SENTENCES], tgt_ids[:N_SENTENCES]):
        candidates = np.concatenate([cross.mean(1, keepdims=True), cross], 1)  # (L, 1 + H, T, S)
        found = [
            _of_words(candidates, sides[0][i], sides[1][i], is_next_row).argmax(-1)
            for is_next_row in (False, True)
        ]  # (L, 1 + H, words) each
        given = [np.take_along_axis(posteriors[i][None, None], f[..., None], -1) for f in found]
        total = total + np.stack(given)[..., 0].sum(-1)  # (2, L, 1 + H)
        n_words += len(sides[1][i].words)
    if not n_words:
        raise UsageError(
            "no sentence of the valid set is short enough to choose the layer for --alignment",
            "raise data.max_length, and train again",
        )
    row, layer, head = np.unravel_index(int(np.argmax(total)), total.shape)
    return AlignmentHead(
        int(layer), int(head) - 1 if head else None, bool(row), float(total.max() / n_words)
    )


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pair: its words, and the index of each piece's word."""

    words: list[str]
    owners: list[int]  # of each piece, without EOS

    @classmethod
    def of(cls, pieces: Sequence[str], code: str) -> Side:
        """Words between white space, or pieces if the language has none."""
        has_spaces = language(code).has_spaces
        texts: list[str] = []
        owners = []
        for piece in pieces:
            is_new = not texts or piece.startswith(SPACE) or not has_spaces
            if is_new and not (texts and texts[-1] == ""):  # after a piece that is only a space
                texts.append("")
            texts[-1] += piece.removeprefix(SPACE)
            owners.append(len(texts) - 1)
        if len(texts) > 1 and texts[-1] == "":  # a space at the very end
            texts.pop()
            owners[-1] -= 1
        return cls(texts, owners)

    def matrix(self) -> Weights:
        """(words, pieces): 1 where a piece belongs to a word"""
        return np.equal.outer(np.arange(len(self.words)), self.owners).astype(np.float32)


def _sides(
    translator: Translator, src_ids: Sequence[Sequence[int]], tgt_ids: Sequence[Sequence[int]]
) -> tuple[list[Side], list[Side]]:
    config, (src, tgt) = translator.config, (translator.src_tokenizer, translator.tgt_tokenizer)
    of_tag = [entry.languages for entry in config.data.train if entry.tag == src.tag]
    source, target = next(filter(None, of_tag), (config.source, config.target))
    return (
        [Side.of(src.pieces(ids), source) for ids in src_ids],
        [Side.of(tgt.pieces(ids), target) for ids in tgt_ids],
    )


def _of_words(cross: Weights, source: Side, target: Side, is_next_row: bool) -> Weights:
    """Weights of pieces, (..., T, S) with EOS -> of words, (..., target words, source words)"""
    n_source, n_target = len(source.owners), len(target.owners)
    first = int(is_next_row)
    pieces = cross[..., first : first + n_target, :n_source]
    words: Weights = target.matrix() @ pieces @ source.matrix().T
    return words


def _cross_attention(
    translator: Translator, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Weights]]:
    """The number of each pair that is neither empty nor too long, and its (L, H, T, S).

    Pairs of similar length are computed together, shortest first.
    """
    limit = translator.config.data.max_length
    lengths = [max(len(src), len(tgt)) for src, tgt in zip(sources, targets, strict=True)]
    order = [i for i, n in enumerate(lengths) if sources[i] and targets[i] and n <= limit]
    order.sort(key=lambda i: lengths[i])
    while order:
        n_rows = 1
        while (
            n_rows < len(order) and (n_rows + 1) * (lengths[order[n_rows]] + 1) <= BATCH_POSITIONS
        ):
            n_rows += 1
        batch, order = order[:n_rows], order[n_rows:]
        weights = forced_attention(
            translator.model, [sources[i] for i in batch], [targets[i] for i in batch]
        )
        yield from zip(batch, weights.cross.numpy(), strict=True)


def model_1(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[NDArray[np.float64]]:
    """IBM Model 1 from pairs of sentences as words: for each, (target words, source words).

    Each row holds the probabilities that a target word comes from each source word; the rest, up to
    1, belongs to the empty word, which every sentence has. A cell is a (target word, source word or
    empty word) of a sentence; its kind is the pair of word types.
    """
    numbers: tuple[dict[str, int], dict[str, int]] = ({"": 0}, {})  # word -> its number
    cells, targets, n_targets = [], [], 0  # of each cell: word types; target word of all sentences
    for source, target in pairs:
        columns = np.array([0, *(numbers[0].setdefault(w, len(numbers[0])) for w in source)])
        words = np.array([numbers[1].setdefault(w, len(numbers[1])) for w in target], dtype=int)
        cells.append((words[:, None] + (columns[None] << 32)).ravel())
        targets.append(np.repeat(np.arange(n_targets, n_targets + len(words)), len(columns)))
        n_targets += len(words)
    codes, kinds = np.unique(np.concatenate(cells), return_inverse=True)
    rows, source_of_kind = np.concatenate(targets), codes >> 32
    table = np.ones(len(codes))  # kind -> probability of the target word given the source word
    for iteration in range(N_ITERATIONS + 1):
        weights = table[kinds]
        posterior = weights / np.bincount(rows, weights)[rows]
        if iteration < N_ITERATIONS:
            counts = np.bincount(kinds, posterior, len(codes))
            table = counts / np.bincount(source_of_kind, counts)[source_of_kind]
    found, start = [], 0
    for source, target in pairs:
        end = start + len(target) * (len(source) + 1)
        found.append(posterior[start:end].reshape(len(target), len(source) + 1)[:, 1:])
        start = end
    return found
