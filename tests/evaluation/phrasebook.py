"""Small songs whose tokens and notes are made by hand, for the tests of the baselines."""

from __future__ import annotations

import numpy as np

from midigenre.data.phrases import Phrases
from midigenre.midi.song import NoteTable, Song
from midigenre.spec import Field, TokenSpec

TPQ = 8
SPEC = TokenSpec("fake", (Field("token", tuple(f"Pitch_{i}" for i in range(20))),), "token", 64)


def music(n_bars=4, program=0, velocity=80, qpm=120.0, meter=(4, 4), per_bar=4, pitch=60, seed=0):
    """Bars with ``per_bar`` notes each at random places and pitches around ``pitch``."""
    rng = np.random.default_rng(seed)
    bar = meter[0] * TPQ * 4 // meter[1]
    onset = np.repeat(np.arange(n_bars) * bar, per_bar) + rng.integers(0, bar, n_bars * per_bar)
    n = len(onset)
    return Song(
        notes=NoteTable.of(onset, rng.integers(1, 9, n), pitch + rng.integers(0, 12, n),
                           np.full(n, velocity), np.full(n, program)),
        tpq=TPQ,
        bar_ticks=(np.arange(n_bars + 1) * bar).astype(np.int32),
        meters=np.tile(np.array(meter, np.int32), (n_bars, 1)),
        tempo_ticks=np.zeros(1, np.int32),
        tempo_qpm=np.array([qpm]),
    )  # fmt: skip


class Book:
    """Stands for a PhraseReader: a phrase is one bar, its tokens are given."""

    spec = SPEC

    def __init__(self, tokens, songs):
        self.tokens, self.music = tokens, songs

    @property
    def songs(self):
        return self

    def song(self, index):
        return self.music[index]

    def __call__(self, song, first, end):
        return self.tokens[song][first], end

    def phrases(self, songs=None):
        """One phrase a bar of these songs, of all if None."""
        songs = range(len(self.tokens)) if songs is None else songs
        rows = [(s, b) for s in songs for b in range(len(self.tokens[s]))]
        song, first = np.array(rows, np.int64).reshape(-1, 2).T
        return Phrases(song, first, first + 1)


def book(classes, n_phrases=4, seed=0):
    """Songs whose class shows in their tokens, in the order of the tokens, and in the program."""
    rng = np.random.default_rng(seed)
    tokens, songs = [], []
    for i, c in enumerate(classes):
        melody = [
            np.r_[rng.integers(0, 8, 12), 8 + np.full(6, max(c, 0))] for _ in range(n_phrases)
        ]
        tokens.append([rng.permutation(ids)[:, None].astype(np.int64) for ids in melody])
        songs.append(music(n_phrases, program=10 * max(c, 0), seed=seed * 1000 + i))
    return Book(tokens, songs)
