"""What ``predict`` says of a file: labels, probabilities, doubts, a timeline, an explanation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.errors import UserError
from midigenre.evaluation.calibration import Calibration, LevelCalibration
from midigenre.evaluation.instruments import program_name
from midigenre.evaluation.scores import song_log_probs
from midigenre.midi.song import Song
from midigenre.tasks.attribution import Attribution
from midigenre.tasks.predict import Predictions

Floats = NDArray[np.float64]
Classes = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Doubt:
    """When to answer, and what probabilities mean.

    Attributes:
        levels: For each label the calibration of phrases and of songs; empty without one.
        thresholds: For each label the song probability below which there is no answer; empty to
            answer always.
    """

    levels: Mapping[str, Mapping[str, LevelCalibration]]
    thresholds: Mapping[str, float]

    @classmethod
    def of(
        cls,
        calibration: Calibration | None,
        labels: Sequence[str],
        threshold: float | None,
        coverage: float | None,
    ) -> Doubt:
        """From the settings of the command.

        Args:
            calibration: The run's, None without one.
            labels: The model's labels.
            threshold: Least probability of an answer, for all labels; None for none.
            coverage: Share of songs to answer, which says the thresholds instead.

        Raises:
            UserError: Both are given, one is out of range, or ``coverage`` without a calibration.
        """
        levels = {} if calibration is None else calibration.levels
        if threshold is not None and coverage is not None:
            raise UserError(
                f"threshold={threshold} and coverage={coverage}: give one of them; a coverage "
                "finds its threshold on the run's validation songs"
            )
        if threshold is not None:
            if not 0 < threshold <= 1:
                raise UserError(f"threshold={threshold} must lie above 0 and be at most 1")
            return cls(levels, dict.fromkeys(labels, float(threshold)))
        if coverage is None:
            return cls(levels, {})
        if missing := [label for label in labels if label not in levels]:
            raise UserError(
                f"coverage={coverage}: there is no calibration of {', '.join(missing)} "
                "(RUN/calibration.json, which `midigenre train` writes for ckpt=best); set "
                "threshold= instead"
            )
        return cls(
            levels, {label: levels[label]["song"].threshold_for(coverage) for label in labels}
        )

    def calibrated(self, label: str, level: str, log_probs_NC: Floats) -> Floats:
        """Log-probabilities after the temperature, if there is one, shape (N, C)."""
        found = self.levels.get(label)
        return log_probs_NC if found is None else found[level].apply(log_probs_NC)


@dataclass(frozen=True)
class SongScores:
    """Songs of one label, in ascending order.

    Attributes:
        log_probs_SC: Log-probabilities before any temperature.
        energy_S: Mean energy of their phrases.
    """

    log_probs_SC: Floats
    energy_S: Floats


def mean_scores(found: Predictions, label: str) -> SongScores:
    """Songs by the mean of their phrases; they are numbered 0 to S - 1 in ``found``."""
    _, log_probs_SC = song_log_probs(found.log_probs[label], found.song)
    n_S = np.bincount(found.song)
    return SongScores(log_probs_SC, np.bincount(found.song, found.energy[label]) / n_S)


def describe(
    song: Song,
    index: int,
    found: Predictions,
    ends: NDArray[np.int64],
    scores: Mapping[str, SongScores],
    classes: Classes,
    doubt: Doubt,
    cut: NDArray[np.bool_],
) -> dict[str, Any]:
    """One file's answer but for its path: labels, probabilities, and the same for each phrase.

    Args:
        song: The song.
        index: Its number among those of ``found``.
        found: What the model says of all phrases.
        ends: Bar after each phrase's last, shape (phrases,).
        scores: For each label what it says of the songs.
        classes: Class names of each label.
        doubt: When to answer.
        cut: Whether each phrase had more steps than the model takes, shape (phrases,).
    """
    mine = np.flatnonzero(found.song == index)
    mine = mine[np.argsort(found.start[mine], kind="stable")]
    seconds = song.file_seconds
    answers: dict[str, Any] = {}
    probabilities: dict[str, dict[str, float]] = {}
    doubts: dict[str, dict[str, Any]] = {}
    timeline: list[dict[str, Any]] = [
        {
            "bars": [int(found.start[i]), int(ends[i])],
            "seconds": [round(float(seconds[bar]), 2) for bar in (found.start[i], ends[i])],
        }
        for i in mine
    ]
    for label, names in classes.items():
        raw_C = scores[label].log_probs_SC[index]
        log_probs_C = doubt.calibrated(label, "song", raw_C[None])[0]
        best = int(log_probs_C.argmax())
        unsure = math.exp(log_probs_C[best]) < doubt.thresholds.get(label, 0.0)
        answers[label] = None if unsure else names[best]
        probabilities[label] = _named(log_probs_C, names)
        doubts[label] = _doubts(label, raw_C, float(scores[label].energy_S[index]), doubt)
        phrase_NC = doubt.calibrated(label, "phrase", found.log_probs[label][mine])
        for row, of_phrase_C in zip(timeline, phrase_NC, strict=True):
            row[label] = names[int(of_phrase_C.argmax())]
            row.setdefault("probabilities", {})[label] = _named(of_phrase_C, names)
    flags = [about["out_of_domain"] for about in doubts.values()]
    return {
        **answers,
        **({"abstained": None in answers.values()} if doubt.thresholds else {}),
        "probabilities": probabilities,
        "calibrated": all(label in doubt.levels for label in classes),
        "out_of_domain": None if None in flags else any(flags),
        "doubts": doubts,
        "repairs": song.repairs,
        "phrases_cut": int(cut[mine].sum()),
        "phrases": timeline,
    }


def table_columns(classes: Classes, abstains: bool, figures: bool) -> list[str]:
    """Columns of :func:`table_row`, in order.

    Args:
        classes: Class names of each label.
        abstains: Whether there is a threshold.
        figures: Whether figures are drawn.
    """
    return [
        "path",
        *(column for label in classes for column in (label, f"{label}_probability")),
        *(["abstained"] if abstains else []),
        "out_of_domain", "calibrated", "phrases", "phrases_cut", "seconds", "repairs",
        *(["figure"] if figures else []),
        "error", "detail",
        *(f"{label}_probability_{name}" for label, names in classes.items() for name in names),
    ]  # fmt: skip


def table_row(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A file's answer as cells; of its phrases only their number and the seconds that they span."""
    if "error" in answer:
        return dict(answer)
    phrases = answer["phrases"]
    row = {key: value for key, value in answer.items() if key not in _NOT_IN_TABLE} | {
        "phrases": len(phrases),
        "seconds": round(phrases[-1]["seconds"][1] - phrases[0]["seconds"][0], 2),
        "repairs": json.dumps(answer["repairs"]) if answer["repairs"] else "",
    }
    for label, probabilities in answer["probabilities"].items():
        row[f"{label}_probability"] = max(probabilities.values())
        row |= {f"{label}_probability_{name}": p for name, p in probabilities.items()}
    return row


