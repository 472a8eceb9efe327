"""Scores of one label: the only definition of every number that the project reports.

Pure numpy, so that training metrics, evaluation, baselines and comparisons share one code. A
*level* is ``phrase`` or ``song``. Whatever leaves :func:`score_level` is plain Python that
``json.dumps(..., allow_nan=False)`` accepts; a number that is not defined is ``None``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.evaluation.bootstrap import (
    METRICS,
    N_BOOTSTRAP,
    Floats,
    interval,
    margin_accuracy,
    margin_macro_f1,
    paired_bootstrap,
    plain,
    ratio,
    resampled,
)
from midigenre.evaluation.coverage import confidence_scores
from midigenre.evaluation.ranking import roc_auc_scores
from midigenre.evaluation.reliability import calibration_scores
from midigenre.evaluation.within import Sources, within_source
from midigenre.spec import UNKNOWN

Ints = NDArray[np.int64]
LevelBaselines = Mapping[str, ArrayLike | str]
"""Classes that each baseline predicts at one level, or a text that says why it is missing."""

_LOG_ZERO = -1e4  # stands for log 0, which would turn the mean over a song into NaN
_NORMALISED_WITHIN = 0.05  # slack for half precision; logits miss it by far


def as_array(values: Any) -> NDArray[Any]:
    """A numpy array from an array-like or from a torch tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)


