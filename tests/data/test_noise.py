"""Noise in songs: what each kind does, how much of it, and that none of it changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toysongs import CLASSES, prepared

from midigenre.corpora.toy import Toy
from midigenre.data.noise import NoiseSettings, noisy_songs, perturbed
from midigenre.errors import UserError
from midigenre.midi.song import DRUMS, NoteTable, Song

TICK_SECONDS = 60 / 120 / 8


def song_of(n=4000, programs=(0, 33, DRUMS), qpm=120.0):
    """A song of one note in each tick, eight of them a quarter note."""
    bars = -(-n // 32)
    rng = np.random.default_rng(0)
    return Song(
        notes=NoteTable.of(
            np.arange(n), np.full(n, 4), rng.integers(30, 90, n), np.full(n, 64),
            rng.choice(programs, n),
        ),
        tpq=8,
        bar_ticks=np.arange(bars + 1, dtype=np.int32) * 32,
        meters=np.full((bars, 2), 4, np.int32),
        tempo_ticks=np.zeros(1, np.int32),
        tempo_qpm=np.array([qpm]),
    )  # fmt: skip


def noisy(song, **settings):
    return perturbed(song, NoiseSettings(**settings), "a song")


def by_onset(song):
    """Columns in the order of the notes' onsets, times in ticks of the cleaned song."""
    notes = song.notes
    return {name: column.astype(float) / (60 if name in ("onset", "duration") else 1)
            for name, column in notes.columns().items()}  # fmt: skip


def test_jitter_has_the_deviation_in_milliseconds_that_it_says():
    for qpm in (60.0, 120.0):
        song = song_of(qpm=qpm)
        # Below half a tick, so that the notes stay in order.
        found = by_onset(noisy(song, jitter_ms=4.0))
        off = (found["onset"] - song.notes.onset)[1:] * 60 / qpm / 8 * 1000
        assert abs(off).max() > 8
        assert np.std(off) == pytest.approx(4.0, rel=0.05)
        assert np.mean(off) == pytest.approx(0.0, abs=0.3)
        assert (found["duration"] == 4).all()
        assert (found["pitch"] == song.notes.pitch).all()


def test_velocity_has_the_deviation_that_it_says():
    song = song_of()
    off = by_onset(noisy(song, velocity=8.0))["velocity"] - 64
    assert np.std(off) == pytest.approx(8.0, rel=0.05)
    loud = by_onset(noisy(song, velocity=500.0))["velocity"]
    assert (loud.min(), loud.max()) == (1, 127)


def test_shares_are_those_of_the_notes():
    song = song_of()
    pitched = song.notes.program != DRUMS
    found = by_onset(noisy(song, wrong=0.25))
    off = found["pitch"] - song.notes.pitch
    assert (off[~pitched] == 0).all()
    assert (off[pitched] != 0).mean() == pytest.approx(0.25, abs=0.03)
    assert set(off) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert len(noisy(song, drop=0.25).notes) / 4000 == pytest.approx(0.75, abs=0.03)
    doubled = noisy(song, double=0.25)
    assert (len(doubled.notes) - 4000) / pitched.sum() == pytest.approx(0.25, abs=0.03)
    assert (doubled.notes.program == DRUMS).sum() == (~pitched).sum()


def test_a_doubled_note_sounds_an_octave_above():
    song = song_of(200, (0,))
    notes = noisy(song, double=1.0).notes
    assert len(notes) == 400
    low, high = notes.pitch[::2], notes.pitch[1::2]
    assert (high - low == 12).all()
    assert (notes.onset[::2] == notes.onset[1::2]).all()


def test_transposed_notes_stay_in_midis_range_and_drums_stay():
    song = song_of(128, (0, DRUMS))
    at = replace(song.notes, pitch=np.arange(128, dtype=np.int32))
    found = by_onset(noisy(replace(song, notes=at), transpose=5))["pitch"]
    drums = at.program == DRUMS
    assert (found[drums] == np.arange(128)[drums]).all()
    moved = np.arange(128) + 5
    assert (found[~drums] == np.where(moved > 127, moved - 12, moved)[~drums]).all()


def test_tempo_is_a_factor_and_programs_are_replaced_whole():
    song = song_of(500, (*range(0, 40, 2), DRUMS))
    assert noisy(song, tempo=1.5).tempo_qpm == pytest.approx([180.0])
    found = noisy(song, program=0.5)
    old, new = song.notes.program, by_onset(found)["program"]
    pairs = set(zip(old.tolist(), new.tolist(), strict=True))
    assert len(pairs) == len(set(old.tolist()))  # each program has one new one
    changed = [a for a, b in pairs if a != b]
    assert 4 < len(changed) < 16
    assert (DRUMS, DRUMS) in pairs
    all_new = by_onset(noisy(song, program=1.0))["program"]
    assert ((all_new != old) | (old == DRUMS)).all()


