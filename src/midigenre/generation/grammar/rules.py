"""What all grammars share: ids as numbers, the state of a sequence, the rules of its steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midigenre.midi.song import DEFAULT_METER, DRUMS
from midigenre.tokenizers.base import Tokenizer

Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]
Sounding = Mapping[int, Mapping[int, tuple[int, int]]]
"""Notes that wait for their end: by program and pitch, the onset and the latest end, in ticks."""

SPECIAL = ("PAD", "BOS", "EOS", "MASK")
_MUSIC = {
    "Bar", "Drum", "DrumOff", "DrumOn", "Duration", "Family", "Ignore", "NoteOff", "NoteOn",
    "Pitch", "PitchDrum", "Position", "Program", "Tempo", "TimeShift", "TimeSig", "Velocity",
}  # fmt: skip
_UNBOUNDED = 1 << 40
_NO_IDS: Ids = np.zeros(0, np.int64)
_NO_NOTES: Sounding = {}


class Vocabulary:
    """The fields of a tokenizer with ids in the order of their values.

    Attributes:
        spec: The tokenizer's spec.
        melody: Whether songs have one note at a time (``tracks=melody``).
        kinds: Type of each id, one tuple for each field.
        ranks: Rank of each id's value among the ids of its type, one list for each field.
        bar_ticks: Ticks of a bar of each meter, shape (meters,); without time signatures the one
            meter is 4/4.
        step_ticks: Ticks of a position of each meter, shape (meters,).
        longest: Longest note, in positions.
        program_ids: Ids of the programs in ascending order (drums first); empty where the
            vocabulary has none, which is one program.
        n_programs: Programs, at least 1.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec, grid = tokenizer.spec, tokenizer.grid
        self.spec = spec
        self.melody = bool(spec.tokenizer["tracks"] == "melody")
        self.kinds = [f.types for f in spec.fields]
        self.ranks = [[0] * len(f) for f in spec.fields]
        self._ids: dict[tuple[int, str], Ids] = {}
        self._values: dict[tuple[int, str], list[Any]] = {}
        for column, f in enumerate(spec.fields):
            for kind in dict.fromkeys(f.types):
                values = {
                    i: _number(kind, f.values[i], i) for i, t in enumerate(f.types) if t == kind
                }
                ids = sorted(values, key=lambda i: values[i])
                self._ids[column, kind] = np.array(ids, np.int64)
                self._values[column, kind] = [values[i] for i in ids]
                for rank, i in enumerate(ids):
                    self.ranks[column][i] = rank
        self._columns: dict[str, int] = {}
        for column, kind in self._ids:
            self._columns.setdefault(kind, column)
        meters = self._values.get((self.column("TimeSig"), "TimeSig"), [DEFAULT_METER])
        self.bar_ticks = np.array([grid.bar_ticks(m) for m in meters], np.int64)
        self.step_ticks = np.array([grid.step_ticks(m) for m in meters], np.int64)
        self.longest = grid.max_duration_beats * grid.beat_resolution
        programs = self.column("Program")
        self.program_ids = self.ids(programs, "Program")
        self.n_programs = max(1, len(self.program_ids))
        # The types that start a note of a melodic program and of the drums.
        melodic, drum = (
            ("NoteOn", "DrumOn") if "NoteOn" in self._columns else ("Pitch", "PitchDrum")
        )
        if drum not in self._columns:
            drum = melodic
        numbers = self.values(programs, "Program").tolist() or [0]
        self._pitch_kinds = [drum if program == DRUMS else melodic for program in numbers]
        self._pitch_column = self.column(melodic)

    def unknown(self) -> set[str]:
        """Types that no grammar knows: rests, chords, pedals ..."""
        return {t for f in self.spec.fields for t in f.types} - _MUSIC - set(SPECIAL)

    def column(self, kind: str) -> int:
        """The first field that has ids of a type, -1 where none has."""
        return self._columns.get(kind, -1)

    def columns(self, *kinds: str) -> tuple[int, ...]:
        """The fields that have ids of these types, in this order."""
        return tuple(dict.fromkeys(self._columns[k] for k in kinds if k in self._columns))

    def ids(self, column: int, kind: str) -> Ids:
        """Ids of a type in the order of their values, empty where there are none."""
        return self._ids.get((column, kind), _NO_IDS)

    def values(self, column: int, kind: str) -> Ids:
        """Values of :meth:`ids`; durations and shifts count positions."""
        return np.array(self._values.get((column, kind), []), np.int64)

    def special(self, column: int) -> dict[str, int]:
        """Ids of the special tokens of a field."""
        found = {name: self.spec.fields[column].index.get(f"{name}_None") for name in SPECIAL}
        return {name: i for name, i in found.items() if i is not None}

    def pitch_ids(self, program: int) -> Ids:
        """Ids that start a note of a program (a rank), by pitch."""
        return self._ids[self._pitch_column, self._pitch_kinds[program]]

    def pitch_kind(self, program: int) -> str:
        """Type of :meth:`pitch_ids`."""
        return self._pitch_kinds[program]


