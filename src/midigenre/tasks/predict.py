"""Runs a trained classifier over phrases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from midigenre.models import PhraseClassifier
from midigenre.spec import Batch


@dataclass(frozen=True)
class Predictions:
    """Log-probabilities of phrases, with where they come from.

    Attributes:
        log_probs: For each label, shape (phrases, C).
        truth: For each label that the data has, class indices of shape (phrases,).
        song: Index of each phrase's song, shape (phrases,).
        start: First bar of each phrase, shape (phrases,).
    """

    log_probs: dict[str, NDArray[np.float64]]
    truth: dict[str, NDArray[np.int64]]
    song: NDArray[np.int64]
    start: NDArray[np.int64]


@torch.no_grad()
def predict_phrases(
    model: PhraseClassifier,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> Predictions:
    """Predicts every phrase of ``batches``, in order.

    Args:
        model: The classifier; it is put into evaluation mode and on ``device``.
        batches: Packed phrases.
        device: Where to compute.
        autocast: Half precision to compute in, None for the weights' own.
    """
    model.to(device).eval()
    log_probs: dict[str, list[Any]] = {label: [] for label in model.heads}
    truth: dict[str, list[Any]] = {}
    song, start = [], []
    kind = torch.device(device).type
    for batch in batches:
        moved = batch.to(device)
        with torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
            logits = model(moved)
        for label, values in logits.items():
            log_probs[label].append(values.float().log_softmax(-1).cpu().numpy())
        for label, values in batch.labels.items():
            truth.setdefault(label, []).append(values.numpy())
        song.append(batch.song_B.numpy())
        start.append(batch.start_B.numpy())
    return Predictions(
        {k: np.concatenate(v).astype(np.float64) for k, v in log_probs.items()},
        {k: np.concatenate(v) for k, v in truth.items()},
        np.concatenate(song),
        np.concatenate(start),
    )
