"""Time that moves by shifts: MIDI-like (note-offs) and TSD (durations)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from midigenre.generation.grammar_row import Row
from midigenre.generation.grammar_vocabulary import Ids, Mask, Vocabulary

_UNBOUNDED = 1 << 40
_ON = ("NoteOn", "DrumOn", "Pitch", "PitchDrum")
_OFF = ("NoteOff", "DrumOff")
_OPENERS = ("shift", "meter", "tempo", "event")


class ShiftRow(Row):
    """``[TimeSig] [Tempo] (([Program] Off)* ([Program] On [Velocity])*)* TimeShift ...``.

    MIDI-like (Oore et al. 2018, arXiv 1808.03715) and MidiTok's TSD. At one tick come meter and
    tempo, then for each program its note-offs by onset and pitch and its notes by pitch. A shift
    is the longest there is until the rest fits. Bars are counted from the meter (4/4 where the
    vocabulary has none), which changes only at a barline; a shift across barlines leaves it as it
    is. A note ends at the latest after ``max_duration_beats``, rounded to the grid as
    :func:`midigenre.midi.clean.clean` does, and at the end of the last bar.
    """

    @classmethod
    def field_order(cls, vocabulary: Vocabulary) -> tuple[int, ...]:
        """One column."""
        return (0,)

    def __init__(
        self, vocabulary: Vocabulary, order: Sequence[int], max_bars: int | None, exact: bool
    ) -> None:
        self.offs = len(vocabulary.ids(0, "NoteOff")) > 0
        vocabulary.set_notes(*(("NoteOn", "DrumOn") if self.offs else ("Pitch", "PitchDrum")))
        super().__init__(vocabulary, order, max_bars, exact)
        self.shift_ids = vocabulary.ids(0, "TimeShift")
        self.shift_steps = vocabulary.values(0, "TimeShift")
        self.velocity_ids = vocabulary.ids(0, "Velocity")
        self.duration_ids = vocabulary.ids(0, "Duration")
        self.duration_steps = vocabulary.values(0, "Duration")
        self.tempo_ids = vocabulary.ids(0, "Tempo")
        self.meter_ids = vocabulary.ids(0, "TimeSig")
        self.tick = 0
        self.bar_tick = 0
        self.meter = -1 if len(self.meter_ids) else 0
        self.tempo = -1
        self.latest_end = 0  # of notes with durations
        # program -> pitch -> onset and the tick at which the note must have ended
        self.sounding: dict[int, dict[int, tuple[int, int]]] = {}
        self.phase = "event"  # what was written last: one of _OPENERS, or what the note lacks
        self.last_shift_full = False
        self.dangling = False  # a meter or tempo that no note has followed
        self._before_change: dict[str, Any] | None = None  # the state before what is dangling
        self.offsets: list[int] = []  # positions from each barline to the bar's first step
        self.boundary = 0  # steps without those of a note that is being written
        self._note: tuple[int, int] = (0, 0)
        self._new_tick()

    def _new_tick(self) -> None:
        self.program = -1
        self.last_off = (-1, -1)  # onset and pitch of this program's last note-off
        self.last_on = -1

    def opening(self, bar: int) -> list[list[int]]:
        """See :meth:`Row.opening`: the longest shifts first, as the encoder writes them."""
        left, steps = self.offsets[bar], []
        while left > 0:
            fits = int(np.searchsorted(self.shift_steps, left, side="right")) - 1
            steps.append([int(self.shift_ids[fits])])
            left -= int(self.shift_steps[fits])
        return steps

    # --- time ------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Ticks of a position."""
        return int(self.vocabulary.step_ticks[self.meter])

    def limit(self) -> int:
        """Tick at which the last bar ends if the meter stays."""
        if self.max_bars is None:
            return _UNBOUNDED
        left = self.max_bars - max(0, self.bar)
        return self.bar_tick + left * int(self.vocabulary.bar_ticks[self.meter])

    def _sealed(self) -> bool:
        return max(0, self.bar) < self.free_from

    def deadline(self, latest: int) -> int:
        """The latest end of a note on the grid of this bar; halves go up."""
        after = latest - self.bar_tick
        return self.bar_tick + (2 * after + self.step) // (2 * self.step) * self.step

    def _urgent(self, latest: int) -> bool:
        return self.tick + self.step > self.deadline(latest) or self.tick >= self.limit()

    def _is_sounding(self) -> bool:
        return any(self.sounding.values())

    # --- masks -----------------------------------------------------------------------------------

    def _may_end(self) -> bool:
        whole = self.phase == "event" and not self._is_sounding() and not self.dangling
        return whole and self._bars_written()

    def _allow(self, field: int, chosen: Sequence[int], out: Mask) -> None:
        phase = self.phase
        if self.meter < 0:
            out[self.meter_ids] = True
        elif len(self.tempo_ids) and self.tempo < 0:
            out[self.tempo_ids] = True
        elif phase == "program":
            self._allow_pitches(self._note[0], out)
        elif phase == "velocity":
            out[self.velocity_ids] = True
        elif phase == "duration":
            out[self._durations()] = True
        else:
            free = not self._sealed() and self.tick < self.limit()
            if phase == "shift" and self.tick == self.bar_tick and free:
                out[self._meters(self.tick, self.bar)] = True
            if phase in ("shift", "meter") and free:
                out[self.tempo_ids[self.tempo_ids != self.tempo]] = True
            if len(self.vocabulary.program_ids):
                self._allow_programs(out)
            else:
                self._allow_pitches(0, out)
            self._allow_shifts(out)

    def _meters(self, tick: int, bar: int) -> Ids:
        """Meters that change something at a barline and leave room for what sounds."""
        fits = np.arange(self.vocabulary.n_meters) != self.meter
        if len(self.meter_ids) == 0:
            return self.meter_ids
        if self.max_bars is not None and not self.feeding:
            fits &= tick + (self.max_bars - bar) * self.vocabulary.bar_ticks >= self.latest_end
        meters: Ids = self.meter_ids[fits]
        return meters

    def _durations(self) -> Ids:
        if self.max_bars is None or self.feeding:
            return self.duration_ids
        room = (self.limit() - self.tick) // self.step
        return self.duration_ids[: int(np.searchsorted(self.duration_steps, room, side="right"))]

    def _offs(self, program: int) -> list[int]:
        """Pitches of a program that may end now: in order, and none left behind that must."""
        later = program == self.program
        if program < self.program or (later and self.last_on >= 0):
            return []
        found = []
        for pitch, (onset, latest) in sorted(
            self.sounding.get(program, {}).items(), key=lambda item: (item[1][0], item[0])
        ):
            if onset < self.tick and not (later and (onset, pitch) <= self.last_off):
                found.append(pitch)
                if self._urgent(latest):
                    break
        return found

    def _ons(self, program: int) -> list[int]:
        """Pitches of a program that may begin now."""
        if program < self.program or self.tick >= self.limit() or self._sealed():
            return []
        if self.one_voice and (
            self._is_sounding() or self.last_on >= 0 or self.tick < self.latest_end
        ):
            return []
        sounding = self.sounding.get(program, {})
        if any(self._urgent(latest) for _, latest in sounding.values()):
            return []
        first = self.last_on + 1 if program == self.program else 0
        n = len(self.vocabulary.pitch_ids(program))
        return [p for p in range(first, n) if p not in sounding]

    def _allow_pitches(self, program: int, out: Mask) -> None:
        out[self.vocabulary.pitch_ids(program)[self._ons(program)]] = True
        if self.offs:
            kind = "NoteOff" if self.vocabulary.pitch_kind(program) == "NoteOn" else "DrumOff"
            out[self.vocabulary.ids(0, kind)[self._offs(program)]] = True

    def _allow_programs(self, out: Mask) -> None:
        urgent = self._first_urgent()
        end = self.vocabulary.n_programs if urgent is None else urgent + 1
        busy = [p for p, notes in self.sounding.items() if notes]
        free = self.tick < self.limit() and not self._sealed()
        if free and not self.one_voice:
            # A program that is silent and has not had its turn can begin any note.
            out[self.vocabulary.program_ids[self.program + 1 : end]] = True
            asked = {*busy, max(0, self.program)}
        else:
            asked = {*busy, *range(max(0, self.program), end if self.one_voice else 0)}
        for program in asked:
            if max(0, self.program) <= program < end:
                out[self.vocabulary.program_ids[program]] = bool(
                    self._offs(program) or self._ons(program)
                )

    def _first_urgent(self) -> int | None:
        """The first program with a note that must end at this tick."""
        return min(
            (
                program
                for program, notes in self.sounding.items()
                if any(self._urgent(latest) for _, latest in notes.values())
            ),
            default=None,
        )

    def _allow_shifts(self, out: Mask) -> None:
        if self.phase == "shift" and not self.last_shift_full:
            return
        if self._first_urgent() is not None:
            return
        landing = self.tick + self.shift_steps * self.step
        fits = landing < self.limit()
        silent = not self._is_sounding()
        if not silent:
            if not self.dangling:
                fits = landing <= self.limit()
            latest = min(end for notes in self.sounding.values() for _, end in notes.values())
            fits &= landing <= self.deadline(latest)
        if silent and self._sealed():
            # Nothing can follow before the free bar but a further shift.
            bars = self.free_from - max(0, self.bar)
            there = self.bar_tick + bars * int(self.vocabulary.bar_ticks[self.meter])
            fits[:-1] &= landing[:-1] >= there
        if self.one_voice and not self.offs and len(self.tempo_ids) < 2:
            # Nothing but a meter can come while a melody's note sounds.
            length = int(self.vocabulary.bar_ticks[self.meter])
            at_bar = (landing - self.bar_tick) % length == 0
            if len(self.meter_ids) < 2:
                at_bar[:] = False
            elif self.max_bars is not None:
                at_bar &= [
                    len(self._meters(int(t), self.bar + (int(t) - self.bar_tick) // length)) > 0
                    for t in landing
                ]
            fits &= (landing >= self.latest_end) | at_bar
            fits[-1] |= bool(landing[-1] < self.limit())
        # Neither a shift nor a change that nothing follows ends a piece; a melody whose note sounds
        # to the end has no other way out.
        heard = self.phase != "shift" and not self.dangling
        stuck = self.one_voice and not self.offs
        closing = silent and self.n_notes > 0 and (heard or stuck)
        if closing and self.max_bars is not None:
            fits |= landing >= self.limit()
        out[self.shift_ids[fits]] = True

    # --- steps -----------------------------------------------------------------------------------

    def _closes(self, step: Sequence[int]) -> bool:
        if self.vocabulary.kinds[0][step[0]] != "TimeShift" or self._is_sounding():
            return False
        shift = int(self.shift_steps[self.vocabulary.ranks[0][step[0]]])
        return self.tick + shift * self.step >= self.limit()

    def _push(self, step: Sequence[int]) -> None:
        i = step[0]
        kind, rank = self.vocabulary.kinds[0][i], self.vocabulary.ranks[0][i]
        if self.bar < 0:
            self.bar = 0
            self.bar_steps.append(self.n_steps)
            self.offsets.append(0)
        if kind in ("TimeSig", "Tempo") and not self.dangling and self.n_notes:
            state = vars(self) | {"_before_change": None}
            state["sounding"] = {program: dict(notes) for program, notes in self.sounding.items()}
            state["bar_steps"], state["offsets"] = list(self.bar_steps), list(self.offsets)
            self._before_change = state
        if kind == "TimeSig":
            self.meter, self.phase, self.dangling = rank, "meter", True
            self.latest_end = min(self.latest_end, self.limit())
        elif kind == "Tempo":
            self.tempo, self.phase, self.dangling = i, "tempo", True
        elif kind == "TimeShift":
            self._shift(rank)
        elif kind == "Program":
            self._note, self.phase = (rank, 0), "program"
        elif kind in _OFF:
            self._end_note(self._note[0], rank)
        elif kind in _ON:
            self._note = (self._note[0], rank)
            self.phase = "velocity" if len(self.velocity_ids) else "duration"
            if self.phase == "duration" and self.offs:
                self._begin_note(self.longest())
        elif kind == "Velocity":
            self.phase = "duration"
            if self.offs:
                self._begin_note(self.longest())
        else:
            self._begin_note(int(self.duration_steps[rank]))
        if self.phase in _OPENERS:
            self.boundary = self.n_steps + 1

    def longest(self) -> int:
        """Longest note, in positions."""
        return self.vocabulary.longest

    def _shift(self, rank: int) -> None:
        self.tick += int(self.shift_steps[rank]) * self.step
        self.phase, self.last_shift_full = "shift", rank == len(self.shift_ids) - 1
        length = int(self.vocabulary.bar_ticks[self.meter])
        while self.tick >= self.bar_tick + length:
            self.bar_tick += length
            self.bar += 1
            if self.max_bars is None or self.bar < self.max_bars:
                self.bar_steps.append(self.n_steps + 1)
                self.offsets.append((self.tick - self.bar_tick) // self.step)
        self._new_tick()

    def _turn(self, program: int) -> None:
        """The program whose events at this tick are being written."""
        if program != self.program:
            self._new_tick()
            self.program = program

    def _begin_note(self, steps: int) -> None:
        program, pitch = self._note
        self._turn(program)
        self.last_on = pitch
        self.n_notes += 1
        self.dangling = False
        end = self.tick + steps * self.step
        if self.offs:
            self.sounding.setdefault(program, {})[pitch] = (self.tick, end)
        else:
            self.latest_end = max(self.latest_end, min(end, self.limit()))
        self._event()

    def _end_note(self, program: int, pitch: int) -> None:
        self._turn(program)
        onset, _ = self.sounding[program].pop(pitch)
        self.last_off = (onset, pitch)
        self._event()
        if self.tick >= self.limit() and not self._is_sounding():
            self.done = True
            self.bar = self.max_bars - 1 if self.max_bars else self.bar

    def _event(self) -> None:
        self.phase = "event"
        self._note = (0, 0)
        self.whole = self.n_steps + 1

    def close(self) -> tuple[int, list[list[int]]]:
        """See :meth:`Row.close`: the notes that sound end at the next position at the latest."""
        steps: list[list[int]] = []
        if self.dangling and self._before_change is not None:
            # A change that no note has followed goes, with all that came after it.
            vars(self).update(self._before_change)
        if not self._is_sounding():
            self.done = True
            return self.whole, steps
        # A note that has begun in the stream only goes; the time that has passed stays.
        self.phase, self.n_steps = "event", self.boundary
        keep = self.boundary
        while self._is_sounding():
            step = self._closing_step()
            steps.append([step])
            self._push([step])
            self.n_steps += 1
        self.done = True
        return keep, steps

    def _closing_step(self) -> int:
        """The next step towards silence: a note-off that may come, else the shortest shift."""
        if self.phase == "program":
            kind = "NoteOff"
            if self.vocabulary.pitch_kind(self._note[0]) != "NoteOn":
                kind = "DrumOff"
            return int(self.vocabulary.ids(0, kind)[self._offs(self._note[0])[0]])
        for program in sorted(p for p, notes in self.sounding.items() if notes):
            if offs := self._offs(program):
                if len(self.vocabulary.program_ids):
                    return int(self.vocabulary.program_ids[program])
                return int(self.vocabulary.ids(0, "NoteOff")[offs[0]])
        return int(self.shift_ids[0])
