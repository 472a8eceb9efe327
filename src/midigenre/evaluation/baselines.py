"""Baselines that a model must beat, fitted on the run's training split.

A baseline is one function from :class:`BaselineData` to its scores, entered in :data:`BASELINES`;
nothing else changes when one is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.evaluation.scores import accuracy, confusion_matrix, macro_f1
from midigenre.spec import UNKNOWN

BASELINE_NAMES = ("majority", "metadata", "ngram_lr", "hist_gb")
"""The baselines of the ``evaluation.json`` contract, registered or not."""

NOT_BUILT = "not available in this version"
"""Why a baseline of the contract that is not registered is missing."""


@dataclass(frozen=True)
class BaselineData:
    """What a baseline may look at, for one label at one level.

    Attributes:
        train_truth_N: Classes in the training split, shape (N,); UNKNOWN rows are left out.
        test_truth_N: Classes in the test set, shape (N,); UNKNOWN rows are left out.
        n_classes: Number of classes, C.
        train_inputs: Further columns of the training split by name, each with N rows.
        test_inputs: The same columns of the test set.
    """

    train_truth_N: NDArray[Any]
    test_truth_N: NDArray[Any]
    n_classes: int
    train_inputs: Mapping[str, Any] = field(default_factory=dict)
    test_inputs: Mapping[str, Any] = field(default_factory=dict)


def majority_baseline(
    train_truth: ArrayLike, test_truth: ArrayLike, n_classes: int
) -> dict[str, float]:
    """Scores of always saying the most frequent training class (the first one on a tie).

    Args:
        train_truth: Classes in the training split, shape (N,); UNKNOWN rows are left out.
        test_truth: Classes in the test set, shape (N,); UNKNOWN rows are left out.
        n_classes: Number of classes.

    Returns:
        ``accuracy`` and ``macro_f1``; NaN where the test set has no labels.

    Raises:
        ValueError: No labels in the training split.
    """
    train_N, test_N = (_known(truth) for truth in (train_truth, test_truth))
    if not len(train_N):
        raise ValueError("the training split has no labels")
    majority = int(np.bincount(train_N, minlength=n_classes).argmax())
    confusion_CC = confusion_matrix(test_N, np.full_like(test_N, majority), n_classes)
    return {"accuracy": accuracy(confusion_CC), "macro_f1": macro_f1(confusion_CC)}


BASELINES: dict[str, Callable[[BaselineData], Mapping[str, float]]] = {
    "majority": lambda d: majority_baseline(d.train_truth_N, d.test_truth_N, d.n_classes),
}
"""The one place where a baseline is registered."""


def fit_baselines(
    data: BaselineData | None, reason: str = "the run's training split is gone"
) -> dict[str, Mapping[str, float] | str]:
    """Every baseline of the contract at one level, as ``evaluate_label`` takes them.

    Args:
        data: The splits; None where the training split is gone.
        reason: Why ``data`` is None.

    Returns:
        Scores of each baseline, or a text that says why it is missing.
    """
    found: dict[str, Mapping[str, float] | str] = {}
    for name in dict.fromkeys((*BASELINE_NAMES, *BASELINES)):
        if name not in BASELINES:
            found[name] = NOT_BUILT
        elif data is None:
            found[name] = reason
        elif not len(_known(data.train_truth_N)):
            found[name] = "the training split has no labels"
        else:
            found[name] = BASELINES[name](data)
    return found


def _known(truth_N: ArrayLike) -> NDArray[np.int64]:
    all_N = np.asarray(truth_N, np.int64)
    known_N: NDArray[np.int64] = all_N[all_N != UNKNOWN]
    return known_N
