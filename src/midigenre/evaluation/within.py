"""Scores within a source: whether a model tells genres apart where the source does not.

Collections differ in how they were made (arranged, played, transcribed), so a model may learn the
collection instead of the genre. Predictions are therefore judged once more, source by source, on
those sources whose test songs have two classes or more.

Two ways to predict are judged. ``accuracy`` and ``macro_f1`` take the predictions as they are.
``accuracy_restricted`` and ``macro_f1_restricted`` take the most likely class among those that the
source has in *training*, so that a model that knows the source from its sound has no lead over
one that is told; a source without training songs has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.evaluation.bootstrap import (
    N_BOOTSTRAP,
    Floats,
    interval,
    margin_accuracy,
    margin_macro_f1,
    p_value,
    plain,
    ratio,
    resampled_margins,
)
from midigenre.spec import UNKNOWN

Ints = NDArray[np.int64]
SOURCE_MAJORITY = "source_majority"
"""Name of the baseline that guesses each source's most frequent class."""

ONE_SOURCE = "the songs come from one source"
ONE_CLASS_EACH = "no source has songs of two classes in the test set"

_MODEL, _RESTRICTED = "", "_restricted"


@dataclass(frozen=True)
class Sources:
    """Where rows come from.

    Attributes:
        source_N: Source of each row, text, shape (N,).
        allowed_NC: Whether the row's source has songs of each class in training, shape (N, C); all
            False for a source without training songs.
    """

    source_N: NDArray[Any]
    allowed_NC: NDArray[np.bool_]

    def select(self, rows: Any) -> Sources:
        """Some of the rows."""
        return Sources(self.source_N[rows], self.allowed_NC[rows])

    @classmethod
    def of_training(
        cls,
        source_N: NDArray[Any],
        train_source_S: NDArray[Any],
        train_class_S: Ints,
        n_classes: int,
    ) -> Sources:
        """Looks the classes of each source up in the training songs.

        Args:
            source_N: Source of each row, shape (N,).
            train_source_S: Source of each training song, shape (S,).
            train_class_S: Its class, shape (S,); UNKNOWN ones are left out.
            n_classes: Number of classes, C.
        """
        names, counts_KC = class_counts(train_source_S, train_class_S, n_classes)
        allowed_NC = np.zeros((len(source_N), n_classes), bool)
        for k, name in enumerate(names):
            allowed_NC[source_N == name] = counts_KC[k] > 0
        return cls(source_N, allowed_NC)


