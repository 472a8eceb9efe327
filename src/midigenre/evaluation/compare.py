"""Finished runs side by side: what differs between them, scores with intervals, what they cost.

Two scores on the same test songs share the noise from the choice of the songs, so their
*difference* is much more certain than either score: runs are compared song by song, from
``predictions_songs.csv`` of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom  # type: ignore[attr-defined]

from midigenre.errors import UserError
from midigenre.evaluation.bootstrap import score_names, t_interval
from midigenre.evaluation.metrics import METRICS
from midigenre.evaluation.predictions import LEVELS, PIECE, SONGS_FILE
from midigenre.files import read_csv, read_json
from midigenre.run import GROUPS, HOLDOUT, RunFolder, flatten, protocol_name, settings_of
from midigenre.wording import plural

Shipped = Callable[[str, str], Mapping[str, Any]]
"""From a config group and a choice to that choice's own settings, flat; empty if unknown."""

COSTS = {"fit_seconds": "training", "train_tokens": "tokens", "parameters": "parameters"}
"""Columns of ``cost.json`` and their titles."""

PAIR_COLUMNS = ("against", "difference", "low", "high", "p", "mcnemar_p", "songs")
"""Columns of a CSV file for each label; see :class:`Paired`."""

MISSING = "–"
_CHAIN = 8  # no recipe has so many stages; a folder that starts from itself stops here


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        folder: Where it lies.
        settings: Its settings, flat; see :func:`~midigenre.run.settings_of`.
        evaluation: Content of ``evaluation.json``.
        cost: Content of ``cost.json``.
        test_set: Equal for runs that were tested on the same songs and phrases.
        configuration: Equal for runs that differ by seeds alone, also those of what they started
            from (``init_from``): each seed of a recipe that pretrains has a pretrained run of its
            own.
        seeds: Its seed, and those of what it started from, the latest first.
        finished: When, in nanoseconds since the epoch.
    """

    folder: Path
    settings: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    cost: Mapping[str, Any]
    test_set: str
    configuration: str
    seeds: tuple[Any, ...]
    finished: int


@dataclass(frozen=True)
class Unfinished:
    """A run that has no scores to compare, and why.

    Attributes:
        folder: The run's folder.
        reason: Why, in words.
        finished: Whether it is another kind of model that has finished training; the reason then
            gives its scores.
    """

    folder: Path
    reason: str
    finished: bool = False


def find_runs(paths: Iterable[Path | str]) -> tuple[list[RunRecord], list[Unfinished]]:
    """The runs at or below some folders, each once, in the order of their paths.

    Raises:
        UserError: A path is not a folder, or there is no run in it.
    """
    found: dict[Path, RunRecord | Unfinished] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give runs or folders of runs")
        below = {folder.resolve(): _read(folder) for folder in _folders(path)}
        if not below:
            raise UserError(
                f"{path} holds no run (a folder with config.yaml); trained runs lie in "
                "runs/<name>/<when>"
            )
        found |= below
    runs = [run for run in found.values() if isinstance(run, RunRecord)]
    return runs, [run for run in found.values() if isinstance(run, Unfinished)]


def _folders(path: Path) -> Iterator[Path]:
    for place, below, files in os.walk(path):
        if "config.yaml" in files or "failed.txt" in files:
            below.clear()  # loggers keep a config.yaml of their own inside
            yield Path(place)
        below.sort()


def _read(folder: Path) -> RunRecord | Unfinished:
    run = RunFolder(folder)
    if not run.finished:
        reason = f"did not finish; resume it with: midigenre train resume={folder}"
        if (folder / "failed.txt").is_file():
            text = (folder / "failed.txt").read_text(encoding="utf-8", errors="replace")
            reason = next(iter(text.splitlines()), "failed without a word")
        return Unfinished(folder, reason)
    try:
        if not run.tested:
            name, score = run.best_score
            return Unfinished(folder, f"not tested; {name} {score:.4f}", finished=True)
        evaluation = read_json(folder / "evaluation.json")
        for key, kind in (("tokens", "generator"), ("masked", "masked model")):
            if key in evaluation:
                nats, accuracy = (evaluation[key][name] for name in ("nats_per_note", "accuracy"))
                per_note = "" if nats is None else f"{nats:.3f} nats per note, "
                return Unfinished(
                    folder,
                    f"a {kind} ({per_note}token accuracy {accuracy:.3f} on the test songs); the "
                    "table compares classifiers",
                    finished=True,
                )
        config = run.config
        settings, test_set = settings_of(config), _test_set(config, evaluation)
        recipe, earlier = _start_of(config)
        same = {k: v for k, v in settings.items() if k != "seed"}
        same |= {} if recipe is None else {"init_from": recipe}
        return RunRecord(
            folder,
            settings,
            evaluation,
            read_json(folder / "cost.json"),
            test_set,
            json.dumps([same, test_set], sort_keys=True),
            (settings.get("seed"), *earlier),
            (folder / "metrics.json").stat().st_mtime_ns,
        )
    except UserError as error:
        return Unfinished(folder, str(error))
    except Exception as error:  # any failure on a damaged file is reported, not hidden
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return Unfinished(folder, f"cannot be read ({what})")


def _test_set(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Text that is equal for equal test sets: what chose the songs, and how many there are."""
    chosen = {key: config.get(key) for key in ("split", "labels")}
    if config.get("shards") is None:
        chosen["corpus"] = config["corpus"]
    else:  # <corpus>-<tokenizer>-<hash>: other tokenizers have other shards of the same songs
        chosen["shards"] = Path(config["shards"]).name.partition("-")[0]
    # The same songs, whichever of them are used.
    ignored = ("corpus.tracks", "corpus.neutral")
    flat = {k: v for k, v in flatten(chosen) if k not in ignored and v is not None and v != {}}
    if protocol_name(config) != HOLDOUT:
        protocol = config["protocol"]
        # All folds together are all songs, however many there are.
        splits = ("name", "sources") if protocol.get("part") is None else (*protocol,)
        flat |= {f"protocol.{key}": protocol.get(key) for key in splits}
    # Labels may be unknown for some songs; the label with most of them tells how many there are.
    sizes = {level: max(levels[level]["n"] for levels in evaluation.values()) for level in LEVELS}
    return json.dumps([flat, sizes], sort_keys=True)


