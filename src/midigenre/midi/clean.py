"""MIDI bytes to a clean, quantised song, and the bar grid that every tokenizer shares.

A file is read with symusic, then *cleaned*: onsets snap to the grid of the meter in force,
durations are at least one step and at most ``max_duration_beats``, meters start on barlines, tempo
changes are finite and never repeat, and notes lie in one canonical order. Bars are computed after
this, so that a note quantised across a barline belongs to the bar in which it then stands, and a
phrase holds the same notes whichever tokenizer encodes it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick, TimeSignatureTick

from midigenre.arrays import Ints, Longs
from midigenre.errors import RefusedSongError
from midigenre.midi.channels import played
from midigenre.midi.repair import MAX_BYTES, count, well_formed
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

REFUSALS = {
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
    "split_conflict": "a byte-identical file stands in a later one of the given splits",
    "dropped_label": "labels.map leaves its class out",
    "rare_label": "its class has fewer songs than labels.min_songs",
    "not_written": "the source's own format could not be written as MIDI",
}
"""Every reason for which a song is refused; ``refused.csv`` has no other."""

NEUTRAL_VELOCITY = 64


def read_score(
    data: bytes, repairs: dict[str, int] | None = None, max_bytes: int = MAX_BYTES
) -> ScoreTick:
    """Parses the bytes of a MIDI file, damaged ones as far as they can be understood.

    Notes end, and have the programs, as the channels of the file play them
    (:mod:`midigenre.midi.channels`).

    Args:
        data: Bytes of a file, of any kind (:func:`midigenre.midi.repair.well_formed`).
        repairs: How often each repair was made is added to it.
        max_bytes: Largest size, before and after unpacking.

    Raises:
        RefusedSongError: ``unreadable``, ``too_large`` or ``several_songs``; the detail says what
            was seen.
    """
    repairs = {} if repairs is None else repairs
    file = well_formed(data, max_bytes)
    for what, n in file.repairs.items():
        count(repairs, what, n)
    return played(file, repairs)


def clean(score: ScoreTick, grid: Grid, *, tracks: str = "all", neutral: bool = False) -> Song:
    """Quantises a score to ``grid`` and puts it in order.

    Args:
        score: Any score in ticks; not changed.
        grid: The grid.
        tracks: ``all`` keeps every note in its track; ``merged`` puts all of them, drums too, into
            one piano track; ``melody`` keeps the highest line alone, in a piano track
            (:func:`skyline`).
        neutral: Put everything at 120 quarter notes a minute and one velocity. Together with
            ``tracks="merged"`` only pitch, rhythm and meter are left.

    Raises:
        RefusedSongError: ``empty`` or ``too_long``.
    """
    repairs: dict[str, int] = {}
    raw = _gather(score, tracks, neutral, repairs)
    if len(raw["onset"]) == 0:
        what = "a pitched note (tracks=melody)" if tracks == "melody" else "a note"
        raise RefusedSongError("empty", f"{len(score.tracks)} tracks, none with {what}")
    tpq = grid.tpq
    scale = tpq / score.ticks_per_quarter
    section_ticks, section_meters = _sections(score.time_signatures, scale, grid, repairs)
    section_steps = np.array([_ticks(grid, m)[1] for m in section_meters], np.int64)

    starts = raw["onset"] * scale
    onset, section = _snap(starts, section_ticks, section_steps)
    step = section_steps.take(section)
    # A beat is the denominator only on a grid by beat; otherwise it is the quarter note.
    longest = grid.max_duration_beats * grid.beat_resolution
    steps = np.floor(raw["duration"] * scale / step + 0.5)
    count(repairs, "durations clamped", int(np.count_nonzero((steps < 1) | (steps > longest))))
    duration = (np.minimum(np.maximum(steps, 1), longest) * step).astype(np.int64)
    if tracks == "melody":
        line = skyline(onset, onset + duration, raw["pitch"])
        raw = {name: column[line] for name, column in raw.items()}
        starts, onset, duration, step = starts[line], onset[line], duration[line], step[line]
    if grid.cut_overlaps:
        # Note-offs are events of their own: they snap to the grid of the meter in which they lie.
        ends = onset + np.minimum(raw["duration"] * scale, longest * step)
        kept = section_ticks[section_ticks <= onset.max()]  # the song has no later meter
        duration = np.maximum(_snap(ends, kept, section_steps[: len(kept)])[0] - onset, step)

    last_onset = int(onset.max())
    bar_ticks, meters = _bars(last_onset, section_ticks, section_meters, grid)
    notes = _without_duplicates(_table(raw | {"onset": onset, "duration": duration}), repairs)
    if tracks == "melody":
        room = np.diff(notes.onset, append=np.iinfo(np.int32).max)
        notes = replace(notes, duration=np.minimum(notes.duration, room))
    if grid.cut_overlaps:
        notes = _without_overlaps(notes, repairs)
    raw_ticks, raw_qpm = _tempo_map(score)
    # The grid stretches no time: a barline lies at the same beat of the file.
    seconds = seconds_at(bar_ticks / scale, raw_ticks, raw_qpm, score.ticks_per_quarter)
    if neutral:
        tempo_ticks, tempo_qpm = np.zeros(1, np.int32), np.array([DEFAULT_TEMPO])
    else:
        tempo_ticks, tempo_qpm = _tempos(raw_ticks * scale, raw_qpm, section_ticks, section_steps)
        inside = tempo_ticks <= last_onset
        tempo_ticks, tempo_qpm = tempo_ticks[inside], tempo_qpm[inside]
    return Song(notes, tpq, bar_ticks, meters, tempo_ticks, tempo_qpm, repairs, seconds)


def skyline(onset: Longs, end: Longs, pitch: Longs) -> NDArray[np.bool_]:
    """The highest line of a texture: notes above (or level with) all that sound at their onset.

    Uitdenbogerd and Zobel, "Manipulation of Music for Melody Matching" (ACM Multimedia 1998), call
    it ``all-mono``: of all tracks but the drums, the highest of the simultaneous notes. Here a held
    note counts as sounding until its end, so that an accompaniment below it stays out.

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


