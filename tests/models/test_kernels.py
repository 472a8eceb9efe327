"""Faster insides mean what the public ones mean: on CPU, for decoding, in eight bits, compiled."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from packing import make_batch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from midigenre.models import (
    LSTM,
    ConditionEmbedding,
    Encoder,
    FieldEmbedding,
    FieldHead,
    LabelHead,
    PhraseGenerator,
    kernels,
)
from midigenre.models.kernels import (
    FastDropAdd,
    Frozen,
    Int8Linear,
    Linear,
    PackedLinear,
    TransposedLinear,
    compile_layers,
    packed,
    quantize_int8,
    use_cpu_kernels,
)
from midigenre.models.sequences import attend_padded
from midigenre.models.transformer import DropAdd

needs_onednn = pytest.mark.skipif(
    not kernels._HAS_ONEDNN, reason="needs a CPU with AVX-512 and a PyTorch with oneDNN"
)


def results(linear: nn.Linear, x: Tensor, gradient: Tensor) -> list[Tensor | None]:
    """Output and all gradients."""
    x = x.detach().requires_grad_()
    linear.zero_grad()
    out = linear(x)
    out.backward(gradient)
    bias = None if linear.bias is None else linear.bias.grad
    return [out.detach(), x.grad, linear.weight.grad, bias]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what was multiplied in oneDNN."""
    seen: list[tuple[int, ...]] = []
    original = kernels._times_transposed

    def spy(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(tuple(a.shape))
        return original(a, b, bias)

    monkeypatch.setattr(kernels, "_times_transposed", spy)
    return seen


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "even"), [(64, 64), (65, 128), (512, 512), (1300, 1408)])
def test_linear_equals_nn_linear(
    rows: int, even: int, bias: bool, calls: list[tuple[int, ...]]
) -> None:
    theirs, ours = nn.Linear(24, 40, bias), Linear(24, 40, bias)
    ours.load_state_dict(theirs.state_dict())
    x, gradient = torch.randn(rows, 24), torch.randn(rows, 40)
    got, want = results(ours, x, gradient), results(theirs, x, gradient)
    assert calls[:2] == [(even, 24), (even, 40)]  # forward, gradient of the input
    assert len(calls) == 2 + -(-even // 512)  # and one product for each block of rows
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    exact = results(theirs.double(), x.double(), gradient.double())
    for mine, other, truth in zip(got, want, exact, strict=True):
        if truth is not None:  # As near to the truth, but for the order of the sum.
            error, usual = ((y.double() - truth).abs().max() for y in (mine, other))
            assert error <= 4 * usual + 1e-6


@needs_onednn
def test_onednn_meets_few_numbers_of_rows(calls: list[tuple[int, ...]]) -> None:
    linear = Linear(24, 40)
    for rows in range(1025, 4097):
        linear(torch.zeros(rows, 24))
    assert len(set(calls)) == 16
    added = [even / rows for (even, _), rows in zip(calls, range(1025, 4097), strict=True)]
    assert min(added) == 1.0
    assert max(added) < 1.125
    assert sum(added) / len(added) < 1.05


@needs_onednn
def test_linear_takes_any_strides() -> None:
    linear, other = Linear(24, 40), nn.Linear(24, 40)
    other.load_state_dict(linear.state_dict())
    x = torch.randn(24, 100).t()
    gradient = torch.randn(1, 40).expand(100, 40)
    torch.testing.assert_close(results(linear, x, gradient), results(other, x, gradient))


@needs_onednn
def test_linear_computes_only_the_gradients_that_are_wanted(calls: list[tuple[int, ...]]) -> None:
    linear = Linear(24, 40)
    linear.weight.requires_grad_(False)
    x = torch.randn(64, 24, requires_grad=True)
    linear(x).sum().backward()
    assert len(calls) == 2
    assert linear.weight.grad is None
    linear.requires_grad_(True)
    linear(x.detach()).sum().backward()
    assert len(calls) == 4  # forward and the weights, not the input
    assert linear.weight.grad is not None


@pytest.mark.parametrize("what", ["float64", "few rows", "autocast", "three axes", "switched off"])
def test_linear_leaves_the_rest_to_torch(what: str, calls: list[tuple[int, ...]]) -> None:
    linear, x = Linear(24, 40), torch.randn(100, 24)
    if what == "float64":
        linear, x = linear.double(), x.double()
    x = {"few rows": x[:63], "three axes": x[None]}.get(what, x)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"),
        torch.backends.mkldnn.flags(enabled=what != "switched off"),
    ):
        out = linear(x)
    assert calls == []
    assert out.dtype == {"float64": torch.float64, "autocast": torch.bfloat16}.get(
        what, torch.float32
    )


