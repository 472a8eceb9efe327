"""Music in which time moves by shifts: MIDI-like (note-offs) and TSD (durations)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from midigenre.generation.grammar.rules import Ids, Mask, Rules, State, Vocabulary

_WHOLE = ("shift", "meter", "tempo", "event")
"""Phases in which no note is half written."""


class ShiftRules(Rules):
    """``[TimeSig] [Tempo] (([Program] Off)* ([Program] On [Velocity])*)* TimeShift ...``.

    MIDI-like (Oore et al. 2018, arXiv 1808.03715) and MidiTok's TSD. At one tick come meter and
    tempo, then for each program its note-offs by onset and pitch and its notes by pitch. A shift
    is the longest there is until the rest fits. Bars are counted from the meter (4/4 where the
    vocabulary has none), which changes only at a barline; a shift across barlines leaves it as it
    is. A note ends at the latest after ``max_duration_beats``, rounded to the grid as
    :func:`midigenre.midi.clean.clean` does, and at the end of the last bar.
    """

    def __init__(
        self, vocabulary: Vocabulary, max_bars: int | None = None, exact: bool = False
    ) -> None:
        super().__init__(vocabulary, max_bars, exact)
        self.offs = len(vocabulary.ids(0, "NoteOff")) > 0
        self.shift_ids = vocabulary.ids(0, "TimeShift")
        self.shift_steps = vocabulary.values(0, "TimeShift")
        self.start = State(phase="event", meter=-1 if len(self.meter_ids) else 0)

    def opening(self, s: State, bar: int) -> list[list[int]]:
        """See :meth:`Rules.opening`: the longest shifts first, as the encoder writes them."""
        left, steps = s.offsets[bar], []
        while left > 0:
            fits = int(np.searchsorted(self.shift_steps, left, side="right")) - 1
            steps.append([int(self.shift_ids[fits])])
            left -= int(self.shift_steps[fits])
        return steps

    def closing(self, s: State) -> tuple[int, list[list[int]]]:
        """See :meth:`Rules.closing`: notes that sound end at the next position at the latest."""
        if s.dangling and s.before_change is not None:
            # A change that no note has followed goes, with all that came after it.
            s = s.before_change
        if not s.sounding:
            return s.whole, []
        # A note that has only begun in the stream goes; the time that has passed stays.
        s = s._replace(phase="event", n_steps=s.boundary)
        keep, steps = s.boundary, []
        while s.sounding:
            steps.append([self._closing_step(s)])
            s = self.next_state(s, steps[-1])
        return keep, steps

    def _closing_step(self, s: State) -> int:
        """The next step towards silence: a note-off that may come, else the shortest shift."""
        if s.phase == "program":
            return int(self._off_ids(s.note[0])[self._offs(s, s.note[0])[0]])
        for program in sorted(s.sounding):
            if offs := self._offs(s, program):
                if len(self.vocabulary.program_ids):
                    return int(self.vocabulary.program_ids[program])
                return int(self._off_ids(program)[offs[0]])
        return int(self.shift_ids[0])

    def _off_ids(self, program: int) -> Ids:
        """Ids of a program's note-offs, by pitch."""
        melodic = self.vocabulary.pitch_kind(program) == "NoteOn"
        return self.vocabulary.ids(0, "NoteOff" if melodic else "DrumOff")

    # --- time ------------------------------------------------------------------------------------

    def _sealed(self, s: State) -> bool:
        return max(0, s.bar) < s.free_from

    def _deadline(self, s: State, latest: int) -> int:
        """The latest end of a note on the grid of this bar; halves go up."""
        after, step = latest - s.bar_tick, self.step_ticks[s.meter]
        return s.bar_tick + (2 * after + step) // (2 * step) * step

    def _urgent(self, s: State, latest: int) -> bool:
        """Whether a note with this latest end must end now."""
        later = s.tick + self.step_ticks[s.meter]
        return later > self._deadline(s, latest) or s.tick >= self.limit(s)

    def _first_urgent(self, s: State) -> int | None:
        """The first program with a note that must end now."""
        return min(
            (
                program
                for program, notes in s.sounding.items()
                if any(self._urgent(s, latest) for _, latest in notes.values())
            ),
            default=None,
        )

    # --- what may come ---------------------------------------------------------------------------

    def _may_end(self, s: State) -> bool:
        return s.phase == "event" and not s.sounding and not s.dangling

    def _allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None:
        if s.meter < 0:
            out[self.meter_ids] = True
        elif len(self.tempo_ids) and s.tempo < 0:
            out[self.tempo_ids] = True
        elif s.phase == "program":
            self._allow_pitches(s, s.note[0], out)
        elif s.phase == "velocity":
            out[self.velocity_ids] = True
        elif s.phase == "duration":
            out[self.durations(s)] = True
        else:
            free = not self._sealed(s) and s.tick < self.limit(s)
            if s.phase == "shift" and s.tick == s.bar_tick and free:
                out[self._meters(s, s.tick, s.bar)] = True
            if s.phase in ("shift", "meter") and free:
                out[self.tempo_ids[self.tempo_ids != s.tempo]] = True
            if len(self.vocabulary.program_ids):
                self._allow_programs(s, free, out)
            else:
                self._allow_pitches(s, 0, out)
            self._allow_shifts(s, out)

    def _meters(self, s: State, tick: int, bar: int) -> Ids:
        """Meters that change something at a barline and leave room for what sounds."""
        if len(self.meter_ids) == 0:
            return self.meter_ids
        fits = self.meters_that_fit(s, tick, bar)
        fits[s.meter] = False
        meters: Ids = self.meter_ids[fits]
        return meters

    def _offs(self, s: State, program: int) -> list[int]:
        """Pitches of a program that may end now: in order, and none left behind that must."""
        later = program == s.program
        if program < s.program or (later and s.pitch >= 0):
            return []
        found = []
        for pitch, (onset, latest) in sorted(
            s.sounding.get(program, {}).items(), key=lambda item: (item[1][0], item[0])
        ):
            if onset < s.tick and not (later and (onset, pitch) <= s.last_off):
                found.append(pitch)
                if self._urgent(s, latest):
                    break
        return found

    def _ons(self, s: State, program: int) -> list[int]:
        """Pitches of a program that may begin now."""
        if program < s.program or s.tick >= self.limit(s) or self._sealed(s):
            return []
        if self.one_voice(s) and (s.sounding or s.pitch >= 0 or s.tick < s.latest_end):
            return []
        sounding = s.sounding.get(program, {})
        if any(self._urgent(s, latest) for _, latest in sounding.values()):
            return []
        first = s.pitch + 1 if program == s.program else 0
        n = len(self.vocabulary.pitch_ids(program))
        return [p for p in range(first, n) if p not in sounding]

    def _allow_pitches(self, s: State, program: int, out: Mask) -> None:
        out[self.vocabulary.pitch_ids(program)[self._ons(s, program)]] = True
        if self.offs:
            out[self._off_ids(program)[self._offs(s, program)]] = True

    def _allow_programs(self, s: State, free: bool, out: Mask) -> None:
        urgent = self._first_urgent(s)
        end = self.vocabulary.n_programs if urgent is None else urgent + 1
        asked = set(s.sounding)
        if free and not self.one_voice(s):
            # A program that is silent and has not had its turn can begin any note.
            out[self.vocabulary.program_ids[s.program + 1 : end]] = True
            asked.add(max(0, s.program))
        elif self.one_voice(s):
            asked.update(range(max(0, s.program), end))
        for program in asked:
            if max(0, s.program) <= program < end:
                out[self.vocabulary.program_ids[program]] = bool(
                    self._offs(s, program) or self._ons(s, program)
                )

    def _allow_shifts(self, s: State, out: Mask) -> None:
        if (s.phase == "shift" and not s.full_shift) or self._first_urgent(s) is not None:
            return
        limit = self.limit(s)
        landing = s.tick + self.shift_steps * self.step_ticks[s.meter]
        fits = landing < limit
        if s.sounding:
            if not s.dangling:
                fits = landing <= limit
            latest = min(end for notes in s.sounding.values() for _, end in notes.values())
            fits &= landing <= self._deadline(s, latest)
        elif self._sealed(s):
            # Nothing can follow before the free bar but a further shift.
            bars = s.free_from - max(0, s.bar)
            fits[:-1] &= landing[:-1] >= s.bar_tick + bars * self.bar_ticks[s.meter]
        # A melody whose note has a duration is not left before its end.
        held = self.one_voice(s) and not self.offs
        if held and len(self.tempo_ids) < 2:
            # Nothing but a meter can come while its note sounds.
            length = self.bar_ticks[s.meter]
            at_bar = (landing - s.bar_tick) % length == 0
            if len(self.meter_ids) < 2:
                at_bar[:] = False
            elif self.max_bars is not None:
                at_bar &= [
                    len(self._meters(s, int(t), s.bar + (int(t) - s.bar_tick) // length)) > 0
                    for t in landing
                ]
            fits &= (landing >= s.latest_end) | at_bar
            fits[-1] |= bool(landing[-1] < limit)
        # Neither a shift nor a change that nothing follows ends a piece; a melody whose note sounds
        # to the end has no other way out.
        followed = s.phase != "shift" and not s.dangling
        if self.max_bars is not None and not s.sounding and s.n_notes > 0 and (followed or held):
            fits |= landing >= limit
        out[self.shift_ids[fits]] = True

    # --- where steps lead ------------------------------------------------------------------------

    def _closes(self, s: State, step: Sequence[int]) -> bool:
        if self.vocabulary.kinds[0][step[0]] != "TimeShift" or s.sounding:
            return False
        shift = int(self.shift_steps[self.vocabulary.ranks[0][step[0]]])
        return s.tick + shift * self.step_ticks[s.meter] >= self.limit(s)

    def _next(self, s: State, step: Sequence[int]) -> State:
        if s.bar < 0:
            s = s._replace(bar=0, bar_steps=(s.n_steps,), offsets=(0,))
        s = self._after(s, step[0])
        return s._replace(boundary=s.n_steps + 1) if s.phase in _WHOLE else s

    def _after(self, s: State, i: int) -> State:
        kind, rank = self.vocabulary.kinds[0][i], self.vocabulary.ranks[0][i]
        match kind:
            case "TimeSig":
                return self.with_meter(self._changing(s), rank)._replace(phase="meter")
            case "Tempo":
                return self._changing(s)._replace(tempo=i, phase="tempo")
            case "TimeShift":
                return self._shifted(s, rank)
            case "Program":
                return s._replace(note=(rank, 0), phase="program")
            case "NoteOff" | "DrumOff":
                return self._note_off(s, s.note[0], rank)
            case "Duration":
                return self._note_on(s, int(self.duration_steps[rank]))
            case "Velocity":
                phase = "duration"
            case _:  # the note itself
                s = s._replace(note=(s.note[0], rank))
                phase = "velocity" if len(self.velocity_ids) else "duration"
        if phase == "duration" and self.offs:
            return self._note_on(s, self.vocabulary.longest)
        return s._replace(phase=phase)

    def _changing(self, s: State) -> State:
        """Before a change of meter or tempo, which a piece must not end with."""
        if s.dangling or not s.n_notes:
            return s._replace(dangling=True)
        return s._replace(dangling=True, before_change=s._replace(before_change=None))

    def _shifted(self, s: State, rank: int) -> State:
        """Later by a shift, in a further bar perhaps."""
        tick = s.tick + int(self.shift_steps[rank]) * self.step_ticks[s.meter]
        bar, bar_tick, steps, offsets = s.bar, s.bar_tick, s.bar_steps, s.offsets
        while tick >= bar_tick + self.bar_ticks[s.meter]:
            bar_tick += self.bar_ticks[s.meter]
            bar += 1
            if self.max_bars is None or bar < self.max_bars:
                steps = (*steps, s.n_steps + 1)
                offsets = (*offsets, (tick - bar_tick) // self.step_ticks[s.meter])
        return s._replace(
            phase="shift", full_shift=rank == len(self.shift_ids) - 1, tick=tick, bar=bar,
            bar_tick=bar_tick, bar_steps=steps, offsets=offsets,
            program=-1, pitch=-1, last_off=(-1, -1),
        )  # fmt: skip

    def _turn(self, s: State, program: int) -> State:
        """Among the events of a program at this tick."""
        if program == s.program:
            return s
        return s._replace(program=program, pitch=-1, last_off=(-1, -1))

    def _note_on(self, s: State, steps: int) -> State:
        """Behind a note of at most so many positions (of exactly so many without note-offs)."""
        program, pitch = s.note
        s = self._turn(s, program)
        end = s.tick + steps * self.step_ticks[s.meter]
        if self.offs:
            notes = {**s.sounding.get(program, {}), pitch: (s.tick, end)}
            s = s._replace(sounding={**s.sounding, program: notes})
        else:
            s = s._replace(latest_end=max(s.latest_end, min(end, self.limit(s))))
        return s._replace(
            phase="event", note=(0, 0), whole=s.n_steps + 1, pitch=pitch, n_notes=s.n_notes + 1,
            dangling=False,
        )  # fmt: skip

    def _note_off(self, s: State, program: int, pitch: int) -> State:
        s = self._turn(s, program)
        notes = {p: note for p, note in s.sounding[program].items() if p != pitch}
        others = {p: of for p, of in s.sounding.items() if p != program}
        s = s._replace(
            phase="event", note=(0, 0), whole=s.n_steps + 1,
            last_off=(s.sounding[program][pitch][0], pitch),
            sounding={**others, program: notes} if notes else others,
        )  # fmt: skip
        if self.max_bars is not None and s.tick >= self.limit(s) and not s.sounding:
            return s._replace(done=True, bar=self.max_bars - 1)
        return s
