"""Which songs are trained on, validated and tested.

:func:`assign_splits` splits once, when a corpus is prepared. A :class:`Protocol` trains one model
for each of its parts: ``crossval`` tests every song once, by a model that was not trained on it;
``leave_one_source_out`` tests each source by a model of the others, for labels often follow the
source of a file, and a model that recognises the source looks better than it is. A :class:`Subset`
is a hashed share of the songs. The shards stay as they are: all these are choices of their rows.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from midigenre.arrays import Bools, Floats, Longs
from midigenre.data.duplicates import linked_groups
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.files import safe_name
from midigenre.run import HOLDOUT
from midigenre.spec import SPLITS, UNKNOWN

CROSSVAL, BY_SOURCE = "crossval", "leave_one_source_out"

_LINKS = ("song_id", "group", "duplicate_group")


def assign_splits(
    strata: Sequence[Hashable],
    groups: Sequence[Hashable],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> list[str]:
    """Split of each song: whole groups, stratified, a function of the seed.

    Groups are assigned one by one, in random order, to the split whose squared distance from its
    share falls most. With several labels every label keeps its own shares: strata of all
    combinations would be too small to split. A class with three groups or more is in every split,
    whatever its size; a group much larger than a share of validation or test goes to training.

    Args:
        strata: Class of each song; a tuple has one class for each label. A group takes its most
            frequent one.
        groups: Group of each song.
        fractions: Shares of train, validation and test.
        seed: Seed of the order.

    Raises:
        ValueError: The fractions are negative or do not sum to 1.
    """
    check_fractions(fractions)
    songs_G = _songs_of_groups(groups)
    sizes_G = [len(songs) for songs in songs_G]
    cells: dict[Hashable, int] = {}  # a cell is a class of one label
    cells_G = [_cells(_most_frequent([strata[i] for i in songs]), cells) for songs in songs_G]
    target_C3 = _targets(cells_G, sizes_G, len(cells), fractions)
    # A group far above the share of validation or test would fill it.
    most_C3 = np.minimum(2 * target_C3, target_C3.sum(1, keepdims=True) / 2)
    most_C3[:, 0] = np.inf
    most_C3[target_C3[:, 0] <= 0] = np.inf
    most_C3[target_C3 <= 0] = 0
    held_C3 = np.zeros_like(target_C3)
    split_G = np.zeros(len(songs_G), np.int64)
    order = np.random.default_rng(seed).permutation(len(songs_G)).tolist()
    for g in order:
        size, at = sizes_G[g], cells_G[g]
        with np.errstate(divide="ignore", invalid="ignore"):
            change = (size**2 - 2 * size * (target_C3[at] - held_C3[at])) / target_C3[at]
        split_G[g] = np.where(size <= most_C3[at], change, np.inf).sum(0).argmin()
        held_C3[at, split_G[g]] += size
    wanted = [i for i, fraction in enumerate(fractions) if fraction > 0]
    _fill(split_G, cells_G, sizes_G, order, list(cells), wanted)
    split_of = {i: SPLITS[split_G[g]] for g, songs in enumerate(songs_G) for i in songs}
    return [split_of[i] for i in range(len(groups))]


def check_fractions(fractions: Sequence[float]) -> None:
    """Rejects anything but three shares that sum to 1.

    Raises:
        ValueError: The fractions are negative or do not sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"split.fractions must be three shares that sum to 1, got {list(fractions)}"
        )


