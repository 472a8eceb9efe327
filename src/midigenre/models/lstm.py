"""The LSTM baseline, over packed phrases.

N packed tokens   D model width   B phrases
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence, unpack_sequence

from midigenre.models.sequences import DecodingState


class LSTM(nn.Module):
    """A stack of LSTM layers (Hochreiter and Schmidhuber 1997) with the encoder's call.

    One direction for generation, two (each D / 2 wide) for classification: unlike the encoder's,
    the weights of one do not serve the other. Input and output are normalised:
    embedding and heads are initialised so small that otherwise the LSTM hardly learns.

    Args:
        d_model: Model width D.
        n_layers: Number of layers.
        dropout: Dropout between the layers.
        bidirectional: Whether a second direction reads each phrase from its end.

    Raises:
        ValueError: ``d_model`` cannot be shared between two directions.
    """

    def __init__(
        self, d_model: int, n_layers: int, dropout: float = 0.1, bidirectional: bool = False
    ) -> None:
        super().__init__()
        if bidirectional and d_model % 2:
            raise ValueError(f"d_model={d_model} must be even, half of it for each direction")
        self.d_model, self.bidirectional = d_model, bidirectional
        self.lstm = nn.LSTM(
            d_model, d_model // 2 if bidirectional else d_model, n_layers,
            dropout=dropout if n_layers > 1 else 0.0, bidirectional=bidirectional,
        )  # fmt: skip
        self.input_norm, self.final_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *, causal: bool = False
    ) -> Tensor:
        """Encodes packed phrases, (N, D) to (N, D); a ValueError for the other direction."""
        self._check(causal)
        if self.bidirectional or not torch.is_grad_enabled():
            return self.pack(h_ND, lengths)[0]
        # In one direction later tokens are never seen, so phrases can be padded: the backward
        # through PyTorch's packing is quadratic in the length (experiments/speed/README.md).
        h_ND = self.input_norm(h_ND)
        out_TBD, _ = self.lstm(pad_sequence(list(torch.split(h_ND, list(lengths)))))
        out_ND = torch.cat([out_TBD[:n, b] for b, n in enumerate(lengths)])
        return cast(Tensor, self.final_norm(out_ND))

    def pack(self, h_ND: Tensor, lengths: Sequence[int]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """All phrases step by step, and the final outputs and cells of every layer."""
        # PyTorch's own packing puts step t of all phrases side by side; nothing is padded.
        h_ND = self.input_norm(h_ND)
        packed = pack_sequence(list(torch.split(h_ND, list(lengths))), enforce_sorted=False)
        out, last = self.lstm(packed)
        return self.final_norm(torch.cat(unpack_sequence(out))), last

    def new_state(
        self, n_rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> RecurrentState:
        """Empty rows that are then written token by token: ``capacity`` of each at most."""
        self._check(causal=True)
        return RecurrentState(self, n_rows, capacity, device, dtype)

    def _check(self, causal: bool) -> None:
        if causal == self.bidirectional:
            needed, made = ("one direction", "two") if causal else ("two directions", "one")
            raise ValueError(
                f"this LSTM has {made} and the task needs {needed}: weights of one do not serve "
                f"the other; set bidirectional={str(not causal).lower()} and train again"
            )


class RecurrentState(DecodingState):
    """Rows of an LSTM of one direction: outputs ``h`` and cells ``c`` of every layer."""

    def __init__(
        self, lstm: LSTM, n_rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (lstm.lstm.num_layers, n_rows, lstm.d_model)
        zeros = {name: torch.zeros(shape, device=device, dtype=dtype) for name in ("h", "c")}
        super().__init__(capacity, zeros)
        self.lstm = lstm

    def prefill(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], rows: Sequence[int]
    ) -> Tensor:
        """See :meth:`midigenre.models.sequences.DecodingState.prefill`."""
        self.reset(rows, lengths)
        out_ND, last = self.lstm.pack(h_ND, lengths)
        at = torch.tensor(rows, device=h_ND.device)
        self.tensors["h"][:, at], self.tensors["c"][:, at] = last
        return out_ND

    def step(self, h_BD: Tensor) -> Tensor:
        """See :meth:`midigenre.models.sequences.DecodingState.step`."""
        self.grow()
        before = self.tensors["h"], self.tensors["c"]
        out_1BD, (h_KBD, c_KBD) = self.lstm.lstm(self.lstm.input_norm(h_BD)[None], before)
        self.tensors = {"h": h_KBD, "c": c_KBD}
        out_BD: Tensor = self.lstm.final_norm(out_1BD[0])
        return out_BD
