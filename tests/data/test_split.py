"""Songs assigned to splits: whole groups, every class in every split, a function of the seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigenre.data.splits import assign_splits
from midigenre.spec import SPLITS

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=25)


def of_groups(sizes: dict[str, list[int]]) -> tuple[list[str], list[str]]:
    """Strata and groups of songs from the group sizes of each class."""
    rows = [(c, f"{c}{g}") for c, of in sizes.items() for g, n in enumerate(of) for _ in range(n)]
    return [c for c, _ in rows], [g for _, g in rows]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 15)), max_size=60
    ),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_whole_groups_and_a_function_of_songs_and_seed(
    songs: list[tuple[str, str, int]], seed: int, random: Any
) -> None:
    strata, groups = [s[:2] for s in songs], [s[2] for s in songs]
    out = assign_splits(strata, groups, seed=seed)
    assert len(out) == len(songs)
    assert set(out) <= set(SPLITS)
    by_group = defaultdict(set)
    for group, split in zip(groups, out, strict=True):
        by_group[group].add(split)
    assert all(len(splits) == 1 for splits in by_group.values())

    assert assign_splits(strata, groups, seed=seed) == out
    order = list(range(len(songs)))
    random.shuffle(order)
    moved = assign_splits([strata[i] for i in order], [groups[i] for i in order], seed=seed)
    assert moved == [out[i] for i in order]


@given(st.dictionaries(st.sampled_from("abc"), SIZES, min_size=1), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_class_of_three_groups_is_in_every_split(
    sizes: dict[str, list[int]], seed: int
) -> None:
    strata, groups = of_groups(sizes)
    out = assign_splits(strata, groups, seed=seed)
    for name, of in sizes.items():
        found = {split for stratum, split in zip(strata, out, strict=True) if stratum == name}
        if len(of) >= 3:
            assert found == set(SPLITS)
        assert "train" in found


@given(
    st.lists(st.integers(1, 10), min_size=3, max_size=15),
    st.integers(1, 4),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_group_larger_than_the_rest_goes_to_training(
    small: list[int], times: int, seed: int
) -> None:
    strata, groups = of_groups({"a": [*small, sum(small) * times + 1]})
    out = assign_splits(strata, groups, seed=seed)
    assert out[-1] == "train"
    assert set(out) == set(SPLITS)


def test_a_group_larger_than_a_share_goes_to_training() -> None:
    strata, groups = of_groups({"a": [1] * 60 + [40]})
    for seed in range(20):
        assert assign_splits(strata, groups, seed=seed)[-1] == "train"


def test_shares_of_every_class() -> None:
    rng = np.random.default_rng(0)
    sizes = {c: rng.integers(1, 6, n).tolist() for c, n in (("a", 40), ("b", 100), ("c", 400))}
    strata, groups = of_groups(sizes)
    out = assign_splits(strata, groups)
    for name, of in sizes.items():
        n = Counter(s for stratum, s in zip(strata, out, strict=True) if stratum == name)
        for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
            assert abs(n[split] - share * sum(of)) <= max(of), (name, split)


def test_shares_of_every_label() -> None:
    rng = np.random.default_rng(0)
    # Eleven emotions and six genres, as uneven as in XMIDI.
    emotions = rng.choice(11, 1000, p=np.arange(1, 12) / 66)
    genres = rng.choice(6, 1000, p=np.arange(1, 7) / 21)
    strata = [(f"g{g}", f"e{e}") for g, e in zip(genres, emotions, strict=True)]
    out = assign_splits(strata, range(1000))
    for label in (0, 1):
        for name in {s[label] for s in strata}:
            chosen = [split for s, split in zip(strata, out, strict=True) if s[label] == name]
            n = Counter(chosen)
            assert n["val"] == pytest.approx(0.1 * len(chosen), abs=2), name
            assert n["test"] == pytest.approx(0.1 * len(chosen), abs=2), name


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_of_several_labels_are_in_every_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    strata = [(f"g{rng.integers(3)}", f"e{rng.integers(10)}") for _ in range(80)]
    out = assign_splits(strata, range(80), seed=seed)
    for label in (0, 1):
        for name, n in Counter(s[label] for s in strata).items():
            if n >= 3:
                found = {split for s, split in zip(strata, out, strict=True) if s[label] == name}
                assert found == set(SPLITS), (name, n)


def test_another_seed_gives_another_split() -> None:
    strata, groups = of_groups({"a": [1] * 50, "b": [1] * 50})
    assert len({tuple(assign_splits(strata, groups, seed=seed)) for seed in range(6)}) == 6


@pytest.mark.parametrize("fractions", [(0.5, 0.25, 0.25), (0.9, 0.1, 0.0), (1.0, 0.0, 0.0)])
def test_fractions(fractions: tuple[float, float, float]) -> None:
    out = Counter(assign_splits(["a"] * 100, range(100), fractions))
    assert [out[s] for s in SPLITS] == pytest.approx([100 * f for f in fractions], abs=1)


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.1, 0.0, -0.1), (0.8, 0.1, 0.05, 0.05), (0, 0, 0)]
)
def test_fractions_that_are_no_shares(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"split\.fractions"):
        assign_splits(["a"], ["g"], fractions)
