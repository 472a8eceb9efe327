"""Songs from a CSV file: what it may look like, and which mistakes are named."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigenre.corpora.base import Listing
from midigenre.corpora.manifest import Manifest
from midigenre.data.shards import ManifestTable
from midigenre.errors import UserError
from midigenre.files import write_csv


def table(folder: Path, text: str | bytes, *files: str, name: str = "songs.csv") -> Path:
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"MThd")
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def listed(path: Path, **settings: Any) -> Listing:
    return Manifest(str(path), **settings).songs(path.parent)


def message(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        listed(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FULL = """path,genre,emotion,song_id,group,split,source,title
a.mid,jazz,happy,one,Miles,train,lakh,"So, what"
deep/b.mid,rock,,two,,TEST,,
c.mid,,sad,three,Nina,Validation,own,x
"""


def test_every_column(tmp_path: Path) -> None:
    path = table(tmp_path, FULL, "a.mid", "deep/b.mid", "c.mid")
    one, two, three = listed(path).songs
    assert (one.song_id, one.path) == ("one", tmp_path / "a.mid")
    assert dict(one.labels) == {"genre": "jazz", "emotion": "happy"}
    assert (one.group, one.split, one.source) == ("Miles", "train", "lakh")
    assert dict(one.extra) == {"title": "So, what"}
    assert dict(two.labels) == {"genre": "rock", "emotion": None}
    assert (two.group, two.split, two.source) == (None, "test", "")
    assert (three.labels["genre"], three.split) == (None, "val")
    assert Manifest(str(path)).labels == ("genre", "emotion")
    assert Manifest(str(path)).classes() is None


def test_the_least_there_can_be(tmp_path: Path) -> None:
    path = table(tmp_path, "genre,path\njazz,a.mid\n", "a.mid")
    corpus = Manifest(str(path))
    (song,) = corpus.songs(tmp_path).songs
    assert corpus.labels == ("genre",)
    assert (song.song_id, song.group, song.split, dict(song.extra)) == ("a.mid", None, None, {})
    assert Manifest(str(table(tmp_path, "path,Emotion\na.mid,sad\n"))).labels == ("emotion",)


@pytest.mark.parametrize(
    "text",
    [
        "path;genre\na,b.mid;jazz\n",
        "path\tgenre\r\na,b.mid\tjazz\r\n",
        "path|genre\na,b.mid|jazz",
        '"path","genre"\n"a,b.mid","jazz"\n',
        "\ufeffpath,genre\n\"a,b.mid\",jazz\n",
        " PATH , Genre \n\"a,b.mid\", jazz \n",
        'path;genre\n\n"a,b.mid";jazz\n;\n\n',
    ],
)  # fmt: skip
def test_ways_to_write_a_table(tmp_path: Path, text: str) -> None:
    (song,) = listed(table(tmp_path, text, "a,b.mid")).songs
    assert (song.path, song.labels["genre"]) == (tmp_path / "a,b.mid", "jazz")


def test_quotes_and_line_breaks_inside_cells(tmp_path: Path) -> None:
    text = 'path,genre,note\n"say ""x"".mid",jazz,"two\nlines"\nb.mid,rock,\nc.mid\n'
    path = table(tmp_path, text, 'say "x".mid', "b.mid")
    assert "line 5 has 1 cells, the header has 3" in message(path)
    path.write_text(text.removesuffix("c.mid\n"))
    assert [s.song_id for s in listed(path).songs] == ['say "x".mid', "b.mid"]
    assert listed(path).songs[0].extra["note"] == "two\nlines"


@given(
    st.lists(
        st.tuples(
            st.text(st.sampled_from("ab \",;|\té☃'"), min_size=1, max_size=6),
            st.text(st.sampled_from("ab \",;|\té'\n"), max_size=6),
        ),
        min_size=1, max_size=6, unique_by=lambda row: row[0].strip(),
    ),
    st.sampled_from(",;\t|"),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str, bom: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [(genre, note) for genre, note in rows if genre.strip()]
    if not rows:
        return
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["path", "genre", "note"])
    writer.writerows([f"{i}.mid", genre, note] for i, (genre, note) in enumerate(rows))
    text = out.getvalue().encode("utf-8-sig" if bom else "utf-8")
    found = listed(table(folder, text, *(f"{i}.mid" for i in range(len(rows))))).songs
    assert [(s.labels["genre"], s.extra["note"]) for s in found] == [
        (genre.strip(), note.strip()) for genre, note in rows
    ]


# Where the files lie


def test_paths_are_relative_to_the_table_or_the_root(tmp_path: Path) -> None:
    path = table(tmp_path, "path,genre\na.mid,jazz\n", "a.mid", "elsewhere/a.mid")
    assert listed(path).songs[0].path == tmp_path / "a.mid"
    root = tmp_path / "elsewhere"
    assert listed(path, root=str(root)).songs[0].path == root / "a.mid"
    table(tmp_path, f"path,genre\n{tmp_path / 'a.mid'},jazz\n")
    assert listed(path, root=str(root)).songs[0].path == tmp_path / "a.mid"


def test_files_that_are_not_there_and_rows_without_a_label(tmp_path: Path) -> None:
    text = "path,genre,emotion\na.mid,jazz,sad\ngone.mid,jazz,\n,rock,\nb.mid,,\n"
    listing = listed(table(tmp_path, text, "a.mid", "b.mid"))
    assert [s.song_id for s in listing.songs] == ["a.mid"]
    assert [(u.song_id, u.reason, u.labels["genre"]) for u in listing.unusable] == [
        ("gone.mid", "missing", "jazz"),
        ("line 4", "missing", "rock"),
        ("b.mid", "unlabelled", None),
    ]
    assert listing.unusable[0].detail == "line 3 of songs.csv: no such file or directory"
    assert "line 5" in listing.unusable[2].detail
    assert listing.unusable[0].path == tmp_path / "gone.mid"


def test_a_part_is_of_the_files_that_are_there(tmp_path: Path) -> None:
    rows = [f"{i}.mid,{'ab'[i % 2]}\n" for i in range(40)]
    names = [f"{i}.mid" for i in range(20)]
    listing = listed(table(tmp_path, "path,genre\n" + "".join(rows), *names), limit=10)
    assert sorted(s.labels["genre"] or "" for s in listing.songs) == ["a"] * 5 + ["b"] * 5
    assert len(listing.unusable) == 20


# Labels


def test_labels_may_be_other_columns(tmp_path: Path) -> None:
    path = table(tmp_path, "path,Genre,Mood\na.mid,jazz,blue\n", "a.mid")
    assert Manifest(str(path), labels=["Mood"]).labels == ("Mood",)
    assert dict(listed(path, labels=["Mood"]).songs[0].labels) == {"Mood": "blue"}
    assert listed(path, labels=["Mood"]).songs[0].extra == {"Genre": "jazz"}
    assert dict(listed(path, labels="mood").songs[0].labels) == {"mood": "blue"}
    assert list(listed(path, labels=["Mood", "genre"]).songs[0].labels) == ["Mood", "genre"]


def test_columns_of_our_own_tables_stay_extra(tmp_path: Path) -> None:
    """A shards' manifest.csv, edited, is a manifest again."""
    text = "song_id,path,bars,tokens,repairs,duplicate_group,genre\nx,a.mid,7,99,,,jazz\n"
    (song,) = listed(table(tmp_path, text, "a.mid")).songs
    assert song.song_id == "x"
    assert dict(song.extra) == {"bars": "7", "tokens": "99", "repairs": "", "duplicate_group": ""}


