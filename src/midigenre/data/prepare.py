"""Corpus to shards: list, hash, read, clean, encode, split, write.

Everything is cached by the content of the settings and, for files that the user owns, of the
listing. Parts are written one by one; a preparation that was stopped goes on after the last whole
part. A lock lets parallel jobs that need the same shards prepare them once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from filelock import FileLock, Timeout

from midigenre.corpora.base import Corpus, Listing, Progress, SongRef, Unusable, no_progress
from midigenre.data.duplicates import (
    file_digests,
    linked_groups,
    without_conflicts,
    without_leaks,
)
from midigenre.data.encode import encode, finished, make_part, usable
from midigenre.data.labels import LabelSettings, label_spec, mapped, without_rare
from midigenre.data.phrases import PhraseLength, length_settings
from midigenre.data.report import phrase_report, warnings, write_label_tables
from midigenre.data.shards import FORMAT, ShardSet, schema
from midigenre.data.split import assign_splits
from midigenre.errors import UserError
from midigenre.files import read_json, write_csv, write_json
from midigenre.music import REFUSALS
from midigenre.tokenizers.base import Tokenizer

SONGS_PER_PART = 1024
_INLINE = 64  # starting worker processes takes longer than preparing so few songs

_COLUMNS = ("song_id", "path", "source", "group", "duplicate_group", "split", "bars", "notes",
            "tokens", "repairs")  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What, besides corpus and tokenizer, a preparation depends on.

    Attributes:
        split_seed: Seed of the split.
        fractions: Shares of train, validation and test.
        length: Length of a phrase, for the report only.
        max_tokens: Longest phrase in steps, for the report only.
        n_workers: Processes; the shards do not depend on it.
        labels: Classes to merge, rename or leave out.
    """

    split_seed: int = 0
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    length: PhraseLength = 4
    max_tokens: int = 1024
    n_workers: int = 1
    labels: LabelSettings = field(default_factory=LabelSettings)


def prepare(
    corpus: Corpus,
    corpus_settings: Mapping[str, Any],
    tokenizer: Tokenizer,
    home: Path,
    settings: Settings,
    progress: Progress = no_progress,
) -> ShardSet:
    """Prepares a corpus, or opens it where that was done before.

    Args:
        corpus: The corpus.
        corpus_settings: Its settings as plain data, for the cache key.
        tokenizer: The tokenizer.
        home: Folder that holds ``shards/`` and ``corpora/``.
        settings: The rest.
        progress: Called as songs are listed and encoded.

    Raises:
        UserError: The corpus is not there or has no usable song, or the disk is full.
    """
    with _writing(home):
        (home / "shards").mkdir(parents=True, exist_ok=True)
    listing = corpus.songs(home / "corpora", settings.n_workers, progress)
    if not listing.songs:
        raise UserError(
            f"corpus {corpus.name!r} has no song; see {_settings_text(corpus_settings)}"
        )
    listing = mapped(listing, corpus, settings.labels)
    key = _key(corpus, corpus_settings, tokenizer, settings, listing)
    folder = home / "shards" / f"{corpus.name}-{tokenizer.spec.name}-{key}"
    lock = FileLock(f"{folder}.lock")
    with _writing(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(f"waiting for another process that prepares {folder.name}", 0, 0)
            lock.acquire()
        try:
            if not (folder / "report.json").is_file():
                _prepare(corpus, tokenizer, folder, settings, listing, progress)
            shards = ShardSet(folder)
            refresh_report(shards, settings.length, settings.max_tokens)
        finally:
            lock.release()
    return shards


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Makes one clear line of a full or unwritable disk."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free some space or set "
            "MIDIGENRE_HOME, then run the command again: it goes on where it stopped"
        ) from error


