"""Vectorised encoders that write MidiTok's ids, for the tokenizers that most runs use.

MidiTok makes an object for each token and sorts them, which is nearly all the time of preparing a
corpus. A cleaned song is already sorted and on the grid of the vocabulary, so that for REMI, CP and
Octuple the same ids follow from array operations: look-ups from values to ids, made once for each
tokenizer, and the steps at which bars, moments and notes stand, made once for each song. MidiTok
stays the vocabulary, the decoder and the oracle of the tests, and encodes what is not covered here;
:func:`fast_encoder` decides that once for a tokenizer, :meth:`FastEncoder.encode` for a song.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import miditok
import numpy as np
from symusic.core import TempoTick

from midigenre.arrays import Longs
from midigenre.midi.song import DRUMS, Song
from midigenre.tokenizers.base import Encoded, Ids

_COVERED = frozenset(
    {
        "use_note_duration_programs",
        "use_pitchdrum_tokens",
        "use_programs",
        "use_tempos",
        "use_time_signatures",
        "use_velocities",
    }
)
"""Switches of ``miditok.TokenizerConfig`` that the encoders read; any other one must be off."""

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
    def from_song(cls, song: Song, *, tempi: bool, meters: bool) -> Moments:
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

    def layout(self, *, note: int, bar: int, tempo: int) -> Layout:
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
        return Layout(
            bars, moments, moments + length, self.n_notes, note, before[-1] + bar * n_bars
        )


@dataclass(frozen=True)
class Layout:
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


class FastEncoder(ABC):
    """Encodes cleaned songs with the ids that MidiTok gives them.

    Args:
        tok: A tokenizer that :func:`why_not` has no objection to.
    """

    says_tempo = True
    """Whether a tempo is said once and then in force; Octuple says it with every note."""

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        self.look = Lookups(tok)
        self._max_bars = int(tok.config.additional_params.get("max_bar_embedding") or 0)

    @abstractmethod
    def write(self, song: Song) -> tuple[Ids, Longs]:
        """The token stream and the first step of each bar that it has, the others being empty.

        Ids have shape (T, F); :data:`MISSING` stands where a value has no token.
        """

    def encode(self, song: Song) -> Encoded:
        """A song or phrase as tokens.

        Raises:
            NotCoveredError: MidiTok must encode it; the message is the reason.
        """
        if reason := self._objection(song):
            raise NotCoveredError(reason)
        ids_TF, bar_at = self.write(song)
        if (ids_TF == MISSING).any():
            raise NotCoveredError(f"no token for a value of {self.look.missing(song)}")
        bar_steps = np.full(song.n_bars + 1, len(ids_TF), np.int32)
        bar_steps[: len(bar_at)] = bar_at
        return Encoded(ids_TF, bar_steps, self._bar_tempo(song))

    def _bar_tempo(self, song: Song) -> Ids:
        """Id of the tempo before each bar, at the first one its own; see :class:`Encoded`."""
        if not (self.says_tempo and self.look.tempi):
            return np.zeros(song.n_bars, np.uint16)
        before = np.searchsorted(song.tempo_ticks, song.bar_ticks[:-1]) - 1
        ids: Ids = self.look.tempo(song).take(np.maximum(before, 0))
        return ids

    def _objection(self, song: Song) -> str:
        """What keeps a song from being one that :meth:`Tokenizer.clean` returns, or nothing."""
        notes, end = song.notes, song.bar_ticks[-1]
        if song.n_bars == 0:
            return "no bars"
        if self._max_bars and song.n_bars > self._max_bars:
            return f"more than the {self._max_bars} bars that the vocabulary numbers"
        if not len(song.tempo_ticks) or song.tempo_ticks[0] != 0:
            return "no tempo at tick 0"
        if song.tempo_ticks[-1] >= end or (len(notes) and notes.onset[-1] >= end):
            return "notes or tempi behind the last bar"
        if not self.look.programs and notes.program.any():
            return "several programs, which the vocabulary does not have"
        return ""


class FastREMI(FastEncoder):
    """``Bar TimeSig`` for a bar, ``Position`` for a moment, then its ``Tempo`` and its notes.

    A note is ``Program Pitch Velocity Duration``; what the vocabulary does not have is left out.
    The order is that of ``miditok.REMI._add_time_events`` on events sorted by time, in which a
    stable sort leaves meters before tempi before notes, and notes by track.
    """

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        super().__init__(tok)
        (self._bar_id,) = self.look.ids_of("Bar", ["None"])

    def write(self, song: Song) -> tuple[Ids, Longs]:
        """The stream, shape (T, 1), and the step of each bar in it, shape (bars,)."""
        look = self.look
        moments = Moments.from_song(song, tempi=look.tempi, meters=look.meters)
        columns: dict[str, Ids] = {}
        if look.programs:
            columns["Program"] = look.program(song)
        columns["Pitch"] = look.pitch(song)
        if look.velocities:
            columns["Velocity"] = look.velocity(song)
        if look.durations:
            columns["Duration"] = look.duration(song, moments.bar_of_note)

        layout = moments.layout(note=len(columns), bar=1 + look.meters, tempo=int(look.tempi))
        bar_at, moment_at = layout.bars, layout.moments
        ids = np.empty(layout.n_steps, np.uint16)
        is_note = np.ones(layout.n_steps, bool)
        ids[bar_at] = self._bar_id
        is_note[bar_at] = False
        if look.meters:
            ids[bar_at + 1] = look.meter(song)[: len(bar_at)]
            is_note[bar_at + 1] = False
        positions = moments.positions(song, look.step_ticks(song))
        is_note[moment_at] = False
        ids[moment_at] = look.position_ids.take(positions, mode="clip")
        if look.tempi:
            ids[moment_at.take(moments.tempo_at) + 1] = look.tempo(song)
            is_note[moment_at.take(moments.tempo_at) + 1] = False
        # What is left are the notes, in their order: faster than to compute a place for each token.
        notes = np.empty((len(song.notes), len(columns)), np.uint16)
        for i, column in enumerate(columns.values()):
            notes[:, i] = column
        ids[is_note] = notes.ravel()
        return ids[:, None], bar_at


class FastCPWord(FastEncoder):
    """A step for each bar, for each moment (its position and the tempo in force) and each note.

    The order is that of ``miditok.CPWord._add_time_events``; see :class:`FastREMI`.
    """

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        super().__init__(tok)
        self._column: dict[str, int] = dict(tok.vocab_types_idx)
        blank = [vocabulary.get("Ignore_None", 0) for vocabulary in tok.vocab]
        (self._bar_id,) = self.look.ids_of("Bar", ["None"])
        metric, self._note_id = self.look.ids_of("Family", ["Metric", "Note"])
        blank[self._column["Family"]] = int(metric)
        self._blank = np.array(blank, np.uint16)

    def write(self, song: Song) -> tuple[Ids, Longs]:
        """The stream, shape (T, F), and the step of each bar in it, shape (bars,)."""
        look = self.look
        moments = Moments.from_song(song, tempi=look.tempi, meters=look.meters)
        layout = moments.layout(note=1, bar=1, tempo=0)
        bar_at, moment_at, note_at = layout.bars, layout.moments, layout.notes
        # By column, which is written and read in one piece, and turned at the end.
        ids_FT = np.repeat(self._blank[:, None], layout.n_steps, axis=1)

        def put(type_: str, at: Longs, ids: Ids | np.uint16) -> None:
            ids_FT[self._column[type_]][at] = ids

        put("Bar", bar_at, self._bar_id)
        if look.meters:
            put("TimeSig", bar_at, look.meter(song)[: len(bar_at)])
        positions = moments.positions(song, look.step_ticks(song))
        put("Position", moment_at, look.position_ids.take(positions, mode="clip"))
        if look.tempi:
            changes = np.zeros(len(moment_at), np.int64)
            changes[moments.tempo_at] = 1
            put("Tempo", moment_at, look.tempo(song).take(np.cumsum(changes) - 1))
        put("Family", note_at, self._note_id)
        put("Pitch", note_at, look.pitch(song))
        if look.velocities:
            put("Velocity", note_at, look.velocity(song))
        if look.durations:
            put("Duration", note_at, look.duration(song, moments.bar_of_note))
        if look.programs:
            put("Program", note_at, look.program(song))
        return np.ascontiguousarray(ids_FT.T), bar_at


class FastOctuple(FastEncoder):
    """One step a note, with its bar's number and meter and the tempo in force.

    The order is that of the notes; see ``miditok.Octuple._add_time_events``.
    """

    says_tempo = False

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        super().__init__(tok)
        self._column: dict[str, int] = dict(tok.vocab_types_idx)
        self._n_fields = len(tok.vocab)
        self._bar_ids = self.look.numbered("Bar")

    def write(self, song: Song) -> tuple[Ids, Longs]:
        """The stream, shape (T, F), and the first step of each bar, shape (bars,)."""
        look = self.look
        ids_TF = np.empty((len(song.notes), self._n_fields), np.uint16)
        bar_at: Longs = np.searchsorted(song.notes.onset, song.bar_ticks[:-1])
        if len(ids_TF) == 0:
            return ids_TF, bar_at
        moments = Moments.from_song(song, tempi=False, meters=False)
        positions = moments.positions(song, look.step_ticks(song))
        bar = self._bar_ids.take(np.arange(song.n_bars), mode="clip")
        columns = {
            "Pitch": look.pitch(song),
            "Position": look.position_ids.take(positions, mode="clip").repeat(moments.n_notes),
            "Bar": bar.take(moments.bar_of_note),
        }
        if look.velocities:
            columns["Velocity"] = look.velocity(song)
        if look.durations:
            columns["Duration"] = look.duration(song, moments.bar_of_note)
        if look.programs:
            columns["Program"] = look.program(song)
        if look.tempi:
            change = np.searchsorted(song.tempo_ticks, song.notes.onset, side="right") - 1
            columns["Tempo"] = look.tempo(song).take(change)
        if look.meters:
            columns["TimeSig"] = look.meter(song).take(moments.bar_of_note)
        for name, ids in columns.items():
            ids_TF[:, self._column[name]] = ids
        return ids_TF, bar_at


_ENCODERS: dict[type[miditok.MusicTokenizer], type[FastEncoder]] = {
    miditok.REMI: FastREMI,
    miditok.CPWord: FastCPWord,
    miditok.Octuple: FastOctuple,
}


def fast_encoder(tok: miditok.MusicTokenizer) -> tuple[FastEncoder | None, str]:
    """The fast encoder of a tokenizer, or None and the reason why there is none."""
    reason = why_not(tok)
    return (None if reason else _ENCODERS[type(tok)](tok)), reason


def why_not(tok: miditok.MusicTokenizer) -> str:
    """Why a tokenizer has no fast encoder, in words; empty where it has one."""
    config = tok.config
    if type(tok) not in _ENCODERS:
        return f"no fast encoder for {type(tok).__name__}"
    for name, value in vars(config).items():
        if name.startswith("use_") and name not in _COVERED and value:
            return f"no fast encoder with {name}"
    for name, value in config.additional_params.items():
        if name != "max_bar_embedding" and value:
            return f"no fast encoder with {name}"
    if config.program_changes:
        return "no fast encoder with program_changes"
    if tok.attribute_controls:
        return "no fast encoder with attribute controls"
    if config.use_programs and not config.one_token_stream_for_programs:
        return "no fast encoder with one stream for each program"
    played = set(config.programs) if config.use_programs else {0}
    if config.using_note_duration_tokens and not played <= set(config.use_note_duration_programs):
        return "no fast encoder with durations for some programs only"
    vocabularies = tok.vocab if tok.is_multi_voc else [tok.vocab]
    if max(len(vocabulary) for vocabulary in vocabularies) >= MISSING:
        return f"no fast encoder for a vocabulary of {MISSING} tokens or more"
    return ""
