"""The next step, field by field.

N packed steps   F fields of a step   D model width   V vocabulary of a field
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midigenre.models.layers import Linear

INIT_STD = 0.02  # GPT-2 and BERT


class FieldHead(nn.Module):
    """Logits of every field of a step, each knowing the fields before it in the same step.

    With one field (REMI, MIDI-like) it is one linear layer. With several, the ids already chosen
    are embedded and added to the step's vector before a small layer of each field: a velocity then
    fits the pitch it stands beside. Compound Word does so for the family alone (Hsiao et al. 2021,
    arXiv 2101.02402, section 4.3) and samples the others independently of each other.

    Args:
        sizes: Vocabulary size of each field (``TokenSpec.sizes``), length F.
        d_model: Model width D.
        order: Columns in the order in which they are foretold; as they stand if None.

    Raises:
        ValueError: ``order`` does not name every column once.
    """

    def __init__(
        self, sizes: Sequence[int], d_model: int, order: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.order = tuple(range(len(sizes)) if order is None else order)
        if sorted(self.order) != list(range(len(sizes))):
            raise ValueError(
                f"order={list(self.order)} must name the columns 0 to {len(sizes) - 1}"
            )
        several = len(sizes) > 1
        # The last field of the order is known to no other: it has no table.
        self.known = nn.ModuleDict(
            {str(f): nn.Embedding(sizes[f], d_model) for f in self.order[:-1]}
        )
        self.hidden = nn.ModuleList(Linear(d_model, d_model) for _ in sizes if several)
        self.out = nn.ModuleList(Linear(d_model, size) for size in sizes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def field_logits(self, h_ND: Tensor, place: int, chosen_NF: Tensor) -> Tensor:
        """Logits of one field.

        Args:
            h_ND: What the model made of all steps before, shape (N, D).
            place: Place of the field in :attr:`order`.
            chosen_NF: Ids of the fields at earlier places, int64, shape (N, F); other columns are
                not looked at.

        Returns:
            Shape (N, V).
        """
        field = self.order[place]
        for other in self.order[:place]:
            h_ND = h_ND + self.known[str(other)](chosen_NF[:, other])
        return self._logits(h_ND, field)

    def forward(self, h_ND: Tensor, ids_NF: Tensor) -> list[Tensor]:
        """Logits of every field, the true ids standing for those chosen before.

        Args:
            h_ND: Shape (N, D).
            ids_NF: The steps to foretell, int64, shape (N, F).

        Returns:
            For each column, in the order of the columns, shape (N, V).
        """
        logits: list[Tensor] = [h_ND] * len(self.sizes)
        for place, field in enumerate(self.order):
            if place:
                before = self.order[place - 1]
                h_ND = h_ND + self.known[str(before)](ids_NF[:, before])
            logits[field] = self._logits(h_ND, field)
        return logits

    def loss(self, h_ND: Tensor, ids_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every token, and whether it was the likeliest.

        Returns:
            nats_NF, float32, and hits_NF, bool.
        """
        nats, hits = [], []
        for field, logits_NV in enumerate(self(h_ND, ids_NF)):
            target_N = ids_NF[:, field]
            nats.append(nn.functional.cross_entropy(logits_NV.float(), target_N, reduction="none"))
            hits.append(logits_NV.detach().argmax(-1) == target_N)
        return torch.stack(nats, 1), torch.stack(hits, 1)

    def _logits(self, h_ND: Tensor, field: int) -> Tensor:
        if len(self.sizes) > 1:
            h_ND = nn.functional.gelu(self.hidden[field](h_ND))
        logits_NV: Tensor = self.out[field](h_ND)
        return logits_NV
