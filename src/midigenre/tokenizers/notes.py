"""Finds the notes in the tokens of a phrase, for every tokenizer in which bars can be found.

What a step means differs between vocabularies: in Octuple it is a note, in CP a bar, a position or
a note, in REMI a single attribute. Here every one of them is read as the same table: a row a note,
with the steps that say it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Longs
from midigenre.midi.song import DRUMS
from midigenre.spec import TokenSpec

AnyIds = NDArray[np.integer[Any]]

ATTRIBUTES = ("Pitch", "Velocity", "Duration", "Program")
"""What a vocabulary may say of a note, besides its place; the columns ``A`` of the note table."""

ATTRIBUTE_TYPES = {
    "Pitch": ("Pitch", "PitchDrum"),
    "Velocity": ("Velocity",),
    "Duration": ("Duration",),
    "Program": ("Program",),
}
"""The token types of each attribute."""

NOT_FOUND = ("PitchIntervalTime", "PitchIntervalChord", "Track")
"""Types of vocabularies in which a note is more than a pitch behind its bar and position."""


@dataclass(frozen=True)
class FoundNotes:
    """The notes of phrases as columns of shape (n,), in the order of the stream.

    Attributes:
        bar: Bar within the phrase.
        position: Position of the grid in the bar.
        pitch: MIDI pitch.
        program: MIDI program; :data:`~midigenre.midi.song.DRUMS` for drums, 0 where the vocabulary
            has no programs.
        phrase: Which of the phrases given together.
        steps_nA: The step that says each of :data:`ATTRIBUTES`, int64 (n, A); -1 where none does.
        columns_A: The field in which each attribute stands, int64 (A,); -1 where in none. So token
            ``(steps_nA[i, a], columns_A[a])`` is attribute ``a`` of note ``i``.
    """

    bar: Longs
    position: Longs
    pitch: Longs
    program: Longs
    phrase: Longs
    steps_nA: Longs
    columns_A: Longs

    def __len__(self) -> int:
        return len(self.bar)


class NoteFinder:
    """Finds the notes of phrases; call it with their tokens.

    No Python code runs for a single token: what an id means is looked up in arrays that are made
    once from the spec.

    Args:
        spec: The vocabulary; its ``bars`` is ``token`` or ``field``.

    Raises:
        ValueError: Phrases are not slices of the stream (``bars`` is ``none``), or the vocabulary
            has no positions, or says notes in another way than by a pitch behind them.
    """

    def __init__(self, spec: TokenSpec) -> None:
        if spec.bars == "none":
            raise ValueError(f"{spec.name}: bars cannot be found in the token stream")
        for type_ in NOT_FOUND:
            if any(f.is_type(type_).any() for f in spec.fields):
                raise ValueError(f"{spec.name}: notes cannot be found by their {type_} tokens")
        self.spec = spec
        self._columns = {name: _column(spec, types) for name, types in ATTRIBUTE_TYPES.items()}
        self._position = _column(spec, ("Position",))
        if self._columns["Pitch"] < 0 or self._position < 0:
            raise ValueError(f"{spec.name}: the vocabulary has no pitches or no positions")
        self._bar = _column(spec, ("Bar",))
        self._values = {
            name: number_of_id(spec, name) for name in (*ATTRIBUTES[:1], "Position", "Program")
        }
        drums = spec.fields[self._columns["Pitch"]].is_type("PitchDrum")
        self._is_drum = drums
        self._is_bar = spec.fields[self._bar].is_type("Bar")
        self._first_bar = int(np.flatnonzero(self._is_bar)[0])
        # By attribute: whether an id of its column says it.
        self._says = {
            name: spec.fields[column].is_type(*ATTRIBUTE_TYPES[name])
            for name, column in self._columns.items()
            if column >= 0
        }
        self.columns_A: Longs = np.array([self._columns[name] for name in ATTRIBUTES], np.int64)

    def __call__(self, ids_TF: AnyIds, starts: Longs | None = None) -> FoundNotes:
        """The notes of a phrase, or of several that lie end to end.

        A phrase that ``max_tokens`` cut inside a bar may end with part of a note, which is found
        with what is said of it. BOS, EOS and PAD are passed over.

        Args:
            ids_TF: Tokens, shape (T, F).
            starts: First step of each phrase, shape (B,); None for one phrase.
        """
        pitch_ids = ids_TF[:, self._columns["Pitch"]]
        note_at = np.flatnonzero(self._says["Pitch"].take(pitch_ids))
        starts = np.zeros(1, np.int64) if starts is None else starts
        phrase = np.searchsorted(starts, note_at, side="right") - 1
        steps_nA = np.stack(
            [self._steps(name, ids_TF, note_at, starts[phrase]) for name in ATTRIBUTES], axis=1
        )
        pitch_ids = pitch_ids.take(note_at)
        return FoundNotes(
            bar=self._bars(ids_TF, note_at, starts, phrase),
            position=self._positions(ids_TF, note_at),
            pitch=self._values["Pitch"].take(pitch_ids),
            program=self._programs(ids_TF, pitch_ids, steps_nA[:, ATTRIBUTES.index("Program")]),
            phrase=phrase,
            steps_nA=steps_nA,
            columns_A=self.columns_A,
        )

    def _steps(self, name: str, ids_TF: AnyIds, note_at: Longs, start_n: Longs) -> Longs:
        """The step of each note's attribute, shape (n,); -1 where there is none."""
        column = self._columns[name]
        nowhere = np.full(len(note_at), -1, np.int64)
        if column < 0:
            return nowhere
        if name == "Pitch":
            return note_at
        says = self._says[name]
        if column != self._columns["Pitch"]:  # the note's own step has all
            return np.where(says.take(ids_TF[note_at, column]), note_at, -1)
        said_at = np.flatnonzero(says.take(ids_TF[:, column]))
        if len(said_at) == 0:
            return nowhere
        if name == "Program":  # stands before the note; several notes may share it
            before = said_at.take(np.searchsorted(said_at, note_at) - 1, mode="clip")
            return np.where((before >= start_n) & (before < note_at), before, -1)
        after = np.append(said_at, len(ids_TF)).take(np.searchsorted(said_at, note_at))
        return np.where(after < np.append(note_at[1:], len(ids_TF)), after, -1)

    def _bars(self, ids_TF: AnyIds, note_at: Longs, starts: Longs, phrase: Longs) -> Longs:
        column = ids_TF[:, self._bar]
        if self.spec.bars == "field":
            # By distance: a whole song numbers more bars than the vocabulary has.
            return column.take(note_at).astype(np.int64) - self._first_bar
        bar_at = np.flatnonzero(self._is_bar.take(column))
        return np.searchsorted(bar_at, note_at) - 1 - np.searchsorted(bar_at, starts).take(phrase)

    def _positions(self, ids_TF: AnyIds, note_at: Longs) -> Longs:
        values = self._values["Position"].take(ids_TF[:, self._position])
        said_at = np.flatnonzero(values >= 0)
        last = np.searchsorted(said_at, note_at, side="right") - 1
        return values.take(said_at.take(last)) if len(note_at) else note_at

    def _programs(self, ids_TF: AnyIds, pitch_ids: AnyIds, program_at: Longs) -> Longs:
        column = self._columns["Program"]
        drums = np.where(self._is_drum.take(pitch_ids), DRUMS, 0)
        if column < 0:
            return drums
        said = self._values["Program"].take(ids_TF[program_at, column])
        return np.where(program_at >= 0, said, drums)


NO_NUMBER = -(2**31)
"""Stands for ids that are no number of a type."""


def number_of_id(spec: TokenSpec, name: str) -> Longs:
    """The number that each id of an attribute's field says, shape (vocabulary,).

    :data:`NO_NUMBER` for ids of other types. ``name`` is an attribute or a token type.
    """
    types = ATTRIBUTE_TYPES.get(name, (name,))
    column = _column(spec, types)
    if column < 0:
        return np.zeros(0, np.int64)
    field = spec.fields[column]
    pairs = zip(field.types, field.values, strict=True)
    numbers = [int(value) if type_ in types else NO_NUMBER for type_, value in pairs]
    return np.array(numbers, np.int64)


def _column(spec: TokenSpec, types: tuple[str, ...]) -> int:
    """The field that holds tokens of these types, -1 if none does."""
    found = (i for i, field in enumerate(spec.fields) if field.is_type(*types).any())
    return next(found, -1)
