"""Duplicates: songs with equal bytes, equal notes or nearly the same melodies stay in one split.

At least a fifth of Lakh's files are duplicates (arXiv 2509.16662): a model that was trained on the
test songs in another key scores well without having learned much.

*Near duplicates* are one piece in another key, tempo, arrangement or cut. A song becomes two sets
of key-invariant note patterns, the sets become a short row of numbers (:func:`sketch`), and songs
whose rows agree become pairs (:func:`near_pairs`).

*Patterns.* Runs of :data:`INTERVALS` melodic intervals modulo 12 along outer voices, the top and
the bottom note of each onset; a repeated pitch class counts once. Rhythm is left out, because a
file whose ticks were stretched has another one after quantisation. So are patterns that unrelated
songs share, see :func:`_intervals`; accompaniments of one style are alike, and a
false pair is worse than a missed one. Interval n-grams as an index of music are those of Downie and
Nelson, "Evaluation of a Simple and Effective Music Information Retrieval Method" (SIGIR 2000).

*Two sets.* The voices of each program find a song with other programs, or with parts added or taken
away. The voices of all programs together find it arranged for one instrument. Drums count only
where the pitched notes are not distinctive, so that a song is found without its drums.

*Sketches.* The share of equal MinHash values estimates the Jaccard similarity J of two sets, with a
standard error of sqrt(J (1 - J) / SKETCH), 0.029 at J = 0.12; with their sizes it estimates the
containment of the smaller set A in the other one B, J / (1 + J) * (|A| + |B|) / |A| (both: Broder,
"On the Resemblance and Containment of Documents", 1997). Containment finds a song that was cut or
lost parts, where J is low.

*Search.* Banding (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4): songs
that agree in all values of a band are compared. Columns are sorted for that: datasketch's
``MinHashLSH`` takes twenty times the memory and answers with whole buckets, which is quadratic
where thousands of files are one piece.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Bools, Ints, Keys, Longs, components, scramble
from midigenre.corpora.base import Progress, SongRef, Unusable, no_progress
from midigenre.midi.song import DRUMS, Song
from midigenre.spec import SPLITS
from midigenre.wording import plural

if TYPE_CHECKING:
    from datasketch import MinHash

GROUPINGS = ("none", "exact", "near")
CONFLICTS = ("reject", "keep")
DUPLICATE_KINDS = ("bytes", "notes", "near")
"""What links a song to its group; the strictest kind that applies."""

MAX_REPORTED = 10  # groups and conflicts that the report names; duplicates.csv has all
NAMED_EACH = 3  # copies of a song, or pairs of classes, that a message names

# Patterns
INTERVALS = 7  # of a pattern, so one note more
MIN_PITCH_CLASSES = 4  # fewest of a pattern
MIN_STEPS = 2  # fewest seconds (or sevenths, ninths) in a pattern: figures of chord tones have none
REPEATS = 8  # a pattern that is more frequent in its voices is an accompaniment or a beat
# Notes within 1 / CHORDS of a quarter note are one onset, under each of the two values. The
# finer one keeps fast runs of a song played faster, the coarser one joins chords that a player
# spread over two positions of the grid. Where it makes no difference the patterns are the same.
CHORDS = (16, 8)
HITS = 8  # onsets of a drum pattern; each is the set of drums that sound together
DRUM_SETS = 4  # fewest different sets of drums in a drum pattern
DRUM_PERIOD = 4  # patterns that repeat after at most this many onsets are a common beat
MIN_PATTERNS = 20  # a set with fewer is ignored

# Sketches
SKETCH = 128  # MinHash values of a set
ROW = 2 * (SKETCH + 1)  # numbers of a song: for each set its MinHash values and its size
MIN_JACCARD = 0.12  # least similarity of a pair, over values that at most RARE songs hold
RARE = 32  # values that more songs hold count only for pairs with CERTAIN, versions of a hit
CERTAIN = 0.5  # similarity over all values that needs no rare ones
MIN_CONTAINMENT = 0.55  # least containment of the smaller set of a pair
# Bands are pairs of values at one of these distances: 256 bands of two. A pair of songs that agree
# in 16 of 128 values (J = 0.125) shares a band in 98% of cases; bands of one value would compare
# too many songs.
SHIFTS = (1, 2)
NEIGHBOURS = 4  # following songs of a bucket, beside its first, that a song is compared with

_CHUNK = 1 << 15  # pairs compared at once: 2 x 17 MB

RowIndices = NDArray[np.intp]


def label_conflicts(
    songs: Sequence[SongRef], digests: Mapping[str, bytes], labels: Sequence[str]
) -> tuple[list[Unusable], list[str]]:
    """Finds byte-identical files with different labels.

    Args:
        songs: The songs.
        digests: Hash of each file by the song's id; empty for one that cannot be read.
        labels: Names of the labels.

    Returns:
        These songs, as ``label_conflict``; remarks that name the pairs of classes.
    """
    by_digest: dict[bytes, list[SongRef]] = defaultdict(list)
    for song in songs:
        by_digest[digests[song.song_id]].append(song)
    by_digest.pop(b"", None)
    found: list[Unusable] = []
    classes: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for same in by_digest.values():
        carried = {label: {song.labels.get(label) for song in same} for label in labels}
        differing = {label: names for label, names in carried.items() if len(names) > 1}
        if not differing:
            continue
        for label, names in differing.items():
            classes[label, tuple(sorted(repr(name) if name else "none" for name in names))] += 1
        more = f" and {len(same) - 1 - NAMED_EACH} more" if len(same) - 1 > NAMED_EACH else ""
        for i, song in enumerate(same):
            others = [o for j, o in enumerate(same[: NAMED_EACH + 1]) if j != i][:NAMED_EACH]
            named = "; ".join(
                f"{o.path} ({', '.join(str(v) for v in o.labels.values())})" for o in others
            )
            detail = f"the same bytes as {named}{more}"
            found.append(Unusable(song.song_id, song.path, "label_conflict", detail, song.labels))
    shown = classes.most_common(NAMED_EACH)
    remarks = [
        f"{plural(n, 'song is listed', 'songs are listed')} under {label} {' and '.join(names)}"
        for (label, names), n in shown
    ]
    if len(classes) > NAMED_EACH:
        rest = classes.total() - sum(n for _, n in shown)
        remarks.append(f"{rest:,} more have {len(classes) - NAMED_EACH} other pairs of classes")
    return found, remarks


def linked_groups(
    ids: Sequence[str], groups: Sequence[str | None], first_copies: Sequence[str | None]
) -> list[str]:
    """One name for all songs linked by a group or as duplicates (union-find).

    Splits and folds are functions of these names. ``first_copies`` has for each song the first one
    of its group of duplicates, if any.
    """
    parent: dict[str, str] = {}

    def root(x: str) -> str:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for song_id, group, first in zip(ids, groups, first_copies, strict=True):
        if group:
            parent[root(f"song:{song_id}")] = root(f"group:{group}")
        if first:
            parent[root(f"song:{song_id}")] = root(f"bytes:{first}")
    return [root(f"song:{song_id}") for song_id in ids]


@dataclass(frozen=True)
class Duplicates:
    """Groups of songs that are the same music.

    Attributes:
        first: Place of the first song of each song's group, int64 (songs,); where it stands alone,
            its own.
        kind: Index into :data:`DUPLICATE_KINDS`, int8 (songs,); -1 where it stands alone.
    """

    first: Longs
    kind: NDArray[np.int8]

    @property
    def grouped(self) -> Bools:
        """Which songs share a group with another, shape (songs,)."""
        return self.kind >= 0

    def members(self) -> dict[int, list[int]]:
        """Places of the songs of each group, by the first one; the largest group first."""
        found: dict[int, list[int]] = defaultdict(list)
        for i in np.flatnonzero(self.grouped).tolist():
            found[int(self.first[i])].append(i)
        return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def find_duplicates(
    file_digests: Sequence[bytes],
    note_digests: NDArray[np.uint8],
    sketches: NDArray[np.uint32],
    grouping: str,
    progress: Progress,
) -> Duplicates:
    """Finds the groups.

    Args:
        file_digests: Hash of each song's file; empty ones equal nothing.
        note_digests: Hash of its notes, shape (songs, bytes).
        sketches: Its :func:`sketch`, shape (songs, ROW).
        grouping: ``none`` finds nothing, ``exact`` equal bytes and equal notes, ``near`` also the
            same piece in another key, tempo or arrangement.
        progress: Called during the search.
    """
    n = len(file_digests)
    if grouping == "none" or n == 0:
        return Duplicates(np.arange(n), np.full(n, -1, np.int8))
    known: dict[bytes, int] = {}
    files = [known.setdefault(d or i.to_bytes(8), len(known)) for i, d in enumerate(file_digests)]
    notes = np.unique(note_digests, axis=0, return_inverse=True)[1].reshape(-1)
    codes = [np.array(files, np.int64), notes]  # equal numbers where the digests are equal
    links = []
    for code in codes:  # each song and the next one of its number
        order = np.argsort(code, kind="stable")
        same = np.flatnonzero(np.diff(code[order]) == 0)
        links.append(np.stack([order[same], order[same + 1]], axis=1))
    if grouping == "near":
        links.append(near_pairs(sketches, progress))
    component = components(n, np.concatenate(links))
    _, first, inverse, sizes = np.unique(
        component, return_index=True, return_inverse=True, return_counts=True
    )
    kind = np.where(sizes[inverse] > 1, DUPLICATE_KINDS.index("near"), -1).astype(np.int8)
    for i, code in ((1, codes[1]), (0, codes[0])):  # the strictest last
        kind[np.bincount(code)[code] > 1] = i
    return Duplicates(first[inverse].astype(np.int64), kind)


def kept_apart(given: Sequence[str], linked: Sequence[str]) -> list[str]:
    """The splits that the source gives, "" for songs that are linked to one in a later split.

    A given test set stays as it is, so that its scores compare with others'. ``linked`` is what
    :func:`linked_groups` gives.
    """
    latest: dict[str, int] = {}
    for split, name in zip(given, linked, strict=True):
        latest[name] = max(SPLITS.index(split), latest.get(name, 0))
    return [
        split if SPLITS.index(split) == latest[name] else ""
        for split, name in zip(given, linked, strict=True)
    ]


def leaked(
    splits: Sequence[str], found: Duplicates, songs: Sequence[SongRef], labels: Sequence[str]
) -> dict[str, Any]:
    """Songs of validation and test that are in training, too, where a split ignores links.

    Returns:
        ``songs``: how many have a duplicate in training, and their ``share`` of validation and
        test; ``contradictory``: how many of them one with another class, of any label; ``groups``:
        how many of validation and test share their group with a training song.
    """
    classes: dict[int, set[tuple[str | None, ...]]] = defaultdict(set)
    groups: set[str | None] = set()
    held = []
    for i, (split, song) in enumerate(zip(splits, songs, strict=True)):
        if split == SPLITS[0]:
            groups.add(song.group)
            if found.grouped[i]:
                classes[int(found.first[i])].add(tuple(song.labels.get(k) for k in labels))
        elif split:
            held.append(i)
    leaks = [i for i in held if int(found.first[i]) in classes]
    return {
        "songs": len(leaks),
        "share": round(len(leaks) / len(held), 4) if held else None,
        "contradictory": sum(
            bool(classes[int(found.first[i])] - {tuple(songs[i].labels.get(k) for k in labels)})
            for i in leaks
        ),
        "groups": sum(songs[i].group is not None and songs[i].group in groups for i in held),
    }


def report(
    found: Duplicates, songs: Sequence[SongRef], labels: Sequence[str], grouping: str
) -> dict[str, Any]:
    """Numbers of groups, the largest ones, and the groups whose songs have different labels."""
    members = found.members()
    conflicts = [
        {"group": songs[first].song_id, "songs": len(of), "label": label, "classes": classes}
        for first, of in members.items()
        for label in labels
        if len(classes := Counter(songs[i].labels.get(label) or "(none)" for i in of)) > 1
    ]
    return {
        "grouping": grouping,
        "groups": len(members),
        "songs": int(found.grouped.sum()),
        "share": round(float(found.grouped.mean()), 4) if len(songs) else None,
        "by_kind": {kind: int((found.kind == i).sum()) for i, kind in enumerate(DUPLICATE_KINDS)},
        "largest": [
            {"group": songs[first].song_id, "songs": len(of),
             "named": [songs[i].song_id for i in of[:MAX_REPORTED]]}
            for first, of in list(members.items())[:MAX_REPORTED]
        ],
        "label_conflicts": {"groups": len({c["group"] for c in conflicts}),
                            "named": conflicts[:MAX_REPORTED]},
    }  # fmt: skip


def rows(
    found: Duplicates, songs: Sequence[SongRef], splits: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of ``duplicates.csv``: every song that is in a group, group by group."""
    return [
        {"group": songs[first].song_id, "kind": DUPLICATE_KINDS[found.kind[i]],
         "song_id": songs[i].song_id,
         "path": str(songs[i].path), "split": splits[i],
         **{k: v or "" for k, v in songs[i].labels.items()}}
        for first, of in found.members().items()
        for i in of
    ]  # fmt: skip


