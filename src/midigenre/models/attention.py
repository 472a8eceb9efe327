"""Attention that stays inside each packed phrase: one function, three insides.

    N packed tokens   H heads   d width of a head   B phrases   L longest phrase

Which inside runs where, and why:

===================================  ==========================================================
CPU                                  :func:`attend_runs`: one SDPA call for each run of equally
                                     long neighbours, on views
CUDA, half precision, no dropout     :func:`attend_varlen`: variable-length flash attention
the rest (float32 or attention       :func:`attend_padded`: SDPA on a padded copy; slower, used
dropout on CUDA, GPUs before         only where variable-length attention does not exist
Ampere, other devices)
===================================  ==========================================================

Measured on one Zen 4 thread, forward and backward, H = 4, d = 32, in ms (lower is better):

=============================  =====  ======  ========  ==============
phrases                         loop  padded  gathered  one call, views
=============================  =====  ======  ========  ==============
64 of 100-200 tokens              62      91        82               -
12 of 200-1,500 tokens           430     920         -               -
256 of 5-40 tokens                29      48        35               -
64 of exactly 150 tokens          81       -       100              55
512 of exactly 8 tokens           54       -        27              21
=============================  =====  ======  ========  ==============

``gathered`` brings equal lengths together by index: the copies cost more than the calls they save
until phrases are shorter than about 20 tokens. Equal *neighbours* need no copy, so only they share
a call. A hand-written autograd function over the segments gained 0-5%, not worth its lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from midigenre.models.positions import positions_N, segments_N


def packed_attention(
    q_NHd: Tensor,
    k_NHd: Tensor,
    v_NHd: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    *,
    causal: bool,
    dropout_p: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention of every phrase with itself (Vaswani et al. 2017, section 3.2).

    Args:
        q_NHd: Queries of all phrases end to end, shape (N, H, d).
        k_NHd: Keys, same shape.
        v_NHd: Values, same shape.
        cu_seqlens: Phrase boundaries, int32, shape (B + 1,), on the device of ``q_NHd``.
        lengths: The phrase lengths as Python numbers, each at least 1.
        causal: Whether a token sees only itself and those before it.
        dropout_p: Dropout of the attention weights; give 0 outside training. Anything else rules
            the fast kernels out (2.2x slower on CPU).

    Returns:
        Shape (N, H, d).
    """
    if q_NHd.device.type == "cpu":
        return attend_runs(q_NHd, k_NHd, v_NHd, lengths, causal=causal, dropout_p=dropout_p)
    if dropout_p == 0.0 and _varlen_runs_on(q_NHd):
        return attend_varlen(q_NHd, k_NHd, v_NHd, cu_seqlens, max(lengths), causal=causal)
    return attend_padded(
        q_NHd, k_NHd, v_NHd, cu_seqlens, lengths, causal=causal, dropout_p=dropout_p
    )


def attend_runs(
    q_NHd: Tensor,
    k_NHd: Tensor,
    v_NHd: Tensor,
    lengths: Sequence[int],
    *,
    causal: bool,
    dropout_p: float = 0.0,
) -> Tensor:
    """A loop of SDPA calls, one for each run of neighbours of the same length.

    Sorting a batch by length makes the runs long; a batch of equal windows is a single call.

    Args:
        q_NHd: Queries, shape (N, H, d).
        k_NHd: Keys, same shape.
        v_NHd: Values, same shape.
        lengths: The phrase lengths.
        causal: Whether a token sees only itself and those before it.
        dropout_p: Dropout of the attention weights.

    Returns:
        Shape (N, H, d).
    """
    runs = [(length, len(tuple(same))) for length, same in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    # Split, not slice: the backward of N slices writes N full-size zero tensors.
    parts = [torch.split(x.transpose(0, 1), sizes, dim=1) for x in (q_NHd, k_NHd, v_NHd)]
    outs = []
    for (length, count), q, k, v in zip(runs, *parts, strict=True):
        # (H, count * length, d) -> (count, H, length, d)
        if count == 1:  # One view and one autograd node fewer: this is the usual case.
            q, k, v = q[None], k[None], v[None]
        else:
            q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=causal)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)


def attend_varlen(
    q_NHd: Tensor,
    k_NHd: Tensor,
    v_NHd: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    *,
    causal: bool,
) -> Tensor:
    """Variable-length flash attention (Dao 2023, arXiv 2307.08691) in PyTorch's own wrapper.

    Args:
        q_NHd: Queries, bfloat16 or float16 on CUDA, shape (N, H, d), d a multiple of 8.
        k_NHd: Keys, same shape.
        v_NHd: Values, same shape.
        cu_seqlens: Phrase boundaries, int32, shape (B + 1,).
        longest: Length of the longest phrase, or more.
        causal: Whether a token sees only itself and those before it.

    Returns:
        Shape (N, H, d).
    """
    from torch.nn.attention.varlen import varlen_attn

    # (left, right) tokens that a query sees: -1 is all, 0 on the right is causal.
    window = (-1, 0) if causal else (-1, -1)
    out_NHd = varlen_attn(
        q_NHd, k_NHd, v_NHd, cu_seqlens, cu_seqlens, longest, longest, window_size=window
    )
    assert isinstance(out_NHd, Tensor)  # A pair only where auxiliary outputs were asked for.
    return out_NHd


def attend_padded(
    q_NHd: Tensor,
    k_NHd: Tensor,
    v_NHd: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    *,
    causal: bool,
    dropout_p: float = 0.0,
) -> Tensor:
    """SDPA on a copy padded to the longest phrase; the padding is dropped again.

    Args:
        q_NHd: Queries, shape (N, H, d).
        k_NHd: Keys, same shape.
        v_NHd: Values, same shape.
        cu_seqlens: Phrase boundaries, shape (B + 1,).
        lengths: The phrase lengths.
        causal: Whether a token sees only itself and those before it.
        dropout_p: Dropout of the attention weights.

    Returns:
        Shape (N, H, d).
    """
    (N, H, d), B, L = q_NHd.shape, len(lengths), max(lengths)
    slot_N = segments_N(cu_seqlens, N) * L + positions_N(cu_seqlens, N)

    def pad(x_NHd: Tensor) -> Tensor:
        # Zeros, not a neighbour's tokens: a masked weight is 0, but 0 times infinity is not.
        x = x_NHd.new_zeros(B * L, H, d).index_copy(0, slot_N, x_NHd)
        return x.view(B, L, H, d).transpose(1, 2)

    # Padding stands behind its phrase, so the causal mask alone hides it from every real token,
    # and SDPA keeps its fast kernels.
    steps = torch.arange(L, device=q_NHd.device)
    mask = None if causal else (steps < cu_seqlens.diff()[:, None])[:, None, None, :]
    out_BHLd = scaled_dot_product_attention(
        pad(q_NHd), pad(k_NHd), pad(v_NHd), attn_mask=mask, dropout_p=dropout_p, is_causal=causal
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