@needs_onednn
def test_encoder_computes_the_same_in_both_libraries(calls: list[tuple[int, ...]]) -> None:
    encoder = use_cpu_kernels(Encoder(32, 2, 4, 64)).eval()
    lengths = (70, 30, 30)
    h_ND, cu_seqlens = torch.randn(130, 32), torch.tensor([0, 70, 100, 130], dtype=torch.int32)

    def run() -> list[Tensor]:
        encoder.zero_grad()
        out = encoder(h_ND, cu_seqlens, lengths)
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in encoder.parameters())]

    got = run()
    assert calls
    with torch.backends.mkldnn.flags(enabled=False):
        before = len(calls)
        want = run()
    assert len(calls) == before
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


def drop_add(h: Tensor, change: Tensor, p: float, training: bool) -> Tensor:
    return FastDropAdd(p).train(training)(h, change)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_scale(p: float) -> None:
    n = 400_000
    out = drop_add(torch.zeros(n), torch.ones(n), p, training=True)
    kept = out != 0
    # Five standard deviations of the share of n independent draws.
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / n) ** 0.5)
    torch.testing.assert_close(
        out[kept], torch.full((int(kept.sum()),), 1 / (1 - p)), rtol=1e-3, atol=0
    )
    # 16 bits of one draw after the other: each of the four places drops as often, and alone.
    places = kept[: n // 4 * 4].view(-1, 4).float()
    torch.testing.assert_close(places.mean(0), torch.full((4,), 1 - p), atol=0.008, rtol=0)
    correlation = torch.corrcoef(places.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def test_dropout_adds_to_the_residual_and_passes_both_gradients() -> None:
    residual = torch.randn(37, 5, requires_grad=True)
    x = torch.randn(37, 5, requires_grad=True)
    torch.manual_seed(1)
    out = drop_add(residual, x, 0.25, training=True)
    gradient = torch.randn(37, 5)
    out.backward(gradient)
    torch.manual_seed(1)
    scale = drop_add(torch.zeros(37, 5), torch.ones(37, 5), 0.25, training=True)
    assert scale.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    torch.testing.assert_close(out, residual + x * scale)
    torch.testing.assert_close(residual.grad, gradient)
    torch.testing.assert_close(x.grad, gradient * scale)


def test_dropout_depends_on_the_seed_only() -> None:
    zeros, ones = torch.zeros(101), torch.ones(101)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return drop_add(zeros, ones, 0.5, training=True)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0])
def test_dropout_at_the_ends(p: float) -> None:
    residual, x = torch.randn(50), torch.randn(50)
    want = residual + x if p < 0.5 else residual
    torch.testing.assert_close(drop_add(residual, x, p, training=True), want)
    torch.testing.assert_close(drop_add(residual, x, p, training=False), residual + x)


def test_dropout_under_autocast_adds_to_float32() -> None:
    encoder = use_cpu_kernels(Encoder(32, 1, 4, 64, dropout=0.5))
    cu_seqlens = torch.tensor([0, 80], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(torch.randn(80, 32), cu_seqlens, (80,))
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_layers_over_tokens_take_the_kernels_and_keep_their_weights() -> None:
    model = nn.ModuleDict(
        {"backbone": Encoder(8, 1, 2, 8, conv_width=2), "head": LabelHead("genre", ("a", "b"), 8)}
    )
    before = dict(model.named_parameters())
    assert use_cpu_kernels(model) is model
    assert dict(model.named_parameters()) == before
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, DropAdd)):
            fast = type(module) in (Linear, FastDropAdd)
            assert fast == name.startswith("backbone."), name


# --- packed for decoding --------------------------------------------------------------------------


def generator(backbone: nn.Module | None = None, d_model: int = 256) -> PhraseGenerator:
    """Wide enough that its layers are worth packing."""
    torch.manual_seed(0)
    made = PhraseGenerator(
        FieldEmbedding((11, 7), d_model, dropout=0.0),
        backbone or Encoder(d_model, 2, 4, 512, dropout=0.0),
        ConditionEmbedding({"genre": 3}, d_model),
        FieldHead((11, 7), d_model),
    )
    with torch.no_grad():
        for weights in made.parameters():
            if weights.ndim == 1:  # Biases are zero at first, and would not be missed.
                weights.add_(0.1 * torch.randn_like(weights))
    return use_cpu_kernels(made).eval()


