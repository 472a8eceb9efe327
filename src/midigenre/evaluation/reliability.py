"""How far a classifier's probabilities can be believed: ECE, likelihood, Brier score, temperature.

Pure numpy, like :mod:`midigenre.evaluation.scores`. "Confidence" is the probability of the
predicted class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from midigenre.evaluation.bootstrap import Floats, plain

ECE_BINS = 15
_LOG_TEMPERATURE = (-3.0, 3.0)  # 0.05 to 20: what is searched


def expected_calibration_error(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> float:
    """Gap between confidence and accuracy, averaged over 15 equal-width bins of confidence.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3: bin m holds the
    confidences in ((m - 1) / M, m / M]; the gaps are weighted by the share of samples in the bin.
    NaN without samples.

    Args:
        log_probs_NC: Log-probabilities, shape (N, C).
        truth_N: True classes, shape (N,).
    """
    if not len(np.asarray(truth_N)):
        return float("nan")
    count_M, confidence_M, right_M = _bins(log_probs_NC, truth_N)
    return float(np.abs(right_M - confidence_M).sum() / count_M.sum())


def reliability_bins(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> list[dict[str, Any]]:
    """The bins of :func:`expected_calibration_error` that hold anything, for a reliability diagram.

    Returns:
        For each ``low`` and ``high`` (its edges), ``n``, and the mean ``confidence`` and
        ``accuracy`` of the rows in it.
    """
    count_M, confidence_M, right_M = _bins(log_probs_NC, truth_N)
    return [
        {
            "low": m / ECE_BINS,
            "high": (m + 1) / ECE_BINS,
            "n": int(count_M[m]),
            "confidence": float(confidence_M[m] / count_M[m]),
            "accuracy": float(right_M[m] / count_M[m]),
        }
        for m in np.flatnonzero(count_M).tolist()
    ]


def calibration_scores(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> dict[str, float | None]:
    """``ece``, ``nll`` and ``brier``; None without rows, or where a true class has probability 0.

    ``nll`` is the mean negative log-likelihood in nats. ``brier`` is Brier's score over all
    classes (Brier 1950, equation 2): the mean of sum over c of (p_c - [c is true])^2, 0 to 2.

    Args:
        log_probs_NC: Log-probabilities, shape (N, C).
        truth_N: True classes, shape (N,).
    """
    log_probs_NC, truth_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N, np.int64)
    if not len(truth_N):
        return {"ece": None, "nll": None, "brier": None}
    residual_NC = np.exp(log_probs_NC)
    residual_NC[np.arange(len(truth_N)), truth_N] -= 1
    return {
        "ece": plain(expected_calibration_error(log_probs_NC, truth_N)),
        "nll": plain(_nll(log_probs_NC, truth_N)),
        "brier": plain((residual_NC**2).sum(1).mean()),
    }


def tempered(log_probs_NC: ArrayLike, temperature: ArrayLike) -> Floats:
    """Log-probabilities at a temperature: ``log_softmax(log_probs / T)``.

    The same as dividing the logits by T (Guo et al. 2017, section 4.2), for log-probabilities are
    logits but for a constant a row. The order of a row's classes stays.

    Args:
        log_probs_NC: Log-probabilities, shape (N, C).
        temperature: One for all rows, or one a row, shape (N,); above 0.
    """
    log_probs_NC = np.asarray(log_probs_NC, np.float64)
    divisor = np.asarray(temperature, np.float64).reshape(-1, 1)
    found: Floats = log_softmax(log_probs_NC / divisor, axis=1) if len(log_probs_NC) else (
        log_probs_NC
    )  # fmt: skip
    return found


def fit_temperature(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> float:
    """The temperature that makes held-out rows most likely (Guo et al. 2017, section 4.2).

    Minimises the summed negative log-likelihood plus log(T)^2 / 2, that is, with a standard normal
    prior on log T. Against a few dozen rows the prior is nothing; where there are three rows, or
    all of them are right, the likelihood alone would send T to 0 and every confidence to 1.

    Args:
        log_probs_NC: Log-probabilities of rows that were not trained on, shape (N, C).
        truth_N: True classes, shape (N,).

    Returns:
        The temperature, 0.05 to 20; 1 without rows.
    """
    scores_NC, classes_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N, np.int64)
    # A row whose true class has probability 0 has it at every temperature.
    finite_N = np.isfinite(scores_NC[np.arange(len(classes_N)), classes_N])
    scores_NC, classes_N = scores_NC[finite_N], classes_N[finite_N]
    if not len(classes_N):
        return 1.0

    def cost(log_temperature: float) -> float:
        total = len(classes_N) * _nll(tempered(scores_NC, np.exp(log_temperature)), classes_N)
        return total + log_temperature**2 / 2

    found = minimize_scalar(  # type: ignore[no-untyped-call]
        cost, bounds=_LOG_TEMPERATURE, method="bounded"
    )
    return float(np.exp(found.x))


def _nll(log_probs_NC: Floats, truth_N: NDArray[Any]) -> float:
    return float(-log_probs_NC[np.arange(len(truth_N)), truth_N].mean())


def _bins(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Rows, summed confidence and right predictions of each bin, each of shape (M,)."""
    log_probs_NC, truth_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N)
    if not len(truth_N):
        return np.zeros(ECE_BINS), np.zeros(ECE_BINS), np.zeros(ECE_BINS)
    confidence_N = np.exp(log_probs_NC.max(1))
    right_N = log_probs_NC.argmax(1) == truth_N
    edges = np.linspace(0, 1, ECE_BINS + 1)[1:-1]
    bin_N = np.digitize(confidence_N, edges, right=True)
    count_M, confidence_M, right_M = (
        np.bincount(bin_N, weights, minlength=ECE_BINS).astype(np.float64)
        for weights in (None, confidence_N, right_N)
    )
    return count_M, confidence_M, right_M
