"""Corpus to shards: list, hash, read, clean, encode, group, split, write.

Everything is cached by the content of the settings and, for files that the user owns, of the
listing. Files are written one by one; a preparation that was stopped resumes after the last whole
ones. A lock lets parallel jobs that need the same shards prepare them once.
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
from midigenre.data.chunks import Chunk, Workers
from midigenre.data.duplicates import (
    GROUPINGS,
    KINDS,
    Duplicates,
    duplicate_report,
    duplicate_rows,
    duplicates,
    file_digests,
    kept_apart,
    leaked,
    linked_groups,
    without_conflicts,
    without_leaks,
)
from midigenre.data.labels import LabelSettings, label_spec, mapped, without_rare
from midigenre.data.near import ROW
from midigenre.data.phrases import PhraseLength, length_settings
from midigenre.data.report import REPORTED, named, phrase_report, warnings, write_label_tables
from midigenre.data.sandbox import DIGEST_BYTES, Limits, shared_sandbox, song_bytes
from midigenre.data.shards import FORMAT, ShardSet, lock_file, open_shards, remedy, write_spec
from midigenre.data.splits import assign_splits
from midigenre.errors import RefusedSongError, UserError
from midigenre.files import make_folder, share_lock, write_csv, write_json
from midigenre.midi.clean import REFUSALS
from midigenre.spec import LabelSpec
from midigenre.storage import Location, exists, location, read_object, stamp
from midigenre.tokenizers.base import Tokenizer
from midigenre.wording import plural

SONGS_PER_FILE = (64, 512)
"""Least and most songs of a shard file: a stop costs one a worker, each costs opening it."""

# Of a corpus's settings: what its songs do not depend on, once they are listed.
_NO_MATTER = ("name", "download", "url", "expected_files")

_COLUMNS = ("song_id", "path", "source", "group", "duplicate_group", "duplicate_kind", "split",
            "bars", "notes", "tokens", "repairs")  # fmt: skip

_FILES = 128  # of a corpus between those bounds


@dataclass(frozen=True)
class Settings:
    """What, besides corpus and tokenizer, a preparation depends on.

    Attributes:
        split_seed: Seed of the split.
        fractions: Shares of train, validation and test.
        length: Length of a phrase, for the report only.
        max_tokens: Longest phrase in steps, for the report only.
        labels: Classes to merge, rename or leave out.
        grouping: Which duplicates stay in one split, one of ``GROUPINGS``.
        limits: What one file may cost.
        workers: Who does the work; the shards do not depend on it.
        folder: Where the shards' folders lie, any fsspec URL; ``<home>/shards`` if None.

    Raises:
        UserError: There is no such grouping, or a limit is 0 or less.
    """

    split_seed: int = 0
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    length: PhraseLength = 4
    max_tokens: int = 1024
    labels: LabelSettings = field(default_factory=LabelSettings)
    grouping: str = "near"
    limits: Limits = field(default_factory=Limits)
    workers: Workers = field(default_factory=Workers)
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.grouping not in GROUPINGS:
            raise UserError(f"prepare.grouping={self.grouping}: choose {', '.join(GROUPINGS)}")
        if self.limits.max_file_mb <= 0 or self.limits.max_seconds <= 0:
            raise UserError("prepare.max_file_mb and prepare.max_seconds must be above 0")


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

    Args:
        corpus: The corpus.
        corpus_settings: Its settings as plain data, for the cache key.
        tokenizer: The tokenizer.
        home: Folder that holds ``shards/`` and ``corpora/``.
        settings: The rest.
        progress: Called as songs are listed and encoded.
        check: Called with the listing, to reject it before anything is encoded.

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
        raise UserError(
            f"corpus {corpus.name!r} has no song; see {_settings_text(corpus_settings)}"
        )
    listing = mapped(listing, corpus, settings.labels)
    check(listing)
    key = _key(corpus, corpus_settings, tokenizer, settings, listing)
    folder = root / f"{corpus.name}-{tokenizer.spec.name}-{key}"
    # There are no locks in a bucket: this one keeps the processes of this machine apart, those of
    # others write the same bytes.
    here = home / "shards" / folder.name if isinstance(folder, UPath) else folder
    with _writing(folder), ExitStack() as stack:
        while not _is_finished(folder, lock_file(here), stack, progress):
            with _alone(lock_file(here), folder.name, progress):
                if not exists(folder / "report.json"):
                    _prepare(corpus, tokenizer, folder, home, settings, listing, progress)
        _note_listing(folder, listing)
        shards = open_shards(folder, home, progress)
        refresh_report(shards, settings.length, settings.max_tokens)
    return shards


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
    """Has a lock alone; waits for readers, and for another process that prepares."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process that prepares or reads {name}", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(folder: Location) -> Iterator[None]:
    """Makes one clear line of a full or unwritable disk, or of a store that refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free some space or set "
            "MIDIGENRE_HOME, then run the command again: it goes on where it stopped"
        ) from error


def _note_listing(folder: Location, listing: Listing) -> None:
    """Says in the report what the shards do not depend on: files beside them, folders of none."""
    path = folder / "report.json"
    report = read_object(path, remedy(folder))
    noted = {"left_out": dict(listing.left_out), "remarks": listing.remarks}
    if any(report.get(key) != value for key, value in noted.items()):
        own = [t for t in report.get("warnings", ()) if t not in report.get("remarks", ())]
        _save_report(path, report | noted | {"warnings": listing.remarks + own})


def _save_report(path: Location, report: Mapping[str, Any]) -> None:
    if isinstance(path, UPath) or os.access(path.parent, os.W_OK):
        write_json(path, report)  # shards that somebody else keeps serve as they are


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


def estimate(
    corpus: Corpus, tokenizer: Tokenizer, home: Path, settings: Settings, sample: int = 32
) -> dict[str, Any]:
    """Time and disk of a preparation, from a sample of its songs spread over the listing.

    Songs of classes below ``labels.min_songs`` are counted too.
    """
    n_workers = settings.workers.n
    listing = corpus.songs(home / "corpora", n_workers)
    songs = mapped(listing, corpus, settings.labels).songs
    chosen = [songs[i] for i in np.unique(np.linspace(0, len(songs) - 1, sample).astype(int))]
    _answer(chosen[0], tokenizer, settings.limits)  # not timed: loads the code
    started, size, refused = time.perf_counter(), 0, 0
    for ref in chosen:
        made = _answer(ref, tokenizer, settings.limits)
        refused += "reason" in made
        columns = made.get("columns", {}).values()
        size += sum(v.nbytes for v in columns if isinstance(v, np.ndarray))
    seconds = (time.perf_counter() - started) / len(chosen)
    return {
        "songs": len(songs),
        "sampled": len(chosen),
        "refused_in_sample": refused,
        "seconds": round(seconds * len(songs) / n_workers, 1),
        "megabytes": round(size / len(chosen) * len(songs) / 1e6, 2),
        "free_megabytes": round(shutil.disk_usage(home if home.is_dir() else ".").free / 1e6),
    }


def _answer(ref: SongRef, tokenizer: Tokenizer, limits: Limits) -> dict[str, Any]:
    try:
        data = song_bytes(ref, limits)
    except RefusedSongError as error:
        return {"reason": error.reason}
    return shared_sandbox().encode(data, tokenizer.spec, limits)


def _usable(ref: SongRef, tokenizer: Tokenizer, limits: Limits) -> bool:
    """Whether a song can be read and cleaned; a few milliseconds, as nothing is encoded."""
    try:
        data = song_bytes(ref, limits)
    except RefusedSongError:
        return False
    return shared_sandbox().usable(data, tokenizer.spec, limits)


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
    results = _Results(refused=Counter(u.reason for u in unusable))
    if unusable:
        results.first_rejected(unusable[0].path, unusable[0].reason, unusable[0].detail)
    found = _duplicates(chunks, settings.grouping, results, progress)
    if not results.kept:
        raise UserError(
            f"corpus {corpus.name!r}: none of the {len(songs) or len(unusable)} files can be used; "
            f"the first: {results.first}"
        )
    about = duplicate_report(found, results.kept, corpus.labels, settings.grouping)
    splits = _splits(results.kept, found, settings, about)
    _write_tables(folder, corpus, chunks, unusable, results, found, splits)
    write_spec(folder, corpus.name, tokenizer.spec, labels, results.parts)
    # The report is written last: it marks the folder as finished.
    shards = open_shards(folder, home, progress, finished=False)
    report = phrase_report(shards, settings.length, settings.max_tokens)
    write_label_tables(report, folder)
    report |= {
        "corpus": corpus.name,
        "refused": {reason: n for reason in REFUSALS if (n := results.refused[reason])},
        "repairs": dict(sorted(results.repairs.items())),
        "encoded_by_miditok": dict(results.fallbacks.most_common()),
        "duplicates": about,
    }
    if left_out := about.get("left_out_of_given_splits"):
        remarks.append(
            f"{plural(left_out, 'song')} with a duplicate in a later one of the given splits left "
            "out of every split (duplicates.csv)"
        )
    report["warnings"] = [*remarks, *warnings(report)]
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
    """The songs to encode, those that are refused before, and remarks."""
    songs, copies, conflicts, remarks = without_conflicts(listing.songs, digests, corpus.labels)
    leaks: list[Unusable] = []
    if settings.grouping != "none":
        songs, leaks, said = without_leaks(songs, copies)
        remarks += said
    songs, rare = without_rare(
        songs, corpus, settings.labels,
        lambda song: digests[song.song_id] or song.song_id.encode(errors="surrogateescape"),
        lambda song: _usable(song, tokenizer, settings.limits),
    )  # fmt: skip
    return songs, [*listing.unusable, *conflicts, *leaks, *rare], remarks


def _vanished(
    listing: Listing,
    unusable: Sequence[Unusable],
    labels: LabelSpec,
    label_map: Mapping[str, Mapping[str, str | None]],
) -> list[str]:
    """A warning for each label with classes all of whose songs were refused, and not by wish."""
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


@dataclass
class _Results:
    """What became of the songs.

    Attributes:
        kept: The songs in the shards, in their order.
        parts: Entries of ``spec.json``.
        refused: How many songs were rejected for each reason.
        repairs: How often each repair was made.
        fallbacks: Songs that MidiTok encoded, by the reason.
        first: The first rejected one, for the message when all were.
    """

    kept: list[SongRef] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def first_rejected(self, path: Location, reason: str, detail: str) -> None:
        self.first = self.first or f"{path}: {reason} ({detail})"


def _duplicates(
    chunks: Sequence[Chunk], grouping: str, results: _Results, progress: Progress
) -> Duplicates:
    """Fills the results from the chunks, and finds the groups."""
    digests: list[bytes] = []
    # Room for all at once: lists of arrays and their concatenation would take twice as much.
    n_songs = sum(len(chunk.songs) for chunk in chunks)
    notes = np.zeros((n_songs, DIGEST_BYTES), np.uint8)
    sketches = np.empty((n_songs, ROW), np.uint32)
    for chunk in chunks:
        summary = chunk.summary()
        if summary.kept:
            here = slice(len(results.kept), len(results.kept) + len(summary.kept))
            notes[here], sketches[here] = summary.digests, summary.sketches
        results.parts.append(summary.part)
        for row in summary.kept:
            results.kept.append(chunk.songs[row["at"]])
            digests.append(chunk.digests[row["at"]])
            results.repairs.update(row["repairs"])
            results.fallbacks.update([row["fallback"]] if "fallback" in row else [])
        for row in summary.rejected:
            results.refused[row["reason"]] += 1
            results.first_rejected(chunk.songs[row["at"]].path, row["reason"], row["detail"])
    n = len(results.kept)
    return duplicates(digests, notes[:n], sketches[:n], grouping, progress)


def _splits(
    songs: Sequence[SongRef], found: Duplicates, settings: Settings, about: dict[str, Any]
) -> list[str]:
    """The split of each song, as the source gives it or split by groups.

    ``about`` gets ``naive_split_leaks``: what a split would leak that knows nothing of duplicates.
    """
    given = [song.split for song in songs if song.split is not None]
    if given:
        about["naive_split_leaks"] = leaked(given, found)
        splits = kept_apart(given, found)
        about["left_out_of_given_splits"] = splits.count("")
        return splits
    strata = [tuple(song.labels.values()) for song in songs]
    ids, groups = [song.song_id for song in songs], [song.group for song in songs]
    first = [
        ids[at] if grouped else None for at, grouped in zip(found.first, found.grouped, strict=True)
    ]

    def split(first_copies: Sequence[str | None]) -> list[str]:
        linked = linked_groups(ids, groups, first_copies)
        return assign_splits(strata, linked, settings.fractions, settings.split_seed)

    naive = split([None] * len(songs))
    about["naive_split_leaks"] = leaked(naive, found)
    return split(first) if any(first) else naive


def _write_tables(
    folder: Location,
    corpus: Corpus,
    chunks: Sequence[Chunk],
    unusable: Sequence[Unusable],
    results: _Results,
    found: Duplicates,
    splits: Sequence[str],
) -> None:
    """Writes the three tables; rows of one chunk at a time are in memory."""

    def kept_rows() -> Iterator[dict[str, Any]]:
        rows = ((chunk, row) for chunk in chunks for row in chunk.summary().kept)
        for i, (chunk, row) in enumerate(rows):
            ref = chunk.songs[row["at"]]
            grouped = bool(found.grouped[i])
            yield (
                dict(ref.extra)
                | {k: v or "" for k, v in ref.labels.items()}
                | {
                    "song_id": ref.song_id,
                    "path": str(ref.path),
                    "source": ref.source or corpus.name,
                    "group": ref.group or "",
                    "duplicate_group": results.kept[found.first[i]].song_id if grouped else "",
                    "duplicate_kind": KINDS[found.kind[i]] if grouped else "",
                    "split": splits[i],
                    **{name: row[name] for name in ("bars", "notes", "tokens")},
                    "repairs": json.dumps(row["repairs"]) if row["repairs"] else "",
                }
            )

    def rejected_rows() -> Iterator[Mapping[str, Any]]:
        for u in unusable:
            yield {"song_id": u.song_id, "path": str(u.path), "reason": u.reason,
                   "detail": u.detail, **u.labels}  # fmt: skip
        for chunk in chunks:
            for row in chunk.summary().rejected:
                ref = chunk.songs[row["at"]]
                yield {"song_id": ref.song_id, "path": str(ref.path), "reason": row["reason"],
                       "detail": row["detail"], **ref.labels}  # fmt: skip

    labels = corpus.labels
    extra = sorted({k for s in results.kept for k in s.extra} - {*_COLUMNS, *labels})
    write_csv(folder / "manifest.csv", kept_rows(), [*_COLUMNS, *labels, *extra])
    columns = ["song_id", "path", *labels, "reason", "detail"]
    write_csv(folder / "refused.csv", rejected_rows(), columns)
    columns = ["group", "kind", "song_id", "path", "split", *labels]
    write_csv(folder / "duplicates.csv", duplicate_rows(found, results.kept, splits), columns)


def _key(
    corpus: Corpus,
    corpus_settings: Mapping[str, Any],
    tokenizer: Tokenizer,
    settings: Settings,
    listing: Listing,
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
        "limits": asdict(settings.limits),
        "files": files.hexdigest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _stamp(ref: SongRef) -> str | None:
    """What changes with the file; None for one that is not there (refused later)."""
    try:
        return stamp(ref.path)
    except OSError:
        return None


def _settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"corpus.{k}={v}" for k, v in settings.items() if not k.startswith("_"))


def default_workers() -> int:
    """Processes that this machine can run at once."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
