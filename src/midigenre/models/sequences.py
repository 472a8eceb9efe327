"""Packed sequences: their boundaries, attention inside them, vectors before them.

    B phrases   N packed tokens of all phrases   L longest phrase   P vectors before a phrase
    D model width   H heads   d width of a head (D / H)

The phrases of a batch lie end to end; ``cu_seqlens``, int32 (B + 1,), holds their boundaries on
the device and ``lengths`` their lengths as Python numbers, each at least 1. Positions start at 0 in
every phrase, so that a phrase means the same in any company.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def segments_N(cu_seqlens: Tensor, N: int) -> Tensor:
    """Phrase of each token, int64 (N,). N as a Python number saves waiting for the device."""
    phrases = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
    return torch.repeat_interleave(phrases, cu_seqlens.diff(), output_size=N)


def positions_N(cu_seqlens: Tensor, N: int) -> Tensor:
    """Position of each token in its phrase, from 0, int64 (N,)."""
    starts_N = cu_seqlens[:-1].long()[segments_N(cu_seqlens, N)]
    return torch.arange(N, device=cu_seqlens.device) - starts_N


def packed_attention(
    q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *,
    causal: bool, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention of every phrase with itself (Vaswani et al. 2017, section 3.2).

    Three insides: :func:`attend_runs` on CPU; :func:`attend_varlen` on CUDA in half precision;
    :func:`attend_padded` for the rest (float32 or attention dropout on CUDA, GPUs before Ampere).
    ``experiments/speed/README.md`` has their times.

    Args:
        q_NHd: Queries of all phrases end to end, shape (N, H, d).
        k_NHd: Keys, same shape.
        v_NHd: Values, same shape.
        cu_seqlens: Phrase boundaries, on the device of ``q_NHd``.
        lengths: The phrase lengths.
        causal: Whether a token sees only itself and those before it.
        dropout_p: Dropout of the attention weights; give 0 outside training. Anything else rules
            the fast kernels out (2.2x slower on CPU).

    Returns:
        Shape (N, H, d).
    """
    qkv = q_NHd, k_NHd, v_NHd
    if q_NHd.device.type == "cpu":
        return attend_runs(*qkv, lengths, causal=causal, dropout_p=dropout_p)
    if dropout_p == 0.0 and _varlen_runs_on(q_NHd):
        return attend_varlen(*qkv, cu_seqlens=cu_seqlens, longest=max(lengths), causal=causal)
    return attend_padded(*qkv, cu_seqlens, lengths, causal=causal, dropout_p=dropout_p)


def attend_runs(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, causal: bool, dropout_p: float = 0.0
) -> Tensor:
    """A loop of SDPA calls, one for each run of equally long neighbours, on views."""
    runs = [(length, len(tuple(same))) for length, same in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    # Split, not slice: the backward of many slices writes as many full-size zero tensors.
    parts = [torch.split(x.transpose(0, 1), sizes, dim=1) for x in (q, k, v)]
    outs = []
    for (length, count), *qkv in zip(runs, *parts, strict=True):
        # (H, count * length, d) to (count, H, length, d); the usual 1 is a view fewer.
        qkv = [
            x[None] if count == 1 else x.unflatten(1, (count, length)).transpose(0, 1) for x in qkv
        ]
        out = scaled_dot_product_attention(
            qkv[0], qkv[1], qkv[2], dropout_p=dropout_p, is_causal=causal
        )
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)


def attend_varlen(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor, longest: int, causal: bool
) -> Tensor:
    """Variable-length flash attention (Dao 2023, arXiv 2307.08691); d must be a multiple of 8.

    ``longest`` is the length of the longest phrase, or more.
    """
    from torch.nn.attention.varlen import varlen_attn

    # (left, right) tokens that a query sees: -1 is all, 0 on the right is causal.
    window = (-1, 0) if causal else (-1, -1)
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, window_size=window)
    assert isinstance(out, Tensor)  # A pair only where auxiliary outputs were asked for.
    return out


