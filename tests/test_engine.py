"""CTranslate2 in the place of our search: the same lines, batches, scores and files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import invoke

from mtrain.decoding.ctranslate2 import CTranslate2Engine
from mtrain.decoding.engine import Search, Segment
from mtrain.decoding.translate import Translator
from mtrain.errors import UsageError

ctranslate2 = pytest.importorskip("ctranslate2")


@pytest.fixture(scope="module")
def ours(trained_run):
    return Translator.from_run(trained_run.path, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def theirs(ours):
    return ours.with_ctranslate2()


def test_greedy_search_is_the_same_in_both(ours, theirs, trained_run):
    lines = ["", *trained_run.test_sources, " "]
    mine = ours.translate_detailed(lines, beam_size=1)
    other = theirs.translate_detailed(lines, beam_size=1)
    assert [t.text for t in other] == [t.text for t in mine]
    assert [t.score for t in other] == pytest.approx([t.score for t in mine], abs=1e-4)
    assert [t.hypotheses[0].tokens for t in other] == [t.hypotheses[0].tokens for t in mine]


def test_their_beam_mostly_finds_the_same_and_nothing_better(ours, theirs, trained_run):
    """Ours goes on where a live hypothesis is better than those finished."""
    mine = ours.translate_detailed(trained_run.test_sources, beam_size=3)
    other = theirs.translate_detailed(trained_run.test_sources, beam_size=3)
    n_same = sum(a.text == b.text for a, b in zip(mine, other, strict=True))
    assert n_same >= 0.9 * len(mine)
    assert all(b.score < a.score + 1e-4 for a, b in zip(mine, other, strict=True))


def test_their_n_best_come_best_first(theirs, trained_run):
    (line,) = theirs.translate_detailed(trained_run.test_sources[:1], beam_size=4, n_best=3)
    assert len(line.hypotheses) == 3
    scores = [hypothesis.score for hypothesis in line.hypotheses]
    assert scores == sorted(scores, reverse=True)


def test_their_score_is_that_of_the_forced_output(ours, theirs, trained_run):
    source = trained_run.test_sources[3]
    (found,) = theirs.translate_detailed([source], beam_size=2, length_penalty=1.0)
    ids = [
        tokenizer.encode([text])[0]
        for tokenizer, text in ((ours.src_tokenizer, source), (ours.tgt_tokenizer, found.text))
    ]
    [(_, [log_probs])] = theirs.engine.log_probs([[(ids[0], ids[1])]])
    assert found.score == pytest.approx(sum(log_probs) / len(log_probs), abs=1e-5)


def test_an_exact_stop_is_refused(theirs):
    with pytest.raises(UsageError, match="exact stop"):
        theirs.check(Search.of(theirs.config.decode, exact_stop=True))


def test_both_score_given_pairs_alike(ours, theirs, trained_run):
    pairs = trained_run.test_sources[:5], trained_run.test_sources[5:10]
    mine, other = ours.score(*pairs), theirs.score(*pairs)
    assert [p.log_prob for p in other] == pytest.approx([p.log_prob for p in mine], abs=1e-3)


def test_a_prefix_is_refused(theirs):
    segment = Segment(0, [5], max_length=9, prefix=[6], key=0)
    with pytest.raises(UsageError, match="does not support prefixes"):
        list(theirs.engine.search([[segment]], Search(beam_size=1, length_penalty=1.0)))


def test_on_the_command_line(trained_run, ours):
    sources = trained_run.test_sources[:5]
    done = invoke(
        *("translate", trained_run.path, "--engine", "ctranslate2", "--quantization", "float32"),
        cwd=trained_run.directory,
        stdin="".join(f"{line}\n" for line in sources),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ours.translate(sources)


def test_it_computes_on_the_gpu_where_the_model_is(
    ours: Translator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, int]] = []

    def translator(path: str, device: str, **options: Any) -> SimpleNamespace:
        asked.append((device, options["device_index"], options["inter_threads"]))
        return SimpleNamespace(compute_type="float16")

    monkeypatch.setattr(ctranslate2, "Translator", translator)
    weight = SimpleNamespace(device=torch.device("cuda", 1))
    model: Any = SimpleNamespace(parameters=lambda: iter([weight]))
    CTranslate2Engine(tmp_path, (ours.src_tokenizer, ours.tgt_tokenizer), model)
    assert asked == [("cuda", 1, 1)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quantization", "int8"], "--engine ctranslate2"),
        (["--engine", "ctranslate2", "--exact-stop"], "exact stop"),
        (["--engine", "ctranslate2", "--quantization", "int8_float16"], "int8_float16"),
    ],
)
def test_what_cannot_be_done_is_said(trained_run, tmp_path, arguments, said):
    done = invoke("translate", trained_run.path, *arguments, cwd=tmp_path, stdin="a\n")
    assert done.returncode == 2
    assert said in done.stderr
