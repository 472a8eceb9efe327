"""Where a token stands in its phrase, and the two ways a model can know it.

    N packed tokens   D model width   H heads   d width of a head   B phrases

Positions start at 0 in every phrase (and in every prefix put before one), so that a phrase means
the same in any company.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

ROPE_BASE = 10_000.0  # Su et al. 2021 (RoFormer, arXiv 2104.09864), section 3.2.2


def segments_N(cu_seqlens: Tensor, N: int) -> Tensor:
    """Index of the phrase that each packed token belongs to.

    Args:
        cu_seqlens: Phrase boundaries, integer, shape (B + 1,).
        N: Number of packed tokens. As a Python number it saves waiting for the device.

    Returns:
        int64, shape (N,).
    """
    phrases = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
    return torch.repeat_interleave(phrases, cu_seqlens.diff(), output_size=N)


def positions_N(cu_seqlens: Tensor, N: int) -> Tensor:
    """Position of each packed token in its phrase, from 0.

    Args:
        cu_seqlens: Phrase boundaries, integer, shape (B + 1,).
        N: Number of packed tokens.

    Returns:
        int64, shape (N,).
    """
    starts_N = cu_seqlens[:-1].long()[segments_N(cu_seqlens, N)]
    return torch.arange(N, device=cu_seqlens.device) - starts_N


class Rotary(NamedTuple):
    """Cosine and signed sine of each token's angles, both float32, shape (N, 1, d).

    Full width, with the sine negative in the first half: one product each, not four on halves.
    """

    cos_N1d: Tensor
    sin_N1d: Tensor


def rotary_tables(positions_N: Tensor, d_head: int, base: float = ROPE_BASE) -> Rotary:
    """Angles of rotary position embeddings (Su et al. 2021, section 3.2.2, equation 15).

    Computed from the positions in float32 at every call: it costs far less than one linear layer,
    there is no longest phrase, and no buffer that ``model.bfloat16()`` could round.

    Args:
        positions_N: Position of each token, integer, shape (N,).
        d_head: Width of a head, even.
        base: Longest wavelength is about 2 pi ``base`` tokens.

    Returns:
        The table that :func:`rotate` takes; make it once for all layers.

    Raises:
        ValueError: ``d_head`` is odd.
    """
    if d_head % 2:
        raise ValueError(
            f"positions='rope' turns pairs of numbers, but the head width d_model / n_heads is "
            f"{d_head}, an odd number; change n_heads or d_model, or take positions='learned'"
        )
    pairs = torch.arange(0, d_head, 2, device=positions_N.device, dtype=torch.float32)
    angles = positions_N.float()[:, None, None] * base ** (-pairs / d_head)
    cos, sin = angles.cos(), angles.sin()
    return Rotary(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def rotate(x_NHd: Tensor, rotary: Rotary) -> Tensor:
    """Turn queries or keys by the angle of their position.

    The rotate-half convention (GPT-NeoX, LLaMA in Hugging Face): number i is paired with i + d / 2.
    Pairing neighbours as complex numbers is the same up to the order of the weights and twice as
    fast on CPU, but complex numbers know neither bfloat16 nor ONNX.

    Args:
        x_NHd: Queries or keys, or both side by side as more heads, shape (N, H, d).
        rotary: From :func:`rotary_tables`.

    Returns:
        Same shape and type as ``x_NHd``.
    """
    a, b = x_NHd.chunk(2, dim=-1)
    turned = torch.addcmul(x_NHd * rotary.cos_N1d, torch.cat((b, a), dim=-1), rotary.sin_N1d)
    # float32 tables lift bfloat16 to float32 here; attention must get its half precision back.
    return turned.to(x_NHd.dtype)


class LearnedPositions(nn.Module):
    """One learned vector for each position (as BERT and GPT-2 do).

    Args:
        max_positions: Longest phrase, vectors put before it included.
        d_model: Model width D.
    """

    def __init__(self, max_positions: int, d_model: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.table = nn.Embedding(max_positions, d_model)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, positions_N: Tensor, longest: int) -> Tensor:
        """Vectors of the positions.

        Args:
            positions_N: Position of each token, int64, shape (N,).
            longest: Length of the longest phrase; known on the host, so that checking it does not
                wait for the device.

        Returns:
            Shape (N, D).

        Raises:
            ValueError: A phrase is longer than the table.
        """
        if longest > self.max_positions:
            raise ValueError(
                f"a phrase of {longest} tokens (vectors before it included) does not fit "
                f"max_positions={self.max_positions}; raise max_positions, cut phrases shorter, "
                f"or take positions='rope', which has no longest phrase"
            )
        h_ND: Tensor = self.table(positions_N)
        return h_ND
