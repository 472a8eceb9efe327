"""What the baselines count, against naive counts."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phrasebook import SPEC, TPQ, book, music

from midigenre.data.phrases import Phrases
from midigenre.evaluation.exported_baselines import (
    NGRAM_BITS,
    ReadPhrase,
    metadata_counts,
    metadata_features,
    ngram_counts,
    ngram_hashes,
    read_phrases,
    token_counts,
    token_shares,
)
from midigenre.midi.song import NoteTable
from midigenre.spec import Field, TokenSpec

TWO_FIELDS = TokenSpec(
    "two", tuple(Field(n, tuple(f"{n}_{i}" for i in range(5))) for n in "ab"), "field", 64
)
streams = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


def phrase(ids_TF):
    return ReadPhrase(np.array(ids_TF, np.int64), music())


def naive_ngrams(ids_TF):
    grams = Counter()
    for field in range(len(ids_TF[0])):
        column = [step[field] for step in ids_TF]
        for n in (1, 2, 3):
            for i in range(len(column) - n + 1):
                grams[field, *column[i : i + n]] += 1
    return grams


def naive_hash(gram):
    """SplitMix64 in Python's own numbers."""

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    field, *ids = gram
    state = mix(field)
    for i in ids:
        state = mix((state + i) % 2**64)
    return state


@settings(max_examples=50, deadline=None)
@given(streams)
def test_ngrams_against_a_naive_count(ids):
    counts = ngram_counts([phrase(i) for i in ids], TWO_FIELDS)
    assert counts.shape == (len(ids), 2**NGRAM_BITS)
    for row, ids_TF in zip(counts.toarray(), ids, strict=True):
        expected = np.zeros(2**NGRAM_BITS)
        for gram, n in naive_ngrams(ids_TF).items():
            expected[naive_hash(gram) >> (64 - NGRAM_BITS)] += n
        assert (row == expected).all()


def test_different_ngrams_have_different_hashes():
    ids = np.random.default_rng(0).integers(0, 500, 20_000)
    hashes = np.concatenate([ngram_hashes(ids, 0), ngram_hashes(ids, 1)])
    grams = 2 * sum(
        len({tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}) for n in (1, 2, 3)
    )
    assert len(np.unique(hashes)) == grams


def test_tokens_against_a_naive_count():
    ids = [[(0, 1), (0, 4), (3, 1)], [(2, 2)]]
    counts = token_counts([phrase(i) for i in ids], TWO_FIELDS)
    assert counts.tolist() == [
        [2, 0, 0, 1, 0, 0, 2, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1],
    ]  # fmt: skip
    of_song = token_shares(counts.sum(0, keepdims=True))
    assert of_song.tolist() == [[1, 0, 0.5, 0.5, 0, 0, 1, 0.5, 0, 0.5]]


def metadata(songs):
    return metadata_features(metadata_counts([ReadPhrase(np.zeros((1, 1), int), s) for s in songs],
                                             SPEC))  # fmt: skip


def test_metadata_ignores_pitch_and_rhythm():
    song = music(program=33)
    notes = song.notes
    bar = 4 * TPQ
    rng = np.random.default_rng(1)
    moved = NoteTable.of(
        notes.onset // bar * bar + rng.integers(0, bar, len(notes)), notes.duration % 3 + 1,
        rng.integers(0, 128, len(notes)), notes.velocity, notes.program,
    )  # fmt: skip
    assert (moved.pitch != notes.pitch).any()
    assert (moved.onset != notes.onset).any()
    assert (metadata([song]) == metadata([replace(song, notes=moved)])).all()


@pytest.mark.parametrize(
    "change",
    [{"program": -1}, {"velocity": 20}, {"qpm": 90.0}, {"meter": (3, 4)}, {"per_bar": 7}],
    ids=str,
)
def test_metadata_sees_what_it_should(change):
    assert (metadata([music()]) != metadata([music(**change)])).any()


def test_metadata_by_hand():
    song = music(n_bars=2, program=5, velocity=64, qpm=90.0, meter=(3, 4), per_bar=6)
    song = replace(song, tempo_ticks=np.array([0, 3 * TPQ], np.int32),
                   tempo_qpm=np.array([90.0, 180.0]))  # fmt: skip
    (row,) = metadata([song])
    assert len(row) == 177
    expected = np.zeros(129 + 16 + 17 + 6)
    expected[[5 + 1, 129 + 8, 145 + 3, 162 + 2]] = 1
    assert (row[:168] == expected).all()
    # Velocity, its deviation and number; tempo, deviation, changes a bar; notes a bar, a quarter,
    # a second (3 quarters at 90 and 3 at 180 are 3 seconds).
    assert row[168:] == pytest.approx([64, 0, 1, 135, 45, 0.5, 6, 2, 4])


def test_a_song_has_the_features_of_its_phrases_together():
    song = music(n_bars=8, per_bar=5)
    phrases = [ReadPhrase(np.zeros((1, 1), int), song.bars(b, b + 4)) for b in (0, 4)]
    together = metadata_features(metadata_counts(phrases, SPEC).sum(0, keepdims=True))
    assert together == pytest.approx(metadata([song]))


def test_constant_tempi_are_the_same_to_the_last_bit():
    rows = metadata([music(n_bars=n, qpm=123.456, per_bar=3) for n in range(1, 30)])
    assert np.ptp(rows, 0).max() == 0


def test_phrases_are_read_with_the_music_of_their_bars():
    reader = book([0, 1], n_phrases=3)
    (read,) = read_phrases(reader, Phrases(*np.array([[1], [2], [3]])))
    assert (read.ids_TF == reader.tokens[1][2]).all()
    assert read.music.n_bars == 1
    inside = reader.music[1].notes.onset >= reader.music[1].bar_ticks[2]
    assert (read.music.notes.pitch == reader.music[1].notes.pitch[inside]).all()
