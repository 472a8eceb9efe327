"""Equal bytes under two labels, copies across given splits: named, kept or rejected as asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toysongs import Listed, midi, prepared, write

from midigenre.corpora.base import SongRef
from midigenre.data.duplicates import NAMED_EACH, kept_apart, label_conflicts
from midigenre.errors import UserError
from midigenre.files import read_csv, read_json
from midigenre.spec import SPLITS


def songs_of(
    *contents: tuple[str, str], labels: str = "genre"
) -> tuple[list[SongRef], dict[str, str]]:
    """Songs from (content, classes joined by /)."""
    songs = [
        SongRef(f"s{i}", Path(f"s{i}"), dict(zip(labels.split(), c.split("/"), strict=True)))
        for i, (_, c) in enumerate(contents)
    ]
    return songs, {s.song_id: content for s, (content, _) in zip(songs, contents, strict=True)}


def test_pairs_of_classes_are_named_with_their_counts() -> None:
    songs, digests = songs_of(
        *[(f"j{i}", g) for i in range(12) for g in ("jazz", "blues")],
        ("r", "rock"), ("r", "pop"), ("same", "pop"), ("same", "pop"), ("alone", "jazz"),
    )  # fmt: skip
    refused, remarks = label_conflicts(songs, digests, ("genre",))
    assert [u.song_id for u in refused] == [f"s{i}" for i in range(26)]
    assert remarks == [
        "12 songs are listed under genre 'blues' and 'jazz'",
        "1 song is listed under genre 'pop' and 'rock'",
    ]


def test_only_the_label_that_differs_is_named() -> None:
    songs, digests = songs_of(("x", "pop/sad"), ("x", "pop/happy"), labels="genre emotion")
    (remark,) = label_conflicts(songs, digests, ("genre", "emotion"))[1]
    assert "1 song is listed under emotion 'happy' and 'sad'" in remark
    assert "genre" not in remark


def test_many_copies_and_pairs_are_cut_short() -> None:
    songs, digests = songs_of(*[("x", f"g{i}") for i in range(1000)])
    refused, _ = label_conflicts(songs, digests, ("genre",))
    assert all(u.detail.count(";") == NAMED_EACH - 1 for u in refused)
    assert all(u.detail.endswith(f" and {999 - NAMED_EACH} more") for u in refused)
    assert all(f"{u.path} (" not in u.detail for u in refused)
    assert refused[1].detail.startswith("the same bytes as s0 (g0); s2 (g2); s3 (g3)")
    songs, digests = songs_of(*[(f"x{i}", g) for i in range(9) for g in (f"a{i}", f"b{i}")])
    _, remarks = label_conflicts(songs, digests, ("genre",))
    assert len(remarks) == NAMED_EACH + 1
    assert remarks[-1] == f"{9 - NAMED_EACH} more have {9 - NAMED_EACH} other pairs of classes"


@given(st.lists(st.tuples(st.sampled_from(SPLITS), st.integers(0, 5)), max_size=30))
def test_linked_songs_are_kept_in_the_latest_of_their_splits(rows: list[tuple[str, int]]) -> None:
    linked = [f"link{n}" for _, n in rows]
    kept = kept_apart([split for split, _ in rows], linked)
    latest = {name: max(SPLITS.index(s) for s, n in rows if f"link{n}" == name) for name in linked}
    for (split, _), name, now in zip(rows, linked, kept, strict=True):
        assert now == (split if SPLITS.index(split) == latest[name] else "")


ORDER = ("train", "test", "val", "train", "train", "test", "val", "train")


def published(folder: Path, given: bool = True) -> Listed:
    """Songs s0 to s7 in a published split; ``copy`` has the bytes of the test song s1, ``other``
    too, and another class; ``kin``, a training song, is in the group of the test song s5."""
    rows = [
        *((f"s{i}", i, "ab"[i % 2], split, "G" if i == 5 else None)
          for i, split in enumerate(ORDER)),
        ("copy", 1, "b", "train", None), ("other", 1, "a", "train", None),
        ("kin", 20, "b", "train", "G"),
    ]  # fmt: skip
    return Listed(
        [
            SongRef(name, write(folder / f"{name}.mid", midi([2, 1], seed=seed)), {"genre": genre},
                    group=group, split=split if given else None)
            for name, seed, genre, split, group in rows
        ]
    )  # fmt: skip


@pytest.mark.parametrize("conflicts", [None, "keep"])
def test_a_published_split_stays_what_it_is(tmp_path: Path, conflicts: str | None) -> None:
    shards = prepared(published(tmp_path), tmp_path, conflicts=conflicts)
    split = {r["song_id"]: r["split"] for r in shards.manifest}
    assert split == {f"s{i}": s for i, s in enumerate(ORDER)} | dict.fromkeys(
        ("copy", "other", "kin"), "train"
    )
    assert read_csv(shards.folder / "refused.csv") == []
    report = read_json(shards.folder / "report.json")
    assert report["duplicates"]["leaks"] == {
        "songs": 1, "share": 0.25, "contradictory": 1, "groups": 1,
    }  # fmt: skip
    assert report["duplicates"]["label_conflicts"]["groups"] == 1
    (leak,) = [w for w in report["warnings"] if "the given splits" in w]
    assert "1 song (25.0%) have a duplicate in training, 1 with another label" in leak
    assert "1 song a song of their group: kept as given; prepare.conflicts=reject" in leak
    (conflict,) = [w for w in report["warnings"] if "is listed under" in w]
    assert conflict.endswith("every copy is kept: prepare.conflicts=reject takes them out")


def test_conflicts_are_taken_out_where_that_is_asked(tmp_path: Path) -> None:
    shards = prepared(published(tmp_path), tmp_path, conflicts="reject")
    split = {r["song_id"]: r["split"] for r in shards.manifest}
    # s1, copy and other have equal bytes under two classes, and nobody knows which is right.
    assert split == {f"s{i}": s for i, s in enumerate(ORDER) if i != 1} | {"kin": ""}
    refused = read_csv(shards.folder / "refused.csv")
    assert {r["song_id"] for r in refused} == {"s1", "copy", "other"}
    assert {r["reason"] for r in refused} == {"label_conflict"}


@pytest.mark.parametrize(("conflicts", "kept"), [(None, False), ("reject", False), ("keep", True)])
def test_contradictions_of_a_split_made_here(
    tmp_path: Path, conflicts: str | None, kept: bool
) -> None:
    shards = prepared(published(tmp_path, given=False), tmp_path, conflicts=conflicts)
    split = {r["song_id"]: r["split"] for r in shards.manifest}
    assert len(split) == (11 if kept else 8)
    assert split["kin"] == split["s5"]
    if kept:
        assert len({split["s1"], split["copy"], split["other"]}) == 1


def test_unknown_conflicts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prepare.conflicts=drop: choose reject or keep"):
        prepared(published(tmp_path), tmp_path, conflicts="drop")