def attend_padded(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *,
    causal: bool, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """SDPA on a copy padded to the longest phrase; the padding is dropped again."""
    (N, H, d), B, L = q.shape, len(lengths), max(lengths)
    slot_N = segments_N(cu_seqlens, N) * L + positions_N(cu_seqlens, N)

    def pad(x_NHd: Tensor) -> Tensor:
        # Zeros, not a neighbour's tokens: a masked weight is 0, but 0 times infinity is not.
        x = x_NHd.new_zeros(B * L, H, d).index_copy(0, slot_N, x_NHd)
        return x.view(B, L, H, d).transpose(1, 2)

    # Padding stands behind its phrase, so the causal mask alone hides it from every real token,
    # and SDPA keeps its fast kernels.
    steps = torch.arange(L, device=q.device)
    mask = None if causal else (steps < cu_seqlens.diff()[:, None])[:, None, None, :]
    out_BHLd = scaled_dot_product_attention(
        pad(q), pad(k), pad(v), attn_mask=mask, dropout_p=dropout_p, is_causal=causal
    )
    return out_BHLd.transpose(1, 2).reshape(B * L, H, d).index_select(0, slot_N)


def no_varlen(d_head: int, capability: tuple[int, int]) -> str | None:
    """Why variable-length flash attention cannot run on a GPU; None where it can.

    Its raw kernel takes no other head widths (SDPA pads, varlen does not) and no older GPUs.

    Args:
        d_head: Width of a head.
        capability: Compute capability of the GPU, as ``torch.cuda.get_device_capability`` says it.
    """
    if capability < (8, 0):
        has = ".".join(map(str, capability))
        return f"an Ampere GPU or a later one (compute capability 8.0; this one has {has})"
    if d_head % 8 or d_head > 256:
        return f"heads of 8, 16, ... 256 numbers (these have {d_head})"
    return None


def _varlen_runs_on(q_NHd: Tensor) -> bool:
    """Whether flash attention takes this tensor; it knows no float32."""
    return (
        q_NHd.device.type == "cuda"
        and q_NHd.dtype in (torch.bfloat16, torch.float16)
        and no_varlen(q_NHd.shape[-1], torch.cuda.get_device_capability(q_NHd.device)) is None
    )


class Prefixed(NamedTuple):
    """A packed sequence with P vectors before each phrase: M = N + B * P vectors in all.

    Attributes:
        h_MD: Vectors, shape (M, D).
        cu_seqlens: New boundaries, shape (B + 1,), same type as before.
        lengths: New lengths, each P longer.
        tokens_N: Where the tokens went, int64, shape (N,): ``h_MD[tokens_N]`` drops the prefixes.
        prefix_BP: Where the prefixes went, int64, shape (B, P).
    """

    h_MD: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    tokens_N: Tensor
    prefix_BP: Tensor


def insert_prefix(
    h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], prefix_BPD: Tensor
) -> Prefixed:
    """Puts P vectors before each phrase: CLS, and the generator's conditions.

    They are vectors of the model and not tokens, so that vocabularies know nothing of them. Expand
    one vector, shape (D,), to ``prefix_BPD``, (B, P, D), where all phrases share it.
    """
    (N, D), (B, P), device = h_ND.shape, prefix_BPD.shape[:2], h_ND.device
    tokens_N = torch.arange(N, device=device) + (segments_N(cu_seqlens, N) + 1) * P
    # Each phrase moves by the prefixes of all phrases before it.
    moved = cu_seqlens + P * torch.arange(B + 1, device=device, dtype=cu_seqlens.dtype)
    prefix_BP = moved[:-1, None].long() + torch.arange(P, device=device)
    h_MD = h_ND.new_empty(N + B * P, D).index_copy(0, tokens_N, h_ND)
    h_MD = h_MD.index_copy(0, prefix_BP.flatten(), prefix_BPD.flatten(0, 1).to(h_ND.dtype))
    return Prefixed(h_MD, moved, tuple(n + P for n in lengths), tokens_N, prefix_BP)
