"""From a table of predictions to ``evaluation.json``: one label at one level.

:func:`evaluate` scores all rows, :func:`by_source` those within each source. Both give plain Python
that ``json.dumps(..., allow_nan=False)`` accepts; a number that is not defined is None.

Besides the metrics of predicted classes there are scores of the probabilities. "Confidence" is the
probability of the predicted class.

- *Ranking*: ROC-AUC of each class against the rest. scikit-learn's ``roc_auc_score`` does one set
  of weights at a time; here all resamples of songs go through one sorted pass.
- *Calibration*: expected calibration error, likelihood, Brier score, before and after a
  temperature.
- *Selective prediction* (El-Yaniv and Wiener 2010): accuracy against the share of rows that are
  answered if the model abstains where the confidence is low.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.arrays import Bools, Floats, Longs
from midigenre.evaluation.blend import ENCODER
from midigenre.evaluation.bootstrap import N_BOOTSTRAP, interval, score, song_weights
from midigenre.evaluation.calibration import mean_nll, tempered
from midigenre.evaluation.metrics import Counts, confusion_matrix, plain_number, ratio, scores_of
from midigenre.evaluation.predictions import Predictions
from midigenre.spec import UNKNOWN

SOURCE_MAJORITY = "source_majority"
"""Name of the baseline that guesses each source's most frequent class."""

ONE_SOURCE = "the songs come from one source"
ONE_CLASS_EACH = "no source has songs of two classes in the test set"

ECE_BINS = 15

COVERAGES = tuple(c / 100 for c in range(100, 5, -5))
"""Requested shares of answers of a curve."""

MAX_CELLS = 400_000_000
"""Resamples x rows x classes above which ROC-AUC has no interval: it would take seconds."""

_CELLS_AT_ONCE = 4_000_000  # bounds the memory


def evaluate(table: Predictions, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP) -> dict[str, Any]:
    """All scores of a table; rows without a class are left out.

    The intervals are percentile bootstraps over *pieces*, that is over songs where none share a
    group (:mod:`midigenre.evaluation.bootstrap`): resampling phrases, or segments of one
    recording, would give intervals that are far too narrow.

    Returns:
        ``n``; ``n_pieces``, the number of what is resampled; every metric of
        :data:`~midigenre.evaluation.metrics.METRICS`; ``roc_auc`` (:func:`roc_auc_scores`);
        ``ci95``; ``per_class``; ``confusion`` (rows are the truth); ``labels``; ``ece``, ``nll``
        and ``brier`` (:func:`calibration_scores`); what :func:`confidence_scores` adds;
        ``baselines`` (None where one is missing) and, if any is missing, ``baselines_missing`` with
        the reasons; where sources are known what :func:`by_source` gives; where a song model has
        components ``components``; and ``out_of_domain``: for ``labelled`` and ``unlabelled`` rows
        ``n`` and the shares that are flagged by ``energy`` and by ``max_softmax`` (see
        :mod:`midigenre.evaluation.calibration`).

        A baseline or component has every metric, ``ci95`` and ``versus_model``: for each metric
        the model minus the baseline, see :meth:`~midigenre.evaluation.bootstrap.Scores.lead`.
        Precision of a class that is never predicted, recall of one without support and F1 of one
        with neither are None; so is every score of no rows.
    """
    known = table.select(table.truth_N != UNKNOWN)
    names = table.classes
    scores = score(
        known.truth_N, [known.predicted_N, *known.given.values()], known.piece_N, len(names), seed,
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
        known.log_probs_NC, known.truth_N, known.piece_N, seed, n_bootstrap
    )
    model = scores.summary(0)
    ci95 = model.pop("ci95") | {"roc_auc": auc_interval}
    rivals = {
        name: scores.summary(p) | {"versus_model": scores.leads(0, p)}
        for p, name in enumerate(known.given, 1)
    }
    return {
        "n": len(known),
        "n_pieces": len(np.unique(known.piece_N)),
        **model,
        "roc_auc": auc,
        "ci95": ci95,
        "per_class": {
            name: {key: plain_number(values_C[c]) for key, values_C in ratios.items()}
            | {"roc_auc": auc_C[c], "support": int(counts.truth[c])}
            for c, name in enumerate(names)
        },
        "confusion": confusion_CC.tolist(),
        "labels": list(names),
        **calibration_scores(known.log_probs_NC, known.truth_N),
        **confidence_scores(known.log_probs_NC, known.truth_N, known.temperature_N),
        **_rivals(table, {name: rivals.get(name) for name in table.baselines}),
        **({"baselines_missing": table.missing} if table.missing else {}),
        **(by_source(known, seed, n_bootstrap) if "source" in table.where else {}),
        "out_of_domain": _flagged(table),
    }


