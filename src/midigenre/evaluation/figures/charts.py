"""Confusion matrices, how the songs of one label spread over another's, reliability, coverage.

Figures of an evaluation are drawn from the content of ``evaluation.json`` alone, so any finished
run can be drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from midigenre.evaluation.figures import BLUE, FAINT, GRID, INK, RED, new_figure, titles
from midigenre.evaluation.metrics import METRICS, Counts, as_array, scores_of
from midigenre.wording import plural

_MOST_INCHES = 18.0  # a side of a heat map, without its names
_INCHES_PER_NAME = 0.16  # from one name to the next
_MOST_LETTERS = 40  # of a name beside a heat map
_NUMBERED = 40  # most rows or columns of a heat map with numbers in the cells

SIDES = ((RED, "confidence above accuracy"), (BLUE, "confidence below accuracy"))


def confusion_figure(confusion_CC: Any, names: Sequence[str], title: str) -> Figure:
    """Confusion matrix: colour and percent are shares of the true class, numbers are counts.

    Classes that are neither true nor predicted in any row are left out.

    Args:
        confusion_CC: Counts, array or tensor of shape (C, C); rows are the truth.
        names: Class names, length C.
        title: Title; taken literally.

    Raises:
        ValueError: The matrix does not fit the names.
    """
    confusion_CC = as_array(confusion_CC)
    if confusion_CC.shape != (len(names), len(names)):
        raise ValueError(f"a confusion matrix {confusion_CC.shape} for {len(names)} names")
    support_C, total = confusion_CC.sum(1), int(confusion_CC.sum())
    parts = ["no rows"]
    if total:
        found = scores_of(Counts.of_confusion(confusion_CC))
        parts = [f"{METRICS[k].title} {value:.3f}" for k, value in found.items()]
    shown = np.flatnonzero(support_C + confusion_CC.sum(0)) if total else np.arange(len(names))
    parts.append(f"n = {total:,}")
    if left_out := len(names) - len(shown):
        parts.append(f"{left_out:,} of {len(names):,} classes without rows")
    side = 0.95 if len(shown) <= 4 else 0.62
    return _heat_map(
        confusion_CC[np.ix_(shown, shown)],
        [f"{_short(names[i])}  ({support_C[i]:,})" for i in shown.tolist()],
        [_short(names[i]) for i in shown.tolist()],
        cells=(side, side),
        top=1.0,
        share_of="the true class",
        axis_labels=("True class  (count)", "Predicted class"),
        title=title,
        subtitle="   ·   ".join(parts),
    )


def label_figure(
    songs_RC: Any, labels: Sequence[str], classes: Sequence[Sequence[str]], title: str
) -> Figure:
    """Songs of each class of two labels: numbers are songs, colour and percent shares of the row.

    Rows that look alike mean that the labels are independent; a dark cell means that one label
    reveals much about the other. Classes without a song are left out.

    Args:
        songs_RC: Songs of each pair of classes, shape (rows, columns).
        labels: Names of the two labels.
        classes: Class names of the first label (the rows) and of the second.
        title: Title; taken literally.

    Raises:
        ValueError: The table does not fit the names.
    """
    songs_RC = as_array(songs_RC)
    (row_label, column_label), (rows, columns) = labels, classes
    if songs_RC.shape != (len(rows), len(columns)):
        raise ValueError(f"a table {songs_RC.shape} for {len(rows)} by {len(columns)} names")
    by_row, by_column, total = songs_RC.sum(1), songs_RC.sum(0), int(songs_RC.sum())
    share_RC = songs_RC / np.maximum(by_row, 1)[:, None]
    some_R, some_C = (np.flatnonzero(n if total else n + 1) for n in (by_row, by_column))
    return _heat_map(
        songs_RC[np.ix_(some_R, some_C)],
        [f"{_short(rows[r])}  ({by_row[r]:,})" for r in some_R.tolist()],
        [f"{_short(columns[c])}  ({by_column[c]:,})" for c in some_C.tolist()],
        cells=(0.52, 0.68),
        top=max(float(share_RC.max(initial=0)), 1e-9),
        share_of=f"the {row_label}",
        axis_labels=(f"{row_label}  (songs)", f"{column_label}  (songs)"),
        title=title,
        subtitle=f"{plural(total, 'song')}   ·   percent of each {row_label}",
    )


def _heat_map(
    counts_RC: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    cells: tuple[float, float],
    top: float,
    share_of: str,
    axis_labels: tuple[str, str],
    title: str,
    subtitle: str,
) -> Figure:
    """A table as an image: colour and percent are shares of the row.

    Its size is bounded. Above 40 rows or columns the cells have no numbers, and where the names
    would overlap, only every second, third ... is written. Cells have a height and a width in
    inches, where there is room; ``top`` is the share that is darkest.
    """
    n_rows, n_columns = counts_RC.shape
    total_R = counts_RC.sum(1)
    share_RC = counts_RC / np.maximum(total_R, 1)[:, None]
    room = 0.085 * max(map(len, (*rows, *columns)), default=0)
    height = min(max(n_rows * cells[0], 2.0), _MOST_INCHES)
    width = min(max(n_columns * cells[1], 2.4), _MOST_INCHES)
    figure = new_figure(width + 2.3 + room, height + 1.6 + room)
    axes = figure.add_subplot()
    square = cells[0] == cells[1] and n_rows == n_columns
    image = axes.imshow(
        share_RC, cmap="Blues", vmin=0, vmax=top, aspect="equal" if square else "auto"
    )
    if max(n_rows, n_columns) <= _NUMBERED:
        for (row, column), count in np.ndenumerate(counts_RC):
            _cell_text(axes, row, column, int(count), float(share_RC[row, column]), top)
    for row in np.flatnonzero(total_R == 0):
        corner = (-0.5, row - 0.5)
        axes.add_patch(
            Rectangle(corner, n_columns, 1, fill=False, hatch="///", ec=GRID, lw=0, zorder=0.5)
        )
    # White gaps between the cells read better than grid lines.
    gap = min(1.5, 6 * min(height / max(n_rows, 1), width / max(n_columns, 1)))
    axes.hlines(np.arange(1, n_rows) - 0.5, -0.5, n_columns - 0.5, colors="white", lw=gap)
    axes.vlines(np.arange(1, n_columns) - 0.5, -0.5, n_rows - 0.5, colors="white", lw=gap)

    turned = n_columns > 6 or max(map(len, columns), default=0) > 5
    ticks, named = _ticks(columns, width, axis_labels[1])
    upright = width / max(len(ticks), 1) < 2 * _INCHES_PER_NAME  # slanted they would overlap
    angle = (90 if upright else 45) if turned else 0
    axes.set_xticks(ticks, [columns[i] for i in ticks], rotation=angle, parse_math=False)
    for label in axes.get_xticklabels():
        label.set(ha="right" if turned else "center", rotation_mode="anchor" if turned else None)
        if angle == 90:
            label.set(va="center")
    axes.set_xlabel(named, color=INK, labelpad=8, parse_math=False)
    ticks, named = _ticks(rows, height, axis_labels[0])
    axes.set_yticks(ticks, [rows[i] for i in ticks], parse_math=False)
    axes.set_ylabel(named, color=INK, labelpad=8, parse_math=False)
    axes.tick_params(length=0, colors=INK, labelsize=9.5)
    axes.spines[:].set_visible(False)

    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, aspect=24)
    bar.set_ticks([0, top / 2, top], labels=[f"{v:.0%}" for v in (0, top / 2, top)])
    bar.ax.tick_params(length=0, colors=FAINT, labelsize=8.5)
    bar.set_label(f"Share of {share_of}", color=FAINT, fontsize=8.5, parse_math=False)
    bar.outline.set_visible(False)
    titles(axes, title, subtitle)
    return figure


def _ticks(names: Sequence[str], inches: float, label: str) -> tuple[range, str]:
    """Which names fit beside an axis without overlap, and the axis's label, which says so."""
    step = max(1, math.ceil(len(names) * _INCHES_PER_NAME / inches))
    return range(0, len(names), step), label if step == 1 else f"{label}, one name in {step}"


