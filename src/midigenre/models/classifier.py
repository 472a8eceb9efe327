"""Phrases in, labels out.

B phrases   N packed tokens   F fields   D model width   C classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from midigenre.models.embedding import FieldEmbedding
from midigenre.models.heads import LabelHead
from midigenre.models.pooling import Pooling
from midigenre.models.prefix import insert_prefix
from midigenre.spec import Batch


class PhraseClassifier(nn.Module):
    """Embedding, backbone, pooling, and one head for each label.

    ``embedding`` and ``backbone`` carry the names that they have in every other model, so their
    pretrained weights load unchanged.

    Args:
        embedding: Token ids to vectors.
        backbone: :class:`midigenre.models.Encoder` or any module with its attribute ``d_model`` and
            its call ``(h_ND, cu_seqlens, lengths, *, causal) -> h_ND``.
        pooling: Packed vectors to one for each phrase. With ``cls`` the model puts a learned vector
            before each phrase, which takes one position.
        heads: One for each label.

    Raises:
        ValueError: Widths that differ, no head, or two heads for one label.
    """

    def __init__(
        self,
        embedding: FieldEmbedding,
        backbone: nn.Module,
        pooling: Pooling,
        heads: Sequence[LabelHead],
    ) -> None:
        super().__init__()
        labels = [head.label for head in heads]
        if not heads or len(set(labels)) < len(labels):
            raise ValueError(f"a classifier needs one head for each label, got {labels}")
        d_model: int = backbone.d_model  # type: ignore[assignment]
        if embedding.d_model != d_model:
            raise ValueError(
                f"the embedding has d_model={embedding.d_model}, the backbone d_model={d_model}"
            )
        self.embedding = embedding
        self.backbone = backbone
        self.pooling = pooling
        self.heads = nn.ModuleDict({head.label: head for head in heads})
        self.cls_D: nn.Parameter | None = None
        if pooling.kind == "cls":
            self.cls_D = nn.Parameter(0.02 * torch.randn(d_model))

    def label_heads(self) -> dict[str, LabelHead]:
        """The head of each label."""
        return cast(dict[str, LabelHead], dict(self.heads.items()))

    def encode(self, batch: Batch) -> Tensor:
        """One vector for each phrase.

        Args:
            batch: Packed phrases.

        Returns:
            h_BD, shape (B, D).
        """
        h, cu_seqlens, lengths = self.embedding(batch.ids_NF), batch.cu_seqlens, batch.lengths
        if self.cls_D is not None:
            cls_BPD = self.cls_D.expand(batch.n_phrases, 1, -1)
            h, cu_seqlens, lengths, _, _ = insert_prefix(h, cu_seqlens, lengths, cls_BPD)
        h = self.backbone(h, cu_seqlens, lengths, causal=False)
        h_BD: Tensor = self.pooling(h, cu_seqlens, lengths)
        return h_BD

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of each label.

        Args:
            batch: Packed phrases.

        Returns:
            ``{label: logits_BC}``.
        """
        return self.logits(self.encode(batch))

    def logits(self, h_BD: Tensor) -> dict[str, Tensor]:
        """Logits of each label from the vectors of :meth:`encode`, ``{label: logits_BC}``."""
        return {label: head(h_BD) for label, head in self.label_heads().items()}

    def loss(self, logits: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What to minimise, and the loss of each label on its own.

        Args:
            logits: From :meth:`forward`.
            batch: The same batch, with labels and, for exact accumulation, ``step_counts``.

        Returns:
            The sum over the heads, each times its ``loss_weight``, and ``{label: loss}`` without
            those weights.
        """
        losses: dict[str, Tensor] = {}
        total = torch.zeros((), device=batch.ids_NF.device)
        for label, head in self.label_heads().items():
            losses[label] = head.loss(
                logits[label], batch.labels[label], batch.step_counts.get(label), batch.step_batches
            )
            total = total + head.loss_weight * losses[label]
        return total, losses
