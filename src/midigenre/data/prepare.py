"""Corpus to shards: list, hash, read, clean, encode, group, split, write.

Everything is cached by the settings and, for the user's own files, by the listing. Shard files are
written one by one; a stopped preparation resumes after the last complete ones. A lock lets parallel
jobs that need the same shards prepare them once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from upath import UPath

from midigenre.corpora.base import Corpus, Listing, Progress, SongRef, Unusable, no_progress
from midigenre.data import duplicates
from midigenre.data.chunks import Chunk, Workers, file_digests
from midigenre.data.labels import LabelSettings, label_spec, mapped, without_rare
from midigenre.data.phrases import PhraseLength, length_settings
from midigenre.data.report import (
    REPORTED,
    named,
    phrase_report,
    report_warnings,
    write_label_tables,
)
from midigenre.data.sandbox import DIGEST_BYTES, Limits, shared_sandbox, song_bytes
from midigenre.data.shards import FORMAT, ShardSet, lock_file, open_shards, remedy, write_spec
from midigenre.data.splits import assign_splits
from midigenre.errors import RejectedSongError, UserError
from midigenre.files import make_folder, share_lock, write_csv, write_json
from midigenre.midi.clean import REJECTIONS
from midigenre.spec import LabelSpec
from midigenre.storage import Location, exists, location, read_object, stamp
from midigenre.tokenizers.base import Tokenizer
from midigenre.wording import plural

SONGS_PER_FILE = (64, 512)
"""Least and most songs of a shard file: a stop loses one per worker, and each must be opened."""

_FILES = 128  # of a corpus between those bounds

# Of a corpus's settings: what its songs do not depend on, once they are listed.
_NO_MATTER = ("name", "download", "url", "expected_files")

_COLUMNS = ("song_id", "path", "source", "group", "duplicate_group", "duplicate_kind", "split",
            "bars", "notes", "tokens", "repairs")  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What, besides corpus and tokenizer, a preparation depends on.

    ``length`` and ``max_tokens`` are those of a phrase, for the report only. ``grouping`` is one of
    ``duplicates.GROUPINGS``. ``conflicts`` says what becomes of songs that contradict others, equal
    bytes under two classes and songs that are linked to one in a later split: ``reject`` them, or
    ``keep`` them; None keeps them where the source gives the splits, so that a published split
    stays what it is. The shards do not depend on ``workers``. ``folder`` is where their folders
    lie, any fsspec URL; ``<home>/shards`` if None.

    Raises:
        UserError: There is no such grouping or way with conflicts, or a limit is 0 or less.
    """

    split_seed: int = 0
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    length: PhraseLength = 4
    max_tokens: int = 1024
    labels: LabelSettings = field(default_factory=LabelSettings)
    grouping: str = "near"
    conflicts: str | None = None
    limits: Limits = field(default_factory=Limits)
    workers: Workers = field(default_factory=Workers)
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.grouping not in duplicates.GROUPINGS:
            raise UserError(
                f"prepare.grouping={self.grouping}: choose {', '.join(duplicates.GROUPINGS)}"
            )
        if self.conflicts not in (None, *duplicates.CONFLICTS):
            raise UserError(
                f"prepare.conflicts={self.conflicts}: choose {' or '.join(duplicates.CONFLICTS)}, "
                "or null to keep them where the splits are given"
            )
        if self.limits.max_file_mb <= 0 or self.limits.max_seconds <= 0:
            raise UserError("prepare.max_file_mb and prepare.max_seconds must be above 0")


