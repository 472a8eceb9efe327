"""The interface of every corpus: a list of songs with labels, as MIDI files on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from midigenre.errors import UserError
from midigenre.files import read_json, write_json
from midigenre.midi.song import TRACKS
from midigenre.storage import Location, place

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: called as songs are made or found."""


def no_progress(what: str, done: int, total: int) -> None:
    """A :data:`Progress` that shows nothing."""


_Row = TypeVar("_Row")
_NOTHING: Mapping[str, str] = {}  # one for all songs: an empty dict takes 64 bytes


def _path_as_text(row: type[_Row]) -> type[_Row]:
    """Keeps the field ``path`` as text and makes the path object on access.

    A Path takes some 500 bytes and a UPath 3,000, its text 100: a corpus of a hundred thousand
    songs is listed in every process.
    """
    slot: Any = row.__dict__["path"]  # the descriptor that @dataclass(slots=True) made

    def get(self: _Row) -> Location:
        return place(slot.__get__(self, row))

    def put(self: _Row, path: Location | str) -> None:
        slot.__set__(self, str(path))

    setattr(row, "path", property(get, put))  # noqa: B010 (mypy sees the field's own type)
    return row


@_path_as_text
@dataclass(frozen=True, slots=True)
class SongRef:
    """One song of a corpus: the unit that is split.

    Attributes:
        song_id: Unique in the corpus, stable between calls, readable (it appears in reports).
        path: The MIDI file, here or in a store; ``str(path)`` is its URL there.
        labels: Class name of each label, None where the song has none.
        group: Songs of one group never lie in two splits made here (movements of a work, parts of a
            movement, an artist); None means that the song stands alone.
        source: Where it comes from, for within-source scores; the corpus name if empty.
        extra: Additional columns for ``manifest.csv``.
        split: ``train``, ``val`` or ``test`` where the source says so. Either all songs of a corpus
            have one or none has.
        stamp: Size and version of the file, of :func:`midigenre.storage.stamp`, from the listing:
            it changes when the file does. Empty where the file is missing or was not looked up.
    """

    song_id: str
    path: Location
    labels: Mapping[str, str | None]
    group: str | None = None
    source: str = ""
    extra: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    split: str | None = None
    stamp: str = ""


