"""Baselines that a model must beat, fitted on the run's training split.

A baseline is a row in :data:`BASELINES`, a scikit-learn classifier, and one in
:data:`~midigenre.evaluation.exported_baselines.COUNTS`, what it counts in a phrase. Once fitted it
is an :class:`~midigenre.evaluation.exported_baselines.ExportedBaseline`, arrays that can be kept.
For each label there is one classifier of phrases and one of songs, whose counts are the sums over
their phrases.

They depend on the songs, their split and the tokens alone. What was fitted is kept beside the
shards as arrays of numbers, so that later runs on the same songs read in a moment what took
minutes to fit.

The settings are frozen: scikit-learn's defaults, except for what was chosen once on the
validation songs of ``twelve`` and is written beside each.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from midigenre.arrays import Floats, Longs
from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.evaluation.exported_baselines import (
    FEATURES,
    ExportedBaseline,
    PhraseCounts,
    apply_baselines,
    count_songs,
    export,
    songs_of,
)
from midigenre.evaluation.predictions import DAMAGED, LEVELS, below, read_arrays, write_arrays
from midigenre.files import read_bytes
from midigenre.spec import UNKNOWN

log = getLogger(__name__)

MAX_TRAIN = {"phrase": 20_000, "song": 10_000}
"""Most phrases and songs that are fitted on, a stratified draw: bounds time and memory."""

BASELINES_FOLDER = "baselines"
"""Subfolder of the shards' folder that holds them."""

KEPT = 24
"""Most files of one preparation; the least recently read one is deleted (a few MB each)."""

_VERSION = 2  # raise it when a baseline's counts or settings change

GONE = "the run's training split is gone"
NO_LABELS = "the training split has no labels"
ONE_CLASS = "the training split has one class only"


