"""Temperature, confidence thresholds and the energy flag, on made logits."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.metrics import log_loss

from midigenre.errors import UserError
from midigenre.evaluation.calibration import (
    Calibration,
    LevelCalibration,
    fit_temperature,
    song_energy,
    tempered,
)
from midigenre.evaluation.scores import calibration_scores, reliability_bins


def energy(logits):
    return -logsumexp(logits, axis=1)


def drawn(n=4000, c=4, sharpness=2.0, seed=0):
    """Logits whose temperature is known: the truth is drawn from the softmax of logits / T."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, c)) * 1.5
    truth = np.array([rng.choice(c, p=p) for p in softmax(logits, axis=1)])
    return log_softmax(logits * sharpness, axis=1), truth


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0, 4.0])
def test_the_temperature_that_made_the_labels_is_found(sharpness):
    log_probs, truth = drawn(sharpness=sharpness)
    assert fit_temperature(log_probs, truth) == pytest.approx(sharpness, rel=0.08)


def test_scaling_mends_the_calibration_of_other_rows():
    temperature = fit_temperature(*drawn(sharpness=3))
    log_probs, truth = drawn(sharpness=3, seed=1)
    before = calibration_scores(log_probs, truth)
    after = calibration_scores(tempered(log_probs, temperature), truth)
    assert before["ece"] > 0.2
    assert after["ece"] < 0.04
    assert after["nll"] < before["nll"]
    assert after["brier"] < before["brier"]


def test_few_rows_that_are_all_right_do_not_make_it_certain():
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4]]))
    temperature = fit_temperature(log_probs, [0, 0, 0])
    assert 0.3 < temperature < 1
    assert fit_temperature(np.zeros((0, 3)), []) == 1
    # More of the same move it further.
    assert fit_temperature(np.tile(log_probs, (50, 1)), [0] * 150) < temperature


logits_of = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 8), st.integers(1, 5)),
    elements=st.integers(-40, 40).map(lambda x: x / 4),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(logits_of, st.floats(0.05, 20))
def test_a_temperature_never_changes_the_predicted_class(logits, temperature):
    log_probs = log_softmax(logits, axis=1)
    found = tempered(log_probs, temperature)
    assert np.exp(found).sum(1) == pytest.approx(1)
    assert found == pytest.approx(log_softmax(logits / temperature, axis=1), abs=1e-9)
    chosen = np.take_along_axis(found, log_probs.argmax(1)[:, None], 1)[:, 0]
    assert chosen == pytest.approx(found.max(1))
    per_row = tempered(log_probs, np.full(len(logits), temperature))
    assert (per_row == found).all()


def test_scores_agree_with_sklearn_and_with_their_bins():
    log_probs, truth = drawn(n=500)
    scores = calibration_scores(log_probs, truth)
    probs = np.exp(log_probs)
    assert scores["nll"] == pytest.approx(log_loss(truth, probs))
    assert scores["brier"] == pytest.approx(((probs - np.eye(4)[truth]) ** 2).sum(1).mean())
    bins = reliability_bins(log_probs, truth)
    assert sum(b["n"] for b in bins) == 500
    gap = sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / 500
    assert gap == pytest.approx(scores["ece"])
    assert all(b["low"] < b["confidence"] <= b["high"] + 1e-12 for b in bins)
    assert calibration_scores(np.zeros((0, 2)), []) == {"ece": None, "nll": None, "brier": None}
    impossible = calibration_scores(np.array([[0.0, -np.inf]]), [1])
    assert impossible["nll"] is None
    json.dumps([scores, bins, impossible], allow_nan=False)


@pytest.mark.parametrize("coverage", [1.0, 0.95, 0.9, 0.5, 0.07])
def test_a_threshold_keeps_the_wanted_share(coverage):
    log_probs, truth = drawn(n=1000)
    fit = LevelCalibration.fit(log_probs, truth)
    confidence = np.exp(fit.apply(log_probs).max(1))
    kept = (confidence >= fit.threshold_for(coverage)).mean()
    assert coverage - 1e-9 <= kept <= coverage + 0.02


def test_thresholds_that_make_no_sense_are_refused():
    fit = LevelCalibration.fit(*drawn(n=50))
    for coverage in (0, -0.1, 1.1):
        with pytest.raises(UserError, match="coverage="):
            fit.threshold_for(coverage)
    with pytest.raises(UserError, match="no labelled validation song"):
        LevelCalibration.fit(np.zeros((0, 2)), []).threshold_for(0.9)


