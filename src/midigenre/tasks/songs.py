"""Fits a run's song models after training, and scores songs with them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.errors import UserError
from midigenre.evaluation.blend import fit_pool
from midigenre.evaluation.experts import Expert, expert_log_probs
from midigenre.evaluation.scores import song_log_probs, song_truth
from midigenre.evaluation.song_attention import Bags, fit_attention
from midigenre.evaluation.songs import (
    ENCODER,
    KINDS,
    POOLED,
    AttentionModel,
    BlendModel,
    Evidence,
    Floats,
    SongModel,
    SongModels,
    Songs,
    fingerprint,
)
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN
from midigenre.tasks.predict import Predictions, predict_phrases

if TYPE_CHECKING:  # predict does without scikit-learn, whose import takes a second
    from midigenre.evaluation.baselines import FittedLabel

log = getLogger(__name__)

FOLDER = "song"
"""Where a run keeps its song models."""

ELSEWHERE = (
    "songs are scored by the mean of their phrases: the run was trained with task.song={kind}, and "
    "{why}"
)


def song_kind(task: Mapping[str, Any]) -> str:
    """``task.song`` of a task's settings; runs from before there was a choice have the mean.

    Raises:
        UserError: There is no such song model.
    """
    kind = str(task.get("song", "mean"))
    if kind not in KINDS:
        raise UserError(f"task.song={kind}; choose {', '.join(KINDS)}")
    return kind


def fit_song_models(
    model: PhraseClassifier,
    data: PhraseDataModule,
    kind: str,
    fitted: Mapping[str, FittedLabel | str],
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    val: Predictions | None = None,
) -> SongModels | None:
    """Fits the song model of each label on the run's own songs.

    A blend's experts have seen the training songs only, and its weights the validation songs only;
    neither has seen a test song. The checkpoint was chosen on the validation songs, too, which
    flatters the encoder there a little.

    Args:
        model: The classifier.
        data: The run's songs.
        kind: One of :data:`~midigenre.evaluation.songs.KINDS`.
        fitted: The baselines of each label, or why there are none.
        device: Where to compute.
        seed: Seed of the attention.
        val: The validation phrases' predictions, with vectors, where they are at hand.

    Returns:
        The models; None for the mean, of which there is nothing to fit.
    """
    if kind == "mean":
        return None
    began = time.perf_counter()
    heads = model.label_heads()
    splits = ("train", "val") if kind == "attention" else ("val",)
    found = {
        split: val
        if split == "val" and val is not None
        else predict_phrases(model, data.eval_dataloader(split), device, vectors=True)
        for split in splits
        if len(data.rows(split))
    }
    experts: dict[str, dict[str, Expert]] = {
        label: _experts(fitted.get(label, ""), len(head.classes)) if kind == "blend" else {}
        for label, head in heads.items()
    }
    theirs = expert_log_probs(experts, data.reader, data.phrases("val"))
    models: dict[str, SongModel] = {
        label: _fit_blend(label, found.get("val"), experts[label], theirs[label])
        if kind == "blend"
        else _fit_attention(label, found, len(head.classes), seed)
        for label, head in heads.items()
    }
    log.info("task.song=%s fitted in %.1f s", kind, time.perf_counter() - began)
    classes = {label: tuple(head.classes) for label, head in heads.items()}
    return SongModels(kind, classes, models, fingerprint(model))


def _experts(fit: FittedLabel | str, n_classes: int) -> dict[str, Expert]:
    if isinstance(fit, str):
        return {}
    of_songs = fit.models["song"]
    return {
        name: replace(expert, n_classes=n_classes)
        for name in POOLED
        if isinstance(expert := of_songs[name], Expert)
    }


def _fit_blend(
    label: str,
    found: Predictions | None,
    experts: Mapping[str, Expert],
    theirs: Mapping[str, Floats],
) -> BlendModel:
    if found is None or label not in found.truth:
        n_classes = next((e.n_classes for e in experts.values()), 1)
        ours, truth_S = np.zeros((0, n_classes)), np.zeros(0, np.int64)
        theirs = dict.fromkeys(experts, ours)
    else:
        ours = song_log_probs(found.log_probs[label], found.song)[1]
        truth_S = song_truth(found.truth[label], found.song)[1]
    without = fit_pool(theirs, truth_S) if theirs else None
    return BlendModel(fit_pool({ENCODER: ours} | dict(theirs), truth_S), experts, without)


def _fit_attention(
    label: str, found: Mapping[str, Predictions], n_classes: int, seed: int
) -> AttentionModel:
    bags, truth = {}, {}
    for split in ("train", "val"):
        of = found.get(split)
        if of is None or label not in of.truth:
            width = next(iter(found.values())).vectors
            d_model = 1 if width is None else width.shape[1]
            empty = np.zeros((0, d_model)), np.zeros((0, n_classes)), np.zeros(0, np.int64)
            bags[split], truth[split] = Bags.of(*empty)[1], np.zeros(0, np.int64)
        else:
            bags[split] = Bags.of(of.vectors, of.log_probs[label], of.song)[1]
            truth[split] = song_truth(of.truth[label], of.song)[1]
    module, about = fit_attention(
        bags["train"], truth["train"], bags["val"], truth["val"], n_classes, seed
    )
    return AttentionModel(module, about | {"n_validation": int((truth["val"] != UNKNOWN).sum())})


def load_song_models(
    checkpoint: Path, model: PhraseClassifier, task: Mapping[str, Any]
) -> tuple[SongModels | None, str | None]:
    """The song models that lie beside a checkpoint, ``RUN/song`` of ``RUN/checkpoints/best.ckpt``.

    Args:
        checkpoint: Where the classifier was read from.
        model: The classifier.
        task: Its task's settings.

    Returns:
        The models, None for the mean; and, where the run has other ones than it will be scored
        with, a line that says so.

    Raises:
        UserError: They are damaged.
    """
    kind = song_kind(task)
    if kind == "mean":
        return None, None
    folder = checkpoint.absolute().parent.parent / FOLDER
    if not (folder / "model.json").is_file():
        return None, ELSEWHERE.format(kind=kind, why=f"{folder} is not there")
    models = SongModels.load(folder)
    if models.weights_of != fingerprint(model):
        why = f"{folder} belongs to its best checkpoint, not to {checkpoint.name}"
        return None, ELSEWHERE.format(kind=kind, why=why)
    return models, None


def score_songs(
    models: SongModels | None, found: Predictions, reader: PhraseReader, phrases: Phrases
) -> dict[str, Songs]:
    """Songs by the run's song models.

    Args:
        models: Of the run; None for the mean.
        found: The phrases' predictions, with vectors where the models need them.
        reader: Reads the songs.
        phrases: All their phrases, in order.

    Returns:
        For each label the songs in ascending order and their log-probabilities.
    """
    if models is None:
        return {k: song_log_probs(values, found.song) for k, values in found.log_probs.items()}
    theirs = expert_log_probs(models.experts, reader, phrases)
    return {
        label: models.models[label].log_probs(evidence(found, label, theirs[label]))
        for label in found.log_probs
    }


def evidence(found: Predictions, label: str, experts: Mapping[str, Floats]) -> Evidence:
    """What a song model sees."""
    return Evidence(found.log_probs[label], found.song, found.vectors, experts)


class SongAggregate:
    """Song models as the ``aggregate`` of :func:`~midigenre.tasks.evaluate.evaluate_split`.

    Args:
        models: Of the run.
    """

    def __init__(self, models: SongModels) -> None:
        self.models = models
        self._last: tuple[Any, str | None, dict[str, dict[str, Floats]]] | None = None

    def __call__(
        self, label: str, found: Predictions, data: PhraseDataModule, split: str | None
    ) -> Songs:
        """Scores the songs of a split."""
        seen = evidence(found, label, self._experts(label, data, split))
        return self.models.models[label].log_probs(seen)

    def components(
        self, label: str, found: Predictions, data: PhraseDataModule, split: str | None
    ) -> dict[str, Floats]:
        """Log-probabilities of the songs by each part of the model, by name."""
        seen = evidence(found, label, self._experts(label, data, split))
        return self.models.models[label].components(seen)

    def about(self, label: str) -> dict[str, Any]:
        """What the model is, for ``evaluation.json``."""
        return {"kind": self.models.kind} | self.models.models[label].about()

    def _experts(self, label: str, data: PhraseDataModule, split: str | None) -> dict[str, Floats]:
        """Each split is read once for all labels."""
        if self._last is None or self._last[0] is not data or self._last[1] != split:
            found = expert_log_probs(self.models.experts, data.reader, data.phrases(split))
            self._last = (data, split, found)
        return self._last[2][label]
