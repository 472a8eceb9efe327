"""Packed inputs for the tests of the models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from midigenre.spec import UNKNOWN, Batch


def boundaries(lengths: Sequence[int]) -> Tensor:
    """``cu_seqlens`` of phrases of these lengths."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def packed(lengths: Sequence[int], *width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random float64 vectors of shape (N, *width), and their boundaries."""
    random = torch.Generator().manual_seed(seed)
    h = torch.randn(sum(lengths), *width, generator=random, dtype=torch.float64)
    return h, boundaries(lengths)


def make_batch(
    lengths: Sequence[int],
    sizes: Sequence[int] = (11,),
    labels: Sequence[int] | None = None,
    seed: int = 0,
) -> Batch:
    """A batch of random tokens with one label, ``genre``."""
    random = torch.Generator().manual_seed(seed)
    N, B = sum(lengths), len(lengths)
    ids_NF = torch.stack([torch.randint(size, (N,), generator=random) for size in sizes], dim=1)
    genre_B = torch.tensor([UNKNOWN] * B if labels is None else labels)
    zeros_B = torch.zeros(B, dtype=torch.int64)
    return Batch(ids_NF, boundaries(lengths), tuple(lengths), {"genre": genre_B}, zeros_B, zeros_B)
