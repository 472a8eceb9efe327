"""Phrases of many lengths, balanced classes, songs without a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toysongs import prepared, songs_in

from midigenre.data.augment import AugmentSettings
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import Phrases
from midigenre.data.sampler import Balance, RandomStarts
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.spec import UNKNOWN


class Bars:
    """Songs of which only the number of onsets in each bar is known."""

    def __init__(self, onsets: list[list[int]]) -> None:
        self.onsets = onsets

    def bar_onsets(self, index: int) -> np.ndarray:
        return np.array(self.onsets[index], np.int32)

    def rows(self) -> np.ndarray:
        return np.arange(len(self.onsets))


def starts(onsets: list[list[int]], length: int = 4, **more: Any) -> RandomStarts:
    songs: Any = Bars(onsets)
    return RandomStarts(songs, songs.rows(), length, **more)


def triples(phrases: Phrases) -> list[tuple[int, int, int]]:
    return list(
        zip(phrases.song.tolist(), phrases.first.tolist(), phrases.end.tolist(), strict=True)
    )


# Songs of one bar or more, the last one with an onset, as clean songs have it.
SONGS = st.lists(
    st.lists(st.integers(0, 2), max_size=30).map(lambda bars: [*bars, 1]), min_size=1, max_size=6
)


# Phrases of many lengths


@given(SONGS, st.integers(1, 9), st.integers(0, 12), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_phrases_of_many_lengths_have_an_onset_and_lie_in_their_song(
    onsets: list[list[int]], low: int, more: int, epoch: int
) -> None:
    made = starts(onsets, bars=(low, low + more))
    fixed = starts(onsets)
    assert len(made) == len(fixed)
    assert made.song.tolist() == fixed.song.tolist()
    found = triples(made.epoch(3, epoch))
    assert found == triples(made.epoch(3, epoch))
    for song, first, end in found:
        bars = onsets[song]
        assert 0 <= first < end <= len(bars)
        assert sum(bars[first:end]) > 0
        assert end - first <= low + more
        assert end - first >= low or end == len(bars)


def test_every_length_and_every_start_is_drawn() -> None:
    made = starts([[1] * 20], bars=(2, 5), phrases_per_song=4000)
    lengths = {}
    for _, first, end in triples(made.epoch(0, 0)):
        if first <= 15:
            lengths[end - first] = lengths.get(end - first, 0) + 1
    assert set(lengths) == {2, 3, 4, 5}
    assert max(lengths.values()) < 1.3 * min(lengths.values())
    assert {first for _, first, _ in triples(made.epoch(0, 0))} == set(range(20))
    # One phrase holds the whole song: it begins with it.
    assert set(triples(starts([[1, 1]], bars=(2, 9)).epoch(0, 0))) == {(0, 0, 2)}
    # A silent stretch is passed over, also at the end.
    silent = starts([[1, 0, 0, 0, 0, 1, 0, 0, 0]], bars=(2, 2), phrases_per_song=300)
    assert set(triples(silent.epoch(0, 0))) == {(0, 0, 2), (0, 4, 6), (0, 5, 7)}


def test_lengths_do_not_follow_from_the_starts() -> None:
    made = starts([[1] * 200], bars=(1, 100), phrases_per_song=2000)
    phrases = made.epoch(0, 0)
    inside = phrases.first < 100
    first, length = phrases.first[inside], (phrases.end - phrases.first)[inside]
    assert abs(np.corrcoef(first, length)[0, 1]) < 0.1


def test_the_data_module_draws_lengths_for_training_only(toy: ShardSet) -> None:
    data = PhraseDataModule(toy.folder, augment=AugmentSettings(phrase_bars=(2, 3)))
    loader: Any = data.train_dataloader()
    phrases = [p.phrases for p in loader.batch_sampler]
    assert {int(n) for p in phrases for n in p.end - p.first} <= {1, 2, 3}
    assert all(p.key is None for p in phrases)
    evaluated = data.phrases("val")
    assert set((evaluated.end - evaluated.first).tolist()) >= {4}


# Balance

CLASSES = np.array([0] * 8 + [1] * 3 + [UNKNOWN] * 2 + [2])


def of_class(found: list[tuple[int, int, int]]) -> dict[int, int]:
    drawn = CLASSES[[song for song, _, _ in found]]
    return {int(c): int((drawn == c).sum()) for c in np.unique(CLASSES)}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_classes_are_balanced_and_an_epoch_stays_as_long(share: float) -> None:
    onsets = [[1] * (4 * (1 + i % 5)) for i in range(len(CLASSES))]
    plain = starts(onsets)
    made = starts(onsets, balance=Balance(CLASSES, share))
    before = of_class(triples(plain.epoch(0, 0)))
    total = sum(n for c, n in before.items() if c >= 0)
    seen = set()
    for epoch in range(12):
        found = triples(made.epoch(0, epoch))
        assert found == triples(made.epoch(0, epoch))
        assert len(found) == len(made) == len(plain)
        after = of_class(found)
        assert after[UNKNOWN] == before[UNKNOWN]
        for c in (0, 1, 2):
            wanted = (1 - share) * before[c] + share * total / 3
            assert abs(after[c] - wanted) < 1
        seen |= {song for song, _, _ in found}
    assert seen == set(range(len(CLASSES)))
    if share == 0:
        assert triples(made.epoch(0, 3)) == triples(plain.epoch(0, 3))
    if share == 1:
        assert max(after[c] for c in (0, 1, 2)) - min(after[c] for c in (0, 1, 2)) <= 1


def test_what_rounding_leaves_goes_to_the_largest_remainder() -> None:
    """Phrases 4, 2 and 1, half balanced: 3.17, 2.17 and 1.67 are wanted, 3, 2 and 2 drawn."""
    classes = np.array([0, 1, 2])
    made = starts([[1] * 16, [1] * 8, [1] * 4], balance=Balance(classes, 0.5))
    assert np.bincount(classes[made.epoch(0, 0).song]).tolist() == [3, 2, 2]


def test_songs_of_a_class_share_what_it_gives() -> None:
    """A class that gives less reads all of its songs over the epochs, longer ones more often."""
    onsets = [[1] * 4, [1] * 16, *[[1] * 4] * 6, [1] * 40]
    made = starts(onsets, balance=Balance(np.array([0, 0, 0, 0, 0, 0, 0, 0, 1]), 1.0))
    counts = np.zeros(9)
    for epoch in range(600):
        counts += np.bincount(made.epoch(0, epoch).song, minlength=9)
    per_phrase = counts[:8] / np.array([1, 4, 1, 1, 1, 1, 1, 1])
    assert max(per_phrase) < 1.15 * min(per_phrase)
    assert counts[8] == counts[:8].sum() or abs(counts[8] - counts[:8].sum()) <= 600


@given(
    st.lists(st.tuples(st.integers(-1, 4), st.integers(1, 60)), min_size=1, max_size=30),
    st.floats(0.01, 1.0),
    st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_any_classes_can_be_balanced(
    songs: list[tuple[int, int]], share: float, epoch: int
) -> None:
    classes = np.array([c for c, _ in songs])
    made = starts([[1] * n for _, n in songs], balance=Balance(classes, share))
    found = triples(made.epoch(1, epoch))
    assert len(found) == len(made)
    drawn = classes[[song for song, _, _ in found]]
    assert set(drawn) == set(classes)
    other = classes[made.song]
    assert np.bincount(drawn + 1).tolist() == np.bincount(other + 1).tolist()


def test_class_counts_tell_what_is_drawn(tmp_path: Path) -> None:
    shards = prepared(songs_in(tmp_path / "in", 40, ("a", "a", "a", "b")), tmp_path)
    data = PhraseDataModule(shards.folder, balance=1.0, task_labels=("genre",))
    loader: Any = data.train_dataloader()
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        drawn = np.concatenate([p.phrases.song for p in loader.batch_sampler])
        counts = np.bincount(data.labels["genre"][drawn], minlength=2)
        assert counts.tolist() == data.class_counts()["genre"].tolist()
        assert abs(counts[0] - counts[1]) <= 1
    plain = PhraseDataModule(shards.folder).class_counts()["genre"]
    assert plain.sum() == counts.sum()
    assert plain[0] > 2 * plain[1]


def test_balance_is_checked(toy: ShardSet) -> None:
    with pytest.raises(UserError, match=r"data.balance must lie in 0 to 1, got 2"):
        PhraseDataModule(toy.folder, balance=2)
    with pytest.raises(UserError, match=r"data.balance=0.5: the task has no label"):
        PhraseDataModule(toy.folder, balance=0.5)


# Songs without a label


def test_songs_without_a_label_of_the_task_are_left_out_on_request(toy: ShardSet) -> None:
    def songs(data: PhraseDataModule) -> set[int]:
        data.labels["genre"][data.rows("train")[:5]] = UNKNOWN
        data.labels["emotion"][data.rows("train")[3:9]] = UNKNOWN
        loader: Any = data.train_dataloader()
        return {int(s) for p in loader.batch_sampler for s in p.phrases.song}

    rows = PhraseDataModule(toy.folder).rows("train").tolist()
    for labels, unlabelled, left in [
        (("genre",), True, rows),
        (("genre",), False, rows[5:]),
        (("genre", "emotion"), False, rows[:3] + rows[5:]),
        ((), False, rows),
    ]:
        data = PhraseDataModule(toy.folder, unlabelled=unlabelled, task_labels=labels)
        assert songs(data) == set(left)
    assert data.class_counts()["genre"].sum() > 0
