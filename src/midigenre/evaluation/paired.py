"""Runs compared song by song: who is right where the other is wrong.

Two scores on the same test songs differ for two reasons, the models and the choice of the songs.
The second is the same for both, so their *difference* is much surer than either score: it is
resampled over the songs, together, from ``predictions_songs.csv`` of each run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom  # type: ignore[attr-defined]

from midigenre.evaluation.bootstrap import (
    METRICS,
    N_BOOTSTRAP,
    interval,
    p_value,
    plain,
    resampled,
)
from midigenre.evaluation.runs import RunRecord
from midigenre.files import read_csv

FILE = "predictions_songs.csv"
OTHER_SONGS = "tested on other songs than {reference}"


@dataclass(frozen=True)
class Paired:
    """A configuration against the reference, on the songs that both were tested on.

    Attributes:
        n_songs: Songs with a label.
        n_seeds: Seeds of each that took part.
        difference: Its score minus the reference's; means over the seeds.
        ci95: 95 % bootstrap interval of the difference, over songs.
        p: Two-sided bootstrap p-value (see
            :func:`~midigenre.evaluation.bootstrap.paired_bootstrap`).
        mcnemar_p: See :func:`mcnemar`.
    """

    n_songs: int
    n_seeds: tuple[int, int]
    difference: float
    ci95: tuple[float, float]
    p: float
    mcnemar_p: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


@dataclass(frozen=True)
class Pairings:
    """Configurations against a reference, in their order.

    Attributes:
        reference: Place of the reference; None where there is none.
        found: For each its pairing, or why there is none; None for the reference itself.
    """

    reference: int | None
    found: tuple[Paired | str | None, ...]


@dataclass(frozen=True)
class _Songs:
    truth: Mapping[str, str]
    predicted: tuple[Mapping[str, str], ...]  # one a run


def mcnemar(first_right_S: NDArray[Any], second_right_S: NDArray[Any]) -> float:
    """McNemar's mid-p test of two classifiers on the same songs (Fagerland et al. 2013, eq. 9).

    Looks only at the songs that one of them gets right and the other wrong. With several seeds,
    the rows are their shares of right predictions, and it is the sign test of those shares, which
    is the same for one seed.

    Args:
        first_right_S: Whether, or with what share of its seeds, the first is right, shape (S,).
        second_right_S: The second one.

    Returns:
        Two-sided p-value; 1 where they are never right and wrong on the same song.
    """
    lead_S = np.asarray(first_right_S, np.float64) - np.asarray(second_right_S, np.float64)
    up, down = int((lead_S > 1e-9).sum()), int((lead_S < -1e-9).sum())
    if up + down == 0:
        return 1.0
    low, n = min(up, down), up + down
    at: float = binom.pmf(low, n, 0.5)
    if up == down:
        return float(1 - at / 2)
    return float(2 * binom.cdf(low, n, 0.5) - at)


def pair_up(
    groups: Sequence[Sequence[RunRecord]],
    label: str,
    metric: str,
    versus: int | None = None,
    *,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> Pairings:
    """Pairs each configuration with the best one, or with a given one.

    Where both have runs of the same seeds, only those count, so that a seed more does not tell.

    Args:
        groups: The runs of each configuration, one a seed.
        label: The label.
        metric: ``macro_f1`` or ``accuracy``, of songs.
        versus: Place of the reference; None for the one with the best score.
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples.
    """
    songs = [_songs_of(group, label) for group in groups]
    usable = [i for i, found in enumerate(songs) if isinstance(found, _Songs)]
    reference = versus
    if reference is None:
        reference = max(usable, key=lambda i: _mean_score(songs[i], metric), default=None)
    if reference is None:
        return Pairings(None, tuple(str(found) for found in songs))
    theirs = songs[reference]
    out: list[Paired | str | None] = []
    for i, ours in enumerate(songs):
        if i == reference:
            out.append(theirs if isinstance(theirs, str) else None)
        elif isinstance(ours, str):
            out.append(ours)
        elif isinstance(theirs, str):
            out.append(f"{groups[reference][0].folder}: {theirs}")
        elif ours.truth != theirs.truth:
            out.append(OTHER_SONGS.format(reference=groups[reference][0].folder))
        else:
            chosen = _same_seeds(groups[i], groups[reference])
            out.append(_pair(ours, theirs, chosen, metric, seed, n_bootstrap))
    return Pairings(reference, tuple(out))


def _songs_of(runs: Sequence[RunRecord], label: str) -> _Songs | str:
    """The songs that have the label, and what each run predicts; or why that is not known."""
    truth: Mapping[str, str] | None = None
    predicted = []
    for run in runs:
        path = Path(run.folder) / FILE
        if not path.is_file():
            return f"no {FILE}"
        try:
            rows = [row for row in read_csv(path) if row[label]]
            own = {row["song_id"]: row[label] for row in rows}
            predicted.append({row["song_id"]: row[f"{label}_model"] for row in rows})
        except KeyError as error:
            return f"{FILE} has no column {error}"
        except (ValueError, TypeError) as error:
            return f"{FILE} cannot be read ({error})"
        if not own:
            return f"{FILE} has no song with a {label}"
        if truth is not None and own != truth:
            return "its seeds were tested on different songs"
        truth = own
    return "no runs" if truth is None else _Songs(truth, tuple(predicted))


def _same_seeds(
    ours: Sequence[RunRecord], theirs: Sequence[RunRecord]
) -> tuple[list[int], list[int]]:
    """Places of the runs whose seeds both have; of all runs where they share none."""
    own, other = ([run.settings.get("seed") for run in runs] for runs in (ours, theirs))
    shared = [seed for seed in own if seed in other]
    if not shared:
        return list(range(len(own))), list(range(len(other)))
    # Several runs have a seed where each started from a pretrained run of another one.
    ours_of, theirs_of = ([i for i, s in enumerate(of) if s in shared] for of in (own, other))
    return ours_of, theirs_of


def _pair(
    ours: _Songs,
    theirs: _Songs,
    chosen: tuple[list[int], list[int]],
    metric: str,
    seed: int,
    n_bootstrap: int,
) -> Paired:
    ids = sorted(ours.truth)
    columns = [
        np.array([predicted[i] for i in ids])
        for songs, places in zip((ours, theirs), chosen, strict=True)
        for predicted in (songs.predicted[place] for place in places)
    ]
    truth = np.array([ours.truth[i] for i in ids])
    names, codes = np.unique(np.stack([truth, *columns]), return_inverse=True)
    codes = codes.reshape(len(columns) + 1, -1)
    truth_S, predicted_PS = codes[0], codes[1:]
    n = len(chosen[0])
    place_S = np.arange(len(ids))
    scores_PR = resampled(truth_S, list(predicted_PS), place_S, len(names), seed, n_bootstrap)
    difference_R = scores_PR[metric][:n].mean(0) - scores_PR[metric][n:].mean(0)
    scores_P = np.array([_score(truth_S, p, len(names), metric) for p in predicted_PS])
    right_PS = predicted_PS == truth_S
    low, high = interval(difference_R)
    p = p_value(difference_R)
    assert low is not None
    assert high is not None
    assert p is not None
    return Paired(
        len(ids),
        (n, len(columns) - n),
        float(scores_P[:n].mean() - scores_P[n:].mean()),
        (low, high),
        p,
        mcnemar(right_PS[:n].mean(0), right_PS[n:].mean(0)),
    )


def _score(truth_S: NDArray[Any], predicted_S: NDArray[Any], n_classes: int, metric: str) -> float:
    hits = truth_S[truth_S == predicted_S]
    counts = (np.bincount(c, minlength=n_classes) for c in (hits, truth_S, predicted_S))
    return float(METRICS[metric](*counts))


def _mean_score(songs: _Songs | str, metric: str) -> float:
    assert isinstance(songs, _Songs)
    ids = sorted(songs.truth)
    scores = []
    for predicted in songs.predicted:
        both = np.array([[songs.truth[i] for i in ids], [predicted[i] for i in ids]])
        names, codes = np.unique(both, return_inverse=True)
        truth_S, predicted_S = codes.reshape(2, -1)
        scores.append(_score(truth_S, predicted_S, len(names), metric))
    return plain(float(np.mean(scores))) or 0.0
