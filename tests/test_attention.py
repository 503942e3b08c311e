"""Attention maps of a trained run: their pieces, their sums, their way through JSON."""

import json

import numpy as np
import pytest

from mtrain.decoding.attention import AttentionMaps, maps_of_ids, maps_of_lines
from mtrain.decoding.engine import Search
from mtrain.decoding.translate import Translator
from mtrain.errors import UsageError


@pytest.fixture(scope="module")
def translator(trained_run):
    return Translator.from_run(trained_run.path, device="cpu", precision="fp32")


def maps_of(translator: Translator, source: str, target: str | None = None) -> AttentionMaps:
    """Of a line and a given translation, or its own."""
    if target is None:
        [maps] = maps_of_lines(translator, [source], Search.of(translator.config.decode))
        return maps
    tokenizers = translator.src_tokenizer, translator.tgt_tokenizer
    [src_ids], [tgt_ids] = (
        t.encode([line]) for t, line in zip(tokenizers, (source, target), strict=True)
    )
    return maps_of_ids(translator, src_ids, tgt_ids)


@pytest.fixture(scope="module")
def maps(translator, trained_run):
    return maps_of(translator, trained_run.test_sources[0])


def test_every_piece_has_its_row_and_column(translator, trained_run, maps):
    source = trained_run.test_sources[0]
    (translation,) = translator.translate_detailed([source])
    tokens = translation.hypotheses[0].tokens
    assert maps.written == [*tokens, "</s>"]
    assert maps.read == ["<s>", *tokens]
    assert "".join(maps.source).replace("▁", " ").strip() == source + "</s>"
    n_layers, n_heads, s, t = 1, 4, len(maps.source), len(maps.written)
    assert maps.encoder.shape == (n_layers, n_heads, s, s)
    assert maps.decoder.shape == (n_layers, n_heads, t, t)
    assert maps.cross.shape == (n_layers, n_heads, t, s)


def test_weights_sum_to_one_and_none_looks_ahead(maps):
    for weights in (maps.encoder, maps.decoder, maps.cross):
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not np.triu(maps.decoder, 1).any()


def test_a_reversal_is_seen_in_the_attention_to_the_source(translator, trained_run):
    """The word that is written comes from the word that some head looks at."""
    line = next(line for line in trained_run.test_sources if len(set(line.split())) == 4)
    maps = maps_of(translator, line, " ".join(reversed(line.split())))
    n = len(maps.source) - 1
    shares = [
        np.mean([head[t, n - 1 - t] for t in range(n)]) for head in maps.cross[0]
    ]  # of the mirror image
    assert max(shares) > 0.5


def test_a_given_translation_is_forced(translator):
    maps = maps_of(translator, "ba de", "ba")
    assert "".join(maps.written) == "▁ba</s>"


def test_padding_and_companions_change_nothing(translator, trained_run):
    from mtrain.decoding.attention import forced_attention

    lines = sorted(trained_run.test_sources[:8], key=len)
    sources = translator.src_tokenizer.encode([lines[0], lines[-1]])
    targets = translator.tgt_tokenizer.encode([lines[0], lines[-1]])
    together = forced_attention(translator.model, sources, targets)
    alone = forced_attention(translator.model, sources[:1], targets[:1])
    s, t = len(sources[0]) + 1, len(targets[0]) + 1
    np.testing.assert_allclose(together.cross[0, ..., :t, :s], alone.cross[0], atol=1e-5)
    np.testing.assert_allclose(together.encoder[0, ..., :s, :s], alone.encoder[0], atol=1e-5)


def test_json_keeps_all_to_a_255th(maps):
    back = AttentionMaps.from_json(json.loads(json.dumps(maps.to_json())))
    assert (back.source, back.written, back.read) == (maps.source, maps.written, maps.read)
    for name in ("encoder", "decoder", "cross"):
        np.testing.assert_allclose(getattr(back, name), getattr(maps, name), atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(("line", "said"), [(" ", "blank"), ("ba " * 3000, "too long")])
def test_what_has_no_picture_is_said(translator, line, said):
    with pytest.raises(UsageError, match=said):
        maps_of(translator, line)