def default_workers() -> int:
    """Processes that this machine can run at once."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def prepare(
    corpus: Corpus,
    corpus_settings: Mapping[str, Any],
    tokenizer: Tokenizer,
    home: Path,
    settings: Settings,
    progress: Progress = no_progress,
    check: Callable[[Listing], None] = lambda listing: None,
) -> ShardSet:
    """Prepares a corpus, or opens it where that was done before.

    ``corpus_settings`` are plain data, for the cache key. ``home`` holds ``shards/`` and
    ``corpora/``. ``check`` is called with the listing, to reject it before anything is encoded.

    Raises:
        UserError: The corpus is not there or has no usable song, or the disk is full.
    """
    root = home / "shards" if settings.folder is None else location(settings.folder)
    with _writing(home):
        (home / "shards").mkdir(parents=True, exist_ok=True)
    with _writing(root):
        make_folder(root)
    listing = corpus.songs(home / "corpora", settings.workers.n, progress)
    if not listing.songs:
        given = [f"corpus.{k}={v}" for k, v in corpus_settings.items() if not k.startswith("_")]
        raise UserError(f"corpus {corpus.name!r} has no song; see {', '.join(given)}")
    listing = mapped(listing, corpus, settings.labels)
    check(listing)
    key = _key(corpus_settings, tokenizer, settings, listing)
    folder = root / f"{corpus.name}-{tokenizer.spec.name}-{key}"
    # There are no locks in a bucket: this one keeps the processes of this machine apart, those of
    # others write the same bytes.
    lock = lock_file(home / "shards" / folder.name if isinstance(folder, UPath) else folder)
    with _writing(folder), ExitStack() as stack:
        while not _is_finished(folder, lock, stack, progress):
            with _alone(lock, folder.name, progress):
                if not exists(folder / "report.json"):
                    _prepare(corpus, tokenizer, folder, home, settings, listing, progress)
        _note_listing(folder, listing)
        shards = open_shards(folder, home, progress)
        refresh_report(shards, settings.length, settings.max_tokens)
    return shards


def _key(
    corpus_settings: Mapping[str, Any], tokenizer: Tokenizer, settings: Settings, listing: Listing
) -> str:
    """Hash of everything that the shards depend on."""
    files = hashlib.sha256()
    for unusable in listing.unusable:
        files.update(json.dumps([unusable.song_id, unusable.reason]).encode())
    for ref in listing.songs:
        about = [dict(ref.labels), ref.group, ref.split, ref.source, dict(ref.extra)]
        files.update(json.dumps([ref.song_id, *about, ref.stamp or _stamp(ref)]).encode())
    content = {
        "format": FORMAT,
        "corpus": {k: v for k, v in corpus_settings.items() if k not in _NO_MATTER},
        "tokens": tokenizer.spec.fingerprint(),
        "split": [settings.split_seed, list(settings.fractions)],
        "labels": asdict(settings.labels),
        "grouping": settings.grouping,
        "conflicts": settings.conflicts,
        "limits": asdict(settings.limits),
        "files": files.hexdigest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _stamp(ref: SongRef) -> str | None:
    """What changes with the file; None for one that is not there (rejected later)."""
    try:
        return stamp(ref.path)
    except OSError:
        return None


def _is_finished(folder: Location, lock: Path, stack: ExitStack, progress: Progress) -> bool:
    """Whether the shards are there; the stack then shares their lock."""
    try:
        handle = share_lock(lock)
        if handle is None:
            progress(f"waiting for another process that prepares {folder.name}", 0, 0)
            handle = share_lock(lock, wait=True)
            assert handle is not None
    except OSError:  # a read-only disk: finished, or the attempt to prepare will say what it is
        return exists(folder / "report.json")
    if exists(folder / "report.json"):
        stack.callback(os.close, handle)
        return True
    os.close(handle)
    return False


@contextmanager
def _alone(path: Path, name: str, progress: Progress) -> Iterator[None]:
    """Holds a lock exclusively; waits for readers, and for another process that prepares."""
    lock = FileLock(path)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process that prepares or reads {name}", 0, 0)
        held = lock.acquire()
    with held:
        yield


@contextmanager
def _writing(folder: Location) -> Iterator[None]:
    """Turns a full or unwritable disk, or a failing store, into a one-line error."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free some space or set "
            "MIDIGENRE_HOME, then run the command again: it resumes where it stopped"
        ) from error


def _note_listing(folder: Location, listing: Listing) -> None:
    """Adds to the report what the shards do not depend on: files left out, genres without songs."""
    path = folder / "report.json"
    report = read_object(path, remedy(folder))
    noted = {"left_out": dict(listing.left_out), "remarks": listing.remarks}
    if any(report.get(key) != value for key, value in noted.items()):
        own = [t for t in report.get("warnings", ()) if t not in report.get("remarks", ())]
        _save_report(path, report | noted | {"warnings": listing.remarks + own})


