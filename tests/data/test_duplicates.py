"""Equal bytes under two labels or in two given splits: named, and never in two splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toysongs import Listed, midi, prepared, write

from midigenre.corpora.base import SongRef
from midigenre.data.duplicates import NAMED_EACH, without_conflicts, without_leaks
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
    kept, duplicate_of, refused, remarks = without_conflicts(songs, digests, ("genre",))
    assert [s.song_id for s in kept] == ["s26", "s27", "s28"]
    assert duplicate_of == {"s26": "s26", "s27": "s26"}
    assert len(refused) == 26
    assert remarks == [
        "12 songs are listed under genre 'blues' and 'jazz': every copy is rejected "
        "(label_conflict in refused.csv)",
        "1 song is listed under genre 'pop' and 'rock': every copy is rejected "
        "(label_conflict in refused.csv)",
    ]


def test_only_the_label_that_differs_is_named() -> None:
    songs, digests = songs_of(("x", "pop/sad"), ("x", "pop/happy"), labels="genre emotion")
    (remark,) = without_conflicts(songs, digests, ("genre", "emotion"))[3]
    assert "1 song is listed under emotion 'happy' and 'sad'" in remark
    assert "genre" not in remark


def test_many_copies_and_pairs_are_cut_short() -> None:
    songs, digests = songs_of(*[("x", f"g{i}") for i in range(1000)])
    refused = without_conflicts(songs, digests, ("genre",))[2]
    assert all(u.detail.count(";") == NAMED_EACH - 1 for u in refused)
    assert all(u.detail.endswith(f" and {999 - NAMED_EACH} more") for u in refused)
    assert all(f"{u.path} (" not in u.detail for u in refused)
    assert refused[1].detail.startswith("the same bytes as s0 (g0); s2 (g2); s3 (g3)")
    songs, digests = songs_of(*[(f"x{i}", g) for i in range(9) for g in (f"a{i}", f"b{i}")])
    remarks = without_conflicts(songs, digests, ("genre",))[3]
    assert len(remarks) == NAMED_EACH + 1
    assert remarks[-1] == f"{9 - NAMED_EACH} more have {9 - NAMED_EACH} other pairs of classes"


def given_splits(*splits: str | None) -> list[SongRef]:
    return [SongRef(f"s{i}", Path(f"s{i}"), {"genre": "a"}, split=s) for i, s in enumerate(splits)]


def test_the_later_split_keeps_its_copies() -> None:
    songs = given_splits("train", "val", "test", "train", "train", "val")
    same = dict.fromkeys(("s0", "s1", "s2"), "s0") | dict.fromkeys(("s3", "s4"), "s3")
    kept, refused, remarks = without_leaks(songs, same)
    assert [s.song_id for s in kept] == ["s2", "s3", "s4", "s5"]
    assert [(u.song_id, u.reason) for u in refused] == [
        ("s0", "split_conflict"), ("s1", "split_conflict"),
    ]  # fmt: skip
    assert refused[1].detail == "given as val, but s2 in test has the same bytes"
    assert "2 songs" in remarks[0]
    assert "s0" in remarks[0]


def test_without_given_splits_nothing_leaks() -> None:
    songs = given_splits(None, None)
    assert without_leaks(songs, {"s0": "s0", "s1": "s0"}) == (songs, [], [])


@given(st.lists(st.tuples(st.sampled_from(SPLITS), st.integers(0, 5)), max_size=30))
def test_no_bytes_are_in_two_splits(rows: list[tuple[str, int]]) -> None:
    songs = given_splits(*(split for split, _ in rows))
    same = {f"s{i}": f"content{n}" for i, (_, n) in enumerate(rows)}
    kept, refused, _ = without_leaks(songs, same)
    assert len(kept) + len(refused) == len(songs)
    held: dict[str, str | None] = {}
    for song in kept:
        assert held.setdefault(same[song.song_id], song.split) == song.split
    # Of each content the songs of the latest split stay.
    for name in set(same.values()):
        latest = max(SPLITS.index(s.split or "") for s in songs if same[s.song_id] == name)
        assert held[name] == SPLITS[latest]


@pytest.mark.parametrize("kind", ["given", "assigned"])
def test_a_preparation_respects_the_given_splits(tmp_path: Path, kind: str) -> None:
    order = ["train", "test", "val", "train", "train", "test", "val", "train"]
    refs = [
        SongRef(
            f"s{i}", write(tmp_path / f"{i}.mid", midi([2, 1], seed=i)), {"genre": "ab"[i % 2]},
            split=split if kind == "given" else None,
        )
        for i, split in enumerate(order)
    ]  # fmt: skip
    copy = SongRef("copy", write(tmp_path / "c.mid", midi([2, 1], seed=1)), {"genre": "b"},
                   split="train" if kind == "given" else None)  # fmt: skip
    shards = prepared(Listed([*refs, copy]), tmp_path)
    split = {r["song_id"]: r["split"] for r in shards.manifest}
    report = read_json(shards.folder / "report.json")
    refused = read_csv(shards.folder / "refused.csv")
    if kind == "given":
        assert split == {f"s{i}": s for i, s in enumerate(order)}
        assert [(r["song_id"], r["reason"]) for r in refused] == [("copy", "split_conflict")]
        assert any("byte-identical copy" in w for w in report["warnings"])
    else:
        assert split["copy"] == split["s1"]
        assert refused == []
