"""Vectors put before each phrase of a packed sequence: CLS, and the generator's conditions.

    B phrases   P prefix vectors   N packed tokens   M = N + B * P   D model width

They are vectors of the model and not tokens, so that vocabularies and tokenizers know nothing of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from midigenre.models.positions import segments_N


class Prefixed(NamedTuple):
    """A packed sequence with a prefix before each phrase.

    Attributes:
        h_MD: Vectors, shape (N + B * P, D).
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
    """Put P vectors before each phrase.

    Args:
        h_ND: Packed vectors, shape (N, D).
        cu_seqlens: Phrase boundaries, integer, shape (B + 1,).
        lengths: The phrase lengths, length B.
        prefix_BPD: The vectors, shape (B, P, D); expand one vector for a prefix that all share.

    Returns:
        The longer sequence and the indices to take it apart again.
    """
    (N, D), (B, P) = h_ND.shape, prefix_BPD.shape[:2]
    device = h_ND.device
    tokens_N = torch.arange(N, device=device) + (segments_N(cu_seqlens, N) + 1) * P
    # Each phrase moves by the prefixes of all phrases before it.
    moved = cu_seqlens + P * torch.arange(B + 1, device=device, dtype=cu_seqlens.dtype)
    prefix_BP = moved[:-1, None].long() + torch.arange(P, device=device)
    h_MD = (
        h_ND.new_empty(N + B * P, D)
        .index_copy(0, tokens_N, h_ND)
        .index_copy(0, prefix_BP.flatten(), prefix_BPD.flatten(0, 1).to(h_ND.dtype))
    )
    return Prefixed(h_MD, moved, tuple(n + P for n in lengths), tokens_N, prefix_BP)
