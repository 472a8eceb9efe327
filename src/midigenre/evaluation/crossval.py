"""One evaluation over all parts: each song predicted by the model that has not seen it.

Predictions are pooled, scores are not averaged, so that a class with a song or two in a fold counts
correctly: macro-F1 of a fold that has one song of a class is nearly a coin toss (Forman and Scholz
2010, "Apples-to-Apples in Cross-Validation Studies"). The parts' own scores are reported too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from midigenre.data.splits import Fold
from midigenre.errors import UserError
from midigenre.evaluation.bootstrap import t_interval
from midigenre.evaluation.metrics import METRICS, Counts, plain_number, scores_of
from midigenre.evaluation.predictions import (
    LEVELS,
    PREDICTIONS_FILE,
    TABLES_FILE,
    Predictions,
    concat,
    read_tables,
    write_predictions,
    write_tables,
)
from midigenre.evaluation.scores import evaluate
from midigenre.files import read_json
from midigenre.spec import UNKNOWN


@dataclass(frozen=True)
class PartRun:
    """A finished part.

    Attributes:
        number: From 1.
        part: Its songs.
        folder: Its run folder.
    """

    number: int
    part: Fold
    folder: Path


def pool(runs: Sequence[PartRun], folder: Path, skipped: Sequence[Fold] = ()) -> dict[str, Any]:
    """``evaluation.json`` over all parts.

    Labels are scored on the predictions of all parts together, as one test set. What has no labels
    (``task=mlm``, ``task=generate``) is averaged by :func:`averaged`.

    Args:
        runs: The finished parts, at least one.
        folder: Where the predictions of all parts go, with a column ``part``.
        skipped: Parts of which no song can be tested.

    Returns:
        For each label and level what :func:`~midigenre.evaluation.scores.evaluate` gives, and
        ``parts``, ``over_parts`` (mean and standard deviation of the parts' scores) and, where
        songs could not be tested, ``untestable``. ``song_model``, where each part has fitted its
        own, has their ``kind``, mean ``weights``, summed ``n_validation``, the first ``note`` that
        there is, and what each part had as ``parts``.

    Raises:
        UserError: The predictions of a part cannot be read, or are of songs that it does not test.
    """
    evaluations = [read_json(run.folder / "evaluation.json") for run in runs]
    names = [run.part.name for run in runs]
    if not all(set(LEVELS) <= set(levels) for of in evaluations for levels in of.values()):
        return averaged(evaluations, names)
    of_runs = [read_tables(run.folder / TABLES_FILE, list(evaluations[0])) for run in runs]
    for run, of in zip(runs, of_runs, strict=True):
        if any(not np.isin(of[k]["song"].song_N, run.part.rows["test"]).all() for k in of):
            raise UserError(
                f"{run.folder} has tested songs that {run.part.name} does not test: it is of "
                "another run; delete it and resume this one"
            )
    tables = {
        label: {level: concat([of[label][level] for of in of_runs], names) for level in levels}
        for label, levels in of_runs[0].items()
    }
    result: dict[str, dict[str, Any]] = {}
    for label, levels in tables.items():
        untestable = {
            part.name: dict(part.untestable[label])
            for part in (*(run.part for run in runs), *skipped)
            if label in part.untestable
        }
        result[label] = {}
        for level, table in levels.items():
            own = by_part(table)
            result[label][level] = evaluate(table) | {
                "parts": [{"part": r.number, "name": r.part.name} | own[r.part.name] for r in runs],
                "over_parts": {m: mean_and_sd([own[n][m] for n in names]) for m in METRICS},
                **({"untestable": untestable} if untestable else {}),
            }
        models = [of[label]["song"].get("song_model") for of in evaluations]
        if None not in models:
            weights = [about["weights"] for about in models]
            result[label]["song"]["song_model"] = {
                "kind": models[0]["kind"],
                "weights": {
                    name: float(np.mean([of.get(name, 0.0) for of in weights]))
                    for name in weights[0]
                },
                "n_validation": sum(about["n_validation"] for about in models),
                "note": next((about["note"] for about in models if about.get("note")), None),
                "parts": models,
            }
    write_predictions(folder / PREDICTIONS_FILE, tables)
    write_tables(folder / TABLES_FILE, tables)
    return result


def by_part(table: Predictions) -> dict[str, dict[str, Any]]:
    """``n`` and every metric of each part of a joined table, by the part's name."""
    found = {}
    for name in np.unique(table.where["part"]).tolist():
        part = table.select((table.where["part"] == name) & (table.truth_N != UNKNOWN))
        scores = scores_of(Counts.of_rows(part.truth_N, part.predicted_N, len(table.classes)))
        found[str(name)] = {"n": len(part)} | {k: plain_number(v) for k, v in scores.items()}
    return found


def mean_and_sd(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of the values that are known; None where undefined."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def averaged(evaluations: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The mean of several evaluations, number by number.

    Counts (``n`` and ``n_...``) are summed. Intervals in ``ci95`` become those over the parts
    (:func:`~midigenre.evaluation.bootstrap.t_interval`): rough, since they share training songs.
    What a part lacks, or what is not a number, is left out. Each top-level entry gets ``parts``,
    the parts' own numbers.
    """
    found = _mean(evaluations)
    for key, value in found.items():
        if isinstance(value, dict):
            value["parts"] = [
                {"name": name} | {k: v for k, v in of[key].items() if _is_number(v)}
                for name, of in zip(names, evaluations, strict=True)
            ]
    return found


def _mean(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in evaluations[0]:
        values: list[Any] = [of.get(key) for of in evaluations]
        if all(isinstance(value, Mapping) for value in values):
            found[key] = _mean(values) if key != "ci95" else {
                metric: t_interval([of[metric] for of in evaluations])
                for metric in values[0]
                if all(_is_number(of.get(metric)) for of in evaluations)
            }  # fmt: skip
        elif all(_is_number(value) for value in values):
            is_count = key == "n" or key.startswith("n_")
            found[key] = sum(values) if is_count else float(np.mean(values))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
