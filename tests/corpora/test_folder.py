"""A folder of genres, and the stratified part of any corpus."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigenre.corpora.base import SongRef, stratified
from midigenre.corpora.folder import Folder, midi_files
from midigenre.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"MThd")
    return root


def found(root: Path) -> dict[str, str | None]:
    return {s.song_id: s.labels["genre"] for s in Folder(str(root)).songs(root).songs}


def test_the_first_folder_is_the_genre(tmp_path: Path) -> None:
    touch(tmp_path, "jazz/a.mid", "jazz/live/1950/b.MIDI", "rock/c.Mid", "rock/d.midi")
    assert found(tmp_path) == {
        "jazz/a.mid": "jazz",
        "jazz/live/1950/b.MIDI": "jazz",
        "rock/c.Mid": "rock",
        "rock/d.midi": "rock",
    }
    (song, *_) = Folder(str(tmp_path)).songs(tmp_path).songs
    assert song.path == tmp_path / "jazz/a.mid"
    assert (song.group, song.source) == (None, "")
    assert Folder(str(tmp_path)).classes() is None


def test_other_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "jazz/a.mid", "jazz/.b.mid", "jazz/._a.mid", ".git/c.mid", "jazz/.x/d.mid",
          "jazz/notes.txt", "jazz/N.TXT", "x.xml", "jazz/mid", "jazz/f.midi~", "jazz/1. one two",
          "jazz/g.gz")  # fmt: skip
    (tmp_path / "jazz" / "folder.mid").mkdir()
    (tmp_path / "jazz" / "loop").symlink_to("loop")
    (tmp_path / "jazz" / "more").symlink_to("none")
    listing = Folder(str(tmp_path)).songs(tmp_path)
    assert [s.song_id for s in listing.songs] == ["jazz/a.mid"]
    assert listing.unusable == []
    assert listing.left_out == {
        ".txt": 2, "no ending": 2, "unreadable": 2, ".midi~": 1, ".gz": 1, ".xml": 1,
    }  # fmt: skip
    assert listing.remarks == [
        "jazz/loop: too many levels of symbolic links; passed over, and 1 more"
    ]


def test_every_ending_of_a_midi_file(tmp_path: Path) -> None:
    names = [f"jazz/{i}{ending}{gz}" for gz in ("", ".gz", ".GZ")
             for i, ending in enumerate((".mid", ".MIDI", ".kar", ".rmi", ".Smf"))]  # fmt: skip
    touch(tmp_path, *names)
    assert set(found(tmp_path)) == set(names)
    assert {str(p.relative_to(tmp_path)) for p in midi_files(tmp_path)} == set(names)


def test_a_class_that_vanishes_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "rock/a.mid", "pop/1.xml", "pop/2.xml", "pop/b/3.txt", ".git/x")
    (tmp_path / "metal").mkdir()
    (tmp_path / "blues").mkdir()
    (tmp_path / "blues" / "a.mid").symlink_to("a.mid")
    listing = Folder(str(tmp_path)).songs(tmp_path)
    (remark,) = listing.remarks
    assert remark.startswith(
        "folders 'blues', 'metal', 'pop' (2 .xml, 1 .txt) gave no song: a genre's files end in .mid"
    )
    assert [(u.song_id, u.reason, u.labels) for u in listing.unusable] == [
        ("blues/a.mid", "missing", {"genre": "blues"})
    ]
    (tmp_path / "rock" / "a.mid").unlink()
    with pytest.raises(UserError, match=r"has no MIDI file, only 2 \.xml, 1 \.txt; give"):
        Folder(str(tmp_path)).songs(tmp_path)


def test_files_beside_the_genres_are_unlabelled(tmp_path: Path) -> None:
    touch(tmp_path, "jazz/a.mid", "b.mid", "C.MID")
    listing = Folder(str(tmp_path)).songs(tmp_path)
    assert [s.song_id for s in listing.songs] == ["jazz/a.mid"]
    assert {(u.song_id, u.reason) for u in listing.unusable} == {
        ("b.mid", "unlabelled"),
        ("C.MID", "unlabelled"),
    }
    assert all(u.path == tmp_path / u.song_id and u.detail for u in listing.unusable)


def test_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = [f"{g}/{n}.mid" for g in "cab" for n in "zyx"]
    touch(tmp_path / "one", *names)
    touch(tmp_path / "two", *reversed(names))
    assert list(found(tmp_path / "one")) == list(found(tmp_path / "two")) == sorted(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "needs corpus.root=DIR"),
        ("none", "none does not exist"),
        ("file", "file is a file, not a folder"),
        ("empty", "empty has no MIDI file"),
        ("loose", "1 MIDI file lies directly in .*loose, in no genre's folder"),
        ("music/jazz", r"2 MIDI files lie directly in .*mean corpus\.root=/.*/music\?"),
    ],
)
def test_what_root_should_be_is_said(tmp_path: Path, name: str | None, message: str) -> None:
    touch(tmp_path, "file", "loose/a.mid", "music/jazz/a.mid", "music/jazz/b.mid")
    (tmp_path / "empty" / "jazz").mkdir(parents=True)
    with pytest.raises(UserError, match=message) as caught:
        Folder(name and str(tmp_path / name)).songs(tmp_path)
    assert "one folder of MIDI files for each genre" in str(caught.value)


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "music/jazz/a.mid")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(Folder("~/music").songs(tmp_path).songs) == 1


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "jazz/a.mid", "elsewhere/deep/b.mid")
    root = tmp_path / "root"
    root.mkdir()
    (root / "jazz").symlink_to(tmp_path / "jazz")
    (tmp_path / "jazz" / "again").symlink_to(tmp_path / "jazz")
    (tmp_path / "jazz" / "up").symlink_to(root)
    (root / "rock").symlink_to(tmp_path / "elsewhere")
    assert len(list(islice(midi_files(root), 10))) == 2  # a loop would have no end
    assert found(root) == {"jazz/a.mid": "jazz", "rock/deep/b.mid": "rock"}


def test_names_that_files_may_have(tmp_path: Path) -> None:
    names = ["a b", "k=v", "[x]", "#1", "naïve ☃", "it's", 'say "x"', "new\nline", "-dash", "%s"]
    try:
        touch(tmp_path, os.fsdecode(b"\xff\xfe/\xe9.mid"))
        expected = {os.fsdecode(b"\xff\xfe/\xe9.mid"): os.fsdecode(b"\xff\xfe")}
    except OSError:  # a file system that takes UTF-8 only
        expected = {}
    touch(tmp_path, *(f"{n}/{n}.mid" for n in names))
    expected |= {f"{n}/{n}.mid": n for n in names}
    assert found(tmp_path) == expected


# A part of the songs


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.integers(1, 120),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_stratified_part(sizes: list[int], limit: int, seed: int, random: object) -> None:
    names = [f"g{i}" for i, n in enumerate(sizes) for _ in range(n)]
    random.shuffle(names)  # type: ignore[attr-defined]
    songs = [SongRef(f"{i}", Path(f"{i}"), {"genre": n}) for i, n in enumerate(names)]
    part = stratified(songs, limit, seed)
    assert len(part) == min(limit, len(songs))
    ids = [int(s.song_id) for s in part]
    assert ids == sorted(set(ids))
    assert stratified(songs, limit, seed) == part
    counts = Counter(s.labels["genre"] for s in part)
    if limit >= len(sizes):
        assert len(counts) == len(sizes)
    # Nobody is far from its share: what rare classes are given is taken from the largest.
    for i, n in enumerate(sizes):
        share = n * limit / len(songs)
        assert counts[f"g{i}"] <= max(1, share + 1)
        assert counts[f"g{i}"] >= min(n, share) - len(sizes)


def test_rare_classes_stay() -> None:
    names = ["common"] * 1000 + ["a", "b", "c"]
    songs = [SongRef(str(i), Path(str(i)), {"genre": n}) for i, n in enumerate(names)]
    part = Counter(s.labels["genre"] for s in stratified(songs, 4))
    assert part == {"common": 1, "a": 1, "b": 1, "c": 1}
    part = Counter(s.labels["genre"] for s in stratified(songs, 100))
    assert part == {"common": 97, "a": 1, "b": 1, "c": 1}


def test_strata_are_combinations_of_labels() -> None:
    songs = [
        SongRef(f"{g}{e}{i}", Path("x"), {"genre": g, "emotion": e})
        for g in "ab" for e in ("x", "y", None) for i in range(10)
    ]  # fmt: skip
    part = stratified(songs, 12)
    counts = Counter(tuple(s.labels.values()) for s in part)
    assert set(counts.values()) == {2}
    assert len(counts) == 6
    assert stratified(songs, 12, seed=1) != part


def test_limit_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{g}/{i}.mid" for g, n in (("a", 20), ("b", 10)) for i in range(n)), "x.mid")
    listing = Folder(str(tmp_path), limit=6).songs(tmp_path)
    assert Counter(s.labels["genre"] for s in listing.songs) == {"a": 4, "b": 2}
    assert len(listing.unusable) == 1
    for limit in (0, -1):
        with pytest.raises(ValueError, match=r"corpus\.limit must be 1 or more"):
            Folder(str(tmp_path), limit=limit)
