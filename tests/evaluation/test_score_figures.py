"""Figures that are drawn from ``evaluation.json`` alone."""

import json

import numpy as np
import pytest
from tables import evaluated

from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.charts import evaluation_figures


def evaluation(n=60, temperatures=None):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + np.eye(3)[truth]
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    levels = evaluated(
        log_probs, truth, np.arange(n), ["$a", "b_c", "d"], temperatures=temperatures, n_bootstrap=9
    )
    return json.loads(json.dumps({"genre": levels}))


@pytest.mark.parametrize("n", [60, 1, 0])
@pytest.mark.parametrize("temperatures", [None, {"phrase": 1.7, "song": 0.6}])
def test_all_figures_are_drawn(n, temperatures, tmp_path):
    figures = evaluation_figures(evaluation(n, temperatures), "test")
    kinds = ("confusion", "reliability", "coverage")
    assert list(figures) == [f"genre/{level}/{k}" for level in ("phrase", "song") for k in kinds]
    for place, figure in figures.items():
        path = save(figure, tmp_path / f"{place.replace('/', '-')}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
    panels = len(figures["genre/song/reliability"].axes)
    assert panels == (2 if temperatures is None else 4)


def test_thresholds_lie_in_the_plot_and_no_score_is_above_1():
    truth = np.arange(12) % 3
    log_probs = np.log(np.where(np.eye(3), 0.98, 0.01)[truth])
    content = {"genre": evaluated(log_probs, truth, np.arange(12), ["a", "b", "c"], n_bootstrap=9)}
    for found in (content, evaluation()):
        figure = evaluation_figures(found, "test")["genre/song/coverage"]
        figure.canvas.draw()
        (axes,) = figure.axes
        assert max(axes.get_yticks()) <= 1
        plot, texts = axes.get_window_extent(), [t for t in axes.texts if "≥" in t.get_text()]
        assert len(texts) == 5
        for text in texts:
            box = text.get_window_extent()
            assert plot.x0 <= box.x0 < box.x1 <= plot.x1
            assert plot.y0 <= box.y0 < box.y1 <= plot.y1


def test_bars_reach_from_accuracy_to_confidence():
    content = evaluation()
    axes = evaluation_figures(content, "test")["genre/song/reliability"].axes[0]
    drawn = sorted((p.get_x(), p.get_y(), p.get_y() + p.get_height()) for p in axes.patches)
    expected = sorted(
        (b["low"], *sorted((b["confidence"], b["accuracy"])))
        for b in content["genre"]["song"]["reliability"]["raw"]
    )
    assert np.array(drawn) == pytest.approx(np.array(expected))
