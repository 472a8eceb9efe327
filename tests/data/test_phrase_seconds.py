"""``data.phrase_seconds``: as many whole bars as come nearest to the seconds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_phrases import SONGS, Bars, Onsets, all_rows, read_all, triples
from toysongs import midi, tokenizer

from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import (
    MemorySongs,
    PhraseReader,
    Seconds,
    consecutive,
    length_settings,
    phrase_length,
)
from midigenre.data.sampler import RandomStarts
from midigenre.data.sandbox import read_song
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.midi.clean import clean
from midigenre.midi.read import read_score
from midigenre.tokenizers import Encoded

# A song as (onsets, quarters of a second) of each bar: sums of quarters are exact.
TIMED = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), min_size=1, max_size=20),
    min_size=1,
    max_size=4,
).filter(lambda songs: all(any(onsets for onsets, _ in bars) for bars in songs))
NO_TOKENS = Encoded(*(np.zeros(0, np.uint16),) * 3)
LENGTHS = st.builds(
    Seconds, st.integers(1, 60).map(lambda quarters: quarters / 4), st.integers(1, 8)
)


def timed(drawn: list[list[tuple[int, int]]]) -> Bars:
    return Bars(
        [[onsets for onsets, _ in bars] for bars in drawn],
        [[quarters / 4 for _, quarters in bars] for bars in drawn],
    )


def nearest_end(seconds: list[float], first: int, length: Seconds) -> int:
    """By definition: of all ends the nearest, the earlier one of two."""
    longer = seconds + [seconds[-1]] * length.max_bars
    ends = range(first + 1, first + length.max_bars + 1)
    return min(ends, key=lambda end: abs(sum(longer[first:end]) - length.seconds))


@given(TIMED, LENGTHS)
@settings(max_examples=150, deadline=None)
def test_consecutive_phrases_tile_the_song(
    drawn: list[list[tuple[int, int]]], length: Seconds
) -> None:
    songs = timed(drawn)
    expected = []
    for song, bars in enumerate(songs.onsets):
        first = 0
        while first < len(bars):
            end = min(nearest_end(songs.seconds[song], first, length), len(bars))
            if any(bars[first:end]):
                expected.append((song, first, end))
            first = end
    assert triples(consecutive(songs, all_rows(songs), length)) == expected


@given(TIMED, LENGTHS)
@settings(max_examples=150, deadline=None)
def test_random_phrases_are_all_those_that_have_an_onset(
    drawn: list[list[tuple[int, int]]], length: Seconds
) -> None:
    songs = timed(drawn)
    found = triples(RandomStarts(songs, all_rows(songs), length, 300).epoch(0, 0))
    for song, bars in enumerate(songs.onsets):
        ends = [nearest_end(songs.seconds[song], b, length) for b in range(len(bars))]
        filled = [(song, b, min(end, len(bars))) for b, end in enumerate(ends) if any(bars[b:end])]
        one = ends[0] >= len(bars)  # it holds the whole song
        assert {p for p in found if p[0] == song} == set(filled[:1] if one else filled)


@given(TIMED, LENGTHS)
@settings(max_examples=50, deadline=None)
def test_a_song_gives_as_many_random_phrases_as_lie_end_to_end(
    drawn: list[list[tuple[int, int]]], length: Seconds
) -> None:
    songs = Bars([[1] * len(bars) for bars in drawn], timed(drawn).seconds)
    random = RandomStarts(songs, all_rows(songs), length)
    assert random.song.tolist() == consecutive(songs, all_rows(songs), length).song.tolist()


@given(SONGS, st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_at_one_tempo_and_meter_seconds_are_bars(onsets: Onsets, width: int, epoch: int) -> None:
    songs = Bars(onsets)
    for length in (Seconds(2.0 * width, 64), Seconds(2.0 * width + 0.9, 64)):
        rows = all_rows(songs)
        assert triples(consecutive(songs, rows, length)) == triples(consecutive(songs, rows, width))
        drawn = triples(RandomStarts(songs, rows, length).epoch(1, epoch))
        assert drawn == triples(RandomStarts(songs, rows, width).epoch(1, epoch))


def test_empty_phrases_are_not_drawn() -> None:
    songs = Bars([[0, 0, 1]], [[3.0, 3.0, 1.0]])
    drawn = triples(RandomStarts(songs, np.array([0]), Seconds(5.0, 64), 50).epoch(0, 0))
    assert set(drawn) == {(0, 1, 3), (0, 2, 3)}


def test_phrases_follow_the_songs_own_tempo_and_meter() -> None:
    """4 s a bar, from bar 6 on 2 s, from bar 12 on 3/4 of 1.5 s."""
    data = midi([2] * 15, meters=[(0, 4, 4), (48, 3, 4)], tempi=[(0, 60.0), (24, 120.0)])
    song = clean(read_score(data), tokenizer().grid)
    songs = MemorySongs([(song, NO_TOKENS)])
    assert songs.bar_seconds(0).tolist() == pytest.approx(
        [*range(0, 24, 4), *range(24, 36, 2), 36, 37.5, 39, 40.5, 42], abs=1e-3
    )
    found = triples(consecutive(songs, np.array([0]), Seconds(8.0, 64)))
    assert found == [(0, 0, 2), (0, 2, 4), (0, 4, 6), (0, 6, 10), (0, 10, 15), (0, 15, 16)]
    assert triples(consecutive(songs, np.array([0]), Seconds(8.0, 2)))[3:5] == [
        (0, 6, 8),
        (0, 8, 10),
    ]
    # Shorter than a bar: one bar, never none.
    assert triples(consecutive(songs, np.array([0]), Seconds(0.01, 64)))[:2] == [
        (0, 0, 1),
        (0, 1, 2),
    ]


def test_neutral_songs_follow_their_one_tempo() -> None:
    tok = tokenizer("remi", neutral=True)
    song = read_song(midi([2] * 9, tempi=[(0, 60.0), (12, 240.0)]), tok)[0]
    songs = MemorySongs([(song, tok.encode(song))])
    assert triples(consecutive(songs, np.array([0]), Seconds(8.0, 64))) == [
        (0, 0, 4),
        (0, 4, 8),
        (0, 8, 9),
    ]


def test_shards_and_memory_know_the_same_seconds(
    toy: ShardSet, toy_songs: dict[str, MemorySongs]
) -> None:
    rows = np.arange(8)
    for row in rows.tolist():
        np.testing.assert_array_equal(toy.bar_seconds(row), toy_songs["remi"].bar_seconds(row))
        np.testing.assert_array_equal(toy.bar_seconds(row), toy.song(row).bar_seconds())
    length = Seconds(6.0, 64)
    mapped, read = consecutive(toy, rows, length), consecutive(toy_songs["remi"], rows, length)
    assert triples(mapped) == triples(read)
    # Slow songs have shorter phrases, in bars.
    widths = {
        end - first for song, first, end in triples(mapped) if end < len(toy.bar_onsets(song))
    }
    assert len(widths) > 1
    reader, other = (PhraseReader(s, toy.tokens, 300) for s in (toy, toy_songs["remi"]))
    for a, b in zip(read_all(reader, mapped), read_all(other, read), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_data_module_reads_them(toy: ShardSet) -> None:
    data = PhraseDataModule(toy.folder, phrase_bars=None, phrase_seconds=6.0)
    assert data.length == Seconds(6.0, toy.tokens.max_bars)
    expected = consecutive(toy, toy.rows("val"), data.length)
    starts = [first for b in data.val_dataloader() for first in b.start_B.tolist()]
    assert starts == expected.first.tolist()
    whole = RandomStarts(toy, toy.rows("train"), data.length).epoch(0, 0)
    batches = list(data.train_dataloader())
    drawn = {
        (s, b) for x in batches for s, b in zip(x.song_B.tolist(), x.start_B.tolist(), strict=True)
    }
    assert drawn == {(s, first) for s, first, _ in triples(whole)}


@pytest.mark.parametrize(
    ("bars", "seconds", "says"),
    [
        (None, None, "phrase_bars=null and data.phrase_seconds=null: set exactly one"),
        (4, 8.0, "phrase_bars=4 and data.phrase_seconds=8.0: set exactly one .* the other to null"),
        (None, 0, "data.phrase_seconds must be above 0, got 0"),
        (None, -1.5, "got -1.5"),
        (None, math.inf, "got inf"),
        (None, math.nan, "got nan"),
        (None, "long", "got long"),
        (0, None, r"data.phrase_bars must lie in 1 to 64 \(tokenizer.max_bars\), got 0"),
        (65, None, "got 65"),
        (1.5, None, "got 1.5"),
    ],
)
def test_lengths_out_of_range_are_named(bars: Any, seconds: Any, says: str) -> None:
    data = {"phrase_bars": bars, "phrase_seconds": seconds}
    with pytest.raises(UserError, match=says) as caught:
        phrase_length(data, tokenizer().spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [(4, None), (None, 8.0)])
def test_a_length_is_what_its_settings_say(data: tuple[int | None, float | None]) -> None:
    written = dict(zip(("phrase_bars", "phrase_seconds"), data, strict=True))
    assert length_settings(phrase_length(written, tokenizer().spec)) == written
