"""The table of runs as text, Markdown and records for a CSV file."""

from __future__ import annotations

import json
from typing import Any

from midigenre.evaluation.compare import COSTS, Comparison, Score
from midigenre.evaluation.markdown import markdown_table
from midigenre.evaluation.paired import Paired
from midigenre.evaluation.report import METRICS

PAIR_COLUMNS = ("against", "difference", "low", "high", "p", "mcnemar_p", "songs")
"""Columns of a CSV file for each label: see :class:`~midigenre.evaluation.paired.Paired`."""

MISSING = "–"


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
        header += [f"{what} {METRICS[metric]}", "best baseline"]
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
            f"difference of song {METRICS[comparison.metric]} from the reference ({references}) "
            "with its 95 % paired bootstrap interval over the songs and McNemar's mid-p, not "
            "corrected for the number of comparisons"
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
