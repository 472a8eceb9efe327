"""Folds: shares of the training and validation songs that depend on their names only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toysongs import Listed, midi, prepared, songs_in, write

from midigenre.corpora.base import SongRef
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.shards import ShardSet
from midigenre.data.splits import Subset
from midigenre.errors import UserError

Row = dict[str, str]


def row(song_id: str, group: str = "", duplicate_group: str = "") -> Row:
    return {
        "song_id": song_id,
        "path": f"{song_id}.mid",
        "group": group,
        "duplicate_group": duplicate_group,
    }


def manifest(groups: Sequence[tuple[int, int]]) -> list[Row]:
    """Songs of these groups and duplicate groups; 0 means none."""
    return [
        row(f"s{i}", f"g{group}" if group else "", f"s{same}" if same else "")
        for i, (group, same) in enumerate(groups)
    ]


MANIFESTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=40).map(manifest)


@pytest.mark.parametrize(
    "text", ["3/2", "0/2", "abc", "1", "1/0", "-1/2", "1/2/3", "1.0/2", "", "1 / 2", 1, "²/2"]
)
def test_what_is_no_fold_is_one_clear_line(text: object) -> None:
    with pytest.raises(
        UserError, match="give i/n with i in 1 to n, for instance fold=1/2"
    ) as error:
        Subset.from_config(text)
    assert str(error.value).startswith(f"fold={text}:")
    assert "\n" not in str(error.value)


def test_a_fold_is_written_as_it_is_read() -> None:
    assert (Subset.from_config("2/3"), str(Subset(2, 3))) == (Subset(2, 3), "2/3")


@given(MANIFESTS, st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_folds_are_disjoint_and_together_everything(songs: list[Row], n: int) -> None:
    masks = [Subset(i, n).mask(songs) for i in range(1, n + 1)]
    assert sum(mask.astype(int) for mask in masks).tolist() == [1] * len(songs)
    fold_of = {r["song_id"]: np.argmax([m[j] for m in masks]) for j, r in enumerate(songs)}
    for a in songs:
        for b in songs:
            linked = (a["group"] and a["group"] == b["group"]) or (
                a["duplicate_group"] and a["duplicate_group"] == b["duplicate_group"]
            )
            if linked:
                assert fold_of[a["song_id"]] == fold_of[b["song_id"]]


def test_the_share_of_a_song_is_the_same_in_every_version_and_corpus() -> None:
    """Another hash would mix the songs of a judge and a generator that exist already."""
    songs = [row(f"jazz/{i}.mid") for i in range(12)] + [row("x", "Miles"), row("y", "Ella")]
    first = Subset(1, 2).mask(songs)
    assert np.flatnonzero(first).tolist() == [1, 4, 5, 7, 9, 11]
    np.testing.assert_array_equal(Subset(1, 2).mask(songs[::-1]), first[::-1])
    np.testing.assert_array_equal(Subset(1, 2).mask(songs[5:]), first[5:])


def test_shares_are_about_equal() -> None:
    songs = [row(f"song {i}") for i in range(3000)]
    for i in (1, 2, 3):
        assert 900 < Subset(i, 3).mask(songs).sum() < 1100


def test_names_need_not_be_utf8() -> None:
    assert Subset(1, 1).mask([row("caf\udce9.mid")]).tolist() == [True]


# The data module


def test_training_and_validation_are_divided_and_the_test_songs_are_not(toy: ShardSet) -> None:
    whole = PhraseDataModule(toy.folder)
    folds = [PhraseDataModule(toy.folder, fold=f"{i}/2") for i in (1, 2)]
    for split in ("train", "val"):
        parts = [data.rows(split).tolist() for data in folds]
        assert min(map(len, parts)) > 0
        assert sorted(parts[0] + parts[1]) == whole.rows(split).tolist()
        counts = [data.class_counts(split) for data in folds]
        for label, expected in whole.class_counts(split).items():
            assert (counts[0][label] + counts[1][label]).tolist() == expected.tolist()
    for data in folds:
        assert data.rows("test").tolist() == toy.rows("test").tolist()
        seen = {i for batch in data.train_dataloader() for i in batch.song_B.tolist()}
        assert seen == set(data.rows("train").tolist())
        seen = {i for batch in data.val_dataloader() for i in batch.song_B.tolist()}
        assert seen == set(data.rows("val").tolist())
        everything = [data.rows(split) for split in ("train", "val", "test")]
        assert data.rows(None).tolist() == sorted(np.concatenate(everything).tolist())


def test_songs_of_a_group_stay_together_in_shards(tmp_path: Path) -> None:
    """Also where a byte-identical copy links two groups."""
    songs = [
        SongRef(
            f"s{i}",
            write(tmp_path / f"{i}.mid", midi([2] * 4, seed=0 if i in (0, 7) else i)),
            {"genre": "ab"[i % 2 if i != 7 else 0]},
            group=f"artist {i // 3}",
        )
        for i in range(24)
    ]
    shards = prepared(Listed(songs), tmp_path, fractions=(1.0, 0.0, 0.0))
    folds = [PhraseDataModule(shards.folder, fold=f"{i}/2").rows("train") for i in (1, 2)]
    ids = [{shards.manifest[i]["song_id"] for i in rows} for rows in folds]
    assert ids[0] | ids[1] == {s.song_id for s in songs}
    assert not ids[0] & ids[1]
    groups = [{shards.manifest[i]["group"] for i in rows} for rows in folds]
    assert min(map(len, groups)) > 0
    assert not groups[0] & groups[1]
    together = {"artist 0", "artist 2"}  # songs 0 and 7 have the same bytes
    assert together <= groups[0] or together <= groups[1]


def test_a_class_that_a_fold_loses_is_named(tmp_path: Path) -> None:
    """All songs of genre b are one artist's."""
    songs = [
        SongRef(
            f"s{i}",
            write(tmp_path / f"{i}.mid", midi([2] * 4, seed=i)),
            {"genre": "b" if i < 4 else "a"},
            group="one" if i < 4 else None,
        )
        for i in range(20)
    ]
    shards = prepared(Listed(songs), tmp_path, fractions=(1.0, 0.0, 0.0))
    lost = [PhraseDataModule(shards.folder, fold=f"{i}/2").classes_lost() for i in (1, 2)]
    assert sorted(found["genre"] for found in lost) == [[], ["b"]]
    assert PhraseDataModule(shards.folder).classes_lost() == {"genre": []}


def test_a_fold_without_songs_is_explained(tmp_path: Path) -> None:
    shards = prepared(songs_in(tmp_path, 1), tmp_path, fractions=(1.0, 0.0, 0.0))
    empty = [
        data
        for i in (1, 2)
        if not len((data := PhraseDataModule(shards.folder, fold=f"{i}/2")).rows("train"))
    ]
    assert len(empty) == 1
    with pytest.raises(UserError, match=r"no song in the training split \(fold=[12]/2\)"):
        empty[0].train_dataloader()
