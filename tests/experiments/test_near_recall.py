"""The table of the search for near duplicates follows from what was planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midi import DRUMS, make_score, note, to_bytes

SCALE = Path(__file__).resolve().parents[2] / "experiments" / "04_scale"


def tune(seed: int, n_notes: int = 160) -> bytes:
    """A melody in steps and leaps over a bass and, to be dropped, chords."""
    rng = np.random.default_rng(seed)
    notes = [
        note(at / 2, 0.5, int(rng.integers(low, low + 16)), program=program)
        for program, low in ((0, 64), (33, 36), (48, 50))
        for at in range(n_notes)
    ]
    return to_bytes(make_score(notes))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    home = tmp_path_factory.mktemp("near")
    for folder in ("one", "two", "short", "left_out"):
        (home / "songs" / folder).mkdir(parents=True)
    (home / "songs/one/a.mid").write_bytes(tune(1))
    (home / "songs/two/b.mid").write_bytes(tune(2))
    (home / "songs/short/c.mid").write_bytes(tune(3, n_notes=4))
    beat = [note(i, 1, 36 + i % 2, program=DRUMS) for i in range(64)]
    (home / "songs/two/beat.mid").write_bytes(to_bytes(make_score(beat)))
    (home / "songs/one/broken.mid").write_bytes(b"MThd")
    (home / "songs/left_out/d.mid").write_bytes(tune(4))
    flags = ["--files", home / "songs", "--skip", "left_out", "--n", 3, "--out", home / "out.json"]
    done = subprocess.run(
        [sys.executable, str(SCALE / "near_recall.py"), *map(str, flags)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (home / "out.json").read_text(encoding="utf-8")
    assert str(home) not in text
    return json.loads(text), done.stdout


def test_a_song_is_found_and_one_that_says_nothing_is_missed(
    result: tuple[dict[str, Any], str],
) -> None:
    rows = {row["change"]: row for row in result[0]["songs"]}
    for change in ("transposed", "other programs", "ticks × 1.2", "first 25% cut"):
        row = rows[change]
        assert (row["copies"], row["found"], row["no_sketch"]) == (3, 2, 1), change
        assert (row["false_links"], row["false_pairs"]) == (0, [])
    # Wilson (1927) by hand for 2 of 3, z = 1.95996.
    assert rows["transposed"]["interval"] == [0.2077, 0.9385]
    assert "| transposed | 3 | 66.7 (20.8–93.8) | 1 | 0 |" in result[1]


def test_a_change_that_does_not_apply_plants_nothing(result: tuple[dict[str, Any], str]) -> None:
    rows = {row["change"]: row for row in result[0]["songs"]}
    assert rows["part dropped (of 3 or more)"]["copies"] == 3
    assert (rows["drums off"]["copies"], rows["drums off"]["interval"]) == (0, None)


def test_drums_have_their_own_table_and_the_base_its_own_counts(
    result: tuple[dict[str, Any], str],
) -> None:
    drums = {row["change"]: row for row in result[0]["drums alone"]}
    assert "transposed" not in drums
    assert (drums["first 25% cut"]["copies"], drums["first 25% cut"]["found"]) == (1, 0)
    base = result[0]["base"]
    assert base["songs"] == 4
    assert base["songs of drums alone"] == 1
    assert base["files refused"] == 1
    assert base["songs without a sketch"] == 2
    assert (base["pairs"], base["linked"], base["songs of the largest group"]) == (0, [], 1)


def test_a_link_to_another_song_is_false(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SCALE))
    import near_recall

    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.mid").write_bytes(tune(seed))
    base = near_recall.Base([tmp_path], [])
    linked = np.array([[0, 3], [1, 3]])  # the copy of b, with both songs
    monkeypatch.setattr(near_recall, "near_pairs", lambda sketches: linked)
    row = near_recall.plant(base, [0, 1], "transposed", seed=0)
    assert (row["copies"], row["found"], row["false_links"]) == (2, 1, 1)
    assert row["false_pairs"] == [["a.mid", "b.mid"]]
