"""Steps and conditions in, the next step out.

B phrases   N packed steps   F fields   D model width   P prefix vectors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from midigenre.models.cache import State
from midigenre.models.checks import check_choice
from midigenre.models.conditions import ConditionEmbedding
from midigenre.models.embedding import FieldEmbedding
from midigenre.models.field_head import FieldHead
from midigenre.models.positions import segments_N
from midigenre.models.prefix import Prefixed, insert_prefix
from midigenre.spec import Batch

ConditionBy = Literal["prefix", "add"]


class Decoding:
    """Rows that a generator is writing: what its backbone keeps of them and what they were told.

    Args:
        state: What the backbone keeps.
        told_BLD: Vectors of the conditions; None without.
    """

    def __init__(self, state: State, told_BLD: Tensor | None) -> None:
        self.state = state
        self.told_BLD = told_BLD

    def __len__(self) -> int:
        return len(self.state)

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order, and drops the others."""
        self.state.keep(rows)
        if self.told_BLD is not None:
            self.told_BLD = self.told_BLD[list(rows)]


class PhraseGenerator(nn.Module):
    """Embedding, conditions, backbone run causally, and a head that foretells each step.

    A learned start vector stands before every phrase: the output there foretells the first step,
    the output at each step the following one. ``prefix`` puts a vector for each condition behind
    the start vector; ``add`` adds their sum to the start vector and to every step.

    ``embedding`` and ``backbone`` carry the names that they have in every other model, so their
    pretrained weights load unchanged.

    Args:
        embedding: Token ids to vectors.
        backbone: :class:`midigenre.models.Encoder` or any module with its attribute ``d_model``,
            its call ``(h_ND, cu_seqlens, lengths, *, causal) -> h_ND`` and, for writing, its
            ``new_state``, ``prefill`` and ``step``.
        conditions: What the model is told; None for nothing.
        head: Foretells a step from the vector before it.
        condition_by: ``prefix`` or ``add``.

    Raises:
        ValueError: Widths that differ, or an unknown ``condition_by``.
    """

    def __init__(
        self,
        embedding: FieldEmbedding,
        backbone: nn.Module,
        conditions: ConditionEmbedding | None,
        head: FieldHead,
        condition_by: ConditionBy = "prefix",
    ) -> None:
        super().__init__()
        check_choice("condition_by", condition_by, ("prefix", "add"))
        d_model: int = backbone.d_model  # type: ignore[assignment]
        if embedding.d_model != d_model:
            raise ValueError(
                f"the embedding has d_model={embedding.d_model}, the backbone d_model={d_model}"
            )
        self.embedding = embedding
        self.backbone = backbone
        self.conditions = conditions
        self.head = head
        self.condition_by = condition_by
        self.start_D = nn.Parameter(0.02 * torch.randn(d_model))

    def forward(self, batch: Batch) -> Tensor:
        """The vector that foretells each step.

        Args:
            batch: Packed phrases, with a class index for each condition.

        Returns:
            Shape (N, D): row t comes from what lies before step t alone.
        """
        told_BLD = None if self.conditions is None else self.conditions(batch.labels)
        put = self._put(batch.ids_NF, batch.cu_seqlens, batch.lengths, told_BLD)
        h_MD: Tensor = self.backbone(put.h_MD, put.cu_seqlens, put.lengths, causal=True)
        # The vector before a step, which may be a prefix, foretells it.
        return h_MD[put.tokens_N - 1]

    @property
    def n_prefix(self) -> int:
        """Vectors before every phrase, P."""
        told = self.conditions is not None and self.condition_by == "prefix"
        return 1 + (len(self.conditions.classes) if told and self.conditions else 0)

    def begin(
        self, labels: Mapping[str, Tensor], primes: Sequence[Tensor], capacity: int
    ) -> tuple[Tensor, Decoding]:
        """Begin B rows that are then written step by step with :meth:`advance`.

        Args:
            labels: Class index of each row for each condition, int64 (B,).
            primes: Steps that each row begins with, int64 (T, F); T may be 0.
            capacity: Steps that a row may have.

        Returns:
            The vector that foretells the next step of each row, shape (B, D), and the rows.

        Raises:
            ValueError: A prime passes the capacity.
        """
        told_BLD = None if self.conditions is None else self.conditions(labels)
        state: State = self.backbone.new_state(  # type: ignore[operator]
            len(primes), capacity + self.n_prefix, self.start_D.device, self.start_D.dtype
        )
        rows = Decoding(state, told_BLD)
        return self.restart(range(len(primes)), primes, rows), rows

    def advance(self, ids_BF: Tensor, rows: Decoding) -> Tensor:
        """Tell every row its next step.

        Args:
            ids_BF: The steps, int64, shape (B, F).
            rows: The rows; they grow by the step.

        Returns:
            The vector that foretells the step after it, shape (B, D): what :meth:`forward` gives
            for the whole row.

        Raises:
            ValueError: A row is full; :meth:`restart` it with its last bars.
        """
        h_BD = self.embedding(ids_BF)
        if rows.told_BLD is not None and self.condition_by == "add":
            h_BD = h_BD + rows.told_BLD.sum(1)
        out_BD: Tensor = self.backbone.step(h_BD, rows.state)  # type: ignore[operator]
        return out_BD

    def restart(self, which: Sequence[int], windows: Sequence[Tensor], rows: Decoding) -> Tensor:
        """Begin some rows anew, under the conditions that they have.

        Args:
            which: These rows.
            windows: Steps that each of them now begins with, int64 (T, F).
            rows: All rows.

        Returns:
            The vector that foretells the next step of each of ``which``, in their order.

        Raises:
            ValueError: A window passes the capacity.
        """
        sizes = [len(window) for window in windows]
        cu_seqlens = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)
        told_RLD = None if rows.told_BLD is None else rows.told_BLD[list(which)]
        device = self.start_D.device
        put = self._put(torch.cat(list(windows)).to(device), cu_seqlens.to(device), sizes, told_RLD)
        h_MD: Tensor = self.backbone.prefill(  # type: ignore[operator]
            put.h_MD, put.cu_seqlens, put.lengths, rows.state, which
        )
        return h_MD[put.cu_seqlens[1:].long() - 1]

    def _put(
        self,
        ids_NF: Tensor,
        cu_seqlens: Tensor,
        lengths: Sequence[int],
        told_BLD: Tensor | None,
    ) -> Prefixed:
        """Phrases as vectors, with what stands before them and what is added to them."""
        h_ND = self.embedding(ids_NF)
        prefix_BPD = self.start_D.expand(len(lengths), 1, -1)
        if told_BLD is not None:
            if self.condition_by == "prefix":
                prefix_BPD = torch.cat([prefix_BPD, told_BLD], 1)
            else:
                told_BD = told_BLD.sum(1)
                prefix_BPD = prefix_BPD + told_BD[:, None]
                h_ND = h_ND + told_BD[segments_N(cu_seqlens, len(h_ND))]
        return insert_prefix(h_ND, cu_seqlens, lengths, prefix_BPD)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every token, and whether it was the likeliest.

        Returns:
            nats_NF, float32, and hits_NF, bool; sum the nats over F for those of a step.
        """
        nats_NF, hits_NF = self.head.loss(self(batch), batch.ids_NF)
        return nats_NF, hits_NF
