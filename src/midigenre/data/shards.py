"""Shards: songs as tokens and notes in Arrow IPC files.

One row is one song: its token stream, where each bar starts, its note table. The files are
memory-mapped, so that opening costs nothing and workers share the pages; any Arrow tool reads
them. The schema's metadata holds the token spec and the label names; a part is written whole under
another name and then renamed.
"""

from __future__ import annotations

import difflib
import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from midigenre.errors import UserError
from midigenre.files import read_csv, read_json, sha256, whole
from midigenre.song import NOTE_COLUMNS, NoteTable, Song, seconds_at
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.tokenizers.base import Encoded

FORMAT = 2
"""Version of the row layout; shards of another one are refused."""

_LISTS: Mapping[str, pa.DataType] = {
    "ids": pa.uint16(),  # T * F, step by step
    "bar_steps": pa.int32(),  # bars + 1
    "bar_tempo": pa.uint16(),  # bars
    "bar_ticks": pa.int32(),  # bars + 1
    "bar_onsets": pa.int32(),  # bars
    "meters": pa.uint8(),  # bars * 2
    "tempo_ticks": pa.int32(),
    "tempo_qpm": pa.float64(),
    "onset": pa.int32(),
    "duration": pa.int32(),
    "pitch": pa.uint8(),
    "velocity": pa.uint8(),
    "program": pa.int8(),
}


class Songs(Protocol):
    """What phrases are cut from: shards, or files that were just read."""

    def __len__(self) -> int: ...

    def encoded(self, index: int) -> Encoded:
        """Tokens of a song."""

    def song(self, index: int) -> Song:
        """Notes of a song."""

    def bar_onsets(self, index: int) -> NDArray[np.int32]:
        """Note onsets in each bar of a song."""

    def bar_seconds(self, index: int) -> NDArray[np.float64]:
        """Start of each bar of a song and, last, the end of its last one in seconds."""


class MemorySongs:
    """Songs that were just read and encoded."""

    def __init__(self, songs: Sequence[tuple[Song, Encoded]]) -> None:
        self._songs = songs

    def __len__(self) -> int:
        return len(self._songs)

    def encoded(self, index: int) -> Encoded:
        """See :class:`Songs`."""
        return self._songs[index][1]

    def song(self, index: int) -> Song:
        """See :class:`Songs`."""
        return self._songs[index][0]

    def bar_onsets(self, index: int) -> NDArray[np.int32]:
        """See :class:`Songs`."""
        return self._songs[index][0].onsets_per_bar()

    def bar_seconds(self, index: int) -> NDArray[np.float64]:
        """See :class:`Songs`."""
        return self._songs[index][0].bar_seconds()


def schema(tokens: TokenSpec, labels: LabelSpec) -> pa.Schema:
    """Arrow schema of a part, with both specs in its metadata."""
    columns = [pa.field("song_id", pa.string()), pa.field("tpq", pa.int32())]
    columns += [pa.field(label, pa.int16()) for label in labels.classes]
    columns += [pa.field(name, pa.list_(kind)) for name, kind in _LISTS.items()]
    metadata = {
        "midigenre.format": str(FORMAT),
        "midigenre.tokens": json.dumps(tokens.to_dict()),
        "midigenre.labels": json.dumps(labels.to_dict()),
    }
    return pa.schema(columns, metadata=metadata)


def to_row(song_id: str, labels: Mapping[str, int], song: Song, encoded: Encoded) -> dict[str, Any]:
    """A song as one row of a part."""
    row: dict[str, Any] = {"song_id": song_id, "tpq": song.tpq, **labels}
    row["ids"] = encoded.ids_TF.reshape(-1)
    row["bar_steps"], row["bar_tempo"] = encoded.bar_steps, encoded.bar_tempo
    row["bar_ticks"], row["bar_onsets"] = song.bar_ticks, song.onsets_per_bar()
    row["meters"] = song.meters.reshape(-1)
    row["tempo_ticks"], row["tempo_qpm"] = song.tempo_ticks, song.tempo_qpm
    return row | song.notes.columns()


def write_part(path: Path, rows: Sequence[Mapping[str, Any]], of: pa.Schema) -> str:
    """Writes a part whole and returns the SHA-256 of the file."""
    columns = []
    for column in of:
        kind = _LISTS.get(column.name)
        values = [row[column.name] for row in rows]
        if kind is not None:
            values = [np.asarray(v).astype(kind.to_pandas_dtype()) for v in values]
        elif column.type == pa.string():
            # File names need not be UTF-8, Arrow's text must; the manifest has them as they are.
            values = [os.fsencode(v).decode(errors="replace") for v in values]
        columns.append(pa.array(values, column.type))
    with (
        whole(path) as part,
        pa.OSFile(str(part), "wb") as sink,
        pa.ipc.new_file(sink, of) as writer,
    ):
        writer.write_table(pa.Table.from_arrays(columns, schema=of), max_chunksize=256)
    return sha256(path)


@dataclass(frozen=True)
class _Chunk:
    """Columns of one record batch as numpy arrays over the memory map."""

    offsets: dict[str, NDArray[np.int32]]
    values: dict[str, NDArray[Any]]
    tpq: NDArray[np.int32]

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> _Chunk:
        offsets, values = {}, {}
        for name in _LISTS:
            column = batch.column(name)
            offsets[name] = column.offsets.to_numpy()
            values[name] = column.values.to_numpy(zero_copy_only=True)
        return cls(offsets, values, batch.column("tpq").to_numpy())

    def get(self, name: str, row: int) -> NDArray[Any]:
        begin, end = self.offsets[name][row : row + 2]
        return self.values[name][begin:end]


