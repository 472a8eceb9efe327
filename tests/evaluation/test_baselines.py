"""Baselines learn, do not cheat, and cope with little and with much data."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phrasebook import Book, book

from midigenre.evaluation import baselines, exported_baselines
from midigenre.evaluation.baselines import (
    BASELINES,
    NO_LABELS,
    ONE_CLASS,
    fit_baselines,
    predict_baselines,
    stratified_sample,
)
from midigenre.evaluation.exported_baselines import COUNTS, read_phrases

TRAIN = np.arange(90) % 3


@pytest.fixture(scope="module")
def fitted():
    train = book(TRAIN)
    return fit_baselines(train, train.phrases(), TRAIN)


def predictions(fitted, reader, songs=None):
    """The classes, or why there are none."""
    found = predict_baselines({"genre": fitted}, reader, reader.phrases(songs))["genre"]
    return {
        level: {name: of if isinstance(of, str) else of.argmax(1) for name, of in named.items()}
        for level, named in found.items()
    }


def test_the_contract_names_are_there():
    assert tuple(BASELINES) == ("majority", "metadata", "ngram_lr", "hist_gb")


def test_they_learn(fitted):
    truth = np.arange(30) % 3
    found = predictions(fitted, book(truth, seed=1))
    assert (found["phrase"]["majority"] == 0).all()
    for name in ("metadata", "ngram_lr", "hist_gb"):
        assert (found["phrase"][name] == np.repeat(truth, 4)).mean() > 0.9, name
        assert (found["song"][name] == truth).mean() > 0.9, name
    assert fitted.n_train == fitted.n_available == {"phrase": 360, "song": 90}


def test_trees_learn_from_few_songs_and_are_scikit_learns_from_200_on():
    train, truth = book(np.arange(24) % 2), np.arange(30) % 2
    found = predictions(fit_baselines(train, train.phrases(), np.arange(24) % 2), book(truth, 1))
    for name in ("metadata", "hist_gb"):
        assert (found["song"][name] == truth).mean() > 0.8, name
    for n, leaf in ((9, 1), (50, 5), (199, 19), (200, 20), (1000, 20)):
        trees = BASELINES["hist_gb"](0)[-1].set_params(max_iter=1).fit(np.eye(n), np.arange(n) % 2)
        assert trees.min_samples_leaf == leaf


def test_majority_is_the_first_of_the_most_frequent():
    truth = np.array([1, 1, 2, 0, 2, -1, -1, -1])
    reader = book(truth)
    found = predictions(fit_baselines(reader, reader.phrases(), truth), reader)
    assert found["song"]["majority"].tolist() == [1] * 8


def test_ngrams_see_the_order_that_histograms_miss():
    # The same tokens up or down: only their order tells the classes apart.
    up = np.arange(10)[:, None]
    truth = np.arange(40) % 2
    tokens = [[up if c == 0 else up[::-1]] * 3 for c in truth]
    reader = Book(tokens, book(truth * 0, n_phrases=3).music)
    found = predictions(fit_baselines(reader, reader.phrases(), truth), reader)
    assert (found["song"]["ngram_lr"] == truth).all()
    assert (found["song"]["hist_gb"] == truth).mean() == 0.5
    assert (found["song"]["metadata"] == truth).mean() < 0.9


def test_songs_are_independent_of_each_other(fitted):
    reader = book(np.arange(12) % 3, seed=2)
    together = predictions(fitted, reader)
    for song in (0, 5, 11):
        alone = predictions(fitted, reader, [song])
        for name in BASELINES:
            assert (alone["phrase"][name] == together["phrase"][name][4 * song :][:4]).all()
            assert alone["song"][name] == together["song"][name][song]


def test_chunks_make_no_difference(fitted, monkeypatch):
    reader = book(np.arange(12) % 3, seed=2)
    expected = predictions(fitted, reader)
    # 4 phrases a song: two songs a piece.
    monkeypatch.setattr(exported_baselines, "PHRASES_AT_ONCE", 5)
    train = book(TRAIN)
    again = predictions(fit_baselines(train, train.phrases(), TRAIN), reader)
    for level in ("phrase", "song"):
        for name in BASELINES:
            assert (again[level][name] == expected[level][name]).all()


def test_deterministic(fitted):
    train, test = book(TRAIN), book(TRAIN, seed=3)
    again = fit_baselines(train, train.phrases(), TRAIN)
    read = list(read_phrases(test, test.phrases()))
    for name in BASELINES:
        rows = COUNTS[name](read, test.spec)
        first, second = (f.models["phrase"][name].log_probs(rows) for f in (fitted, again))
        assert first.tobytes() == second.tobytes()


def test_unlabelled_songs_are_not_learnt_from(fitted):
    # Songs without a label, of tokens that would mislead, change nothing.
    labelled, noise = book(TRAIN), book(np.full(20, 2), seed=9)
    reader = Book(labelled.tokens + noise.tokens, labelled.music + noise.music)
    truth = np.r_[TRAIN, np.full(20, -1)]
    test = book(np.arange(12) % 3, seed=2)
    found = predictions(fit_baselines(reader, reader.phrases(), truth), test)
    for level, expected in predictions(fitted, test).items():
        for name in BASELINES:
            assert (found[level][name] == expected[name]).all()


@pytest.mark.parametrize(
    ("truth", "reason"),
    [([-1, -1], NO_LABELS), ([], NO_LABELS), ([3, 3, -1], ONE_CLASS)],
    ids=["no labels", "no songs", "one class"],
)
def test_what_cannot_be_fitted_says_why(truth, reason):
    truth = np.array(truth, np.int64)
    reader = book(truth)
    found = predictions(fit_baselines(reader, reader.phrases(), truth), book([0, 1]))
    for level in found.values():
        assert {level[name] for name in ("metadata", "ngram_lr", "hist_gb")} == {reason}
        if reason == ONE_CLASS:
            assert (level["majority"] == 3).all()
        else:
            assert level["majority"] == reason


def test_classes_with_one_song_and_one_phrase_work():
    truth = np.array([0, 4, 2])  # classes 1 and 3 are empty
    reader = book(truth, n_phrases=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predictions(fit_baselines(reader, reader.phrases(), truth), reader)
    for level in found.values():
        for predicted in level.values():
            assert set(predicted.tolist()) <= {0, 2, 4}


@pytest.mark.parametrize("name", ["metadata", "hist_gb"])
def test_a_class_with_one_sample_among_many_works(name):
    # Above 10,000 rows scikit-learn's trees hold some out unless they are told not to.
    trees = BASELINES[name](0)[-1].set_params(max_iter=2)
    rows = np.random.default_rng(0).random((10_001, 2))
    assert set(trees.fit(rows, np.r_[np.arange(10_000) % 2, 2]).classes_) == {0, 1, 2}


def test_large_splits_are_capped_and_stated(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_TRAIN", {"phrase": 50, "song": 21})
    seen = {}

    class Spy:
        """Takes the place of a classifier."""

        def fit(self, rows, truth):
            seen[rows.shape[0]] = rows, truth
            return ngram_lr(0).fit(rows, truth)

    ngram_lr = BASELINES["ngram_lr"]
    monkeypatch.setitem(BASELINES, "ngram_lr", lambda seed: Spy())
    train = book(TRAIN)
    found = fit_baselines(train, train.phrases(), TRAIN)
    assert found.n_train == {"phrase": 50, "song": 21}
    assert found.n_available == {"phrase": 360, "song": 90}
    assert set(seen) == {50, 21}
    # A phrase of 18 tokens has 51 n-grams, a song has all four of its phrases.
    for n, (rows, truth) in seen.items():
        assert set(np.asarray(rows.sum(1)).ravel().tolist()) == {51 if n == 50 else 204}
        assert np.ptp(np.bincount(truth)) <= 1


def test_capped_rows_stand_beside_their_classes(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_TRAIN", {"phrase": 50, "song": 21})
    # Some pieces have nothing that is chosen.
    monkeypatch.setattr(exported_baselines, "PHRASES_AT_ONCE", 5)
    train, truth = book(TRAIN), np.arange(30) % 3
    found = predictions(fit_baselines(train, train.phrases(), TRAIN), book(truth, seed=1))
    assert (found["phrase"]["ngram_lr"] == np.repeat(truth, 4)).mean() > 0.9
    assert (found["song"]["ngram_lr"] == truth).mean() > 0.9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(1, 90), st.integers(0, 3))
def test_stratified_sample(classes, n, seed):
    class_N = np.array(classes)
    chosen = stratified_sample(class_N, n, seed)
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) == min(n, len(class_N))
    assert (chosen == stratified_sample(class_N, n, seed)).all()
    before, after = np.bincount(class_N), np.bincount(class_N[chosen], minlength=class_N.max() + 1)
    if n >= (before > 0).sum():
        assert ((after > 0) == (before > 0)).all()
        if n < len(class_N):
            # Each class has its share, within the one that every class has for certain.
            share = after - before * n / len(class_N)
            assert np.abs(share).max() <= (before > 0).sum()


def test_the_sample_follows_the_seed():
    class_N = np.repeat([0, 1], [900, 100])
    one, other = (stratified_sample(class_N, 100, seed) for seed in (0, 1))
    assert (one != other).any()
    assert np.bincount(class_N[one]).tolist() == [90, 10]
