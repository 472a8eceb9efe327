"""Twelve genres that anybody can reproduce: seven music21 corpora and five synthesised styles.

Every song is a section of at most :data:`~midigenre.corpora.works.MAX_SECTION_BARS` bars of a
work, or a synthesised song of 16 to 48 bars. All tracks are merged and tempo and velocity made
constant in cleaning (``tracks``, ``neutral``), so that only pitch, rhythm and meter remain.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from symusic.core import ScoreTick

from midigenre.corpora.base import (
    Corpus,
    Listing,
    Progress,
    SongRef,
    Unusable,
    cached_listing,
    no_progress,
    stratified,
)
from midigenre.corpora.styles import STYLES
from midigenre.corpora.works import (
    MAX_SECTION_BARS,
    Work,
    catalogue,
    corpus_root,
    read_work,
    sections,
)
from midigenre.errors import RejectedSongError
from midigenre.files import read_json, write_bytes, write_json

REAL = (
    "bach",
    "palestrina",
    "trecento",
    "ryansMammoth",
    "monteverdi",
    "beethoven",
    "essenFolksong",
)
"""The classes made of real works, each a corpus of music21."""

SYNTHESISED = tuple(STYLES)
"""The synthesised classes."""

FORMAT_VERSION = 1
"""To be raised whenever conversion or a style changes, so that caches are made again."""

GROUP_SONGS = 4  # songs of one mass, madrigal or folk song, as long as there are groups enough
SMALL_CLASS = 24  # songs; below that short works are taken first, to be fast
BATCH_WORKS = 16  # synthesised songs per task: one alone is too short for a process

# Songs that a work gives on average; decides only how many works are converted at a time.
SONGS_PER_WORK = {"palestrina": 1.3, "trecento": 2.5, "monteverdi": 2.8, "beethoven": 5.0}


class Twelve(Corpus):
    """The twelve-class corpus; it needs no download (music21 carries the scores).

    Args:
        limit: At most this many songs, stratified; only as many are converted.
        songs_per_class: At most this many songs of each class.
        seed: Chooses the works and makes the synthesised songs.
        tracks: See :class:`~midigenre.corpora.base.Corpus`.

    Raises:
        ValueError: A number is below 1, or ``tracks`` is unknown.
    """

    name = "twelve"
    labels = ("genre",)
    neutral = True

    def __init__(
        self,
        limit: int | None = None,
        songs_per_class: int = 120,
        seed: int = 0,
        tracks: str = "merged",
    ) -> None:
        super().__init__(limit, tracks)
        if songs_per_class < 1:
            raise ValueError(f"corpus.songs_per_class must be 1 or more, got {songs_per_class}")
        self.songs_per_class = songs_per_class
        self.seed = seed

    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The genres, the seven real ones first."""
        return {"genre": REAL + SYNTHESISED}

    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        """The songs; the first call converts them, at about ten songs per second and process.

        Raises:
            midigenre.errors.UserError: music21 or its corpus is missing.
        """
        genres = self.classes()["genre"]
        quota = self.songs_per_class
        if self.limit is not None:
            quota = min(quota, math.ceil(self.limit / len(genres)))
        settings = {
            "format": FORMAT_VERSION,
            "music21": version("music21"),
            "genres": genres,
            "songs_per_class": quota,
            "seed": self.seed,
            "max_section_bars": MAX_SECTION_BARS,
        }

        def build(folder: Path) -> Listing:
            return _build(folder, quota, self.seed, n_workers, progress)

        listing = cached_listing(cache, self.name, settings, build)
        return Listing(stratified(listing.songs, self.limit, self.seed), listing.unusable)


def _build(folder: Path, quota: int, seed: int, n_workers: int, progress: Progress) -> Listing:
    """Makes all songs; works with a record in the folder are not converted again."""
    corpus_root()  # a missing corpus is reported before any work is done
    choices = {genre: _Choice(genre, quota, seed) for genre in REAL}
    total = quota * (len(REAL) + len(SYNTHESISED))
    with Parallel(n_jobs=n_workers, return_as="generator_unordered") as parallel:
        made = 0
        while works := [work for choice in choices.values() for work in choice.wanted()]:
            # The slowest first, so that no process is busy alone at the end.
            works.sort(key=lambda w: (w.genre != "beethoven", -_size(w)))
            tasks = (
                delayed(_convert)(work, folder, choices[work.genre].per_work[work.group])
                for work in works
            )
            for genre, work_id, record in parallel(tasks):
                choices[genre].records[work_id] = record
                made = sum(len(choice.picked()[0]) for choice in choices.values())
                progress("songs", min(made, total), total)
        styled = [(genre, i) for genre in SYNTHESISED for i in range(quota)]
        batches = [styled[i : i + BATCH_WORKS] for i in range(0, len(styled), BATCH_WORKS)]
        for n in parallel(delayed(_synthesise)(folder, batch, seed) for batch in batches):
            made += n
            progress("songs", min(made, total), total)

    songs, unusable = [], []
    for genre, choice in choices.items():
        picked, rejected = choice.picked()
        for work, row in picked:
            song_id = row["song_id"]
            path = folder / genre / f"{song_id}.mid"
            extra = {
                "title": work.title,
                "corpus_path": work.corpus_path,
                "section": row["section"],
            }
            songs.append(SongRef(song_id, path, {"genre": genre}, work.group, "music21", extra))
        for work, reason, detail in rejected:
            unusable.append(Unusable(work.work_id, work.path, reason, detail, {"genre": genre}))
    for genre, i in styled:
        path = _styled_path(folder, genre, i)
        extra = {"title": f"{genre} {i}", "corpus_path": "", "section": "1/1"}
        songs.append(SongRef(path.stem, path, {"genre": genre}, None, "synthesised", extra))
    return Listing(songs, unusable)


