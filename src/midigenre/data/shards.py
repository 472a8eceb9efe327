"""Shards: songs as tokens and notes in Arrow IPC files, with a manifest.

One row is one song: its token stream, where each bar starts, its note table. The files are
memory-mapped, so that opening costs nothing and workers share the pages; any Arrow tool reads
them. The schema's metadata holds the token spec and the label names; a file is written whole under
another name and then renamed.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import os
import time
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow.csv import ConvertOptions, ParseOptions, read_csv
from upath import UPath

from midigenre.arrays import Floats, Ints, Longs
from midigenre.corpora.base import Progress, no_progress
from midigenre.errors import UserError
from midigenre.files import csv_cell, csv_value, read_bytes, sha256, share_lock, whole, write_json
from midigenre.midi.song import NOTE_COLUMNS, NoteTable, Song, seconds_at
from midigenre.registry import reading
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.storage import Location, exists, local_copy, naming, read_object
from midigenre.tokenizers.base import Encoded
from midigenre.wording import first_few

FORMAT = 5
"""Format version that is written, and the only one that is read."""

_TABLES = ("manifest.csv", "refused.csv", "duplicates.csv")
_SUM = "sha256"  # of the rest of spec.json, in it
_CHANGED = "it has changed since it was written: its checksum differs"
_PATIENCE = 20  # tenths of a second
_ROWS = 4096  # of a manifest that are read at a time

_LISTS: Mapping[str, pa.DataType] = {
    "ids": pa.uint16(),  # T * F, step by step
    "bar_steps": pa.int32(),  # bars + 1
    "bar_tempo": pa.uint16(),  # bars
    "bar_ticks": pa.int32(),  # bars + 1
    "bar_onsets": pa.int32(),  # bars
    "meters": pa.uint8(),  # bars * 2
    "tempo_ticks": pa.int32(),
    "tempo_qpm": pa.float64(),
    "file_seconds": pa.float32(),  # bars + 1
    "onset": pa.int32(),
    "duration": pa.int32(),
    "pitch": pa.uint8(),
    "velocity": pa.uint8(),
    "program": pa.int8(),
}


def remedy(folder: Location) -> str:
    """The remedy for damaged shards."""
    return (
        f"remove these shards (`midigenre prepare clean={folder.name}`, or delete {folder}) and "
        "run `midigenre prepare` again"
    )


def _damaged(file: Location, problem: str | Exception) -> UserError:
    if isinstance(problem, Exception):
        said = " ".join(str(problem).split()) or "it is empty"
        problem = problem.strerror or said if isinstance(problem, OSError) else said
    return UserError(f"{file} is damaged ({problem}); {remedy(file.parent)}")


def _text(packed: bytes) -> str:
    return csv_value(packed.decode("utf-8", "surrogateescape"))


class ManifestTable:
    """Rows of a CSV file: a row reads as a dict, columns are stored packed.

    A hundred thousand rows as dicts of texts take some 200 MB, as columns a tenth of that. Texts
    are kept as bytes, for paths need not be UTF-8.

    Raises:
        UserError: The file is not there or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                header = next(csv.reader(file, strict=True))
            self._table = read_csv(
                path,
                parse_options=ParseOptions(newlines_in_values=True),
                convert_options=ConvertOptions(
                    column_types=dict.fromkeys(header, pa.binary()), check_utf8=False,
                    strings_can_be_null=False,
                ),
            ).combine_chunks()  # fmt: skip
        except (OSError, StopIteration, ValueError, csv.Error, pa.ArrowException) as error:
            raise _damaged(path, error) from error
        self.columns = [csv_value(name) for name in header]
        self._table = self._table.rename_columns(self.columns)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> dict[str, str]:
        row = self._table.slice(index, 1)
        return {name: _text(row[name][0].as_py()) for name in self.columns}

    def __iter__(self) -> Iterator[dict[str, str]]:
        for begin in range(0, len(self), _ROWS):
            some = self._table.slice(begin, _ROWS)
            texts = [[_text(t) for t in some[name].to_pylist()] for name in self.columns]
            for row in zip(*texts, strict=True):
                yield dict(zip(self.columns, row, strict=True))

    def column(self, name: str) -> list[str]:
        """One column."""
        return [_text(text) for text in self._table[name].to_pylist()]

    def codes(self, name: str, names: Sequence[str]) -> Longs:
        """Place of each row's text among ``names``, -1 where it is none of them."""
        packed = [csv_cell(n).encode("utf-8", "surrogateescape") for n in names]
        found = pc.index_in(self._table[name], value_set=pa.array(packed, pa.binary()))
        codes: Longs = found.fill_null(-1).to_numpy().astype(np.int64)
        return codes


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


