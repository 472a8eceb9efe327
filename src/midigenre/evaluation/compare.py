"""Runs side by side: what differs between them, scores with intervals, what they cost.

Two scores on the same test songs differ for two reasons, the models and the choice of the songs.
The second is the same for both, so their *difference* is much surer than either score: runs are
compared song by song, from ``predictions_songs.csv`` of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom  # type: ignore[attr-defined]

from midigenre.errors import UserError
from midigenre.evaluation.bootstrap import N_BOOTSTRAP, t_interval
from midigenre.evaluation.bootstrap import score as score_classifiers
from midigenre.evaluation.metrics import METRICS
from midigenre.evaluation.predictions import LEVELS, SONGS_FILE
from midigenre.evaluation.runs import RunRecord
from midigenre.files import read_csv
from midigenre.run import GROUPS
from midigenre.wording import plural

Shipped = Callable[[str, str], Mapping[str, Any]]
"""From a config group and a choice to that choice's own settings, flat; empty if unknown."""

COSTS = {"fit_seconds": "training", "train_tokens": "tokens", "parameters": "parameters"}
"""Columns of ``cost.json`` and what they are called."""

PAIR_COLUMNS = ("against", "difference", "low", "high", "p", "mcnemar_p", "songs")
"""Columns of a CSV file for each label: see :class:`Paired`."""

OTHER_SONGS = "tested on other songs than {reference}"
MISSING = "–"


@dataclass(frozen=True)
class Paired:
    """A configuration against the reference, on the songs that both were tested on.

    Attributes:
        n_songs: Songs with a label.
        n_seeds: Seeds of each that took part.
        difference: Its score minus the reference's; means over the seeds.
        ci95: 95 % bootstrap interval of the difference, over songs.
        p: Two-sided bootstrap p-value (see
            :meth:`~midigenre.evaluation.bootstrap.Scores.lead`).
        mcnemar_p: See :func:`mcnemar`.
    """

    n_songs: int
    n_seeds: tuple[int, int]
    difference: float
    ci95: tuple[float, float]
    p: float
    mcnemar_p: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


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
                sign = -1 if METRICS[self.metric].higher_is_better else 1
                return (score is None, sign * score.mean if score else 0.0, "")
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
    one song by song (:func:`pair_up`), where there are two or more.

    Args:
        runs: The runs, at least one.
        labels: Labels to show; all if None.
        levels: ``phrase``, ``song`` or both.
        metric: One of :data:`~midigenre.evaluation.metrics.METRICS`.
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
    best_of = max if METRICS[metric].higher_is_better else min
    name, best = best_of(
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
        for group in GROUPS
        for choice in {row.settings[group] for row in rows}
    }

    def as_shipped(key: str) -> bool:
        group = key.partition(".")[0]
        return group in GROUPS and all(
            own[group, row.settings[group]].get(key) == row.settings.get(key) for row in rows
        )

    def differs(key: str) -> bool:
        found = {json.dumps(row.settings[key]) for row in rows if key in row.settings}
        lacking = any(key not in row.settings for row in rows)
        return len(found) > 1 or (lacking and found != {"false"})  # a flag from before it was one

    return tuple(key for key in keys if differs(key) and (key in GROUPS or not as_shipped(key)))


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
        sign = 1 if METRICS[comparison.metric].higher_is_better else -1
        beaten = [
            s for s in scores if s.baseline is not None and sign * s.mean <= sign * s.baseline
        ]
        if beaten:
            names = ", ".join(dict.fromkeys(score.baseline_name for score in beaten))
            yield (
                f"{column}: a baseline ({names}) is as good as or better than {len(beaten)} of "
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
                f"{METRICS[comparison.metric].title}: {', '.join(alike)}"
            )
        if missing:
            yield f"{label}, songs: not compared in pairs: {', '.join(missing)}"