def _rivals(table: Predictions, scores: Mapping[str, Any]) -> dict[str, Any]:
    """``baselines``, and ``components`` of a song model; the encoder alone is no baseline."""
    found = {"baselines": {name: of for name, of in scores.items() if name != ENCODER}}
    if table.components:
        found["components"] = {name: scores.get(name) for name in table.components}
    return found


def _flagged(table: Predictions) -> dict[str, Any] | None:
    """``out_of_domain``; None where nothing was fitted."""
    if not table.flags:
        return None
    known_N = table.truth_N != UNKNOWN
    return {
        name: {"n": int(rows.sum())}
        | {by: float(of_N[rows].mean()) if rows.any() else None for by, of_N in table.flags.items()}
        for name, rows in (("labelled", known_N), ("unlabelled", ~known_N))
    }


def by_source(table: Predictions, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP) -> dict[str, Any]:
    """Scores within each source: whether a model distinguishes genres where the source does not.

    Collections differ in how they were made (arranged, played, transcribed), so a model may learn
    the collection instead of the genre. Predictions are therefore judged once more, source by
    source, on those sources whose test songs have two classes or more.

    All rows have a class and a source. Two ways to predict are judged: the model's own, and, as
    ``<metric>_restricted``, the most likely class among those that the source has in *training*, so
    that a model that knows the source from its sound has no lead over one that is given it; a
    source without training songs has none.

    Returns:
        ``by_source`` and ``within_source``, over those sources: the mean of the sources' scores,
        weighted by their rows. Each has ``n``, ``classes``, every metric, each ``..._restricted``
        and ``baselines``; ``within_source`` has ``ci95`` and, for each baseline, ``versus_model``,
        and ``sources`` in place of ``classes``. It is None, with a reason in
        ``within_source_missing``, where no source qualifies.
    """
    n_classes = len(table.classes)
    names, counts_KC = _class_counts(table.where["source"], table.truth_N, n_classes)
    chosen = names[np.count_nonzero(counts_KC, axis=1) > 1]
    if len(names) < 2 or not len(chosen):
        reason = ONE_SOURCE if len(names) < 2 else ONE_CLASS_EACH
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
        inside.piece_N, n_classes, seed, n_bootstrap, source_N,
    )  # fmt: skip
    rivals = list(enumerate(inside.given, 2))

    def of_source(p: int, k: int) -> dict[str, float | None]:
        return {metric: plain_number(of_PK[p, k]) for metric, of_PK in scores.by_group.items()}

    def restricted(values: Mapping[str, Any], known: bool) -> dict[str, Any]:
        return {f"{metric}_restricted": v if known else None for metric, v in values.items()}

    sources = {}
    for k, name in enumerate(chosen):
        truth_N = inside.truth_N[source_N == k]
        sources[str(name)] = {
            "n": len(truth_N),
            "classes": [table.classes[c] for c in np.unique(truth_N).tolist()],
            **of_source(0, k),
            **restricted(of_source(1, k), known_K[k]),
            **_rivals(inside, {base: of_source(p, k) for p, base in rivals}),
        }
    model, limited = scores.summary(0), scores.summary(1)
    ci95, limited_ci95 = model.pop("ci95"), limited.pop("ci95")
    whole = {
        "n": len(inside),
        "sources": list(sources),
        **model,
        **restricted(limited, bool(known_K.all())),
        "ci95": ci95 | (restricted(limited_ci95, True) if known_K.all() else {}),
        **_rivals(
            inside, {b: scores.summary(p) | {"versus_model": scores.leads(0, p)} for p, b in rivals}
        ),
    }
    return {"by_source": sources, "within_source": whole}


