"""MIDI files in a folder, one subfolder for each genre."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from midigenre.corpora.base import (
    Corpus,
    Listing,
    Progress,
    SongRef,
    Unusable,
    no_progress,
    stratified,
)
from midigenre.corpora.grouping import GroupPattern
from midigenre.errors import UserError
from midigenre.storage import Location, entries, location

MIDI_SUFFIXES = (".mid", ".midi")


def midi_files(root: Path) -> Iterator[Path]:
    """MIDI files below a folder here, in a stable order; links to folders are followed once."""
    return (root / entry.name for entry in entries(root, MIDI_SUFFIXES))


def existing_folder(root: str | Location | None, corpus: str, layout: str) -> Location:
    """The folder of a corpus; a store is asked for it no sooner than it is listed.

    Raises:
        UserError: No folder is given, or it is not there, or its URL cannot be used; the message
            says what it should hold.
    """
    if root is None:
        raise UserError(f"corpus {corpus!r} needs corpus.root=DIR with {layout}")
    path = location(root)
    if isinstance(path, Path) and not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise UserError(f"corpus.root={path} {what}; give a folder with {layout}")
    return path


def below(root: Location, name: str) -> Location:
    """The place of a file that :func:`midigenre.storage.entries` found, for a row of a listing."""
    # Rows keep the text of a place, and making a UPath takes 0.2 ms: nobody makes it before it is
    # asked for.
    return cast(Location, f"{str(root).rstrip('/')}/{name}")


class Folder(Corpus):
    """``DIR/<genre>/**/*.mid(i)``: the first folder below ``DIR`` names the genre.

    Args:
        root: The folder ``DIR``, or its URL in a store.
        limit: At most so many songs, stratified.
        group_pattern: See :class:`~midigenre.corpora.grouping.GroupPattern`.
        tracks: See :class:`~midigenre.corpora.base.Corpus`.

    Raises:
        UserError: The folder is not there, or the pattern is none.
    """

    name = "folder"
    layout = "one folder of MIDI files for each genre (DIR/<genre>/**/*.mid)"

    def __init__(
        self,
        root: str | None = None,
        limit: int | None = None,
        group_pattern: str | None = None,
        tracks: str = "all",
    ) -> None:
        super().__init__(limit, tracks)
        self.root = existing_folder(root, self.name, self.layout)
        self._groups = GroupPattern(group_pattern)

    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        """See :meth:`Corpus.songs`; files beside the genre folders are refused as unlabelled."""
        found: list[SongRef] = []
        unusable: list[Unusable] = []
        labels: dict[str, dict[str, str | None]] = {}  # one for all songs of a genre
        for name, stamp, _ in entries(self.root, MIDI_SUFFIXES):
            path = below(self.root, name)
            genre, slash, _ = name.partition("/")
            if not slash:
                unusable.append(Unusable(name, path, "unlabelled", "it lies in no genre's folder"))
            else:
                of = labels.setdefault(genre, {"genre": genre})
                found.append(SongRef(name, path, of, stamp=stamp))
            progress("listing", len(found), 0)
        if not found:
            raise UserError(f"corpus.root={self.root} has no MIDI file; give {self.layout}")
        songs, remarks = self._groups.grouped(stratified(found, self.limit))
        return Listing(songs, unusable, remarks)
