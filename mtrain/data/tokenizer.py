"""Trains and applies SentencePiece; defines the ids of padding, unknown, begin and end of sentence.

Text is normalised by `cleaning.normalize`, and SentencePiece's own normalisation is off. Characters
without a piece are encoded as UTF-8 bytes, so that no character is ever lost:
`decode(encode(text)) == text` for any normalised text.

SentencePiece writes a space as U+2581 and skips training lines that contain U+2585. To survive as
text, these two are escaped as the private character U+E000 and a digit; U+E000 itself is escaped
the same way, which makes the mapping one-to-one.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mtrain import console
from mtrain.config.sections import TokenizerConfig, TokenizerModels
from mtrain.data.subwords import BpeCutter, DrawCut, UnigramCutter
from mtrain.errors import DataError, UsageError
from mtrain.run import RunDir
from mtrain.storage import atomic_write, read_bytes

PAD, UNK, BOS, EOS = 0, 1, 2, 3

MAX_PIECE_CHARACTERS = 16  # so a text of n characters has at least n / 16 pieces

_SHARED = "tokenizer.model"
_PER_SIDE = ("tokenizer.source.model", "tokenizer.target.model")

_ESCAPES = {"\ue000": "\ue0000", "\u2581": "\ue0001", "\u2585": "\ue0002"}
_UNESCAPES = {escaped: character for character, escaped in _ESCAPES.items()}
_TO_ESCAPE = re.compile("[\ue000\u2581\u2585]")
_TO_UNESCAPE = re.compile("\ue000[012]")

_MAX_CHARACTERS = 25_000_000  # SentencePiece needs up to 40 bytes of memory for each
_COUNTED_PAIRS = 200_000
_MEASURED_PAIRS = 10_000  # whose mean length is used as that of all

# Unigram training sums floats per thread: with a fixed number of threads the pieces do not depend
# on the machine.
_TRAINING_THREADS = 4

# Values of enums in sentencepiece_model.proto.
_BPE = 2  # TrainerSpec.ModelType
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # SentencePiece.Type


class Tokenizer:
    """One side's SentencePiece model: text to ids and back, without special symbols."""

    def __init__(self, model: bytes, tag: str | None = None) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model, self.tag = model, tag
        self._processor: Any = SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.vocab_size()
        self._cutters: dict[float, DrawCut] = {}
        self._prefix = [] if tag is None else [self._tag_id(tag)]

    @classmethod
    def load(cls, path: Path, sha256: str | None = None) -> Tokenizer:
        """Read a model file and, if given, check its sha256; a DataError names a damaged file."""
        try:
            model = read_bytes(path)
        except OSError as error:
            raise DataError(
                f"cannot read the tokenizer {path}: {error.strerror}", "restore the file"
            ) from error
        if sha256 is not None and hashlib.sha256(model).hexdigest() != sha256:
            raise DataError(
                f"{path} is damaged: it is not the tokenizer that was trained",
                "restore the file, or train again with --fresh",
            )
        try:
            if not model:  # to SentencePiece, a model without pieces
                raise RuntimeError("an empty file")
            tokenizer = cls(model)
            tokenizer.all_pieces()
        except (RuntimeError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise DataError(
                f"{path} is damaged: it is not a SentencePiece model", "restore the file"
            ) from error
        return tokenizer

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes, str | None]]:
        return Tokenizer, (self._model, self.tag)

    def tagged(self, tag: str | None) -> Tokenizer:
        """The same tokenizer, but with the piece of a tag before every text; None: without one."""
        return self if tag == self.tag else Tokenizer(self._model, tag)

    def tags(self) -> list[str]:
        """The tags in the vocabulary."""
        numbers = range(EOS + 1, self.vocab_size)
        return [piece[1:-1] for piece in self.pieces(filter(self._processor.is_control, numbers))]

    def _tag_id(self, tag: str) -> int:
        number = int(self._processor.piece_to_id(tag_piece(tag)))
        if number <= EOS or not self._processor.is_control(number):
            known = ", ".join(self.tags())
            raise UsageError(
                f"the model knows no tag `{tag}` (it knows: {known or 'none'})",
                "choose one that an entry of `data.train` has as its `tag`",
            )
        return number

    def encode(self, texts: Sequence[str], n_threads: int = -1) -> list[list[int]]:
        """The ids of each normalised text, without BOS and EOS; [] for an empty text.

        n_threads  by default one per core
        """
        escaped = [_escape(text) for text in texts]
        ids: list[list[int]] = self._processor.encode(escaped, num_threads=n_threads)
        return self._with_tag(ids)

    def sample(self, texts: Sequence[str], strength: float, seed: int) -> list[list[int]]:
        """The ids of each text in random pieces (`data.subwords`), determined by the seed."""
        words = [_escape(text).split(" ") if text else [] for text in texts]
        drawn = np.random.default_rng(seed).random(sum(map(len, words))).tolist()
        draw, numbers = self._cutter(strength), iter(drawn)
        return self._with_tag(
            [[i for word in row for i in draw(word, next(numbers))] for row in words]
        )

    def _cutter(self, strength: float) -> DrawCut:
        """Kept, as it caches the words it has segmented."""
        if strength not in self._cutters:
            model = _parse(self._model)
            if model.trainer_spec.model_type == _BPE:
                symbols = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
                self._cutters[strength] = BpeCutter(self._processor, strength, symbols)
            else:
                self._cutters[strength] = UnigramCutter(self._processor, strength)
        return self._cutters[strength]

    def _with_tag(self, ids: list[list[int]]) -> list[list[int]]:
        """Prepend the tag; an empty text stays empty."""
        return [self._prefix + row if row else row for row in ids] if self._prefix else ids

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Each sequence of ids as one line of text, without special symbols.

        A model may generate ids that no text encodes to: the bytes of a line break become a space,
        those of half a character U+FFFD, so that one sequence is always one line.
        """
        if not ids:
            return []
        texts: list[str] = self._processor.decode([[int(i) for i in row] for row in ids])
        return [" ".join(_unescape(text).split()) for text in texts]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id, as SentencePiece shows it (a space is U+2581)."""
        return [self._processor.id_to_piece(int(i)) for i in ids]

    def ids(self, pieces: Sequence[str]) -> list[int]:
        """The id of each piece: the inverse of `pieces`."""
        return [self._processor.piece_to_id(piece) for piece in pieces]

    def all_pieces(self) -> list[str]:
        """The whole vocabulary, in the order of the ids."""
        return self.pieces(range(self.vocab_size))

    def byte_ids(self) -> list[int]:
        """The ids of the single bytes that encode characters without a piece."""
        return [i for i in range(self.vocab_size) if self._processor.is_byte(i)]


