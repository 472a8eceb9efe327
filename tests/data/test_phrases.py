"""Phrases: the same bars for every tokenizer, random ones a function of (seed, epoch, index)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toysongs import CLASSES, in_memory, midi, tokenizer

from midigenre.data.phrases import MemorySongs, PhraseReader, Phrases, at_most, consecutive
from midigenre.data.sampler import RandomStarts
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.spec import Field

SLICED = [kind for kind in CLASSES if tokenizer(kind).spec.bars != "none"]
Onsets = list[list[int]]


class Bars:
    """Songs of which only the number of onsets in each bar is known."""

    def __init__(self, onsets: Onsets, seconds: list[list[float]] | None = None) -> None:
        self.onsets = onsets
        self.seconds = seconds or [[2.0] * len(bars) for bars in onsets]

    def __len__(self) -> int:
        return len(self.onsets)

    def bar_onsets(self, index: int) -> np.ndarray:
        return np.array(self.onsets[index], np.int32)

    def bar_seconds(self, index: int) -> np.ndarray:
        return np.r_[0, np.cumsum(self.seconds[index])]


# As in music.py the last bar has an onset.
SONGS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), max_size=20), st.integers(1, 3)).map(
        lambda p: [*p[0], p[1]]
    ),
    min_size=1,
    max_size=5,
)


def triples(phrases: Phrases) -> list[tuple[int, int, int]]:
    return list(
        zip(phrases.song.tolist(), phrases.first.tolist(), phrases.end.tolist(), strict=True)
    )


def all_rows(songs: Bars | MemorySongs) -> np.ndarray:
    return np.arange(len(songs))


def read_all(reader: PhraseReader, phrases: Phrases) -> list[np.ndarray]:
    return [reader(*p)[0] for p in triples(phrases)]


# Consecutive phrases


@given(SONGS, st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_consecutive_phrases_partition_the_bars_with_onsets(onsets: Onsets, width: int) -> None:
    expected = []
    for song, bars in enumerate(onsets):
        for first in range(0, len(bars), width):
            end = min(first + width, len(bars))
            if sum(bars[first:end]) > 0:
                expected.append((song, first, end))
    songs = Bars(onsets)
    found = consecutive(songs, all_rows(songs), width)
    assert triples(found) == expected
    covered = [(s, b) for s, first, end in expected for b in range(first, end)]
    assert len(covered) == len(set(covered))
    assert {(s, b) for s, bars in enumerate(onsets) for b, n in enumerate(bars) if n} <= set(
        covered
    )


def test_last_piece_short_song_empty_phrase_and_order_of_rows() -> None:
    songs = Bars([[1] * 9, [1, 1], [1, 0, 0, 0, 0, 0, 0, 0, 2]])
    assert triples(consecutive(songs, np.array([0]), 4)) == [(0, 0, 4), (0, 4, 8), (0, 8, 9)]
    assert triples(consecutive(songs, np.array([1]), 4)) == [(1, 0, 2)]
    assert triples(consecutive(songs, np.array([2]), 4)) == [(2, 0, 4), (2, 8, 9)]
    assert triples(consecutive(songs, np.array([2, 1]), 8)) == [(2, 0, 8), (2, 8, 9), (1, 0, 2)]
    none = consecutive(songs, np.zeros(0, np.int64), 4)
    assert (len(none), none.song.dtype) == (0, np.int64)


@pytest.mark.parametrize("width", [1, 3, 4, 64])
def test_the_same_phrases_for_every_tokenizer(
    toy_songs: dict[str, MemorySongs], width: int
) -> None:
    songs = toy_songs["remi"]
    expected = triples(consecutive(songs, all_rows(songs), width))
    random = triples(RandomStarts(songs, all_rows(songs), width).epoch(0, 3))
    assert len(expected) >= 8
    for kind, others in toy_songs.items():
        assert triples(consecutive(others, all_rows(others), width)) == expected, kind
        assert triples(RandomStarts(others, all_rows(others), width).epoch(0, 3)) == random, kind


def test_the_same_notes_for_every_tokenizer(toy_songs: dict[str, MemorySongs]) -> None:
    """Decoded, a phrase has the notes of its bars, whichever tokenizer wrote it."""
    songs = toy_songs["octuple"]
    for song, first, end in triples(consecutive(songs, np.arange(3), 4)):
        sets = {}
        for kind in ("remi", "cp", "octuple"):
            tok = tokenizer(kind)
            ids, stop = PhraseReader(toy_songs[kind], tok.spec)(song, first, end)
            assert stop == end
            score = tok.decode(ids)
            sets[kind] = sorted(
                (n.time, n.pitch, -1 if t.is_drum else t.program)
                for t in score.tracks
                for n in t.notes
            )
        phrase = songs.song(song).bars(first, end).notes
        expected = sorted(zip(phrase.onset, phrase.pitch, phrase.program, strict=True))
        assert sets["remi"] == sets["cp"] == sets["octuple"] == expected


# Random starts


@given(SONGS, st.integers(1, 6), st.one_of(st.none(), st.integers(1, 4)), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_random_phrases_end_with_the_song_at_the_latest_and_have_an_onset(
    onsets: Onsets, width: int, per_song: int | None, epoch: int
) -> None:
    songs = Bars(onsets)
    starts = RandomStarts(songs, all_rows(songs), width, per_song)
    found = triples(starts.epoch(7, epoch))
    assert len(starts) == len(found)
    assert starts.song.tolist() == [s for s, _, _ in found]
    for song, bars in enumerate(onsets):
        mine = [p for p in found if p[0] == song]
        assert len(mine) == (per_song or -(-len(bars) // width))
        for _, first, end in mine:
            assert end == min(first + width, len(bars))
            assert 0 <= first < end
            assert width < len(bars) or first == 0 or not any(bars[:first])
            assert sum(bars[first:end]) > 0
    assert triples(RandomStarts(songs, all_rows(songs), width, per_song).epoch(7, epoch)) == found


def test_every_start_is_drawn_and_no_other() -> None:
    songs = Bars([[1, 0, 0, 0, 1, 1], [1, 1]])
    starts = RandomStarts(songs, all_rows(songs), 2, phrases_per_song=200)
    found = set(triples(starts.epoch(0, 0)))
    assert found == {(0, 0, 2), (0, 3, 5), (0, 4, 6), (0, 5, 6), (1, 0, 2)}


def test_phrases_depend_on_seed_epoch_and_index() -> None:
    songs = Bars([[1] * 50] * 6)
    starts = RandomStarts(songs, all_rows(songs), 4)
    drawn = {(s, e): tuple(triples(starts.epoch(s, e))) for s in range(3) for e in range(3)}
    assert len(set(drawn.values())) == 9
    # What comes before an index, not after it, may matter.
    fewer = RandomStarts(songs, np.arange(3), 4)
    assert tuple(triples(fewer.epoch(1, 2))) == drawn[1, 2][: len(fewer)]


def test_only_the_rows_that_are_asked_for() -> None:
    songs = Bars([[1] * 8] * 5)
    starts = RandomStarts(songs, np.array([1, 4]), 4)
    assert set(starts.epoch(0, 0).song.tolist()) == {1, 4}
    none = RandomStarts(songs, np.zeros(0, np.int64), 4)
    assert len(none) == len(none.epoch(0, 0)) == 0


# Reading


@pytest.mark.parametrize("kind", CLASSES)
def test_planned_lengths_are_real_lengths(toy_songs: dict[str, MemorySongs], kind: str) -> None:
    songs = toy_songs[kind]
    phrases = RandomStarts(songs, all_rows(songs), 4, 5).epoch(0, 0)
    phrases = phrases.select(np.random.default_rng(0).permutation(len(phrases)))
    reader = PhraseReader(songs, tokenizer(kind).spec)
    real = np.array([len(ids) for ids in read_all(reader, phrases)])
    planned = reader.lengths(phrases)
    if kind in SLICED:
        assert np.all((planned <= real) & (real <= planned + 2))
    else:
        # An estimate from the number of notes: right in sum, and roughly one by one.
        assert planned.sum() == pytest.approx(real.sum(), rel=0.15)
        assert np.all(np.abs(planned - real) <= 0.5 * real + 10)


def test_lengths_of_no_phrases(toy_songs: dict[str, MemorySongs]) -> None:
    none = Phrases(*(np.zeros(0, np.int64),) * 3)
    for kind, songs in toy_songs.items():
        assert len(PhraseReader(songs, tokenizer(kind).spec).lengths(none)) == 0


@pytest.mark.parametrize("kind", CLASSES)
def test_a_phrase_is_the_phrase_encoded_alone(toy_songs: dict[str, MemorySongs], kind: str) -> None:
    songs, tok = toy_songs[kind], tokenizer(kind)
    reader = PhraseReader(songs, tok.spec)
    for song, first, end in triples(RandomStarts(songs, all_rows(songs), 4).epoch(0, 0)):
        ids, stop = reader(song, first, end)
        assert stop == end
        assert ids.dtype == np.int64
        alone = tok.encode(songs.song(song).bars(first, end)).ids_TF
        np.testing.assert_array_equal(ids, alone)


@pytest.mark.parametrize("kind", CLASSES)
def test_long_phrases_end_at_the_last_bar_that_fits(
    toy_songs: dict[str, MemorySongs], kind: str
) -> None:
    songs, tok = toy_songs[kind], tokenizer(kind)
    whole = PhraseReader(songs, tok.spec)
    phrases = consecutive(songs, all_rows(songs), 4)
    lengths = [len(ids) for ids in read_all(whole, phrases)]
    limit = int(np.median(lengths) * 0.7)
    reader = PhraseReader(songs, tok.spec, limit)
    cut = 0
    for (song, first, end), length in zip(triples(phrases), lengths, strict=True):
        ids, stop = reader(song, first, end)
        assert 0 < len(ids) <= limit
        assert first < stop <= end
        if length <= limit:
            assert (len(ids), stop) == (length, end)
            continue
        cut += 1
        bars = [len(whole(song, first, b)[0]) for b in range(first + 1, end + 1)]
        fitting = [b for b, n in zip(range(first + 1, end + 1), bars, strict=True) if n <= limit]
        assert stop == (fitting[-1] if fitting else first + 1)
        expected = whole(song, first, stop)[0]
        np.testing.assert_array_equal(ids, expected[:limit])
    assert cut > 3
    assert reader.lengths(phrases).max() <= limit


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("limit", [1, 5, 8, 20])
def test_a_long_bar_after_empty_ones_is_cut_inside(kind: str, limit: int) -> None:
    """The first bars are empty, and the one with the notes does not fit."""
    songs = in_memory([midi([1, 1, 0, 0, 30, 1])], kind)
    spec = tokenizer(kind).spec
    ids, stop = PhraseReader(songs, spec, limit)(0, 2, 6)
    assert stop == 5
    np.testing.assert_array_equal(ids, PhraseReader(songs, spec)(0, 2, 5)[0][:limit])
    assert len(ids) == limit


def test_shards_and_memory_give_the_same_phrases(
    toy: ShardSet, toy_songs: dict[str, MemorySongs]
) -> None:
    phrases = consecutive(toy, np.arange(8), 4)
    spec = tokenizer().spec
    mapped, read = PhraseReader(toy, toy.tokens, 300), PhraseReader(toy_songs["remi"], spec, 300)
    for a, b in zip(read_all(mapped, phrases), read_all(read, phrases), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(mapped.lengths(phrases), read.lengths(phrases))


def test_reading_does_not_change_the_song() -> None:
    songs = in_memory([midi([2] * 9, tempi=[(0, 120.0), (12, 60.0)])], "octuple")
    before = songs.encoded(0).ids_TF.copy()
    reader = PhraseReader(songs, tokenizer("octuple").spec)
    ids, _ = reader(0, 4, 8)
    ids += 1
    np.testing.assert_array_equal(songs.encoded(0).ids_TF, before)


# Marks of a song's start and end


@pytest.mark.parametrize("kind", CLASSES)
def test_marks_stand_where_a_song_begins_and_ends(
    toy_songs: dict[str, MemorySongs], kind: str
) -> None:
    songs, spec = toy_songs[kind], tokenizer(kind).spec
    bos, eos = spec.special("BOS"), spec.special("EOS")
    plain, marked = PhraseReader(songs, spec), PhraseReader(songs, spec, marks=True)
    phrases = consecutive(songs, all_rows(songs), 3)
    lengths = marked.lengths(phrases) - plain.lengths(phrases)
    seen = set()
    for (song, first, end), more in zip(triples(phrases), lengths.tolist(), strict=True):
        ids, stop = marked(song, first, end)
        begins, ends = first == 0, end == len(songs.bar_onsets(song))
        seen.add((begins, ends))
        expected = [[bos]] * begins + [plain(song, first, end)[0]] + [[eos]] * ends
        assert ids.tolist() == np.concatenate(expected).tolist()
        assert (stop, more) == (end, begins + ends)
    assert {(True, False), (False, True), (False, False)} <= seen


@pytest.mark.parametrize("kind", SLICED)
def test_marks_count_in_max_tokens(toy_songs: dict[str, MemorySongs], kind: str) -> None:
    songs, spec = toy_songs[kind], tokenizer(kind).spec
    n_bars = len(songs.bar_onsets(0))
    whole, _ = PhraseReader(songs, spec, marks=True)(0, 0, n_bars)
    ids, stop = PhraseReader(songs, spec, len(whole), marks=True)(0, 0, n_bars)
    # A reader cannot tell a song that just fits from one whose last bar was cut: it ends unmarked.
    assert stop == n_bars
    assert ids.tolist() == whole[:-1].tolist()
    ids, stop = PhraseReader(songs, spec, len(whole) + 1, marks=True)(0, 0, n_bars)
    assert stop == n_bars
    assert ids.tolist() == whole.tolist()
    ids, stop = PhraseReader(songs, spec, len(whole) - 1, marks=True)(0, 0, n_bars)
    assert stop < n_bars
    assert ids.tolist() == whole[: len(ids)].tolist()
    assert len(ids) < len(whole)


def test_marks_need_their_tokens_and_room(toy_songs: dict[str, MemorySongs]) -> None:
    spec = tokenizer("remi").spec
    with pytest.raises(UserError, match="no room"):
        PhraseReader(toy_songs["remi"], spec, 2, marks=True)
    tokens = tuple(t for t in spec.fields[0].tokens if t != "EOS_None")
    bare = replace(spec, fields=(Field("token", tokens),))
    with pytest.raises(UserError, match="special_tokens"):
        PhraseReader(toy_songs["remi"], bare, marks=True)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 12))
def test_at_most_so_many_of_each_song_evenly(counts: list[int], per_song: int) -> None:
    song = np.repeat(np.arange(len(counts)) * 3, counts)
    place = np.concatenate([np.arange(n) for n in counts])
    kept = at_most(Phrases(song, place, place + 1), per_song)
    for i, n in enumerate(counts):
        places = kept.first[kept.song == i * 3]
        assert len(places) == min(n, per_song)
        gaps = np.diff(np.r_[-1, places])
        assert gaps.max() <= -(-n // len(places))  # none is further from the next than needed
