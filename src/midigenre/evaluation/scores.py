"""From a table of predictions to ``evaluation.json``: one label at one level.

:func:`evaluate` scores all rows, :func:`by_source` those within each source, :func:`by_part` those
of each fold. Whatever leaves them is plain Python that ``json.dumps(..., allow_nan=False)``
accepts; a number that is not defined is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Bools, Longs
from midigenre.evaluation.blend import ENCODER
from midigenre.evaluation.bootstrap import N_BOOTSTRAP, Scores, score
from midigenre.evaluation.metrics import Counts, confusion_matrix, plain, ratio, scores_of
from midigenre.evaluation.predictions import Predictions
from midigenre.evaluation.probabilities import calibration_scores, confidence_scores, roc_auc_scores
from midigenre.spec import UNKNOWN

SOURCE_MAJORITY = "source_majority"
"""Name of the baseline that guesses each source's most frequent class."""

ONE_SOURCE = "the songs come from one source"
ONE_CLASS_EACH = "no source has songs of two classes in the test set"


def evaluate(table: Predictions, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP) -> dict[str, Any]:
    """All scores of a table; rows without a class are left out.

    The intervals are percentile bootstraps over *songs*, :mod:`midigenre.evaluation.bootstrap`:
    resampling phrases would give intervals that are far too narrow.

    Args:
        table: The predictions.
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples.

    Returns:
        ``n``; every metric of :data:`~midigenre.evaluation.metrics.METRICS`; ``roc_auc`` (see
        :func:`~midigenre.evaluation.probabilities.roc_auc_scores`); ``ci95``; ``per_class``;
        ``confusion`` (rows are the truth); ``labels``; ``ece``, ``nll`` and ``brier`` (see
        :func:`~midigenre.evaluation.probabilities.calibration_scores`); what
        :func:`~midigenre.evaluation.probabilities.confidence_scores` adds; ``baselines`` (None
        where one is missing) and, if any is missing, ``baselines_missing`` with the reasons;
        where sources are known what :func:`by_source` gives; where a song model has components
        ``components``; and ``out_of_domain``.

        A baseline or component has every metric, ``ci95`` and ``versus_model``: for each metric
        the model minus the baseline, see :meth:`~midigenre.evaluation.bootstrap.Scores.lead`.
        Precision of a class that is never predicted, recall of one without support and F1 of one
        with neither are None; so is every score of no rows.
    """
    known = table.select(table.truth_N != UNKNOWN)
    names, given = table.classes, known.given
    found = score(
        known.truth_N, [known.predicted_N, *given.values()], known.song_N, len(names), seed,
        n_bootstrap,
    )  # fmt: skip
    confusion_CC = confusion_matrix(known.truth_N, known.predicted_N, len(names))
    counts = Counts.of_confusion(confusion_CC)
    ratios = {
        "precision": ratio(counts.hits, counts.predicted),
        "recall": ratio(counts.hits, counts.truth),
        "f1": ratio(2 * counts.hits, counts.truth + counts.predicted),
    }
    auc_C, auc, auc_interval = roc_auc_scores(
        known.log_probs_NC, known.truth_N, known.song_N, seed, n_bootstrap
    )
    model = found.summary(0)
    ci95 = model.pop("ci95") | {"roc_auc": auc_interval}
    result: dict[str, Any] = {
        "n": len(known),
        **model,
        "roc_auc": auc,
        "ci95": ci95,
        "per_class": {
            name: {key: plain(values_C[c]) for key, values_C in ratios.items()}
            | {"roc_auc": auc_C[c], "support": int(counts.truth[c])}
            for c, name in enumerate(names)
        },
        "confusion": confusion_CC.tolist(),
        "labels": list(names),
        **calibration_scores(known.log_probs_NC, known.truth_N),
        **confidence_scores(known.log_probs_NC, known.truth_N, known.temperature_N),
    }
    rivals = {
        name: found.summary(p) | {"versus_model": found.leads(0, p)}
        for p, name in enumerate(given, 1)
    }
    result |= _rivals(table, {name: rivals.get(name) for name in table.baselines})
    if table.missing:
        result["baselines_missing"] = table.missing
    if "source" in table.where:
        result |= by_source(known, seed, n_bootstrap)
    return result | {"out_of_domain": _flagged(table)}


def _rivals(table: Predictions, scores: Mapping[str, Any]) -> dict[str, Any]:
    """``baselines``, and ``components`` of a song model; the encoder alone is no baseline."""
    found = {"baselines": {name: of for name, of in scores.items() if name != ENCODER}}
    if table.components:
        found["components"] = {name: scores.get(name) for name in table.components}
    return found


def _flagged(table: Predictions) -> dict[str, Any] | None:
    """Shares of rows that are flagged as out of the domain, with a class and without one.

    Returns:
        ``labelled`` and ``unlabelled``, each with ``n`` and the shares by ``energy`` and by
        ``max_softmax`` (see :mod:`midigenre.evaluation.calibration`; None of no rows). None where
        nothing was fitted.
    """
    if not table.flags:
        return None
    known_N = table.truth_N != UNKNOWN
    return {
        name: {"n": int(rows.sum())}
        | {
            by: float(flag_N[rows].mean()) if rows.any() else None
            for by, flag_N in table.flags.items()
        }
        for name, rows in (("labelled", known_N), ("unlabelled", ~known_N))
    }


