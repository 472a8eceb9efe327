"""The toy corpus: quick, balanced, determined by the seed, learnable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from symusic.core import ScoreTick

from midigenre.corpora import base as corpus_base
from midigenre.corpora.base import Listing
from midigenre.corpora.toy import Toy


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    return Toy().songs(tmp_path_factory.mktemp("toy"))


def test_balanced_over_genre_and_emotion(listing: Listing) -> None:
    counts = Counter((s.labels["genre"], s.labels["emotion"]) for s in listing.songs)
    assert len(listing.songs) == 96
    assert set(counts.values()) == {6}
    classes = Toy().classes()
    assert {g for g, _ in counts} == set(classes["genre"])
    assert {e for _, e in counts} == set(classes["emotion"])
    assert len({s.song_id for s in listing.songs}) == 96


def test_seed_decides_every_byte(listing: Listing, tmp_path: Path) -> None:
    again = Toy(n_songs=16).songs(tmp_path / "a").songs
    other = Toy(n_songs=16, seed=1).songs(tmp_path / "a").songs
    assert [s.path.read_bytes() for s in again] == [s.path.read_bytes() for s in listing.songs[:16]]
    assert all(
        a.path.read_bytes() != b.path.read_bytes() for a, b in zip(again, other, strict=True)
    )


def test_songs_have_bars_drums_programs_and_meter_changes(listing: Listing) -> None:
    scores = [ScoreTick.from_file(s.path) for s in listing.songs]
    assert all(len(score.tracks) >= 3 for score in scores)
    assert {any(t.is_drum for t in score.tracks) for score in scores} == {True, False}
    assert any(len(score.time_signatures) > 1 for score in scores)
    assert any(len(score.time_signatures) == 1 for score in scores)


def test_rule_of_the_emotions(listing: Listing) -> None:
    loudness: dict[str, list[float]] = {}
    for song in listing.songs:
        score = ScoreTick.from_file(song.path)
        velocity = np.mean([n.velocity for t in score.tracks for n in t.notes])
        loudness.setdefault(str(song.labels["emotion"]), []).append(float(velocity))
        slow = score.tempos[0].qpm < 100
        assert slow == (song.labels["emotion"] in ("sad", "calm"))
    assert min(loudness["angry"]) > max(loudness["happy"]) > max(loudness["sad"])


def test_a_simple_model_learns_it(listing: Listing) -> None:
    """Nearest centroid of a dozen plain features: the rules are no riddle."""
    features, labels = [], []
    for song in listing.songs:
        score = ScoreTick.from_file(song.path)
        notes = [n for t in score.tracks for n in t.notes]
        features.append(
            [
                score.tempos[0].qpm / 40,
                float(np.mean([n.velocity for n in notes])) / 15,
                score.time_signatures[0].numerator,
                *np.isin([0, 29, 33, 40, 48, 65, 73], [t.program for t in score.tracks]),
            ]
        )
        labels.append((song.labels["genre"], song.labels["emotion"]))
    x = np.array(features, dtype=float)
    train, test = slice(0, 64), slice(64, None)
    names = sorted(set(labels))
    centroids = np.array(
        [
            np.mean(
                [row for row, label in zip(x[train], labels[train], strict=True) if label == n], 0
            )
            for n in names
        ]
    )
    guess = [names[i] for i in np.argmin(((x[test, None] - centroids) ** 2).sum(-1), axis=1)]
    assert np.mean([g == label for g, label in zip(guess, labels[test], strict=True)]) > 0.7


def test_limit_is_stratified(listing: Listing, tmp_path: Path) -> None:
    few = Toy(limit=16).songs(tmp_path).songs
    assert len({(s.labels["genre"], s.labels["emotion"]) for s in few}) == 16


def test_second_call_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Toy(n_songs=4).songs(tmp_path)
    monkeypatch.setattr(corpus_base, "write_json", None)
    monkeypatch.setattr("midigenre.corpora.toy.write_bytes", None)
    assert Toy(n_songs=4).songs(tmp_path) == first


def test_a_lost_file_is_made_again(tmp_path: Path) -> None:
    first = Toy(n_songs=4).songs(tmp_path)
    content = first.songs[2].path.read_bytes()
    first.songs[2].path.unlink()
    assert Toy(n_songs=4).songs(tmp_path) == first
    assert first.songs[2].path.read_bytes() == content


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"corpus\.n_songs"):
        Toy(n_songs=0)
    with pytest.raises(ValueError, match=r"corpus\.limit"):
        Toy(limit=0)