_THEIR_NAMES = {
    "onset": "time",
    "duration": "duration",
    "pitch": "pitch",
    "velocity": "velocity",
}
"""Our columns, but for the program, by symusic's names."""


def _gather(
    score: ScoreTick, tracks: str, neutral: bool, repairs: dict[str, int]
) -> dict[str, Longs]:
    """The notes of all tracks as columns in the score's own ticks."""
    chosen = [t for t in score.tracks if not (t.is_drum and tracks == "melody")]
    columns, lengths = note_columns(chosen)
    raw: dict[str, Longs] = {
        name: columns[theirs].astype(np.int64) for name, theirs in _THEIR_NAMES.items()
    }
    programs = [DRUMS if track.is_drum else int(track.program) for track in chosen]
    raw["program"] = np.repeat(np.array(programs, np.int64), lengths)
    # Bytes over 127 wrap to negative numbers in scores that did not come through `read_score`.
    usable = (raw["pitch"] >= 0) & (raw["onset"] >= 0)
    if not usable.all():
        count(repairs, "notes out of range", int((~usable).sum()))
        raw = {name: column[usable] for name, column in raw.items()}
    raw["velocity"] = np.minimum(np.maximum(raw["velocity"], 1), 127)
    if tracks != "all":
        raw["program"][:] = 0
    if neutral:
        raw["velocity"][:] = NEUTRAL_VELOCITY
    return raw


