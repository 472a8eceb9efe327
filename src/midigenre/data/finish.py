"""The tables of a prepared corpus, once its parts are there: splits, manifest, report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from midigenre.corpora.base import Corpus, Progress, SongRef, Unusable
from midigenre.data.duplicates import linked_groups
from midigenre.data.encode import Part, made
from midigenre.data.groups import (
    KINDS,
    Duplicates,
    duplicate_report,
    duplicate_rows,
    duplicates,
    kept_apart,
    leaked,
)
from midigenre.data.near import ROW
from midigenre.data.read import DIGEST_BYTES
from midigenre.data.shards import write_spec
from midigenre.data.split import assign_splits
from midigenre.errors import UserError
from midigenre.files import write_csv
from midigenre.midi.clean import REFUSALS
from midigenre.spec import LabelSpec
from midigenre.storage import Location
from midigenre.tokenizers.base import Tokenizer

_COLUMNS = ("song_id", "path", "source", "group", "duplicate_group", "duplicate_kind", "split",
            "bars", "notes", "tokens", "repairs")  # fmt: skip


@dataclass
class Outcome:
    """What became of the songs.

    Attributes:
        kept: The songs in the shards, in their order.
        parts: Entries of ``spec.json``.
        refused: How many songs were refused for each reason.
        repairs: How often each repair was made.
        fallbacks: Songs that MidiTok encoded, by the reason.
        first_refused: The first one, for the message when all were.
    """

    kept: list[SongRef] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    first_refused: str = ""


def write_tables(
    folder: Location,
    corpus: Corpus,
    tokenizer: Tokenizer,
    labels: LabelSpec,
    parts: Sequence[Part],
    unusable: Sequence[Unusable],
    grouping: str,
    fractions: tuple[float, float, float],
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Finds the duplicates, deals the songs to the splits and writes all tables.

    Args:
        folder: The shards' folder.
        corpus: The corpus.
        tokenizer: The tokenizer.
        labels: The classes.
        parts: All parts, which are made.
        unusable: Songs that were refused before they came into a part.
        grouping: See :func:`midigenre.data.groups.duplicates`.
        fractions: Shares of train, validation and test.
        seed: Seed of the split.
        progress: Called during the search.

    Returns:
        What the report says of refusals, repairs, fallbacks and duplicates.

    Raises:
        UserError: No song is left.
    """
    outcome = Outcome(refused=Counter(u.reason for u in unusable))
    if unusable:
        first = unusable[0]
        outcome.first_refused = f"{first.path}: {first.reason} ({first.detail})"
    found = _searched(parts, grouping, outcome, progress)
    if not outcome.kept:
        n = sum(len(part.songs) for part in parts)
        raise UserError(
            f"corpus {corpus.name!r}: none of the {n or len(unusable)} files can be used; the "
            f"first: {outcome.first_refused}"
        )
    about = duplicate_report(found, outcome.kept, corpus.labels, grouping)
    splits = _splits(outcome.kept, found, fractions, seed, about)
    extra = sorted({k for s in outcome.kept for k in s.extra} - {*_COLUMNS, *corpus.labels})
    write_csv(
        folder / "manifest.csv",
        _manifest(parts, outcome.kept, found, splits, corpus.name),
        [*_COLUMNS, *corpus.labels, *extra],
    )
    columns = ["song_id", "path", *corpus.labels, "reason", "detail"]
    write_csv(folder / "refused.csv", _refused(parts, unusable), columns)
    write_csv(
        folder / "duplicates.csv",
        duplicate_rows(found, outcome.kept, splits),
        ["group", "kind", "song_id", "path", "split", *corpus.labels],
    )
    write_spec(folder, corpus.name, tokenizer.spec, labels, outcome.parts)
    return {
        "refused": {reason: n for reason in REFUSALS if (n := outcome.refused[reason])},
        "repairs": dict(sorted(outcome.repairs.items())),
        "encoded_by_miditok": dict(outcome.fallbacks.most_common()),
        "duplicates": about,
    }


