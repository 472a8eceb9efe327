"""Descriptors against answers by hand and against muspy."""

import math

import muspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_songs import DRUMS, made, moved, songs

from midigenre.evaluation.music.descriptors import (
    HISTOGRAMS,
    SCALARS,
    beat_edges,
    describe,
    describe_all,
)

SHARES = ("scale_consistency", "groove_consistency", "empty_beat_rate", "polyphony_rate",
          "drum_share")  # fmt: skip


def to_muspy(song, shorten=0):
    """The song for muspy, notes cut at the last barline.

    A note that ends on a line also fills what comes after it for muspy; one that is a tick shorter
    fills what it fills here.
    """
    end = int(song.bar_ticks[-1])
    tracks = []
    for program in np.unique(song.notes.program):
        rows = song.notes.select(song.notes.program == program)
        columns = (rows.onset, rows.duration, rows.pitch, rows.velocity)
        notes = [
            muspy.Note(time=t, pitch=p, duration=min(t + d, end) - t - shorten, velocity=v)
            for t, d, p, v in zip(*(c.tolist() for c in columns), strict=True)
        ]
        drums = bool(program == DRUMS)
        tracks.append(muspy.Track(0 if drums else int(program), drums, notes=notes))
    return muspy.Music(resolution=song.tpq, tracks=tracks)


def to_the_end(song):
    """The song and a drum that lasts to the last barline: muspy ends a song with its last note."""
    notes, end = song.notes, int(song.bar_ticks[-1])
    last = [((end - song.tpq) / song.tpq, 1, 36, 70, DRUMS)]
    columns = zip(notes.onset / song.tpq, notes.duration / song.tpq, notes.pitch, notes.velocity,
                  notes.program, strict=True)  # fmt: skip
    return made([*columns, *last], meters=[tuple(m) for m in song.meters.tolist()])


def close(ours, theirs):
    if ours is None:
        return math.isnan(theirs)
    return abs(ours - theirs) < 1e-9


@settings(max_examples=150, deadline=None)
@given(songs(meters=((4, 4), (3, 4))))
def test_agrees_with_muspy(song):
    song = to_the_end(song)
    ours, music = describe(song).scalars, to_muspy(song)
    assert close(ours["pitch_class_entropy"], muspy.pitch_class_entropy(music))
    assert close(ours["scale_consistency"], muspy.scale_consistency(music))
    assert close(ours["polyphony"], muspy.polyphony(music))
    assert close(ours["polyphony_rate"], muspy.polyphony_rate(music))
    assert close(ours["empty_beat_rate"], muspy.empty_beat_rate(to_muspy(song, shorten=1)))
    if (song.notes.program != DRUMS).any():
        assert ours["pitch_range"] == muspy.pitch_range(music)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([(4, 4), (3, 4), (6, 8)]).flatmap(lambda m: songs(meters=(m,))))
def test_groove_agrees_with_muspy(song):
    song = to_the_end(song)
    theirs = muspy.groove_consistency(to_muspy(song, shorten=1), int(song.bar_ticks[1]))
    assert close(describe(song).scalars["groove_consistency"], theirs)


def test_a_chord_by_hand():
    chord = [(0, 2, 60, 60), (0, 2, 64, 80), (0, 2, 67, 100)]
    found = describe(made([*chord, (2, 1, 72, 80)])).scalars
    assert found["pitch_class_entropy"] == pytest.approx(1.5)  # C twice, E and G once
    assert found["scale_consistency"] == 1
    assert found["empty_beat_rate"] == 0.25
    assert found["polyphony"] == pytest.approx((3 * 2 + 1) / 3)
    assert found["polyphony_rate"] == 0.5
    assert found["notes_per_bar"] == 4
    assert found["notes_per_beat"] == 1
    assert found["pitch_range"] == 12
    assert found["velocity_mean"] == 80
    assert found["velocity_std"] == pytest.approx(math.sqrt(200))
    assert (found["n_programs"], found["drum_share"]) == (1, 0)
    assert found["groove_consistency"] is None  # one bar


def test_unison_of_two_programs_is_one_pitch():
    found = describe(made([(0, 4, 60, 80, 0), (1, 2, 60, 80, 40)])).scalars
    assert found["polyphony"] == 1
    assert found["n_programs"] == 2


