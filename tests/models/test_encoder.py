"""The encoder against torch's, and what may and may not flow between tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import boundaries, packed
from torch import Tensor, nn

from midigenre.models import Encoder, FieldEmbedding
from midigenre.models.sequences import positions_N, segments_N
from midigenre.models.transformer import FeedForward, LearnedPositions, rotary_tables, rotate

LENGTHS = (5, 1, 7, 7, 3)
VARIANTS = [
    {"norm": "pre", "positions": "rope", "activation": "gelu"},
    {"norm": "post", "positions": "learned", "activation": "gelu"},
    {"norm": "pre", "positions": "learned", "activation": "geglu"},
    {"norm": "pre", "positions": "rope", "activation": "gelu", "conv_width": 3},
    {"norm": "pre", "positions": "rope", "activation": "gelu", "extra_norm": True},
]


def make_encoder(**settings: object) -> Encoder:
    return Encoder(16, 2, 4, 24, **settings).double().eval()


def copy_of(torch_encoder: nn.TransformerEncoder, ours: Encoder) -> None:
    """Copy our weights into torch's encoder."""
    for theirs, layer in zip(torch_encoder.layers, ours.layers, strict=True):
        theirs.self_attn.in_proj_weight.data.copy_(layer.attention.qkv.weight)
        theirs.self_attn.in_proj_bias.data.copy_(layer.attention.qkv.bias)
        pairs = [
            (theirs.self_attn.out_proj, layer.attention.out),
            (theirs.linear1, layer.feed_forward.up),
            (theirs.linear2, layer.feed_forward.down),
            (theirs.norm1, layer.attention_norm),
            (theirs.norm2, layer.feed_forward_norm),
        ]
        for a, b in pairs:
            a.load_state_dict(b.state_dict())
    if torch_encoder.norm is not None:
        torch_encoder.norm.load_state_dict(ours.final_norm.state_dict())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_equals_torch_on_a_padded_batch(norm: str, causal: bool) -> None:
    ours = make_encoder(norm=norm, positions="learned")
    for parameter in ours.parameters():  # Away from the tidy initial values: zero biases hide much.
        nn.init.normal_(parameter, std=0.3)
    layer = nn.TransformerEncoderLayer(
        16, 4, 24, 0.0, "gelu", batch_first=True, norm_first=norm == "pre"
    )
    final = nn.LayerNorm(16) if norm == "pre" else None
    theirs = nn.TransformerEncoder(layer, 2, final, enable_nested_tensor=False).double()
    copy_of(theirs, ours)

    h_ND, cu_seqlens = packed(LENGTHS, 16)
    segment_N, position_N = segments_N(cu_seqlens, 23), positions_N(cu_seqlens, 23)
    h_BLD = torch.full((5, 7, 16), 9.0, dtype=torch.float64)
    h_BLD[segment_N, position_N] = h_ND
    h_ND.requires_grad_()
    h_BLD.requires_grad_()
    padding_BL = torch.arange(7) >= torch.tensor(LENGTHS)[:, None]
    mask = torch.ones(7, 7).triu(1).bool() if causal else None

    mine = ours(h_ND, cu_seqlens, LENGTHS, causal=causal)
    padded = h_BLD + ours.positions.table.weight[:7]
    other = theirs(padded, mask, padding_BL)[segment_N, position_N]
    torch.testing.assert_close(mine, other)

    gradient = packed(LENGTHS, 16, seed=1)[0]
    mine.backward(gradient)
    positions_gradient = ours.positions.table.weight.grad.clone()
    ours.positions.table.weight.grad = None
    other.backward(gradient)
    torch.testing.assert_close(h_ND.grad, h_BLD.grad[segment_N, position_N])
    torch.testing.assert_close(positions_gradient, ours.positions.table.weight.grad)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(a.attention.qkv.weight.grad, b.self_attn.in_proj_weight.grad)
        torch.testing.assert_close(a.attention.qkv.bias.grad, b.self_attn.in_proj_bias.grad)
        torch.testing.assert_close(a.attention.out.weight.grad, b.self_attn.out_proj.weight.grad)
        torch.testing.assert_close(a.feed_forward.down.bias.grad, b.linear2.bias.grad)
        torch.testing.assert_close(a.attention_norm.weight.grad, b.norm1.weight.grad)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_extra_norm_takes_each_layers_output(norm: str) -> None:
    plain, extra = (make_encoder(norm=norm, extra_norm=more) for more in (False, True))
    names = {f"layers.{i}.output_norm.{end}" for i in (0, 1) for end in ("weight", "bias")}
    assert set(extra.state_dict()) == set(plain.state_dict()) | names
    extra.load_state_dict(plain.state_dict(), strict=False)
    h_ND, cu_seqlens = packed(LENGTHS, 16)
    rotary = rotary_tables(positions_N(cu_seqlens, 23), 4)
    for one, other in zip(plain.layers, extra.layers, strict=True):
        norm_D = other.output_norm
        nn.init.normal_(norm_D.weight)
        nn.init.normal_(norm_D.bias)
        expected = norm_D(one(h_ND, rotary, lambda q, k, v: q * k + v))
        torch.testing.assert_close(other(h_ND, rotary, lambda q, k, v: q * k + v), expected)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    variant=st.sampled_from(VARIANTS),
    causal=st.booleans(),
    data=st.data(),
)
def test_a_phrase_means_the_same_in_any_company(
    lengths: list[int], variant: dict, causal: bool, data: st.DataObject
) -> None:
    torch.manual_seed(0)
    encoder = make_encoder(**variant)
    phrases = [packed([n], 16, seed=i)[0] for i, n in enumerate(lengths)]
    alone = [
        encoder(h, boundaries([n]), [n], causal=causal)
        for h, n in zip(phrases, lengths, strict=True)
    ]
    order = data.draw(st.permutations(range(len(lengths))))
    mixed = [lengths[i] for i in order]
    together = encoder(
        torch.cat([phrases[i] for i in order]), boundaries(mixed), mixed, causal=causal
    )
    for i, out in zip(order, together.split(mixed), strict=True):
        torch.testing.assert_close(out, alone[i])


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_leaks_between_phrases(variant: dict) -> None:
    encoder = make_encoder(**variant)
    h_ND, cu_seqlens = packed(LENGTHS, 16)
    before = encoder(h_ND, cu_seqlens, LENGTHS)
    changed = h_ND.clone()
    changed[6:13] *= -1  # the third phrase; adding a constant would vanish in the first norm
    after = encoder(changed, cu_seqlens, LENGTHS)
    assert torch.equal(before[:6], after[:6])
    assert torch.equal(before[13:], after[13:])
    assert not torch.isclose(before[6:13], after[6:13]).any(1).all()

    h_ND.requires_grad_()
    encoder(h_ND, cu_seqlens, LENGTHS)[6:13].square().sum().backward()
    assert (h_ND.grad[:6] == 0).all()
    assert (h_ND.grad[13:] == 0).all()
    assert (h_ND.grad[6:13] != 0).any(1).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_causal_sees_no_future_and_the_other_direction_does(variant: dict, causal: bool) -> None:
    encoder = make_encoder(**variant)
    h_ND, cu_seqlens = packed((4, 8), 16)
    t = 4 + 5  # position 5 of the second phrase
    before = encoder(h_ND, cu_seqlens, (4, 8), causal=causal)
    changed = h_ND.clone()
    changed[t] = -changed[t]
    after = encoder(changed, cu_seqlens, (4, 8), causal=causal)
    moved_N = (before != after).any(1)
    assert moved_N[t:].all()
    assert not moved_N[:4].any()
    assert moved_N[4:t].all() if not causal else not moved_N[4:t].any()

    h_ND.requires_grad_()
    # Not a plain sum: a LayerNorm's output sums to a constant, whose gradient is zero.
    out = encoder(h_ND, cu_seqlens, (4, 8), causal=causal)
    (out[t] * packed((1,), 16, seed=3)[0]).sum().backward()
    reached_N = (h_ND.grad != 0).any(1)
    assert reached_N[4 : t + 1].all()
    assert not reached_N[:4].any()
    assert reached_N[t + 1 :].all() if not causal else not reached_N[t + 1 :].any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 500))
