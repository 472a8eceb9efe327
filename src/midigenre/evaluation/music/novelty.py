"""Is a piece copied? Runs of notes and of bars that it shares with the training set.

A *run* is a stretch of one song that occurs note by note (or bar by bar) in another.

**Notes.** All pitched notes of a song are one line, in the order of onset and pitch; notes doubled
by several programs count once, drums not at all. Two stretches are the same run where pitches and
the times between successive onsets are the same; durations, velocities, programs and tempo do not
count.

**Bars.** Consecutive bars with equal contents, :func:`.descriptors.bar_keys`. An empty bar is never
like another: silence is not a copy.

A longest shared run is found by bisection over its length: all stretches of one length are hashed
at once, and those of the training set looked up among the samples'. A training set costs 12 bytes
per note and one pass for each length that is tried, whatever it repeats. (A suffix array of it
would take several times the memory and sorting; a search by seeds would stall on repeated notes.)
Hashes have 64 bits: among 10^6 stretches of samples and 10^8 of training songs one false match is
expected in 10^5 judgements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from midigenre.arrays import Ints, Keys, Longs, splitmix64
from midigenre.errors import UserError
from midigenre.evaluation.music.descriptors import bar_keys, bar_of_notes, common_ticks, is_melodic
from midigenre.midi.song import Song

COPIED_ABOVE = 8
"""A piece counts as copied when more consecutive bars than this occur in one training song."""

_BLOCK = 1 << 20  # symbols hashed at once
_FILTER_BITS = 22
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_SEPARATOR = np.uint64(1 << 63)


@dataclass(frozen=True)
class Shared:
    """The longest run that a sample shares with a training song.

    Attributes:
        length: Its notes or bars; 0 where there is none. A run of notes has at least two.
        of: Notes or bars that the sample has.
        sample_bar: Bar of the sample in which the run starts; None where there is none.
        song: Name of a training song that has it (the first); None where there is none.
        song_bar: Bar of that song in which it starts.
        different: How many different bars, or steps from note to note, the run has; 1 is one bar
            (or one repeated note) over and over, which is not surprising to share.
    """

    length: int
    of: int
    sample_bar: int | None = None
    song: str | None = None
    song_bar: int | None = None
    different: int = 0


_Line = tuple[Keys, Ints]
"""A song as a sequence of symbols, and the bar of each (as a run that starts there has it)."""


class _Lines:
    """The lines of the training songs end to end, and the search for runs in them."""

    def __init__(self, lines: Sequence[_Line]) -> None:
        # Each line ends with a symbol that no sample has, so that no run crosses to the next song.
        ends = splitmix64(_SEPARATOR + np.arange(len(lines), dtype=np.uint64))
        ended = [np.append(symbols, end) for (symbols, _), end in zip(lines, ends, strict=True)]
        self.symbols = np.concatenate(ended)
        self.bars = np.concatenate([np.append(bars, np.int32(0)) for _, bars in lines])
        self.starts = np.cumsum([0, *map(len, ended)], dtype=np.int64)

    def longest(self, lines: Sequence[_Line]) -> list[tuple[int, int, int]]:
        """For each line the longest run, its start in the line, and in ``self.symbols``."""
        lengths = np.array([len(symbols) for symbols, _ in lines], np.int64)
        best = np.zeros((len(lines), 3), np.int64)
        # Bisection for all lines at once; what one length shows helps every line.
        most = np.minimum(lengths, int(np.diff(self.starts).max(initial=1)) - 1)
        while (open_ := best[:, 0] < most).any():
            for length in np.unique((best[open_, 0] + most[open_] + 1) // 2).tolist():
                asked = np.flatnonzero((best[:, 0] < length) & (length <= most))
                if not len(asked):  # another length has settled it
                    continue
                for line, found in zip(asked, self._hits(lines, asked, length), strict=True):
                    if found is None:
                        most[line] = length - 1
                    else:
                        best[line] = (length, *found)
        return [(int(n), int(at), int(there)) for n, at, there in best]

    def _hits(
        self, lines: Sequence[_Line], asked: Longs, length: int
    ) -> list[tuple[int, int] | None]:
        """Where each asked line shares a run of this length: in the line, and in the training."""
        hashes = [_windows(lines[i][0], length) for i in asked]
        found: list[tuple[int, int] | None] = [None] * len(hashes)
        missing = list(range(len(hashes)))
        for start in range(0, len(self.symbols), _BLOCK):
            block = _windows(self.symbols[start : start + _BLOCK + length - 1], length)
            wanted = np.unique(np.concatenate([hashes[i] for i in missing]))
            there = _first_places(block, wanted)
            for i in missing:
                place = there[np.searchsorted(wanted, hashes[i])]
                at = int(place.argmin())
                if place[at] < len(block):
                    found[i] = (at, start + int(place[at]))
            # Short runs are all found in the first blocks: what is left to look for shrinks fast.
            missing = [i for i in missing if found[i] is None]
            if not missing:
                break
        return found


class TrainingMusic:
    """A training set in which samples are looked up.

    Args:
        songs: The training songs; read once, so they may come from a generator.
        names: Their names, for the report.

    Raises:
        UserError: No songs.
        ValueError: Names that do not match the songs.
    """

    def __init__(self, songs: Iterable[Song], names: Sequence[str]) -> None:
        self.names = list(names)
        notes, bars = [], []
        for number, song in enumerate(songs):
            notes.append(_note_line(song)[0])
            bars.append(_bar_line(song, number))
        if not bars:
            raise UserError("there are no training songs to compare with")
        if len(bars) != len(self.names):
            raise ValueError(f"{len(self.names)} names for {len(bars)} songs")
        self._notes, self._bars = _Lines(notes), _Lines(bars)

    def __len__(self) -> int:
        return len(self.names)

    def note_runs(self, samples: Sequence[Song]) -> list[Shared]:
        """The longest run of notes that each sample shares with any training song."""
        lines, sizes = zip(*map(_note_line, samples), strict=True) if samples else ((), ())
        # n equal steps between notes join n + 1 notes.
        return self._shared(self._notes, lines, sizes, 1)

    def bar_runs(self, samples: Sequence[Song]) -> list[Shared]:
        """The longest run of equal bars that each sample shares with any training song."""
        # Numbers that no training song has: see _bar_line.
        lines = [_bar_line(sample, len(self) + i) for i, sample in enumerate(samples)]
        return self._shared(self._bars, lines, [sample.n_bars for sample in samples], 0)

    def _shared(
        self, training: _Lines, lines: Sequence[_Line], sizes: Sequence[int], joined: int
    ) -> list[Shared]:
        shared = []
        runs = training.longest(lines)
        for (symbols, bars), size, (length, at, there) in zip(lines, sizes, runs, strict=True):
            if not length:
                shared.append(Shared(0, size))
                continue
            song = int(np.searchsorted(training.starts, there, side="right")) - 1
            different = len(np.unique(symbols[at : at + length]))
            start, song_start = int(bars[at]), int(training.bars[there])
            shared.append(
                Shared(length + joined, size, start, self.names[song], song_start, different)
            )
        return shared


def _note_line(song: Song) -> tuple[_Line, int]:
    """Steps from pitch to pitch as symbols; the number of notes."""
    columns = np.stack([song.notes.onset, song.notes.pitch, bar_of_notes(song)]).astype(np.int64)
    columns = columns[:, is_melodic(song)]
    _, once = np.unique(columns[0] * 128 + columns[1], return_index=True)
    onset, pitch, bar = columns[:, once]
    wait = common_ticks(np.diff(onset), song.tpq)
    steps = pitch[:-1] * 128 + pitch[1:] + (wait << 16)
    return (splitmix64(steps.astype(np.uint64)), bar[:-1].astype(np.int32)), len(pitch)


def _bar_line(song: Song, number: int) -> _Line:
    """Bars as symbols; an empty bar gets one that only this bar of this song (``number``) has."""
    keys, full = bar_keys(song)
    bars = np.arange(song.n_bars, dtype=np.int32)
    alone = splitmix64((np.uint64(number) << np.uint64(20)) + bars.astype(np.uint64))
    return np.where(full, keys, alone), bars


def _windows(symbols: Keys, length: int) -> Keys:
    """Hash of each stretch of ``length`` symbols, shape (n - length + 1,), by its contents alone.

    Karp and Rabin 1987 with the modulus 2^64: sums of symbols times powers of an odd base are taken
    from running sums and divided by the power of their start, that is, multiplied by its inverse.
    The symbols are random numbers already, which such a modulus needs.
    """
    n = len(symbols)
    if n < length:
        return np.zeros(0, np.uint64)
    powers, inverse = _powers(1 << n.bit_length())
    sums = np.zeros(n + 1, np.uint64)
    np.cumsum(symbols * powers[:n], out=sums[1:])
    hashes: Keys = sums[length:] - sums[: n - length + 1]
    hashes *= inverse[: n - length + 1]
    return hashes


@cache
def _powers(n: int) -> tuple[Keys, Keys]:
    """The powers 1 to n of the base and of its inverse."""
    bases = (_BASE, pow(_BASE, -1, 1 << 64))
    powers, inverse = (np.cumprod(np.full(n, base, np.uint64), dtype=np.uint64) for base in bases)
    return powers, inverse


def _first_places(hashes: Keys, wanted: Keys) -> Longs:
    """First place of each wanted hash (sorted) in ``hashes``, their number where it is not."""
    places = np.full(len(wanted), len(hashes), np.int64)
    # Most are ruled out by their upper bits, at a tenth of the cost of a search.
    shift = np.uint64(64 - _FILTER_BITS)
    maybe = np.zeros(1 << _FILTER_BITS, bool)
    maybe[wanted >> shift] = True
    likely = np.flatnonzero(maybe[hashes >> shift])
    slot = np.minimum(np.searchsorted(wanted, hashes[likely]), len(wanted) - 1)
    right = wanted[slot] == hashes[likely]
    # Backwards, so that the first place is the last to be written.
    places[slot[right][::-1]] = likely[right][::-1]
    return places


def novelty(samples: Sequence[Song], training: TrainingMusic) -> dict[str, Any]:
    """What samples share with the training set.

    Returns:
        ``n``; ``notes`` and ``bars``, each with ``median``, ``p90`` and ``max`` of the longest
        shared runs and ``samples`` (a :class:`Shared` of each, as a dictionary); and ``copied``:
        ``n`` and ``share`` of samples that share more than :data:`COPIED_ABOVE` consecutive bars.
        None where there are no samples.
    """
    notes, bars = training.note_runs(samples), training.bar_runs(samples)
    copied = sum(run.length > COPIED_ABOVE for run in bars)
    return {
        "n": len(samples),
        "notes": _summary(notes),
        "bars": _summary(bars),
        "copied": {"n": copied, "share": copied / len(bars) if bars else None},
    }


def novelty_report(
    generated: Sequence[Song], held_out: Sequence[Song], training: TrainingMusic
) -> dict[str, Any]:
    """Novelty of generated music beside that of real music that was not trained on.

    A shared run says nothing by itself: styles have phrases in common, and scales and repeated
    notes are everywhere. The reference is what real songs of other works share with the training
    set.

    Args:
        generated: The samples.
        held_out: Real songs outside of the training set, cut to the length of the samples: a
            longer piece shares longer runs.
        training: The training set.

    Returns:
        ``settings`` (``songs``; runs are sought in the same key and over all programs:
        ``transposed`` and ``by_program`` are false; ``copied_above_bars``) and :func:`novelty` of
        both as ``generated`` and ``held_out``.
    """
    return {
        "settings": {
            "songs": len(training),
            "transposed": False,
            "by_program": False,
            "copied_above_bars": COPIED_ABOVE,
        },
        "generated": novelty(generated, training),
        "held_out": novelty(held_out, training),
    }


def _summary(runs: Sequence[Shared]) -> dict[str, Any]:
    lengths = [run.length for run in runs]
    return {
        "median": float(np.median(lengths)) if runs else None,
        "p90": float(np.percentile(lengths, 90)) if runs else None,
        "max": max(lengths, default=None),
        "samples": [asdict(run) for run in runs],
    }
