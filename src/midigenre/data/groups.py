"""Groups of duplicates among prepared songs, and what a split that knows nothing of them leaks.

At least a fifth of Lakh's files are duplicates (arXiv 2509.16662): a model that has heard the test
songs in another key scores well and has learned little. Songs with equal bytes, equal notes or, in
:mod:`.near`, nearly the same melody lines make a group, and a group stays in one split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Bools, Longs, components
from midigenre.corpora.base import Progress, SongRef
from midigenre.data.near import near_pairs
from midigenre.data.split import SPLITS

GROUPINGS = ("none", "exact", "near")
KINDS = ("bytes", "notes", "near")
"""What links a song to its group, the strictest that holds."""

SHOWN = 10  # groups and conflicts that the report names; duplicates.csv has all


@dataclass(frozen=True)
class Duplicates:
    """Groups of songs that are the same music.

    Attributes:
        first: Place of the first song of each song's group, int64 (songs,); its own where it stands
            alone.
        kind: Index into :data:`KINDS`, int8 (songs,); -1 where it stands alone.
    """

    first: Longs
    kind: NDArray[np.int8]

    @property
    def grouped(self) -> Bools:
        """Which songs share a group with another, shape (songs,)."""
        return self.kind >= 0

    def members(self) -> dict[int, list[int]]:
        """Places of the songs of each group, by the first one; the largest group first."""
        found: dict[int, list[int]] = defaultdict(list)
        for i in np.flatnonzero(self.grouped).tolist():
            found[int(self.first[i])].append(i)
        return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def duplicates(
    file_digests: Sequence[bytes],
    note_digests: NDArray[np.uint8],
    sketches: NDArray[np.uint32],
    grouping: str,
    progress: Progress,
) -> Duplicates:
    """Finds the groups.

    Args:
        file_digests: Hash of each song's file; empty ones equal nothing.
        note_digests: Hash of its notes, shape (songs, bytes).
        sketches: Its sketch, shape (songs, S).
        grouping: ``none`` finds nothing, ``exact`` equal bytes and equal notes, ``near`` also the
            same piece in another key, tempo or arrangement.
        progress: Called during the search.
    """
    n = len(file_digests)
    if grouping == "none" or n == 0:
        return Duplicates(np.arange(n), np.full(n, -1, np.int8))
    codes = [
        _codes(file_digests),
        np.unique(note_digests, axis=0, return_inverse=True)[1].reshape(-1),
    ]
    links = [_chain(of) for of in codes]
    if grouping == "near":
        links.append(near_pairs(sketches, progress).reshape(-1, 2))
    pairs = np.concatenate(links)
    component = components(n, pairs)
    _, first, inverse, sizes = np.unique(
        component, return_index=True, return_inverse=True, return_counts=True
    )
    kind = np.where(sizes[inverse] > 1, KINDS.index("near"), -1).astype(np.int8)
    for i, of in reversed(list(enumerate(codes))):
        kind[np.bincount(of)[of] > 1] = i
    return Duplicates(first[inverse].astype(np.int64), kind)


def _codes(digests: Sequence[bytes]) -> Longs:
    """A number for each song, equal where the digests are."""
    known: dict[bytes, int] = {}
    return np.array(
        [known.setdefault(d or i.to_bytes(8, "big"), len(known)) for i, d in enumerate(digests)],
        np.int64,
    )


def _chain(codes: Longs) -> Longs:
    """Links each song to the next one with its number, shape (links, 2)."""
    order = np.argsort(codes, kind="stable")
    same = np.flatnonzero(np.diff(codes[order]) == 0)
    return np.stack([order[same], order[same + 1]], axis=1)


def kept_apart(given: Sequence[str], found: Duplicates) -> list[str]:
    """The splits that the source gives, without songs that have a duplicate in a later one.

    A given test set stays as it is, so that its scores compare with others'.

    Returns:
        The split of each song; "" for one that is left out.
    """
    best: dict[int, int] = {}
    for i in np.flatnonzero(found.grouped).tolist():
        first = int(found.first[i])
        best[first] = max(best.get(first, 0), SPLITS.index(given[i]))
    return [
        split if SPLITS.index(split) >= best.get(int(found.first[i]), 0) else ""
        for i, split in enumerate(given)
    ]


def leaked(splits: Sequence[str], found: Duplicates) -> dict[str, Any]:
    """Songs of validation and test whose duplicate is in training.

    Args:
        splits: A split of the songs, one that knows nothing of the groups for instance.
        found: The groups.

    Returns:
        ``songs``, how many there are, and ``share`` of all songs in validation and test.
    """
    in_train = {
        int(found.first[i]) for i in np.flatnonzero(found.grouped) if splits[int(i)] == SPLITS[0]
    }
    held_out = [i for i, split in enumerate(splits) if split in SPLITS[1:]]
    n = sum(bool(found.grouped[i]) and int(found.first[i]) in in_train for i in held_out)
    return {"songs": n, "share": round(n / len(held_out), 4) if held_out else None}


def duplicate_report(
    found: Duplicates, songs: Sequence[SongRef], labels: Sequence[str], grouping: str
) -> dict[str, Any]:
    """Numbers of groups, the largest ones, and the groups whose songs have different labels."""
    members = found.members()
    conflicts = [
        {"group": songs[first].song_id, "songs": len(of), "label": label, "classes": classes}
        for first, of in members.items()
        for label in labels
        if len(classes := Counter(_named(songs[i].labels, label) for i in of)) > 1
    ]
    return {
        "grouping": grouping,
        "groups": len(members),
        "songs": int(found.grouped.sum()),
        "share": round(float(found.grouped.mean()), 4) if len(songs) else None,
        "by_kind": {kind: int((found.kind == i).sum()) for i, kind in enumerate(KINDS)},
        "largest": [
            {"group": songs[first].song_id, "songs": len(of),
             "named": [songs[i].song_id for i in of[:SHOWN]]}
            for first, of in list(members.items())[:SHOWN]
        ],
        "label_conflicts": {"groups": len({c["group"] for c in conflicts}),
                            "named": conflicts[:SHOWN]},
    }  # fmt: skip


def duplicate_rows(
    found: Duplicates, songs: Sequence[SongRef], splits: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of ``duplicates.csv``: every song that is in a group, group by group."""
    return [
        {"group": songs[first].song_id, "kind": KINDS[found.kind[i]], "song_id": songs[i].song_id,
         "path": str(songs[i].path), "split": splits[i],
         **{k: v or "" for k, v in songs[i].labels.items()}}
        for first, of in found.members().items()
        for i in of
    ]  # fmt: skip


def _named(labels: Mapping[str, str | None], label: str) -> str:
    return labels.get(label) or "(none)"
