"""Planted copies are found, with their song; brute force agrees."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_songs import DRUMS, made, moved, random_song, songs

from midigenre.errors import UserError
from midigenre.evaluation.music import novelty as module
from midigenre.evaluation.music.novelty import TrainingMusic, novelty, novelty_report


def rows_of(song):
    n = song.notes
    columns = (n.onset / song.tpq, n.duration / song.tpq, n.pitch, n.velocity, n.program)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def planted(source, first, n_bars, into, at):
    """``into`` with ``n_bars`` bars of ``source`` from bar ``first`` in the place of its own."""
    own = [row for row in rows_of(into) if not 4 * at <= row[0] < 4 * (at + n_bars)]
    copy = rows_of(source.bars(first, first + n_bars))
    copied = [(row[0] + 4 * at, *row[1:]) for row in copy]
    return made(own + copied, meters=((4, 4),) * max(into.n_bars, at + n_bars))


def library(n=40, seed=0, **more):
    rng = np.random.default_rng(seed)
    pieces = [random_song(rng, n_bars=24, **more) for _ in range(n)]
    return pieces, [f"song_{i}" for i in range(n)]


def test_a_planted_copy_is_found():
    pieces, names = library()
    training = TrainingMusic(pieces, names)
    fresh = random_song(np.random.default_rng(99), n_bars=16)
    nine, eight = (planted(pieces[17], 3, n, fresh, 5) for n in (9, 8))
    bars = training.bar_runs([fresh, nine, eight])
    assert [run.length for run in bars] == [0, 9, 8]
    assert (bars[1].song, bars[1].sample_bar, bars[1].song_bar) == ("song_17", 5, 3)
    assert (bars[1].of, bars[1].different) == (16, 9)
    assert (bars[0].song, bars[0].sample_bar) == (None, None)

    notes = training.note_runs([fresh, nine])
    inside = pieces[17].bars(3, 12).notes
    distinct = len({(t, p) for t, p in zip(inside.onset, inside.pitch, strict=True)})
    assert distinct <= notes[1].length <= distinct + 2  # its neighbours may fit by chance
    assert notes[1].song == "song_17"
    assert abs(notes[1].sample_bar - 5) <= 1
    assert notes[0].length < 5

    found = novelty([fresh, nine, eight], training)
    assert found["copied"] == {"n": 1, "share": pytest.approx(1 / 3)}
    assert found["bars"]["max"] == 9
    assert found["bars"]["median"] == 8
    assert [run["length"] for run in found["bars"]["samples"]] == [0, 9, 8]


def test_the_whole_training_song_is_found():
    pieces, names = library(10)
    training = TrainingMusic(iter(pieces), names)  # a generator will do
    for run, name, piece in zip(training.bar_runs(pieces), names, pieces, strict=True):
        assert (run.length, run.of, run.song, run.sample_bar, run.song_bar) == (24, 24, name, 0, 0)
        assert piece.n_bars == 24
    for run, name in zip(training.note_runs(pieces), names, strict=True):
        assert run.length == run.of
        assert (run.song, run.song_bar) == (name, 0)


def test_a_copy_in_another_key_is_none():
    pieces, names = library()
    copy = moved(pieces[3].bars(2, 14), 5)
    training = TrainingMusic(pieces, names)
    assert training.note_runs([copy])[0].length < 5
    run = training.note_runs([moved(copy, -5)])[0]
    assert (run.length, run.song, run.song_bar) == (run.of, "song_3", 2)


def test_grid_velocity_and_doubling_do_not_matter():
    pieces, names = library(5)
    training = TrainingMusic(pieces, names)
    doubled = [(*row[:3], 30, 70) for row in rows_of(pieces[2])]
    drums = [(beat, 1, 36, 90, DRUMS) for beat in range(96)]
    copy = moved(made(rows_of(pieces[2]) + doubled + drums), times=3)
    run = training.note_runs([copy])[0]
    assert (run.length, run.song) == (run.of, "song_2")
    assert training.bar_runs([copy])[0].length == 0
    softer = made([(*row[:3], 1, row[4]) for row in rows_of(pieces[2])])
    assert training.bar_runs([moved(softer, times=5)])[0].length == softer.n_bars


def test_silence_is_no_copy():
    pause = ((4, 4),) * 20
    one, two = made([(0, 1, 60), (76, 1, 62)], pause), made([(0, 1, 40), (76, 1, 41)], pause)
    training = TrainingMusic([one], ["one"])
    assert training.bar_runs([two])[0].length == 0
    assert training.bar_runs([one])[0].length == 1
    # Nor is the silence of one sample that of another, or of a song with its number.
    assert [run.length for run in training.bar_runs([two, two, one])] == [0, 0, 1]


def test_one_bar_over_and_over_says_so():
    loop = made([(4 * bar + beat, 1, 36, 90, DRUMS) for bar in range(12) for beat in range(4)])
    run = TrainingMusic([loop], ["loop"]).bar_runs([loop.bars(0, 10)])[0]
    assert (run.length, run.different) == (10, 1)


def test_runs_do_not_cross_songs():
    whole = made([(beat, 1, 60 + beat) for beat in range(16)])
    halves = [whole.bars(0, 2), whole.bars(2, 4)]
    training = TrainingMusic(halves, ["first", "second"])
    assert training.note_runs([whole])[0].length == 8
    assert training.bar_runs([whole])[0].length == 2


def line_of(song):
    """What the module calls a song's line, as plain tuples: one for each step."""
    chosen = song.notes.program != DRUMS
    notes = sorted(
        {
            (int(t), int(p))
            for t, p in zip(song.notes.onset[chosen], song.notes.pitch[chosen], strict=True)
        }
    )
    return [(p, q, u - t) for (t, p), (u, q) in pairwise(notes)]


