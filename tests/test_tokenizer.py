"""SentencePiece as we use it: nothing is lost, ids are fixed, sizes are honest."""

import io
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
from conftest import mtrain_environment
from hypothesis import example, given
from hypothesis import strategies as st

from mtrain.config.sections import TokenizerConfig
from mtrain.data.cleaning import normalize
from mtrain.data.tokenizer import (
    BOS,
    EOS,
    MAX_PIECE_CHARACTERS,
    PAD,
    UNK,
    Tokenizer,
    adopt,
    load_tokenizers,
    train_tokenizers,
)
from mtrain.errors import DataError, UsageError

PAIRS = [
    (f"the {animal} sees {n} {thing}", f"{artikel} sieht {n} {ding}")
    for animal, artikel in [("dog", "der Hund"), ("cat", "die Katze"), ("bird", "der Vogel")]
    for thing, ding in [("houses", "Häuser"), ("boats", "Boote"), ("books", "Bücher")]
    for n in range(8)
]


def train(
    directory: Path,
    pairs: list[tuple[str, str]] = PAIRS,
    tags: Sequence[str] = (),
    **settings: object,
) -> Tokenizer:
    """The source's tokenizer."""
    config = TokenizerConfig.model_validate({"vocab_size": 320} | settings)
    return train_tokenizers(config, lambda: pairs, len(pairs), directory, 1, tags)[0]


@pytest.fixture(scope="module", params=["unigram", "bpe", "char"])
def tokenizer(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp("tokenizer"), type=request.param)


@given(st.lists(st.text().map(normalize), max_size=5))
@example(["\u2581", "a\u2581 \u2581b", "\u2585\u2581"])
@example(["\ue000", "\ue0000", "\ue0001", "\ue000\u2581", "\ue000\ue0002"])
@example(["<s> </s> <unk> <pad> <0x41>", "", "日本語 \U0001f600", "\ufffd \u2047"])
def test_no_character_is_lost(tokenizer, texts):
    ids = tokenizer.encode(texts)
    assert tokenizer.decode(ids) == texts
    assert all(EOS < i < tokenizer.vocab_size for row in ids for i in row)
    for text, row in zip(texts, ids, strict=True):
        assert len(text) <= MAX_PIECE_CHARACTERS * len(row)


def test_a_line_of_escaped_characters_only_can_be_learnt(tmp_path):
    tokenizer = train(tmp_path, [("\u2585 \u2581", "\u2581\u2585")] * 3)
    assert tokenizer.decode(tokenizer.encode(["\u2585 \u2581"])) == ["\u2585 \u2581"]


def test_special_symbols_have_their_ids_and_leave_no_trace(tokenizer):
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    assert tokenizer.pieces([PAD, UNK, BOS, EOS]) == ["<pad>", "<unk>", "<s>", "</s>"]
    [ids] = tokenizer.encode(["the dog"])
    assert tokenizer.decode([[BOS, *ids, EOS, PAD], [], [EOS]]) == ["the dog", "", ""]


def test_whatever_a_model_generates_is_one_line(tokenizer):
    by_name = {piece: i for i, piece in enumerate(tokenizer.pieces(range(tokenizer.vocab_size)))}
    [dog] = tokenizer.encode(["dog"])
    line_break, half = by_name["<0x0A>"], by_name["<0xC3>"]
    assert tokenizer.decode([[*dog, line_break, *dog]])[0].split() == ["dog", "dog"]
    assert tokenizer.decode([[line_break], [half]]) == ["", "\ufffd"]


def test_byte_ids_are_those_of_characters_without_a_piece(tokenizer):
    assert len(tokenizer.byte_ids()) == 256
    [ids] = tokenizer.encode(["日"])
    assert sum(i in set(tokenizer.byte_ids()) for i in ids) == len("日".encode())


def test_the_vocabulary_has_the_size_asked_for(tmp_path):
    for kind in ("unigram", "bpe"):
        assert train(tmp_path, type=kind, vocab_size=300).vocab_size == 300


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_too_large_is_reduced_and_says_so(tmp_path, kind, capsys):
    size = train(tmp_path, type=kind, vocab_size=8000).vocab_size
    assert 260 < size < 1000
    assert f"reduced from 8,000 to {size} pieces" in capsys.readouterr().err


def test_a_vocabulary_too_small_names_the_size_that_works(tmp_path):
    pairs = [("".join(map(chr, range(0x4E00, 0x4E50))), "x")]  # 80 + 1 characters and a space
    with pytest.raises(DataError, match=r"300 is too small .* take 342 pieces"):
        train(tmp_path, pairs, vocab_size=300)
    assert train(tmp_path, pairs, vocab_size=342).vocab_size == 342


def test_user_defined_symbols_are_never_cut(tmp_path):
    tokenizer = train(tmp_path, user_defined_symbols=("@@x@@", "\u2581Z"))
    [ids] = tokenizer.encode(["the @@x@@dog \u2581Z"])
    assert "@@x@@" in tokenizer.pieces(ids)
    assert tokenizer.decode([ids]) == ["the @@x@@dog \u2581Z"]
    assert len(tokenizer.encode(["\u2581Z"])[0]) <= 2