def _number(kind: str, value: str, i: int) -> Any:
    """A token's value in numbers; where it has none, its id keeps the order."""
    if value == "None" or kind in SPECIAL or kind == "Family":
        return i
    if kind in ("Duration", "TimeShift"):
        beats, positions, resolution = (int(part) for part in value.split("."))
        return beats * resolution + positions
    if kind == "TimeSig":
        numerator, denominator = (int(part) for part in value.split("/"))
        return numerator, denominator
    try:
        return float(value) if kind == "Tempo" else int(value)
    except ValueError:
        return i  # a type that no grammar knows is refused by name later


class State(NamedTuple):
    """Where a sequence stands after some steps.

    It is never changed: :meth:`Rules.next_state` makes the next one. Programs, pitches and meters
    are ranks in the vocabulary, times are ticks.

    Attributes:
        phase: What was written last or must come next, in the words of the rules.
        done: Whether the sequence has ended.
        n_steps: Steps so far, BOS too.
        n_notes: Notes so far.
        whole: Steps up to the end of the last whole note (or BOS).
        bar: The bar that is being written, -1 before the first.
        bar_steps: Step at which each bar begins.
        bar_tick: Where the bar begins.
        meter: The meter in force, -1 if the first one has to be stated.
        tempo: Id of the tempo in force, -1 before the first.
        position: Position in the bar, -1 before its first; kept by tokenizers that have positions.
        tick: Where notes begin now.
        program: Program of the last event at this tick, -1 before it.
        pitch: Pitch of that program's last note at this tick, -1 before it.
        note: Program and pitch of the note that is being written.
        latest_end: Where the last note ends; without those that wait for a note-off.
        first_bar: Bar that the ids call bar 0 (see :meth:`Rows.slide`).
        free_from: Nothing may begin in bars before this one; what sounds may end there.
        feeding: Whether the steps come from music that exists, which may sound past the last bar.
        sounding: Notes that wait for their note-off.
        last_off: Onset and pitch of the program's last note-off at this tick.
        full_shift: Whether the last shift was the longest one there is.
        offsets: Positions from each barline to its bar's first step; kept where time shifts.
        boundary: Steps without those of a note that is being written; kept where time shifts.
        dangling: Whether no note has followed a change of meter or tempo; kept where time shifts.
        before_change: The state before what is dangling, once there are notes.
    """

    phase: str = "start"
    done: bool = False
    n_steps: int = 0
    n_notes: int = 0
    whole: int = 0
    bar: int = -1
    bar_steps: tuple[int, ...] = ()
    bar_tick: int = 0
    meter: int = 0
    tempo: int = -1
    position: int = -1
    tick: int = 0
    program: int = -1
    pitch: int = -1
    note: tuple[int, int] = (0, 0)
    latest_end: int = 0
    first_bar: int = 0
    free_from: int = 0
    feeding: bool = False
    sounding: Sounding = _NO_NOTES
    last_off: tuple[int, int] = (-1, -1)
    full_shift: bool = False
    offsets: tuple[int, ...] = ()
    boundary: int = 0
    dangling: bool = False
    before_change: State | None = None

    @property
    def finished_bars(self) -> int:
        """Bars in which nothing will begin any more."""
        return self.bar + 1 if self.done else max(0, self.bar)


