"""Deals songs to train, validation and test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


def assign_splits(
    strata: Sequence[Hashable],
    groups: Sequence[Hashable],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> list[str]:
    """Split of each song: whole groups, stratified, a function of the seed.

    Groups are dealt one by one, in random order, to the split whose squared distance from its share
    falls most. With several labels every label keeps its own shares: strata of all combinations
    would be too small to share out. A class with three groups or more is in every split, whatever
    its size; a group much larger than a share of validation or test goes to training.

    Args:
        strata: Class of each song; a tuple has one class for each label. A group takes its most
            frequent one.
        groups: Group of each song; songs of one group get one split.
        fractions: Shares of train, validation and test.
        seed: Seed of the order.

    Returns:
        ``train``, ``val`` or ``test`` for each song.

    Raises:
        ValueError: The fractions are negative or do not sum to 1.
    """
    check_fractions(fractions)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    names = sorted(members, key=repr)
    classes = {name: _classes(_most_frequent([strata[i] for i in members[name]])) for name in names}
    sizes: dict[Hashable, list[int]] = defaultdict(list)
    for name in names:
        for one in classes[name]:
            sizes[one].append(len(members[name]))
    target = {one: _target(of, fractions) for one, of in sizes.items()}
    held = {one: np.zeros(3) for one in sizes}
    splits: dict[Hashable, int] = {}
    for k in np.random.default_rng(seed).permutation(len(names)):
        name = names[k]
        size = len(members[name])
        change = np.zeros(3)
        for one in classes[name]:
            with np.errstate(divide="ignore", invalid="ignore"):
                step = (size**2 - 2 * size * (target[one] - held[one])) / target[one]
            change += np.where(_fits(size, target[one]), step, np.inf)
        splits[name] = int(np.argmin(change))
        for one in classes[name]:
            held[one][splits[name]] += size
    wanted = [i for i, fraction in enumerate(fractions) if fraction > 0]
    _fill(splits, classes, {name: len(of) for name, of in members.items()}, wanted)
    return [SPLITS[splits[group]] for group in groups]


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuses what are no shares of three splits.

    Raises:
        ValueError: The fractions are negative or do not sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"split.fractions must be three shares that sum to 1, got {list(fractions)}"
        )


def _most_frequent(strata: Sequence[Hashable]) -> Hashable:
    """The stratum of a group; of equally frequent ones always the same, in whatever order."""
    return min(Counter(strata).items(), key=lambda item: (-item[1], repr(item[0])))[0]


def _classes(stratum: Hashable) -> list[tuple[int, Hashable]]:
    """The class of each label, told apart by the label's place."""
    return list(enumerate(stratum if isinstance(stratum, tuple) else (stratum,)))


def _target(sizes: Sequence[int], fractions: Sequence[float]) -> NDArray[np.float64]:
    """Songs that each split should hold of a class with groups of these sizes."""
    total = sum(sizes)
    target: NDArray[np.float64] = np.array(fractions, np.float64) * total
    if len(sizes) >= 3:
        # One average group is the least that a split can hold.
        least = np.where(np.array(fractions) > 0, total / len(sizes), 0)
        target[1:] = np.maximum(target, least)[1:]
        target[0] = total - target[1:].sum()
    return target


def _fits(size: int, target: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Splits that may take a group; one far above their share would fill validation or test."""
    fits: NDArray[np.bool_] = target > 0
    if fits[0]:
        fits[1:] &= size <= np.minimum(2 * target, target.sum() / 2)[1:]
    return fits


def _fill(
    splits: dict[Hashable, int],
    classes: Mapping[Hashable, Sequence[Hashable]],
    sizes: Mapping[Hashable, int],
    wanted: Sequence[int],
) -> None:
    """Moves small groups until each class with three groups or more is in every split.

    No class loses its last group in a split for another one's sake.
    """
    groups: dict[Hashable, list[Hashable]] = defaultdict(list)
    for name in splits:
        for one in classes[name]:
            groups[one].append(name)
    counts = Counter((one, splits[name]) for one, of in groups.items() for name in of)
    for one in sorted(groups, key=lambda one: (len(groups[one]), repr(one))):
        for split in wanted:
            if len(groups[one]) < 3 or counts[one, split]:
                continue
            spare = [
                name
                for name in groups[one]
                if all(counts[other, splits[name]] > 1 for other in classes[name])
            ]
            if not spare:
                continue
            # Of equally small groups one from the fullest split; then the first in random order.
            moved = min(spare, key=lambda name: (sizes[name], -counts[one, splits[name]]))
            for other in classes[moved]:
                counts[other, splits[moved]] -= 1
                counts[other, split] += 1
            splits[moved] = split
