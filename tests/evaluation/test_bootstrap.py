"""Paired resampling of songs, against hand computations and naive loops."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from midigenre.evaluation.bootstrap import paired_bootstrap, score, t_interval


def case(seed=0, n=300, songs=40, c=4):
    rng = np.random.default_rng(seed)
    song_N = rng.integers(0, songs, n)
    truth_N = rng.integers(0, c, songs)[song_N]
    first, second = (
        np.where(rng.random(n) < skill, truth_N, rng.integers(0, c, n)) for skill in (0.8, 0.3)
    )
    return truth_N, first, second, song_N


def macro_f1(truth, predicted):
    supported = np.unique(truth)
    return f1_score(truth, predicted, labels=supported, average="macro", zero_division=0)


def test_scores_and_difference_are_exact():
    truth, first, second, songs = case()
    found = paired_bootstrap(truth, first, second, songs, n_bootstrap=50)
    for name, function in (("accuracy", accuracy_score), ("macro_f1", macro_f1)):
        assert found[name]["first"] == pytest.approx(function(truth, first))
        assert found[name]["second"] == pytest.approx(function(truth, second))
        difference = function(truth, first) - function(truth, second)
        assert found[name]["difference"] == pytest.approx(difference)


def test_agrees_with_a_naive_loop():
    truth, first, second, songs = case(n=120, songs=15)
    found = paired_bootstrap(truth, first, second, songs, seed=7, n_bootstrap=100)
    ids = np.unique(songs)
    drawn_RS = np.random.default_rng(7).integers(0, len(ids), (100, len(ids)))
    rows = [np.concatenate([np.flatnonzero(songs == ids[s]) for s in drawn]) for drawn in drawn_RS]
    for name, function in (("accuracy", accuracy_score), ("macro_f1", macro_f1)):
        differences = [function(truth[r], first[r]) - function(truth[r], second[r]) for r in rows]
        assert found[name]["ci95"] == pytest.approx(np.percentile(differences, (2.5, 97.5)))
        at_most = sum(d <= 0 for d in differences)
        at_least = sum(d >= 0 for d in differences)
        assert found[name]["p"] == pytest.approx(min(1, 2 * (min(at_most, at_least) + 1) / 101))


def test_a_subset_of_classes_keeps_its_rows_and_counts_other_predictions_as_errors():
    truth = np.array(["a", "a", "b", "c"])
    first = np.array(["a", "c", "b", "a"])
    found = paired_bootstrap(truth, first, truth, [0, 1, 2, 3], ["a", "b"], n_bootstrap=20)
    # The row of truth c is not there: F1 of a is 2 / 3 and of b is 1.
    assert found["accuracy"]["first"] == pytest.approx(2 / 3)
    assert found["macro_f1"]["first"] == pytest.approx(5 / 6)
    assert found["macro_f1"]["second"] == 1


def test_text_and_numbers_and_the_order_of_rows_give_the_same():
    truth, first, second, songs = case()
    order = np.random.default_rng(1).permutation(len(truth))
    names = np.array(["bach", "jazz", "pop", "rock"])
    text = (names[x][order] for x in (truth, first, second))
    expected = paired_bootstrap(truth, first, second, songs)
    assert paired_bootstrap(*text, songs[order]) == expected


def test_a_clear_and_no_difference():
    truth, first, second, songs = case(n=600, songs=100)
    clear = paired_bootstrap(truth, first, second, songs)["macro_f1"]
    assert clear["ci95"][0] > 0
    assert clear["p"] == pytest.approx(2 / 1001)
    turned = paired_bootstrap(truth, second, first, songs)["macro_f1"]
    assert turned["difference"] == -clear["difference"]
    assert turned["p"] == clear["p"]
    same = paired_bootstrap(truth, first, first, songs)["accuracy"]
    assert (same["ci95"], same["p"]) == ([0, 0], 1)


def test_pairing_is_narrower_than_two_separate_intervals():
    truth, first, _, songs = case(n=600, songs=100)
    second = first.copy()
    second[:30] = (truth[:30] + 1) % 4  # the same but for 30 phrases
    paired = paired_bootstrap(truth, first, second, songs)["accuracy"]["ci95"]
    alone = score(truth, [first], songs, 4).summary(0)["ci95"]["accuracy"]
    assert np.ptp(paired) < 0.7 * np.ptp(alone)


def test_no_rows_and_wrong_lengths():
    nothing = paired_bootstrap([], [], [], [])
    assert nothing["accuracy"] == {
        "first": None, "second": None, "difference": None, "ci95": [None, None], "p": None,
    }  # fmt: skip
    assert paired_bootstrap(["a"], ["a"], ["a"], [0], ["b"])["macro_f1"]["p"] is None
    with pytest.raises(ValueError, match="differ in length: 2, 2, 1, 2"):
        paired_bootstrap([0, 1], [0, 1], [0], [0, 1])


def test_a_t_interval_stays_in_the_range_of_the_score():
    # t(0.975, 1) = 12.706 and s / sqrt(2) = half the distance of two values.
    assert t_interval([4.0, 4.2]) == pytest.approx([4.1 - 1.2706, 4.1 + 1.2706], rel=1e-4)
    assert t_interval([1.0, 3.0]) == pytest.approx([0, 2 + 12.706], rel=1e-4)
    assert t_interval([0.7, 1.0], 1.0) == [0, 1]
    assert t_interval([0.5]) == [None, None]
