"""Figures: confusion matrices and piano rolls.

Only matplotlib's object API is used (:class:`~matplotlib.figure.Figure`, never ``pyplot``): pyplot
keeps every figure in a global list, which leaks memory over a long run and needs a display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from midigenre.evaluation.metrics import METRICS, Counts, as_array, scores_of
from midigenre.files import whole
from midigenre.wording import plural

DPI = 150
INK, FAINT, GRID = "#222222", "#767676", "#d9d9d9"
PRIMER = "#D55E00"  # the line where a primer ends
_MOST_INCHES = 18.0  # a side of a heat map, without its names
_INCHES_PER_NAME = 0.16  # from one name to the next
_MOST_LETTERS = 40  # of a name beside a heat map
_NUMBERED = 40  # most rows or columns of a heat map with numbers in the cells
DRUMS = -1  # the program of drum notes in a note table

FAMILIES: tuple[tuple[str, str, bool], ...] = (
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

Fixed, so that two rolls can be compared. Eight colours is all that people with any colour vision
can tell apart (Okabe and Ito 2008, the yellow replaced by Paul Tol's wine, which shows on white);
the outline doubles them.
"""

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


class Notes(Protocol):
    """The columns of ``midigenre.midi.song.NoteTable``, each of shape (n,)."""

    @property
    def onset(self) -> NDArray[Any]:
        """Start, ticks."""

    @property
    def duration(self) -> NDArray[Any]:
        """Length, ticks."""

    @property
    def pitch(self) -> NDArray[Any]:
        """MIDI pitch, 0 to 127."""

    @property
    def velocity(self) -> NDArray[Any]:
        """MIDI velocity, 1 to 127."""

    @property
    def program(self) -> NDArray[Any]:
        """General MIDI program, 0 to 127; -1 for drums."""


def save(figure: Figure, path: Path | str) -> Path:
    """Writes a PNG at 150 dots per inch; the file appears whole or not at all.

    Args:
        figure: The figure.
        path: The file; its folder is made if needed.

    Returns:
        The path.
    """
    path = Path(path)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=DPI, facecolor="white")
    return path


def confusion_figure(confusion_CC: Any, names: Sequence[str], title: str) -> Figure:
    """Confusion matrix: colour and percent are shares of the true class, numbers are counts.

    Classes that no row has and none is taken for are left out.

    Args:
        confusion_CC: Counts, array or tensor of shape (C, C); rows are the truth.
        names: Class names, length C.
        title: Title; taken literally.

    Returns:
        The figure, of at most 26 inches a side.

    Raises:
        ValueError: The matrix does not fit the names.
    """
    confusion_CC = as_array(confusion_CC)
    if confusion_CC.shape != (len(names), len(names)):
        raise ValueError(f"a confusion matrix {confusion_CC.shape} for {len(names)} names")
    support_C = confusion_CC.sum(1)
    total = int(support_C.sum())
    scores = "no rows"
    if total:
        found = scores_of(Counts.of_confusion(confusion_CC))
        scores = "   ·   ".join(f"{METRICS[k].title} {value:.3f}" for k, value in found.items())
    shown = np.flatnonzero(support_C + confusion_CC.sum(0)) if total else np.arange(len(names))
    left_out = len(names) - len(shown)
    without = f"   ·   {left_out:,} of {len(names):,} classes without rows" if left_out else ""
    seen = [names[i] for i in shown.tolist()]
    figure, axes = heat_map(
        confusion_CC[np.ix_(shown, shown)],
        [f"{short(name)}  ({n:,})" for name, n in zip(seen, support_C[shown], strict=True)],
        [short(name) for name in seen],
        cells=(0.95, 0.95) if len(shown) <= 4 else (0.62, 0.62),
        top=1.0,
        share_of="the true class",
        axis_labels=("True class  (count)", "Predicted class"),
    )
    titles(axes, title, f"{scores}   ·   n = {total:,}{without}")
    return figure


