"""A clean song: its grid, its notes, its bars.

This is the form in which every tokenizer reads music; :mod:`midigenre.midi.clean` makes them
from files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import NoteTickList, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from midigenre.arrays import Floats, Ints

DRUMS = -1
"""Program number of the drum channel, as in MidiTok."""

TRACKS = ("all", "melody", "merged")
"""Which notes of a song are kept, and in which tracks (see :func:`midigenre.midi.clean.clean`)."""

DEFAULT_METER = (4, 4)
DEFAULT_TEMPO = 120.0  # Standard MIDI Files 1.0: quarter notes per minute where none is given

Meter = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """How time is quantised.

    Attributes:
        beat_resolution: Positions in a beat; a beat is the meter's denominator.
        time_signatures: Meters that bars may have; others are rewritten (:meth:`supported`).
        per_beat: False counts ``beat_resolution`` by quarter note whatever the meter, which is
            what tokenizers without time signatures do.
        max_duration_beats: Longest note, in beats.
        max_song_bars: Longer songs are rejected.
        cut_overlaps: Whether a note ends where its own pitch starts again, which note-on/note-off
            streams need to be decodable.
    """

    beat_resolution: int = 8
    time_signatures: tuple[Meter, ...] = ((4, 4),)
    per_beat: bool = True
    max_duration_beats: int = 16
    max_song_bars: int = 4096
    cut_overlaps: bool = False

    def __post_init__(self) -> None:
        if self.beat_resolution < 1 or self.max_duration_beats < 1:
            raise ValueError("beat_resolution and max_duration_beats must be 1 or more")
        if DEFAULT_METER not in self.time_signatures:
            raise ValueError("tokenizer.time_signatures must hold 4/4, the meter of last resort")
        for numerator, denominator in self.time_signatures:
            if numerator < 1 or denominator not in (1, 2, 4, 8, 16, 32):
                raise ValueError(f"{numerator}/{denominator} is not a time signature")
        for numerator, denominator in self.time_signatures:
            if numerator * self.tpq * 4 % denominator or (
                self.per_beat and self.tpq * 4 % (denominator * self.beat_resolution)
            ):
                raise ValueError(
                    f"{numerator}/{denominator} does not fit tokenizer.beat_resolution="
                    f"{self.beat_resolution}; leave it out of tokenizer.time_signatures"
                )

    @cached_property
    def tpq(self) -> int:
        """Ticks per quarter note of every cleaned song.

        One constant for all songs: the finest beat of ``time_signatures`` gets one tick per
        position, as MidiTok's ``time_division`` has it.
        """
        finest = max(denominator for _, denominator in self.time_signatures)
        return self.beat_resolution * finest // 4 if self.per_beat else self.beat_resolution

    def bar_ticks(self, meter: Meter) -> int:
        """Ticks of one bar."""
        return meter[0] * self.tpq * 4 // meter[1]

    def step_ticks(self, meter: Meter) -> int:
        """Ticks of one position of the grid."""
        return self.tpq * 4 // (meter[1] * self.beat_resolution) if self.per_beat else 1

    def supported(self, numerator: int, denominator: int) -> Meter:
        """The meter itself, else one with bars of the same length, else 4/4.

        44/32 becomes 11/8 where that is in the list; 175/4 becomes 4/4.
        """
        for k in (1, 2, 4, 8):
            if (numerator * k, denominator * k) in self.time_signatures:
                return numerator * k, denominator * k
        for k in (2, 4, 8):
            if numerator % k == 0 and denominator % k == 0:
                meter = numerator // k, denominator // k
                if meter in self.time_signatures:
                    return meter
        return DEFAULT_METER


@dataclass(frozen=True)
class NoteTable:
    """Notes as columns, all int32 of shape (n,), times in ticks of the cleaned song.

    Sorted by onset, then program, pitch and duration. ``program`` is :data:`DRUMS` for drums.
    """

    onset: Ints
    duration: Ints
    pitch: Ints
    velocity: Ints
    program: Ints

    def __len__(self) -> int:
        return len(self.onset)

    @classmethod
    def of(cls, onset: Any, duration: Any, pitch: Any, velocity: Any, program: Any) -> NoteTable:
        """From any array-likes, in canonical order."""
        columns = [np.asarray(c, np.int32) for c in (onset, duration, pitch, velocity, program)]
        order = np.lexsort((columns[1], columns[2], columns[4], columns[0]))
        return cls(*(c[order] for c in columns))

    def columns(self) -> dict[str, Ints]:
        """The columns by name."""
        return {name: getattr(self, name) for name in NOTE_COLUMNS}

    def select(self, chosen: slice | NDArray[Any]) -> NoteTable:
        """The chosen rows."""
        return NoteTable(*(column[chosen] for column in self.columns().values()))


NOTE_COLUMNS = ("onset", "duration", "pitch", "velocity", "program")


def note_columns(
    tracks: Iterable[TrackTick],
) -> tuple[dict[str, NDArray[np.integer[Any]]], list[int]]:
    """Columns of the notes of several tracks, end to end.

    Returns:
        ``time``, ``duration``, ``pitch`` and ``velocity``, and how many notes each track has.
    """
    # Adding a track to a list takes symusic a sixth of the time of making arrays of it.
    notes, lengths = NoteTickList(), []
    for track in tracks:
        its = track.notes
        lengths.append(len(its))
        notes.extend(its)
    return notes.numpy(), lengths


def seconds_at(
    ticks: NDArray[Any], tempo_ticks: NDArray[Any], tempo_qpm: Floats, tpq: int
) -> Floats:
    """Time of each tick in seconds, in the shape of ``ticks``.

    Args:
        ticks: Ticks of a song, 0 or more.
        tempo_ticks: Where its tempo changes; the first is 0.
        tempo_qpm: Tempo from there on, quarter notes per minute.
        tpq: Ticks per quarter note.
    """
    tick_seconds = 60 / (tempo_qpm * tpq)
    if len(tempo_ticks) == 1:  # most songs; it takes a quarter of the time
        return np.asarray(ticks * tick_seconds)
    changes = np.r_[0, np.cumsum(np.diff(tempo_ticks) * tick_seconds[:-1])]
    tempo = np.searchsorted(tempo_ticks, ticks, side="right") - 1
    times: Floats = changes[tempo] + (ticks - tempo_ticks[tempo]) * tick_seconds[tempo]
    return times


@dataclass(frozen=True)
class Song:
    """A cleaned song, or a phrase of one.

    Attributes:
        notes: The notes.
        tpq: Ticks per quarter note.
        bar_ticks: Start of each bar and, last, the end of the last one, shape (bars + 1,). The last
            bar is that of the last onset.
        meters: Numerator and denominator of each bar, shape (bars, 2).
        tempo_ticks: Where the tempo changes; the first is 0.
        tempo_qpm: Tempo from there on, quarter notes per minute.
        repairs: How often each repair was made (for the report).
        file_seconds: As :meth:`bar_seconds`, but by the tempo map of the file, before its tempi
            were neutralised, rounded to the vocabulary or moved to the grid; empty for music that
            comes from tokens.
    """

    notes: NoteTable
    tpq: int
    bar_ticks: Ints
    meters: Ints
    tempo_ticks: Ints
    tempo_qpm: Floats
    repairs: dict[str, int] = field(default_factory=dict)
    file_seconds: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def n_bars(self) -> int:
        """Number of bars."""
        return len(self.meters)

    def onsets_per_bar(self) -> Ints:
        """Number of note onsets in each bar, shape (bars,)."""
        edges = np.searchsorted(self.notes.onset, self.bar_ticks)
        return np.diff(edges).astype(np.int32)

    def bar_seconds(self) -> Floats:
        """Start of each bar and, last, the end of the last one in seconds, shape (bars + 1,).

        By the song's own tempi, as its tokenizer keeps them.
        """
        return seconds_at(self.bar_ticks, self.tempo_ticks, self.tempo_qpm, self.tpq)

    def bars(self, first: int, end: int) -> Song:
        """The phrase of bars ``first`` to ``end - 1``, starting at tick 0.

        It holds the notes whose onset lies in those bars, whole, even if they sound past the
        last barline; the meter and the tempo in force at its start are restored.
        """
        start, stop = int(self.bar_ticks[first]), int(self.bar_ticks[end])
        notes = self.notes.select(slice(*np.searchsorted(self.notes.onset, [start, stop])))
        inside = slice(
            int(np.searchsorted(self.tempo_ticks, start, side="right")) - 1,
            int(np.searchsorted(self.tempo_ticks, stop)),
        )
        return Song(
            notes=replace(notes, onset=notes.onset - start),
            tpq=self.tpq,
            bar_ticks=self.bar_ticks[first : end + 1] - start,
            meters=self.meters[first:end],
            tempo_ticks=np.maximum(self.tempo_ticks[inside] - start, 0),
            tempo_qpm=self.tempo_qpm[inside],
            file_seconds=self.file_seconds[first : end + 1] - self.file_seconds[first : first + 1],
        )

    def with_rests(self, n_bars: int) -> Song:
        """The song extended to ``n_bars`` with empty bars like its last one."""
        more = np.arange(1, n_bars - self.n_bars + 1)
        last = int(self.bar_ticks[-1] - self.bar_ticks[-2])
        at = self.file_seconds
        return replace(
            self,
            bar_ticks=np.r_[self.bar_ticks, self.bar_ticks[-1] + last * more].astype(np.int32),
            meters=np.concatenate([self.meters, self.meters[-1:].repeat(len(more), axis=0)]),
            file_seconds=np.r_[at, at[-1] + (at[-1] - at[-2]) * more] if len(at) else at,
        )

    def time_signatures(self) -> list[tuple[int, int, int]]:
        """Meter changes as (tick, numerator, denominator); the first is at tick 0."""
        changed = np.ones(self.n_bars, bool)
        changed[1:] = (self.meters[1:] != self.meters[:-1]).any(axis=1)
        return [
            (int(self.bar_ticks[bar]), int(self.meters[bar, 0]), int(self.meters[bar, 1]))
            for bar in np.flatnonzero(changed)
        ]

    def to_score(self) -> ScoreTick:
        """As a symusic score, one track per program in ascending order (drums first)."""
        score = ScoreTick(self.tpq)
        for tick, numerator, denominator in self.time_signatures():
            score.time_signatures.append(TimeSignatureTick(tick, numerator, denominator))
        for tick, qpm in zip(self.tempo_ticks, self.tempo_qpm, strict=True):
            score.tempos.append(TempoTick(int(tick), float(qpm)))
        for program in np.unique(self.notes.program):
            rows = self.notes.select(self.notes.program == program)
            drums = int(program) == DRUMS
            track = TrackTick("", 0 if drums else int(program), drums)
            track.notes = NoteTickList.from_numpy(
                rows.onset, rows.duration, rows.pitch.astype(np.int8), rows.velocity.astype(np.int8)
            )
            score.tracks.append(track)
        return score
