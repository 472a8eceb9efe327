"""MIDI files in a folder, one subfolder for each genre; groups by a pattern on their names."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

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
from midigenre.errors import UserError
from midigenre.storage import MIDI_SUFFIXES, Entry, Location, entries, location
from midigenre.wording import NAMED, first_few, plural

ENDINGS = ", ".join(s for s in MIDI_SUFFIXES if not s.endswith(".gz")) + " or one of these and .gz"
"""The names of MIDI files, for messages."""


class LeftOut:
    """Counts the files that a listing skips, so that nothing disappears silently.

    Attributes:
        endings: Files by their ending, for each folder at the top (``""``: in none).
        unreadable: Entries not named like MIDI files that cannot be read, folders too, with
            reasons.
    """

    def __init__(self) -> None:
        self.endings: dict[str, Counter[str]] = defaultdict(Counter)
        self.unreadable: list[str] = []

    def add(self, entry: Entry) -> None:
        """Counts a file."""
        top, slash, _ = entry.name.partition("/")
        if entry.refusal:
            self.unreadable.append(f"{entry.name}: {entry.refusal.detail}")
        suffix = re.search(r"\.[\w~-]{1,8}$", entry.name)
        ending = "unreadable" if entry.refusal else suffix[0].lower() if suffix else "no ending"
        self.endings[top if slash else ""][ending] += 1

    def total(self) -> Counter[str]:
        """Files by their ending, the most frequent one first."""
        return Counter(dict(sum(self.endings.values(), Counter[str]()).most_common()))

    def remarks(self) -> list[str]:
        """What cannot be read, as a sentence."""
        if not self.unreadable:
            return []
        more = len(self.unreadable) - 1
        return [f"{self.unreadable[0]}; passed over" + (f", and {more:,} more" if more else "")]


def in_words(endings: Mapping[str, int]) -> str:
    """``10 .xml, 2 .txt``."""
    shown = [f"{n:,} {ending}" for ending, n in endings.items()]
    more = sum(list(endings.values())[NAMED:])
    return ", ".join(shown[:NAMED] + ([f"{more:,} others"] if more else []))


def midi_entries(root: Location, left_out: LeftOut) -> Iterator[Entry]:
    """What lies below a folder and is named like a MIDI file, in a stable order.

    Links to folders are followed once. Unreadable entries are included, with the reason.

    Args:
        root: The folder.
        left_out: Counts the rest.
    """
    for entry in entries(root):
        if entry.is_midi:
            yield entry
        else:
            left_out.add(entry)


def midi_files(root: Path, left_out: LeftOut | None = None) -> Iterator[Path]:
    """Paths of :func:`midi_entries` of a folder here."""
    return (root / entry.name for entry in midi_entries(root, left_out or LeftOut()))


class Folder(Corpus):
    """``DIR/<genre>/**/*.mid``: the first folder below ``DIR`` names the class of the label.

    Every ending of :data:`midigenre.storage.MIDI_SUFFIXES` is accepted.

    Args:
        root: The folder ``DIR``, or its URL in a store.
        limit: At most this many songs, stratified.
        group_pattern: A Python regular expression, searched for anywhere in a song's path below
            ``DIR``, written with ``/``. Its group named ``group``, else its first one, is the
            song's group. None groups nothing.
        tracks: See :class:`~midigenre.corpora.base.Corpus`.
        label: Name of the label.

    Raises:
        UserError: The folder is not there, the pattern is not a regular expression with a group, or
            the label cannot have that name.
    """

    name = "folder"
    layout = "one folder of MIDI files for each genre (DIR/<genre>/**/*.mid)"
    kind = "MIDI file"

    def __init__(
        self,
        root: str | None = None,
        limit: int | None = None,
        group_pattern: str | None = None,
        tracks: str = "all",
        label: str = "genre",
    ) -> None:
        super().__init__(limit, tracks)
        check_label_names("corpus.label", [label])
        self.labels = (label,)
        self.root = self._place(root)
        self._pattern = None
        if group_pattern is not None:
            what = f"corpus.group_pattern={group_pattern}"
            try:
                self._pattern = re.compile(group_pattern)
            except re.error as error:
                raise UserError(f"{what} is not a regular expression: {error}") from error
            if self._pattern.groups == 0:
                raise UserError(
                    f"{what} has no group; put what names the artist or album in parentheses, for "
                    r"instance corpus.group_pattern='([^/]+) - [^/]*$'"
                )

    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        """See :meth:`Corpus.songs`; a file whose labels are not known is rejected as unlabelled.

        Raises:
            UserError: No file has a label, or the pattern matches none.
        """
        root = self._filled(cache, progress)
        found: list[SongRef] = []
        unusable: list[Unusable] = []
        # Songs of a class have one dict.
        shared: dict[tuple[str | None, ...], dict[str, str | None]] = {}
        left_out = LeftOut()
        for name, stamp, _, refusal in midi_entries(root, left_out):
            # Rows keep the text of a place, and making a UPath takes 0.2 ms: it is made when asked.
            path = cast(Location, f"{str(root).rstrip('/')}/{name}")
            labels, problem = self._labels(name)
            labels = shared.setdefault(tuple(labels.values()), labels)
            if refusal:
                unusable.append(Unusable(name, path, refusal.reason, refusal.detail, labels))
            elif problem:
                unusable.append(Unusable(name, path, "unlabelled", problem, labels))
            else:
                found.append(SongRef(name, path, labels, stamp=stamp))
            progress("listing", len(found), 0)
        # Any folder of MIDI files would do where labels have a default.
        if not found or not any(labels.get(self.labels[-1]) for labels in shared.values()):
            there = in_words(left_out.total())
            if loose := sum(not entry.labels and "/" not in entry.song_id for entry in unusable):
                above = os.path.normpath(root / "..") if isinstance(root, Path) else root.parent
                lie = plural(loose, f"{self.kind} lies", f"{self.kind}s lie")
                raise UserError(
                    f"{lie} directly in {root}, in no {self.labels[0]}'s folder; did you mean "
                    f"corpus.root={above}? Give {self.layout}"
                )
            raise UserError(
                f"corpus.root={root} has no {self.kind}{there and f', only {there}'}; give "
                f"{self.layout}"
            )
        songs, remarks = self._grouped(stratified(found, self.limit))
        remarks += self._remarks(root, found, len(unusable), left_out)
        return Listing(songs, unusable, remarks, left_out.total())

    def _place(self, root: str | None) -> Location | None:
        """Where the files are; None for a folder among the generated corpora."""
        if root is None:
            raise UserError(f"corpus {self.name!r} needs corpus.root=DIR with {self.layout}")
        path = location(root)  # a store is asked for it no sooner than it is listed
        if isinstance(path, Path) and not os.path.isdir(path):
            what = "is a file, not a folder" if os.path.exists(path) else "does not exist"
            raise UserError(f"corpus.root={path} {what}; give a folder with {self.layout}")
        return path

    def _filled(self, cache: Path, progress: Progress) -> Location:
        """The folder, with the files in it."""
        return self.root or cache / self.name

    def _labels(self, name: str) -> tuple[dict[str, str | None], str]:
        """Labels of a file by its name below the root, and why it cannot be used ("" if it can)."""
        folder, slash, _ = name.partition("/")
        (label,) = self.labels
        return ({label: folder}, "") if slash else ({}, f"it lies in no {label}'s folder")

    def _grouped(self, songs: Sequence[SongRef]) -> tuple[list[SongRef], list[str]]:
        """The songs with their groups, and a remark on those that the pattern does not match."""
        if self._pattern is None:
            return list(songs), []
        which = "group" if "group" in self._pattern.groupindex else 1
        out: list[SongRef] = []
        names: dict[str, str] = {}  # one text for all songs of a group
        for song in songs:
            match = self._pattern.search(song.song_id)
            group = (match[which] or None) if match else None
            out.append(replace(song, group=group and names.setdefault(group, group)))
        alone = [song.song_id for song in out if song.group is None]
        if len(alone) == len(out):
            raise UserError(
                f"corpus.group_pattern={self._pattern.pattern} matches none of {len(out)} files; "
                f"the first is {alone[0]}"
            )
        if not alone:
            return out, []
        remark = (
            f"corpus.group_pattern does not match {len(alone):,} of {len(out):,} files, which "
            f"stand alone; the first: {alone[0]}"
        )
        return out, [remark]

    def _remarks(
        self, root: Location, found: Sequence[SongRef], n_unusable: int, left_out: LeftOut
    ) -> list[str]:
        """What cannot be read, and the folders that would be genres if they held a MIDI file."""
        folders = {top for top in left_out.endings if top}
        if isinstance(self.root, Path):
            folders |= {e.name for e in os.scandir(self.root) if os.path.isdir(e.path)}
        folders -= {song.labels[self.labels[0]] or "" for song in found}
        named = [
            repr(name) + (f" ({in_words(endings)})" if (endings := left_out.endings[name]) else "")
            for name in sorted(folders)
            if not name.startswith(".")
        ]
        if not named:
            return left_out.remarks()
        what = "folder" if len(named) == 1 else "folders"
        vanished = (
            f"{what} {first_few(named)} gave no song: a {self.labels[0]}'s files end in {ENDINGS}"
        )
        return [*left_out.remarks(), vanished]
