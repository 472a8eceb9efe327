"""Fits a run's blends after training, and scores songs with them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midigenre.arrays import Floats
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.errors import UserError
from midigenre.evaluation.blend import ENCODER, FOLDER, POOLED, Blend, Blends, fingerprint, fit_pool
from midigenre.evaluation.exported_baselines import ExportedBaseline, exported_log_probs
from midigenre.evaluation.predictions import song_log_probs, song_truth
from midigenre.models import PhraseClassifier
from midigenre.tasks.predict import PhraseOutputs

if TYPE_CHECKING:  # predict does without scikit-learn, whose import takes a second
    from midigenre.evaluation.baselines import FittedLabel

log = getLogger(__name__)

KINDS = ("mean", "blend")
"""Choices of ``task.song``: the mean log-probability over the phrases, of which nothing is fitted,
or :mod:`~midigenre.evaluation.blend`."""

ELSEWHERE = (
    "songs are scored by the mean of their phrases: the run was trained with task.song=blend, and "
    "{why}"
)


def song_kind(task: Mapping[str, Any]) -> str:
    """``task.song`` of a task's settings.

    Raises:
        UserError: There is no such song model.
    """
    kind = str(task.get("song", "mean"))
    if kind not in KINDS:
        raise UserError(f"task.song={kind}; choose {', '.join(KINDS)}")
    return kind


def fit_blends(
    model: PhraseClassifier,
    data: PhraseDataModule,
    fitted: Mapping[str, FittedLabel | str],
    val: PhraseOutputs | None,
) -> Blends:
    """Fits the blend of each label on the run's own songs.

    A blend's experts have seen the training songs only, and its weights the validation songs only;
    neither has seen a test song. The checkpoint was chosen on the validation songs, too, which
    flatters the encoder there a little.

    Args:
        model: The classifier.
        data: The run's songs.
        fitted: The baselines of each label, or why there are none.
        val: What the model says of the validation phrases; None where there are none.
    """
    began = time.perf_counter()
    heads = model.label_heads()
    experts = {
        label: _experts(fitted.get(label, ""), len(head.classes)) for label, head in heads.items()
    }
    theirs = exported_log_probs(experts, data.reader, data.phrases("val"))
    blends = {}
    for label, head in heads.items():
        if val is None or label not in val.truth:
            ours, truth_S = np.zeros((0, len(head.classes))), np.zeros(0, np.int64)
            theirs[label] = dict.fromkeys(experts[label], ours)
        else:
            ours = song_log_probs(val.log_probs[label], val.song)[1]
            truth_S = song_truth(val.truth[label], val.song)[1]
        without = fit_pool(theirs[label], truth_S) if theirs[label] else None
        pool = fit_pool({ENCODER: ours} | theirs[label], truth_S)
        blends[label] = Blend(pool, experts[label], without)
    log.info("task.song=blend fitted in %.1f s", time.perf_counter() - began)
    classes = {label: tuple(head.classes) for label, head in heads.items()}
    return Blends(classes, blends, fingerprint(model))


def _experts(fit: FittedLabel | str, n_classes: int) -> dict[str, ExportedBaseline]:
    if isinstance(fit, str):
        return {}
    of_songs = fit.models["song"]
    return {
        name: replace(expert, n_classes=n_classes)
        for name in POOLED
        if isinstance(expert := of_songs[name], ExportedBaseline)
    }


def load_song_models(
    checkpoint: Path, model: PhraseClassifier, task: Mapping[str, Any]
) -> tuple[Blends | None, str | None]:
    """The blends that lie beside a checkpoint, ``RUN/song`` of ``RUN/checkpoints/best.ckpt``.

    Args:
        checkpoint: Where the classifier was read from.
        model: The classifier.
        task: Its task's settings.

    Returns:
        The blends, None for the mean; and, where the run has other ones than it will be scored
        with, a line that says so.

    Raises:
        UserError: They are damaged.
    """
    if song_kind(task) == "mean":
        return None, None
    folder = checkpoint.absolute().parent.parent / FOLDER
    if not (folder / "model.json").is_file():
        return None, ELSEWHERE.format(why=f"{folder} is not there")
    blends = Blends.load(folder)
    if blends.weights_of != fingerprint(model):
        why = f"{folder} belongs to its best checkpoint, not to {checkpoint.name}"
        return None, ELSEWHERE.format(why=why)
    return blends, None


def song_components(
    blends: Blends, found: PhraseOutputs, reader: PhraseReader, phrases: Phrases
) -> dict[str, dict[str, Floats]]:
    """Log-probabilities of the songs by each component of the blends.

    Args:
        blends: Of the run.
        found: What the model says of the phrases.
        reader: Reads the songs.
        phrases: All their phrases, in order.

    Returns:
        For each label and component the songs in ascending order, shape (S, C).
    """
    theirs = exported_log_probs(blends.experts, reader, phrases)
    return {
        label: blends.blends[label].components(
            song_log_probs(log_probs, found.song)[1], theirs[label]
        )
        for label, log_probs in found.log_probs.items()
    }


def score_songs(
    blends: Blends | None, found: PhraseOutputs, reader: PhraseReader, phrases: Phrases
) -> dict[str, Floats]:
    """For each label the songs' log-probabilities, shape (S, C); arguments as song_components.

    Without blends they are the mean over the phrases.
    """
    if blends is None:
        return {k: song_log_probs(of, found.song)[1] for k, of in found.log_probs.items()}
    components = song_components(blends, found, reader, phrases)
    return {label: blends.blends[label].pool.log_probs(of) for label, of in components.items()}