def test_more_noise_changes_the_same_notes_and_others():
    song = song_of(1000)
    less, more = (set(noisy(song, drop=share).notes.onset.tolist()) for share in (0.1, 0.4))
    assert more < less
    few, many = (noisy(song, wrong=share).notes.pitch for share in (0.1, 0.4))
    changed = few != song.notes.pitch
    assert (many[changed] == few[changed]).all()
    assert (many != song.notes.pitch).sum() > changed.sum()


def test_draws_depend_on_the_song_and_the_seed():
    song = song_of(1000)
    own, other = (
        perturbed(song, NoiseSettings(drop=0.5), name).notes.onset.tolist() for name in "ab"
    )
    again = perturbed(song, NoiseSettings(drop=0.5, seed=1), "a").notes.onset.tolist()
    assert own != other
    assert own != again
    assert own == perturbed(song, NoiseSettings(drop=0.5), "a").notes.onset.tolist()


def test_one_note_stays():
    assert len(noisy(song_of(50), drop=1.0).notes) == 1


@given(
    st.builds(
        NoiseSettings,
        jitter_ms=st.floats(0, 5000), velocity=st.floats(0, 1000), wrong=st.floats(0, 1),
        drop=st.floats(0, 1), double=st.floats(0, 1), transpose=st.integers(-12, 12),
        tempo=st.floats(0.1, 10), program=st.floats(0, 1), seed=st.integers(0, 2**32),
    ),
    st.integers(1, 60),
)  # fmt: skip
def test_what_comes_out_is_music(noise, n):
    song = song_of(n, (0, 127, DRUMS))
    notes = perturbed(song, noise, "any").notes
    assert 1 <= len(notes) <= 2 * n
    assert (np.diff(notes.onset) >= 0).all()
    assert notes.onset.min() >= 0
    assert 0 <= notes.pitch.min() <= notes.pitch.max() <= 127
    assert 1 <= notes.velocity.min() <= notes.velocity.max() <= 127
    assert DRUMS <= notes.program.min() <= notes.program.max() <= 127


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"jitter_ms": -1.0}, "noise.jitter_ms=-1.0"),
        ({"velocity": float("nan")}, "noise.velocity=nan"),
        ({"tempo": 0.0}, "noise.tempo=0.0"),
        ({"drop": 1.5}, "noise.drop=1.5"),
        ({"transpose": 13}, "noise.transpose=13"),
        ({"transpose": 1.5}, "noise.transpose=1.5 must be a whole number"),
        ({"wrong": None}, "noise.wrong=None must be a number"),
        ({"seed": -1}, "noise.seed=-1"),
    ],
)
def test_values_out_of_range_are_rejected(settings, says):
    with pytest.raises(UserError, match=says):
        NoiseSettings(**settings)


def test_what_changes_songs_is_named():
    assert NoiseSettings(seed=3).changed == {}
    assert NoiseSettings(jitter_ms=30.0, seed=3).changed == {"jitter_ms": 30.0, "seed": 3}


@pytest.mark.parametrize("kind", CLASSES)
def test_songs_without_noise_are_the_same_tokens(kind, toy_home, tmp_path):
    shards = prepared(Toy(n_songs=12), toy_home, kind)
    rows = [7, 2, 3]
    again = noisy_songs(shards, rows, NoiseSettings(), tmp_path)
    assert len(again) == 3
    for place, row in enumerate(rows):
        assert again.manifest[place]["song_id"] == shards.manifest[row]["song_id"]
        theirs, ours = shards.encoded(row), again.encoded(place)
        assert np.array_equal(ours.ids_TF, theirs.ids_TF)
        assert np.array_equal(ours.bar_steps, theirs.bar_steps)
    for label, index in shards.label_indices().items():
        assert again.label_indices()[label].tolist() == index[rows].tolist()
    again.verify()


def test_every_tokenizer_reads_the_same_noise(toy_home, tmp_path):
    noise = NoiseSettings(jitter_ms=40.0, wrong=0.2, drop=0.2, double=0.1)
    found = []
    for kind in ("remi", "cp", "octuple"):
        shards = prepared(Toy(n_songs=12), toy_home, kind)
        folder = tmp_path / kind
        folder.mkdir()
        song = noisy_songs(shards, [4], noise, folder).song(0)
        found.append({name: column.tolist() for name, column in song.notes.columns().items()})
        assert found[-1]["pitch"] != shards.song(4).notes.pitch.tolist()
    assert found[0] == found[1] == found[2]
