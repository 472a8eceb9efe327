"""Songs read, cleaned, encoded and written, part by part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import pyarrow as pa

from midigenre.corpora.base import Progress, SongRef
from midigenre.data.shards import to_row, write_part
from midigenre.errors import RefusedSongError
from midigenre.files import read_json, sha256, write_json
from midigenre.song import Song
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.tokenizers.base import Tokenizer, from_spec


def finished(folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """What an earlier, stopped run left of a part, if it is whole and of the same files."""
    marker = folder / f"{name}.done.json"
    if not marker.is_file():
        return None
    done: dict[str, Any] = read_json(marker)
    path = folder / f"{name}.arrow"
    if done["key"] != key or not path.is_file() or sha256(path) != done["part"]["sha256"]:
        return None
    return done


def make_part(
    folder: Path,
    name: str,
    key: str,
    chunk: Sequence[SongRef],
    labels: LabelSpec,
    tokenizer: Tokenizer,
    of: pa.Schema,
    parallel: joblib.Parallel,
    progress: Progress,
) -> dict[str, Any]:
    """Writes a part, and beside it what a later run needs to take it over.

    Args:
        folder: The shards' folder.
        name: Name of the part.
        key: Hash of the part's files, compared by :func:`finished`.
        chunk: Its songs.
        labels: The classes.
        tokenizer: Encodes in this process or, rebuilt from its spec, in workers.
        of: Schema of the part.
        parallel: The workers.
        progress: Called after every song.

    Returns:
        ``part`` (an entry of ``spec.json``), ``kept`` (rows of the manifest) and ``refused``.
    """
    rows: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    jobs = (
        joblib.delayed(_encode_in_worker)(ref, labels.encode(ref.labels), tokenizer.spec)
        for ref in chunk
    )
    made: Iterator[dict[str, Any]] = parallel(jobs)
    for i, (ref, row) in enumerate(zip(chunk, made, strict=True)):
        if "reason" in row:
            refused.append({"path": str(ref.path), **ref.labels, **row})
        else:
            repairs = row.pop("repairs")
            rows.append(row)
            kept.append(
                {"song_id": ref.song_id, "bars": len(row["bar_onsets"]), "notes": len(row["pitch"]),
                 "tokens": row.pop("tokens"), "repairs": json.dumps(repairs) if repairs else ""}
            )  # fmt: skip
        progress("encoding", i + 1, len(chunk))
    path = folder / f"{name}.arrow"
    checksum = write_part(path, rows, of)
    part = {"file": path.name, "songs": len(rows), "bytes": path.stat().st_size, "sha256": checksum}
    done = {"key": key, "part": part, "kept": kept, "refused": refused}
    write_json(folder / f"{name}.done.json", done)
    return done


def _encode_in_worker(ref: SongRef, labels: Mapping[str, int], spec: TokenSpec) -> dict[str, Any]:
    return encode(ref, labels, from_spec(spec))


def encode(ref: SongRef, labels: Mapping[str, int], tokenizer: Tokenizer) -> dict[str, Any]:
    """A row of a part, or the reason for which the song is refused."""
    try:
        song = _read(ref, tokenizer)
        encoded = tokenizer.encode(song)
    except RefusedSongError as error:
        return {"song_id": ref.song_id, "reason": error.reason, "detail": error.detail}
    row = to_row(ref.song_id, labels, song, encoded)
    return row | {"repairs": song.repairs, "tokens": len(encoded.ids_TF)}


def usable(ref: SongRef, tokenizer: Tokenizer) -> bool:
    """Whether a song can be read and cleaned; a few milliseconds, as nothing is encoded."""
    try:
        _read(ref, tokenizer)
    except RefusedSongError:
        return False
    return True


def _read(ref: SongRef, tokenizer: Tokenizer) -> Song:
    try:
        data = ref.path.read_bytes()
    except OSError as error:
        raise RefusedSongError("missing", error.strerror or str(error)) from error
    return tokenizer.read(data)