class _Choice:
    """Which works of a genre are converted, and which of their sections become songs.

    The outcome depends only on the seed and the works, never on how many were converted at a time:
    works are gone through in one shuffled order, group by group in turn, until the quota is full.
    """

    def __init__(self, genre: str, quota: int, seed: int) -> None:
        rng = np.random.default_rng([seed, REAL.index(genre)])
        works = catalogue(genre)
        groups: dict[str, list[Work]] = defaultdict(list)
        for i in rng.permutation(len(works)):
            groups[works[i].group].append(works[i])
        # Even a tiny class spreads over groups, or it could not be split.
        self.per_group = max(math.ceil(quota / len(groups)), min(GROUP_SONGS, math.ceil(quota / 8)))
        # With many movements in a group, each gives some of its sections.
        self.per_work = {g: math.ceil(self.per_group / len(w)) for g, w in groups.items()}
        if quota < SMALL_CLASS:
            for members in groups.values():
                members.sort(key=_size)
        turns = zip_longest(*groups.values())
        self.order = [work for turn in turns for work in turn if work is not None]
        if quota < SMALL_CLASS:
            self.order.sort(key=_size)
        self.genre, self.quota = genre, quota
        self.records: dict[str, dict[str, Any]] = {}

    def wanted(self) -> list[Work]:
        """The works to convert next; empty when the quota is full or no work is left."""
        picked, _ = self.picked()
        taken = Counter(work.group for work, _ in picked)
        songs = min(SONGS_PER_WORK.get(self.genre, 1.0), self.per_group)
        left = [
            work
            for work in self.order
            if work.work_id not in self.records and taken[work.group] < self.per_group
        ]
        return left[: math.ceil((self.quota - len(picked)) / songs)]

    def picked(self) -> tuple[list[tuple[Work, dict[str, Any]]], list[tuple[Work, str, str]]]:
        """Songs (work, section) up to the quota, and the works rejected on the way."""
        songs: list[tuple[Work, dict[str, Any]]] = []
        rejected: list[tuple[Work, str, str]] = []
        taken: Counter[str] = Counter()
        for work in self.order:
            record = self.records.get(work.work_id)
            if record is None or len(songs) >= self.quota:
                continue
            if record["reason"]:
                rejected.append((work, record["reason"], record["detail"]))
            room = min(self.per_group - taken[work.group], self.quota - len(songs))
            chosen = record["sections"][: max(room, 0)]
            taken[work.group] += len(chosen)
            songs += [(work, row) for row in chosen]
        return songs, rejected


def _size(work: Work) -> int:
    return 0 if work.number is not None else work.path.stat().st_size


def _convert(work: Work, folder: Path, max_songs: int) -> tuple[str, str, dict[str, Any]]:
    """Writes a work's sections and then its record, which marks them as complete.

    Returns:
        Genre, work id, and the record: ``sections`` (song id, place in the work, bars), ``reason``
        (empty, or why there are none) and ``detail``.
    """
    path = folder / work.genre / f"{work.work_id}.json"
    if path.exists():
        return work.genre, work.work_id, read_json(path)
    record: dict[str, Any] = {"sections": [], "reason": "", "detail": ""}
    parts: list[tuple[ScoreTick, int]] = []
    try:
        parts = list(sections(read_work(work)))
    except RejectedSongError as error:
        record |= {"reason": error.reason, "detail": error.detail}
    except Exception as error:  # whatever music21 raises on a file; the others continue
        detail = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        record |= {"reason": "not_written", "detail": detail}
    n_songs = min(len(parts), max_songs)
    for i in (k * len(parts) // n_songs for k in range(n_songs)):  # evenly spread
        score, n_bars = parts[i]
        song_id = work.work_id + (f"-s{i + 1:02d}" if len(parts) > 1 else "")
        write_bytes(folder / work.genre / f"{song_id}.mid", score.dumps_midi())
        place = f"{i + 1}/{len(parts)}"
        record["sections"].append({"song_id": song_id, "section": place, "bars": n_bars})
    write_json(path, record)
    return work.genre, work.work_id, record


def _synthesise(folder: Path, batch: Sequence[tuple[str, int]], seed: int) -> int:
    for genre, i in batch:
        path = _styled_path(folder, genre, i)
        if not path.exists():
            rng = np.random.default_rng([seed, SYNTHESISED.index(genre), i])
            write_bytes(path, STYLES[genre](rng).dumps_midi())
    return len(batch)


def _styled_path(folder: Path, genre: str, i: int) -> Path:
    return folder / genre / f"{genre}-{i:04d}.mid"