def test_rotary_scores_depend_on_the_distance_only(a: int, b: int, shift: int) -> None:
    x_NHd, _ = packed((2,), 3, 8)

    def scores(positions: list[int]) -> Tensor:
        q, k = rotate(x_NHd, rotary_tables(torch.tensor(positions), 8))
        return (q * k).sum(-1)

    torch.testing.assert_close(scores([a, b]), scores([a + shift, b + shift]), atol=3e-3, rtol=0)


def test_rotary_turns_pairs_and_keeps_type() -> None:
    x_NHd, _ = packed((3,), 2, 8)
    turned = rotate(x_NHd, rotary_tables(torch.tensor([0, 1, 7]), 8))
    torch.testing.assert_close(turned[0], x_NHd[0])
    assert not torch.isclose(turned[1:], x_NHd[1:]).any()
    torch.testing.assert_close(turned.norm(dim=-1), x_NHd.norm(dim=-1), atol=1e-6, rtol=0)
    # The first pair turns by one radian a step (equation 15 with theta_1 = 1).
    angle = torch.tensor(1.0).double()
    want = x_NHd[1, :, 0] * angle.cos() - x_NHd[1, :, 4] * angle.sin()
    torch.testing.assert_close(turned[1, :, 0], want, atol=1e-6, rtol=0)
    assert rotate(x_NHd.bfloat16(), rotary_tables(torch.arange(3), 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_order_of_tokens_matters(positions: str) -> None:
    encoder = make_encoder(positions=positions)
    h_ND, cu_seqlens = packed((6,), 16)
    forth = encoder(h_ND, cu_seqlens, (6,))
    back = encoder(h_ND.flip(0), cu_seqlens, (6,)).flip(0)
    assert not torch.allclose(forth, back, atol=1e-6)


def test_positions_count_from_zero_in_each_phrase() -> None:
    assert positions_N(boundaries((3, 1, 2)), 6).tolist() == [0, 1, 2, 0, 0, 1]
    assert segments_N(boundaries((3, 1, 2)), 6).tolist() == [0, 0, 0, 1, 2, 2]


def test_learned_positions_refuse_a_long_phrase() -> None:
    table = LearnedPositions(4, 8)
    assert table(torch.arange(4), 4).shape == (4, 8)
    encoder = make_encoder(positions="learned", max_positions=4)
    with pytest.raises(ValueError, match=r"5 tokens.*max_positions=4.*positions='rope'"):
        encoder(*packed((2, 5), 16), (2, 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "rms"}, r"norm='rms'.*pre, post"),
        ({"positions": "alibi"}, r"positions='alibi'.*rope, learned"),
        ({"activation": "relu"}, r"activation='relu'.*gelu, geglu"),
        ({"n_heads": 7}, r"d_model=30.*n_heads=7.*these do: 1, 2, 3, 5, 6, 10, 15, 30"),
        ({"n_heads": 0}, r"n_heads=0"),
        ({"n_heads": 2}, r"head width.*15, an odd number"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    Encoder(30, 1, n_heads=3, d_ff=8)
    with pytest.raises(ValueError, match=message):
        Encoder(30, 1, d_ff=8, **{"n_heads": 3, **settings})


def test_weights_start_as_gpt2s() -> None:
    encoder = Encoder(128, 8, 4, 512)
    layer = encoder.layers[3]
    assert layer.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for last in (layer.attention.out, layer.feed_forward.down):
        assert last.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert all((p == 0).all() for name, p in encoder.named_parameters() if name.endswith("bias"))


def test_geglu_against_the_paper() -> None:
    """Shazeer 2020, equation 6: (GELU(x W) * x V) W2, here with biases."""
    block = FeedForward(16, 24, "geglu")
    x = torch.randn(5, 16)
    (W, V), (w, v) = block.up.weight.split(24), block.up.bias.split(24)
    want = (nn.functional.gelu(x @ W.T + w) * (x @ V.T + v)) @ block.down.weight.T
    torch.testing.assert_close(block(x), want + block.down.bias)


def test_dropout_only_in_training() -> None:
    encoder = Encoder(16, 1, 4, 16, dropout=0.5, attention_dropout=0.5)
    h_ND, cu_seqlens = packed((6,), 16)
    h_ND = h_ND.float()
    assert not torch.equal(encoder(h_ND, cu_seqlens, (6,)), encoder(h_ND, cu_seqlens, (6,)))
    encoder.eval()
    assert torch.equal(encoder(h_ND, cu_seqlens, (6,)), encoder(h_ND, cu_seqlens, (6,)))


def test_half_precision_stays_close() -> None:
    encoder = Encoder(32, 2, 4, 64).eval()
    h_ND, cu_seqlens = packed(LENGTHS, 32)
    h_ND = h_ND.float()
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(h_ND, cu_seqlens, LENGTHS)
    full = encoder(h_ND, cu_seqlens, LENGTHS)
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)


def test_parameters_of_the_twelve_corpora_model() -> None:
    """The seed's 406K: this encoder, its embedding, and an untied language-model head.

    Tokens 291 x 128 = 37,248; positions 256 x 128 = 32,768; three layers of 99,584; final norm 256:
    369,024. The seed generates, so it has an output matrix of another 37,248: 406,272.
    """
    embedding = FieldEmbedding((291,), 128)
    encoder = Encoder(128, 3, 4, 128, positions="learned", max_positions=256)
    n_parameters = sum(p.numel() for m in (embedding, encoder) for p in m.parameters())
    assert n_parameters == 369_024
    assert n_parameters + nn.Linear(128, 291, bias=False).weight.numel() == 406_272
