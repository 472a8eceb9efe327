"""Byte-identical files: the same song under two names, two labels or in two splits."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import joblib

from midigenre.corpora.base import Progress, SongRef, Unusable
from midigenre.data.encode import song_bytes
from midigenre.data.guard import Limits
from midigenre.data.split import SPLITS
from midigenre.errors import RefusedSongError
from midigenre.wording import plural

_BATCH = 64  # files that a thread hashes at a time
NAMED = 3  # copies of a song, or pairs of classes, that a message names


def file_digests(
    songs: Sequence[SongRef], limits: Limits, n_workers: int, progress: Progress
) -> dict[str, bytes]:
    """SHA-256 of the bytes of each file; empty for one that cannot be read (refused later)."""

    def digests(some: Sequence[SongRef]) -> list[bytes]:
        return [_digest(ref, limits) for ref in some]

    found: dict[str, bytes] = {}
    batches = [songs[i : i + _BATCH] for i in range(0, len(songs), _BATCH)]
    # Reading and hashing release the interpreter lock: threads are enough.
    parallel = joblib.Parallel(n_jobs=n_workers, prefer="threads", return_as="generator")
    for some, values in zip(
        batches, parallel(joblib.delayed(digests)(b) for b in batches), strict=True
    ):
        for ref, value in zip(some, values, strict=True):
            found[ref.song_id] = value
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


def linked_groups(songs: Sequence[SongRef], duplicate_of: Mapping[str, str]) -> list[str]:
    """One name for all songs that are linked by a group or by equal bytes (union-find)."""
    parent: dict[str, str] = {}

    def find(x: str) -> str:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for song in songs:
        for link in (
            f"group:{song.group}" if song.group else None,
            f"bytes:{duplicate_of[song.song_id]}" if song.song_id in duplicate_of else None,
        ):
            if link is not None:
                parent[find(f"song:{song.song_id}")] = find(link)
    return [find(f"song:{s.song_id}") for s in songs]
