"""Scores of a trained classifier on a split of prepared songs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.baselines import (
    BASELINES,
    GONE,
    LEVELS,
    FittedLabel,
    predict_baselines,
)
from midigenre.evaluation.calibration import Calibration, LevelCalibration, song_energy
from midigenre.evaluation.kept_baselines import kept_baselines
from midigenre.evaluation.predictions import LabelPredictions, songs_path, write_predictions
from midigenre.evaluation.scores import evaluate_label, song_log_probs, song_truth
from midigenre.evaluation.songs import set_apart
from midigenre.evaluation.within import SOURCE_MAJORITY, Sources, source_majority
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN
from midigenre.tasks.predict import Predictions, predict_phrases
from midigenre.tasks.songs import SongAggregate

OTHER_CLASSES = "the run's own songs have other classes by now"

Aggregate = Callable[
    [str, Predictions, PhraseDataModule, str | None],
    tuple[NDArray[np.int64], NDArray[np.float64]],
]
"""From a label, the phrases' predictions, and the songs and split that they are of, to the songs in
ascending order and their log-probabilities."""


def evaluate_split(
    model: PhraseClassifier,
    data: PhraseDataModule,
    split: str | None,
    *,
    device: torch.device | str = "cpu",
    class_maps: Mapping[str, NDArray[np.int64]] | None = None,
    train: PhraseDataModule | None,
    seed: int = 0,
    predictions: Path | None = None,
    calibration: Calibration | None = None,
    aggregate: Aggregate | None = None,
    fitted: Mapping[str, FittedLabel | str] | None = None,
) -> dict[str, Any]:
    """``evaluation.json`` of a split: phrase and song level for each label.

    Args:
        model: The classifier.
        data: The songs.
        split: ``train``, ``val``, ``test`` or None for all songs.
        device: Where to compute.
        class_maps: For each label, the model's class index of each of the songs' class indices;
            None where they are the same.
        train: Where the baselines are fitted, the run's own songs; None where those are gone.
        seed: Seed of the bootstrap and of the baselines.
        predictions: File to write the phrases' predictions to (see
            :mod:`midigenre.evaluation.predictions`), those of the songs beside it as
            ``<name>_songs.csv``; None for no files.
        calibration: The run's own (:func:`fit_calibration`); None without.
        aggregate: Scores songs; None for the mean log-probability over their phrases.
        fitted: The baselines of ``train`` where they are at hand (:func:`fitted_baselines`).

    Returns:
        For each label and level what :func:`~midigenre.evaluation.scores.evaluate_label` gives,
        ``baselines_train`` (how many songs or phrases the baselines saw), and ``out_of_domain``
        (:func:`flagged`).
    """
    found = predict_phrases(
        model, data.eval_dataloader(split), device, vectors=aggregate is not None
    )
    phrases = data.phrases(split)
    assert np.array_equal(phrases.song, found.song)
    assert np.array_equal(phrases.first, found.start)
    heads = {k: head for k, head in model.label_heads().items() if k in found.truth}
    if fitted is None:
        fitted = _fitted({label: tuple(head.classes) for label, head in heads.items()}, train, seed)
    fitted = {label: fitted[label] for label in heads}
    usable = {label: fit for label, fit in fitted.items() if not isinstance(fit, str)}
    baselines = predict_baselines(usable, data.reader, phrases) if usable else {}
    songs = np.unique(found.song)
    source_S = _sources(data)
    result: dict[str, Any] = {}
    tables: dict[str, dict[str, LabelPredictions]] = {level: {} for level in LEVELS}
    for label, head in heads.items():
        truth, log_probs = found.truth[label], found.log_probs[label]
        if class_maps is not None:
            truth = np.where(truth == UNKNOWN, UNKNOWN, class_maps[label][truth])
        fit = fitted[label]
        theirs: dict[str, dict[str, ArrayLike | str]] = (
            {level: dict[str, ArrayLike | str](dict.fromkeys(BASELINES, fit)) for level in LEVELS}
            if isinstance(fit, str)
            else {level: {**baselines[label][level]} for level in LEVELS}
        )
        own = None if train is None or isinstance(fit, str) else train
        sources = None
        if source_S is not None:
            sources = _label_sources(source_S, label, own, theirs, found.song, len(head.classes))
        song = None if aggregate is None else aggregate(label, found, data, split)
        parts: dict[str, NDArray[np.float64]] = {}
        if isinstance(aggregate, SongAggregate):
            parts = aggregate.components(label, found, data, split)
            for name, log_probs_SC in parts.items():  # those of its experts are baselines already
                if isinstance(theirs["song"].get(name, ""), str):
                    theirs["song"][name] = log_probs_SC.argmax(1)
        levels = evaluate_label(
            log_probs,
            truth,
            found.song,
            head.classes,
            theirs,
            seed=seed,
            song=song,
            temperatures=None if calibration is None else calibration.temperatures(label),
            sources=sources,
        )
        if not isinstance(fit, str):
            for level, scores in levels.items():
                scores["baselines_train"] = {
                    "n": fit.n_train[level], "available": fit.n_available[level]
                }  # fmt: skip
        if isinstance(aggregate, SongAggregate):
            levels["song"]["song_model"] = aggregate.about(label)
            set_apart(levels["song"], list(parts))
        result[label] = levels
        of_songs = song_log_probs(log_probs, found.song) if song is None else song
        by_level = {
            "phrase": (truth, log_probs),
            "song": (song_truth(truth, found.song)[1], of_songs[1]),
        }
        energies = {
            "phrase": found.energy[label],
            "song": song_energy(found.energy[label], found.song),
        }
        fits = {} if calibration is None else calibration.levels.get(label, {})
        for level, of_level in by_level.items():
            tables[level][label] = LabelPredictions(
                head.classes, *of_level, theirs[level], parts if level == "song" else {}
            )
            levels[level]["out_of_domain"] = flagged(fits.get(level), *of_level, energies[level])
    if predictions is not None and result:
        ids = np.array([row["song_id"] for row in data.shards.manifest], object)
        about = {"song_id": ids} | ({} if source_S is None else {"source": source_S})
        bars = {"first_bar": phrases.first, "end_bar": phrases.end}
        of_phrases = {name: column[phrases.song] for name, column in about.items()}
        write_predictions(predictions, {**of_phrases, **bars}, tables["phrase"])
        of_song = {name: column[songs] for name, column in about.items()}
        write_predictions(songs_path(predictions), of_song, tables["song"])
    return result


def fit_calibration(
    model: PhraseClassifier,
    data: PhraseDataModule,
    *,
    device: torch.device | str = "cpu",
    aggregate: Aggregate | None = None,
    found: Predictions | None = None,
) -> Calibration | None:
    """Fits a run's calibration on its validation songs; None where there are none.

    Args:
        model: The classifier.
        data: The run's own songs.
        device: Where to compute.
        aggregate: As for :func:`evaluate_split`.
        found: The validation phrases' predictions where they are at hand, with vectors if
            ``aggregate`` needs them.
    """
    if not len(data.rows("val")):
        return None
    if found is None:
        found = predict_phrases(
            model, data.eval_dataloader("val"), device, vectors=aggregate is not None
        )
    levels: dict[str, dict[str, LevelCalibration]] = {}
    for label in model.label_heads():
        if label not in found.truth:
            continue
        truth, log_probs, energy = found.truth[label], found.log_probs[label], found.energy[label]
        songs_S, log_probs_SC = (
            song_log_probs(log_probs, found.song)
            if aggregate is None
            else aggregate(label, found, data, "val")
        )
        assert np.array_equal(songs_S, np.unique(found.song))
        levels[label] = {
            "phrase": LevelCalibration.fit(log_probs, truth, energy),
            "song": LevelCalibration.fit(
                log_probs_SC, song_truth(truth, found.song)[1], song_energy(energy, found.song)
            ),
        }
    return Calibration(levels, aggregate is not None)


def flagged(
    fit: LevelCalibration | None,
    truth_N: NDArray[np.int64],
    log_probs_NC: NDArray[np.float64],
    energy_N: NDArray[np.float64],
) -> dict[str, Any] | None:
    """Shares of rows that are flagged as out of the domain, with a label and without one.

    Returns:
        ``labelled`` and ``unlabelled``, each with ``n`` and the shares by ``energy`` and by
        ``max_softmax`` (see :mod:`midigenre.evaluation.calibration`; None of no rows). None where
        nothing was fitted.
    """
    if fit is None or fit.max_energy is None:
        return None
    flags = {"energy": fit.out_of_domain(energy_N), "max_softmax": fit.low_confidence(log_probs_NC)}
    known_N = truth_N != UNKNOWN
    return {
        name: {"n": int(rows.sum())}
        | {by: float(flag_N[rows].mean()) if rows.any() else None for by, flag_N in flags.items()}
        for name, rows in (("labelled", known_N), ("unlabelled", ~known_N))
    }


def _sources(data: PhraseDataModule) -> NDArray[Any] | None:
    """Source of each prepared song; None for shards from before they kept it."""
    manifest = data.shards.manifest
    return np.array(manifest.column("source"), object) if "source" in manifest.columns else None


def _label_sources(
    source_S: NDArray[Any],
    label: str,
    train: PhraseDataModule | None,
    theirs: dict[str, dict[str, ArrayLike | str]],
    song_N: NDArray[np.int64],
    n_classes: int,
) -> Sources:
    """The phrases' sources; adds the guess of each source's majority to the baselines."""
    known = None if train is None else _sources(train)
    if train is None or known is None:
        return Sources(source_S[song_N], np.zeros((len(song_N), n_classes), bool))
    rows = train.rows("train")
    about = (known[rows], train.labels[label][rows], n_classes)
    for level, rows_N in (("phrase", song_N), ("song", np.unique(song_N))):
        guesses = source_majority(source_S[rows_N], *about)
        if guesses is not None:
            theirs[level][SOURCE_MAJORITY] = guesses
    return Sources.of_training(source_S[song_N], *about)


def fitted_baselines(
    model: PhraseClassifier, train: PhraseDataModule, seed: int = 0
) -> dict[str, FittedLabel | str]:
    """For each label of a classifier the baselines of its training songs, or why there are none."""
    heads = model.label_heads()
    return _fitted({label: tuple(head.classes) for label, head in heads.items()}, train, seed)


def _fitted(
    classes: Mapping[str, tuple[str, ...]], train: PhraseDataModule | None, seed: int
) -> dict[str, FittedLabel | str]:
    """For each label the baselines, or why there are none."""
    if train is None:
        return dict.fromkeys(classes, GONE)
    phrases = train.phrases("train")
    return {
        label: kept_baselines(train.shards.folder, train.reader, phrases, train.labels[label], seed)
        if train.shards.labels.classes.get(label) == names
        else OTHER_CLASSES
        for label, names in classes.items()
    }
