"""Answering less and being right more: accuracy against the share of rows that are answered.

A classifier that abstains where its confidence is low is a selective classifier (El-Yaniv and
Wiener 2010). Confidence is the probability of the predicted class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.evaluation.bootstrap import Floats, margin_macro_f1, plain
from midigenre.evaluation.reliability import calibration_scores, reliability_bins, tempered

COVERAGES = tuple(c / 100 for c in range(100, 5, -5))
"""Wanted shares of answers of a curve."""

SHOWN = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Those that tables show."""


def coverage_curve(
    confidence_N: ArrayLike, predicted_N: ArrayLike, truth_N: ArrayLike, n_classes: int
) -> list[dict[str, Any]]:
    """Scores of the most confident rows, for each of :data:`COVERAGES`.

    Equal confidences are answered together, so that a threshold gives exactly what the table says.

    Args:
        confidence_N: Probability of the predicted class, shape (N,).
        predicted_N: Predicted classes, shape (N,).
        truth_N: True classes, shape (N,).
        n_classes: Number of classes.

    Returns:
        For each ``wanted`` coverage: ``coverage`` (the share that is answered), ``n``,
        ``threshold`` (the lowest confidence that is answered), and ``accuracy`` and ``macro_f1``
        (over the classes that occur among them) of the answers. Empty without rows.
    """
    confidence_N = np.asarray(confidence_N, np.float64)
    predicted_N, truth_N = np.asarray(predicted_N, np.int64), np.asarray(truth_N, np.int64)
    if not len(truth_N):
        return []
    ranked = np.sort(confidence_N)[::-1]
    rows = []
    for wanted in COVERAGES:
        threshold = ranked[max(1, int(np.ceil(wanted * len(ranked) - 1e-9))) - 1]
        kept_N = confidence_N >= threshold
        truth, predicted = truth_N[kept_N], predicted_N[kept_N]
        hits_C, truth_C, predicted_C = (
            np.bincount(column, minlength=n_classes)
            for column in (truth[truth == predicted], truth, predicted)
        )
        rows.append(
            {
                "wanted": wanted,
                "coverage": len(truth) / len(truth_N),
                "n": len(truth),
                "threshold": float(threshold),
                "accuracy": float((truth == predicted).mean()),
                "macro_f1": plain(float(margin_macro_f1(hits_C, truth_C, predicted_C))),
            }
        )
    return rows


def aurc(confidence_N: ArrayLike, right_N: ArrayLike) -> float | None:
    """Area under the risk-coverage curve, 0 to 1, less is better; None without rows.

    Mean over k of the error rate of the k most confident rows (Geifman, Uziel and El-Yaniv 2019,
    "Bias-Reduced Uncertainty Estimation", section 2). Rows of equal confidence share their mean
    error, so that their order does not matter.

    Args:
        confidence_N: Confidences, shape (N,).
        right_N: Whether each prediction is right, shape (N,).
    """
    confidence_N = np.asarray(confidence_N, np.float64)
    wrong_N = 1.0 - np.asarray(right_N, np.float64)
    if not len(wrong_N):
        return None
    ties: NDArray[Any]
    _, ties, count = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    error_G: Floats = np.bincount(ties, wrong_N) / count
    ranked = np.repeat(error_G, count)  # most confident first
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1)).mean())


def confidence_scores(
    log_probs_NC: Floats, truth_N: NDArray[np.int64], temperature: ArrayLike | None
) -> dict[str, Any]:
    """What rests on the calibrated confidence; the predicted classes stay those of the model.

    Args:
        log_probs_NC: Log-probabilities, shape (N, C).
        truth_N: True classes, shape (N,).
        temperature: One for all rows, or one a row; None where there is none.

    Returns:
        ``calibrated``: the ``temperature`` (the mean of several) and
        :func:`~midigenre.evaluation.reliability.calibration_scores` at it, None without one.
        ``reliability``: the bins ``raw`` and ``calibrated``. ``abstention``: ``aurc`` and ``curve``
        by the calibrated confidence, or the raw one where there is no temperature, as
        ``confidence`` says.
    """
    calibrated_NC, after, bins = log_probs_NC, None, None
    if temperature is not None:
        calibrated_NC = tempered(log_probs_NC, temperature)
        mean = (
            np.asarray(temperature, np.float64).ravel().mean() if np.size(temperature) else np.nan
        )
        after = {"temperature": plain(mean), **calibration_scores(calibrated_NC, truth_N)}
        bins = reliability_bins(calibrated_NC, truth_N)
    confidence_N = np.exp(calibrated_NC.max(1, initial=-np.inf))
    predicted_N = log_probs_NC.argmax(1)
    return {
        "calibrated": after,
        "reliability": {"raw": reliability_bins(log_probs_NC, truth_N), "calibrated": bins},
        "abstention": {
            "confidence": "raw" if after is None else "calibrated",
            "aurc": aurc(confidence_N, predicted_N == truth_N),
            "curve": coverage_curve(confidence_N, predicted_N, truth_N, log_probs_NC.shape[1]),
        },
    }
