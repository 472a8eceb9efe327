"""Intervals of a score, and of the difference of two classifiers: over resampled songs, over seeds.

Phrases of a song resemble each other, so whole *songs* are drawn, or whole groups of songs (pieces)
where the corpus has them: what is drawn is called a song here. Metrics need only the counts of
each class (:class:`~midigenre.evaluation.metrics.Counts`), and those of a resample are sums over
its songs: all resamples together are one matrix product.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import stdtrit

from midigenre.arrays import Floats, Longs
from midigenre.evaluation.metrics import METRICS, Counts, plain_number, ratio

N_BOOTSTRAP = 1000
_COUNTS_AT_ONCE = 2_000_000  # bounds the memory of the resamples


@dataclass(frozen=True)
class Scores:
    """Every metric of P classifiers on the same rows and the same R resamples of their songs.

    Attributes:
        exact: For each metric the scores of all rows, shape (P,).
        resampled: Those of the resamples, shape (P, R); R is 0 without rows.
        by_group: Those of each group of rows, shape (P, K).
    """

    exact: dict[str, Floats]
    resampled: dict[str, Floats]
    by_group: dict[str, Floats]

    def summary(self, p: int) -> dict[str, Any]:
        """Every metric of a classifier, and ``ci95``."""
        scores: dict[str, Any] = {
            name: plain_number(exact_P[p]) for name, exact_P in self.exact.items()
        }
        finite = {name: of[p][np.isfinite(of[p])] for name, of in self.resampled.items()}
        return scores | {"ci95": {name: interval(scores_R) for name, scores_R in finite.items()}}

    def lead(self, metric: str, first: Any, second: Any) -> dict[str, Any]:
        """The lead of the first classifiers over the second ones, by the mean of their scores.

        Args:
            metric: The metric.
            first: A list of places, or a slice.
            second: Another one.

        Returns:
            ``difference``, its ``ci95``, and ``p``, the two-sided bootstrap p-value
            2 (k + 1) / (R + 1), at most 1, where k is the smaller of the numbers of resamples in
            which the difference is 0 or less and 0 or more (Davison and Hinkley 1997, section 4.2).
            None where there are no rows.
        """
        exact_P, scores_PR = self.exact[metric], self.resampled[metric]
        difference_R = scores_PR[first].mean(0) - scores_PR[second].mean(0)
        difference_R = difference_R[np.isfinite(difference_R)]
        n, k = len(difference_R), min((difference_R <= 0).sum(), (difference_R >= 0).sum())
        return {
            "difference": plain_number(exact_P[first].mean() - exact_P[second].mean()),
            "ci95": interval(difference_R),
            "p": float(min(1.0, 2 * (k + 1) / (n + 1))) if n else None,
        }

    def leads(self, first: int, second: int) -> dict[str, dict[str, Any]]:
        """:meth:`lead` of one classifier over another by every metric."""
        return {metric: self.lead(metric, [first], [second]) for metric in self.exact}


def score(
    truth_N: Longs,
    predicted_PN: Sequence[Longs],
    songs_N: NDArray[Any],
    n_classes: int,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
    group_N: Longs | None = None,
) -> Scores:
    """Scores classifiers over the same resamples of songs.

    Classes with support are counted per resample, so the macro-F1 of a resample
    that lacks a rare class averages over the others. Equal seeds and songs draw equal resamples.

    Args:
        truth_N: True classes, in ``[0, n_classes)``.
        predicted_PN: Predicted classes of P classifiers.
        songs_N: Song of each row.
        n_classes: Number of classes, C.
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples, R.
        group_N: Group of each row, 0 to K - 1: rows are scored within their group, and the score of
            all is the mean of the groups' own, weighted by their rows. None for one group.
    """
    n_groups = 1 if group_N is None else int(group_N.max(initial=-1)) + 1
    # A class of a group is one of K x C cells, so that one pass counts all groups.
    n_cells, cells = n_groups * n_classes, 0 if group_N is None else group_N * n_classes
    truth_N, predicted_PN = truth_N + cells, [predicted_N + cells for predicted_N in predicted_PN]
    all_rows = zip(*(Counts.of_rows(truth_N, of_N, n_cells) for of_N in predicted_PN), strict=True)
    drawn = resampled_counts(truth_N, predicted_PN, songs_N, n_cells, seed, n_bootstrap)
    # The counts of all rows come first, those of the resamples after them: (P, 1 + R, K, C).
    counts = Counts(
        *(
            np.concatenate([np.stack(once)[:, None], many], 1).reshape(
                len(predicted_PN), -1, n_groups, n_classes
            )
            for once, many in zip(all_rows, drawn, strict=True)
        )
    )
    weight_PRK = counts.truth.sum(-1)
    exact, resampled, by_group = {}, {}, {}
    for name, metric in METRICS.items():
        score_PRK = metric.function(counts)
        if group_N is None:
            mean_PR = score_PRK[..., 0]
        else:
            known_PRK = np.where(weight_PRK > 0, score_PRK, 0.0)
            mean_PR = ratio((known_PRK * weight_PRK).sum(-1), weight_PRK.sum(-1))
        exact[name], resampled[name] = mean_PR[:, 0], mean_PR[:, 1:]
        by_group[name] = score_PRK[:, 0]
    return Scores(exact, resampled, by_group)


def score_names(
    names_1PN: NDArray[Any], songs_N: NDArray[Any], seed: int = 0, n_bootstrap: int = N_BOOTSTRAP
) -> Scores:
    """:func:`score` of names: the true classes in the first row, P classifiers in the others."""
    classes, codes = np.unique(names_1PN, return_inverse=True)
    truth_N, *predicted_PN = codes.reshape(names_1PN.shape)
    return score(truth_N, predicted_PN, songs_N, max(1, len(classes)), seed, n_bootstrap)


def resampled_counts(
    truth_N: Longs,
    predicted_PN: Sequence[Longs],
    songs_N: NDArray[Any],
    n_classes: int,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> Counts:
    """Counts of each class in resamples of songs, shape (P, R, C); arguments as :func:`score`."""
    songs_S, song_N = np.unique(songs_N, return_inverse=True)
    n_songs, n = len(songs_S), len(predicted_PN)
    if not n_songs or n_bootstrap < 1:
        none = np.zeros((n, 0, n_classes))
        return Counts(none, none, none)
    songs: list[NDArray[Any]] = []
    cells: list[NDArray[Any]] = []
    for p, predicted_N in enumerate(predicted_PN):
        hit_N = truth_N == predicted_N
        songs += [song_N[hit_N], song_N, song_N]
        for k, class_N in enumerate((truth_N[hit_N], truth_N, predicted_N)):
            cells.append((p * 3 + k) * n_classes + class_N)
    # Sparse, for a song has few of many classes, sources and classifiers; equal places add up.
    place = (np.concatenate(cells), np.concatenate(songs))
    counts_XS = csr_array(  # type: ignore[no-untyped-call]
        (np.ones(len(place[0])), place), shape=(n * 3 * n_classes, n_songs), dtype=np.float64
    )
    sums = [(counts_XS @ weights_RS.T).T for weights_RS in song_weights(n_songs, seed, n_bootstrap)]
    sums_RPKC = np.concatenate(sums).reshape(-1, n, 3, n_classes)
    return Counts(*sums_RPKC.transpose(2, 1, 0, 3))


def song_weights(n_songs: int, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP) -> Iterator[Floats]:
    """How often each song is drawn in each resample, some resamples at a time, shape (r, S).

    Equal seeds and numbers of songs give equal draws, whatever is computed from them.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _COUNTS_AT_ONCE // n_songs)
    for start in range(0, n_bootstrap, step):
        size = min(step, n_bootstrap - start)
        drawn = rng.integers(0, n_songs, (size, n_songs)) + n_songs * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * n_songs).reshape(size, n_songs)
        yield weights.astype(np.float64)


