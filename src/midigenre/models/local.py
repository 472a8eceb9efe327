"""What a token's near past tells, before any attention.

N packed tokens   D model width   K width of the window
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midigenre.models.layers import Linear, drop_add


class LocalMixing(nn.Module):
    """A convolution over the last K steps of a phrase: h + dropout(gelu(W [x_t .. x_(t-K+1)] + b)).

    Here x is the normed h. Attention from scratch finds n-grams late, after it has learned songs
    by heart; a few labelled songs do better with the n-grams given (Kim 2014, arXiv 1408.5882, for
    text). It looks back only, so that it means the same in both directions of the encoder and
    generation needs to keep no more than the last ``width - 1`` steps.

    Args:
        d_model: Model width D.
        width: Steps that it sees, the token itself included.
        dropout: Dropout of what it adds.

    Raises:
        ValueError: ``width`` is below 1.
    """

    def __init__(self, d_model: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"conv_width={width} must be 1 or more, or 0 for none")
        self.width = width
        self.dropout = dropout
        self.norm = nn.LayerNorm(d_model)
        self.project = Linear(width * d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; 1 / sqrt(fan in) keeps the scale of the normed vectors."""
        nn.init.normal_(self.project.weight, std=1 / math.sqrt(self.project.in_features))
        nn.init.zeros_(self.project.bias)

    def forward(self, h_ND: Tensor, positions_N: Tensor) -> Tensor:
        """Mix.

        Args:
            h_ND: Packed vectors, shape (N, D).
            positions_N: Position of each token in its phrase, int64, shape (N,); what lies before
                position 0 counts as zeros.

        Returns:
            Shape (N, D).
        """
        N = h_ND.shape[0]
        x_ND = self.norm(h_ND)
        back = [x_ND]
        for step in range(1, self.width):
            earlier_ND = nn.functional.pad(x_ND, (0, 0, step, 0))[:N]
            back.append(earlier_ND * (positions_N >= step)[:, None])
        return self._mix(h_ND, torch.cat(back, dim=-1))

    def remember(
        self,
        h_ND: Tensor,
        lengths: Sequence[int],
        before: Tensor | None,
        n_rows: int,
        rows: Sequence[int],
    ) -> Tensor:
        """What :meth:`step` needs behind whole phrases.

        Args:
            h_ND: The packed phrases of some rows, as given to :meth:`forward`, shape (N, D).
            lengths: Their lengths.
            before: What is kept of all rows, shape (B, width - 1, D); None for nothing yet.
            n_rows: Number of all rows B.
            rows: Which rows these are.

        Returns:
            Normed vectors of the last steps, the last first, zeros before a phrase; shape
            (B, width - 1, D).
        """
        if before is None:
            before = h_ND.new_zeros(n_rows, self.width - 1, h_ND.shape[1])
        for row, x_TD in zip(rows, torch.split(self.norm(h_ND), list(lengths)), strict=True):
            last = x_TD.flip(0)[: self.width - 1]
            before[row] = nn.functional.pad(last, (0, 0, 0, self.width - 1 - len(last)))
        return before

    def step(self, h_BD: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix one further step of every row.

        Args:
            h_BD: The steps, shape (B, D).
            before: From :meth:`remember` or the last call; None where every row begins.

        Returns:
            Shape (B, D), and what the next call needs.
        """
        x_BD = self.norm(h_BD)
        if before is None:
            before = h_BD.new_zeros(len(h_BD), self.width - 1, h_BD.shape[1])
        seen = torch.cat([x_BD[:, None], before], dim=1)
        return self._mix(h_BD, seen.flatten(1)), seen[:, : self.width - 1]

    def _mix(self, h_ND: Tensor, seen: Tensor) -> Tensor:
        mixed_ND = nn.functional.gelu(self.project(seen))
        return drop_add(h_ND, mixed_ND, self.dropout, self.training)
