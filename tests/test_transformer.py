"""The model, against torch.nn.Transformer, explicit formulas, and itself computed another way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtrain.config.sections import ModelConfig
from mtrain.model import transformer
from mtrain.model.attention_weights import weights_of_forward
from mtrain.model.cache import Cache
from mtrain.model.dropout import dropout
from mtrain.model.transformer import (
    MultiHeadAttention,
    Transformer,
    scaled_dot_product_attention,
    sinusoids,
)

VOCAB = 23


def config_of(**changes: object) -> ModelConfig:
    """Small enough to be quick, with more than one of everything."""
    sizes = {"d_model": 16, "d_ff": 24, "n_heads": 4, "n_encoder_layers": 2, "n_decoder_layers": 3}
    return ModelConfig.model_validate({**sizes, "dropout": 0, **changes})


def make(seed: int = 0, **changes: object) -> Transformer:
    """A model in eval mode whose biases and norms differ from their initial zeros and ones."""
    torch.manual_seed(seed)
    model = Transformer(config_of(**changes), VOCAB, VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(4, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def mask_of(lengths: list[int], longest: int) -> Tensor:
    return (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None, None]


# -- against torch.nn.Transformer ------------------------------------------------------------


def torchs_own(model: Transformer) -> nn.Transformer:
    """torch.nn.Transformer with this model's weights; post-norm has no norm at the ends."""
    config, is_pre = model.config, model.config.norm == "pre"
    sizes = (config.d_model, config.n_heads, config.d_ff, 0.0)
    ends = [nn.LayerNorm(config.d_model) if is_pre else None for _ in range(2)]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*sizes, config.activation, batch_first=True, norm_first=is_pre),
        config.n_encoder_layers,
        ends[0],
        enable_nested_tensor=False,
    )
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(*sizes, config.activation, batch_first=True, norm_first=is_pre),
        config.n_decoder_layers,
        ends[1],
    )
    theirs = nn.Transformer(
        config.d_model,
        config.n_heads,
        custom_encoder=encoder,
        custom_decoder=decoder,
        batch_first=True,
    )
    for ours_end, end in zip((model.encoder_norm, model.decoder_norm), ends, strict=True):
        if end is not None:
            end.load_state_dict(ours_end.state_dict())
    for ours_layers, layers in ((model.encoder, encoder.layers), (model.decoder, decoder.layers)):
        for ours, layer in zip(ours_layers, layers, strict=True):
            copy_layer(ours, layer)
    return theirs.eval()


def copy_layer(ours: nn.Module, theirs: nn.Module) -> None:
    """The parts of a layer, in the order of the paper."""
    attentions, norms = [(ours.attention, theirs.self_attn)], [ours.around_attention]
    if hasattr(ours, "cross_attention"):
        attentions.append((ours.cross_attention, theirs.multihead_attn))
        norms.append(ours.around_cross_attention)
    norms.append(ours.around_feed_forward)
    pairs = [(ours.feed_forward.inner, theirs.linear1), (ours.feed_forward.outer, theirs.linear2)]
    pairs += [(a.out_projection, b.out_proj) for a, b in attentions]
    pairs += [(norm.norm, getattr(theirs, f"norm{i}")) for i, norm in enumerate(norms, 1)]
    for a, b in pairs:
        b.load_state_dict(a.state_dict())
    for a, b in attentions:
        b.in_proj_weight.data.copy_(a.in_projection.weight)
        b.in_proj_bias.data.copy_(a.in_projection.bias)


@pytest.mark.parametrize(("norm", "activation"), [("pre", "relu"), ("post", "gelu")])
@pytest.mark.parametrize("lengths", [None, [7, 4, 1]])
def test_equals_torchs_transformer_with_the_same_weights(norm, activation, lengths):
    model = make(norm=norm, activation=activation)
    theirs = torchs_own(model)
    src, tgt_in = ids(3, 7), ids(3, 5, seed=2)
    mask = None if lengths is None else mask_of(lengths, 7)
    ignored = None if mask is None else ~mask[:, 0, 0]
    table = sinusoids(7, 16)
    x, y = (
        nn.functional.embedding(side, model.src_embedding.weight) * 4.0 + table[: side.shape[1]]
        for side in (src, tgt_in)
    )
    out = theirs(
        x,
        y,
        tgt_mask=torch.ones(5, 5).triu(1).bool(),
        src_key_padding_mask=ignored,
        memory_key_padding_mask=ignored,
    )
    logits = out @ model.output.weight.T
    torch.testing.assert_close(model(src, tgt_in, mask), logits, rtol=1e-4, atol=2e-5)