def heat_map(
    counts_RC: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    cells: tuple[float, float],
    top: float,
    share_of: str,
    axis_labels: tuple[str, str],
) -> tuple[Figure, Axes]:
    """A table as an image: colour and percent are shares of the row, numbers are counts.

    Its size is bounded. Above 40 rows or columns the cells have no numbers, and where the names
    would overlap only every second, third ... stands there.

    Args:
        counts_RC: Counts, shape (R, C).
        rows: Name of each row, length R; taken literally.
        columns: Name of each column, length C.
        cells: Height and width of a cell in inches, where there is room.
        top: The share that is darkest.
        share_of: What the shares are of, for the colour bar.
        axis_labels: What the rows and the columns are.

    Returns:
        The figure and its axes, without a title.
    """
    n_rows, n_columns = counts_RC.shape
    total_R = counts_RC.sum(1)
    share_RC = counts_RC / np.maximum(total_R, 1)[:, None]
    room = 0.085 * max(map(len, (*rows, *columns)), default=0)
    height = min(max(n_rows * cells[0], 2.0), _MOST_INCHES)
    width = min(max(n_columns * cells[1], 2.4), _MOST_INCHES)
    figure = _figure(width + 2.3 + room, height + 1.6 + room)
    axes = figure.add_subplot()
    square = cells[0] == cells[1] and n_rows == n_columns
    image = axes.imshow(
        share_RC, cmap="Blues", vmin=0, vmax=top, aspect="equal" if square else "auto"
    )
    if max(n_rows, n_columns) <= _NUMBERED:
        for row, column in np.ndindex(n_rows, n_columns):
            share = float(share_RC[row, column])
            dark = share > 0.66 * top
            _cell_text(axes, row, column, int(counts_RC[row, column]), share, dark)
    for row in np.flatnonzero(total_R == 0):
        axes.add_patch(
            Rectangle(
                (-0.5, row - 0.5), n_columns, 1, fill=False, hatch="///", ec=GRID, lw=0, zorder=0.5
            )
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
    return figure, axes


def _ticks(names: Sequence[str], inches: float, label: str) -> tuple[range, str]:
    """Which names stand beside an axis without overlap, and the axis's label, which says so."""
    step = max(1, math.ceil(len(names) * _INCHES_PER_NAME / inches))
    return range(0, len(names), step), label if step == 1 else f"{label}, one name in {step}"


def short(name: str) -> str:
    """A class name of at most 40 letters, for an axis."""
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.0, hspace=0.0)
    return Figure(figsize=(width, height), layout=layout)


def _cell_text(axes: Axes, row: int, column: int, count: int, share: float, dark: bool) -> None:
    # Cells lie inside the axes: measuring every text would take the layout most of its time.
    put = partial(axes.text, column, ha="center", in_layout=False)
    if not count:
        put(row, "·", va="center", color="#b0b0b0", fontsize=9)
        return
    colour = "white" if dark else INK
    size = 9.0 if count < 10_000 else 7.5
    put(row - 0.03, f"{count:,}", va="bottom", color=colour, size=size)
    percent = f"{share:.0%}" if share >= 0.005 else "<1%"
    put(row + 0.1, percent, va="top", color=colour, size=7.0)


def titles(axes: Axes, title: str, subtitle: str) -> None:
    """Title and subtitle over the left edge of the axes; the layout engine makes room for both."""
    axes.set_title(
        title, loc="left", pad=27, fontsize=13, fontweight="bold", color=INK, parse_math=False,
        wrap=True,
    )  # fmt: skip
    axes.annotate(
        subtitle, (0, 1), (0, 10), xycoords="axes fraction", textcoords="offset points",
        fontsize=9.5, color=FAINT, annotation_clip=False,
    )  # fmt: skip


