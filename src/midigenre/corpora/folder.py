"""MIDI files in a folder, one subfolder for each genre."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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

MIDI_SUFFIXES = (".mid", ".midi")


def midi_files(root: Path) -> Iterator[Path]:
    """MIDI files below a folder in a stable order; links to folders are followed once."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(MIDI_SUFFIXES) and not name.startswith("."):
                yield Path(folder) / name


def existing_folder(root: str | os.PathLike[str] | None, corpus: str, layout: str) -> Path:
    """The folder of a corpus.

    Raises:
        UserError: No folder is given, or it is not there; the message says what it should hold.
    """
    if root is None:
        raise UserError(f"corpus {corpus!r} needs corpus.root=DIR with {layout}")
    path = Path(root).expanduser()
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise UserError(f"corpus.root={path} {what}; give a folder with {layout}")
    return path


class Folder(Corpus):
    """``DIR/<genre>/**/*.mid(i)``: the first folder below ``DIR`` names the genre.

    Args:
        root: The folder ``DIR``.
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
        for path in midi_files(self.root):
            name = path.relative_to(self.root)
            if len(name.parts) == 1:
                unusable.append(
                    Unusable(str(name), path, "unlabelled", "it lies in no genre's folder")
                )
            else:
                found.append(SongRef(str(name), path, {"genre": name.parts[0]}))
            progress("listing", len(found), 0)
        if not found:
            raise UserError(f"corpus.root={self.root} has no MIDI file; give {self.layout}")
        songs, remarks = self._groups.grouped(stratified(found, self.limit), self.root)
        return Listing(songs, unusable, remarks)
