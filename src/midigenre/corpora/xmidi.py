"""The XMIDI data set: 108,023 files whose names carry emotion and genre."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from upath import UPath

from midigenre.corpora.base import Progress, SongRef
from midigenre.corpora.download import fetched
from midigenre.corpora.folder import Folder, LeftOut
from midigenre.errors import UserError
from midigenre.storage import MIDI_SUFFIXES, Location, location

XMIDI_EMOTIONS = (
    "angry", "exciting", "fear", "funny", "happy", "lazy", "magnificent", "quiet", "romantic",
    "sad", "warm",
)  # fmt: skip
XMIDI_GENRES = ("classical", "country", "jazz", "pop", "rock", "traditional")
DROP = "drop"
_XMIDI_NAME = re.compile(
    r"XMIDI_(?P<emotion>[^_]+)(?:_(?P<genre>[^_]+))?_(?P<id>.+)"
    rf"(?:{'|'.join(map(re.escape, MIDI_SUFFIXES))})",
    re.IGNORECASE,
)


class XMIDI(Folder):
    """XMIDI (Tian et al. 2025): ``XMIDI_<emotion>_<genre>_<ID>.midi`` anywhere below ``root``.

    Case does not matter, nor which of :data:`midigenre.storage.MIDI_SUFFIXES` a name ends in.

    Args:
        root: The unpacked archive, or its URL in a store.
        limit: At most this many songs, stratified over genre and emotion.
        genres: The genres, in the order of the model's outputs.
        emotions: The emotions, likewise.
        aliases: Other names of genres (``{"classic": "classical"}``).
        other: The genre of files that have none or one that is not in ``genres`` (those with other
            names altogether have no emotion); ``drop`` rejects them.
        group_pattern: See :class:`~midigenre.corpora.folder.Folder`.
        tracks: See :class:`~midigenre.corpora.base.Corpus`.
        download: Fetch and unpack the archive first, into ``root``, or into ``xmidi`` in the folder
            of generated corpora if there is none; existing files stay.
        url: The archive's address, see :func:`~midigenre.corpora.download.fetched`.
        expected_files: MIDI files of the whole archive. A download with another number is
            rejected; of a folder that has another number a remark says so.

    Raises:
        UserError: The folder is not there, or the pattern is not valid.
        ValueError: ``other`` is not a genre.
    """

    name = "xmidi"
    kind = "XMIDI file"
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
        download: bool = False,
        url: str | None = None,
        expected_files: int | None = None,
    ) -> None:
        self._classes = {"genre": tuple(genres), "emotion": tuple(emotions)}
        self._aliases = dict(aliases or {})
        if other not in (*genres, DROP):
            raise ValueError(f"corpus.other={other}: choose {', '.join((*genres, DROP))}")
        self._other = None if other == DROP else other
        self._url = url if download else None
        self._expected_files = expected_files
        if download and url is None:
            raise UserError("corpus.download=true needs corpus.url=URL (of a zip or tar archive)")
        super().__init__(root, limit, group_pattern, tracks)
        self.labels = ("genre", "emotion")

    def _place(self, root: str | None) -> Location | None:
        if self._url is None:
            try:
                return super()._place(root)
            except UserError as error:
                raise UserError(
                    f"{error}; or have it fetched: midigenre prepare corpus={self.name} "
                    "corpus.download=true"
                ) from error
        place = None if root is None else location(root)
        if isinstance(place, UPath):
            raise UserError(
                f"corpus.download=true unpacks into a folder here, not into {place}; copy the "
                "folder there afterwards"
            )
        return place

    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The genres and the emotions."""
        return self._classes

    def _filled(self, cache: Path, progress: Progress) -> Location:
        root = super()._filled(cache, progress)
        if self._url is not None:
            assert isinstance(root, Path)
            fetched(self._url, root, self._expected_files, progress)
        return root

    def _remarks(
        self, root: Location, found: Sequence[SongRef], n_unusable: int, left_out: LeftOut
    ) -> list[str]:
        n_files, remarks = len(found) + n_unusable, []
        if self._expected_files not in (None, n_files):
            remarks.append(
                f"{root} has {n_files:,} MIDI files, the whole archive {self._expected_files:,} "
                "(corpus.expected_files)"
            )
        return remarks + left_out.remarks()

    def _labels(self, name: str) -> tuple[dict[str, str | None], str]:
        match = _XMIDI_NAME.fullmatch(name.rpartition("/")[2])
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
