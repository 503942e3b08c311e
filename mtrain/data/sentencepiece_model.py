"""A SentencePiece model made elsewhere, given the special pieces that mtrain counts on.

Its pieces keep their scores and their order, but padding, unknown, begin and end of sentence come
first, in our order, and tags behind them. A model is a protocol buffer; the few fields that this
needs are read and written here, all others are copied byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Field numbers and values of sentencepiece_model.proto.
_PIECES, _TRAINER = 1, 2  # ModelProto
_TEXT, _SCORE, _TYPE = 1, 2, 3  # SentencePiece
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # its types
_MODEL_TYPE, _BPE = 3, 2  # TrainerSpec
_VOCAB_SIZE, _UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 4, 40, 41, 42, 43  # TrainerSpec
_NAMES = {_UNK_ID: (45, "<unk>"), _BOS_ID: (46, "<s>"), _EOS_ID: (47, "</s>")}
_PAD = (48, "<pad>")  # field of a special piece's name, and its default

_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types
_SIZES = {1: 8, _FIXED32: 4}


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    wire_type: int
    value: bytes  # without its length; of a varint, as it is written
    raw: bytes  # key and all


def adopt(model: bytes, tags: Sequence[str]) -> bytes:
    """The model with our special pieces as its first, and with the pieces of the tags.

    Raises ValueError for what is no SentencePiece model.
    """
    fields = list(_fields(model))
    trainer = b"".join(field.value for field in fields if field.number == _TRAINER)
    pieces = {_text(field): field for field in fields if field.number == _PIECES}
    unknown = [text for text, field in pieces.items() if _type(field) == _UNKNOWN]
    if len(unknown) != 1:
        raise ValueError("it has no piece for what is unknown")
    pad, bos, eos = _name(trainer, *_PAD), *(_name(trainer, *_NAMES[i]) for i in (_BOS_ID, _EOS_ID))
    first = [pad, unknown[0], bos, eos, *tags]
    ours = [pieces[text].raw if text in pieces else _control_piece(text) for text in first]
    theirs = [field.raw for text, field in pieces.items() if text not in first]
    # Of a field that comes twice, the last one counts.
    trainer += b"".join(
        _key(number, _VARINT) + _varint(value)
        for number, value in (
            *((_PAD_ID, 0), (_UNK_ID, 1), (_BOS_ID, 2), (_EOS_ID, 3)),
            (_VOCAB_SIZE, len(ours) + len(theirs)),
        )
    )
    rest = [field.raw for field in fields if field.number not in (_PIECES, _TRAINER)]
    return b"".join([*ours, *theirs, _delimited(_TRAINER, trainer), *rest])


def is_bpe(model: bytes) -> bool:
    """Whether its pieces are made by merges."""
    trainer = b"".join(field.value for field in _fields(model) if field.number == _TRAINER)
    types = [field.value for field in _fields(trainer) if field.number == _MODEL_TYPE]
    return bool(types) and _read_varint(types[-1], 0)[0] == _BPE


def user_defined(model: bytes) -> list[str]:
    """The pieces that are never cut, nor joined with others."""
    pieces = [field for field in _fields(model) if field.number == _PIECES]
    return [_text(piece) for piece in pieces if _type(piece) == _USER_DEFINED]


def _control_piece(text: str) -> bytes:
    """A piece that no text is ever cut into."""
    return _delimited(
        _PIECES,
        _delimited(_TEXT, text.encode())
        + _key(_SCORE, _FIXED32)
        + struct.pack("<f", 0.0)
        + _key(_TYPE, _VARINT)
        + _varint(_CONTROL),
    )


def _text(piece: _Field) -> str:
    return next(field.value for field in _fields(piece.value) if field.number == _TEXT).decode()


def _type(piece: _Field) -> int:
    types = [field.value for field in _fields(piece.value) if field.number == _TYPE]
    return _read_varint(types[-1], 0)[0] if types else _NORMAL


def _name(trainer: bytes, number: int, default: str) -> str:
    """What the trainer called a special piece."""
    names = [field.value.decode() for field in _fields(trainer) if field.number == number]
    return names[-1] if names else default


# -- protocol buffers ------------------------------------------------------------------------


def _fields(message: bytes) -> Iterator[_Field]:
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            _, end = _read_varint(message, position)
        elif wire_type == _BYTES:
            size, position = _read_varint(message, position)
            end = position + size
        elif wire_type in _SIZES:
            end = position + _SIZES[wire_type]
        else:
            raise ValueError(f"it has a field of an unknown kind ({wire_type})")
        if end > len(message):
            raise ValueError("it is cut short")
        yield _Field(number, wire_type, message[position:end], message[start:end])
        position = end


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """(value, position behind it)"""
    value = shift = 0
    while position < len(message):
        byte = message[position]
        value |= (byte & 0x7F) << shift
        shift += 7
        position += 1
        if byte < 0x80:
            return value, position
    raise ValueError("it is cut short")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _delimited(number: int, value: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(value)) + value