def class_counts(
    source_S: NDArray[Any], class_S: Ints, n_classes: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Labelled songs of each source and class: the sources, and counts of shape (K, C)."""
    known_S = class_S != UNKNOWN
    names, source_index = np.unique(source_S[known_S], return_inverse=True)
    cells = source_index * n_classes + class_S[known_S]
    counts = np.bincount(cells, minlength=len(names) * n_classes)
    return names, counts.reshape(len(names), n_classes).astype(np.int64)


def source_majority(
    source_N: NDArray[Any], train_source_S: NDArray[Any], train_class_S: Ints, n_classes: int
) -> Ints | None:
    """Guesses the most frequent class of a row's source among the training songs, shape (N,).

    The first of equally frequent ones; the most frequent of all for a source without training
    songs. None where it would say nothing: with one source it is the plain majority, and where no
    source has two classes the source is the label.
    """
    names, counts_KC = class_counts(train_source_S, train_class_S, n_classes)
    if len(names) < 2 or not (np.count_nonzero(counts_KC, axis=1) > 1).any():
        return None
    guesses = np.full(len(source_N), int(counts_KC.sum(0).argmax()), np.int64)
    for name, counts_C in zip(names, counts_KC, strict=True):
        guesses[source_N == name] = int(counts_C.argmax())
    return guesses


def within_source(
    log_probs_NC: Floats,
    truth_N: Ints,
    groups_N: NDArray[Any],
    sources: Sources,
    names: Sequence[str],
    baselines: Mapping[str, Ints],
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict[str, Any]:
    """Scores within each source that has rows of two classes or more, and over those sources.

    Over the sources, accuracy is that of all their rows and macro-F1 the mean of the sources' own,
    weighted by their rows. Intervals are bootstraps over songs, as for the other scores.

    Args:
        log_probs_NC: Log-probabilities, shape (N, C).
        truth_N: True classes, shape (N,), all known.
        groups_N: Song of each row, shape (N,).
        sources: The rows' sources.
        names: Class names, length C.
        baselines: Classes that each baseline predicts, shape (N,).
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples.

    Returns:
        ``by_source`` and ``within_source``. Each has ``n``, ``classes``, ``accuracy``,
        ``macro_f1``, both ``..._restricted`` and ``baselines`` with ``accuracy`` and ``macro_f1``;
        ``within_source`` has ``ci95`` and, for each baseline, ``versus_model`` (see
        :func:`~midigenre.evaluation.bootstrap.paired_bootstrap`), and ``sources`` in place of
        ``classes``. It is None, with a reason in ``within_source_missing``, where no source
        qualifies.
    """
    n_classes = len(names)
    found, counts_KC = class_counts(sources.source_N, truth_N, n_classes)
    chosen = found[np.count_nonzero(counts_KC, axis=1) > 1]
    if len(found) < 2 or not len(chosen):
        reason = ONE_SOURCE if len(found) < 2 else ONE_CLASS_EACH
        return {"by_source": {}, "within_source": None, "within_source_missing": reason}
    rows = np.isin(sources.source_N, chosen)
    truth, groups = truth_N[rows], groups_N[rows]
    source = np.searchsorted(chosen, sources.source_N[rows])
    allowed_NC, scores_NC = sources.allowed_NC[rows], log_probs_NC[rows]
    told_N = np.asarray(allowed_NC.any(1))
    restricted_N = np.where(allowed_NC, scores_NC, -np.inf).argmax(1)
    guesses = {
        _MODEL: scores_NC.argmax(1),
        # A source without training songs: any class, so that the columns are whole; not shown.
        _RESTRICTED: restricted_N,
        **{name: np.asarray(theirs)[rows] for name, theirs in baselines.items()},
    }
    # A class of a source is one of K x C, so that one pass counts all sources.
    cells = {name: source * n_classes + guess for name, guess in guesses.items()}
    truth_cells = source * n_classes + truth
    # All rows once: a "resample" that gives the scores themselves.
    once = np.stack(
        [_margins(truth_cells, guess, len(chosen) * n_classes) for guess in cells.values()], 1
    )
    drawn = resampled_margins(
        truth_cells, list(cells.values()), groups, len(chosen) * n_classes, seed, n_bootstrap
    )
    exact, spread = (
        _scores(
            *(part_PRX.reshape(*part_PRX.shape[:2], len(chosen), n_classes) for part_PRX in parts)
        )
        for parts in (once[:, :, None], drawn)
    )
    by_place = {name: p for p, name in enumerate(guesses)}
    told_K = np.array([bool(told_N[source == k].all()) for k in range(len(chosen))])
    of_source = {
        str(name): {
            "n": int((source == k).sum()),
            "classes": [names[c] for c in np.unique(truth[source == k]).tolist()],
            **_own(exact, (slice(None), 0, k), bool(told_K[k])),
            "baselines": {
                base: {m: plain(exact[f"{m}_K"][by_place[base], 0, k]) for m in _METRICS}
                for base in baselines
            },
        }
        for k, name in enumerate(chosen)
    }
    pooled: dict[str, Any] = {
        "n": len(truth),
        "sources": [str(name) for name in chosen],
        **_own(exact, None, bool(told_K.all())),
    }
    pooled["ci95"] = {
        f"{metric}{way}": interval(_finite(spread[metric][by_place[way]]))
        for metric in _METRICS
        for way in (_MODEL, *([_RESTRICTED] if told_K.all() else []))
    }
    pooled["baselines"] = {}
    for base in baselines:
        entry: dict[str, Any] = {
            metric: plain(exact[metric][by_place[base], 0]) for metric in _METRICS
        }
        entry["ci95"] = {m: interval(_finite(spread[m][by_place[base]])) for m in _METRICS}
        entry["versus_model"] = {}
        for metric in _METRICS:
            difference = exact[metric][0, 0] - exact[metric][by_place[base], 0]
            difference_R = spread[metric][0] - spread[metric][by_place[base]]
            entry["versus_model"][metric] = {
                "difference": plain(difference),
                "ci95": interval(difference_R),
                "p": p_value(difference_R),
            }
        pooled["baselines"][base] = entry
    return {"by_source": of_source, "within_source": pooled}


_METRICS = ("accuracy", "macro_f1")


def _own(
    exact: Mapping[str, Floats], place: tuple[Any, ...] | None, restricted: bool
) -> dict[str, float | None]:
    """The model's scores as it predicts and restricted, of a source or over all."""
    found: dict[str, float | None] = {}
    for p, way in enumerate((_MODEL, _RESTRICTED)):
        for metric in _METRICS:
            values = exact[metric][:, 0] if place is None else exact[f"{metric}_K"][place]
            shown = not way or restricted
            found[f"{metric}{way}"] = plain(values[p]) if shown else None
    return found


def _scores(hits: Floats, truth: Floats, predicted: Floats) -> dict[str, Floats]:
    """Scores from counts of shape (P, R, K, C): of each source (..., K) and over them."""
    weight_PRK = truth.sum(-1)
    f1_PRK = margin_macro_f1(hits, truth, predicted)
    weighted = np.where(weight_PRK > 0, f1_PRK, 0.0) * weight_PRK
    return {
        "accuracy_K": margin_accuracy(hits, truth, predicted),
        "macro_f1_K": f1_PRK,
        "accuracy": ratio(hits.sum((-1, -2)), truth.sum((-1, -2))),
        "macro_f1": ratio(weighted.sum(-1), weight_PRK.sum(-1)),
    }


def _margins(truth_N: Ints, predicted_N: Ints, n_cells: int) -> NDArray[Any]:
    hits = truth_N[truth_N == predicted_N]
    columns = (hits, truth_N, predicted_N)
    return np.stack([np.bincount(column, minlength=n_cells) for column in columns])


def _finite(scores_R: Floats) -> Floats:
    return scores_R[np.isfinite(scores_R)]
