"""The CPU insides of Linear and of dropout mean what nn.Linear and nn.Dropout mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from midigenre.models import Encoder, LabelHead, cpu
from midigenre.models.cpu import FastDropAdd, Linear, use_cpu_kernels
from midigenre.models.transformer import DropAdd

needs_onednn = pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="needs a CPU with AVX-512"
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
    original = cpu._times_transposed

    def spy(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(tuple(a.shape))
        return original(a, b, bias)

    monkeypatch.setattr(cpu, "_times_transposed", spy)
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
