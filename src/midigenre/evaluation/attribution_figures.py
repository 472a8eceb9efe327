"""Figure: which bars and instruments decided, over the piano roll."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from midigenre.evaluation.figures import (
    DRUMS,
    FAINT,
    INK,
    Notes,
    _bar_lines,
    _drum_panel,
    _figure,
    _roll_panel,
    titles,
)
from midigenre.evaluation.instruments import program_name
from midigenre.wording import plural

FOR, AGAINST, UNSEEN = "#0072B2", "#D55E00", "#ebebeb"
"""Blue and vermilion, which people with any colour vision tell apart (Okabe and Ito 2008)."""

MAX_PROGRAMS = 12
"""Bars of the chart of programs: those that decided most."""

_SHADE = 0.42  # opacity of the bar that decided most; the notes must stay readable
_STRIP, _PROGRAM = 1.15, 0.24  # inches: height of a strip, of a program in its chart
_HEAD = 1.1  # inches: what stands over a chart of programs
_SIDE = 4.6  # inches: width of the charts of programs and their names


@dataclass(frozen=True)
class LabelAttribution:
    """What decided one label, in nats of the song's log-odds.

    Attributes:
        label: The label, for instance ``genre``.
        name: The class that is explained.
        log_odds: The song's log-odds of it.
        bars_B: Of each bar, shape (bars,); NaN where nothing can be said.
        programs: Of each program; NaN likewise. Empty where the vocabulary has none.
    """

    label: str
    name: str
    log_odds: float
    bars_B: NDArray[np.float64]
    programs: Mapping[int, float]


def attribution_figure(
    notes: Notes,
    bar_ticks: ArrayLike,
    tpq: int,
    title: str,
    labels: Sequence[LabelAttribution],
    bar_seconds: ArrayLike = (),
) -> Figure:
    """The piano roll, shaded by what each bar said for the first label's class.

    Below it stand the bars' values for each label, beside it those of the programs.

    Args:
        notes: The notes, in any order.
        bar_ticks: Start of each bar and, last, the end of the last one, in ticks.
        tpq: Ticks per quarter note.
        title: Title; taken literally.
        labels: What decided each label, at least one.
        bar_seconds: Time of each of ``bar_ticks``, for the axis; empty for none.

    Raises:
        ValueError: No label, or one whose bars are not those of ``bar_ticks``.
    """
    bars = np.asarray(bar_ticks, np.int64)
    if not labels or any(len(found.bars_B) != len(bars) - 1 for found in labels):
        sizes = [len(found.bars_B) for found in labels]
        raise ValueError(f"attributions of {sizes} bars for {len(bars) - 1} bars")
    drums_n = np.asarray(notes.program) == DRUMS
    left, right = int(bars[0]), int(bars[-1])
    used_drums = np.unique(np.asarray(notes.pitch)[drums_n])
    pitches = np.asarray(notes.pitch)[~drums_n]
    heights = []
    if len(pitches):
        heights.append(float(np.clip(0.075 * np.ptp(pitches), 2.2, 4.6)))
    if len(used_drums):
        heights.append(0.3 + 0.19 * len(used_drums))
    n_rolls = len(heights)
    charts = [_program_rows(found.programs) for found in labels]
    needed = sum(_HEAD + _PROGRAM * max(1, len(chart)) for chart in charts)
    heights += [_STRIP] * len(labels)
    heights[0] += max(0.0, needed - sum(heights))
    width = float(np.clip(0.42 * (right - left) / (4 * tpq) + 3, 8, 22))
    beside = _SIDE if any(charts) else 0.0
    figure = _figure(width + beside, sum(heights) + 1.5)
    grid = figure.add_gridspec(
        len(heights), 2 if beside else 1, height_ratios=heights,
        width_ratios=[width, beside] if beside else None,
    )  # fmt: skip
    panels: list[Axes] = []
    for row in range(len(heights)):
        panels.append(figure.add_subplot(grid[row, 0], sharex=panels[0] if panels else None))

    if len(pitches):
        sixteenth_pt = 72 * (width - 1.5) * tpq / 4 / (right - left)
        _roll_panel(panels[0], notes, ~drums_n, float(np.clip(0.12 * sixteenth_pt, 0.1, 0.7)))
    if len(used_drums):
        _drum_panel(panels[n_rolls - 1], notes, drums_n, used_drums, tpq)
    for axes in panels[:n_rolls]:
        _shade(axes, bars, labels[0].bars_B)
    for axes, found in zip(panels[n_rolls:], labels, strict=True):
        _strip(axes, bars, found)
    for axes in panels:
        _bar_lines(axes, bars, left, right, width, bar_seconds)
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    figure.align_ylabels(panels)
    first = labels[0]
    subtitle = (
        f"{plural(len(drums_n), 'note')} in {plural(len(bars) - 1, 'bar')}   ·   shaded by what "
        f"each bar said for {first.label} {first.name}"
    )
    titles(panels[0], title, subtitle)
    if beside:
        side = grid[:, 1].subgridspec(
            len(labels), 1, height_ratios=[_HEAD + _PROGRAM * max(1, len(c)) for c in charts]
        )
        inches = sum(heights) / needed
        for row, (found, chart) in enumerate(zip(labels, charts, strict=True)):
            slots = int(inches * (_HEAD + _PROGRAM * max(1, len(chart))) / (1.5 * _PROGRAM))
            _program_panel(figure.add_subplot(side[row, 0]), found, chart, slots)
    keys = [Patch(facecolor=FOR, label="for it"), Patch(facecolor=AGAINST, label="against it")]
    if any(np.isnan(found.bars_B).any() for found in labels):
        keys.append(Patch(facecolor=UNSEEN, label="nothing to say"))
    figure.legend(
        handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip
    return figure


def _program_rows(programs: Mapping[int, float]) -> list[tuple[str, float]]:
    """The programs that decided most, in ascending order: a chart is drawn from below."""
    known = [(p, v) for p, v in programs.items() if not np.isnan(v)]
    kept = sorted(known, key=lambda row: -abs(row[1]))[:MAX_PROGRAMS]
    return [(_short(program_name(p)), v) for p, v in sorted(kept, key=lambda row: row[1])]


def _short(name: str) -> str:
    """The first of the sounds that General MIDI lists for an effect."""
    return name.split(",")[0]


def _colours(values: NDArray[Any]) -> list[str]:
    return [FOR if value >= 0 else AGAINST for value in values]


def _shade(axes: Axes, bars: NDArray[np.int64], values_B: NDArray[np.float64]) -> None:
    """Colours each bar of a roll."""
    most = float(np.nanmax(np.abs(values_B), initial=0.0))
    for left, right, value in zip(bars[:-1], bars[1:], values_B, strict=True):
        if np.isnan(value):
            axes.axvspan(left, right, color=UNSEEN, lw=0, zorder=0.3)
        elif most > 0 and value != 0:
            alpha = _SHADE * abs(value) / most
            colour = FOR if value > 0 else AGAINST
            axes.axvspan(left, right, color=colour, alpha=alpha, lw=0, zorder=0.3)


def _strip(axes: Axes, bars: NDArray[np.int64], found: LabelAttribution) -> None:
    """The bars' values."""
    values = np.nan_to_num(found.bars_B)
    widths = np.diff(bars)
    axes.bar(
        bars[:-1] + 0.06 * widths, values, 0.88 * widths, align="edge", color=_colours(values),
        zorder=2,
    )  # fmt: skip
    for bar in np.flatnonzero(np.isnan(found.bars_B)):
        axes.axvspan(bars[bar], bars[bar + 1], color=UNSEEN, lw=0, zorder=0.3)
    _limits(axes, values, "y")
    axes.axhline(0, color=FAINT, lw=0.8, zorder=3)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel(f"{found.name}\n(nats)", color=INK, parse_math=False)


