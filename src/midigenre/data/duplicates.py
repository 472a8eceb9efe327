"""Byte-identical files: the same song under two names, or under two labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib

from midigenre.corpora.base import Progress, SongRef
from midigenre.files import sha256


def file_digests(songs: Sequence[SongRef], n_workers: int, progress: Progress) -> dict[str, str]:
    """SHA-256 of the bytes of each file; "" for one that cannot be read (refused later)."""

    def digest(path: Path) -> str:
        try:
            return sha256(path)
        except OSError:
            return ""

    found: dict[str, str] = {}
    # Hashing releases the interpreter lock: threads are enough.
    parallel = joblib.Parallel(n_jobs=n_workers, prefer="threads", return_as="generator")
    for ref, value in zip(
        songs, parallel(joblib.delayed(digest)(s.path) for s in songs), strict=True
    ):
        found[ref.song_id] = value
        progress("hashing", len(found), len(songs))
    return found


def without_conflicts(
    songs: Sequence[SongRef], digests: Mapping[str, str], labels: Sequence[str]
) -> tuple[list[SongRef], dict[str, str], list[dict[str, Any]]]:
    """Takes out byte-identical files with different labels; names the groups of the others."""
    by_digest: dict[str, list[SongRef]] = defaultdict(list)
    for song in songs:
        by_digest[digests[song.song_id] or song.song_id].append(song)
    refused: list[dict[str, Any]] = []
    duplicate_of: dict[str, str] = {}
    bad: set[str] = set()
    for same in by_digest.values():
        if len(same) == 1:
            continue
        if len({tuple(s.labels.get(k) for k in labels) for s in same}) > 1:
            for song in same:
                others = "; ".join(
                    f"{o.path} ({', '.join(str(v) for v in o.labels.values())})"
                    for o in same
                    if o is not song
                )
                bad.add(song.song_id)
                refused.append(
                    {"song_id": song.song_id, "path": str(song.path), **song.labels,
                     "reason": "label_conflict", "detail": f"the same bytes as {others}"}
                )  # fmt: skip
        else:
            duplicate_of |= {s.song_id: same[0].song_id for s in same}
    return [s for s in songs if s.song_id not in bad], duplicate_of, refused


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
