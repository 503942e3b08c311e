"""SentencePiece as we use it: nothing is lost, ids are fixed, sizes are honest."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtrain.config import TokenizerConfig
from mtrain.data.cleaning import normalize
from mtrain.data.tokenizer import (
    BOS,
    EOS,
    MAX_PIECE_CHARACTERS,
    PAD,
    UNK,
    Tokenizer,
    load_tokenizers,
    train_tokenizers,
)
from mtrain.errors import DataError

PAIRS = [
    (f"the {animal} sees {n} {thing}", f"{artikel} sieht {n} {ding}")
    for animal, artikel in [("dog", "der Hund"), ("cat", "die Katze"), ("bird", "der Vogel")]
    for thing, ding in [("houses", "Häuser"), ("boats", "Boote"), ("books", "Bücher")]
    for n in range(8)
]


def train(directory: Path, pairs: list[tuple[str, str]] = PAIRS, **settings: object) -> Tokenizer:
    """The source's tokenizer."""
    config = TokenizerConfig.model_validate({"vocab_size": 320} | settings)
    return train_tokenizers(config, lambda: pairs, len(pairs), directory, seed=1)[0]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return train(tmp_path_factory.mktemp("tokenizer"), type=request.param)


@given(st.lists(st.text().map(normalize), max_size=5))
@example(["\u2581", "a\u2581 \u2581b", "\u2585\u2581"])
@example(["\ue000", "\ue0000", "\ue0001", "\ue000\u2581", "\ue000\ue0002"])
@example(["<s> </s> <unk> <pad> <0x41>", "", "日本語 \U0001f600", "\ufffd \u2047"])
def test_no_character_is_lost(tokenizer: Tokenizer, texts: list[str]) -> None:
    ids = tokenizer.encode(texts)
    assert tokenizer.decode(ids) == texts
    assert all(EOS < i < tokenizer.vocab_size for row in ids for i in row)
    for text, row in zip(texts, ids, strict=True):
        assert len(text) <= MAX_PIECE_CHARACTERS * len(row)


def test_a_line_of_escaped_characters_only_can_be_learnt(tmp_path: Path) -> None:
    tokenizer = train(tmp_path, [("\u2585 \u2581", "\u2581\u2585")] * 3)
    assert tokenizer.decode(tokenizer.encode(["\u2585 \u2581"])) == ["\u2585 \u2581"]


def test_special_symbols_have_their_ids_and_leave_no_trace(tokenizer: Tokenizer) -> None:
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    assert tokenizer.pieces([PAD, UNK, BOS, EOS]) == ["<pad>", "<unk>", "<s>", "</s>"]
    [ids] = tokenizer.encode(["the dog"])
    assert tokenizer.decode([[BOS, *ids, EOS, PAD], [], [EOS]]) == ["the dog", "", ""]


def test_whatever_a_model_generates_is_one_line(tokenizer: Tokenizer) -> None:
    by_name = {piece: i for i, piece in enumerate(tokenizer.pieces(range(tokenizer.vocab_size)))}
    [dog] = tokenizer.encode(["dog"])
    line_break, half = by_name["<0x0A>"], by_name["<0xC3>"]
    assert tokenizer.decode([[*dog, line_break, *dog]])[0].split() == ["dog", "dog"]
    assert tokenizer.decode([[line_break], [half]]) == ["", "\ufffd"]


def test_byte_ids_are_those_of_characters_without_a_piece(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.byte_ids()) == 256
    [ids] = tokenizer.encode(["日"])
    assert sum(i in set(tokenizer.byte_ids()) for i in ids) == len("日".encode())


def test_the_vocabulary_has_the_size_asked_for(tmp_path: Path) -> None:
    for kind in ("unigram", "bpe"):
        assert train(tmp_path, type=kind, vocab_size=300).vocab_size == 300


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_too_large_is_reduced_and_says_so(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = train(tmp_path, type=kind, vocab_size=8000).vocab_size
    assert 260 < size < 1000
    assert f"reduced from 8,000 to {size} pieces" in capsys.readouterr().err


def test_a_vocabulary_too_small_names_the_size_that_works(tmp_path: Path) -> None:
    pairs = [("".join(map(chr, range(0x4E00, 0x4E50))), "x")]  # 80 + 1 characters and a space
    with pytest.raises(DataError, match=r"300 is too small .* take 342 pieces"):
        train(tmp_path, pairs, vocab_size=300)
    assert train(tmp_path, pairs, vocab_size=342).vocab_size == 342


def test_one_vocabulary_or_one_a_side(tmp_path: Path) -> None:
    shared, apart = tmp_path / "shared", tmp_path / "apart"
    train(shared)
    source, target = load_tokenizers(shared)
    assert source is target
    train(apart, shared=False, vocab_size=300)
    source, target = load_tokenizers(apart)
    assert sorted(path.name for path in apart.iterdir()) == [
        "tokenizer.source.model",
        "tokenizer.target.model",
    ]
    assert len(source.encode(["the dog sees"])[0]) < len(target.encode(["the dog sees"])[0])
    assert len(source.encode(["der Hund sieht"])[0]) > len(target.encode(["der Hund sieht"])[0])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_same_text_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        train(tmp_path / name, type=kind, max_sentences=50)
    models = [(tmp_path / name / "tokenizer.model").read_bytes() for name in ("a", "b")]
    assert models[0] == models[1]


def test_max_sentences_limits_what_is_learnt_from(tmp_path: Path) -> None:
    pairs = [(f"{chr(0x4E00 + i)}", f"{chr(0x5E00 + i)}") for i in range(500)]
    size = train(tmp_path, pairs, max_sentences=20, vocab_size=5000).vocab_size
    assert size == 4 + 256 + 20 + 1  # a piece for each character seen, and the space


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"tokenizer\.model is damaged"):
        load_tokenizers(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*No such file"):
        load_tokenizers(tmp_path)