_NOT_IN_TABLE = ("probabilities", "doubts", "explanation")


def _doubts(label: str, raw_C: Floats, energy: float, doubt: Doubt) -> dict[str, Any]:
    """How well the model knows a song, before the temperature; None where there is no limit."""
    level = doubt.levels[label]["song"] if label in doubt.levels else None
    knows_energy = level is not None and level.max_energy is not None
    knows_softmax = level is not None and level.min_confidence is not None
    found: dict[str, Any] = {
        "energy": round(energy, 4),
        "max_softmax": round(float(np.exp(raw_C.max())), 4),
        "out_of_domain": None,
        "low_confidence": None,
    }
    if level is not None and knows_energy:
        found["out_of_domain"] = bool(level.out_of_domain(np.array([energy]))[0])
    if level is not None and knows_softmax:
        found["low_confidence"] = bool(level.low_confidence(raw_C[None])[0])
    if label in doubt.thresholds:
        found["threshold"] = round(doubt.thresholds[label], 4)
    return found


def describe_attribution(
    attributions: Mapping[str, Attribution], classes: Classes, method: str
) -> dict[str, Any]:
    """Attributions for JSON: nats of the song's log-odds, null where nothing can be said."""
    return {
        label: {
            "class": classes[label][found.target],
            "method": method,
            "log_odds": _number(found.log_odds),
            "bars": [_number(value) for value in found.bars],
            "programs": {program_name(p): _number(v) for p, v in found.programs.items()},
        }
        for label, found in attributions.items()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6) + 0.0  # no minus zero


def _named(log_probs_C: Floats, names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(np.exp(p)), 4) for name, p in zip(names, log_probs_C, strict=True)}
