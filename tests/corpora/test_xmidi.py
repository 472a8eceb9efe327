"""XMIDI: labels in the names of the files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midigenre.corpora.base import Listing
from midigenre.corpora.xmidi import _XMIDI_NAME, XMIDI, XMIDI_EMOTIONS, XMIDI_GENRES
from midigenre.errors import UserError


def listed(root: Path, *names: str, **settings: object) -> Listing:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"MThd")
    return XMIDI(str(root), **settings).songs(root)  # type: ignore[arg-type]


def test_names(tmp_path: Path) -> None:
    listing = listed(
        tmp_path,
        "XMIDI_angry_classical_0A1B2C.midi",
        "deep/er/XMIDI_happy_pop_X9.mid",
        "xmidi_SAD_Jazz_id_with_more.MIDI",
        "XMIDI_warm_rock_ [a]=b #1.midi",
    )
    assert {s.song_id: (s.labels["genre"], s.labels["emotion"]) for s in listing.songs} == {
        "XMIDI_angry_classical_0A1B2C.midi": ("classical", "angry"),
        "deep/er/XMIDI_happy_pop_X9.mid": ("pop", "happy"),
        "xmidi_SAD_Jazz_id_with_more.MIDI": ("jazz", "sad"),
        "XMIDI_warm_rock_ [a]=b #1.midi": ("rock", "warm"),
    }
    assert list(listing.songs[0].labels) == ["genre", "emotion"]
    assert listing.unusable == []


@given(
    st.sampled_from(XMIDI_EMOTIONS),
    st.sampled_from(XMIDI_GENRES),
    st.text(min_size=1).filter(lambda t: "\n" not in t),
    st.sampled_from([".mid", ".midi", ".MID"]),
)
def test_every_emotion_and_genre(emotion: str, genre: str, number: str, suffix: str) -> None:
    match = _XMIDI_NAME.fullmatch(f"XMIDI_{emotion}_{genre}_{number}{suffix}")
    assert match is not None
    assert (match["emotion"], match["genre"]) == (emotion, genre)


def test_other_names_are_unlabelled(tmp_path: Path) -> None:
    names = (
        "song.mid",
        "XMIDI_happy_pop.mid",
        "XMIDI_happy_pop_.mid",
        "XMIDI__pop_1.mid",
        "a_XMIDI_happy_pop_1.mid",
    )
    listing = listed(tmp_path, "XMIDI_happy_pop_1.mid", *names)
    assert {u.song_id: u.reason for u in listing.unusable} == dict.fromkeys(names, "unlabelled")
    assert all("XMIDI_<emotion>_<genre>_<ID>" in u.detail for u in listing.unusable)
    assert len(listing.songs) == 1


def test_unknown_classes_are_named(tmp_path: Path) -> None:
    listing = listed(
        tmp_path, "XMIDI_happy_pop_1.mid", "XMIDI_happy_polka_2.mid", "XMIDI_grim_ska_3.mid"
    )
    found = {u.song_id: u for u in listing.unusable}
    assert found["XMIDI_happy_polka_2.mid"].detail == "unknown genre 'polka'"
    assert found["XMIDI_happy_polka_2.mid"].reason == "unlabelled"
    assert found["XMIDI_happy_polka_2.mid"].labels == {"genre": "polka", "emotion": "happy"}
    assert found["XMIDI_grim_ska_3.mid"].detail == "unknown genre 'ska' and emotion 'grim'"


PLAN = {
    "genres": ["classical", "jazz", "funk", "pop", "rock", "song"],
    "aliases": {"classic": "classical"},
}


def labels_of(listing: Listing) -> dict[str, tuple[str | None, str | None]]:
    return {s.song_id: (s.labels["genre"], s.labels["emotion"]) for s in listing.songs}


def test_other_genres_become_one(tmp_path: Path) -> None:
    listing = listed(
        tmp_path,
        "XMIDI_happy_CLASSIC_1.mid",
        "a/b/xmidi_sad_country_2.MIDI",
        "XMIDI_sad_jazz_3.mid",
        "XMIDI_warm_4F.midi",
        "XMIDI_warm__5.midi",
        "whatever.mid",
        other="song",
        **PLAN,
    )
    assert labels_of(listing) == {
        "XMIDI_happy_CLASSIC_1.mid": ("classical", "happy"),
        "a/b/xmidi_sad_country_2.MIDI": ("song", "sad"),
        "XMIDI_sad_jazz_3.mid": ("jazz", "sad"),
        "XMIDI_warm_4F.midi": ("song", "warm"),
        "XMIDI_warm__5.midi": ("song", "warm"),
        "whatever.mid": ("song", None),
    }
    assert listing.unusable == []


def test_other_genres_are_dropped(tmp_path: Path) -> None:
    listing = listed(
        tmp_path, "XMIDI_happy_classic_1.mid", "XMIDI_sad_country_2.mid", "XMIDI_warm_4F.midi",
        "whatever.mid", other="drop", **PLAN,
    )  # fmt: skip
    assert labels_of(listing) == {"XMIDI_happy_classic_1.mid": ("classical", "happy")}
    assert {u.song_id: (u.reason, u.detail.split(";")[0]) for u in listing.unusable} == {
        "XMIDI_sad_country_2.mid": ("unlabelled", "unknown genre 'country'"),
        "XMIDI_warm_4F.midi": ("unlabelled", "no genre in its name"),
        "whatever.mid": (
            "unlabelled", "not named like files named XMIDI_<emotion>_<genre>_<ID>.midi (the "
            "unpacked XMIDI archive)",
        ),
    }  # fmt: skip


def test_an_unknown_emotion_is_refused_either_way(tmp_path: Path) -> None:
    for other in ("song", "drop"):
        listing = listed(
            tmp_path, "XMIDI_grim_pop_1.mid", "XMIDI_sad_pop_2.mid", other=other, **PLAN
        )
        assert [u.detail for u in listing.unusable] == ["unknown emotion 'grim'"]


def test_other_must_be_a_genre(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus\.other=folk: choose classical, .*, drop"):
        listed(tmp_path, "XMIDI_sad_pop_1.mid", other="folk")


def test_an_alias_of_no_genre_is_another_genre(tmp_path: Path) -> None:
    names = ("XMIDI_sad_folk_1.mid", "XMIDI_sad_pop_2.mid")
    aliases = {"folk": "traditional"}
    listing = listed(tmp_path, *names, genres=["pop"], aliases=aliases)
    assert [u.detail for u in listing.unusable] == ["unknown genre 'traditional'"]
    listing = listed(tmp_path, genres=["pop", "x"], aliases=aliases, other="x")
    assert [s.labels["genre"] for s in listing.songs] == ["x", "pop"]


def test_a_folder_of_other_music_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no XMIDI file"):
        listed(tmp_path, "whatever.mid", other="song", **PLAN)


def test_classes(tmp_path: Path) -> None:
    listing = listed(tmp_path, "XMIDI_happy_pop_1.mid", "XMIDI_sad_pop_2.mid", emotions=["happy"])
    assert [s.labels["emotion"] for s in listing.songs] == ["happy"]
    assert [u.song_id for u in listing.unusable] == ["XMIDI_sad_pop_2.mid"]
    assert XMIDI(str(tmp_path)).classes() == {"genre": XMIDI_GENRES, "emotion": XMIDI_EMOTIONS}
    assert (len(XMIDI_GENRES), len(XMIDI_EMOTIONS)) == (6, 11)


def test_limit_is_stratified_over_both_labels(tmp_path: Path) -> None:
    names = [
        f"XMIDI_{e}_{g}_{i}.mid"
        for e in ("sad", "happy")
        for g in ("pop", "rock")
        for i in range(5)
    ]
    listing = listed(tmp_path, *names, limit=8)
    counts = Counter(tuple(s.labels.values()) for s in listing.songs)
    assert set(counts.values()) == {2}
    assert len(counts) == 4


def test_what_root_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.mid").write_bytes(b"")
    for root in (None, str(tmp_path / "none"), str(tmp_path / "x.mid"), str(tmp_path)):
        with pytest.raises(UserError, match="XMIDI_<emotion>_<genre>_<ID>"):
            XMIDI(root).songs(tmp_path)
