"""Intervals of a score, and of the difference of two classifiers: over resampled songs, over seeds.

Phrases of a song resemble each other, so whole *songs* are drawn. Accuracy and F1 need only the
margins of a confusion matrix (hits, truth, predictions of each class), and those of a resample are
sums over its songs: all resamples together are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import stdtrit
from scipy.stats import sem

Floats = NDArray[np.float64]

N_BOOTSTRAP = 1000
CI_PERCENTILES = (2.5, 97.5)
_COUNTS_AT_ONCE = 2_000_000  # bounds the memory of the resamples


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Quotient; NaN where the whole is 0."""
    out: Floats = np.full(np.broadcast(part, whole).shape, np.nan)
    np.divide(part, whole, out=out, where=np.asarray(whole) > 0)
    return out


def plain(value: float | np.floating[Any]) -> float | None:
    """A Python number, None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def margin_accuracy(hits: NDArray[Any], truth: NDArray[Any], predicted: NDArray[Any]) -> Floats:
    """Accuracy from counts per class, shape (..., C) to (...)."""
    return ratio(hits.sum(-1), truth.sum(-1))


def margin_macro_f1(hits: NDArray[Any], truth: NDArray[Any], predicted: NDArray[Any]) -> Floats:
    """Mean F1 over the classes with support from counts per class, shape (..., C) to (...)."""
    supported = truth > 0
    f1 = np.where(supported, ratio(2 * hits, truth + predicted), 0.0)
    return ratio(f1.sum(-1), supported.sum(-1))


METRICS: dict[str, Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], Floats]] = {
    "accuracy": margin_accuracy,
    "macro_f1": margin_macro_f1,
}
"""Every score that is resampled, from hits, truth and predictions of each class."""


def resampled(
    truth_N: NDArray[Any],
    predicted_PN: Sequence[NDArray[Any]],
    groups_N: NDArray[Any],
    n_classes: int,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict[str, Floats]:
    """Scores of classifiers over the same resamples of songs.

    In each resample the classes with support are those of that resample, so the macro-F1 of one
    that misses a rare class averages over the others. Equal seeds and songs draw equal resamples.

    Args:
        truth_N: True classes, shape (N,), in ``[0, n_classes)``.
        predicted_PN: Predicted classes of P classifiers, each of shape (N,).
        groups_N: Song of each row, shape (N,).
        n_classes: Number of classes.
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples, R.

    Returns:
        For each of :data:`METRICS` the scores, shape (P, R); R is 0 without rows.
    """
    hits, truth, predicted = resampled_margins(
        truth_N, predicted_PN, groups_N, n_classes, seed, n_bootstrap
    )
    return {name: score(hits, truth, predicted) for name, score in METRICS.items()}


def resampled_margins(
    truth_N: NDArray[Any],
    predicted_PN: Sequence[NDArray[Any]],
    groups_N: NDArray[Any],
    n_classes: int,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> tuple[Floats, Floats, Floats]:
    """Hits, truth and predictions of each class in resamples of songs, each of shape (P, R, C).

    Arguments as of :func:`resampled`.
    """
    songs_S, song_N = np.unique(groups_N, return_inverse=True)
    n_songs, n = len(songs_S), len(predicted_PN)
    if not n_songs or n_bootstrap < 1:
        none = np.zeros((n, 0, n_classes))
        return none, none, none
    rows: list[NDArray[Any]] = []
    cells: list[NDArray[Any]] = []
    for p, predicted_N in enumerate(predicted_PN):
        hit_N = truth_N == predicted_N
        for k, (songs, classes) in enumerate(
            ((song_N[hit_N], truth_N[hit_N]), (song_N, truth_N), (song_N, predicted_N))
        ):
            rows.append(songs)
            cells.append((p * 3 + k) * n_classes + classes)
    # Sparse, for a song has few of many classes, sources and classifiers; equal places add up.
    place = (np.concatenate(cells), np.concatenate(rows))
    counts_XS = csr_array(  # type: ignore[no-untyped-call]
        (np.ones(len(place[0])), place), shape=(n * 3 * n_classes, n_songs), dtype=np.float64
    )
    sums = [(counts_XS @ weights_RS.T).T for weights_RS in song_weights(n_songs, seed, n_bootstrap)]
    sums_RPKC = np.concatenate(sums).reshape(-1, n, 3, n_classes)
    hits, truth, predicted = sums_RPKC.transpose(2, 1, 0, 3)
    return hits, truth, predicted


def song_weights(n_songs: int, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP) -> Iterator[Floats]:
    """How often each song is drawn in each resample, some resamples at a time, shape (r, S).

    Equal seeds and numbers of songs give equal draws, whatever is computed from them.

    Args:
        n_songs: Number of songs, S; at least 1.
        seed: Seed of the draws.
        n_bootstrap: Number of resamples.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _COUNTS_AT_ONCE // n_songs)
    for start in range(0, n_bootstrap, step):
        size = min(step, n_bootstrap - start)
        drawn = rng.integers(0, n_songs, (size, n_songs)) + n_songs * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * n_songs).reshape(size, n_songs)
        yield weights.astype(np.float64)