def _sections(
    events: Iterable[TimeSignatureTick], scale: float, grid: Grid, repairs: dict[str, int]
) -> tuple[Ints, list[Meter]]:
    """Stretches of one meter: their start ticks and their meters.

    A change inside a bar waits for the next barline (MIDI 1.0 Detailed Specification, time
    signature meta event; MidiTok does the same). 4/4 holds from tick 0 to a late first one.
    """
    ticks, meters = [0], [DEFAULT_METER]
    bar, step = _ticks(grid, DEFAULT_METER)
    # Sorting is stable: of two changes at one tick the later event wins.
    for event in sorted(events, key=lambda e: e.time):
        meter = grid.supported(event.numerator, event.denominator)
        count(repairs, "meters replaced", int(meter != (event.numerator, event.denominator)))
        after = max(0.0, event.time * scale - ticks[-1])
        # Snap to the grid first, so that a change one raw tick late does not wait a whole bar.
        snapped = int(np.floor(after / step + 0.5)) * step
        tick = ticks[-1] + -(-snapped // bar) * bar
        count(repairs, "meter changes moved to a barline", int(snapped % bar != 0))
        if tick == ticks[-1]:
            meters[-1] = meter
        elif meter != meters[-1]:
            ticks.append(tick)
            meters.append(meter)
        bar, step = _ticks(grid, meters[-1])
    return np.array(ticks, np.int64), meters


@lru_cache(maxsize=1024)
def _ticks(grid: Grid, meter: Meter) -> tuple[int, int]:
    """Ticks of a bar and of a position."""
    return grid.bar_ticks(meter), grid.step_ticks(meter)


def _snap(
    times: NDArray[np.floating[Any]], section_ticks: Ints, step: Longs
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Nearest grid positions of raw times (halves go up) and the sections in which they lie.

    Args:
        times: Times in ticks of the cleaned song, 0 or more.
        section_ticks: Where each section starts; the first at 0.
        step: Ticks of a position in each section.
    """
    if len(section_ticks) == 1:
        only = np.floor(times / step[0] + 0.5).astype(np.int64) * step[0]
        return only, np.zeros(len(only), np.intp)
    section = np.searchsorted(section_ticks, times, side="right") - 1
    offset = np.floor((times - section_ticks[section]) / step[section] + 0.5).astype(np.int64)
    snapped = section_ticks[section] + offset * step[section]
    # A time just before a change of meter may have snapped onto it.
    return snapped, np.searchsorted(section_ticks, snapped, side="right") - 1


def _bars(
    last_onset: int, section_ticks: Ints, section_meters: list[Meter], grid: Grid
) -> tuple[Ints, Ints]:
    """Bar starts (and the end of the last bar) up to the bar of the last onset, and meters."""
    ticks: list[NDArray[np.int64]] = []
    meters: list[Meter] = []
    n_bars, end = 0, 0
    for i, (start, meter) in enumerate(zip(section_ticks.tolist(), section_meters, strict=True)):
        if start > last_onset:
            break
        bar = _ticks(grid, meter)[0]
        stop = int(section_ticks[i + 1]) if i + 1 < len(section_ticks) else last_onset + 1
        n = -(-(min(stop, last_onset + 1) - start) // bar)
        n_bars += n
        if n_bars > grid.max_song_bars:
            raise RefusedSongError(
                "too_long", f"more than {grid.max_song_bars} bars (tokenizer.max_song_bars)"
            )
        ticks.append(start + bar * np.arange(n))
        meters += [meter] * n
        end = start + bar * n
    return (
        np.concatenate([*ticks, [end]]).astype(np.int32),
        np.array(meters, np.int32).reshape(-1, 2),
    )


_BITS = {"onset": 31, "program": 8, "pitch": 7, "duration": 17}
"""Bits of a note's columns in a key of 63 bits that sorts notes as :class:`NoteTable` has them."""


def _table(columns: Mapping[str, Longs]) -> NoteTable:
    """The notes in canonical order; those that differ only in velocity keep theirs.

    One sort of packed keys takes a third of the time of a sort by four columns.
    """
    if any(columns[name].max() >> bits for name, bits in _BITS.items()):
        return NoteTable.of(**columns)
    key = columns["onset"].copy()
    for name in ("program", "pitch", "duration"):
        key <<= _BITS[name]
        key += columns[name] - DRUMS if name == "program" else columns[name]
    # Tracks are mostly in order already: merging them takes a quarter of the time of a quicksort.
    order = np.argsort(key, kind="stable")
    return NoteTable(*(columns[name].take(order).astype(np.int32) for name in NOTE_COLUMNS))


def _without_duplicates(notes: NoteTable, repairs: dict[str, int]) -> NoteTable:
    """One note for each (onset, program, pitch): the longest one, at the loudest velocity."""
    same = notes.onset[1:] == notes.onset[:-1]
    for column in (notes.program, notes.pitch):
        same &= column[1:] == column[:-1]
    if not same.any():
        return notes
    count(repairs, "duplicate notes", int(same.sum()))
    first = np.flatnonzero(np.r_[True, ~same])
    kept = notes.select(np.r_[~same, True])  # sorted by duration last: the longest of each
    return NoteTable(
        kept.onset,
        kept.duration,
        kept.pitch,
        np.maximum.reduceat(notes.velocity, first),
        kept.program,
    )


def _without_overlaps(notes: NoteTable, repairs: dict[str, int]) -> NoteTable:
    """Ends each note where the same program starts the same pitch again."""
    order = np.lexsort((notes.onset, notes.pitch, notes.program))
    onset, duration = notes.onset[order], notes.duration[order].copy()
    same = (np.diff(notes.pitch[order]) == 0) & (np.diff(notes.program[order]) == 0)
    room = np.where(same, np.diff(onset), np.iinfo(np.int32).max)
    count(repairs, "overlaps cut", int((duration[:-1] > room).sum()))
    duration[:-1] = np.minimum(duration[:-1], room)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return NoteTable.of(notes.onset, duration[back], notes.pitch, notes.velocity, notes.program)


def _tempo_map(score: ScoreTick) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ticks and tempi of a file: finite, in order, the first at tick 0."""
    pairs = [(max(0, e.time), e.qpm) for e in sorted(score.tempos, key=lambda e: e.time)]
    usable = [(time, qpm) for time, qpm in pairs if math.isfinite(qpm) and qpm > 0]
    if not usable or usable[0][0] > 0:
        usable.insert(0, (0, DEFAULT_TEMPO))
    ticks, qpm = np.array(usable, np.float64).T
    return ticks, qpm


def _tempos(
    times: NDArray[np.float64],
    qpm: NDArray[np.float64],
    section_ticks: Ints,
    section_steps: Longs,
) -> tuple[Ints, NDArray[np.float64]]:
    """A tempo map on the grid: one tempo a tick (the last), each other than the one before."""
    ticks, _ = _snap(times, section_ticks, section_steps)
    if len(ticks) > 1:
        last_of_tick = np.r_[np.diff(ticks) != 0, True]
        ticks, qpm = ticks[last_of_tick], qpm[last_of_tick]
        changed = np.r_[True, np.diff(qpm) != 0]
        ticks, qpm = ticks[changed], qpm[changed]
    return ticks.astype(np.int32), qpm
