"""Token ids to vectors: the one place where the number of fields of a tokenizer matters.

N packed tokens   F fields of a step   D model width
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from midigenre.models.checks import check_choice
from midigenre.models.layers import Linear

Combine = Literal["concat", "sum"]
INIT_STD = 0.02  # GPT-2 and BERT


class FieldEmbedding(nn.Module):
    """One table for each field; the vectors of a step are concatenated and projected, or summed.

    Concatenation with a linear layer is MusicBERT's way (Zeng et al. 2021, arXiv 2106.05630,
    section 3.2) and, with narrow tables, Compound Word's (Hsiao et al. 2021, arXiv 2101.02402,
    section 4.2). With one field (REMI, MIDI-like) there is nothing to combine: it is one plain
    embedding table, whatever ``combine`` and ``d_field`` say.

    Each field has its own table instead of an offset into a common one: an id beyond its field's
    vocabulary is an error then, not another field's vector.

    Args:
        sizes: Vocabulary size of each field (``TokenSpec.sizes``), length F.
        d_model: Model width D.
        combine: ``concat`` or ``sum``.
        d_field: Width of each table for ``concat``; ``d_model`` if None, as in MusicBERT.
        dropout: Dropout of the result.

    Raises:
        ValueError: An unknown ``combine``, no field, or a ``d_field`` that ``sum`` cannot use.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        d_model: int,
        combine: Combine = "concat",
        d_field: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_choice("combine", combine, ("concat", "sum"))
        if not sizes:
            raise ValueError("sizes is empty; a token stream has at least one field")
        self.sizes = tuple(sizes)
        self.d_model = d_model
        self.concat = combine == "concat" and len(sizes) > 1
        if combine == "sum" and len(sizes) > 1 and d_field not in (None, d_model):
            raise ValueError(
                f"d_field={d_field} cannot be summed into d_model={d_model}; "
                f"leave d_field empty or take combine='concat'"
            )
        d_table = d_field or d_model if self.concat else d_model
        self.tables = nn.ModuleList(nn.Embedding(size, d_table) for size in sizes)
        self.project = Linear(len(sizes) * d_table, d_model) if self.concat else None
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights, so that a step has standard deviation 0.02 for any ``combine``."""
        std = INIT_STD if self.concat else INIT_STD / math.sqrt(len(self.sizes))
        for table in self.tables:
            nn.init.normal_(table.weight, std=std)  # type: ignore[arg-type]
        if self.project is not None:
            # 1 / sqrt(fan in) keeps the scale; GPT-2's 0.02 would shrink it here.
            nn.init.normal_(self.project.weight, std=1 / math.sqrt(self.project.in_features))
            nn.init.zeros_(self.project.bias)

    def forward(self, ids_NF: Tensor) -> Tensor:
        """Embed packed steps.

        Args:
            ids_NF: Token ids, int64, shape (N, F).

        Returns:
            h_ND, shape (N, D).

        Raises:
            ValueError: ``ids_NF`` has another number of fields.
        """
        if ids_NF.shape[1] != len(self.sizes):
            raise ValueError(
                f"the tokens have {ids_NF.shape[1]} fields, this model was built for "
                f"{len(self.sizes)}; use shards of the tokenizer that the model was trained with"
            )
        fields = [table(ids_N) for table, ids_N in zip(self.tables, ids_NF.T, strict=True)]
        if self.project is not None:
            h_ND = self.project(torch.cat(fields, dim=-1))
        else:
            h_ND = fields[0]
            for field in fields[1:]:
                h_ND = h_ND + field
        dropped: Tensor = self.dropout(h_ND)
        return dropped