@_path_as_text
@dataclass(frozen=True, slots=True)
class Unusable:
    """An item of the source that could not become a MIDI file; it goes to ``refused.csv``.

    Attributes:
        song_id: As in :class:`SongRef`.
        path: The source's own file.
        reason: A key of :data:`midigenre.midi.clean.REJECTIONS`.
        detail: What went wrong, in words.
        labels: As far as they are known.
    """

    song_id: str
    path: Location
    reason: str
    detail: str
    labels: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What :meth:`Corpus.songs` found, in a stable order.

    Attributes:
        songs: The usable songs.
        unusable: The rest.
        remarks: What a user should know about the source; the report shows it as warnings.
        left_out: Number of other files, by their ending.
    """

    songs: list[SongRef]
    unusable: list[Unusable] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)


# Columns of manifest.csv and the shards, and of what is computed from them.
_RESERVED = (
    "path", "song_id", "group", "split", "source", "duplicate_group", "duplicate_kind", "bars",
    "notes", "tokens", "repairs", "tpq", "songs", "share", "reason", "detail", "piece", "part",
    "first_bar", "end_bar",
)  # fmt: skip


def check_label_names(setting: str, names: Iterable[str]) -> None:
    """Rejects what cannot name a label, in the name of the setting that has it.

    Raises:
        UserError: A name is no word, or one of our own columns.
    """
    for name in names:
        if name in _RESERVED or not re.fullmatch(r"[\w-]+", name):
            raise UserError(
                f"{setting}: {name!r} cannot be the name of a label: letters, digits, _ and -, and "
                "not a column of ours"
            )


class Corpus(ABC):
    """A source collection of songs with labels.

    Attributes:
        name: Name of the corpus in ``conf/corpus``.
        labels: Names of its labels, the main one first (``("genre",)``, ``("genre", "emotion")``).
        tracks: Which notes cleaning keeps, one of :data:`midigenre.midi.song.TRACKS`.
        neutral: Whether cleaning makes tempo and velocity constant. With ``tracks="merged"`` only
            pitch, rhythm and meter remain.
    """

    name: str
    labels: tuple[str, ...] = ("genre",)
    tracks: str = "all"
    neutral: bool = False

    def __init__(self, limit: int | None = None, tracks: str = "all") -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"corpus.limit must be 1 or more, got {limit}")
        if tracks not in TRACKS:
            raise ValueError(f"corpus.tracks={tracks}: choose {', '.join(TRACKS)}")
        self.limit = limit
        self.tracks = tracks

    @abstractmethod
    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        """The songs, at most ``limit`` of them, stratified by the labels.

        Args:
            cache: Folder in which a corpus that generates its files may keep them between calls.
            n_workers: Processes that may work in parallel.
            progress: Called as songs are made or found.

        Raises:
            midigenre.errors.UserError: The source is missing; the message says how to get it.
        """

    def classes(self) -> Mapping[str, tuple[str, ...]] | None:
        """Class names in a fixed order if the corpus defines them; None for the classes found."""
        return None


def stratified(songs: Sequence[SongRef], limit: int | None, seed: int = 0) -> list[SongRef]:
    """At most ``limit`` songs with the classes in their original shares, in the given order.

    Each combination of labels keeps its share, rounded by largest remainder, but at least one song
    while ``limit`` allows; which songs stay depends only on ``seed`` and the order of ``songs``.
    """
    if limit is None or limit >= len(songs):
        return list(songs)
    strata: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, song in enumerate(songs):
        strata[tuple(str(name) for name in song.labels.values())].append(i)
    keys = sorted(strata)
    shares = np.array([len(strata[key]) for key in keys]) * limit / len(songs)
    counts = np.minimum(np.maximum(np.floor(shares), 1), [len(strata[key]) for key in keys])
    while counts.sum() < limit:
        counts[np.argmax(shares - counts)] += 1
    while counts.sum() > limit:
        # Rare strata keep their one song while another has more than one.
        spare = counts > 1 if (counts > 1).any() else counts > 0
        counts[np.argmax(np.where(spare, counts - shares, -np.inf))] -= 1
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    for key, count in zip(keys, counts.astype(int), strict=True):
        kept.extend(rng.permutation(strata[key])[:count].tolist())
    return [songs[i] for i in sorted(kept)]


def cached_listing(
    cache: Path, name: str, settings: Mapping[str, Any], build: Callable[[Path], Listing]
) -> Listing:
    """The listing of a corpus that generates its files, built on the first call only.

    Args:
        cache: Folder of all generated corpora; each combination of settings has a subfolder.
        name: Name of the corpus.
        settings: Everything that determines the files, with a format version.
        build: Makes the files in the folder it is given. It runs under a lock between processes;
            after an interruption it runs again and may find some of its files in the folder.

    Returns:
        What ``build`` returned. The index is written last, so that it guarantees every file; one
        that names a MIDI file which is gone is built again.
    """
    text = json.dumps(dict(settings), sort_keys=True)
    folder = cache / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.json"

    def stamped(listing: Listing) -> Listing:
        # A file that was lost and made again has the same stamp.
        sizes = [os.stat(str(song.path)).st_size for song in listing.songs]
        pairs = zip(listing.songs, sizes, strict=True)
        songs = [replace(song, stamp=f"{size}:{folder.name}") for song, size in pairs]
        return replace(listing, songs=songs)

    with FileLock(cache / f"{folder.name}.lock"):
        if index.exists():
            data = read_json(index)
            songs = [SongRef(**row | {"path": folder / row["path"]}) for row in data["songs"]]
            unusable = [Unusable(**row) for row in data["unusable"]]
            with suppress(FileNotFoundError):
                return stamped(Listing(songs, unusable))
        listing = build(folder)
        rows = []
        for song in listing.songs:  # paths are relative, so that the cache can be moved
            row = asdict(song) | {"path": os.path.relpath(str(song.path), folder)}
            del row["stamp"]  # read from the file each time
            rows.append(row)
        unusable_rows = [asdict(piece) | {"path": str(piece.path)} for piece in listing.unusable]
        about = {"settings": dict(settings), "songs": rows, "unusable": unusable_rows}
        write_json(index, about)
        return stamped(listing)
