"""Form of pieces whose form is known."""

import json

import music21
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_songs import DRUMS, made, moved, random_song, songs
from music21.analysis.discrete import KrumhanslKessler

from midigenre.evaluation.music.descriptors import COMMON_TPQ, bar_keys, common_ticks
from midigenre.evaluation.music.structure import (
    bar_pictures,
    course,
    ends_on_tonic,
    key,
    mean_structure,
    repetition,
    self_similarity,
    structure,
)

A = [(0, 1, 60), (1, 1, 64), (2, 2, 67)]
B = [(0, 0.5, 61), (1.5, 0.5, 66), (3, 1, 70)]


def form(letters, **bars):
    """A piece of bars by letter; any other letter is an empty bar."""
    bars = {"A": A, "B": B, **bars}
    rows = [
        (4 * i + row[0], *row[1:])
        for i, letter in enumerate(letters)
        for row in bars.get(letter, [])
    ]
    return made(rows, meters=((4, 4),) * len(letters))


def test_the_form_aaba():
    expected = np.array([[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]])
    assert self_similarity(form("AABA")) == pytest.approx(expected)
    found = repetition(form("AABA"), max_lag=4)
    assert found["exact"] == pytest.approx([1 / 3, 1 / 2, 1, None])
    assert found["similarity"] == pytest.approx([1 / 3, 1 / 2, 1, None])


def test_a_period_of_four_bars():
    rng = np.random.default_rng(0)
    four = random_song(rng, n_bars=4).notes
    columns = list(zip(four.onset / 16, four.duration / 16, four.pitch, four.velocity, four.program,
                       strict=True))  # fmt: skip
    piece = made([(16 * i + row[0], *row[1:]) for i in range(5) for row in columns], ((4, 4),) * 20)
    found = repetition(piece)
    assert [lag for lag, share in enumerate(found["exact"], 1) if share == 1] == [4, 8, 12, 16]
    assert [lag for lag, mean in enumerate(found["similarity"], 1) if mean > 0.999] == [
        4,
        8,
        12,
        16,
    ]


def test_silence_does_not_repeat():
    assert self_similarity(form("A--A")) == pytest.approx(
        np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    )
    found = repetition(form("A--A"), max_lag=3)
    assert found["exact"] == [0, 0, 1]
    assert found["similarity"] == pytest.approx([0, 0, 1])
    silent = made([], meters=((4, 4),) * 3)
    assert repetition(silent, max_lag=2) == {"similarity": [None, None], "exact": [None, None]}


def test_exact_means_exact_and_velocity_does_not_count():
    louder = [(on, length, pitch, 120) for on, length, pitch in A]
    other_program = [(on, length, pitch, 80, 40) for on, length, pitch in A]
    found = repetition(form("ALP", L=louder, P=other_program), max_lag=2)
    assert found["exact"] == [0.5, 0]
    assert found["similarity"] == pytest.approx([1, 1])


def test_bars_of_other_meters_are_other_bars():
    rows = [(0, 1, 60), (3, 1, 60), (7, 1, 60)]
    keys, full = bar_keys(made(rows, meters=((3, 4), (4, 4), (3, 4))))
    assert keys[0] == keys[2] != keys[1]
    assert full.all()


