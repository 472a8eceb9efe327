"""The notes found in the tokens of a phrase are the notes of the phrase."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from symusic.core import ScoreTick

from midi import DRUMS, make_score, note, scores
from midigenre.build import make_tokenizer
from midigenre.errors import RejectedSongError
from midigenre.midi.song import Song
from midigenre.models.sequences import LARGEST_INTERVAL, Intervals
from midigenre.tokenizers import PhraseCutter, Tokenizer
from midigenre.tokenizers.miditok import MidiTokTokenizer
from midigenre.tokenizers.notes import ATTRIBUTES, NoteFinder

ATTRIBUTE_TYPES = {name: {name} for name in ATTRIBUTES} | {"Pitch": {"Pitch", "PitchDrum"}}

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "tokenizer").glob("*.yaml"))
MORE = {
    "bare remi": ("remi", "tokenizer.tracks=merged", "tokenizer.neutral=true"),
    "bare cp": ("cp", "tokenizer.tracks=merged", "tokenizer.neutral=true"),
    "bare octuple": ("octuple", "tokenizer.tracks=merged", "tokenizer.neutral=true"),
    "one pitch range": ("remi", "tokenizer.params.use_pitchdrum_tokens=false"),
    "durations of some": ("remi", "+tokenizer.params.use_note_duration_programs=[0]"),
}


@lru_cache(maxsize=64)
def tokenizer(name: str) -> Tokenizer:
    base, *overrides = MORE.get(name, (name,))
    with initialize_config_dir(str(CONF), version_base=None):
        return make_tokenizer(compose("prepare", [f"tokenizer={base}", *overrides]))


SLICED = [name for name in [*NAMES, *MORE] if tokenizer(name).spec.bars != "none"]


def wanted(tok: Tokenizer, song: Song) -> np.ndarray:
    """Bar, position, pitch and program of each note in canonical order, shape (n, 4)."""
    notes = song.notes
    bar = np.searchsorted(song.bar_ticks, notes.onset, side="right") - 1
    steps = np.array([tok.grid.step_ticks((int(n), int(d))) for n, d in song.meters], np.int64)
    position = (notes.onset - song.bar_ticks[bar]) // steps[bar]
    return np.stack([bar, position, notes.pitch, notes.program], 1)


def cut(tok: Tokenizer, song: Song, first: int, end: int) -> np.ndarray:
    e = tok.encode(song)
    return PhraseCutter(tok.spec).cut(e.ids_TF, e.bar_steps, e.bar_tempo, first, end)[0]


def songs(tok: Tokenizer, score: ScoreTick) -> Song | None:
    try:
        return tok.clean(score)
    except RejectedSongError:
        return None


@pytest.mark.parametrize("name", SLICED)
def test_the_notes_of_a_phrase_are_found_in_its_tokens(name):
    tok = tokenizer(name)
    find = NoteFinder(tok.spec)
    said = {t for f in tok.spec.fields for t in f.types}

    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(scores(), st.integers(1, 5))
    def check(score: ScoreTick, n_bars: int) -> None:
        song = songs(tok, score)
        if song is None:
            return
        found_all, cuts = [], []
        for first in range(0, song.n_bars, n_bars):
            end = min(first + n_bars, song.n_bars)
            ids = cut(tok, song, first, end)
            found = find(ids)
            rows = np.stack([found.bar, found.position, found.pitch, found.program], 1)
            np.testing.assert_array_equal(rows, wanted(tok, song.bars(first, end)))
            for a, attribute in enumerate(ATTRIBUTES):
                steps, column = found.steps_nA[:, a], found.columns_A[a]
                if column < 0:
                    assert not ATTRIBUTE_TYPES[attribute] & said
                    assert (steps == -1).all()
                    continue
                types = np.array(tok.spec.fields[column].types)[ids[steps[steps >= 0], column]]
                assert set(types) <= ATTRIBUTE_TYPES[attribute]
                if name != "durations of some":
                    assert (steps >= 0).all()
            values = np.array(tok.spec.fields[found.columns_A[0]].values)
            np.testing.assert_array_equal(
                values[ids[found.steps_nA[:, 0], found.columns_A[0]]].astype(int), found.pitch
            )
            found_all.append(rows)
            cuts.append(ids)
        # And of phrases that lie end to end.
        starts = np.cumsum([0, *(len(ids) for ids in cuts)])[:-1]
        packed = find(np.concatenate(cuts), starts)
        rows = np.stack([packed.bar, packed.position, packed.pitch, packed.program], 1)
        np.testing.assert_array_equal(rows, np.concatenate(found_all))
        np.testing.assert_array_equal(
            packed.phrase, np.repeat(np.arange(len(cuts)), [len(r) for r in found_all])
        )

    check()


SCORE = make_score(
    [note(0, 1, 60, 80, 40), note(0, 1, 64, 50, 0), note(0, 0.5, 36, 99, DRUMS), note(5, 2, 61)]
)


@pytest.mark.parametrize("name", SLICED)
def test_each_attribute_is_that_of_its_note(name):
    """Velocity and duration stand behind a note or in its step, and are its own."""
    tok = tokenizer(name)
    song = tok.clean(SCORE)
    ids = cut(tok, song, 0, song.n_bars)
    found = NoteFinder(tok.spec)(ids)
    for attribute, of_note in (("Velocity", song.notes.velocity), ("Program", song.notes.program)):
        a = ATTRIBUTES.index(attribute)
        if found.columns_A[a] >= 0:
            field = tok.spec.fields[found.columns_A[a]]
            said = [int(field.values[i]) for i in ids[found.steps_nA[:, a], found.columns_A[a]]]
            assert said == of_note.tolist()
    a = ATTRIBUTES.index("Duration")
    field = tok.spec.fields[found.columns_A[a]]
    there = found.steps_nA[:, a] >= 0
    said = [field.values[i] for i in ids[found.steps_nA[there, a], found.columns_A[a]]]
    beats = song.notes.duration[there] / tok.grid.tpq
    assert [float(v.split(".")[0]) + int(v.split(".")[1]) / 8 for v in said] == beats.tolist()
    if name == "durations of some":
        assert 0 < there.sum() < len(there)


@pytest.mark.parametrize("name", NAMES)
def test_intervals_are_the_same_whatever_the_tokens(name):
    tok = tokenizer(name)
    chords = [(0, 48), (0, 55), (0, 64), (1, 62), (6, 50), (6, 66)]
    song = tok.clean(make_score([note(beat, 2, pitch) for beat, pitch in chords]))
    ids_TF = torch.from_numpy(tok.encode(song).ids_TF).long()
    made = Intervals(tok.spec.pitches, tok.spec.times, 4)
    melodic_T, harmonic_T = made.of(ids_TF, torch.tensor([0, len(ids_TF)], dtype=torch.int32))
    notes = made.pitch_V[ids_TF[:, made.field]] >= 0
    up = [i + LARGEST_INTERVAL + 1 for i in (7, 9, -2, -12, 16)]
    assert melodic_T[notes].tolist() == [0, *up]
    assert harmonic_T[notes].tolist() == [i + 1 for i in (0, 7, 16, 0, 0, 16)]
    assert not melodic_T[~notes].any()
    assert not harmonic_T[~notes].any()


@pytest.mark.parametrize("name", SLICED)
def test_marks_are_passed_over_and_a_cut_note_is_found_as_far_as_it_goes(name):
    tok = tokenizer(name)
    find = NoteFinder(tok.spec)
    ids = cut(tok, tok.clean(SCORE), 0, 2)
    whole = find(ids)
    marked = np.concatenate([[tok.spec.special("BOS")], ids, [tok.spec.special("EOS")]])
    found = find(marked)
    for what in ("bar", "position", "pitch", "program"):
        np.testing.assert_array_equal(getattr(found, what), getattr(whole, what))
    shifted = np.where(whole.steps_nA < 0, -1, whole.steps_nA + 1)
    np.testing.assert_array_equal(found.steps_nA, shifted)
    for n in range(len(ids)):
        part = find(ids[:n])
        assert part.pitch.tolist() == whole.pitch[: len(part)].tolist()
        assert part.steps_nA.max(initial=-1) < n
        known = part.steps_nA >= 0
        assert (part.steps_nA[known] == whole.steps_nA[: len(part)][known]).all()


def test_vocabularies_without_bars_or_with_other_notes_are_refused():
    with pytest.raises(ValueError, match="bars cannot be found"):
        NoteFinder(tokenizer("tsd").spec)
    tok = MidiTokTokenizer("intervals", "REMI", {"use_pitch_intervals": True})
    with pytest.raises(ValueError, match="PitchInterval"):
        NoteFinder(tok.spec)
