"""The LSTM baseline, over packed phrases.

N packed tokens   D model width   B phrases
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence, unpack_sequence

from midigenre.models.sequences import State


class LSTM(nn.Module):
    """A stack of LSTM layers (Hochreiter and Schmidhuber 1997) with the encoder's call.

    One direction for generation, two (each D / 2 wide) for classification: unlike the encoder's,
    the weights of one do not serve the other.

    What goes in and what comes out is normalised. Embedding and heads begin as small as the encoder
    wants them, which normalises too; without, two layers pass on so little of it that the LSTM
    stood at the frequencies of the tokens (4.0 nats a step) after 200 steps, where it had come to
    1.6 with both norms and 2.0 with the second alone.

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
        self.d_model = d_model
        self.bidirectional = bidirectional
        self.lstm = nn.LSTM(
            d_model,
            d_model // 2 if bidirectional else d_model,
            n_layers,
            dropout=dropout if n_layers > 1 else 0.0,
            bidirectional=bidirectional,
        )
        self.input_norm, self.final_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *, causal: bool = False
    ) -> Tensor:
        """Encodes packed phrases, (N, D) to (N, D); the boundaries are not needed here.

        Raises:
            ValueError: ``causal`` is not what the weights were made for.
        """
        self._check(causal)
        if torch.is_grad_enabled() and not self.bidirectional:
            return self._padded(h_ND, lengths)
        return self._packed(h_ND, lengths)[0]

    def new_state(
        self, n_rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> State:
        """Outputs and cells of every layer; see :meth:`midigenre.models.Encoder.new_state`."""
        self._check(causal=True)
        shape = (self.lstm.num_layers, n_rows, self.d_model)
        zeros = {name: torch.zeros(shape, device=device, dtype=dtype) for name in ("h", "c")}
        return State(capacity, zeros)

    def prefill(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], state: State,
        rows: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """Begins some rows with whole phrases; see :meth:`midigenre.models.Encoder.prefill`."""
        state.reset(rows, lengths)
        out_ND, last = self._packed(h_ND, lengths)
        at = torch.tensor(rows, device=h_ND.device)
        state.tensors["h"][:, at], state.tensors["c"][:, at] = last
        return out_ND

    def step(self, h_BD: Tensor, state: State) -> Tensor:
        """One further step of every row; see :meth:`midigenre.models.Encoder.step`."""
        state.grow()
        before = state.tensors["h"], state.tensors["c"]
        out_1BD, (h_KBD, c_KBD) = self.lstm(self.input_norm(h_BD)[None], before)
        state.tensors = {"h": h_KBD, "c": c_KBD}
        out_BD: Tensor = self.final_norm(out_1BD[0])
        return out_BD

    def _padded(self, h_ND: Tensor, lengths: Sequence[int]) -> Tensor:
        """As :meth:`_packed`, for training: in one direction what stands behind is never seen.

        Going back through PyTorch's packing, every step fills a gradient as large as all steps
        together: 16 windows of 450 steps took 5.1 s that way and 0.4 s this way (one thread, width
        158, torch 2.13), and the cost grows with the square of the length.
        """
        h_ND = self.input_norm(h_ND)
        out_TBD, _ = self.lstm(pad_sequence(list(torch.split(h_ND, list(lengths)))))
        out_ND = torch.cat([out_TBD[:n, b] for b, n in enumerate(lengths)])
        return cast(Tensor, self.final_norm(out_ND))

    def _packed(self, h_ND: Tensor, lengths: Sequence[int]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        # PyTorch's own packing puts step t of all phrases side by side; nothing is padded.
        h_ND = self.input_norm(h_ND)
        packed = pack_sequence(list(torch.split(h_ND, list(lengths))), enforce_sorted=False)
        out, last = self.lstm(packed)
        return self.final_norm(torch.cat(unpack_sequence(out))), last

    def _check(self, causal: bool) -> None:
        if causal == self.bidirectional:
            needed, made = ("one direction", "two") if causal else ("two directions", "one")
            raise ValueError(
                f"this LSTM has {made} and the task needs {needed}: weights of one do not serve "
                f"the other; set bidirectional={str(not causal).lower()} and train again"
            )