def interval(scores_R: Floats) -> list[float | None]:
    """95 % percentile interval (Efron and Tibshirani 1993, chapter 13); Nones without resamples."""
    if not len(scores_R):
        return [None, None]
    return [plain(value) for value in np.percentile(scores_R, CI_PERCENTILES)]


def t_interval(values: Sequence[float], most: float = np.inf) -> list[float | None]:
    """Student's 95 % t interval of a mean, ``mean ± t(0.975, n - 1) s / sqrt(n)``.

    It is cut to the range of the score, which takes nothing from its coverage: the true mean cannot
    lie outside.

    Args:
        values: Scores that are never negative, one for each seed or part.
        most: The highest that there can be: 1 for a share such as accuracy.

    Returns:
        Its ends; Nones of fewer than two values.
    """
    if len(values) < 2:
        return [None, None]
    mean, half = float(np.mean(values)), float(stdtrit(len(values) - 1, 0.975) * sem(values))
    return [max(0.0, mean - half), min(most, mean + half)]


def paired_bootstrap(
    truth: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    songs: ArrayLike,
    classes: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict[str, dict[str, Any]]:
    """Compares two classifiers on the same rows, over the same resamples of songs.

    Works on columns of ``predictions.csv`` as they are read, text or numbers::

        rows = read_csv(run / "predictions.csv")
        column = lambda name: [row[name] for row in rows]
        paired_bootstrap(column("genre"), column("genre_model"), column("genre_ngram_lr"),
                         column("song_id"), classes=["bach", "beethoven"])

    Args:
        truth: True class of each row, shape (N,).
        first: Classes that the first classifier predicts, shape (N,).
        second: Classes that the second one predicts, shape (N,).
        songs: Song of each row, shape (N,).
        classes: Look only at rows whose truth is one of these; macro-F1 is then the mean over
            those that occur, and a prediction of any other class is an error. None for all rows.
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples, R.

    Returns:
        For ``accuracy`` and ``macro_f1``: ``first`` and ``second`` (the scores), ``difference``
        (first minus second), ``ci95`` of the difference, and ``p``, the two-sided bootstrap
        p-value 2 (k + 1) / (R + 1), at most 1, where k is the smaller of the numbers of resamples
        in which the difference is 0 or less and 0 or more (Davison and Hinkley 1997, section 4.2).
        None where there are no rows.

    Raises:
        ValueError: Columns of different lengths.
    """
    columns = [np.asarray(column) for column in (truth, first, second)]
    songs_N = np.asarray(songs)
    if len({len(column) for column in (*columns, songs_N)}) != 1:
        lengths = ", ".join(str(len(column)) for column in (*columns, songs_N))
        raise ValueError(f"truth, first, second and songs differ in length: {lengths}")
    names, codes = np.unique(np.concatenate(columns), return_inverse=True)
    truth_N, first_N, second_N = codes.reshape(3, -1)
    if classes is not None:
        chosen_N = np.isin(columns[0], np.asarray(classes))
        truth_N, first_N, second_N = truth_N[chosen_N], first_N[chosen_N], second_N[chosen_N]
        songs_N = songs_N[chosen_N]
    n_classes = max(1, len(names))
    scores_PR = resampled(truth_N, (first_N, second_N), songs_N, n_classes, seed, n_bootstrap)
    found: dict[str, dict[str, Any]] = {}
    for name, score in METRICS.items():
        ours, theirs = (
            float(score(*_margins(truth_N, predicted_N, n_classes)))
            for predicted_N in (first_N, second_N)
        )
        difference_R = scores_PR[name][0] - scores_PR[name][1]
        found[name] = {
            "first": plain(ours),
            "second": plain(theirs),
            "difference": plain(ours - theirs),
            "ci95": interval(difference_R),
            "p": p_value(difference_R),
        }
    return found


def _margins(
    truth_N: NDArray[Any], predicted_N: NDArray[Any], n_classes: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    hits = truth_N[truth_N == predicted_N]
    hits_C, truth_C, predicted_C = (
        np.bincount(column, minlength=n_classes) for column in (hits, truth_N, predicted_N)
    )
    return hits_C, truth_C, predicted_C


def p_value(difference_R: Floats) -> float | None:
    """Two-sided bootstrap p-value of a difference, see :func:`paired_bootstrap`; None of none."""
    if not len(difference_R):
        return None
    smaller = min(int((difference_R <= 0).sum()), int((difference_R >= 0).sum()))
    return float(min(1.0, 2 * (smaller + 1) / (len(difference_R) + 1)))
