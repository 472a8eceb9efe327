"""Calibration on a run's validation songs: temperature, abstention thresholds, known domain.

``train`` fits a :class:`Calibration` with the best checkpoint and writes ``RUN/calibration.json``;
``evaluate`` and ``predict`` read it.

- Temperature scaling (Guo et al. 2017, section 4.2) makes confidences match accuracies; the
  predicted class never changes.
- The quantiles of the calibrated confidence give the threshold below which to abstain so that a
  wanted share of songs like the validation songs is answered.
- A song is out of domain where its energy, ``-logsumexp(logits)`` (Liu et al. 2020, section 3.1,
  arXiv 2010.03759), is higher than that of 95 % of the validation songs. The weaker
  criterion beside it is the maximum softmax probability (Hendrycks and Gimpel 2017), lower than
  that of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from midigenre.arrays import Bools, Floats
from midigenre.errors import UserError
from midigenre.files import read_json, write_json
from midigenre.run import EXPORTED
from midigenre.spec import UNKNOWN

CALIBRATION_FILE = "calibration.json"
CHECKPOINT = "best.ckpt"
"""The checkpoint that a run's calibration was fitted to; it does not apply to others."""

IN_DOMAIN = 0.95
"""Share of the validation rows that count as in the domain."""

_FORMAT = 1
_SHARES = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class LevelCalibration:
    """Of one label at one level.

    Attributes:
        n: Validation rows with a label, which it was fitted on.
        temperature: What the logits are divided by; 1 without rows.
        max_energy: Highest energy in the domain; None where it is not known.
        min_confidence: Lowest maximum softmax probability in the domain, before the temperature;
            None without rows.
        confidence_quantiles: The 0, 1, ... 100 % quantiles of the calibrated confidence; empty
            without rows.
    """

    n: int
    temperature: float
    max_energy: float | None
    min_confidence: float | None
    confidence_quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        known = [x for x in (self.max_energy, self.min_confidence) if x is not None]
        for number in (self.n, self.temperature, *known, *self.confidence_quantiles):
            if isinstance(number, bool) or not math.isfinite(number):  # TypeError for a text
                raise ValueError(f"{number} is not a number")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} is not above 0")
        if len(self.confidence_quantiles) not in (0, len(_SHARES)):
            raise ValueError(f"{len(self.confidence_quantiles)} quantiles, not {len(_SHARES)}")

    @classmethod
    def fit(
        cls, log_probs_NC: ArrayLike, truth_N: ArrayLike, energy_N: ArrayLike | None = None
    ) -> LevelCalibration:
        """Fits one on rows that the model was not trained on; those of UNKNOWN are left out.

        Raises:
            ValueError: Shapes that do not fit.
        """
        scores_NC, classes_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N, np.int64)
        if scores_NC.ndim != 2 or len(scores_NC) != len(classes_N):
            raise ValueError(f"log-probabilities {scores_NC.shape} for {len(classes_N)} rows")
        known_N = classes_N != UNKNOWN
        scores_NC, classes_N = scores_NC[known_N], classes_N[known_N]
        if not len(classes_N):
            return cls(0, 1.0, None, None, ())
        temperature, max_energy = fit_temperature(scores_NC, classes_N), None
        if energy_N is not None:
            energies = np.asarray(energy_N, np.float64)[known_N]
            max_energy = float(np.quantile(energies, IN_DOMAIN, method="higher"))
        raw_N, confidence_N = (
            np.exp(of_NC.max(1)) for of_NC in (scores_NC, tempered(scores_NC, temperature))
        )
        return cls(
            len(classes_N),
            temperature,
            max_energy,
            float(np.quantile(raw_N, 1 - IN_DOMAIN, method="lower")),
            tuple(np.quantile(confidence_N, _SHARES, method="lower").tolist()),
        )

    def apply(self, log_probs_NC: ArrayLike) -> Floats:
        """Calibrated log-probabilities, shape (N, C)."""
        return tempered(log_probs_NC, self.temperature)

    def threshold_for(self, coverage: float) -> float:
        """The calibrated confidence that at least this share of the validation rows has.

        Answering only at or above it answers about that share of similar songs.

        Raises:
            UserError: The share is not above 0 and at most 1, or there was no validation row to fit
                on.
        """
        if not 0 < coverage <= 1:
            raise UserError(f"coverage={coverage} must lie above 0 and be at most 1")
        if not self.confidence_quantiles:
            raise UserError(
                f"coverage={coverage}: this run had no labelled validation song to fit a threshold "
                "on; set threshold= instead"
            )
        # Down to a whole per cent, so that no less than the wanted share is answered.
        return self.confidence_quantiles[int((1 - coverage) * (len(_SHARES) - 1) + 1e-9)]

    def out_of_domain(self, energy_N: ArrayLike) -> Bools:
        """Whether each energy is above the domain's; False where that is not known."""
        most = math.inf if self.max_energy is None else self.max_energy
        found: Bools = np.asarray(energy_N, np.float64) > most
        return found

    def low_confidence(self, log_probs_NC: ArrayLike) -> Bools:
        """Whether each maximum softmax probability, before the temperature, is below the domain's.

        False where that is not known.
        """
        least = -math.inf if self.min_confidence is None else self.min_confidence
        found: Bools = np.exp(np.asarray(log_probs_NC, np.float64).max(-1)) < least
        return found


