"""Runs side by side: what differs between them, scores with intervals, what they cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit
from scipy.stats import sem

from midigenre.errors import UserError
from midigenre.evaluation.markdown import markdown_table
from midigenre.evaluation.report import LEVELS, METRICS
from midigenre.evaluation.runs import NAMED, RunRecord

Shipped = Callable[[str, str], Mapping[str, Any]]
"""From a config group and a choice to that choice's own settings, flat; empty if unknown."""

COSTS = {"fit_seconds": "training", "train_tokens": "tokens", "parameters": "parameters"}
"""Columns of ``cost.json`` and what they are called."""

MISSING = "–"


@dataclass(frozen=True)
class Score:
    """A score of one configuration.

    Attributes:
        mean: Mean over the runs.
        low: Lower end of the 95% interval; None where there is none.
        high: Upper end.
        over: What the interval is over: ``seeds``, or ``songs`` of the test set for a single run.
        baseline: Best baseline's score, mean over the runs; None where no baseline was fitted.
        baseline_name: Its name.
    """

    mean: float
    low: float | None
    high: float | None
    over: str
    baseline: float | None
    baseline_name: str


@dataclass(frozen=True)
class Row:
    """One configuration, over all its seeds.

    Attributes:
        settings: Settings, flat, without the seed.
        runs: Its runs, one for each seed.
        test_set: A letter for each different test set.
        scores: By column.
        costs: Means over the runs, by the keys of :data:`COSTS`; None where unknown.
    """

    settings: Mapping[str, Any]
    runs: tuple[RunRecord, ...]
    test_set: str
    scores: Mapping[str, Score]
    costs: Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """A table of runs.

    Attributes:
        settings: The settings that differ between the rows.
        columns: The scores, ``test/<label>/<level>/<metric>``.
        rows: One a configuration.
        notes: What a reader must not miss, one line each.
    """

    settings: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

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
) -> Comparison:
    """Folds the runs into one row a configuration, in the order of the runs.

    Several seeds give a mean and Student's t interval, ``mean ± t(0.975, n - 1) s / sqrt(n)``,
    which says how far training's chance moves the score on this test set. A single run has the
    bootstrap interval of its ``evaluation.json``, which says how far the choice of the test songs
    does: the two do not compare.

    Args:
        runs: The runs, at least one.
        labels: Labels to show; all if None.
        levels: ``phrase``, ``song`` or both.
        metric: ``macro_f1`` or ``accuracy``.
        shipped: Own settings of a choice such as ``model=tiny``. Where all runs have them as they
            are, the name stands for them all.

    Raises:
        UserError: A label that no run has.
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
        settings = {k: v for k, v in run.settings.items() if k != "seed"}
        group = groups.setdefault(json.dumps([settings, run.test_set], sort_keys=True), {})
        repeated += run.settings.get("seed") in group
        group[run.settings.get("seed")] = run
    order = {run.folder: i for i, run in enumerate(runs)}
    rows = sorted(
        (
            _row(sorted(group.values(), key=lambda run: order[run.folder]), columns, letters)
            for group in groups.values()
        ),
        key=lambda row: order[row.runs[0].folder],
    )
    comparison = Comparison(_differing(rows, shipped), columns, tuple(rows), ())
    return replace(comparison, notes=tuple(_notes(comparison, repeated)))


def _row(runs: Sequence[RunRecord], columns: Sequence[str], letters: Mapping[str, str]) -> Row:
    settings = {k: v for k, v in runs[0].settings.items() if k != "seed"}
    costs = {}
    for name in COSTS:
        values = [run.cost.get(name) for run in runs]
        costs[name] = float(np.mean(values)) if None not in values else None  # type: ignore[arg-type]
    scores = {column: score for column in columns if (score := _score(runs, column)) is not None}
    return Row(settings, tuple(runs), letters[runs[0].test_set], scores, costs)


def _score(runs: Sequence[RunRecord], column: str) -> Score | None:
    """The runs' score; None where a run has none."""
    _, label, level, metric = column.split("/")
    found = [run.evaluation.get(label, {}).get(level, {}) for run in runs]
    values = [scores.get(metric) for scores in found]
    if None in values:
        return None
    mean, low, high, over = float(np.mean(values)), None, None, "songs"
    if len(values) > 1:
        half = float(stdtrit(len(values) - 1, 0.975) * sem(values))
        low, high, over = mean - half, mean + half, "seeds"
    else:
        low, high = found[0]["ci95"][metric]
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
    return Score(mean, low, high, over, best, name)


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
        yield f"{repeated} run(s) repeat a seed of the same settings: only the newest counts"
    for column in comparison.columns:
        scores = [row.scores[column] for row in comparison.rows if column in row.scores]
        beaten = [s for s in scores if s.baseline is not None and s.mean <= s.baseline]
        if beaten:
            names = ", ".join(dict.fromkeys(score.baseline_name for score in beaten))
            yield (
                f"{column}: a baseline ({names}) is at or above {len(beaten)} of {len(scores)} "
                "configuration(s)"
            )


