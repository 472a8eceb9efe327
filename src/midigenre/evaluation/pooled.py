"""One evaluation of all parts of a protocol: every song as the model predicts that has not seen it.

Pooling predictions, not averaging scores, is what lets a class with a song or two in a fold count
right: macro-F1 of a fold that has one song of a class is nearly a coin toss (Forman and Scholz
2010, "Apples-to-Apples in Cross-Validation Studies"). The parts' own scores stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midigenre.data.shards import ShardSet
from midigenre.data.splits import Fold
from midigenre.evaluation.bootstrap import METRICS, Floats, t_interval
from midigenre.evaluation.calibration import Calibration
from midigenre.evaluation.predictions import LabelPredictions, songs_path, write_predictions
from midigenre.evaluation.report import LEVELS
from midigenre.evaluation.scores import Ints, evaluate_label
from midigenre.evaluation.songs import ENCODER, set_apart, song_model_of_parts
from midigenre.evaluation.within import Sources
from midigenre.files import read_csv, read_json
from midigenre.spec import UNKNOWN

Rows = list[dict[str, str]]

_TIE = 1e-6  # below the rounding of the tables


@dataclass(frozen=True)
class PartRun:
    """A finished part.

    Attributes:
        number: From 1.
        part: Its songs.
        folder: Its run folder.
        train: The songs that it was trained on, which a ``fold=`` makes fewer.
    """

    number: int
    part: Fold
    folder: Path
    train: Ints

    @property
    def evaluation(self) -> dict[str, Any]:
        """Its ``evaluation.json``."""
        found: dict[str, Any] = read_json(self.folder / "evaluation.json")
        return found


def pool(
    runs: Sequence[PartRun], shards: ShardSet, predictions: Path, skipped: Sequence[Fold] = ()
) -> dict[str, Any]:
    """``evaluation.json`` over all parts.

    Labels are scored on the predictions of all parts together, as one test set. What has no labels
    (``task=mlm``, ``task=generate``) is averaged by :func:`averaged`.

    Args:
        runs: The finished parts, at least one.
        shards: Their songs.
        predictions: Where the tables of all predictions go, those of a part with a column ``part``.
        skipped: Parts of which no song can be tested.

    Returns:
        For each label and level what each part's ``evaluation.json`` has, and ``parts``,
        ``over_parts`` (mean and standard deviation of the parts' scores) and, where songs could not
        be tested, ``untestable``.
    """
    evaluations = [run.evaluation for run in runs]
    if not all(set(LEVELS) <= set(levels) for of in evaluations for levels in of.values()):
        return averaged(evaluations, [run.part.name for run in runs])
    labels = list(evaluations[0])
    index = {song_id: i for i, song_id in enumerate(shards.manifest.column("song_id"))}
    tables = {level: _Table.of(runs, path, index) for level, path in _PATHS.items()}
    result: dict[str, Any] = {}
    written: dict[str, dict[str, LabelPredictions]] = {level: {} for level in LEVELS}
    for label in labels:
        classes = shards.labels.classes[label]
        found = {
            level: table.predictions(label, classes, level, evaluations)
            for level, table in tables.items()
        }
        phrase, song = found["phrase"], found["song"]
        levels: dict[str, Any] = evaluate_label(
            phrase.log_probs_NC,
            phrase.truth_N,
            tables["phrase"].song_N,
            classes,
            {level: found[level].baselines for level in LEVELS},
            song=(tables["song"].song_N, song.log_probs_NC),
            temperatures=_temperatures(runs, label, tables),
            sources=_sources(runs, label, shards, tables["phrase"]),
        )
        untestable = {
            part.name: dict(part.untestable[label])
            for part in (*(run.part for run in runs), *skipped)
            if label in part.untestable
        }
        models = [e[label]["song"]["song_model"] for e in evaluations if _parted(e, label)]
        if len(models) == len(runs):
            set_apart(levels["song"], list(evaluations[0][label]["song"]["components"]))
            levels["song"]["song_model"] = song_model_of_parts(models)
        for level, scores in levels.items():
            scores |= _parts(runs, [e[label][level] for e in evaluations])
            flags = [e[label][level].get("out_of_domain") for e in evaluations]
            scores["out_of_domain"] = None if None in flags else _flagged(flags)
            if untestable:
                scores["untestable"] = untestable
            written[level][label] = found[level]
        result[label] = levels
    for level, path in (("phrase", predictions), ("song", songs_path(predictions))):
        write_predictions(path, tables[level].where(), written[level])
    return result


_PATHS: Mapping[str, Callable[[Path], Path]] = {
    "phrase": lambda folder: folder / "predictions.csv",
    "song": lambda folder: songs_path(folder / "predictions.csv"),
}


@dataclass(frozen=True)
class _Table:
    """Predictions of all parts at one level, in the order of the songs."""

    rows: Rows
    part_N: Ints  # index of the run
    song_N: Ints
    names: Sequence[str]

    @classmethod
    def of(
        cls, runs: Sequence[PartRun], path: Callable[[Path], Path], index: Mapping[str, int]
    ) -> _Table:
        rows: Rows = []
        part: list[int] = []
        for i, run in enumerate(runs):
            more = read_csv(path(run.folder))
            rows += more
            part += [i] * len(more)
        song_N = np.array([index[row["song_id"]] for row in rows], np.int64)
        order = np.argsort(song_N, kind="stable")
        return cls(
            [rows[i] for i in order],
            np.array(part, np.int64)[order],
            song_N[order],
            [run.part.name for run in runs],
        )

    def where(self) -> dict[str, list[Any]]:
        """Columns that say which phrase or song a row is, and of which part."""
        known = [c for c in ("song_id", "source", "first_bar", "end_bar") if c in self.rows[0]]
        return {"part": [self.names[i] for i in self.part_N]} | {
            column: [row[column] for row in self.rows] for column in known
        }

    def predictions(
        self,
        label: str,
        classes: Sequence[str],
        level: str,
        evaluations: Sequence[Mapping[str, Any]],
    ) -> LabelPredictions:
        """The predictions of a label as its model and its baselines made them."""
        code = {name: i for i, name in enumerate(classes)} | {"": UNKNOWN}

        def coded(column: str) -> Ints:
            return np.array([code[row[column]] for row in self.rows], np.int64)

        log_probs_NC = np.array(
            [[float(row[f"{label}_log_prob_{name}"]) for name in classes] for row in self.rows]
        ).reshape(-1, len(classes))
        # Rounding made ties: what evaluation.json of the part counts stands in its own column.
        said_N, places = coded(f"{label}_model"), np.arange(len(self.rows))
        lost = log_probs_NC.argmax(1) != said_N
        log_probs_NC[places[lost], said_N[lost]] += _TIE
        scores = [e[label][level] for e in evaluations]
        baselines: dict[str, ArrayLike | str] = {}
        names = dict.fromkeys(name for of in scores for name in of["baselines"])
        if level == "song" and all(_parted(e, label) for e in evaluations):
            names[ENCODER] = None
        for name in names:
            reasons = [
                of.get("baselines_missing", {}).get(name, f"not fitted in {part}")
                for of, part in zip(scores, self.names, strict=True)
                if (of["baselines"] | of.get("components", {})).get(name) is None
            ]
            baselines[name] = reasons[0] if reasons else coded(f"{label}_{name}")
        return LabelPredictions(classes, coded(label), log_probs_NC, baselines)


def _parted(evaluation: Mapping[str, Any], label: str) -> bool:
    """Whether songs were scored by a model that lists its parts (``task.song``)."""
    return "components" in evaluation[label]["song"]


def _temperatures(
    runs: Sequence[PartRun], label: str, tables: Mapping[str, _Table]
) -> dict[str, Floats] | None:
    """Each part's own temperature for its rows; None where a part has none."""
    by_part = []
    for run in runs:
        found = Calibration.of_run(run.folder, run.folder / "checkpoints" / "best.ckpt")
        temperatures = None if found is None else found.temperatures(label)
        if temperatures is None:
            return None
        by_part.append(temperatures)
    return {
        level: np.array([of[level] for of in by_part])[table.part_N]
        for level, table in tables.items()
    }


def _sources(
    runs: Sequence[PartRun], label: str, shards: ShardSet, phrases: _Table
) -> Sources | None:
    """Sources of the phrases, with the classes that each part's training songs of them have."""
    if "source" not in shards.manifest.columns:
        return None
    source_S = np.array(shards.manifest.column("source"), object)
    class_S, n_classes = shards.label_indices()[label], len(shards.labels.classes[label])
    source_N = source_S[phrases.song_N]
    allowed_NC = np.zeros((len(source_N), n_classes), bool)
    for i, run in enumerate(runs):
        rows, train = phrases.part_N == i, run.train
        about = (source_S[train], class_S[train], n_classes)
        allowed_NC[rows] = Sources.of_training(source_N[rows], *about).allowed_NC
    return Sources(source_N, allowed_NC)


def _parts(runs: Sequence[PartRun], scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [
        {"part": run.number, "name": run.part.name, "n": of["n"]}
        | {metric: of[metric] for metric in METRICS}
        for run, of in zip(runs, scores, strict=True)
    ]
    return {
        "parts": own,
        "over_parts": {m: mean_and_sd([of[m] for of in own]) for m in METRICS},
    }


def mean_and_sd(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of the values that are known; None where undefined."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def _flagged(flags: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares of flagged rows over all parts."""
    found: dict[str, Any] = {}
    for rows in flags[0]:
        n = sum(of[rows]["n"] for of in flags)
        found[rows] = {"n": n}
        for by in (key for key in flags[0][rows] if key != "n"):
            total = sum(of[rows][by] * of[rows]["n"] for of in flags if of[rows]["n"])
            found[rows][by] = total / n if n else None
    return found


def averaged(evaluations: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The mean of several evaluations, number by number.

    Counts (``n`` and ``n_...``) are summed. Intervals in ``ci95`` become those over the parts
    (:func:`~midigenre.evaluation.bootstrap.t_interval`): rough, since they share training songs.
    What a part lacks, or what is no number, is left out. Each top-level entry gets ``parts``, the
    parts' own numbers.

    Args:
        evaluations: One for each part.
        names: Names of the parts.
    """
    found = _mean(evaluations)
    assert isinstance(found, dict)
    for key, value in found.items():
        if isinstance(value, dict):
            value["parts"] = [
                {"name": name} | {k: v for k, v in of[key].items() if _is_number(v)}
                for name, of in zip(names, evaluations, strict=True)
            ]
    return found


def _mean(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in values[0]:
        of = [value.get(key) for value in values]
        if key == "ci95" and all(isinstance(one, Mapping) for one in of):
            found[key] = {
                metric: t_interval([value[metric] for value in values])
                for metric in values[0][key]
                if all(_is_number(value.get(metric)) for value in values)
            }
        elif all(isinstance(one, Mapping) for one in of):
            found[key] = _mean([one for one in of if isinstance(one, Mapping)])
        elif all(_is_number(one) for one in of):
            counts = key == "n" or key.startswith("n_")
            found[key] = sum(of) if counts else float(np.mean(of))  # type: ignore[arg-type]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def tested(runs: Sequence[PartRun]) -> NDArray[np.int64]:
    """The songs that some part tests, ascending.

    Raises:
        ValueError: Two parts test the same song.
    """
    rows = np.concatenate([run.part.rows["test"] for run in runs])
    if len(np.unique(rows)) != len(rows):
        raise ValueError("two parts test the same song")
    return np.sort(rows)
