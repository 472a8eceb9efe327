"""Scores within a source, against loops over the sources."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from tables import evaluated, table

from midigenre.evaluation.scores import (
    ONE_CLASS_EACH,
    ONE_SOURCE,
    by_source,
    source_classes,
    source_majority,
)

NAMES = ["folk", "jazz", "rock"]


def made(seed=0, n_songs=120):
    """Three sources of several classes and one of a single class; two phrases a song."""
    rng = np.random.default_rng(seed)
    source_S = rng.choice(["a", "b", "c", "single"], n_songs).astype(object)
    truth_S = rng.integers(0, 3, n_songs)
    truth_S[source_S == "a"] %= 2
    truth_S[source_S == "single"] = 1
    song_N = np.repeat(np.arange(n_songs), 2)
    truth_N, source_N = truth_S[song_N], source_S[song_N]
    logits = rng.normal(size=(2 * n_songs, 3)) + np.eye(3)[truth_N]
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    allowed = np.ones((2 * n_songs, 3), bool)
    allowed[source_N == "a", 2] = False
    theirs = rng.integers(0, 3, 2 * n_songs)
    return log_probs, truth_N, song_N, source_N, allowed, theirs


def test_each_source_is_judged_alone():
    log_probs, truth, song, source, allowed, theirs = made()
    rows = table(log_probs, truth, song, NAMES, {"hist_gb": theirs}, source=source, allowed=allowed)
    found = by_source(rows, 0, 200)
    assert list(found["by_source"]) == ["a", "b", "c"]
    assert found["by_source"]["a"]["classes"] == ["folk", "jazz"]
    predicted = log_probs.argmax(1)
    restricted = np.where(allowed, log_probs, -np.inf).argmax(1)
    weights, pooled = [], {"accuracy": [], "macro_f1": [], "macro_f1_restricted": []}
    for name, scores in found["by_source"].items():
        rows = source == name
        classes = np.unique(truth[rows])

        def f1(guess, rows=rows, classes=classes):
            return f1_score(truth[rows], guess[rows], labels=classes, average="macro")

        assert scores["n"] == rows.sum()
        assert scores["accuracy"] == pytest.approx(accuracy_score(truth[rows], predicted[rows]))
        assert scores["macro_f1"] == pytest.approx(f1(predicted))
        assert scores["macro_f1_restricted"] == pytest.approx(f1(restricted))
        assert scores["baselines"]["hist_gb"]["macro_f1"] == pytest.approx(f1(theirs))
        weights.append(rows.sum())
        for metric, values in pooled.items():
            values.append(scores[metric])
    all_of = found["within_source"]
    assert all_of["n"] == sum(weights)
    assert all_of["sources"] == ["a", "b", "c"]
    for metric, values in pooled.items():
        assert all_of[metric] == pytest.approx(np.average(values, weights=weights))
        low, high = all_of["ci95"][metric]
        assert low < all_of[metric] < high
    # Told which classes are possible, it errs less where one is not.
    a = found["by_source"]["a"]
    assert a["accuracy_restricted"] > a["accuracy"]
    b = found["by_source"]["b"]
    assert b["accuracy_restricted"] == b["accuracy"]
    versus = all_of["baselines"]["hist_gb"]["versus_model"]["macro_f1"]
    difference = all_of["macro_f1"] - all_of["baselines"]["hist_gb"]["macro_f1"]
    assert versus["difference"] == pytest.approx(difference)
    assert 0 < versus["ci95"][0] < difference < versus["ci95"][1]
    json.dumps(found, allow_nan=False)


def test_who_knows_the_source_only_is_right_by_source_and_not_within():
    """What these scores are for: a model that tells the source, and nothing of the genre."""
    rng = np.random.default_rng(0)
    source = np.repeat(["x", "y"], 100).astype(object)
    major = np.repeat([0, 1], 100)
    truth = np.where(rng.random(200) < 0.8, major, 1 - major)
    log_probs = np.log(np.where(np.eye(2)[major] > 0, 0.9, 0.1))
    allowed = np.ones((200, 2), bool)
    found = by_source(
        table(log_probs, truth, np.arange(200), ["a", "b"], source=source, allowed=allowed)
    )
    assert (log_probs.argmax(1) == truth).mean() > 0.7
    assert found["within_source"]["macro_f1"] < 0.5
    guess = source_majority(source, source, truth, 2)
    assert (guess == major).all()


def test_sources_that_say_nothing():
    log_probs, truth, song, _, allowed, _ = made()
    found = by_source(table(log_probs, truth, song, NAMES, source=np.full(len(truth), "a")))
    assert found == {"by_source": {}, "within_source": None, "within_source_missing": ONE_SOURCE}
    rows = table(log_probs, truth, song, NAMES, source=np.array(NAMES)[truth], allowed=allowed)
    assert by_source(rows)["within_source_missing"] == ONE_CLASS_EACH
    assert by_source(rows.select(np.arange(0)))["within_source"] is None


def test_a_source_without_training_songs_has_no_restricted_score():
    log_probs, truth, song, source, allowed, _ = made()
    allowed[source == "c"] = False
    rows = table(log_probs, truth, song, NAMES, source=source, allowed=allowed)
    found = by_source(rows, n_bootstrap=20)
    assert found["by_source"]["c"]["macro_f1_restricted"] is None
    assert found["by_source"]["b"]["macro_f1_restricted"] is not None
    assert found["within_source"]["accuracy_restricted"] is None
    assert found["within_source"]["accuracy"] is not None


def test_the_source_majority_is_that_of_the_training_songs():
    train = np.array(["a", "a", "a", "b", "b", "c"], object)
    classes = np.array([0, 0, 1, 2, 2, -1])
    asked = np.array(["b", "a", "c", "never"], object)
    # The most frequent of all, the first of equals, where a source is not known.
    assert source_majority(asked, train, classes, 3).tolist() == [2, 0, 0, 0]
    assert source_majority(asked, train[:3], classes[:3], 3) is None  # one source
    assert source_majority(asked, train[2:], classes[2:], 3) is None  # it tells the label
    assert source_classes(asked, train, classes, 3).tolist() == [
        [False, False, True], [True, True, False], [False] * 3, [False] * 3,
    ]  # fmt: skip


def test_both_levels_have_them_and_songs_without_a_label_are_left_out():
    log_probs, truth, song, source, allowed, theirs = made()
    truth = truth.copy()
    truth[song < 20] = -1
    baselines = {"phrase": {"hist_gb": theirs}, "song": {"hist_gb": theirs[::2]}}
    found = evaluated(
        log_probs, truth, song, NAMES, baselines, n_bootstrap=50, source=source, allowed=allowed
    )
    several = (source != "single") & (song >= 20)
    assert found["phrase"]["within_source"]["n"] == several.sum()
    assert found["song"]["within_source"]["n"] == several.sum() // 2
    assert set(found["song"]["within_source"]["baselines"]) == {"hist_gb"}
    json.dumps(found, allow_nan=False)
    assert "within_source" not in evaluated(log_probs, truth, song, NAMES)["song"]


def test_one_temperature_a_row():
    log_probs, truth, song, *_ = made()
    truth = truth.copy()
    truth[song < 20] = -1
    temperatures = {"phrase": np.linspace(0.5, 2, 240), "song": np.linspace(1, 3, 120)}
    found = evaluated(log_probs, truth, song, NAMES, temperatures=temperatures)
    assert found["song"]["n"] == 100
    assert found["song"]["calibrated"]["temperature"] == pytest.approx(
        temperatures["song"][20:].mean()
    )
