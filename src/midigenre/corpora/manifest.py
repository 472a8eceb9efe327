"""A table that names MIDI files, their labels, groups and splits."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from upath import UPath

from midigenre.corpora.base import (
    Corpus,
    Listing,
    Progress,
    SongRef,
    Unusable,
    check_label_names,
    no_progress,
    stratified,
)
from midigenre.errors import RejectedSongError, UserError
from midigenre.files import check_regular, csv_value, read_bytes
from midigenre.storage import Location, entries, is_remote, location, naming, stamp, unopened

MAX_MANIFEST_BYTES = 2**30
"""Largest table: a row has some 100 bytes."""

LABELS = ("genre", "emotion")
"""Columns that are labels where ``corpus.labels`` names none."""

SPLIT_NAMES = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
"""Accepted values of ``split``, in lower case, and their meaning."""

_DELIMITERS = ",;\t|"
_OURS = ("path", "song_id", "group", "split", "source")

_Rows = list[tuple[int, dict[str, str]]]  # the line of each, and its cells by column


class Manifest(Corpus):
    """A CSV file with a row for each song.

    The columns ``path`` and the labels are needed; ``song_id`` (the path if it is not there),
    ``group``, ``split`` and ``source`` are used where they are there, whatever their case and
    order; other columns are kept in the shards' ``manifest.csv``. Rows with one ``song_id`` are
    versions of a song and, like those of a group, never lie in two splits that are made here. The
    file is UTF-8, with or without a byte order mark, with commas, semicolons, tabs or bars between
    the cells.

    Args:
        path: The CSV file, here or its URL in a store.
        root: Folder that paths in it are relative to, or its URL; the file's own if None. A row
            may also have a URL of its own.
        labels: Columns that are labels, the main one first; ``genre`` and ``emotion``, as far as
            they are there, if None. An empty cell is an unknown label.
        limit: At most this many songs, stratified.
        tracks: See :class:`~midigenre.corpora.base.Corpus`.

    Raises:
        UserError: The file or the folder is not there, or its header lacks a column.
    """

    name = "manifest"

    def __init__(
        self,
        path: str | None = None,
        root: str | None = None,
        labels: Sequence[str] | str | None = None,
        limit: int | None = None,
        tracks: str = "all",
    ) -> None:
        super().__init__(limit, tracks)
        if path is None:
            raise UserError(
                "corpus 'manifest' needs corpus.path=FILE.csv with the columns path and genre "
                "(and emotion, song_id, group, split, source if you like)"
            )
        self.path = location(path)
        if isinstance(self.path, Path):
            try:
                check_regular(os.stat(self.path).st_mode, self.path)
            except OSError as error:
                gone = isinstance(error, FileNotFoundError)
                what = " does not exist" if gone else f": {unopened(error).detail}"
                raise UserError(f"corpus.path={self.path}{what}; give a CSV file") from error
        self.root = self.path.parent if root is None else location(root)
        if isinstance(self.root, Path) and not os.path.isdir(self.root):
            raise UserError(f"corpus.root={self.root} is not a folder; paths are relative to it")
        with naming(self.path):
            self._data = read_bytes(self.path, MAX_MANIFEST_BYTES + 1)
        if len(self._data) > MAX_MANIFEST_BYTES:
            raise UserError(
                f"{self.path} is larger than {MAX_MANIFEST_BYTES:,} bytes; is it a table?"
            )
        wanted = list(dict.fromkeys([labels] if isinstance(labels, str) else labels or LABELS))
        _, header = next(self._records(), (0, None))
        if header is None:
            raise UserError(
                f"{self.path} is empty; its first line names the columns: path,genre, and emotion, "
                "song_id, group, split, source if you like"
            )
        # Columns that mean something here may be written in any case.
        known = {name.lower(): name for name in (*_OURS, *wanted)}
        names = [known.get(c.strip().lower(), c.strip()) for c in header]
        self._columns = [name or f"column {i + 1}" for i, name in enumerate(names)]
        self._check_columns(wanted, needed=labels is not None)
        self.labels = tuple(name for name in wanted if name in self._columns)

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each record that is not blank."""
        data = self._data
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise self._error(
                line, f"is not UTF-8 (byte 0x{data[error.start]:02x}); save the table as UTF-8"
            ) from error
        if "\0" in text:
            line = len(text[: text.index("\0")].splitlines())
            raise self._error(
                line, "holds a NUL character: the table is damaged, or not UTF-8; save it as UTF-8"
            )
        first = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
        delimiter = max(_DELIMITERS, key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        line = 1
        try:
            for cells in reader:
                if any(cells):
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise self._error(line, f"cannot be read: {error}; look at its quotes") from error

    def _error(self, line: int, what: str) -> UserError:
        return UserError(f"{self.path}: line {line} {what}")

    def _check_columns(self, wanted: Sequence[str], needed: bool) -> None:
        names = self._columns
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{self.path}: two columns are named {twice!r}; rename one")
        if "path" not in names:
            raise UserError(
                f"{self.path}: the first line names no column path; it has {', '.join(names)}"
            )
        missing = [name for name in wanted if name not in names]
        if missing if needed else len(missing) == len(wanted):
            raise UserError(
                f"{self.path} has no column {' or '.join(missing)}; it has {', '.join(names)}; "
                "choose with corpus.labels=[COLUMN,...]"
            )
        check_label_names("corpus.labels", wanted)

    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        """See :meth:`Corpus.songs`; files that are not there and rows without a label are rejected.

        Raises:
            UserError: The table contradicts itself; the message names its line.
        """
        rows: _Rows = []
        records = self._records()
        next(records)
        ours = "duplicate_group" in self._columns  # a manifest.csv of shards
        for line, cells in records:
            if len(cells) != len(self._columns):
                raise self._error(
                    line, f"has {len(cells)} cells, the header has {len(self._columns)}"
                )
            texts = [csv_value(cell.strip()) if ours else cell.strip() for cell in cells]
            rows.append((line, dict(zip(self._columns, texts, strict=True))))
        if not rows:
            raise UserError(f"{self.path} has a header but no row")
        self._check_unique("path", ((line, _normal(row["path"])) for line, row in rows))
        splits = self._splits(rows)
        by_id: dict[str, list[int]] = defaultdict(list)
        for line, row in rows:
            by_id[row.get("song_id", "")].append(line)
        # Versions of one song: several rows have its id.
        versions = {song_id: of for song_id, of in by_id.items() if song_id and len(of) > 1}
        ids = []
        for line, row in rows:
            song_id = row.get("song_id", "")
            ids.append(("" if song_id in versions else song_id) or row["path"] or f"line {line}")
        self._check_unique("id", zip((line for line, _ in rows), ids, strict=True))
        groups = self._groups(rows, versions)

        found: list[SongRef] = []
        unusable: list[Unusable] = []
        places = [self._place(row["path"]) for _, row in rows]
        stamps, rejections = _stamps_of(places)
        for i, (line, row) in enumerate(rows):
            text = str(places[i])
            labels: dict[str, str | None] = {label: row[label] or None for label in self.labels}
            reason, detail = "", f"line {line} of {self.path.name}"
            if not row["path"]:
                reason, detail = "missing", f"line {line} has no path"
            elif not stamps.get(text):
                why = rejections.get(text) or RejectedSongError("missing", "no such file")
                reason, detail = why.reason, f"{detail}: {why.detail}"
            elif not any(labels.values()):
                reason, detail = "unlabelled", f"{detail} has no {' or '.join(self.labels)}"
            if reason:
                unusable.append(Unusable(ids[i], places[i], reason, detail, labels))
            else:
                source = row.get("source", "")
                extra = {k: v for k, v in row.items() if k not in (*_OURS, *self.labels)}
                about = groups[i], source, extra, splits[i], stamps[text]
                found.append(SongRef(ids[i], places[i], labels, *about))
            progress("listing", len(found), 0)
        if not found:
            first = unusable[0]
            raise UserError(
                f"{self.path}: none of its {len(rows)} songs can be used; the first: {first.path}: "
                f"{first.reason} ({first.detail})"
            )
        remarks = []
        if versions:
            song_id, lines = next(iter(versions.items()))
            remarks.append(
                f"{sum(map(len, versions.values())):,} rows of {self.path.name} share "
                f"{len(versions):,} song_ids: each set stays in one split and its paths are the "
                f"ids; the first: {song_id!r} in lines {lines[0]} and {lines[1]}"
            )
        alone = [song.song_id for song in found if song.group is None]
        if "group" in self._columns and alone:
            remarks.append(
                f"{len(alone):,} of {len(found):,} songs have no group in {self.path.name} and "
                f"stand alone; the first: {alone[0]}"
            )
        return Listing(stratified(found, self.limit), unusable, remarks)

    def _place(self, path: str) -> Location:
        """Where a row's file lies: a URL, an absolute path here, or below the root."""
        if is_remote(path):
            return location(path)
        if isinstance(self.root, Path):
            return self.root / path
        return Path(path) if path.startswith("/") else self.root / _normal(path)

    def _check_unique(self, what: str, values: Iterable[tuple[int, str]]) -> None:
        seen: dict[str, int] = {}
        twice = [
            (seen[value], line, value)
            for line, value in values
            if value and seen.setdefault(value, line) != line
        ]
        if twice:
            first, second, value = twice[0]
            more = f" ({len(twice) - 1} more are repeated)" if len(twice) > 1 else ""
            raise UserError(
                f"{self.path}: lines {first} and {second} have the same {what} {value!r}{more}; "
                "keep one"
            )

    def _splits(self, rows: _Rows) -> list[str | None]:
        """The given split of each row; None for all where the table gives none."""
        given = [(line, row.get("split", "")) for line, row in rows]
        if not any(text for _, text in given):
            return [None] * len(rows)
        for line, text in given:
            if not text:
                raise self._error(line, "has no split, but others have; give all or none")
            if text.lower() not in SPLIT_NAMES:
                raise self._error(line, f"has split {text!r}; write train, val or test")
        return [SPLIT_NAMES[text.lower()] for _, text in given]

    def _groups(self, rows: _Rows, versions: dict[str, list[int]]) -> list[str | None]:
        """The group of each row; versions of one song, which name at most one group, share it."""
        given: dict[str, tuple[int, str]] = {}
        for line, row in rows:
            song_id, group = row.get("song_id", ""), row.get("group")
            if song_id in versions and group:
                where, held = given.setdefault(song_id, (line, group))
                if held != group:
                    raise UserError(
                        f"{self.path}: song_id {song_id!r} is in group {held!r} (line {where}) "
                        f"and in {group!r} (line {line}); give its rows one group"
                    )
        return [
            given.get(song_id, (0, f"song_id {song_id}"))[1]
            if (song_id := row.get("song_id", "")) in versions
            else row.get("group") or None
            for _, row in rows
        ]


def _stamps_of(
    places: Sequence[Location],
) -> tuple[dict[str, str], dict[str, RejectedSongError]]:
    """Size and version of each file that is there, by its place, and why others cannot be read.

    A store is listed once, from the deepest folder that holds all of its files that are named;
    only a web server is asked for each file.
    """
    found: dict[str, str] = {}
    rejections: dict[str, RejectedSongError] = {}
    stores: dict[tuple[str, str], list[str]] = defaultdict(list)
    for place in places:
        text = str(place)
        if isinstance(place, UPath) and place.protocol not in ("http", "https"):
            protocol, _, path = text.partition("://")
            stores[protocol, path.split("/")[0]].append(path)
            continue
        try:
            found[text] = stamp(place)
        except (OSError, ValueError) as error:
            rejections[text] = unopened(error)
        except UserError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    for (protocol, _), paths in stores.items():
        folder = f"{protocol}://{os.path.commonpath([p.rpartition('/')[0] for p in paths])}"
        for entry in entries(location(folder), hidden=True):
            found[f"{folder}/{entry.name}"] = entry.stamp
    return found, rejections


def _normal(path: str) -> str:
    return os.path.normpath(path) if path else ""