def model_files(directory: Path) -> list[Path]:
    """The model files in a directory: one if shared, else that of the source and of the target."""
    shared = directory / _SHARED
    return [shared] if shared.exists() else [directory / name for name in _PER_SIDE]


def load_tokenizers(
    directory: Path, sha256: Mapping[str, str] = MappingProxyType({})
) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of source and target: the same object twice if shared.

    sha256  of each file by its name, as far as known; a DataError where one differs
    """
    loaded = [Tokenizer.load(path, sha256.get(path.name)) for path in model_files(directory)]
    return loaded[0], loaded[-1]


def tokenizers_of(run: RunDir) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of a run, checked against the sha256 in its manifest."""
    return load_tokenizers(run.files, run.read_manifest()["files"])


def tag_piece(tag: str) -> str:
    """The piece of a tag; it never results from text."""
    return f"<{tag}>"


def train_tokenizers(
    config: TokenizerConfig,
    pairs: Callable[[], Iterable[tuple[str, str]]],
    n_pairs: int,
    directory: Path,
    seed: int,
    tags: Sequence[str] = (),
    mono: Callable[[int], Iterable[str]] = lambda side: (),
) -> tuple[Tokenizer, Tokenizer]:
    """Train SentencePiece and write its models; the same text gives the same bytes.

    At most `config.max_sentences` texts, or about 25 million characters, are used: a random sample.
    Models named in the config are used instead.

    pairs  yields the n_pairs normalised (source, target) texts, in the same order every time
    tags   pieces of both vocabularies
    mono   yields additional text of side 0 or 1, whose first `max_sentences` texts are used
    """
    if config.model is not None:
        return _adopt_models(config.model, directory, tags)
    n_sampled = config.max_sentences // 2 if config.shared else config.max_sentences
    n_sampled = max(1, min(n_sampled, _n_pairs_within_memory(pairs())))
    is_sampled = _sample(n_pairs, n_sampled, seed)
    console.message(f"training SentencePiece on {min(n_pairs, n_sampled):,} pairs")

    def texts(*sides: int) -> Iterator[str]:
        for pair, wanted in zip(pairs(), is_sampled, strict=True):
            if wanted:
                yield from (pair[side] for side in sides)
        for side in sides:
            yield from islice(mono(side), config.max_sentences)

    if config.shared:
        tokenizer = _train(config, tags, texts(0, 1), directory / _SHARED, "the vocabulary")
        return tokenizer, tokenizer
    return (
        _train(config, tags, texts(0), directory / _PER_SIDE[0], "the source vocabulary"),
        _train(config, tags, texts(1), directory / _PER_SIDE[1], "the target vocabulary"),
    )


def _adopt_models(
    models: str | TokenizerModels, directory: Path, tags: Sequence[str]
) -> tuple[Tokenizer, Tokenizer]:
    """Use SentencePiece models made elsewhere, with our special pieces."""
    if isinstance(models, str):
        named = {models: _SHARED}
    else:
        named = dict(zip((models.source, models.target), _PER_SIDE, strict=True))
    for location, name in named.items():
        path = Path(location).expanduser()
        if not Tokenizer.load(path).byte_ids():
            console.warn(
                f"{path} has no pieces for bytes: characters that it does not know are lost"
            )
        try:
            model = adopt(path.read_bytes(), tags)
        except ValueError as error:
            raise DataError(
                f"{path} is not a SentencePiece model that can be used: {error}", "use another one"
            ) from error
        atomic_write(directory / name, model)
    return load_tokenizers(directory)


