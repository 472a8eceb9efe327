"""Figure: how the songs of one label spread over the classes of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from midigenre.evaluation.scores import as_array
from midigenre.wording import plural

INK, FAINT = "#222222", "#767676"


def label_figure(
    songs_RC: Any, labels: Sequence[str], classes: Sequence[Sequence[str]], title: str
) -> Figure:
    """Songs of each class of two labels: numbers are songs, colour and percent shares of the row.

    Rows that look alike mean that the labels are independent; a dark cell means that a model can
    tell much of one label from the other.

    Args:
        songs_RC: Songs of each pair of classes, shape (rows, columns).
        labels: Names of the two labels.
        classes: Class names of the first label (the rows) and of the second.
        title: Title; taken literally.

    Returns:
        The figure.

    Raises:
        ValueError: The table does not fit the names.
    """
    songs_RC = as_array(songs_RC)
    (row_label, column_label), (rows, columns) = labels, classes
    if songs_RC.shape != (len(rows), len(columns)):
        raise ValueError(f"a table {songs_RC.shape} for {len(rows)} by {len(columns)} names")
    by_row, by_column, total = songs_RC.sum(1), songs_RC.sum(0), int(songs_RC.sum())
    share_RC = songs_RC / np.maximum(by_row, 1)[:, None]
    longest = max(map(len, (*rows, *columns)), default=0)
    width = max(0.68 * len(columns), 3.2) + 2.4 + 0.085 * longest
    height = max(0.52 * len(rows), 1.6) + 1.9 + 0.085 * longest
    figure = Figure(
        figsize=(width, height),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.0, hspace=0.0),
    )
    axes = figure.add_subplot()
    top = max(float(share_RC.max(initial=0)), 1e-9)
    image = axes.imshow(share_RC, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for (row, column), n in np.ndenumerate(songs_RC):
        share = float(share_RC[row, column])
        if not n:
            axes.text(column, row, "·", ha="center", va="center", color="#b0b0b0", fontsize=9)
            continue
        colour = "white" if share > 0.66 * top else INK
        axes.text(column, row - 0.03, f"{n:,}", ha="center", va="bottom", color=colour, size=9)
        percent = f"{share:.0%}" if share >= 0.005 else "<1%"
        axes.text(column, row + 0.1, percent, ha="center", va="top", color=colour, size=7)

    def ticks(names: Sequence[str], counts: Any) -> list[str]:
        return [f"{name}  ({n:,})" for name, n in zip(names, counts, strict=True)]

    axes.set_xticks(range(len(columns)), ticks(columns, by_column), rotation=45, parse_math=False)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), ticks(rows, by_row), parse_math=False)
    axes.set_xlabel(f"{column_label}  (songs)", color=INK, labelpad=8, parse_math=False)
    axes.set_ylabel(f"{row_label}  (songs)", color=INK, labelpad=8, parse_math=False)
    # White gaps between the cells read better than grid lines.
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=1.5)
    axes.tick_params(which="both", length=0, colors=INK, labelsize=9.5)
    axes.spines[:].set_visible(False)

    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, aspect=20)
    bar.set_ticks([0, top / 2, top], labels=[f"{v:.0%}" for v in (0, top / 2, top)])
    bar.ax.tick_params(length=0, colors=FAINT, labelsize=8.5)
    bar.set_label(f"Share of the {row_label}", color=FAINT, fontsize=8.5, parse_math=False)
    bar.outline.set_visible(False)

    axes.set_title(
        title, loc="left", pad=27, fontsize=13, fontweight="bold", color=INK, parse_math=False,
        wrap=True,
    )  # fmt: skip
    axes.annotate(
        f"{plural(total, 'song')}   ·   percent of each {row_label}",
        (0, 1), (0, 10), xycoords="axes fraction", textcoords="offset points", fontsize=9.5,
        color=FAINT, annotation_clip=False,
    )  # fmt: skip
    return figure
