"""Pictures: that they are what was asked for, hold what they should, and show any script."""

import base64
import json
import re
from typing import Any

import numpy as np
import pytest
from conftest import invoke

from mtrain.config.sections import ModelConfig
from mtrain.decoding.attention import AttentionMaps
from mtrain.errors import UsageError
from mtrain.report import attention
from mtrain.report.attention import Selection, attention_page, attention_picture, read_heads

N_LAYERS, N_HEADS = 2, 3


def maps_of(source: list[str], written: list[str]) -> AttentionMaps:
    """Every head looks at one column: layer + head, as far as there is one that it may see."""
    s, t = len(source), len(written)

    def weights(n_rows: int, n_columns: int, is_causal: bool) -> Any:
        array = np.zeros((N_LAYERS, N_HEADS, n_rows, n_columns), dtype=np.float32)
        for layer, head, row in np.ndindex(N_LAYERS, N_HEADS, n_rows):
            last = min(n_columns - 1, row if is_causal else n_columns)
            array[layer, head, row, min(layer + head, last)] = 1
        return array

    return AttentionMaps(
        source, written, weights(s, s, False), weights(t, t, True), weights(t, s, False)
    )


MAPS = maps_of(["▁A", "▁dog", "</s>"], ["▁Ein", "▁Hund", ".", "</s>"])


def texts(svg: bytes) -> list[str]:
    """What an SVG writes: matplotlib notes each text before its outlines."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def test_every_head_and_every_piece_is_written():
    written = texts(attention_picture([MAPS]))
    assert [text for text in written if text.startswith("head ")] == [
        "head 1",
        "head 2",
        "head 3",
    ] * 3
    assert "masked decoder self-attention, layer 2 of 2 (hatched: not written yet)" in written
    assert written.count("_dog") == 1 + 3 + 3  # a row, and under three heads of two kinds
    assert written.count("&lt;s&gt;") + written.count("<s>") == 3


def test_what_is_selected_is_drawn():
    written = texts(attention_picture([MAPS], Selection(("cross",), 1, (2,))))
    assert {text for text in written if "layer" in text or "head" in text} == {
        "encoder-decoder attention, layer 1 of 2",
        "head 2",
    }
    written = texts(attention_picture([MAPS], Selection(("encoder",), None, "mean")))
    assert "mean of 3 heads" in written


def test_the_mask_is_drawn_where_nothing_may_be_seen():
    with_mask = attention_picture([MAPS], Selection(("decoder",)))
    without = attention_picture([MAPS], Selection(("encoder", "cross")))
    assert b"<pattern" in with_mask  # the hatching
    assert b"<pattern" not in without


ONE = Selection(("cross",), 1, (1,))


@pytest.mark.parametrize(("format", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_same_maps_give_the_same_bytes(format, start):
    picture = attention_picture([MAPS], ONE, format)
    assert picture.startswith(start)
    assert picture == attention_picture([MAPS], ONE, format)


def test_several_sentences_stand_one_below_the_other():
    other = maps_of(["▁Cats", "</s>"], ["▁Katzen", "</s>"])
    written = texts(attention_picture([MAPS, other], ONE))
    assert "A dog" in written
    assert "Cats" in written


def test_a_dollar_is_no_formula():
    costs = maps_of(["$x_1^2", "$", "</s>"], ["$\\frac", "</s>"])
    assert "$x_1^2" in texts(attention_picture([costs], ONE))


def test_letters_without_a_font_become_boxes(monkeypatch, capsys):
    dejavu = [font for font in attention.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(attention.fontManager, "ttflist", dejavu)
    chinese = maps_of(["a我们b", "Grüße", "</s>"], ["x", "</s>"])
    written = texts(attention_picture([chinese], ONE))
    assert {"a□□b", "Grüße"} <= set(written)
    assert "Noto" in capsys.readouterr().err


def data_of(page: str) -> Any:
    block = re.search(
        r'<script type="application/json" id="attention-data">(.*?)</script>', page, re.DOTALL
    )
    assert block is not None
    return json.loads(block[1])


def test_a_page_holds_every_layer_and_head():
    data = data_of(attention_page([MAPS], Selection(layer=1, heads=(2,))))
    assert (data["layer"], data["heads"]) == (1, [2])
    (sentence,) = data["sentences"]
    assert sentence["read"] == ["<s>", "▁Ein", "▁Hund", "."]
    assert sentence["cross"]["shape"] == [2, 3, 4, 3]
    values = np.frombuffer(base64.b64decode(sentence["cross"]["bytes"]), np.uint8).reshape(
        2, 3, 4, 3
    )
    np.testing.assert_array_equal(values, np.rint(MAPS.cross * 255))


def test_a_page_loads_nothing_and_no_sentence_can_break_out():
    page = attention_page([maps_of(["</script><b>&", "</s>"], ["'\"<!--", "</s>"])])
    assert page.count("</script>") == 2
    assert "<b>" not in page
    assert not re.search(r"(src|href)=|url\(|https?:(?!//www.w3.org/2000/svg)|@import", page)
    assert data_of(page)["sentences"][0]["source"][0] == "</script><b>&"


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection(layer=3), "layers 1 to 2"),
        (Selection(heads=(1, 4)), "heads 1 to 3"),
    ],
)
def test_what_is_not_there_is_said(selection, said):
    model = ModelConfig(n_encoder_layers=2, n_decoder_layers=2, d_model=12, n_heads=3)
    with pytest.raises(UsageError, match=said):
        selection.check(model)


@pytest.mark.parametrize("text", ["", "0", "1,,2", "first", "1;2"])
def test_heads_that_are_none(text):
    with pytest.raises(UsageError, match="heads"):
        read_heads(text)


def test_on_the_command_line(trained_run, tmp_path):
    lines = trained_run.test_sources[:2]
    done = invoke(
        *(
            "translate",
            trained_run.path,
            "--attention",
            tmp_path / "a.html",
            "--attention-layer",
            1,
        ),
        cwd=tmp_path,
        stdin="".join(f"{line}\n" for line in lines) + "\n",
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    sentences = data_of((tmp_path / "a.html").read_text(encoding="utf-8"))["sentences"]
    assert ["".join(s["source"][:-1]).replace("▁", " ").strip() for s in sentences] == lines


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["--attention", "a.jpg"], "ba\n", ".html, .png"),
        (["--attention", "a.png", "--attention-layer", "7"], "ba\n", "layers 1 to 1"),
        (["--attention", "a.png"], "ba\n" * 11, "at most 10"),
        (["--attention", "a.png"], "\n \n", "blank"),
        (["--attention-head", "2"], "ba\n", "--attention FILE"),
    ],
)
def test_what_cannot_be_drawn_is_said(trained_run, tmp_path, arguments, stdin, said):
    done = invoke("translate", trained_run.path, *arguments, cwd=tmp_path, stdin=stdin)
    assert done.returncode == 2
    assert said in done.stderr
    assert not list(tmp_path.iterdir())
