"""What a token's near past tells, before any attention.

N packed tokens   D model width   K width of the window
"""

from __future__ import annotations

import math

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
        mixed_ND = nn.functional.gelu(self.project(torch.cat(back, dim=-1)))
        return drop_add(h_ND, mixed_ND, self.dropout, self.training)
