"""Overlaps with known answers; intervals, floors and refusals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_songs import DRUMS, made, random_song
from scipy.spatial.distance import jensenshannon
from scipy.special import ndtr, ndtri

from midigenre.errors import UserError
from midigenre.evaluation.music.descriptors import (
    HISTOGRAMS,
    SCALARS,
    DescriptorTable,
    describe_all,
)
from midigenre.evaluation.music.distance import (
    CELLS,
    bandwidth,
    compare_sets,
    jensen_shannon,
    kernel_rows,
    overlap,
    split_parts,
)

QUICK = {"n_bootstrap": 100, "n_splits": 20}


def table(values, bins=None):
    """The same numbers for every scalar descriptor, the same histogram rows for every other."""
    values = np.asarray(values, np.float64)
    histograms = {}
    for name, names in HISTOGRAMS.items():
        rows = np.zeros((len(values), len(names)))
        rows[np.arange(len(values)), 0 if bins is None else np.asarray(bins)] = 1
        histograms[name] = rows
    return DescriptorTable(dict.fromkeys(SCALARS, values), histograms)


def shares(size):
    counts = hnp.arrays(np.float64, size, elements=st.integers(0, 5).map(float))
    return counts.filter(lambda c: c.sum() > 0).map(lambda c: c / c.sum())


@given(shares(6), shares(6))
def test_measures_against_scipy_and_their_ranges(p, q):
    assert 0 <= overlap(p, q) <= 1 + 1e-12
    assert overlap(p, q) == pytest.approx(1 - np.abs(p - q).sum() / 2)
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-9)
    assert jensen_shannon(p, q) == jensen_shannon(q, p)


@given(
    hnp.arrays(np.float64, 7, elements=st.floats(-1e3, 1e3)),
    st.one_of(st.just(0.0), st.floats(1e-3, 1e3)),
)
def test_kernel_rows_are_distributions(values, width):
    rows = kernel_rows(values, values.min(), values.max(), width)
    assert rows.shape == (7, CELLS)
    assert rows.min() >= 0
    assert rows.sum(1) == pytest.approx(np.ones(7))


@pytest.mark.parametrize("shift", [0.5, 1, 2, 4])
def test_two_normals_overlap_as_the_formula_says(shift):
    # Quantiles in place of draws: no sampling noise, only what the kernel widens.
    normal = ndtri((np.arange(1000) + 0.5) / 1000)
    found = compare_sets(table(normal + shift), table(normal), **QUICK)["polyphony"]
    widened = np.sqrt(1 + bandwidth(normal) ** 2)
    value = found["overlap"]["value"]
    assert value == pytest.approx(2 * ndtr(-shift / 2 / widened), abs=0.004)
    assert value == pytest.approx(2 * ndtr(-shift / 2), abs=0.02)
    low, high = found["overlap"]["ci95"]
    assert low < value < high
    assert high - low < 0.1
    assert found["mean_generated"] - found["mean_real"] == pytest.approx(shift)


def test_equal_and_disjoint_sets():
    values = np.random.default_rng(0).normal(0, 1, 40)
    same = compare_sets(table(values), table(values), **QUICK)
    far = compare_sets(table(values + 100, [3] * 40), table(values), **QUICK)
    for name in (*SCALARS, *HISTOGRAMS):
        assert same[name]["overlap"]["value"] == pytest.approx(1)
        assert same[name]["jensen_shannon"]["value"] == pytest.approx(0, abs=1e-12)
        assert far[name]["overlap"]["value"] == pytest.approx(0, abs=1e-6)
        assert far[name]["jensen_shannon"]["value"] == pytest.approx(1, abs=1e-4)


def test_points_without_spread():
    """Drum share in a corpus without drums: no bandwidth, and still right answers."""
    zeros, ones = np.zeros(20), np.ones(20)
    assert bandwidth(zeros) == 0
    for ours, expected in ((zeros, 1), (ones, 0), (np.r_[zeros[:10], ones[:10]], 0.5)):
        found = compare_sets(table(ours), table(zeros), **QUICK)["drum_share"]
        assert found["overlap"]["value"] == pytest.approx(expected)
    # Most values equal: the quartiles coincide, the deviation stands in.
    assert bandwidth(np.r_[np.zeros(19), 1.0]) > 0


def test_the_floor_tells_noise_from_difference():
    rng = np.random.default_rng(1)
    real, same, other = rng.normal(0, 1, 200), rng.normal(0, 1, 50), rng.normal(1.5, 1, 50)
    near = compare_sets(table(same), table(real), **QUICK)["polyphony"]["overlap"]
    far = compare_sets(table(other), table(real), **QUICK)["polyphony"]["overlap"]
    # But for the cells, which span both sets.
    assert near["floor"] == pytest.approx(far["floor"], abs=1e-3)
    assert near["floor"]["low"] <= near["value"] <= 1
    assert far["ci95"][1] < far["floor"]["low"]


def test_the_floor_shrinks_with_n():
    rng = np.random.default_rng(2)
    floors = [
        compare_sets(table(rng.normal(0, 1, n)), table(rng.normal(0, 1, n)), **QUICK)["polyphony"]
        for n in (20, 80, 1000)
    ]
    overlaps = [found["overlap"]["floor"]["mean"] for found in floors]
    divergences = [found["jensen_shannon"]["floor"]["mean"] for found in floors]
    assert overlaps == sorted(overlaps)
    assert overlaps[-1] > 0.93
    assert divergences == sorted(divergences, reverse=True)


@given(st.integers(1, 50), st.integers(2, 50), st.integers(0, 9))
def test_parts_are_disjoint_and_cover_the_real_set(n_generated, n_real, seed):
    for first, rest, ours in split_parts(n_generated, n_real, 3, seed):
        assert len(first) == len(ours) == min(n_generated, n_real // 2)
        assert sorted([*first, *rest]) == list(range(n_real))
        assert set(ours) <= set(range(n_generated))
        assert len(set(ours)) == len(ours)


@pytest.mark.parametrize(("n_generated", "n_real"), [(400, 40), (40, 400), (40, 50)])
def test_matched_and_floor_agree_on_the_same_music(n_generated, n_real):
    """Whatever the sizes, where the value itself is off by what noise they bring."""
    rng = np.random.default_rng(3)
    gaps, values = [], []
    for _ in range(12):
        ours, theirs = (table(rng.normal(size=n)) for n in (n_generated, n_real))
        found = compare_sets(ours, theirs, n_bootstrap=0, n_splits=20)["polyphony"]["overlap"]
        gaps.append(found["matched"]["mean"] - found["floor"]["mean"])
        values.append(found["value"] - found["floor"]["mean"])
    assert abs(np.mean(gaps)) < 0.03
    if n_generated == 400:
        assert np.mean(values) > 0.05


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_songs_does_not_matter(random):
    rng = np.random.default_rng(5)
    pieces = [random_song(rng, n_bars=2) for _ in range(24)]
    mixed = pieces[:12]
    random.shuffle(mixed)
    real = describe_all(pieces[12:])
    first, second = (compare_sets(describe_all(p), real, **QUICK) for p in (pieces[:12], mixed))
    for name in first:
        for measure in ("overlap", "jensen_shannon"):
            assert first[name][measure]["value"] == pytest.approx(second[name][measure]["value"])


def test_songs_of_real_notes_end_in_json():
    rng = np.random.default_rng(6)
    ours = describe_all(random_song(rng, low=60, high=64) for _ in range(15))
    theirs = describe_all(random_song(rng) for _ in range(30))
    found = compare_sets(ours, theirs, **QUICK)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["pitch_range"]["overlap"]["value"] < 0.1
    assert found["notes_per_bar"]["overlap"]["value"] > 0.9
    assert found == compare_sets(ours, theirs, **QUICK)
    assert sum(found["interval"]["share_real"]) == pytest.approx(1)


def test_too_few_songs():
    with pytest.raises(UserError, match=r"9 generated songs: too few .*n=10"):
        compare_sets(table(np.zeros(9)), table(np.zeros(30)))
    with pytest.raises(UserError, match="9 held-out songs"):
        compare_sets(table(np.zeros(30)), table(np.zeros(9)))
    drums = describe_all([made([(0, 1, 36, 90, DRUMS)])] * 12)
    pitched = describe_all([made([(0, 1, 60), (4, 1, 62)])] * 12)
    found = compare_sets(drums, pitched, **QUICK)
    assert found["pitch_range"]["reason"].startswith("defined in 0 generated and 12 real")
    assert "overlap" not in found["pitch_range"]
    assert found["interval"]["n_generated"] == 0
    assert found["drum_share"]["overlap"]["value"] == 0