def confusion_matrix(truth_N: ArrayLike, predicted_N: ArrayLike, n_classes: int) -> Ints:
    """Counts of (truth, prediction).

    Args:
        truth_N: True classes, shape (N,), in ``[0, n_classes)``.
        predicted_N: Predicted classes, shape (N,).
        n_classes: Number of classes, C.

    Returns:
        Counts, shape (C, C); rows are the truth.

    Raises:
        ValueError: A class outside the range, or lengths that differ.
    """
    truth_N, predicted_N = np.asarray(truth_N, np.int64), np.asarray(predicted_N, np.int64)
    if truth_N.shape != predicted_N.shape:
        raise ValueError(f"{len(truth_N)} true classes but {len(predicted_N)} predictions")
    for what, classes_N in (("truth", truth_N), ("prediction", predicted_N)):
        if classes_N.size and not 0 <= classes_N.min() <= classes_N.max() < n_classes:
            raise ValueError(f"a {what} is outside [0, {n_classes})")
    cells = np.bincount(truth_N * n_classes + predicted_N, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


def accuracy(confusion_CC: Any) -> float:
    """Share of right predictions; NaN for a matrix without counts.

    Args:
        confusion_CC: Counts, array or tensor of shape (C, C); rows are the truth.
    """
    return float(margin_accuracy(*_marginals(as_array(confusion_CC))))


def macro_f1(confusion_CC: Any) -> float:
    """Mean F1 over the classes *with support*, that is, those that occur in the truth.

    A class without support has no recall; counting its F1 as 0 would punish a model for a test set
    that lacks the class. Predictions of such a class still cost precision and recall elsewhere.
    F1 = 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979). NaN for a matrix without counts.

    Args:
        confusion_CC: Counts, array or tensor of shape (C, C); rows are the truth.
    """
    return float(margin_macro_f1(*_marginals(as_array(confusion_CC))))


def song_log_probs(
    log_probs_NC: ArrayLike, song_N: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Song-level log-probabilities: the mean over a song's phrases, renormalised.

    The mean of logs (a geometric mean of the probabilities) lets a phrase that excludes a class
    count for more than one that merely prefers another.

    Args:
        log_probs_NC: Log-probabilities of the phrases, shape (N, C).
        song_N: Song of each phrase, integers or text, shape (N,).

    Returns:
        The songs in ascending order, shape (S,), and their log-probabilities, shape (S, C).
    """
    log_probs_NC = np.asarray(log_probs_NC, np.float64)
    songs_S, song_index_N = np.unique(np.asarray(song_N), return_inverse=True)
    sum_SC = np.zeros((len(songs_S), log_probs_NC.shape[1]))
    np.add.at(sum_SC, song_index_N, np.maximum(log_probs_NC, _LOG_ZERO))
    mean_SC = sum_SC / np.bincount(song_index_N, minlength=len(songs_S))[:, None]
    return songs_S, mean_SC - _log_sum_exp(mean_SC)


def song_truth(truth_N: ArrayLike, song_N: ArrayLike) -> tuple[NDArray[Any], Ints]:
    """The class of each song.

    Args:
        truth_N: True classes of the phrases, shape (N,).
        song_N: Song of each phrase, shape (N,).

    Returns:
        The songs in ascending order, shape (S,), and their classes, shape (S,).

    Raises:
        ValueError: Phrases of one song with different classes.
    """
    truth_N = np.asarray(truth_N, np.int64)
    songs_S, first_S, song_index_N = np.unique(
        np.asarray(song_N), return_index=True, return_inverse=True
    )
    truth_S = truth_N[first_S]
    if (differs := truth_S[song_index_N] != truth_N).any():
        raise ValueError(f"song {np.asarray(song_N)[differs][0]} has phrases of several classes")
    return songs_S, truth_S


def score_level(
    log_probs_NC: ArrayLike,
    truth_N: ArrayLike,
    names: Sequence[str],
    groups_N: ArrayLike,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
    temperature: ArrayLike | None = None,
) -> dict[str, Any]:
    """All scores of one label at one level.

    The intervals are percentile bootstraps over *songs*, :mod:`midigenre.evaluation.bootstrap`:
    resampling phrases would give intervals that are far too narrow.

    Args:
        log_probs_NC: Log-probabilities, shape (N, C).
        truth_N: True classes, shape (N,), in ``[0, C)``.
        names: Class names, length C.
        groups_N: Song of each row, shape (N,).
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples.
        temperature: Fitted on validation rows, see
            :func:`~midigenre.evaluation.reliability.fit_temperature`: one for all rows, or one a
            row; None where there is none.

    Returns:
        ``n``, ``accuracy``, ``macro_f1``, ``roc_auc`` (see
        :func:`~midigenre.evaluation.ranking.roc_auc_scores`), ``ci95``, ``per_class``,
        ``confusion`` (rows are the truth), ``labels``, ``ece``, ``nll`` and ``brier`` (see
        :func:`~midigenre.evaluation.reliability.calibration_scores`), and what
        :func:`~midigenre.evaluation.coverage.confidence_scores` adds. Precision of a class that
        is never predicted, recall of one without support and F1 of one with neither are None; so is
        every score of no rows.

    Raises:
        ValueError: Shapes that do not fit, NaN, or rows that are not log-probabilities.
    """
    log_probs_NC = np.asarray(log_probs_NC, np.float64)
    truth_N, groups_N = np.asarray(truth_N, np.int64), np.asarray(groups_N)
    _check(log_probs_NC, truth_N, groups_N, names)
    n_classes = len(names)
    predicted_N = log_probs_NC.argmax(1)
    confusion_CC = confusion_matrix(truth_N, predicted_N, n_classes)
    hits_C, support_C, predicted_C = _marginals(confusion_CC)
    ratios = {
        "precision": ratio(hits_C, predicted_C),
        "recall": ratio(hits_C, support_C),
        "f1": ratio(2 * hits_C, support_C + predicted_C),
    }
    auc_C, auc, auc_interval = roc_auc_scores(log_probs_NC, truth_N, groups_N, seed, n_bootstrap)
    return {
        "n": len(truth_N),
        "accuracy": plain(accuracy(confusion_CC)),
        "macro_f1": plain(macro_f1(confusion_CC)),
        "roc_auc": auc,
        "ci95": _intervals(truth_N, predicted_N, groups_N, n_classes, seed, n_bootstrap)
        | {"roc_auc": auc_interval},
        "per_class": {
            name: {key: plain(values_C[c]) for key, values_C in ratios.items()}
            | {"roc_auc": auc_C[c], "support": int(support_C[c])}
            for c, name in enumerate(names)
        },
        "confusion": confusion_CC.tolist(),
        "labels": list(names),
        **calibration_scores(log_probs_NC, truth_N),
        **confidence_scores(log_probs_NC, truth_N, temperature),
    }


def evaluate_label(
    log_probs_NC: ArrayLike,
    truth_N: ArrayLike,
    song_N: ArrayLike,
    names: Sequence[str],
    baselines: Mapping[str, LevelBaselines] | None = None,
    *,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
    song: tuple[ArrayLike, ArrayLike] | None = None,
    temperatures: Mapping[str, ArrayLike] | None = None,
    sources: Sources | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores of one label at phrase and at song level; phrases without a label are left out.

    Args:
        log_probs_NC: Log-probabilities of the phrases, shape (N, C).
        truth_N: True classes, shape (N,); :data:`~midigenre.spec.UNKNOWN` rows are dropped.
        song_N: Song of each phrase, shape (N,).
        names: Class names, length C.
        baselines: For ``phrase`` and ``song`` the classes that each baseline predicts, for all N
            phrases and for all their songs in ascending order, or a text that says why a baseline
            is missing.
        seed: Seed of the bootstrap.
        n_bootstrap: Number of resamples.
        song: All songs in ascending order, shape (S,), and their log-probabilities, shape (S, C);
            None for :func:`song_log_probs`.
        temperatures: For ``phrase`` and ``song`` the temperature of all rows, or one for each of
            the N phrases and of the S songs; None without calibration.
        sources: Where each phrase comes from; None where that is not known.

    Returns:
        ``{"phrase": {...}, "song": {...}}``: the keys of :func:`score_level`; those of
        :func:`~midigenre.evaluation.within.within_source` if ``sources`` are given; ``baselines``
        (None
        where one is missing) and, if any is missing, ``baselines_missing`` with the reasons. A
        baseline has ``accuracy``, ``macro_f1``, ``ci95`` and ``versus_model``: for each metric
        ``difference`` (model minus baseline), its ``ci95`` and ``p``, see
        :func:`~midigenre.evaluation.bootstrap.paired_bootstrap`.

    Raises:
        ValueError: As :func:`score_level`; a song whose phrases have several classes; or
            predictions of a baseline that do not fit.
    """
    log_probs_NC, truth_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N, np.int64)
    song_N = np.asarray(song_N)
    _check(log_probs_NC, truth_N, song_N, names)
    known_N = truth_N != UNKNOWN
    all_songs, first_S = np.unique(song_N, return_index=True)
    songs_S, truth_S = song_truth(truth_N[known_N], song_N[known_N])
    known_S = np.isin(all_songs, songs_S)
    log_probs_SC = (
        song_log_probs(log_probs_NC[known_N], song_N[known_N])[1]
        if song is None
        else _log_probs_of_songs(song, all_songs, len(names))[known_S]
    )
    rows: dict[str, tuple[Floats, Ints, NDArray[Any], NDArray[np.bool_]]] = {
        "phrase": (log_probs_NC[known_N], truth_N[known_N], song_N[known_N], known_N),
        "song": (log_probs_SC, truth_S, songs_S, known_S),
    }
    places = {"phrase": np.flatnonzero(known_N), "song": first_S[known_S]}
    found = {}
    for level, (scores, truth, groups, labelled) in rows.items():
        temperature = None if temperatures is None else np.asarray(temperatures[level], np.float64)
        if temperature is not None and temperature.ndim:
            temperature = temperature[labelled]
        found[level] = score_level(scores, truth, names, groups, seed, n_bootstrap, temperature)
        theirs_known: dict[str, Ints] = {}
        missing = {}
        entries: dict[str, dict[str, Any] | None] = {}
        for name, predicted in (baselines or {}).get(level, {}).items():
            if isinstance(predicted, str):
                entries[name], missing[name] = None, predicted
                continue
            theirs = np.asarray(predicted, np.int64)
            if theirs.shape != labelled.shape:
                raise ValueError(f"{name}: {theirs.shape} {level} predictions for {labelled.shape}")
            theirs_known[name] = theirs[labelled]
            entries[name] = _score_baseline(
                scores.argmax(1), theirs[labelled], truth, groups, len(names), seed, n_bootstrap
            )
        found[level] |= {"baselines": entries} | ({"baselines_missing": missing} if missing else {})
        if sources is not None:
            found[level] |= within_source(
                scores, truth, groups, sources.select(places[level]), names, theirs_known, seed,
                n_bootstrap,
            )  # fmt: skip
    return found


def _log_probs_of_songs(
    song: tuple[ArrayLike, ArrayLike], all_songs: NDArray[Any], n_classes: int
) -> Floats:
    """Log-probabilities that a song model gave, shape (S, C)."""
    songs_S, log_probs_SC = np.asarray(song[0]), np.asarray(song[1], np.float64)
    if not np.array_equal(songs_S, all_songs) or log_probs_SC.shape != (len(all_songs), n_classes):
        raise ValueError(
            f"song log-probabilities {log_probs_SC.shape} of {len(songs_S)} songs for "
            f"{len(all_songs)} songs of {n_classes} classes"
        )
    return log_probs_SC


def _score_baseline(
    ours_N: NDArray[Any],
    theirs_N: Ints,
    truth_N: Ints,
    groups_N: NDArray[Any],
    n_classes: int,
    seed: int,
    n_bootstrap: int,
) -> dict[str, Any]:
    """A baseline's scores, and the model's lead over it on the same resamples."""
    confusion_matrix(truth_N, theirs_N, n_classes)  # refuses classes out of range
    paired = paired_bootstrap(
        truth_N, ours_N, theirs_N, groups_N, seed=seed, n_bootstrap=n_bootstrap
    )
    return {
        **{metric: paired[metric]["second"] for metric in METRICS},
        "ci95": _intervals(truth_N, theirs_N, groups_N, n_classes, seed, n_bootstrap),
        "versus_model": {
            metric: {key: paired[metric][key] for key in ("difference", "ci95", "p")}
            for metric in METRICS
        },
    }


def _intervals(
    truth_N: Ints,
    predicted_N: NDArray[Any],
    groups_N: NDArray[Any],
    n_classes: int,
    seed: int,
    n_bootstrap: int,
) -> dict[str, list[float | None]]:
    scores = resampled(truth_N, (predicted_N,), groups_N, n_classes, seed, n_bootstrap)
    return {metric: interval(values_PR[0]) for metric, values_PR in scores.items()}


def _check(
    log_probs_NC: Floats, truth_N: Ints, groups_N: NDArray[Any], names: Sequence[str]
) -> None:
    n = len(truth_N)
    if log_probs_NC.shape != (n, len(names)) or groups_N.shape != (n,):
        raise ValueError(
            f"log-probabilities {log_probs_NC.shape}, truth {truth_N.shape}, songs "
            f"{groups_N.shape} and {len(names)} names do not fit together"
        )
    # Written so that NaN fails too.
    if n and not (np.abs(_log_sum_exp(log_probs_NC)) < _NORMALISED_WITHIN).all():
        raise ValueError("rows are not log-probabilities: apply log_softmax to logits first")


def _log_sum_exp(values_NC: Floats) -> Floats:
    """Log of the sum of exponentials of each row, shape (N, 1), without overflow."""
    top_N1 = values_NC.max(1, keepdims=True, initial=_LOG_ZERO)
    total: Floats = np.log(np.exp(values_NC - top_N1).sum(1, keepdims=True)) + top_N1
    return total


def _marginals(confusion_CC: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return confusion_CC.diagonal(), confusion_CC.sum(1), confusion_CC.sum(0)
