"""From music21's measures and notes to MIDI, without music21's own writer.

That writer is slow, expands repeats (and fails where they are badly formed), and its
``makeMeasures`` fails on Essen songs with two meters. Here repeats stay unexpanded, ties become one
note, grace notes are dropped, and barlines fall on the grid of the meter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import symusic
from numpy.typing import NDArray
from symusic.core import NoteTickList, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from midigenre.errors import RefusedSongError

TICKS_PER_QUARTER = 480
VELOCITY = 80  # scores carry few dynamics, and cleaning makes the velocity constant
MAX_SECTION_BARS = 32
"""Longest song cut from a work, in bars: longer works give several songs of a tune's length."""


@dataclass(frozen=True)
class Notation:
    """Notes and bars of a work, in quarter notes from the first barline.

    Attributes:
        parts: Name and notes of each part; rows are onset, end, pitch (0 to 127).
        starts: Start of each bar and the end of the last, ascending, length bars + 1.
        meters: Numerator and denominator of each bar; each bar is exactly as long as its meter.
        padded: Bars that got rests because the measure was short of (or over) its meter.
    """

    parts: list[tuple[str, NDArray[np.float64]]]
    starts: NDArray[np.float64]
    meters: list[tuple[int, int]]
    padded: int = 0


def notation(score: Any, declared: Sequence[tuple[int, int]] = ()) -> Notation:
    """Notes and bars of a music21 score.

    Args:
        score: As :func:`parse` gives it.
        declared: If given, other meters in the score are ignored and the first of these stands at
            the beginning.

    Barlines fall on the grid of the meter: a pickup gets rests before it, measures that share a bar
    (at a repeat sign, say) are one bar, any other short measure gets rests at its end.

    Raises:
        RefusedSongError: No measures, no meter, or no notes.
    """
    parts = list(score.parts) or [score]
    measured = next((p for p in parts if p.hasMeasures()), None)
    if measured is None:
        raise RefusedSongError("not_written", "no measures")
    measures = list(measured.getElementsByClass("Measure"))
    if measures[0].timeSignature is None and not declared:
        raise RefusedSongError("not_written", "no time signature at the beginning")
    old = np.array([float(m.offset) for m in measures] + [float(score.highestTime)])
    meters, meter = [], declared[0] if declared else (4, 4)
    for measure in measures:
        sign = measure.timeSignature
        if sign and (not declared or (sign.numerator, sign.denominator) in declared):
            meter = (sign.numerator, sign.denominator)
        meters.append(meter)
    starts, bar_meters, shift, padded = _grid(old, meters)

    found = []
    for i, part in enumerate(parts):
        rows = _notes(part)
        if len(rows):
            onset, end = rows[:, 0], rows[:, 1]
            onset += shift[np.searchsorted(old[1:-1], onset + 1e-6, side="right")]
            end += shift[np.searchsorted(old[1:-1], end - 1e-6, side="right")]
            # A part without a name has its memory address as id: no two runs would agree.
            found.append((str(part.partName or f"part {i + 1}"), rows))
    if not found:
        raise RefusedSongError("empty", "no pitched notes")
    return Notation(found, starts, bar_meters, padded)


def _grid(
    old: NDArray[np.float64], meters: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.float64], list[tuple[int, int]], NDArray[np.float64], int]:
    """Bars of exactly one meter's length, and how far each measure moves, in quarter notes."""
    eps = 1e-3
    starts, kept, shift, padded = [0.0], [], np.zeros(len(meters)), 0
    i = 0
    while i < len(meters):
        bar = 4 * meters[i][0] / meters[i][1]
        if i == 0 and old[1] - old[0] < bar - eps and len(meters) > 1:  # pickup
            shift[0] = bar - (old[1] - old[0])
            n_bars, j = 1, 1
        else:
            j = i + 1
            while (
                j < len(meters)
                and meters[j] == meters[i]
                and old[j] - old[i] < bar - eps
                and old[j + 1] - old[i] < bar + eps
            ):
                j += 1
            shift[i:j] = starts[-1] - old[i]
            n_bars = max(1, int(np.ceil((old[j] - old[i] - eps) / bar)))
            padded += j < len(meters) and abs(old[j] - old[i] - n_bars * bar) > eps
        for _ in range(n_bars):
            starts.append(starts[-1] + bar)
            kept.append(meters[i])
        i = j
    return np.array(starts), kept, shift, padded


