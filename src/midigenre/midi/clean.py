"""A score to a clean, quantised song, on the bar grid that every tokenizer shares.

Onsets snap to the grid of the meter in force, durations are at least one step and at most
``max_duration_beats``, meters start on barlines, tempo changes are finite and never repeat, and
notes lie in one canonical order. Bars are computed after this, so that a note quantised across a
barline belongs to the bar in which it then lies, and a phrase holds the same notes whichever
tokenizer encodes it.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick

from midigenre.arrays import Bools, Longs
from midigenre.errors import RejectedSongError
from midigenre.midi.song import (
    DEFAULT_METER,
    DEFAULT_TEMPO,
    DRUMS,
    NOTE_COLUMNS,
    Grid,
    Meter,
    NoteTable,
    Song,
    note_columns,
    seconds_at,
)

REJECTIONS = {
    "unreadable": "not a MIDI file, or one that cannot be parsed",
    "several_songs": "a format 2 file of independent sequences",
    "too_large": "larger than prepare.max_file_mb",
    "timed_out": "took longer than prepare.max_seconds",
    "crashed": "the parser died on it",
    "missing": "the file is not there or cannot be opened",
    "not_regular": "a pipe, a device, a socket or a folder by the name of a file",
    "empty": "no notes",
    "changed": "it was written to while the corpus was being prepared",
    "too_long": "more bars than tokenizer.max_song_bars",
    "unlabelled": "no label that the corpus knows",
    "label_conflict": "a byte-identical file carries another label",
    "dropped_label": "labels.map leaves its class out",
    "rare_label": "its class has fewer songs than labels.min_songs",
    "not_written": "the source's own format could not be written as MIDI",
}
"""Every reason for which a song is rejected; ``refused.csv`` has no other."""

NEUTRAL_VELOCITY = 64


def clean(score: ScoreTick, grid: Grid, *, tracks: str = "all", neutral: bool = False) -> Song:
    """Quantises a score to ``grid`` and puts it in order.

    Args:
        score: Any score in ticks; not changed.
        grid: The grid.
        tracks: ``all`` keeps every note in its track; ``merged`` puts all of them, drums too, into
            one piano track; ``melody`` keeps the highest line alone, in a piano track
            (:func:`skyline`).
        neutral: Put everything at 120 quarter notes per minute and one velocity. Together with
            ``tracks="merged"`` only pitch, rhythm and meter are left.

    Raises:
        RejectedSongError: ``empty`` or ``too_long``.
    """
    repairs: Counter[str] = Counter()
    raw = _gather(score, tracks, neutral, repairs)
    if len(raw["onset"]) == 0:
        what = "a pitched note (tracks=melody)" if tracks == "melody" else "a note"
        raise RejectedSongError("empty", f"{len(score.tracks)} tracks, none with {what}")
    scale = grid.tpq / score.ticks_per_quarter
    section_ticks, meters = _sections(score, scale, grid, repairs)
    section_steps = np.array([grid.step_ticks(m) for m in meters], np.int64)

    onset, section = _snap(raw["onset"] * scale, section_ticks, section_steps)
    step = section_steps.take(section)
    # A beat is the denominator only on a grid by beat; otherwise it is the quarter note.
    longest = grid.max_duration_beats * grid.beat_resolution
    steps = np.floor(raw["duration"] * scale / step + 0.5)
    repairs["durations clamped"] += int(np.count_nonzero((steps < 1) | (steps > longest)))
    duration = (np.minimum(np.maximum(steps, 1), longest) * step).astype(np.int64)
    if tracks == "melody":
        line = skyline(onset, onset + duration, raw["pitch"])
        raw = {name: column[line] for name, column in raw.items()}
        onset, duration, step = onset[line], duration[line], step[line]
    last_onset = int(onset.max())
    if grid.cut_overlaps:
        # Note-offs are events of their own: they snap to the grid of the meter in which they lie.
        ends = onset + np.minimum(raw["duration"] * scale, longest * step)
        kept = section_ticks[section_ticks <= last_onset]  # the song has no later meter
        duration = np.maximum(_snap(ends, kept, section_steps[: len(kept)])[0] - onset, step)

    bar_ticks, bar_meters = _bars(last_onset, section_ticks, meters, grid)
    notes = _in_order(raw | {"onset": onset, "duration": duration}, repairs)
    if tracks == "melody":
        room = np.diff(notes.onset, append=np.iinfo(np.int32).max)
        if not grid.cut_overlaps:
            # The next onset may lie on another meter's grid: a duration is whole steps of its own.
            step = section_steps[np.searchsorted(section_ticks, notes.onset, "right") - 1]
            room -= room % step
        notes = replace(notes, duration=np.minimum(notes.duration, room).astype(np.int32))
    if grid.cut_overlaps:
        notes = _without_overlaps(notes, repairs)
    # The tempi of the file: finite, in order, the first at tick 0.
    tempi = [(max(0, e.time), e.qpm) for e in sorted(score.tempos, key=lambda e: e.time)]
    tempi = [(time, qpm) for time, qpm in tempi if math.isfinite(qpm) and qpm > 0]
    if not tempi or tempi[0][0] > 0:
        tempi.insert(0, (0, DEFAULT_TEMPO))
    raw_ticks, raw_qpm = np.array(tempi, np.float64).T
    # The grid stretches no time: a barline lies at the same beat of the file.
    seconds = seconds_at(bar_ticks / scale, raw_ticks, raw_qpm, score.ticks_per_quarter)
    if neutral:
        tempo_ticks, qpm = np.zeros(1, np.int64), np.array([DEFAULT_TEMPO])
    else:
        # One tempo per tick (the last), each different from the one before.
        tempo_ticks, _ = _snap(raw_ticks * scale, section_ticks, section_steps)
        last = np.append(tempo_ticks[1:] != tempo_ticks[:-1], True) & (tempo_ticks <= last_onset)
        tempo_ticks, qpm = tempo_ticks[last], raw_qpm[last]
        changed = np.append(True, qpm[1:] != qpm[:-1])
        tempo_ticks, qpm = tempo_ticks[changed], qpm[changed]
    ticks = tempo_ticks.astype(np.int32)
    return Song(notes, grid.tpq, bar_ticks, bar_meters, ticks, qpm, dict(+repairs), seconds)


def skyline(onset: Longs, end: Longs, pitch: Longs) -> Bools:
    """The highest line of a texture: notes above (or level with) all that sound at their onset.

    Uitdenbogerd and Zobel, "Manipulation of Music for Melody Matching" (ACM Multimedia 1998), call
    it ``all-mono``: of all tracks but the drums, the highest of the simultaneous notes. Here a held
    note counts as sounding until its end, so that an accompaniment below it is excluded.

    Args:
        onset: Onset of each note, in any order, shape (n,).
        end: Where it ends, shape (n,).
        pitch: Its pitch, shape (n,).

    Returns:
        Mask of the notes that make the line, shape (n,). Each onset in it has one pitch; a note may
        sound on into the next one and must be cut there.
    """
    line = np.zeros(len(onset), bool)
    sounding: list[tuple[int, int]] = []  # a heap of (-pitch, end)
    # Of the notes at one onset the highest comes first.
    for i in np.lexsort((-pitch, onset)).tolist():
        while sounding and sounding[0][1] <= onset[i]:
            heapq.heappop(sounding)
        line[i] = not sounding or pitch[i] >= -sounding[0][0]
        heapq.heappush(sounding, (-int(pitch[i]), int(end[i])))
    return line


def _gather(
    score: ScoreTick, tracks: str, neutral: bool, repairs: Counter[str]
) -> dict[str, Longs]:
    """The notes of all tracks as columns in the score's own ticks."""
    chosen = [t for t in score.tracks if not (t.is_drum and tracks == "melody")]
    columns, lengths = note_columns(chosen)
    programs = [DRUMS if track.is_drum else int(track.program) for track in chosen]
    raw: dict[str, Longs] = {
        "onset": columns["time"].astype(np.int64),
        "duration": columns["duration"].astype(np.int64),
        "pitch": columns["pitch"].astype(np.int64),
        "velocity": columns["velocity"].astype(np.int64),
        "program": np.repeat(np.array(programs, np.int64), lengths),
    }
    # Bytes over 127 wrap to negative numbers in scores that did not come through `read_score`.
    usable = (raw["pitch"] >= 0) & (raw["onset"] >= 0)
    if not usable.all():
        repairs["notes out of range"] += int((~usable).sum())
        raw = {name: column[usable] for name, column in raw.items()}
    raw["velocity"] = np.minimum(np.maximum(raw["velocity"], 1), 127)
    if tracks != "all":
        raw["program"][:] = 0
    if neutral:
        raw["velocity"][:] = NEUTRAL_VELOCITY
    return raw