def test_gradients_equal_those_of_torchs_transformer():
    model = make(norm="post", tied="none")
    theirs = torchs_own(model)
    src, tgt_in = ids(2, 6), ids(2, 4, seed=2)
    model(src, tgt_in, None).square().sum().backward()
    x, y = model.src_embedding(src) * 4 + sinusoids(6, 16), model.tgt_embedding(tgt_in) * 4
    y = y + sinusoids(4, 16)
    (
        theirs(x, y, tgt_mask=torch.ones(4, 4).triu(1).bool()) @ model.output.weight.T.detach()
    ).square().sum().backward()
    for ours_layer, layer in (
        (model.encoder[0], theirs.encoder.layers[0]),
        (model.decoder[2], theirs.decoder.layers[2]),
    ):
        for ours_part, part in (
            (ours_layer.attention.in_projection.weight, layer.self_attn.in_proj_weight),
            (ours_layer.feed_forward.inner.weight, layer.linear1.weight),
            (ours_layer.around_attention.norm.weight, layer.norm1.weight),
        ):
            torch.testing.assert_close(ours_part.grad, part.grad, rtol=1e-3, atol=1e-4)


# -- attention -------------------------------------------------------------------------------


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, may_attend: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(E)) v, one matrix at a time (equation 1)."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if may_attend is not None:
        scores = scores.masked_fill(~may_attend, -math.inf)
    return scores.softmax(-1) @ v


def test_attention_is_equation_1():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    mask = mask_of([6, 2], 6)
    found = scaled_dot_product_attention(q, k, v, mask, is_causal=False, dropout_rate=0.0)
    torch.testing.assert_close(found, explicit_attention(q, k, v, mask))
    causal = scaled_dot_product_attention(q, q, q, None, is_causal=True, dropout_rate=0.0)
    torch.testing.assert_close(causal, explicit_attention(q, q, q, torch.ones(4, 4).tril().bool()))