def sketch(song: Song) -> NDArray[np.uint32]:
    """The patterns of a song in a few numbers, to be compared by :func:`near_pairs`.

    They are the same whatever the key, the tempo, the programs and the velocities, and alike
    whatever the grid; a fine grid finds more. Compare songs cleaned with ``tracks="merged"`` or
    ``"melody"`` only with songs cleaned alike, and expect lower recall.

    Returns:
        For the voices of each program and for those of all programs together: ``SKETCH`` MinHash
        values and the number of patterns, shape (ROW,). All zeros for a set with fewer than
        ``MIN_PATTERNS`` patterns: it never matches.
    """
    row = np.zeros((2, SKETCH + 1), np.uint32)
    for half, found in zip(row, patterns(song), strict=True):
        if len(found):
            made = _empty_sketch().copy()
            made.update_batch(found.tolist())
            half[:-1], half[-1] = made.hashvalues, len(found)
    return row.ravel()


@cache
def _empty_sketch() -> MinHash:
    from datasketch import MinHash  # half a second, and whoever predicts sketches nothing

    return MinHash(SKETCH, seed=1, scheme="affine32", hashfunc=int)


def patterns(song: Song) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Hashes of the patterns by program and of all programs together, each of shape (patterns,).

    Those of drums, if there are no others, are in the first set. Each set is ascending, and empty
    with fewer than ``MIN_PATTERNS``.
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

    Either of their two sets agrees: its estimated Jaccard similarity is ``MIN_JACCARD`` and its
    containment ``MIN_CONTAINMENT`` or more. The groups that the pairs make do not depend on the
    order of the songs.

    Args:
        sketches: Rows of :func:`sketch`, shape (songs, ROW); may be a memory map.
        progress: Called after every band.

    Returns:
        Rows of ``sketches``, the smaller one first, each pair once and ascending, shape (pairs, 2).
        Of n songs that are one piece there are O(n) pairs, of n equal ones n - 1.

    Raises:
        ValueError: The sketches have another shape.
    """
    if sketches.ndim != 2 or sketches.shape[1] != ROW:
        raise ValueError(f"sketches of shape {sketches.shape}, not (songs, {ROW})")
    bands = [(i, (i + shift) % SKETCH) for shift in SHIFTS for i in range(SKETCH)]
    found = [np.zeros((0, 2), np.intp)]
    for which in range(2):
        half = sketches[:, which * (SKETCH + 1) : (which + 1) * (SKETCH + 1)]
        distinct, copies = _distinct(half)
        found.append(copies)
        common = _common(half, distinct)
        group = np.arange(len(distinct))
        for band, (one, other) in enumerate(bands):
            key = half[distinct, one].astype(np.uint64) << np.uint64(32) | half[distinct, other]
            links = [np.zeros((0, 2), np.intp)]
            for a, b in _candidates(key):
                apart = np.flatnonzero(group[a] != group[b])  # linked pairs need no comparison
                for i in range(0, len(apart), _CHUNK):
                    p, q = a[apart[i : i + _CHUNK]], b[apart[i : i + _CHUNK]]
                    alike = _alike(half[distinct[p]], half[distinct[q]], common[p])
                    links.append(np.stack([p[alike], q[alike]], axis=1))
            new = np.concatenate(links)
            if len(new):
                group = components(len(group), group[new])[group]
                found.append(distinct[new])
            progress("comparing songs", which * len(bands) + band + 1, 2 * len(bands))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0).astype(np.int64)


def _distinct(half_NS: NDArray[np.uint32]) -> tuple[RowIndices, NDArray[np.intp]]:
    """One row of each set that says something, and pairs of it and each row that equals it.

    Ordered by content, on which the neighbours within a bucket depend.
    """
    rows = np.flatnonzero(half_NS[:, -1])
    digest = np.zeros(len(rows), np.uint64)
    for column in range(half_NS.shape[1]):
        digest = scramble(digest + half_NS[rows, column])
    order = np.argsort(digest, kind="stable")
    rows, new = rows[order], _is_new(digest[order])
    distinct = rows[new]
    return distinct, np.stack([distinct[np.cumsum(new) - 1], rows], axis=1)[~new]


def _common(half_NS: NDArray[np.uint32], rows: RowIndices) -> Bools:
    """Which values of the rows more than RARE of them hold, shape (rows, SKETCH)."""
    common = np.zeros((len(rows), SKETCH), bool)
    for column in range(SKETCH):
        values = half_NS[rows, column]
        order = np.argsort(values)
        new = _is_new(values[order])
        holders = np.diff(np.append(np.flatnonzero(new), len(new)))
        common[order, column] = (holders > RARE)[np.cumsum(new) - 1]
    return common


def _candidates(key: Keys) -> Iterator[tuple[RowIndices, RowIndices]]:
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


def _melodic(program: Ints, onset: Ints, pitch: Ints, slack: int) -> Keys:
    """Keys of the patterns of the top and the bottom voice of every program, shape (patterns,)."""
    if len(pitch) == 0:
        return np.zeros(0, np.uint64)
    order = np.lexsort((onset, program))
    program, onset, pitch = program[order], onset[order], pitch[order]
    starts = np.flatnonzero(_is_new(program) | (np.diff(onset, prepend=onset[0]) > slack))
    voices = [outer.reduceat(pitch, starts) for outer in (np.maximum, np.minimum)]
    return np.concatenate([_intervals(program[starts], voice) for voice in voices])


def _intervals(program: Ints, pitch: Ints) -> Keys:
    """Keys of the patterns of the programs' voices, one after the other, shape (patterns,).

    Left out are patterns with few pitch classes, scales, figures that repeat within the pattern,
    figures of chord tones, and frequent patterns: unrelated songs share all of these.
    """
    sounding = _is_new(program) | (np.diff(pitch, prepend=pitch[0]) % 12 != 0)
    program, pitch = program[sounding], pitch[sounding] % 12
    n = len(pitch) - INTERVALS
    if n < 1:
        return np.zeros(0, np.uint64)
    intervals = np.diff(pitch) % 12
    classes = np.zeros(n, np.uint16)  # one bit per pitch class
    code = np.zeros(n, np.uint64)
    for i in range(INTERVALS + 1):
        classes |= np.left_shift(np.uint16(1), pitch[i : i + n].astype(np.uint16))
    for i in range(INTERVALS):
        code = code * np.uint64(12) + intervals[i : i + n].astype(np.uint64)
    telling = (program[:n] == program[INTERVALS:]) & (
        np.bitwise_count(classes) >= MIN_PITCH_CLASSES
    )
    telling &= ~_periodic(intervals, INTERVALS, INTERVALS // 2)
    up, down = (intervals == 1) | (intervals == 2), (intervals == 10) | (intervals == 11)
    telling &= (_sums(up, INTERVALS) < INTERVALS) & (_sums(down, INTERVALS) < INTERVALS)
    telling &= _sums(up | down, INTERVALS) >= MIN_STEPS
    held, times = np.unique(code[telling], return_counts=True)
    return held[times <= REPEATS]


def _rhythmic(onset: Ints, pitch: Ints, slack: int) -> Keys:
    """Keys of the different patterns of drums, shape (patterns,)."""
    if len(pitch) == 0:
        return np.zeros(0, np.uint64)
    starts = np.flatnonzero(np.diff(onset, prepend=onset[0] - slack - 1) > slack)
    drums = np.zeros((len(starts), 2), np.uint64)  # one bit per drum
    which = np.searchsorted(starts, np.arange(len(onset)), side="right") - 1
    bits = np.left_shift(np.uint64(1), (pitch % 64).astype(np.uint64))
    np.bitwise_or.at(drums, (which, pitch // 64), bits)
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
    sums = np.r_[0, np.cumsum(values, dtype=np.int64)]
    found: Longs = sums[length:] - sums[:-length]
    return found


def _is_new(values: NDArray[Any]) -> Bools:
    """Whether each value differs from the one before it; the first one does."""
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return new
