"""The insides of packed attention say the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import boundaries, packed
from torch import Tensor

from midigenre.models import sequences
from midigenre.models.sequences import attend_padded, attend_runs, packed_attention

MIXED = (5, 1, 9, 9, 9, 2, 7)
EQUAL = (6, 6, 6, 6)


def by_hand(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], causal: bool) -> Tensor:
    """Softmax written out, phrase by phrase and head by head."""
    outs, start = [], 0
    for n in lengths:
        a, b, c = (x[start : start + n].transpose(0, 1) for x in (q, k, v))
        score = a @ b.transpose(1, 2) / q.shape[-1] ** 0.5
        if causal:
            score = score.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        outs.append((score.softmax(-1) @ c).transpose(0, 1))
        start += n
    return torch.cat(outs)


def with_gradients(attend, lengths: tuple[int, ...]) -> list[Tensor]:
    """Output and the gradients of queries, keys and values, for a fixed random loss."""
    qkv, cu_seqlens = packed(lengths, 3, 2, 8)
    qkv.requires_grad_()
    out = attend(*qkv.unbind(1), cu_seqlens)
    out.backward(packed(lengths, 2, 8, seed=1)[0])
    return [out.detach(), qkv.grad]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [MIXED, EQUAL, (4,), (1, 1)])
def test_insides_agree_with_softmax_by_hand(lengths: tuple[int, ...], causal: bool) -> None:
    want = with_gradients(lambda q, k, v, _: by_hand(q, k, v, lengths, causal), lengths)
    runs = with_gradients(lambda q, k, v, _: attend_runs(q, k, v, lengths, causal=causal), lengths)
    pads = with_gradients(
        lambda q, k, v, cu: attend_padded(q, k, v, cu, lengths, causal=causal), lengths
    )
    for got in (runs, pads):
        torch.testing.assert_close(got, want)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.booleans())
def test_runs_agree_with_padded(lengths: list[int], causal: bool) -> None:
    qkv, cu_seqlens = packed(lengths, 3, 2, 4)
    q, k, v = qkv.unbind(1)
    torch.testing.assert_close(
        attend_runs(q, k, v, lengths, causal=causal),
        attend_padded(q, k, v, cu_seqlens, lengths, causal=causal),
    )


def test_equal_neighbours_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def spy(q: Tensor, *args: object, **kwargs: object) -> Tensor:
        shapes.append(tuple(q.shape))
        return original(q, *args, **kwargs)

    original = sequences.scaled_dot_product_attention
    monkeypatch.setattr(sequences, "scaled_dot_product_attention", spy)
    qkv, cu_seqlens = packed((3, 3, 5, 3), 3, 2, 4)
    packed_attention(*qkv.unbind(1), cu_seqlens, (3, 3, 5, 3), causal=False)
    assert shapes == [(2, 2, 3, 4), (1, 2, 5, 4), (1, 2, 3, 4)]


def test_padding_never_touches_infinite_neighbours() -> None:
    qkv, cu_seqlens = packed((2, 5), 3, 1, 4)
    qkv[2:] = torch.inf
    out = attend_padded(*qkv.unbind(1), cu_seqlens, (2, 5), causal=False)
    assert out[:2].isfinite().all()


@pytest.mark.parametrize("attend", [attend_runs, attend_padded])
def test_dropout_changes_weights_and_keeps_the_mean(attend) -> None:
    lengths = (6, 6, 3)
    qkv, cu_seqlens = packed(lengths, 3, 2, 4)
    middle = () if attend is attend_runs else (cu_seqlens,)
    args = (*qkv.unbind(1), *middle, lengths)
    plain = attend(*args, causal=False)
    dropped = torch.stack([attend(*args, causal=False, dropout_p=0.2) for _ in range(2000)])
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), plain, atol=0.06, rtol=0)


def test_gpu_takes_varlen_only_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice, on fake CUDA tensors; the kernel itself is tested below."""

    class OnGpu:
        device = torch.device("cuda")

        def __init__(self, dtype: torch.dtype, d: int = 32) -> None:
            self.dtype, self.shape = dtype, (10, 4, d)

    taken = []
    monkeypatch.setattr(sequences, "attend_varlen", lambda *a, **k: taken.append("varlen"))
    monkeypatch.setattr(sequences, "attend_padded", lambda *a, **k: taken.append("padded"))

    def choose(x: OnGpu, capability: tuple[int, int] = (9, 0), dropout_p: float = 0.0) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        packed_attention(x, x, x, boundaries((10,)), (10,), causal=True, dropout_p=dropout_p)
        return taken[-1]

    assert choose(OnGpu(torch.bfloat16)) == "varlen"
    assert choose(OnGpu(torch.float16)) == "varlen"
    assert choose(OnGpu(torch.float32)) == "padded"
    assert choose(OnGpu(torch.bfloat16, d=12)) == "padded"
    assert choose(OnGpu(torch.bfloat16), capability=(7, 5)) == "padded"
    assert choose(OnGpu(torch.bfloat16), dropout_p=0.1) == "padded"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cuda_agrees_with_cpu(dtype: torch.dtype, causal: bool) -> None:
    lengths = (5, 1, 130, 64)
    qkv, cu_seqlens = packed(lengths, 3, 4, 32)
    gradient = packed(lengths, 4, 32, seed=1)[0]
    results = []
    for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
        x = qkv.to(dtype).to(device, kind).requires_grad_()
        q, k, v = x.unbind(1)
        out = packed_attention(q, k, v, cu_seqlens.to(device), lengths, causal=causal)
        out.backward(gradient.to(device, kind))
        results.append([out.detach().cpu().double(), x.grad.cpu().double()])
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(results[1], results[0], atol=tolerance, rtol=tolerance)