def known_and_strange(seed=0):
    """Logits of a sure classifier on songs that it knows, and on songs that excite no class."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, 400)
    known = rng.normal(size=(400, 4)) + 8 * np.eye(4)[truth]
    return known, truth, rng.normal(size=(400, 4))


def test_the_flag_separates_what_excites_no_class():
    known, truth, strange = known_and_strange()
    fit = LevelCalibration.fit(log_softmax(known, axis=1), truth, energy(known))
    other, _, _ = known_and_strange(seed=1)
    assert fit.out_of_domain(energy(strange)).mean() > 0.95
    assert fit.out_of_domain(energy(other)).mean() == pytest.approx(0.05, abs=0.04)
    assert fit.low_confidence(log_softmax(strange, axis=1)).mean() > 0.9
    assert fit.low_confidence(log_softmax(other, axis=1)).mean() == pytest.approx(0.05, abs=0.04)
    # The energy sees what the softmax cannot: the same logits, all lower.
    faint = known - 6
    assert fit.out_of_domain(energy(faint)).mean() > 0.95
    assert fit.low_confidence(log_softmax(faint, axis=1)).mean() == pytest.approx(0.05, abs=0.04)


def test_without_energies_nothing_is_flagged_by_them():
    fit = LevelCalibration.fit(*drawn(n=50))
    assert not fit.out_of_domain([1e9, 0.0]).any()
    empty = LevelCalibration.fit(np.zeros((2, 2)), [-1, -1], [0.0, 0.0])
    assert (empty.n, empty.temperature, empty.max_energy) == (0, 1.0, None)
    assert not empty.low_confidence(np.zeros((3, 2))).any()


def test_rows_without_a_label_say_nothing():
    log_probs, truth = drawn(n=200)
    truth[:50] = -1
    whole = LevelCalibration.fit(log_probs, truth, np.arange(200.0))
    assert whole == LevelCalibration.fit(log_probs[50:], truth[50:], np.arange(50.0, 200))
    assert whole.n == 150


def test_energy_of_a_song_is_the_mean_of_its_phrases():
    assert song_energy([1.0, 5.0, 3.0, 2.0], [7, 2, 7, 2]).tolist() == [3.5, 2.0]


def test_it_comes_back_from_its_file(tmp_path):
    fit = LevelCalibration.fit(*drawn(n=100), np.arange(100.0))
    empty = LevelCalibration.fit(np.zeros((0, 2)), [])
    saved = Calibration({"genre": {"phrase": fit, "song": empty}})
    saved.save(tmp_path)
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert Calibration.of_run(tmp_path, best) == saved
    found = {level: of.temperature for level, of in saved.levels["genre"].items()}
    assert found == {"phrase": fit.temperature, "song": 1.0}
    assert "emotion" not in saved.levels
    # It says nothing of another checkpoint, and some runs have none.
    assert Calibration.of_run(tmp_path, best.with_name("last.ckpt")) is None
    assert Calibration.of_run(None, best) is None
    assert Calibration.of_run(tmp_path / "other", best) is None


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"format": 9}', "[]", '{"format": 1, "labels": 1}']
)
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json is damaged"):
        Calibration.of_run(tmp_path, tmp_path / "best.ckpt")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"1.0"', "true", "[1]"])
@pytest.mark.parametrize("key", ["temperature", "max_energy", "min_confidence", "quantiles"])
def test_a_number_that_is_none_is_refused_and_not_used(key, value, tmp_path):
    refuse(tmp_path, key, value)


@pytest.mark.parametrize("value", ["0", "-2.5"])
def test_a_temperature_is_above_0(value, tmp_path):
    refuse(tmp_path, "temperature", value)


def refuse(folder, key, value):
    fit = LevelCalibration.fit(*drawn(n=100), np.arange(100.0))
    Calibration({"genre": {"phrase": fit, "song": fit}}).save(folder)
    path = folder / "calibration.json"
    data = json.loads(path.read_text())
    level = data["labels"]["genre"]["song"]
    if key == "quantiles":
        level["confidence_quantiles"][50] = "HERE"
    else:
        level[key] = "HERE"
    path.write_text(json.dumps(data).replace('"HERE"', value))
    with pytest.raises(UserError, match=r"json is damaged .*continue without calibration") as error:
        Calibration.of_run(folder, folder / "best.ckpt")
    assert "\n" not in str(error.value)
