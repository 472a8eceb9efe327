"""What the vectorised encoders share: look-ups from values to ids, and the places of tokens.

Both are arrays, so that no Python code runs for a single note. The look-ups are made once for each
tokenizer out of MidiTok's vocabulary; the places are made once for each song.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import miditok
import numpy as np
from numpy.typing import NDArray
from symusic.core import TempoTick

from midigenre.midi.song import DRUMS, Song

Longs = NDArray[np.int64]
Ids = NDArray[np.uint16]

MISSING = 65535
"""Stands in a look-up for "no token"; no vocabulary with a fast encoder has so many."""

_PITCHES = 128
_METER_ROW = 64  # more than any denominator that a grid may have (32)


class NotCoveredError(Exception):
    """MidiTok must encode this song; the message says why."""


class Lookups:
    """Arrays from the values of a song to token ids; :data:`MISSING` where there is no token.

    Args:
        tok: A tokenizer of MidiTok with one vocabulary, or with one for each type of token.

    Attributes:
        durations: Whether notes have a duration token.
        meter_ids: Id of a meter at ``64 * numerator + denominator``.
        position_ids: Id of each position of a bar.
    """

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        self._tok = tok
        config = tok.config
        self.programs = bool(config.use_programs)
        self.velocities = bool(config.use_velocities)
        self.durations = bool(config.using_note_duration_tokens)
        self.tempi = bool(config.use_tempos)
        self.meters = bool(config.use_time_signatures)
        self._resolution = int(config.max_num_pos_per_beat)
        self._whole = 4 * int(tok.time_division)  # ticks of a whole note

        self.position_ids = self.numbered("Position")
        self._program_ids = np.roll(  # drums, -1, last, as a negative index has it
            self.ids_of("Program", [f"{p}" for p in range(DRUMS, 128)]), DRUMS
        )
        pitches = [f"{p}" for p in range(_PITCHES)]
        pitch = self.ids_of("Pitch", pitches)
        drum = self.ids_of("PitchDrum", pitches) if config.use_pitchdrum_tokens else pitch
        self._pitch_ids = np.r_[np.tile(pitch, 128), drum]
        self._velocity_ids = self.ids_of("Velocity", [f"{v}" for v in range(128)])

        # A file stores the length of a quarter in whole microseconds, MidiTok names what it reads
        # back, to two decimals.
        self._tempo_qpm = np.sort(np.asarray(tok.tempos, np.float64))
        stored = [TempoTick(0, float(qpm)).tempo for qpm in self._tempo_qpm]
        self._tempo_ids = self.ids_of("Tempo", [f"{round(qpm, 2)}" for qpm in stored])

        rows = 1 + max(numerator for numerator, _ in tok.time_signatures)
        self.meter_ids = np.full(rows * _METER_ROW + 1, MISSING, np.uint16)
        for numerator, denominator in tok.time_signatures:
            (id_,) = self.ids_of("TimeSig", [f"{numerator}/{denominator}"])
            self.meter_ids[numerator * _METER_ROW + denominator] = id_
        self._make_durations()

    def vocabulary(self, type_: str) -> dict[str, int]:
        """The vocabulary that tokens of this type are in; empty where no vocabulary has it."""
        if not self._tok.is_multi_voc:
            vocabulary: dict[str, int] = self._tok.vocab
            return vocabulary
        column = self._tok.vocab_types_idx.get("Pitch" if type_ == "PitchDrum" else type_)
        return {} if column is None else self._tok.vocab[column]

    def ids_of(self, type_: str, values: list[str]) -> Ids:
        """Ids of some values of one type of token, in their order."""
        vocabulary = self.vocabulary(type_)
        return np.array([vocabulary.get(f"{type_}_{v}", MISSING) for v in values], np.uint16)

    def numbered(self, type_: str) -> Ids:
        """Ids of the tokens 0, 1, 2 ... of a type; the last one is :data:`MISSING`."""
        return self.ids_of(type_, [f"{i}" for i in range(len(self.vocabulary(type_)) + 1)])

    def _make_durations(self) -> None:
        """One row of ids by ticks for each denominator; the last of a row is :data:`MISSING`."""
        by_beat = self._tok._tpb_ticks_to_tokens
        self._duration_width = 2 + max(max(tokens) for tokens in by_beat.values())
        self._duration_row = np.zeros(_METER_ROW, np.int64)  # where a denominator's row starts
        rows: list[Ids] = []
        for denominator in sorted({meter[1] for meter in self._tok.time_signatures}):
            row = np.full(self._duration_width, MISSING, np.uint16)
            tokens = by_beat[self._whole // denominator]
            row[list(tokens)] = self.ids_of("Duration", [f"{value}" for value in tokens.values()])
            self._duration_row[denominator] = len(rows) * self._duration_width
            rows.append(row)
        self._duration_ids = np.concatenate(rows)

    def pitch(self, song: Song) -> Ids:
        """Ids of the notes' ``Pitch`` or ``PitchDrum``, shape (n,)."""
        at = song.notes.pitch
        if self.programs:  # drums, -1, count from the end, where their row is
            at = song.notes.program * _PITCHES + at
        ids: Ids = self._pitch_ids.take(at)
        return ids

    def program(self, song: Song) -> Ids:
        """Ids of the notes' ``Program``, shape (n,)."""
        ids: Ids = self._program_ids.take(song.notes.program)
        return ids

    def velocity(self, song: Song) -> Ids:
        """Ids of the notes' ``Velocity``, shape (n,)."""
        ids: Ids = self._velocity_ids.take(song.notes.velocity)
        return ids

    def duration(self, song: Song, bar_of_note: Longs) -> Ids:
        """Ids of the notes' ``Duration``, shape (n,): in beats of the meter of the onset."""
        rows = self._duration_row.take(song.meters[:, 1])
        ticks = np.minimum(song.notes.duration, self._duration_width - 1)
        row_of_note = rows[0] if same(rows) else rows.take(bar_of_note)
        ids: Ids = self._duration_ids.take(ticks + row_of_note)
        return ids

    def tempo(self, song: Song) -> Ids:
        """Ids of the tempo changes, shape (changes,)."""
        at = np.searchsorted(self._tempo_qpm, song.tempo_qpm)
        known = self._tempo_qpm.take(at, mode="clip") == song.tempo_qpm
        return np.where(known, self._tempo_ids.take(at, mode="clip"), MISSING).astype(np.uint16)

    def meter(self, song: Song) -> Ids:
        """Ids of the bars' meters, shape (bars,)."""
        keys = song.meters[:, 0] * _METER_ROW + song.meters[:, 1]
        ids: Ids = self.meter_ids.take(keys, mode="clip")
        return ids

    def step_ticks(self, song: Song) -> Longs:
        """Ticks of a position in each bar, shape (bars,)."""
        steps: Longs = self._whole // song.meters[:, 1].astype(np.int64) // self._resolution
        return steps

    def missing(self, song: Song) -> str:
        """Types of token that a song needs other ones of than there are, for a message."""
        bar_of_note = np.searchsorted(song.bar_ticks, song.notes.onset, side="right") - 1
        found = {
            "Pitch": self.pitch(song),
            "Program": self.program(song)[: len(song.notes) * self.programs],
            "Velocity": self.velocity(song)[: len(song.notes) * self.velocities],
            "Duration": self.duration(song, bar_of_note)[: len(song.notes) * self.durations],
            "Tempo": self.tempo(song)[: len(song.tempo_ticks) * self.tempi],
            "TimeSig": self.meter(song)[: song.n_bars * self.meters],
        }
        types = [name for name, ids in found.items() if (ids == MISSING).any()]
        return ", ".join(types) or "Position"