def refresh_report(shards: ShardSet, length: PhraseLength, max_tokens: int) -> dict[str, Any]:
    """The report for these phrase settings; ``report.json`` follows."""
    path = shards.folder / "report.json"
    report: dict[str, Any] = read_json(path)
    wanted = length_settings(length) | {"max_tokens": max_tokens}
    if {key: report[key] for key in wanted} != wanted:
        report |= phrase_report(shards, length, max_tokens)
        write_json(path, report)
    return report


def estimate(
    corpus: Corpus, tokenizer: Tokenizer, home: Path, settings: Settings, sample: int = 32
) -> dict[str, Any]:
    """Time and disk of a preparation, from a sample of its songs spread over the listing.

    Songs of classes below ``labels.min_songs`` are counted too.
    """
    n_workers = settings.n_workers
    listing = corpus.songs(home / "corpora", n_workers)
    songs = mapped(listing, corpus, settings.labels).songs
    chosen = [songs[i] for i in np.unique(np.linspace(0, len(songs) - 1, sample).astype(int))]
    encode(chosen[0], {}, tokenizer)  # not timed: loads the code
    started, size, refused = time.perf_counter(), 0, 0
    for ref in chosen:
        made = encode(ref, {}, tokenizer)
        refused += "reason" in made
        size += sum(v.nbytes for v in made.values() if isinstance(v, np.ndarray))
    seconds = (time.perf_counter() - started) / len(chosen)
    return {
        "songs": len(songs),
        "sampled": len(chosen),
        "refused_in_sample": refused,
        "seconds": round(seconds * len(songs) / n_workers, 1),
        "megabytes": round(size / len(chosen) * len(songs) / 1e6, 2),
        "free_megabytes": round(shutil.disk_usage(home if home.is_dir() else ".").free / 1e6),
    }


def _prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    settings: Settings,
    listing: Listing,
    progress: Progress,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digests = file_digests(listing.songs, settings.n_workers, progress)
    songs, duplicate_of, unusable, remarks = _chosen(corpus, tokenizer, settings, listing, digests)
    refused: list[dict[str, Any]] = [
        {"song_id": u.song_id, "path": str(u.path), "reason": u.reason, "detail": u.detail,
         **u.labels}
        for u in unusable
    ]  # fmt: skip
    labels = label_spec(corpus, songs, settings.labels)
    of = schema(tokenizer.spec, labels)
    parts: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    with joblib.Parallel(
        n_jobs=1 if len(songs) <= _INLINE else settings.n_workers, return_as="generator"
    ) as parallel:
        for begin in range(0, len(songs), SONGS_PER_PART):
            chunk = songs[begin : begin + SONGS_PER_PART]
            name = f"part-{len(parts):05d}"
            key = hashlib.sha256(
                json.dumps([[s.song_id, digests[s.song_id]] for s in chunk]).encode()
            ).hexdigest()
            done = finished(folder, name, key)
            if done is None:
                done = make_part(
                    folder, name, key, chunk, labels, tokenizer, of, parallel,
                    _shifted(progress, begin, len(songs)),
                )  # fmt: skip
            progress("encoding", begin + len(chunk), len(songs))
            parts.append(done["part"])
            kept += done["kept"]
            refused += done["refused"]
    if not kept:
        raise UserError(
            f"corpus {corpus.name!r}: none of the {len(songs)} files can be used; the first: "
            f"{refused[0]['path']}: {refused[0]['reason']} ({refused[0]['detail']})"
        )
    by_id = {song.song_id: song for song in songs}
    splits = _splits([by_id[k["song_id"]] for k in kept], duplicate_of, settings)
    manifest = []
    for row, split in zip(kept, splits, strict=True):
        ref = by_id[row["song_id"]]
        manifest.append(
            dict(ref.extra) | row | {k: v or "" for k, v in ref.labels.items()}
            | {"path": str(ref.path), "source": ref.source or corpus.name, "split": split,
               "group": ref.group or "", "duplicate_group": duplicate_of.get(ref.song_id, "")}
        )  # fmt: skip
    extra = sorted({k for s in songs for k in s.extra} - {*_COLUMNS, *corpus.labels})
    write_csv(folder / "manifest.csv", manifest, [*_COLUMNS, *corpus.labels, *extra])
    write_csv(
        folder / "refused.csv", refused, ["song_id", "path", *corpus.labels, "reason", "detail"]
    )
    write_json(
        folder / "spec.json",
        {"format": FORMAT, "corpus": corpus.name, "tokens": tokenizer.spec.to_dict(),
         "labels": labels.to_dict(), "parts": parts},
    )  # fmt: skip
    # The report is written last: it marks the folder as finished.
    report = phrase_report(ShardSet(folder), settings.length, settings.max_tokens)
    write_label_tables(report, folder)
    report["corpus"] = corpus.name
    report["refused"] = {
        reason: n for reason in REFUSALS if (n := sum(r["reason"] == reason for r in refused))
    }
    report["repairs"] = _sum_repairs(kept)
    report["warnings"] = [*listing.remarks, *remarks, *warnings(report)]
    write_json(folder / "report.json", report)
    for leftover in folder.glob("*.done.json"):
        leftover.unlink()