def _start_of(config: Mapping[str, Any], chain: int = _CHAIN) -> tuple[str | None, tuple[Any, ...]]:
    """What a run started from, equal for trainings of the same settings, and their seeds.

    None where it did not, or where that run cannot be read any more.
    """
    source = config.get("init_from")
    if source is None or not chain:
        return None, ()
    named = Path(source).expanduser()
    # A run's folder, whose best checkpoint it was, or RUN/checkpoints/NAME.ckpt.
    folder, checkpoint = (named.parent.parent, named.name) if named.is_file() else (named, "")
    try:
        before = RunFolder(folder).config
        settings = settings_of(before)
    except Exception:  # moved, deleted, damaged or not ours: the path alone tells it from others
        return None, ()
    seed = settings.pop("seed", None)
    recipe, seeds = _start_of(before, chain - 1)
    settings |= {} if recipe is None else {"init_from": recipe}
    return json.dumps([checkpoint, settings], sort_keys=True), (seed, *seeds)


@dataclass(frozen=True)
class Paired:
    """A configuration against the reference, on the songs that both were tested on.

    Attributes:
        n_songs: Songs with a label.
        n_seeds: Seeds of each that took part.
        difference: Its score minus the reference's; means over the seeds.
        ci95: 95 % bootstrap interval of the difference, over songs, or pieces where there are
            groups.
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
        """Whether the interval excludes 0."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


