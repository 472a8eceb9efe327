"""The generator: labels and previous tokens in, the next token out.

B phrases   N packed tokens   F fields of a token   L labels
D model width   V vocabulary of a field
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from midigenre.models.sequences import DecodingState, Prefixed, insert_prefix, segments_N
from midigenre.models.transformer import (
    INIT_STD,
    FieldEmbedding,
    PhraseModel,
    check_choice,
    init_weights,
)
from midigenre.spec import UNKNOWN, Batch


class ConditionEmbedding(nn.Module):
    """What the music is conditioned on: a vector for each class of each label, one for "unknown".

    In training each label of each phrase is hidden (made unknown) by chance, so that one model
    learns music with and without it: what classifier-free guidance needs (Ho and Salimans 2022,
    arXiv 2207.12598, section 3.2, who hide 10 to 20%).

    Args:
        classes: Number of classes of each label, in the order of the vectors; not empty.
        d_model: Model width D.
        dropout: Probability with which a label is hidden in training.

    Raises:
        ValueError: ``dropout`` outside 0 to 1.
    """

    def __init__(self, classes: Mapping[str, int], d_model: int, dropout: float = 0.1) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise ValueError(f"condition_dropout={dropout} is not between 0 and 1")
        self.classes, self.dropout = dict(classes), dropout
        self.tables = nn.ModuleDict(  # the last row is the unknown class
            {label: nn.Embedding(n + 1, d_model) for label, n in classes.items()}
        )
        init_weights(self)

    def forward(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Class indices for each label, int64 (B,), to vectors, (B, L, D); others are ignored."""
        vectors = []
        for label, n in self.classes.items():
            index_B = labels[label]
            if self.training and self.dropout:
                hidden_B = torch.rand(index_B.shape, device=index_B.device) < self.dropout
                index_B = index_B.masked_fill(hidden_B, UNKNOWN)
            vectors.append(self.tables[label](index_B.masked_fill(index_B == UNKNOWN, n)))
        return torch.stack(vectors, 1)


