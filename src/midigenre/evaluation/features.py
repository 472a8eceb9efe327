"""What the baselines look at: counts of a phrase, which a song's phrases add up to.

Each function gives one row a phrase, of numbers that may be added: the row of a song is the sum of
its phrases' rows. So a baseline sees at both levels exactly the phrases that the model sees, with
bar numbers that start anew in each, and nothing of a song's length that its phrases do not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from midigenre.arrays import Floats, Longs, splitmix64
from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.midi.song import Song
from midigenre.spec import TokenSpec

Counts = Any
"""Rows that may be added: a float array, or a scipy matrix compressed by row."""

NGRAM_MAX = 3
NGRAM_BITS = 16
"""N-grams fall into 2 ** NGRAM_BITS buckets by their hash (Weinberger et al. 2009, "Feature Hashing
for Large Scale Multitask Learning"): no vocabulary to fit or to hold. Measured on the validation
songs of ``twelve``, 2 ** 18 buckets and an exact vocabulary of 35,000 n-grams score the same."""


@dataclass(frozen=True)
class ReadPhrase:
    """A phrase as the model sees it.

    Attributes:
        ids_TF: Its tokens, int64 of shape (T, F).
        music: The notes, meters and tempi of the bars that the tokens cover.
    """

    ids_TF: Longs
    music: Song


def read_phrases(reader: PhraseReader, phrases: Phrases) -> Iterator[ReadPhrase]:
    """Reads phrases in order; quickest where those of a song follow each other."""
    last, music = -1, None
    columns = phrases.song.tolist(), phrases.first.tolist(), phrases.end.tolist()
    for song, first, end in zip(*columns, strict=True):
        if music is None or song != last:
            last, music = song, reader.songs.song(song)
        ids_TF, stop = reader(song, first, end)
        yield ReadPhrase(ids_TF, music.bars(first, stop))


def whole_songs(phrases: Phrases, at_once: int) -> Iterator[Phrases]:
    """Pieces of about ``at_once`` phrases that end where a song ends.

    Args:
        phrases: Those of a song one after the other.
        at_once: Phrases in a piece, but for the rest of its last song.
    """
    ends = np.flatnonzero(np.diff(phrases.song, append=-1)) + 1
    begin = 0
    while begin < len(phrases):
        at = np.searchsorted(ends, min(begin + at_once, len(phrases)))
        yield phrases.select(slice(begin, int(ends[at])))
        begin = int(ends[at])


def songs_of(counts: Counts, phrases: Phrases) -> Counts:
    """Sums over the phrases of each song, in ascending order of the songs."""
    songs, song_N = np.unique(phrases.song, return_inverse=True)
    where = (np.ones(len(song_N), np.float32), (song_N, np.arange(len(song_N))))
    return (
        sparse.csr_matrix(  # type: ignore[no-untyped-call]
            where, shape=(len(songs), len(song_N))
        )
        @ counts
    )


def no_counts(phrases: Sequence[ReadPhrase], spec: TokenSpec) -> Counts:
    """Nothing: one column of zeros."""
    return np.zeros((len(phrases), 1), np.float32)


def token_counts(phrases: Sequence[ReadPhrase], spec: TokenSpec) -> Counts:
    """Histogram of the tokens of every field, and how many phrases it counts.

    Returns:
        float32 of shape (phrases, sum of the vocabulary sizes + 1); the last column is 1.
    """
    starts_F = np.r_[0, np.cumsum(spec.sizes)]
    counts = np.ones((len(phrases), starts_F[-1] + 1), np.float32)
    for row, phrase in zip(counts, phrases, strict=True):
        flat = (phrase.ids_TF + starts_F[:-1]).ravel()
        row[:-1] = np.bincount(flat, minlength=starts_F[-1])
    return counts


def token_shares(counts: Counts) -> Counts:
    """Tokens a phrase: :func:`token_counts` of a phrase or a song on the same scale."""
    return counts[:, :-1] / counts[:, -1:]


def ngram_counts(phrases: Sequence[ReadPhrase], spec: TokenSpec) -> Counts:
    """Counts of the 1-, 2- and 3-grams of tokens.

    Where a step has several fields (CP, Octuple), n-grams run along each field by itself: a whole
    step taken as one word is nearly unique, and measured far weaker (Octuple on the validation
    phrases of ``twelve``: macro-F1 0.76 against 0.94).

    Returns:
        float32 of shape (phrases, 2 ** NGRAM_BITS), compressed by row.
    """
    buckets, sizes = [], []
    for phrase in phrases:
        hashes = np.concatenate(
            [ngram_hashes(ids_T, field) for field, ids_T in enumerate(phrase.ids_TF.T)]
        )
        buckets.append((hashes >> np.uint64(64 - NGRAM_BITS)).astype(np.int32))
        sizes.append(len(hashes))
    columns = np.concatenate(buckets) if buckets else np.zeros(0, np.int32)
    edges = np.r_[0, np.cumsum(sizes, dtype=np.int64)]
    ones = np.ones(len(columns), np.float32)
    counts = sparse.csr_matrix(  # type: ignore[no-untyped-call]
        (ones, columns, edges), shape=(len(phrases), 1 << NGRAM_BITS)
    )
    counts.sum_duplicates()  # type: ignore[no-untyped-call]
    return counts


def ngram_hashes(ids_T: Longs, field: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every n-gram, unigrams first, in the order of their starts.

    An n-gram's hash mixes its last id into the hash of the n-gram before it; fields start apart.
    """
    ids = ids_T.astype(np.uint64)
    start = splitmix64(np.array([field], np.uint64))
    found = [splitmix64(start + ids)]
    for n in range(2, NGRAM_MAX + 1):
        found.append(splitmix64(found[-1][:-1] + ids[n - 1 :]))
    return np.concatenate(found)


_WIDTHS = {
    "programs": 129,  # notes of drums, then of each General MIDI program
    "velocities": 128,  # notes of each velocity
    "numerators": 17,  # bars; larger ones count as 16
    "denominators": 6,  # bars with 1, 2, 4, 8, 16, 32
    "bars": 1,
    "quarters": 1,
    "seconds": 1,
    "tempo": 1,  # qpm times quarters
    "tempo_squared": 1,
    "tempo_changes": 1,
}
_EDGES = np.cumsum([0, *_WIDTHS.values()])
_PART = {name: slice(_EDGES[i], _EDGES[i + 1]) for i, name in enumerate(_WIDTHS)}


def metadata_counts(phrases: Sequence[ReadPhrase], spec: TokenSpec) -> Counts:
    """Programs, velocities, tempo, meter and number of notes; neither pitch nor rhythm.

    They are those of the cleaned song, also where the tokenizer does not write them.

    Returns:
        float64 of shape (phrases, sums); :func:`metadata_features` turns sums into features.
    """
    counts = np.zeros((len(phrases), _EDGES[-1]))
    for row, phrase in zip(counts, phrases, strict=True):
        music = phrase.music
        end = music.bar_ticks[-1]
        quarters = np.diff(np.r_[music.tempo_ticks, end]) / music.tpq
        numerators, denominators = music.meters.T
        for name, values in {
            "programs": np.bincount(music.notes.program + 1, minlength=129),
            "velocities": np.bincount(music.notes.velocity, minlength=128),
            "numerators": np.bincount(np.minimum(numerators, 16), minlength=17),
            "denominators": np.bincount(np.log2(denominators).astype(np.int64), minlength=6),
            "bars": music.n_bars,
            "quarters": quarters.sum(),
            "seconds": (quarters * 60 / music.tempo_qpm).sum(),
            "tempo": (quarters * music.tempo_qpm).sum(),
            "tempo_squared": (quarters * music.tempo_qpm**2).sum(),
            "tempo_changes": len(music.tempo_qpm) - 1,
        }.items():
            row[_PART[name]] = values
    return counts


def metadata_features(counts: Counts) -> Floats:
    """Shares, means and densities of :func:`metadata_counts`, the same for phrases and songs.

    Returns:
        Shares of the programs (129), of 16 ranges of velocity, of the meters' numerators (17) and
        denominators (6); mean and standard deviation of the velocity and number of different ones;
        mean and standard deviation of the tempo in quarters a minute, its changes a bar; notes a
        bar, a quarter and a second. float64, shape (rows, 177), rounded to four decimals: a tree
        would else split constants on their rounding errors.
    """
    part = {name: np.asarray(counts[:, where], np.float64) for name, where in _PART.items()}
    notes = part["programs"].sum(1, keepdims=True)
    velocities = part["velocities"] / notes
    levels = np.arange(128)
    velocity = velocities @ levels[:, None]
    velocity_variance = velocities @ levels[:, None] ** 2 - velocity**2
    bars, quarters = part["bars"], part["quarters"]
    tempo = part["tempo"] / quarters
    tempo_variance = part["tempo_squared"] / quarters - tempo**2
    features = [
        part["programs"] / notes,
        velocities.reshape(len(velocities), 16, 8).sum(2),
        part["numerators"] / bars,
        part["denominators"] / bars,
        velocity,
        np.sqrt(np.maximum(velocity_variance, 0)),
        (velocities > 0).sum(1, keepdims=True),
        tempo,
        np.sqrt(np.maximum(tempo_variance, 0)),
        part["tempo_changes"] / bars,
        notes / bars,
        notes / quarters,
        notes / part["seconds"],
    ]
    return np.round(np.concatenate(features, 1), 4)
