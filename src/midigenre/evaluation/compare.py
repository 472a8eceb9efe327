"""Runs side by side: what differs between them, scores with intervals, what they cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from midigenre.errors import UserError
from midigenre.evaluation.bootstrap import t_interval
from midigenre.evaluation.paired import Paired, pair_up
from midigenre.evaluation.report import LEVELS, METRICS
from midigenre.evaluation.runs import RunRecord
from midigenre.evaluation.settings import NAMED
from midigenre.wording import plural

Shipped = Callable[[str, str], Mapping[str, Any]]
"""From a config group and a choice to that choice's own settings, flat; empty if unknown."""

COSTS = {"fit_seconds": "training", "train_tokens": "tokens", "parameters": "parameters"}
"""Columns of ``cost.json`` and what they are called."""


@dataclass(frozen=True)
class Score:
    """A score of one configuration.

    Attributes:
        values: The score of each run.
        low: Lower end of the 95% interval; None where there is none, and of two seeds, which say
            too little: that of 0.88 and 0.86 is 0.74 to 1.
        high: Upper end.
        over: What the interval is over: ``seeds``, or ``songs`` of the test set for a single run.
        baseline: Best baseline's score, mean over the runs; None where no baseline was fitted.
        baseline_name: Its name.
    """

    values: tuple[float, ...]
    low: float | None
    high: float | None
    over: str
    baseline: float | None
    baseline_name: str

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return float(np.mean(self.values))


