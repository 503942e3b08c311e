"""Weights on disk: a round trip, every kind of damage, and what does not fit a model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from mtrain.config.sections import ModelConfig
from mtrain.errors import CheckpointError
from mtrain.model import weights
from mtrain.model.transformer import Transformer
from mtrain.model.weights import (
    average,
    load_tensors,
    safetensors_parts,
    save_tensors,
    set_weights,
    vocab_sizes,
    weights_of,
)

SIZES = {"d_model": 8, "d_ff": 8, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}


def make(tied: str = "all", seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(ModelConfig.model_validate({**SIZES, "tied": tied}), 11, 11).eval()


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "matrix": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "half": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(7.0),
        "none": torch.empty(0),
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, tensors(), {"step": 12, "valid": {"chrf": 51.5}})
    return path


def said(path: Path) -> str:
    """What loading a bad file says, in one sentence that names it."""
    with pytest.raises(CheckpointError) as raised:
        load_tensors(path)
    message = raised.value.message
    assert str(path) in message
    assert "\n" not in message
    return message


def test_what_is_saved_comes_back(saved):
    loaded, facts = load_tensors(saved)
    assert facts == {"step": 12, "valid": {"chrf": 51.5}}
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype is tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_the_bytes_are_those_of_the_library():
    mixed = {name: tensor.contiguous() for name, tensor in tensors().items()}
    mixed |= {"file:ä": torch.arange(7, dtype=torch.uint8), "a": torch.ones(2)}
    metadata = {"mtrain": '{"ä": "\\n"}'}
    assert b"".join(safetensors_parts(mixed, metadata)) == save(mixed, metadata)


def test_the_same_tensors_give_the_same_bytes(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    save_tensors(again, tensors(), {"valid": {"chrf": 51.5}, "step": 12})
    assert again.read_bytes() == saved.read_bytes()


def test_a_file_cut_anywhere_is_recognised(saved):
    data = saved.read_bytes()
    for length in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:length])
        assert "damaged or cut short" in said(saved)


def test_a_flipped_bit_is_recognised_wherever_it_is(saved):
    """Of the tensors, of their names, and of the facts; never anything but a CheckpointError."""
    data = saved.read_bytes()
    header_size = int.from_bytes(data[:8], "little")
    for place in [*range(8, 8 + header_size, 3), *range(8 + header_size, len(data))]:
        if data[place] == ord(" "):  # the padding of the header
            continue
        flipped = bytearray(data)
        flipped[place] ^= 4
        saved.write_bytes(flipped)
        said(saved)


def test_a_change_in_the_data_is_called_damage(saved):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    assert "do not match its own sha256" in said(saved)


@pytest.mark.parametrize("content", [b"", b"hello, this is no tensor file at all", b"\0" * 64])
def test_a_file_of_another_kind_is_recognised(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    said(path)
    said(tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    assert "does not exist" in said(tmp_path / "none.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_somebody_elses_safetensors_are_recognised(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(2)}, path, metadata)
    assert "was not written by mtrain" in said(path)


def test_a_newer_format_asks_for_a_newer_mtrain(saved, monkeypatch):
    monkeypatch.setattr(weights, "FORMAT", 2)
    save_tensors(saved, tensors(), {})
    monkeypatch.setattr(weights, "FORMAT", 1)
    assert "has format 2; this mtrain reads format 1" in said(saved)


# -- into a model ----------------------------------------------------------------------------


@pytest.mark.parametrize("tied", ["all", "output", "none"])
def test_a_model_gets_all_its_weights_through_a_file(tmp_path, tied):
    path = tmp_path / "weights.safetensors"
    ours, other = make(tied), make(tied, seed=1)
    save_tensors(path, weights_of(ours), {})
    loaded, _ = load_tensors(path)
    assert vocab_sizes(loaded, path) == (11, 11)
    set_weights(other, loaded, path)
    src, tgt = torch.tensor([[4, 5, 3]]), torch.tensor([[2, 7]])
    assert torch.equal(ours(src, tgt, None), other(src, tgt, None))


def test_tied_weights_are_kept_once():
    assert {name for name in weights_of(make("all")) if "coder" not in name} == {
        "src_embedding.weight"
    }


def test_setting_weights_copies_and_keeps_ties(tmp_path):
    model, given = make(), weights_of(make(seed=1))
    set_weights(model, given, tmp_path)
    given["src_embedding.weight"].zero_()
    assert model.src_embedding.weight.abs().sum() > 0
    assert model.output.weight.data_ptr() == model.src_embedding.weight.data_ptr()


def broken(change: str) -> dict[str, Tensor]:
    given = dict(weights_of(make()))
    name = "encoder_norm.weight"
    if change == "missing":
        del given[name]
    elif change == "unknown":
        given["encoder_norm.extra"] = torch.ones(8)
    elif change == "renamed":
        given["norm"] = given.pop(name)
    else:
        given[name] = torch.ones(9)
    return given


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("missing", "made for another model: it lacks encoder_norm.weight"),
        ("unknown", "made for another model: it has unknown encoder_norm.extra"),
        ("renamed", "it lacks encoder_norm.weight and has unknown norm"),
        ("misshaped", "encoder_norm.weight is (9,), not (8,)"),
    ],
)
def test_weights_of_another_model_are_refused(change, sentence):
    model = make(seed=3)
    before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    with pytest.raises(CheckpointError) as raised:
        set_weights(model, broken(change), Path("runs/x/best-4.safetensors"))
    assert raised.value.message.startswith("runs/x/best-4.safetensors ")
    assert sentence in raised.value.message
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(model).items())


def test_weights_that_are_no_transformer(tmp_path):
    with pytest.raises(CheckpointError, match="not hold an mtrain model"):
        vocab_sizes({"bert.embeddings": torch.ones(2, 2)}, tmp_path)


# -- average, digest -------------------------------------------------------------------------


def test_the_average_is_the_mean_in_the_first_ones_type():
    many = [{"x": torch.full((2,), value)} for value in (1.0, 2.0, 6.0)]
    assert average(many)["x"].tolist() == [3.0, 3.0]
    assert average(many)["x"].dtype is torch.float32
    assert many[0]["x"].tolist() == [1.0, 1.0]


def test_the_average_is_summed_in_double_precision():
    many = [{"x": torch.tensor([value])} for value in (1e8, 1.0, -1e8)]
    assert average(many)["x"].item() == pytest.approx(1 / 3)


def test_the_average_of_different_models_is_refused():
    with pytest.raises(CheckpointError):
        average([{"x": torch.ones(2)}, {"y": torch.ones(2)}])
