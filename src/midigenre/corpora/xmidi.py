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
from midigenre.errors import UserError

XMIDI_EMOTIONS = (
    "angry", "exciting", "fear", "funny", "happy", "lazy", "magnificent", "quiet", "romantic",
    "sad", "warm",
)  # fmt: skip
XMIDI_GENRES = ("classical", "country", "jazz", "pop", "rock", "traditional")
_XMIDI_NAME = re.compile(r"XMIDI_(?P<emotion>[^_]+)_(?P<genre>[^_]+)_(?P<id>.+)\.midi?", re.I)


class XMIDI(Corpus):
    """XMIDI (Tian et al. 2025): ``XMIDI_<emotion>_<genre>_<ID>.midi`` anywhere below ``root``.

    Args:
        root: The unpacked archive.
        limit: At most so many songs, stratified over genre and emotion.
        genres: The genres, in the order of the model's outputs.
        emotions: The emotions, likewise.
        merge_tracks: See :class:`~midigenre.corpora.base.Corpus`.
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
        merge_tracks: bool = False,
    ) -> None:
        super().__init__(limit)
        self.root = existing_folder(root, self.name, self.layout)
        self.merge_tracks = merge_tracks
        self._classes = {"genre": tuple(genres), "emotion": tuple(emotions)}

    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The dataset's own names."""
        return self._classes

    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        """See :meth:`Corpus.songs`; a name that does not fit is refused with the reason."""
        found: list[SongRef] = []
        unusable: list[Unusable] = []
        for path in midi_files(self.root):
            song_id = str(path.relative_to(self.root))
            match = _XMIDI_NAME.fullmatch(path.name)
            if match is None:
                unusable.append(
                    Unusable(song_id, path, "unlabelled", f"not named like {self.layout}")
                )
                continue
            labels = {label: match[label].lower() for label in self.labels}
            unknown = [f"{k} {v!r}" for k, v in labels.items() if v not in self._classes[k]]
            if unknown:
                detail = f"unknown {' and '.join(unknown)}"
                unusable.append(Unusable(song_id, path, "unlabelled", detail, labels))
                continue
            found.append(SongRef(song_id, path, labels))
            progress("listing", len(found), 0)
        if not found:
            raise UserError(f"corpus.root={self.root} has no XMIDI file; give {self.layout}")
        return Listing(stratified(found, self.limit), unusable)