@dataclass(frozen=True)
class Row:
    """One configuration, over all its seeds.

    Attributes:
        settings: Settings, flat, without the seed.
        runs: Its runs, one for each seed; where they started from pretrained runs that differ by
            their seeds alone, one for each pair of seeds.
        test_set: A letter for each different test set.
        scores: By column.
        costs: Means over the runs, by the keys of :data:`COSTS`; None where unknown.
        paired: For each label its songs against those of the reference, or why there is no
            comparison; None for the reference itself.
    """

    settings: Mapping[str, Any]
    runs: tuple[RunRecord, ...]
    test_set: str
    scores: Mapping[str, Score]
    costs: Mapping[str, float | None]
    paired: Mapping[str, Paired | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A table of runs.

    Attributes:
        settings: The settings that differ between the rows.
        columns: The scores, ``test/<label>/<level>/<metric>``.
        rows: One a configuration.
        notes: What a reader must not miss, one line each.
        paired: The labels that rows are compared by, song by song, with the folder of the reference
            of each.
        metric: The score that is compared.
    """

    settings: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    paired: Mapping[str, Path] = field(default_factory=dict)
    metric: str = "macro_f1"

    @property
    def n_test_sets(self) -> int:
        """How many different test sets the rows have."""
        return len({row.test_set for row in self.rows})

    def sorted_by(self, column: str | None) -> Comparison:
        """The rows with the best score first, or with the least of a cost or setting.

        Args:
            column: A score, a cost or a setting that differs; the first score if None.

        Raises:
            UserError: No such column.
        """
        column = self.columns[0] if column is None else column
        choices = (*self.columns, *self.settings, *COSTS)
        if column not in choices:
            raise UserError(f"sort={column}: no such column; choose {', '.join(choices)}")

        def key(row: Row) -> tuple[bool, float, str]:
            if column in self.columns:
                score = row.scores.get(column)
                return (score is None, -score.mean if score else 0.0, "")
            found: Any = row.costs[column] if column in COSTS else row.settings.get(column)
            number = isinstance(found, (int, float))
            return (found is None, float(found) if number else 0.0, "" if number else str(found))

        return replace(self, rows=tuple(sorted(self.rows, key=key)))


def compare(
    runs: Sequence[RunRecord],
    labels: Sequence[str] | None = None,
    levels: Sequence[str] = LEVELS,
    metric: str = "macro_f1",
    shipped: Shipped = lambda group, choice: {},
    versus: Path | None = None,
) -> Comparison:
    """Folds the runs into one row a configuration, in the order of the runs.

    Three seeds or more give a mean and Student's t interval within 0 to 1, which says how far
    training's chance moves the score on this test set; two say too little. A single run has the
    bootstrap interval of its ``evaluation.json``, which says how far the choice of the test songs
    does: the two do not compare. What does is the last column, each configuration against the best
    one song by song (:mod:`midigenre.evaluation.paired`), where there are two or more.

    Args:
        runs: The runs, at least one.
        labels: Labels to show; all if None.
        levels: ``phrase``, ``song`` or both.
        metric: ``macro_f1`` or ``accuracy``.
        shipped: Own settings of a choice such as ``model=tiny``. Where all runs have them as they
            are, the name stands for them all.
        versus: Folder of a run, to compare with its configuration instead of the best.

    Raises:
        UserError: A label that no run has, or ``versus`` is none of the runs.
    """
    known = list(dict.fromkeys(label for run in runs for label in run.evaluation))
    for label in labels or ():
        if label not in known:
            raise UserError(f"label={label}: no such label; these runs have {', '.join(known)}")
    columns = tuple(
        f"test/{label}/{level}/{metric}" for label in labels or known for level in levels
    )
    letters = {t: chr(ord("A") + i) for i, t in enumerate(dict.fromkeys(r.test_set for r in runs))}
    groups: dict[str, dict[Any, RunRecord]] = {}
    repeated = 0
    # The newest of the runs that repeat a seed; the order stays that of the runs.
    for run in sorted(runs, key=lambda run: run.finished):
        group = groups.setdefault(run.configuration, {})
        repeated += run.seeds in group
        group[run.seeds] = run
    order = {run.folder: i for i, run in enumerate(runs)}
    rows = sorted(
        (
            _row(sorted(group.values(), key=lambda run: order[run.folder]), columns, letters)
            for group in groups.values()
        ),
        key=lambda row: order[row.runs[0].folder],
    )
    rows, paired = _paired(rows, labels or known, metric, versus)
    comparison = Comparison(_differing(rows, shipped), columns, tuple(rows), (), paired, metric)
    return replace(comparison, notes=tuple(_notes(comparison, repeated)))


def _row(runs: Sequence[RunRecord], columns: Sequence[str], letters: Mapping[str, str]) -> Row:
    settings = {k: v for k, v in runs[0].settings.items() if k != "seed"}
    starts = list(dict.fromkeys(run.settings.get("init_from") for run in runs))
    if len(starts) > 1:  # one for each seed
        settings["init_from"] = f"{starts[0]} and {len(starts) - 1} more"
    costs = {}
    for name in COSTS:
        values = [run.cost.get(name) for run in runs]
        costs[name] = float(np.mean(values)) if None not in values else None  # type: ignore[arg-type]
    scores = {column: score for column in columns if (score := _score(runs, column)) is not None}
    return Row(settings, tuple(runs), letters[runs[0].test_set], scores, costs)


def _paired(
    rows: list[Row], labels: Sequence[str], metric: str, versus: Path | None
) -> tuple[list[Row], dict[str, Path]]:
    """The rows with their comparisons, and the reference of each label."""
    place = None
    if versus is not None:
        places = [
            i
            for i, row in enumerate(rows)
            if versus.resolve() in [run.folder.resolve() for run in row.runs]
        ]
        if not places:
            raise UserError(
                f"versus={versus} is none of these runs, or an older one of a repeated seed; give "
                "a run's folder"
            )
        place = places[0]
    references: dict[str, Path] = {}
    for label in labels if len(rows) > 1 else ():
        found = pair_up([row.runs for row in rows], label, metric, place)
        rows = [
            replace(row, paired={**row.paired, label: pair})
            for row, pair in zip(rows, found.found, strict=True)
        ]
        if found.reference is not None:
            references[label] = rows[found.reference].runs[0].folder
    return rows, references


def _score(runs: Sequence[RunRecord], column: str) -> Score | None:
    """The runs' score; None where a run has none."""
    _, label, level, metric = column.split("/")
    found = [run.evaluation.get(label, {}).get(level, {}) for run in runs]
    values = [scores.get(metric) for scores in found]
    if None in values:
        return None
    if len(values) == 1:
        over, (low, high) = "songs", found[0]["ci95"][metric]
    else:
        over, (low, high) = "seeds", t_interval(values, 1.0) if len(values) > 2 else (None, None)
    baselines: dict[str, list[float]] = {}
    for scores in found:
        for name, values_of in scores.get("baselines", {}).items():
            if values_of and values_of.get(metric) is not None:
                baselines.setdefault(name, []).append(values_of[metric])
    name, best = max(
        ((name, float(np.mean(of))) for name, of in baselines.items()),
        key=lambda item: item[1],
        default=("", None),
    )
    return Score(tuple(values), low, high, over, best, name)


def _differing(rows: Sequence[Row], shipped: Shipped) -> tuple[str, ...]:
    """The settings that tell the rows apart, those with a name first."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    own = {
        (group, choice): shipped(group, choice)
        for group in NAMED
        for choice in {row.settings[group] for row in rows}
    }

    def as_shipped(key: str) -> bool:
        group = key.partition(".")[0]
        return group in NAMED and all(
            own[group, row.settings[group]].get(key) == row.settings.get(key) for row in rows
        )

    def differs(key: str) -> bool:
        found = {json.dumps(row.settings[key]) for row in rows if key in row.settings}
        lacking = any(key not in row.settings for row in rows)
        return len(found) > 1 or (lacking and found != {"false"})  # a flag from before it was one

    return tuple(key for key in keys if differs(key) and (key in NAMED or not as_shipped(key)))


def _notes(comparison: Comparison, repeated: int) -> Iterator[str]:
    if comparison.n_test_sets > 1:
        yield (
            f"these runs have {comparison.n_test_sets} different test sets (column `test set`): "
            "compare scores within one only"
        )
    if repeated:
        repeats = plural(repeated, "run repeats", "runs repeat")
        yield f"{repeats} a seed of the same settings: only the newest counts"
    for column in comparison.columns:
        scores = [row.scores[column] for row in comparison.rows if column in row.scores]
        beaten = [s for s in scores if s.baseline is not None and s.mean <= s.baseline]
        if beaten:
            names = ", ".join(dict.fromkeys(score.baseline_name for score in beaten))
            yield (
                f"{column}: a baseline ({names}) is at or above {len(beaten)} of "
                f"{plural(len(scores), 'configuration')}"
            )
    yield from _pair_notes(comparison)


def _pair_notes(comparison: Comparison) -> Iterator[str]:
    """Which configurations cannot be told from the reference, and which were not compared."""
    for label in dict.fromkeys(label for row in comparison.rows for label in row.paired):
        alike, missing = [], []
        reference = comparison.paired.get(label)
        for row in comparison.rows:
            pair = row.paired.get(label)
            if isinstance(pair, str):
                missing.append(f"{row.runs[0].folder} ({pair})")
            elif pair is not None and not pair.is_clear:
                alike.append(str(row.runs[0].folder))
        if alike:
            yield (
                f"{label}, songs: not clearly different from {reference} in "
                f"{METRICS[comparison.metric]}: {', '.join(alike)}"
            )
        if missing:
            yield f"{label}, songs: not compared in pairs: {', '.join(missing)}"
