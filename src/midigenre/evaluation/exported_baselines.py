"""Baselines as plain arrays, so that a run can keep them and run no stranger's code.

A pickled scikit-learn model executes what its file says. An :class:`ExportedBaseline` is the same
classifier as arrays of numbers (``numpy`` reads them with ``allow_pickle=False``), with the few
lines that evaluate it; the tests hold it equal to scikit-learn's ``predict_proba``. There are three
forms:

``prior``: the share of each class, whatever the song.
``linear``: TF-IDF with sublinear frequencies and L2 norm, then logistic regression.
``trees``: features, then histogram gradient boosting: the sum of one leaf of each tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import log_softmax

from midigenre.arrays import LOG_ZERO, Floats, Longs
from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.evaluation.features import (
    Counts,
    ReadPhrase,
    metadata_counts,
    metadata_features,
    ngram_counts,
    no_counts,
    read_phrases,
    songs_of,
    token_counts,
    token_shares,
    whole_songs,
)
from midigenre.spec import TokenSpec

Arrays = Mapping[str, NDArray[Any]]

COUNTS: dict[str, Callable[[Sequence[ReadPhrase], TokenSpec], Counts]] = {
    "majority": no_counts,
    "metadata": metadata_counts,
    "ngram_lr": ngram_counts,
    "hist_gb": token_counts,
}
"""What each expert counts in a phrase; the names are those of the baselines that they were."""

FEATURES: dict[str, Callable[[Counts], Any]] = {
    "metadata": metadata_features,
    "hist_gb": token_shares,
}
"""What the trees of an expert see of its counts."""

PHRASES_AT_ONCE = 2048
_CELLS_AT_ONCE = 1 << 22  # rows times trees whose place is in memory together


@dataclass(frozen=True)
class ExportedBaseline:
    """A classifier of phrases or songs by their counts.

    Attributes:
        name: Key of :data:`COUNTS`.
        n_classes: Number of classes of the label, C; it may know fewer.
        arrays: What it is made of, see :func:`export`.
    """

    name: str
    n_classes: int
    arrays: Arrays

    def log_probs(self, counts: Counts) -> Floats:
        """Log-probabilities of the classes.

        Args:
            counts: Of phrases, or sums over the phrases of each song, shape (S, features).

        Returns:
            Shape (S, C); :data:`LOG_ZERO` for classes that it has not seen.
        """
        raw_SK = self._raw(counts).astype(np.float64)
        classes = self.arrays["classes"]
        if raw_SK.shape[1] < len(classes):  # of two there is only the second one's log-odds
            raw_SK = np.concatenate([np.zeros_like(raw_SK), raw_SK], 1)
        found_SC = np.full((len(raw_SK), self.n_classes), LOG_ZERO)
        found_SC[:, classes] = log_softmax(raw_SK, axis=1)
        return found_SC

    def predict(self, counts: Counts) -> Longs:
        """The most likely class of each row, shape (S,)."""
        found: Longs = self.log_probs(counts).argmax(1)
        return found

    def _raw(self, counts: Counts) -> NDArray[Any]:
        if "prior" in self.arrays:
            return np.tile(np.log(self.arrays["prior"]), (counts.shape[0], 1))
        return self._linear(counts) if "coef" in self.arrays else self._trees(counts)

    def _linear(self, counts: Counts) -> NDArray[Any]:
        x = sparse.csr_matrix(counts, copy=True)  # type: ignore[no-untyped-call]
        x.data = (np.log(x.data) + 1) * self.arrays["idf"][x.indices]
        row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
        norm_S = np.sqrt(np.bincount(row, x.data**2, minlength=x.shape[0]))
        raw = x @ self.arrays["coef"].T / np.where(norm_S > 0, norm_S, 1)[:, None]
        return np.asarray(raw + self.arrays["intercept"])

    def _trees(self, counts: Counts) -> NDArray[Any]:
        a = self.arrays
        x = np.asarray(FEATURES[self.name](counts)[:, a["columns"]], np.float64)
        roots_IK = a["roots"]
        step = max(1, _CELLS_AT_ONCE // max(1, roots_IK.size))
        parts = [self._walk(x[i : i + step], roots_IK) for i in range(0, len(x), step)]
        return np.concatenate([np.zeros((0, roots_IK.shape[1])), *parts]) + a["baseline"]

    def _walk(self, x: Floats, roots_IK: NDArray[Any]) -> Floats:
        """Sum of the leaves that rows end in, shape (rows, K): all trees go down together."""
        a = self.arrays
        row = np.arange(len(x))[:, None]
        at = np.broadcast_to(roots_IK.ravel(), (len(x), roots_IK.size))
        while True:  # a leaf is its own child
            left = x[row, a["feature"][at]] <= a["threshold"][at]
            after = np.where(left, a["left"][at], a["right"][at])
            if np.array_equal(after, at):
                break
            at = after
        values: Floats = a["value"][at].reshape(len(x), *roots_IK.shape).sum(1)
        return values


def export(name: str, estimator: Any, n_classes: int) -> ExportedBaseline:
    """A fitted baseline as an :class:`ExportedBaseline`.

    Args:
        name: Key of :data:`COUNTS`, see :mod:`midigenre.evaluation.baselines`.
        estimator: Its fitted scikit-learn classifier.
        n_classes: Number of classes of the label, C.
    """
    classes = np.asarray(estimator.classes_, np.int64)
    if name == "majority":
        return ExportedBaseline(
            name, n_classes, {"classes": classes, "prior": estimator.class_prior_}
        )
    last = estimator[-1]
    if name == "ngram_lr":
        return ExportedBaseline(
            name,
            n_classes,
            {
                "classes": classes,
                "idf": np.asarray(estimator[0].idf_),
                "coef": np.asarray(last.coef_),
                "intercept": np.asarray(last.intercept_),
            },
        )
    # One tree for each iteration and class (one for two classes); its nodes are a plain table.
    trees = [[tree.nodes for tree in trees_K] for trees_K in last._predictors]
    flat = [nodes for nodes_K in trees for nodes in nodes_K]
    starts = np.cumsum([0, *(len(nodes) for nodes in flat)])
    nodes = np.concatenate(flat)
    first = np.repeat(starts[:-1], [len(nodes) for nodes in flat])
    leaf, here = nodes["is_leaf"].astype(bool), np.arange(len(nodes))
    return ExportedBaseline(
        name,
        n_classes,
        {
            "classes": classes,
            "columns": np.asarray(estimator[1].kept_, np.int64),
            "feature": np.where(leaf, 0, nodes["feature_idx"]).astype(np.int32),
            "threshold": np.where(leaf, 0.0, nodes["num_threshold"]),
            "left": np.where(leaf, here, first + nodes["left"]).astype(np.int32),
            "right": np.where(leaf, here, first + nodes["right"]).astype(np.int32),
            "value": nodes["value"].astype(np.float64),
            "roots": starts[:-1].reshape(len(trees), -1).astype(np.int32),
            "baseline": np.asarray(last._baseline_prediction, np.float64).ravel(),
        },
    )


def exported_log_probs(
    experts: Mapping[str, Mapping[str, ExportedBaseline]], reader: PhraseReader, phrases: Phrases
) -> dict[str, dict[str, Floats]]:
    """What experts say about songs; each phrase is read once.

    Args:
        experts: For each label its experts by name.
        reader: Reads the songs.
        phrases: Their phrases, those of a song one after the other, songs in ascending order.

    Returns:
        For each label and expert the log-probabilities of the songs in ascending order, (S, C).
    """
    needed = {name for named in experts.values() for name in named}
    found: dict[str, dict[str, list[Floats]]] = {
        label: {name: [np.zeros((0, e.n_classes))] for name, e in named.items()}
        for label, named in experts.items()
    }
    for chunk in whole_songs(phrases, PHRASES_AT_ONCE) if needed else ():
        read = list(read_phrases(reader, chunk))
        counts = {name: songs_of(COUNTS[name](read, reader.spec), chunk) for name in needed}
        for label, named in experts.items():
            for name, expert in named.items():
                found[label][name].append(expert.log_probs(counts[name]))
    return {
        label: {name: np.concatenate(parts) for name, parts in named.items()}
        for label, named in found.items()
    }
