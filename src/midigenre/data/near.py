"""Near duplicates: one piece in another key, tempo, arrangement or cut, found by MinHash.

A song becomes two sets of key-invariant note patterns, the sets become a short row of numbers
(:func:`sketch`), and songs whose rows agree become pairs (:func:`near_pairs`).

*Patterns.* Runs of :data:`INTERVALS` melodic intervals modulo 12 along outer voices, the top and
the bottom note of each onset; a repeated pitch class counts once. Rhythm is left out, because a
file whose ticks were stretched has another one after quantisation. So is what songs share that have
nothing to do with each other, see :func:`_intervals`; accompaniments of one style are alike, and a
false pair is worse than a missed one. Interval n-grams as an index of music are those of Downie and
Nelson, "Evaluation of a Simple and Effective Music Information Retrieval Method" (SIGIR 2000).

*Two sets.* The voices of each program find a song with other programs, or with parts added or taken
away. The voices of all programs together find it arranged for one instrument. Drums count only
where the notes with a pitch say nothing, so that a song is found without its drums.

*Sketches.* The share of equal MinHash values estimates the Jaccard similarity J of two sets, with a
standard error of sqrt(J (1 - J) / SKETCH), 0.029 at J = 0.12; with their sizes it estimates the
containment of the smaller set A in the other one B, J / (1 + J) * (|A| + |B|) / |A| (both: Broder,
"On the Resemblance and Containment of Documents", 1997). Containment finds a song that was cut or
lost parts, where J is low.

*Search.* Banding (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4): songs
that agree in all values of a band are compared. This is done with sorted columns, not with
datasketch's ``MinHashLSH``, which keeps Python dictionaries: it took 19 KB a song with 64 bands of
two, where the row of a song has 1 KB, and it answers with whole buckets, which is quadratic where
thousands of files are one piece. 108,023 rows take 12 s on one core here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

from midigenre.arrays import Bools, Ints, Keys, Longs, components, scramble
from midigenre.corpora.base import Progress, no_progress
from midigenre.midi.song import DRUMS, Song

Rows = NDArray[np.intp]

SKETCH = 128
"""MinHash values of a set."""

ROW = 2 * (SKETCH + 1)
"""Numbers of a song: for each of the two sets its MinHash values and its size."""

INTERVALS = 7
"""Intervals of a pattern, so one note more."""

PITCH_CLASSES = 4
"""Fewest pitch classes of a pattern."""

STEPS = 2
"""Fewest seconds (or sevenths, ninths) in a pattern: figures of chord tones have none."""

REPEATS = 8
"""A pattern that comes more often in its voices than this is an accompaniment or a beat."""

CHORDS = (16, 8)
"""Notes within ``1 / CHORDS`` of a quarter note are one onset, in one reading and in the other.

The finer one keeps fast runs of a song played faster, the coarser one joins chords that a player
spread over two positions of the grid. Where it makes no difference the patterns are the same.
"""

HITS = 8
"""Onsets of a drum pattern; each is the set of drums that sound together."""

DRUM_SETS = 4
"""Fewest different sets of drums in a drum pattern."""

DRUM_PERIOD = 4
"""Drum patterns that repeat after so many onsets or fewer are a beat that many songs share."""

MIN_PATTERNS = 20
"""A set with fewer patterns says nothing."""

MIN_JACCARD = 0.12
"""Least Jaccard similarity of a pair, over values that at most :data:`RARE` songs hold."""

RARE = 32
"""Values that more songs hold count only for pairs with :data:`CERTAIN`, versions of a hit."""

CERTAIN = 0.5
"""Jaccard similarity over all values that needs no rare ones."""

MIN_CONTAINMENT = 0.55
"""Least containment of the smaller set of a pair."""

SHIFTS = (1, 2)
"""Bands are pairs of a value and the one so many later: 256 bands of two.

