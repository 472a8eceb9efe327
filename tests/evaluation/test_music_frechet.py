"""Fréchet distances with known answers, their floor, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from midigenre.errors import UserError
from midigenre.evaluation.music.distance import MIN_SAMPLES, frechet, gaussian_distance, moments


def covariance(rng, width, rank=None):
    root = rng.normal(size=(width, rank or width))
    return root @ root.T


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_against_the_matrix_root_of_scipy(seed, width):
    rng = np.random.default_rng(seed)
    a, b = covariance(rng, width), covariance(rng, width)
    m, n = rng.normal(size=(2, width))
    expected = ((m - n) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert gaussian_distance(m, a, n, b) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_closed_forms():
    eye, zero = np.eye(3), np.zeros(3)
    # Normals with diagonal covariances: the means and the deviations differ as vectors do.
    assert gaussian_distance(zero, eye, zero + 2, 9 * eye) == pytest.approx(12 + 3 * 4)
    # A point against a normal: its variance.
    assert gaussian_distance(zero, 0 * eye, zero, 4 * eye) == pytest.approx(12)


def test_singular_covariances_are_no_trouble():
    rng = np.random.default_rng(0)
    a = covariance(rng, 64, rank=3)
    assert gaussian_distance(np.zeros(64), a, np.zeros(64), a) == pytest.approx(0, abs=1e-5)
    assert gaussian_distance(np.zeros(64), a, np.zeros(64), 4 * a) == pytest.approx(np.trace(a))


def test_samples_of_two_normals():
    rng = np.random.default_rng(1)
    real, ours = rng.normal(0, 1, (20_000, 4)), rng.normal(1, 2, (20_000, 4))
    found = frechet(ours, real, n_splits=3)
    assert found["distance"] == pytest.approx(4 + 4, rel=0.03)
    assert found["floor"]["high"] < 0.01
    assert (found["dimensions"], found["explained"], found["n_parts"]) == (4, 1.0, [10_000, 10_000])
    assert found["n_generated"] == found["n_real"] == 20_000


def test_the_floor_shrinks_with_n_and_covers_the_same_music():
    rng = np.random.default_rng(2)
    floors = []
    for n in (60, 240, 960):
        real, ours = rng.normal(size=(2 * n, 16)), rng.normal(size=(n, 16))
        found = frechet(ours, real, seed=3)
        floors.append(found["floor"]["mean"])
        assert found["n_parts"] == [n, n]
        assert found["matched"]["mean"] == pytest.approx(found["floor"]["mean"], rel=0.2)
        assert found["distance"] < 1.2 * found["floor"]["high"]
        far = frechet(ours + 1, real, seed=3)
        assert far["floor"] == found["floor"]
        assert far["distance"] > 3 * far["floor"]["high"]
    # About as 1 / n.
    assert floors[0] / floors[1] == pytest.approx(4, rel=0.35)
    assert floors[1] / floors[2] == pytest.approx(4, rel=0.35)


def test_matched_has_the_sizes_of_the_floor():
    rng = np.random.default_rng(6)
    ours, real = rng.normal(size=(1000, 16)), rng.normal(size=(200, 16))
    found = frechet(ours, real)
    assert found["n_parts"] == [100, 100]
    # Noise of fewer songs in the floor must not hide a difference, nor that of more make one.
    assert found["distance"] < 0.6 * found["floor"]["mean"]
    assert found["matched"]["mean"] == pytest.approx(found["floor"]["mean"], rel=0.1)
    near = frechet(ours + 0.3, real)
    assert near["matched"]["mean"] - near["floor"]["mean"] == pytest.approx(16 * 0.09, rel=0.4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_rotation_shift_and_order_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(70, 5)) @ covariance(rng, 5), rng.normal(1, 1, (140, 5))
    turn, shift = ortho_group.rvs(5, random_state=seed), rng.normal(size=5)
    expected = frechet(a, b, n_splits=1)["distance"]
    turned = frechet(a @ turn + shift, b @ turn + shift, n_splits=1)["distance"]
    mixed = frechet(rng.permutation(a), rng.permutation(b), n_splits=1)["distance"]
    assert turned == pytest.approx(expected)
    assert mixed == pytest.approx(expected)
    assert frechet(b, b, n_splits=1)["distance"] == pytest.approx(0, abs=1e-9)


def test_components():
    rng = np.random.default_rng(4)
    spread = np.array([10.0, 5.0, 0.1, 0.1, 0.1])
    real, ours = rng.normal(size=(400, 5)) * spread, rng.normal(size=(200, 5)) * spread
    ours[:, 0] += 20
    found = frechet(ours, real, components=2)
    assert found["dimensions"] == 2
    assert 0.999 < found["explained"] < 1
    whole = frechet(ours, real)
    assert found["distance"] == pytest.approx(whole["distance"], rel=0.01)
    assert frechet(ours, real, components=5)["distance"] == pytest.approx(whole["distance"])
    # Fitted on the real set alone: what only the generated set does outside is not seen.
    ours[:, 4] += 1000
    assert frechet(ours, real, components=2)["distance"] < 2 * found["distance"]
    constant = frechet(np.ones((60, 3)), np.ones((120, 3)), components=1)
    assert (constant["distance"], constant["explained"]) == (0, 1)


def test_moments_of_one_dimension():
    mean, spread = moments(np.array([[1.0], [3.0]]))
    assert (mean.tolist(), spread.tolist()) == ([2], [[2]])


def test_result_ends_in_json():
    rng = np.random.default_rng(5)
    found = frechet(rng.normal(size=(50, 2)), rng.normal(size=(100, 2)))
    assert json.loads(json.dumps(found, allow_nan=False))["floor"].keys() == {"mean", "low", "high"}


def refusal(n_generated, n_real, width, **more):
    with pytest.raises(UserError) as error:
        frechet(np.zeros((n_generated, width)), np.zeros((n_real, width)), **more)
    return str(error.value)


def test_too_few_samples():
    assert "needs 50 generated samples or more, there are 49" in refusal(49, 500, 8)
    assert "needs 100 held-out samples or more, there are 99" in refusal(50, 99, 8)
    said = refusal(100, 1000, 256)
    assert "in 256 dimensions needs 257 generated samples or more, there are 100" in said
    assert "components=99 or less" in said
    assert "needs 514 held-out" in refusal(600, 500, 256)
    assert "components=249 or less" in refusal(600, 500, 256)
    assert "components" not in refusal(20, 500, 256)
    frechet(np.zeros((100, 256)), np.zeros((1000, 256)), components=99, n_splits=1)
    frechet(np.zeros((MIN_SAMPLES, 2)), np.zeros((2 * MIN_SAMPLES, 2)), n_splits=1)
