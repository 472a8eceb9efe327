"""Tables of predictions, so that any comparison can be computed later from files alone.

One row is a phrase or a song. Columns of a label, for instance ``genre``: ``genre`` (the truth;
empty where it is not known), ``genre_model`` (the prediction), ``genre_<baseline>`` of each
baseline, and ``genre_log_prob_<class>``, rounded. A song model (``task.song``) adds what its parts
say, for instance ``genre_encoder`` and ``genre_hist_gb_log_prob_<class>``. Predictions are those
that ``evaluation.json`` counts; use :func:`~midigenre.evaluation.bootstrap.paired_bootstrap` on two
of the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.evaluation.bootstrap import Floats
from midigenre.evaluation.scores import Ints, LevelBaselines
from midigenre.files import write_csv
from midigenre.spec import UNKNOWN

DECIMALS = 5


@dataclass(frozen=True)
class LabelPredictions:
    """Predictions of one label at one level.

    Attributes:
        classes: Class names, length C.
        truth_N: True classes, shape (N,); UNKNOWN where there is none.
        log_probs_NC: The model's log-probabilities, shape (N, C).
        baselines: Classes that each baseline predicts, shape (N,), or why it is missing.
        parts: Log-probabilities of each part of a song model, shape (N, C).
    """

    classes: Sequence[str]
    truth_N: Ints
    log_probs_NC: Floats
    baselines: LevelBaselines
    parts: Mapping[str, Floats] = field(default_factory=dict)


def songs_path(path: Path) -> Path:
    """Where the songs' table lies beside the phrases': ``predictions_songs.csv``."""
    return path.with_name(f"{path.stem}_songs{path.suffix}")


def write_predictions(
    path: Path,
    where: Mapping[str, Sequence[Any] | NDArray[Any]],
    labels: Mapping[str, LabelPredictions],
) -> None:
    """Writes one level's table as CSV.

    Args:
        path: The file.
        where: Columns that say which phrase or song a row is, each with N values.
        labels: The predictions of each label.
    """
    columns: dict[str, Sequence[Any]] = {name: list(values) for name, values in where.items()}
    for label, found in labels.items():
        names = np.array([*found.classes, ""])  # UNKNOWN is the last one
        assert UNKNOWN == -1
        columns[label] = names[found.truth_N].tolist()
        columns[f"{label}_model"] = names[found.log_probs_NC.argmax(1)].tolist()
        for baseline, predicted in found.baselines.items():
            if not isinstance(predicted, str):
                columns[f"{label}_{baseline}"] = names[np.asarray(predicted)].tolist()
        for c, name in enumerate(found.classes):
            columns[f"{label}_log_prob_{name}"] = found.log_probs_NC[:, c].round(DECIMALS).tolist()
        for part, log_probs_NC in found.parts.items():
            for c, name in enumerate(found.classes):
                column = log_probs_NC[:, c].round(DECIMALS).tolist()
                columns[f"{label}_{part}_log_prob_{name}"] = column
    rows = (
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )
    write_csv(path, rows, list(columns))
