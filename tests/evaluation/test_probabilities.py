"""ROC-AUC and abstention against scikit-learn, naive loops and cases done by hand."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from tables import table

from midigenre.evaluation.scores import (
    COVERAGES,
    aurc,
    confidence_scores,
    coverage_curve,
    evaluate,
    roc_auc_scores,
    weighted_roc_auc,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), *[st.integers(0, 4)] * 3, st.integers(0, 3)),
        min_size=1, max_size=25,
    )
)  # fmt: skip
def test_roc_auc_agrees_with_sklearn_ties_and_weights_included(rows):
    columns = np.array(rows)
    truth, scores, weights = columns[:, 0], columns[:, 1:4].astype(float), columns[:, 4]
    found = weighted_roc_auc(scores, truth, weights[None].astype(float))[0]
    for c in range(3):
        positive = truth == c
        if not (weights[positive].sum() and weights[~positive].sum()):
            assert np.isnan(found[c])
            continue
        expected = roc_auc_score(positive, scores[:, c], sample_weight=weights)
        assert found[c] == pytest.approx(expected)


def made(n_songs=60, per_song=3, c=3, seed=0):
    rng = np.random.default_rng(seed)
    song = np.repeat(np.arange(n_songs), per_song)
    truth = rng.integers(0, c, n_songs)[song]
    logits = rng.normal(size=(len(song), c)) + 1.2 * np.eye(c)[truth]
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), truth, song


def test_macro_and_interval_are_those_of_a_naive_bootstrap():
    log_probs, truth, song = made()
    auc_C, auc, interval = roc_auc_scores(log_probs, truth, song, seed=3, n_bootstrap=100)
    expected = [roc_auc_score(truth == c, log_probs[:, c]) for c in range(3)]
    assert auc_C == pytest.approx(expected)
    assert auc == pytest.approx(np.mean(expected))
    rng = np.random.default_rng(3)
    scores = []
    for songs in rng.integers(0, 60, (100, 60)):
        rows = np.concatenate([np.flatnonzero(song == s) for s in songs])
        scores.append(
            np.mean([roc_auc_score(truth[rows] == c, log_probs[rows, c]) for c in range(3)])
        )
    assert interval == pytest.approx(np.percentile(scores, [2.5, 97.5]))


def test_a_class_that_does_not_occur_has_none():
    scores = evaluate(table(np.log(np.full((4, 3), 1 / 3)), [0, 0, 1, 1], range(4), list("abc")))
    assert [of["roc_auc"] for of in scores["per_class"].values()] == [0.5, 0.5, None]
    assert scores["roc_auc"] == 0.5
    alone = evaluate(table(np.log(np.full((2, 2), 0.5)), [0, 0], [0, 1], ["a", "b"]))
    assert alone["roc_auc"] is None
    assert alone["ci95"]["roc_auc"] == [None, None]
    json.dumps([scores, alone], allow_nan=False)


def test_roc_auc_is_quick_on_thousands_of_phrases():
    log_probs, truth, song = made(n_songs=400, per_song=20, c=6)
    started = time.perf_counter()
    roc_auc_scores(log_probs, truth, song)
    assert time.perf_counter() - started < 20  # about 2 s on one idle core


def test_coverage_by_hand():
    confidence = [0.9, 0.8, 0.7, 0.6]
    predicted, truth = [0, 1, 1, 0], [0, 1, 0, 1]
    rows = {row["wanted"]: row for row in coverage_curve(confidence, predicted, truth, 2)}
    assert tuple(rows) == COVERAGES
    assert rows[1.0].items() >= {
        "wanted": 1.0, "coverage": 1.0, "n": 4, "threshold": 0.6, "accuracy": 0.5, "macro_f1": 0.5,
    }.items()  # fmt: skip
    assert (rows[0.75]["n"], rows[0.75]["threshold"]) == (3, 0.7)
    assert rows[0.75]["accuracy"] == pytest.approx(2 / 3)
    assert (rows[0.5]["n"], rows[0.5]["accuracy"], rows[0.5]["macro_f1"]) == (2, 1.0, 1.0)
    assert (rows[0.1]["n"], rows[0.1]["threshold"]) == (1, 0.9)
    # Errors 0, 0, 1/3, 2/4 of the 1, 2, 3, 4 most confident.
    assert aurc(confidence, [1, 1, 0, 0]) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert coverage_curve([], [], [], 2) == []
    assert aurc([], []) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_rows_of_equal_confidence_stand_and_fall_together(rows, random):
    confidence = np.array([c / 5 for c, _ in rows])
    right = np.array([r for _, r in rows])
    truth, predicted = np.zeros(len(rows), int), np.where(right, 0, 1)
    curve = coverage_curve(confidence, predicted, truth, 2)
    for row in curve:
        kept = confidence >= row["threshold"]
        assert row["n"] == kept.sum()
        assert row["coverage"] >= row["wanted"] - 1e-9
        assert row["accuracy"] == pytest.approx(right[kept].mean())
    order = list(range(len(rows)))
    random.shuffle(order)
    assert coverage_curve(confidence[order], predicted[order], truth, 2) == curve
    assert aurc(confidence[order], right[order]) == pytest.approx(aurc(confidence, right))


def test_calibration_leaves_the_answers_as_they_are():
    log_probs, truth, _ = made()
    raw = confidence_scores(log_probs, truth, None)
    after = confidence_scores(log_probs, truth, np.full(len(truth), 2.5))
    assert raw["calibrated"] is None
    assert raw["reliability"]["calibrated"] is None
    assert raw["abstention"]["confidence"] == "raw"
    assert after["calibrated"]["temperature"] == 2.5
    assert after["abstention"]["curve"][0]["accuracy"] == raw["abstention"]["curve"][0]["accuracy"]
    assert after["reliability"]["raw"] == raw["reliability"]["raw"]
    assert after["reliability"]["calibrated"] != raw["reliability"]["raw"]
