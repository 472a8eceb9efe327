"""Song models: experts equal scikit-learn, pools are sound, files hold no code."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from phrasebook import book
from scipy import sparse

from midigenre.errors import UserError
from midigenre.evaluation.baselines import BASELINES, fit_baselines, predict_baselines
from midigenre.evaluation.blend import Pool, fit_pool
from midigenre.evaluation.experts import LOG_ZERO, expert_log_probs, export
from midigenre.evaluation.features import _WIDTHS
from midigenre.evaluation.scores import song_log_probs
from midigenre.evaluation.song_attention import Bags, SongAttention, attention_log_probs
from midigenre.evaluation.song_attention import fit_attention as fit
from midigenre.evaluation.songs import AttentionModel, BlendModel, Evidence, SongModels

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
    estimator = BASELINES[name].estimator(0).fit(rows[:80], truth[:80])
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
        expert = export(name, BASELINES[name].estimator(0).fit(rows, truth), 3)
        together = expert.log_probs(rows)
        monkeypatch.setattr("midigenre.evaluation.experts._CELLS_AT_ONCE", 1000)
        assert np.allclose(expert.log_probs(rows), together, atol=1e-12)
        assert np.allclose(expert.log_probs(rows[7:8]), together[7:8], atol=1e-12)
        assert expert.log_probs(rows[:0]).shape == (0, 3)


def test_experts_say_what_the_baselines_of_songs_predict(monkeypatch):
    truth = np.arange(60) % 3
    train, test = book(truth), book(np.arange(24) % 3, seed=4)
    fitted = fit_baselines(train, train.phrases(), truth)
    experts = {"genre": {n: fitted.models["song"][n] for n in NAMES}}
    expected = predict_baselines({"genre": fitted}, test, test.phrases())["genre"]["song"]
    found = expert_log_probs(experts, test, test.phrases())["genre"]
    monkeypatch.setattr("midigenre.evaluation.experts.PHRASES_AT_ONCE", 5)
    again = expert_log_probs(experts, test, test.phrases())["genre"]
    for name in NAMES:
        assert (found[name].argmax(1) == expected[name]).all()
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


def made_bags(seed, n_songs, width=6, telling=True):
    """Songs of 1 to 5 phrases; one of each tells the class, and shows that it does."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n_songs) % 3
    song = np.repeat(np.arange(n_songs) * 2, rng.integers(1, 6, n_songs))
    first = np.r_[True, np.diff(song) > 0]
    vectors = rng.normal(size=(len(song), width))
    vectors[:, 0] = 3.0 * first
    said = np.where(first, truth[song // 2], rng.integers(0, 3, len(song)))
    logs = np.log(np.where(np.arange(3) == said[:, None], 0.6, 0.2))
    if not telling:
        logs = np.log(np.full((len(song), 3), 1 / 3))
    return vectors, logs, song, truth


def test_chosen_songs_bring_all_their_phrases():
    rng = np.random.default_rng(0)
    song = rng.permutation(np.repeat(np.arange(20), rng.integers(1, 9, 20)))
    vectors, logs = rng.normal(size=(len(song), 6)), rng.normal(size=(len(song), 3))
    bags = Bags.of(vectors, logs, song)[1]
    chosen = rng.permutation(20)[:7]
    found = bags.select(torch.as_tensor(chosen))
    assert found.n_songs == 7
    for place, of in enumerate(chosen):
        mine = (found.song_N == place).numpy()
        assert np.allclose(found.vectors_ND.numpy()[mine], vectors[song == of])
        assert np.allclose(found.log_probs_NC.numpy()[mine], logs[song == of])
    assert len(found.song_N) == np.isin(song, chosen).sum()
    assert bags.select(torch.as_tensor([], dtype=torch.long)).n_songs == 0


def test_attention_starts_as_the_mean():
    vectors, logs, song, _ = made_bags(0, 20)
    songs, bags = Bags.of(vectors, logs, song)
    expected_songs, expected = song_log_probs(logs, song)
    found = attention_log_probs(SongAttention(6, 3), bags)
    assert (songs == expected_songs).all()
    assert np.allclose(found, expected, atol=1e-6)


def test_attention_finds_the_phrase_that_tells():
    sets = [made_bags(seed, 150) for seed in range(3)]
    (train, stop, test), truth = [Bags.of(*s[:3])[1] for s in sets], [s[3] for s in sets]
    model, about = fit(train, truth[0], stop, truth[1], 3)
    assert about["epoch"] > 0
    assert about["nll"] < about["nll_mean"]
    mean = song_log_probs(*sets[2][1:3])[1]
    found = attention_log_probs(model, test)
    assert (found.argmax(1) == truth[2]).mean() > (mean.argmax(1) == truth[2]).mean() + 0.1


def test_attention_that_finds_nothing_stays_the_mean():
    noise = [made_bags(seed, 60, telling=False) for seed in range(2)]
    rng = np.random.default_rng(0)
    train, stop = (Bags.of(rng.normal(size=s[0].shape), s[1], s[2])[1] for s in noise)
    truth = [rng.permutation(s[3]) for s in noise]
    _, about = fit(train, truth[0], stop, truth[1], 3)
    assert about["nll"] <= about["nll_mean"] + 1e-9
    empty = Bags.of(np.zeros((0, 6)), np.zeros((0, 3)), np.zeros(0, int))[1]
    model, about = fit(train, truth[0], empty, np.zeros(0, int), 3)
    assert about == {"epoch": 0, "nll_mean": None, "nll": None}
    expected = song_log_probs(noise[1][1], noise[1][2])[1]
    assert np.allclose(attention_log_probs(model, stop), expected, atol=1e-6)


def test_attention_is_the_same_every_time_and_leaves_the_generator():
    train, stop = (made_bags(seed, 60) for seed in range(2))
    bags = [Bags.of(*s[:3])[1] for s in (train, stop)]
    state = torch.random.get_rng_state()
    first, second = (fit(bags[0], train[3], bags[1], stop[3], 3)[0] for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_attention_scores_a_song_as_if_alone_whatever_the_order():
    vectors, logs, song, truth = made_bags(3, 30)
    bags = Bags.of(vectors, logs, song)[1]
    model, _ = fit(bags, truth, bags, truth, 3)
    together = attention_log_probs(model, bags)
    order = np.random.default_rng(0).permutation(len(song))
    shuffled = Bags.of(vectors[order], logs[order], song[order])[1]
    assert np.allclose(attention_log_probs(model, shuffled), together, atol=1e-5)
    for s in (0, 11):
        mine = song == 2 * s
        alone = attention_log_probs(model, Bags.of(vectors[mine], logs[mine], song[mine])[1])
        assert np.allclose(alone[0], together[s], atol=1e-5)


@pytest.fixture(scope="module")
def blend():
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 3
    experts, logs = {}, {"encoder": made_logs(rng, truth, 3, 1)}
    for name in NAMES:
        rows = made_counts(name, rng, truth)
        experts[name] = export(name, BASELINES[name].estimator(0).fit(rows, truth), 3)
        logs[name] = experts[name].log_probs(made_counts(name, rng, truth))
    theirs = {name: logs[name] for name in NAMES}
    return BlendModel(fit_pool(logs, truth), experts, fit_pool(theirs, truth))


@pytest.fixture(scope="module")
def attention():
    vectors, logs, song, truth = made_bags(3, 30)
    bags = Bags.of(vectors, logs, song)[1]
    return AttentionModel(*fit(bags, truth, bags, truth, 3))


def seen_by(model):
    """Some songs, with whatever the model looks at."""
    vectors, logs, song, _ = made_bags(7, 20)
    rng = np.random.default_rng(0)
    experts = {}
    if isinstance(model, BlendModel):
        truth = np.arange(20) % 3
        experts = {n: e.log_probs(made_counts(n, rng, truth)) for n, e in model.experts.items()}
    return Evidence(logs, song, vectors.astype(np.float32), experts)


@pytest.mark.parametrize("kind", ["blend", "attention"])
def test_what_is_stored_comes_back_to_the_bit(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    names = ("jazz", "odd / name", "rock")
    labels = {"genre": names, "a/b": names}
    saved = SongModels(kind, labels, dict.fromkeys(labels, model), "0123")
    saved.save(tmp_path / "song")
    found = SongModels.load(tmp_path / "song")
    assert (found.kind, found.weights_of) == (kind, "0123")
    assert found.classes == labels
    for label in labels:
        seen = seen_by(model)
        for ours, theirs in zip(
            model.log_probs(seen), found.models[label].log_probs(seen), strict=True
        ):
            assert ours.tobytes() == theirs.tobytes()
        assert found.models[label].about() == json.loads(json.dumps(model.about()))


def test_a_blend_lists_the_encoder_alone(blend):
    seen = seen_by(blend)
    parts = blend.components(seen)
    assert list(parts) == ["encoder", *NAMES, "without_encoder"]
    assert (parts["encoder"] == song_log_probs(seen.log_probs_NC, seen.song_N)[1]).all()


def test_the_baselines_alone_know_nothing_of_the_encoder(blend):
    seen = seen_by(blend)
    other = replace(seen, log_probs_NC=np.roll(seen.log_probs_NC, 1, axis=1))
    assert (blend.log_probs(seen)[1] != blend.log_probs(other)[1]).any()
    alone, same = (blend.components(x)["without_encoder"] for x in (seen, other))
    assert alone.tobytes() == same.tobytes()
    older = BlendModel.of(
        {k: v for k, v in blend.about().items() if k != "without_encoder"}, blend.arrays(), 3
    )
    assert list(older.components(seen)) == ["encoder", *NAMES]


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_of_a_file_is_run(blend, tmp_path):
    SongModels("blend", {"genre": "abc"}, {"genre": blend}, "x").save(tmp_path)
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
        SongModels.load(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("damage", ["no arrays", "cut", "NaN", "no json", "inf", "version", "kind"])
def test_damaged_files_are_refused_in_words(damage, blend, tmp_path):
    SongModels("blend", {"genre": "abc"}, {"genre": blend}, "x").save(tmp_path)
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
        SongModels.load(tmp_path)