@dataclass(frozen=True)
class Pairings:
    """Configurations against a reference, in their order.

    Attributes:
        reference: Place of the reference; None where there is none.
        found: For each its pairing, or why there is none; None for the reference itself.
    """

    reference: int | None
    found: tuple[Paired | str | None, ...]


@dataclass(frozen=True)
class _Songs:
    """The songs of a configuration that have a label, in the order of their ids.

    Attributes:
        ids: Their ids.
        truth_S: Their classes, text.
        predicted_PS: What each run predicts.
    """

    ids: tuple[str, ...]
    truth_S: NDArray[Any]
    predicted_PS: NDArray[Any]


def mcnemar(first_right_S: NDArray[Any], second_right_S: NDArray[Any]) -> float:
    """McNemar's mid-p test of two classifiers on the same songs (Fagerland et al. 2013, eq. 9).

    Looks only at the songs that one of them gets right and the other wrong. With several seeds,
    the rows are their shares of right predictions, and it is the sign test of those shares, which
    is the same for one seed.

    Args:
        first_right_S: Whether, or with what share of its seeds, the first is right, shape (S,).
        second_right_S: The second one.

    Returns:
        Two-sided p-value; 1 where they are never right and wrong on the same song.
    """
    lead_S = np.asarray(first_right_S, np.float64) - np.asarray(second_right_S, np.float64)
    up, down = int((lead_S > 1e-9).sum()), int((lead_S < -1e-9).sum())
    if up + down == 0:
        return 1.0
    low, n = min(up, down), up + down
    at: float = binom.pmf(low, n, 0.5)
    if up == down:
        return float(1 - at / 2)
    return float(2 * binom.cdf(low, n, 0.5) - at)