def piano_roll_figure(
    notes: Notes,
    bar_ticks: ArrayLike,
    tpq: int,
    title: str,
    bar_seconds: ArrayLike = (),
    primer_bars: int = 0,
    first_bar: int = 0,
    widest: float = 22,
) -> Figure:
    """Pitch against bars; colour is the instrument family, opacity the velocity, drums below.

    Args:
        notes: The notes, in any order.
        bar_ticks: Start of each bar and, last, the end of the last one, ascending, in ticks. Empty
            means bars of four quarters.
        tpq: Ticks per quarter note.
        title: Title; taken literally.
        bar_seconds: Time of each of ``bar_ticks``, which then stands below the bars' numbers; empty
            for none.
        primer_bars: Bars that were given to the generator: a line stands behind them, and the title
            says it.
        first_bar: Bars of the song that lie before these; numbers count from its first, 1.
        widest: Bound of its width, inches.

    Returns:
        The figure; without drums it has no drum panel, without notes it says so.
    """
    drums_n = np.asarray(notes.program) == DRUMS
    end = int((np.asarray(notes.onset) + np.asarray(notes.duration)).max(initial=0))
    bars = np.unique(np.asarray(bar_ticks, np.int64))
    if not len(bars):
        bars = np.arange(0, max(end, 1) + 4 * tpq, 4 * tpq)
    left, right = int(bars[0]), max(int(bars[-1]), end, int(bars[0]) + 1)

    used_drums = np.unique(np.asarray(notes.pitch)[drums_n])
    pitches = np.asarray(notes.pitch)[~drums_n]
    roll_height = float(np.clip(0.075 * np.ptp(pitches), 2.2, 4.6)) if len(pitches) else 0.0
    drum_height = 0.3 + 0.19 * len(used_drums) if len(used_drums) else 0.0
    heights = [h for h in (roll_height, drum_height) if h] or [1.6]
    width = float(np.clip(0.42 * (right - left) / (4 * tpq) + 3, min(8, widest), widest))
    figure = _figure(width, sum(heights) + 1.6)
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]

    if len(pitches):
        sixteenth_pt = 72 * (width - 1.5) * tpq / 4 / (right - left)
        _roll_panel(panels[0], notes, ~drums_n, float(np.clip(0.12 * sixteenth_pt, 0.1, 0.7)))
    if len(used_drums):
        _drum_panel(panels[-1], notes, drums_n, used_drums, tpq)
    for axes in panels:
        _bar_lines(axes, bars, left, right, width, bar_seconds, first_bar)
        if primer_bars:
            axes.axvline(float(bars[primer_bars]), color=PRIMER, lw=2, ls=(0, (4, 2)), zorder=3)
    figure.align_ylabels(panels)
    count = len(drums_n)
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

    present = np.unique(np.asarray(notes.program)[~drums_n] // 8)
    keys = [
        Patch(facecolor=colour, edgecolor="black" if outlined else colour, lw=1.1, label=name)
        for name, colour, outlined in (FAMILIES[family] for family in present)
    ]
    if keys:
        inches = sum(0.6 + 0.09 * len(str(key.get_label())) for key in keys)
        rows = int(np.ceil(inches / width))
        figure.legend(
            handles=keys, loc="outside lower center", ncols=-(-len(keys) // rows),
            frameon=False, fontsize=9, labelcolor=INK, handlelength=1.2, columnspacing=1.6,
        )  # fmt: skip
    return figure


def _alpha(velocity: NDArray[Any]) -> NDArray[Any]:
    # The softest note must still be seen.
    return np.asarray(0.3 + 0.7 * np.clip(velocity, 0, 127) / 127)


def _boxes(
    left: NDArray[Any], right: NDArray[Any], centre: NDArray[Any], half: float
) -> list[NDArray[Any]]:
    """Corners of n rectangles, each of shape (4, 2)."""
    low, high = centre - half, centre + half
    x = np.stack([left, right, right, left], 1)
    return list(np.stack([x, np.stack([low, low, high, high], 1)], 2))


def _roll_panel(axes: Axes, notes: Notes, chosen: NDArray[Any], outline_pt: float) -> None:
    onset, duration, pitch, velocity, program = (
        np.asarray(column)[chosen]
        for column in (notes.onset, notes.duration, notes.pitch, notes.velocity, notes.program)
    )
    family = program // 8
    colours = np.array([to_rgb(colour) for _, colour, _ in FAMILIES])
    outlined = np.array([outline for _, _, outline in FAMILIES])
    face = np.concatenate([colours[family], _alpha(velocity)[:, None]], 1)
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


def _drum_panel(
    axes: Axes, notes: Notes, chosen: NDArray[Any], used: NDArray[Any], tpq: int
) -> None:
    onset, pitch, velocity = (
        np.asarray(column)[chosen] for column in (notes.onset, notes.pitch, notes.velocity)
    )
    # A stroke has no length worth drawing: every one is a sixteenth wide.
    row = np.searchsorted(used, pitch).astype(float)
    face = np.concatenate([np.tile(to_rgb(INK), (len(row), 1)), _alpha(velocity)[:, None]], 1)
    boxes = _boxes(onset, onset + max(tpq / 4 * 0.8, 1), row, 0.33)
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
    bars: NDArray[Any],
    left: int,
    right: int,
    width: float,
    bar_seconds: ArrayLike = (),
    first_bar: int = 0,
) -> None:
    """Bar lines and as many bar numbers, from 1, as fit; below these the time if it is known."""
    times = [f"\n{int(s) // 60}:{int(s) % 60:02d}" for s in np.asarray(bar_seconds)]
    axes.set_xlabel("Bar and time (min:s)" if times else "Bar", color=INK)
    starts = bars[:-1] if len(bars) > 1 else bars
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 10**9) if len(starts) / s <= width * 2.2)
    drawn = bars[:: step if len(bars) > 120 else 1]
    axes.add_collection(
        LineCollection(
            [[(t, 0), (t, 1)] for t in drawn],
            transform=axes.get_xaxis_transform(),
            colors="#a8a8a8",
            linewidths=0.7,
            zorder=1,
        ),
        autolim=False,
    )
    axes.set_xlim(left, right)
    numbered = np.arange(0, len(starts), step)
    axes.xaxis.set_major_locator(FixedLocator([float(starts[i]) for i in numbered]))
    axes.xaxis.set_minor_locator(NullLocator())
    labels = [f"{first_bar + i + 1}{times[i] if times else ''}" for i in numbered]
    axes.set_xticks([float(starts[i]) for i in numbered], labels)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.label_outer()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#a8a8a8")
