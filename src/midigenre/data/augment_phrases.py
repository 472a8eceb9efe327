"""Reads phrases as they are trained on: as tokens where that can be, else by way of their notes."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from midigenre.data.augment import AugmentSettings
from midigenre.data.augment_notes import NoteAugmenter
from midigenre.data.augment_tokens import TokenAugmenter, why_not
from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.spec import TokenSpec


class PhraseAugmenter:
    """Reads and augments the phrases of a batch.

    Args:
        spec: The vocabulary.
        settings: What is done, and how much.

    Attributes:
        as_notes: Why phrases are augmented as notes and encoded anew, which is slower; empty where
            as tokens.
    """

    def __init__(self, spec: TokenSpec, settings: AugmentSettings) -> None:
        self.as_notes = why_not(spec)
        self._tokens = None if self.as_notes else TokenAugmenter(spec, settings)
        self._notes = NoteAugmenter(spec, settings) if self.as_notes else None

    def read(self, reader: PhraseReader, phrases: Phrases) -> list[NDArray[np.int64]]:
        """Token ids of each phrase, shape (T, F); a phrase whose key is 0 is as it is.

        Args:
            reader: Reads phrases.
            phrases: Phrases with keys.
        """
        assert phrases.key is not None
        where = zip(
            phrases.song.tolist(),
            phrases.first.tolist(),
            phrases.end.tolist(),
            phrases.key.tolist(),
            strict=True,
        )
        if self._notes is not None:
            notes = self._notes
            return [
                reader(song, first, end, partial(notes, key=key) if key else None)[0]
                for song, first, end, key in where
            ]
        assert self._tokens is not None
        ids = [reader(song, first, end)[0] for song, first, end, _ in where]
        if not phrases.key.any():
            return ids
        lengths = np.array([len(i) for i in ids], np.int64)
        ids_NF, lengths = self._tokens(np.concatenate(ids), lengths, phrases.key)
        return np.split(ids_NF, np.cumsum(lengths)[:-1])