def song_columns(song: Song, encoded: Encoded) -> dict[str, Any]:
    """The columns of a song's row in a part, in the types of the file."""
    columns: dict[str, Any] = {
        "ids": encoded.ids_TF.reshape(-1),
        "bar_steps": encoded.bar_steps,
        "bar_tempo": encoded.bar_tempo,
        "bar_ticks": song.bar_ticks,
        "bar_onsets": song.onsets_per_bar(),
        "meters": song.meters.reshape(-1),
        "tempo_ticks": song.tempo_ticks,
        "tempo_qpm": song.tempo_qpm,
        "file_seconds": song.file_seconds,
        **song.notes.columns(),
    }
    typed = {n: np.asarray(columns[n]).astype(k.to_pandas_dtype()) for n, k in _LISTS.items()}
    return {**typed, "tpq": song.tpq}


def write_part(path: Location, rows: Sequence[Mapping[str, Any]], of: pa.Schema) -> dict[str, Any]:
    """Writes a part whole, and gives its entry of ``spec.json``.

    ``rows`` have of each song ``song_id``, the class index of each label, and :func:`song_columns`.
    """
    columns = []
    for column in of:
        values = [row[column.name] for row in rows]
        if column.type == pa.string():
            # File names need not be UTF-8, Arrow's text must; the manifest has them unchanged.
            values = [os.fsencode(v).decode(errors="replace") for v in values]
        columns.append(pa.array(values, column.type))
    with whole(path) as part:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, of) as writer:
            writer.write_table(pa.Table.from_arrays(columns, schema=of), max_chunksize=256)
        size = part.stat().st_size
        return {"file": path.name, "songs": len(rows), "bytes": size, "sha256": sha256(part)}


def write_spec(
    folder: Location,
    corpus: str,
    tokens: TokenSpec,
    labels: LabelSpec,
    parts: Sequence[Mapping[str, Any]],
) -> None:
    """Writes ``spec.json``, with checksums of itself, the parts and the tables.

    ``parts`` are what :func:`write_part` returned; the tables lie in ``folder`` already.
    """
    spec = {
        "format": FORMAT,
        "corpus": corpus,
        "tokens": tokens.to_dict(),
        "labels": labels.to_dict(),
        "parts": list(parts),
        "tables": {name: sha256(folder / name) for name in _TABLES},
    }
    write_json(folder / "spec.json", spec | {_SUM: _sum_of(spec)})


