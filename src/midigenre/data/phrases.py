"""Which bars make a phrase, and its tokens.

The same for every tokenizer: a phrase is ``phrase_bars`` consecutive bars with at least one onset;
a last piece of one bar or more is kept; a song shorter than a phrase is one phrase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.data.shards import Songs
from midigenre.spec import TokenSpec
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.tokenizers.phrases import PhraseCutter

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Phrases:
    """Phrases as columns of shape (n,): song index, first bar, bar after the last."""

    song: Longs
    first: Longs
    end: Longs

    def __len__(self) -> int:
        return len(self.song)

    def select(self, chosen: NDArray[Any] | slice) -> Phrases:
        """The chosen ones."""
        return Phrases(self.song[chosen], self.first[chosen], self.end[chosen])


def consecutive(songs: Songs, rows: Longs, phrase_bars: int) -> Phrases:
    """All non-overlapping phrases of the songs ``rows``, in order."""
    song: list[Longs] = []
    first: list[Longs] = []
    end: list[Longs] = []
    for row in rows.tolist():
        onsets = songs.bar_onsets(row)
        starts = np.arange(0, len(onsets), phrase_bars)
        starts = starts[np.add.reduceat(onsets, starts) > 0] if len(onsets) else starts
        song.append(np.full(len(starts), row))
        first.append(starts)
        end.append(np.minimum(starts + phrase_bars, len(onsets)))
    return Phrases(*(np.concatenate(c) if c else np.zeros(0, np.int64) for c in (song, first, end)))


class RandomStarts:
    """Training phrases: each song gives as many as it has consecutive ones, at random bars.

    The phrases of an epoch are a function of the seed, the epoch and their index.

    Args:
        songs: Where the songs are.
        rows: Indices of the training songs.
        phrase_bars: Bars in a phrase.
        phrases_per_song: Phrases of each song in an epoch; None for as many as it has.
    """

    def __init__(
        self, songs: Songs, rows: Longs, phrase_bars: int, phrases_per_song: int | None = None
    ) -> None:
        starts: list[Longs] = []
        bars: list[int] = []
        counts: list[int] = []
        for row in rows.tolist():
            onsets = songs.bar_onsets(row)
            width = min(phrase_bars, len(onsets))
            total = np.r_[0, np.cumsum(onsets)]
            valid = np.flatnonzero(total[width:] - total[: len(total) - width] > 0)
            starts.append(valid)
            bars.append(len(onsets))
            counts.append(phrases_per_song or -(-len(onsets) // phrase_bars))
        self._phrase_bars = phrase_bars
        self._starts = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        self._n_starts = np.array([len(s) for s in starts], np.int64)
        self._first_start = np.r_[0, np.cumsum(self._n_starts)][:-1]
        self._bars = np.array(bars, np.int64)
        self._slot = np.repeat(np.arange(len(rows)), counts)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._slot)

    @property
    def song(self) -> Longs:
        """Song of each phrase; the same in every epoch."""
        return self._rows[self._slot]

    def epoch(self, seed: int, epoch: int) -> Phrases:
        """The phrases of an epoch."""
        draw = np.random.default_rng([seed, epoch]).random(len(self._slot))
        pick = (draw * self._n_starts[self._slot]).astype(np.int64)
        first = self._starts[self._first_start[self._slot] + pick]
        end = np.minimum(first + self._phrase_bars, self._bars[self._slot])
        return Phrases(self.song, first, end)


class PhraseReader:
    """Tokens of phrases: slices where the tokenizer allows it, else encoded from the notes.

    Args:
        songs: Where the songs are.
        spec: Their token spec.
        max_tokens: Longest phrase in steps; longer ones end at the last whole bar that fits.
    """

    def __init__(self, songs: Songs, spec: TokenSpec, max_tokens: int | None = None) -> None:
        self.songs = songs
        self.spec = spec
        self.max_tokens = max_tokens
        self._cutter = None if spec.bars == "none" else PhraseCutter(spec)
        self._tokenizer: Tokenizer | None = None

    def __call__(self, song: int, first: int, end: int) -> tuple[NDArray[np.int64], int]:
        """Token ids, int64 (T, F), and the bar at which they end."""
        if self._cutter is not None:
            encoded = self.songs.encoded(song)
            stream = (encoded.ids_TF, encoded.bar_steps, encoded.bar_tempo)
            ids, stop = self._cutter.cut(*stream, first, end, self.max_tokens)
            onsets = self.songs.bar_onsets(song)[first:end]
            if stop < end and not onsets[: stop - first].any():
                # Empty bars before one that does not fit: that one is cut inside.
                stop = first + int(np.flatnonzero(onsets)[0]) + 1
                ids = self._cutter.cut(*stream, first, stop)[0][: self.max_tokens]
            return ids, stop
        if self._tokenizer is None:
            self._tokenizer = from_spec(self.spec)
        music = self.songs.song(song)
        for stop in range(end, first, -1):
            phrase = music.bars(first, stop)
            if len(phrase.notes) == 0:
                stop += 1
                break
            ids = self._tokenizer.encode(phrase).ids_TF.astype(np.int64)
            if self.max_tokens is None or len(ids) <= self.max_tokens:
                return ids, stop
        return ids[: self.max_tokens], stop

    def lengths(self, phrases: Phrases) -> Longs:
        """Steps of each phrase, for planning batches.

        Exact but for the two that may restate the tempo; where phrases are not slices, an estimate
        from the number of notes.
        """
        out = np.zeros(len(phrases), np.int64)
        order = np.argsort(phrases.song, kind="stable")
        edges = np.flatnonzero(np.diff(phrases.song[order], prepend=-1))
        for begin, stop in zip(edges, np.r_[edges, len(order)][1:], strict=True):
            chosen = order[begin:stop]
            song = int(phrases.song[chosen[0]])
            encoded = self.songs.encoded(song)
            if self._cutter is not None:
                steps = encoded.bar_steps
            else:
                notes = np.r_[0, np.cumsum(self.songs.bar_onsets(song))]
                steps = np.ceil(notes * (len(encoded.ids_TF) / max(1, notes[-1])))
            out[chosen] = steps[phrases.end[chosen]] - steps[phrases.first[chosen]]
        return np.minimum(out, self.max_tokens) if self.max_tokens else out
