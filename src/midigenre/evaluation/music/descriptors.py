"""The content of bars, and one number or one histogram per song to compare music by.

Descriptors follow muspy 0.5 (Dong et al. 2020, "MusPy: A Toolkit for Symbolic Music Generation",
section 3.5), with which the tests compare them; it takes them from Mogren 2016 ("C-RNN-GAN"), Dong
et al. 2018 ("MuseGAN") and Wu and Yang 2020 ("The Jazz Transformer on the Front Line", arXiv
2008.01307). Where ours differ, on purpose:

* Time is that of the song's bars. muspy ends a song where its last note does and adds a beat (or a
  bar) where that is just on a line; it also lets a note that ends on a line fill the beat after it.
* A beat is the meter's denominator; muspy's is always a quarter note. In x/4 they are the same.
* Groove is read on a fixed grid, so that it does not depend on a song's ticks, and only between
  bars of the same meter; muspy knows one meter per song.
* What is not defined (entropy without a pitched note, say) is None; muspy returns NaN, or 0 or -127
  for the pitch range.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Bools, Floats, Ints, Keys, Longs
from midigenre.evaluation.metrics import ratio
from midigenre.midi.song import DRUMS, Song

SCALARS: dict[str, str] = {
    "pitch_class_entropy": "bits",
    "scale_consistency": "share of notes",
    "groove_consistency": "share of positions",
    "empty_beat_rate": "share of beats",
    "polyphony": "pitches",
    "polyphony_rate": "share of time",
    "notes_per_bar": "notes",
    "notes_per_beat": "notes",
    "pitch_range": "semitones",
    "velocity_mean": "MIDI velocity",
    "velocity_std": "MIDI velocity",
    "n_programs": "programs",
    "drum_share": "share of notes",
}
"""Descriptors that are one number per song, and their units."""

DURATION_BINS: dict[str, float] = {
    "1/8": 3 / 16, "1/4": 3 / 8, "1/2": 5 / 8, "3/4": 7 / 8, "1": 1.25, "1 1/2": 1.75, "2": 2.5,
    "3": 3.5, "4": 5.0, "6": 7.0, "8": 12.0, "16": np.inf,
}  # fmt: skip
"""Bins of durations in beats: the name is a value inside, the number the upper edge (excluded)."""

MAX_INTERVAL = 12
"""Larger intervals count as this one: the outer bins are "an octave or more"."""

HISTOGRAMS: dict[str, tuple[str, ...]] = {
    "duration": tuple(DURATION_BINS),
    "interval": tuple(f"{i:+d}" if i else "0" for i in range(-MAX_INTERVAL, MAX_INTERVAL + 1)),
}
"""Descriptors that are one histogram per song, and the names of their bins."""

GROOVE_POSITIONS = 16  # of a quarter note: 64 in a bar of 4/4, as in Wu and Yang 2020
POLYPHONIC_ABOVE = 2  # pitches, above which time counts in the polyphony rate (MuseGAN, 5.2)
COMMON_TPQ = 40_320
"""Ticks per quarter note in which songs of different grids are compared: 2^7 · 3^2 · 5 · 7."""

_MAJOR = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1], np.int64)


def common_ticks(ticks: NDArray[Any], tpq: int) -> Longs:
    """Ticks of a song in those of :data:`COMMON_TPQ`, rounded down."""
    return np.asarray(np.asarray(ticks, np.int64) * COMMON_TPQ // tpq)


def bar_of_notes(song: Song) -> Longs:
    """Index of the bar in which each note starts, shape (notes,)."""
    return np.searchsorted(song.bar_ticks, song.notes.onset, side="right").astype(np.int64) - 1


def note_ends(song: Song) -> Ints:
    """End of each note, cut at the last barline, shape (notes,).

    Every measure of time looks at the bars and at nothing after them: a phrase keeps its last
    notes whole, and how far they extend says nothing about the phrase.
    """
    return np.asarray(np.minimum(song.notes.onset + song.notes.duration, song.bar_ticks[-1]))


def beat_edges(song: Song) -> Floats:
    """Start of each beat and, last, the end of the last one, in ticks, shape (beats + 1,).

    A beat is the meter's denominator, as everywhere in the project.
    """
    if not song.n_bars:
        return np.asarray(song.bar_ticks[:1], np.float64)
    beats = np.maximum(song.meters[:, 0].astype(np.int64), 1)
    first = np.repeat(np.cumsum(beats) - beats, beats)
    within = (np.arange(beats.sum()) - first) / np.repeat(beats, beats)
    length = np.repeat(np.diff(song.bar_ticks), beats)
    starts = np.repeat(song.bar_ticks[:-1], beats) + within * length
    return np.append(starts, song.bar_ticks[-1]).astype(np.float64)


def is_melodic(song: Song) -> Bools:
    """Which notes have a pitch, that is, are not drums, shape (notes,)."""
    return np.asarray(song.notes.program != DRUMS)


def bar_keys(song: Song) -> tuple[Keys, Bools]:
    """A 64-bit number for what each bar holds, and which bars hold a note, each of shape (bars,).

    Equal contents give equal numbers in any song: the meter and, of each note that starts in the
    bar, position, duration, program and pitch. Velocity and tempo do not count. Different contents
    give different numbers except with probability 2^-64 per pair (BLAKE2b).
    """
    notes, bar = song.notes, bar_of_notes(song)
    since = notes.onset - song.bar_ticks[bar]
    position, length = (common_ticks(t, song.tpq) for t in (since, notes.duration))
    rows = np.stack([position, length, notes.program, notes.pitch], axis=1).astype(np.int64)
    # Not left to the table's order, which breaks ties by ticks of the song's own grid.
    rows = rows[np.lexsort((rows[:, 1], rows[:, 3], rows[:, 2], rows[:, 0], bar))]
    edges = np.searchsorted(bar, np.arange(song.n_bars + 1))
    contents = zip(song.meters.astype(np.int64), np.split(rows, edges[1:-1]), strict=False)
    keys = [
        blake2b(meter.tobytes() + held.tobytes(), digest_size=8).digest()
        for meter, held in contents
    ]
    return np.frombuffer(b"".join(keys), np.uint64).copy(), np.diff(edges) > 0


@dataclass(frozen=True)
class Descriptors:
    """What one song is described by.

    Attributes:
        scalars: A number for each of :data:`SCALARS`; None where it is not defined.
        histograms: Counts for each of :data:`HISTOGRAMS`.
    """

    scalars: dict[str, float | None]
    histograms: dict[str, list[int]]


@dataclass(frozen=True)
class DescriptorTable:
    """Descriptors of S songs as arrays.

    Attributes:
        scalars: For each of :data:`SCALARS` float64 of shape (S,), NaN where not defined.
        histograms: For each of :data:`HISTOGRAMS` shares, float64 of shape (S, bins) with rows
            that add up to 1, or are NaN where the song has nothing to count.
    """

    scalars: dict[str, Floats]
    histograms: dict[str, Floats]

    def __len__(self) -> int:
        return len(next(iter(self.scalars.values())))


def describe(song: Song) -> Descriptors:
    """All descriptors of a song.

    Drums count in groove, empty beats, density, velocity and programs (where the drum kit is one),
    and nowhere else.

    * ``pitch_class_entropy``: Shannon entropy of the histogram of pitch classes over notes, in
      bits, 0 to log2 12 (Wu and Yang 2020, section 4.1, there of each bar; here of the song).
    * ``scale_consistency``: largest share of notes within one of the 12 major scales (Mogren 2016);
      the 12 natural minor scales are the same sets.
    * ``groove_consistency``: 1 minus the mean share of positions at which one of two neighbouring
      bars has an onset and the other has not (Wu and Yang 2020, section 4.3).
    * ``empty_beat_rate``: share of beats in which nothing sounds (Dong et al. 2018).
    * ``polyphony``: mean number of pitches that sound, over the time in which any does.
    * ``polyphony_rate``: share of the time in which more than two pitches sound.
    * ``notes_per_bar``, ``notes_per_beat``: notes, over the song's bars and beats.
    * ``pitch_range``: highest minus lowest pitch.
    * ``velocity_mean``, ``velocity_std``: over notes (population standard deviation).
    * ``n_programs``: programs that play. ``drum_share``: share of notes that are drums.
    * ``duration``: notes by their duration in beats of the meter in which they start, whole, even
      past the last barline.
    * ``interval``: steps of the upper line of each program: from the highest note of an onset to
      the highest note of the program's next onset, in semitones.
    """
    notes, melodic = song.notes, is_melodic(song)
    classes = np.bincount(notes.pitch[melodic] % 12, minlength=12)
    n, beats = len(notes), beat_edges(song)
    scalars: dict[str, float | None] = dict.fromkeys(SCALARS)
    if len(beats) > 1:
        scalars["empty_beat_rate"] = _empty_beats(song, beats)
        scalars["groove_consistency"] = _groove(song)
        scalars["polyphony"], scalars["polyphony_rate"] = _polyphony(song, melodic)
        scalars["notes_per_bar"], scalars["notes_per_beat"] = n / song.n_bars, n / (len(beats) - 1)
    if classes.any():
        share = classes[classes > 0] / classes.sum()
        # max: the entropy of one class is -0.0 otherwise.
        scalars["pitch_class_entropy"] = max(0.0, float(-(share * np.log2(share)).sum()))
        fits = [int(classes @ np.roll(_MAJOR, root)) for root in range(12)]
        scalars["scale_consistency"] = max(fits) / int(classes.sum())
        scalars["pitch_range"] = float(np.ptp(notes.pitch[melodic]))
    if n:
        velocity = notes.velocity.astype(np.float64)
        scalars["velocity_mean"] = float(velocity.mean())
        scalars["velocity_std"] = float(velocity.std())
        scalars["n_programs"] = float(len(np.unique(notes.program)))
        scalars["drum_share"] = float((~melodic).mean())
    counts = {"duration": _durations(song, melodic), "interval": _intervals(song, melodic)}
    return Descriptors(scalars, {name: count.tolist() for name, count in counts.items()})


def describe_all(songs: Iterable[Song]) -> DescriptorTable:
    """Descriptors of songs, one row per song."""
    found = [describe(song) for song in songs]
    # float64 turns None into NaN.
    scalars = {name: np.array([one.scalars[name] for one in found], np.float64) for name in SCALARS}
    histograms = {}
    for name, bins in HISTOGRAMS.items():
        counts = np.array([one.histograms[name] for one in found], np.float64)
        counts = counts.reshape(len(found), len(bins))
        histograms[name] = ratio(counts, counts.sum(1, keepdims=True))
    return DescriptorTable(scalars, histograms)


def _empty_beats(song: Song, edges: Floats) -> float:
    first = np.searchsorted(edges, song.notes.onset, side="right") - 1
    last = np.searchsorted(edges, note_ends(song), side="left")
    # A note of no length (there is none in a cleaned song) still fills the beat of its onset.
    change = np.zeros(len(edges) + 1, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, np.maximum(last, first + 1), -1)
    return float((np.cumsum(change)[: len(edges) - 1] == 0).mean())


def _groove(song: Song) -> float | None:
    """Mean agreement of neighbouring bars of one meter; None without such a pair."""
    bar = bar_of_notes(song)
    position = (song.notes.onset - song.bar_ticks[bar]).astype(np.int64) * GROOVE_POSITIONS
    position //= song.tpq
    width = np.maximum(np.diff(song.bar_ticks).astype(np.int64) * GROOVE_POSITIONS // song.tpq, 1)
    hit = np.zeros((song.n_bars, int(width.max())), bool)
    hit[bar, np.minimum(position, width[bar] - 1)] = True
    alike = (song.meters[1:] == song.meters[:-1]).all(axis=1)
    if not alike.any():
        return None
    # One division at the end, weighted by positions: rounds as muspy does where bars are equal.
    differ = int((hit[1:] != hit[:-1])[alike].sum())
    return 1 - differ / int(width[:-1][alike].sum())


def _polyphony(song: Song, melodic: Bools) -> tuple[float | None, float]:
    """Mean pitches over the time with any, and share of the time with more than two."""
    span = int(song.bar_ticks[-1] - song.bar_ticks[0])
    start = song.notes.onset[melodic].astype(np.int64)
    end = note_ends(song)[melodic].astype(np.int64)
    pitch = song.notes.pitch[melodic].astype(np.int64)
    # Notes of one pitch that overlap (two programs, say) are one: each pitch has its own stretch of
    # a long line, on which the furthest end so far says where a new note begins.
    order = np.lexsort((start, pitch))
    offset = pitch[order] * (int(song.bar_ticks[-1]) + 1)
    start, end = start[order] + offset, end[order] + offset
    reach = np.r_[-1, np.maximum.accumulate(end)[:-1]] if len(end) else end
    start = np.maximum(start, reach)
    sounds = start < end
    start, end = (start - offset)[sounds], (end - offset)[sounds]
    ticks = np.concatenate([start, end])
    step = np.repeat([1, -1], len(start))
    order = np.argsort(ticks, kind="stable")
    pitches = np.cumsum(step[order])[:-1]
    lasts = np.diff(ticks[order])
    sounding = int(lasts[pitches > 0].sum())
    mean = float((pitches * lasts).sum() / sounding) if sounding else None
    return mean, float(lasts[pitches > POLYPHONIC_ABOVE].sum() / span)


def _durations(song: Song, melodic: Bools) -> Longs:
    bar = bar_of_notes(song)[melodic]
    beats = song.notes.duration[melodic] * song.meters[bar, 1] / (4 * song.tpq)
    edges = list(DURATION_BINS.values())[:-1]
    return np.bincount(np.digitize(beats, edges), minlength=len(DURATION_BINS))


def _intervals(song: Song, melodic: Bools) -> Longs:
    onset, pitch, program = (
        column[melodic] for column in (song.notes.onset, song.notes.pitch, song.notes.program)
    )
    order = np.lexsort((pitch, onset, program))
    onset, pitch, program = onset[order], pitch[order], program[order]
    # The last of an onset is its highest.
    top = np.ones(len(onset), bool)
    top[:-1] = (np.diff(onset) != 0) | (np.diff(program) != 0)
    pitch, program = pitch[top], program[top]
    step = np.diff(pitch)[np.diff(program) == 0]
    step = np.clip(step, -MAX_INTERVAL, MAX_INTERVAL) + MAX_INTERVAL
    return np.bincount(step, minlength=2 * MAX_INTERVAL + 1)
