"""Deals songs to train, validation and test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

SPLITS = ("train", "val", "test")


def assign_splits(
    strata: Sequence[Hashable],
    groups: Sequence[Hashable],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> list[str]:
    """Split of each song: whole groups, stratified, a function of the seed.

    Groups are dealt one by one, in random order, to the split whose squared distance from its share
    falls most; a class with three groups or more is in every split, whatever its size.

    Args:
        strata: Label of each song (any hashable; a group takes its most frequent one).
        groups: Group of each song; songs of one group get one split.
        fractions: Shares of train, validation and test.
        seed: Seed of the order.

    Returns:
        ``train``, ``val`` or ``test`` for each song.

    Raises:
        ValueError: The fractions are negative or do not sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split.fractions must be three shares that sum to 1, got {fractions}")
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    by_stratum: dict[Hashable, list[Hashable]] = defaultdict(list)
    for group, songs in members.items():
        by_stratum[Counter(strata[i] for i in songs).most_common(1)[0][0]].append(group)
    out = [""] * len(groups)
    for stratum in sorted(by_stratum, key=repr):
        names = sorted(by_stratum[stratum], key=repr)
        rng = np.random.default_rng([seed, *repr(stratum).encode()])
        order = [names[i] for i in rng.permutation(len(names))]
        for group, split in zip(
            order, _deal([len(members[g]) for g in order], fractions), strict=True
        ):
            for i in members[group]:
                out[i] = split
    return out


def _deal(sizes: Sequence[int], fractions: Sequence[float]) -> list[str]:
    total = sum(sizes)
    target = np.array(fractions, float) * total
    if len(sizes) >= 3:
        # One average group is the least that a split can hold.
        least = np.where(np.array(fractions) > 0, total / len(sizes), 0)
        target[1:] = np.maximum(target, least)[1:]
        target[0] = total - target[1:].sum()
    held = np.zeros(3)
    dealt = []
    for size in sizes:
        with np.errstate(divide="ignore", invalid="ignore"):
            change = (size**2 - 2 * size * (target - held)) / target
        change = np.where(target > 0, change, np.inf)
        chosen = int(np.argmin(change))
        held[chosen] += size
        dealt.append(SPLITS[chosen])
    return dealt