@dataclass(frozen=True)
class Score:
    """A score of one configuration.

    Attributes:
        values: The score of each run.
        low: Lower end of the 95 % interval; None where there is none, and of two seeds.
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
        costs: Means over the runs, by the keys of :data:`COSTS`.
        paired: For each label its songs against those of the reference, or why there is no
            comparison; None for the reference itself.
    """

    settings: Mapping[str, Any]
    runs: tuple[RunRecord, ...]
    test_set: str
    scores: Mapping[str, Score]
    costs: Mapping[str, float]
    paired: dict[str, Paired | str | None] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of its first run."""
        return self.runs[0].folder


@dataclass(frozen=True)
class Comparison:
    """A table of runs.

    Attributes:
        settings: The settings that differ between the rows.
        columns: The scores, ``test/<label>/<level>/<metric>``.
        rows: One per configuration.
        paired: The labels that rows are compared by, song by song, with the folder of the reference
            of each.
        metric: The score that is compared.
        repeated: Runs that repeat a seed of the same settings: only the newest counts.
    """

    settings: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    paired: Mapping[str, Path]
    metric: str
    repeated: int = 0

    @property
    def n_test_sets(self) -> int:
        """How many different test sets the rows have."""
        return len({row.test_set for row in self.rows})

    def sorted_by(self, column: str | None) -> Comparison:
        """The rows with the best score first, or the least cost or setting; None: the first score.

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
                return (score is None, -_sign(self.metric) * score.mean if score else 0.0, "")
            found: Any = row.costs[column] if column in COSTS else row.settings.get(column)
            number = isinstance(found, (int, float))
            return (found is None, float(found) if number else 0.0, "" if number else str(found))

        return replace(self, rows=tuple(sorted(self.rows, key=key)))

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings for the reader, one line each."""
        found = []
        if self.n_test_sets > 1:
            found.append(
                f"these runs have {self.n_test_sets} different test sets (column `test set`): "
                "compare scores within one only"
            )
        if self.repeated:
            repeats = plural(self.repeated, "run repeats", "runs repeat")
            found.append(f"{repeats} a seed of the same settings: only the newest counts")
        for column in self.columns:
            scores = [row.scores[column] for row in self.rows if column in row.scores]
            beaten = [
                score.baseline_name
                for score in scores
                if score.baseline is not None
                and _sign(self.metric) * (score.mean - score.baseline) <= 0
            ]
            if beaten:
                found.append(
                    f"{column}: a baseline ({', '.join(dict.fromkeys(beaten))}) is as good as or "
                    f"better than {len(beaten)} of {plural(len(scores), 'configuration')}"
                )
        for label in self.rows[0].paired:
            pairs = [(row.folder, row.paired[label]) for row in self.rows]
            alike = [
                str(folder) for folder, of in pairs if isinstance(of, Paired) and not of.is_clear
            ]
            reasons: dict[str, list[str]] = {}
            for folder, why in pairs:
                if isinstance(why, str):
                    reasons.setdefault(why, []).append(str(folder))
            missing = [f"{', '.join(folders)} ({why})" for why, folders in reasons.items()]
            if alike:
                found.append(
                    f"{label}, songs: not clearly different from {self.paired[label]} in "
                    f"{METRICS[self.metric].title}: {', '.join(alike)}"
                )
            if missing:
                found.append(f"{label}, songs: not compared in pairs: {', '.join(missing)}")
        return tuple(found)


def _sign(metric: str) -> int:
    return 1 if METRICS[metric].higher_is_better else -1


def compare(
    runs: Sequence[RunRecord],
    labels: Sequence[str] | None = None,
    levels: Sequence[str] = LEVELS,
    metric: str = "macro_f1",
    shipped: Shipped = lambda group, choice: {},
    versus: Path | None = None,
) -> Comparison:
    """Folds the runs into one row per configuration, in the order of the runs.

    Three seeds or more give a mean and Student's t interval within 0 to 1, which measures the
    variation from training on this test set; two are too few: the interval of 0.88 and 0.86 is
    0.74 to 1. A single run has the bootstrap interval of its ``evaluation.json``, which measures
    the variation from the choice of test songs: the two are not comparable. What is: each
    configuration against the best one, song by song (:func:`pair_up`), where there are two or more.

    Args:
        runs: The runs, at least one.
        labels: Labels to show; all if None.
        levels: ``phrase``, ``song``, ``piece``, or several.
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
    labels = labels or known
    columns = tuple(f"test/{label}/{level}/{metric}" for label in labels for level in levels)
    letters = {t: chr(ord("A") + i) for i, t in enumerate(dict.fromkeys(r.test_set for r in runs))}
    newest: dict[tuple[Any, ...], RunRecord] = {}
    for run in sorted(runs, key=lambda run: run.finished):
        newest[run.configuration, run.seeds] = run
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        if newest[run.configuration, run.seeds] is run:
            groups.setdefault(run.configuration, []).append(run)
    rows = [_row(group, columns, letters[group[0].test_set]) for group in groups.values()]
    place = None
    if versus is not None:
        folders = [[run.folder.resolve() for run in row.runs] for row in rows]
        place = next((i for i, of in enumerate(folders) if versus.resolve() in of), None)
        if place is None:
            raise UserError(
                f"versus={versus} is none of these runs, or an older one of a repeated seed; give "
                "a run's folder"
            )
    paired: dict[str, Path] = {}
    for label in labels if len(rows) > 1 else ():
        reference, pairs = pair_up([row.runs for row in rows], label, metric, place)
        for row, pair in zip(rows, pairs, strict=True):
            row.paired[label] = pair
        if reference is not None:
            paired[label] = rows[reference].folder
    repeated = len(runs) - len(newest)
    return Comparison(_differing(rows, shipped), columns, tuple(rows), paired, metric, repeated)


