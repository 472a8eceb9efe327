"""Song models: experts equal scikit-learn, pools are sound, files hold no code."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phrasebook import book
from scipy import sparse

from midigenre.errors import UserError
from midigenre.evaluation.baselines import BASELINES, fit_baselines, predict_baselines
from midigenre.evaluation.blend import Blend, Blends, Pool, fit_pool
from midigenre.evaluation.exported_baselines import (
    _WIDTHS,
    LOG_ZERO,
    export,
    exported_log_probs,
)

NAMES = ("hist_gb", "ngram_lr")


def made_counts(name, rng, truth, n_features=30):
    """Rows that say something of their class, among them constant and empty columns."""
    if name == "majority":
        return np.zeros((len(truth), 1), np.float32)
    if name == "metadata":
        n_features = sum(_WIDTHS.values())
    rate = 0.3 + 2 * rng.random((truth.max() + 1, n_features))
    rate[:, 3:6] = 0
    counts = rng.poisson(rate[truth]).astype(np.float32)
    if name == "ngram_lr":
        return sparse.csr_matrix(counts)
    if name == "metadata":
        return counts + 1.0  # notes, bars and seconds are never 0
    return np.c_[counts, np.ones(len(counts), np.float32)]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 2, 3], [1, 4]], ids=["two", "four", "gaps"])
@pytest.mark.parametrize("seed", [0, 1])
def test_experts_equal_scikit_learn(name, classes, seed):
    rng = np.random.default_rng(seed)
    truth = np.array(classes)[rng.permutation(np.arange(160) % len(classes))]
    rows = made_counts(name, rng, truth)
    estimator = BASELINES[name](0).fit(rows[:80], truth[:80])
    expert = export(name, estimator, 6)
    found = expert.log_probs(rows)
    expected = estimator.predict_proba(rows)
    assert name == "majority" or np.ptp(expected) > 0.5
    np.testing.assert_allclose(np.exp(found[:, classes]), expected, atol=1e-6)
    unseen = [c for c in range(6) if c not in classes]
    assert (found[:, unseen] == LOG_ZERO).all()
    assert found.argmax(1).tolist() == estimator.predict(rows).tolist()


def test_a_row_does_not_depend_on_the_others(monkeypatch):
    rng = np.random.default_rng(0)
    truth = np.arange(90) % 3
    for name in NAMES:
        rows = made_counts(name, rng, truth)
        expert = export(name, BASELINES[name](0).fit(rows, truth), 3)
        together = expert.log_probs(rows)
        monkeypatch.setattr("midigenre.evaluation.exported_baselines._CELLS_AT_ONCE", 1000)
        assert np.allclose(expert.log_probs(rows), together, atol=1e-12)
        assert np.allclose(expert.log_probs(rows[7:8]), together[7:8], atol=1e-12)
        assert expert.log_probs(rows[:0]).shape == (0, 3)


def test_experts_say_what_the_baselines_of_songs_predict(monkeypatch):
    truth = np.arange(60) % 3
    train, test = book(truth), book(np.arange(24) % 3, seed=4)
    fitted = fit_baselines(train, train.phrases(), truth)
    experts = {"genre": {n: fitted.models["song"][n] for n in NAMES}}
    expected = predict_baselines({"genre": fitted}, test, test.phrases())["genre"]["song"]
    found = exported_log_probs(experts, test, test.phrases())["genre"]
    monkeypatch.setattr("midigenre.evaluation.exported_baselines.PHRASES_AT_ONCE", 5)
    again = exported_log_probs(experts, test, test.phrases())["genre"]
    for name in NAMES:
        assert (found[name] == expected[name]).all()
        assert np.allclose(again[name], found[name], atol=1e-12)


def made_logs(rng, truth, n_classes, sure):
    """Log-probabilities that favour the truth by ``sure`` nats, with noise."""
    logits = rng.normal(size=(len(truth), n_classes))
    logits[np.arange(len(truth)), truth] += sure
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def nll(log_probs, truth):
    return -log_probs[np.arange(len(truth)), truth].mean()


def test_a_pool_of_experts_that_err_apart_beats_each():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 600)
    logs = {name: made_logs(rng, truth, 4, 1.5) for name in "abc"}
    pool = fit_pool({k: v[:300] for k, v in logs.items()}, truth[:300])
    rest = {k: v[300:] for k, v in logs.items()}
    pooled = pool.log_probs(rest)
    assert np.allclose(np.exp(pooled).sum(1), 1)
    best = max((v.argmax(1) == truth[300:]).mean() for v in rest.values())
    assert (pooled.argmax(1) == truth[300:]).mean() > best + 0.05
    assert nll(pooled, truth[300:]) < min(nll(v, truth[300:]) for v in rest.values()) - 0.1
    assert pool.temperature < 0.7  # independent evidence adds up


def test_noise_has_no_voice():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 3000)
    logs = {"good": made_logs(rng, truth, 3, 2.5), "noise": made_logs(rng, truth, 3, 0)}
    test = {k: v[2000:] for k, v in logs.items()}
    voice, lost = [], []
    for n in (6, 100, 2000):
        pool = fit_pool({k: v[:n] for k, v in logs.items()}, truth[:n])
        share = {k: pool.scales[k] * pool.weights[k] for k in logs}
        voice.append(share["noise"] / sum(share.values()))
        lost.append(nll(pool.log_probs(test), truth[2000:]) - nll(test["good"], truth[2000:]))
    assert 0.25 < pool_weight(logs, truth, 6) < 0.75  # few songs: nearly equal weights
    assert max(voice[1:]) < 0.05
    assert lost[2] < 0.005


def pool_weight(logs, truth, n):
    return fit_pool({k: v[:n] for k, v in logs.items()}, truth[:n]).weights["noise"]


def test_unlabelled_songs_and_their_order_do_not_matter():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 50)
    logs = {name: made_logs(rng, truth, 3, 1) for name in "ab"}
    expected = fit_pool(logs, truth)
    order = rng.permutation(60)
    mixed = {k: np.r_[v, made_logs(rng, np.zeros(10, int), 3, 9)][order] for k, v in logs.items()}
    found = fit_pool(mixed, np.r_[truth, np.full(10, -1)][order])
    assert found.n_validation == expected.n_validation == 50
    for name in "ab":
        assert found.weights[name] == pytest.approx(expected.weights[name], abs=1e-4)
        assert found.scales[name] == pytest.approx(expected.scales[name], abs=1e-4)
    assert found.temperature == pytest.approx(expected.temperature, abs=1e-4)


@pytest.mark.parametrize("truth", [[], [-1, -1], [2, 2, -1]], ids=["none", "unknown", "one class"])
def test_too_few_validation_songs_leave_equal_weights_and_say_so(truth):
    logs = np.log(np.full((len(truth), 3), 1 / 3))
    pool = fit_pool({"encoder": logs, "hist_gb": logs}, np.array(truth, np.int64))
    assert pool.weights == {"encoder": 0.5, "hist_gb": 0.5}
    assert (pool.temperature, pool.n_validation) == (1, 0)
    assert "need two" in pool.note


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 30), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_pool_is_always_sound(seed, n_classes, n, k):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n)
    logs = {str(i): made_logs(rng, truth, n_classes, rng.normal(0, 9)) for i in range(k)}
    logs["0"][:, 0] = LOG_ZERO  # a class that it has never seen
    logs["0"] -= np.log(np.exp(logs["0"]).sum(1, keepdims=True))
    pool = fit_pool(logs, truth)
    assert min(pool.weights.values()) >= 0
    assert sum(pool.weights.values()) == pytest.approx(1)
    assert pool.temperature > 0
    pooled = pool.log_probs(logs)
    assert np.isfinite(pooled).all()
    assert np.allclose(np.exp(pooled).sum(1), 1)
    if len(np.unique(truth)) > 1:  # better than the same experts at equal weights, penalties aside
        even = Pool(pool.scales, dict.fromkeys(logs, 1 / k), 1.0, n)
        assert nll(pooled, truth) <= nll(even.log_probs(logs), truth) + 1e-6


@pytest.fixture(scope="module")
def blend():
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 3
    experts, logs = {}, {"encoder": made_logs(rng, truth, 3, 1)}
    for name in NAMES:
        rows = made_counts(name, rng, truth)
        experts[name] = export(name, BASELINES[name](0).fit(rows, truth), 3)
        logs[name] = experts[name].log_probs(made_counts(name, rng, truth))
    theirs = {name: logs[name] for name in NAMES}
    return Blend(fit_pool(logs, truth), experts, fit_pool(theirs, truth))


def seen_by(blend):
    """What the encoder and the experts say of some songs."""
    rng, truth = np.random.default_rng(0), np.arange(20) % 3
    experts = {n: e.log_probs(made_counts(n, rng, truth)) for n, e in blend.experts.items()}
    return made_logs(rng, truth, 3, 1), experts


def test_what_is_stored_comes_back_to_the_bit(blend, tmp_path):
    names = ("jazz", "odd / name", "rock")
    labels = {"genre": names, "a/b": names}
    Blends(labels, dict.fromkeys(labels, blend), "0123").save(tmp_path / "song")
    found = Blends.load(tmp_path / "song")
    assert (found.classes, found.weights_of) == (labels, "0123")
    parts = blend.components(*seen_by(blend))
    for label in labels:
        again = found.blends[label].components(*seen_by(found.blends[label]))
        assert list(again) == list(parts)
        for name, values in parts.items():
            assert again[name].tobytes() == values.tobytes()
        pooled = found.blends[label].pool.log_probs(again)
        assert pooled.tobytes() == blend.pool.log_probs(parts).tobytes()
        assert found.blends[label].about() == json.loads(json.dumps(blend.about()))


def test_a_blend_lists_the_encoder_alone(blend):
    encoder, experts = seen_by(blend)
    parts = blend.components(encoder, experts)
    assert list(parts) == ["encoder", *NAMES, "without_encoder"]
    assert parts["encoder"] is encoder


def test_the_baselines_alone_know_nothing_of_the_encoder(blend):
    encoder, experts = seen_by(blend)
    one, other = (blend.components(x, experts) for x in (encoder, np.roll(encoder, 1, axis=1)))
    assert (blend.pool.log_probs(one) != blend.pool.log_probs(other)).any()
    assert one["without_encoder"].tobytes() == other["without_encoder"].tobytes()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_of_a_file_is_run(blend, tmp_path):
    Blends({"genre": "abc"}, {"genre": blend}, "x").save(tmp_path)
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()  # it would
    mark.unlink()
    evil = np.empty(1, object)
    evil[0] = Evil(mark)
    with np.load(tmp_path / "arrays.npz") as stored:
        arrays = {**stored, "0/hist_gb/value": evil}
    np.savez(tmp_path / "arrays.npz", **arrays)
    with pytest.raises(UserError, match="delete that folder"):
        Blends.load(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("damage", ["no arrays", "cut", "NaN", "no json", "inf", "version", "kind"])
def test_damaged_files_are_refused_in_words(damage, blend, tmp_path):
    Blends({"genre": "abc"}, {"genre": blend}, "x").save(tmp_path)
    npz, about = tmp_path / "arrays.npz", tmp_path / "model.json"
    if damage == "no arrays":
        npz.unlink()
    elif damage == "cut":
        npz.write_bytes(npz.read_bytes()[:500])
    elif damage == "NaN":
        with np.load(npz) as stored:
            arrays = dict(stored)
        arrays["0/ngram_lr/intercept"][1] = np.nan
        np.savez(npz, **arrays)
    elif damage == "no json":
        about.write_text("{")
    elif damage == "inf":
        text = about.read_text()
        about.write_text(text.replace("0.", "1e999, 0.", 1))
        assert about.read_text() != text
    else:
        changed = {"version": {"format": 99}, "kind": {"kind": "vote"}}[damage]
        about.write_text(json.dumps(json.loads(about.read_text()) | changed))
    with pytest.raises(UserError, match=str(tmp_path)):
        Blends.load(tmp_path)