def _sections(
    score: ScoreTick, scale: float, grid: Grid, repairs: Counter[str]
) -> tuple[Longs, list[Meter]]:
    """Stretches of one meter: their start ticks and their meters.

    A change inside a bar waits for the next barline (MIDI 1.0 Detailed Specification, time
    signature meta event; MidiTok does the same). 4/4 holds from tick 0 to a late first one.
    """
    ticks, meters = [0], [DEFAULT_METER]
    # Sorting is stable: of two changes at one tick the later event wins.
    for event in sorted(score.time_signatures, key=lambda e: e.time):
        bar, step = grid.bar_ticks(meters[-1]), grid.step_ticks(meters[-1])
        meter = grid.supported(event.numerator, event.denominator)
        repairs["meters replaced"] += meter != (event.numerator, event.denominator)
        after = max(0.0, event.time * scale - ticks[-1])
        # Snap to the grid first, so that a change one raw tick late does not wait a whole bar.
        snapped = math.floor(after / step + 0.5) * step
        tick = ticks[-1] + -(-snapped // bar) * bar
        repairs["meter changes moved to a barline"] += snapped % bar != 0
        if tick == ticks[-1]:
            meters[-1] = meter
        elif meter != meters[-1]:
            ticks.append(tick)
            meters.append(meter)
    return np.array(ticks, np.int64), meters


def _snap(
    times: NDArray[np.floating[Any]], section_ticks: Longs, step: Longs
) -> tuple[Longs, NDArray[np.intp]]:
    """Nearest grid positions of raw times (halves go up) and the sections in which they lie."""
    if len(section_ticks) == 1:
        only = np.floor(times / step[0] + 0.5).astype(np.int64) * step[0]
        return only, np.zeros(len(only), np.intp)
    section = np.searchsorted(section_ticks, times, side="right") - 1
    offset = np.floor((times - section_ticks[section]) / step[section] + 0.5).astype(np.int64)
    snapped = section_ticks[section] + offset * step[section]
    # A time just before a change of meter may have snapped onto it.
    return snapped, np.searchsorted(section_ticks, snapped, side="right") - 1


def _bars(
    last_onset: int, section_ticks: Longs, section_meters: list[Meter], grid: Grid
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Bar starts (and the end of the last bar) up to the bar of the last onset, and meters."""
    starts = section_ticks[section_ticks <= last_onset]
    meters = np.array(section_meters[: len(starts)], np.int32)
    lengths = np.array([grid.bar_ticks(m) for m in section_meters[: len(starts)]], np.int64)
    n_bars = -((starts - np.append(starts[1:], last_onset + 1)) // lengths)
    if n_bars.sum() > grid.max_song_bars:
        raise RejectedSongError(
            "too_long", f"more than {grid.max_song_bars} bars (tokenizer.max_song_bars)"
        )
    ticks = [s + bar * np.arange(n) for s, bar, n in zip(starts, lengths, n_bars, strict=True)]
    ticks.append(starts[-1:] + lengths[-1] * n_bars[-1])
    return np.concatenate(ticks).astype(np.int32), meters.repeat(n_bars, axis=0)


def _in_order(columns: dict[str, Longs], repairs: Counter[str]) -> NoteTable:
    """The notes in canonical order, one for each (onset, program, pitch).

    Of duplicates the longest one stays, at the loudest velocity.
    """
    onset, duration, pitch, velocity, program = (columns[name] for name in NOTE_COLUMNS)
    place = (onset << 15) + ((program - DRUMS) << 7) + pitch
    if onset.max() >> 31 or duration.max() >> 17:
        order = np.lexsort((duration, place))
    else:
        # One key of 63 bits takes a third of the time of a sort by columns. Tracks are mostly in
        # order already: merging them takes a quarter of the time of a quicksort.
        order = np.argsort((place << 17) + duration, kind="stable")
    place, velocity = place.take(order), velocity.take(order)
    same = place[1:] == place[:-1]
    if same.any():
        repairs["duplicate notes"] += int(same.sum())
        velocity = np.maximum.reduceat(velocity, np.flatnonzero(np.r_[True, ~same]))
        order = order[np.r_[~same, True]]  # sorted by duration last: the longest of each
    onset, duration, pitch, program = (c.take(order) for c in (onset, duration, pitch, program))
    kept = (onset, duration, pitch, velocity, program)
    return NoteTable(*(column.astype(np.int32) for column in kept))


def _without_overlaps(notes: NoteTable, repairs: Counter[str]) -> NoteTable:
    """Ends each note where the same program starts the same pitch again."""
    order = np.lexsort((notes.onset, notes.pitch, notes.program))
    rows = notes.select(order)
    same = (np.diff(rows.pitch) == 0) & (np.diff(rows.program) == 0)
    room = np.where(same, np.diff(rows.onset), np.iinfo(np.int32).max)
    repairs["overlaps cut"] += int((rows.duration[:-1] > room).sum())
    duration = notes.duration.copy()
    duration[order[:-1]] = np.minimum(rows.duration[:-1], room)
    return NoteTable.of(**(notes.columns() | {"duration": duration}))