def _chosen(
    corpus: Corpus,
    tokenizer: Tokenizer,
    settings: Settings,
    listing: Listing,
    digests: Mapping[str, str],
) -> tuple[list[SongRef], dict[str, str], list[Unusable], list[str]]:
    """The songs to encode, their copies, those that are refused before, and remarks."""
    songs, duplicate_of, conflicts, said = without_conflicts(listing.songs, digests, corpus.labels)
    songs, leaks, said_too = without_leaks(songs, duplicate_of)
    content = {song.song_id: digests[song.song_id] or song.song_id for song in songs}
    songs, rare = without_rare(
        songs, corpus, settings.labels, content, lambda song: usable(song, tokenizer)
    )
    refused = [*listing.unusable, *conflicts, *leaks, *rare]
    return songs, duplicate_of, refused, [*said, *said_too]


def _splits(
    songs: Sequence[SongRef], duplicate_of: Mapping[str, str], settings: Settings
) -> list[str]:
    """The split of each song: as the source gives it, else dealt."""
    given = [song.split for song in songs if song.split is not None]
    if given:
        return given
    return assign_splits(
        [tuple(song.labels.values()) for song in songs],
        linked_groups(songs, duplicate_of),
        settings.fractions,
        settings.split_seed,
    )


def _key(
    corpus: Corpus,
    corpus_settings: Mapping[str, Any],
    tokenizer: Tokenizer,
    settings: Settings,
    listing: Listing,
) -> str:
    """Hash of everything that the shards depend on."""
    files: list[list[Any]] = [[u.song_id, u.reason] for u in listing.unusable]
    for ref in listing.songs:
        try:
            stat = ref.path.stat()
        except OSError:  # refused later, with the reason
            files.append([ref.song_id, None])
            continue
        about = [dict(ref.labels), ref.group, ref.split, ref.source, dict(ref.extra)]
        files.append([ref.song_id, *about, stat.st_size, stat.st_mtime_ns])
    content = {
        "format": FORMAT,
        "corpus": {k: v for k, v in corpus_settings.items() if k != "name"},
        "tokens": tokenizer.spec.fingerprint(),
        "split": [settings.split_seed, list(settings.fractions)],
        "labels": asdict(settings.labels),
        "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _shifted(progress: Progress, begin: int, total: int) -> Progress:
    return lambda what, done, _: progress(what, begin + done, total)


def _sum_repairs(kept: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for row in kept:
        for what, n in json.loads(row["repairs"] or "{}").items():
            total[what] += n
    return dict(sorted(total.items()))


def _settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"corpus.{k}={v}" for k, v in settings.items() if not k.startswith("_"))


def safe_name(text: str) -> str:
    """A file name for a song id or any other text."""
    return re.sub(r"[^\w.+-]+", "_", text, flags=re.UNICODE).strip("._") or "_"


def default_workers() -> int:
    """Processes that this machine can run at once."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