def _songs_of_groups(groups: Sequence[Hashable]) -> list[list[int]]:
    """The songs of each group; the order of the groups follows from their names alone."""
    songs: dict[Hashable, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        songs[group].append(i)
    return [songs[name] for name in sorted(songs, key=repr)]


def _most_frequent(strata: Sequence[Hashable]) -> Hashable:
    """The stratum of a group; of equally frequent ones always the same, in whatever order."""
    return min(Counter(strata).items(), key=lambda item: (-item[1], repr(item[0])))[0]


def _cells(stratum: Hashable, cells: dict[Hashable, int]) -> list[int]:
    """Number of the class of each label; new ones are added to ``cells``."""
    classes = stratum if isinstance(stratum, tuple) else (stratum,)
    return [cells.setdefault(one, len(cells)) for one in enumerate(classes)]


def _targets(
    cells_G: Sequence[Sequence[int]], sizes_G: Sequence[int], n: int, fractions: Sequence[float]
) -> Floats:
    """Songs that each split should hold of each class, shape (classes, 3)."""
    groups_C, songs_C = np.zeros(n), np.zeros(n)
    for at, size in zip(cells_G, sizes_G, strict=True):
        groups_C[at] += 1
        songs_C[at] += size
    target_C3 = np.array(fractions, np.float64) * songs_C[:, None]
    many = groups_C >= 3
    # One average group is the least that a split can hold.
    least_C3 = np.where(np.array(fractions) > 0, (songs_C / groups_C)[:, None], 0)
    target_C3[many, 1:] = np.maximum(target_C3, least_C3)[many, 1:]
    target_C3[many, 0] = songs_C[many] - target_C3[many, 1:].sum(1)
    return target_C3


def _fill(
    split_G: Longs,
    cells_G: Sequence[Sequence[int]],
    sizes_G: Sequence[int],
    order: Sequence[int],
    names: Sequence[Hashable],
    wanted: Sequence[int],
) -> None:
    """Moves small groups until each class with three groups or more is in every split.

    No class loses its last group in a split to another class.
    """
    groups_C: list[list[int]] = [[] for _ in names]
    counts_C3 = np.zeros((len(names), 3), np.int64)
    for g in order:
        counts_C3[cells_G[g], split_G[g]] += 1
        for c in cells_G[g]:
            groups_C[c].append(g)
    for c in sorted(range(len(names)), key=lambda c: (len(groups_C[c]), repr(names[c]))):
        for split in wanted:
            if len(groups_C[c]) < 3 or counts_C3[c, split]:
                continue
            spare = [g for g in groups_C[c] if (counts_C3[cells_G[g], split_G[g]] > 1).all()]
            if spare:
                # Of equally small groups one from the fullest split; then the first in ``order``.
                moved = min(spare, key=lambda g: (sizes_G[g], -counts_C3[c, split_G[g]]))
                counts_C3[cells_G[moved], split_G[moved]] -= 1
                counts_C3[cells_G[moved], split] += 1
                split_G[moved] = split


def assign_folds(
    strata: Sequence[Hashable], groups: Sequence[Hashable], n_folds: int, seed: int = 0
) -> Longs:
    """Fold of each song, from 0: whole groups, stratified by every label, a function of the seed.

    Groups are taken from the largest to the smallest, equally large ones in random order, to the
    fold in which the squared distance from an even share grows least, summed over the labels and
    relative to the size of a class; of equally good folds to the smallest. Where groups are single
    songs with one label, folds differ by at most one song of any class. ``strata`` and ``groups``
    are those of :func:`assign_splits`.
    """
    cells: dict[Hashable, int] = {}
    cells_S = [_cells(stratum, cells) for stratum in strata]
    songs_G = _songs_of_groups(groups)
    order = np.random.default_rng(seed).permutation(len(songs_G))
    total_C = np.bincount([c for at in cells_S for c in at], minlength=len(cells))
    held_KC = np.zeros((n_folds, len(cells)))
    sizes_K = np.zeros(n_folds, np.int64)
    fold_S = np.empty(len(strata), np.int64)
    for songs in sorted((songs_G[g] for g in order), key=lambda songs: -len(songs)):
        at, n_C = np.unique([c for i in songs for c in cells_S[i]], return_counts=True)
        growth_K = ((2 * held_KC[:, at] * n_C + n_C**2) / total_C[at]).sum(1)
        # The order of summing equal fractions must not decide.
        best = np.flatnonzero(growth_K <= growth_K.min() * (1 + 1e-9))
        fold = int(best[sizes_K[best].argmin()])
        held_KC[fold, at] += n_C
        sizes_K[fold] += len(songs)
        fold_S[songs] = fold
    return fold_S


@dataclass(frozen=True)
class Fold:
    """The songs of one part of a protocol.

    Attributes:
        name: Name of its folder: ``fold-2-of-5`` or ``source-groove``.
        rows: Song indices of ``train``, ``val`` and ``test``, ascending.
        hidden: For each label the songs, shape (songs,), whose class cannot be tested, since no
            training song has it; ``untestable`` is how many these are, by class.
        left_out: How many songs of other sources are in no split since they belong to a group of
            the left-out one.
    """

    name: str
    rows: Mapping[str, Longs]
    hidden: Mapping[str, Bools] = field(default_factory=dict)
    untestable: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    left_out: int = 0

    def visible(self, labels: Mapping[str, Longs]) -> dict[str, Longs]:
        """Class index of every song for each label, UNKNOWN where it cannot be tested."""
        return {k: np.where(self.hidden.get(k, False), UNKNOWN, of) for k, of in labels.items()}

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
        name: :data:`CROSSVAL`, with ``folds``, or :data:`BY_SOURCE`, with ``sources`` (None: all).
        part: Number of the part, from 1; None for all.
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
        """From what :func:`split_settings` gives; None for the prepared split.

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
        if name == CROSSVAL and (not _is_whole(folds) or folds < 2):
            raise UserError(f"protocol.folds={folds}; give a whole number, 2 or more")
        if sources is not None and (isinstance(sources, str) or not sources):
            raise UserError(f"protocol.sources={sources}; give a list, for instance [groove]")
        if part is not None and (not _is_whole(part) or part < 1):
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
            UserError: As :meth:`split`.
        """
        return list(self._parts(shards))

    def _parts(self, shards: ShardSet) -> dict[str, str]:
        """Folder of each part, and the source that it leaves out ("" in a cross-validation)."""
        if self.folds is not None:
            return {f"fold-{k}-of-{self.folds}": "" for k in range(1, self.folds + 1)}
        there = sorted(set(shards.manifest.column("source")))
        if len(there) < 2:
            raise UserError(
                f"protocol={BY_SOURCE}: all songs of {shards.folder} come from {there[0]!r}; give "
                "the songs as corpus=manifest with a column `source` (the collection of each "
                "file), or take protocol=crossval"
            )
        parts: dict[str, str] = {}
        for k, source in enumerate(dict.fromkeys(self.sources or there), 1):
            if source not in there:
                raise UserError(
                    f"protocol.sources: no source {source!r}; there is {', '.join(there)}"
                )
            name = f"source-{safe_name(source)}"
            parts[name if name not in parts else f"{name}-{k}"] = source
        return parts

    def split(self, shards: ShardSet, part: int | None = None) -> Fold:
        """The songs of a part, by its number from 1; their prepared split is ignored.

        Raises:
            UserError: There are too few groups or sources, there is no such source or part, or no
                song is left to train on.
        """
        k = self.part if part is None else part
        if k is None:
            raise ValueError("a protocol's songs depend on the part")
        parts = self._parts(shards)
        if k > len(parts):
            raise UserError(f"protocol.part={k}, but there are {len(parts)} parts: {list(parts)}")
        name, source = list(parts.items())[k - 1]
        groups, strata = song_groups(shards), song_strata(shards)
        if self.folds is None:
            here_S = np.array(shards.manifest.column("source"), object) == source
            # A copy in another collection would be trained on.
            touched = {groups[i] for i in np.flatnonzero(here_S).tolist()}
            rest_S = np.array([group not in touched for group in groups], bool)
        elif len(set(groups)) < self.folds:
            raise UserError(
                f"protocol.folds={self.folds}, but {shards.folder} has {len(set(groups))} "
                "groups of songs; set fewer folds"
            )
        else:
            here_S = assign_folds(strata, groups, self.folds, self.seed) == k - 1
            rest_S = ~here_S
        rest = np.flatnonzero(rest_S).tolist()
        if not rest:
            raise UserError("protocol: no song is left to train on")
        shares = (1 - self.val_share, self.val_share, 0.0)
        split_of_rest = np.array(
            assign_splits([strata[i] for i in rest], [groups[i] for i in rest], shares, self.seed)
        )
        rows = {split: np.array(rest)[split_of_rest == split] for split in ("train", "val")}
        left_out = int((~rest_S & ~here_S).sum())
        hidden, untestable, tested_S = {}, {}, np.zeros(len(shards), bool)
        indices = shards.label_indices()
        labels = [label for label in self.labels if label in indices and self.folds is None]
        for label in labels:
            class_S, classes = indices[label], shards.labels.classes[label]
            known_S = here_S & (class_S != UNKNOWN)
            hidden[label] = known_S & ~np.isin(class_S, class_S[rows["train"]])
            tested_S |= known_S & ~hidden[label]
            counts = np.bincount(class_S[hidden[label]], minlength=len(classes)).tolist()
            if any(counts):
                untestable[label] = {one: n for one, n in zip(classes, counts, strict=True) if n}
        rows["test"] = np.flatnonzero(tested_S if labels else here_S)
        return Fold(name, rows, hidden, untestable, left_out)


def split_settings(
    protocol: Mapping[str, Any] | None, split: Mapping[str, Any], labels: Sequence[str] = ()
) -> dict[str, Any] | None:
    """What a part depends on besides the songs, as plain data for checkpoints; None for holdout.

    ``protocol`` and ``split`` are those of the config, ``labels`` what a classifier learns.

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
    ids, *links = (shards.manifest.column(name) for name in _LINKS)
    roots = linked_groups(ids, *links)
    first: dict[str, str] = {}
    for song_id, root in zip(ids, roots, strict=True):
        first[root] = min(song_id, first.get(root, song_id))
    return [first[root] for root in roots]


def song_strata(shards: ShardSet) -> list[tuple[int, ...]]:
    """Class index of every label of each song; labels of no task too, so that tasks share folds."""
    indices = [values.tolist() for values in shards.label_indices().values()]
    return list(zip(*indices, strict=True)) if indices else [(0,)] * len(shards)


@dataclass(frozen=True)
class Subset:
    """The ``i``-th of ``n`` shares of the songs, so that two models can learn from different ones.

    A judge trained on the generator's songs would reward copies: train the one with ``fold=1/2``
    and the other with ``fold=2/2``.

    Songs that belong together (a group, duplicates) are always in the same share. It follows from
    the SHA-256 of ``group:NAME``, or of ``song:ID`` where a song stands alone: not from the split,
    a seed or the number of songs, and not from the tokenizer, except for duplicates without a
    group. Those go by the first that was kept, which another tokenizer or ``limit`` may reject.
    """

    i: int
    n: int

    @classmethod
    def from_config(cls, text: object) -> Subset:
        """The share that ``fold=i/n`` names.

        Raises:
            UserError: It is not written as ``i/n`` with i in 1 to n.
        """
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", str(text))
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"fold={text}: give i/n with i in 1 to n, for instance fold=1/2")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.i}/{self.n}"

    def mask(self, manifest: Iterable[Mapping[str, str]]) -> Bools:
        """Which songs of a manifest are in this share, shape (songs,)."""
        groups = linked_groups(*([row[name] for row in manifest] for name in _LINKS))
        # File names need not be UTF-8.
        hashes = (hashlib.sha256(g.encode(errors="surrogateescape")).digest() for g in groups)
        return np.array([int.from_bytes(h) % self.n == self.i - 1 for h in hashes], bool)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