A pair of songs that agree in 16 of 128 values (J = 0.125) shares a band in 98% of cases. Bands of
one value would compare too many songs.
"""

NEIGHBOURS = 4
"""Songs of a bucket are compared with so many next ones and with the first one, not with all."""

_CHUNK = 1 << 15  # pairs compared at once: 2 x 17 MB
_EMPTY = MinHash(SKETCH, seed=1, scheme="affine32", hashfunc=int)


def sketch(song: Song) -> NDArray[np.uint32]:
    """The patterns of a song in a few numbers, to be compared by :func:`near_pairs`.

    They are the same whatever the key, the tempo, the programs and the velocities, and alike
    whatever the grid. A fine grid finds more: of songs whose ticks were squeezed to 80% all are
    found with 24 positions a beat, 93% with 8, and 77% with 4. Songs cleaned with
    ``tracks="merged"`` have their drums among their notes, those with ``"melody"`` lose their lower
    voices: compare them with their like alone, and expect less.

    Returns:
        For the voices of each program and for those of all programs together: ``SKETCH`` MinHash
        values and the number of patterns, shape (ROW,). All zeros for a set with fewer than
        :data:`MIN_PATTERNS` patterns: it never matches.
    """
    row = np.zeros((2, SKETCH + 1), np.uint32)
    for part, found in zip(row, patterns(song), strict=True):
        if len(found):
            made = _EMPTY.copy()
            made.update_batch(found.tolist())
            part[:-1], part[-1] = made.hashvalues, len(found)
    return row.ravel()


def patterns(song: Song) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Hashes of the patterns by program and of all programs together, each of shape (patterns,).

    Those of drums, if there are no others, are in the first set. Each set is ascending, and empty
    with fewer than :data:`MIN_PATTERNS`.
    """
    notes = song.notes
    pitched = notes.select(notes.program != DRUMS)
    by_program: list[Keys] = []
    together: list[Keys] = []
    for slack in {song.tpq // chord for chord in CHORDS}:
        by_program.append(_melodic(pitched.program, pitched.onset, pitched.pitch, slack))
        one = np.zeros_like(pitched.program)
        several = len(one) > 0 and (pitched.program != pitched.program[0]).any()
        voices = _melodic(one, pitched.onset, pitched.pitch, slack) if several else by_program[-1]
        together.append(voices)
    first, second = (_hashes(np.concatenate(codes)) for codes in (by_program, together))
    if len(first) == len(second) == 0:
        drums = notes.select(notes.program == DRUMS)
        beats = [_rhythmic(drums.onset, drums.pitch, song.tpq // chord) for chord in CHORDS]
        first = _hashes(np.concatenate(beats))
    return first, second


def near_pairs(sketches: NDArray[np.uint32], progress: Progress = no_progress) -> Longs:
    """Pairs of songs that are one piece, enough of them to link all songs of a piece.

    Either of their two sets agrees: an estimated Jaccard similarity of :data:`MIN_JACCARD` and an
    estimated containment of :data:`MIN_CONTAINMENT` or more. The groups that they make do not
    depend on the order of the songs.

    Args:
        sketches: Rows of :func:`sketch`, shape (songs, ROW); may be a memory map.
        progress: Called after every band.

    Returns:
        Pairs of rows of ``sketches``, the smaller one first, each once and ascending, shape (pairs,
        2). Of n songs that are one piece there are O(n) pairs, of n equal ones n - 1.

    Raises:
        ValueError: The sketches have another shape.
    """
    if sketches.ndim != 2 or sketches.shape[1] != ROW:
        raise ValueError(f"sketches of shape {sketches.shape}, not (songs, {ROW})")
    found = [np.zeros((0, 2), np.intp)]
    for which in range(2):
        half = sketches[:, which * (SKETCH + 1) : (which + 1) * (SKETCH + 1)]
        distinct, copies = _distinct(half)
        found.append(copies)
        common = _common(half, distinct)
        group = np.arange(len(distinct))
        bands = [(i, (i + shift) % SKETCH) for shift in SHIFTS for i in range(SKETCH)]
        for band, (one, other) in enumerate(bands):
            key = half[distinct, one].astype(np.uint64) << np.uint64(32) | half[distinct, other]
            links = [np.zeros((0, 2), np.intp)]
            for a, b in _candidates(key):
                apart = np.flatnonzero(group[a] != group[b])
                for i in range(0, len(apart), _CHUNK):
                    p, q = a[apart[i : i + _CHUNK]], b[apart[i : i + _CHUNK]]
                    alike = _alike(half[distinct[p]], half[distinct[q]], common[p])
                    links.append(np.stack([p[alike], q[alike]], axis=1))
            new = np.concatenate(links)
            if len(new):
                group = _joined(group, new)
                found.append(distinct[new])
            progress("comparing songs", which * len(bands) + band + 1, 2 * len(bands))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0).astype(np.int64)


def _joined(group: Longs, links: NDArray[np.intp]) -> Longs:
    """The group of each row after these rows were linked: what is one need not be compared."""
    joined: Longs = components(len(group), group[links])[group]
    return joined


def _distinct(half_NS: NDArray[np.uint32]) -> tuple[Rows, NDArray[np.intp]]:
    """One row of each set that says something, and pairs of it and each row that equals it.

    In an order that follows from the content, on which the neighbours within a bucket depend.
    """
    rows = np.flatnonzero(half_NS[:, -1])
    digest = np.zeros(len(rows), np.uint64)
    for column in range(half_NS.shape[1]):
        digest = scramble(digest + half_NS[rows, column])
    order = np.argsort(digest, kind="stable")
    rows, digest = rows[order], digest[order]
    new = _is_new(digest)
    distinct = rows[new]
    return distinct, np.stack([distinct[np.cumsum(new) - 1], rows], axis=1)[~new]


def _common(half_NS: NDArray[np.uint32], rows: Rows) -> Bools:
    """Which values of the rows more than RARE of them hold, shape (rows, SKETCH)."""
    common = np.zeros((len(rows), SKETCH), bool)
    for column in range(SKETCH):
        values = half_NS[rows, column]
        order = np.argsort(values)
        new = _is_new(values[order])
        holders = np.diff(np.append(np.flatnonzero(new), len(new)))
        common[order, column] = (holders > RARE)[np.cumsum(new) - 1]
    return common


def _candidates(key: Keys) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows of one bucket, those with the same key: both rows, each of shape (pairs,)."""
    order = np.argsort(key, kind="stable")
    new = _is_new(key[order])
    bucket = np.cumsum(new)
    for step in range(1, NEIGHBOURS + 1):
        same = np.flatnonzero(bucket[step:] == bucket[:-step])
        yield order[same], order[same + step]
    first = np.flatnonzero(new)[bucket - 1]
    far = np.flatnonzero(np.arange(len(order)) - first > NEIGHBOURS)
    yield order[first[far]], order[far]


def _alike(a_PS: NDArray[np.uint32], b_PS: NDArray[np.uint32], common_PS: Bools) -> Bools:
    """Whether the sets of each row are of one piece, shape (pairs,)."""
    same = a_PS[:, :-1] == b_PS[:, :-1]
    jaccard, rare = same.mean(axis=1), (same & ~common_PS).mean(axis=1)
    sizes = np.stack([a_PS[:, -1], b_PS[:, -1]]).astype(np.float64)
    containment = jaccard / (1 + jaccard) * sizes.sum(axis=0) / sizes.min(axis=0)
    alike: Bools = ((rare >= MIN_JACCARD) | (jaccard >= CERTAIN)) & (containment >= MIN_CONTAINMENT)
    return alike


def _hashes(codes: Keys) -> NDArray[np.uint32]:
    """The different codes as 32-bit hashes; none if they are too few."""
    found = np.unique((scramble(np.unique(codes)) >> np.uint64(32)).astype(np.uint32))
    return found if len(found) >= MIN_PATTERNS else found[:0]


def _melodic(part: Ints, onset: Ints, pitch: Ints, slack: int) -> Keys:
    """Keys of the patterns of the top and the bottom voice of every part, shape (patterns,)."""
    if len(pitch) == 0:
        return np.zeros(0, np.uint64)
    order = np.lexsort((onset, part))
    part, onset, pitch = part[order], onset[order], pitch[order]
    starts = np.flatnonzero(_is_new(part) | (np.diff(onset, prepend=onset[0]) > slack))
    voices = [outer.reduceat(pitch, starts) for outer in (np.maximum, np.minimum)]
    return np.concatenate([_intervals(part[starts], voice) for voice in voices])


def _intervals(part: Ints, pitch: Ints) -> Keys:
    """Keys of the patterns of the voices of the parts, one after the other, shape (patterns,).

    Left out are patterns with few pitch classes, scales, figures that repeat within the pattern,
    figures of chord tones, and patterns that come again and again: what unrelated songs share.
    """
    sounding = _is_new(part) | (np.diff(pitch, prepend=pitch[0]) % 12 != 0)
    part, pitch = part[sounding], pitch[sounding] % 12
    n = len(pitch) - INTERVALS
    if n < 1:
        return np.zeros(0, np.uint64)
    intervals = np.diff(pitch) % 12
    heard = np.zeros(n, np.uint16)  # one bit a pitch class
    code = np.zeros(n, np.uint64)
    for i in range(INTERVALS + 1):
        heard |= np.left_shift(np.uint16(1), pitch[i : i + n].astype(np.uint16))
    for i in range(INTERVALS):
        code = code * np.uint64(12) + intervals[i : i + n].astype(np.uint64)
    telling = (part[:n] == part[INTERVALS:]) & (np.bitwise_count(heard) >= PITCH_CLASSES)
    telling &= ~_periodic(intervals, INTERVALS, INTERVALS // 2)
    up, down = (intervals == 1) | (intervals == 2), (intervals == 10) | (intervals == 11)
    telling &= (_sums(up, INTERVALS) < INTERVALS) & (_sums(down, INTERVALS) < INTERVALS)
    telling &= _sums(up | down, INTERVALS) >= STEPS
    held, times = np.unique(code[telling], return_counts=True)
    return held[times <= REPEATS]


def _rhythmic(onset: Ints, pitch: Ints, slack: int) -> Keys:
    """Keys of the different patterns of drums, shape (patterns,)."""
    if len(pitch) == 0:
        return np.zeros(0, np.uint64)
    starts = np.flatnonzero(np.diff(onset, prepend=onset[0] - slack - 1) > slack)
    drums = np.zeros((len(starts), 2), np.uint64)  # one bit a drum
    which = np.searchsorted(starts, np.arange(len(onset)), side="right") - 1
    np.bitwise_or.at(
        drums, (which, pitch // 64), np.left_shift(np.uint64(1), (pitch % 64).astype(np.uint64))
    )
    hits = scramble(scramble(drums[:, 0]) + drums[:, 1])
    n = len(hits) - HITS + 1
    if n < 1:
        return np.zeros(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(hits, HITS)
    different = (np.diff(np.sort(windows, axis=1), axis=1) != 0).sum(axis=1) + 1
    telling = (different >= DRUM_SETS) & ~_periodic(hits, HITS, DRUM_PERIOD)
    code = np.ones(n, np.uint64)
    for i in range(HITS):
        code = scramble(code + windows[:, i])
    held, times = np.unique(code[telling], return_counts=True)
    return held[times <= REPEATS]


def _periodic(values: NDArray[Any], length: int, longest: int) -> Bools:
    """Whether each run of ``length`` values repeats with a period of at most ``longest``."""
    found = np.zeros(len(values) - length + 1, bool)
    for period in range(1, longest + 1):
        within = length - period
        found |= _sums(values[period:] == values[:-period], within) == within
    return found


def _sums(values: Bools, length: int) -> Longs:
    """How many of each run of ``length`` values are true, shape (values - length + 1,)."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    found: Longs = sums[length:] - sums[:-length]
    return found


def _is_new(values: NDArray[Any]) -> Bools:
    """Whether each value differs from the one before it; the first one does."""
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return new
