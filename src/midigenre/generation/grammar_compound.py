"""Steps of several fields: CP and Octuple."""

from __future__ import annotations

from collections.abc import Sequence

from midigenre.generation.grammar_bars import BarRow
from midigenre.generation.grammar_vocabulary import Ids, Mask, Vocabulary


def _columns(vocabulary: Vocabulary, *kinds: str) -> tuple[int, ...]:
    """The columns that have these types, in this order."""
    found = [vocabulary.column(kind) for kind in kinds]
    return tuple(dict.fromkeys(c for c in found if c >= 0))


class CPRow(BarRow):
    """Steps of a bar, a position or a note; the fields that it does not have are ``Ignore``.

    Compound Word (Hsiao et al. 2021, arXiv 2101.02402) as MidiTok writes it: a bar says its meter,
    a position the tempo in force, a note its program. The program comes before the pitch, for the
    drums have pitches of their own. A position is followed by a note unless its tempo is new.
    """

    @classmethod
    def field_order(cls, vocabulary: Vocabulary) -> tuple[int, ...]:
        """Family first, the program before its pitch."""
        return _columns(
            vocabulary, "Family", "Position", "TimeSig", "Tempo", "Program", "Pitch", "Velocity",
            "Duration",
        )  # fmt: skip

    def __init__(
        self, vocabulary: Vocabulary, order: Sequence[int], max_bars: int | None, exact: bool
    ) -> None:
        super().__init__(vocabulary, order, max_bars, exact)
        index = vocabulary.spec.fields[order[0]].index
        self._note, self._metric = index["Family_Note"], index["Family_Metric"]
        self._place = vocabulary.column("Position")
        self._bar = int(vocabulary.ids(self._place, "Bar")[0])
        self._program_column = vocabulary.column("Program")
        self._pitch_column = vocabulary.column("Pitch")
        self._needs_note = False
        self._after_note = False

    def _may_end(self) -> bool:
        return self._after_note and self._bars_written()

    def _allow(self, field: int, chosen: Sequence[int], out: Mask) -> None:
        if field == self.order[0]:
            self._allow_family(out)
            return
        vocabulary = self.vocabulary
        is_note = chosen[self.order[0]] == self._note
        if field == self._place and not is_note:
            if self._must_open_tempo():
                out[vocabulary.ids(field, "Position")[:1]] = True
                return
            if self.bar >= self.free_from:
                out[self._reachable_positions()] = True
            if self.may_open_bar():
                out[self._bar] = True
            return
        opens = not is_note and chosen[self._place] == self._bar
        if field == self.meter_column and opens:
            out[self.meter_ids if self._closes(chosen) else self._next_meters()] = True
        elif field == self.tempo_column and not is_note and not opens:
            out[self._tempi_at(vocabulary.ranks[self._place][chosen[self._place]])] = True
        elif not is_note or field in (self._place, self.meter_column, self.tempo_column):
            out[vocabulary.ids(field, "Ignore")] = True
        elif field == self._program_column:
            out[vocabulary.program_ids[self.first_program() :]] = True
        elif field == self._pitch_column:
            out[self.pitches(self._program(chosen))] = True
        elif field == vocabulary.column("Velocity"):
            out[vocabulary.ids(field, "Velocity")] = True
        else:
            out[self.durations()] = True

    def _allow_family(self, out: Mask) -> None:
        if 0 <= self.bar < self.free_from:
            out[self._metric] = True
            return
        if self.first_program() < self.vocabulary.n_programs and not self._must_open_tempo():
            out[self._note] = True
        if not self._needs_note and (
            self._must_open_tempo() or self.may_open_bar() or len(self._reachable_positions())
        ):
            out[self._metric] = True

    def _must_open_tempo(self) -> bool:
        return self.bar >= 0 and len(self.tempo_ids) > 0 and self.tempo < 0

    def _reachable_positions(self) -> Ids:
        return self.position_ids(self._place)

    def _tempi_at(self, position: int) -> Ids:
        """All tempi; where a melody still sounds only new ones, for no note can follow."""
        tick = self.bar_tick + position * int(self.vocabulary.step_ticks[self.meter])
        return self.tempi() if self.one_voice and tick < self.latest_end else self.tempo_ids

    def _next_meters(self) -> Ids:
        """Meters of the bar that this step opens."""
        before = self.bar, self.bar_tick
        if self.bar >= 0:
            self.bar_tick += int(self.vocabulary.bar_ticks[self.meter])
        self.bar += 1
        meters = self.meters()
        self.bar, self.bar_tick = before
        return meters

    def _program(self, step: Sequence[int]) -> int:
        if self._program_column < 0:
            return 0
        return self.vocabulary.ranks[self._program_column][step[self._program_column]]

    def _closes(self, step: Sequence[int]) -> bool:
        is_bar = step[self.order[0]] == self._metric and step[self._place] == self._bar
        return is_bar and self.max_bars is not None and self.bar + 1 >= self.max_bars

    def _push(self, step: Sequence[int]) -> None:
        ranks = self.vocabulary.ranks
        self._after_note = step[self.order[0]] == self._note
        self._needs_note = False
        if self._after_note:
            pitch = ranks[self._pitch_column][step[self._pitch_column]]
            self.note(self._program(step), pitch, step[self.vocabulary.column("Duration")])
            self.whole = self.n_steps + 1
        elif step[self._place] == self._bar:
            self.open_bar()
            if self.meter_column >= 0:
                self.set_meter(ranks[self.meter_column][step[self.meter_column]])
        else:
            self.set_position(ranks[self._place][step[self._place]])
            self._needs_note = True
            if self.tempo_column >= 0:
                self._needs_note = step[self.tempo_column] == self.tempo
                self.tempo = step[self.tempo_column]


