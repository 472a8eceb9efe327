"""The XMIDI data set: 108,023 files whose names carry emotion and genre."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
from midigenre.corpora.folder import existing_folder, midi_files
from midigenre.corpora.grouping import GroupPattern
from midigenre.errors import UserError

XMIDI_EMOTIONS = (
    "angry", "exciting", "fear", "funny", "happy", "lazy", "magnificent", "quiet", "romantic",
    "sad", "warm",
)  # fmt: skip
XMIDI_GENRES = ("classical", "country", "jazz", "pop", "rock", "traditional")
DROP = "drop"
_XMIDI_NAME = re.compile(
    r"XMIDI_(?P<emotion>[^_]+)(?:_(?P<genre>[^_]+))?_(?P<id>.+)\.midi?", re.IGNORECASE
)


class XMIDI(Corpus):
    """XMIDI (Tian et al. 2025): ``XMIDI_<emotion>_<genre>_<ID>.midi`` anywhere below ``root``.

    Case does not matter, nor whether a name ends in ``.mid`` or ``.midi``.

    Args:
        root: The unpacked archive.
        limit: At most so many songs, stratified over genre and emotion.
        genres: The genres, in the order of the model's outputs.
        emotions: The emotions, likewise.
        aliases: Other names of genres (``{"classic": "classical"}``).
        other: The genre of files that have none or one that is not in ``genres`` (those with other
            names altogether have no emotion); ``drop`` refuses them.
        group_pattern: See :class:`~midigenre.corpora.grouping.GroupPattern`.
        tracks: See :class:`~midigenre.corpora.base.Corpus`.

    Raises:
        UserError: The folder is not there, or the pattern is none.
        ValueError: ``other`` is no genre.
    """

    name = "xmidi"
    labels = ("genre", "emotion")
    layout = "files named XMIDI_<emotion>_<genre>_<ID>.midi (the unpacked XMIDI archive)"

    def __init__(
        self,
        root: str | None = None,
        limit: int | None = None,
        genres: Sequence[str] = XMIDI_GENRES,
        emotions: Sequence[str] = XMIDI_EMOTIONS,
        aliases: Mapping[str, str] | None = None,
        other: str = DROP,
        group_pattern: str | None = None,
        tracks: str = "all",
    ) -> None:
        super().__init__(limit, tracks)
        self._classes = {"genre": tuple(genres), "emotion": tuple(emotions)}
        self._aliases = dict(aliases or {})
        if other not in (*genres, DROP):
            raise ValueError(f"corpus.other={other}: choose {', '.join((*genres, DROP))}")
        self._other = None if other == DROP else other
        self.root = existing_folder(root, self.name, self.layout)
        self._groups = GroupPattern(group_pattern)

    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The genres and the emotions."""
        return self._classes

    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        """See :meth:`Corpus.songs`; a name that does not fit is refused with the reason."""
        found: list[SongRef] = []
        unusable: list[Unusable] = []
        n_named = 0
        for path in midi_files(self.root):
            song_id = str(path.relative_to(self.root))
            labels, problem = self._labels(path.name)
            n_named += labels["emotion"] is not None
            if problem:
                unusable.append(Unusable(song_id, path, "unlabelled", problem, labels))
            else:
                found.append(SongRef(song_id, path, labels))
            progress("listing", len(found), 0)
        # With `other`, any folder of MIDI files would do.
        if not found or not n_named:
            raise UserError(f"corpus.root={self.root} has no XMIDI file; give {self.layout}")
        songs, remarks = self._groups.grouped(stratified(found, self.limit), self.root)
        return Listing(songs, unusable, remarks)

    def _labels(self, file_name: str) -> tuple[dict[str, str | None], str]:
        """Genre and emotion of a file, and why it cannot be used ("" if it can)."""
        match = _XMIDI_NAME.fullmatch(file_name)
        if match is None:
            problem = "" if self._other else f"not named like {self.layout}"
            return {"genre": self._other, "emotion": None}, problem
        emotion = match["emotion"].lower()
        genre = match["genre"] and match["genre"].lower()
        genre = self._aliases.get(genre, genre)
        if self._other and genre not in self._classes["genre"]:
            genre = self._other
        labels = {"genre": genre, "emotion": emotion}
        if genre is None:
            return labels, f"no genre in its name; not named like {self.layout}"
        unknown = [f"{k} {v!r}" for k, v in labels.items() if v not in self._classes[k]]
        return labels, f"unknown {' and '.join(unknown)}" if unknown else ""
