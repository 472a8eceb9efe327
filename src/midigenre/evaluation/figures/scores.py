"""Figures of an evaluation: confusion matrices, reliability diagrams, accuracy against coverage.

All are drawn from the content of ``evaluation.json`` alone, so any finished run can be drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from midigenre.evaluation.figures import BLUE, FAINT, GRID, INK, RED
from midigenre.evaluation.figures.heat_map import confusion_figure
from midigenre.evaluation.probabilities import ECE_BINS

SIDES = ((RED, "confidence above accuracy"), (BLUE, "confidence below accuracy"))

Bins = Sequence[Mapping[str, Any]]


def evaluation_figures(
    evaluation: Mapping[str, Mapping[str, Mapping[str, Any]]], what: str
) -> dict[str, Figure]:
    """Every figure of an evaluation.

    Args:
        evaluation: The content of ``evaluation.json``. Levels from before there was calibration
            have a confusion matrix only.
        what: Which songs, for the titles: ``test`` or ``xmidi test``.

    Returns:
        By ``<label>/<level>/confusion``, ``.../reliability`` and ``.../coverage``.
    """
    found: dict[str, Figure] = {}
    for label, levels in evaluation.items():
        for level, scores in levels.items():
            title = f"{label}, {what} {level}s"
            place = f"{label}/{level}"
            found[f"{place}/confusion"] = confusion_figure(
                scores["confusion"], scores["labels"], title
            )
            if "reliability" in scores:
                found[f"{place}/reliability"] = reliability_figure(scores, title)
            if "abstention" in scores:
                found[f"{place}/coverage"] = coverage_figure(scores, title)
    return found


def reliability_figure(scores: Mapping[str, Any], title: str) -> Figure:
    """Accuracy in each bin of confidence, before and after temperature scaling.

    The dark line of a bin is its accuracy, the light bar reaches up or down to its confidence: the
    gap that the expected calibration error averages (Guo et al. 2017, figure 1). Below stands how
    many rows each bin holds.

    Args:
        scores: Scores of a label at one level, as in ``evaluation.json``.
        title: Title; taken literally.
    """
    panels: list[tuple[str, Bins, Any]] = [
        ("As trained", scores["reliability"]["raw"], scores["ece"])
    ]
    after = scores["calibrated"]
    if after is not None:
        name = (
            "Calibrated" if after["temperature"] is None
            else f"Calibrated, T = {after['temperature']:.2f}"
        )  # fmt: skip
        panels.append((name, scores["reliability"]["calibrated"] or [], after["ece"]))
    figure = Figure(
        figsize=(0.6 + 3.7 * len(panels), 4.9),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06, wspace=0.04, hspace=0.0),
    )
    grid = figure.subplots(
        2, len(panels), squeeze=False, sharex=True, sharey="row",
        gridspec_kw={"height_ratios": [3.4, 1]},
    )  # fmt: skip
    for column, (name, bins, ece) in enumerate(panels):
        axes, counts = grid[0, column], grid[1, column]
        _gaps(axes, bins)
        error = "no rows" if ece is None else f"ECE {ece:.3f}"
        _note(axes, f"{name}   ·   {error}", INK)
        _counts(counts, bins)
        counts.set_xlabel("Confidence (probability of the predicted class)", color=INK, fontsize=9)
    grid[0, 0].set_ylabel("Accuracy", color=INK, fontsize=9)
    grid[1, 0].set_ylabel("Share", color=INK, fontsize=9)
    handles = [Patch(color=colour, alpha=0.5, label=name) for colour, name in SIDES]
    grid[0, 0].legend(handles=handles, loc="upper left", frameon=False, fontsize=8, labelcolor=INK)
    _title(grid[0, 0], f"{title}  (n = {scores['n']:,})")
    return figure


def _gaps(axes: Axes, bins: Bins) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
    for over, (colour, _) in zip((True, False), SIDES, strict=True):
        chosen = [b for b in bins if (b["confidence"] > b["accuracy"]) == over]
        left = [b["low"] for b in chosen]
        low = np.array([min(b["confidence"], b["accuracy"]) for b in chosen])
        high = np.array([max(b["confidence"], b["accuracy"]) for b in chosen])
        axes.bar(
            left, high - low, 0.92 / ECE_BINS, low, align="edge", color=colour, alpha=0.3,
            zorder=2,
        )  # fmt: skip
        axes.hlines(
            [b["accuracy"] for b in chosen], left, [x + 0.92 / ECE_BINS for x in left],
            color=colour, lw=2.2, zorder=3,
        )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    _plain(axes)


def _counts(axes: Axes, bins: Bins) -> None:
    total = max(1, sum(b["n"] for b in bins))
    axes.bar(
        [b["low"] for b in bins], [b["n"] / total for b in bins], 0.92 / ECE_BINS, align="edge",
        color="#9a9a9a",
    )  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    _plain(axes)


def coverage_figure(scores: Mapping[str, Any], title: str) -> Figure:
    """Accuracy and macro-F1 of the most confident rows against the share that is answered.

    Args:
        scores: Scores of a label at one level, as in ``evaluation.json``.
        title: Title; taken literally.
    """
    abstention = scores["abstention"]
    curve = abstention["curve"]
    figure = Figure(
        figsize=(5.4, 4.2),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06, wspace=0.0, hspace=0.0),
    )
    axes = figure.add_subplot()
    coverage = [row["coverage"] for row in curve]
    lowest = 1.0
    for metric, name, colour in (("accuracy", "accuracy", BLUE), ("macro_f1", "macro-F1", RED)):
        values = [row[metric] for row in curve]
        axes.plot(coverage, values, color=colour, lw=1.8, marker="o", ms=3.5, label=name)
        lowest = min([lowest, *values])
    # What share of the most confident answers a user gets for a threshold.
    shown = [row for row in curve if row["wanted"] in (1.0, 0.8, 0.6, 0.4, 0.2)]
    for row in shown:
        axes.annotate(
            f"≥ {row['threshold']:.2f}", (row["coverage"], max(row["accuracy"], row["macro_f1"])),
            (2, 5), textcoords="offset points", fontsize=7.5, color=FAINT, ha="left",
        )  # fmt: skip
    axes.set_xlim(0, 1.08)
    axes.set_ylim(max(0.0, lowest - 0.08), 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_xlabel("Answered (most confident first)", color=INK, fontsize=9)
    axes.set_ylabel("Score of the answers", color=INK, fontsize=9)
    axes.legend(loc="lower left", frameon=False, fontsize=9, labelcolor=INK)
    _plain(axes)
    area = "no rows" if abstention["aurc"] is None else f"AURC {abstention['aurc']:.3f}"
    _note(axes, f"{area}   ·   grey: threshold of the {abstention['confidence']} confidence", FAINT)
    _title(axes, f"{title}  (n = {scores['n']:,})")
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=8.5)
    axes.spines[:].set_visible(False)


def _title(axes: Axes, title: str) -> None:
    """A title over a line of notes; the layout engine makes room for it."""
    axes.set_title(
        title, loc="left", pad=27, fontsize=13, fontweight="bold", color=INK, parse_math=False
    )


def _note(axes: Axes, text: str, colour: str) -> None:
    axes.annotate(
        text, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", fontsize=9.5,
        color=colour, annotation_clip=False,
    )  # fmt: skip