def _program_panel(
    axes: Axes, found: LabelAttribution, rows: Sequence[tuple[str, float]], slots: int
) -> None:
    """The programs' values, from above; ``slots`` of them would fill the panel."""
    values = np.array([value for _, value in rows])
    axes.set_title(
        f"{found.label}: {found.name}\nlog-odds {found.log_odds:+.2f} nats", loc="left",
        fontsize=10, color=INK, parse_math=False,
    )  # fmt: skip
    axes.spines[["bottom", "right", "left"]].set_visible(False)
    axes.spines["top"].set_color("#a8a8a8")
    axes.tick_params(length=0, colors=INK, labelsize=9)
    if not rows:
        axes.set_axis_off()
        axes.text(0, 0.97, "nothing to say", transform=axes.transAxes, color=FAINT, va="top")
        return
    at = np.arange(len(rows))
    axes.barh(at, values, 0.7, color=_colours(values), zorder=2)
    axes.set_yticks(at, [name for name, _ in rows])
    top = len(rows) - 0.4
    axes.set_ylim(min(-0.6, top - slots), top)
    _limits(axes, values, "x")
    axes.vlines(0, -0.5, top, color=FAINT, lw=0.8, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)


def _limits(axes: Axes, values: NDArray[np.float64], axis: str) -> None:
    """Room for all values and 0, and a scale where all are 0."""
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    room = 0.08 * (high - low)
    limits = (low - room * (low < 0), high + room * (high > 0)) if room else (-1.0, 1.0)
    (axes.set_ylim if axis == "y" else axes.set_xlim)(limits)