@pytest.mark.parametrize("is_cross", [False, True])
def test_heads_are_attentions_over_slices_of_the_projections(is_cross):
    torch.manual_seed(0)
    attention = MultiHeadAttention(d_model=12, n_heads=3, dropout=0.0)
    x, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    other = memory if is_cross else x
    w, b = attention.in_projection.weight, attention.in_projection.bias
    q = x @ w[:12].T + b[:12]
    k, v = other @ w[12:24].T + b[12:24], other @ w[24:].T + b[24:]
    heads = [
        explicit_attention(q[..., e], k[..., e], v[..., e], None)
        for e in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    expected = attention.out_projection(torch.cat(heads, -1))
    found = attention(x, memory if is_cross else None, None, is_causal=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dropout_rate", [0.0, 0.5])
def test_attention_on_a_cpu_is_float32_in_spite_of_autocast(dropout_rate):
    """Its bf16 kernel is several times slower backwards than the products it saves."""
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (q @ q.mT).dtype is torch.bfloat16
        found = scaled_dot_product_attention(q, k, v, None, False, dropout_rate)
    assert found.dtype is torch.float32
    if not dropout_rate:
        plain = scaled_dot_product_attention(q, k, v, None, False, 0.0)
        assert torch.equal(found, plain)


def test_attention_dropout_is_for_training_only():
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2, dropout=0.5)
    x = torch.randn(1, 4, 8)
    attention.eval()
    assert torch.equal(attention(x, None, None, False), attention(x, None, None, False))
    attention.train()
    assert not torch.equal(attention(x, None, None, False), attention(x, None, None, False))


@pytest.mark.parametrize("lengths", [None, [5, 3]])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_weights_shown_are_those_of_the_fused_kernel(norm, lengths, monkeypatch):
    """Every output that the kernel gave is the shown weights times the values it was given."""
    model = make(norm=norm)
    src, tgt_in = ids(2, 5), ids(2, 4, seed=2)
    src_mask = None if lengths is None else mask_of(lengths, 5)
    calls = []

    def spy(q, k, v, *rest):
        out = scaled_dot_product_attention(q, k, v, *rest)
        calls.append((v, out))
        return out

    monkeypatch.setattr(transformer, "scaled_dot_product_attention", spy)
    with torch.inference_mode():
        model(src, tgt_in, src_mask)
        fused = list(calls)
        shown = weights_of_forward(model, src, tgt_in, src_mask)
    n_encoder, n_decoder = len(model.encoder), len(model.decoder)
    assert len(fused) == n_encoder + 2 * n_decoder
    in_order = [*shown.encoder.unbind(1)]
    for own, other in zip(shown.decoder.unbind(1), shown.cross.unbind(1), strict=True):
        in_order += [own, other]
    for weights, (values, out) in zip(in_order, fused, strict=True):
        torch.testing.assert_close(weights @ values, out, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not shown.decoder.triu(1).any()
    if lengths is not None:
        assert not shown.encoder[1, ..., 3:].any()
        assert not shown.cross[1, ..., 3:].any()


def test_swiglu_multiplies_with_a_third_matrix():
    layer = make(activation="swiglu").decoder[0].feed_forward
    x = torch.randn(2, 3, 16)
    gate = x @ layer.inner.weight.T + layer.inner.bias
    hidden = gate * gate.sigmoid() * (x @ layer.factor.weight.T + layer.factor.bias)
    torch.testing.assert_close(layer(x), hidden @ layer.outer.weight.T + layer.outer.bias)


def test_rms_norm_scales_by_the_root_of_the_mean_square():
    norm = make(norm_type="rmsnorm").encoder_norm
    x = torch.randn(2, 3, 16) * 5
    rms = x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(norm(x), x / rms * norm.weight)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


# -- what may not change what ----------------------------------------------------------------


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_future_target_tokens_never_change_earlier_logits(norm):
    model = make(norm=norm)
    src, tgt_in = ids(2, 5), ids(2, 8, seed=2)
    whole = model(src, tgt_in, None)
    for t in range(1, 8):
        changed = torch.cat([tgt_in[:, :t], ids(2, 8 - t, seed=3 + t)], 1)
        torch.testing.assert_close(model(src, changed, None)[:, :t], whole[:, :t])
    last = (tgt_in[:, -1:] - 3) % 19 + 4  # and the present one does change the present ones
    assert not torch.allclose(model(src, torch.cat([tgt_in[:, :-1], last], 1), None), whole)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    st.integers(0, 5),
    st.sampled_from(["pre", "post"]),
)
@settings(max_examples=25)
def test_padding_and_companions_never_change_a_row(lengths, extra, norm):
    model = make(norm=norm)
    longest_src = max(s for s, _ in lengths) + extra
    longest_tgt = max(t for _, t in lengths) + extra
    src = ids(len(lengths), longest_src)
    tgt_in = ids(len(lengths), longest_tgt, seed=2)
    together = model(src, tgt_in, mask_of([s for s, _ in lengths], longest_src))
    for row, (s, t) in enumerate(lengths):
        alone = model(src[row : row + 1, :s], tgt_in[row : row + 1, :t], None)
        torch.testing.assert_close(together[row, :t], alone[0], rtol=1e-4, atol=1e-5)


# -- the cache -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"norm": "post"}, {}, {"norm_type": "rmsnorm", "activation": "swiglu"}]
)
def test_decoding_step_by_step_equals_the_whole(options):
    model = make(**options)
    n_steps = 2 * Cache.STEPS_OF_ROOM + 3
    src, tgt_in = ids(3, 6), ids(3, n_steps, seed=2)
    mask = mask_of([6, 3, 5], 6)
    whole = model(src, tgt_in, mask)
    cache = model.start_cache(model.encode(src, mask), mask, beam_size=1)
    for t in range(n_steps):
        assert cache.step == t
        logits = model.decode_step(tgt_in[:, t], cache)
        torch.testing.assert_close(logits, whole[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, [4, 6, 2]])
def test_a_reordered_and_thinned_beam_equals_the_whole(lengths):
    """Rows take over one another's past, and sentences leave, as in a search of beam 2."""
    model = make()
    torch.manual_seed(5)
    beam = 2
    src = ids(3, 6)
    mask = None if lengths is None else mask_of(lengths, 6)
    cache = model.start_cache(model.encode(src, mask), mask, beam)
    sentences = [0, 1, 2]
    prefixes = torch.empty(6, 0, dtype=torch.int64)
    for t in range(40):
        tokens = ids(len(prefixes), seed=t)
        prefixes = torch.cat([prefixes, tokens[:, None]], 1)
        logits = model.decode_step(tokens, cache)
        sources = torch.tensor(sentences).repeat_interleave(beam)
        row_mask = None if mask is None else mask[sources]
        whole = model(src[sources], prefixes, row_mask)[:, -1]
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
        parents = torch.randint(beam, (len(sentences), beam))
        rows = (torch.arange(len(sentences))[:, None] * beam + parents).flatten()
        prefixes = prefixes[rows]
        cache.reorder(rows)
        if t in (9, 34):
            kept = torch.tensor([2, 0] if t == 9 else [1])
            cache.keep_sentences(kept)
            prefixes = prefixes.view(len(sentences), beam, -1)[kept].flatten(0, 1)
            sentences = [sentences[i] for i in kept.tolist()]
    assert sentences == [0]