def test_drums_have_no_pitch():
    kit = [(b, 0.5, p, 90, DRUMS) for b in range(8) for p in (36, 42)]
    found = describe(made(kit))
    pitched = ("pitch_class_entropy", "scale_consistency", "polyphony", "pitch_range")
    assert all(found.scalars[name] is None for name in pitched)
    assert found.scalars["polyphony_rate"] == 0
    assert found.scalars["drum_share"] == 1
    assert found.scalars["n_programs"] == 1
    assert found.scalars["groove_consistency"] == 1
    assert not any(map(sum, found.histograms.values()))


def test_groove_compares_only_bars_of_one_meter():
    waltz, common = ((3, 4), (3, 4)), ((4, 4),)
    rows = [(0, 1, 60), (3, 1, 60), (6, 1, 60), (8, 1, 60)]
    found = describe(made(rows, meters=waltz + common))
    assert found.scalars["groove_consistency"] == 1  # the bar of 4/4 has no neighbour of its kind
    rows = [(0, 1, 60), (4, 1, 60), (5, 1, 60)]
    assert describe(made(rows)).scalars["groove_consistency"] == pytest.approx(1 - 1 / 64)


def test_beats_are_of_the_meter():
    song = made([(0, 0.5, 60)], meters=((6, 8), (2, 2), (3, 4)))
    assert beat_edges(song).tolist() == [0, 8, 16, 24, 32, 40, 48, 80, 112, 128, 144, 160]
    assert describe(song).scalars["empty_beat_rate"] == pytest.approx(10 / 11)
    bins = HISTOGRAMS["duration"]
    eighth = describe(song).histograms["duration"]
    assert eighth[bins.index("1")] == 1  # an eighth note is one beat of 6/8


def test_durations_and_intervals_by_hand():
    rows = [(0, 0.25, 60), (0.25, 0.75, 62), (1, 4, 50), (1, 16, 67), (5, 1, 90)]
    rows += [(0, 1, 30, 80, 33), (5, 1, 29, 80, 33), (2, 1, 36, 80, DRUMS)]
    found = describe(made(rows)).histograms
    durations = dict(zip(HISTOGRAMS["duration"], found["duration"], strict=True))
    expected = {"1/4": 1, "3/4": 1, "1": 3, "4": 1, "16": 1}
    assert {name: n for name, n in durations.items() if n} == expected
    steps = dict(zip(HISTOGRAMS["interval"], found["interval"], strict=True))
    # 60 62 67 90 above, 30 29 below; 23 semitones count as an octave or more.
    assert {name: n for name, n in steps.items() if n} == {"+2": 1, "+5": 1, "+12": 1, "-1": 1}


def test_a_song_without_notes():
    found = describe(made([], meters=((4, 4), (4, 4))))
    assert found.scalars["empty_beat_rate"] == 1
    assert found.scalars["notes_per_bar"] == 0
    assert found.scalars["velocity_mean"] is None
    assert set(found.scalars) == set(SCALARS)
    nothing = describe(made([], meters=()))
    assert set(nothing.scalars.values()) == {None}


@settings(max_examples=60, deadline=None)
@given(songs(), st.integers(-24, 24), st.sampled_from([2, 3, 5]))
def test_key_and_grid_do_not_matter(song, semitones, times):
    plain, other = describe(song), describe(moved(song, semitones, times))
    assert plain.histograms == other.histograms
    for name in SCALARS:
        assert plain.scalars[name] == pytest.approx(other.scalars[name]), name


@settings(max_examples=60, deadline=None)
@given(songs())
def test_ranges(song):
    found = describe(song).scalars
    assert all(found[name] is None or 0 <= found[name] <= 1 for name in SHARES)
    assert found["pitch_class_entropy"] is None or 0 <= found["pitch_class_entropy"] <= math.log2(
        12
    )
    assert found["polyphony"] is None or found["polyphony"] >= 1


def test_the_table_has_one_row_a_song():
    table = describe_all([made([(0, 1, 60)]), made([(0, 1, 36, 90, DRUMS)])])
    assert len(table) == 2
    assert table.scalars["pitch_range"][0] == 0
    assert np.isnan(table.scalars["pitch_range"][1])
    assert table.histograms["duration"][0].sum() == 1
    assert np.isnan(table.histograms["duration"][1]).all()
    assert len(describe_all([])) == 0
