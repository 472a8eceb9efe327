"""From the phrases of a song to the song: the models that ``task.song`` chooses.

``mean``: the mean log-probability, :func:`~midigenre.evaluation.scores.song_log_probs`; nothing is
fitted. ``attention``: :mod:`~midigenre.evaluation.song_attention`. ``blend``: the encoder's mean
and the experts of :mod:`~midigenre.evaluation.experts`, pooled by
:mod:`~midigenre.evaluation.blend`.

A run keeps what was fitted in ``RUN/song/`` as plain data: ``model.json`` and ``arrays.npz``, which
is read with ``allow_pickle=False``. It belongs to the weights of one checkpoint: another one's
phrases have other vectors and log-probabilities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from midigenre.errors import UserError
from midigenre.evaluation.arrays import DAMAGED, below, read_arrays, write_arrays
from midigenre.evaluation.blend import Pool
from midigenre.evaluation.experts import Expert
from midigenre.evaluation.scores import song_log_probs
from midigenre.evaluation.song_attention import Bags, SongAttention, attention_log_probs
from midigenre.files import make_folder, read_json, write_json
from midigenre.models import PhraseClassifier

Floats = NDArray[np.float64]
Songs = tuple[NDArray[Any], Floats]
"""Songs in ascending order, shape (S,), and their log-probabilities, shape (S, C)."""

KINDS = ("mean", "attention", "blend")
ENCODER = "encoder"
"""Name of the encoder's mean log-probability among the experts of a blend."""
WITHOUT_ENCODER = "without_encoder"
"""A blend of the baselines alone, fitted on the same songs: what the encoder must add to."""
POOLED = ("hist_gb", "ngram_lr")
"""The baselines of a blend."""
FORMAT = 1


@dataclass(frozen=True)
class Evidence:
    """What is known of some songs' phrases for one label.

    Attributes:
        log_probs_NC: Log-probabilities of the phrases, shape (N, C).
        song_N: Song of each phrase, shape (N,).
        vectors_ND: What the heads see of each phrase, shape (N, D); None where nobody asks.
        experts_SC: For each expert the log-probabilities of the songs in ascending order.
    """

    log_probs_NC: Floats
    song_N: NDArray[Any]
    vectors_ND: NDArray[np.float32] | None = None
    experts_SC: Mapping[str, Floats] = field(default_factory=dict)


class SongModel(Protocol):
    """Scores songs by their phrases."""

    def log_probs(self, found: Evidence) -> Songs:
        """The songs and their log-probabilities."""

    def components(self, found: Evidence) -> dict[str, Floats]:
        """Log-probabilities of the parts that it is made of, by name, each of shape (S, C)."""

    def about(self) -> dict[str, Any]:
        """What was fitted, as plain data for ``evaluation.json`` and ``model.json``."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its arrays, by name."""


@dataclass(frozen=True)
class BlendModel:
    """The encoder's mean and experts in one pool.

    Attributes:
        pool: Weights and temperature.
        experts: Those of the pool but the encoder, by name.
        without: The pool of the experts alone; None where there are none, and in the files of
            older versions.
    """

    pool: Pool
    experts: Mapping[str, Expert]
    without: Pool | None = None

    def log_probs(self, found: Evidence) -> Songs:
        """See :meth:`SongModel.log_probs`."""
        songs_S, _ = song_log_probs(found.log_probs_NC, found.song_N)
        return songs_S, self.pool.log_probs(self.components(found))

    def components(self, found: Evidence) -> dict[str, Floats]:
        """See :meth:`SongModel.components`."""
        _, encoder_SC = song_log_probs(found.log_probs_NC, found.song_N)
        theirs = {name: found.experts_SC[name] for name in self.experts}
        pooled = {} if self.without is None else {WITHOUT_ENCODER: self.without.log_probs(theirs)}
        return {ENCODER: encoder_SC} | theirs | pooled

    def about(self) -> dict[str, Any]:
        """See :meth:`SongModel.about`."""
        without = {} if self.without is None else {WITHOUT_ENCODER: self.without.to_dict()}
        return self.pool.to_dict() | without

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`SongModel.arrays`."""
        return {
            f"{name}/{key}": value
            for name, expert in self.experts.items()
            for key, value in expert.arrays.items()
        }

    @classmethod
    def of(
        cls, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], n_classes: int
    ) -> BlendModel:
        """Inverse of :meth:`about` and :meth:`arrays`."""
        experts = {
            name: Expert(name, n_classes, below(arrays, name))
            for name in about["weights"]
            if name != ENCODER
        }
        if unknown := set(experts) - set(POOLED):
            raise ValueError(f"no such expert: {', '.join(sorted(unknown))}")
        pool = dict(about)
        without = pool.pop(WITHOUT_ENCODER, None)
        return cls(Pool(**pool), experts, None if without is None else Pool(**without))


@dataclass(frozen=True)
class AttentionModel:
    """Attention over the phrases' vectors.

    Attributes:
        module: Its weights.
        fit: What :func:`~midigenre.evaluation.song_attention.fit_attention` says of the fit.
    """

    module: SongAttention
    fit: Mapping[str, Any]

    def log_probs(self, found: Evidence) -> Songs:
        """See :meth:`SongModel.log_probs`."""
        assert found.vectors_ND is not None
        songs_S, bags = Bags.of(found.vectors_ND, found.log_probs_NC, found.song_N)
        return songs_S, attention_log_probs(self.module, bags)

    def components(self, found: Evidence) -> dict[str, Floats]:
        """See :meth:`SongModel.components`."""
        return {ENCODER: song_log_probs(found.log_probs_NC, found.song_N)[1]}

    def about(self) -> dict[str, Any]:
        """See :meth:`SongModel.about`."""
        return dict(self.fit)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`SongModel.arrays`."""
        return {f"attention/{k}": v.cpu().numpy() for k, v in self.module.state_dict().items()}

    @classmethod
    def of(
        cls, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], n_classes: int
    ) -> AttentionModel:
        """Inverse of :meth:`about` and :meth:`arrays`."""
        weights = {k: torch.as_tensor(v) for k, v in below(arrays, "attention").items()}
        module = SongAttention(weights["mean_D"].shape[0], n_classes)
        module.load_state_dict(weights)
        return cls(module.eval(), about)