def _notes(part: Any) -> NDArray[np.float64]:
    """Onset, end (quarter notes of the score) and pitch; tied notes are one, grace notes none.

    music21's ``stripTies`` joins a chord only if all its notes are tied, and takes as long as
    parsing; here each pitch is joined for itself.
    """
    rows: list[list[float]] = []
    held: dict[int, int] = {}  # pitch -> row whose tie is open
    for element in part.flatten().notes:
        duration = float(element.duration.quarterLength)
        if duration <= 0 or element.duration.isGrace or "Harmony" in element.classes:
            continue
        onset = float(element.offset)
        for note in element.notes if element.isChord else [element]:
            pitch = getattr(note, "pitch", None)  # None for unpitched percussion
            if pitch is None:
                continue
            key = int(pitch.midi)
            tie = None if note.tie is None else note.tie.type
            row = held.get(key)
            # Monteverdi's and some Trecento encodings mark only where a tie starts.
            if row is not None and abs(rows[row][1] - onset) < 1e-3:
                rows[row][1] = onset + duration
                del held[key]
            else:
                row = len(rows)
                rows.append([onset, onset + duration, float(key)])
            if tie in ("start", "continue"):
                held[key] = row
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def sections(work: Notation, max_bars: int = MAX_SECTION_BARS) -> Iterator[tuple[ScoreTick, int]]:
    """The work in sections of nearly equal length, each a score, with their numbers of bars.

    Bars at the beginning of a section in which no note begins are left out, so that no class is
    known by its rests; so is a section without any onset. A note belongs to the section of its
    onset and ends with it at the latest.
    """
    notes = np.concatenate([rows for _, rows in work.parts])
    starts = work.starts - 1e-6
    bar = np.unique(np.searchsorted(starts, notes[:, 0], side="right") - 1)  # bars with onsets
    last = min(int(np.searchsorted(starts + 2e-6, notes[:, 1].max())), len(work.meters))
    n_sections = -(-(last - int(bar[0])) // max_bars)
    cuts = np.linspace(bar[0], last, n_sections + 1).round().astype(int)
    for begin, end in itertools.pairwise(cuts.tolist()):
        inside = bar[(bar >= begin) & (bar < end)]
        if len(inside):
            yield _section(work, int(inside[0]), end), end - int(inside[0])


def _section(work: Notation, begin: int, end: int) -> ScoreTick:
    ticks = np.rint((work.starts[begin : end + 1] - work.starts[begin]) * TICKS_PER_QUARTER)
    score = ScoreTick(TICKS_PER_QUARTER)
    score.tempos.append(TempoTick(0, qpm=120.0))
    for i, meter in enumerate(work.meters[begin:end]):
        if i == 0 or meter != work.meters[begin + i - 1]:
            score.time_signatures.append(TimeSignatureTick(int(ticks[i]), *meter))
    for name, rows in work.parts:
        rows = rows.copy()
        rows[:, :2] = np.rint((rows[:, :2] - work.starts[begin]) * TICKS_PER_QUARTER)
        rows = rows[(rows[:, 0] >= 0) & (rows[:, 0] < ticks[-1])]
        if not len(rows):
            continue
        # MIDI cannot hold a pitch twice in a channel: of two voices in unison the longer note
        # stays, and a note ends where the next one of its pitch begins.
        rows = rows[np.lexsort((-rows[:, 1], rows[:, 0], rows[:, 2]))]
        same = (np.diff(rows[:, 2]) == 0) & (np.diff(rows[:, 0]) == 0)
        rows = rows[np.concatenate([[True], ~same])]
        again = np.flatnonzero(np.diff(rows[:, 2]) == 0)
        rows[again, 1] = np.minimum(rows[again, 1], rows[again + 1, 0])
        rows[:, 1] = np.clip(rows[:, 1], rows[:, 0] + 1, ticks[-1])
        rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
        track = TrackTick(name=name)
        time, stop, pitch = rows.astype(np.int32).T
        velocity = np.full(len(rows), VELOCITY, dtype=np.int8)
        notes = symusic.Note.from_numpy(
            time.copy(), (stop - time).astype(np.int32), pitch.astype(np.int8), velocity
        )
        track.notes = cast(NoteTickList, notes)
        score.tracks.append(track)
    return score
