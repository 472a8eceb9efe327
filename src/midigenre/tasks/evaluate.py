"""Predictions and scores of a trained classifier on a split of prepared songs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from midigenre.arrays import Bools, Floats, Longs
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import Phrases
from midigenre.evaluation.baselines import (
    BASELINES,
    GONE,
    FittedLabel,
    kept_baselines,
    predict_baselines,
)
from midigenre.evaluation.blend import Blends
from midigenre.evaluation.calibration import Calibration, LevelCalibration, song_energy
from midigenre.evaluation.predictions import (
    LEVELS,
    Predictions,
    Tables,
    song_log_probs,
    song_truth,
    write_predictions,
    write_tables,
)
from midigenre.evaluation.scores import SOURCE_MAJORITY, evaluate, source_classes, source_majority
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN
from midigenre.tasks.predict import PhraseOutputs, predict_phrases
from midigenre.tasks.songs import score_songs, song_components

OTHER_CLASSES = "the run's own songs have other classes by now"


def evaluate_split(
    model: PhraseClassifier,
    data: PhraseDataModule,
    split: str | None,
    *,
    device: torch.device | str = "cpu",
    class_maps: Mapping[str, Longs] | None = None,
    train: PhraseDataModule | None,
    seed: int = 0,
    predictions: Path | None = None,
    calibration: Calibration | None = None,
    blends: Blends | None = None,
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
        predictions: CSV file to write the phrases' predictions to, those of the songs beside it as
            ``<name>_songs.csv``, and both in full precision as ``<name>.npz`` (see
            :mod:`midigenre.evaluation.predictions`); None for no files.
        calibration: The run's own (:func:`fit_calibration`); None without.
        blends: Score songs; None for the mean log-probability over their phrases.
        fitted: The baselines of ``train`` where they are at hand (:func:`fitted_baselines`).

    Returns:
        For each label and level what :func:`~midigenre.evaluation.scores.evaluate` gives, and
        ``baselines_train``: how many songs or phrases the baselines saw.
    """
    if fitted is None:
        fitted = fitted_baselines(model, train, seed)
    found = predict_phrases(model, data.eval_dataloader(split), device)
    tables = _tables(model, data, split, found, class_maps, train, calibration, blends, fitted)
    result: dict[str, Any] = {}
    for label, levels in tables.items():
        result[label] = {level: evaluate(table, seed) for level, table in levels.items()}
        if not isinstance(fit := fitted[label], str):
            for level, scores in result[label].items():
                n, available = fit.n_train[level], fit.n_available[level]
                scores["baselines_train"] = {"n": n, "available": available}
        if blends is not None:
            result[label]["song"]["song_model"] = {"kind": "blend"} | blends.blends[label].about()
    if predictions is not None and result:
        write_predictions(predictions, tables)
        write_tables(predictions.with_suffix(".npz"), tables)
    return result


def _tables(
    model: PhraseClassifier,
    data: PhraseDataModule,
    split: str | None,
    found: PhraseOutputs,
    class_maps: Mapping[str, Longs] | None,
    train: PhraseDataModule | None,
    calibration: Calibration | None,
    blends: Blends | None,
    fitted: Mapping[str, FittedLabel | str],
) -> Tables:
    """The predictions of each label at each level; arguments as of :func:`evaluate_split`."""
    phrases = data.phrases(split)
    assert np.array_equal(phrases.song, found.song)
    assert np.array_equal(phrases.first, found.start)
    songs = np.unique(found.song)
    where = _where(data, phrases, songs)
    song_N = {"phrase": found.song, "song": songs}
    heads = {k: head for k, head in model.label_heads().items() if k in found.truth}
    usable = {k: of for k in heads if not isinstance(of := fitted[k], str)}
    baselines = predict_baselines(usable, data.reader, phrases) if usable else {}
    parts = {} if blends is None else song_components(blends, found, data.reader, phrases)
    tables: dict[str, dict[str, Predictions]] = {}
    for label, head in heads.items():
        n_classes = len(head.classes)
        truth_N = found.truth[label]
        if class_maps is not None:
            truth_N = np.where(truth_N == UNKNOWN, UNKNOWN, class_maps[label][truth_N])
        truth = {"phrase": truth_N, "song": song_truth(truth_N, found.song)[1]}
        components = parts.get(label, {})
        log_probs = _log_probs(found, label, blends, components)
        energy = {
            "phrase": found.energy[label],
            "song": song_energy(found.energy[label], found.song),
        }
        fits = {} if calibration is None else calibration.levels.get(label, {})
        known = None if label not in usable or train is None else _training_sources(train, label)
        tables[label] = {}
        for level in LEVELS:
            theirs: dict[str, Longs | str] = (
                {**baselines[label][level]} if label in usable
                else dict.fromkeys(BASELINES, str(fitted[label]))
            )  # fmt: skip
            source_N, allowed_NC = where[level].get("source"), None
            if source_N is not None:
                allowed_NC = np.zeros((len(source_N), n_classes), bool)
                if known is not None:
                    allowed_NC = source_classes(source_N, *known, n_classes)
                    guesses = source_majority(source_N, *known, n_classes)
                    if guesses is not None:
                        theirs[SOURCE_MAJORITY] = guesses
            if level == "song":
                for name, log_probs_SC in components.items():  # its experts are baselines already
                    if isinstance(theirs.get(name, ""), str):
                        theirs[name] = log_probs_SC.argmax(1)
            fit = fits.get(level)
            tables[label][level] = Predictions(
                tuple(head.classes),
                song_N[level],
                truth[level],
                log_probs[level],
                theirs,
                components if level == "song" else {},
                where[level],
                None if fit is None else np.full(len(truth[level]), fit.temperature),
                _flags(fit, log_probs[level], energy[level]),
                allowed_NC,
            )
    return tables


