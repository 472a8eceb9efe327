"""Scores of a trained classifier on prepared songs; fitting of calibration and blends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from logging import getLogger
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
from midigenre.evaluation.blend import ENCODER, POOLED, Blend, Blends, fingerprint, fit_pool
from midigenre.evaluation.calibration import Calibration, LevelCalibration, song_energy
from midigenre.evaluation.exported_baselines import ExportedBaseline, exported_log_probs
from midigenre.evaluation.predictions import (
    LEVELS,
    PIECE,
    Predictions,
    pieces_of,
    song_log_probs,
    song_truth,
    write_predictions,
    write_tables,
)
from midigenre.evaluation.scores import SOURCE_MAJORITY, evaluate, source_classes, source_majority
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN
from midigenre.tasks.predict import PhraseOutputs, predict_phrases, song_components, song_scores

log = getLogger(__name__)

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
        train: Where the baselines are fitted, the run's own songs; None if those are gone.
        seed: Seed of the bootstrap and of the baselines.
        predictions: CSV file to write the phrases' predictions to, those of the songs beside it as
            ``<name>_songs.csv``, of pieces as ``<name>_pieces.csv``, and all in full precision as
            ``<name>.npz`` (see :mod:`midigenre.evaluation.predictions`); None for no files.
        calibration: The run's own (:func:`fit_calibration`); None without.
        blends: Score songs; None for the mean log-probability over their phrases.
        fitted: The baselines of ``train`` if already fitted (:func:`fitted_baselines`).

    Returns:
        For each label and level what :func:`~midigenre.evaluation.scores.evaluate` gives, and
        ``baselines_train``: how many songs or phrases the baselines saw. The level ``piece`` is
        there where songs share a group.
    """
    if fitted is None:
        fitted = fitted_baselines(model, train, seed)
    found = predict_phrases(model, data.eval_dataloader(split), device)
    phrases = data.phrases(split)
    assert np.array_equal(phrases.song, found.song)
    assert np.array_equal(phrases.first, found.start)
    heads = {k: head for k, head in model.label_heads().items() if k in found.truth}
    usable = {k: of for k in heads if not isinstance(of := fitted[k], str)}
    baselines = predict_baselines(usable, data.reader, phrases) if usable else {}
    parts = {} if blends is None else song_components(blends, found, data.reader, phrases)
    song_N = {"phrase": found.song, "song": np.unique(found.song)}
    piece_S = _pieces(data)
    where = _where(data, phrases, song_N)
    tables: dict[str, dict[str, Predictions]] = {}
    for label, head in heads.items():
        truth_N, components = found.truth[label], parts.get(label, {})
        if class_maps is not None:
            truth_N = np.where(truth_N == UNKNOWN, UNKNOWN, class_maps[label][truth_N])
        truth = {"phrase": truth_N, "song": song_truth(truth_N, found.song)[1]}
        log_probs = {"phrase": found.log_probs[label]}
        log_probs["song"] = (
            song_log_probs(log_probs["phrase"], found.song)[1]
            if blends is None
            else blends.blends[label].pool.log_probs(components)
        )
        energy = {"phrase": found.energy[label]}
        energy["song"] = song_energy(energy["phrase"], found.song)
        fits = {} if calibration is None else calibration.levels.get(label, {})
        known = None if label not in usable or train is None else _training_sources(train, label)
        tables[label] = {}
        for level in LEVELS:
            fits_NC: dict[str, Floats | str] = (
                baselines[label][level] if label in usable
                else dict.fromkeys(BASELINES, str(fitted[label]))
            )  # fmt: skip
            theirs = {k: of if isinstance(of, str) else of.argmax(1) for k, of in fits_NC.items()}
            allowed_NC, guesses = _by_source(where[level].get("source"), known, len(head.classes))
            if guesses is not None:
                theirs[SOURCE_MAJORITY] = guesses
            for name, log_probs_SC in components.items() if level == "song" else ():
                if isinstance(theirs.get(name, ""), str):  # its experts are baselines already
                    theirs[name] = log_probs_SC.argmax(1)
                    fits_NC = fits_NC | {name: log_probs_SC}
            fit = fits.get(level)
            flags: dict[str, Bools] = {}
            if fit is not None and fit.max_energy is not None:
                flags["energy"] = fit.out_of_domain(energy[level])
                flags["max_softmax"] = fit.low_confidence(log_probs[level])
            tables[label][level] = Predictions(
                tuple(head.classes), song_N[level], piece_S[song_N[level]], truth[level],
                log_probs[level], theirs,
                components if level == "song" else {}, where[level],
                None if fit is None else np.full(len(truth[level]), fit.temperature),
                flags, allowed_NC,
            )  # fmt: skip
            if level == "song" and PIECE in where["song"]:
                given = {k: of for k, of in fits_NC.items() if not isinstance(of, str)}
                tables[label][PIECE] = pieces_of(tables[label][level], given)
    result: dict[str, Any] = {}
    for label, levels in tables.items():
        result[label] = {level: evaluate(table, seed) for level, table in levels.items()}
        if label in usable:
            for level, scores in result[label].items():
                if level == PIECE:  # the songs' baselines, pooled
                    continue
                n, available = usable[label].n_train[level], usable[label].n_available[level]
                scores["baselines_train"] = {"n": n, "available": available}
        if blends is not None:
            result[label]["song"]["song_model"] = {"kind": "blend"} | blends.blends[label].about()
    if predictions is not None and result:
        write_predictions(predictions, tables)
        write_tables(predictions.with_suffix(".npz"), tables)
    return result