_MODELS: dict[str, type[AttentionModel] | type[BlendModel]] = {
    "attention": AttentionModel,
    "blend": BlendModel,
}


@dataclass(frozen=True)
class SongModels:
    """The song model of each label of a run.

    Attributes:
        kind: One of :data:`KINDS` but ``mean``.
        classes: Class names of each label, in the order of the model's outputs.
        models: The model of each label.
        weights_of: :func:`fingerprint` of the classifier that they were fitted to.
    """

    kind: str
    classes: Mapping[str, Sequence[str]]
    models: Mapping[str, SongModel]
    weights_of: str

    @property
    def needs_vectors(self) -> bool:
        """Whether they look at the phrases' vectors."""
        return self.kind == "attention"

    @property
    def experts(self) -> dict[str, Mapping[str, Expert]]:
        """The experts of each label, by name."""
        return {
            label: model.experts if isinstance(model, BlendModel) else {}
            for label, model in self.models.items()
        }

    def save(self, folder: Path) -> None:
        """Writes ``model.json`` and ``arrays.npz``; the JSON last, so that it stands for both."""
        make_folder(folder)
        arrays = {
            f"{i}/{key}": value
            for i, model in enumerate(self.models.values())
            for key, value in model.arrays().items()
        }
        write_arrays(folder / "arrays.npz", arrays)
        labels = {
            label: {"classes": list(self.classes[label]), "model": model.about()}
            for label, model in self.models.items()
        }
        about = {"format": FORMAT, "kind": self.kind, "weights_of": self.weights_of}
        write_json(folder / "model.json", about | {"labels": labels})

    @classmethod
    def load(cls, folder: Path) -> SongModels:
        """Reads what :meth:`save` wrote; no code in the files is run.

        Raises:
            UserError: A file is missing, damaged, or of another version.
        """
        try:
            about = read_json(folder / "model.json")
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
            arrays = read_arrays(folder / "arrays.npz")
            made = _MODELS[about["kind"]]
            models: dict[str, SongModel] = {
                label: made.of(of_label["model"], below(arrays, str(i)), len(of_label["classes"]))
                for i, (label, of_label) in enumerate(about["labels"].items())
            }
            classes = {label: tuple(x["classes"]) for label, x in about["labels"].items()}
            return cls(about["kind"], classes, models, about["weights_of"])
        except DAMAGED as error:
            raise UserError(
                f"{folder} holds no readable song model ({type(error).__name__}: {error}); train "
                "again, or delete that folder to score songs by the mean of their phrases"
            ) from error


def set_apart(scores: dict[str, Any], parts: Sequence[str]) -> None:
    """Lists the parts of a song model as its ``components``; the encoder alone is no baseline.

    Args:
        scores: Of songs, where each part was scored like a baseline; changed in place.
        parts: Names of the parts.
    """
    within = scores.get("within_source")
    for found in (scores, *([within] if within else []), *scores.get("by_source", {}).values()):
        rows = found["baselines"]
        found["components"] = {name: rows.get(name) for name in parts}
        rows.pop(ENCODER, None)


def song_model_of_parts(abouts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``song_model`` over the parts of a protocol, each of which has fitted its own.

    Args:
        abouts: That of each part.

    Returns:
        ``kind``, the mean ``weights``, the sum ``n_validation``, the first ``note`` that there is,
        and ``parts``, what was given.
    """
    found: dict[str, Any] = {"kind": abouts[0]["kind"]}
    if names := abouts[0].get("weights"):
        given = [about["weights"] for about in abouts]
        found["weights"] = {n: float(np.mean([of.get(n, 0.0) for of in given])) for n in names}
    found["n_validation"] = sum(about["n_validation"] for about in abouts)
    found["note"] = next((about["note"] for about in abouts if about.get("note")), None)
    return found | {"parts": [dict(about) for about in abouts]}


def fingerprint(model: PhraseClassifier) -> str:
    """Hash of a classifier's heads, which any training step changes: tells checkpoints apart."""
    found = hashlib.sha256()
    for name, value in sorted(model.heads.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