def test_bars_of_another_grid_are_the_same():
    piece = form("AB")
    assert (bar_keys(piece)[0] == bar_keys(moved(piece, times=3))[0]).all()
    assert common_ticks(np.array([8]), 16).tolist() == [COMMON_TPQ // 2]


def test_a_picture_by_hand():
    rows = [(0, 0.375, 60), (0, 4, 72), (0.25, 1, 62), (3.75, 2, 64), (1, 1, 38, 90, DRUMS)]
    picture = bar_pictures(made(rows))[0]
    assert picture.shape == (13, 16)
    assert picture[0, :3].tolist() == [2, 1.5, 1]  # C twice, the low one for a sixteenth and a half
    assert picture[2].tolist() == [0, 1, 1, 1, 1] + [0] * 11
    assert picture[4].tolist() == [0] * 15 + [1]  # up to the barline
    assert picture[12].tolist() == [0, 0, 0, 0, 1] + [0] * 11


def test_drums_alone_have_a_form():
    groove = [(b, 0.25, 36, 90, DRUMS) for b in range(4)]
    fill = [(b / 2, 0.25, 45, 90, DRUMS) for b in range(8)]
    found = self_similarity(form("GGFG", G=groove, F=fill))
    assert found == pytest.approx(
        np.array([[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]])
    )


@settings(max_examples=60, deadline=None)
@given(songs(), st.integers(-24, 24), st.sampled_from([2, 3]))
def test_key_and_grid_do_not_matter(song, semitones, times):
    other = moved(song, semitones, times)
    matrix = self_similarity(song)
    assert matrix == pytest.approx(self_similarity(other))
    assert matrix == pytest.approx(matrix.T)
    assert matrix.min() >= 0
    assert matrix.max() <= 1
    assert (np.diagonal(matrix) == 1).all()
    plain, changed = repetition(song), repetition(other)
    assert plain["exact"] == changed["exact"]
    assert course(song) == course(other)


@settings(max_examples=60, deadline=None)
@given(songs())
def test_repetition_is_a_share_of_pairs(song):
    """Against the definition, pair by pair."""
    found, matrix = repetition(song, max_lag=4), self_similarity(song)
    bars = []
    for bar in range(song.n_bars):
        rows = song.bars(bar, bar + 1).notes
        columns = (rows.onset, rows.duration, rows.pitch, rows.program)
        bars.append(
            (tuple(song.meters[bar]), sorted(zip(*(c.tolist() for c in columns), strict=True)))
        )
    for lag in range(1, 5):
        pairs = [(i, i + lag) for i in range(song.n_bars - lag) if bars[i][1] or bars[i + lag][1]]
        same = np.mean([bars[i] == bars[j] for i, j in pairs]) if pairs else None
        alike = np.mean([matrix[i, j] for i, j in pairs]) if pairs else None
        assert found["exact"][lag - 1] == same
        assert found["similarity"][lag - 1] == pytest.approx(alike)


def test_course_of_a_crescendo():
    rows = [(beat + k / 4, 0.25, 60, 10 * (1 + beat // 4)) for beat in range(40) for k in range(4)]
    rows = [row for row in rows if row[0] % 1 == 0 or row[0] >= 20]
    found = course(made(rows))
    assert found["velocity"] == [10.0 * i for i in range(1, 11)]
    assert found["notes_per_beat"] == [1] * 5 + [4] * 5


def test_course_of_a_short_and_of_an_empty_piece():
    found = course(made([(0, 1, 60, 64), (2, 1, 60, 32)]))  # four beats in ten parts
    assert [x for x in found["notes_per_beat"] if x is not None] == [1, 0, 1, 0]
    assert [x for x in found["velocity"] if x is not None] == [64, 32]
    assert set(course(made([], meters=()))["velocity"]) == {None}


SCALE = [(i, 1, 60 + p) for i, p in enumerate((0, 2, 4, 5, 7, 9, 11, 12))]
CADENCE = [(8, 1, p) for p in (43, 59, 62, 67)] + [(9, 3, p) for p in (48, 60, 64, 67)]


@pytest.mark.parametrize("tonic", range(12))
def test_keys(tonic):
    found = key(moved(made(SCALE + CADENCE), tonic))
    assert (found["tonic"], found["mode"]) == (tonic, "major")
    assert 0.8 < found["correlation"] <= 1
    harmonic = [(i, 1, 60 + p) for i, p in enumerate((0, 2, 3, 5, 7, 8, 11, 12, 7, 3, 0))]
    minor = key(moved(made(harmonic), tonic))
    assert (minor["tonic"], minor["mode"]) == (tonic, "minor")


@settings(max_examples=25, deadline=None)
@given(songs(min_notes=1, programs=(0, 40)))
def test_keys_agree_with_music21(song):
    stream = music21.stream.Stream()
    for pitch, duration in zip(song.notes.pitch, song.notes.duration, strict=True):
        stream.append(music21.note.Note(int(pitch), quarterLength=int(duration) / song.tpq))
    theirs, ours = KrumhanslKessler().getSolution(stream), key(song)
    assume(ours is not None)  # all twelve classes equally long
    assert ours["correlation"] == pytest.approx(theirs.correlationCoefficient, abs=1e-3)
    same = [theirs, *theirs.alternateInterpretations]
    fits = {(k.tonic.pitchClass, k.mode): k.correlationCoefficient for k in same}
    assert fits[ours["tonic"], ours["mode"]] == pytest.approx(ours["correlation"], abs=1e-3)


def test_names_of_keys():
    assert key(moved(made(SCALE + CADENCE), 3))["name"] == "Eb major"


@pytest.mark.parametrize("semitones", [-5, 0, 4])
def test_endings(semitones):
    home = made(SCALE + CADENCE)
    assert ends_on_tonic(moved(home, semitones)) is True
    deceptive = made(SCALE + CADENCE + [(12, 1, p) for p in (45, 60, 64)])
    assert ends_on_tonic(moved(deceptive, semitones)) is False
    # The bass held from before is still the lowest; one that has ended is not.
    assert ends_on_tonic(made([*SCALE, (8, 4, 48), (11, 1, 64)])) is True
    assert ends_on_tonic(made([*SCALE, (8, 3, 48), (11, 1, 64)])) is False
    # A drum after the end does not matter.
    assert ends_on_tonic(made([*SCALE, *CADENCE, (13, 1, 38, 90, DRUMS)])) is True


def test_no_key():
    assert key(made([(0, 1, 36, 90, DRUMS)])) is None
    assert key(made([(p, 1, 60 + p) for p in range(12)])) is None
    assert ends_on_tonic(made([])) is None


def test_means_over_songs():
    pieces = [form("AABA"), form("AB"), made([(0, 1, 36, 90, DRUMS)])]
    found = [structure(piece) for piece in pieces]
    means = mean_structure(found)
    assert means["n"] == 3
    assert means["repetition"]["exact"][:3] == pytest.approx([1 / 6, 1 / 2, 1])
    assert means["repetition"]["exact"][3:] == [None] * 13
    assert means["tonic"]["n"] == 2
    assert json.loads(json.dumps([found, means], allow_nan=False)) == [found, means]
    assert mean_structure([])["tonic"] == {"share": None, "n": 0}
