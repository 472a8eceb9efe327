"""ROC-AUC of each class against the rest, with intervals over songs.

scikit-learn's ``roc_auc_score`` does one set of weights at a time; here all resamples of songs go
through one sorted pass, and the score itself is the resample in which every song is drawn once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.evaluation.bootstrap import (
    N_BOOTSTRAP,
    Floats,
    interval,
    plain,
    ratio,
    song_weights,
)

MAX_CELLS = 400_000_000
"""Resamples x rows x classes above which no interval is computed: it would take seconds."""

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
