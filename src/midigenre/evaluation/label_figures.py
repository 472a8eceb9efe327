"""Figure: how the songs of one label spread over the classes of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from midigenre.evaluation.figures import heat_map, short, titles
from midigenre.evaluation.metrics import as_array
from midigenre.wording import plural


def label_figure(
    songs_RC: Any, labels: Sequence[str], classes: Sequence[Sequence[str]], title: str
) -> Figure:
    """Songs of each class of two labels: numbers are songs, colour and percent shares of the row.

    Rows that look alike mean that the labels are independent; a dark cell means that a model can
    tell much of one label from the other. Classes without a song are left out.

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
    some_R, some_C = (np.flatnonzero(n if total else n + 1) for n in (by_row, by_column))
    figure, axes = heat_map(
        songs_RC[np.ix_(some_R, some_C)],
        [f"{short(rows[r])}  ({by_row[r]:,})" for r in some_R.tolist()],
        [f"{short(columns[c])}  ({by_column[c]:,})" for c in some_C.tolist()],
        cells=(0.52, 0.68),
        top=max(float(share_RC.max(initial=0)), 1e-9),
        share_of=f"the {row_label}",
        axis_labels=(f"{row_label}  (songs)", f"{column_label}  (songs)"),
    )
    titles(axes, title, f"{plural(total, 'song')}   ·   percent of each {row_label}")
    return figure