def test_sentences_may_leave_before_the_first_step():
    model = make()
    src, tokens = ids(3, 5), torch.tensor([7, 8])
    cache = model.start_cache(model.encode(src, None), None, beam_size=1)
    cache.keep_sentences(torch.tensor([2, 0]))
    expected = model(src[[2, 0]], tokens[:, None], None)[:, 0]
    torch.testing.assert_close(model.decode_step(tokens, cache), expected, rtol=1e-4, atol=1e-5)


def test_the_source_is_kept_once_a_sentence_whatever_the_beam():
    model = make()
    cache = model.start_cache(model.encode(ids(3, 5), None), None, beam_size=4)
    model.decode_step(ids(12), cache)
    assert cache.cross[0][0].shape == (3, 4, 5, 4)  # B, H, S, E
    assert len(cache.past) == 3


# -- positions, embeddings -------------------------------------------------------------------


def test_positions_are_sines_and_cosines_of_falling_rate():
    table = sinusoids(3, 4)
    expected = [
        [0, 1, 0, 1],
        [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)],
        [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)],
    ]
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float32))


def test_the_table_of_positions_grows_with_the_sentences():
    model = make(d_model=8, n_heads=2, n_encoder_layers=1, n_decoder_layers=1)
    before = model.positions.clone()
    assert before.shape[0] == 512
    long = model.encode(ids(1, 600), None)
    assert model.positions.shape[0] >= 600
    torch.testing.assert_close(model.positions, sinusoids(len(model.positions), 8))
    torch.testing.assert_close(model.positions[:512], before)
    assert long.isfinite().all()
    x = model.embed(model.tgt_embedding, torch.tensor([[5]]), first_position=599)[0, 0]
    angle = torch.tensor([599.0, 59.9, 5.99, 0.599], dtype=torch.float64)
    position = torch.stack([angle.sin(), angle.cos()], 1).flatten().float()
    expected = model.tgt_embedding.weight[5] * math.sqrt(8) + position
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_positions_are_no_weights():
    assert "positions" not in make().state_dict()


@pytest.mark.parametrize(
    ("tied", "n_matrices"), [("all", 1), ("output", 2), ("none", 3)], ids=["all", "output", "none"]
)
def test_tied_weights_share_their_storage(tied, n_matrices):
    model = make(tied=tied)
    weights = [model.src_embedding.weight, model.tgt_embedding.weight, model.output.weight]
    assert len({weight.data_ptr() for weight in weights}) == n_matrices
    named = [name for name, p in model.named_parameters() if len(p) == VOCAB]
    assert len(named) == n_matrices


def test_two_vocabularies_of_different_sizes():
    model = Transformer(config_of(tied="output"), 11, 17)
    assert model.src_embedding.weight.shape == (11, 16)
    assert model(torch.tensor([[10]]), torch.tensor([[16]]), None).shape == (1, 1, 17)


@pytest.mark.parametrize("tied", ["all", "output", "none"])
def test_the_seed_alone_decides_the_first_weights(tied, monkeypatch):
    """Embeddings are filled in the order of the model, not in that of their addresses."""
    filled: list[int] = []

    def note(weight: Tensor, mean: float = 0.0, std: float = 1.0) -> None:
        filled.append(weight.data_ptr())

    monkeypatch.setattr(nn.init, "normal_", note)
    for _ in range(8):
        filled.clear()
        model = Transformer(config_of(tied=tied), VOCAB, VOCAB)
        own = [p.data_ptr() for p in model.parameters() if len(p) == VOCAB]
        assert filled[-len(own) :] == own


def test_first_weights_have_the_scale_they_should():
    torch.manual_seed(0)
    model = Transformer(config_of(d_model=64, d_ff=256), 2000, 2000).requires_grad_(False)
    assert model.src_embedding.weight.std() == pytest.approx(1 / 8, rel=0.02)
    attention = model.encoder[0].attention
    assert attention.in_projection.weight.abs().max() <= math.sqrt(6 / 128)  # each D x D alone
    assert attention.in_projection.weight.std() == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert not attention.in_projection.bias.any()
    assert not model.decoder[0].feed_forward.inner.bias.any()


