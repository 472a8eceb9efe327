"""What a generator is told: a vector for each label of a phrase.

B phrases   L labels   D model width   C classes
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from midigenre.spec import UNKNOWN


class ConditionEmbedding(nn.Module):
    """One learned vector for each class of each label, and one for "unknown".

    In training each label of each phrase is hidden (made unknown) by chance, so that one model
    learns music with and without it: what classifier-free guidance needs (Ho and Salimans 2022,
    arXiv 2207.12598, section 3.2, who hide 10 to 20%).

    Args:
        classes: Number of classes of each label, in the order of the vectors.
        d_model: Model width D.
        dropout: Probability with which a label is hidden in training.

    Raises:
        ValueError: No label, or ``dropout`` outside 0 to 1.
    """

    def __init__(self, classes: Mapping[str, int], d_model: int, dropout: float = 0.1) -> None:
        super().__init__()
        if not classes:
            raise ValueError("conditions without a label; a generator without any takes None")
        if not 0 <= dropout <= 1:
            raise ValueError(f"condition_dropout={dropout} is not between 0 and 1")
        self.classes = dict(classes)
        self.dropout = dropout
        # The last row is the unknown class.
        self.tables = nn.ModuleDict(
            {label: nn.Embedding(n + 1, d_model) for label, n in classes.items()}
        )
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Vectors of the labels.

        Args:
            labels: Class index of each phrase for each label, int64 (B,); ``UNKNOWN`` where it is
                not known. Labels that are no condition are ignored.

        Returns:
            Shape (B, L, D).
        """
        vectors = []
        for label, n in self.classes.items():
            index_B = labels[label]
            if self.training and self.dropout:
                hidden_B = torch.rand(index_B.shape, device=index_B.device) < self.dropout
                index_B = index_B.masked_fill(hidden_B, UNKNOWN)
            vectors.append(self.tables[label](index_B.masked_fill(index_B == UNKNOWN, n)))
        return torch.stack(vectors, 1)
