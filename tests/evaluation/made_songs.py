"""Songs for the tests of generated music: by hand, or drawn by hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from midigenre.midi.song import NoteTable, Song

DRUMS = -1


def made(rows, meters=((4, 4),), tpq=16, tempo=120.0):
    """A song of (onset, duration, pitch[, velocity[, program]]), times in quarter notes.

    The meters are those of the bars; the last one goes on to the bar of the last onset.
    """
    rows = [(*row, *(80, 0)[len(row) - 3 :]) for row in rows]
    columns = np.array(rows, np.float64).reshape(-1, 5).T
    onset, duration = (np.round(column * tpq).astype(int) for column in columns[:2])
    meters, ends = list(meters), [0]
    for numerator, denominator in meters:
        ends.append(ends[-1] + numerator * tpq * 4 // denominator)
    while len(onset) and ends[-1] <= onset.max():
        meters.append(meters[-1])
        ends.append(ends[-1] + meters[-1][0] * tpq * 4 // meters[-1][1])
    return Song(
        notes=NoteTable.of(onset, duration, *columns[2:].astype(int)),
        tpq=tpq,
        bar_ticks=np.array(ends, np.int32),
        meters=np.array(meters, np.int32).reshape(-1, 2),
        tempo_ticks=np.zeros(1, np.int32),
        tempo_qpm=np.array([tempo]),
    )


def moved(song, semitones=0, times=1):
    """The song with its pitched notes transposed and with a finer grid."""
    n = song.notes
    pitch = np.where(n.program == DRUMS, n.pitch, n.pitch + semitones)
    return Song(
        notes=NoteTable.of(n.onset * times, n.duration * times, pitch, n.velocity, n.program),
        tpq=song.tpq * times,
        bar_ticks=(song.bar_ticks * times).astype(np.int32),
        meters=song.meters,
        tempo_ticks=song.tempo_ticks * times,
        tempo_qpm=song.tempo_qpm,
    )


def random_song(rng, n_bars=8, notes_per_bar=6, low=48, high=84, programs=(0, 33), beat=4):
    """Notes at random, in 4/4; no bar is empty."""
    rows = []
    for bar in range(n_bars):
        for _ in range(notes_per_bar):
            at = bar * 4 + rng.integers(0, 4 * beat) / beat
            length = rng.integers(1, 2 * beat) / beat
            program = int(rng.choice(programs))
            rows.append((at, length, rng.integers(low, high), rng.integers(40, 110), program))
    return made(rows, meters=((4, 4),) * n_bars)


@st.composite
def songs(draw, min_notes=0, meters=((4, 4), (3, 4), (6, 8)), max_bars=5, programs=(0, 40, DRUMS)):
    """Any small song, 24 semitones away from both ends of the keyboard."""
    bars = draw(st.lists(st.sampled_from(meters), min_size=1, max_size=max_bars))
    length = sum(quarters(meter) for meter in bars)
    note = st.tuples(
        st.integers(0, int(length * 4) - 1).map(lambda x: x / 4),
        st.integers(1, 20).map(lambda x: x / 4),
        st.integers(24, 103),
        st.integers(1, 127),
        st.sampled_from(programs),
    )
    rows = draw(
        st.lists(note, min_size=min_notes, max_size=24, unique_by=lambda r: (r[0], *r[2::2]))
    )
    return made(rows, meters=bars)


def quarters(meter):
    return meter[0] * 4 / meter[1]
