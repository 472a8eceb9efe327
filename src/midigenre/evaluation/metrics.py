"""Metrics during training: torchmetrics state, the numbers of :mod:`midigenre.evaluation.scores`.

Only counts live on the device and only counts are summed over processes, so the scores of a
distributed run are those of all its phrases and not a mean of the processes' scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from midigenre.evaluation.scores import accuracy, as_array, macro_f1
from midigenre.spec import UNKNOWN


class LabelMetrics(MulticlassConfusionMatrix):
    """Accuracy and macro-F1 of one label; phrases whose label is UNKNOWN are left out.

    The state is one confusion matrix, ``confmat`` (C, C), reduced by sum over processes.
    ``compute()`` returns several values, so log it with ``log_dict(metric.compute())``.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, n_classes: int, **kwargs: Any) -> None:
        """Starts without counts.

        Args:
            n_classes: Number of classes, C; 1 is allowed.
            kwargs: Settings of :class:`torchmetrics.Metric`.
        """
        # Its checks look at the values and so wait for the device at every step; they also refuse
        # a single class. The one that matters, the shape, stands in update().
        super().__init__(n_classes, ignore_index=UNKNOWN, validate_args=False, **kwargs)
        self._confusion_CC: NDArray[np.int64] | None = None

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds phrases.

        Args:
            preds: Logits or log-probabilities, shape (B, C), or classes, shape (B,).
            target: True classes, int64 (B,); UNKNOWN ones are left out.

        Raises:
            ValueError: Shapes that do not fit.
        """
        shapes = ((len(target), self.num_classes), (len(target),))
        if target.ndim != 1 or tuple(preds.shape) not in shapes:
            raise ValueError(f"predictions {tuple(preds.shape)} for targets {tuple(target.shape)}")
        classes = preds.argmax(1) if preds.ndim == 2 else preds
        super().update(classes, target)

    # The base class returns the matrix itself.
    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """``accuracy`` and ``macro_f1`` of everything since the last reset; NaN without counts."""
        # Here, and only here, the state holds the sum over all processes: keep it for confusion().
        self._confusion_CC = as_array(self.confmat).astype(np.int64)
        return {
            name: torch.tensor(score(self._confusion_CC), device=self.confmat.device)
            for name, score in (("accuracy", accuracy), ("macro_f1", macro_f1))
        }

    def confusion(self) -> NDArray[np.int64]:
        """Counts over all processes, shape (C, C); rows are the truth.

        Computes first if needed. In a distributed run that is a collective call: where only one
        process wants the matrix, let all of them call ``compute()`` before.
        """
        self.compute()
        assert self._confusion_CC is not None
        return self._confusion_CC

    def reset(self) -> None:
        """Drops all counts."""
        super().reset()
        self._confusion_CC = None