def _sum_of(spec: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in spec.items() if key != _SUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _spec_of(folder: Location) -> tuple[dict[str, Any], bytes]:
    """Content of ``spec.json``, parsed and as it is.

    Raises:
        UserError: It is not there, damaged, of another format, or was changed.
    """
    path = folder / "spec.json"
    if not exists(path):
        raise UserError(
            f"{folder} holds no prepared shards (no spec.json); make them with `midigenre prepare "
            "corpus=... tokenizer=...`"
        )
    with naming(folder):
        data = read_bytes(path)
    spec = read_object(path, remedy(folder), data)
    if spec.get("format") != FORMAT:
        raise UserError(
            f"{folder} has shard format {spec.get('format')}, this version reads {FORMAT}; run "
            "`midigenre prepare` again (and `midigenre prepare clean=old` to remove what cannot be "
            "read)"
        )
    if spec.get(_SUM) != _sum_of(spec):
        raise _damaged(path, _CHANGED)
    return spec, data


def lock_file(folder: Path) -> Path:
    """The lock file beside a folder of shards: readers share it, others hold it exclusively."""
    real = Path(os.path.realpath(folder))
    return real.with_name(f"{real.name}.lock")


def open_shards(
    folder: Location, home: Path, progress: Progress = no_progress, finished: bool = True
) -> ShardSet:
    """Opens a prepared corpus; one in a store is copied to ``<home>/cache`` the first time.

    ``finished`` is False while the exclusive holder of its lock has yet to write the report.

    Raises:
        UserError: See :class:`ShardSet`; or the store is out of reach.
    """
    if not isinstance(folder, UPath):
        return ShardSet(folder, locked=not finished)
    spec, packed = _spec_of(folder)
    files = {part["file"]: part["sha256"] for part in spec["parts"]} | spec["tables"]
    if finished:
        files["report.json"] = None
    # Of the bytes that were read, so that a folder rewritten meanwhile is noticed.
    files["spec.json"] = hashlib.sha256(packed).hexdigest()
    return ShardSet(local_copy(folder, home / "cache", files, progress))


class ShardSet:
    """A prepared corpus on disk, checked for completeness when it is opened.

    ``spec.json`` and ``manifest.csv`` must have their checksums, and every part the size, the
    schema and the number of songs that ``spec.json`` names. The songs in the parts are not read
    for that: :meth:`verify` does. As long as the object lives, and processes that were forked
    meanwhile, it shares the lock of the folder, unless the caller has it (``locked``): nobody
    removes it.

    Attributes:
        tokens: Vocabulary and tokenizer settings.
        labels: Class names of each label.
        manifest: Rows of ``manifest.csv``, in the order of the song indices.
        parts: File, songs, bytes and SHA-256 of each part.
        tables: SHA-256 of each table beside the parts.

    Raises:
        UserError: The folder holds no finished preparation, one of another format, or one whose
            files are damaged, changed or do not belong together; or a process is preparing or
            removing it.
    """

    def __init__(self, folder: Path, locked: bool = False) -> None:
        self.folder = Path(folder)
        if not locked and self.folder.is_dir():
            self._share_lock()
        spec, _ = _spec_of(self.folder)
        with reading(self.folder / "spec.json", remedy(self.folder)):
            self.tokens = TokenSpec.from_dict(spec["tokens"])
            self.labels = LabelSpec.from_dict(spec["labels"])
            self.parts: list[dict[str, Any]] = spec["parts"]
            self.tables: dict[str, str] = spec["tables"]
        path = self.folder / "manifest.csv"
        self.manifest = ManifestTable(path)
        n_songs = self._batches[1][-1]
        if len(self.manifest) != n_songs:
            raise _damaged(path, f"it has {len(self.manifest):,} rows for {n_songs:,} songs")
        if sha256(path) != self.tables[path.name]:
            raise _damaged(path, _CHANGED)

    def _share_lock(self) -> None:
        handle = None
        try:
            for _ in range(_PATIENCE):  # `prepare list=true` locks it for a moment
                handle = share_lock(lock_file(self.folder))
                if handle is not None:
                    break
                time.sleep(0.1)
        except OSError:  # on a read-only disk, or one without locks, nobody else has one either
            return
        if handle is None:
            raise UserError(
                f"{self.folder} is being prepared or removed by another process; try again later"
            )
        weakref.finalize(self, os.close, handle)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the files themselves; a mapped buffer cannot be sent to them.
        return {k: v for k, v in self.__dict__.items() if k != "_batches"}

    @cached_property
    def _batches(self) -> tuple[list[dict[str, tuple[Ints, NDArray[Any]]]], list[int]]:
        """Offsets and values of the columns of each record batch, and where each one starts."""
        batches: list[dict[str, tuple[Ints, NDArray[Any]]]] = []
        sizes: list[int] = []
        expected = schema(self.tokens, self.labels)
        for part in self.parts:
            path = self.folder / part["file"]
            try:
                if (size := path.stat().st_size) != part["bytes"]:
                    raise ValueError(f"it has {size:,} bytes, not {part['bytes']:,}")
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
                if not reader.schema.equals(expected, check_metadata=True):
                    raise ValueError("it is a part of other shards")
                found = [reader.get_batch(i) for i in range(reader.num_record_batches)]
                if (n := sum(batch.num_rows for batch in found)) != part["songs"]:
                    raise ValueError(f"it has {n:,} songs, not {part['songs']:,}")
                for batch in found:
                    batch.validate(full=True)  # of the lists it reads where each one ends
                    columns = {"tpq": (np.arange(batch.num_rows + 1, dtype=np.int32),
                                       batch.column("tpq").to_numpy())}  # fmt: skip
                    for name in _LISTS:
                        column = batch.column(name)
                        values = column.values.to_numpy(zero_copy_only=True)
                        columns[name] = column.offsets.to_numpy(), values
                    batches.append(columns)
                    sizes.append(batch.num_rows)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise _damaged(path, error) from error
        return batches, list(accumulate(sizes, initial=0))

    def _get(self, index: int, *names: str) -> list[NDArray[Any]]:
        """Columns of a song, as read-only arrays over the memory map."""
        batches, starts = self._batches
        which = bisect_right(starts, index) - 1
        row = index - starts[which]
        found = []
        for name in names:
            offsets, values = batches[which][name]
            found.append(values[offsets[row] : offsets[row + 1]])
        return found

    def encoded(self, index: int) -> Encoded:
        """Tokens of a song; the arrays lie in the memory map and are read-only."""
        ids, steps, tempo = self._get(index, "ids", "bar_steps", "bar_tempo")
        return Encoded(ids.reshape(-1, len(self.tokens.fields)), steps, tempo)

    def bar_onsets(self, index: int) -> Ints:
        """Note onsets in each bar of a song."""
        return self._get(index, "bar_onsets")[0]

    def bar_seconds(self, index: int) -> Floats:
        """See :meth:`midigenre.midi.song.Song.bar_seconds`; the notes are not read."""
        names = ("bar_ticks", "tempo_ticks", "tempo_qpm", "tpq")
        ticks, tempo_ticks, tempo_qpm, tpq = self._get(index, *names)
        return seconds_at(ticks, tempo_ticks, tempo_qpm, int(tpq[0]))

    def song(self, index: int) -> Song:
        """Notes of a song."""
        notes = NoteTable(*(c.astype(np.int32) for c in self._get(index, *NOTE_COLUMNS)))
        bar_ticks, meters, ticks, qpm, seconds, tpq = self._get(
            index, "bar_ticks", "meters", "tempo_ticks", "tempo_qpm", "file_seconds", "tpq"
        )
        return Song(
            notes=notes,
            tpq=int(tpq[0]),
            bar_ticks=bar_ticks,
            meters=meters.reshape(-1, 2).astype(np.int32),
            tempo_ticks=ticks,
            tempo_qpm=qpm,
            file_seconds=seconds.astype(np.float64),
        )

    def label_indices(self) -> dict[str, Longs]:
        """Class index of every song for each label, shape (songs,); UNKNOWN where it has none."""
        return {k: self.manifest.codes(k, names) for k, names in self.labels.classes.items()}

    def rows(self, split: str | None) -> Longs:
        """Indices of the songs of a split, or of all songs for None."""
        if split is None:
            return np.arange(len(self))
        return np.flatnonzero(self.manifest.codes("split", [split]) == 0)

    def index_of(self, song_id: str) -> int:
        """Index of a song by its id.

        Raises:
            UserError: There is no such song; the message names near ones.
        """
        ids = self.manifest.column("song_id")
        if song_id not in ids:
            near = difflib.get_close_matches(song_id, ids, 3, 0.3) or ids[:3]
            raise UserError(f"no song {song_id!r} in {self.folder}; there is {', '.join(near)} ...")
        return ids.index(song_id)

    def verify(self) -> None:
        """Compares every part and every table with its stored checksum.

        Raises:
            UserError: Some have changed since they were written; the message names them.
        """
        sums = {part["file"]: part["sha256"] for part in self.parts} | self.tables
        bad = []
        for name, expected in sums.items():
            path = self.folder / name
            if not path.is_file():
                bad.append(f"{path} is missing")
            elif sha256(path) != expected:
                bad.append(f"{path} is damaged (checksum differs)")
        if bad:
            raise UserError(f"{first_few(bad, '; ')}; {remedy(self.folder)}")
