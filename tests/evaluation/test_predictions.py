"""Tables of predictions say exactly what the scores count."""

import numpy as np
import pytest

from midigenre.evaluation.bootstrap import paired_bootstrap
from midigenre.evaluation.predictions import LabelPredictions, songs_path, write_predictions
from midigenre.evaluation.scores import evaluate_label
from midigenre.files import read_csv

CLASSES = ("jazz, swing", 'the "blues"', "rock")


@pytest.fixture
def written(tmp_path):
    rng = np.random.default_rng(0)
    songs = np.repeat([f"song {i:02}" for i in range(30)], 4)
    truth = np.repeat(rng.integers(-1, 3, 30), 4)
    logits = rng.normal(size=(120, 3)) + 2 * np.eye(3)[truth]
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    baselines = {"hist_gb": rng.integers(0, 3, 120), "metadata": "one class only"}
    path = tmp_path / "predictions.csv"
    write_predictions(
        path,
        {"song_id": songs, "first_bar": np.tile([0, 4, 8, 12], 30)},
        {"genre": LabelPredictions(CLASSES, truth, log_probs, baselines)},
    )
    scores = evaluate_label(log_probs, truth, songs, CLASSES, {"phrase": baselines}, seed=2)
    return read_csv(path), log_probs, truth, scores["phrase"]


def test_columns_and_rows(written):
    rows, log_probs, truth, _ = written
    assert list(rows[0]) == [
        "song_id", "first_bar", "genre", "genre_model", "genre_hist_gb",
        *(f"genre_log_prob_{name}" for name in CLASSES),
    ]  # fmt: skip
    assert len(rows) == 120
    assert rows[5]["song_id"] == "song 01"
    assert rows[5]["first_bar"] == "4"
    assert [row["genre"] for row in rows] == [(*CLASSES, "")[t] for t in truth]
    for c, name in enumerate(CLASSES):
        values = [float(row[f"genre_log_prob_{name}"]) for row in rows]
        assert values == pytest.approx(log_probs[:, c], abs=1e-5)


def test_the_table_adds_up_to_the_confusion_matrix_and_the_comparison(written):
    rows, _, _, scores = written
    rows = [row for row in rows if row["genre"]]
    confusion = np.zeros((3, 3), int)
    for row in rows:
        confusion[CLASSES.index(row["genre"]), CLASSES.index(row["genre_model"])] += 1
    assert confusion.tolist() == scores["confusion"]
    columns = [[row[c] for row in rows] for c in ("genre", "genre_model", "genre_hist_gb")]
    found = paired_bootstrap(*columns, [row["song_id"] for row in rows], seed=2)
    theirs = scores["baselines"]["hist_gb"]
    for metric, values in found.items():
        assert values["second"] == theirs[metric]
        assert {k: values[k] for k in ("difference", "ci95", "p")} == theirs["versus_model"][metric]


def test_songs_lie_beside_the_phrases(tmp_path):
    assert songs_path(tmp_path / "a-test-predictions.csv") == (
        tmp_path / "a-test-predictions_songs.csv"
    )
