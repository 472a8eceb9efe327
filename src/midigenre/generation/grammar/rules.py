"""What all grammars share: ids as numbers, the state of a sequence, the rules of its steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Longs
from midigenre.midi.song import DEFAULT_METER, DRUMS
from midigenre.tokenizers.base import Tokenizer

Mask = NDArray[np.bool_]
Sounding = Mapping[int, Mapping[int, tuple[int, int]]]
"""Sounding notes: by program and pitch, the onset and the latest end, in ticks."""

SPECIAL = ("PAD", "BOS", "EOS", "MASK")
UNBOUNDED = 1 << 40
"""Number of bars of unbounded music."""

_NO_NOTES: Sounding = {}


class State(NamedTuple):
    """The state of a sequence after some steps; :meth:`Rules.next_state` makes the next one.

    Programs, pitches and meters are ranks in the vocabulary, times are ticks.
    """

    phase: str = "start"  # what was written last or must come next, in the words of the rules
    done: bool = False  # whether the sequence has ended
    n_steps: int = 0  # steps so far, BOS too
    n_notes: int = 0
    whole: int = 0  # steps up to the end of the last whole note (or BOS)
    max_bars: int = UNBOUNDED  # notes begin and end within this many bars
    bar: int = -1  # the one that is being written, -1 before the first
    bar_steps: tuple[int, ...] = ()  # step at which each bar begins
    bar_tick: int = 0  # where the bar begins
    meter: int = 0  # the one in force, -1 if the first one has to be stated
    tempo: int = -1  # id of the one in force, -1 before the first
    position: int = -1  # in the bar, -1 before its first; not where time moves by shifts
    tick: int = 0  # where notes begin now
    program: int = -1  # of the last event at this tick, -1 before it
    pitch: int = -1  # that program's last note at this tick, -1 before it
    note: tuple[int, int] = (0, 0)  # program and pitch of the note that is being written
    latest_end: int = 0  # where the last note ends; without those that wait for a note-off
    first_bar: int = 0  # the bar that the ids call bar 0, see `Rows.slide`
    free_from: int = 0  # nothing may begin in bars before this one; what sounds may end there
    feeding: bool = False  # the steps are music that exists, which may sound past the last bar

    # Kept where time moves by shifts:
    sounding: Sounding = _NO_NOTES  # notes that wait for their note-off
    last_off: tuple[int, int] = (-1, -1)  # onset and pitch of the program's last note-off here
    full_shift: bool = False  # whether the last shift was the longest one there is
    offsets: tuple[int, ...] = ()  # positions from each barline to its bar's first step
    boundary: int = 0  # steps without those of a note that is being written
    dangling: bool = False  # whether no note has followed a change of meter or tempo
    before_change: State | None = None  # before what is dangling, once there are notes

    @property
    def finished_bars(self) -> int:
        """Bars in which no event will begin any more."""
        return self.bar + 1 if self.done else max(0, self.bar)


class Rules(ABC):
    """The transition rules of a family of tokenizers; instances are immutable.

    The end of the music is known only once the meters of all its bars are. A note is bounded by
    the end under the present meter; a new meter is allowed only where the sounding notes still
    fit. The present meter always is.

    Attributes:
        order: The columns of a step in the order in which they are chosen.
        start: The state before the first step.
        names: Name of each column; of compound steps that of the type that it holds.
        columns: The first column that has ids of a type.
        kinds: Type of each id, one tuple for each column.
        ranks: Rank of each id's value among the ids of its type, one list for each column.
        program_ids: In ascending order, drums first; empty where the vocabulary has none, which is
            one program.
        pitch_ids: Ids that start a note of each program (a rank), by pitch.
    """

    order: tuple[int, ...] = (0,)
    start: State = State()

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec, grid = tokenizer.spec, tokenizer.grid
        self.melody = bool(spec.tokenizer["tracks"] == "melody")
        self.names = [f.name for f in spec.fields]
        self.kinds = [f.types for f in spec.fields]
        self.ranks = [[0] * len(f) for f in spec.fields]
        self.columns: dict[str, int] = {}
        self._ids: dict[tuple[int, str], Longs] = {}
        self._values: dict[tuple[int, str], list[Any]] = {}
        self.special: list[dict[str, int]] = []
        for column, f in enumerate(spec.fields):
            for kind in dict.fromkeys(f.types):
                self.columns.setdefault(kind, column)
                values = {
                    i: _number(kind, f.values[i], i) for i, t in enumerate(f.types) if t == kind
                }
                ids = sorted(values, key=lambda i: values[i])
                self._ids[column, kind] = np.array(ids, np.int64)
                self._values[column, kind] = [values[i] for i in ids]
                for rank, i in enumerate(ids):
                    self.ranks[column][i] = rank
            self.special.append(
                {k: f.index[f"{k}_None"] for k in SPECIAL if f"{k}_None" in f.index}
            )
        self.tempo_ids, self.meter_ids, self.velocity_ids, self.duration_ids, self.program_ids = (
            self.ids(kind) for kind in ("Tempo", "TimeSig", "Velocity", "Duration", "Program")
        )
        self.duration_steps = np.array(self.values("Duration"), np.int64)
        meters = self.values("TimeSig") or [DEFAULT_METER]
        self.bar_ticks = [grid.bar_ticks(meter) for meter in meters]
        self.step_ticks = [grid.step_ticks(meter) for meter in meters]
        self.bar_ticks_M = np.array(self.bar_ticks, np.int64)
        self.step_ticks_M = np.array(self.step_ticks, np.int64)
        self.n_programs = max(1, len(self.program_ids))
        named = ("NoteOn", "DrumOn") if "NoteOn" in self.columns else ("Pitch", "PitchDrum")
        self.pitch_ids = self.by_program(*named)

    def ids(self, kind: str, column: int | None = None) -> Longs:
        """Ids of a type in the order of their values, by default of its first column."""
        column = self.columns.get(kind, -1) if column is None else column
        return self._ids.get((column, kind), np.zeros(0, np.int64))

    def values(self, kind: str) -> list[Any]:
        """Values of :meth:`ids`; durations and shifts count positions."""
        return self._values.get((self.columns.get(kind, -1), kind), [])

    def by_program(self, melodic: str, drum: str) -> list[Longs]:
        """Ids of a kind of note event for each program; drums may have a type of their own."""
        drum = drum if drum in self.columns else melodic
        programs = self.values("Program") or [0]
        return [self.ids(drum if program == DRUMS else melodic) for program in programs]

    def allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None:
        """Sets what may be chosen for a field, given the fields before it in :attr:`order`.

        Args:
            s: The state of the sequence.
            field: A column.
            chosen: The step so far, length F.
            out: Mask of the field's ids, all false; shape (V,).
        """
        special, first = self.special[field], self.order[0]
        if s.done:
            out[special["PAD"]] = True
            return
        if field != first:
            kind = self.kinds[first][chosen[first]]
            if kind in ("BOS", "EOS"):
                out[special[kind]] = True
                return
        else:
            if s.n_steps == 0 and "BOS" in special:
                out[special["BOS"]] = True
            all_bars = s.max_bars == UNBOUNDED or s.bar >= s.max_bars - 1
            if s.n_notes and all_bars and "EOS" in special and self._may_end(s):
                out[special["EOS"]] = True
        self._allow(s, field, chosen, out)

    def accepts(self, s: State, step: Sequence[int]) -> bool:
        """Whether every field of a step is allowed."""
        for field in self.order:
            out = np.zeros(len(self.kinds[field]), bool)
            self.allow(s, field, step, out)
            if not out[step[field]]:
                return False
        return True

    def next_state(self, s: State, step: Sequence[int]) -> State:
        """The state after a step that was allowed.

        ``n_steps`` does not count a step outside the sequence: one after its end, or one that only
        announces a bar past the last.
        """
        if s.done:
            return s
        kind = self.kinds[self.order[0]][step[self.order[0]]]
        if kind == "EOS":
            s = s._replace(done=True)
        elif kind == "BOS":
            s = s._replace(whole=1)
        elif self._closes(s, step):
            return s._replace(done=True, bar=s.max_bars - 1)
        else:
            s = self._next(s, step)
        return s._replace(n_steps=s.n_steps + 1)

    def closing(self, s: State) -> tuple[int, list[list[int]]]:
        """Steps to keep and steps to add so that a sequence cut here is whole."""
        return s.whole, []

    def opening(self, s: State, bar: int) -> list[list[int]]:
        """Steps that lead from a bar's line to its first step in the stream."""
        return []

    @abstractmethod
    def _allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None: ...

    @abstractmethod
    def _next(self, s: State, step: Sequence[int]) -> State: ...

    @abstractmethod
    def _closes(self, s: State, step: Sequence[int]) -> bool:
        """Whether an allowed step only announces a bar past the last."""

    @abstractmethod
    def _may_end(self, s: State) -> bool:
        """Whether the end token may come, as far as the notes are concerned."""

    def one_voice(self, s: State) -> bool:
        """Whether a note waits for the end of the last one."""
        return self.melody

    def limit(self, s: State) -> int:
        """Tick at which the last bar ends if the meter stays."""
        return s.bar_tick + (s.max_bars - max(0, s.bar)) * self.bar_ticks[s.meter]

    def meters_that_fit(self, s: State, tick: int, bar: int) -> Mask:
        """Meters of a bar at a tick that let all that sounds end in time; shape (meters,)."""
        if s.feeding:
            return np.ones(len(self.bar_ticks), bool)
        return tick + (s.max_bars - bar) * self.bar_ticks_M >= s.latest_end

    def tempi(self, s: State) -> Longs:
        """Tempi that differ from the current one."""
        tempi: Longs = self.tempo_ids[self.tempo_ids != s.tempo]
        return tempi

    def durations(self, s: State) -> Longs:
        """Durations of a note that begins now."""
        if s.max_bars == UNBOUNDED or s.feeding:
            return self.duration_ids
        room = (self.limit(s) - s.tick) // self.step_ticks[s.meter]
        return self.duration_ids[: int(np.searchsorted(self.duration_steps, room, side="right"))]

    def with_meter(self, s: State, meter: int, **more: Any) -> State:
        """The state after a bar of this meter begins; ``more`` holds other changes."""
        s = s._replace(meter=meter, **more)
        limit = self.limit(s)
        return s if s.latest_end <= limit else s._replace(latest_end=limit)


def _number(kind: str, value: str, i: int) -> Any:
    """A token's value in numbers; where it has none, its id keeps the order."""
    if value == "None" or kind in ("Family", "Chord"):
        return i
    if kind in ("Duration", "TimeShift"):
        beats, positions, resolution = (int(part) for part in value.split("."))
        return beats * resolution + positions
    if kind == "TimeSig":
        numerator, denominator = (int(part) for part in value.split("/"))
        return numerator, denominator
    return float(value) if kind == "Tempo" else int(value)
