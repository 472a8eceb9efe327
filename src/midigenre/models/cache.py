"""What a backbone keeps of the steps that it has seen, so that a further one costs one step.

B rows   T steps   D model width   H heads   d width of a head   K layers

A row is one sequence in the making. Rows may have different lengths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class State(ABC):
    """What a backbone keeps of B rows.

    Args:
        n_rows: Number of rows B.
        capacity: Steps that a row may have.
        device: Where the rows live.

    Attributes:
        capacity: Steps that a row may have.
        lengths: Steps of each row so far, on the host.
        lengths_B: The same on the device, int64.
    """

    def __init__(self, n_rows: int, capacity: int, device: torch.device) -> None:
        if n_rows < 1 or capacity < 1:
            raise ValueError(f"n_rows={n_rows} and capacity={capacity} must be 1 or more")
        self.capacity = capacity
        self.lengths = [0] * n_rows
        self.lengths_B = torch.zeros(n_rows, dtype=torch.int64, device=device)

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
        self._tell()

    def grow(self) -> None:
        """Makes every row one step longer.

        Raises:
            ValueError: A row is full.
        """
        self.reset(range(len(self)), [length + 1 for length in self.lengths])

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order, and drops the others."""
        self.lengths = [self.lengths[row] for row in rows]
        self._tell()
        self._keep(torch.tensor(rows, dtype=torch.int64, device=self.lengths_B.device))

    def _tell(self) -> None:
        self.lengths_B = torch.tensor(self.lengths, device=self.lengths_B.device)

    @abstractmethod
    def _keep(self, rows: Tensor) -> None: ...


class KeyValueCache(State):
    """Keys and values of every layer, written in place into room made beforehand.

    Args:
        n_rows: Number of rows B.
        capacity: Steps that a row may have.
        n_layers: Number of layers K.
        n_heads: Number of heads H.
        d_head: Width of a head d.
        device: Where the rows live.
        dtype: Type of keys and values.

    Attributes:
        k_KBHTd: Keys, turned by their position already; what stands behind a row is never read.
        v_KBHTd: Values.
        before: Vectors of the steps before, for a convolution: (B, width - 1, D), the last first.
    """

    def __init__(
        self,
        n_rows: int,
        capacity: int,
        n_layers: int,
        n_heads: int,
        d_head: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(n_rows, capacity, device)
        # Zeros, not what lay in memory: a masked weight is 0, but 0 times infinity is not.
        shape = (n_layers, n_rows, n_heads, capacity, d_head)
        self.k_KBHTd = torch.zeros(shape, device=device, dtype=dtype)
        self.v_KBHTd = torch.zeros(shape, device=device, dtype=dtype)
        self.before: Tensor | None = None

    def fill(
        self,
        layer: int,
        rows: Sequence[int],
        lengths: Sequence[int],
        k_NHd: Tensor,
        v_NHd: Tensor,
    ) -> None:
        """Writes whole rows from their first step on."""
        for cache, packed in ((self.k_KBHTd, k_NHd), (self.v_KBHTd, v_NHd)):
            for row, x_THd in zip(rows, torch.split(packed, list(lengths)), strict=True):
                cache[layer, row, :, : len(x_THd)] = x_THd.transpose(0, 1)

    def attends(self) -> Iterator[CachedAttention]:
        """What mixes the steps of each layer: one further step of every row with those before it.

        Call it after :meth:`grow`.
        """
        longest = max(self.lengths)
        even = min(self.lengths) == longest
        at_B, mask = self.lengths_B - 1, None
        if not even:
            seen = torch.arange(longest, device=at_B.device) < self.lengths_B[:, None]
            # Added to the scores of every layer; a bool mask would be turned into this each time.
            mask = torch.zeros(seen.shape, device=at_B.device, dtype=self.k_KBHTd.dtype)
            mask = mask.masked_fill_(~seen, -torch.inf)[:, None, None]
        for k_BHTd, v_BHTd in zip(self.k_KBHTd, self.v_KBHTd, strict=True):
            yield CachedAttention(k_BHTd, v_BHTd, None if even else at_B, longest, mask)

    def _keep(self, rows: Tensor) -> None:
        self.k_KBHTd = self.k_KBHTd.index_select(1, rows)
        self.v_KBHTd = self.v_KBHTd.index_select(1, rows)
        if self.before is not None:
            self.before = self.before.index_select(0, rows)


class CachedAttention:
    """Attention of one step of every row over the cache of one layer.

    Args:
        k_BHTd: The layer's keys, a view of the cache.
        v_BHTd: Its values.
        at_B: Where each row's step goes; None where it is the same place in every row.
        longest: Steps of the longest row, this one included.
        mask: Added to the scores, (B, 1, 1, longest); None where all rows are equally long.
    """

    def __init__(
        self,
        k_BHTd: Tensor,
        v_BHTd: Tensor,
        at_B: Tensor | None,
        longest: int,
        mask: Tensor | None,
    ) -> None:
        self.k_BHTd, self.v_BHTd, self.at_B = k_BHTd, v_BHTd, at_B
        self.longest, self.mask = longest, mask

    def __call__(self, q_BHd: Tensor, k_BHd: Tensor, v_BHd: Tensor) -> Tensor:
        """Writes the step's key and value and attends; shape (B, H, d)."""
        if self.at_B is None:
            self.k_BHTd[:, :, self.longest - 1] = k_BHd
            self.v_BHTd[:, :, self.longest - 1] = v_BHd
        else:
            rows = torch.arange(len(q_BHd), device=q_BHd.device)
            self.k_BHTd[rows, :, self.at_B] = k_BHd
            self.v_BHTd[rows, :, self.at_B] = v_BHd
        out_BH1d = scaled_dot_product_attention(
            q_BHd[:, :, None],
            self.k_BHTd[:, :, : self.longest],
            self.v_BHTd[:, :, : self.longest],
            attn_mask=self.mask,
        )
        return out_BH1d[:, :, 0]


class RecurrentState(State):
    """The LSTM's state of every row.

    Attributes:
        h_KBD: Outputs of every layer.
        c_KBD: Cells of every layer.
    """

    def __init__(
        self,
        n_rows: int,
        capacity: int,
        n_layers: int,
        d_model: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(n_rows, capacity, device)
        self.h_KBD = torch.zeros(n_layers, n_rows, d_model, device=device, dtype=dtype)
        self.c_KBD = torch.zeros_like(self.h_KBD)

    def _keep(self, rows: Tensor) -> None:
        self.h_KBD = self.h_KBD.index_select(1, rows)
        self.c_KBD = self.c_KBD.index_select(1, rows)
