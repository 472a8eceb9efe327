"""Figures draw for every size, without warnings and without pyplot's global state."""

import itertools
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.charts import confusion_figure
from midigenre.evaluation.figures.piano_roll import piano_roll_figure


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def table(rows):
    columns = np.array(rows, np.int32).reshape(-1, 5).T
    names = ("onset", "duration", "pitch", "velocity", "program")
    return SimpleNamespace(**dict(zip(names, columns, strict=True)))


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


BAND = [(t * 240, 240, 40 + t % 30, 20 + t, p) for t in range(64) for p in (0, 33, 73, 127)]
DRUM_PART = [(t * 480, 60, (36, 38, 42, 87)[t % 4], 90, -1) for t in range(32)]
BARS = np.arange(9) * 1920


@pytest.mark.parametrize("n", [1, 3, 12, 16])
def test_confusion_figure(n, tmp_path):
    counts = np.random.default_rng(0).poisson(30, (n, n))
    names = [f"$class_{i} & long name" for i in range(n)]
    figure = confusion_figure(torch.from_numpy(counts), names, "run $x_1")
    path = save(figure, tmp_path / "folder" / "confusion.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in path.parent.iterdir()] == ["confusion.png"]
    found = texts(figure)
    assert all(name in found for name in names)
    assert "True class" in found
    assert "Predicted class" in found
    assert "macro-F1" in found


def test_confusion_figure_without_counts(tmp_path):
    save(confusion_figure(np.zeros((3, 3), int), ["a", "b", "c"], "empty"), tmp_path / "a.png")
    with pytest.raises(ValueError, match="for 3 names"):
        confusion_figure(np.zeros((2, 2), int), ["a", "b", "c"], "wrong")


def overlaps(labels, renderer, turned):
    """Whether neighbours among the names beside an axis touch, along that axis."""
    boxes = [label.get_window_extent(renderer) for label in labels]
    ends = [(b.x0, b.x1) if turned else (b.y0, b.y1) for b in boxes]
    ends.sort()
    return any(a[1] > b[0] + 1 for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize("n", [3, 12, 40, 41, 100, 200, 1000])
def test_a_confusion_figure_is_bounded_and_readable(n):
    """100 classes took 24 CPU seconds and 2 GB, 200 took 7 GB."""
    counts = np.ones((n, n), int)
    began = time.process_time()
    figure = confusion_figure(counts, [f"composer {i:03d} {'of Rome ' * 9}" for i in range(n)], "x")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert time.process_time() - began < 12
    assert max(figure.get_size_inches()) < 27
    axes = figure.axes[0]
    assert len(axes.texts) == (2 * n * n + 1 if n <= 40 else 1)
    renderer = canvas.get_renderer()
    assert not overlaps(axes.get_yticklabels(), renderer, turned=False)
    upright = axes.get_xticklabels()[0].get_rotation() == 90
    assert upright == (n >= 100)
    if upright:
        assert not overlaps(axes.get_xticklabels(), renderer, turned=True)
    assert ("one name in" in axes.get_ylabel()) == (n > 112)
    assert all(len(label.get_text()) <= 49 for label in axes.get_yticklabels())


def test_classes_without_rows_and_predictions_are_left_out():
    counts = np.zeros((4, 4), int)
    counts[0, 0], counts[0, 2] = 7, 1  # nothing is 2, but something is taken for it
    figure = confusion_figure(counts, ["a", "b", "c", "d"], "x")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  (8)", "c  (0)"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "c"]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), [[7 / 8, 1 / 8], [0, 0]])
    assert "2 of 4 classes without rows" in texts(figure)


@pytest.mark.parametrize(
    ("rows", "panels"),
    [(BAND + DRUM_PART, 2), (BAND, 1), (DRUM_PART, 1), ([], 1), ([(0, 0, 60, 1, 5)], 1)],
    ids=["band", "no drums", "only drums", "no notes", "one note of no length"],
)
@pytest.mark.parametrize("bars", [BARS, np.array([0]), np.array([])], ids=["bars", "start", "none"])
def test_piano_roll_figure(rows, panels, bars, tmp_path):
    figure = piano_roll_figure(table(rows), bars, 480, "jazz, happy $1")
    assert len(figure.axes) == panels
    save(figure, tmp_path / "roll.png")


def test_bar_numbers_and_times_do_not_overlap():
    meters = np.r_[np.full(4, 4), np.full(12, 1), np.full(8, 4)]
    bars = np.r_[0, np.cumsum(meters * 8)]
    notes = table([(0, 8, 60, 80, 0), (400, 8, 70, 80, 0)])
    figure = piano_roll_figure(notes, bars, 8, "", np.arange(len(bars)) * 61.0)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert len(boxes) == 9


def test_piano_roll_names_the_instruments():
    figure = piano_roll_figure(table(BAND + DRUM_PART), BARS, 480, "band")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Piano", "Bass", "Pipe", "Sound effects"]
    assert {"Kick", "Snare", "Closed hat", "Drum 87"} <= {
        label.get_text() for label in figure.axes[1].get_yticklabels()
    }
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == list("12345678")


def test_a_failed_save_leaves_nothing(tmp_path):
    class Broken:
        def savefig(self, path, **_):
            path.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        save(Broken(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_pyplot_is_never_imported(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from midigenre.evaluation.figures import save\n"
        "from midigenre.evaluation.figures.charts import confusion_figure\n"
        f"save(confusion_figure(np.eye(2, dtype=int), ['a', 'b'], ''), {str(tmp_path / 'a')!r})\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
