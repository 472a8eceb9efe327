"""One layer of the encoder: attention and feed-forward, each with a residual.

N packed tokens   D model width   H heads   d width of a head (D / H)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from midigenre.models.layers import Linear, drop_add
from midigenre.models.positions import Rotary, rotate

Norm = Literal["pre", "post"]
Activation = Literal["gelu", "geglu"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q_NHd, k_NHd, v_NHd) -> out_NHd``: packed attention in training, a cache in generation."""


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), with biases as DistilBERT.

    Args:
        d_model: Model width D.
        n_heads: Number of heads H.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        # Query, key and value in one product; the rows are laid out as nn.MultiheadAttention's.
        self.qkv = Linear(d_model, 3 * d_model)
        self.out = Linear(d_model, d_model)

    def forward(self, h_ND: Tensor, rotary: Rotary | None, attend: Attend) -> Tensor:
        """Attend.

        Args:
            h_ND: Packed vectors, shape (N, D).
            rotary: Angles of the tokens, or None without rotary positions.
            attend: What mixes the tokens.

        Returns:
            Shape (N, D).
        """
        qkv_N3Hd = self.qkv(h_ND).unflatten(-1, (3, self.n_heads, -1))
        if rotary is None:
            q_NHd, k_NHd, v_NHd = qkv_N3Hd.unbind(1)
        else:
            # Queries and keys turn together, as 2H heads: one pass over memory and not two.
            qk_NHd, v_NHd = qkv_N3Hd[:, :2].flatten(1, 2), qkv_N3Hd[:, 2]
            q_NHd, k_NHd = rotate(qk_NHd, rotary).chunk(2, dim=1)
        out_ND: Tensor = self.out(attend(q_NHd, k_NHd, v_NHd).flatten(1))
        return out_ND


class FeedForward(nn.Module):
    """Two linear layers with GELU, or its gated form GEGLU (Shazeer 2020, arXiv 2002.05202, eq. 6).

    Args:
        d_model: Model width D.
        d_ff: Width inside. GEGLU has a third matrix, so it takes half as many weights again.
        activation: ``gelu`` or ``geglu``.
    """

    def __init__(self, d_model: int, d_ff: int, activation: Activation) -> None:
        super().__init__()
        self.gated = activation == "geglu"
        self.up = Linear(d_model, 2 * d_ff if self.gated else d_ff)
        self.down = Linear(d_ff, d_model)

    def forward(self, h_ND: Tensor) -> Tensor:
        """Shape (N, D) to shape (N, D)."""
        inner = self.up(h_ND)
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            inner = nn.functional.gelu(gate) * inner
        else:
            inner = nn.functional.gelu(inner)
        out_ND: Tensor = self.down(inner)
        return out_ND


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with a residual.

    ``pre`` normalises what goes into them (Xiong et al. 2020, arXiv 2002.04745), ``post`` the sum
    that comes out (Vaswani et al. 2017; DistilBERT; ``nn.TransformerEncoderLayer``).

    Dropout falls on the two residuals only. ``nn.TransformerEncoderLayer`` also drops inside the
    feed-forward; DistilBERT, GPT-2 and BERT do not.

    The slides try an extra LayerNorm in each layer and do not say where. Here it takes the layer's
    output: behind the feed-forward's residual and, with ``post``, behind that one's norm, where it
    begins as next to no change.

    Args:
        d_model: Model width D.
        n_heads: Number of heads H.
        d_ff: Width inside the feed-forward.
        norm: ``pre`` or ``post``.
        activation: ``gelu`` or ``geglu``.
        dropout: Dropout of the residuals.
        extra_norm: Whether the layer's output is normalised once more.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        norm: Norm,
        activation: Activation,
        dropout: float,
        extra_norm: bool = False,
    ) -> None:
        super().__init__()
        self.pre = norm == "pre"
        self.attention = SelfAttention(d_model, n_heads)
        self.feed_forward = FeedForward(d_model, d_ff, activation)
        self.attention_norm = nn.LayerNorm(d_model)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.output_norm = nn.LayerNorm(d_model) if extra_norm else nn.Identity()
        self.dropout = dropout

    def forward(self, h_ND: Tensor, rotary: Rotary | None, attend: Attend) -> Tensor:
        """One layer; arguments and result as in :class:`SelfAttention`."""
        if self.pre:
            h_ND = self._add(h_ND, self.attention(self.attention_norm(h_ND), rotary, attend))
            h_ND = self._add(h_ND, self.feed_forward(self.feed_forward_norm(h_ND)))
        else:
            h_ND = self.attention_norm(self._add(h_ND, self.attention(h_ND, rotary, attend)))
            h_ND = self.feed_forward_norm(self._add(h_ND, self.feed_forward(h_ND)))
        out_ND: Tensor = self.output_norm(h_ND)
        return out_ND

    def _add(self, h_ND: Tensor, change_ND: Tensor) -> Tensor:
        return drop_add(h_ND, change_ND, self.dropout, self.training)
