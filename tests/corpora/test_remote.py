"""Corpora whose files lie in a store: the same songs as here, and few requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from midigenre.corpora import manifest as manifest_module
from midigenre.corpora.base import Corpus, Listing
from midigenre.corpora.folder import Folder
from midigenre.corpora.manifest import Manifest
from midigenre.corpora.toy import Toy
from midigenre.corpora.xmidi import XMIDI
from midigenre.errors import UserError
from midigenre.files import read_bytes, write_bytes
from midigenre.storage import stamp
from stores import bucket, memory

__all__ = ["bucket", "memory"]  # fixtures

NAMES = (
    "jazz/Miles - So What #1.mid", "jazz/live/Nina - é [x].midi", "rock/a.mid", "rock/.h.mid",
    "loose.mid", "rock/notes.txt",
)  # fmt: skip
XMIDI_NAMES = (
    "XMIDI_happy_pop_1.midi", "deep/XMIDI_sad_jazz_2.midi", "deep/XMIDI_grim_jazz_3.midi", "x.mid",
)  # fmt: skip


def fill(root: Any, *names: str) -> None:
    for name in names:
        write_bytes(root / name, b"MThd" + name.encode())


def rows(listing: Listing) -> tuple[list[Any], list[Any], list[str]]:
    songs = [(s.song_id, dict(s.labels), s.group, s.split) for s in listing.songs]
    unusable = [(u.song_id, u.reason, u.detail, dict(u.labels)) for u in listing.unusable]
    return songs, unusable, listing.remarks


def test_a_folder_is_the_same_anywhere(tmp_path: Path, memory: UPath, bucket: UPath) -> None:
    found = []
    for root in (tmp_path / "here", memory, bucket / "below"):
        fill(root, *NAMES)
        settings: dict[str, Any] = {"group_pattern": "([A-Z][a-z]+) - ", "limit": 3}
        listing = Folder(str(root), **settings).songs(tmp_path)
        found.append(rows(listing))
        for song in (*listing.songs, *listing.unusable):
            assert str(song.path) == f"{str(root).rstrip('/')}/{song.song_id}"
            assert read_bytes(song.path) == b"MThd" + song.song_id.encode()
        assert all(song.stamp for song in listing.songs)
    assert found[0] == found[1] == found[2]
    assert [s[0] for s in found[0][0]] == [NAMES[0], NAMES[1], NAMES[2]]
    assert found[0][0][0][2] == "Miles"


def test_xmidi_is_the_same_anywhere(tmp_path: Path, bucket: UPath) -> None:
    found = []
    for root in (tmp_path / "here", bucket):
        fill(root, *XMIDI_NAMES)
        listing = XMIDI(f"{root}/").songs(tmp_path)
        found.append(rows(listing))
        assert all(song.stamp == stamp(song.path) for song in listing.songs)
    assert found[0] == found[1]
    assert len(found[0][0]) == len(found[0][1]) == 2


@pytest.mark.parametrize("kind", [Folder, XMIDI])
def test_what_root_should_be_is_said(
    tmp_path: Path, bucket: UPath, kind: type[Folder] | type[XMIDI]
) -> None:
    for root, words in {
        "s3://music/none": "s3://music/none has no .*; give ",
        "s3://none": "s3://none: not there",
        "s3:/music": "write s3://music",
        "https://localhost/x": "a web server has no listing",
    }.items():
        with pytest.raises(UserError, match=words):
            kind(root).songs(tmp_path)


def listings(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Listing, int]:
    """What a corpus lists, and how many stores it lists for that."""
    calls = []
    real = manifest_module.entries
    monkeypatch.setattr(
        manifest_module, "entries", lambda root, **k: (calls.append(root), real(root, **k))[1]
    )
    listing = corpus.songs(tmp_path)
    return listing, len(calls)


TABLE = "path,genre\na.mid,jazz\n./deep/.h/b.mid,rock\ngone.mid,rock\n{url},pop\n{here},pop\n,x\n"


def test_a_table_in_a_store(
    tmp_path: Path, memory: UPath, bucket: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bucket, "set/a.mid", "set/deep/.h/b.mid", "other/never.mid")
    fill(memory, "x/c.mid")
    fill(tmp_path, "d.mid")
    table = TABLE.format(url=f"{memory}/x/c.mid", here=tmp_path / "d.mid")
    write_bytes(bucket / "set/songs.csv", table.encode())
    listing, n = listings(Manifest("s3://music/set/songs.csv"), tmp_path, monkeypatch)
    assert [str(s.path) for s in listing.songs] == [
        "s3://music/set/a.mid", "s3://music/set/deep/.h/b.mid", "memory://music/x/c.mid",
        str(tmp_path / "d.mid"),
    ]  # fmt: skip
    assert all(s.stamp for s in listing.songs)
    assert [(u.song_id, u.reason) for u in listing.unusable] == [
        ("gone.mid", "missing"), ("line 7", "missing"),
    ]  # fmt: skip
    assert n == 2
    for song in listing.songs:
        assert read_bytes(song.path).startswith(b"MThd")


def test_a_table_here_of_files_there(tmp_path: Path, bucket: UPath) -> None:
    fill(bucket, "a.mid")
    (tmp_path / "songs.csv").write_text("path,genre\na.mid,jazz\n")
    (song,) = Manifest(str(tmp_path / "songs.csv"), root="s3://music").songs(tmp_path).songs
    assert str(song.path) == "s3://music/a.mid"
    with pytest.raises(UserError, match="s3://none: not there"):
        Manifest(str(tmp_path / "songs.csv"), root="s3://none").songs(tmp_path)


def test_a_table_that_is_not_there(bucket: UPath) -> None:
    with pytest.raises(UserError, match=r"s3://music/none\.csv: not there"):
        Manifest("s3://music/none.csv")


def test_files_of_a_web_server_are_asked_for(
    tmp_path: Path, bucket: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def stamped(place: UPath) -> str:
        asked.append(str(place))
        if "gone" in str(place):
            raise UserError("not there") from FileNotFoundError("gone")
        return "1:x"

    monkeypatch.setattr(manifest_module, "stamp", stamped)
    (tmp_path / "songs.csv").write_text(
        "path,genre\nhttps://h.org/a.mid,x\nhttps://h.org/gone.mid,x\n"
    )
    listing = Manifest(str(tmp_path / "songs.csv")).songs(tmp_path)
    assert [str(s.path) for s in listing.songs] == ["https://h.org/a.mid"]
    assert [u.reason for u in listing.unusable] == ["missing"]
    assert len(asked) == 2


def test_made_songs_have_the_stamp_of_their_settings(tmp_path: Path) -> None:
    first = Toy(n_songs=2).songs(tmp_path / "a").songs
    again = Toy(n_songs=2).songs(tmp_path / "a").songs
    elsewhere = Toy(n_songs=2).songs(tmp_path / "b").songs
    other = Toy(n_songs=2, seed=1).songs(tmp_path / "a").songs
    assert all(song.stamp for song in first)
    assert [s.stamp for s in first] == [s.stamp for s in again] == [s.stamp for s in elsewhere]
    assert {s.stamp for s in first}.isdisjoint(s.stamp for s in other)
