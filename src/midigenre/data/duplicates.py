"""Duplicates: songs with equal bytes, equal notes or nearly the same melodies stay in one split.

At least a fifth of Lakh's files are duplicates (arXiv 2509.16662): a model that was trained on the
test songs in another key scores well and has learned little. Near duplicates are found in
:mod:`.near`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Bools, Longs, components
from midigenre.corpora.base import Progress, SongRef, Unusable
from midigenre.data.near import near_pairs
from midigenre.data.sandbox import Limits, song_bytes
from midigenre.errors import RefusedSongError
from midigenre.spec import SPLITS
from midigenre.wording import plural

GROUPINGS = ("none", "exact", "near")
KINDS = ("bytes", "notes", "near")
"""What links a song to its group, the strictest that holds."""

SHOWN = 10  # groups and conflicts that the report names; duplicates.csv has all

_BATCH = 64  # files that a thread hashes at a time
NAMED = 3  # copies of a song, or pairs of classes, that a message names


def file_digests(
    songs: Sequence[SongRef], limits: Limits, n_workers: int, progress: Progress
) -> dict[str, bytes]:
    """SHA-256 of the bytes of each file; empty for one that cannot be read (rejected later)."""
    found: dict[str, bytes] = {}
    # Reading and hashing release the interpreter lock: threads are enough.
    parallel = joblib.Parallel(
        n_jobs=n_workers, prefer="threads", return_as="generator", batch_size=_BATCH
    )
    digests = parallel(joblib.delayed(_digest)(ref, limits) for ref in songs)
    for ref, digest in zip(songs, digests, strict=True):
        found[ref.song_id] = digest
        progress("hashing", len(found), len(songs))
    return found


def _digest(ref: SongRef, limits: Limits) -> bytes:
    try:
        return hashlib.sha256(song_bytes(ref, limits)).digest()
    except RefusedSongError:
        return b""


def without_conflicts(
    songs: Sequence[SongRef], digests: Mapping[str, bytes], labels: Sequence[str]
) -> tuple[list[SongRef], dict[str, str], list[Unusable], list[str]]:
    """Takes out byte-identical files with different labels.

    Args:
        songs: The songs.
        digests: Of :func:`file_digests`.
        labels: Names of the labels.

    Returns:
        The songs that are left; for each of them that has copies the id of the first one; the
        others with the reason ``label_conflict``; remarks that name the pairs of classes.
    """
    by_digest: dict[bytes, list[SongRef]] = defaultdict(list)
    times = Counter(digests[song.song_id] for song in songs)
    for song in songs:
        if times[digests[song.song_id]] > 1 and digests[song.song_id]:
            by_digest[digests[song.song_id]].append(song)
    refused: list[Unusable] = []
    duplicate_of: dict[str, str] = {}
    classes: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for same in by_digest.values():
        carried = {label: {song.labels.get(label) for song in same} for label in labels}
        differing = {label: names for label, names in carried.items() if len(names) > 1}
        if not differing:
            duplicate_of |= {s.song_id: same[0].song_id for s in same}
            continue
        for label, names in differing.items():
            classes[label, tuple(sorted(repr(name) if name else "none" for name in names))] += 1
        for i, song in enumerate(same):
            others = [*same[:i], *same[i + 1 :]] if i < NAMED else same[:NAMED]
            named = "; ".join(
                f"{o.path} ({', '.join(str(v) for v in o.labels.values())})" for o in others[:NAMED]
            )
            more = len(same) - 1 - NAMED
            detail = f"the same bytes as {named}" + (f" and {more} more" if more > 0 else "")
            refused.append(Unusable(song.song_id, song.path, "label_conflict", detail, song.labels))
    bad = {song.song_id for song in refused}
    remarks = [
        f"{plural(n, 'song stands', 'songs stand')} under {label} {' and '.join(names)}: "
        "every copy is refused (label_conflict in refused.csv)"
        for (label, names), n in classes.most_common(NAMED)
    ]
    if len(classes) > NAMED:
        rest = sum(classes.values()) - sum(n for _, n in classes.most_common(NAMED))
        remarks.append(f"{rest:,} more stand under {len(classes) - NAMED} other pairs of classes")
    return [s for s in songs if s.song_id not in bad], duplicate_of, refused, remarks


def without_leaks(
    songs: Sequence[SongRef], duplicate_of: Mapping[str, str]
) -> tuple[list[SongRef], list[Unusable], list[str]]:
    """Takes copies out where the source's own splits hold the same bytes twice.

    A given test set stays as it is, so that its scores compare with others': the copies in training
    go, then those in validation.

    Returns:
        The songs that are left, the others with the reason ``split_conflict``, and remarks.
    """
    best: dict[str, SongRef] = {}
    for song in songs:
        first = duplicate_of.get(song.song_id)
        if song.split is None or first is None:
            continue
        held = best.setdefault(first, song)
        if SPLITS.index(song.split) > SPLITS.index(held.split or song.split):
            best[first] = song
    kept: list[SongRef] = []
    refused: list[Unusable] = []
    for song in songs:
        held = best.get(duplicate_of.get(song.song_id, ""), song)
        if held.split == song.split:
            kept.append(song)
        else:
            detail = f"given as {song.split}, but {held.path} in {held.split} has the same bytes"
            refused.append(Unusable(song.song_id, song.path, "split_conflict", detail, song.labels))
    if not refused:
        return kept, refused, []
    remark = (
        f"{plural(len(refused), 'song')} with a byte-identical copy in a later one of the given "
        f"splits refused; the first: {refused[0].song_id} (split_conflict in refused.csv)"
    )
    return kept, refused, [remark]


def linked_groups(
    ids: Sequence[str], groups: Sequence[str | None], first_copies: Sequence[str | None]
) -> list[str]:
    """One name for all songs that are linked by a group or by being duplicates (union-find).

    Args:
        ids: Id of each song.
        groups: Its group, if any.
        first_copies: The first song of its group of duplicates, if any.
    """
    parent: dict[str, str] = {}

    def find(x: str) -> str:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for song_id, group, first in zip(ids, groups, first_copies, strict=True):
        if group:
            parent[find(f"song:{song_id}")] = find(f"group:{group}")
        if first:
            parent[find(f"song:{song_id}")] = find(f"bytes:{first}")
    return [find(f"song:{song_id}") for song_id in ids]


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
        if len(classes := Counter(songs[i].labels.get(label) or "(none)" for i in of)) > 1
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