def adopt(model: bytes, tags: Sequence[str]) -> bytes:
    """Put our special pieces, and those of the tags, in front of the pieces of a foreign model.

    All other pieces keep their scores and their order. Raises ValueError if it is not a model.
    """
    proto = _parse(model)
    trainer, pieces = proto.trainer_spec, {piece.piece: piece for piece in proto.pieces}
    unknown = [text for text, piece in pieces.items() if piece.type == _UNKNOWN]
    if len(unknown) != 1:
        raise ValueError("it has no piece for unknown characters")
    special = [trainer.pad_piece, unknown[0], trainer.bos_piece, trainer.eos_piece]
    special += map(tag_piece, tags)
    others = [piece for text, piece in pieces.items() if text not in special]
    adopted = type(proto)()
    adopted.CopyFrom(proto)
    del adopted.pieces[:]
    for text in special:
        if text in pieces:
            adopted.pieces.append(pieces[text])
        else:
            adopted.pieces.add(piece=text, score=0.0, type=_CONTROL)
    adopted.pieces.extend(others)
    spec = adopted.trainer_spec
    spec.pad_id, spec.unk_id, spec.bos_id, spec.eos_id = PAD, UNK, BOS, EOS
    spec.vocab_size = len(adopted.pieces)
    serialized: bytes = adopted.SerializeToString()
    return serialized


def _parse(model: bytes) -> Any:
    """The protocol buffer of a model; a ValueError if it is not one."""
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    try:
        return ModelProto.FromString(model)
    except DecodeError as error:
        raise ValueError("it cannot be parsed") from error


def n_characters(pairs: Iterable[tuple[str, str]]) -> int:
    """Different characters in the first texts, the rarest 0.05 % of the text left out."""
    counts: Counter[str] = Counter()
    for pair in islice(pairs, _COUNTED_PAIRS):
        counts.update("".join(pair))
    rare, n = counts.total() * 0.0005, len(counts)
    for _, count in reversed(counts.most_common()):
        rare -= count
        if rare < 0:
            break
        n -= 1
    return n


def _n_pairs_within_memory(pairs: Iterable[tuple[str, str]]) -> int:
    """How many pairs like the first ones have `_MAX_CHARACTERS` characters."""
    lengths = [len(source) + len(target) for source, target in islice(pairs, _MEASURED_PAIRS)]
    return _MAX_CHARACTERS * len(lengths) // max(1, sum(lengths))


def _sample(n: int, n_wanted: int, seed: int) -> Sequence[bool]:
    """n flags; the seed selects n_wanted of them to be True (all, if fewer)."""
    if n <= n_wanted:
        return [True] * n
    flags = np.zeros(n, dtype=bool)
    flags[np.random.default_rng(seed).choice(n, n_wanted, replace=False)] = True
    chosen: list[bool] = flags.tolist()
    return chosen


def _train(
    config: TokenizerConfig, tags: Sequence[str], texts: Iterable[str], path: Path, what: str
) -> Tokenizer:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=map(_escape, texts),
            model_writer=model,
            model_type=config.type,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,  # a corpus of few pieces gives a smaller vocabulary
            character_coverage=config.character_coverage,
            byte_fallback=True,
            split_digits=config.split_digits,
            control_symbols=[tag_piece(tag) for tag in tags],
            user_defined_symbols=list(map(_escape, config.user_defined_symbols)),
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 24,  # bytes; longer text was dropped before
            max_sentencepiece_length=MAX_PIECE_CHARACTERS,
            shuffle_input_sentence=False,
            num_threads=_TRAINING_THREADS,
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _explain(error, config) from error
    atomic_write(path, model.getvalue())
    tokenizer = Tokenizer(model.getvalue())
    if tokenizer.vocab_size < config.vocab_size:
        console.message(
            f"{what} was reduced from {config.vocab_size:,} to {tokenizer.vocab_size:,} pieces: "
            "the training text has no more"
        )
    return tokenizer


def _explain(error: RuntimeError, config: TokenizerConfig) -> Exception:
    """Raise a DataError instead of SentencePiece's error if the cause is known."""
    too_small = re.search(r"smaller than required_chars. \d+ vs (\d+)", str(error))
    if too_small is None:
        return error
    return DataError(
        f"`tokenizer.vocab_size` {config.vocab_size} is too small for the training text: its "
        f"characters, the 256 bytes and the 4 special symbols alone take {too_small[1]} pieces",
        f"set `tokenizer.vocab_size` to {too_small[1]} or (much better) a few thousand more, or "
        "lower `tokenizer.character_coverage`, so that rare characters are encoded as bytes",
    )


def _escape(text: str) -> str:
    if text.isascii():
        return text
    return _TO_ESCAPE.sub(lambda match: _ESCAPES[match[0]], text)


def _unescape(text: str) -> str:
    return _TO_UNESCAPE.sub(lambda match: _UNESCAPES[match[0]], text)