def _row(runs: Sequence[RunRecord], columns: Sequence[str], test_set: str) -> Row:
    settings = {k: v for k, v in runs[0].settings.items() if k != "seed"}
    starts = list(dict.fromkeys(run.settings.get("init_from") for run in runs))
    if len(starts) > 1:  # one for each seed
        settings["init_from"] = f"{starts[0]} and {len(starts) - 1} more"
    costs = {name: float(np.mean([run.cost[name] for run in runs])) for name in COSTS}
    scores = {column: score for column in columns if (score := _score(runs, column)) is not None}
    return Row(settings, tuple(runs), test_set, scores, costs)


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
        for name, of in scores["baselines"].items():
            if of is not None and of[metric] is not None:
                baselines.setdefault(name, []).append(of[metric])
    means = {name: float(np.mean(of)) for name, of in baselines.items()}
    best = max(means, key=lambda name: _sign(metric) * means[name], default="")
    return Score(tuple(values), low, high, over, means.get(best), best)


def _differing(rows: Sequence[Row], shipped: Shipped) -> tuple[str, ...]:
    """The settings that distinguish the rows, named ones first."""
    own = {
        (group, choice): shipped(group, choice)
        for group in GROUPS
        for choice in {row.settings[group] for row in rows}
    }

    def as_shipped(key: str) -> bool:
        group = key.partition(".")[0]
        return key not in GROUPS and group in GROUPS and all(
            own[group, row.settings[group]].get(key) == row.settings.get(key) for row in rows
        )  # fmt: skip

    keys = dict.fromkeys(key for row in rows for key in row.settings)
    return tuple(
        key
        for key in keys
        if len({json.dumps(row.settings.get(key)) for row in rows}) > 1 and not as_shipped(key)
    )


def mcnemar(first_right_S: NDArray[Any], second_right_S: NDArray[Any]) -> float:
    """McNemar's mid-p test of two classifiers on the same songs (Fagerland et al. 2013, eq. 9).

    Looks only at the songs that one of them gets right and the other wrong. With several seeds, or
    several songs of a piece, it compares how many of them are right: the sign test, which is the
    same for one seed and one song.

    Returns:
        Two-sided p-value; 1 where they are never right and wrong on the same song.
    """
    lead_S = np.asarray(first_right_S, np.float64) - np.asarray(second_right_S, np.float64)
    up, down = int((lead_S > 1e-9).sum()), int((lead_S < -1e-9).sum())
    low, n = min(up, down), up + down
    if not n:
        return 1.0
    at: float = binom.pmf(low, n, 0.5)
    return float(1 - at / 2 if up == down else 2 * binom.cdf(low, n, 0.5) - at)


_Songs = Mapping[str, tuple[str, ...]]
"""For each labelled song, by its id: its piece, its class and what each run predicts."""


