"""The transformer that every task shares, over packed phrases.

    N packed tokens   D model width   H heads   d width of a head (D / H)   B phrases

Linear layers run over all N tokens at once; only attention looks at the boundaries. The same
weights serve classification and masked modelling (``causal=False``) and generation
(``causal=True``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn

from midigenre.models.attention import packed_attention
from midigenre.models.cache import KeyValueCache
from midigenre.models.checks import check_choice
from midigenre.models.compiled import CompiledLayers
from midigenre.models.encoder_layer import Activation, Attend, EncoderLayer, Norm
from midigenre.models.local import LocalMixing
from midigenre.models.positions import (
    LearnedPositions,
    Rotary,
    positions_N,
    rotary_tables,
)

Positions = Literal["rope", "learned"]

INIT_STD = 0.02  # GPT-2 and BERT


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer` over packed phrases.

    Initialised as GPT-2 (Radford et al. 2019, section 2.3): normal with standard deviation 0.02,
    biases zero, and the two projections into the residual scaled by 1 / sqrt(2 n_layers).

    Args:
        d_model: Model width D.
        n_layers: Number of layers.
        n_heads: Number of heads H.
        d_ff: Width inside the feed-forward.
        norm: ``pre`` (with a norm after the last layer) or ``post``.
        positions: ``rope`` or ``learned``.
        activation: ``gelu`` (exact, as BERT) or ``geglu``.
        dropout: Dropout of the residuals.
        attention_dropout: Dropout of the attention weights. Costs 2.2x on CPU and the fast kernels
            on GPU.
        max_positions: Longest phrase for ``learned``, vectors put before it included; ``rope`` has
            no limit and ignores it.
        conv_width: Steps that a convolution before the first layer sees
            (:class:`~midigenre.models.local.LocalMixing`); 0 for none.
        extra_norm: Whether each layer's output is normalised once more.

    Attributes:
        d_model: Model width D, for what stands before and behind.

    Raises:
        ValueError: A setting that is unknown or does not fit the others.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int,
        d_ff: int,
        norm: Norm = "pre",
        positions: Positions = "rope",
        activation: Activation = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        max_positions: int = 2048,
        conv_width: int = 0,
        extra_norm: bool = False,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("pre", "post"))
        check_choice("positions", positions, ("rope", "learned"))
        check_choice("activation", activation, ("gelu", "geglu"))
        if n_heads < 1 or d_model % n_heads:
            fits = [n for n in range(1, min(d_model, 64) + 1) if d_model % n == 0]
            raise ValueError(
                f"d_model={d_model} cannot be divided into n_heads={n_heads}; "
                f"n_heads that divide it: {', '.join(map(str, fits))}"
            )
        self.d_model = d_model
        self.d_head = d_model // n_heads
        self.attention_dropout = attention_dropout
        self._compiled: CompiledLayers | None = None
        self.positions: LearnedPositions | None = None
        if positions == "learned":
            self.positions = LearnedPositions(max_positions, d_model)
        else:
            rotary_tables(torch.zeros(1), self.d_head)  # Refuses an odd width now, not in training.
        self.local = LocalMixing(d_model, conv_width, dropout) if conv_width else None
        self.layers = nn.ModuleList(
            EncoderLayer(d_model, n_heads, d_ff, norm, activation, dropout, extra_norm)
            for _ in range(n_layers)
        )
        self.final_norm = nn.LayerNorm(d_model) if norm == "pre" else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        into_residual = INIT_STD / math.sqrt(2 * max(1, len(self.layers)))
        for name, module in self.layers.named_modules():
            if isinstance(module, nn.Linear):
                last = name.endswith(("attention.out", "feed_forward.down"))
                nn.init.normal_(module.weight, std=into_residual if last else INIT_STD)
                nn.init.zeros_(module.bias)

    def place(
        self, h_ND: Tensor, positions_N: Tensor, longest: int
    ) -> tuple[Tensor, Rotary | None]:
        """Tell tokens where they stand: adds learned vectors, or makes the table of angles.

        Args:
            h_ND: Packed vectors, shape (N, D).
            positions_N: Position of each token in its phrase, int64, shape (N,).
            longest: Length of the longest phrase.

        Returns:
            The vectors, and the angles that the layers take (None for learned positions).

        Raises:
            ValueError: A phrase is longer than ``max_positions`` of learned positions.
        """
        if self.positions is None:
            return h_ND, rotary_tables(positions_N, self.d_head)
        return h_ND + self.positions(positions_N, longest), None

    def forward(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *, causal: bool = False
    ) -> Tensor:
        """Encode packed phrases.

        Args:
            h_ND: Packed vectors, shape (N, D).
            cu_seqlens: Phrase boundaries, int32, shape (B + 1,), on the device of ``h_ND``.
            lengths: The phrase lengths as Python numbers, each at least 1.
            causal: Whether a token sees only itself and those before it.

        Returns:
            Shape (N, D).

        Raises:
            ValueError: A phrase is longer than ``max_positions`` of learned positions.
        """
        positions, longest = positions_N(cu_seqlens, h_ND.shape[0]), max(lengths)
        if self.local is not None:
            h_ND = self.local(h_ND, positions)
        h_ND, rotary = self.place(h_ND, positions, longest)
        if self._compiled is not None and self.training:
            return self._compiled(self, h_ND, rotary, cu_seqlens, longest, causal)
        return self.run_layers(h_ND, rotary, repeat(self._packed(cu_seqlens, lengths, causal)))

    def compile_layers(self, **options: Any) -> None:
        """From now on training passes go through ``torch.compile``; evaluation stays as it is.

        They then need a GPU and half precision (:func:`~midigenre.models.attention.attend_varlen`).
        The weights keep their names, and the first pass takes some 20 s longer.

        Args:
            options: Of ``torch.compile``.

        Raises:
            ValueError: The model has attention dropout, which the fast kernels do not know.
        """
        if self.attention_dropout:
            raise ValueError(
                f"attention_dropout={self.attention_dropout} rules variable-length attention out, "
                "which compiled layers need; set it to 0"
            )
        self._compiled = CompiledLayers(**options)

    def new_state(
        self, n_rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValueCache:
        """Room for rows that are written step by step; every row is empty.

        Args:
            n_rows: Number of rows B.
            capacity: Steps that a row may have, vectors put before it included.
            device: Where the rows live.
            dtype: Type of the model's vectors.

        Raises:
            ValueError: ``capacity`` passes ``max_positions`` of learned positions.
        """
        if self.positions is not None and capacity > self.positions.max_positions:
            raise ValueError(
                f"a capacity of {capacity} does not fit "
                f"max_positions={self.positions.max_positions}"
            )
        n_heads = self.d_model // self.d_head
        return KeyValueCache(
            n_rows, capacity, len(self.layers), n_heads, self.d_head, device, dtype
        )

    def prefill(
        self,
        h_ND: Tensor,
        cu_seqlens: Tensor,
        lengths: Sequence[int],
        state: KeyValueCache,
        rows: Sequence[int],
    ) -> Tensor:
        """Begin some rows anew with whole phrases, run causally.

        Args:
            h_ND: Packed vectors of these rows, shape (N, D).
            cu_seqlens: Their boundaries, shape (rows + 1,).
            lengths: Their lengths.
            state: Where keys and values go; the other rows stay as they are.
            rows: Which rows they are.

        Returns:
            Shape (N, D), as the full pass.

        Raises:
            ValueError: A phrase passes the capacity.
        """
        state.reset(rows, lengths)
        positions = positions_N(cu_seqlens, h_ND.shape[0])
        if self.local is not None:
            state.before = self.local.remember(h_ND, lengths, state.before, len(state), rows)
            h_ND = self.local(h_ND, positions)
        attend = self._packed(cu_seqlens, lengths, causal=True)

        def filling(layer: int) -> Attend:
            def attend_and_fill(q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor) -> Tensor:
                state.fill(layer, rows, lengths, k_NHd, v_NHd)
                return attend(q_NHd, k_NHd, v_NHd)

            return attend_and_fill

        h_ND, rotary = self.place(h_ND, positions, max(lengths))
        return self.run_layers(h_ND, rotary, (filling(i) for i in range(len(self.layers))))

    def step(self, h_BD: Tensor, state: KeyValueCache) -> Tensor:
        """One further step of every row: equals the full causal pass at its last step.

        Args:
            h_BD: The steps, shape (B, D).
            state: What is kept of the rows; it grows by the step.

        Returns:
            Shape (B, D).

        Raises:
            ValueError: A row is full.
        """
        state.grow()
        if self.local is not None:
            h_BD, state.before = self.local.step(h_BD, state.before)
        h_BD, rotary = self.place(h_BD, state.lengths_B - 1, max(state.lengths))
        return self.run_layers(h_BD, rotary, state.attends())

    def _packed(self, cu_seqlens: Tensor, lengths: Sequence[int], causal: bool) -> Attend:
        return partial(
            packed_attention,
            cu_seqlens=cu_seqlens,
            lengths=lengths,
            causal=causal,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )

    def run_layers(self, h_ND: Tensor, rotary: Rotary | None, attends: Iterable[Attend]) -> Tensor:
        """All layers, and the last norm.

        Args:
            h_ND: Packed vectors that know where they stand (:meth:`place`), shape (N, D).
            rotary: From :meth:`place`.
            attends: What mixes the tokens in each layer.

        Returns:
            Shape (N, D).
        """
        for layer, attend in zip(self.layers, attends, strict=False):
            h_ND = layer(h_ND, rotary, attend)
        out_ND: Tensor = self.final_norm(h_ND)
        return out_ND
