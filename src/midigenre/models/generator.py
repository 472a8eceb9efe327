"""Steps and conditions in, the next step out.

B phrases   N packed steps   F fields   D model width   P prefix vectors
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from midigenre.models.checks import check_choice
from midigenre.models.conditions import ConditionEmbedding
from midigenre.models.embedding import FieldEmbedding
from midigenre.models.field_head import FieldHead
from midigenre.models.positions import segments_N
from midigenre.models.prefix import insert_prefix
from midigenre.spec import Batch

ConditionBy = Literal["prefix", "add"]


class PhraseGenerator(nn.Module):
    """Embedding, conditions, backbone run causally, and a head that foretells each step.

    A learned start vector stands before every phrase: the output there foretells the first step,
    the output at each step the following one. ``prefix`` puts a vector for each condition behind
    the start vector; ``add`` adds their sum to the start vector and to every step.

    ``embedding`` and ``backbone`` carry the names that they have in every other model, so their
    pretrained weights load unchanged.

    Args:
        embedding: Token ids to vectors.
        backbone: :class:`midigenre.models.Encoder` or any module with its attribute ``d_model`` and
            its call ``(h_ND, cu_seqlens, lengths, *, causal) -> h_ND``.
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
        h_ND = self.embedding(batch.ids_NF)
        prefix_BPD = self.start_D.expand(batch.n_phrases, 1, -1)
        if self.conditions is not None:
            told_BLD = self.conditions(batch.labels)
            if self.condition_by == "prefix":
                prefix_BPD = torch.cat([prefix_BPD, told_BLD], 1)
            else:
                told_BD = told_BLD.sum(1)
                prefix_BPD = prefix_BPD + told_BD[:, None]
                h_ND = h_ND + told_BD[segments_N(batch.cu_seqlens, len(h_ND))]
        put = insert_prefix(h_ND, batch.cu_seqlens, batch.lengths, prefix_BPD)
        h_MD: Tensor = self.backbone(put.h_MD, put.cu_seqlens, put.lengths, causal=True)
        # The vector before a step, which may be a prefix, foretells it.
        return h_MD[put.tokens_N - 1]

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every token, and whether it was the likeliest.

        Returns:
            nats_NF, float32, and hits_NF, bool; sum the nats over F for those of a step.
        """
        nats_NF, hits_NF = self.head.loss(self(batch), batch.ids_NF)
        return nats_NF, hits_NF