def table(comparison: Comparison) -> tuple[list[str], list[list[str]], int]:
    """The table as text: names of the columns, rows, and how many columns from the left are words.

    A score reads ``mean [low, high]``; a star marks the interval of a single run, over songs.
    """
    labels = {column.split("/")[1] for column in comparison.columns}
    several = comparison.n_test_sets > 1
    words = [*comparison.settings, *(["test set"] if several else [])]
    header = [*words, "seeds"]
    for column in comparison.columns:
        _, label, level, metric = column.split("/")
        what = f"{label} {level}" if len(labels) > 1 else level
        header += [f"{what} {METRICS[metric]}", "best baseline"]
    header += [*COSTS.values(), "run"]
    rows = []
    for row in comparison.rows:
        cells = [_text(row.settings.get(key, MISSING)) for key in comparison.settings]
        cells += [row.test_set] if several else []
        cells.append(str(len(row.runs)))
        for column in comparison.columns:
            cells += _score_cells(row.scores.get(column))
        cells += [_amount(row.costs[name], name) for name in COSTS]
        more = f" and {len(row.runs) - 1} more" if len(row.runs) > 1 else ""
        rows.append([*cells, f"{row.runs[0].folder}{more}"])
    return header, rows, len(words)


def to_markdown(comparison: Comparison) -> str:
    """The table as Markdown with what its marks mean, ending in a newline."""
    text = markdown_table(*table(comparison)) + "\n"
    over = {score.over for row in comparison.rows for score in row.scores.values()}
    legend = []
    if "seeds" in over:
        legend.append("mean and 95 % t interval over the seeds")
    if "songs" in over:
        legend.append("\\* one seed: 95 % bootstrap interval over the test songs")
    return f"{text}\n{'; '.join(legend)}.\n" if legend else text


def to_records(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows for a CSV file and its columns; numbers are not rounded, unknown ones empty."""
    columns = [*comparison.settings, "test_set", "seeds"]
    for column in comparison.columns:
        columns += [f"{column}{end}" for end in ("", "/low", "/high", "/over")]
        columns += [f"{column}/baseline", f"{column}/baseline_name"]
    columns += [*COSTS, "runs"]
    records = []
    for row in comparison.rows:
        record: dict[str, Any] = {k: _text(row.settings.get(k, "")) for k in comparison.settings}
        record |= {"test_set": row.test_set, "seeds": len(row.runs)}
        for column, score in row.scores.items():
            record |= {
                column: score.mean,
                f"{column}/low": score.low,
                f"{column}/high": score.high,
                f"{column}/over": score.over,
                f"{column}/baseline": score.baseline,
                f"{column}/baseline_name": score.baseline_name,
            }
        record |= row.costs
        record["runs"] = ";".join(str(run.folder) for run in row.runs)
        records.append(record)
    return records, columns


def _text(value: Any) -> str:
    """A setting as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _score_cells(score: Score | None) -> list[str]:
    if score is None:
        return [MISSING, MISSING]
    interval = "" if score.low is None else f" [{score.low:.3f}, {score.high:.3f}]"
    star = "*" if score.over == "songs" and interval else ""
    baseline = MISSING if score.baseline is None else f"{score.baseline:.3f} {score.baseline_name}"
    return [f"{score.mean:.3f}{interval}{star}", baseline]


def _amount(value: float | None, name: str) -> str:
    if value is None:
        return MISSING
    return f"{value:,.0f} s" if name == "fit_seconds" else f"{value:,.0f}"
