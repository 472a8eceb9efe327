"""The XMIDI data set: 108,023 files whose names carry emotion and genre."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from upath import UPath

from midigenre.corpora.base import (
    Corpus,
    Listing,
    Progress,
    SongRef,
    Unusable,
    no_progress,
    stratified,
)
from midigenre.corpora.download import fetched
from midigenre.corpora.folder import (
    GroupPattern,
    LeftOut,
    below,
    existing_folder,
    in_words,
    midi_entries,
)
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


class XMIDI(Corpus):
    """XMIDI (Tian et al. 2025): ``XMIDI_<emotion>_<genre>_<ID>.midi`` anywhere below ``root``.

    Case does not matter, nor which of :data:`midigenre.storage.MIDI_SUFFIXES` a name ends in.

    Args:
        root: The unpacked archive, or its URL in a store.
        limit: At most so many songs, stratified over genre and emotion.
        genres: The genres, in the order of the model's outputs.
        emotions: The emotions, likewise.
        aliases: Other names of genres (``{"classic": "classical"}``).
        other: The genre of files that have none or one that is not in ``genres`` (those with other
            names altogether have no emotion); ``drop`` refuses them.
        group_pattern: See :class:`~midigenre.corpora.folder.GroupPattern`.
        tracks: See :class:`~midigenre.corpora.base.Corpus`.
        download: Fetch and unpack the archive first, into ``root``, or into ``xmidi`` in the folder
            of made corpora if there is none; what is there stays.
        url: The archive's address, see :func:`~midigenre.corpora.download.fetched`.
        expected_files: MIDI files of the whole archive. A download that brings another number is
            refused; of a folder that has another number a remark says so.

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
        download: bool = False,
        url: str | None = None,
        expected_files: int | None = None,
    ) -> None:
        super().__init__(limit, tracks)
        self._classes = {"genre": tuple(genres), "emotion": tuple(emotions)}
        self._aliases = dict(aliases or {})
        if other not in (*genres, DROP):
            raise ValueError(f"corpus.other={other}: choose {', '.join((*genres, DROP))}")
        self._other = None if other == DROP else other
        self._url = url if download else None
        self._expected_files = expected_files
        if download and url is None:
            raise UserError("corpus.download=true needs corpus.url=URL (of a zip or tar archive)")
        self.root = self._place(root, download)
        self._groups = GroupPattern(group_pattern)

    def _place(self, root: str | None, download: bool) -> Location | None:
        """Where the files are or will be; None for the folder of made corpora."""
        place = None if root is None else location(root)
        if download:
            if isinstance(place, UPath):
                raise UserError(
                    f"corpus.download=true unpacks into a folder here, not into {place}; copy the "
                    "folder there afterwards"
                )
            return place
        try:
            return existing_folder(place, self.name, self.layout)
        except UserError as error:
            raise UserError(
                f"{error}; or have it fetched: midigenre prepare corpus={self.name} "
                "corpus.download=true"
            ) from error

    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The genres and the emotions."""
        return self._classes

    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        """See :meth:`Corpus.songs`; a name that does not fit is refused with the reason."""
        root = self.root or cache / self.name
        if self._url is not None:
            assert isinstance(root, Path)
            fetched(self._url, root, self._expected_files, progress)
        found: list[SongRef] = []
        unusable: list[Unusable] = []
        n_named = 0
        shared: dict[tuple[str | None, ...], Mapping[str, str | None]] = {}
        left_out = LeftOut()
        for song_id, stamp, _, refusal in midi_entries(root, left_out):
            path = below(root, song_id)
            own, problem = self._labels(song_id.rpartition("/")[2])
            labels = shared.setdefault((own["genre"], own["emotion"]), own)
            n_named += labels["emotion"] is not None
            if refusal:
                unusable.append(Unusable(song_id, path, refusal.reason, refusal.detail, labels))
            elif problem:
                unusable.append(Unusable(song_id, path, "unlabelled", problem, labels))
            else:
                found.append(SongRef(song_id, path, labels, stamp=stamp))
            progress("listing", len(found), 0)
        # With `other`, any folder of MIDI files would do.
        if not found or not n_named:
            there = in_words(left_out.total())
            raise UserError(
                f"corpus.root={root} has no XMIDI file{there and f', only {there}'}; give "
                f"{self.layout}"
            )
        songs, remarks = self._groups.grouped(stratified(found, self.limit))
        n_files = len(found) + len(unusable)
        if self._expected_files not in (None, n_files):
            remarks.append(
                f"{root} has {n_files:,} MIDI files, the whole archive {self._expected_files:,} "
                "(corpus.expected_files)"
            )
        return Listing(songs, unusable, remarks + left_out.remarks(), left_out.total())

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
