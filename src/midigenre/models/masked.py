"""Phrases with hidden tokens in, those tokens out: masked modelling.

N packed tokens   F fields of a step   D model width   V vocabulary of a field   M steps that hide
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midigenre.models.embedding import FieldEmbedding
from midigenre.models.layers import Linear
from midigenre.models.masking import Masking
from midigenre.spec import Batch

INIT_STD = 0.02  # GPT-2 and BERT


class MaskedHead(nn.Module):
    """Linear, GELU, norm, and a linear layer for each field: BERT's head, for compound steps too.

    Each hidden token is foretold from the context, independently of the step's other hidden ones
    (MusicBERT, Zeng et al. 2021, arXiv 2106.05630, section 3.2). Logits are made only of steps that
    hide something and only of the fields that they hide, which is most of a head's work.

    Args:
        sizes: Vocabulary size of each field (``TokenSpec.sizes``), length F.
        d_model: Model width D.
        fields: Columns in which tokens are hidden (:attr:`Masking.fields`); None for all. The
            others have no weights.

    Raises:
        ValueError: ``fields`` names no column, or one that there is not.
    """

    def __init__(
        self, sizes: Sequence[int], d_model: int, fields: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.fields = tuple(range(len(sizes)) if fields is None else fields)
        if not self.fields or not set(self.fields) <= set(range(len(sizes))):
            raise ValueError(f"fields={list(self.fields)} must name columns 0 to {len(sizes) - 1}")
        self.hidden = Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.out = nn.ModuleDict({str(f): Linear(d_model, sizes[f]) for f in self.fields})
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def loss(self, h_ND: Tensor, ids_NF: Tensor, hidden_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every hidden token, and whether it was the likeliest.

        Waits for the device once, to learn how many tokens are hidden.

        Args:
            h_ND: What the backbone made of the steps with their tokens hidden, shape (N, D).
            ids_NF: The true tokens, int64, shape (N, F).
            hidden_NF: Which are hidden, bool, shape (N, F); in columns of :attr:`fields` alone.

        Returns:
            nats_NF, float32, 0 where nothing is hidden; hits_NF, bool, False there.
        """
        any_N = hidden_NF.any(1)
        of_field = [hidden_NF[:, f].sum() for f in self.fields]
        n_steps, *counts = torch.stack([any_N.sum(), *of_field]).tolist()
        steps_M = torch.nonzero_static(any_N, size=n_steps)[:, 0]
        h_MD = self.norm(nn.functional.gelu(self.hidden(h_ND[steps_M])))
        steps, columns, nats, hits = [], [], [], []
        for field, count in zip(self.fields, counts, strict=True):
            # Without a row too: a weight without a gradient would stop several processes.
            rows = torch.nonzero_static(hidden_NF[steps_M, field], size=count)[:, 0]
            logits_nV = self.out[str(field)](h_MD[rows])
            target_n = ids_NF[steps_M[rows], field]
            nats.append(nn.functional.cross_entropy(logits_nV.float(), target_n, reduction="none"))
            hits.append(logits_nV.detach().argmax(-1) == target_n)
            steps.append(steps_M[rows])
            columns.append(torch.full_like(rows, field))
        where = torch.cat(steps), torch.cat(columns)
        nats_NF = torch.zeros(ids_NF.shape, device=h_ND.device).index_put(where, torch.cat(nats))
        hits_NF = torch.zeros_like(hidden_NF).index_put(where, torch.cat(hits))
        return nats_NF, hits_NF


class MaskedModel(nn.Module):
    """Embedding, backbone run in both directions, and a head that predicts hidden tokens.

    ``embedding`` and ``backbone`` carry the names that they have in every other model, so their
    pretrained weights load unchanged.

    Args:
        embedding: Token ids to vectors.
        backbone: :class:`midigenre.models.Encoder` or any module with its attribute ``d_model`` and
            its call ``(h_ND, cu_seqlens, lengths, *, causal) -> h_ND``.
        masking: Chooses what is hidden.
        head: Predicts it.

    Raises:
        ValueError: Widths that differ.
    """

    def __init__(
        self, embedding: FieldEmbedding, backbone: nn.Module, masking: Masking, head: MaskedHead
    ) -> None:
        super().__init__()
        d_model: int = backbone.d_model  # type: ignore[assignment]
        if embedding.d_model != d_model:
            raise ValueError(
                f"the embedding has d_model={embedding.d_model}, the backbone d_model={d_model}"
            )
        self.embedding = embedding
        self.backbone = backbone
        self.masking = masking
        self.head = head

    def forward(self, batch: Batch, seen_NF: Tensor) -> Tensor:
        """What the backbone makes of a batch of which other tokens are seen, shape (N, D)."""
        h_ND: Tensor = self.backbone(
            self.embedding(seen_NF), batch.cu_seqlens, batch.lengths, causal=False
        )
        return h_ND

    def loss(
        self, batch: Batch, share: float | None = None, keys_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hides tokens of a batch and predicts them.

        Args:
            batch: Packed phrases.
            share: See :meth:`Masking.forward`.
            keys_B: See :meth:`Masking.forward`.

        Returns:
            nats_NF and hits_NF of :meth:`MaskedHead.loss`, and which tokens were hidden.
        """
        seen_NF, hidden_NF = self.masking(
            batch.ids_NF, batch.cu_seqlens, share=share, keys_B=keys_B
        )
        nats_NF, hits_NF = self.head.loss(self(batch, seen_NF), batch.ids_NF, hidden_NF)
        return nats_NF, hits_NF, hidden_NF

    def foretell(self, batch: Batch, hidden_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Foretells given tokens, all of them seen as MASK: nats_NF and hits_NF."""
        seen_NF = self.masking.hide(batch.ids_NF, hidden_NF)
        return self.head.loss(self(batch, seen_NF), batch.ids_NF, hidden_NF)
