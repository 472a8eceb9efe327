"""Form of a piece: what repeats, how density and loudness develop, whether it ends on the tonic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from midigenre.arrays import Floats
from midigenre.evaluation.figures import BLUE, FAINT, GRID, INK, RED, new_figure, small_axes
from midigenre.evaluation.metrics import plain_number, ratio
from midigenre.evaluation.music.descriptors import (
    bar_keys,
    bar_of_notes,
    beat_edges,
    is_melodic,
    note_ends,
)
from midigenre.midi.song import Song

STEPS_PER_QUARTER = 4  # of a quarter note in a bar's picture: sixteenths
MAX_LAG = 16
PARTS = 10
PITCH_CLASSES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")

# Krumhansl and Kessler 1982, "Tracing the dynamic changes in perceived tonal organization in a
# spatial representation of musical keys", probe-tone ratings of each degree above the tonic.
_MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
_MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


def bar_pictures(song: Song) -> Floats:
    """What sounds where in each bar, shape (bars, rows, steps).

    Rows 0 to 11 are pitch classes: the share of each sixteenth during which the class sounds, added
    up over notes. The other rows are the drum sounds that the song uses: 1 where one is struck.
    Steps are counted from the barline, as many as the longest bar has. A note counts in the bar of
    its onset up to the barline.
    """
    notes, bar = song.notes, bar_of_notes(song)
    melodic = is_melodic(song)
    lengths = np.diff(song.bar_ticks)
    step = song.tpq / STEPS_PER_QUARTER
    n_steps = int(np.ceil(lengths.max(initial=0) / step))
    drums, drum_row = np.unique(notes.pitch[~melodic], return_inverse=True)
    pictures = np.zeros((song.n_bars, 12 + len(drums), n_steps))

    start = (notes.onset - song.bar_ticks[bar]) / step
    end = np.minimum(note_ends(song) - song.bar_ticks[bar], lengths[bar]) / step
    np.add.at(pictures, (bar[~melodic], 12 + drum_row, start[~melodic].astype(np.int64)), 1.0)
    bar, start, end, row = bar[melodic], start[melodic], end[melodic], notes.pitch[melodic] % 12
    for at in range(n_steps):
        share = np.clip(np.minimum(end, at + 1) - np.maximum(start, at), 0.0, 1.0)
        np.add.at(pictures[:, :, at], (bar, row), share)
    return pictures


def self_similarity(song: Song) -> Floats:
    """Cosine of the pictures of every pair of bars, 0 to 1, shape (bars, bars).

    After Foote 1999, "Visualizing music and audio using self-similarity", on
    :func:`bar_pictures`. Bars of different meters count by the steps that both have. An empty bar
    is like another empty bar (1) and unlike any other (0).
    """
    flat = bar_pictures(song).reshape(song.n_bars, -1)
    length = np.sqrt((flat**2).sum(1, keepdims=True))
    unit = np.nan_to_num(ratio(flat, length))
    found: Floats = np.clip(unit @ unit.T, 0.0, 1.0)
    empty = length[:, 0] == 0
    found[np.ix_(empty, empty)] = 1.0
    np.fill_diagonal(found, 1.0)
    return found


def repetition(song: Song, max_lag: int = MAX_LAG) -> dict[str, list[float | None]]:
    """How much bars resemble earlier bars, by the lag in bars.

    Only pairs with a note in at least one of the two bars count: silence does not repeat.

    Returns:
        At lags 1 to ``max_lag`` bars ``similarity``, the mean of :func:`self_similarity`, and
        ``exact``, the share of pairs whose bars hold the same (:func:`bar_keys`); None at lags
        without a pair.
    """
    keys, full = bar_keys(song)
    alike = self_similarity(song)
    found: dict[str, list[float | None]] = {"similarity": [], "exact": []}
    for lag in range(1, max_lag + 1):
        counts = full[lag:] | full[:-lag]
        pairs = np.diagonal(alike, -lag)[counts[: max(0, song.n_bars - lag)]]
        same = (keys[lag:] == keys[:-lag])[counts]
        found["similarity"].append(float(pairs.mean()) if len(pairs) else None)
        found["exact"].append(float(same.mean()) if len(same) else None)
    return found


def course(song: Song, parts: int = PARTS) -> dict[str, list[float | None]]:
    """Density and loudness over the piece, whose beats are split into parts as evenly as possible.

    Returns:
        ``notes_per_beat`` and ``velocity`` (mean) of each part; None where a part has no beat (a
        piece of fewer beats than parts) or, for the velocity, no note.
    """
    edges = beat_edges(song)
    n_beats = len(edges) - 1
    cuts = np.arange(parts + 1) * n_beats // parts
    part = np.searchsorted(edges[cuts[1:-1]], song.notes.onset, side="right")
    count = np.bincount(part, minlength=parts)
    loudness = np.bincount(part, song.notes.velocity, minlength=parts)
    return {
        "notes_per_beat": [plain_number(x) for x in ratio(count, np.diff(cuts))],
        "velocity": [plain_number(x) for x in ratio(loudness, count)],
    }


def key(song: Song) -> dict[str, Any] | None:
    """The key whose profile fits the whole piece best; None without pitched notes.

    Krumhansl 1990, "Cognitive Foundations of Musical Pitch", chapter 4: the correlation of the
    pitch classes' total durations with the profiles of Krumhansl and Kessler 1982. Where all
    classes sound equally long no key fits better than another, and it is None too.

    Returns:
        ``tonic`` (0 is C), ``mode`` (``major`` or ``minor``), ``name`` and ``correlation``.
    """
    melodic = is_melodic(song)
    pitch, duration = song.notes.pitch[melodic], song.notes.duration[melodic]
    time = np.bincount(pitch % 12, duration, minlength=12)
    if not len(pitch) or np.ptp(time) == 0:
        return None
    fits = {
        (tonic, mode): float(np.corrcoef(time, np.roll(profile, tonic))[0, 1])
        for mode, profile in (("major", _MAJOR), ("minor", _MINOR))
        for tonic in range(12)
    }
    tonic, mode = max(fits, key=lambda k: fits[k])
    name = f"{PITCH_CLASSES[tonic]} {mode}"
    return {"tonic": tonic, "mode": mode, "name": name, "correlation": fits[tonic, mode]}


def ends_on_tonic(song: Song) -> bool | None:
    """Whether the lowest pitch that sounds at the last onset is the tonic's; None without a key.

    The last onset is that of the last pitched note; notes held on from before count, drums do not.
    The key is that of the whole piece, :func:`key`.
    """
    found = key(song)
    if found is None:
        return None
    melodic = is_melodic(song)
    onset, pitch = song.notes.onset[melodic], song.notes.pitch[melodic]
    end = onset + song.notes.duration[melodic]
    last = onset.max()
    return bool(pitch[(end > last) | (onset == last)].min() % 12 == found["tonic"])


def structure(song: Song) -> dict[str, Any]:
    """One song's ``bars``, ``repetition``, ``course``, ``key`` and ``ends_on_tonic``."""
    return {
        "bars": song.n_bars,
        "repetition": repetition(song),
        "course": course(song),
        "key": key(song),
        "ends_on_tonic": ends_on_tonic(song),
    }


