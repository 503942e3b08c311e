"""One pass and two: what each is given, and what is compared."""

import pytest
import torch

from mtrain.config.sections import ModelConfig, OptimConfig
from mtrain.data.batching import Batch, batch_of
from mtrain.model.loss import consistency_loss, label_smoothed_loss, r_drop, sim_cut
from mtrain.model.transformer import Transformer
from mtrain.training.learner import loss_of, words_kept

IDS = [torch.randint(4, 30, (n,), generator=torch.Generator().manual_seed(n)) for n in (6, 3, 5)]


@pytest.fixture
def batch():
    return batch_of([ids.numpy() for ids in IDS], [ids.numpy()[::-1] for ids in IDS])


def make(dropout: float) -> Transformer:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_ff": 12, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    return Transformer(ModelConfig.model_validate({**sizes, "dropout": dropout}), 30, 30).train()


def optim(consistency: str, **settings: object) -> OptimConfig:
    return OptimConfig.model_validate({"consistency": consistency, **settings})


def outputs(model: Transformer, batch: Batch) -> torch.Tensor:
    memory = model.encode(batch.src, batch.src_mask)
    return model.decode(batch.tgt_in, memory, batch.src_mask)


def test_one_pass_is_the_label_smoothed_loss(batch):
    model = make(dropout=0)
    found = loss_of(model, batch, optim("none"))
    x = outputs(model, batch)
    expected = label_smoothed_loss(x, model.output.weight, batch.tgt_out, 0.1)
    torch.testing.assert_close(found.smoothed, expected.smoothed)
    assert found.divergence is None


def test_without_dropout_the_passes_of_r_drop_are_one_trained_twice(batch):
    model = make(dropout=0)
    once = loss_of(model, batch, optim("none"))
    found = loss_of(model, batch, optim("rdrop"))
    torch.testing.assert_close(found.smoothed, 2 * once.smoothed)
    assert found.divergence.item() == pytest.approx(0, abs=1e-4)


def test_dropout_makes_the_passes_of_r_drop_differ(batch):
    assert loss_of(make(dropout=0.3), batch, optim("rdrop")).divergence > 0.1


@pytest.mark.parametrize(("settings", "weight"), [({}, 5.0), ({"consistency_weight": 0.5}, 0.5)])
def test_the_papers_weight_unless_given(batch, settings, weight):
    model = make(dropout=0.3)
    torch.manual_seed(7)
    found = loss_of(model, batch, optim("rdrop", **settings))
    torch.manual_seed(7)
    doubled = Batch(
        *(torch.cat([x, x]) for x in (batch.src, batch.tgt_in, batch.tgt_out, batch.src_mask)),
        0,
        0,
    )
    x = outputs(model, doubled)
    expected = consistency_loss(x, model.output.weight, batch.tgt_out, 0.1, r_drop(weight))
    torch.testing.assert_close(found.smoothed, expected.smoothed)


def test_sim_cut_compares_the_whole_with_words_cut_out(batch):
    """With nearly every word cut, the second pass knows positions alone."""
    model = make(dropout=0)
    found = loss_of(model, batch, optim("simcut", cut=0.999))  # of 256ths: all but 1/256
    with torch.no_grad():
        whole = outputs(model, batch)
        kept = words_kept(torch.cat([batch.src] * 2), 0.999)
    assert kept[: len(batch.src)].all()
    assert kept[len(batch.src) :].float().mean() < 0.1
    same = consistency_loss(
        torch.cat([whole, whole]), model.output.weight, batch.tgt_out, 0.1, sim_cut(3.0)
    )
    torch.testing.assert_close(found.nll, same.nll)
    assert found.divergence > same.divergence + 0.1
    torch.testing.assert_close(
        loss_of(model, batch, optim("none")).smoothed, same.smoothed, rtol=1e-4, atol=1e-4
    )


def test_words_are_cut_at_the_wanted_rate():
    torch.manual_seed(0)
    kept = words_kept(torch.zeros(400, 100), 0.05)
    assert kept[:200].all()
    assert kept[200:].float().mean() == pytest.approx(0.95, abs=0.01)


def test_a_cut_word_leaves_only_its_position(batch):
    model = make(dropout=0)
    is_kept = torch.ones(batch.src.shape, dtype=torch.bool)
    is_kept[0, 1] = False
    x = model.embed(model.src_embedding, batch.src, 0, is_kept)
    assert torch.equal(x[0, 1], model.positions[1])
    assert torch.equal(x[1:], model.embed(model.src_embedding, batch.src, 0)[1:])
