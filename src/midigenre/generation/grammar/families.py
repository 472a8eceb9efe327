"""The rules of each family of tokenizers.

REMI, CP and Octuple write bars and positions; in MIDI-like (note-offs) and TSD (durations) time
moves by shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from midigenre.arrays import Longs
from midigenre.generation.grammar.rules import UNBOUNDED, Mask, Rules, State
from midigenre.tokenizers.base import Tokenizer

_WHOLE = ("shift", "meter", "tempo", "event")
"""Phases of :class:`ShiftRules` in which no note is incomplete."""


class BarRules(Rules):
    """The rules that REMI, CP and Octuple share, whatever the form of their steps.

    Attributes:
        fields: Types of the columns of compound steps in the order in which they are chosen.
    """

    fields: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.position_ids, self.bar_ids = self.ids("Position"), self.ids("Bar")
        if self.fields:
            self.order = tuple(self.columns[k] for k in self.fields if k in self.columns)

    def rank(self, step: Sequence[int], kind: str) -> int:
        """Rank of a step's value of a type; 0 where the vocabulary has none."""
        column = self.columns.get(kind)
        return 0 if column is None else self.ranks[column][step[column]]

    def opened(self, s: State) -> State:
        """The next bar, in the same meter."""
        tick = s.bar_tick + (self.bar_ticks[s.meter] if s.bar >= 0 else 0)
        steps = (*s.bar_steps, s.n_steps)
        return s._replace(bar=s.bar + 1, bar_tick=tick, bar_steps=steps, position=-1)

    def at_position(self, s: State, position: int) -> State:
        """A position of this bar."""
        tick = s.bar_tick + position * self.step_ticks[s.meter]
        return s._replace(position=position, tick=tick, program=-1, pitch=-1)

    def after_note(self, s: State, program: int, pitch: int, duration: int, **more: Any) -> State:
        """The state after a note, given the ranks of its values; ``more`` holds other changes."""
        length = int(self.duration_steps[duration]) * self.step_ticks[s.meter]
        return s._replace(
            phase="note", program=program, pitch=pitch, n_notes=s.n_notes + 1, whole=s.n_steps + 1,
            latest_end=max(s.latest_end, min(s.tick + length, self.limit(s))), **more,
        )  # fmt: skip

    def _may_end(self, s: State) -> bool:
        return s.phase == "note"

    def meters(self, s: State) -> Longs:
        """Meters that the bar that was opened may have."""
        meters: Longs = self.meter_ids[self.meters_that_fit(s, s.bar_tick, s.bar)]
        return meters

    def may_open_bar(self, s: State) -> bool:
        """Whether a bar may follow; one after the last means that the row would continue."""
        return s.bar + 1 < s.max_bars or s.n_notes > 0

    def first_program(self, s: State) -> int:
        """Rank of the first program that has a pitch left at this onset; ``n_programs`` if none."""
        if s.position < 0 or (self.one_voice(s) and s.tick < s.latest_end):
            return self.n_programs
        if s.program < 0:
            return 0
        left = s.pitch + 1 < len(self.pitch_ids[s.program])
        return s.program if left else s.program + 1

    def programs(self, s: State) -> Longs:
        """Ids of the programs that have a pitch left at this onset."""
        return self.program_ids[self.first_program(s) :]

    def pitches(self, s: State, program: int) -> Longs:
        """Ids of the pitches that a program (a rank) has left at this onset."""
        return self.pitch_ids[program][s.pitch + 1 if program == s.program else 0 :]

    def n_positions(self, s: State) -> int:
        """Positions of this bar."""
        return self.bar_ticks[s.meter] // self.step_ticks[s.meter]

    def free_position(self, s: State) -> int:
        """The next position of this bar at which a note can begin."""
        if not self.one_voice(s):
            return s.position + 1
        return max(s.position + 1, -(-(s.latest_end - s.bar_tick) // self.step_ticks[s.meter]))

    def positions(self, s: State) -> Longs:
        """Ids of the positions that are left in this bar."""
        # Where a melody still sounds, the tempo may change.
        first = s.position + 1 if len(self.tempo_ids) > 1 else self.free_position(s)
        return self.position_ids[first : self.n_positions(s)]


class RemiRules(BarRules):
    """``Bar [TimeSig] (Position [Tempo] ([Program] Pitch [Velocity] Duration)*)*``.

    REMI (Huang and Yang 2020, arXiv 2002.00212) with the programs of REMI+ (von Rütte et al. 2022,
    arXiv 2201.10936), as MidiTok writes it. The first bar states a tempo at position 0. With
    ``use_chords`` the first note of a program at an onset may follow ``[Program] Chord``; which
    notes the chord then gets is left to the model.
    """

    start = State(phase="bar")

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.chord_ids = self.ids("Chord")

    def _allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None:
        match s.phase:
            case "duration":
                out[self.durations(s)] = True
            case "velocity":
                out[self.velocity_ids] = True
            case "pitch" | "pitch of chord":
                out[self.pitches(s, s.note[0])] = True
                if s.phase == "pitch" and s.program != s.note[0]:
                    out[self.chord_ids] = True
            case "program of chord":
                out[self.program_ids[s.note[0]]] = True
            case "meter":
                out[self.meters(s)] = True
            case "position 0":
                out[self.position_ids[:1]] = True
            case "first tempo":
                out[self.tempo_ids] = True
            case phase if phase == "bar" or 0 <= s.bar < s.free_from:
                out[self.bar_ids] = True
            case phase:
                if len(self.program_ids):
                    out[self.programs(s)] = True
                elif self.first_program(s) == 0:
                    out[self.pitches(s, 0)] = True
                    if s.program < 0:
                        out[self.chord_ids] = True
                if phase == "position":  # which is followed by something
                    out[self.tempi(s)] = True
                else:
                    out[self.positions(s)] = True
                    if self.may_open_bar(s):
                        out[self.bar_ids] = True

    def _closes(self, s: State, step: Sequence[int]) -> bool:
        return s.bar + 1 >= s.max_bars and self.kinds[0][step[0]] == "Bar"

    def _next(self, s: State, step: Sequence[int]) -> State:
        rank = self.ranks[0][step[0]]
        unstated = len(self.tempo_ids) > 0 and s.tempo < 0
        after_bar = "position 0" if unstated else "event"
        match self.kinds[0][step[0]]:
            case "Bar":
                return self.opened(s)._replace(phase="meter" if len(self.meter_ids) else after_bar)
            case "TimeSig":
                return self.with_meter(s, rank, phase=after_bar)
            case "Position":
                phase = "first tempo" if unstated else "position"
                return self.at_position(s, rank)._replace(phase=phase)
            case "Tempo":
                return s._replace(tempo=step[0], phase="event")
            case "Program":
                of_chord = s.phase == "program of chord"
                return s._replace(note=(rank, 0), phase="pitch of chord" if of_chord else "pitch")
            case "Chord":
                named = len(self.program_ids) > 0
                return s._replace(phase="program of chord" if named else "pitch of chord")
            case "Pitch" | "PitchDrum":
                phase = "velocity" if len(self.velocity_ids) else "duration"
                return s._replace(note=(s.note[0], rank), phase=phase)
            case "Velocity":
                return s._replace(phase="duration")
        return self.after_note(s, *s.note, rank)


class CPRules(BarRules):
    """Steps of a bar, a position or a note; the fields that it does not have are ``Ignore``.

    Compound Word (Hsiao et al. 2021, arXiv 2101.02402) as MidiTok writes it: a bar says its meter,
    a position the tempo in force, a note its program. The program comes before the pitch, for the
    drums have pitches of their own. A position is followed by a note unless its tempo is new.
    """

    fields = ("Family", "Position", "TimeSig", "Tempo", "Program", "Pitch", "Velocity", "Duration")

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        index = tokenizer.spec.fields[self.order[0]].index
        self._note, self._metric = index["Family_Note"], index["Family_Metric"]
        self._bar = int(self.bar_ids[0])

    def _allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None:
        name = self.names[field]
        if name == "Family":
            self._allow_family(s, out)
            return
        is_note = chosen[self.order[0]] == self._note
        opens = not is_note and chosen[self.columns["Position"]] == self._bar
        if name == "Position" and not is_note:
            if self._must_say_tempo(s):
                out[self.position_ids[:1]] = True
                return
            if s.bar >= s.free_from:
                out[self.positions(s)] = True
            if self.may_open_bar(s):
                out[self._bar] = True
        elif name == "TimeSig" and opens:
            out[self.meters(self.opened(s))] = True
        elif name == "Tempo" and not is_note and not opens:
            # Where a melody still sounds only new ones, for no note can follow.
            there = self.at_position(s, self.rank(chosen, "Position"))
            held = self.one_voice(s) and there.tick < s.latest_end
            out[self.tempi(s) if held else self.tempo_ids] = True
        elif not is_note or name in ("Position", "TimeSig", "Tempo"):
            out[self.ids("Ignore", field)] = True
        elif name == "Program":
            out[self.programs(s)] = True
        elif name == "Pitch":
            out[self.pitches(s, self.rank(chosen, "Program"))] = True
        else:
            out[self.velocity_ids if name == "Velocity" else self.durations(s)] = True

    def _allow_family(self, s: State, out: Mask) -> None:
        if 0 <= s.bar < s.free_from:
            out[self._metric] = True
            return
        must_say_tempo = self._must_say_tempo(s)
        out[self._note] = self.first_program(s) < self.n_programs and not must_say_tempo
        out[self._metric] = s.phase != "position" and (
            must_say_tempo or self.may_open_bar(s) or len(self.positions(s)) > 0
        )

    def _must_say_tempo(self, s: State) -> bool:
        return s.bar >= 0 and len(self.tempo_ids) > 0 and s.tempo < 0

    def _closes(self, s: State, step: Sequence[int]) -> bool:
        is_bar = step[self.order[0]] == self._metric and step[self.columns["Position"]] == self._bar
        return is_bar and s.bar + 1 >= s.max_bars

    def _next(self, s: State, step: Sequence[int]) -> State:
        if step[self.order[0]] == self._note:
            return self.after_note(
                s, *(self.rank(step, kind) for kind in ("Program", "Pitch", "Duration"))
            )
        if step[self.columns["Position"]] == self._bar:
            s = self.opened(s)._replace(phase="bar")
            return self.with_meter(s, self.rank(step, "TimeSig"))
        # "position" waits for its note.
        s = self.at_position(s, self.rank(step, "Position"))._replace(phase="position")
        tempo = step[self.columns["Tempo"]] if len(self.tempo_ids) else s.tempo
        return s if tempo == s.tempo else s._replace(tempo=tempo, phase="tempo")


class OctupleRules(BarRules):
    """One step per note, with bar, position, tempo and meter in it.

    Octuple (Zeng et al. 2021, MusicBERT, arXiv 2106.05630) as MidiTok writes it. A bar without a
    note has the meter of the last bar that has one, at the start that of the first: what
    :mod:`midigenre.tokenizers.miditok` reads.
    """

    # Time before the note, the program before its pitch.
    fields = ("Bar", "TimeSig", "Position", "Tempo", "Program", "Pitch", "Velocity", "Duration")

    def one_voice(self, s: State) -> bool:
        """Not in given music: where it has empty bars, notes lie elsewhere than in the song."""
        return self.melody and not s.feeding

    def _may_end(self, s: State) -> bool:
        return True

    def _allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None:
        name = self.names[field]
        if name == "Bar":
            out[self._bars(s)] = True
        elif (bar := self._bar_of(s, chosen)) >= s.max_bars:  # the rest of the step is meaningless
            out[self.ids(name, field)] = True
        elif name == "TimeSig":
            out[self.meter_ids[s.meter] if bar == s.bar else self._meters_of(s, bar)] = True
        elif name == "Velocity":
            out[self.velocity_ids] = True
        elif name == "Position":
            there = self._moved(s, chosen, -1)
            # At its last onset a bar may have a pitch left.
            again = there.bar == s.bar and self.first_program(there) < self.n_programs
            first = there.position if again else self.free_position(there)
            out[self.position_ids[first : self.n_positions(there)]] = True
        else:
            there = self._moved(s, chosen, self.rank(chosen, "Position"))
            if name == "Tempo":
                out[there.tempo if there.program >= 0 else self.tempo_ids] = True
            elif name == "Program":
                out[self.programs(there)] = True
            elif name == "Pitch":
                out[self.pitches(there, self.rank(chosen, "Program"))] = True
            else:
                out[self.durations(there)] = True

    def _bars(self, s: State) -> Longs:
        """Ids of the bars in which the next note may lie."""
        first = max(0, s.bar)
        if s.bar >= 0 and not (
            self.first_program(s) < self.n_programs or self.free_position(s) < self.n_positions(s)
        ):
            first += 1
        if self.one_voice(s):
            lasts = int((self.bar_ticks_M - self.step_ticks_M).max())
            while first > s.bar and self._tick_of(s, first) + lasts < s.latest_end:
                first += 1
        first = max(first, s.free_from)
        end = len(self.bar_ids) + s.first_bar
        if not s.n_notes:
            end = min(end, s.max_bars)
        return self.bar_ids[max(0, first - s.first_bar) : max(0, end - s.first_bar)]

    def _meters_of(self, s: State, bar: int) -> Longs:
        """Meters of a later bar that let all sounding notes end."""
        if s.n_notes == 0:
            return self.meter_ids
        start = self._tick_of(s, bar)
        fits = self.meters_that_fit(s, start, bar)
        if self.one_voice(s):
            fits &= start + self.bar_ticks_M - self.step_ticks_M >= s.latest_end
        return self.meter_ids[fits]

    def _tick_of(self, s: State, bar: int) -> int:
        """Where a bar begins if the meter stays."""
        return 0 if s.bar < 0 else s.bar_tick + (bar - s.bar) * self.bar_ticks[s.meter]

    def _bar_of(self, s: State, step: Sequence[int]) -> int:
        return self.rank(step, "Bar") + s.first_bar

    def _moved(self, s: State, step: Sequence[int], position: int) -> State:
        """In the bar and the meter of a step, at a position; -1 before its first."""
        bar = self._bar_of(s, step)
        if bar == s.bar:
            return self.at_position(s, position) if position not in (-1, s.position) else s
        meter = self.rank(step, "TimeSig")
        tick = self._tick_of(s, bar) if s.n_notes else bar * self.bar_ticks[meter]
        return self.with_meter(
            s, meter, bar=bar, bar_tick=tick, position=position,
            tick=tick + position * self.step_ticks[meter], program=-1, pitch=-1,
        )  # fmt: skip

    def _closes(self, s: State, step: Sequence[int]) -> bool:
        return self._bar_of(s, step) >= s.max_bars

    def _next(self, s: State, step: Sequence[int]) -> State:
        there = self._moved(s, step, self.rank(step, "Position"))
        tempo = step[self.columns["Tempo"]] if len(self.tempo_ids) else s.tempo
        return self.after_note(
            there, *(self.rank(step, kind) for kind in ("Program", "Pitch", "Duration")),
            bar_steps=s.bar_steps + (s.n_steps,) * (there.bar + 1 - len(s.bar_steps)), tempo=tempo,
        )  # fmt: skip


class ShiftRules(Rules):
    """``[TimeSig] [Tempo] (([Program] Off)* ([Program] On [Velocity])*)* TimeShift ...``.

    MIDI-like (Oore et al. 2018, arXiv 1808.03715) and MidiTok's TSD. At one tick come meter and
    tempo, then for each program its note-offs by onset and pitch and its notes by pitch. A shift
    is the longest there is until the rest fits. Bars are counted from the meter (4/4 where the
    vocabulary has none), which changes only at a barline; a shift across barlines leaves it as it
    is. A note ends at the latest after ``max_duration_beats``, rounded to the grid as
    :func:`midigenre.midi.clean.clean` does, and at the end of the last bar.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.offs = "NoteOff" in self.columns
        self.off_ids = self.by_program("NoteOff", "DrumOff")
        self.shift_ids = self.ids("TimeShift")
        self.shift_steps = np.array(self.values("TimeShift"), np.int64)
        self.longest = tokenizer.grid.max_duration_beats * tokenizer.grid.beat_resolution
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
            # A change that no note has followed is dropped, with all that came after it.
            s = s.before_change
        if not s.sounding:
            return s.whole, []
        # An incomplete note is dropped; the time that has passed stays.
        s = s._replace(phase="event", n_steps=s.boundary)
        keep, steps = s.boundary, []
        while s.sounding:
            steps.append([self._closing_step(s)])
            s = self.next_state(s, steps[-1])
        return keep, steps

    def _closing_step(self, s: State) -> int:
        """The next step towards silence: a note-off that may come, else the shortest shift."""
        named = s.phase == "program"
        for program in [s.note[0]] if named else sorted(s.sounding):
            if offs := self._offs(s, program):
                ids, rank = self.off_ids[program], offs[0]
                if len(self.program_ids) and not named:
                    ids, rank = self.program_ids, program
                return int(ids[rank])
        return int(self.shift_ids[0])

    def _sealed(self, s: State) -> bool:
        return max(0, s.bar) < s.free_from

    def _deadline(self, s: State, latest: int) -> int:
        """The latest end of a note on the grid of this bar; halves go up."""
        after, step = latest - s.bar_tick, self.step_ticks[s.meter]
        return s.bar_tick + (2 * after + step) // (2 * step) * step

    def _any_urgent(self, s: State, program: int) -> bool:
        """Whether a program has a note that must end now."""
        if program not in s.sounding:
            return False
        later = s.tick + self.step_ticks[s.meter]
        return s.tick >= self.limit(s) or any(
            later > self._deadline(s, latest) for _, latest in s.sounding[program].values()
        )

    def _first_urgent(self, s: State) -> int | None:
        """The first program with a note that must end now."""
        return min(
            (program for program in s.sounding if self._any_urgent(s, program)), default=None
        )

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
                out[self.tempi(s)] = True
            if len(self.program_ids):
                self._allow_programs(s, free, out)
            else:
                self._allow_pitches(s, 0, out)
            self._allow_shifts(s, out)

    def _meters(self, s: State, tick: int, bar: int) -> Longs:
        """Meters that change something at a barline and leave room for what sounds."""
        if len(self.meter_ids) == 0:
            return self.meter_ids
        fits = self.meters_that_fit(s, tick, bar)
        fits[s.meter] = False
        return self.meter_ids[fits]

    def _offs(self, s: State, program: int) -> list[int]:
        """Pitches of a program that may end now: in order, and skipping none that must end."""
        notes = s.sounding.get(program)
        if not notes or program < s.program or (program == s.program and s.pitch >= 0):
            return []
        before = s.last_off if program == s.program else (-1, -1)
        later, at_end = s.tick + self.step_ticks[s.meter], s.tick >= self.limit(s)
        found = []
        for onset, pitch, latest in sorted((on, p, latest) for p, (on, latest) in notes.items()):
            if onset < s.tick and (onset, pitch) > before:
                found.append(pitch)
                if at_end or later > self._deadline(s, latest):
                    break
        return found

    def _ons(self, s: State, program: int) -> list[int]:
        """Pitches of a program that may begin now."""
        if program < s.program or s.tick >= self.limit(s) or self._sealed(s):
            return []
        if self.one_voice(s) and (s.sounding or s.pitch >= 0 or s.tick < s.latest_end):
            return []
        if self._any_urgent(s, program):
            return []
        sounding = s.sounding.get(program, {})
        first = s.pitch + 1 if program == s.program else 0
        return [p for p in range(first, len(self.pitch_ids[program])) if p not in sounding]

    def _allow_pitches(self, s: State, program: int, out: Mask) -> None:
        out[self.pitch_ids[program][self._ons(s, program)]] = True
        if self.offs:
            out[self.off_ids[program][self._offs(s, program)]] = True

    def _allow_programs(self, s: State, free: bool, out: Mask) -> None:
        urgent, turn = self._first_urgent(s), max(0, s.program)
        end = self.n_programs if urgent is None else urgent + 1
        asked = set(s.sounding)
        if self.one_voice(s):
            asked.update(range(turn, end))
        elif free:
            # A program that is silent and has not had its turn can begin any note.
            out[self.program_ids[s.program + 1 : end]] = True
            asked.add(turn)
        for program in asked:
            if turn <= program < end:
                any_note = bool(self._offs(s, program) or self._ons(s, program))
                out[self.program_ids[program]] = any_note

    def _allow_shifts(self, s: State, out: Mask) -> None:
        if (s.phase == "shift" and not s.full_shift) or self._first_urgent(s) is not None:
            return
        limit, bar_ticks = self.limit(s), self.bar_ticks[s.meter]
        landing = s.tick + self.shift_steps * self.step_ticks[s.meter]
        fits = landing < limit
        if s.sounding:
            if not s.dangling:
                fits = landing <= limit
            latest = min(end for notes in s.sounding.values() for _, end in notes.values())
            fits &= landing <= self._deadline(s, latest)
        elif self._sealed(s):
            # Only another shift can follow before the free bar.
            bars = s.free_from - max(0, s.bar)
            fits[:-1] &= landing[:-1] >= s.bar_tick + bars * bar_ticks
        # A melody whose note has a duration is not left before its end.
        held = self.one_voice(s) and not self.offs
        if held and len(self.tempo_ids) < 2:
            # Only a meter can come while its note sounds.
            at_bar = (landing - s.bar_tick) % bar_ticks == 0
            at_bar &= [
                len(self._meters(s, tick, s.bar + (tick - s.bar_tick) // bar_ticks)) > 0
                for tick in landing.tolist()
            ]
            fits &= (landing >= s.latest_end) | at_bar
            fits[-1] |= bool(landing[-1] < limit)
        # Neither a shift nor a change that nothing follows ends a piece; a melody whose note sounds
        # to the end has no other way out.
        followed = s.phase != "shift" and not s.dangling
        if not s.sounding and s.n_notes > 0 and (followed or held):
            fits |= landing >= limit
        out[self.shift_ids[fits]] = True

    def _closes(self, s: State, step: Sequence[int]) -> bool:
        if s.max_bars == UNBOUNDED or s.sounding or self.kinds[0][step[0]] != "TimeShift":
            return False
        shift = int(self.shift_steps[self.ranks[0][step[0]]])
        return s.tick + shift * self.step_ticks[s.meter] >= self.limit(s)

    def _next(self, s: State, step: Sequence[int]) -> State:
        if s.bar < 0:
            s = s._replace(bar=0, bar_steps=(s.n_steps,), offsets=(0,))
        rank = self.ranks[0][step[0]]
        match self.kinds[0][step[0]]:
            case "TimeSig":
                s = self.with_meter(self._changing(s), rank, phase="meter")
            case "Tempo":
                s = self._changing(s)._replace(tempo=step[0], phase="tempo")
            case "TimeShift":
                s = self._shifted(s, rank)
            case "Program":
                s = s._replace(note=(rank, 0), phase="program")
            case "NoteOff" | "DrumOff":
                s = self._note_off(s, rank)
            case "Duration":
                s = self._note_on(s, int(self.duration_steps[rank]))
            case "Velocity":
                s = self._named(s)
            case _:  # the note itself
                s = s._replace(note=(s.note[0], rank), phase="velocity")
                s = s if len(self.velocity_ids) else self._named(s)
        return s._replace(boundary=s.n_steps + 1) if s.phase in _WHOLE else s

    def _named(self, s: State) -> State:
        """The state after pitch and velocity of a note."""
        return self._note_on(s, self.longest) if self.offs else s._replace(phase="duration")

    def _changing(self, s: State) -> State:
        """Before a change of meter or tempo, which a piece must not end with."""
        if s.dangling or not s.n_notes:
            return s._replace(dangling=True)
        return s._replace(dangling=True, before_change=s._replace(before_change=None))

    def _shifted(self, s: State, rank: int) -> State:
        """Later by a shift, possibly in another bar."""
        tick = s.tick + int(self.shift_steps[rank]) * self.step_ticks[s.meter]
        bar, bar_tick, steps, offsets = s.bar, s.bar_tick, s.bar_steps, s.offsets
        while tick >= bar_tick + self.bar_ticks[s.meter]:
            bar_tick += self.bar_ticks[s.meter]
            bar += 1
            if bar < s.max_bars:
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
        """After a note of at most ``steps`` positions (exactly as many without note-offs)."""
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

    def _note_off(self, s: State, pitch: int) -> State:
        program = s.note[0]
        s = self._turn(s, program)
        notes = dict(s.sounding[program])
        onset, _ = notes.pop(pitch)
        sounding = {p: of for p, of in s.sounding.items() if p != program}
        s = s._replace(
            phase="event", note=(0, 0), whole=s.n_steps + 1, last_off=(onset, pitch),
            sounding={**sounding, program: notes} if notes else sounding,
        )  # fmt: skip
        if s.tick >= self.limit(s) and not s.sounding:
            return s._replace(done=True, bar=s.max_bars - 1)
        return s
