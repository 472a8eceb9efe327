"""Splits songs into train, validation and test, once or in turn.

``crossval`` splits the songs into folds and tests every song once, by a model that was not trained
on it. ``leave_one_source_out`` tests each source by a model of the others: labels often follow the
source of a file, and a model that knows the source looks better than it is. The shards stay as they
are: a fold is a choice of their rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Longs
from midigenre.data.duplicates import linked_groups
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.files import safe_name
from midigenre.run import HOLDOUT
from midigenre.spec import SPLITS, UNKNOWN


def assign_splits(
    strata: Sequence[Hashable],
    groups: Sequence[Hashable],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> list[str]:
    """Split of each song: whole groups, stratified, a function of the seed.

    Groups are split one by one, in random order, to the split whose squared distance from its share
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
    """The class of each label, kept apart by the label's place."""
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


CROSSVAL, BY_SOURCE = "crossval", "leave_one_source_out"


@dataclass(frozen=True)
class Fold:
    """The songs of one model of a protocol.

    Attributes:
        name: Name of its folder: ``fold-2-of-5`` or ``source-groove``.
        rows: Song indices of ``train``, ``val`` and ``test``, ascending.
        hidden: For each label the songs, shape (songs,), whose class cannot be tested.
        untestable: For each label how many songs of the source have a class that no training song
            has.
        left_out: How many songs of other sources are in no split since they belong to a group of
            the left-out one.
    """

    name: str
    rows: Mapping[str, Longs]
    hidden: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    untestable: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    left_out: int = 0

    def visible(self, labels: Mapping[str, Longs]) -> dict[str, Longs]:
        """Class index of every song for each label, UNKNOWN where it cannot be tested."""
        return {
            label: np.where(self.hidden[label], UNKNOWN, indices)
            if label in self.hidden
            else indices
            for label, indices in labels.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: how many songs there are, and what cannot be tested."""
        about: dict[str, Any] = {
            "name": self.name,
            "songs": {split: len(rows) for split, rows in self.rows.items()},
        }
        if self.untestable:
            about["untestable"] = {k: dict(v) for k, v in self.untestable.items()}
        return about | ({"left_out": self.left_out} if self.left_out else {})


@dataclass(frozen=True)
class Protocol:
    """A protocol with several parts.

    Attributes:
        name: :data:`CROSSVAL` or :data:`BY_SOURCE`.
        part: Number of the part, from 1; None for all.
        folds: Number of folds.
        sources: Sources to leave out in turn; None for all.
        labels: Labels that the songs of a left-out source must have one of; none for all songs.
        seed: ``split.seed``.
        val_share: Share of validation among the songs that are not tested.
    """

    name: str
    part: int | None
    folds: int | None
    sources: tuple[str, ...] | None
    labels: tuple[str, ...]
    seed: int
    val_share: float

    @classmethod
    def from_config(cls, settings: Mapping[str, Any] | None) -> Protocol | None:
        """From what :func:`settings_of` gives; None for the prepared split.

        Raises:
            UserError: A setting is out of range.
        """
        if settings is None:
            return None
        name, part = settings["name"], settings["part"]
        if name not in (CROSSVAL, BY_SOURCE):
            raise UserError(
                f"protocol.name={name}; choose protocol={HOLDOUT}, {CROSSVAL} or {BY_SOURCE}"
            )
        folds, sources = settings.get("folds"), settings.get("sources")
        if name == CROSSVAL and (not _whole(folds) or folds < 2):
            raise UserError(f"protocol.folds={folds}; give a whole number, 2 or more")
        if sources is not None and (isinstance(sources, str) or not sources):
            raise UserError(f"protocol.sources={sources}; give a list, for instance [groove]")
        if part is not None and (not _whole(part) or part < 1):
            raise UserError(f"protocol.part={part}; give the number of a part, from 1, or null")
        return cls(
            name,
            part,
            folds if name == CROSSVAL else None,
            None if sources is None or name != BY_SOURCE else tuple(map(str, sources)),
            tuple(settings.get("labels", ())),
            settings["seed"],
            settings["val_share"],
        )

    def names(self, shards: ShardSet) -> list[str]:
        """Folder of each part, in their order.

        Raises:
            UserError: As :meth:`deal`.
        """
        if self.name == CROSSVAL:
            return [f"fold-{k}-of-{self.folds}" for k in range(1, (self.folds or 0) + 1)]
        found: list[str] = []
        for k, source in enumerate(self._sources(shards), 1):
            name = f"source-{safe_name(source)}"
            found.append(name if name not in found else f"{name}-{k}")
        return found

    def split(self, shards: ShardSet, part: int | None = None) -> Fold:
        """The songs of a part.

        Args:
            shards: The prepared songs; their own split is not looked at.
            part: Its number, from 1; None for :attr:`part`.

        Raises:
            UserError: There are too few groups or sources, there is no such source or part, or no
                song of a source can be tested.
        """
        k = self.part if part is None else part
        names = self.names(shards)
        if k is None:
            raise ValueError("a protocol's songs depend on the part")
        if k > len(names):
            raise UserError(f"protocol.part={k}, but there are {len(names)} parts: {names}")
        groups = song_groups(shards)
        strata = song_strata(shards)
        if self.name == CROSSVAL:
            assert self.folds is not None
            if len(set(groups)) < self.folds:
                raise UserError(
                    f"protocol.folds={self.folds}, but {shards.folder} has {len(set(groups))} "
                    "groups of songs; set fewer folds"
                )
            fold_S = assign_folds(strata, groups, self.folds, self.seed)
            rest = np.flatnonzero(fold_S != k - 1)
            return Fold(
                names[k - 1],
                self._train_val(rest, strata, groups) | {"test": np.flatnonzero(fold_S == k - 1)},
            )
        return self._without_source(shards, k, names[k - 1], strata, groups)

    def _sources(self, shards: ShardSet) -> list[str]:
        there = sorted(set(shards.manifest.column("source")))
        if len(there) < 2:
            raise UserError(
                f"protocol={BY_SOURCE}: all songs of {shards.folder} come from {there[0]!r}; give "
                "the songs as corpus=manifest with a column `source` (the collection of each "
                "file), or take protocol=crossval"
            )
        for source in self.sources or ():
            if source not in there:
                raise UserError(
                    f"protocol.sources: no source {source!r}; there is {', '.join(there)}"
                )
        return there if self.sources is None else list(dict.fromkeys(self.sources))

    def _without_source(
        self, shards: ShardSet, k: int, name: str, strata: Sequence[Hashable], groups: Sequence[str]
    ) -> Fold:
        source = self._sources(shards)[k - 1]
        here_S = np.array([s == source for s in shards.manifest.column("source")], bool)
        # A copy in another collection would be trained on.
        touched = {group for group, here in zip(groups, here_S, strict=True) if here}
        linked_S = np.array([group in touched for group in groups], bool)
        rows = self._train_val(np.flatnonzero(~linked_S), strata, groups)
        testable_S = np.zeros(len(shards), bool)
        hidden, untestable = {}, {}
        indices = shards.label_indices()
        labels = [label for label in self.labels if label in indices]
        for label in labels:
            known = here_S & (indices[label] != UNKNOWN)
            learnt = np.isin(indices[label], indices[label][rows["train"]])
            hidden[label] = known & ~learnt
            testable_S |= known & learnt
            classes = shards.labels.classes[label]
            counts = Counter(classes[c] for c in indices[label][hidden[label]].tolist())
            untestable[label] = {name: counts[name] for name in classes if counts[name]}
        if not labels:
            testable_S = here_S
        return Fold(
            name,
            rows | {"test": np.flatnonzero(testable_S)},
            hidden,
            {label: counts for label, counts in untestable.items() if counts},
            int((linked_S & ~here_S).sum()),
        )

    def _train_val(
        self, rest: Longs, strata: Sequence[Hashable], groups: Sequence[Hashable]
    ) -> dict[str, Longs]:
        """Splits the songs that are not tested, with the shares of ``split.fractions``."""
        if not len(rest):
            raise UserError("protocol: no song is left to train on")
        splits = np.array(
            assign_splits(
                [strata[i] for i in rest],
                [groups[i] for i in rest],
                (1 - self.val_share, self.val_share, 0.0),
                self.seed,
            )
        )
        return {split: rest[splits == split] for split in ("train", "val")}


def settings_of(
    protocol: Mapping[str, Any] | None, split: Mapping[str, Any], labels: Sequence[str] = ()
) -> dict[str, Any] | None:
    """What a part depends on besides the songs, as plain data for checkpoints.

    Args:
        protocol: ``cfg.protocol``; the config node.
        split: ``cfg.split``.
        labels: What a classifier learns; none for other tasks.

    Returns:
        Settings for :meth:`Protocol.from_config`; None for the prepared split.

    Raises:
        UserError: ``part`` is set for the prepared split, or nothing is left for training.
    """
    if protocol is None or protocol["name"] == HOLDOUT:
        if protocol is not None and protocol.get("part") is not None:
            raise UserError(
                f"protocol.part={protocol['part']}: protocol={HOLDOUT} has no parts; set "
                f"protocol={CROSSVAL} or {BY_SOURCE}"
            )
        return None
    train, val, _ = split["fractions"]
    if not train > 0:
        raise UserError(f"split.fractions={list(split['fractions'])}: nothing is left to train on")
    return dict(protocol) | {
        "labels": list(labels), "seed": split["seed"], "val_share": val / (train + val)
    }  # fmt: skip


def song_groups(shards: ShardSet) -> list[str]:
    """Group of each song: the first id of all songs that belong together (a group, equal music).

    Not the root that the linking happens to end in, which depends on the songs' order.
    """
    ids, group, first_copy = (
        shards.manifest.column(name) for name in ("song_id", "group", "duplicate_group")
    )
    roots = linked_groups(ids, group, first_copy)
    first: dict[str, str] = {}
    for song_id, root in zip(ids, roots, strict=True):
        first[root] = min(song_id, first.get(root, song_id))
    return [first[root] for root in roots]


def song_strata(shards: ShardSet) -> list[tuple[int, ...]]:
    """Class index of every label of each song; those of no task too, so that tasks share folds."""
    indices = [values.tolist() for values in shards.label_indices().values()]
    return list(zip(*indices, strict=True)) if indices else [(0,)] * len(shards)


def assign_folds(
    strata: Sequence[Hashable], groups: Sequence[Hashable], n_folds: int, seed: int = 0
) -> Longs:
    """Fold of each song: whole groups, stratified by every label, a function of the seed.

    Groups are taken from the largest to the smallest, equally large ones in random order, to the
    fold in which the squared distance from an even share grows least, summed over the labels and
    relative to the size of a class; of equally good folds to the smallest. Where groups are single
    songs with one label, folds differ by at most one song of any class.

    Args:
        strata: Class of each song; a tuple has one class for each label.
        groups: Group of each song.
        n_folds: Number of folds.
        seed: Seed of the order.

    Returns:
        0 to ``n_folds - 1`` for each song, shape (songs,).
    """
    cells: dict[Hashable, int] = {}
    of_song = [
        [
            cells.setdefault(one, len(cells))
            for one in enumerate(s if isinstance(s, tuple) else (s,))
        ]
        for s in strata
    ]
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    names = sorted(members, key=repr)
    order = np.random.default_rng(seed).permutation(len(names))
    names = sorted((names[k] for k in order), key=lambda name: -len(members[name]))
    total_C = np.bincount([c for of in of_song for c in of], minlength=len(cells))
    held_KC = np.zeros((n_folds, len(cells)))
    sizes_K = np.zeros(n_folds, np.int64)
    fold_S = np.empty(len(strata), np.int64)
    for name in names:
        counts = Counter(c for i in members[name] for c in of_song[i])
        at = np.array(sorted(counts))
        n_C = np.array([counts[c] for c in at.tolist()])
        growth_K = ((2 * held_KC[:, at] * n_C + n_C**2) / total_C[at]).sum(1)
        # Sums of the same fractions in another order must not decide.
        best = np.flatnonzero(growth_K <= growth_K.min() * (1 + 1e-9))
        fold = int(best[sizes_K[best].argmin()])
        held_KC[fold, at] += n_C
        sizes_K[fold] += len(members[name])
        fold_S[members[name]] = fold
    return fold_S


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