def test_a_tag_is_a_piece_that_no_text_has(tmp_path):
    tokenizer = train(tmp_path, tags=["bt", "de"])
    tagged = tokenizer.tagged("de")
    [plain], [with_tag] = tokenizer.encode(["the <de> dog"]), tagged.encode(["the <de> dog"])
    assert with_tag[1:] == plain
    assert tagged.pieces(with_tag[:1]) == ["<de>"]
    assert with_tag[0] not in plain
    assert tagged.decode([with_tag]) == ["the <de> dog"]
    assert tagged.encode([""]) == [[]]
    assert tagged.sample(["the dog"], 0.5, seed=1)[0][0] == with_tag[0]
    assert tokenizer.tags() == ["bt", "de"]
    assert tagged.tagged(None).encode(["the <de> dog"]) == [plain]
    copy = pickle.loads(pickle.dumps(tagged))
    assert copy.encode(["the <de> dog"]) == [with_tag]
    for unknown in ("fr", "s", "unk"):
        with pytest.raises(UsageError, match=f"no tag `{unknown}` .it knows: bt, de"):
            tokenizer.tagged(unknown)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_drawn_pieces_depend_on_text_and_seed_alone(tmp_path, kind):
    tokenizer = train(tmp_path, type=kind)
    texts = [source for source, _ in PAIRS]
    drawn = tokenizer.sample(texts, 0.3, seed=5)
    assert tokenizer.sample(texts, 0.3, seed=6) != drawn
    assert train(tmp_path / "again", type=kind).sample(texts, 0.3, seed=5) == drawn
    assert tokenizer.sample(texts, 0.3, seed=5) == drawn
    assert tokenizer.decode(drawn) == texts
    assert drawn != tokenizer.encode(texts)
    in_parts = [row for text in texts[:5] for row in tokenizer.sample([text], 0.3, seed=5)]
    assert in_parts[0] == drawn[0]


def test_drawn_pieces_are_the_same_in_another_process(tmp_path):
    """SentencePiece's own are not."""
    program = (
        "import sys; from pathlib import Path; from mtrain.data.tokenizer import load_tokenizers;"
        "print(load_tokenizers(Path(sys.argv[1]))[0].sample(['the dog sees', 'books'], 0.3, 5))"
    )
    for kind in ("unigram", "bpe"):
        own = train(tmp_path / kind, type=kind).sample(["the dog sees", "books"], 0.3, 5)
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / kind)],
            env=mtrain_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(own)


def foreign_model(path: Path, **settings: object) -> None:
    """As `spm_train` makes them: unknown, begin and end first, no padding, no bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for pair in PAIRS for text in pair),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=3,
        **({"vocab_size": 60} | settings),
    )
    path.write_bytes(model.getvalue())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model_type": "bpe", "byte_fallback": True, "vocab_size": 320},
        {"pad_id": 3, "bos_id": -1, "eos_piece": "<end>"},
        {"control_symbols": "<de>", "user_defined_symbols": "@@"},
    ],
)
def test_a_foreign_model_keeps_its_pieces_behind_our_special_ones(tmp_path, settings):
    path = tmp_path / "foreign.model"
    foreign_model(path, **settings)
    foreign = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    own = train(tmp_path, model=str(path), tags=["de", "bt"])
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=(tmp_path / "tokenizer.model").read_bytes()
    )
    special = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
    assert special == (PAD, UNK, BOS, EOS)
    assert processor.vocab_size() == own.vocab_size == len(set(own.all_pieces()))
    assert own.tags() == ["de", "bt"]
    texts = [text for pair in PAIRS for text in pair]
    expected = foreign.encode(texts, out_type=str)
    assert [own.pieces(row) for row in own.encode(texts)] == expected
    assert own.decode(own.encode(texts)) == texts
    scores = {foreign.id_to_piece(i): foreign.get_score(i) for i in range(foreign.vocab_size())}
    for i, piece in enumerate(own.all_pieces()):
        if i > 5 and piece in scores:
            assert processor.get_score(i) == scores[piece]


def test_a_foreign_model_without_bytes_is_warned_about(tmp_path, capsys):
    foreign_model(tmp_path / "foreign.model")
    train(tmp_path, model=str(tmp_path / "foreign.model"))
    assert "no pieces for bytes" in capsys.readouterr().err


def test_a_file_that_is_not_a_model_cannot_be_used(tmp_path):
    path = tmp_path / "text.model"
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        train(tmp_path, model=str(path))
    path.write_text("not a model")
    with pytest.raises(DataError, match="is not a SentencePiece model"):
        train(tmp_path, model=str(path))
    for damaged in (b"\x0a\xff", b"\x0b", b"\x80"):
        with pytest.raises(ValueError, match="it "):
            adopt(damaged, [])


def test_one_vocabulary_or_one_a_side(tmp_path):
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
def test_the_same_text_gives_the_same_bytes(tmp_path, kind):
    for name in ("a", "b"):
        train(tmp_path / name, type=kind, max_sentences=50)
    models = [(tmp_path / name / "tokenizer.model").read_bytes() for name in ("a", "b")]
    assert models[0] == models[1]


def test_max_sentences_limits_what_is_learnt_from(tmp_path):
    pairs = [(f"{chr(0x4E00 + i)}", f"{chr(0x5E00 + i)}") for i in range(500)]
    size = train(tmp_path, pairs, max_sentences=20, vocab_size=5000).vocab_size
    assert size == 4 + 256 + 20 + 1  # a piece for each character seen, and the space


def test_a_damaged_model_is_named(tmp_path):
    train(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"tokenizer\.model is damaged"):
        load_tokenizers(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*No such file"):
        load_tokenizers(tmp_path)


def test_long_text_is_sampled_by_its_characters(tmp_path, monkeypatch, capsys):
    n_characters = sum(len(source) + len(target) for source, target in PAIRS)
    monkeypatch.setattr("mtrain.data.tokenizer._MAX_CHARACTERS", 5 * n_characters)
    train(tmp_path, PAIRS * 20)
    assert f"training SentencePiece on {5 * len(PAIRS)} pairs" in capsys.readouterr().err
