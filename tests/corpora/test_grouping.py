"""Groups by a pattern on the names of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from midigenre.corpora.base import Corpus
from midigenre.corpora.folder import Folder
from midigenre.corpora.xmidi import XMIDI
from midigenre.errors import UserError

ARTIST = r"(?P<group>[^/]+) - [^/]*$"


def folder(root: Path, pattern: str | None, *names: str, limit: int | None = None) -> Folder:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"MThd")
    return Folder(str(root), limit=limit, group_pattern=pattern)


def groups(corpus: Corpus, root: Path) -> dict[str, str | None]:
    return {s.song_id: s.group for s in corpus.songs(root).songs}


FILES = ("jazz/Miles - So What.mid", "jazz/Miles - Blue.mid", "blues/Miles - Up.mid", "jazz/x.mid")


def test_an_artist_over_all_genres(tmp_path: Path) -> None:
    corpus = folder(tmp_path, ARTIST, *FILES)
    assert groups(corpus, tmp_path) == {
        "blues/Miles - Up.mid": "Miles",
        "jazz/Miles - Blue.mid": "Miles",
        "jazz/Miles - So What.mid": "Miles",
        "jazz/x.mid": None,
    }
    (remark,) = corpus.songs(tmp_path).remarks
    assert "does not match 1 of 4 files" in remark
    assert "jazz/x.mid" in remark


def test_the_pattern_sees_the_path_below_the_root(tmp_path: Path) -> None:
    assert set(groups(folder(tmp_path, "^([^-]+) - ", *FILES), tmp_path).values()) == {
        "jazz/Miles", "blues/Miles", None,
    }  # fmt: skip
    deep = folder(tmp_path / "deep", "/(?P<group>[^/]+)/[^/]+$", "pop/ABBA/Gold/a.mid", "pop/b.mid")
    assert groups(deep, tmp_path) == {"pop/ABBA/Gold/a.mid": "Gold", "pop/b.mid": None}


def test_which_group_of_the_pattern(tmp_path: Path) -> None:
    first = folder(tmp_path, r"([A-Z]\w+) - (\w+)", *FILES)
    assert groups(first, tmp_path)["jazz/Miles - Blue.mid"] == "Miles"
    named = folder(tmp_path, r"([A-Z]\w+) - (?P<group>\w+)", *FILES)
    assert groups(named, tmp_path)["jazz/Miles - Blue.mid"] == "Blue"


def test_an_empty_group_is_none(tmp_path: Path) -> None:
    corpus = folder(tmp_path, "(Miles)?", *FILES)
    with pytest.raises(UserError, match="matches none"):  # the pattern matches "" at the start
        groups(corpus, tmp_path)
    assert groups(folder(tmp_path, "z/(M?)", *FILES), tmp_path)["jazz/x.mid"] is None


def test_no_pattern_no_groups(tmp_path: Path) -> None:
    listing = folder(tmp_path, None, *FILES).songs(tmp_path)
    assert {s.group for s in listing.songs} == {None}
    assert listing.remarks == []


def test_no_remark_where_all_match(tmp_path: Path) -> None:
    assert folder(tmp_path, "(.)", *FILES).songs(tmp_path).remarks == []


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("([", ["group_pattern=([", "not a regular expression"]),
        ("[^/]+ - ", ["has no group", "parentheses"]),
        ("(?:a)", ["has no group"]),
        ("(zzz)", ["(zzz) matches none of 4 files", "blues/Miles - Up.mid"]),
    ],
)
def test_patterns_that_cannot_be(tmp_path: Path, pattern: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        folder(tmp_path, pattern, *FILES).songs(tmp_path)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_part_counts_only_its_own_files(tmp_path: Path) -> None:
    corpus = folder(tmp_path, "(x|Miles)", *FILES, *(f"pop/{i}.mid" for i in range(50)), limit=10)
    listing = corpus.songs(tmp_path)
    alone = sum(s.group is None for s in listing.songs)
    assert len(listing.songs) == 10
    assert f"does not match {alone} of 10 files" in listing.remarks[0]


@pytest.mark.parametrize("make", [Folder, XMIDI])
def test_both_take_a_pattern(tmp_path: Path, make: Callable[..., Corpus]) -> None:
    path = tmp_path / "ABBA" / "XMIDI_happy_pop_1.mid"
    path.parent.mkdir()
    path.write_bytes(b"MThd")
    corpus = make(str(tmp_path), group_pattern="^([^/]+)/")
    assert [s.group for s in corpus.songs(tmp_path).songs] == ["ABBA"]