def refresh_report(shards: ShardSet, length: PhraseLength, max_tokens: int) -> dict[str, Any]:
    """The report for these phrase settings; ``report.json`` follows where it can be written.

    Raises:
        UserError: ``report.json`` is damaged.
    """
    path = shards.folder / "report.json"
    report = read_object(path, remedy(shards.folder))
    wanted = length_settings(length) | {"max_tokens": max_tokens}
    if lacking := {"corpus", *wanted, *REPORTED} - report.keys():
        raise UserError(f"{path} is damaged (no {min(lacking)}); {remedy(shards.folder)}")
    if {key: report[key] for key in wanted} != wanted:
        report |= phrase_report(shards, length, max_tokens)
        _save_report(path, report)
    return report


def _save_report(path: Location, report: Mapping[str, Any]) -> None:
    if isinstance(path, UPath) or os.access(path.parent, os.W_OK):
        write_json(path, report)  # shards that belong to another user are used as they are


def estimate(
    corpus: Corpus, tokenizer: Tokenizer, home: Path, settings: Settings, sample: int = 32
) -> dict[str, Any]:
    """Time and disk of a preparation, from a sample of its songs spread over the listing.

    Songs of classes below ``labels.min_songs`` are counted too.
    """
    songs = mapped(
        corpus.songs(home / "corpora", settings.workers.n), corpus, settings.labels
    ).songs
    chosen = [songs[i] for i in np.unique(np.linspace(0, len(songs) - 1, sample).astype(int))]

    def size_of(ref: SongRef) -> int | None:
        try:
            data = song_bytes(ref, settings.limits)
            found = shared_sandbox().read("encode", data, tokenizer.spec, settings.limits)
        except RejectedSongError:
            return None
        return sum(v.nbytes for v in found["columns"].values() if isinstance(v, np.ndarray))

    size_of(chosen[0])  # not timed: imports the code
    started = time.perf_counter()
    sizes = [size_of(ref) for ref in chosen]
    seconds = (time.perf_counter() - started) / settings.workers.n
    whole = len(songs) / len(chosen)
    return {
        "songs": len(songs),
        "sampled": len(chosen),
        "rejected_in_sample": sizes.count(None),
        "seconds": round(seconds * whole, 1),
        "megabytes": round(sum(size or 0 for size in sizes) * whole / 1e6, 2),
        "free_megabytes": round(shutil.disk_usage(home if home.is_dir() else ".").free / 1e6),
    }


