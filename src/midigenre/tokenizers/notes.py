"""Finds the notes in the tokens of a phrase, for every tokenizer in which bars can be found.

What a step means differs between vocabularies: in Octuple it is a note, in CP a bar, a position or
a note, in REMI a single attribute. Here every one of them is read as the same table: one row per
note, with the steps that state it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from midigenre.arrays import Bools, Longs
from midigenre.midi.song import DRUMS
from midigenre.spec import TokenSpec
from midigenre.tokenizers.base import AnyIds

ATTRIBUTES = ("Pitch", "Velocity", "Duration", "Program")
"""The attributes of a note besides its place; the columns ``A`` of the note table."""

NOT_FOUND = ("PitchIntervalTime", "PitchIntervalChord", "Track")
"""Types whose vocabularies do not state a note by a pitch after its bar and position."""

_NO_NUMBER = -(2**31)  # of ids of another type


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
        columns_A: The field of each attribute, int64 (A,); -1 where in none. So token
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
            has no positions, or does not state notes by a pitch after their position.
    """

    def __init__(self, spec: TokenSpec) -> None:
        if spec.bars == "none":
            raise ValueError(f"{spec.name}: bars cannot be found in the token stream")
        for type_ in NOT_FOUND:
            if any(f.is_type(type_).any() for f in spec.fields):
                raise ValueError(f"{spec.name}: notes cannot be found by their {type_} tokens")
        self.spec = spec
        # By attribute: the field that holds it, which of its ids say it, and the numbers they say.
        self._columns: dict[str, int] = {}
        self._says: dict[str, Bools] = {}
        self._values: dict[str, Longs] = {}
        for name in (*ATTRIBUTES, "Position", "Bar"):
            types = ("Pitch", "PitchDrum") if name == "Pitch" else (name,)
            masks = [field.is_type(*types) for field in spec.fields]
            column = next((i for i, mask in enumerate(masks) if mask.any()), -1)
            self._columns[name] = column
            if column >= 0:
                says, values = masks[column], spec.fields[column].values
                self._says[name] = says
                if name in ("Pitch", "Position", "Program"):
                    pairs = zip(says, values, strict=True)
                    numbers = [int(value) if said else _NO_NUMBER for said, value in pairs]
                    self._values[name] = np.array(numbers, np.int64)
        if self._columns["Pitch"] < 0 or self._columns["Position"] < 0:
            raise ValueError(f"{spec.name}: the vocabulary has no pitches or no positions")
        self._is_drum = spec.fields[self._columns["Pitch"]].is_type("PitchDrum")
        self._first_bar = int(np.flatnonzero(self._says["Bar"])[0])
        self.columns_A: Longs = np.array([self._columns[name] for name in ATTRIBUTES], np.int64)

    def __call__(self, ids_TF: AnyIds, starts: Longs | None = None) -> FoundNotes:
        """The notes of a phrase, or of several that lie end to end.

        A phrase that ``max_tokens`` cut inside a bar may end with part of a note, which is found
        with its known attributes. BOS, EOS and PAD are passed over.

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
        column = ids_TF[:, self._columns["Bar"]]
        if self.spec.bars == "field":
            # By distance: a whole song numbers more bars than the vocabulary has.
            bar = column.take(note_at).astype(np.int64) - self._first_bar
        else:
            bar_at = np.flatnonzero(self._says["Bar"].take(column))
            before = np.searchsorted(bar_at, starts).take(phrase)
            bar = np.searchsorted(bar_at, note_at) - 1 - before
        position = note_at
        if len(note_at):
            values = self._values["Position"].take(ids_TF[:, self._columns["Position"]])
            said_at = np.flatnonzero(values >= 0)
            last = np.searchsorted(said_at, note_at, side="right") - 1
            position = values.take(said_at.take(last))
        pitch_ids = pitch_ids.take(note_at)
        program = np.where(self._is_drum.take(pitch_ids), DRUMS, 0)
        if self._columns["Program"] >= 0:
            program_at = steps_nA[:, ATTRIBUTES.index("Program")]
            said = self._values["Program"].take(ids_TF[program_at, self._columns["Program"]])
            program = np.where(program_at >= 0, said, program)
        pitch = self._values["Pitch"].take(pitch_ids)
        return FoundNotes(bar, position, pitch, program, phrase, steps_nA, self.columns_A)

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
