"""The figure of two labels: counts, shares, names as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.charts import label_figure

LABELS = ("genre", "emotion")


def texts(figure: Any) -> list[str]:
    return [t.get_text() for t in figure.axes[0].texts]


def test_counts_shares_and_totals(tmp_path: Path) -> None:
    songs = np.array([[1234, 0, 1], [5, 5, 0]])
    classes = (["rock_$1$", "jazz"], ["sad", "x", "(none)"])
    figure = label_figure(songs, LABELS, classes, "toy: genre × emotion")
    found = texts(figure)
    assert found.count("·") == 2
    assert found[:4] == ["1,234", "100%", "·", "1"]
    assert "<1%" in found
    assert found.count("50%") == 2
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["rock_$1$  (1,235)", "jazz  (10)"]
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "sad  (1,239)",
        "x  (5)",
        "(none)  (1)",
    ]
    assert "1,245 songs" in found[-1]
    np.testing.assert_allclose(
        np.asarray(axes.images[0].get_array()), songs / songs.sum(1, keepdims=True)
    )
    assert save(figure, tmp_path / "f.png").stat().st_size > 5000


def test_a_class_without_songs_and_no_song_at_all(tmp_path: Path) -> None:
    songs = [[0, 0, 0], [1, 0, 3]]
    figure = label_figure(songs, LABELS, (["a", "b"], ["x", "z", "y"]), "t")
    assert texts(figure)[:4] == ["1", "25%", "3", "75%"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["b  (4)"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["x  (1)", "y  (3)"]
    save(figure, tmp_path / "f.png")
    save(label_figure([[0]], LABELS, (["a"], ["x"]), "t"), tmp_path / "g.png")


def test_a_large_table_is_bounded() -> None:
    songs = np.ones((300, 2), int)
    figure = label_figure(songs, LABELS, ([f"genre {i}" for i in range(300)], ["x", "y"]), "t")
    assert max(figure.get_size_inches()) < 26
    assert len(figure.axes[0].texts) == 1  # the subtitle


def test_a_table_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2 by 1 names"):
        label_figure([[1, 2]], LABELS, (["a", "b"], ["x"]), "t")
