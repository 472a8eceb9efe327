"""Writing token by token: what a backbone keeps of the tokens so far, so that one more is cheap.

B rows   N packed tokens   T tokens of a row   D model width   H heads   d width of a head
K tokens that the convolution sees
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from midigenre.models.sequences import positions_N

if TYPE_CHECKING:  # it stands above this file
    from midigenre.models.transformer import Attend, Encoder, LocalConvolution


class State(ABC):
    """B rows in the making; they may differ in length.

    Args:
        capacity: Tokens that a row may have, vectors put before it included.
        tensors: What the backbone needs, by its own names; rows lie along the second axis.

    Attributes:
        lengths: Tokens of each row so far, on the host.
        lengths_B: The same on the device, int64.
    """

    def __init__(self, capacity: int, tensors: Mapping[str, Tensor]) -> None:
        first = next(iter(tensors.values()))
        if capacity < 1 or first.shape[1] < 1:
            raise ValueError(f"n_rows={first.shape[1]} and capacity={capacity} must be 1 or more")
        self.capacity, self.tensors = capacity, dict(tensors)
        self.lengths = [0] * first.shape[1]
        self.lengths_B = torch.tensor(self.lengths, device=first.device)

    def __len__(self) -> int:
        return len(self.lengths)

    def reset(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Says how long some rows are from now on.

        Raises:
            ValueError: A row does not fit.
        """
        if max(lengths) > self.capacity:
            raise ValueError(f"{max(lengths)} steps do not fit a capacity of {self.capacity}")
        for row, length in zip(rows, lengths, strict=True):
            self.lengths[row] = length
        self.lengths_B = torch.tensor(self.lengths, device=self.lengths_B.device)

    def grow(self) -> None:
        """Makes every row one token longer; a ValueError where a row is full."""
        self.reset(range(len(self)), [length + 1 for length in self.lengths])

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order, and drops the others."""
        at = torch.tensor(rows, dtype=torch.int64, device=self.lengths_B.device)
        self.tensors = {name: x.index_select(1, at) for name, x in self.tensors.items()}
        self.lengths = [self.lengths[row] for row in rows]
        self.lengths_B = torch.tensor(self.lengths, device=self.lengths_B.device)

    @abstractmethod
    def prefill(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], rows: Sequence[int]
    ) -> Tensor:
        """The causal pass over whole phrases, (N, D) to (N, D), with which some rows begin again.

        Args:
            h_ND: Packed vectors of these rows.
            cu_seqlens: Their boundaries, shape (rows + 1,).
            lengths: Their lengths.
            rows: Which rows they are; the others stay as they are.

        Raises:
            ValueError: A phrase passes the capacity.
        """

    @abstractmethod
    def step(self, h_BD: Tensor) -> Tensor:
        """One further token of every row, (B, D) to (B, D): the full causal pass at its last token.

        Raises:
            ValueError: A row is full.
        """


class KeyValueState(State):
    """Rows of an encoder: keys and values of every layer, written into room made beforehand.

    Args:
        encoder: The encoder, in evaluation mode.
        n_rows: Number of rows B.
        capacity: Tokens that a row may have, vectors put before it included.
        device: Where the rows live.
        dtype: Type of the model's vectors.

    Raises:
        ValueError: ``capacity`` passes ``max_positions`` of learned positions.
    """

    def __init__(
        self, encoder: Encoder, n_rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        if encoder.positions is not None:
            limit = encoder.positions.table.num_embeddings
            if capacity > limit:
                raise ValueError(f"a capacity of {capacity} does not fit max_positions={limit}")
        heads, layers = encoder.d_model // encoder.d_head, len(encoder.layers)
        # Keys are turned by their positions already; what stands behind a row is never read.
        cache = (layers, n_rows, heads, capacity, encoder.d_head)
        shapes: dict[str, tuple[int, ...]] = {"k": cache, "v": cache}
        if encoder.local is not None:  # normed vectors of the last tokens, the last first
            shapes["before"] = (encoder.local.width - 1, n_rows, encoder.d_model)
        # Zeros, not what lay in memory: a masked weight is 0, but 0 times infinity is not.
        zeros = {k: torch.zeros(shape, device=device, dtype=dtype) for k, shape in shapes.items()}
        super().__init__(capacity, zeros)
        self.encoder = encoder

    def prefill(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], rows: Sequence[int]
    ) -> Tensor:
        """See :meth:`State.prefill`."""
        self.reset(rows, lengths)
        positions = positions_N(cu_seqlens, h_ND.shape[0])
        if (local := self.encoder.local) is not None:
            self._remember(local, h_ND, lengths, rows)
            h_ND = local(h_ND, positions)
        attend = self.encoder.packed_attention(cu_seqlens, lengths, causal=True)

        def attend_and_fill(q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
            for name, packed in (("k", k), ("v", v)):
                for row, x_THd in zip(rows, torch.split(packed, list(lengths)), strict=True):
                    self.tensors[name][layer, row, :, : len(x_THd)] = x_THd.transpose(0, 1)
            return attend(q, k, v)

        h_ND, rotary = self.encoder.place(h_ND, positions, max(lengths))
        fills = (partial(attend_and_fill, layer=i) for i in range(len(self.encoder.layers)))
        return self.encoder.run_layers(h_ND, rotary, fills)

    def step(self, h_BD: Tensor) -> Tensor:
        """See :meth:`State.step`."""
        self.grow()
        if (local := self.encoder.local) is not None:
            seen_KBD = torch.cat([local.norm(h_BD)[None], self.tensors["before"]])
            h_BD = local.mix(h_BD, seen_KBD.transpose(0, 1).flatten(1))
            self.tensors["before"] = seen_KBD[: local.width - 1]
        h_BD, rotary = self.encoder.place(h_BD, self.lengths_B - 1, max(self.lengths))
        return self.encoder.run_layers(h_BD, rotary, self._attends())

    def _remember(
        self, local: LocalConvolution, h_ND: Tensor, lengths: Sequence[int], rows: Sequence[int]
    ) -> None:
        for row, x_TD in zip(rows, torch.split(local.norm(h_ND), list(lengths)), strict=True):
            last = x_TD.flip(0)[: local.width - 1]  # the last first, zeros before a phrase
            self.tensors["before"][:, row] = pad(last, (0, 0, 0, local.width - 1 - len(last)))

    def _attends(self) -> Iterator[Attend]:
        """For one layer after the other: writes keys and values of a token, attends to its row."""
        longest, at_B, mask = max(self.lengths), None, None
        if min(self.lengths) < longest:
            at_B = self.lengths_B - 1
            seen = torch.arange(longest, device=at_B.device) <= at_B[:, None]
            # Added to the scores of every layer; a bool mask would be turned into this each time.
            mask = torch.zeros(seen.shape, device=at_B.device, dtype=self.tensors["k"].dtype)
            mask = mask.masked_fill_(~seen, -torch.inf)[:, None, None]

        def attend(
            q_BHd: Tensor, k_BHd: Tensor, v_BHd: Tensor, *, k_BHTd: Tensor, v_BHTd: Tensor
        ) -> Tensor:
            if at_B is None:  # the same place in every row
                k_BHTd[:, :, longest - 1], v_BHTd[:, :, longest - 1] = k_BHd, v_BHd
            else:
                rows = torch.arange(len(at_B), device=at_B.device)
                k_BHTd[rows, :, at_B], v_BHTd[rows, :, at_B] = k_BHd, v_BHd
            out_BH1d = scaled_dot_product_attention(
                q_BHd[:, :, None], k_BHTd[:, :, :longest], v_BHTd[:, :, :longest], attn_mask=mask
            )
            return out_BH1d[:, :, 0]

        for k_BHTd, v_BHTd in zip(self.tensors["k"], self.tensors["v"], strict=True):
            yield partial(attend, k_BHTd=k_BHTd, v_BHTd=v_BHTd)