def test_cells_of_our_own_tables_are_read_as_they_were(tmp_path: Path) -> None:
    names = ["=a.mid", "-b/c.mid", "'@d.mid"]
    for name in names:
        touched = tmp_path / name
        touched.parent.mkdir(exist_ok=True)
        touched.write_bytes(b"MThd")
    rows = [{"path": name, "genre": "+x"} for name in names]
    path = tmp_path / "manifest.csv"
    write_csv(path, rows, ["path", "genre", "duplicate_group"])
    assert [s.song_id for s in listed(path).songs] == names
    assert {s.labels["genre"] for s in listed(path).songs} == {"+x"}
    assert ManifestTable(path).column("path") == names
    # A person's own table is read as it is written.
    (song,) = listed(table(tmp_path, "path,genre\n'=a.mid,'+x\n", "'=a.mid")).songs
    assert (song.song_id, song.labels["genre"]) == ("'=a.mid", "'+x")


def test_a_column_without_a_name(tmp_path: Path) -> None:
    (song,) = listed(table(tmp_path, ",path,genre\n0,a.mid,jazz\n", "a.mid")).songs
    assert dict(song.extra) == {"column 1": "0"}


# Mistakes

HEADERS = {
    "no path": ("file,genre\n", ["songs.csv", "no column path", "file, genre"]),
    "no label": ("path,style\n", ["no column genre or emotion", "path, style", "corpus.labels"]),
    "twice": ("path,genre,Genre\n", ["two columns", "'genre'"]),
    "empty": ("", ["songs.csv is empty", "path,genre"]),
    "blank": ("\ufeff\n \n".replace(" ", ""), ["songs.csv is empty", "path,genre"]),
    "a header only": ("path,genre\n", ["no row"]),
    "all gone": ("path,genre\nx.mid,jazz\n", ["none of its 1 songs", "x.mid", "missing"]),
}