def _class_counts(
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
    songs. None where it would be uninformative: with one source it is the plain majority, and where
    no source has two classes the source is the label.
    """
    names, counts_KC = _class_counts(train_source_S, train_class_S, n_classes)
    if len(names) < 2 or not (np.count_nonzero(counts_KC, axis=1) > 1).any():
        return None
    guesses = np.full(len(source_N), int(counts_KC.sum(0).argmax()), np.int64)
    for name, counts_C in zip(names, counts_KC, strict=True):
        guesses[source_N == name] = int(counts_C.argmax())
    return guesses


def source_classes(
    source_N: NDArray[Any], train_source_S: NDArray[Any], train_class_S: Longs, n_classes: int
) -> Bools:
    """Whether each row's source has songs of each class in training, shape (N, C)."""
    names, counts_KC = _class_counts(train_source_S, train_class_S, n_classes)
    allowed_NC = np.zeros((len(source_N), n_classes), bool)
    for name, counts_C in zip(names, counts_KC, strict=True):
        allowed_NC[source_N == name] = counts_C > 0
    return allowed_NC


def roc_auc_scores(
    log_probs_NC: ArrayLike,
    truth_N: ArrayLike,
    songs_N: ArrayLike,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> tuple[list[float | None], float | None, list[float | None]]:
    """ROC-AUC one against the rest (Fawcett 2006, section 8).

    A class that no row, or every row, belongs to has none. The macro mean is the plain one over
    the classes that have one, as macro-F1 is; it is not Hand and Till's mean over pairs. The
    resamples are those of the other scores.

    Returns:
        ROC-AUC of each class, length C; their mean; and its 95 % percentile interval, Nones
        without rows or where resamples x rows x classes is above :data:`MAX_CELLS`.
    """
    log_probs_NC, truth_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N)
    n, n_classes = log_probs_NC.shape
    if not n:
        return [None] * n_classes, None, [None, None]
    auc_C = weighted_roc_auc(log_probs_NC, truth_N, np.ones((1, n)))[0]
    means: list[Floats] = []
    if n_bootstrap * n * n_classes <= MAX_CELLS:
        names_S, song_N = np.unique(np.asarray(songs_N), return_inverse=True)
        step = max(1, _CELLS_AT_ONCE // n)
        for weights_RS in song_weights(len(names_S), seed, n_bootstrap):
            for begin in range(0, len(weights_RS), step):
                weights_RN = weights_RS[begin : begin + step][:, song_N]
                means.append(_mean(weighted_roc_auc(log_probs_NC, truth_N, weights_RN)))
    resampled_R = np.concatenate(means) if means else np.zeros(0)
    resampled_R = resampled_R[np.isfinite(resampled_R)]  # a resample with one class has none
    return (
        [plain_number(auc) for auc in auc_C],
        plain_number(_mean(auc_C[None])[0]),
        interval(resampled_R),
    )


def weighted_roc_auc(scores_NC: Floats, truth_N: NDArray[Any], weights_RN: Floats) -> Floats:
    """ROC-AUC of each class under R sets of weights, shape (R, C); NaN where it is not defined.

    The weighted share of pairs of a row of the class and another one in which the first has the
    higher score, equal scores counting half (Hanley and McNeil 1982).
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


def calibration_scores(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> dict[str, float | None]:
    """``ece``, ``nll`` and ``brier``; None without rows, or where a true class has probability 0.

    ``ece`` is the expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", equation 3): the gap between confidence and accuracy in each of the
    :func:`reliability_bins`, weighted by the share of rows in the bin. ``nll`` is the mean negative
    log-likelihood in nats. ``brier`` is Brier's score over all classes (Brier 1950, equation 2):
    the mean of sum over c of (p_c - [c is true])^2, 0 to 2.
    """
    log_probs_NC, truth_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N, np.int64)
    if not len(truth_N):
        return {"ece": None, "nll": None, "brier": None}
    bins = reliability_bins(log_probs_NC, truth_N)
    gaps = [b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins]
    residual_NC = np.exp(log_probs_NC)
    residual_NC[np.arange(len(truth_N)), truth_N] -= 1
    return {
        "ece": plain_number(np.sum(gaps) / len(truth_N)),
        "nll": plain_number(mean_nll(log_probs_NC, truth_N)),
        "brier": plain_number((residual_NC**2).sum(1).mean()),
    }


def reliability_bins(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> list[dict[str, Any]]:
    """Bins of confidence, for a reliability diagram: bin m holds ((m - 1) / 15, m / 15].

    Returns:
        For each bin that holds anything ``low`` and ``high`` (its edges), ``n``, and the mean
        ``confidence`` and ``accuracy`` of the rows in it.
    """
    log_probs_NC, truth_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N)
    if not len(truth_N):
        return []
    confidence_N = np.exp(log_probs_NC.max(1))
    right_N = log_probs_NC.argmax(1) == truth_N
    bin_N = np.digitize(confidence_N, np.linspace(0, 1, ECE_BINS + 1)[1:-1], right=True)
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


def coverage_curve(
    confidence_N: ArrayLike, predicted_N: ArrayLike, truth_N: ArrayLike, n_classes: int
) -> list[dict[str, Any]]:
    """Scores of the most confident rows, for each of :data:`COVERAGES`.

    Equal confidences are answered together, so that a threshold gives exactly what the table says.

    Returns:
        For each ``wanted`` coverage: ``coverage`` (the share that is answered), ``n``,
        ``threshold`` (the lowest confidence that is answered), and every metric of the answers.
        Empty without rows.
    """
    confidence_N = np.asarray(confidence_N, np.float64)
    predicted_N, truth_N = np.asarray(predicted_N, np.int64), np.asarray(truth_N, np.int64)
    ranked = np.sort(confidence_N)[::-1]
    rows = []
    for wanted in COVERAGES if len(ranked) else ():
        threshold = ranked[max(1, int(np.ceil(wanted * len(ranked) - 1e-9))) - 1]
        kept_N = confidence_N >= threshold
        scores = scores_of(Counts.of_rows(truth_N[kept_N], predicted_N[kept_N], n_classes))
        rows.append(
            {
                "wanted": wanted,
                "coverage": float(kept_N.mean()),
                "n": int(kept_N.sum()),
                "threshold": float(threshold),
                **{name: plain_number(value) for name, value in scores.items()},
            }
        )
    return rows


def aurc(confidence_N: ArrayLike, right_N: ArrayLike) -> float | None:
    """Area under the risk-coverage curve, 0 to 1, less is better; None without rows.

    Mean over k of the error rate of the k most confident rows (Geifman, Uziel and El-Yaniv 2019,
    "Bias-Reduced Uncertainty Estimation", section 2). Rows of equal confidence share their mean
    error, so that their order does not matter.
    """
    confidence_N = np.asarray(confidence_N, np.float64)
    wrong_N = 1.0 - np.asarray(right_N, np.float64)
    if not len(wrong_N):
        return None
    ties: NDArray[Any]
    _, ties, count = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    ranked = np.repeat(np.bincount(ties, wrong_N) / count, count)  # most confident first
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1)).mean())


def confidence_scores(
    log_probs_NC: Floats, truth_N: Longs, temperature_N: Floats | None
) -> dict[str, Any]:
    """The scores based on the calibrated confidence; the predicted classes stay those of the model.

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
        # The mean of equal numbers may differ from them by rounding.
        same = len(temperature_N) and (temperature_N == temperature_N[0]).all()
        mean = temperature_N[0] if same else temperature_N.mean() if len(temperature_N) else np.nan
        after = {"temperature": plain_number(mean), **calibration_scores(calibrated_NC, truth_N)}
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
