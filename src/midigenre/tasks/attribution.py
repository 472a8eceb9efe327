"""What explanations of a classifier's answers are made of; see :mod:`midigenre.tasks.explain`.

S songs   B phrases   N packed tokens   F fields   D model width   C classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.data.sampler import collate
from midigenre.data.shards import Songs
from midigenre.spec import Batch

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
Targets = Mapping[str, Sequence[int] | Longs]
"""For each label the class to explain of each song, shape (S,)."""

LOG_ZERO = -1e4
"""Stands for log 0, as in :func:`~midigenre.evaluation.scores.song_log_probs`."""


@dataclass(frozen=True)
class Attribution:
    """What decided one label of one song, in nats of the song's log-odds.

    Attributes:
        target: Class that is explained, an index.
        log_odds: The song's log-odds of it.
        bars: Of each bar of the song, shape (bars,). 0 for bars without an onset; NaN where nothing
            can be said: ``max_tokens`` kept the bar from the model, or no music is left without it.
        programs: Of each program that plays, :data:`~midigenre.midi.song.DRUMS` first; NaN
            likewise. Empty where the vocabulary has no programs.
    """

    target: int
    log_odds: float
    bars: Floats
    programs: dict[int, float]


def log_odds(log_probs_C: Floats, target: int) -> float:
    """Log-odds of a class from log-probabilities up to a constant, shape (C,); 0 if C is 1."""
    others = np.delete(log_probs_C, target)
    return float(log_probs_C[target] - np.logaddexp.reduce(others)) if len(others) else 0.0


def log_odds_slope(mean_C: Floats, target: int) -> Floats:
    """Derivative of :func:`log_odds` by the log-probabilities, shape (C,)."""
    if len(mean_C) < 2:
        return np.zeros_like(mean_C)
    others = np.delete(np.arange(len(mean_C)), target)
    slope = np.zeros_like(mean_C)
    slope[others] = -np.exp(mean_C[others] - np.logaddexp.reduce(mean_C[others]))
    slope[target] = 1.0
    return slope


@dataclass(frozen=True)
class Seen:
    """The phrases as the model sees them: tokens, and the bar at which they end."""

    phrases: Phrases
    ids: list[NDArray[np.int64]]
    stop: Longs

    @classmethod
    def of(cls, songs: Songs, phrases: Phrases, reader: PhraseReader) -> Seen:
        """Reads the phrases."""
        read = [
            reader(*column)
            for column in zip(
                phrases.song.tolist(), phrases.first.tolist(), phrases.end.tolist(), strict=True
            )
        ]
        return cls(phrases, [ids for ids, _ in read], np.array([s for _, s in read], np.int64))

    def where(self, i: int) -> tuple[int, int, int]:
        """Song, first bar and the bar after the last of a phrase."""
        return int(self.phrases.song[i]), int(self.phrases.first[i]), int(self.stop[i])

    def zero_bars(self, songs: Songs, song: int) -> Floats:
        """Of each bar of a song 0 where it was seen or has no onset, else NaN, shape (bars,)."""
        bars = np.where(songs.bar_onsets(song) > 0, np.nan, 0.0)
        for i in np.flatnonzero(self.phrases.song == song):
            _, first, stop = self.where(int(i))
            bars[first:stop] = 0.0
        return bars

    def programs(self, songs: Songs, song: int) -> list[int]:
        """The programs of a song, ascending."""
        return [int(p) for p in np.unique(songs.song(song).notes.program)]


def batch_of(ids: Sequence[NDArray[np.int64]]) -> Batch:
    """Phrases as a batch that does not say where they are from."""
    nowhere = np.zeros(len(ids), np.int64)
    return collate(ids, {}, Phrases(nowhere, nowhere, nowhere))
