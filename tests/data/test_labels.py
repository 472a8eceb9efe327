"""Labels merged, renamed and left out; classes that are too small."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toysongs import Listed, midi, prepared, songs_in, write

from midigenre.corpora.base import SongRef, Unusable
from midigenre.data.labels import LabelSettings, label_spec, mapped, without_rare
from midigenre.errors import UserError
from midigenre.files import read_csv, read_json
from midigenre.midi.clean import REJECTIONS


def song(name: str, genre: str | None, emotion: str | None = None) -> SongRef:
    return SongRef(name, Path(name), {"genre": genre, "emotion": emotion})


def corpus_of(*genres: str | None, classes: Any = None) -> Listed:
    songs = [song(f"s{i}", g, "sad") for i, g in enumerate(genres)]
    return Listed(songs, labels=("genre", "emotion"), classes=classes)


def after(corpus: Listed, **names: str | None) -> list[str | None]:
    listing = mapped(corpus.songs(Path()), corpus, LabelSettings({"genre": names}))
    return [s.labels["genre"] for s in listing.songs]


def test_classes_merge_and_change_their_names() -> None:
    corpus = corpus_of("hiphop", "rap", "jazz", None, "hiphop")
    assert after(corpus, hiphop="rap") == ["rap", "rap", "jazz", None, "rap"]
    assert after(corpus, hiphop="x", rap="x") == ["x", "x", "jazz", None, "x"]
    assert after(corpus) == ["hiphop", "rap", "jazz", None, "hiphop"]


def test_all_names_change_at_once() -> None:
    assert after(corpus_of("a", "b", "c"), a="b", b="a") == ["b", "a", "c"]
    assert after(corpus_of("a", "b", "c"), a="b", b="c") == ["b", "c", "c"]


def test_classes_that_look_alike_are_named_with_what_joins_them() -> None:
    alike = (
        "rock",
        "Rock",
        "rock",
        "R\u0026B",
        "R\uff06B",
        "caf\u00e9",
        "cafe\u0301",
        "rock ",
        "jazz",
    )
    corpus = corpus_of(*alike, None)
    remarks = mapped(corpus.songs(Path()), corpus, LabelSettings()).remarks
    assert len(remarks) == 4
    assert remarks[0] == (
        "genre 'Rock' (1 song) and 'rock' look alike and are two classes; to make them one: "
        "labels.map.genre.Rock=rock"
    )
    assert remarks[1].endswith("'labels.map.genre.rock =rock'")
    joined = LabelSettings({"genre": {"Rock": "rock", "rock ": "rock"}})
    assert len(mapped(corpus.songs(Path()), corpus, joined).remarks) == 2


def test_songs_stay_without_a_label() -> None:
    corpus = corpus_of("a", "unlabelled", "b", "unlabelled")
    assert after(corpus, unlabelled="") == ["a", None, "b", None]
    found = LabelSettings({"genre": {"unlabelled": ""}})
    listing = mapped(corpus.songs(Path()), corpus, found)
    assert not listing.unusable
    assert [s.labels["emotion"] for s in listing.songs] == ["sad"] * 4
    assert label_spec(corpus, listing.songs, found).classes["genre"] == ("a", "b")
    known = corpus_of("a", "unlabelled", classes={"genre": ("b", "unlabelled", "a")})
    songs = mapped(known.songs(Path()), known, found).songs
    assert label_spec(known, songs, found).classes["genre"] == ("b", "a")


def test_dropped_songs_keep_their_label_and_say_why() -> None:
    corpus = corpus_of("a", "other", "b", "other")
    found = LabelSettings({"genre": {"other": None, "a": "x"}})
    listing = mapped(corpus.songs(Path()), corpus, found)
    assert [(s.song_id, s.labels["genre"]) for s in listing.songs] == [("s0", "x"), ("s2", "b")]
    assert [(u.song_id, u.reason, u.labels["genre"]) for u in listing.unusable] == [
        ("s1", "dropped_label", "other"),
        ("s3", "dropped_label", "other"),
    ]
    assert listing.unusable[0].detail == "labels.map.genre.other=null"
    assert {u.reason for u in listing.unusable} <= set(REJECTIONS)


def test_what_was_unusable_and_remarked_stays() -> None:
    piece = Unusable("x", Path("x"), "missing", "")
    corpus = Listed([song("a", "a"), song("b", "b")], [piece], labels=("genre", "emotion"))
    listing = mapped(corpus.songs(Path()), corpus, LabelSettings({"genre": {"a": None}}))
    assert [u.song_id for u in listing.unusable] == ["x", "a"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"genre": {"jaz": "x"}}, ["labels.map.genre.jaz", "did you mean jazz?", "rock"]),
        ({"gnre": {"jazz": "x"}}, ["labels.map.gnre", "did you mean genre?", "emotion"]),
        ({"genre": {"jazz": " "}}, ["labels.map.genre.jazz", "null"]),
        ({"genre": {"jazz": 7}}, ["labels.map.genre.jazz=7"]),
        ({"genre": "rock"}, ["labels.map.genre=rock", "CLASS=NAME"]),
        ("rock", ["labels.map=rock"]),
        ({"genre": {"jazz": None, "rock": None}}, ["leaves none of the 2 songs"]),
    ],
)
def test_a_map_that_fits_nothing_is_rejected(names: Any, words: list[str]) -> None:
    corpus = corpus_of("jazz", "rock")
    with pytest.raises(UserError) as caught:
        mapped(corpus.songs(Path()), corpus, LabelSettings.from_config({"map": names}))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "many", {"genre": 0}])
def test_a_bound_that_is_no_number_is_rejected(n: Any) -> None:
    with pytest.raises(UserError, match=re.escape(f"labels.min_songs={n} must be")):
        LabelSettings.from_config({"map": {}, "min_songs": n})


def test_numbers_are_names_too() -> None:
    assert LabelSettings.from_config({"map": {"genre": {80: "eighties"}}}).map == {
        "genre": {"80": "eighties"}
    }
    assert LabelSettings.from_config({}) == LabelSettings()


def spec(fixed: tuple[str, ...], names: dict[str, str | None], *genres: str, **more: Any) -> Any:
    corpus = corpus_of(*genres, classes={"genre": fixed})
    found = LabelSettings({"genre": names}, **more)
    return label_spec(corpus, mapped(corpus.songs(Path()), corpus, found).songs, found).classes


def test_the_corpus_order_of_the_classes_holds() -> None:
    order = ("rock", "country", "jazz", "traditional")
    genres = ("rock", "jazz", "country", "traditional")
    assert spec(order, {}, *genres)["genre"] == order
    assert spec(order, {"country": "folk"}, *genres)["genre"] == (
        "rock", "folk", "jazz", "traditional",
    )  # fmt: skip
    # Merged into a class that there is: its place; into a new one: that of the first.
    assert spec(order, {"country": "traditional"}, *genres)["genre"] == (
        "rock", "jazz", "traditional",
    )  # fmt: skip
    assert spec(order, {"country": "song", "traditional": "song"}, *genres)["genre"] == (
        "rock", "song", "jazz",
    )  # fmt: skip
    assert spec(order, {"jazz": None}, *genres)["genre"] == ("rock", "country", "traditional")
    assert spec(order, {"rock": "jazz", "jazz": "rock"}, *genres)["genre"] == (
        "jazz", "country", "rock", "traditional",
    )  # fmt: skip


def test_known_classes_without_a_song_stay_unless_some_are_asked_for() -> None:
    assert spec(("a", "b"), {}, "a")["genre"] == ("a", "b")
    assert spec(("a", "b"), {}, "a", min_songs=1)["genre"] == ("a",)
    assert spec(("a", "b"), {"b": "c"}, "a")["genre"] == ("a", "c")
    assert spec(("a", "b"), {}, "a")["emotion"] == ("sad",)


# Classes that are too small


def rare(songs: list[SongRef], n: Any, *, bad: str = "", same: Any = None) -> Any:
    corpus = Listed(songs, labels=("genre", "emotion"))
    content = {s.song_id: (same or {}).get(s.song_id, s.song_id).encode() for s in songs}
    kept, out = without_rare(
        songs,
        corpus,
        LabelSettings(min_songs=n),
        lambda s: content[s.song_id],
        lambda s: s.song_id not in bad.split(),
    )
    return [s.song_id for s in kept], {u.song_id: u.detail for u in out}


def test_small_classes_go_with_the_reason() -> None:
    songs = [song("a", "x"), song("b", "x"), song("c", "y"), song("d", None, None)]
    assert rare(songs, None) == (["a", "b", "c", "d"], {})
    assert rare(songs, 1) == (["a", "b", "c", "d"], {})
    kept, out = rare(songs, 2)
    assert kept == ["a", "b", "d"]
    assert out == {"c": "genre 'y' has 1 song that can be used, fewer than 2 (labels.min_songs)"}


def test_songs_that_cannot_be_read_and_copies_do_not_count() -> None:
    songs = [song(i, "x") for i in "abc"] + [song(i, "y") for i in "def"]
    assert rare(songs, 3, bad="a")[0] == ["d", "e", "f"]
    assert rare(songs, 3, same={"d": "1", "e": "1"})[0] == ["a", "b", "c"]
    assert rare(songs, 2, bad="a", same={"d": "1", "e": "1"})[0] == list("abcdef")


def test_one_label_takes_songs_from_another() -> None:
    """Without its two rare emotions jazz is too small itself."""
    songs = [song("1", "jazz", "odd"), song("2", "jazz", "sad"), song("3", "rock", "sad"),
             song("4", "rock", "sad")]  # fmt: skip
    kept, out = rare(songs, 2)
    assert kept == ["3", "4"]
    assert "emotion 'odd'" in out["1"]
    assert "genre 'jazz'" in out["2"]


def test_a_bound_for_one_label() -> None:
    songs = [song("1", "jazz", "odd"), song("2", "jazz", "sad"), song("3", "rock", "sad"),
             song("4", "rock", "sad"), song("5", "ska", "sad")]  # fmt: skip
    kept, out = rare(songs, {"genre": 2})
    assert kept == ["1", "2", "3", "4"]
    assert list(out) == ["5"]
    assert rare(songs, {"genre": 1, "emotion": 2})[0] == ["2", "3", "4", "5"]
    corpus = corpus_of("a", classes={"genre": ("a", "b"), "emotion": ("sad", "odd")})
    listing = corpus.songs(Path())
    found = label_spec(corpus, listing.songs, LabelSettings(min_songs={"genre": 1})).classes
    assert found == {"genre": ("a",), "emotion": ("sad", "odd")}
    with pytest.raises(UserError, match=r"labels\.min_songs\.gnre: .*did you mean genre"):
        mapped(listing, corpus, LabelSettings(min_songs={"gnre": 1}))


def test_no_class_is_large_enough() -> None:
    with pytest.raises(UserError, match=r"labels\.min_songs=3 leaves no song"):
        rare([song("a", "x", "s"), song("b", "x", "s")], 3)


def test_no_more_songs_are_read_than_needed() -> None:
    read: list[str] = []
    songs = [song(f"{g}{i}", g) for g in "xy" for i in range(50)]
    corpus = Listed(songs, labels=("genre", "emotion"))
    without_rare(
        songs, corpus, LabelSettings(min_songs=5), lambda s: s.song_id.encode(),
        lambda s: not read.append(s.song_id),  # type: ignore[func-returns-value]
    )  # fmt: skip
    assert len(read) == len(set(read)) == 10


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.booleans()),
        min_size=1, max_size=40,
    ),
    st.integers(1, 6),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_what_is_left_is_all_that_is_large_enough(
    rows: list[tuple[str, str, bool]], n: int
) -> None:
    songs = [song(str(i), g, e) for i, (g, e, _) in enumerate(rows)]
    readable = {str(i) for i, row in enumerate(rows) if row[2]}
    expected = {s.song_id for s in songs}
    while True:
        counts = Counter(
            (label, s.labels[label])
            for s in songs
            for label in s.labels
            if s.song_id in expected & readable
        )
        small = {
            s.song_id
            for s in songs
            if any(counts[label, name] < n for label, name in s.labels.items())
        }
        if not small & expected:
            break
        expected -= small
    corpus = Listed(songs, labels=("genre", "emotion"))
    settings = LabelSettings(min_songs=n)
    arguments = (songs, corpus, settings, lambda s: s.song_id.encode())
    if not expected:
        with pytest.raises(UserError, match="leaves no song"):
            without_rare(*arguments, lambda s: s.song_id in readable)
        return
    kept, out = without_rare(*arguments, lambda s: s.song_id in readable)
    assert {s.song_id for s in kept} == expected
    assert len(kept) + len({u.song_id for u in out}) == len(songs)


# In a preparation


def test_shards_have_the_new_classes_and_the_reasons(tmp_path: Path) -> None:
    corpus = songs_in(tmp_path, 13, ("a", "b", "c", "d"))
    refs = corpus.songs(tmp_path).songs
    broken = [
        SongRef(f"bad{i}", write(tmp_path / f"bad{i}", b"no%d" % i), {"genre": "d"})
        for i in range(5)
    ]
    corpus = Listed([*refs, *broken])
    asked = LabelSettings({"genre": {"b": "a", "c": None}}, min_songs=4)
    shards = prepared(corpus, tmp_path, labels=asked)
    # d has eight files, five of which cannot be read.
    assert shards.labels.classes == {"genre": ("a",)}
    assert Counter(r["genre"] for r in shards.manifest) == {"a": 7}
    refused = read_csv(shards.folder / "refused.csv")
    assert Counter((r["reason"], r["genre"]) for r in refused) == {
        ("dropped_label", "c"): 3,
        ("rare_label", "d"): 8,
    }
    assert read_json(shards.folder / "report.json")["refused"] == {
        "dropped_label": 3, "rare_label": 8,
    }  # fmt: skip
    assert len(shards) + len(refused) == 18


def test_a_merged_class_has_no_conflict(tmp_path: Path) -> None:
    good = songs_in(tmp_path, 4).songs(tmp_path).songs
    same = midi([3, 3], seed=99)
    clash = [SongRef(g, write(tmp_path / g / "x.mid", same), {"genre": g}) for g in "ab"]
    corpus = Listed([*good, *clash])
    assert len(prepared(corpus, tmp_path)) == 4
    assert len(prepared(corpus, tmp_path, labels=LabelSettings({"genre": {"a": "b"}}))) == 6
    assert len(prepared(corpus, tmp_path, labels=LabelSettings({"genre": {"a": None}}))) == 3


def test_label_settings_are_part_of_the_cache(tmp_path: Path) -> None:
    corpus = songs_in(tmp_path, 6)
    folders = {
        prepared(corpus, tmp_path, labels=asked).folder
        for asked in (
            LabelSettings(),
            LabelSettings({"genre": {"a": "x"}}),
            LabelSettings({"genre": {"a": "y"}}),
            LabelSettings({"genre": {"a": None}}),
            LabelSettings(min_songs=1),
        )
    }
    assert len(folders) == 5
    assert prepared(corpus, tmp_path, labels=LabelSettings(min_songs=1)).folder in folders
