"""Figures of generated music: self-similarity, repetition, overlap with real music."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from midigenre.evaluation.figures import FAINT, GRID, INK

_OURS, _THEIRS = "#D55E00", "#0072B2"  # generated and real, in every figure


def similarity_figure(similarity_BB: ArrayLike, title: str) -> Figure:
    """Self-similarity of a piece: dark is alike, stripes along the diagonal are repetitions.

    Args:
        similarity_BB: :func:`midigenre.evaluation.music.structure.self_similarity`, shape
            (bars, bars).
        title: Title; taken literally.

    Raises:
        ValueError: No square matrix.
    """
    matrix = np.asarray(similarity_BB, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a self-similarity of shape {matrix.shape}")
    bars = len(matrix)
    figure = _figure(5.6, 5.0)
    axes = figure.add_subplot()
    # Extent in bar numbers as musicians count them; the first bar on top, as in a score.
    extent = (0.5, max(bars, 1) + 0.5, max(bars, 1) + 0.5, 0.5)
    image = axes.imshow(
        matrix if bars else np.zeros((1, 1)), cmap="magma_r", vmin=0, vmax=1, extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    for axis, name in ((axes.xaxis, "Bar"), (axes.yaxis, "Bar")):
        axis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 4, 5, 8, 10]))
        axis.set_label_text(name, color=INK)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, aspect=24)
    bar.set_ticks([0, 0.5, 1])
    bar.ax.tick_params(length=0, colors=FAINT, labelsize=8.5)
    bar.set_label("Cosine of what two bars hold", color=FAINT, fontsize=8.5)
    bar.outline.set_visible(False)
    _title(axes, title)
    return figure


def repetition_figure(
    generated: Mapping[str, Sequence[float | None]],
    real: Mapping[str, Sequence[float | None]],
    title: str,
) -> Figure:
    """Repetition over the lag in bars, generated beside real.

    Args:
        generated: ``similarity`` and ``exact`` at lags 1, 2, ... of the generated songs, as in
            :func:`midigenre.evaluation.music.structure.mean_structure`.
        real: The same of real songs.
        title: Title; taken literally.
    """
    figure = _figure(8.4, 3.5)
    panels = figure.subplots(1, 2, sharex=True)
    names = (("similarity", "Mean similarity"), ("exact", "Share of bars repeated exactly"))
    for axes, (key, label) in zip(panels, names, strict=True):
        for values, name, colour in (
            (real[key], "real", _THEIRS),
            (generated[key], "generated", _OURS),
        ):
            heights = np.array(values, np.float64)  # None becomes NaN, a gap in the line
            axes.plot(np.arange(1, len(heights) + 1), heights, "o-", ms=3.5, lw=1.4, color=colour,
                      label=name)  # fmt: skip
        axes.set_ylim(0, 1)
        axes.set_xlabel("Lag in bars", color=INK)
        axes.set_ylabel(label, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 8, 10]))
        axes.grid(axis="y", color=GRID, lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0, colors=INK, labelsize=9)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    _title(panels[0], title)
    return figure


def overlap_figure(
    distances: Mapping[str, Mapping[str, Any]], title: str, measure: str = "overlap"
) -> Figure:
    """Overlap of every descriptor with real music: value, interval, matched value on its floor.

    The dot with its interval is the estimate; the ring lies within the floor's band where nothing
    tells generated from real.

    Args:
        distances: :func:`midigenre.evaluation.music.distance.compare_sets`.
        title: Title; taken literally.
        measure: One of :data:`midigenre.evaluation.music.distance.MEASURES`.
    """
    rows = list(distances)
    figure = _figure(7.2, 0.32 * len(rows) + 1.5)
    axes = figure.add_subplot()
    for y, name in enumerate(rows):
        found = distances[name].get(measure)
        if found is None:
            axes.text(0.01, y, "not enough songs", va="center", color=FAINT, fontsize=8.5)
            continue
        floor = found["floor"]
        if floor["low"] is not None:
            axes.barh(y, floor["high"] - floor["low"], left=floor["low"], height=0.55,
                      color=(_THEIRS, 0.25), ec=(_THEIRS, 0.4), lw=0.8,
                      label="real against real")  # fmt: skip
            axes.plot(found["matched"]["mean"], y, "o", mfc="none", color=_OURS, ms=7,
                      label="generated, as many songs as the band")  # fmt: skip
        low, high = found["ci95"]
        if low is not None:
            axes.plot([low, high], [y, y], color=_OURS, lw=1.4, label="95 % interval")
        axes.plot(found["value"], y, "o", color=_OURS, ms=5, label="generated against real")
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(measure.replace("_", "-").capitalize(), color=INK)
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    handles, labels = axes.get_legend_handles_labels()
    keys = dict(zip(labels, handles, strict=True))
    if keys:
        figure.legend(
            keys.values(), keys.keys(), loc="outside lower center", ncols=2, frameon=False,
            fontsize=9, labelcolor=INK,
        )  # fmt: skip
    _title(axes, title)
    return figure


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.0)
    return Figure(figsize=(width, height), layout=layout)


def _title(axes: Any, title: str) -> None:
    axes.set_title(
        title, loc="left", pad=10, fontsize=12, fontweight="bold", color=INK, parse_math=False
    )
