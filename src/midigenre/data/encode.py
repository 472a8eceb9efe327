"""Songs read, cleaned, encoded and written, part by part.

A part is made by one process, which writes it where it belongs; only a summary goes back. What is
in it follows from the songs alone, so that the files are the same whoever makes them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.corpora.base import Progress, SongRef, no_progress
from midigenre.data.guard import Limits, file_bytes, shared_guard
from midigenre.data.read import DIGEST_BYTES, refusal
from midigenre.data.shards import schema, write_part
from midigenre.errors import RefusedSongError
from midigenre.files import read_bytes, read_json, sha256, write_bytes, write_json
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.storage import Location


@dataclass(frozen=True)
class Part:
    """A part to be made; it goes to a worker as it is.

    Attributes:
        folder: The shards' folder.
        index: Number of the part.
        songs: Its songs.
        digests: SHA-256 of each file, as it was listed; empty where it could not be read.
        labels: The classes.
        tokens: The tokenizer's spec.
        limits: What a file may cost.
    """

    folder: Location
    index: int
    songs: Sequence[SongRef]
    digests: Sequence[bytes]
    labels: LabelSpec
    tokens: TokenSpec
    limits: Limits

    @property
    def name(self) -> str:
        """Name of its files, without their endings."""
        return f"part-{self.index:05d}"

    @property
    def key(self) -> str:
        """Hash of what the part is made of."""
        found = hashlib.sha256()
        for song, digest in zip(self.songs, self.digests, strict=True):
            found.update(json.dumps(song.song_id).encode() + digest)
        return found.hexdigest()


@dataclass(frozen=True)
class Made:
    """What is known of a part's songs besides the part itself.

    Attributes:
        part: An entry of ``spec.json``.
        kept: Of each song that was kept its place in the part, and columns of the manifest.
        refused: Of each other song its place, and the reason.
        digests: Hash of the notes of each kept song, uint8 (kept, 16).
        sketches: Its sketch, for the search for near duplicates, uint32 (kept, S).
    """

    part: dict[str, Any]
    kept: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    digests: NDArray[np.uint8]
    sketches: NDArray[np.uint32]


def make_part(part: Part, progress: Progress = no_progress) -> int:
    """Writes a part, and beside it what :func:`made` reads, unless an earlier run has done so.

    Args:
        part: The part.
        progress: Called after every song.

    Returns:
        Number of its songs.

    Raises:
        OSError: The disk is full or cannot be written; nothing half-written is left.
    """
    if not finished(part):
        _make(part, progress)
    return len(part.songs)


def finished(part: Part) -> bool:
    """Whether an earlier, stopped run left the part whole, and of the same files."""
    marker = part.folder / f"{part.name}.done.json"
    if not marker.is_file():
        return False
    done = read_json(marker)
    return done["key"] == part.key and all(
        (path := part.folder / name).is_file() and sha256(path) == expected
        for name, expected in done["files"].items()
    )


def made(folder: Location, index: int) -> Made:
    """What :func:`make_part` noted of a part."""
    name = f"part-{index:05d}"
    done = read_json(folder / f"{name}.done.json")
    with np.load(io.BytesIO(read_bytes(folder / f"{name}.npz")), allow_pickle=False) as arrays:
        return Made(
            done["part"], done["kept"], done["refused"], arrays["digests"], arrays["sketches"]
        )


def forget(folder: Location, index: int) -> None:
    """Removes what only :func:`made` needs."""
    for ending in ("npz", "done.json"):
        (folder / f"part-{index:05d}.{ending}").unlink(missing_ok=True)


def _make(part: Part, progress: Progress) -> None:
    rows: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    digests: list[bytes] = []
    sketches: list[NDArray[np.uint32]] = []
    for i, (ref, answer) in enumerate(zip(part.songs, _answers(part), strict=True)):
        if "reason" in answer:
            refused.append({"at": i} | answer)
        else:
            digests.append(answer["notes_digest"])
            sketches.append(answer["sketch"])
            columns = answer["columns"]
            rows.append({"song_id": ref.song_id, **part.labels.encode(ref.labels), **columns})
            kept.append(
                {"at": i, "bars": len(columns["bar_onsets"]), "notes": len(columns["pitch"]),
                 "tokens": answer["tokens"], "repairs": answer["repairs"]}
                | ({"fallback": answer["fallback"]} if answer["fallback"] else {})
            )  # fmt: skip
        progress("encoding", i + 1, len(part.songs))
    about = write_part(part.folder / f"{part.name}.arrow", rows, schema(part.tokens, part.labels))
    arrays = io.BytesIO()
    np.savez(
        arrays,
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(len(kept), DIGEST_BYTES),
        sketches=np.array(sketches, np.uint32),
    )
    write_bytes(part.folder / f"{part.name}.npz", arrays.getvalue())
    files = {
        about["file"]: about["sha256"],
        f"{part.name}.npz": hashlib.sha256(arrays.getvalue()).hexdigest(),
    }
    # Last: it vouches for the others.
    write_json(
        part.folder / f"{part.name}.done.json",
        {"key": part.key, "files": files, "part": about, "kept": kept, "refused": refused},
    )


def _answers(part: Part) -> Iterator[dict[str, Any]]:
    for ref, digest in zip(part.songs, part.digests, strict=True):
        try:
            data = song_bytes(ref, part.limits)
        except RefusedSongError as error:
            yield refusal(error.reason, error.detail)
            continue
        if digest and hashlib.sha256(data).digest() != digest:
            yield refusal("changed", "it was written to while the corpus was being prepared")
        else:
            yield shared_guard().encode(data, part.tokens, part.limits)


def song_bytes(ref: SongRef, limits: Limits) -> bytes:
    """Bytes of a song's file, see :func:`midigenre.data.guard.file_bytes`."""
    listed = ref.stamp.partition(":")[0]
    return file_bytes(ref.path, limits, int(listed) if listed.isdigit() else None)
