"""Figures draw what they are given, without warnings, at every size."""

import warnings

import numpy as np
import pytest
from made_songs import made, random_song

from midigenre.evaluation.figures import save
from midigenre.evaluation.music.descriptors import describe_all
from midigenre.evaluation.music.distance import compare_sets, overlap_figure
from midigenre.evaluation.music.structure import (
    repetition,
    repetition_figure,
    self_similarity,
    similarity_figure,
)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@pytest.mark.parametrize("bars", [0, 1, 16, 200])
def test_similarity_figure(bars, tmp_path):
    matrix = np.eye(bars)
    figure = similarity_figure(matrix, "a $piece_1")
    path = save(figure, tmp_path / "similarity.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert "a $piece_1" in texts(figure)
    image = figure.axes[0].images[0]
    assert image.get_clim() == (0, 1)
    if bars:
        assert (image.get_array() == matrix).all()
        assert list(image.get_extent()) == [0.5, bars + 0.5, bars + 0.5, 0.5]


def test_similarity_of_a_song_is_drawn(tmp_path):
    twice = made([(0, 1, 60), (4, 1, 61), (8, 1, 60)])
    figure = similarity_figure(self_similarity(twice), "three bars")
    save(figure, tmp_path / "a.png")
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (3, 3)
    assert drawn[0, 2] == drawn[2, 0] == 1
    assert drawn[0, 1] < 1


def test_repetition_figure(tmp_path):
    piece = random_song(np.random.default_rng(0), n_bars=6)
    found = repetition(piece)
    figure = repetition_figure(found, {k: [0.5] * 16 for k in found}, "lags")
    save(figure, tmp_path / "lags.png")
    real, ours = figure.axes[0].get_lines()
    assert (real.get_label(), ours.get_label()) == ("real", "generated")
    assert real.get_ydata().tolist() == [0.5] * 16
    assert ours.get_ydata()[:5] == pytest.approx(found["similarity"][:5])
    assert np.isnan(ours.get_ydata()[5:]).all()


def test_overlap_figure(tmp_path):
    rng = np.random.default_rng(0)
    ours, theirs = (describe_all([random_song(rng, n_bars=2) for _ in range(12)]) for _ in "ab")
    found = compare_sets(ours, theirs, n_bootstrap=20, n_splits=5)
    found["polyphony"] = {"n_generated": 0, "n_real": 0, "reason": "few"}
    for measure in ("overlap", "jensen_shannon"):
        figure = overlap_figure(found, "all", measure)
        save(figure, tmp_path / "overlap.png")
        words = texts(figure)
        assert "not enough songs" in words
        assert "groove consistency" in words
        points = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
        known = [one[measure] for one in found.values() if measure in one]
        rings = [line for line in points if line.get_markerfacecolor() == "none"]
        dots = [line for line in points if line not in rings]
        assert [float(line.get_xdata()[0]) for line in dots] == [one["value"] for one in known]
        means = [one["matched"]["mean"] for one in known]
        assert [float(line.get_xdata()[0]) for line in rings] == means
    without = compare_sets(ours, theirs, n_bootstrap=0, n_splits=0)
    assert without["polyphony"]["overlap"]["floor"] == {"mean": None, "low": None, "high": None}
    save(overlap_figure(without, "values alone"), tmp_path / "values.png")