def pair_up(
    groups: Sequence[Sequence[RunRecord]],
    label: str,
    metric: str,
    versus: int | None = None,
    *,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> Pairings:
    """Pairs each configuration with the best one, or with a given one.

    Where both have runs of the same seeds, only those count, so that a seed more does not tell.

    Args:
        groups: The runs of each configuration, one a seed.
        label: The label.
        metric: One of :data:`~midigenre.evaluation.metrics.METRICS`, of songs.
        versus: Place of the reference; None for the one with the best score.
        seed: Seed of the resamples.
        n_bootstrap: Number of resamples.
    """
    songs = [_songs_of(group, label) for group in groups]
    usable = [i for i, found in enumerate(songs) if isinstance(found, _Songs)]
    reference = versus
    if reference is None:
        reference = max(usable, key=lambda i: _quality(songs[i], metric), default=None)
    if reference is None:
        return Pairings(None, tuple(str(found) for found in songs))
    theirs = songs[reference]
    out: list[Paired | str | None] = []
    for i, ours in enumerate(songs):
        if i == reference:
            out.append(theirs if isinstance(theirs, str) else None)
        elif isinstance(ours, str):
            out.append(ours)
        elif isinstance(theirs, str):
            out.append(f"{groups[reference][0].folder}: {theirs}")
        elif ours.ids != theirs.ids or (ours.truth_S != theirs.truth_S).any():
            out.append(OTHER_SONGS.format(reference=groups[reference][0].folder))
        else:
            chosen = _same_seeds(groups[i], groups[reference])
            out.append(_pair(ours, theirs, chosen, metric, seed, n_bootstrap))
    return Pairings(reference, tuple(out))


def _songs_of(runs: Sequence[RunRecord], label: str) -> _Songs | str:
    """The songs that have the label, and what each run predicts; or why that is not known."""
    ids: tuple[str, ...] = ()
    columns: list[list[str]] = []
    for run in runs:
        path = Path(run.folder) / SONGS_FILE
        if not path.is_file():
            return f"no {SONGS_FILE}"
        try:
            rows = {row["song_id"]: row for row in read_csv(path) if row[label]}
            own = tuple(sorted(rows))
            truth, predicted = ([rows[i][c] for i in own] for c in (label, f"{label}_model"))
        except KeyError as error:
            return f"{SONGS_FILE} has no column {error}"
        except (ValueError, TypeError) as error:
            return f"{SONGS_FILE} cannot be read ({error})"
        if not own:
            return f"{SONGS_FILE} has no song with a {label}"
        if columns and (own, truth) != (ids, columns[0]):
            return "its seeds were tested on different songs"
        ids, columns = own, [truth, *columns[1:], predicted]
    return _Songs(ids, np.array(columns[0]), np.array(columns[1:])) if columns else "no runs"


def _same_seeds(
    ours: Sequence[RunRecord], theirs: Sequence[RunRecord]
) -> tuple[list[int], list[int]]:
    """Places of the runs whose seeds both have; of all runs where they share none."""
    own, other = ([run.settings.get("seed") for run in runs] for runs in (ours, theirs))
    shared = [seed for seed in own if seed in other]
    if not shared:
        return list(range(len(own))), list(range(len(other)))
    # Several runs have a seed where each started from a pretrained run of another one.
    ours_of, theirs_of = ([i for i, s in enumerate(of) if s in shared] for of in (own, other))
    return ours_of, theirs_of


def _pair(
    ours: _Songs,
    theirs: _Songs,
    chosen: tuple[list[int], list[int]],
    metric: str,
    seed: int,
    n_bootstrap: int,
) -> Paired:
    n, (first, second) = len(chosen[0]), chosen
    columns = np.concatenate([ours.predicted_PS[first], theirs.predicted_PS[second]])
    names, codes = np.unique(np.stack([ours.truth_S, *columns]), return_inverse=True)
    truth_S, *predicted_PS = codes.reshape(len(columns) + 1, -1)
    songs_S = np.arange(len(truth_S))
    scores = score_classifiers(truth_S, predicted_PS, songs_S, len(names), seed, n_bootstrap)
    lead = scores.lead(metric, slice(n), slice(n, None))
    right_PS = np.array(predicted_PS) == truth_S
    return Paired(
        len(truth_S),
        (n, len(columns) - n),
        lead["difference"],
        tuple(lead["ci95"]),
        lead["p"],
        mcnemar(right_PS[:n].mean(0), right_PS[n:].mean(0)),
    )


def _quality(songs: _Songs | str, metric: str) -> float:
    """Mean score over the runs, more is better; for the choice of a reference."""
    assert isinstance(songs, _Songs)
    names, codes = np.unique(np.stack([songs.truth_S, *songs.predicted_PS]), return_inverse=True)
    truth_S, *predicted_PS = codes.reshape(len(songs.predicted_PS) + 1, -1)
    scores = score_classifiers(
        truth_S, predicted_PS, np.arange(len(truth_S)), len(names), n_bootstrap=0
    )
    mean = float(scores.exact[metric].mean())
    return mean if METRICS[metric].higher_is_better else -mean


def table(comparison: Comparison) -> tuple[list[str], list[list[str]], int]:
    """The table as text: names of the columns, rows, and how many columns from the left are words.

    See :func:`legend` for how a score reads.
    """
    labels = {column.split("/")[1] for column in comparison.columns}
    several = comparison.n_test_sets > 1
    words = [*comparison.settings, *(["test set"] if several else [])]
    header = [*words, "seeds"]
    for column in comparison.columns:
        _, label, level, metric = column.split("/")
        what = f"{label} {level}" if len(labels) > 1 else level
        header += [f"{what} {METRICS[metric].title}", "best baseline"]
    for label in comparison.paired:
        header.append(f"{label} songs, difference" if len(labels) > 1 else "songs, difference")
    header += [*COSTS.values(), "run"]
    rows = []
    for row in comparison.rows:
        cells = [_text(row.settings.get(key, MISSING)) for key in comparison.settings]
        cells += [row.test_set] if several else []
        cells.append(str(len(row.runs)))
        for column in comparison.columns:
            cells += _score_cells(row.scores.get(column))
        cells += [_pair_cell(row.paired.get(label)) for label in comparison.paired]
        cells += [_amount(row.costs[name], name) for name in COSTS]
        more = f" and {len(row.runs) - 1} more" if len(row.runs) > 1 else ""
        rows.append([*cells, f"{row.runs[0].folder}{more}"])
    return header, rows, len(words)


def to_markdown(comparison: Comparison) -> str:
    """The table as Markdown with what its marks mean, ending in a newline."""
    text = markdown_table(*table(comparison)) + "\n"
    meaning = legend(comparison).replace("*", "\\*")
    return f"{text}\n{meaning}.\n" if meaning else text


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, inside a table too."""
    for mark in "\\|*_`<[":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], n_left: int) -> str:
    """A table without a newline at its end.

    Args:
        header: Names of the columns.
        rows: Texts of each row, as many as columns.
        n_left: How many columns from the left hold text; the others align to the right.
    """
    rule = ["---" if i < n_left else "---:" for i in range(len(header))]
    lines = [list(map(_escaped, header)), rule, *(list(map(_escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def legend(comparison: Comparison) -> str:
    """What the marks of :func:`table` mean, on one line."""
    n_seeds = {len(score.values) for row in comparison.rows for score in row.scores.values()}
    legend = []
    if max(n_seeds, default=0) > 2:
        legend.append("mean [95 % t interval over the seeds, cut to 0 to 1]")
    if 2 in n_seeds:
        legend.append("mean (both scores: two seeds say too little for an interval)")
    if 1 in n_seeds:
        legend.append("score [95 % bootstrap interval over the test songs]* of one seed")
    if comparison.paired:
        references = ", ".join(sorted({str(path) for path in comparison.paired.values()}))
        legend.append(
            f"difference of song {METRICS[comparison.metric].title} from the reference "
            f"({references}) with its 95 % paired bootstrap interval over the songs and McNemar's "
            "mid-p, not corrected for the number of comparisons"
        )
    return "; ".join(legend)


def to_records(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows for a CSV file and its columns; numbers are not rounded, unknown ones empty."""
    columns = [*comparison.settings, "test_set", "seeds"]
    for column in comparison.columns:
        columns += [f"{column}{end}" for end in ("", "/low", "/high", "/over")]
        columns += [f"{column}/baseline", f"{column}/baseline_name"]
    for label in comparison.paired:
        columns += [f"paired/{label}/{end}" for end in PAIR_COLUMNS]
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
        for label, reference in comparison.paired.items():
            pair = row.paired.get(label)
            values: tuple[Any, ...] = (None,) * (len(PAIR_COLUMNS) - 1)
            if isinstance(pair, Paired):
                values = (pair.difference, *pair.ci95, pair.p, pair.mcnemar_p, pair.n_songs)
            found = (str(reference), *values)
            record |= {
                f"paired/{label}/{end}": value
                for end, value in zip(PAIR_COLUMNS, found, strict=True)
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
    if len(score.values) == 2:
        interval = f" ({', '.join(f'{value:.3f}' for value in score.values)})"
    star = "*" if score.over == "songs" and interval else ""
    baseline = MISSING if score.baseline is None else f"{score.baseline:.3f} {score.baseline_name}"
    return [f"{score.mean:.3f}{interval}{star}", baseline]


def _pair_cell(pair: Paired | str | None) -> str:
    if pair is None:
        return "reference"
    if isinstance(pair, str):
        return MISSING
    low, high = pair.ci95
    p = "<0.001" if pair.mcnemar_p < 0.001 else f"{pair.mcnemar_p:.3f}"
    return f"{pair.difference:+.3f} [{low:+.3f}, {high:+.3f}], p {p}"


def _amount(value: float | None, name: str) -> str:
    if value is None:
        return MISSING
    return f"{value:,.0f} s" if name == "fit_seconds" else f"{value:,.0f}"