@pytest.mark.parametrize("what", HEADERS)
def test_tables_that_cannot_be_used(tmp_path: Path, what: str) -> None:
    text, words = HEADERS[what]
    said = message(table(tmp_path, text))
    assert all(word in said for word in words), said


ROWS: dict[str, tuple[str | bytes, list[str]]] = {
    "too few cells": ("path,genre\na.mid,jazz\nb.mid\n", ["line 3", "1 cells", "2"]),
    "too many cells": ("path,genre\na.mid,jazz,x\n", ["line 2", "3 cells"]),
    "an open quote": ('path,genre\na.mid,jazz\n"b.mid,jazz\nc.mid,x\n', ["line 3", "quotes"]),
    "text behind a quote": ('path,genre\n"a"b.mid,jazz\n', ["line 2", "quotes"]),
    "Latin-1": ("path,genre\na.mid,jazz\nb.mid,Música\n".encode("latin-1"),
                ["line 3", "UTF-8", "0xfa"]),
    "a NUL in a path": ("path,genre\na.mid,x\nm/\0.mid,x\n", ["line 3", "NUL", "UTF-8"]),
    "a NUL in a name": ("path,ge\0nre\n", ["line 1", "NUL"]),
    "UTF-16 without a mark": ("path,genre\n".encode("utf-16-le"), ["line 1", "NUL", "UTF-8"]),
    "a cell without an end": (f"path,genre\na.mid,{'x' * 140_000}\n", ["line 2", "131072"]),
    "UTF-16": ("path,genre\na.mid,jazz\n".encode("utf-16"), ["line 1", "UTF-8"]),
    "the same path": ("path,genre\na.mid,x\nb.mid,x\n./a.mid,y\n", ["lines 2 and 4", "a.mid"]),
    "a path as an id": ("path,genre,song_id\na.mid,x,b.mid\nb.mid,x,\n",
                        ["lines 2 and 3", "id 'b.mid'"]),
    "a song in two groups": ("path,genre,song_id,group\na.mid,x,1,G\nb.mid,x,1,\nc.mid,x,1,H\n",
                             ["song_id '1'", "'G' (line 2)", "'H' (line 4)"]),
    "a split missing": ("path,genre,split\na.mid,x,train\nb.mid,x,\n", ["line 3", "all or none"]),
    "no such split": ("path,genre,split\na.mid,x,dev\n", ["line 2", "'dev'", "train, val or test"]),
}  # fmt: skip