def _pieces(data: PhraseDataModule) -> Longs:
    """Piece of every prepared song: the first one of its group, itself where it has none."""
    first: dict[str, int] = {}
    groups = data.shards.manifest.column("group")
    return np.array([first.setdefault(g, i) if g else i for i, g in enumerate(groups)], np.int64)


def _where(
    data: PhraseDataModule, phrases: Phrases, song_N: Mapping[str, Longs]
) -> dict[str, dict[str, NDArray[Any]]]:
    """For each level the columns that identify a row."""
    manifest = data.shards.manifest
    about: dict[str, NDArray[Any]] = {
        name: np.array(manifest.column(name), object)
        for name in ("song_id", "source")
        if name in manifest.columns
    }
    groups, ids = manifest.column("group"), manifest.column("song_id")
    if len({*groups} - {""}) < len([g for g in groups if g]):  # one has several songs
        names = [g or song_id for g, song_id in zip(groups, ids, strict=True)]
        about[PIECE] = np.array(names, object)
    where: dict[str, dict[str, NDArray[Any]]] = {
        level: {name: column[songs] for name, column in about.items()}
        for level, songs in song_N.items()
    }
    where["phrase"] |= {"first_bar": phrases.first, "end_bar": phrases.end}
    return where


def _by_source(
    source_N: NDArray[Any] | None, known: tuple[NDArray[Any], Longs] | None, n_classes: int
) -> tuple[Bools | None, Longs | None]:
    """The classes of each row's source in training, and its commonest one; None where unknown."""
    if source_N is None:
        return None, None
    if known is None:
        return np.zeros((len(source_N), n_classes), bool), None
    return source_classes(source_N, *known, n_classes), source_majority(source_N, *known, n_classes)


def _training_sources(train: PhraseDataModule, label: str) -> tuple[NDArray[Any], Longs] | None:
    """Source and class of each training song; None where sources are not known."""
    manifest, rows = train.shards.manifest, train.rows("train")
    if "source" not in manifest.columns:
        return None
    return np.array(manifest.column("source"), object)[rows], train.labels[label][rows]


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


def fit_calibration(
    model: PhraseClassifier, data: PhraseDataModule, *, device: torch.device | str = "cpu",
    blends: Blends | None = None, found: PhraseOutputs | None = None,
) -> Calibration | None:  # fmt: skip
    """Fits a run's calibration on its validation songs; None where there are none.

    Args:
        model: The classifier.
        data: The run's own songs.
        device: Where to compute.
        blends: As for :func:`evaluate_split`.
        found: The model's output for the validation phrases, if already computed.
    """
    if not len(data.rows("val")):
        return None
    if found is None:
        found = predict_phrases(model, data.eval_dataloader("val"), device)
    songs = song_scores(blends, found, data.reader, data.phrases("val"))
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


def fit_blends(
    model: PhraseClassifier, data: PhraseDataModule, fitted: Mapping[str, FittedLabel | str],
    val: PhraseOutputs | None,
) -> Blends:  # fmt: skip
    """Fits the blend of each label on the run's own songs.

    A blend's experts have seen the training songs only, and its weights the validation songs only;
    neither has seen a test song. The checkpoint was chosen on the validation songs, too, which
    slightly favours the encoder.

    Args:
        model: The classifier.
        data: The run's songs.
        fitted: The baselines of each label, or why there are none.
        val: The model's output for the validation phrases; None where there are none.
    """
    began = time.perf_counter()
    classes = {label: tuple(head.classes) for label, head in model.label_heads().items()}
    experts: dict[str, dict[str, ExportedBaseline]] = {}
    for label, names in classes.items():
        fit = fitted[label]
        of_songs = {} if isinstance(fit, str) else fit.models["song"]
        experts[label] = {
            name: replace(expert, n_classes=len(names))
            for name in POOLED
            if isinstance(expert := of_songs.get(name), ExportedBaseline)
        }
    theirs = exported_log_probs(experts, data.reader, data.phrases("val"))
    blends = {}
    for label, names in classes.items():
        if val is None or label not in val.truth:
            ours: Floats = np.zeros((0, len(names)))
            truth_S: Longs = np.zeros(0, np.int64)
            theirs[label] = dict.fromkeys(experts[label], ours)
        else:
            ours = song_log_probs(val.log_probs[label], val.song)[1]
            truth_S = song_truth(val.truth[label], val.song)[1]
        without = fit_pool(theirs[label], truth_S) if theirs[label] else None
        pool = fit_pool({ENCODER: ours} | theirs[label], truth_S)
        blends[label] = Blend(pool, experts[label], without)
    log.info("task.song=blend fitted in %.1f s", time.perf_counter() - began)
    return Blends(classes, blends, fingerprint(model))
