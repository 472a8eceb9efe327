"""Bars that are written one after the other: REMI and MuMIDI, and what CP shares with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from midigenre.generation.grammar_row import Row
from midigenre.generation.grammar_vocabulary import Ids, Mask, Vocabulary

_UNBOUNDED = 1 << 40


class BarRow(Row):
    """Where a row stands in its bars, whatever its steps look like.

    With ``max_bars`` the end of the music is known only when all meters are. The bound of a note is
    the end that the present meter gives if it stays; a later meter is allowed only where the notes
    that sound still fit. The present meter always is.
    """

    def __init__(
        self, vocabulary: Vocabulary, order: Sequence[int], max_bars: int | None, exact: bool
    ) -> None:
        vocabulary.set_notes("Pitch", "PitchDrum")
        super().__init__(vocabulary, order, max_bars, exact)
        self.bar_tick = 0
        self.meter = 0
        self.position = -1
        self.tempo = -1  # the id in force
        self.program = -1  # rank of the last note's program at this onset
        self.pitch = -1  # rank of its pitch
        self.latest_end = 0
        durations = vocabulary.column("Duration")
        self.duration_ids = vocabulary.ids(durations, "Duration")
        self.duration_steps = vocabulary.values(durations, "Duration")
        self.tempo_column = vocabulary.column("Tempo")
        self.tempo_ids = vocabulary.ids(self.tempo_column, "Tempo")
        self.meter_column = vocabulary.column("TimeSig")
        self.meter_ids = vocabulary.ids(self.meter_column, "TimeSig")

    @property
    def onset(self) -> int:
        """Tick of the position."""
        return self.bar_tick + self.position * int(self.vocabulary.step_ticks[self.meter])

    def limit(self) -> int:
        """Tick at which the last bar ends if the meter stays."""
        if self.max_bars is None:
            return _UNBOUNDED
        left = self.max_bars - self.bar
        return self.bar_tick + left * int(self.vocabulary.bar_ticks[self.meter])

    def open_bar(self) -> None:
        """Begins the next bar, in the same meter."""
        if self.bar >= 0:
            self.bar_tick += int(self.vocabulary.bar_ticks[self.meter])
        self.bar += 1
        self.position = -1
        self.bar_steps.append(self.n_steps)

    def set_meter(self, meter: int) -> None:
        """The meter (a rank) of the bar that was opened."""
        self.meter = meter
        self.latest_end = min(self.latest_end, self.limit())

    def set_position(self, position: int) -> None:
        """Moves to a position."""
        self.position = position
        self.program = self.pitch = -1

    def note(self, program: int, pitch: int, duration: int) -> None:
        """Writes a note: ranks of its program and pitch, the id of its duration."""
        column = self.vocabulary.column("Duration")
        steps = int(self.duration_steps[self.vocabulary.ranks[column][duration]])
        end = self.onset + steps * int(self.vocabulary.step_ticks[self.meter])
        self.program, self.pitch = program, pitch
        self.latest_end = max(self.latest_end, min(end, self.limit()))
        self.n_notes += 1

    def meters(self) -> Ids:
        """Meters that the bar that was opened may have."""
        if self.max_bars is None or self.feeding:
            return self.meter_ids
        ends = self.bar_tick + (self.max_bars - self.bar) * self.vocabulary.bar_ticks
        meters: Ids = self.meter_ids[ends >= self.latest_end]
        return meters

    def tempi(self) -> Ids:
        """Tempi that change something."""
        tempi: Ids = self.tempo_ids[self.tempo_ids != self.tempo]
        return tempi

    def durations(self) -> Ids:
        """Durations of a note at this position."""
        if self.max_bars is None or self.feeding:
            return self.duration_ids
        room = (self.limit() - self.onset) // int(self.vocabulary.step_ticks[self.meter])
        return self.duration_ids[: int(np.searchsorted(self.duration_steps, room, side="right"))]

    def may_open_bar(self) -> bool:
        """Whether a bar may follow; the one behind the last says that the row wants more."""
        return self.max_bars is None or self.bar + 1 < self.max_bars or self.n_notes > 0

    def first_program(self) -> int:
        """Rank of the first program that has a pitch left at this onset; ``n_programs`` if none."""
        if self.position < 0 or (self.one_voice and self.onset < self.latest_end):
            return self.vocabulary.n_programs
        if self.program < 0:
            return 0
        left = self.pitch + 1 < len(self.vocabulary.pitch_ids(self.program))
        return self.program if left else self.program + 1

    def pitches(self, program: int) -> Ids:
        """Ids of the pitches that a program (a rank) has left at this onset."""
        first = self.pitch + 1 if program == self.program else 0
        ids: Ids = self.vocabulary.pitch_ids(program)[first:]
        return ids

    def first_position(self) -> int:
        """The next position at which something can begin."""
        if not self.one_voice or len(self.tempo_ids) > 1:
            return self.position + 1  # where a melody still sounds, the tempo may change
        step = int(self.vocabulary.step_ticks[self.meter])
        return max(self.position + 1, -(-(self.latest_end - self.bar_tick) // step))

    def position_ids(self, column: int) -> Ids:
        """Ids of the positions that are left in this bar."""
        end = int(self.vocabulary.n_positions[self.meter])
        return self.vocabulary.ids(column, "Position")[self.first_position() : end]


class RemiRow(BarRow):
    """``Bar [TimeSig] (Position [Tempo] ([Program] Pitch [Velocity] Duration)*)*``.

    REMI (Huang and Yang 2020, arXiv 2002.00212) with the programs of REMI+ (von Rütte et al. 2022,
    arXiv 2201.10936), as MidiTok writes it. The first bar states a tempo at position 0.
    """

    @classmethod
    def field_order(cls, vocabulary: Vocabulary) -> tuple[int, ...]:
        """One column."""
        return (0,)

    def __init__(
        self, vocabulary: Vocabulary, order: Sequence[int], max_bars: int | None, exact: bool
    ) -> None:
        super().__init__(vocabulary, order, max_bars, exact)
        self.expects = "Bar"  # a type, or Event: whatever may follow a whole one
        self.after_note = False
        self._program = 0  # of the note that is being written, with its pitch
        self._pitch = 0
        self._bar_ids = vocabulary.ids(0, "Bar")
        self._velocity_ids = vocabulary.ids(0, "Velocity")

    def _may_end(self) -> bool:
        return self.expects == "Event" and self.after_note and self._bars_written()

    def _allow(self, field: int, chosen: Sequence[int], out: Mask) -> None:
        expects = self.expects
        if expects == "Duration":
            out[self.durations()] = True
        elif expects == "Velocity":
            out[self._velocity_ids] = True
        elif expects == "Pitch":
            out[self.pitches(self._program)] = True
        elif expects == "Bar":
            out[self._bar_ids] = True
        elif expects == "TimeSig":
            out[self.meters()] = True
        elif expects == "Position 0":
            out[self.vocabulary.ids(0, "Position")[:1]] = True
        elif expects == "First tempo":
            out[self.tempo_ids] = True
        elif 0 <= self.bar < self.free_from:
            out[self._bar_ids] = True
        else:
            if (first := self.first_program()) < self.vocabulary.n_programs:
                if len(self.vocabulary.program_ids):
                    out[self.vocabulary.program_ids[first:]] = True
                else:
                    out[self.pitches(0)] = True
            if expects == "Position's event":
                out[self.tempi()] = True
            else:
                out[self.position_ids(0)] = True
                if self.may_open_bar():
                    out[self._bar_ids] = True

    def _closes(self, step: Sequence[int]) -> bool:
        is_bar = self.vocabulary.kinds[0][step[0]] == "Bar"
        return is_bar and self.max_bars is not None and self.bar + 1 >= self.max_bars

    def _push(self, step: Sequence[int]) -> None:
        i = step[0]
        kind, rank = self.vocabulary.kinds[0][i], self.vocabulary.ranks[0][i]
        self.after_note = False
        opening = "Position 0" if len(self.tempo_ids) and self.tempo < 0 else "Event"
        if kind == "Bar":
            self.open_bar()
            self.expects = "TimeSig" if len(self.meter_ids) else opening
        elif kind == "TimeSig":
            self.set_meter(rank)
            self.expects = opening
        elif kind == "Position":
            self.set_position(rank)
            self.expects = "First tempo" if opening == "Position 0" else "Position's event"
        elif kind == "Tempo":
            self.tempo = i
            self.expects = "Event"
        elif kind == "Program":
            self._program, self.expects = rank, "Pitch"
        elif kind in ("Pitch", "PitchDrum"):
            self._pitch = rank
            self.expects = "Velocity" if len(self._velocity_ids) else "Duration"
        elif kind == "Velocity":
            self.expects = "Duration"
        else:
            self.note(self._program, self._pitch, i)
            self.expects, self.after_note = "Event", True
            self.whole = self.n_steps + 1


class MuMIDIRow(BarRow):
    """Steps of a bar, a position, a program or a note, each with bar and position beside it.

    MuMIDI (Ren et al. 2020, arXiv 2008.07703) as MidiTok writes it, in 4/4 and without tempi; a
    field that a step does not have is PAD.
    """

    @classmethod
    def field_order(cls, vocabulary: Vocabulary) -> tuple[int, ...]:
        """The columns as they are: the first says what the step is."""
        return tuple(range(len(vocabulary.kinds)))

    def __init__(
        self, vocabulary: Vocabulary, order: Sequence[int], max_bars: int | None, exact: bool
    ) -> None:
        super().__init__(vocabulary, order, max_bars, exact)
        self.last = "Start"
        self._program = -1
        self._bars = vocabulary.ids(vocabulary.column("BarPosEnc"), "BarPosEnc")
        column = vocabulary.column("PositionPosEnc")
        ids = vocabulary.ids(column, "PositionPosEnc")
        index = vocabulary.spec.fields[column].index
        self._no_position = index["PositionPosEnc_None"]
        self._positions = ids[ids != self._no_position]

    def _may_end(self) -> bool:
        return self.last == "Note" and self._bars_written()

    def _allow(self, field: int, chosen: Sequence[int], out: Mask) -> None:
        vocabulary = self.vocabulary
        if field == 0:
            self._allow_first(out)
            return
        kind, rank = vocabulary.kinds[0][chosen[0]], vocabulary.ranks[0][chosen[0]]
        types = set(vocabulary.kinds[field])
        if "BarPosEnc" in types:
            bar = self.bar - self.first_bar + (kind == "Bar")
            # The closing bar has no number where the vocabulary ends with the music.
            last = len(self._bars) - 1 if self._closes(chosen) else bar
            out[self._bars[min(bar, last) : min(bar, last) + 1]] = True
        elif "PositionPosEnc" in types:
            at = rank if kind == "Position" else self.position
            out[self._no_position if kind == "Bar" else self._positions[at]] = True
        elif kind not in ("Pitch", "PitchDrum"):
            out[self.special[field]["PAD"]] = True
        elif "Velocity" in types:
            out[vocabulary.ids(field, "Velocity")] = True
        else:
            out[self.durations()] = True

    def _allow_first(self, out: Mask) -> None:
        first = self.first_program()
        numbered = self.bar + 1 - self.first_bar < len(self._bars)
        ends = self.max_bars is not None and self.bar + 1 >= self.max_bars
        if self.last == "Position":
            out[self.vocabulary.program_ids[first:]] = True
        elif self.last == "Program":
            out[self.pitches(self._program)] = True
        elif 0 <= self.bar < self.free_from:
            out[self.vocabulary.ids(0, "Bar")] = True
        else:
            if self.may_open_bar() and (numbered or ends):
                out[self.vocabulary.ids(0, "Bar")] = True
            if self.bar >= 0:
                out[self.position_ids(0)] = True
            if self.last == "Note":
                if first == self.program:
                    out[self.pitches(first)] = True
                out[self.vocabulary.program_ids[max(first, self.program + 1) :]] = True

    def _closes(self, step: Sequence[int]) -> bool:
        is_bar = self.vocabulary.kinds[0][step[0]] == "Bar"
        return is_bar and self.max_bars is not None and self.bar + 1 >= self.max_bars

    def _push(self, step: Sequence[int]) -> None:
        kind, rank = self.vocabulary.kinds[0][step[0]], self.vocabulary.ranks[0][step[0]]
        self.last = kind
        if kind == "Bar":
            self.open_bar()
        elif kind == "Position":
            self.set_position(rank)
        elif kind == "Program":
            self._program = rank
        else:
            self.note(self._program, rank, step[self.vocabulary.column("Duration")])
            self.last = "Note"
            self.whole = self.n_steps + 1