@pytest.mark.parametrize(
    ("preset", "millions", "tolerance"), [("base", 65, 2.0), ("big", 213, 3.0)], ids=["base", "big"]
)
def test_presets_have_the_papers_number_of_parameters(preset, millions, tolerance):
    with torch.device("meta"):
        model = Transformer(ModelConfig(preset=preset), 37_000, 37_000)
    n_parameters = sum(p.numel() for p in model.parameters()) / 1e6
    assert n_parameters == pytest.approx(millions, abs=tolerance)


@given(
    n_heads=st.integers(1, 4),
    half_d_head=st.integers(4, 6),
    d_ff=st.integers(8, 40),
    n_encoder_layers=st.integers(1, 3),
    n_decoder_layers=st.integers(1, 3),
    norm=st.sampled_from(["pre", "post"]),
    norm_type=st.sampled_from(["layernorm", "rmsnorm"]),
    activation=st.sampled_from(["relu", "gelu", "swiglu"]),
    tied=st.sampled_from(["all", "output", "none"]),
    percents=st.tuples(*[st.integers(0, 99)] * 3),
)
@settings(max_examples=25)
def test_any_valid_config_builds_and_learns(n_heads, half_d_head, percents, **sizes):
    config = ModelConfig(
        d_model=2 * half_d_head * n_heads,
        n_heads=n_heads,
        dropout=percents[0] / 100,
        attention_dropout=percents[1] / 100,
        activation_dropout=percents[2] / 100,
        **sizes,
    )
    model = Transformer(config, VOCAB, VOCAB)
    logits = model(ids(2, 3), ids(2, 4), mask_of([3, 2], 3))
    logits.square().sum().backward()
    assert logits.shape == (2, 4, VOCAB)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# -- dropout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout_has_the_rate_the_scale_and_the_mean(p):
    torch.manual_seed(0)
    n = 400_000
    y = dropout(torch.ones(n), p, training=True)
    dropped = round(p * 256) / 256
    assert (y == 0).float().mean() == pytest.approx(dropped, abs=0.005)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - dropped)])
    assert y.mean() == pytest.approx(1.0, abs=0.02)


def test_dropped_elements_are_independent():
    """Eight elements share a draw: no byte of it may depend on another."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(80_000), 0.5, training=True) > 0).float().view(-1, 8)
    correlation = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlation.abs().max() < 0.05


def test_the_same_seed_gives_the_same_mask():
    x = torch.randn(3, 5, 7)  # 105 elements: not a multiple of eight
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(x, 0.5, training=True))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_gradient_of_dropout_is_its_mask():
    torch.manual_seed(0)
    x = torch.randn(50, 9, requires_grad=True)
    y = dropout(x, 0.3, training=True)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)
    assert torch.equal(x.grad == 0, y == 0)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_dropout_is_the_identity_without_a_rate_and_in_evaluation(p, training):
    x = torch.randn(4)
    assert dropout(x, p, training) is x


def test_the_smallest_and_largest_rates_drop_neither_nothing_nor_everything():
    torch.manual_seed(0)
    for p in (1e-6, 0.999999):
        y = dropout(torch.ones(100_000), p, training=True)
        assert 0 < (y == 0).sum() < 100_000


def test_every_dropout_of_the_config_is_used(monkeypatch):
    """Residual, embedding and inner ones by our dropout, those of attention by the kernel's."""
    used: list[tuple[float, bool]] = []
    monkeypatch.setattr(
        transformer, "dropout", lambda x, p, training: used.append((p, training)) or x
    )
    model = make(dropout=0.25, activation_dropout=0.125, attention_dropout=0.5)
    model.train()
    model(ids(1, 2), ids(1, 2), None)
    n_sublayers = 2 * 2 + 3 * 3
    assert used.count((0.25, True)) == n_sublayers + 2
    assert used.count((0.125, True)) == 2 + 3
    assert used.count((0.5, True)) == 2 + 2 * 3
    assert len(used) == n_sublayers + 2 + 5 + 8
    layers = [*model.encoder, *model.decoder]
    assert {layer.attention.dropout for layer in layers} == {0.5}
    assert {layer.cross_attention.dropout for layer in model.decoder} == {0.5}