def pair_up(
    groups: Sequence[Sequence[RunRecord]], label: str, metric: str, versus: int | None = None
) -> tuple[int | None, list[Paired | str | None]]:
    """Pairs each configuration with the best one, or with a given one.

    Where both have runs of the same seeds, only those count, so that an extra seed does not matter.

    Args:
        groups: The runs of each configuration, one per seed.
        label: The label.
        metric: One of :data:`~midigenre.evaluation.metrics.METRICS`, of songs.
        versus: Place of the reference; None for the one with the best score.

    Returns:
        Place of the reference, None where there is none; and for each configuration its pairing,
        or why there is none, None for the reference itself.
    """
    songs = [_songs_of(group, label) for group in groups]
    names = {i: _names(of) for i, of in enumerate(songs) if not isinstance(of, str)}

    def quality(i: int) -> float:
        found = score_names(names[i][1:], names[i][0], n_bootstrap=0).exact[metric]
        return _sign(metric) * float(found.mean())

    reference = max(names, key=quality, default=None) if versus is None else versus
    if reference is None:
        return None, [str(why) for why in songs]
    theirs, folder = songs[reference], groups[reference][0].folder
    out: list[Paired | str | None] = []
    for i, ours in enumerate(songs):
        if isinstance(ours, str):
            out.append(ours)
        elif i == reference:
            out.append(None)
        elif isinstance(theirs, str):
            out.append(f"{folder}: {theirs}")
        elif {k: of[:2] for k, of in ours.items()} != {k: of[:2] for k, of in theirs.items()}:
            out.append(f"tested on other songs than {folder}")
        else:
            first, second = _same_seeds(groups[i], groups[reference])
            piece_1S, truth_1S, own_PS = np.split(names[i], [1, 2])
            both_1PS = np.concatenate([truth_1S, own_PS[first], names[reference][2:][second]])
            n, right_PS = len(first), both_1PS[1:] == both_1PS[0]
            lead = score_names(both_1PS, piece_1S[0]).lead(metric, slice(n), slice(n, None))
            _, piece_S = np.unique(piece_1S[0], return_inverse=True)
            p = mcnemar(
                np.bincount(piece_S, right_PS[:n].mean(0)),
                np.bincount(piece_S, right_PS[n:].mean(0)),
            )
            ci95, seeds = tuple(lead["ci95"]), (n, len(second))
            out.append(Paired(len(ours), seeds, lead["difference"], ci95, lead["p"], p))
    return reference, out


def _songs_of(runs: Sequence[RunRecord], label: str) -> _Songs | str:
    """The songs, or why they are not known."""
    found: dict[str, tuple[str, ...]] = {}
    for run in runs:
        path = Path(run.folder) / SONGS_FILE
        if not path.is_file():
            return f"no {SONGS_FILE}"
        try:
            rows = {
                row["song_id"]: (row.get(PIECE, row["song_id"]), row[label], row[f"{label}_model"])
                for row in read_csv(path)
                if row[label]
            }
        except KeyError as error:
            return f"{SONGS_FILE} has no column {error}"
        except (ValueError, TypeError) as error:
            return f"{SONGS_FILE} cannot be read ({error})"
        if not rows:
            return f"{SONGS_FILE} has no song with a {label}"
        if found and {k: of[:2] for k, of in found.items()} != {
            k: of[:2] for k, of in rows.items()
        }:
            return "its seeds were tested on different songs"
        found = {k: (*found.get(k, of[:2]), of[2]) for k, of in rows.items()}
    return found


def _names(songs: _Songs) -> NDArray[Any]:
    """A row of pieces, one of classes and one for each run; songs in the order of their ids."""
    return np.array([songs[i] for i in sorted(songs)]).T


def _same_seeds(
    ours: Sequence[RunRecord], theirs: Sequence[RunRecord]
) -> tuple[list[int], list[int]]:
    """Places of the runs whose seeds both have; of all runs where they share none."""
    own, other = ([run.settings.get("seed") for run in runs] for runs in (ours, theirs))
    shared = {*own} & {*other} or {*own, *other}
    # Several runs have a seed where each started from a pretrained run of another one.
    first, second = ([i for i, s in enumerate(seeds) if s in shared] for seeds in (own, other))
    return first, second


def to_markdown(comparison: Comparison) -> str:
    """The table as Markdown with what its marks mean, ending in a newline."""
    one_label = len({column.split("/")[1] for column in comparison.columns}) == 1
    test_sets = ["test set"] if comparison.n_test_sets > 1 else []
    header = [*comparison.settings, *test_sets, "seeds"]
    for column in comparison.columns:
        _, label, level, metric = column.split("/")
        what = level if one_label else f"{label} {level}"
        header += [f"{what} {METRICS[metric].title}", "best baseline"]
    for label in comparison.paired:
        header.append("songs, difference" if one_label else f"{label} songs, difference")
    header += [*COSTS.values(), "run"]
    rows = []
    for row in comparison.rows:
        cells = [_text(row.settings.get(key, MISSING)) for key in comparison.settings]
        cells += [row.test_set] if test_sets else []
        cells.append(str(len(row.runs)))
        for column in comparison.columns:
            cells += _score_cells(row.scores.get(column))
        cells += [_pair_cell(row.paired[label]) for label in comparison.paired]
        units = {"fit_seconds": " s"}
        cells += [f"{n:,.0f}{units.get(name, '')}" for name, n in row.costs.items()]
        more = f" and {len(row.runs) - 1} more" if len(row.runs) > 1 else ""
        rows.append([*cells, f"{row.folder}{more}"])
    n_words = len(comparison.settings) + len(test_sets)
    text = markdown_table(header, rows, n_words) + "\n"
    meaning = _legend(comparison).replace("*", "\\*")
    return f"{text}\n{meaning}.\n" if meaning else text