def mean_structure(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of :func:`structure` over songs, each over those in which the number is defined.

    Returns:
        ``n``, ``repetition`` and ``course`` as there (None where no song has the number), and
        ``tonic``: ``share`` of the songs with a key that end on the tonic, and ``n`` of these.
    """
    series = {
        "repetition": dict.fromkeys(("similarity", "exact"), MAX_LAG),
        "course": dict.fromkeys(("notes_per_beat", "velocity"), PARTS),
    }
    means: dict[str, Any] = {"n": len(found)}
    for group, sizes in series.items():
        means[group] = {
            name: [_mean(one[group][name][i] for one in found) for i in range(size)]
            for name, size in sizes.items()
        }
    ends = [one["ends_on_tonic"] for one in found if one["ends_on_tonic"] is not None]
    means["tonic"] = {"share": _mean(ends), "n": len(ends)}
    return means


def _mean(values: Any) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def similarity_figure(similarity_BB: ArrayLike, title: str) -> Figure:
    """A piece's :func:`self_similarity`: dark means similar, off-diagonal stripes are repetition.

    Args:
        similarity_BB: Shape (bars, bars).
        title: Title; taken literally.
    """
    matrix = np.asarray(similarity_BB, np.float64)
    bars = max(len(matrix), 1)
    figure = new_figure(5.6, 5.0)
    axes = figure.add_subplot()
    image = axes.imshow(
        matrix if len(matrix) else np.zeros((1, 1)), cmap="magma_r", vmin=0, vmax=1,
        # Bar numbers as musicians count them; the first bar on top, as in a score.
        extent=(0.5, bars + 0.5, bars + 0.5, 0.5), interpolation="nearest",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 4, 5, 8, 10]))
        axis.set_label_text("Bar", color=INK)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, aspect=24)
    bar.set_ticks([0, 0.5, 1])
    bar.ax.tick_params(length=0, colors=FAINT, labelsize=8.5)
    bar.set_label("Cosine similarity of two bars", color=FAINT, fontsize=8.5)
    bar.outline.set_visible(False)
    small_axes(axes, title)
    return figure


def repetition_figure(
    generated: Mapping[str, Sequence[float | None]],
    real: Mapping[str, Sequence[float | None]],
    title: str,
) -> Figure:
    """Repetition over the lag in bars, generated beside real.

    Args:
        generated: ``repetition`` of the generated songs' :func:`mean_structure`.
        real: That of the real songs.
        title: Title; taken literally.
    """
    figure = new_figure(8.4, 3.5)
    panels = figure.subplots(1, 2, sharex=True)
    names = (("similarity", "Mean similarity"), ("exact", "Share of bars repeated exactly"))
    for axes, (key, label) in zip(panels, names, strict=True):
        for values, name, colour in ((real[key], "real", BLUE), (generated[key], "generated", RED)):
            heights = np.array(values, np.float64)  # None becomes NaN, a gap in the line
            lags = np.arange(1, len(heights) + 1)
            axes.plot(lags, heights, "o-", ms=3.5, lw=1.4, color=colour, label=name)
        axes.set_ylim(0, 1)
        axes.set_xlabel("Lag in bars", color=INK)
        axes.set_ylabel(label, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 8, 10]))
        axes.grid(axis="y", color=GRID, lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        small_axes(axes)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    small_axes(panels[0], title)
    return figure
