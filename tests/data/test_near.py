"""Planted duplicates are found, unrelated songs stay apart, and crowds of copies cost little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from midi import make_score, note, scores
from midigenre.data.duplicates import (
    MIN_PATTERNS,
    NEIGHBOURS,
    RARE,
    ROW,
    SKETCH,
    near_pairs,
    patterns,
    sketch,
)
from midigenre.errors import RejectedSongError
from midigenre.midi.clean import clean
from midigenre.midi.song import DRUMS, Grid, NoteTable, Song

Change = Callable[[NoteTable, np.random.Generator], NoteTable]
TPQ = 24
SCALE = np.array([0, 2, 4, 5, 7, 9, 11])
PROGRESSIONS = ((0, 4, 5, 3), (5, 3, 0, 4), (0, 5, 3, 4))  # a few for all songs, as in pop


def song_of(notes: NoteTable, tpq: int = TPQ) -> Song:
    bars = int(notes.onset.max(initial=0)) // (4 * tpq) + 1
    meters = np.tile(np.array([4, 4], np.int32), (bars, 1))
    ticks = (np.arange(bars + 1) * 4 * tpq).astype(np.int32)
    return Song(notes, tpq, ticks, meters, np.zeros(1, np.int32), np.array([120.0]))


def table(*parts: tuple[int, list[float], list[int]]) -> NoteTable:
    """Notes of (program, onsets in quarters, pitches)."""
    onset = np.concatenate([np.round(np.array(o) * TPQ) for _, o, _ in parts])
    pitch = np.concatenate([np.array(p) for *_, p in parts])
    program = np.concatenate([np.full(len(o), p) for p, o, _ in parts])
    return NoteTable.of(onset, np.full(len(onset), 6), pitch, np.full(len(onset), 80), program)


def band_song(seed: int, n_bars: int = 48) -> NoteTable:
    """A melody of its own above the arpeggios, bass and beat that all songs of a style share."""
    rng = np.random.default_rng(seed)
    phrases = []
    for _ in range(3):  # phrases of 8 bars, which come back
        degree, onsets, pitches = int(rng.integers(0, 7)), [], []
        for at in np.arange(0, 32, 0.5):
            if rng.random() < 0.75:
                degree += int(rng.choice([-3, -2, -1, -1, 1, 1, 2, 4]))
                degree = min(max(degree, -5), 12)
                onsets.append(float(at))
                pitches.append(72 + 12 * (degree // 7) + int(SCALE[degree % 7]))
        phrases.append((onsets, pitches))
    melody: tuple[list[float], list[int]] = ([], [])
    for i in range(n_bars // 8):
        onsets, pitches = phrases[(0, 0, 1, 0, 2, 1)[i % 6]]
        melody[0].extend(32 * i + o for o in onsets)
        melody[1].extend(pitches)
    chords = PROGRESSIONS[seed % len(PROGRESSIONS)]
    arpeggio: tuple[list[float], list[int]] = ([], [])
    bass: tuple[list[float], list[int]] = ([], [])
    drums: tuple[list[float], list[int]] = ([], [])
    for bar in range(n_bars):
        root = chords[bar % 4]
        for i, tone in enumerate((0, 2, 4, 2, 0, 4, 2, 4)):
            arpeggio[0].append(4 * bar + i / 2)
            arpeggio[1].append(48 + 12 * ((root + tone) // 7) + int(SCALE[(root + tone) % 7]))
            drums[0].append(4 * bar + i / 2)
            drums[1].append((36, 42, 38, 42)[i % 4])
        bass[0].extend([4.0 * bar, 4.0 * bar + 2])
        bass[1].extend([36 + int(SCALE[root])] * 2)
    return table((73, *melody), (24, *arpeggio), (33, *bass), (DRUMS, *drums))


def drum_song(seed: int, n_bars: int = 32) -> NoteTable:
    """A beat that songs share, with fills and ghost notes of its own."""
    rng = np.random.default_rng(seed)
    onsets: list[float] = []
    pitches: list[int] = []
    for bar in range(n_bars):
        for i in range(16):
            if i % 2 == 0:
                onsets.append(4 * bar + i / 4)
                pitches.append((36, 42, 38, 42)[i // 2 % 4])
            if rng.random() < (0.7 if bar % 4 == 3 else 0.1):
                onsets.append(4 * bar + i / 4)
                pitches.append(int(rng.choice([37, 38, 41, 43, 45, 47, 49])))
    return table((DRUMS, onsets, pitches))


def transposed(notes: NoteTable, rng: np.random.Generator) -> NoteTable:
    by = int(rng.choice([-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6]))
    return replace(notes, pitch=notes.pitch + np.where(notes.program == DRUMS, 0, by))


def stretched(by: float) -> Change:
    return lambda notes, rng: replace(
        notes, onset=np.floor(notes.onset * by / 3 + 0.5).astype(np.int32) * 3
    )


def reorchestrated(notes: NoteTable, rng: np.random.Generator) -> NoteTable:
    new = rng.permutation(128)
    program = np.where(notes.program == DRUMS, DRUMS, new[notes.program])
    return NoteTable.of(notes.onset, notes.duration, notes.pitch, notes.velocity, program)


def without(*programs: int) -> Change:
    return lambda notes, rng: notes.select(~np.isin(notes.program, programs))


def with_counter_melody(notes: NoteTable, rng: np.random.Generator) -> NoteTable:
    onset = np.arange(0, int(notes.onset.max()), TPQ)
    pitch = 55 + rng.integers(0, 12, len(onset))
    added = [onset, np.full(len(onset), 6), pitch, np.full(len(onset), 70), np.full(len(onset), 48)]
    both = [np.concatenate([a, b]) for a, b in zip(notes.columns().values(), added, strict=True)]
    return NoteTable.of(*both)


def in_octaves(notes: NoteTable, rng: np.random.Generator) -> NoteTable:
    upper = notes.select(notes.program == 73)
    upper = replace(upper, pitch=upper.pitch + 12)
    pairs = zip(notes.columns().values(), upper.columns().values(), strict=True)
    return NoteTable.of(*(np.concatenate(pair) for pair in pairs))


def on_piano(notes: NoteTable, rng: np.random.Generator) -> NoteTable:
    return replace(notes, program=np.where(notes.program == DRUMS, DRUMS, 0).astype(np.int32))


def without_start(notes: NoteTable, rng: np.random.Generator) -> NoteTable:
    cut = int(notes.onset.max()) // 4
    kept = notes.select(notes.onset >= cut)
    return replace(kept, onset=kept.onset - cut)


def without_end(notes: NoteTable, rng: np.random.Generator) -> NoteTable:
    return notes.select(notes.onset < int(notes.onset.max()) * 3 // 4)


def all_of(*changes: Change) -> Change:
    def change(notes: NoteTable, rng: np.random.Generator) -> NoteTable:
        for one in changes:
            notes = one(notes, rng)
        return notes

    return change


CHANGES: dict[str, Change] = {
    "transposed": transposed,
    "slower": stretched(1.2),
    "faster": stretched(0.8),
    "other programs": reorchestrated,
    "no bass": without(33),
    "no drums": without(DRUMS),
    "melody alone": without(24, 33, DRUMS),
    "counter melody": with_counter_melody,
    "octaves": in_octaves,
    "piano": on_piano,
    "no start": without_start,
    "no end": without_end,
    "much": all_of(transposed, stretched(1.2), reorchestrated, without(DRUMS), without_start),
}
N_SONGS = 60


@pytest.fixture(scope="module")
def originals() -> NDArray[np.uint32]:
    return np.array([sketch(song_of(band_song(seed))) for seed in range(N_SONGS)])


def test_songs_that_share_their_accompaniment_are_not_one_piece(
    originals: NDArray[np.uint32],
) -> None:
    assert originals.shape == (N_SONGS, ROW)
    assert (originals[:, SKETCH] >= MIN_PATTERNS).all()
    assert len(near_pairs(originals)) == 0
    # Without their melodies nothing of their own is left.
    backing = [without(73)(band_song(s), np.random.default_rng(0)) for s in range(N_SONGS)]
    assert len(near_pairs(np.array([sketch(song_of(notes)) for notes in backing]))) == 0


@pytest.mark.parametrize("name", CHANGES)
def test_planted_duplicates_are_found(name: str, originals: NDArray[np.uint32]) -> None:
    rng = np.random.default_rng(1)
    copies = [sketch(song_of(CHANGES[name](band_song(s), rng))) for s in range(N_SONGS)]
    pairs = near_pairs(np.concatenate([originals, copies]))
    right = pairs[:, 1] - pairs[:, 0] == N_SONGS
    assert right.all(), f"false pairs: {pairs[~right].tolist()}"
    assert right.sum() >= 0.95 * N_SONGS


@pytest.mark.parametrize("change", [transposed, reorchestrated], ids=["key", "programs"])
def test_key_and_programs_do_not_matter_at_all(change: Change) -> None:
    notes = band_song(3)
    changed = change(notes, np.random.default_rng(0))
    assert not np.array_equal(
        notes.pitch + 200 * notes.program, changed.pitch + 200 * changed.program
    )
    before, after = patterns(song_of(notes)), patterns(song_of(changed))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("beat_resolution", [4, 8, 12, 24, 48])
def test_grids_do_not_matter(beat_resolution: int, originals: NDArray[np.uint32]) -> None:
    scale = beat_resolution / TPQ
    songs = []
    for seed in range(10):
        notes = band_song(seed)
        songs.append(
            song_of(
                replace(notes, onset=np.floor(notes.onset * scale + 0.5).astype(np.int32)),
                beat_resolution,
            )
        )
    pairs = near_pairs(np.concatenate([originals[:10], [sketch(song) for song in songs]]))
    assert pairs.tolist() == [[i, i + 10] for i in range(10)]


@pytest.mark.parametrize("tracks", ["merged", "melody"])
def test_songs_in_one_track_are_found_among_their_like(tracks: str) -> None:
    def cleaned(notes: NoteTable) -> Song:
        score = make_score(
            note(int(o) / TPQ, 0.25, int(p), program=int(g))
            for o, p, g in zip(notes.onset, notes.pitch, notes.program, strict=True)
        )
        return clean(score, Grid(8), tracks=tracks)

    rng = np.random.default_rng(0)
    notes = [without(DRUMS)(band_song(seed), rng) for seed in range(8)]
    copies = [all_of(transposed, reorchestrated)(n, rng) for n in notes]
    pairs = near_pairs(np.array([sketch(cleaned(n)) for n in notes + copies]))
    assert pairs.tolist() == [[i, i + 8] for i in range(8)]


def test_drums_alone() -> None:
    rng = np.random.default_rng(0)
    songs = [drum_song(seed) for seed in range(40)]
    copies = [without_start(song, rng) for song in songs]
    pairs = near_pairs(np.array([sketch(song_of(n)) for n in songs + copies]))
    assert pairs.tolist() == [[i, i + 40] for i in range(40)]
    # One beat throughout, with nothing else, is anybody's.
    beat = table(
        (DRUMS, [i / 2 for i in range(512)], [(36, 42, 38, 42)[i % 4] for i in range(512)])
    )
    assert not sketch(song_of(beat)).any()


def test_drums_do_not_meet_notes() -> None:
    drums = drum_song(0)
    played = replace(drums, program=np.zeros_like(drums.program))
    assert sketch(song_of(drums)).any()
    assert len(near_pairs(np.stack([sketch(song_of(drums)), sketch(song_of(played))]))) == 0


@pytest.mark.parametrize(
    "pitches",
    [
        [],
        [60],
        [60, 64, 62, 65, 69, 67, 71, 72],
        [60] * 500,
        [60 + i % 12 for i in range(500)],
        [60 + int(SCALE[i % 7]) for i in range(500)],
        [(60, 64, 67, 72)[i % 4] for i in range(500)],
        [(60, 62, 64, 65, 67, 65, 64, 69)[i % 8] for i in range(500)],
    ],
    ids=["empty", "one", "short", "repeated", "chromatic", "scale", "arpeggio", "ostinato"],
)
def test_what_says_nothing_matches_nothing(pitches: list[int]) -> None:
    row = sketch(song_of(table((0, [i / 2 for i in range(len(pitches))], pitches))))
    assert row.shape == (ROW,)
    assert row.dtype == np.uint32
    assert not row.any()
    assert len(near_pairs(np.stack([row, row]))) == 0


def test_no_songs_and_wrong_shapes() -> None:
    assert near_pairs(np.zeros((0, ROW), np.uint32)).shape == (0, 2)
    assert near_pairs(np.zeros((1, ROW), np.uint32)).shape == (0, 2)
    with pytest.raises(ValueError, match=r"shape \(3, 128\)"):
        near_pairs(np.zeros((3, SKETCH), np.uint32))


def groups(n: int, pairs: NDArray[np.int64]) -> list[set[int]]:
    where = {i: {i} for i in range(n)}
    for a, b in pairs.tolist():
        if where[a] is not where[b]:
            where[a] |= where[b]
            for i in where[b]:
                where[i] = where[a]
    return sorted({id(g): g for g in where.values()}.values(), key=min)


@pytest.mark.parametrize("kind", ["equal", "alike"])
def test_a_crowd_of_one_piece_is_cheap_and_one_group(
    kind: str, originals: NDArray[np.uint32]
) -> None:
    rng = np.random.default_rng(0)
    crowd = np.repeat(originals[:1], 3000, axis=0)
    if kind == "alike":  # each has its own values in 20% of its sketch
        own = rng.random(crowd.shape) < 0.2
        own[:, [SKETCH, ROW - 1]] = False
        crowd[own] = rng.integers(0, 2**32, own.sum(), dtype=np.uint32)
    start = perf_counter()
    pairs = near_pairs(np.concatenate([originals[1:], crowd]))
    assert perf_counter() - start < 20
    assert len(pairs) == 2999 if kind == "equal" else len(pairs) < 3 * (NEIGHBOURS + 1) * 3000
    found = groups(N_SONGS - 1 + 3000, pairs)
    assert len(found) == N_SONGS
    assert len(found[-1]) == 3000


def test_values_that_many_songs_hold_make_no_pair() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 2**32, (RARE + 8, ROW), dtype=np.uint32)
    rows[:, [SKETCH, ROW - 1]] = 100, 0
    rows[:, :56] = rows[0, :56]  # J = 0.44, a containment of 0.6
    assert len(near_pairs(rows)) == 0
    assert len(groups(8, near_pairs(rows[:8]))) == 1
    rows[:, :72] = rows[0, :72]  # J = 0.56
    assert len(groups(len(rows), near_pairs(rows))) == 1


@pytest.mark.parametrize("seed", range(3))
def test_order_does_not_matter(originals: NDArray[np.uint32], seed: int) -> None:
    rng = np.random.default_rng(seed)
    copies = originals[rng.integers(0, N_SONGS, 200)].copy()
    own = rng.random(copies.shape) < rng.random((200, 1))
    own[:, [SKETCH, ROW - 1]] = False
    copies[own] = rng.integers(0, 2**32, own.sum(), dtype=np.uint32)
    rows = np.concatenate([originals, copies])
    order = rng.permutation(len(rows))
    pairs = near_pairs(rows)
    assert np.array_equal(pairs, near_pairs(rows))
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    moved = order[near_pairs(rows[order])]
    assert groups(len(rows), moved) == groups(len(rows), pairs)


@given(scores(), st.sampled_from([4, 8, 12]), st.sampled_from(["all", "merged", "melody"]))
@settings(max_examples=30, deadline=None)
def test_any_song_has_one_sketch(score, beat_resolution: int, tracks: str) -> None:  # type: ignore[no-untyped-def]
    try:
        song = clean(score, Grid(beat_resolution), tracks=tracks)
    except RejectedSongError:
        return
    row = sketch(song)
    assert np.array_equal(row, sketch(song))
    for found, part in zip(patterns(song), row.reshape(2, -1), strict=True):
        assert part[-1] == len(found) == len(np.unique(found))
        assert len(found) == 0 or len(found) >= MIN_PATTERNS
        assert part.any() == (len(found) > 0)


def test_progress_ends_at_its_total(originals: NDArray[np.uint32]) -> None:
    seen: list[tuple[int, int]] = []
    near_pairs(originals, lambda what, done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] == seen[-1][1]