def same(values: Longs) -> bool:
    """Whether all of one or more values are the same."""
    return bool((values == values[0]).all())


@dataclass(frozen=True)
class Moments:
    """The ticks of a song at which something stands, with the bars and notes of each.

    Attributes:
        ticks: The ticks, ascending, each once, shape (u,).
        n_notes: Notes that start there, shape (u,).
        tempo_at: For each change of tempo its index in ``ticks``, shape (changes,); empty where
            the changes are no moments.
        bar_edges: First moment of each bar that the stream has, and u; shape (bars + 1,).
    """

    ticks: Longs
    n_notes: Longs
    tempo_at: Longs
    bar_edges: Longs

    @classmethod
    def of(cls, song: Song, *, tempi: bool, meters: bool) -> Moments:
        """The moments of a song.

        Args:
            song: The song, which may have no notes.
            tempi: Whether changes of tempo are moments of their own.
            meters: Whether a meter that begins behind the last moment opens its bar.
        """
        onset = song.notes.onset
        n = len(onset)
        starts = np.ones(n, bool)
        np.not_equal(onset[1:], onset[:-1], out=starts[1:])
        first = np.flatnonzero(starts)
        ticks, n_notes = onset.take(first).astype(np.int64), np.diff(first, append=n)
        tempo_at = np.zeros(0, np.int64)
        if tempi:
            tempo_at = np.searchsorted(ticks, song.tempo_ticks)
            alone = np.append(ticks, -1).take(tempo_at) != song.tempo_ticks
            if alone.any():  # a tempo where no note starts
                ticks = np.insert(ticks, tempo_at[alone], song.tempo_ticks[alone])
                n_notes = np.insert(n_notes, tempo_at[alone], 0)
                tempo_at = tempo_at + np.cumsum(alone) - alone
        last = ticks[-1] if len(ticks) else -1
        n_bars = int(np.searchsorted(song.bar_ticks[:-1], last, side="right"))
        if meters and n_bars < song.n_bars:
            n_bars = max(n_bars, 1)  # the first meter is always said
            changed = (song.meters[n_bars:] != song.meters[n_bars - 1 : -1]).any(axis=1)
            if changed.any():
                n_bars += int(np.flatnonzero(changed)[-1]) + 1
        bar_edges = np.append(np.searchsorted(ticks, song.bar_ticks[:n_bars]), len(ticks))
        return cls(ticks, n_notes, tempo_at, bar_edges)

    @cached_property
    def bar(self) -> Longs:
        """Bar of each moment, shape (u,)."""
        return np.repeat(np.arange(len(self.bar_edges) - 1), np.diff(self.bar_edges))

    @cached_property
    def bar_of_note(self) -> Longs:
        """Bar of each note, shape (n,)."""
        return np.repeat(self.bar, self.n_notes)

    def positions(self, song: Song, steps: Longs) -> Longs:
        """Position of each moment in its bar, shape (u,); ``steps`` as ``step_ticks`` gives it."""
        after = self.ticks - song.bar_ticks.take(self.bar)
        positions: Longs = after // (steps[0] if same(steps) else steps.take(self.bar))
        return positions

    def places(self, *, note: int, bar: int, tempo: int) -> Places:
        """Where everything stands in a stream of bars, positions (one step), tempi and notes.

        Args:
            note: Steps of a note.
            bar: Steps of a bar.
            tempo: Steps of a change of tempo, which follow its position.
        """
        length = 1 + note * self.n_notes
        if tempo:
            length[self.tempo_at] += tempo
        before = np.zeros(len(length) + 1, np.int64)
        np.cumsum(length, out=before[1:])
        n_bars = len(self.bar_edges) - 1
        bars = before.take(self.bar_edges[:-1]) + bar * np.arange(n_bars)
        moments = before[:-1] + bar * (self.bar + 1)
        # A moment's notes close it.
        return Places(
            bars, moments, moments + length, self.n_notes, note, before[-1] + bar * n_bars
        )


@dataclass(frozen=True)
class Places:
    """Where everything stands in a stream.

    Attributes:
        bars: First step of each bar, shape (bars,).
        moments: First step of each moment, shape (u,).
        ends: The step behind each moment, shape (u,).
        n_notes: Notes of each moment, with which it ends, shape (u,).
        note: Steps of a note.
        n_steps: Length of the stream.
    """

    bars: Longs
    moments: Longs
    ends: Longs
    n_notes: Longs
    note: int
    n_steps: int

    @cached_property
    def notes(self) -> Longs:
        """First step of each note, shape (n,)."""
        notes = np.repeat(self.ends - self.note * np.cumsum(self.n_notes), self.n_notes)
        notes += self.note * np.arange(len(notes))
        return notes