def steps(model: PhraseGenerator, n_rows: int = 3, n: int = 6) -> Tensor:
    """What the model predicts step by step, shape (B, T, D)."""
    batch = make_batch([n] * n_rows, (11, 7), [0, 1, 2] * (n_rows // 3) or [1])
    ids_BTF = batch.ids_NF.unflatten(0, (n_rows, n))
    h_BD, rows = model.begin(batch.labels, list(ids_BTF[:, :1]), n)
    further = [model.advance(ids_BTF[:, t], rows) for t in range(1, n - 1)]
    return torch.stack([h_BD, *further], 1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs on any processor that has oneDNN: what is measured on AVX-512 is right elsewhere."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(kernels, "_HAS_ONEDNN", True)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("n_threads", [1, 2])  # conftest.py puts it back
@pytest.mark.parametrize("n_rows", [1, 3, 66])
@torch.inference_mode()
def test_packed_layers_predict_the_same(n_rows: int, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    model = generator()
    twin = packed(model, n_rows)
    kind = TransposedLinear if n_rows == n_threads == 1 else PackedLinear
    assert {type(m) for m in twin.modules() if isinstance(m, Frozen)} == {kind}
    assert not any(isinstance(module, Frozen) for module in model.modules())
    torch.testing.assert_close(steps(twin, n_rows), steps(model, n_rows), rtol=0, atol=1e-5)
    torch.testing.assert_close(steps(twin, n_rows), steps(model, n_rows), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("here")
@torch.no_grad()
def test_packing_again_sees_weights_that_have_changed() -> None:
    """The copy shares what it did not pack; packing a packed model packs nothing twice."""
    model = generator()
    before = steps(packed(model, 3))
    for weights in model.backbone.parameters():
        weights.add_(0.05 * torch.randn_like(weights))
    twin = packed(packed(model, 3), 3)
    assert not any(isinstance(m, PackedLinear) and isinstance(m.linear, PackedLinear)
                   for m in twin.modules())  # fmt: skip
    torch.testing.assert_close(steps(twin), steps(model), rtol=0, atol=1e-4)
    assert (steps(model) - before).abs().max() > 0.01
    assert twin.start_D is model.start_D


@pytest.mark.usefixtures("here")
def test_what_was_not_measured_is_not_packed() -> None:
    half, double = generator().bfloat16(), generator().double()
    narrow = generator(Encoder(64, 1, 4, 128), 64)
    for model in (half, double, narrow, generator(LSTM(64, 1), 64)):
        assert not any(isinstance(module, PackedLinear) for module in packed(model, 3).modules())
    large = nn.Linear(256, kernels._LARGE // 256)
    assert isinstance(packed(nn.Sequential(large), 3)[0], PackedLinear)


# --- eight bits -----------------------------------------------------------------------------------


needs_fbgemm = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="no FBGEMM here"
)


@needs_fbgemm
@torch.inference_mode()
def test_a_layer_is_off_by_its_rounding_alone() -> None:
    """Each of I products is off by at most half a step of the row and half a step of the weight."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 40)
    # Rows and outputs of any size: each has its own scale.
    linear.weight.mul_(torch.logspace(-3, 2, 40)[:, None])
    x_NI = torch.randn(9, 96) * torch.logspace(-4, 4, 9)[:, None]
    x_NI[4] = 0
    layer = Int8Linear(linear)
    x_step = x_NI.abs().amax(1, keepdim=True) * layer.scale / 2
    w_step = linear.weight.abs().amax(1) / 127 / 2
    x_sum, w_sum = x_NI.abs().sum(1, keepdim=True), linear.weight.abs().sum(1)
    bound_NO = x_step * w_sum + x_sum * w_step + 96 * x_step * w_step
    off_NO = (layer(x_NI) - linear(x_NI)).abs()
    assert (off_NO <= 1.01 * bound_NO + 1e-6 * linear(x_NI).abs()).all()
    assert torch.equal(layer(x_NI)[4], linear.bias)
    # Rounding errors of 96 products cancel for the most part.
    assert off_NO[0].norm() < 0.02 * linear(x_NI)[0].norm()


@needs_fbgemm
@torch.inference_mode()
def test_a_row_does_not_change_with_those_beside_it() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 32))
    x_NI = torch.randn(5, 64)
    alone = torch.cat([layer(row) for row in x_NI.split(1)])
    x_NI[3] *= 1000
    together = layer(x_NI)
    for row in (0, 1, 2, 4):
        assert torch.equal(together[row], alone[row])


@needs_fbgemm
def test_a_generator_keeps_its_opinions_and_its_weights() -> None:
    model = generator()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        int8 = packed(quantize_int8(model), 3)
    with torch.inference_mode():
        found, expected = steps(int8), steps(model)
    off = (found - expected).norm() / expected.norm()
    assert 1e-5 < off < 0.04
    assert sum(isinstance(module, Int8Linear) for module in int8.modules()) == 8
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert int8.head.out[0].weight is model.head.out[0].weight


@needs_fbgemm
def test_what_has_no_int8_form_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"for the encoder.* LSTM"):
        quantize_int8(generator(LSTM(64, 1), 64))
    with pytest.raises(ValueError, match="this is bfloat16 on cpu"):
        quantize_int8(generator().bfloat16())
    with pytest.raises(ValueError, match="this is float32 on meta"):
        quantize_int8(generator().to("meta"))
    with pytest.raises(ValueError, match="packed already"):
        quantize_int8(quantize_int8(generator()))


@needs_fbgemm
def test_an_engine_without_fbgemm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", "onednn")
    with pytest.raises(ValueError, match="engine here is onednn"):
        quantize_int8(generator())
    monkeypatch.undo()


# --- compiled -------------------------------------------------------------------------------------


MANY = ((5, 1, 13), (4, 4, 9), (30, 2, 2), (7, 8, 11), (40, 3, 1), (2, 3))


def encoder(**kwargs) -> Encoder:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48}
    return Encoder(**sizes | {"dropout": 0.0} | kwargs).train()


def phrases(lengths: tuple[int, ...], device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    boundaries = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    h_ND = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(sum(lengths)))
    return h_ND.to(device), boundaries.to(device)


def passed(model: Encoder, lengths: tuple[int, ...], causal: bool, device: str = "cpu"):
    """What comes out, and the gradients of all weights."""
    model.zero_grad()
    h_ND, cu_seqlens = phrases(lengths, device)
    out = model(h_ND, cu_seqlens, lengths, causal=causal)
    out.square().sum().backward()
    return out.detach(), {k: p.grad.clone() for k, p in model.named_parameters()}


@torch.library.custom_op("midigenre_test::attend", mutates_args=())
def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, causal: bool
) -> torch.Tensor:
    lengths = tuple(cu_seqlens.diff().tolist())
    return attend_padded(q, k, v, cu_seqlens, lengths, causal=causal).clone()


@_attend.register_fake
def _(q, k, v, cu_seqlens, causal):
    return torch.empty_like(q)


def _gradients(ctx, grad):
    q, k, v, cu_seqlens = ctx.saved_tensors
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attend_padded(
            *inputs, cu_seqlens, tuple(cu_seqlens.diff().tolist()), causal=ctx.causal
        )
        return *torch.autograd.grad(out, inputs, grad), None, None


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.causal = inputs[4]


_attend.register_autograd(_gradients, setup_context=_keep)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Stands in for the GPU's kernel: one operator with its arguments, opaque to the compiler."""

    def attend(q, k, v, *, cu_seqlens, longest, causal):
        assert longest % kernels.LONGEST_STEP == 0
        return _attend(q, k, v, cu_seqlens, causal)

    monkeypatch.setattr(kernels, "attend_varlen", attend)
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kwargs", [{}, {"positions": "learned"}, {"conv_width": 3}])
def test_compiled_layers_are_the_same_function(on_cpu, kwargs, causal: bool) -> None:
    plain, fast = encoder(**kwargs), encoder(**kwargs)
    compile_layers(fast, backend=on_cpu)
    for lengths in MANY[:2]:
        torch.testing.assert_close(passed(fast, lengths, causal), passed(plain, lengths, causal))
    assert on_cpu.frame_count == 1
    assert fast.state_dict().keys() == plain.state_dict().keys()


def test_batches_of_other_lengths_do_not_compile_again(on_cpu) -> None:
    model = encoder()
    compile_layers(model, backend=on_cpu)
    for lengths in MANY:
        passed(model, lengths, False)
    assert on_cpu.frame_count == 1


def test_a_longer_phrase_compiles_once_more_at_most(on_cpu, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "LONGEST_STEP", 8)  # bounds of 16, 32, 40 and 8
    model, plain = encoder(), encoder()
    compile_layers(model, backend=on_cpu)
    for lengths in MANY:
        torch.testing.assert_close(passed(model, lengths, False), passed(plain, lengths, False))
    assert on_cpu.frame_count <= 2


def test_a_copy_runs_its_own_weights(on_cpu) -> None:
    model = encoder()
    compile_layers(model, backend=on_cpu)
    passed(model, MANY[0], False)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    assert not torch.equal(passed(other, MANY[0], False)[0], passed(model, MANY[0], False)[0])


def test_evaluation_is_not_compiled(on_cpu) -> None:
    model = encoder().eval()
    compile_layers(model, backend=on_cpu)
    h_ND, cu_seqlens = phrases((3, 4))
    model(h_ND, cu_seqlens, (3, 4))
    assert on_cpu.frame_count == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("causal", [False, True])
def test_cuda_compiled_agrees_with_plain(causal: bool) -> None:
    plain, fast = encoder().cuda(), encoder().cuda()
    compile_layers(fast)
    for lengths in MANY:
        with torch.autocast("cuda", torch.bfloat16):
            want, got = (passed(m, lengths, causal, "cuda") for m in (plain, fast))
        torch.testing.assert_close(got, want, atol=5e-2, rtol=5e-2)
