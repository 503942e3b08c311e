"""Recorded steps against the search as it is without, over a real Transformer.

Only a GPU records CUDA graphs. Elsewhere `played_again` stands in for one: it makes the same step
anew, on the same buffers, and leaves its results where the first ones were.
"""

from __future__ import annotations

import pytest
import torch

from mtrain.config import ModelConfig
from mtrain.data.tokenizer import EOS, PAD
from mtrain.decoding import graphs
from mtrain.decoding.graphs import GraphScorer, Results, Shape, Step
from mtrain.decoding.sampling import Sampler
from mtrain.decoding.scorers import EnsembleScorer, Scorer, TransformerScorer
from mtrain.decoding.search import Hypothesis, LengthPenalty, Sources, beam_search, walk
from mtrain.model.transformer import Transformer

VOCAB = 29


def played_again(step: Step) -> Step:
    kept = tuple(result.clone() for result in step())

    def again() -> Results:
        for old, new in zip(kept, step(), strict=True):
            old.copy_(new)
        logits, log_z = kept
        return logits, log_z

    return again


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(graphs, "STEPS_WITHOUT", 0)


def make_model(seed: int, device: str = "cpu") -> Transformer:
    torch.manual_seed(seed)
    config = ModelConfig(
        d_model=16, d_ff=32, n_heads=2, n_encoder_layers=2, n_decoder_layers=2, dropout=0.0
    )
    model = Transformer(config, VOCAB, VOCAB).eval()
    with torch.no_grad():  # spread the logits, so that no two hypotheses are close to equal
        model.output.weight.mul_(2.0)
    return model.to(device)