def _prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Location,
    home: Path,
    settings: Settings,
    listing: Listing,
    progress: Progress,
) -> None:
    make_folder(folder)
    if settings.workers.n == 1:
        shared_sandbox().start()  # it imports while this process hashes
    for leftover in folder.glob(".*.part"):  # of a process that was killed; the lock is ours
        leftover.unlink(missing_ok=True)
    digests = file_digests(listing.songs, settings.limits, settings.workers.n, progress)
    songs, unusable, remarks = _chosen(corpus, tokenizer, settings, listing, digests)
    labels = label_spec(corpus, songs, settings.labels)
    remarks += _vanished(listing, unusable, labels, settings.labels.map)
    least, most = SONGS_PER_FILE
    size = min(most, max(least, len(songs) // _FILES))
    chunks = [
        Chunk(folder, i, some := songs[begin : begin + size],
              [digests[song.song_id] for song in some], labels, tokenizer.spec, settings.limits)
        for i, begin in enumerate(range(0, len(songs), size))
    ]  # fmt: skip
    del digests
    settings.workers.make(chunks, progress)
    results = _Results(chunks, unusable)
    if not results.kept:
        first = results.unusable[0]
        raise UserError(
            f"corpus {corpus.name!r}: none of the {len(songs) or len(unusable)} files can be used; "
            f"the first: {first.path}: {first.reason} ({first.detail})"
        )
    found = duplicates.find_duplicates(
        results.digests, results.notes, results.sketches, settings.grouping, progress
    )
    about = duplicates.report(found, results.kept, corpus.labels, settings.grouping)
    splits, said = _splits(results.kept, found, corpus.labels, settings, about)
    remarks += said
    _write_tables(folder, corpus, chunks, results, found, splits)
    write_spec(folder, corpus.name, tokenizer.spec, labels, results.parts)
    # The report is written last: it marks the folder as finished.
    shards = open_shards(folder, home, progress, finished=False)
    report = phrase_report(shards, settings.length, settings.max_tokens)
    write_label_tables(report, folder)
    rejected = Counter(song.reason for song in results.unusable)
    report |= {
        "corpus": corpus.name,
        "refused": {reason: n for reason in REJECTIONS if (n := rejected[reason])},
        "repairs": dict(sorted(results.repairs.items())),
        "encoded_by_miditok": dict(results.fallbacks.most_common()),
        "duplicates": about,
    }
    report["warnings"] = [*remarks, *report_warnings(report)]
    write_json(folder / "report.json", report)
    for chunk in chunks:
        chunk.forget()


def _chosen(
    corpus: Corpus,
    tokenizer: Tokenizer,
    settings: Settings,
    listing: Listing,
    digests: Mapping[str, bytes],
) -> tuple[list[SongRef], list[Unusable], list[str]]:
    """The songs to encode, those rejected before encoding, and remarks."""

    def content(song: SongRef) -> bytes:
        return digests[song.song_id] or song.song_id.encode(errors="surrogateescape")

    def usable(song: SongRef) -> bool:
        try:
            data = song_bytes(song, settings.limits)
            shared_sandbox().read("bars", data, tokenizer.spec, settings.limits)
        except RejectedSongError:
            return False
        return True

    songs = listing.songs
    unusable, remarks = duplicates.label_conflicts(songs, digests, corpus.labels)
    if _keeps_conflicts(settings, songs):
        what, unusable = "kept: prepare.conflicts=reject takes them out", []
    else:
        what, rejected = "rejected (label_conflict in refused.csv)", {u.song_id for u in unusable}
        songs = [song for song in songs if song.song_id not in rejected]
    remarks = [f"{remark}: every copy is {what}" for remark in remarks]
    songs, rare = without_rare(songs, corpus, settings.labels, content, usable)
    return songs, [*listing.unusable, *unusable, *rare], remarks


def _keeps_conflicts(settings: Settings, songs: Sequence[SongRef]) -> bool:
    if settings.conflicts is None:
        return any(song.split is not None for song in songs)
    return settings.conflicts == "keep"


def _vanished(
    listing: Listing,
    unusable: Sequence[Unusable],
    labels: LabelSpec,
    label_map: Mapping[str, Mapping[str, str | None]],
) -> list[str]:
    """A warning for each label with classes whose songs were all rejected unintentionally."""
    wished = {
        (label, name)
        for song in unusable if song.reason in ("dropped_label", "rare_label")
        for label, name in song.labels.items()
    }  # fmt: skip
    found = []
    for label, names in labels.classes.items():
        listed = {song.labels.get(label) for song in listing.songs}
        listed |= {song.labels.get(label) for song in listing.unusable}
        gone = listed - {None, *names, *label_map.get(label, {})}
        lost = sorted(name for name in gone if name is not None and (label, name) not in wished)
        if lost:
            has = "has" if len(lost) == 1 else "have"
            found.append(f"{label} {named(lost)} {has} no song that can be used (refused.csv)")
    return found


class _Results:
    """The outcome for the songs: those kept, in the shards' order, with hashes and sketches.

    ``unusable`` are the others, ``repairs`` and ``fallbacks`` (to MidiTok) counts by their reasons,
    ``parts`` entries of ``spec.json``.
    """

    def __init__(self, chunks: Sequence[Chunk], unusable: Sequence[Unusable]) -> None:
        self.kept: list[SongRef] = []
        self.digests: list[bytes] = []
        self.unusable = list(unusable)
        self.parts: list[dict[str, Any]] = []
        self.repairs: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        # Room for all at once: lists of arrays and their concatenation would take twice as much.
        n_songs = sum(len(chunk.songs) for chunk in chunks)
        notes = np.zeros((n_songs, DIGEST_BYTES), np.uint8)
        sketches = np.empty((n_songs, duplicates.ROW), np.uint32)
        for chunk in chunks:
            summary = chunk.summary()
            if summary.kept:
                here = slice(len(self.kept), len(self.kept) + len(summary.kept))
                notes[here], sketches[here] = summary.digests, summary.sketches
            self.parts.append(summary.part)
            for row in summary.kept:
                self.kept.append(chunk.songs[row["at"]])
                self.digests.append(chunk.digests[row["at"]])
                self.repairs.update(row["repairs"])
                self.fallbacks.update([row["fallback"]] if row["fallback"] else [])
            for row in summary.rejected:
                ref = chunk.songs[row["at"]]
                why = (row["reason"], row["detail"])
                self.unusable.append(Unusable(ref.song_id, ref.path, *why, ref.labels))
        self.notes, self.sketches = notes[: len(self.kept)], sketches[: len(self.kept)]


def _splits(
    songs: Sequence[SongRef],
    found: duplicates.Duplicates,
    labels: Sequence[str],
    settings: Settings,
    about: dict[str, Any],
) -> tuple[list[str], list[str]]:
    """The split of each song, as the source gives it or split by groups; and remarks.

    ``about`` gets ``leaks``: what the given splits leak, or what a split that ignores duplicates
    would.
    """
    ids, groups = [song.song_id for song in songs], [song.group for song in songs]
    places = zip(found.first, found.grouped, strict=True)
    first_copies = [ids[first] if grouped else None for first, grouped in places]
    linked = duplicates.linked_groups(ids, groups, first_copies)
    given = [song.split for song in songs if song.split is not None]
    about["given_splits"] = bool(given)
    if given:
        about["leaks"] = leaks = duplicates.leaked(given, found, songs, labels)
        if _keeps_conflicts(settings, songs):
            what = "kept as given; prepare.conflicts=reject takes the copies in training out"
            splits = given
        else:
            splits = duplicates.kept_apart(given, linked)
            what = f"{plural(splits.count(''), 'copy', 'copies')} left out of every split"
        n, by_group = leaks["songs"], leaks["groups"]
        return splits, [
            f"the given splits: of validation and test, {plural(n, 'song')} "
            f"({leaks['share']:.1%}) have a duplicate in training, {leaks['contradictory']:,} with "
            f"another label, and {plural(by_group, 'song')} a song of their group: {what} "
            "(duplicates.csv)"
        ] * bool(n or by_group)
    strata = [tuple(song.labels.values()) for song in songs]

    def split(linked: Sequence[str]) -> list[str]:
        return assign_splits(strata, linked, settings.fractions, settings.split_seed)

    naive = split(duplicates.linked_groups(ids, groups, [None] * len(songs)))
    about["leaks"] = duplicates.leaked(naive, found, songs, labels)
    return split(linked) if found.grouped.any() else naive, []


def _write_tables(
    folder: Location,
    corpus: Corpus,
    chunks: Sequence[Chunk],
    results: _Results,
    found: duplicates.Duplicates,
    splits: Sequence[str],
) -> None:
    """Writes the three tables; rows of one chunk at a time are in memory."""
    kept, labels = results.kept, corpus.labels

    def kept_rows() -> Iterator[dict[str, Any]]:
        rows = (row for chunk in chunks for row in chunk.summary().kept)
        for i, (ref, row) in enumerate(zip(kept, rows, strict=True)):
            grouped = bool(found.grouped[i])
            yield {
                **ref.extra,
                **{k: v or "" for k, v in ref.labels.items()},
                "song_id": ref.song_id,
                "path": str(ref.path),
                "source": ref.source or corpus.name,
                "group": ref.group or "",
                "duplicate_group": kept[found.first[i]].song_id if grouped else "",
                "duplicate_kind": duplicates.DUPLICATE_KINDS[found.kind[i]] if grouped else "",
                "split": splits[i],
                **{name: row[name] for name in ("bars", "notes", "tokens")},
                "repairs": json.dumps(row["repairs"]) if row["repairs"] else "",
            }

    rejected = (
        {
            "song_id": u.song_id,
            "path": str(u.path),
            "reason": u.reason,
            "detail": u.detail,
            **u.labels,
        }
        for u in results.unusable
    )
    extra = sorted({k for s in kept for k in s.extra} - {*_COLUMNS, *labels})
    write_csv(folder / "manifest.csv", kept_rows(), [*_COLUMNS, *labels, *extra])
    write_csv(folder / "refused.csv", rejected, ["song_id", "path", *labels, "reason", "detail"])
    columns = ["group", "kind", "song_id", "path", "split", *labels]
    write_csv(folder / "duplicates.csv", duplicates.rows(found, kept, splits), columns)