def _searched(
    parts: Sequence[Part], grouping: str, outcome: Outcome, progress: Progress
) -> Duplicates:
    """Fills the outcome from the parts, and finds the groups."""
    digests: list[bytes] = []
    # Room for all at once: lists of arrays and their concatenation would take twice as much.
    n_songs = sum(len(part.songs) for part in parts)
    notes = np.zeros((n_songs, DIGEST_BYTES), np.uint8)
    sketches = np.empty((n_songs, ROW), np.uint32)
    for part in parts:
        of = made(part.folder, part.index)
        if of.kept:
            begin = len(outcome.kept)
            notes[begin : begin + len(of.kept)] = of.digests
            sketches[begin : begin + len(of.kept)] = of.sketches
        outcome.parts.append(of.part)
        for row in of.kept:
            outcome.kept.append(part.songs[row["at"]])
            digests.append(part.digests[row["at"]])
            outcome.repairs.update(row["repairs"])
            outcome.fallbacks.update([row["fallback"]] if "fallback" in row else [])
        for row in of.refused:
            outcome.refused[row["reason"]] += 1
            if not outcome.first_refused:
                path = part.songs[row["at"]].path
                outcome.first_refused = f"{path}: {row['reason']} ({row['detail']})"
    n = len(outcome.kept)
    return duplicates(digests, notes[:n], sketches[:n], grouping, progress)


def _splits(
    songs: Sequence[SongRef],
    found: Duplicates,
    fractions: tuple[float, float, float],
    seed: int,
    about: dict[str, Any],
) -> list[str]:
    """The split of each song, as the source gives it or dealt by groups.

    ``about`` gets ``naive_split_leaks``: what a split would leak that knows nothing of duplicates.
    """
    duplicate_of = {
        song.song_id: songs[first].song_id
        for song, first, grouped in zip(
            songs, found.first.tolist(), found.grouped.tolist(), strict=True
        )
        if grouped
    }
    given = [song.split for song in songs if song.split is not None]
    if given:
        about["naive_split_leaks"] = leaked(given, found)
        splits = kept_apart(given, found)
        about["left_out_of_given_splits"] = splits.count("")
        return splits
    strata = [tuple(song.labels.values()) for song in songs]
    naive = assign_splits(strata, linked_groups(songs, {}), fractions, seed)
    about["naive_split_leaks"] = leaked(naive, found)
    if not duplicate_of:
        return naive
    return assign_splits(strata, linked_groups(songs, duplicate_of), fractions, seed)


def _manifest(
    parts: Sequence[Part],
    songs: Sequence[SongRef],
    found: Duplicates,
    splits: Sequence[str],
    source: str,
) -> Iterator[dict[str, Any]]:
    """Rows of ``manifest.csv``; those of one part at a time are in memory."""
    i = 0
    for part in parts:
        for row in made(part.folder, part.index).kept:
            ref = part.songs[row["at"]]
            grouped = bool(found.grouped[i])
            yield (
                dict(ref.extra)
                | {k: v or "" for k, v in ref.labels.items()}
                | {
                    "song_id": ref.song_id,
                    "path": str(ref.path),
                    "source": ref.source or source,
                    "group": ref.group or "",
                    "duplicate_group": songs[found.first[i]].song_id if grouped else "",
                    "duplicate_kind": KINDS[found.kind[i]] if grouped else "",
                    "split": splits[i],
                    **{name: row[name] for name in ("bars", "notes", "tokens")},
                    "repairs": json.dumps(row["repairs"]) if row["repairs"] else "",
                }
            )
            i += 1


def _refused(parts: Sequence[Part], unusable: Sequence[Unusable]) -> Iterator[Mapping[str, Any]]:
    for u in unusable:
        yield {"song_id": u.song_id, "path": str(u.path), "reason": u.reason, "detail": u.detail,
               **u.labels}  # fmt: skip
    for part in parts:
        for row in made(part.folder, part.index).refused:
            ref = part.songs[row["at"]]
            yield {"song_id": ref.song_id, "path": str(ref.path), "reason": row["reason"],
                   "detail": row["detail"], **ref.labels}  # fmt: skip
