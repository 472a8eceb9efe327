"""Scores of a trained classifier on a split of prepared songs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.baselines import BaselineData, fit_baselines
from midigenre.evaluation.scores import evaluate_label
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN
from midigenre.tasks.predict import predict_phrases


def evaluate_split(
    model: PhraseClassifier,
    data: PhraseDataModule,
    split: str | None,
    *,
    device: torch.device | str = "cpu",
    class_maps: Mapping[str, NDArray[np.int64]] | None = None,
    train: PhraseDataModule | None,
    seed: int = 0,
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
        seed: Seed of the bootstrap.
    """
    found = predict_phrases(model, data.eval_dataloader(split), device)
    result = {}
    for label, head in model.label_heads().items():
        if label not in found.truth:
            continue
        truth = found.truth[label]
        if class_maps is not None:
            truth = np.where(truth == UNKNOWN, UNKNOWN, class_maps[label][truth])
        result[label] = evaluate_label(
            found.log_probs[label],
            truth,
            found.song,
            head.classes,
            _baselines(label, truth, found.song, train, len(head.classes)),
            seed=seed,
        )
    return result


def _baselines(
    label: str,
    truth: NDArray[np.int64],
    song: NDArray[np.int64],
    train: PhraseDataModule | None,
    n_classes: int,
) -> dict[str, Any]:
    """Baselines of both levels, fitted on the training songs."""
    if train is None:
        return {level: fit_baselines(None) for level in ("phrase", "song")}
    by_phrase = np.repeat(np.arange(n_classes), train.class_counts("train")[label])
    by_song = train.labels[label][train.shards.rows("train")]
    _, first = np.unique(song, return_index=True)
    return {
        "phrase": fit_baselines(BaselineData(by_phrase, truth, n_classes)),
        "song": fit_baselines(BaselineData(by_song, truth[first], n_classes)),
    }