@dataclass(frozen=True)
class Calibration:
    """Of all labels of a run.

    Attributes:
        levels: By label and level.
        song_models: Whether songs were scored by the models in ``RUN/song`` and not by the mean
            over their phrases; None where that was not written down.
    """

    levels: Mapping[str, Mapping[str, LevelCalibration]]
    song_models: bool | None = None

    def save(self, folder: Path) -> None:
        """Writes ``calibration.json`` into a run's folder."""
        about = {} if self.song_models is None else {"song_models": self.song_models}
        labels = {
            label: {level: asdict(found) for level, found in of_label.items()}
            for label, of_label in self.levels.items()
        }
        content = {"format": _FORMAT, "checkpoint": CHECKPOINT, **about, "labels": labels}
        write_json(folder / CALIBRATION_FILE, content)

    @classmethod
    def of_run(
        cls, folder: Path | None, checkpoint: Path, song_models: bool | None = None
    ) -> Calibration | None:
        """A run's calibration; None where it has none, or where it was fitted to something else.

        Args:
            folder: The run's folder; None where only a checkpoint is at hand.
            checkpoint: The checkpoint that is used.
            song_models: As the attribute; None takes any.

        Raises:
            UserError: The file is damaged.
        """
        if (
            folder is None
            or checkpoint.name not in (CHECKPOINT, EXPORTED)
            or not (folder / CALIBRATION_FILE).is_file()
        ):
            return None
        try:
            data = read_json(folder / CALIBRATION_FILE)
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']}, expected {_FORMAT}")
            levels = {
                label: {
                    level: LevelCalibration(
                        **found | {"confidence_quantiles": tuple(found["confidence_quantiles"])}
                    )
                    for level, found in of_label.items()
                }
                for label, of_label in data["labels"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{folder / CALIBRATION_FILE} is damaged ({error}); "
                "remove it to continue without calibration"
            ) from error
        fitted = data.get("song_models")
        same = None in (song_models, fitted) or song_models == fitted
        return cls(levels, fitted) if same else None


def tempered(log_probs_NC: ArrayLike, temperature: ArrayLike) -> Floats:
    """Log-probabilities at a temperature: ``log_softmax(log_probs / T)``.

    The same as dividing the logits by T (Guo et al. 2017, section 4.2), for log-probabilities are
    logits but for one constant per row. The order of a row's classes stays. There is one
    temperature for all rows, or one for each.
    """
    log_probs_NC = np.asarray(log_probs_NC, np.float64)
    if not len(log_probs_NC):
        return log_probs_NC
    divisor = np.asarray(temperature, np.float64).reshape(-1, 1)
    found: Floats = log_softmax(log_probs_NC / divisor, axis=1)
    return found


def fit_temperature(log_probs_NC: ArrayLike, truth_N: ArrayLike) -> float:
    """The temperature that makes held-out rows most likely (Guo et al. 2017, section 4.2).

    Minimises the summed negative log-likelihood plus log(T)^2 / 2, that is, with a standard normal
    prior on log T. With a few dozen rows the prior is negligible; with three rows, or if
    all of them are right, the likelihood alone would send T to 0 and every confidence to 1.

    Returns:
        The temperature, 0.05 to 20; 1 without rows.
    """
    scores_NC, classes_N = np.asarray(log_probs_NC, np.float64), np.asarray(truth_N, np.int64)
    # A row whose true class has probability 0 has it at every temperature.
    finite_N = np.isfinite(scores_NC[np.arange(len(classes_N)), classes_N])
    scores_NC, classes_N = scores_NC[finite_N], classes_N[finite_N]
    if not len(classes_N):
        return 1.0

    def cost(log_temperature: float) -> float:
        total = len(classes_N) * mean_nll(tempered(scores_NC, np.exp(log_temperature)), classes_N)
        return total + log_temperature**2 / 2

    from scipy.optimize import minimize_scalar  # a third of a second, and only fitting needs it

    found = minimize_scalar(cost, bounds=(-3, 3), method="bounded")  # type: ignore[no-untyped-call]
    return float(np.exp(found.x))


def mean_nll(log_probs_NC: Floats, truth_N: NDArray[Any]) -> float:
    """Mean negative log-likelihood of the true classes, nats per row."""
    return float(-log_probs_NC[np.arange(len(truth_N)), truth_N].mean())


def song_energy(energy_N: ArrayLike, song_N: ArrayLike) -> Floats:
    """Mean energy of each song's phrases, songs in ascending order, shape (S,)."""
    songs_S, song_index_N = np.unique(np.asarray(song_N), return_inverse=True)
    total_S = np.bincount(song_index_N, np.asarray(energy_N, np.float64), minlength=len(songs_S))
    return total_S / np.bincount(song_index_N, minlength=len(songs_S))