def make_sources(n: int, seed: int = 1, device: str = "cpu", prefix: bool = False) -> Sources:
    """Sources of 2 to 20 tokens, with outputs of at most six more."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 21, (n,), generator=draw)
    lengths[0] = 20
    src = torch.randint(4, VOCAB, (n, int(lengths.max())), generator=draw)
    src.masked_fill_(torch.arange(src.shape[1]) >= lengths.unsqueeze(1), PAD)
    src.scatter_(1, lengths.unsqueeze(1) - 1, EOS)
    mask = None if n == 1 else (src != PAD)[:, None, None].to(device)
    prefixes = torch.randint(4, VOCAB, (n, 2), generator=draw).to(device) if prefix else None
    return Sources(src.to(device), mask, lengths + 6, prefixes)


def search(scorer: Scorer, sources: Sources, beam_size: int = 4) -> list[list[Hypothesis]]:
    return beam_search(scorer, sources, beam_size, LengthPenalty(), n_best=min(3, beam_size))


def assert_same(a: list[list[Hypothesis]], b: list[list[Hypothesis]]) -> None:
    for left, right in zip(a, b, strict=True):
        assert [h.tokens for h in left] == [h.tokens for h in right]
        assert [h.score for h in left] == pytest.approx([h.score for h in right], abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("n", [1, 3, 16, 40])
def test_a_recorded_step_is_the_step(n, beam_size):
    model, sources = make_model(1), make_sources(n)
    scorer = GraphScorer(model, record=played_again)
    assert_same(
        search(scorer, sources, beam_size), search(TransformerScorer(model), sources, beam_size)
    )
    assert len(scorer.recordings.by_shape) == 1


def test_nothing_is_left_of_the_search_before():
    """Searches of one shape, the largest first, have the same buffers one after the other."""
    model = make_model(1)
    scorer = GraphScorer(model, record=played_again)
    for n, seed in [(16, 1), (5, 2), (11, 3), (16, 4)]:
        sources = make_sources(n, seed)
        assert_same(search(scorer, sources), search(TransformerScorer(model), sources))
    assert len(scorer.recordings.by_shape) == 1


def test_a_large_search_is_recorded_once_it_is_small(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_SENTENCES", 16)
    model, sources = make_model(1), make_sources(60)
    scorer = GraphScorer(model, record=played_again)
    assert_same(search(scorer, sources), search(TransformerScorer(model), sources))
    [shape] = scorer.recordings.by_shape
    assert shape.n_sentences == 16


def test_prefixes_samples_ensembles_and_bfloat16():
    model, other = make_model(1), make_model(2)
    sources = make_sources(7, prefix=True)
    scorer = GraphScorer(model, record=played_again)
    assert_same(search(scorer, sources), search(TransformerScorer(model), sources))

    rough = GraphScorer(model, "bf16", record=played_again)
    assert_same(search(rough, sources), search(TransformerScorer(model, "bf16"), sources))
    assert len(rough.recordings.by_shape) == 1

    def sampled(scorer: Scorer) -> list[list[Hypothesis]]:
        return walk(scorer, sources, 3, Sampler(list(range(7)), 1.0, 0, 1.0), LengthPenalty())

    assert_same(sampled(scorer), sampled(TransformerScorer(model)))
    together = EnsembleScorer([scorer, GraphScorer(other, record=played_again)])
    apart = EnsembleScorer([TransformerScorer(model), TransformerScorer(other)])
    assert_same(search(together, sources), search(apart, sources))


def test_a_shape_is_recorded_once_it_has_been_wanted_often(monkeypatch):
    monkeypatch.setattr(graphs, "STEPS_WITHOUT", 100)
    n_recorded = 0

    def counted(step: Step) -> Step:
        nonlocal n_recorded
        n_recorded += 1
        return played_again(step)

    scorer = GraphScorer(make_model(1), record=counted)
    recorded_after = []
    for _ in range(12):
        search(scorer, make_sources(3))
        recorded_after.append(n_recorded)
    assert recorded_after[0] == 0
    assert recorded_after[-1] == 1


def test_the_shapes_last_used_are_kept(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_SHAPES", 2)
    model = make_model(1)
    scorer = GraphScorer(model, record=played_again)
    for beam_size in [2, 3, 2, 4]:
        sources = make_sources(3, beam_size)
        assert_same(
            search(scorer, sources, beam_size), search(TransformerScorer(model), sources, beam_size)
        )
    assert [shape.beam_size for shape in scorer.recordings.by_shape] == [2, 4]


def test_where_nothing_can_be_recorded_the_search_goes_on(capsys):
    def fail(step: Step) -> Step:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    model, sources = make_model(1), make_sources(5)
    scorer = GraphScorer(model, record=fail)
    for _ in range(2):
        assert_same(search(scorer, sources), search(TransformerScorer(model), sources))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "warning: decoding goes on without CUDA graphs: CUDA error: operation not permitted when "
        "stream is capturing"
    ]


def test_a_recording_that_computes_something_else_is_not_used(capsys):
    def stuck(step: Step) -> Step:
        """As where the tokens had been copied to another address."""
        results = step()
        return lambda: results

    model, sources = make_model(1), make_sources(5)
    scorer = GraphScorer(model, record=stuck)
    assert_same(search(scorer, sources), search(TransformerScorer(model), sources))
    assert not scorer.recordings.by_shape
    assert "without CUDA graphs: logits of up to" in capsys.readouterr().err


def test_few_shapes_hold_all_small_searches():
    shapes = {
        Shape.around(n, 5, src_length, src_length + 10)
        for n in range(1, 200)
        for src_length in range(1, 60)
    } - {None}
    assert len(shapes) <= 20
    assert Shape.around(1, 5, 17, 33) == Shape(1, 5, 32, 64)
    assert Shape.around(5, 5, 17, 33) == Shape(16, 5, 32, 64)
    assert Shape.around(65, 5, 17, 33) is None  # a GPU has enough to do
    assert Shape.around(64, 5, 17, 100) is None  # too many keys and values


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_a_cuda_graph_is_the_step(n, precision):
    model = make_model(1, "cuda")
    scorer = GraphScorer(model, precision)
    for seed in (1, 2):
        sources = make_sources(n, seed, "cuda")
        found, expected = (
            search(each, sources) for each in (scorer, TransformerScorer(model, precision))
        )
        assert scorer.recordings.is_able
        tolerance = 1e-3 if precision == "fp32" else 0.05
        for left, right in zip(found, expected, strict=True):
            assert left[0].score == pytest.approx(right[0].score, abs=tolerance)
