"""Phrases in, labels out.

B phrases   N packed tokens   F fields   D model width   C classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from midigenre.models.embedding import FieldEmbedding
from midigenre.models.heads import LabelHead
from midigenre.models.pooling import Pooling
from midigenre.models.prefix import insert_prefix
from midigenre.spec import Batch


class MaskedLoss(nn.Module):
    """Masked modelling beside another loss: hides tokens of a batch and foretells them.

    Args:
        masking: :class:`midigenre.models.masking.Masking`, or any module with its call.
        head: :class:`midigenre.models.masked.MaskedHead`, or any module with its ``loss``.
        weight: Factor of the loss in what is minimised.

    Raises:
        ValueError: ``weight`` is not above 0.
    """

    def __init__(self, masking: nn.Module, head: nn.Module, weight: float) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"a weight of masked modelling must be above 0, got {weight}")
        self.masking, self.head, self.weight = masking, head, weight

    def hide(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch as the model sees it, and the mask of what it must foretell, (N, F)."""
        seen_NF, hidden_NF = self.masking(batch.ids_NF, batch.cu_seqlens)
        return replace(batch, ids_NF=seen_NF), hidden_NF

    def forward(self, h_ND: Tensor, ids_NF: Tensor, hidden_NF: Tensor) -> Tensor:
        """Mean nats of a hidden token; 0, and still connected to the graph, if none is hidden.

        Args:
            h_ND: Vectors of the steps of the batch that was seen, shape (N, D).
            ids_NF: The tokens as they are, shape (N, F).
            hidden_NF: From :meth:`hide`.
        """
        head: Any = self.head
        nats_NF, _ = head.loss(h_ND, ids_NF, hidden_NF)
        mean: Tensor = nats_NF.sum() / hidden_NF.sum().clamp_min(1)
        return mean


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
        masked: What hides tokens in training and foretells them beside the labels; None for no
            such loss.

    Raises:
        ValueError: Widths that differ, no head, or two heads for one label.
    """

    def __init__(
        self,
        embedding: FieldEmbedding,
        backbone: nn.Module,
        pooling: Pooling,
        heads: Sequence[LabelHead],
        masked: MaskedLoss | None = None,
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
        self.masked = masked
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
        return self._encode(batch)[0]

    def encode_steps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One vector for each phrase, as :meth:`encode`, and one for each step.

        Returns:
            h_BD, shape (B, D), and h_ND, shape (N, D): without the vector of ``cls``.
        """
        h_BD, h, tokens_N = self._encode(batch)
        return h_BD, h if tokens_N is None else h[tokens_N]

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        h, cu_seqlens, lengths = self.embedding(batch.ids_NF), batch.cu_seqlens, batch.lengths
        tokens_N = None
        if self.cls_D is not None:
            cls_BPD = self.cls_D.expand(batch.n_phrases, 1, -1)
            h, cu_seqlens, lengths, tokens_N, _ = insert_prefix(h, cu_seqlens, lengths, cls_BPD)
        h = self.backbone(h, cu_seqlens, lengths, causal=False)
        h_BD: Tensor = self.pooling(h, cu_seqlens, lengths)
        return h_BD, h, tokens_N

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
