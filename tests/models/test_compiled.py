"""Compiled layers are the same function, and are compiled once and not for every batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from midigenre.models import Encoder, transformer
from midigenre.models.sequences import attend_padded

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
        assert longest % transformer.LONGEST_STEP == 0
        return _attend(q, k, v, cu_seqlens, causal)

    monkeypatch.setattr(transformer, "attend_varlen", attend)
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kwargs", [{}, {"positions": "learned"}, {"conv_width": 3}])
def test_compiled_layers_are_the_same_function(on_cpu, kwargs, causal: bool) -> None:
    plain, fast = encoder(**kwargs), encoder(**kwargs)
    fast.compile_layers(backend=on_cpu)
    for lengths in MANY[:2]:
        torch.testing.assert_close(passed(fast, lengths, causal), passed(plain, lengths, causal))
    assert on_cpu.frame_count == 1
    assert fast.state_dict().keys() == plain.state_dict().keys()


def test_batches_of_other_lengths_do_not_compile_anew(on_cpu) -> None:
    model = encoder()
    model.compile_layers(backend=on_cpu)
    for lengths in MANY:
        passed(model, lengths, False)
    assert on_cpu.frame_count == 1


def test_a_longer_phrase_compiles_once_more_at_most(on_cpu, monkeypatch) -> None:
    monkeypatch.setattr(transformer, "LONGEST_STEP", 8)  # bounds of 16, 32, 40 and 8
    model, plain = encoder(), encoder()
    model.compile_layers(backend=on_cpu)
    for lengths in MANY:
        torch.testing.assert_close(passed(model, lengths, False), passed(plain, lengths, False))
    assert on_cpu.frame_count <= 2


def test_a_copy_runs_its_own_weights(on_cpu) -> None:
    model = encoder()
    model.compile_layers(backend=on_cpu)
    passed(model, MANY[0], False)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    assert not torch.equal(passed(other, MANY[0], False)[0], passed(model, MANY[0], False)[0])


def test_evaluation_is_not_compiled(on_cpu) -> None:
    model = encoder().eval()
    model.compile_layers(backend=on_cpu)
    h_ND, cu_seqlens = phrases((3, 4))
    model(h_ND, cu_seqlens, (3, 4))
    assert on_cpu.frame_count == 0


def test_attention_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention_dropout=0\.1"):
        encoder(attention_dropout=0.1).compile_layers()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("causal", [False, True])
def test_cuda_compiled_agrees_with_plain(causal: bool) -> None:
    plain, fast = encoder().cuda(), encoder().cuda()
    fast.compile_layers()
    for lengths in MANY:
        with torch.autocast("cuda", torch.bfloat16):
            want, got = (passed(m, lengths, causal, "cuda") for m in (plain, fast))
        torch.testing.assert_close(got, want, atol=5e-2, rtol=5e-2)
