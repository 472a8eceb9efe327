"""Music that is written bar by bar and position by position: REMI, CP and Octuple."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from midigenre.generation.grammar.rules import Ids, Mask, Rules, State, Vocabulary


class BarRules(Rules):
    """What REMI, CP and Octuple share, whatever their steps look like."""

    def __init__(
        self, vocabulary: Vocabulary, max_bars: int | None = None, exact: bool = False
    ) -> None:
        super().__init__(vocabulary, max_bars, exact)
        self.position_column, self.program_column, self.pitch_column = (
            vocabulary.column(kind) for kind in ("Position", "Program", "Pitch")
        )
        self.position_ids = vocabulary.ids(self.position_column, "Position")
        self.bar_ids = vocabulary.ids(vocabulary.column("Bar"), "Bar")

    # --- where steps lead ------------------------------------------------------------------------

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
        """Behind a note: ranks of its program and pitch, the id of its duration.

        What else its step says of the state is in ``more``.
        """
        steps = int(self.duration_steps[self.vocabulary.ranks[self.duration_column][duration]])
        end = min(s.tick + steps * self.step_ticks[s.meter], self.limit(s))
        return s._replace(
            phase="note", program=program, pitch=pitch, n_notes=s.n_notes + 1,
            whole=s.n_steps + 1, latest_end=max(s.latest_end, end), **more,
        )  # fmt: skip

    # --- what may come ---------------------------------------------------------------------------

    def _may_end(self, s: State) -> bool:
        return s.phase == "note"

    def meters(self, s: State) -> Ids:
        """Meters that the bar that was opened may have."""
        meters: Ids = self.meter_ids[self.meters_that_fit(s, s.bar_tick, s.bar)]
        return meters

    def tempi(self, s: State) -> Ids:
        """Tempi that change something."""
        tempi: Ids = self.tempo_ids[self.tempo_ids != s.tempo]
        return tempi

    def may_open_bar(self, s: State) -> bool:
        """Whether a bar may follow; the one behind the last says that the row wants more."""
        return self.max_bars is None or s.bar + 1 < self.max_bars or s.n_notes > 0

    def first_program(self, s: State) -> int:
        """Rank of the first program that has a pitch left at this onset; ``n_programs`` if none."""
        if s.position < 0 or (self.one_voice(s) and s.tick < s.latest_end):
            return self.vocabulary.n_programs
        if s.program < 0:
            return 0
        left = s.pitch + 1 < len(self.vocabulary.pitch_ids(s.program))
        return s.program if left else s.program + 1

    def pitches(self, s: State, program: int) -> Ids:
        """Ids of the pitches that a program (a rank) has left at this onset."""
        first = s.pitch + 1 if program == s.program else 0
        return self.vocabulary.pitch_ids(program)[first:]

    def program_of(self, step: Sequence[int]) -> int:
        """Rank of a step's program."""
        if self.program_column < 0:
            return 0
        return self.vocabulary.ranks[self.program_column][step[self.program_column]]

    def n_positions(self, s: State) -> int:
        """Positions of this bar."""
        return self.bar_ticks[s.meter] // self.step_ticks[s.meter]

    def free_position(self, s: State) -> int:
        """The next position of this bar at which a note can begin."""
        if not self.one_voice(s):
            return s.position + 1
        return max(s.position + 1, -(-(s.latest_end - s.bar_tick) // self.step_ticks[s.meter]))

    def positions(self, s: State) -> Ids:
        """Ids of the positions that are left in this bar."""
        # Where a melody still sounds, the tempo may change.
        first = s.position + 1 if len(self.tempo_ids) > 1 else self.free_position(s)
        return self.position_ids[first : self.n_positions(s)]


class RemiRules(BarRules):
    """``Bar [TimeSig] (Position [Tempo] ([Program] Pitch [Velocity] Duration)*)*``.

    REMI (Huang and Yang 2020, arXiv 2002.00212) with the programs of REMI+ (von Rütte et al. 2022,
    arXiv 2201.10936), as MidiTok writes it. The first bar states a tempo at position 0.
    """

    start = State(phase="bar")

    def _allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None:
        match s.phase:
            case "duration":
                out[self.durations(s)] = True
            case "velocity":
                out[self.velocity_ids] = True
            case "pitch":
                out[self.pitches(s, s.note[0])] = True
            case "bar":
                out[self.bar_ids] = True
            case "meter":
                out[self.meters(s)] = True
            case "position 0":
                out[self.position_ids[:1]] = True
            case "first tempo":
                out[self.tempo_ids] = True
            case _ if 0 <= s.bar < s.free_from:
                out[self.bar_ids] = True
            case _:
                if (first := self.first_program(s)) < self.vocabulary.n_programs:
                    if len(self.vocabulary.program_ids):
                        out[self.vocabulary.program_ids[first:]] = True
                    else:
                        out[self.pitches(s, 0)] = True
                if s.phase == "position":  # which is followed by something
                    out[self.tempi(s)] = True
                else:
                    out[self.positions(s)] = True
                    if self.may_open_bar(s):
                        out[self.bar_ids] = True

    def _closes(self, s: State, step: Sequence[int]) -> bool:
        assert self.max_bars is not None
        return self.vocabulary.kinds[0][step[0]] == "Bar" and s.bar + 1 >= self.max_bars

    def _next(self, s: State, step: Sequence[int]) -> State:
        rank = self.vocabulary.ranks[0][step[0]]
        after_bar = "position 0" if len(self.tempo_ids) and s.tempo < 0 else "event"
        match self.vocabulary.kinds[0][step[0]]:
            case "Bar":
                return self.opened(s)._replace(phase="meter" if len(self.meter_ids) else after_bar)
            case "TimeSig":
                return self.with_meter(s, rank)._replace(phase=after_bar)
            case "Position":
                phase = "first tempo" if after_bar == "position 0" else "position"
                return self.at_position(s, rank)._replace(phase=phase)
            case "Tempo":
                return s._replace(tempo=step[0], phase="event")
            case "Program":
                return s._replace(note=(rank, 0), phase="pitch")
            case "Pitch" | "PitchDrum":
                phase = "velocity" if len(self.velocity_ids) else "duration"
                return s._replace(note=(s.note[0], rank), phase=phase)
            case "Velocity":
                return s._replace(phase="duration")
        return self.after_note(s, *s.note, step[0])


class CPRules(BarRules):
    """Steps of a bar, a position or a note; the fields that it does not have are ``Ignore``.

    Compound Word (Hsiao et al. 2021, arXiv 2101.02402) as MidiTok writes it: a bar says its meter,
    a position the tempo in force, a note its program. The program comes before the pitch, for the
    drums have pitches of their own. A position is followed by a note unless its tempo is new.
    """

    def __init__(
        self, vocabulary: Vocabulary, max_bars: int | None = None, exact: bool = False
    ) -> None:
        super().__init__(vocabulary, max_bars, exact)
        self.order = vocabulary.columns(
            "Family", "Position", "TimeSig", "Tempo", "Program", "Pitch", "Velocity", "Duration"
        )
        index = vocabulary.spec.fields[self.order[0]].index
        self._note, self._metric = index["Family_Note"], index["Family_Metric"]
        self._bar = int(self.bar_ids[0])

    def _allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None:
        if field == self.order[0]:
            self._allow_family(s, out)
            return
        is_note = chosen[self.order[0]] == self._note
        opens = not is_note and chosen[self.position_column] == self._bar
        if field == self.position_column and not is_note:
            if self._must_say_tempo(s):
                out[self.position_ids[:1]] = True
                return
            if s.bar >= s.free_from:
                out[self.positions(s)] = True
            if self.may_open_bar(s):
                out[self._bar] = True
        elif field == self.meter_column and opens:
            closes = self.max_bars is not None and self._closes(s, chosen)
            out[self.meter_ids if closes else self.meters(self.opened(s))] = True
        elif field == self.tempo_column and not is_note and not opens:
            out[self._tempi_at(s, chosen)] = True
        elif not is_note or field in (self.position_column, self.meter_column, self.tempo_column):
            out[self.vocabulary.ids(field, "Ignore")] = True
        elif field == self.program_column:
            out[self.vocabulary.program_ids[self.first_program(s) :]] = True
        elif field == self.pitch_column:
            out[self.pitches(s, self.program_of(chosen))] = True
        elif field == self.velocity_column:
            out[self.velocity_ids] = True
        else:
            out[self.durations(s)] = True

    def _allow_family(self, s: State, out: Mask) -> None:
        if 0 <= s.bar < s.free_from:
            out[self._metric] = True
            return
        must_say_tempo = self._must_say_tempo(s)
        if self.first_program(s) < self.vocabulary.n_programs and not must_say_tempo:
            out[self._note] = True
        if s.phase != "position" and (
            must_say_tempo or self.may_open_bar(s) or len(self.positions(s))
        ):
            out[self._metric] = True

    def _must_say_tempo(self, s: State) -> bool:
        return s.bar >= 0 and len(self.tempo_ids) > 0 and s.tempo < 0

    def _tempi_at(self, s: State, step: Sequence[int]) -> Ids:
        """All tempi; where a melody still sounds only new ones, for no note can follow."""
        there = self.at_position(s, self._position_of(step))
        held = self.one_voice(s) and there.tick < s.latest_end
        return self.tempi(s) if held else self.tempo_ids

    def _position_of(self, step: Sequence[int]) -> int:
        return self.vocabulary.ranks[self.position_column][step[self.position_column]]

    def _closes(self, s: State, step: Sequence[int]) -> bool:
        is_bar = step[self.order[0]] == self._metric and step[self.position_column] == self._bar
        assert self.max_bars is not None
        return is_bar and s.bar + 1 >= self.max_bars

    def _next(self, s: State, step: Sequence[int]) -> State:
        ranks = self.vocabulary.ranks
        if step[self.order[0]] == self._note:
            pitch = ranks[self.pitch_column][step[self.pitch_column]]
            return self.after_note(s, self.program_of(step), pitch, step[self.duration_column])
        if step[self.position_column] == self._bar:
            s = self.opened(s)._replace(phase="bar")
            if self.meter_column < 0:
                return s
            return self.with_meter(s, ranks[self.meter_column][step[self.meter_column]])
        # "position" waits for its note.
        s = self.at_position(s, self._position_of(step))._replace(phase="position")
        if self.tempo_column < 0 or step[self.tempo_column] == s.tempo:
            return s
        return s._replace(tempo=step[self.tempo_column], phase="tempo")


class OctupleRules(BarRules):
    """One step per note, with bar, position, tempo and meter in it.

    Octuple (Zeng et al. 2021, MusicBERT, arXiv 2106.05630) as MidiTok writes it. A bar without a
    note has the meter of the last bar that has one, at the start that of the first: what
    :mod:`midigenre.tokenizers.octuple` reads.
    """

    def __init__(
        self, vocabulary: Vocabulary, max_bars: int | None = None, exact: bool = False
    ) -> None:
        super().__init__(vocabulary, max_bars, exact)
        # Time before the note, the program before its pitch.
        self.order = vocabulary.columns(
            "Bar", "TimeSig", "Position", "Tempo", "Program", "Pitch", "Velocity", "Duration"
        )

    def one_voice(self, s: State) -> bool:
        """Not in given music: where it has empty bars, notes lie elsewhere than in the song."""
        return self.vocabulary.melody and not s.feeding

    def _may_end(self, s: State) -> bool:
        return True

    def _allow(self, s: State, field: int, chosen: Sequence[int], out: Mask) -> None:
        vocabulary = self.vocabulary
        if field == self.order[0]:
            out[self._bars(s)] = True
            return
        if self.max_bars is not None and self._closes(s, chosen):
            # The rest of the step says nothing.
            out[vocabulary.ids(field, vocabulary.spec.fields[field].name)] = True
            return
        bar = self._bar_of(s, chosen)
        if field == self.meter_column:
            out[self.meter_ids[s.meter] if bar == s.bar else self._meters_of(s, bar)] = True
        elif field == self.velocity_column:
            out[self.velocity_ids] = True
        else:
            there = self._moved(s, chosen, with_position=field != self.position_column)
            if field == self.position_column:
                # At its last onset a bar may have a pitch left.
                again = bar == s.bar and self.first_program(there) < vocabulary.n_programs
                first = there.position if again else self.free_position(there)
                out[self.position_ids[first : self.n_positions(there)]] = True
            elif field == self.tempo_column:
                out[there.tempo if there.program >= 0 else self.tempo_ids] = True
            elif field == self.program_column:
                out[vocabulary.program_ids[self.first_program(there) :]] = True
            elif field == self.pitch_column:
                out[self.pitches(there, self.program_of(chosen))] = True
            else:
                out[self.durations(there)] = True

    def _bars(self, s: State) -> Ids:
        """Ids of the bars in which the next note may lie."""
        first = max(0, s.bar)
        if s.bar >= 0 and not (
            self.first_program(s) < self.vocabulary.n_programs
            or self.free_position(s) < self.n_positions(s)
        ):
            first += 1
        if self.one_voice(s):
            lasts = int((self.vocabulary.bar_ticks - self.vocabulary.step_ticks).max())
            while first > s.bar and self._tick_of(s, first) + lasts < s.latest_end:
                first += 1
        first = max(first, s.free_from)
        end = len(self.bar_ids) + s.first_bar
        if self.max_bars is not None and not s.n_notes:
            end = min(end, self.max_bars)
        return self.bar_ids[max(0, first - s.first_bar) : max(0, end - s.first_bar)]

    def _meters_of(self, s: State, bar: int) -> Ids:
        """Meters of a further bar: those in which all that sounds finds its end."""
        if s.n_notes == 0:
            return self.meter_ids
        start, v = self._tick_of(s, bar), self.vocabulary
        fits = self.meters_that_fit(s, start, bar)
        if self.one_voice(s):
            fits &= start + v.bar_ticks - v.step_ticks >= s.latest_end
        meters: Ids = self.meter_ids[fits]
        return meters

    def _tick_of(self, s: State, bar: int) -> int:
        """Where a bar begins if the meter stays."""
        if s.bar < 0:
            return 0
        return s.bar_tick + (bar - s.bar) * self.bar_ticks[s.meter]

    def _bar_of(self, s: State, step: Sequence[int]) -> int:
        return self.vocabulary.ranks[self.order[0]][step[self.order[0]]] + s.first_bar

    def _moved(self, s: State, step: Sequence[int], with_position: bool = True) -> State:
        """In the bar, the meter and the position of a step."""
        ranks, bar, position = self.vocabulary.ranks, self._bar_of(s, step), -1
        if with_position:
            position = ranks[self.position_column][step[self.position_column]]
        if bar == s.bar:
            return self.at_position(s, position) if position not in (-1, s.position) else s
        tick, meter = self._tick_of(s, bar), s.meter
        if self.meter_column >= 0:
            meter = ranks[self.meter_column][step[self.meter_column]]
        if s.n_notes == 0:
            tick = bar * self.bar_ticks[meter]
        return s._replace(
            bar=bar, bar_tick=tick, meter=meter, position=position,
            tick=tick + position * self.step_ticks[meter], program=-1, pitch=-1,
            latest_end=min(s.latest_end, self.end(bar, tick, meter)),
        )  # fmt: skip

    def _closes(self, s: State, step: Sequence[int]) -> bool:
        assert self.max_bars is not None
        return self._bar_of(s, step) >= self.max_bars

    def _next(self, s: State, step: Sequence[int]) -> State:
        new = self._bar_of(s, step) - len(s.bar_steps) + 1
        steps = s.bar_steps + (s.n_steps,) * new
        tempo = s.tempo if self.tempo_column < 0 else step[self.tempo_column]
        s = self._moved(s, step)
        pitch = self.vocabulary.ranks[self.pitch_column][step[self.pitch_column]]
        return self.after_note(
            s, self.program_of(step), pitch, step[self.duration_column],
            bar_steps=steps, tempo=tempo,
        )  # fmt: skip