class FieldHead(nn.Module):
    """Logits of every field of a token, each conditioned on the fields before it in the same token.

    With one field (REMI, MIDI-like) it is one linear layer. With several, the ids already chosen
    are embedded and added to the token's vector before a small layer of each field: a velocity then
    fits its pitch. Compound Word does so for the family alone (Hsiao et al. 2021,
    arXiv 2101.02402, section 4.3) and samples the others independently of each other.

    Args:
        sizes: Vocabulary size of each field (``TokenSpec.sizes``), length F.
        d_model: Model width D.
        order: Columns in the order in which they are predicted; None for their own order.
    """

    def __init__(
        self, sizes: Sequence[int], d_model: int, order: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.order = tuple(range(len(sizes)) if order is None else order)
        # No field is conditioned on the last one: it has no table.
        self.known = nn.ModuleDict(
            {str(f): nn.Embedding(sizes[f], d_model) for f in self.order[:-1]}
        )
        self.hidden = nn.ModuleList(nn.Linear(d_model, d_model) for _ in sizes if len(sizes) > 1)
        self.out = nn.ModuleList(nn.Linear(d_model, size) for size in sizes)
        init_weights(self)

    def field_logits(self, h_ND: Tensor, place: int, chosen_NF: Tensor) -> Tensor:
        """Logits of one field, (N, V).

        Args:
            h_ND: The model's output for the tokens before, shape (N, D).
            place: Place of the field in :attr:`order`.
            chosen_NF: Ids of the fields at earlier places, int64, shape (N, F); other columns are
                not looked at.
        """
        for other in self.order[:place]:
            h_ND = h_ND + self.known[str(other)](chosen_NF[:, other])
        return self._logits(h_ND, self.order[place])

    def forward(self, h_ND: Tensor, ids_NF: Tensor) -> list[Tensor]:
        """Logits of every field, (N, V) each, in the order of the columns.

        As :meth:`field_logits` with the true tokens, int64 (N, F), in place of those chosen before.
        """
        logits: list[Tensor] = [h_ND] * len(self.sizes)
        for place, field in enumerate(self.order):
            if place:
                before = self.order[place - 1]
                h_ND = h_ND + self.known[str(before)](ids_NF[:, before])
            logits[field] = self._logits(h_ND, field)
        return logits

    def loss(self, h_ND: Tensor, ids_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every field, float32 (N, F), and whether it was the likeliest, bool."""
        nats, hits = [], []
        for logits_NV, target_N in zip(self(h_ND, ids_NF), ids_NF.T, strict=True):
            nats.append(fn.cross_entropy(logits_NV.float(), target_N, reduction="none"))
            hits.append(logits_NV.detach().argmax(-1) == target_N)
        return torch.stack(nats, 1), torch.stack(hits, 1)

    def _logits(self, h_ND: Tensor, field: int) -> Tensor:
        if len(self.sizes) > 1:
            h_ND = fn.gelu(self.hidden[field](h_ND))
        return cast(Tensor, self.out[field](h_ND))


class Decoding:
    """Rows that a generator is writing.

    Args:
        state: The backbone's state.
        condition_BLD: Vectors of their conditions; None without.
    """

    def __init__(self, state: DecodingState, condition_BLD: Tensor | None) -> None:
        self.state, self.condition_BLD = state, condition_BLD

    def __len__(self) -> int:
        return len(self.state)

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order, and drops the others."""
        self.state.keep(rows)
        if self.condition_BLD is not None:
            self.condition_BLD = self.condition_BLD[list(rows)]


class PhraseGenerator(PhraseModel):
    """Embedding, conditions, backbone run causally, and a head that predicts each token.

    A learned start vector precedes every phrase: the output there predicts the first token,
    the output at each token the following one. ``prefix`` puts a vector for each condition after
    the start vector; ``add`` adds their sum to the start vector and to every token.

    Args:
        embedding: Token ids to vectors.
        backbone: See :mod:`midigenre.models.transformer`.
        conditions: What the music is conditioned on; None for nothing.
        head: Predicts a token from the vector before it.
        condition_by: ``prefix`` or ``add``.
    """

    def __init__(
        self, embedding: FieldEmbedding, backbone: nn.Module, conditions: ConditionEmbedding | None,
        head: FieldHead, condition_by: str = "prefix",
    ) -> None:  # fmt: skip
        check_choice("condition_by", condition_by, ("prefix", "add"))
        super().__init__(embedding, backbone)
        self.conditions, self.head, self.condition_by = conditions, head, condition_by
        self.start_D = nn.Parameter(INIT_STD * torch.randn(embedding.d_model))

    @property
    def n_prefix(self) -> int:
        """Vectors before every phrase, P."""
        labels = self.conditions.classes if self.conditions is not None else ()
        return 1 + (len(labels) if self.condition_by == "prefix" else 0)

    def forward(self, batch: Batch) -> Tensor:
        """The vector that predicts each token, (N, D), from what precedes that token only.

        The batch has a class index for each condition.
        """
        condition_BLD = None if self.conditions is None else self.conditions(batch.labels)
        put = self._put(batch.ids_NF, batch.cu_seqlens, batch.lengths, condition_BLD)
        h_MD: Tensor = self.backbone(put.h_MD, put.cu_seqlens, put.lengths, causal=True)
        # The vector before a token, which may be a prefix, predicts it.
        return h_MD[put.tokens_N - 1]

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """:meth:`FieldHead.loss`; sum the nats over F for those of a token."""
        return self.head.loss(self(batch), batch.ids_NF)

    def begin(
        self, labels: Mapping[str, Tensor], primes: Sequence[Tensor], capacity: int
    ) -> tuple[Tensor, Decoding]:
        """Begins B rows that are then written token by token with :meth:`advance`.

        A ValueError where a row comes to more tokens than its capacity, here and later.

        Args:
            labels: Class index of each row for each condition, int64 (B,).
            primes: Tokens that each row begins with, int64 (T, F); T may be 0.
            capacity: Tokens that a row may have.

        Returns:
            The vector that predicts the next token of each row, shape (B, D), and the rows.
        """
        condition_BLD = None if self.conditions is None else self.conditions(labels)
        state: DecodingState = self.backbone.new_state(  # type: ignore[operator]
            len(primes), capacity + self.n_prefix, self.start_D.device, self.start_D.dtype
        )
        rows = Decoding(state, condition_BLD)
        return self.restart(range(len(primes)), primes, rows), rows

    def advance(self, ids_BF: Tensor, rows: Decoding) -> Tensor:
        """Gives every row its next token, int64 (B, F); a full one must :meth:`restart` before.

        Returns:
            The vector that predicts the token after it, shape (B, D): what :meth:`forward` gives
            for the whole row.
        """
        h_BD = self.embedding(ids_BF)
        if rows.condition_BLD is not None and self.condition_by == "add":
            h_BD = h_BD + rows.condition_BLD.sum(1)
        return rows.state.step(h_BD)

    def restart(self, which: Sequence[int], windows: Sequence[Tensor], rows: Decoding) -> Tensor:
        """Restarts some rows under their conditions.

        Args:
            which: These rows.
            windows: Tokens that each of them now begins with, int64 (T, F).
            rows: All rows.

        Returns:
            The vector that predicts the next token of each of ``which``, in their order.
        """
        sizes, device = [len(window) for window in windows], self.start_D.device
        cu_seqlens = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device)
        condition_RLD = None if rows.condition_BLD is None else rows.condition_BLD[list(which)]
        put = self._put(torch.cat(list(windows)).to(device), cu_seqlens, sizes, condition_RLD)
        h_MD = rows.state.prefill(put.h_MD, put.cu_seqlens, put.lengths, which)
        return h_MD[put.cu_seqlens[1:].long() - 1]

    def _put(
        self, ids_NF: Tensor, cu_seqlens: Tensor, lengths: Sequence[int],
        condition_BLD: Tensor | None,
    ) -> Prefixed:  # fmt: skip
        """Phrases as vectors, with the vectors before them and those added to them."""
        h_ND = self.embedding(ids_NF)
        prefix_BPD = self.start_D.expand(len(lengths), 1, -1)
        if condition_BLD is not None and self.condition_by == "prefix":
            prefix_BPD = torch.cat([prefix_BPD, condition_BLD], 1)
        elif condition_BLD is not None:
            condition_BD = condition_BLD.sum(1)
            prefix_BPD = prefix_BPD + condition_BD[:, None]
            h_ND = h_ND + condition_BD[segments_N(cu_seqlens, len(h_ND))]
        return insert_prefix(h_ND, cu_seqlens, lengths, prefix_BPD)