def _short(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"


def _cell_text(axes: Axes, row: int, column: int, count: int, share: float, top: float) -> None:
    # Cells lie inside the axes: measuring every text would take the layout most of its time.
    style: dict[str, Any] = {"ha": "center", "in_layout": False}
    if not count:
        axes.text(column, row, "·", va="center", color="#b0b0b0", fontsize=9, **style)
        return
    colour = "white" if share > 0.66 * top else INK
    size = 9.0 if count < 10_000 else 7.5
    axes.text(column, row - 0.03, f"{count:,}", va="bottom", color=colour, size=size, **style)
    percent = f"{share:.0%}" if share >= 0.005 else "<1%"
    axes.text(column, row + 0.1, percent, va="top", color=colour, size=7.0, **style)


def evaluation_figures(
    evaluation: Mapping[str, Mapping[str, Mapping[str, Any]]], what: str
) -> dict[str, Figure]:
    """Every figure of an ``evaluation.json``; ``what``, as ``xmidi test``, goes into the titles.

    Returns:
        By ``<label>/<level>/confusion``, ``.../reliability`` and ``.../coverage``.
    """
    found: dict[str, Figure] = {}
    for label, levels in evaluation.items():
        for level, scores in levels.items():
            title, place = f"{label}, {what} {level}s", f"{label}/{level}"
            found[f"{place}/confusion"] = confusion_figure(
                scores["confusion"], scores["labels"], title
            )
            title = f"{title}  (n = {scores['n']:,})"
            found[f"{place}/reliability"] = _reliability_figure(scores, title)
            found[f"{place}/coverage"] = _coverage_figure(scores["abstention"], title)
    return found


def _reliability_figure(scores: Mapping[str, Any], title: str) -> Figure:
    """Accuracy in each bin of confidence, before and after temperature scaling.

    The dark line of a bin is its accuracy, the light bar reaches up or down to its confidence: the
    gap that the expected calibration error averages (Guo et al. 2017, figure 1). Below is the
    number of rows in each bin.
    """
    panels = [("As trained", scores["reliability"]["raw"], scores["ece"])]
    if (after := scores["calibrated"]) is not None:
        degrees = after["temperature"]
        name = "Calibrated" if degrees is None else f"Calibrated, T = {degrees:.2f}"
        panels.append((name, scores["reliability"]["calibrated"], after["ece"]))
    figure = new_figure(0.6 + 3.7 * len(panels), 4.9)
    grid = figure.subplots(
        2, len(panels), squeeze=False, sharex=True, sharey="row",
        gridspec_kw={"height_ratios": [3.4, 1]},
    )  # fmt: skip
    for (name, bins, ece), (axes, counts) in zip(panels, grid.T, strict=True):
        axes.plot([0, 1], [0, 1], color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
        for over, (colour, _) in zip((True, False), SIDES, strict=True):
            chosen = [b for b in bins if (b["confidence"] > b["accuracy"]) == over]
            left, accuracy, confidence = (
                np.array([b[key] for b in chosen]) for key in ("low", "accuracy", "confidence")
            )
            low, width = np.minimum(accuracy, confidence), _widths(chosen)
            axes.bar(
                left, np.maximum(accuracy, confidence) - low, width, low, align="edge",
                color=colour, alpha=0.3, zorder=2,
            )  # fmt: skip
            axes.hlines(accuracy, left, left + width, color=colour, lw=2.2, zorder=3)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.01)
        error = "no rows" if ece is None else f"ECE {ece:.3f}"
        titles(axes, title if axes is grid[0, 0] else "", f"{name}   ·   {error}")
        total = max(1, sum(b["n"] for b in bins))
        shares = [b["n"] / total for b in bins]
        lows = [b["low"] for b in bins]
        counts.bar(lows, shares, _widths(bins), align="edge", color="#9a9a9a")
        counts.yaxis.set_major_formatter(PercentFormatter(1, 0))
        counts.set_xlabel("Confidence (probability of the predicted class)", color=INK, fontsize=9)
        for panel in (axes, counts):
            _plain(panel)
    grid[0, 0].set_ylabel("Accuracy", color=INK, fontsize=9)
    grid[1, 0].set_ylabel("Share", color=INK, fontsize=9)
    handles = [Patch(color=colour, alpha=0.5, label=name) for colour, name in SIDES]
    grid[0, 0].legend(handles=handles, loc="upper left", frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _widths(bins: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
    """Widths of bars with a gap between them."""
    return 0.92 * np.array([b["high"] - b["low"] for b in bins])


def _coverage_figure(abstention: Mapping[str, Any], title: str) -> Figure:
    """Accuracy and macro-F1 of the most confident rows against the share that is answered."""
    curve = abstention["curve"]
    figure = new_figure(5.4, 4.2)
    axes = figure.add_subplot()
    coverage, lowest = [row["coverage"] for row in curve], 1.0
    for metric, colour in (("accuracy", BLUE), ("macro_f1", RED)):
        values = [row[metric] for row in curve]
        name = METRICS[metric].title
        axes.plot(coverage, values, color=colour, lw=1.8, marker="o", ms=3.5, label=name)
        lowest = min([lowest, *values])
    # The share of answers that a threshold gives.
    for row in curve:
        if row["wanted"] in (1.0, 0.8, 0.6, 0.4, 0.2):
            place = (row["coverage"], max(row["accuracy"], row["macro_f1"]))
            axes.annotate(
                f"≥ {row['threshold']:.2f}", place, (2, 5), textcoords="offset points",
                fontsize=7.5, color=FAINT, ha="left",
            )  # fmt: skip
    lowest = max(0.0, lowest - 0.08)
    axes.set_xlim(0, 1.12)  # the thresholds stand to the right of their points, and above them
    axes.set_ylim(lowest, 1 + 0.08 * (1 - lowest))
    axes.set_yticks([tick for tick in axes.get_yticks() if lowest <= tick < 1 + 1e-9])
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_xlabel("Answered (most confident first)", color=INK, fontsize=9)
    axes.set_ylabel("Score of the answers", color=INK, fontsize=9)
    axes.legend(loc="lower left", frameon=False, fontsize=9, labelcolor=INK)
    _plain(axes)
    area = "no rows" if abstention["aurc"] is None else f"AURC {abstention['aurc']:.3f}"
    note = f"{area}   ·   grey: threshold of the {abstention['confidence']} confidence"
    titles(axes, title, note)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=8.5)
    axes.spines[:].set_visible(False)