class ShardSet:
    """A prepared corpus on disk.

    Attributes:
        folder: The folder ``shards/<corpus>-<tokenizer>-<hash>``.
        tokens: Vocabulary and tokenizer settings.
        labels: Class names of each label.
        manifest: Rows of ``manifest.csv``, in the order of the song indices.

    Raises:
        UserError: The folder holds no finished preparation, or one of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "spec.json").is_file():
            raise UserError(
                f"{self.folder} holds no prepared shards (no spec.json); "
                "make them with `midigenre prepare corpus=... tokenizer=...`"
            )
        spec = read_json(self.folder / "spec.json")
        if spec.get("format") != FORMAT:
            raise UserError(
                f"{self.folder} has shard format {spec.get('format')}, this version reads "
                f"{FORMAT}; run `midigenre prepare` again"
            )
        self.tokens = TokenSpec.from_dict(spec["tokens"])
        self.labels = LabelSpec.from_dict(spec["labels"])
        self.parts: list[dict[str, Any]] = spec["parts"]
        self.manifest = read_csv(self.folder / "manifest.csv")

    def __len__(self) -> int:
        return len(self.manifest)

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the files themselves; a mapped buffer cannot be sent to them.
        state = self.__dict__.copy()
        state.pop("_chunks", None)
        return state

    @cached_property
    def _chunks(self) -> tuple[list[_Chunk], list[int]]:
        chunks: list[_Chunk] = []
        sizes: list[int] = []
        for part in self.parts:
            path = self.folder / part["file"]
            if not path.is_file() or path.stat().st_size != part["bytes"]:
                raise UserError(
                    f"{path} is missing or not whole ({part['bytes']} bytes expected); delete "
                    f"{self.folder} and run `midigenre prepare` again"
                )
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            for i in range(reader.num_record_batches):
                batch = reader.get_batch(i)
                chunks.append(_Chunk.of(batch))
                sizes.append(batch.num_rows)
        return chunks, list(accumulate(sizes, initial=0))

    def _get(self, index: int, *names: str) -> list[NDArray[Any]]:
        chunks, starts = self._chunks
        which = bisect_right(starts, index) - 1
        return [chunks[which].get(name, index - starts[which]) for name in names]

    def encoded(self, index: int) -> Encoded:
        """See :class:`Songs`; the arrays lie in the memory map and are read-only."""
        ids, steps, tempo = self._get(index, "ids", "bar_steps", "bar_tempo")
        return Encoded(ids.reshape(-1, len(self.tokens.fields)), steps, tempo)

    def bar_onsets(self, index: int) -> NDArray[np.int32]:
        """See :class:`Songs`."""
        return self._get(index, "bar_onsets")[0]

    def bar_seconds(self, index: int) -> NDArray[np.float64]:
        """See :class:`Songs`; the notes are not read."""
        ticks, tempo_ticks, tempo_qpm = self._get(index, "bar_ticks", "tempo_ticks", "tempo_qpm")
        return seconds_at(ticks, tempo_ticks, tempo_qpm, self._tpq(index))

    def _tpq(self, index: int) -> int:
        chunks, starts = self._chunks
        which = bisect_right(starts, index) - 1
        return int(chunks[which].tpq[index - starts[which]])

    def song(self, index: int) -> Song:
        """See :class:`Songs`."""
        notes = NoteTable(*(c.astype(np.int32) for c in self._get(index, *NOTE_COLUMNS)))
        bar_ticks, meters, ticks, qpm = self._get(
            index, "bar_ticks", "meters", "tempo_ticks", "tempo_qpm"
        )
        return Song(
            notes=notes,
            tpq=self._tpq(index),
            bar_ticks=bar_ticks,
            meters=meters.reshape(-1, 2).astype(np.int32),
            tempo_ticks=ticks,
            tempo_qpm=qpm,
        )

    def label_indices(self) -> dict[str, NDArray[np.int64]]:
        """Class index of every song for each label, shape (songs,)."""
        encoded = [
            self.labels.encode({k: row[k] or None for k in self.labels.classes})
            for row in self.manifest
        ]
        return {k: np.array([e[k] for e in encoded], np.int64) for k in self.labels.classes}

    def rows(self, split: str | None) -> NDArray[np.int64]:
        """Indices of the songs of a split, or of all songs for None."""
        return np.array(
            [i for i, row in enumerate(self.manifest) if split is None or row["split"] == split],
            np.int64,
        )

    def index_of(self, song_id: str) -> int:
        """Index of a song by its id.

        Raises:
            UserError: There is no such song; the message names near ones.
        """
        ids = [row["song_id"] for row in self.manifest]
        if song_id not in ids:
            near = difflib.get_close_matches(song_id, ids, 3, 0.3) or ids[:3]
            raise UserError(f"no song {song_id!r} in {self.folder}; there is {', '.join(near)} ...")
        return ids.index(song_id)

    def verify(self) -> None:
        """Compares every part with its stored checksum.

        Raises:
            UserError: A part has changed since it was written; the message names it.
        """
        for part in self.parts:
            path = self.folder / part["file"]
            if not path.is_file() or sha256(path) != part["sha256"]:
                what = "is damaged (checksum differs)" if path.is_file() else "is missing"
                raise UserError(
                    f"{path} {what}; delete {self.folder} and run `midigenre prepare` again"
                )