def interval(scores_R: Floats) -> list[float | None]:
    """95 % percentile interval (Efron and Tibshirani 1993, chapter 13), or None twice."""
    if not len(scores_R):
        return [None, None]
    return [plain_number(end) for end in np.percentile(scores_R, (2.5, 97.5))]


def t_interval(values: Sequence[float], most: float = np.inf) -> list[float | None]:
    """Student's 95 % t interval of a mean, ``mean ± t(0.975, n - 1) s / sqrt(n)``.

    It is cut to the range of the score, 0 to ``most``, which does not reduce its coverage: the
    true mean cannot lie outside. None twice for fewer than two values.
    """
    if len(values) < 2:
        return [None, None]
    n, mean = len(values), float(np.mean(values))
    half = float(stdtrit(n - 1, 0.975) * (np.std(values, ddof=1) / np.sqrt(n)))
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
    """Compares two classifiers on the same N rows, over the same resamples of songs.

    Works on columns of ``predictions.csv`` as they are read, text or numbers::

        rows = read_csv(run / "predictions.csv")
        column = lambda name: [row[name] for row in rows]
        paired_bootstrap(column("genre"), column("genre_model"), column("genre_ngram_lr"),
                         column("song_id"), classes=["bach", "beethoven"])

    With ``classes`` only rows whose truth is one of these count; macro-F1 is then the mean over
    those that occur, and a prediction of any other class is an error.

    Returns:
        For each metric ``first`` and ``second`` (the scores), and what :meth:`Scores.lead` gives
        for the first minus the second.

    Raises:
        ValueError: Columns of different lengths.
    """
    *columns, songs_N = [np.asarray(column) for column in (truth, first, second, songs)]
    lengths = [len(column) for column in (*columns, songs_N)]
    if len(set(lengths)) != 1:
        text = ", ".join(map(str, lengths))
        raise ValueError(f"truth, first, second and songs differ in length: {text}")
    rows = slice(None) if classes is None else np.isin(columns[0], np.asarray(classes))
    found = score_names(np.stack(columns)[:, rows], songs_N[rows], seed, n_bootstrap)
    return {
        metric: {"first": plain_number(exact_P[0]), "second": plain_number(exact_P[1])}
        | found.lead(metric, [0], [1])
        for metric, exact_P in found.exact.items()
    }
