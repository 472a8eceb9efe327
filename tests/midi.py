"""Builds the MIDI files that tests need: by hand, or drawn by hypothesis.

Times are given in quarter notes, so that one piece of music can be written at any resolution::

    score = make_score([note(0, 1, 60), note(1.5, 0.5, 36, program=DRUMS)], meters=[(0, 3, 4)])
    data = to_bytes(score)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from symusic.core import NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

DRUMS = -1
TPQS = (24, 96, 120, 480, 960, 10080)
METERS = ((2, 2), (3, 4), (4, 4), (6, 8), (7, 8), (5, 16))
ODD_METERS = ((175, 4), (44, 32), (1, 1), (33, 16), (8, 16))
Quarters = int | float | Fraction


class Note(NamedTuple):
    """A note, its times in quarter notes; program -1 is the drum channel."""

    onset: Quarters
    duration: Quarters
    pitch: int
    velocity: int = 80
    program: int = 0


def note(
    onset: Quarters, duration: Quarters, pitch: int, velocity: int = 80, program: int = 0
) -> Note:
    """A note; see :class:`Note`."""
    return Note(onset, duration, pitch, velocity, program)


def make_score(
    notes: Iterable[Note],
    meters: Sequence[tuple[Quarters, int, int]] = ((0, 4, 4),),
    tempi: Sequence[tuple[Quarters, float]] = ((0, 120.0),),
    tpq: int = 480,
) -> ScoreTick:
    """A score of notes, meters (onset, numerator, denominator) and tempi (onset, qpm).

    Notes keep their order within a track; the tracks are in order of first use.
    """
    score = ScoreTick(tpq)
    for at, numerator, denominator in meters:
        score.time_signatures.append(TimeSignatureTick(_ticks(at, tpq), numerator, denominator))
    for at, qpm in tempi:
        score.tempos.append(TempoTick(_ticks(at, tpq), qpm))
    tracks: dict[int, TrackTick] = {}
    for n in notes:
        if n.program not in tracks:
            tracks[n.program] = TrackTick("", max(0, n.program), n.program == DRUMS)
        tracks[n.program].notes.append(
            NoteTick(_ticks(n.onset, tpq), _ticks(n.duration, tpq), n.pitch, n.velocity)
        )
    for track in tracks.values():
        score.tracks.append(track)
    return score


def melody(
    n_bars: int, meter: tuple[int, int] = (4, 4), program: int = 0, start: Quarters = 0
) -> list[Note]:
    """One note a beat for ``n_bars`` bars, with pitches that differ from bar to bar."""
    beat = Fraction(4, meter[1])
    return [
        note(start + (bar * meter[0] + i) * beat, beat, 48 + (bar * 5 + i * 2) % 36, 80, program)
        for bar in range(n_bars)
        for i in range(meter[0])
    ]


def to_bytes(score: ScoreTick) -> bytes:
    """The score as a MIDI file."""
    return bytes(score.dumps_midi())


def midi_file(
    events: bytes = b"", *, division: int = 480, format_: int = 0, length: int | None = None
) -> bytes:
    """A MIDI file of one track with these raw events; ``length`` is a false size of the track."""
    track = events + b"\x00\xff\x2f\x00"
    header = b"MThd" + struct.pack(">IHHH", 6, format_, 1, division)
    return header + b"MTrk" + struct.pack(">I", len(track) if length is None else length) + track


def smf(
    *tracks: bytes, format_: int = 1, n_tracks: int | None = None, division: int = 480
) -> bytes:
    """A MIDI file of these track bodies; ``n_tracks`` is a false number of them."""
    n = len(tracks) if n_tracks is None else n_tracks
    header = b"MThd" + struct.pack(">IHHH", 6, format_, n, division)
    return header + b"".join(b"MTrk" + len(t).to_bytes(4, "big") + t for t in tracks)


def _ticks(quarters: Quarters, tpq: int) -> int:
    return round(Fraction(quarters) * tpq)


@st.composite
def scores(draw: st.DrawFn, max_notes: int = 40, max_quarters: int = 48) -> ScoreTick:
    """Scores as messy as real files, in any order, up to about ``max_quarters`` long.

    Changes of meter lie on and off barlines, the first one may be late or missing, and some meters
    are in no vocabulary. Notes overlap, repeat, have no length or an absurd one, and lie on or off
    the grid, in up to 24 tracks.
    """
    tpq = draw(st.sampled_from(TPQS))
    score = ScoreTick(tpq)
    length = draw(st.integers(1, max_quarters))
    on_grid = st.integers(0, length * 12 - 1).map(lambda i: round(Fraction(i, 12) * tpq))
    anywhere = st.integers(0, length * tpq - 1)
    when = on_grid if draw(st.booleans()) else st.one_of(on_grid, anywhere)

    meters = st.sampled_from(METERS if draw(st.integers(0, 2)) else METERS + ODD_METERS)
    for at, (numerator, denominator) in _first_then_any(draw, meters, when, 4):
        score.time_signatures.append(TimeSignatureTick(at, numerator, denominator))
    tempi = st.one_of(st.sampled_from([4.0, 60.0, 120.0, 200.0, 3200.0]), st.floats(4.0, 3200.0))
    for at, qpm in _first_then_any(draw, tempi, when, 4):
        score.tempos.append(TempoTick(at, qpm))

    durations = st.one_of(
        st.sampled_from([0, 1, tpq // 8, tpq // 4, tpq // 3, tpq // 2, tpq, 4 * tpq, 963 * tpq]),
        st.integers(0, 6 * tpq),
    )
    programs = [-1, *range(0, 128, 6)] if draw(st.integers(0, 5)) == 0 else [-1, 0, 33]
    n_tracks = draw(st.integers(1, len(programs)))
    n_notes = draw(st.sampled_from([1, 2, 5, 12, max_notes]))
    row = st.tuples(
        st.integers(0, n_tracks - 1),
        when,
        durations,
        st.one_of(st.integers(58, 62), st.integers(0, 127)),
        st.integers(1, 127),
    )
    rows = draw(st.lists(row, min_size=n_notes, max_size=n_notes))
    if draw(st.integers(0, 9)) == 0:  # a dense one, from a seed: drawing each note would take long
        random = np.random.default_rng(draw(st.integers(0, 2**16)))
        rows += [
            (int(t), int(at), int(long), int(pitch), int(loud))
            for t, at, long, pitch, loud in random.integers(
                [0, 0, 0, 0, 1], [n_tracks, length * tpq, 2 * tpq, 128, 128], (8 * max_notes, 5)
            )
        ]
    for t in range(n_tracks):
        program = programs[t]
        track = TrackTick("", max(0, program), program == DRUMS)
        for which, at, duration, pitch, velocity in rows:
            if which == t:
                track.notes.append(NoteTick(at, duration, pitch, velocity))
        score.tracks.append(track)
    return score


def _first_then_any(draw, values, when, most):  # type: ignore[no-untyped-def]
    """Pairs of a tick and a value: at 0 and later, only later, or none; not in order."""
    start = draw(st.sampled_from(["at 0", "at 0", "late", "none"]))
    if start == "none":
        return []
    later = draw(st.lists(st.tuples(when, values), max_size=most))
    return later if start == "late" else [*later, (0, draw(values))]


def loudness_db(samples: np.ndarray, rate: int, window_seconds: float) -> np.ndarray:
    """RMS of both channels in windows that do not overlap, dB of full scale, shape (windows,)."""
    starts = np.arange(0, len(samples), max(1, round(window_seconds * rate)))
    power = np.add.reduceat((samples.astype(np.float64) ** 2).mean(1), starts)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(power / np.diff([*starts, len(samples)]))