def _log_probs(
    found: PhraseOutputs, label: str, blends: Blends | None, components: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Log-probabilities of phrases and of songs."""
    phrases_NC = found.log_probs[label]
    if blends is None:
        return {"phrase": phrases_NC, "song": song_log_probs(phrases_NC, found.song)[1]}
    return {"phrase": phrases_NC, "song": blends.blends[label].pool.log_probs(components)}


def _where(
    data: PhraseDataModule, phrases: Phrases, songs: Longs
) -> dict[str, dict[str, NDArray[Any]]]:
    """For each level the columns that say where a row comes from."""
    manifest = data.shards.manifest
    about = {
        name: np.array(manifest.column(name), object)
        for name in ("song_id", "source")
        if name == "song_id" or name in manifest.columns
    }
    bars = {"first_bar": phrases.first, "end_bar": phrases.end}
    return {
        "phrase": {name: column[phrases.song] for name, column in about.items()} | bars,
        "song": {name: column[songs] for name, column in about.items()},
    }


def _training_sources(train: PhraseDataModule, label: str) -> tuple[NDArray[Any], Longs] | None:
    """Source and class of each training song; None where sources are not known."""
    manifest, rows = train.shards.manifest, train.rows("train")
    if "source" not in manifest.columns:
        return None
    return np.array(manifest.column("source"), object)[rows], train.labels[label][rows]


def _flags(
    fit: LevelCalibration | None, log_probs_NC: Floats, energy_N: Floats
) -> dict[str, Bools]:
    """Which rows are out of the domain; empty where nothing was fitted."""
    if fit is None or fit.max_energy is None:
        return {}
    return {
        "energy": fit.out_of_domain(energy_N), "max_softmax": fit.low_confidence(log_probs_NC)
    }  # fmt: skip


def fit_calibration(
    model: PhraseClassifier,
    data: PhraseDataModule,
    *,
    device: torch.device | str = "cpu",
    blends: Blends | None = None,
    found: PhraseOutputs | None = None,
) -> Calibration | None:
    """Fits a run's calibration on its validation songs; None where there are none.

    Args:
        model: The classifier.
        data: The run's own songs.
        device: Where to compute.
        blends: As for :func:`evaluate_split`.
        found: What the model says of the validation phrases, where that is at hand.
    """
    if not len(data.rows("val")):
        return None
    if found is None:
        found = predict_phrases(model, data.eval_dataloader("val"), device)
    songs = score_songs(blends, found, data.reader, data.phrases("val"))
    levels: dict[str, dict[str, LevelCalibration]] = {}
    for label in (label for label in model.label_heads() if label in found.truth):
        truth, log_probs, energy = found.truth[label], found.log_probs[label], found.energy[label]
        levels[label] = {
            "phrase": LevelCalibration.fit(log_probs, truth, energy),
            "song": LevelCalibration.fit(
                songs[label], song_truth(truth, found.song)[1], song_energy(energy, found.song)
            ),
        }
    return Calibration(levels, blends is not None)


def fitted_baselines(
    model: PhraseClassifier, train: PhraseDataModule | None, seed: int = 0
) -> dict[str, FittedLabel | str]:
    """For each label of a classifier the baselines of its training songs, or why there are none."""
    classes = {label: tuple(head.classes) for label, head in model.label_heads().items()}
    if train is None:
        return dict.fromkeys(classes, GONE)
    phrases = train.phrases("train")
    return {
        label: kept_baselines(train.shards.folder, train.reader, phrases, train.labels[label], seed)
        if train.shards.labels.classes.get(label) == names
        else OTHER_CLASSES
        for label, names in classes.items()
    }
