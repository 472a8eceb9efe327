"""Groups of duplicates: found by bytes, notes and likeness, kept in one split, reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from symusic.core import NoteTick, ScoreTick, TempoTick, TrackTick
from toysongs import TPQ, Listed, midi, prepared, songs_in, write

from midigenre.corpora.base import SongRef, no_progress
from midigenre.data import duplicates as groups
from midigenre.data.duplicates import DUPLICATE_KINDS, find_duplicates, kept_apart, leaked
from midigenre.data.labels import LabelSettings
from midigenre.data.splits import Subset
from midigenre.errors import UserError
from midigenre.files import read_csv, read_json

GENRES = ("a", "b")


def tune(seed: int, key: int = 0, qpm: float = 120.0, program: int = 0) -> bytes:
    """A melody over a bass, 24 bars that no other seed shares."""
    rng = np.random.default_rng(seed)
    score = ScoreTick(TPQ)
    score.tempos.append(TempoTick(0, qpm))
    for low, high, step, its in ((60, 84, TPQ // 2, program), (36, 52, TPQ, program + 1)):
        track = TrackTick("", its, False)
        for at in range(0, 24 * 4 * TPQ, step):
            pitch = int(rng.integers(low, high)) + key
            track.notes.append(NoteTick(at, step, pitch, 80))
        score.tracks.append(track)
    return bytes(score.dumps_midi())


def family(folder: Path) -> Listed:
    """Songs 0 and 1 have equal bytes, 2 equal notes but another tempo, 3 and 4 are likenesses.

    The rest are other songs. The copies carry both labels but for the equal bytes.
    """
    files = {
        "00": tune(0),
        "01": tune(0),
        "02": tune(0, qpm=90.0),
        "03": tune(0, key=5),
        "04": tune(0, key=-3, program=40),
        **{f"{i:02d}": tune(i) for i in range(5, 30)},
    }
    return Listed(
        [
            SongRef(name, write(folder / f"{name}.mid", data), {"genre": "a" if i < 3 else "b"})
            for i, (name, data) in enumerate(files.items())
        ]
    )


def kinds(folder: Path) -> dict[str, str]:
    return {row["song_id"]: row["kind"] for row in read_csv(folder / "duplicates.csv")}


def test_what_each_grouping_finds(tmp_path: Path) -> None:
    corpus = family(tmp_path)
    near = prepared(corpus, tmp_path / "home")
    assert kinds(near.folder) == {
        "00": "bytes", "01": "bytes", "02": "notes", "03": "near", "04": "near",
    }  # fmt: skip
    exact = prepared(corpus, tmp_path / "home", grouping="exact")
    assert kinds(exact.folder) == {"00": "bytes", "01": "bytes", "02": "notes"}
    none = prepared(corpus, tmp_path / "home", grouping="none")
    assert kinds(none.folder) == {}
    assert len({near.folder, exact.folder, none.folder}) == 3
    for shards, n in ((near, 5), (exact, 3), (none, 0)):
        by_id = {row["song_id"]: row for row in shards.manifest}
        family_rows = [by_id[f"{i:02d}"] for i in range(5)]
        assert [row["duplicate_group"] for row in family_rows] == ["00"] * n + [""] * (5 - n)
        assert {row["duplicate_group"] for row in list(by_id.values())[5:]} == {""}
        assert len({row["split"] for row in family_rows[:n]}) == bool(n)


@pytest.mark.parametrize("seed", range(4))
def test_a_group_stays_in_one_split_and_one_fold(tmp_path: Path, seed: int) -> None:
    shards = prepared(family(tmp_path), tmp_path / "home", split_seed=seed)
    assert len({shards.manifest[i]["split"] for i in range(5)}) == 1
    one = Subset.from_config("1/2").mask(shards.manifest)
    assert len(set(one[:5].tolist())) == 1


def test_report(tmp_path: Path) -> None:
    shards = prepared(family(tmp_path), tmp_path / "home")
    about = read_json(shards.folder / "report.json")["duplicates"]
    assert about["grouping"] == "near"
    assert (about["groups"], about["songs"], about["share"]) == (1, 5, round(5 / 30, 4))
    assert about["by_kind"] == {"bytes": 2, "notes": 1, "near": 2}
    assert about["largest"] == [
        {"group": "00", "songs": 5, "named": ["00", "01", "02", "03", "04"]}
    ]
    assert about["label_conflicts"] == {
        "groups": 1,
        "named": [{"group": "00", "songs": 5, "label": "genre", "classes": {"a": 3, "b": 2}}],
    }
    naive = prepared(family(tmp_path), tmp_path / "home", grouping="none")
    splits = [row["split"] for row in naive.manifest]
    held_out = [i for i, split in enumerate(splits) if split != "train"]
    leaks = [i for i in held_out if i < 5 and "train" in splits[:5]]
    assert about["leaks"]["songs"] == len(leaks)
    assert about["leaks"]["share"] == round(len(leaks) / len(held_out), 4)


def test_copies_in_training_are_left_out_where_that_is_asked(tmp_path: Path) -> None:
    given = ["train", "train", "train", "test", "val"] + ["train", "val", "test"] * 8 + ["train"]
    songs = [
        SongRef(s.song_id, s.path, s.labels, split=split)
        for s, split in zip(family(tmp_path).songs(tmp_path).songs, given, strict=True)
    ]
    shards = prepared(Listed(songs), tmp_path / "home", conflicts="reject")
    assert shards.manifest.column("split") == ["", "", "", "test", "", *given[5:]]
    about = read_json(shards.folder / "report.json")
    assert about["duplicates"]["leaks"]["songs"] == 2
    assert any("4 copies left out of every split" in text for text in about["warnings"])
    assert sum(n["songs"] for n in about["splits"].values()) == len(shards) - 4
    assert [len(shards.rows(s)) for s in ("train", "val", "test")] == [9, 8, 9]


def test_unknown_grouping(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prepare.grouping=exakt: choose none, exact, near"):
        prepared(songs_in(tmp_path, 2), tmp_path, grouping="exakt")


def test_rare_classes_and_unreadable_files_need_no_digest(tmp_path: Path) -> None:
    songs = songs_in(tmp_path, 6).songs(tmp_path).songs
    songs.append(SongRef("gone", tmp_path / "gone.mid", {"genre": "a"}))
    songs.append(SongRef("lost", tmp_path / "lost.mid", {"genre": "a"}))
    labels = LabelSettings(min_songs=3)
    shards = prepared(Listed(songs), tmp_path / "home", labels=labels)
    assert len(shards) == 6
    assert {r["reason"] for r in read_csv(shards.folder / "refused.csv")} == {"missing"}


@given(
    files=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    notes=st.lists(st.integers(0, 6), min_size=30, max_size=30),
    pairs=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=10),
)
def test_components_against_a_plain_search(
    files: list[int], notes: list[int], pairs: list[tuple[int, int]]
) -> None:
    n = len(files)
    near = [(a, b) for a, b in pairs if a < b < n]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "near_pairs", lambda *_: np.array(near, np.int64).reshape(-1, 2))
        found = find_duplicates(
            [bytes([f]) if f else b"" for f in files],  # 0: not read, equals nothing
            np.array(notes[:n], np.uint8)[:, None],
            np.zeros((n, 1), np.uint32),
            "near",
            no_progress,
        )
    linked = {i: {i} for i in range(n)}
    for i in range(n):
        for j in range(n):
            same_file = files[i] == files[j] != 0
            if same_file or notes[i] == notes[j] or (i, j) in near or (j, i) in near:
                linked[i].add(j)
    for i in range(n):
        seen, todo = set(), [i]
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                todo += linked[at]
        assert found.first[i] == min(seen)
        assert found.grouped[i] == (len(seen) > 1)
        if found.grouped[i]:
            strictest = (
                "bytes" if files[i] and files.count(files[i]) > 1
                else "notes" if notes[:n].count(notes[i]) > 1
                else "near"
            )  # fmt: skip
            assert DUPLICATE_KINDS[found.kind[i]] == strictest
    members = found.members()
    assert (
        sorted(i for of in members.values() for i in of) == np.flatnonzero(found.grouped).tolist()
    )
    sizes = [len(of) for of in members.values()]
    assert sizes == sorted(sizes, reverse=True)
    # A split that keeps groups together leaks nothing.
    by_group = [("train", "val", "test")[int(first) % 3] for first in found.first]
    songs = [SongRef(str(i), Path(), {"genre": "a"}) for i in range(n)]
    assert leaked(by_group, found, songs, ["genre"])["songs"] == 0
    given_splits = [("train", "val", "test")[i % 3] for i in range(n)]
    apart = kept_apart(given_splits, [str(first) for first in found.first])
    assert leaked(apart, found, songs, ["genre"])["songs"] == 0
    assert all(a in ("", b) for a, b in zip(apart, given_splits, strict=True))
    assert all(a for a, g in zip(apart, given_splits, strict=True) if g == "test")


def test_equal_tunes_of_other_programs_are_heard(tmp_path: Path) -> None:
    """Short songs say too little to be called alike: they stand alone."""
    songs = [
        SongRef(str(i), write(tmp_path / f"{i}.mid", midi([2, 2], seed=i)), {"genre": "a"})
        for i in range(8)
    ]
    shards = prepared(Listed(songs), tmp_path / "home")
    assert read_csv(shards.folder / "duplicates.csv") == []
