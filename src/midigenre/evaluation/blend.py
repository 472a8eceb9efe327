"""``task.song=blend``: a log-linear pool of encoder and baselines, fitted on validation songs.

log p(c) = tau * sum_k w_k log p_k(c) - log Z with w_k >= 0 and sum_k w_k = 1: the logarithmic
opinion pool (Genest and Zidek 1986, "Combining Probability Distributions", section 3), which Hinton
(1999) calls a product of experts. A mean of experts with independent errors is underconfident; tau,
the inverse of a temperature, sharpens it. An expert redundant with another gets less weight.

Each expert is scaled by a temperature of its own first. Trees are overconfident and an encoder
trained with smoothed labels is underconfident, so that equal weights on the raw logarithms would
not count equally.

A run keeps what was fitted in ``RUN/song/`` as plain data: ``model.json`` and ``arrays.npz``, which
is read with ``allow_pickle=False``. It belongs to the weights of one checkpoint: another one's
phrases have other log-probabilities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from midigenre.arrays import Floats, Longs
from midigenre.errors import UserError
from midigenre.evaluation.exported_baselines import ExportedBaseline
from midigenre.evaluation.predictions import DAMAGED, below, read_arrays, write_arrays
from midigenre.files import make_folder, read_json, write_json
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN

SONG_MODELS_FOLDER = "song"
"""Where a run keeps its blends."""
ENCODER = "encoder"
"""Name of the encoder's mean log-probability among the experts."""
WITHOUT_ENCODER = "without_encoder"
"""A pool of the baselines alone, fitted on the same songs: what the encoder must improve on."""
POOLED = ("hist_gb", "ngram_lr")
"""The baselines of a blend."""

_KIND, _FORMAT = "blend", 1

SMOOTHING = 1e-3
"""Share of the uniform distribution that is mixed into each expert, so that none has a veto."""

WEIGHT_SD, SUM_SD = 0.1, 1.0
"""Spread of the Gaussian priors on beta_k = tau * w_k: of each around their mean, and of their sum
around 1. With few validation songs the weights stay equal; some hundred move them where it
helps."""


@dataclass(frozen=True)
class Pool:
    """The pool.

    Attributes:
        scales: What each expert's log-probabilities are multiplied by first: its own inverse
            temperature.
        weights: Weight of each expert, at least 0; they sum to 1.
        temperature: What the weighted mean of the log-probabilities is divided by.
        n_validation: Songs that all were fitted on; 0 where they could not be.
        note: Why they could not be, else None.
    """

    scales: Mapping[str, float]
    weights: Mapping[str, float]
    temperature: float
    n_validation: int
    note: str | None = None

    def log_probs(self, experts: Mapping[str, Floats]) -> Floats:
        """Log-probabilities of songs, shape (S, C), from those of each expert."""
        pooled = sum(
            w * log_softmax(self.scales[name] * smoothed(experts[name]), axis=1)
            for name, w in self.weights.items()
        )
        found: Floats = log_softmax(np.asarray(pooled) / self.temperature, axis=1)
        return found


def smoothed(log_probs_SC: Floats) -> Floats:
    """Log-probabilities with :data:`SMOOTHING` of the uniform distribution mixed in."""
    n_classes = log_probs_SC.shape[1]
    mixed: Floats = np.logaddexp(
        log_probs_SC + np.log1p(-SMOOTHING), np.log(SMOOTHING / max(1, n_classes))
    )
    return mixed


def fit_pool(experts: Mapping[str, Floats], truth_S: Longs) -> Pool:
    """Fits weights and temperature by the likelihood of songs that no expert was fitted on.

    Both losses, of an expert's scale and of the weights, are convex: any start leads to the same.

    Songs of an UNKNOWN class are left out.

    Raises:
        ValueError: No expert is given.
    """
    if not experts:
        raise ValueError("a pool needs at least one expert")
    known_S = truth_S != UNKNOWN
    truth_S = truth_S[known_S]
    n, seen = len(truth_S), len(np.unique(truth_S))
    if seen < 2:
        note = (
            f"equal weights: the {n} labelled validation songs have {seen} class(es), and weights "
            "need two"
        )
        equal = dict.fromkeys(experts, 1 / len(experts))
        return Pool(dict.fromkeys(experts, 1.0), equal, 1.0, 0, note)
    logs_KSC = np.stack([smoothed(log_probs[known_S]) for log_probs in experts.values()])
    scale_K = np.array([_betas(logs_SC[None], truth_S)[0] for logs_SC in logs_KSC])
    beta_K = _betas(log_softmax(scale_K[:, None, None] * logs_KSC, axis=2), truth_S)
    scales, weights = (
        dict(zip(experts, of_K.tolist(), strict=True)) for of_K in (scale_K, beta_K / beta_K.sum())
    )
    return Pool(scales, weights, float(1 / beta_K.sum()), n)


