"""Vectorised encoders that write MidiTok's ids, for the tokenizers that most runs use.

MidiTok makes an object for each token and sorts them, which takes nearly all the time of preparing
a corpus. A cleaned song is already sorted and on the grid of the vocabulary, so that for REMI, CP
and Octuple the same ids follow from array operations: look-ups from values to ids, made once for
each tokenizer, and the steps at which bars, moments and notes stand, made once for each song.
MidiTok remains the vocabulary, the decoder and the reference in tests, and encodes what is not
covered here; :func:`fast_encoder` decides that once for a tokenizer, :meth:`FastEncoder.encode` for
a song.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import miditok
import numpy as np
from symusic.core import TempoTick

from midigenre.arrays import Bools, Longs
from midigenre.midi.song import DRUMS, Song
from midigenre.tokenizers.base import Encoded, Ids

_COVERED = frozenset(
    {
        "max_bar_embedding",
        "use_note_duration_programs",
        "use_pitchdrum_tokens",
        "use_programs",
        "use_tempos",
        "use_time_signatures",
        "use_velocities",
    }
)
"""Settings of ``miditok.TokenizerConfig`` that the encoders read; other switches must be off."""

MISSING_ID = 65535
"""Means "no token" in a look-up; larger than any vocabulary with a fast encoder."""

_METER_ROW = 64  # more than any denominator that a grid may have (32)


class NotCoveredError(Exception):
    """MidiTok must encode this song; the message says why."""


@dataclass(frozen=True)
class _Moments:
    """The ticks of a song at which notes start or, where it is stated once, the tempo changes.

    Attributes:
        n_notes: Notes that start at each, shape (u,).
        tempo_at: For each change of tempo the moment's index, shape (changes,).
        bar: Bar of each moment, shape (u,).
        bar_edges: First moment of each bar that the stream has, and u; shape (bars + 1,).
        bar_of_note: Bar of each note, shape (n,).
        position: Id of each moment's position in its bar, shape (u,).
    """

    n_notes: Longs
    tempo_at: Longs
    bar: Longs
    bar_edges: Longs
    bar_of_note: Longs
    position: Ids


class FastEncoder(ABC):
    """Encodes cleaned songs with the ids that MidiTok gives them.

    Args:
        tok: A tokenizer that :func:`fast_encoder` covers.
    """

    says_tempo_once = True
    """Whether a tempo is stated once and then in force; Octuple states it with every note."""

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        config = tok.config
        self._tok = tok
        self._column: dict[str, int] = dict(tok.vocab_types_idx) if tok.is_multi_voc else {}
        self._programs = bool(config.use_programs)
        self._velocities = bool(config.use_velocities)
        self._durations = bool(config.using_note_duration_tokens)
        self._tempi = bool(config.use_tempos)
        self._meters = bool(config.use_time_signatures)
        self._max_bars = int(config.additional_params.get("max_bar_embedding") or 0)
        self._resolution = int(config.max_num_pos_per_beat)
        self._whole = 4 * int(tok.time_division)  # ticks of a whole note

        # Ids of the tokens 0, 1, 2 ..., the last one MISSING; REMI and CP do not number bars.
        self._position_ids = self._ids_of("Position", range(len(self._vocabulary("Position")) + 1))
        self._bar_ids = self._ids_of("Bar", range(len(self._vocabulary("Bar")) + 1))
        (self._bar_id,) = self._ids_of("Bar", ["None"])
        # Drums, -1, count from the end.
        self._program_ids = self._ids_of("Program", [*range(128), DRUMS])
        pitch = self._ids_of("Pitch", range(128))
        drums = self._ids_of("PitchDrum", range(128)) if config.use_pitchdrum_tokens else pitch
        self._pitch_ids = np.r_[np.tile(pitch, 128), drums]  # at 128 * program + pitch
        self._velocity_ids = self._ids_of("Velocity", range(128))
        # A file stores the length of a quarter in whole microseconds, MidiTok names what it reads
        # back, to two decimals.
        self._tempo_qpm = np.sort(np.asarray(tok.tempos, np.float64))
        stored = [TempoTick(0, float(qpm)).tempo for qpm in self._tempo_qpm]
        self._tempo_ids = self._ids_of("Tempo", [round(qpm, 2) for qpm in stored])

        rows = 1 + max(numerator for numerator, _ in tok.time_signatures)
        self._meter_ids = np.full(rows * _METER_ROW + 1, MISSING_ID, np.uint16)
        for n, d in tok.time_signatures:
            self._meter_ids[n * _METER_ROW + d] = self._ids_of("TimeSig", [f"{n}/{d}"])[0]
        # One row of ids by ticks for each denominator; the last of a row is MISSING.
        by_beat = tok._tpb_ticks_to_tokens
        denominators = sorted({meter[1] for meter in tok.time_signatures})
        width = 2 + max(max(tokens) for tokens in by_beat.values())
        durations = np.full((len(denominators), width), MISSING_ID, np.uint16)
        self._duration_row = np.zeros(_METER_ROW, np.int64)  # where a denominator's row starts
        for i, denominator in enumerate(denominators):
            tokens = by_beat[self._whole // denominator]
            durations[i, list(tokens)] = self._ids_of("Duration", tokens.values())
            self._duration_row[denominator] = i * width
        self._duration_ids, self._duration_width = durations.ravel(), width

    def _vocabulary(self, type_: str) -> dict[str, int]:
        """The vocabulary that tokens of this type are in; empty where none has it."""
        if not self._tok.is_multi_voc:
            vocabulary: dict[str, int] = self._tok.vocab
            return vocabulary
        column = self._column.get("Pitch" if type_ == "PitchDrum" else type_)
        return {} if column is None else self._tok.vocab[column]

    def _ids_of(self, type_: str, values: Iterable[object]) -> Ids:
        """Ids of some values of one type of token, :data:`MISSING_ID` where there is no token."""
        vocabulary = self._vocabulary(type_)
        return np.array([vocabulary.get(f"{type_}_{v}", MISSING_ID) for v in values], np.uint16)

    def encode(self, song: Song) -> Encoded:
        """A song or phrase as tokens.

        Raises:
            NotCoveredError: MidiTok must encode it; the message is the reason.
        """
        notes, n_bars, end = song.notes, len(song.meters), song.bar_ticks[-1]
        # What cannot come from `Tokenizer.clean`.
        if n_bars == 0:
            raise NotCoveredError("no bars")
        if self._max_bars and n_bars > self._max_bars:
            what = f"more than the {self._max_bars} bars that the vocabulary numbers"
            raise NotCoveredError(what)
        if not song.tempo_ticks.size or song.tempo_ticks[0] != 0:
            raise NotCoveredError("no tempo at tick 0")
        if song.tempo_ticks[-1] >= end or (notes.onset.size and notes.onset[-1] >= end):
            raise NotCoveredError("notes or tempi behind the last bar")
        if not self._programs and notes.program.any():
            raise NotCoveredError("several programs, which the vocabulary does not have")

        moments = self._moments(song)
        # The notes' attributes in REMI's order, each of shape (n,).
        ids, at = {}, notes.pitch
        if self._programs:
            ids["Program"] = self._program_ids.take(notes.program)
            at = notes.program * 128 + at
        ids["Pitch"] = self._pitch_ids.take(at)
        if self._velocities:
            ids["Velocity"] = self._velocity_ids.take(notes.velocity)
        if self._durations:  # in beats of the meter of the onset
            rows = self._duration_row.take(song.meters[:, 1])
            row = rows[0] if (rows == rows[0]).all() else rows.take(moments.bar_of_note)
            ticks = np.minimum(notes.duration, self._duration_width - 1)
            ids["Duration"] = self._duration_ids.take(ticks + row)
        # The changes of tempo, and the meter of each bar.
        tempo_at = np.searchsorted(self._tempo_qpm, song.tempo_qpm)
        known = self._tempo_qpm.take(tempo_at, mode="clip") == song.tempo_qpm
        tempo = np.where(known, self._tempo_ids.take(tempo_at, mode="clip"), np.uint16(MISSING_ID))
        keys = song.meters[:, 0] * _METER_ROW + song.meters[:, 1]
        meter: Ids = self._meter_ids.take(keys, mode="clip")

        ids_TF, bar_at = self._write(song, moments, ids, tempo, meter)
        if (ids_TF == MISSING_ID).any():
            tempo, meter = tempo[: len(tempo) * self._tempi], meter[: len(meter) * self._meters]
            said = ids | {"Tempo": tempo, "TimeSig": meter, "Position": moments.position}
            types = [name for name, each in said.items() if (each == MISSING_ID).any()]
            raise NotCoveredError(f"no token for a value of {', '.join(types)}")
        bar_steps = np.full(n_bars + 1, len(ids_TF), np.int32)
        bar_steps[: len(bar_at)] = bar_at
        bar_tempo = np.zeros(n_bars, np.uint16)
        if self.says_tempo_once and self._tempi:  # the one before each bar, at the first its own
            before = np.searchsorted(song.tempo_ticks, song.bar_ticks[:-1]) - 1
            bar_tempo = tempo.take(np.maximum(before, 0))
        return Encoded(ids_TF, bar_steps, bar_tempo)

    @abstractmethod
    def _write(
        self, song: Song, moments: _Moments, notes: dict[str, Ids], tempo: Ids, meter: Ids
    ) -> tuple[Ids, Longs]:
        """The token stream, shape (T, F), and the first step of each bar that it has.

        ``notes`` has the ids of the notes' attributes, ``tempo`` an id for each change, ``meter``
        one for each bar.
        """

    def _moments(self, song: Song) -> _Moments:
        onset = song.notes.onset
        starts = np.ones(len(onset), bool)
        np.not_equal(onset[1:], onset[:-1], out=starts[1:])
        first = np.flatnonzero(starts)
        ticks, n_notes = onset.take(first).astype(np.int64), np.diff(first, append=len(onset))
        tempo_at = np.zeros(0, np.int64)
        if self._tempi and self.says_tempo_once:
            tempo_at = np.searchsorted(ticks, song.tempo_ticks)
            alone = np.append(ticks, -1).take(tempo_at) != song.tempo_ticks
            if alone.any():  # a tempo where no note starts
                ticks = np.insert(ticks, tempo_at[alone], song.tempo_ticks[alone])
                n_notes = np.insert(n_notes, tempo_at[alone], 0)
                tempo_at = tempo_at + np.cumsum(alone) - alone
        last = ticks[-1] if len(ticks) else -1
        n_bars = int(np.searchsorted(song.bar_ticks[:-1], last, side="right"))
        if self._meters and n_bars < len(song.meters):  # a later meter opens its bar
            n_bars = max(n_bars, 1)  # the first meter is always said
            changed = (song.meters[n_bars:] != song.meters[n_bars - 1 : -1]).any(axis=1)
            if changed.any():
                n_bars += int(np.flatnonzero(changed)[-1]) + 1
        bar_edges = np.append(np.searchsorted(ticks, song.bar_ticks[:n_bars]), len(ticks))
        bar = np.repeat(np.arange(n_bars), np.diff(bar_edges))
        steps = self._whole // song.meters[:, 1].astype(np.int64) // self._resolution
        step = steps[0] if (steps == steps[0]).all() else steps.take(bar)
        position = (ticks - song.bar_ticks.take(bar)) // step
        ids: Ids = self._position_ids.take(position, mode="clip")
        return _Moments(n_notes, tempo_at, bar, bar_edges, np.repeat(bar, n_notes), ids)


def _layout(moments: _Moments, note: int, bar: int, tempo: int = 0) -> tuple[Longs, Longs, Bools]:
    """First step of each bar and of each moment in a stream, and which steps are notes', (T,).

    A bar has ``bar`` steps, a moment one for its position, ``tempo`` ones for a change of tempo and
    ``note`` ones for each note.
    """
    length = 1 + note * moments.n_notes
    length[moments.tempo_at] += tempo
    before = np.zeros(len(length) + 1, np.int64)
    np.cumsum(length, out=before[1:])
    n_bars = len(moments.bar_edges) - 1
    bar_at = before.take(moments.bar_edges[:-1]) + bar * np.arange(n_bars)
    moment_at = before[:-1] + bar * (moments.bar + 1)
    is_note = np.ones(before[-1] + bar * n_bars, bool)
    for offset in range(bar):
        is_note[bar_at + offset] = False
    is_note[moment_at] = False
    if tempo:
        is_note[moment_at.take(moments.tempo_at) + 1] = False
    return bar_at, moment_at, is_note


class FastREMI(FastEncoder):
    """``Bar TimeSig`` for a bar, ``Position`` for a moment, then its ``Tempo`` and its notes.

    A note is ``Program Pitch Velocity Duration``; what the vocabulary does not have is left out.
    The order is that of ``miditok.REMI._add_time_events`` on events sorted by time, in which a
    stable sort leaves meters before tempi before notes, and notes by track.
    """

    def _write(
        self, song: Song, moments: _Moments, notes: dict[str, Ids], tempo: Ids, meter: Ids
    ) -> tuple[Ids, Longs]:
        steps = {"note": len(notes), "bar": 1 + self._meters, "tempo": int(self._tempi)}
        bar_at, moment_at, is_note = _layout(moments, **steps)
        ids = np.empty(len(is_note), np.uint16)
        ids[bar_at] = self._bar_id
        if self._meters:
            ids[bar_at + 1] = meter[: len(bar_at)]
        ids[moment_at] = moments.position
        if self._tempi:
            ids[moment_at.take(moments.tempo_at) + 1] = tempo
        # The remaining steps are the notes, in order: faster than computing a place for each token.
        ids[is_note] = np.stack(list(notes.values()), axis=1).ravel()
        return ids[:, None], bar_at


class FastCPWord(FastEncoder):
    """A step for each bar, for each moment (its position and the tempo in force) and each note.

    The order is that of ``miditok.CPWord._add_time_events``; see :class:`FastREMI`.
    """

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        super().__init__(tok)
        metric, self._note_id = self._ids_of("Family", ["Metric", "Note"])
        self._blank = np.array([v.get("Ignore_None", 0) for v in tok.vocab], np.uint16)
        self._blank[self._column["Family"]] = metric

    def _write(
        self, song: Song, moments: _Moments, notes: dict[str, Ids], tempo: Ids, meter: Ids
    ) -> tuple[Ids, Longs]:
        bar_at, moment_at, is_note = _layout(moments, note=1, bar=1)
        # By column, which is contiguous, and transposed at the end.
        ids_FT = np.repeat(self._blank[:, None], len(is_note), axis=1)
        ids_FT[self._column["Bar"]][bar_at] = self._bar_id
        if self._meters:
            ids_FT[self._column["TimeSig"]][bar_at] = meter[: len(bar_at)]
        ids_FT[self._column["Position"]][moment_at] = moments.position
        if self._tempi:
            changes = np.zeros(len(moment_at), np.int64)
            changes[moments.tempo_at] = 1
            ids_FT[self._column["Tempo"]][moment_at] = tempo.take(np.cumsum(changes) - 1)
        ids_FT[self._column["Family"]][is_note] = self._note_id
        for name, ids in notes.items():
            ids_FT[self._column[name]][is_note] = ids
        return np.ascontiguousarray(ids_FT.T), bar_at


class FastOctuple(FastEncoder):
    """One step per note, with its bar's number and meter and the tempo in force.

    The order is that of the notes; see ``miditok.Octuple._add_time_events``.
    """

    says_tempo_once = False

    def _write(
        self, song: Song, moments: _Moments, notes: dict[str, Ids], tempo: Ids, meter: Ids
    ) -> tuple[Ids, Longs]:
        bars = moments.bar_of_note
        columns = notes | {
            "Position": moments.position.repeat(moments.n_notes),
            "Bar": self._bar_ids.take(bars),
        }
        if self._tempi:
            change = np.searchsorted(song.tempo_ticks, song.notes.onset, side="right") - 1
            columns["Tempo"] = tempo.take(change)
        if self._meters:
            columns["TimeSig"] = meter.take(bars)
        ids_TF = np.empty((len(bars), len(self._tok.vocab)), np.uint16)
        for name, ids in columns.items():
            ids_TF[:, self._column[name]] = ids
        return ids_TF, np.searchsorted(song.notes.onset, song.bar_ticks[:-1])


_ENCODERS: dict[type[miditok.MusicTokenizer], type[FastEncoder]] = {
    miditok.REMI: FastREMI,
    miditok.CPWord: FastCPWord,
    miditok.Octuple: FastOctuple,
}


def fast_encoder(tok: miditok.MusicTokenizer) -> tuple[FastEncoder | None, str]:
    """The fast encoder of a tokenizer, or None and the reason in words why there is none."""
    config = tok.config
    if type(tok) not in _ENCODERS:
        return None, f"no fast encoder for {type(tok).__name__}"
    others = [n for n, on in vars(config).items() if n.startswith("use_") and on]
    others += [n for n, on in config.additional_params.items() if on]
    if others := [name for name in others if name not in _COVERED]:
        return None, f"no fast encoder with {others[0]}"
    played = set(config.programs) if config.use_programs else {0}
    vocabularies = tok.vocab if tok.is_multi_voc else [tok.vocab]
    if config.program_changes:
        return None, "no fast encoder with program_changes"
    if tok.attribute_controls:
        return None, "no fast encoder with attribute controls"
    if config.use_programs and not config.one_token_stream_for_programs:
        return None, "no fast encoder with one stream for each program"
    if config.using_note_duration_tokens and not played <= set(config.use_note_duration_programs):
        return None, "no fast encoder with durations for some programs only"
    if max(len(vocabulary) for vocabulary in vocabularies) >= MISSING_ID:
        return None, f"no fast encoder for a vocabulary of {MISSING_ID} tokens or more"
    return _ENCODERS[type(tok)](tok), ""