def _text(value: Any) -> str:
    """A setting as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _score_cells(score: Score | None) -> list[str]:
    if score is None:
        return [MISSING, MISSING]
    interval = ""
    if len(score.values) == 2:
        interval = f" ({', '.join(f'{value:.3f}' for value in score.values)})"
    elif score.low is not None:
        star = "*" if score.over == "songs" else ""
        interval = f" [{score.low:.3f}, {score.high:.3f}]{star}"
    baseline = MISSING if score.baseline is None else f"{score.baseline:.3f} {score.baseline_name}"
    return [f"{score.mean:.3f}{interval}", baseline]


def _pair_cell(pair: Paired | str | None) -> str:
    if not isinstance(pair, Paired):
        return "reference" if pair is None else MISSING
    low, high = pair.ci95
    p = "<0.001" if pair.mcnemar_p < 0.001 else f"{pair.mcnemar_p:.3f}"
    return f"{pair.difference:+.3f} [{low:+.3f}, {high:+.3f}], p {p}"


def _legend(comparison: Comparison) -> str:
    """What the marks of the table mean, on one line."""
    n_seeds = {len(score.values) for row in comparison.rows for score in row.scores.values()}
    found = []
    if max(n_seeds, default=0) > 2:
        found.append("mean [95 % t interval over the seeds, cut to 0 to 1]")
    if 2 in n_seeds:
        found.append("mean (both scores: two seeds say too little for an interval)")
    if 1 in n_seeds:
        found.append("score [95 % bootstrap interval over the test songs]* of one seed")
    if comparison.paired:
        references = ", ".join(sorted({str(path) for path in comparison.paired.values()}))
        found.append(
            f"difference of song {METRICS[comparison.metric].title} from the reference "
            f"({references}) with its 95 % paired bootstrap interval over the songs and McNemar's "
            "mid-p, not corrected for the number of comparisons"
        )
    return "; ".join(found)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], n_left: int) -> str:
    """A table without a newline at its end; the first ``n_left`` columns align to the left.

    Texts appear as they are.
    """
    marks = str.maketrans({mark: f"\\{mark}" for mark in "\\|*_`<["} | {"\n": " "})
    lines = [[cell.translate(marks) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---" if i < n_left else "---:" for i in range(len(header))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_records(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows for a CSV file and its columns; numbers are not rounded, unknown ones empty."""
    ends = ("", "/low", "/high", "/over", "/baseline", "/baseline_name")
    columns = [*comparison.settings, "test_set", "seeds"]
    columns += [f"{column}{end}" for column in comparison.columns for end in ends]
    columns += [f"paired/{label}/{end}" for label in comparison.paired for end in PAIR_COLUMNS]
    columns += [*COSTS, "runs"]
    records = []
    for row in comparison.rows:
        record: dict[str, Any] = {k: _text(row.settings.get(k, "")) for k in comparison.settings}
        record |= {"test_set": row.test_set, "seeds": len(row.runs)}
        for column, of in row.scores.items():
            score = (of.mean, of.low, of.high, of.over, of.baseline, of.baseline_name)
            record |= zip((f"{column}{end}" for end in ends), score, strict=True)
        for label, reference in comparison.paired.items():
            record |= dict.fromkeys(f"paired/{label}/{end}" for end in PAIR_COLUMNS)
            record[f"paired/{label}/against"] = str(reference)
            if isinstance(pair := row.paired[label], Paired):
                values = (pair.difference, *pair.ci95, pair.p, pair.mcnemar_p, pair.n_songs)
                record |= zip(
                    (f"paired/{label}/{end}" for end in PAIR_COLUMNS[1:]), values, strict=True
                )
        record |= {**row.costs, "runs": ";".join(str(run.folder) for run in row.runs)}
        records.append(record)
    return records, columns