def longest_common(a, b):
    best, row = 0, [0] * (len(b) + 1)
    for x in a:
        row = [0, *(row[j] + 1 if x == y else 0 for j, y in enumerate(b))]
        best = max(best, *row)
    return best


def narrow(draw_notes=18):
    """Songs of few pitches and onsets: many shared runs of all lengths."""
    note = st.tuples(
        st.integers(0, 31).map(lambda x: x / 2), st.just(0.5), st.integers(60, 62), st.just(80),
        st.sampled_from([0, 5, DRUMS]),
    )  # fmt: skip
    rows = st.lists(note, max_size=draw_notes, unique_by=lambda r: (r[0], r[2], r[4]))
    return rows.map(lambda r: made(r, meters=((4, 4),) * 4))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(narrow(), min_size=1, max_size=4), st.lists(narrow(), max_size=4),
    st.sampled_from([3, 1 << 20]),
)  # fmt: skip
def test_brute_force_agrees(training, samples, block):
    names = [str(i) for i in range(len(training))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)  # runs across the blocks of a pass
        index = TrainingMusic(training, names)
        notes, bars = index.note_runs(samples), index.bar_runs(samples)
    lines = [line_of(song) for song in training]
    for sample, run in zip(samples, notes, strict=True):
        mine = line_of(sample)
        shared = [longest_common(mine, line) for line in lines]
        assert run.length == (max(shared) + 1 if max(shared) else 0)
        assert run.of == (len(mine) + 1 if (sample.notes.program != DRUMS).any() else 0)
        if run.length:
            assert shared[int(run.song)] == max(shared)
    contents = [bar_contents(song, i) for i, song in enumerate(training)]
    for i, (sample, run) in enumerate(zip(samples, bars, strict=True)):
        mine = bar_contents(sample, len(training) + i)
        shared = [longest_common(mine, content) for content in contents]
        assert run.length == max(shared)
        if run.length:
            there = contents[int(run.song)][run.song_bar :][: run.length]
            assert mine[run.sample_bar :][: run.length] == there


def bar_contents(song, number):
    found = []
    for bar in range(song.n_bars):
        notes = song.bars(bar, bar + 1).notes
        columns = (notes.onset, notes.duration, notes.pitch, notes.program)
        rows = sorted(zip(*(c.tolist() for c in columns), strict=True))
        found.append(rows or [("empty", number, bar)])
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(songs(), min_size=1, max_size=4), st.lists(songs(), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_order_does_not_matter(training, samples, random):
    def lengths(training):
        index = TrainingMusic(training, ["x"] * len(training))
        return [run.length for run in index.note_runs(samples)]

    mixed = list(training)
    random.shuffle(mixed)
    assert lengths(training) == lengths(mixed)


def test_the_baseline_of_held_out_songs():
    pieces, names = library()
    held_out = [random_song(np.random.default_rng(i), n_bars=8) for i in range(100, 110)]
    copies = [piece.bars(0, 12) for piece in pieces[:10]]
    found = novelty_report(copies, held_out, TrainingMusic(pieces, names))
    assert found["settings"]["songs"] == 40
    assert found["generated"]["copied"]["share"] == 1
    assert found["held_out"]["copied"]["share"] == 0
    assert found["held_out"]["notes"]["max"] < found["generated"]["notes"]["median"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_nothing_to_compare():
    pieces, names = library(2)
    training = TrainingMusic(pieces, names)
    empty = novelty([], training)
    assert empty["copied"] == {"n": 0, "share": None}
    assert empty["notes"]["median"] is None
    silent = made([], meters=((4, 4),))
    single = made([(0, 1, 60)])
    assert [(run.length, run.of) for run in training.note_runs([silent, single])] == [
        (0, 0),
        (0, 1),
    ]
    assert TrainingMusic([silent], ["s"]).note_runs(pieces)[0].length == 0
    with pytest.raises(UserError, match="no training songs"):
        TrainingMusic([], [])
    with pytest.raises(ValueError, match="1 names for 2 songs"):
        TrainingMusic(pieces, ["one"])