class OctupleRow(BarRow):
    """One step a note, with bar, position, tempo and meter in it.

    Octuple (Zeng et al. 2021, MusicBERT, arXiv 2106.05630) as MidiTok writes it. A bar without a
    note has the meter of the last bar that has one, at the start that of the first: what
    :mod:`midigenre.tokenizers.octuple` reads.
    """

    @classmethod
    def field_order(cls, vocabulary: Vocabulary) -> tuple[int, ...]:
        """Time before the note, the program before its pitch."""
        return _columns(
            vocabulary, "Bar", "TimeSig", "Position", "Tempo", "Program", "Pitch", "Velocity",
            "Duration",
        )  # fmt: skip

    def __init__(
        self, vocabulary: Vocabulary, order: Sequence[int], max_bars: int | None, exact: bool
    ) -> None:
        super().__init__(vocabulary, order, max_bars, exact)
        self._bars = vocabulary.ids(order[0], "Bar")
        self._place = vocabulary.column("Position")
        self._program_column = vocabulary.column("Program")
        self._pitch_column = vocabulary.column("Pitch")

    @property
    def one_voice(self) -> bool:
        """Not in given music: where it has empty bars, notes lie elsewhere than in the song."""
        return super().one_voice and not self.feeding

    def _may_end(self) -> bool:
        return self._bars_written()

    def _allow(self, field: int, chosen: Sequence[int], out: Mask) -> None:
        vocabulary = self.vocabulary
        if field == self.order[0]:
            self._allow_bar(out)
            return
        if self._closes(chosen):  # the rest of the step says nothing
            out[vocabulary.ids(field, vocabulary.spec.fields[field].name)] = True
            return
        there = self._bar_of(chosen)
        same_bar = there == self.bar
        if field == self.meter_column:
            out[self.meter_ids[self.meter] if same_bar else self._meters_of(there)] = True
            return
        saved = self._state()
        self._go_to(chosen, with_position=field != self._place)
        if field == self._place:
            end = int(vocabulary.n_positions[self.meter])
            # At its last onset a bar may have a pitch left.
            again = same_bar and self.first_program() < vocabulary.n_programs
            first = self.position if again else self._free_position()
            out[vocabulary.ids(field, "Position")[first:end]] = True
        elif field == self.tempo_column:
            out[self.tempo if self.program >= 0 else self.tempo_ids] = True
        elif field == self._program_column:
            out[vocabulary.program_ids[self.first_program() :]] = True
        elif field == self._pitch_column:
            out[self.pitches(self._program(chosen))] = True
        elif field == vocabulary.column("Velocity"):
            out[vocabulary.ids(field, "Velocity")] = True
        else:
            out[self.durations()] = True
        self._restore(saved)

    def _allow_bar(self, out: Mask) -> None:
        positions = int(self.vocabulary.n_positions[self.meter])
        first = max(0, self.bar)
        if self.bar >= 0 and not (
            self.first_program() < self.vocabulary.n_programs or self._free_position() < positions
        ):
            first += 1
        if self.one_voice:
            lasts = (self.vocabulary.bar_ticks - self.vocabulary.step_ticks).max()
            while first > self.bar and self._tick_of(first) + lasts < self.latest_end:
                first += 1
        first = max(first, self.free_from)
        end = len(self._bars) + self.first_bar
        if self.max_bars is not None and not self.n_notes:
            end = min(end, self.max_bars)
        out[self._bars[max(0, first - self.first_bar) : max(0, end - self.first_bar)]] = True

    def _free_position(self) -> int:
        """The next position of this bar at which a note can begin."""
        if not self.one_voice:
            return self.position + 1
        step = int(self.vocabulary.step_ticks[self.meter])
        return max(self.position + 1, -(-(self.latest_end - self.bar_tick) // step))

    def _tick_of(self, bar: int) -> int:
        if self.bar < 0:
            return 0
        return self.bar_tick + (bar - self.bar) * int(self.vocabulary.bar_ticks[self.meter])

    def _meters_of(self, bar: int) -> Ids:
        """Meters of a further bar: those in which all that sounds finds its end."""
        if self.n_notes == 0:
            return self.meter_ids
        start, v = self._tick_of(bar), self.vocabulary
        fits = v.bar_ticks > 0
        if self.max_bars is not None and not self.feeding:
            fits &= start + (self.max_bars - bar) * v.bar_ticks >= self.latest_end
        if self.one_voice:
            fits &= start + v.bar_ticks - v.step_ticks >= self.latest_end
        meters: Ids = self.meter_ids[fits]
        return meters

    def _bar_of(self, step: Sequence[int]) -> int:
        return self.vocabulary.ranks[self.order[0]][step[self.order[0]]] + self.first_bar

    def _program(self, step: Sequence[int]) -> int:
        if self._program_column < 0:
            return 0
        return self.vocabulary.ranks[self._program_column][step[self._program_column]]

    def _state(self) -> tuple[int, ...]:
        return (
            self.bar, self.bar_tick, self.meter, self.position, self.program, self.pitch,
            self.latest_end,
        )  # fmt: skip

    def _restore(self, state: tuple[int, ...]) -> None:
        (
            self.bar, self.bar_tick, self.meter, self.position, self.program, self.pitch,
            self.latest_end,
        ) = state  # fmt: skip

    def _go_to(self, step: Sequence[int], with_position: bool = True) -> None:
        """Moves to the bar, the meter and the position of a step."""
        bar = self._bar_of(step)
        if bar != self.bar:
            tick, first = self._tick_of(bar), self.n_notes == 0
            if self.meter_column >= 0:
                self.meter = self.vocabulary.ranks[self.meter_column][step[self.meter_column]]
            self.bar_tick = bar * int(self.vocabulary.bar_ticks[self.meter]) if first else tick
            self.bar = bar
            self.set_meter(self.meter)
            self.set_position(-1)
        if with_position:
            position = self.vocabulary.ranks[self._place][step[self._place]]
            if position != self.position:
                self.set_position(position)

    def _closes(self, step: Sequence[int]) -> bool:
        return self.max_bars is not None and self._bar_of(step) >= self.max_bars

    def _push(self, step: Sequence[int]) -> None:
        new = self._bar_of(step) - len(self.bar_steps) + 1
        self.bar_steps += [self.n_steps] * new
        self._go_to(step)
        if self.tempo_column >= 0:
            self.tempo = step[self.tempo_column]
        pitch = self.vocabulary.ranks[self._pitch_column][step[self._pitch_column]]
        self.note(self._program(step), pitch, step[self.vocabulary.column("Duration")])
        self.whole = self.n_steps + 1
