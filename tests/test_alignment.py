"""Word links: Model 1 against hand-made corpora, words against pieces, links against a reversal."""

import json
import shutil

import numpy as np
import pytest
from conftest import invoke, reverse, write_lines
from hypothesis import given
from hypothesis import strategies as st

from mtrain.decoding.alignment import Alignment, Side, align, choose_head, model_1
from mtrain.decoding.translate import Translator
from mtrain.run import RunDir

WORDS = st.lists(st.sampled_from("abcde"), max_size=5)


def test_model_1_learns_from_who_comes_with_whom():
    """das Haus, das Buch, ein Buch: the textbook's corpus."""
    pairs = [
        (["das", "Haus"], ["the", "house"]),
        (["das", "Buch"], ["the", "book"]),
        (["ein", "Buch"], ["a", "book"]),
    ]
    found = model_1(pairs)
    for posterior in found:
        assert posterior.argmax(-1).tolist() == [0, 1]
    assert found[1][1, 1] > 0.5


def test_model_1_first_step_is_the_textbooks():
    """From equal probabilities, worked out by hand below."""
    from mtrain.decoding import alignment

    pairs = [(["das", "Haus"], ["the", "house"]), (["das", "Buch"], ["the", "book"])]
    before, alignment.N_ITERATIONS = alignment.N_ITERATIONS, 1
    try:
        found = model_1(pairs)
    finally:
        alignment.N_ITERATIONS = before
    # counts of `the`: 1/3 from each of the empty word, das, Haus; t(the|das) = (2/3) / (4/3)
    # t(the|Haus) = (1/3) / (2/3), t(the|empty) = 1/2 as well: all alike
    np.testing.assert_allclose(found[0][0], [1 / 3, 1 / 3])
    # t(house|das) = (1/3) / (4/3), t(house|Haus) = 1/2, t(house|empty) = 1/4
    np.testing.assert_allclose(found[0][1], [1 / 4, 1 / 2])


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_model_1_gives_probabilities(pairs):
    if not any(target for _, target in pairs):
        return
    for (source, target), posterior in zip(pairs, model_1(pairs), strict=True):
        assert posterior.shape == (len(target), len(source))
        assert (posterior >= 0).all()
        assert (posterior.sum(-1) < 1 + 1e-9).all()


@pytest.mark.parametrize(
    ("pieces", "language", "words", "owners"),
    [
        (["▁A", "▁do", "g", "."], "en", ["A", "dog."], [0, 1, 1, 1]),
        (["▁", "2", "4", "▁km"], "en", ["24", "km"], [0, 0, 0, 1]),
        (["▁", "▁a", "▁"], "en", ["a"], [0, 0, 0]),
        (["▁", "我", "喜欢", "茶"], "zh", ["我", "喜欢", "茶"], [0, 0, 1, 2]),
        (["▁我", "喜欢"], "zh-Hans", ["我", "喜欢"], [0, 1]),
        ([], "en", [], []),
    ],
)
def test_words_are_made_of_pieces(pieces, language, words, owners):
    assert Side.of(pieces, language) == Side(words, owners)


def test_links_are_written_as_pharaoh_does():
    assert str(Alignment(["a", "b"], ["c"], [(0, 0), (1, 0)])) == "0-0 1-0"


def test_the_chosen_head_shows_a_reversal(trained_run):
    translator = Translator.from_run(trained_run.path, device="cpu", precision="fp32")
    valid = RunDir.open(trained_run.path).read_split("valid")
    head = choose_head(translator, valid.sources, valid.references)
    assert head.agreement > 0.3
    lines = [line for line in trained_run.test_sources if len(line.split()) > 2]
    mirrored = [" ".join(reversed(line.split())) for line in lines]
    targets = [
        translator.tgt_tokenizer.pieces(ids) for ids in translator.tgt_tokenizer.encode(mirrored)
    ]
    found = align(translator, head, lines, targets)
    right = total = 0
    for alignment in found:
        n = len(alignment.source_words)
        assert alignment.words == alignment.source_words[::-1]
        right += sum(i == n - 1 - j for i, j in alignment.links)
        total += n
    assert right / total > 0.8


def test_lines_without_links_stay_in_their_place(trained_run):
    translator = Translator.from_run(trained_run.path, device="cpu", precision="fp32")
    head = choose_head(translator, ["ba de"], ["de ba"])
    long = "ba " * 3000
    found = align(translator, head, ["", "ba", long], [[], ["▁ba"], ["▁ba"]])
    assert [alignment.links for alignment in found] == [[], [(0, 0)], []]


def test_links_on_the_command_line(trained_run, tmp_path):
    run = tmp_path / "run"  # without what another test may have had it remember
    shutil.copytree(trained_run.path, run, ignore=shutil.ignore_patterns("alignment.json"))
    lines = [*trained_run.test_sources[:3], ""]
    stdin = "".join(f"{line}\n" for line in lines)
    done = invoke("translate", run, "--alignment", cwd=tmp_path, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert "IBM Model 1" in done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[3] == ["", ""]
    for line, (text, links) in zip(lines[:3], rows[:3], strict=True):
        pairs = [tuple(map(int, link.split("-"))) for link in links.split()]
        assert sorted(j for _, j in pairs) == list(range(len(text.split())))
        assert all(i < len(line.split()) for i, _ in pairs)

    again = invoke("translate", run, "--alignment", "--format", "jsonl", cwd=tmp_path, stdin=stdin)
    assert "IBM Model 1" not in again.stderr  # the run remembers
    first = json.loads(again.stdout.splitlines()[0])
    alignment = first["hypotheses"][0]["alignment"]
    assert " ".join(f"{i}-{j}" for i, j in alignment["links"]) == rows[0][1]
    assert alignment["source_words"] == lines[0].split()


def test_given_pairs_are_linked_too(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run.path, run)
    line = next(line for line in trained_run.test_sources if len(set(line.split())) == 4)
    write_lines(tmp_path / "source", [line, "ba"])
    write_lines(tmp_path / "target", [reverse(line), "ba"])
    score = ("--score", "source", "target", "--alignment")
    done = invoke("translate", run, *score, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [row.split("\t") for row in done.stdout.splitlines()]
    linked = [link.split("-")[1] for link in rows[0][1].split()]
    assert sorted(linked) == ["0", "1", "2", "3"]
    alone = invoke("translate", run, *score[:-1], cwd=tmp_path)
    assert alone.stdout.splitlines() == [row[0] for row in rows]
    done = invoke("translate", run, *score, "--format", "jsonl", cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[1])["alignment"]["links"] == [[0, 0]]


def test_without_them_the_output_is_as_before(trained_run, tmp_path):
    done = invoke("translate", trained_run.path, "--format", "jsonl", cwd=tmp_path, stdin="ba\n")
    assert set(json.loads(done.stdout)["hypotheses"][0]) == {"text", "score", "tokens"}
