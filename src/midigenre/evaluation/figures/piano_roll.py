"""Piano rolls: a piece, and what decided a classifier's answer for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from midigenre.arrays import Bools, Floats, Longs
from midigenre.evaluation.figures import BLUE, FAINT, GRID, INK, RED, new_figure, titles
from midigenre.midi.song import DRUMS, NoteTable
from midigenre.wording import plural, program_name

PRIMER = RED  # the line where a primer ends
FOR, AGAINST, UNSEEN = BLUE, RED, "#ebebeb"

INSTRUMENT_FAMILIES: tuple[tuple[str, str, bool], ...] = (
    ("Piano", "#0072B2", False),
    ("Chromatic percussion", "#0072B2", True),
    ("Organ", "#CC79A7", False),
    ("Guitar", "#D55E00", False),
    ("Bass", "#4D4D4D", False),
    ("Strings", "#009E73", False),
    ("Ensemble", "#56B4E9", False),
    ("Brass", "#E69F00", False),
    ("Reed", "#E69F00", True),
    ("Pipe", "#56B4E9", True),
    ("Synth lead", "#882255", False),
    ("Synth pad", "#882255", True),
    ("Synth effects", "#4D4D4D", True),
    ("Ethnic", "#D55E00", True),
    ("Percussive", "#CC79A7", True),
    ("Sound effects", "#009E73", True),
)
"""General MIDI families (program // 8): name, colour, dark outline.

Fixed, so that two rolls can be compared. With any colour vision only eight colours can be told
apart (Okabe and Ito 2008, the yellow replaced by Paul Tol's wine, which shows on white);
the outline doubles them.
"""

MAX_NAMED = 12
"""Bars of the chart of programs: those that decided most."""

_SHADE = 0.42  # opacity of the bar that decided most; the notes must stay readable
_STRIP, _PROGRAM = 1.15, 0.24  # inches: height of a strip, of a program in its chart
_HEAD = 1.1  # inches: the space above a chart of programs
_SIDE = 4.6  # inches: width of the charts of programs and their names

_DRUM_NAMES = {
    35: "Low kick", 36: "Kick", 37: "Side stick", 38: "Snare", 39: "Clap", 40: "Snare 2",
    41: "Low floor tom", 42: "Closed hat", 43: "Floor tom", 44: "Pedal hat", 45: "Low tom",
    46: "Open hat", 47: "Low-mid tom", 48: "Hi-mid tom", 49: "Crash", 50: "High tom", 51: "Ride",
    52: "China", 53: "Ride bell", 54: "Tambourine", 55: "Splash", 56: "Cowbell", 57: "Crash 2",
    58: "Vibraslap", 59: "Ride 2", 60: "High bongo", 61: "Low bongo", 62: "Mute conga",
    63: "Open conga", 64: "Low conga", 65: "High timbale", 66: "Low timbale", 67: "High agogo",
    68: "Low agogo", 69: "Cabasa", 70: "Maracas", 75: "Claves", 76: "High block",
    77: "Low block", 80: "Mute triangle", 81: "Open triangle",
}  # fmt: skip


def piano_roll_figure(
    notes: NoteTable,
    bar_ticks: ArrayLike,
    tpq: int,
    title: str,
    bar_seconds: ArrayLike = (),
    primer_bars: int = 0,
    first_bar: int = 0,
    widest: float = 22,
) -> Figure:
    """Pitch against bars; colour is the instrument family, opacity the velocity, drums below.

    Without drums it has no drum panel, without notes it says so.

    Args:
        notes: The notes, in any order.
        bar_ticks: Start of each bar and, last, the end of the last one, ascending, in ticks. Empty
            means bars of four quarters.
        tpq: Ticks per quarter note.
        title: Title; taken literally.
        bar_seconds: Time of each of ``bar_ticks``, for the axis; empty for none.
        primer_bars: Bars that were given to the generator: a line marks their end.
        first_bar: Bars of the song before these; bar numbers count from the song's first, 1.
        widest: Bound of its width, inches.
    """
    count, end = len(notes.program), int((notes.onset + notes.duration).max(initial=0))
    bars = np.unique(np.asarray(bar_ticks, np.int64))
    if not len(bars):
        bars = np.arange(0, max(end, 1) + 4 * tpq, 4 * tpq)
    span = int(bars[0]), max(int(bars[-1]), end, int(bars[0]) + 1)
    heights = _heights(notes) or [1.6]
    width = _width(span, tpq, widest)
    figure = new_figure(width, sum(heights) + 1.6)
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    _draw_notes([*panels], notes, tpq, width, span)
    for axes in panels:
        _bar_lines(axes, bars, span, width, bar_seconds, first_bar)
        if primer_bars:
            axes.axvline(float(bars[primer_bars]), color=PRIMER, lw=2, ls=(0, (4, 2)), zorder=3)
    figure.align_ylabels(panels)
    if not count:
        panels[0].set_yticks([])
        panels[0].text(
            0.5, 0.5, "no notes", transform=panels[0].transAxes, ha="center", color=FAINT
        )
    if primer_bars:
        given = "bar 1 is" if primer_bars == 1 else f"bars 1 to {primer_bars} are"
        title = f"{title} ({given} the primer)"
    subtitle = f"{plural(count, 'note')} in {plural(max(1, len(bars) - 1), 'bar')}"
    titles(panels[0], title, f"{subtitle}   ·   opacity shows velocity" if count else subtitle)
    keys = [
        Patch(facecolor=colour, edgecolor="black" if outlined else colour, lw=1.1, label=name)
        for name, colour, outlined in (
            INSTRUMENT_FAMILIES[family]
            for family in np.unique(notes.program[notes.program != DRUMS] // 8)
        )
    ]
    if keys:
        inches = sum(0.6 + 0.09 * len(str(key.get_label())) for key in keys)
        _legend(figure, keys, -(-len(keys) // int(np.ceil(inches / width))))
    return figure


def _legend(figure: Figure, keys: Sequence[Patch], n_columns: int) -> None:
    figure.legend(
        handles=keys, loc="outside lower center", ncols=n_columns, frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip


def _heights(notes: NoteTable) -> list[float]:
    """Inches of the panels that there are: of pitches, then of drums."""
    drums_n = notes.program == DRUMS
    heights = []
    if not drums_n.all():
        heights.append(float(np.clip(0.075 * np.ptp(notes.pitch[~drums_n]), 2.2, 4.6)))
    if drums_n.any():
        heights.append(0.3 + 0.19 * len(np.unique(notes.pitch[drums_n])))
    return heights


def _width(span: tuple[int, int], tpq: int, widest: float = 22) -> float:
    """Inches for the music from a tick to another."""
    return float(np.clip(0.42 * (span[1] - span[0]) / (4 * tpq) + 3, min(8, widest), widest))


def _draw_notes(
    panels: Sequence[Axes], notes: NoteTable, tpq: int, width: float, span: tuple[int, int]
) -> None:
    """Draws the notes into the panels of :func:`_heights`."""
    drums_n = notes.program == DRUMS
    if not drums_n.all():
        sixteenth_pt = 72 * (width - 1.5) * tpq / 4 / (span[1] - span[0])
        _roll_panel(panels[0], notes, ~drums_n, float(np.clip(0.12 * sixteenth_pt, 0.1, 0.7)))
    if drums_n.any():
        _drum_panel(panels[-1], notes, drums_n, tpq)


def _alpha(velocity: NDArray[Any]) -> NDArray[Any]:
    # The softest note must still be visible.
    return np.asarray(0.3 + 0.7 * np.clip(velocity, 0, 127) / 127)


def _boxes(
    left: NDArray[Any], right: NDArray[Any], centre: NDArray[Any], half: float
) -> list[NDArray[Any]]:
    """Corners of n rectangles, each of shape (4, 2)."""
    low, high = centre - half, centre + half
    x = np.stack([left, right, right, left], 1)
    return list(np.stack([x, np.stack([low, low, high, high], 1)], 2))


def _roll_panel(axes: Axes, notes: NoteTable, chosen: Bools, outline_pt: float) -> None:
    onset, duration, pitch = (x[chosen] for x in (notes.onset, notes.duration, notes.pitch))
    family = notes.program[chosen] // 8
    colours = np.array([to_rgb(colour) for _, colour, _ in INSTRUMENT_FAMILIES])
    outlined = np.array([outline for _, _, outline in INSTRUMENT_FAMILIES])
    face = np.concatenate([colours[family], _alpha(notes.velocity[chosen])[:, None]], 1)
    edge = np.where(outlined[family][:, None], (0.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 0.9))
    # Long notes first, so that short ones are not buried.
    order = np.argsort(-duration, kind="stable")
    corners = _boxes(onset[order], (onset + np.maximum(duration, 1))[order], pitch[order], 0.44)
    axes.add_collection(
        PolyCollection(
            corners, facecolors=face[order], edgecolors=edge[order], lw=outline_pt, zorder=2
        )
    )
    low, high = int(pitch.min()) - 2, int(pitch.max()) + 2
    low, high = min(low, high - 12), max(high, low + 12)
    axes.set_ylim(low - 0.5, high + 0.5)
    octaves = [p for p in range(128) if p % 12 == 0 and low <= p <= high]
    axes.set_yticks(octaves, [f"C{p // 12 - 1}" for p in octaves])
    # The black keys, as on the keyboard of a sequencer.
    for p in range(low, high + 1):
        if p % 12 in (1, 3, 6, 8, 10):
            axes.axhspan(p - 0.5, p + 0.5, color="#f4f4f4", lw=0, zorder=0)
    axes.hlines([p - 0.5 for p in octaves], 0, 1, transform=axes.get_yaxis_transform(),
                colors=GRID, lw=0.8, zorder=0.6)  # fmt: skip
    axes.set_ylabel("Pitch", color=INK)


def _drum_panel(axes: Axes, notes: NoteTable, chosen: Bools, tpq: int) -> None:
    onset = notes.onset[chosen]
    used, row = np.unique(notes.pitch[chosen], return_inverse=True)
    # A stroke has no length worth drawing: every one is a sixteenth wide.
    alpha = _alpha(notes.velocity[chosen])[:, None]
    face = np.concatenate([np.tile(to_rgb(INK), (len(row), 1)), alpha], 1)
    boxes = _boxes(onset, onset + max(tpq / 4 * 0.8, 1), row.astype(float), 0.33)
    axes.add_collection(
        PolyCollection(boxes, facecolors=face, edgecolors="white", lw=0.4, zorder=2)
    )
    axes.set_ylim(-0.6, len(used) - 0.4)
    axes.set_yticks(range(len(used)), [_DRUM_NAMES.get(int(p), f"Drum {p}") for p in used])
    for line in range(len(used)):
        axes.axhline(line, color="#f0f0f0", lw=0.8, zorder=0)
    axes.set_ylabel("Drums", color=INK)


def _bar_lines(
    axes: Axes,
    bars: Longs,
    span: tuple[int, int],
    width: float,
    bar_seconds: ArrayLike,
    first_bar: int = 0,
) -> None:
    """Bar lines and as many bar numbers, from 1, as fit; below these the time if it is known."""
    times = [f"\n{int(s) // 60}:{int(s) % 60:02d}" for s in np.asarray(bar_seconds)]
    axes.set_xlabel("Bar and time (min:s)" if times else "Bar", color=INK)
    starts = bars[:-1] if len(bars) > 1 else bars
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 10**9) if len(starts) / s <= width * 2.2)
    drawn = bars[:: step if len(bars) > 120 else 1]
    lines = LineCollection(
        [[(t, 0), (t, 1)] for t in drawn], transform=axes.get_xaxis_transform(), colors="#a8a8a8",
        linewidths=0.7, zorder=1,
    )  # fmt: skip
    axes.add_collection(lines, autolim=False)
    axes.set_xlim(*span)
    room, numbered = (span[1] - span[0]) / (width * 2.2), [0]
    for i in range(step, len(starts), step):  # bars of a shorter meter have no room for a time
        if starts[i] - starts[numbered[-1]] >= room:
            numbered.append(i)
    places = [float(starts[i]) for i in numbered]
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, [f"{first_bar + i + 1}{times[i] if times else ''}" for i in numbered])
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.label_outer()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#a8a8a8")


@dataclass(frozen=True)
class LabelAttribution:
    """What decided one label, in nats of the song's log-odds.

    Attributes:
        label: The label, for instance ``genre``.
        name: The class that is explained.
        log_odds: The song's log-odds of it.
        bars_B: Of each bar, shape (bars,); NaN where undefined.
        programs: Of each program; NaN likewise. Empty where the vocabulary has none.
    """

    label: str
    name: str
    log_odds: float
    bars_B: Floats
    programs: Mapping[int, float]


def attribution_figure(
    notes: NoteTable,
    bar_ticks: ArrayLike,
    tpq: int,
    title: str,
    labels: Sequence[LabelAttribution],
    bar_seconds: ArrayLike = (),
) -> Figure:
    """The piano roll, shaded by each bar's evidence for the first label's class.

    Below it are the bars' values for each label, beside it those of the programs.

    The arguments are those of :func:`piano_roll_figure`, with at least one note and one label.

    Raises:
        ValueError: No label, or one whose bars are not those of ``bar_ticks``.
    """
    bars = np.asarray(bar_ticks, np.int64)
    if not labels or any(len(found.bars_B) != len(bars) - 1 for found in labels):
        sizes = [len(found.bars_B) for found in labels]
        raise ValueError(f"attributions of {sizes} bars for {len(bars) - 1} bars")
    span = int(bars[0]), int(bars[-1])
    heights = _heights(notes)
    n_rolls = len(heights)
    charts = [_program_rows(found.programs) for found in labels]
    chart_heights = [_HEAD + _PROGRAM * max(1, len(chart)) for chart in charts]
    heights += [_STRIP] * len(labels)
    heights[0] += max(0.0, sum(chart_heights) - sum(heights))
    width = _width(span, tpq)
    beside = _SIDE if any(charts) else 0.0
    figure = new_figure(width + beside, sum(heights) + 1.5)
    grid = figure.add_gridspec(
        len(heights), 2 if beside else 1, height_ratios=heights,
        width_ratios=[width, beside] if beside else None,
    )  # fmt: skip
    panels: list[Axes] = []
    for row in range(len(heights)):
        panels.append(figure.add_subplot(grid[row, 0], sharex=panels[0] if panels else None))
    _draw_notes(panels[:n_rolls], notes, tpq, width, span)
    for axes in panels[:n_rolls]:
        _shade(axes, bars, labels[0].bars_B)
    for axes, found in zip(panels[n_rolls:], labels, strict=True):
        _strip(axes, bars, found)
    for axes in panels:
        _bar_lines(axes, bars, span, width, bar_seconds)
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    figure.align_ylabels(panels)
    subtitle = (
        f"{plural(len(notes.program), 'note')} in {plural(len(bars) - 1, 'bar')}   ·   shaded by "
        f"what each bar said for {labels[0].label} {labels[0].name}"
    )
    titles(panels[0], title, subtitle)
    if beside:
        side = grid[:, 1].subgridspec(len(labels), 1, height_ratios=chart_heights)
        stretch = sum(heights) / sum(chart_heights)
        for row, (found, chart) in enumerate(zip(labels, charts, strict=True)):
            slots = int(stretch * chart_heights[row] / (1.5 * _PROGRAM))
            _program_panel(figure.add_subplot(side[row, 0]), found, chart, slots)
    keys = [Patch(facecolor=FOR, label="for it"), Patch(facecolor=AGAINST, label="against it")]
    if any(np.isnan(found.bars_B).any() for found in labels):
        keys.append(Patch(facecolor=UNSEEN, label="nothing to say"))
    _legend(figure, keys, len(keys))
    return figure


def _program_rows(programs: Mapping[int, float]) -> list[tuple[str, float]]:
    """The programs that decided most, in ascending order: a chart is drawn from below."""
    known = [(p, v) for p, v in programs.items() if not np.isnan(v)]
    kept = sorted(known, key=lambda row: -abs(row[1]))[:MAX_NAMED]
    # Of the sounds that General MIDI lists for an effect the first.
    return [(program_name(p).split(",")[0], v) for p, v in sorted(kept, key=lambda row: row[1])]


def _colours(values: Floats) -> list[str]:
    return [FOR if value >= 0 else AGAINST for value in values]


def _shade(axes: Axes, bars: Longs, values_B: Floats) -> None:
    """Colours each bar of a roll."""
    most = float(np.nanmax(np.abs(values_B), initial=0.0))
    for left, right, value in zip(bars[:-1], bars[1:], values_B, strict=True):
        if np.isnan(value):
            axes.axvspan(left, right, color=UNSEEN, lw=0, zorder=0.3)
        elif value != 0:
            colour, alpha = FOR if value > 0 else AGAINST, _SHADE * abs(value) / most
            axes.axvspan(left, right, color=colour, alpha=alpha, lw=0, zorder=0.3)


def _strip(axes: Axes, bars: Longs, found: LabelAttribution) -> None:
    """The bars' values."""
    values, widths = np.nan_to_num(found.bars_B), np.diff(bars)
    axes.bar(
        bars[:-1] + 0.06 * widths, values, 0.88 * widths, align="edge", color=_colours(values),
        zorder=2,
    )  # fmt: skip
    for bar in np.flatnonzero(np.isnan(found.bars_B)):
        axes.axvspan(bars[bar], bars[bar + 1], color=UNSEEN, lw=0, zorder=0.3)
    axes.set_ylim(_limits(values))
    axes.axhline(0, color=FAINT, lw=0.8, zorder=3)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel(f"{found.name}\n(nats)", color=INK, parse_math=False)


def _program_panel(
    axes: Axes, found: LabelAttribution, rows: Sequence[tuple[str, float]], slots: int
) -> None:
    """The programs' values, from above; ``slots`` of them would fill the panel."""
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
    values, at = np.array([value for _, value in rows]), np.arange(len(rows))
    axes.barh(at, values, 0.7, color=_colours(values), zorder=2)
    axes.set_yticks(at, [name for name, _ in rows])
    top = len(rows) - 0.4
    axes.set_ylim(min(-0.6, top - slots), top)
    axes.set_xlim(_limits(values))
    axes.vlines(0, -0.5, top, color=FAINT, lw=0.8, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)


def _limits(values: Floats) -> tuple[float, float]:
    """Room for all values and 0, and a scale where all are 0."""
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    room = 0.08 * (high - low)
    return (low - room * (low < 0), high + room * (high > 0)) if room else (-1.0, 1.0)