def by_part(table: Predictions) -> dict[str, dict[str, Any]]:
    """``n`` and every metric of each part of a joined table, by the part's name."""
    found = {}
    for name in np.unique(table.where["part"]).tolist():
        part = table.select((table.where["part"] == name) & (table.truth_N != UNKNOWN))
        scores = scores_of(Counts.of_rows(part.truth_N, part.predicted_N, len(table.classes)))
        found[str(name)] = {"n": len(part)} | {k: plain(v) for k, v in scores.items()}
    return found


def by_source(table: Predictions, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP) -> dict[str, Any]:
    """Scores within each source: whether a model tells genres apart where the source does not.

    Collections differ in how they were made (arranged, played, transcribed), so a model may learn
    the collection instead of the genre. Predictions are therefore judged once more, source by
    source, on those sources whose test songs have two classes or more.

    Two ways to predict are judged: the model's own, and, as ``<metric>_restricted``, the most
    likely class among those that the source has in *training*, so that a model that knows the
    source from its sound has no lead over one that is given it; a source without training songs
    has none.

    Args:
        table: Rows that all have a class and a source.
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples.

    Returns:
        ``by_source`` and ``within_source``, over those sources: the mean of the sources' scores,
        weighted by their rows. Each has ``n``, ``classes``, every metric, each ``..._restricted``
        and ``baselines``; ``within_source`` has ``ci95`` and, for each baseline, ``versus_model``,
        and ``sources`` in place of ``classes``. It is None, with a reason in
        ``within_source_missing``, where no source qualifies.
    """
    n_classes = len(table.classes)
    found, counts_KC = class_counts(table.where["source"], table.truth_N, n_classes)
    chosen = found[np.count_nonzero(counts_KC, axis=1) > 1]
    if len(found) < 2 or not len(chosen):
        reason = ONE_SOURCE if len(found) < 2 else ONE_CLASS_EACH
        return {"by_source": {}, "within_source": None, "within_source_missing": reason}
    inside = table.select(np.isin(table.where["source"], chosen))
    source_N = np.searchsorted(chosen, inside.where["source"])
    allowed_NC = inside.allowed_NC
    if allowed_NC is None:
        allowed_NC = np.zeros((len(inside), n_classes), bool)
    # Any class of a source without training songs, so that the columns are whole; not shown.
    restricted_N = np.where(allowed_NC, inside.log_probs_NC, -np.inf).argmax(1)
    known_K = np.array([allowed_NC[source_N == k].any(1).all() for k in range(len(chosen))])
    scores = score(
        inside.truth_N, [inside.predicted_N, restricted_N, *inside.given.values()],
        inside.song_N, n_classes, seed, n_bootstrap, source_N,
    )  # fmt: skip
    places = {name: p for p, name in enumerate(inside.given, 2)}
    of_source = {
        str(name): {
            "n": int((source_N == k).sum()),
            "classes": [
                table.classes[c] for c in np.unique(inside.truth_N[source_N == k]).tolist()
            ],
            **{m: plain(of_PK[0, k]) for m, of_PK in scores.by_group.items()},
            **{
                f"{m}_restricted": plain(of_PK[1, k]) if known_K[k] else None
                for m, of_PK in scores.by_group.items()
            },
            **_rivals(
                inside,
                {
                    base: {m: plain(of_PK[p, k]) for m, of_PK in scores.by_group.items()}
                    for base, p in places.items()
                },
            ),
        }
        for k, name in enumerate(chosen)
    }
    return {
        "by_source": of_source,
        "within_source": _within(inside, scores, chosen, bool(known_K.all())),
    }


def _within(
    inside: Predictions, scores: Scores, sources: NDArray[Any], restricted: bool
) -> dict[str, Any]:
    model, limited = scores.summary(0), scores.summary(1)
    ci95, limited_ci95 = model.pop("ci95"), limited.pop("ci95")
    if restricted:
        ci95 |= {f"{metric}_restricted": of for metric, of in limited_ci95.items()}
    rivals = {
        name: scores.summary(p) | {"versus_model": scores.leads(0, p)}
        for p, name in enumerate(inside.given, 2)
    }
    return {
        "n": len(inside),
        "sources": [str(name) for name in sources],
        **model,
        **{f"{m}_restricted": value if restricted else None for m, value in limited.items()},
        "ci95": ci95,
        **_rivals(inside, rivals),
    }


def class_counts(
    source_S: NDArray[Any], class_S: Longs, n_classes: int
) -> tuple[NDArray[Any], Longs]:
    """Labelled songs of each source and class: the sources, and counts of shape (K, C)."""
    known_S = class_S != UNKNOWN
    names, source_index = np.unique(source_S[known_S], return_inverse=True)
    cells = source_index * n_classes + class_S[known_S]
    counts = np.bincount(cells, minlength=len(names) * n_classes)
    return names, counts.reshape(len(names), n_classes).astype(np.int64)


def source_majority(
    source_N: NDArray[Any], train_source_S: NDArray[Any], train_class_S: Longs, n_classes: int
) -> Longs | None:
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


def source_classes(
    source_N: NDArray[Any], train_source_S: NDArray[Any], train_class_S: Longs, n_classes: int
) -> Bools:
    """Whether each row's source has songs of each class in training, shape (N, C).

    Args:
        source_N: Source of each row, shape (N,).
        train_source_S: Source of each training song, shape (S,).
        train_class_S: Its class, shape (S,); UNKNOWN ones are left out.
        n_classes: Number of classes, C.
    """
    names, counts_KC = class_counts(train_source_S, train_class_S, n_classes)
    allowed_NC = np.zeros((len(source_N), n_classes), bool)
    for name, counts_C in zip(names, counts_KC, strict=True):
        allowed_NC[source_N == name] = counts_C > 0
    return allowed_NC
