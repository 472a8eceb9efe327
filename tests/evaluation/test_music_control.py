"""Plans, shuffles and the scores of a judge against its ceiling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigenre.evaluation.music.control import (
    Verdicts,
    control,
    equal_mix,
    plan_conditions,
    shuffled,
)


def verdicts(truth, predicted, groups=None):
    truth = np.asarray(truth)
    return Verdicts(
        truth, np.asarray(predicted), np.arange(len(truth)) if groups is None else groups
    )


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_a_plan_asks_for_n_of_each_class_and_goes_round_the_others(a, b, n):
    asked = plan_conditions({"genre": a, "emotion": b}, n)
    main, other, size = ("genre", "emotion", b) if a >= b else ("emotion", "genre", a)
    assert np.bincount(asked[main]).tolist() == [n] * max(a, b)
    for c in range(max(a, b)):
        beside = np.bincount(asked[other][asked[main] == c], minlength=size)
        assert np.ptp(beside) <= 1
    assert list(asked) == ["genre", "emotion"]


def test_a_plan_asks_only_for_what_occurs_together():
    songs = {"genre": np.array([0, 0, 1, 2]), "emotion": np.array([0, 1, 1, -1])}
    asked = plan_conditions({"genre": 3, "emotion": 2}, 4, songs)
    assert asked["emotion"].tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1]
    with pytest.raises(ValueError, match="nothing to plan"):
        plan_conditions({}, 4)


def test_shuffling_keeps_the_conditions_of_a_piece_together():
    asked = {"genre": np.repeat([0, 1, 2], 20), "emotion": np.repeat([2, 0, 1], 20)}
    other = shuffled(asked, 0)
    assert ((other["genre"] + 2) % 3).tolist() == other["emotion"].tolist()
    assert sorted(other["genre"]) == sorted(asked["genre"])
    assert 0.15 < (other["genre"] == asked["genre"]).mean() < 0.55


def test_accuracy_is_the_mean_over_classes_and_silence_is_an_error():
    names = ["a", "b"]
    real = verdicts([0] * 90 + [1] * 10, [0] * 90 + [0] * 5 + [1] * 5)
    made = verdicts([0] * 10 + [1] * 10, [0] * 8 + [-1] * 2 + [1] * 5 + [0] * 5)
    found = control(made, real, names, verdicts([0, 1, -1], [1, 1, 0]))
    assert found["real"]["accuracy"] == pytest.approx(0.75)
    assert found["generated"]["accuracy"] == pytest.approx(0.65)
    assert found["generated"]["confusion"] == [[8, 0, 2], [5, 5, 0]]
    assert found["shuffled"]["n"] == 2  # one has no class
    assert found["chance"] == 0.5
    low, high = found["generated"]["ci95"]
    assert 0.4 < low < 0.65 < high < 0.9
    assert found["of_ceiling"]["value"] == pytest.approx(0.65 / 0.75)
    assert found["above_chance"]["value"] == pytest.approx(0.15 / 0.25)
    low, high = found["of_ceiling"]["ci95"]
    assert low < 0.65 / 0.75 < high


def test_a_judge_that_recognizes_nothing_has_no_ceiling():
    rng = np.random.default_rng(0)
    truth, guess = np.repeat([0, 1], 40), rng.integers(0, 2, 80)
    found = control(verdicts(truth, truth), verdicts(truth, guess), ["a", "b"])
    assert found["of_ceiling"] is None
    assert found["above_chance"] is None
    assert found["shuffled"] is None


def test_excerpts_of_one_song_are_no_independent_witnesses():
    truth = np.repeat([0, 1], 50)
    predicted = np.where(np.arange(100) % 10 < 7, truth, 1 - truth)
    alone = control(verdicts(truth, truth), verdicts(truth, predicted), ["a", "b"])
    # The same verdicts, but a song's ten excerpts are all right or all wrong.
    songs = np.arange(100) // 10
    together = np.where(songs % 5 < 3, truth, 1 - truth)
    grouped = control(verdicts(truth, truth), verdicts(truth, together, songs), ["a", "b"])
    width = [np.ptp(found["real"]["ci95"]) for found in (alone, grouped)]
    assert width[1] > 1.5 * width[0]


def test_over_some_classes_a_verdict_for_another_is_an_error():
    made = verdicts([0, 0, 1, 2], [0, 2, 1, 2])
    found = control(made, verdicts([0, 1, 2] * 5, [0, 1, 2] * 5), ["a", "b", "c"], over=["a", "b"])
    assert found["generated"]["n"] == 3
    assert found["generated"]["accuracy"] == pytest.approx(0.75)
    assert found["classes"] == ["a", "b"]
    assert found["generated"]["recall"] == {"a": 0.5, "b": 1.0, "c": None}


def test_a_class_without_real_music_has_no_ceiling_and_is_named():
    made = verdicts([0] * 10 + [1] * 10, [0] * 10 + [1] * 2 + [0] * 8)
    found = control(made, verdicts([0] * 20, [0] * 16 + [1] * 4), ["a", "b"])
    assert found["generated"]["accuracy"] == pytest.approx(0.6)
    assert found["without_real"] == ["b"]
    assert found["of_ceiling"]["value"] == pytest.approx(1 / 0.8)  # of class a alone
    assert control(made, verdicts([], []), ["a", "b"])["of_ceiling"] is None


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(-1, 3), max_size=60))
@settings(max_examples=60, deadline=None)
def test_both_sides_of_a_comparison_have_equal_shares(asked, real):
    asked, real = np.array(asked, np.int64), np.array(real, np.int64)
    ours, theirs = equal_mix(asked, real)
    both = set(asked.tolist()) & set(real.tolist())
    assert set(asked[ours].tolist()) == set(real[theirs].tolist()) == both
    assert len(np.unique(theirs)) == len(theirs)
    for c in both:
        share = (asked[ours] == c).mean()
        # Whole excerpts, so at most one is missing from its share.
        assert abs((real[theirs] == c).sum() - share * len(theirs)) <= len(both)
    if both and all((real == c).sum() >= (asked == c).sum() for c in both):
        assert len(theirs) >= len(ours)
