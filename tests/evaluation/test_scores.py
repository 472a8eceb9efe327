"""Scores against scikit-learn, naive loops and hand computations."""

import json
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from tables import evaluated, table

from midigenre.evaluation.metrics import METRICS, Counts, confusion_matrix, scores_of
from midigenre.evaluation.predictions import song_log_probs, song_truth
from midigenre.evaluation.scores import calibration_scores, evaluate

LEVEL_KEYS = {
    "n", "accuracy", "macro_f1", "roc_auc", "ci95", "per_class", "confusion", "labels", "ece",
    "nll", "brier", "calibrated", "reliability", "abstention", "baselines", "out_of_domain",
}  # fmt: skip


def of(confusion_CC):
    """The metrics of a confusion matrix."""
    return scores_of(Counts.of_confusion(confusion_CC))


def score_level(log_probs_NC, truth_N, names, song_N, seed=0, n_bootstrap=1000):
    return evaluate(table(log_probs_NC, truth_N, song_N, names), seed, n_bootstrap)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def random_case(n=200, c=4, songs=40, seed=0, skill=1.0):
    rng = np.random.default_rng(seed)
    song_N = rng.integers(0, songs, n)
    truth_N = rng.integers(0, c, songs)[song_N]
    logits_NC = rng.normal(size=(n, c)) + skill * np.eye(c)[truth_N]
    return log_softmax(logits_NC), truth_N, song_N, [f"class {i}" for i in range(c)]


confusions = st.integers(1, 6).flatmap(
    lambda c: hnp.arrays(np.int64, (c, c), elements=st.sampled_from([0, 0, 1, 2, 7]))
)


