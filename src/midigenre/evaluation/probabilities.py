"""What a classifier's probabilities are worth: ranking, calibration, selective prediction.

"Confidence" is the probability of the predicted class.

- *Ranking*: ROC-AUC of each class against the rest. scikit-learn's ``roc_auc_score`` does one set
  of weights at a time; here all resamples of songs go through one sorted pass, and the score itself
  is the resample in which every song is drawn once.
- *Calibration*: expected calibration error, likelihood, Brier score, before and after a
  temperature.
- *Selective prediction* (El-Yaniv and Wiener 2010): accuracy against the share of rows that are
  answered by who abstains where the confidence is low.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.arrays import Floats, Longs
from midigenre.evaluation.bootstrap import N_BOOTSTRAP, interval, song_weights
from midigenre.evaluation.calibration import mean_nll, tempered
from midigenre.evaluation.metrics import Counts, plain, ratio, scores_of

ECE_BINS = 15

COVERAGES = tuple(c / 100 for c in range(100, 5, -5))
"""Wanted shares of answers of a curve."""

MAX_CELLS = 400_000_000
"""Resamples x rows x classes above which ROC-AUC has no interval: it would take seconds."""

_CELLS_AT_ONCE = 4_000_000  # bounds the memory


def roc_auc_scores(
    log_probs_NC: ArrayLike,
    truth_N: ArrayLike,
    groups_N: ArrayLike,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> tuple[list[float | None], float | None, list[float | None]]:
    """ROC-AUC one against the rest (Fawcett 2006, section 8).

    A class that no row, or every row, belongs to has none. The macro mean is the plain one over
    the classes that have one, as macro-F1 is; it is not Hand and Till's mean over pairs.

    Args:
        log_probs_NC: Log-probabilities, shape (N, C).
        truth_N: True classes, shape (N,).
        groups_N: Song of each row, shape (N,).
        seed: Seed of the resamples; they are those of the other scores.
        n_bootstrap: Number of resamples, R.

    Returns:
        ROC-AUC of each class, length C; their mean; and its 95 % percentile interval, Nones
        without rows or where R x N x C is above :data:`MAX_CELLS`.
    """
    log_probs_NC, truth_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N)
    n, n_classes = log_probs_NC.shape
    if not n:
        return [None] * n_classes, None, [None, None]
    auc_C = weighted_roc_auc(log_probs_NC, truth_N, np.ones((1, n)))[0]
    scores: list[Floats] = []
    if n_bootstrap * n * n_classes <= MAX_CELLS:
        songs_S, song_N = np.unique(np.asarray(groups_N), return_inverse=True)
        step = max(1, _CELLS_AT_ONCE // n)
        for weights_RS in song_weights(len(songs_S), seed, n_bootstrap):
            for begin in range(0, len(weights_RS), step):
                weights_RN = weights_RS[begin : begin + step][:, song_N]
                scores.append(_mean(weighted_roc_auc(log_probs_NC, truth_N, weights_RN)))
    resampled_R = np.concatenate(scores) if scores else np.zeros(0)
    resampled_R = resampled_R[np.isfinite(resampled_R)]  # a resample with one class has none
    return [plain(auc) for auc in auc_C], plain(_mean(auc_C[None])[0]), interval(resampled_R)


def weighted_roc_auc(scores_NC: Floats, truth_N: NDArray[Any], weights_RN: Floats) -> Floats:
    """ROC-AUC of each class under several sets of weights; NaN where it is not defined.

    The weighted share of pairs of a row of the class and another one in which the first has the
    higher score, equal scores counting half (Hanley and McNeil 1982).

    Args:
        scores_NC: Scores, higher for what is more likely of the class, shape (N, C).
        truth_N: True classes, shape (N,).
        weights_RN: Weights, shape (R, N), not negative.

    Returns:
        Shape (R, C).
    """
    found = np.full((len(weights_RN), scores_NC.shape[1]), np.nan)
    for c in range(scores_NC.shape[1]):
        positive_N = truth_N == c
        if not positive_N.any() or positive_N.all():
            continue
        order = np.argsort(scores_NC[:, c], kind="stable")
        ranked = scores_NC[order, c]
        ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # where equal scores begin
        weights = weights_RN[:, order]
        all_RG = np.add.reduceat(weights, ties, axis=1)
        positive_RG = np.add.reduceat(weights * positive_N[order], ties, axis=1)
        negative_RG = all_RG - positive_RG
        below_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
        pairs_R = positive_RG.sum(1) * negative_RG.sum(1)
        found[:, c] = ratio((positive_RG * below_RG).sum(1), pairs_R)
    return found


def _mean(auc_RC: Floats) -> Floats:
    """Mean over the classes that have one; NaN where none has."""
    known = np.isfinite(auc_RC)
    return ratio(np.where(known, auc_RC, 0.0).sum(1), known.sum(1))


def expected_calibration_error(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> float:
    """Gap between confidence and accuracy, averaged over 15 equal-width bins of confidence.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3: bin m holds the
    confidences in ((m - 1) / M, m / M]; the gaps are weighted by the share of samples in the bin.
    NaN without samples.

    Args:
        log_probs_NC: Log-probabilities, shape (N, C).
        truth_N: True classes, shape (N,).
    """
    bins = reliability_bins(log_probs_NC, truth_N)
    gaps = [b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins]
    return float(np.sum(gaps) / len(np.asarray(truth_N))) if bins else float("nan")


def reliability_bins(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> list[dict[str, Any]]:
    """The bins of :func:`expected_calibration_error` that hold anything, for a reliability diagram.

    Returns:
        For each ``low`` and ``high`` (its edges), ``n``, and the mean ``confidence`` and
        ``accuracy`` of the rows in it.
    """
    log_probs_NC, truth_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N)
    if not len(truth_N):
        return []
    confidence_N = np.exp(log_probs_NC.max(1))
    right_N = log_probs_NC.argmax(1) == truth_N
    edges = np.linspace(0, 1, ECE_BINS + 1)[1:-1]
    bin_N = np.digitize(confidence_N, edges, right=True)
    count_M, confidence_M, right_M = (
        np.bincount(bin_N, weights, minlength=ECE_BINS) for weights in (None, confidence_N, right_N)
    )
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
        "nll": plain(mean_nll(log_probs_NC, truth_N)),
        "brier": plain((residual_NC**2).sum(1).mean()),
    }


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
        ``threshold`` (the lowest confidence that is answered), and every metric of the answers.
        Empty without rows.
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
        scores = scores_of(Counts.of_rows(truth_N[kept_N], predicted_N[kept_N], n_classes))
        rows.append(
            {
                "wanted": wanted,
                "coverage": float(kept_N.mean()),
                "n": int(kept_N.sum()),
                "threshold": float(threshold),
                **{name: plain(value) for name, value in scores.items()},
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
    log_probs_NC: Floats, truth_N: Longs, temperature_N: Floats | None
) -> dict[str, Any]:
    """What rests on the calibrated confidence; the predicted classes stay those of the model.

    Args:
        log_probs_NC: Log-probabilities, shape (N, C).
        truth_N: True classes, shape (N,).
        temperature_N: Temperature of each row, shape (N,); None where there is none.

    Returns:
        ``calibrated``: the ``temperature`` (the mean of several) and
        :func:`calibration_scores` at it, None without one.
        ``reliability``: the bins ``raw`` and ``calibrated``. ``abstention``: ``aurc`` and ``curve``
        by the calibrated confidence, or the raw one where there is no temperature, as
        ``confidence`` says.
    """
    calibrated_NC, after, bins = log_probs_NC, None, None
    if temperature_N is not None:
        calibrated_NC = tempered(log_probs_NC, temperature_N)
        # The mean of equal numbers may be another one.
        same = len(temperature_N) and (temperature_N == temperature_N[0]).all()
        mean = temperature_N[0] if same else temperature_N.mean() if len(temperature_N) else np.nan
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
