"""``tracks=melody``: the highest line of a texture, one note at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from symusic.core import ScoreTick

from midi import DRUMS, make_score, note, scores
from midigenre.errors import RejectedSongError
from midigenre.midi.clean import clean, skyline
from midigenre.midi.song import Grid, Song

GRID = Grid(beat_resolution=4, time_signatures=((4, 4), (3, 4), (2, 2), (6, 8), (5, 16)))


def line(*notes, **score):  # type: ignore[no-untyped-def]
    """(onset, duration, pitch) of the melody in quarter notes."""
    song = clean(make_score(notes, **score), GRID, tracks="melody")
    assert set(song.notes.program.tolist()) <= {0}
    n = song.notes
    columns = (n.onset / song.tpq, n.duration / song.tpq, n.pitch)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def test_the_highest_of_the_notes_that_start_together():
    assert line(note(0, 1, 60), note(0, 1, 72, program=40), note(0, 1, 67, program=20)) == [
        (0, 1, 72)
    ]


def test_drums_are_no_melody():
    assert line(note(0, 1, 60), note(0, 1, 81, program=DRUMS), note(1, 1, 40)) == [
        (0, 1, 60),
        (1, 1, 40),
    ]


def test_what_starts_below_a_held_note_is_accompaniment():
    held = note(0, 4, 72, program=73)
    chords = [note(i, 1, 60 + i) for i in range(4)]
    assert line(held, *chords, note(4, 1, 50)) == [(0, 4, 72), (4, 1, 50)]


def test_a_note_ends_where_a_higher_one_starts_and_does_not_come_back():
    # The 62 at 3 lies below the 64, which sounds until 4 in the score.
    assert line(note(0, 4, 64), note(1, 1, 72), note(3, 1, 62)) == [(0, 1, 64), (1, 1, 72)]


def test_a_repeated_pitch_starts_again():
    assert line(note(0, 4, 64), note(2, 1, 64, program=5)) == [(0, 2, 64), (2, 1, 64)]


def test_what_is_simultaneous_is_judged_on_the_grid():
    """An arpeggio of a few milliseconds, as people play chords, is a chord."""
    assert line(note(0, 1, 60), note(0.01, 1, 64), note(0.02, 1, 67)) == [(0, 1, 67)]


def test_unison_keeps_the_longest_and_the_loudest():
    notes = [note(0, 1, 60, 90), note(0, 2, 60, 40, program=8)]
    song = clean(make_score(notes), GRID, tracks="melody")
    assert (song.notes.duration.tolist(), song.notes.velocity.tolist()) == ([2 * song.tpq], [90])


def test_the_song_ends_with_the_bar_of_the_last_melody_note():
    song = clean(make_score([note(0, 9, 72), note(8, 1, 60)]), GRID, tracks="melody")
    assert (len(song.notes), song.n_bars) == (1, 1)


def test_drums_alone_are_refused():
    with pytest.raises(RejectedSongError, match=r"empty: 1 tracks, none with a pitched note"):
        clean(make_score([note(0, 1, 36, program=DRUMS)]), GRID, tracks="melody")


def test_no_notes():
    none = np.zeros(0, np.int64)
    assert skyline(none, none, none).tolist() == []


def as_defined(song: Song) -> list[tuple[int, int, int, int]]:
    """The line by its definition, note by note: (onset, duration, pitch, velocity)."""
    pitched = song.notes.select(song.notes.program != DRUMS)
    rows = list(zip(*(c.tolist() for c in pitched.columns().values()), strict=True))
    found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for onset, duration, pitch, velocity, _ in rows:
        if not any(o <= onset < o + d and p > pitch for o, d, p, _, _ in rows):
            found[onset, pitch].append((duration, velocity))
    after = [*(onset for onset, _ in sorted(found)), 10**9][1:]
    line = []
    for ((onset, pitch), same), following in zip(sorted(found.items()), after, strict=True):
        bar = bisect_right(song.bar_ticks.tolist(), onset) - 1
        step = GRID.step_ticks(tuple(song.meters[bar].tolist()))
        room = (following - onset) // step * step
        line.append((onset, min(max(d for d, _ in same), room), pitch, max(v for _, v in same)))
    return line


def test_a_note_cut_in_another_meter_is_whole_steps_long():
    """4/4 has sixteenths and 5/16 has 64ths: the second note starts off the grid of the first."""
    meters = [(0, 4, 4), (4, 5, 16)]
    assert line(note(3.5, 2, 60), note(4 + 3 / 16, 1, 72), meters=meters) == [
        (3.5, 0.5, 60),
        (4 + 3 / 16, 1, 72),
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(scores())
def test_the_melody_is_monophonic_and_the_top_of_the_music(score: ScoreTick) -> None:
    whole = clean(score, GRID)
    if not (whole.notes.program != DRUMS).any():
        with pytest.raises(RejectedSongError, match="empty"):
            clean(score, GRID, tracks="melody")
        return
    song = clean(score, GRID, tracks="melody")
    notes = song.notes
    assert (np.diff(notes.onset) > 0).all()
    assert ((notes.onset + notes.duration)[:-1] <= notes.onset[1:]).all()
    assert (notes.duration > 0).all()
    assert set(notes.program.tolist()) == {0}
    found = (notes.onset, notes.duration, notes.pitch, notes.velocity)
    assert list(zip(*(c.tolist() for c in found), strict=True)) == as_defined(whole)
    # The same bars, up to the last of the melody.
    assert song.bar_ticks[-2] <= notes.onset[-1] < song.bar_ticks[-1]
    assert song.bar_ticks.tolist() == whole.bar_ticks[: song.n_bars + 1].tolist()
    assert song.meters.tolist() == whole.meters[: song.n_bars].tolist()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(scores(max_notes=20))
def test_the_melody_of_a_melody_is_itself(score: ScoreTick) -> None:
    try:
        song = clean(score, GRID, tracks="melody")
    except RejectedSongError:
        return
    again = clean(song.to_score(), GRID, tracks="melody")
    for name, column in song.notes.columns().items():
        np.testing.assert_array_equal(getattr(again.notes, name), column)