def _betas(logs_KSC: Floats, truth_S: Longs) -> Floats:
    """Factors of experts that fit songs best, at least 0, shape (K,)."""
    k, n = len(logs_KSC), len(truth_S)
    at = np.arange(n)

    def loss(beta_K: Floats) -> tuple[float, Floats]:
        log_p_SC = log_softmax(np.tensordot(beta_K, logs_KSC, 1), axis=1)
        miss_SC = np.exp(log_p_SC)
        miss_SC[at, truth_S] -= 1
        apart_K, off = beta_K - beta_K.mean(), beta_K.sum() - 1
        penalty = (apart_K**2).sum() / (2 * WEIGHT_SD**2) + off**2 / (2 * SUM_SD**2)
        slope_K = np.tensordot(logs_KSC, miss_SC, ([1, 2], [0, 1]))
        slope_K += apart_K / WEIGHT_SD**2 + off / SUM_SD**2
        return float((penalty - log_p_SC[at, truth_S].sum()) / n), slope_K / n

    from scipy.optimize import minimize  # a third of a second, and only fitting needs it

    done = minimize(  # type: ignore[no-untyped-call]
        loss, np.full(k, 1 / k), jac=True, method="L-BFGS-B", bounds=[(0, None)] * k,
        options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9},
    )  # fmt: skip
    # All zero (every expert is worse than a guess) would not be a pool.
    found: Floats = np.maximum(np.asarray(done.x, np.float64), 1e-6)
    return found


@dataclass(frozen=True)
class Blend:
    """The encoder's mean over the phrases and baselines in one pool, for one label.

    Attributes:
        pool: Weights and temperature.
        experts: The baselines of the pool, by name.
        without: The pool of the baselines alone; None where there are none.
    """

    pool: Pool
    experts: Mapping[str, ExportedBaseline]
    without: Pool | None = None

    def components(self, encoder_SC: Floats, experts_SC: Mapping[str, Floats]) -> dict[str, Floats]:
        """Log-probabilities of its components, by name, each of shape (S, C)."""
        theirs = {name: experts_SC[name] for name in self.experts}
        pooled = {} if self.without is None else {WITHOUT_ENCODER: self.without.log_probs(theirs)}
        return {ENCODER: encoder_SC} | theirs | pooled

    def about(self) -> dict[str, Any]:
        """What was fitted, as plain data for ``evaluation.json`` and ``model.json``."""
        without = {} if self.without is None else {WITHOUT_ENCODER: asdict(self.without)}
        return asdict(self.pool) | without


@dataclass(frozen=True)
class Blends:
    """The blend of each label of a run.

    Attributes:
        classes: Class names of each label, in the order of the model's outputs.
        blends: The blend of each label.
        weights_of: :func:`fingerprint` of the classifier that they were fitted to.
    """

    classes: Mapping[str, Sequence[str]]
    blends: Mapping[str, Blend]
    weights_of: str

    @property
    def experts(self) -> dict[str, Mapping[str, ExportedBaseline]]:
        """The experts of each label, by name."""
        return {label: blend.experts for label, blend in self.blends.items()}

    def save(self, folder: Path) -> None:
        """Writes ``model.json`` and ``arrays.npz``; the JSON last: it marks both as complete."""
        make_folder(folder)
        arrays = {
            f"{i}/{name}/{key}": value
            for i, blend in enumerate(self.blends.values())
            for name, expert in blend.experts.items()
            for key, value in expert.arrays.items()
        }
        write_arrays(folder / "arrays.npz", arrays)
        labels = {
            label: {"classes": list(self.classes[label]), "model": blend.about()}
            for label, blend in self.blends.items()
        }
        about = {"format": _FORMAT, "kind": _KIND, "weights_of": self.weights_of}
        write_json(folder / "model.json", about | {"labels": labels})

    @classmethod
    def load(cls, folder: Path) -> Blends:
        """Reads what :meth:`save` wrote; no code in the files is run.

        Raises:
            UserError: A file is missing, damaged, or of another version.
        """
        classes, blends = {}, {}
        try:
            about = read_json(folder / "model.json")
            if (about["format"], about["kind"]) != (_FORMAT, _KIND):
                raise ValueError(
                    f"{about['kind']} of format {about['format']}, this version reads {_KIND} of "
                    f"format {_FORMAT}"
                )
            arrays = read_arrays(folder / "arrays.npz")
            for i, (label, of_label) in enumerate(about["labels"].items()):
                classes[label], pool = tuple(of_label["classes"]), dict(of_label["model"])
                without = pool.pop(WITHOUT_ENCODER, None)
                experts = {
                    name: ExportedBaseline(name, len(classes[label]), below(arrays, f"{i}/{name}"))
                    for name in pool["weights"]
                    if name != ENCODER
                }
                if unknown := experts.keys() - {*POOLED}:
                    raise ValueError(f"no such expert: {', '.join(sorted(unknown))}")
                alone = None if without is None else Pool(**without)
                blends[label] = Blend(Pool(**pool), experts, alone)
            return cls(classes, blends, about["weights_of"])
        except DAMAGED as error:
            raise UserError(
                f"{folder} holds no readable song model ({type(error).__name__}: {error}); train "
                "again, or delete that folder to score songs by the mean of their phrases"
            ) from error


def fingerprint(model: PhraseClassifier) -> str:
    """Hash of a classifier's heads, which any training step changes: distinguishes checkpoints."""
    found = hashlib.sha256()
    for name, value in sorted(model.heads.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
