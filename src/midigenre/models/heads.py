"""What a model says about a phrase. A head owns its label, its class names and its loss.

B phrases   D model width   C classes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midigenre.spec import UNKNOWN


def class_weights(counts_C: Tensor, power: float = 1.0) -> Tensor:
    """Weights that make up for rare classes.

    ``(n / (k * count)) ** power`` for k classes with at least one phrase among n: scikit-learn's
    ``class_weight="balanced"`` (after King and Zeng 2001) for power 1.

    Args:
        counts_C: Number of training phrases of each class, shape (C,).
        power: 0 is no weighting, 1 balanced, 0.5 the square root in between.

    Returns:
        float32, shape (C,); 0 for a class without phrases, which cannot be weighted.

    Raises:
        ValueError: ``power`` is negative, or no class has a phrase.
    """
    if power < 0:
        raise ValueError(
            f"power={power} would favour common classes; give 0 (none) to 1 (balanced)"
        )
    counts_C = counts_C.double()
    seen_C = counts_C > 0
    if not bool(seen_C.any()):
        raise ValueError("class weights need at least one labelled phrase; all counts are 0")
    balanced_C = counts_C.sum() / (seen_C.sum() * counts_C.clamp_min(1))
    return torch.where(seen_C, balanced_C**power, 0.0).float()


class LabelHead(nn.Module):
    """Linear, GELU, dropout, linear: one logit for each class of a label.

    The shape is that of DistilBERT's sequence classifier (a hidden layer of the model's width),
    with GELU instead of its ReLU to match the encoder.

    Args:
        label: Name of the label, for instance ``genre``.
        classes: Its class names, in the order of the logits.
        d_model: Model width D.
        class_weights: Weight of each class in the loss, length C; equal weights if None.
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016,
            section 7).
        dropout: Dropout before the last layer.
        loss_weight: Factor of this label in the sum over the heads
            (:meth:`midigenre.models.PhraseClassifier.loss` applies it, not :meth:`loss`).
        linear: Leave the hidden layer out: dropout and one linear layer, the head of a linear
            probe (Alain and Bengio 2017, arXiv 1610.01644).

    Raises:
        ValueError: Weights of another length, or smoothing outside 0 to 1.
    """

    weight_C: Tensor

    def __init__(
        self,
        label: str,
        classes: Sequence[str],
        d_model: int,
        class_weights: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        dropout: float = 0.1,
        loss_weight: float = 1.0,
        linear: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} is not between 0 and 1")
        weight_C = torch.ones(len(classes))
        if class_weights is not None:
            weight_C = torch.as_tensor(class_weights, dtype=torch.float32).clone()
        if weight_C.shape != (len(classes),):
            raise ValueError(
                f"{weight_C.numel()} class weights for the {len(classes)} classes of {label!r}: "
                f"{', '.join(classes)}"
            )
        self.label = label
        self.classes = tuple(classes)
        self.label_smoothing = label_smoothing
        self.loss_weight = loss_weight
        self.register_buffer("weight_C", weight_C)
        self.hidden = None if linear else nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(d_model, len(classes))
        for layer in (self.hidden, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)  # GPT-2 and BERT
                nn.init.zeros_(layer.bias)

    def forward(self, h_BD: Tensor) -> Tensor:
        """Logits of the classes.

        Args:
            h_BD: One vector for each phrase, shape (B, D).

        Returns:
            logits_BC, shape (B, C).
        """
        if self.hidden is not None:
            h_BD = nn.functional.gelu(self.hidden(h_BD))
        logits_BC: Tensor = self.out(self.dropout(h_BD))
        return logits_BC

    def loss(
        self,
        logits_BC: Tensor,
        target_B: Tensor,
        step_counts_C: Tensor | None = None,
        step_batches: int = 1,
    ) -> Tensor:
        """Weighted cross-entropy with label smoothing over the phrases whose label is known.

        It is a sum over this batch divided by the class weights of the targets. Taken from this
        batch alone that is ``F.cross_entropy`` with its mean reduction. Taken from the whole
        optimizer step (``step_counts_C``), the losses of its batches add up to the loss of one
        large batch, however unequal they are; ``step_batches`` undoes the division by the number of
        batches that the trainer makes afterwards.

        Args:
            logits_BC: From :meth:`forward`, shape (B, C).
            target_B: Class of each phrase, int64, shape (B,); ``UNKNOWN`` adds nothing.
            step_counts_C: Phrases of each class in all batches of the step, shape (C,).
            step_batches: Number of batches in the step.

        Returns:
            A float32 scalar; 0, and still connected to the graph, if nothing is known.
        """
        weight_C = self.weight_C.float()
        sum_ = nn.functional.cross_entropy(
            logits_BC.float(),
            target_B,
            weight=weight_C,
            ignore_index=UNKNOWN,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        if step_counts_C is None:
            total = (weight_C[target_B.clamp_min(0)] * (target_B != UNKNOWN)).sum()
        else:
            total = (step_counts_C * weight_C).sum() / step_batches
        # No known label, or only classes of weight 0: F.cross_entropy would return nan or inf.
        return torch.where(total > 0, sum_ / torch.where(total > 0, total, 1.0), sum_ * 0.0)
