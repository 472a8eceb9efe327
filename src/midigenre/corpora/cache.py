"""A folder of MIDI files that a corpus makes once: named by its settings, locked, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from midigenre.corpora.base import Listing, SongRef, Unusable
from midigenre.files import read_json, write_json


def settings_folder(cache: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """``cache/<name>-<hash>``: corpora with other settings never share a folder."""
    text = json.dumps(dict(settings), sort_keys=True)
    return cache / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def cached_listing(
    cache: Path, name: str, settings: Mapping[str, Any], build: Callable[[Path], Listing]
) -> Listing:
    """The listing of a corpus that makes its own files, built on the first call only.

    Args:
        cache: Folder of all made corpora.
        name: Name of the corpus.
        settings: All that decides the files, with a format version.
        build: Makes the files in the folder it is given. It runs under a lock between processes;
            after an interruption it runs again and may find some of its files in the folder.

    Returns:
        What ``build`` returned. The index is written last, so that it vouches for every file; one
        that names a MIDI file which is gone is built again.
    """
    folder = settings_folder(cache, name, settings)
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.json"
    with FileLock(cache / f"{folder.name}.lock"):
        if index.exists():
            try:
                return _stamped(_read(index), folder.name)
            except FileNotFoundError:
                pass
        listing = build(folder)
        _write(index, settings, listing)
        return _stamped(listing, folder.name)


def _stamped(listing: Listing, version: str) -> Listing:
    """The listing with stamps; a file that was lost and made again has the same one.

    Raises:
        FileNotFoundError: One is gone.
    """
    return replace(
        listing,
        songs=[
            replace(song, stamp=f"{os.stat(str(song.path)).st_size}:{version}")
            for song in listing.songs
        ],
    )


def _write(index: Path, settings: Mapping[str, Any], listing: Listing) -> None:
    """Song paths are kept relative to the index, so that the cache can be moved."""
    songs = []
    for song in listing.songs:
        row = asdict(song) | {"path": os.path.relpath(str(song.path), index.parent)}
        del row["stamp"]  # told anew from the file
        songs.append(row)
    unusable = [asdict(piece) | {"path": str(piece.path)} for piece in listing.unusable]
    write_json(index, {"settings": dict(settings), "songs": songs, "unusable": unusable})


def _read(index: Path) -> Listing:
    data = read_json(index)
    return Listing(
        [SongRef(**row | {"path": index.parent / row["path"]}) for row in data["songs"]],
        [Unusable(**row | {"path": Path(row["path"])}) for row in data["unusable"]],
    )
