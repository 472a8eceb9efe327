"""The synthesised styles: determined by the seed, varied, and true to their rule."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from symusic.core import ScoreTick

from midigenre.corpora.sequencer import METERS, plan_song
from midigenre.corpora.styles import STYLES

N_SONGS = 12


def song(style: str, seed: int) -> ScoreTick:
    return STYLES[style](np.random.default_rng([7, seed]))


def pitches(score: ScoreTick, *, drums: bool) -> list[int]:
    return [n.pitch for t in score.tracks if t.is_drum == drums for n in t.notes]


def bars(score: ScoreTick) -> int:
    meter = score.time_signatures[0]
    return -(-score.end() // (score.tpq * 4 * meter.numerator // meter.denominator))


@pytest.fixture(scope="module")
def songs() -> dict[str, list[ScoreTick]]:
    return {style: [song(style, i) for i in range(N_SONGS)] for style in STYLES}


@pytest.mark.parametrize("style", STYLES)
def test_seed_decides_every_byte(style: str) -> None:
    assert song(style, 1).dumps_midi() == song(style, 1).dumps_midi()
    assert song(style, 1).dumps_midi() != song(style, 2).dumps_midi()


@pytest.mark.parametrize("style", STYLES)
def test_songs_differ(style: str, songs: dict[str, list[ScoreTick]]) -> None:
    meters = {
        (s.time_signatures[0].numerator, s.time_signatures[0].denominator) for s in songs[style]
    }
    assert len(meters) >= 2
    assert len({bars(s) for s in songs[style]}) >= 4
    assert len({s.tempos[0].qpm for s in songs[style]}) >= 6
    keys = {frozenset(p % 12 for p in pitches(s, drums=False)) for s in songs[style]}
    assert style == "atonal" or len(keys) >= 4
    assert len({s.dumps_midi() for s in songs[style]}) == N_SONGS


@pytest.mark.parametrize("style", STYLES)
def test_songs_start_on_the_grid(style: str, songs: dict[str, list[ScoreTick]]) -> None:
    for s in songs[style]:
        assert min(n.time for t in s.tracks for n in t.notes) == 0
        assert 14 <= bars(s) <= 48  # the last bars of a plan may be rests
        assert all(n.time % (s.tpq // 4) == 0 and n.duration > 0 for t in s.tracks for n in t.notes)


def test_a_song_is_not_one_loop(songs: dict[str, list[ScoreTick]]) -> None:
    different = []
    for s in itertools.chain.from_iterable(songs.values()):
        meter = s.time_signatures[0]
        length = s.tpq * 4 * meter.numerator // meter.denominator
        content: dict[int, set[tuple[int, int]]] = {}
        for track in s.tracks:
            for n in track.notes:
                content.setdefault(n.time // length, set()).add((n.time % length, n.pitch))
        different.append(len({frozenset(c) for c in content.values()}))
    assert min(different) >= 4
    assert np.median(different) >= 10


def test_plans_share_meters_and_lengths() -> None:
    plans = [plan_song(np.random.default_rng(i)) for i in range(300)]
    assert all(16 <= p.n_bars <= 48 for p in plans)
    meters = Counter(p.meter for p in plans)
    assert set(meters) == set(METERS)
    assert meters[(4, 4)] > 120
    assert {p.root for p in plans} == set(range(12))


def test_atonal_uses_all_pitch_classes_evenly(songs: dict[str, list[ScoreTick]]) -> None:
    for s in songs["atonal"]:
        counts = np.bincount(np.array(pitches(s, drums=False)) % 12, minlength=12)
        if counts.sum() >= 120:
            assert counts.max() <= 2 * counts.min()


def test_metal_is_low_and_full_of_fifths(songs: dict[str, list[ScoreTick]]) -> None:
    for s in songs["metal"]:
        assert np.median(pitches(s, drums=False)) < 52
        guitar = next(t for t in s.tracks if t.name == "guitar")
        at = {(n.time, n.pitch) for n in guitar.notes}
        assert any((time, pitch + 7) in at for time, pitch in at)


def test_pop_melody_is_high_and_in_eighths(songs: dict[str, list[ScoreTick]]) -> None:
    for s in songs["pop"]:
        melody = next(t for t in s.tracks if t.name == "melody")
        assert np.median([n.pitch for n in melody.notes]) >= 68
        assert all(n.time % (s.tpq // 2) == 0 for n in melody.notes)


def test_rock_melody_is_off_the_beat(songs: dict[str, list[ScoreTick]]) -> None:
    for s in songs["rock"]:
        melody = next(t for t in s.tracks if t.name == "melody")
        assert all(n.time % s.tpq == s.tpq // 2 for n in melody.notes) or (
            s.time_signatures[0].denominator == 8
        )


def test_rap_has_drums_and_a_sparse_bass(songs: dict[str, list[ScoreTick]]) -> None:
    for s in songs["rap"]:
        assert {36, 38, 42} <= set(pitches(s, drums=True))
        bass = next(t for t in s.tracks if t.name == "bass")
        assert len(bass.notes) <= 3 * bars(s)


def test_other_bands_have_drums_too(songs: dict[str, list[ScoreTick]]) -> None:
    with_drums = [
        any(t.is_drum for t in s.tracks) for style in ("metal", "rock", "pop") for s in songs[style]
    ]
    assert 0.2 < np.mean(with_drums) < 0.8
