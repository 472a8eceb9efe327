"""What the ids of a tokenizer mean, as numbers that a grammar can count with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.midi.song import DEFAULT_METER, DRUMS
from midigenre.tokenizers.base import Tokenizer

Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]

_MUSIC = {
    "Bar", "BarPosEnc", "Drum", "DrumOff", "DrumOn", "Duration", "Family", "Ignore", "NoteOff",
    "NoteOn", "Pitch", "PitchDrum", "Position", "PositionPosEnc", "Program", "Tempo", "TimeShift",
    "TimeSig", "Velocity",
}  # fmt: skip
SPECIAL = ("PAD", "BOS", "EOS", "MASK")
_NONE: Ids = np.zeros(0, np.int64)


class Vocabulary:
    """The fields of a tokenizer with ids in the order of their values.

    Attributes:
        spec: The tokenizer's spec.
        melody: Whether songs have one note at a time (``tracks=melody``).
        kinds: Type of each id, one tuple for each field.
        ranks: Rank of each id's value among the ids of its type, one list for each field.
        n_meters: Meters of the vocabulary; without time signatures 4/4 alone.
        bar_ticks: Ticks of a bar of each meter, shape (meters,).
        step_ticks: Ticks of a position of each meter, shape (meters,).
        n_positions: Positions of a bar of each meter, shape (meters,).
        longest: Longest note, in positions.
        program_ids: Ids of the programs in ascending order (drums first); empty where the
            vocabulary has none, which is one program.
        n_programs: Programs, at least 1.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec, grid = tokenizer.spec, tokenizer.grid
        self.spec = spec
        self.melody = spec.tokenizer["tracks"] == "melody"
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
        self._meters(tokenizer)
        self.longest = grid.max_duration_beats * grid.beat_resolution
        self.program_ids = np.zeros(0, np.int64)
        self.n_programs = 1
        self._pitches: list[tuple[int, str]] = []

    def unknown(self) -> set[str]:
        """Types that no grammar knows: rests, chords, pedals ..."""
        return {t for f in self.spec.fields for t in f.types} - _MUSIC - set(SPECIAL)

    def column(self, kind: str) -> int:
        """The first field that has ids of a type, -1 where none has."""
        return self._columns.get(kind, -1)

    def ids(self, column: int, kind: str) -> Ids:
        """Ids of a type in the order of their values, empty where there are none."""
        return self._ids.get((column, kind), _NONE)

    def values(self, column: int, kind: str) -> Ids:
        """Values of :meth:`ids`; durations and shifts count positions."""
        return np.array(self._values.get((column, kind), []), np.int64)

    def special(self, column: int) -> dict[str, int]:
        """Ids of the special tokens of a field."""
        found = {name: self.spec.fields[column].index.get(f"{name}_None") for name in SPECIAL}
        return {name: i for name, i in found.items() if i is not None}

    def set_notes(self, melodic: str, drum: str) -> None:
        """Names the types that start a note of a melodic program and of the drums."""
        pitched = self.column(melodic)
        column = self.column("Program")
        if column < 0:
            self._pitches = [(pitched, melodic)]
            return
        values = self.values(column, "Program").tolist()
        programs = dict(zip(values, self.ids(column, "Program").tolist(), strict=True))
        if self.spec.tokenizer["tracks"] != "all":  # MuMIDI says the program even then
            programs = {0: programs[0]}
        self.program_ids = np.array(list(programs.values()), np.int64)
        self.n_programs = len(programs)
        for rank, i in enumerate(programs.values()):
            self.ranks[column][i] = rank
        has_drums = len(self.ids(pitched, drum)) > 0
        self._pitches = [(pitched, drum if p == DRUMS and has_drums else melodic) for p in programs]

    def pitch_ids(self, program: int) -> Ids:
        """Ids that start a note of a program (a rank), by pitch."""
        return self._ids[self._pitches[program]]

    def pitch_kind(self, program: int) -> str:
        """Type of :meth:`pitch_ids`."""
        return self._pitches[program][1]

    def _meters(self, tokenizer: Tokenizer) -> None:
        column, grid = self.column("TimeSig"), tokenizer.grid
        meters = [DEFAULT_METER]
        if column >= 0:
            meters = self._values[column, "TimeSig"]
        self.n_meters = len(meters)
        self.bar_ticks = np.array([grid.bar_ticks(m) for m in meters], np.int64)
        self.step_ticks = np.array([grid.step_ticks(m) for m in meters], np.int64)
        self.n_positions = self.bar_ticks // self.step_ticks


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