class Rules(ABC):
    """What may follow in a family of tokenizers, and where it leads; nothing here changes.

    With ``max_bars`` the end of the music is known only when all meters are. The bound of a note is
    the end that the present meter gives if it stays; a later meter is allowed only where the notes
    that sound still fit. The present meter always is.

    Args:
        vocabulary: What the ids mean.
        max_bars: The music ends with this bar; None for no end.
        exact: Whether the end token waits for the last bar.

    Attributes:
        order: The columns of a step in the order in which they are chosen.
        start: The state before the first step.
    """

    order: tuple[int, ...] = (0,)
    start: State = State()

    def __init__(
        self, vocabulary: Vocabulary, max_bars: int | None = None, exact: bool = False
    ) -> None:
        self.vocabulary = vocabulary
        self.max_bars = max_bars
        self.exact = exact
        self.special = [vocabulary.special(c) for c in range(len(vocabulary.kinds))]
        self.bar_ticks: list[int] = vocabulary.bar_ticks.tolist()
        self.step_ticks: list[int] = vocabulary.step_ticks.tolist()
        self.tempo_column, self.meter_column, self.velocity_column, self.duration_column = (
            vocabulary.column(kind) for kind in ("Tempo", "TimeSig", "Velocity", "Duration")
        )
        self.tempo_ids = vocabulary.ids(self.tempo_column, "Tempo")
        self.meter_ids = vocabulary.ids(self.meter_column, "TimeSig")
        self.velocity_ids = vocabulary.ids(self.velocity_column, "Velocity")
        self.duration_ids = vocabulary.ids(self.duration_column, "Duration")
        self.duration_steps = vocabulary.values(self.duration_column, "Duration")

    def allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None:
        """Sets what may be chosen for a field, given the fields before it in :attr:`order`.

        Args:
            s: Where the sequence stands.
            field: A column.
            chosen: The step so far, length F; only the columns before ``field`` are read.
            out: Mask of the field's ids, all false; shape (V,).
        """
        special = self.special[field]
        if s.done:
            out[special["PAD"]] = True
            return
        first = self.order[0]
        if field != first:
            kind = self.vocabulary.kinds[first][chosen[first]]
            if kind in ("BOS", "EOS"):
                out[special[kind]] = True
                return
        else:
            if s.n_steps == 0 and "BOS" in special:
                out[special["BOS"]] = True
            if "EOS" in special and s.n_notes and self._may_end(s) and self._bars_written(s):
                out[special["EOS"]] = True
        self._allow(s, field, chosen, out)

    def next_state(self, s: State, step: Sequence[int]) -> State:
        """The state after a step that was allowed.

        ``n_steps`` does not grow by a step that does not belong to the sequence: where it had
        ended before, or where the step only said that there would be another bar than the last.
        """
        if s.done:
            return s
        kind = self.vocabulary.kinds[self.order[0]][step[self.order[0]]]
        if kind == "EOS":
            s = s._replace(done=True)
        elif kind == "BOS":
            s = s._replace(whole=1)
        elif self.max_bars is not None and self._closes(s, step):
            return s._replace(done=True, bar=self.max_bars - 1)
        else:
            s = self._next(s, step)
        return s._replace(n_steps=s.n_steps + 1)

    def check(self, s: State, step: Sequence[int]) -> int:
        """The first field (column) that was not allowed, -1 if all were."""
        for field in self.order:
            out = np.zeros(len(self.vocabulary.kinds[field]), bool)
            self.allow(s, field, step, out)
            if not out[step[field]]:
                return field
        return -1

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
        """Whether an allowed step only says that there would be another bar than the last."""

    @abstractmethod
    def _may_end(self, s: State) -> bool:
        """Whether the end token may come, as far as the notes are concerned."""

    def _bars_written(self, s: State) -> bool:
        """Whether the end token need not wait for further bars."""
        return self.max_bars is None or not self.exact or s.bar >= self.max_bars - 1

    # --- time ------------------------------------------------------------------------------------

    def one_voice(self, s: State) -> bool:
        """Whether a note waits for the end of the last one."""
        return self.vocabulary.melody

    def limit(self, s: State) -> int:
        """Tick at which the last bar ends if the meter stays."""
        return self.end(s.bar, s.bar_tick, s.meter)

    def end(self, bar: int, bar_tick: int, meter: int) -> int:
        """Tick at which the last bar ends if this bar's meter stays."""
        if self.max_bars is None:
            return _UNBOUNDED
        return bar_tick + (self.max_bars - max(0, bar)) * self.bar_ticks[meter]

    def meters_that_fit(self, s: State, tick: int, bar: int) -> Mask:
        """Meters that let all that sounds end in time if a bar has them; shape (meters,).

        Args:
            s: Where the sequence stands.
            tick: Where the bar begins.
            bar: Its number.
        """
        if self.max_bars is None or s.feeding:
            return np.ones(len(self.bar_ticks), bool)
        ends: Ids = tick + (self.max_bars - bar) * self.vocabulary.bar_ticks
        return ends >= s.latest_end

    def durations(self, s: State) -> Ids:
        """Durations of a note that begins now."""
        if self.max_bars is None or s.feeding:
            return self.duration_ids
        room = (self.limit(s) - s.tick) // self.step_ticks[s.meter]
        return self.duration_ids[: int(np.searchsorted(self.duration_steps, room, side="right"))]

    def with_meter(self, s: State, meter: int) -> State:
        """A bar that has begun, in this meter."""
        s = s._replace(meter=meter)
        limit = self.limit(s)
        return s if s.latest_end <= limit else s._replace(latest_end=limit)