@pytest.mark.parametrize("what", ROWS)
def test_mistakes_are_named_with_their_lines(tmp_path: Path, what: str) -> None:
    text, words = ROWS[what]
    said = message(table(tmp_path, text, "a.mid", "b.mid", "c.mid", "d.mid"))
    assert said.startswith(str(tmp_path / "songs.csv"))
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["genre", "mood"], ["no column mood", "path, genre"]),
        (["path"], ["'path' cannot be"]),
        (["bars"], ["'bars' cannot be"]),
        (["music genre"], ["'music genre' cannot be"]),
    ],
)
def test_labels_that_cannot_be(tmp_path: Path, labels: list[str], words: list[str]) -> None:
    path = table(tmp_path, "path,genre,bars,music genre\na.mid,jazz,1,x\n", "a.mid")
    said = message(path, labels=labels)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("path", "root", "words"),
    [
        (None, None, ["corpus.path=FILE.csv", "path and genre"]),
        ("x" * 300, None, ["xxx: file name too long", "CSV"]),
        ("none.csv", None, ["none.csv does not exist"]),
        (".", None, [": a folder, not a regular file"]),
        ("songs.csv", "none", ["corpus.root=", "none is not a folder"]),
    ],
)
def test_what_path_should_be_is_said(
    tmp_path: Path, path: str | None, root: str | None, words: list[str]
) -> None:
    table(tmp_path, "path,genre\na.mid,x\n", "a.mid")
    with pytest.raises(UserError) as caught:
        Manifest(path and str(tmp_path / path), root and str(tmp_path / root))
    assert all(word in str(caught.value) for word in words), caught.value


def test_versions_of_a_song_stay_together(tmp_path: Path) -> None:
    text = (
        "path,genre,song_id,group\n"
        "a.mid,x,1,\nb.mid,x,1,\nc.mid,x,2,G\nd.mid,x,2,\ne.mid,x,3,G\nf.mid,x,4,\n"
    )
    listing = listed(table(tmp_path, text, *(f"{n}.mid" for n in "abcdef")))
    assert [(s.song_id, s.group) for s in listing.songs] == [
        ("a.mid", "song_id 1"),
        ("b.mid", "song_id 1"),
        ("c.mid", "G"),
        ("d.mid", "G"),
        ("3", "G"),
        ("4", None),
    ]
    assert "4 rows of songs.csv share 2 song_ids" in listing.remarks[0]
    assert "'1' in lines 2 and 3" in listing.remarks[0]
    assert "1 of 6 songs have no group" in listing.remarks[1]


def test_songs_without_a_group_are_counted(tmp_path: Path) -> None:
    text = "path,genre,group\na.mid,x,G\nb.mid,x,\nc.mid,x,\n"
    (remark,) = listed(table(tmp_path, text, "a.mid", "b.mid", "c.mid")).remarks
    assert "2 of 3 songs have no group" in remark
    assert "b.mid" in remark
    assert listed(table(tmp_path, "path,genre\na.mid,x\n")).remarks == []


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_tables_of_other_programs(tmp_path: Path, ends: str, mark: str, comma: str) -> None:
    lines = ["path,genre", "a.mid,rock", '"b.mid",x']
    text = mark + "".join(line.replace(",", comma) + ends for line in lines)
    songs = listed(table(tmp_path, text, "a.mid", "b.mid")).songs
    assert [(s.song_id, s.labels["genre"]) for s in songs] == [("a.mid", "rock"), ("b.mid", "x")]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mid")
    (tmp_path / "loop.mid").symlink_to("loop.mid")
    (tmp_path / "zero.mid").symlink_to("/dev/zero")
    names = ["a.mid", "pipe.mid", "loop.mid", "zero.mid", ".", "x" * 300]
    listing = listed(table(tmp_path, "path,genre\n" + "".join(f"{n},x\n" for n in names), "a.mid"))
    assert [(u.reason, u.detail) for u in listing.unusable] == [
        ("not_regular", "line 3 of songs.csv: a named pipe, not a regular file"),
        ("missing", "line 4 of songs.csv: too many levels of symbolic links"),
        ("not_regular", "line 5 of songs.csv: a device, not a regular file"),
        ("not_regular", "line 6 of songs.csv: a folder, not a regular file"),
        ("missing", "line 7 of songs.csv: file name too long"),
    ]
