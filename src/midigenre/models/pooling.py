"""A packed phrase to one vector.

B phrases   N packed tokens   D model width
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from midigenre.models.checks import check_choice
from midigenre.models.positions import segments_N

PoolingKind = Literal["cls", "mean", "attention", "mean_max"]


def segment_softmax(score_N: Tensor, segment_N: Tensor, n_segments: int) -> Tensor:
    """Softmax within each phrase.

    Args:
        score_N: Scores, shape (N,).
        segment_N: Phrase of each score, int64, shape (N,).
        n_segments: Number of phrases B.

    Returns:
        Weights, shape (N,), that sum to 1 over each phrase.
    """
    top_B = score_N.new_full((n_segments,), -torch.inf)
    # The maximum only guards the exponential against overflow; it cancels, so it needs no gradient.
    top_B = top_B.scatter_reduce(0, segment_N, score_N.detach(), "amax")
    exp_N = (score_N - top_B[segment_N]).exp()
    total_B = score_N.new_zeros(n_segments).index_add(0, segment_N, exp_N)
    return exp_N / total_B[segment_N]


class Pooling(nn.Module):
    """Pool each phrase without a loop over phrases.

    ``cls`` takes the first vector of each phrase (the caller puts it there: Devlin et al. 2019,
    section 3); ``mean`` averages; ``attention`` weighs tokens by a learned score
    u . tanh(W h + b) (Yang et al. 2016, Hierarchical Attention Networks, equations 5 to 7);
    ``mean_max`` projects mean and maximum, how much of something there is and whether there is any
    (Howard and Ruder 2018, arXiv 1801.06146, section 3.3).

    Args:
        kind: ``cls``, ``mean``, ``attention`` or ``mean_max``.
        d_model: Model width D.

    Raises:
        ValueError: An unknown ``kind``.
    """

    def __init__(self, kind: PoolingKind, d_model: int) -> None:
        super().__init__()
        check_choice("pooling", kind, ("cls", "mean", "attention", "mean_max"))
        self.kind = kind
        self.score: nn.Sequential | None = None
        self.project: nn.Linear | None = None
        if kind == "mean_max":
            self.project = nn.Linear(2 * d_model, d_model)
            nn.init.normal_(self.project.weight, std=1 / math.sqrt(2 * d_model))
            nn.init.zeros_(self.project.bias)
        if kind == "attention":
            hidden, score = nn.Linear(d_model, d_model), nn.Linear(d_model, 1, bias=False)
            nn.init.normal_(hidden.weight, std=0.02)
            nn.init.zeros_(hidden.bias)
            nn.init.zeros_(score.weight)  # Training starts from the mean.
            self.score = nn.Sequential(hidden, nn.Tanh(), score)

    def weights(self, h_ND: Tensor, cu_seqlens: Tensor) -> Tensor:
        """How much each token counts in attention pooling.

        Args:
            h_ND: Packed vectors, shape (N, D).
            cu_seqlens: Phrase boundaries, shape (B + 1,).

        Returns:
            float32 weights, shape (N,), that sum to 1 over each phrase.

        Raises:
            ValueError: The pooling has no such weights.
        """
        if self.score is None:
            raise ValueError(f"pooling={self.kind!r} has no weights; only 'attention' has")
        segment_N = segments_N(cu_seqlens, h_ND.shape[0])
        score_N = self.score(h_ND).squeeze(-1).float()
        return segment_softmax(score_N, segment_N, cu_seqlens.shape[0] - 1)

    def forward(self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Pool.

        Args:
            h_ND: Packed vectors, shape (N, D).
            cu_seqlens: Phrase boundaries, integer, shape (B + 1,).
            lengths: The phrase lengths, each at least 1.

        Returns:
            h_BD, shape (B, D), of the type of ``h_ND``.
        """
        if self.kind == "cls":
            return h_ND[cu_seqlens[:-1].long()]
        B, (N, D) = len(lengths), h_ND.shape
        # Summed in float32: bfloat16 loses small terms of a long phrase.
        weighted_ND = h_ND.float()
        if self.kind == "attention":
            weighted_ND = weighted_ND * self.weights(h_ND, cu_seqlens)[:, None]
        zeros_BD = weighted_ND.new_zeros(B, D)
        segment_N = segments_N(cu_seqlens, N)
        h_BD = zeros_BD.index_add(0, segment_N, weighted_ND)
        if self.kind != "attention":
            h_BD = h_BD / cu_seqlens.diff()[:, None]
        h_BD = h_BD.to(h_ND.dtype)
        if self.project is None:
            return h_BD
        low_BD = h_ND.new_full((B, D), -torch.inf)
        index_ND = segment_N[:, None].expand(-1, D)
        both_BD: Tensor = self.project(
            torch.cat((h_BD, low_BD.scatter_reduce(0, index_ND, h_ND, "amax")), dim=-1)
        )
        return both_BD