@settings(max_examples=60, deadline=None)
@given(confusions)
def test_scores_agree_with_sklearn(confusion_CC):
    c = len(confusion_CC)
    rows, columns = np.indices((c, c)).reshape(2, -1)
    truth_N, predicted_N = (np.repeat(x, confusion_CC.ravel()) for x in (rows, columns))
    assert (confusion_matrix(truth_N, predicted_N, c) == confusion_CC).all()
    if not len(truth_N):
        assert np.isnan(list(of(confusion_CC).values())).all()
        return
    supported = np.unique(truth_N)
    assert of(confusion_CC)["accuracy"] == pytest.approx(accuracy_score(truth_N, predicted_N))
    expected = f1_score(truth_N, predicted_N, labels=supported, average="macro", zero_division=0)
    assert of(confusion_CC)["macro_f1"] == pytest.approx(expected)
    assert of(torch.from_numpy(confusion_CC)) == of(confusion_CC)

    log_probs_NC = log_softmax(5.0 * np.eye(c)[predicted_N])
    names = [str(i) for i in range(c)]
    scores = score_level(log_probs_NC, truth_N, names, np.arange(len(truth_N)), n_bootstrap=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, support = precision_recall_fscore_support(
            truth_N, predicted_N, labels=range(c), zero_division=np.nan
        )
    for i, name in enumerate(names):
        ours = scores["per_class"][name]
        assert ours["support"] == support[i]
        for key, theirs in (("precision", precision), ("recall", recall), ("f1", f1)):
            if ours[key] is None:
                assert np.isnan(theirs[i])
            else:
                assert ours[key] == pytest.approx(theirs[i])
    json.dumps(scores, allow_nan=False)


def test_keys_and_plain_json():
    log_probs_NC, truth_N, song_N, names = random_case()
    truth_N[song_N < 5] = -1
    n = {"phrase": len(truth_N), "song": len(np.unique(song_N))}
    baselines = {level: {"majority": np.zeros(n[level], int), "hist_gb": "no"} for level in n}
    result = evaluated(log_probs_NC, truth_N, song_N, names, baselines)
    assert set(result) == {"phrase", "song"}
    assert result["phrase"]["n"] == (truth_N != -1).sum()
    assert result["song"]["n"] == len(np.unique(song_N[truth_N != -1]))
    for level in result.values():
        assert set(level) >= LEVEL_KEYS
        assert set(level["baselines"]["majority"]) == {*METRICS, "ci95", "versus_model"}
        assert level["baselines"]["hist_gb"] is None
        assert level["baselines_missing"] == {"hist_gb": "no"}
        assert level["labels"] == names
        assert np.sum(level["confusion"]) == level["n"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_no_labelled_phrase_gives_null_not_nan():
    log_probs_NC, truth_N, song_N, names = random_case(n=10)
    result = evaluated(log_probs_NC, np.full_like(truth_N, -1), song_N, names)
    for level in result.values():
        assert level["n"] == 0
        for key in ("accuracy", "macro_f1", "roc_auc", "ece", "nll", "brier"):
            assert level[key] is None
        assert all(interval == [None, None] for interval in level["ci95"].values())
        assert level["abstention"] == {"confidence": "raw", "aurc": None, "curve": []}
    json.dumps(result, allow_nan=False)


def test_one_class():
    scores = score_level(np.zeros((3, 1)), [0, 0, 0], ["only"], [0, 0, 1])
    assert scores["accuracy"] == scores["macro_f1"] == 1
    assert scores["ci95"]["accuracy"] == [1, 1]
    assert scores["ece"] == 0


def test_bootstrap_brackets_the_score_and_follows_the_seed():
    log_probs_NC, truth_N, song_N, names = random_case(n=600, songs=120)
    first, same, other = (
        score_level(log_probs_NC, truth_N, names, song_N, seed=seed) for seed in (3, 3, 4)
    )
    for metric in METRICS:
        low, high = first["ci95"][metric]
        assert low < first[metric] < high
    assert first == same
    assert first["ci95"] != other["ci95"]


def test_bootstrap_agrees_with_a_naive_loop():
    log_probs_NC, truth_N, song_N, names = random_case(n=150, songs=25)
    got = score_level(log_probs_NC, truth_N, names, song_N, seed=5, n_bootstrap=200)["ci95"]
    songs = np.unique(song_N)
    drawn_RS = np.random.default_rng(5).integers(0, len(songs), (200, len(songs)))
    rows = [
        np.concatenate([np.flatnonzero(song_N == songs[s]) for s in drawn]) for drawn in drawn_RS
    ]
    matrices = [confusion_matrix(truth_N[r], log_probs_NC[r].argmax(1), 4) for r in rows]
    for metric in METRICS:
        expected = np.percentile([of(m)[metric] for m in matrices], (2.5, 97.5))
        assert got[metric] == pytest.approx(expected)


def test_bootstrap_resamples_songs_and_not_phrases():
    # All phrases of a song are right or wrong together: 20 songs carry the information, not 1,000
    # phrases, so the interval over songs is about sqrt(50) = 7 times as wide.
    song_N = np.repeat(np.arange(20), 50)
    truth_N = np.zeros(1000, int)
    log_probs_NC = log_softmax(4.0 * np.eye(2)[song_N % 2])
    by_song = score_level(log_probs_NC, truth_N, ["a", "b"], song_N)["ci95"]["accuracy"]
    by_phrase = score_level(log_probs_NC, truth_N, ["a", "b"], np.arange(1000))["ci95"]["accuracy"]
    assert np.ptp(by_song) > 5 * np.ptp(by_phrase)


def test_thousand_resamples_of_thousands_of_songs_are_quick():
    log_probs_NC, truth_N, song_N, names = random_case(n=40_000, c=12, songs=5_000)
    start = time.process_time()
    score_level(log_probs_NC, truth_N, names, song_N)
    assert time.process_time() - start < 3  # well under 1 s on an idle core


def test_ece_by_hand():
    # Bin (8/15, 9/15]: confidences 0.55, 0.6, 1 of 2 right: |0.5 - 0.575|. Bin (13/15, 14/15]:
    # 0.9, 0.9, both right: |1 - 0.9|. Weighted: (2 * 0.075 + 2 * 0.1) / 4 = 0.0875.
    top = np.array([0.55, 0.6, 0.9, 0.9])
    log_probs_NC = np.log(np.stack([top, 1 - top], 1))
    assert calibration_scores(log_probs_NC, [0, 1, 0, 0])["ece"] == pytest.approx(0.0875)


def test_ece_against_a_naive_loop():
    log_probs_NC, truth_N, _, _ = random_case(n=300, c=5)
    confidence, right = np.exp(log_probs_NC.max(1)), log_probs_NC.argmax(1) == truth_N
    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_scores(log_probs_NC, truth_N)["ece"] == pytest.approx(total)


@pytest.mark.parametrize("text", [False, True])
def test_song_log_probs_against_a_naive_loop(text):
    log_probs_NC, _, song_N, _ = random_case(n=80, songs=13)
    if text:
        song_N = np.array([f"song {s:02}" for s in song_N])
    songs_S, log_probs_SC = song_log_probs(log_probs_NC, song_N)
    assert list(songs_S) == sorted(set(song_N))
    for song, row in zip(songs_S, log_probs_SC, strict=True):
        mean = log_probs_NC[song_N == song].mean(0)
        assert row == pytest.approx(mean - np.log(np.exp(mean).sum()))


def test_song_log_probs_survive_impossible_classes():
    with np.errstate(divide="ignore"):
        log_probs_NC = np.log([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    _, log_probs_SC = song_log_probs(log_probs_NC, [7, 7, 7])
    assert np.isfinite(log_probs_SC).all()


def test_song_truth_must_be_one_class():
    with pytest.raises(ValueError, match="several classes"):
        song_truth([0, 1], [5, 5])


@pytest.mark.parametrize(
    "log_probs_NC", [np.array([[2.0, 1.0]]), np.array([[np.nan, 0.0]]), np.zeros((1, 3))]
)
def test_what_is_not_log_probabilities_is_refused(log_probs_NC):
    with pytest.raises(ValueError, match=r"log_softmax|fit together"):
        score_level(log_probs_NC, [0], ["a", "b"], [0])


def test_classes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="outside"):
        confusion_matrix([0, 3], [0, 0], 3)


def test_baselines_are_scored_on_the_labelled_rows_and_compared_with_the_model():
    # The model is right on phrases 0 and 1 (song 0), wrong on 2 (song 1); phrase 3 has no label.
    log_probs_NC = log_softmax(5.0 * np.eye(2)[[0, 0, 0, 1]])
    song_N, truth_N = [0, 0, 1, 2], [0, 0, 1, -1]
    theirs = {"phrase": {"other": [0, 1, 1, 0]}, "song": {"other": [1, 1, 0], "gone": "it is"}}
    result = evaluated(log_probs_NC, truth_N, song_N, ["a", "b"], theirs)
    other = result["phrase"]["baselines"]["other"]
    assert other["accuracy"] == pytest.approx(2 / 3)
    assert other["macro_f1"] == pytest.approx(2 / 3)  # both F1 are 2 / 3
    versus = other["versus_model"]
    assert versus["accuracy"]["difference"] == pytest.approx(0)
    assert versus["macro_f1"]["difference"] == pytest.approx(0.4 - 2 / 3)  # the model: 0.8 and 0
    song = result["song"]["baselines"]
    assert song["other"]["accuracy"] == 0.5
    assert song["gone"] is None
    assert result["song"]["baselines_missing"] == {"gone": "it is"}


def test_a_baseline_that_equals_the_model_has_its_scores_and_intervals():
    log_probs_NC, truth_N, song_N, names = random_case()
    same = {"phrase": {"same": log_probs_NC.argmax(1)}}
    scores = evaluated(log_probs_NC, truth_N, song_N, names, same, seed=3)["phrase"]
    same = scores["baselines"]["same"]
    for key in METRICS:
        assert same[key] == scores[key]
        assert same["ci95"][key] == scores["ci95"][key]
    assert scores["baselines"]["same"]["versus_model"]["macro_f1"] == {
        "difference": 0, "ci95": [0, 0], "p": 1,
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [[0, 1], [0, 0, 0, 2]], ids=["length", "class"])
def test_predictions_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match=r"fit together|outside"):
        table(np.log(np.full((4, 2), 0.5)), [0, 0, 1, 1], range(4), ["a", "b"], {"x": wrong})