class DropConstant(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Leaves out columns that are constant in training: no tree splits them, yet they cost time.

    Unlike scikit-learn's ``VarianceThreshold`` it keeps one column if all are constant.
    """

    def fit(self, x: NDArray[Any], y: NDArray[Any]) -> DropConstant:
        """Finds the columns."""
        self.kept_ = np.flatnonzero((x != x[:1]).any(0)) if (x != x[:1]).any() else np.arange(1)
        return self

    def transform(self, x: NDArray[Any]) -> NDArray[Any]:
        """Leaves the others out."""
        return x[:, self.kept_]


class SmallLeaves(HistGradientBoostingClassifier):  # type: ignore[misc]
    """Leaves of a tenth of the rows below 200: with 20, fewer than 40 songs are never split."""

    def fit(self, x: NDArray[Any], y: NDArray[Any]) -> SmallLeaves:
        """Fits; from 200 rows on with scikit-learn's own 20 rows a leaf."""
        self.min_samples_leaf = min(20, max(1, len(y) // 10))
        super().fit(x, y)
        return self


def _trees(name: str, seed: int) -> Any:
    """Histogram gradient boosting (Ke et al. 2017, "LightGBM"): 100 iterations of 31 leaves.

    63 bins instead of 255 take a quarter of the time and score the same. Early stopping would hold
    out training data, and fails on a class with one sample.
    """
    trees = SmallLeaves(max_bins=63, early_stopping=False, random_state=seed)
    return make_pipeline(FunctionTransformer(FEATURES[name]), DropConstant(), trees)


def _ngram_estimator(seed: int) -> Any:
    """TF-IDF with sublinear frequencies and logistic regression (Wang and Manning 2012).

    C and the class weights were compared on validation phrases and lie within about a point of each
    other: 10 and none were taken.
    """
    return make_pipeline(
        TfidfTransformer(sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000, random_state=seed),
    )


BASELINES: dict[str, Callable[[int], Any]] = {
    # The most frequent class; of equally frequent ones the first.
    "majority": lambda _: DummyClassifier(strategy="prior"),
    # Standardised logistic regression did far worse: 0.56 against 0.67 over the real corpora.
    "metadata": lambda seed: _trees("metadata", seed),
    "ngram_lr": _ngram_estimator,
    "hist_gb": lambda seed: _trees("hist_gb", seed),
}
"""From a seed to an unfitted classifier; the one place where a baseline is registered."""


@dataclass(frozen=True)
class FittedLabel:
    """The baselines of one label.

    Attributes:
        models: For each level each baseline, or why there is none.
        n_train: For each level the phrases or songs that they were fitted on.
        n_available: For each level how many of the training split have the label.
    """

    models: Mapping[str, Mapping[str, ExportedBaseline | str]]
    n_train: Mapping[str, int]
    n_available: Mapping[str, int]


def fit_baselines(
    reader: PhraseReader, phrases: Phrases, class_of_song: Longs, seed: int = 0
) -> FittedLabel:
    """Fits every baseline to one label, on one thread so that every machine gives the same result.

    Args:
        reader: Reads the training songs.
        phrases: Their phrases.
        class_of_song: Class index of every song of the reader; those of
            :data:`~midigenre.spec.UNKNOWN` are left out.
        seed: Seed of the draw where there are more than :data:`MAX_TRAIN`, and of the classifiers.
    """
    phrases = phrases.select(class_of_song[phrases.song] != UNKNOWN)
    songs = np.unique(phrases.song)
    class_N, class_S = class_of_song[phrases.song], class_of_song[songs]
    chosen_N = stratified_sample(class_N, MAX_TRAIN["phrase"], seed)
    chosen_S = stratified_sample(class_S, MAX_TRAIN["song"], seed)
    truth = {"phrase": class_N[chosen_N], "song": class_S[chosen_S]}
    n_seen, width = len(np.unique(class_S)), int(class_of_song.max(initial=UNKNOWN)) + 1
    # The majority needs no second class.
    usable = [name for name in BASELINES if n_seen > 1 or (n_seen and name == "majority")]
    rows = _training_rows(usable, reader, phrases, chosen_N, songs[chosen_S])
    reason = ONE_CLASS if n_seen else NO_LABELS
    models: dict[str, dict[str, ExportedBaseline | str]] = {
        level: dict.fromkeys(BASELINES, reason) for level in LEVELS
    }
    for name in usable:
        for level in LEVELS:
            began = time.perf_counter()
            with threadpool_limits(1):
                fitted = BASELINES[name](seed).fit(_stack(rows.pop((name, level))), truth[level])
            models[level][name] = export(name, fitted, width)
            seconds = time.perf_counter() - began
            log.info("%s fitted to %d %ss in %.1f s", name, len(truth[level]), level, seconds)
    return FittedLabel(
        models,
        {level: len(truth[level]) for level in LEVELS},
        {"phrase": len(class_N), "song": len(class_S)},
    )


def _training_rows(
    names: list[str],
    reader: PhraseReader,
    phrases: Phrases,
    chosen_N: Longs,
    chosen_songs: Longs,
) -> dict[tuple[str, str], list[PhraseCounts]]:
    """Counts of the chosen phrases and songs for each baseline and level; each is read once."""
    is_chosen, of_song = np.zeros(len(phrases), bool), np.isin(phrases.song, chosen_songs)
    is_chosen[chosen_N] = True
    needed = is_chosen | of_song
    is_chosen, of_song = is_chosen[needed], of_song[needed]
    rows: dict[tuple[str, str], list[PhraseCounts]] = {
        (n, level): [] for n in names for level in LEVELS
    }
    begin = 0
    for piece, of_names in count_songs(reader, phrases.select(needed), names):
        here = slice(begin, begin + len(piece))
        begin = here.stop
        inside = of_song[here]
        for name, counts in of_names.items():
            rows[name, "phrase"].append(counts[is_chosen[here]])
            rows[name, "song"].append(songs_of(counts[inside], piece.select(inside)))
    return rows


def _stack(rows: list[PhraseCounts]) -> PhraseCounts:
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows)
    return sparse.vstack(rows, "csr")  # type: ignore[no-untyped-call]


def stratified_sample(class_N: Longs, n: int, seed: int) -> Longs:
    """Indices of ``n`` rows, ascending, with the classes in their shares and at least one of each.

    All of them where there are no more than ``n``. The rows of a class are in random order,
    evenly spaced over [0, 1); the ``n`` first ones are taken.
    """
    if len(class_N) <= n:
        return np.arange(len(class_N))
    order = np.random.default_rng(seed).permutation(len(class_N))
    place_N = np.empty(len(class_N))
    for c in np.unique(class_N):
        mine = order[class_N[order] == c]
        place_N[mine] = np.arange(len(mine)) / len(mine)
    return np.sort(np.argsort(place_N, kind="stable")[:n])


def predict_baselines(
    fitted: Mapping[str, FittedLabel], reader: PhraseReader, phrases: Phrases
) -> dict[str, dict[str, dict[str, Floats | str]]]:
    """Predicts phrases and their songs; see :func:`apply_baselines`.

    Returns:
        For each label, level and baseline the log-probabilities of every phrase, or of every song
        in ascending order, shape (N, C); or a text that says why there are none.
    """
    every = {
        (label, level, name): model
        for label, of_label in fitted.items()
        for level, models in of_label.models.items()
        for name, model in models.items()
    }
    usable = {key: model for key, model in every.items() if isinstance(model, ExportedBaseline)}
    predicted = apply_baselines(usable, reader, phrases)
    found: dict[str, Any] = {label: {level: {} for level in LEVELS} for label in fitted}
    for (label, level, name), model in every.items():
        found[label][level][name] = predicted.get((label, level, name), model)
    return found


def kept_baselines(
    folder: Path, reader: PhraseReader, phrases: Phrases, class_of_song: Longs, seed: int = 0
) -> FittedLabel:
    """:func:`fit_baselines`, or what an earlier run has kept of it in the folder of the shards.

    A file that is damaged, or a folder that cannot be written, costs the time of a fit and a line
    in the log.
    """
    path = folder / BASELINES_FOLDER / f"{_key(folder, reader, phrases, class_of_song, seed)}.npz"
    if path.is_file():
        try:
            found = _from_arrays(read_arrays(path))
        except DAMAGED as error:
            log.warning("%s is not readable (%s): baselines are fitted again", path, error)
        else:
            with contextlib.suppress(OSError):  # someone else's shards: they are read all the same
                path.touch()
            log.info("baselines read from %s", path)
            return found
    fitted = fit_baselines(reader, phrases, class_of_song, seed)
    if (arrays := _to_arrays(fitted)) is not None:
        try:
            write_arrays(path, arrays)
            files = sorted(path.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime)
            for old in files[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("baselines are not kept, %s cannot be written: %s", path, error)
    return fitted


def _key(
    folder: Path, reader: PhraseReader, phrases: Phrases, class_of_song: Longs, seed: int
) -> str:
    """Hash of all that a fit depends on."""
    labelled = phrases.select(class_of_song[phrases.song] != UNKNOWN)
    found = hashlib.sha256(read_bytes(folder / "spec.json"))  # it has the checksums of the songs
    settings = (_VERSION, sklearn.__version__, seed, MAX_TRAIN, reader.max_tokens,
                reader.marks, tuple(BASELINES))  # fmt: skip
    found.update(repr(settings).encode())
    songs = np.unique(labelled.song)
    for values in (labelled.song, labelled.first, labelled.end, class_of_song[songs]):
        found.update(np.ascontiguousarray(values, np.int64).tobytes())
    return found.hexdigest()[:16]


def _to_arrays(fitted: FittedLabel) -> dict[str, NDArray[Any]] | None:
    """The kept baselines; None where one could not be fitted."""
    arrays: dict[str, NDArray[Any]] = {}
    for level in LEVELS:
        arrays[f"{level}/n"] = np.array([fitted.n_train[level], fitted.n_available[level]])
        for name, model in fitted.models[level].items():
            if isinstance(model, str):
                return None
            arrays[f"{level}/{name}/n_classes"] = np.array(model.n_classes)
            arrays |= {f"{level}/{name}/of/{key}": value for key, value in model.arrays.items()}
    return arrays


def _from_arrays(arrays: Mapping[str, NDArray[Any]]) -> FittedLabel:
    models, n_train, n_available = {}, {}, {}
    for level in LEVELS:
        own = below(arrays, level)
        n_train[level], n_available[level] = own["n"].tolist()
        models[level] = {
            name: ExportedBaseline(name, int(own[f"{name}/n_classes"]), below(own, f"{name}/of"))
            for name in BASELINES
        }
    return FittedLabel(models, n_train, n_available)
