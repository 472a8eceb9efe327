"""The metric registry, :data:`METRICS`: to add a metric, add an entry.

A metric is computed from how often each class is true, predicted, and both. From these counts one
matrix product gives a score in every resample of the songs, so that each metric has an interval and
a paired comparison. Every registered metric appears in ``evaluation.json`` (of the model and of
every baseline, within sources and in each fold), in the console's table, in TensorBoard, in
``metrics.json`` and in ``compare``.

What needs probabilities, such as ROC-AUC, lies in :mod:`midigenre.evaluation.scores`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.arrays import Floats, Longs


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Quotient; NaN where the whole is 0."""
    out: Floats = np.full(np.broadcast(part, whole).shape, np.nan)
    np.divide(part, whole, out=out, where=np.asarray(whole) > 0)
    return out


def plain_number(value: float | np.floating[Any]) -> float | None:
    """A Python number, None where it is not finite."""
    return float(value) if np.isfinite(value) else None


class Counts(NamedTuple):
    """Rows of each class, arrays of shape (..., C).

    Attributes:
        hits: Rows of the class that are predicted as it.
        truth: Rows of the class.
        predicted: Rows that are predicted as it.
    """

    hits: NDArray[Any]
    truth: NDArray[Any]
    predicted: NDArray[Any]

    @classmethod
    def of_rows(cls, truth_N: Longs, predicted_N: Longs, n_classes: int) -> Counts:
        """Counts of single rows, each of shape (C,)."""
        hits = truth_N[truth_N == predicted_N]
        return cls(*(np.bincount(x, minlength=n_classes) for x in (hits, truth_N, predicted_N)))

    @classmethod
    def of_confusion(cls, confusion_CC: Any) -> Counts:
        """Counts of a confusion matrix, array or tensor of shape (C, C); rows are the truth."""
        confusion_CC = as_array(confusion_CC)
        return cls(confusion_CC.diagonal(), confusion_CC.sum(1), confusion_CC.sum(0))


@dataclass(frozen=True)
class Metric:
    """A score of predicted classes.

    Attributes:
        function: From :class:`Counts` of shape (..., C) to scores of shape (...); NaN where the
            score is not defined, as without rows.
        title: Name for people.
        higher_is_better: Whether more is better.
    """

    function: Callable[[Counts], Floats]
    title: str
    higher_is_better: bool = True


def accuracy(counts: Counts) -> Floats:
    """Share of right predictions."""
    return ratio(counts.hits.sum(-1), counts.truth.sum(-1))


def macro_f1(counts: Counts) -> Floats:
    """Mean F1 over the classes *with support*, that is, those that occur in the truth.

    A class without support has no recall; counting its F1 as 0 would punish a model for a test set
    that lacks the class. Predictions of such a class still cost precision and recall elsewhere.
    F1 = 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979).
    """
    supported = counts.truth > 0
    f1 = np.where(supported, ratio(2 * counts.hits, counts.truth + counts.predicted), 0.0)
    return ratio(f1.sum(-1), supported.sum(-1))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, "accuracy"),
    "macro_f1": Metric(macro_f1, "macro-F1"),
}
"""The one place where a metric is registered."""


def scores_of(counts: Counts) -> dict[str, float]:
    """Every metric of counts of shape (C,); NaN where it is not defined."""
    return {name: float(metric.function(counts)) for name, metric in METRICS.items()}


def as_array(values: Any) -> NDArray[Any]:
    """A numpy array from an array-like or from a torch tensor on any device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def confusion_matrix(truth_N: ArrayLike, predicted_N: ArrayLike, n_classes: int) -> Longs:
    """Counts of (truth, prediction), shape (C, C); rows are the truth.

    scikit-learn's function silently drops rows of other classes.

    Raises:
        ValueError: A class outside ``[0, n_classes)``, or lengths that differ.
    """
    truth_N, predicted_N = np.asarray(truth_N, np.int64), np.asarray(predicted_N, np.int64)
    if truth_N.shape != predicted_N.shape:
        raise ValueError(f"{len(truth_N)} true classes but {len(predicted_N)} predictions")
    for what, classes_N in (("truth", truth_N), ("prediction", predicted_N)):
        if classes_N.size and not 0 <= classes_N.min() <= classes_N.max() < n_classes:
            raise ValueError(f"a {what} is outside [0, {n_classes})")
    cells = np.bincount(truth_N * n_classes + predicted_N, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes).astype(np.int64)
