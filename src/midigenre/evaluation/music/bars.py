"""What a bar holds, as a number that can be compared, and the time that a song spans."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Floats, Ints, Keys, Longs
from midigenre.midi.song import DRUMS, Song

COMMON_TPQ = 40_320
"""Ticks per quarter note in which songs of different grids are compared: 2^7 · 3^2 · 5 · 7."""


def common_ticks(ticks: NDArray[Any], tpq: int) -> Longs:
    """Ticks of a song in those of :data:`COMMON_TPQ`, rounded down."""
    scaled: Longs = np.asarray(ticks, np.int64) * COMMON_TPQ // tpq
    return scaled


def bar_of_notes(song: Song) -> Longs:
    """Index of the bar in which each note starts, shape (notes,)."""
    return np.searchsorted(song.bar_ticks, song.notes.onset, side="right").astype(np.int64) - 1


def note_ends(song: Song) -> Ints:
    """End of each note, cut at the last barline, shape (notes,).

    Every measure of time looks at the bars and at nothing after them: a phrase keeps its last
    notes whole, and how far they hang over says nothing about the phrase.
    """
    ends: Ints = np.minimum(song.notes.onset + song.notes.duration, song.bar_ticks[-1])
    return ends


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
    edges: Floats = np.r_[
        np.repeat(song.bar_ticks[:-1], beats) + within * length, song.bar_ticks[-1]
    ]
    return edges


def is_melodic(song: Song) -> NDArray[np.bool_]:
    """Which notes have a pitch, that is, are not drums, shape (notes,)."""
    return np.asarray(song.notes.program != DRUMS)


def bar_keys(song: Song) -> tuple[Keys, NDArray[np.bool_]]:
    """A 64-bit number for what each bar holds, and which bars hold a note, each of shape (bars,).

    Equal contents give equal numbers in any song: the meter and, of each note that starts in the
    bar, position, duration, program and pitch. Velocity and tempo do not count. Other contents
    give other numbers but for a chance of 2^-64 a pair (BLAKE2b).
    """
    notes, bar = song.notes, bar_of_notes(song)
    start = np.asarray(song.bar_ticks, np.int64)[np.clip(bar, 0, max(song.n_bars - 1, 0))]
    rows = np.stack(
        [
            common_ticks(notes.onset - start, song.tpq),
            common_ticks(notes.duration, song.tpq),
            notes.program.astype(np.int64),
            notes.pitch.astype(np.int64),
        ],
        axis=1,
    )
    # Not left to the table's order, which breaks ties by ticks of the song's own grid.
    rows = rows[np.lexsort((rows[:, 1], rows[:, 3], rows[:, 2], rows[:, 0], bar))]
    edges = np.searchsorted(bar, np.arange(song.n_bars + 1))
    meters = np.asarray(song.meters, np.int64)
    keys = [
        blake2b(meters[b].tobytes() + rows[edges[b] : edges[b + 1]].tobytes(), digest_size=8)
        for b in range(song.n_bars)
    ]
    numbers = np.frombuffer(b"".join(key.digest() for key in keys), np.uint64)
    return numbers.copy(), np.diff(edges) > 0
