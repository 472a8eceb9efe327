"""Scores of a trained classifier on a split of prepared songs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.baselines import (
    BASELINES,
    GONE,
    LEVELS,
    FittedLabel,
    fit_baselines,
    predict_baselines,
)
from midigenre.evaluation.predictions import LabelPredictions, songs_path, write_predictions
from midigenre.evaluation.scores import evaluate_label, song_log_probs, song_truth
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN
from midigenre.tasks.predict import predict_phrases

OTHER_CLASSES = "the run's own songs have other classes by now"


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
    """
    found = predict_phrases(model, data.eval_dataloader(split), device)
    phrases = data.phrases(split)
    assert np.array_equal(phrases.song, found.song)
    assert np.array_equal(phrases.first, found.start)
    heads = {k: head for k, head in model.label_heads().items() if k in found.truth}
    fitted = _fitted({label: tuple(head.classes) for label, head in heads.items()}, train, seed)
    usable = {label: fit for label, fit in fitted.items() if not isinstance(fit, str)}
    baselines = predict_baselines(usable, data.reader, phrases) if usable else {}
    result: dict[str, Any] = {}
    tables: dict[str, dict[str, LabelPredictions]] = {level: {} for level in LEVELS}
    for label, head in heads.items():
        truth, log_probs = found.truth[label], found.log_probs[label]
        if class_maps is not None:
            truth = np.where(truth == UNKNOWN, UNKNOWN, class_maps[label][truth])
        fit = fitted[label]
        theirs: Mapping[str, Mapping[str, Any]] = (
            {level: dict.fromkeys(BASELINES, fit) for level in LEVELS}
            if isinstance(fit, str)
            else baselines[label]
        )
        levels = evaluate_label(log_probs, truth, found.song, head.classes, theirs, seed=seed)
        if not isinstance(fit, str):
            for level, scores in levels.items():
                scores["baselines_train"] = {
                    "n": fit.n_train[level], "available": fit.n_available[level]
                }  # fmt: skip
        result[label] = levels
        for level, of_level in {
            "phrase": (truth, log_probs),
            "song": (
                song_truth(truth, found.song)[1],
                song_log_probs(log_probs, found.song)[1],
            ),
        }.items():
            tables[level][label] = LabelPredictions(head.classes, *of_level, theirs[level])
    if predictions is not None and result:
        ids = np.array([row["song_id"] for row in data.shards.manifest], object)
        write_predictions(
            predictions,
            {"song_id": ids[phrases.song], "first_bar": phrases.first, "end_bar": phrases.end},
            tables["phrase"],
        )
        songs = {"song_id": ids[np.unique(phrases.song)]}
        write_predictions(songs_path(predictions), songs, tables["song"])
    return result


def _fitted(
    classes: Mapping[str, tuple[str, ...]], train: PhraseDataModule | None, seed: int
) -> dict[str, FittedLabel | str]:
    """For each label the baselines, or why there are none."""
    if train is None:
        return dict.fromkeys(classes, GONE)
    phrases = train.phrases("train")
    return {
        label: fit_baselines(train.reader, phrases, train.labels[label], seed)
        if train.shards.labels.classes.get(label) == names
        else OTHER_CLASSES
        for label, names in classes.items()
    }
