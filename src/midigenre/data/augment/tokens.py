"""Augments phrases as tokens: all phrases of a batch at once, by look-ups, for every tokenizer.

A program is left out first, then onsets move, then pitches, velocities, durations and tempi go up
or down the vocabulary; each works on the result of the one before. :mod:`.notes` does the
same to notes.

N steps of all phrases   F fields   B phrases   n notes   m onsets
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from midigenre.arrays import Bools, Keys, Longs
from midigenre.data.augment import (
    KEEP,
    SOLO,
    AugmentSettings,
    PhraseChanges,
    jittered,
    velocity_noise,
)
from midigenre.data.augment.notes import NoteAugmenter
from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.midi.song import DRUMS
from midigenre.spec import TokenSpec
from midigenre.tokenizers.base import from_spec
from midigenre.tokenizers.notes import ATTRIBUTES, FoundNotes, NoteFinder

_PLAIN = frozenset(
    {"PAD", "BOS", "EOS", "MASK", "Ignore", "Family", "Bar", "BarPosEnc", "Position",
     "PositionPosEnc", "TimeSig", "Tempo", "Program", "Pitch", "PitchDrum", "Velocity", "Duration"}
)  # fmt: skip
"""The supported types of token; phrases with others are encoded from changed notes."""

_PITCH, _VELOCITY, _DURATION, _PROGRAM = range(len(ATTRIBUTES))
_N_PROGRAMS = 129  # drums and 0 to 127


def why_not(spec: TokenSpec) -> str:
    """Why phrases of a vocabulary are augmented as notes, in words; empty if as tokens."""
    types = {type_ for field in spec.fields for type_ in field.types}
    if spec.bars == "none":
        return "its phrases are encoded from their notes"
    if other := sorted(types - _PLAIN):
        return f"it has {', '.join(other)} tokens"
    tempo = [field for field in spec.fields if field.is_type("Tempo").any()]
    if spec.bars == "token" and tempo and len(spec.fields) > 1 and "Ignore" not in tempo[0].types:
        return "each of its steps says a tempo, that of a bar the one of its first note"
    try:
        NoteFinder(spec)
        for type_ in ("Pitch", "Velocity", "Duration", "Position", "Tempo"):
            _Scale.from_spec(spec, type_)
    except ValueError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class _Scale:
    """The ids of one type in the order of their values; ``column`` is -1 where there is none.

    ``rank_V`` has the rank of each id of the field (-1 for other types), ``ids`` the id at each
    rank; ``low`` is the value at rank 0, where values are whole numbers without gaps.
    """

    column: int
    rank_V: Longs
    ids: Longs
    low: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_spec(cls, spec: TokenSpec, type_: str) -> _Scale:
        """The scale of a type.

        Raises:
            ValueError: Pitches, positions or durations have gaps.
        """
        column = next((i for i, f in enumerate(spec.fields) if f.is_type(type_).any()), -1)
        if column < 0:
            return cls(-1, np.zeros(0, np.int64), np.zeros(0, np.int64))
        field = spec.fields[column]
        ids = [i for i in np.flatnonzero(field.is_type(type_)) if field.values[i] != "None"]
        value = _beats if type_ == "Duration" else float
        values = np.array([value(field.values[i]) for i in ids])
        order = np.argsort(values, kind="stable")
        gaps = np.diff(values[order])
        # Durations are fractions, which do not differ by exactly the same.
        even = len(gaps) == 0 or np.ptp(gaps) < 1e-6
        if type_ in ("Pitch", "Duration", "Position") and not even:
            raise ValueError(f"{spec.name}: the {type_} tokens leave gaps")
        ranked = np.array(ids, np.int64)[order]
        rank_V = np.full(len(field), -1, np.int64)
        rank_V[ranked] = np.arange(len(ids))
        return cls(column, rank_V, ranked, int(values.min()))

    def rank(self, ids_NF: Longs, at: Longs) -> Longs:
        """Rank of the value at these steps."""
        rank: Longs = self.rank_V[ids_NF[at, self.column]]
        return rank

    def write(self, ids_NF: Longs, at: Longs, rank: Longs) -> None:
        """Writes the values of these ranks at these steps, clipped to the first and the last."""
        ids_NF[at, self.column] = self.ids.take(rank, mode="clip")


def _beats(duration: str) -> float:
    """Beats of MidiTok's ``beats.positions.resolution``."""
    beats, positions, resolution = (int(number) for number in duration.split("."))
    return beats + positions / resolution


class _Onsets(NamedTuple):
    """All that is at one position of a bar, columns of shape (m,), in order.

    ``bar`` counts within the phrase; ``tempo_here`` says whether a tempo begins there, even that
    of the phrase's start.
    """

    step: Longs
    phrase: Longs
    bar: Longs
    position: Longs
    tempo_here: Bools


class TokenAugmenter:
    """Changes phrases of tokens; call it with a batch of them and their keys.

    Raises:
        ValueError: :func:`why_not` objects to the vocabulary.
    """

    def __init__(self, spec: TokenSpec, settings: AugmentSettings) -> None:
        if reason := why_not(spec):
            raise ValueError(f"{spec.name}: no augmentation of tokens, {reason}")
        self._settings = settings
        self._find = NoteFinder(spec)
        self._field = spec.bars == "field"
        self._pitch = _Scale.from_spec(spec, "Pitch")
        self._velocity = _Scale.from_spec(spec, "Velocity")
        self._duration = _Scale.from_spec(spec, "Duration")
        self._tempo = _Scale.from_spec(spec, "Tempo")
        self._position = _Scale.from_spec(spec, "Position")
        self._placed = [self._position]
        if len(encoding := _Scale.from_spec(spec, "PositionPosEnc")):
            self._placed.append(encoding)
        bars = [(c, f) for c, f in enumerate(spec.fields) if f.is_type("Bar").any()]
        self._bar_column, self._is_bar = bars[0][0], bars[0][1].is_type("Bar")
        self._meter_column, self._positions_V = _positions_of_meters(spec)

    def __call__(self, ids_NF: Longs, lengths_B: Longs, keys_B: Keys) -> tuple[Longs, Longs]:
        """The phrases as they are trained on: their tokens and lengths.

        Args:
            ids_NF: Tokens of phrases that lie end to end, int64; they are not written to.
            lengths_B: Steps of each.
            keys_B: Key of each; 0 leaves it as it is.
        """
        draws = PhraseChanges.draw(keys_B, self._settings)
        starts_B = np.cumsum(lengths_B) - lengths_B
        ids_NF = ids_NF.copy()
        found = self._find(ids_NF, starts_B)
        if (draws.programs != KEEP).any():
            ids_NF, lengths_B, found = self._leave_out(ids_NF, lengths_B, found, draws)
            starts_B = np.cumsum(lengths_B) - lengths_B
        if self._settings.jitter:
            self._jitter(ids_NF, starts_B, found, keys_B)
        pitched = found.program != DRUMS
        if draws.transpose.any():
            at, phrase = found.steps_nA[pitched, _PITCH], found.phrase[pitched]
            rank = found.pitch[pitched] - self._pitch.low
            by = _fitting(draws.transpose, phrase, rank, len(self._pitch))
            self._pitch.write(ids_NF, at, rank + by[phrase])

        steps = draws.velocity[found.phrase]
        if most := self._settings.velocity_noise:
            where = found.bar, found.position, found.program, found.pitch
            steps = steps + velocity_noise(keys_B[found.phrase], *where, most)
        at = found.steps_nA[:, _VELOCITY]
        going = (steps != 0) & (at >= 0)
        rank = self._velocity.rank(ids_NF, at[going])
        self._velocity.write(ids_NF, at[going], rank + steps[going])

        at, factor = found.steps_nA[:, _DURATION], draws.duration[found.phrase]
        going = (factor != 1.0) & (at >= 0) & pitched
        scaled = (self._duration.rank(ids_NF, at[going]) + 1) * factor[going]
        rank = np.floor(scaled + 0.5).astype(np.int64) - 1
        self._duration.write(ids_NF, at[going], rank)

        if draws.tempo.any() and len(self._tempo):
            rank_N = self._tempo.rank_V.take(ids_NF[:, self._tempo.column])
            at = np.flatnonzero(rank_N >= 0)
            phrase = np.searchsorted(np.cumsum(lengths_B), at, side="right")
            by = _fitting(draws.tempo, phrase, rank_N[at], len(self._tempo))
            self._tempo.write(ids_NF, at, rank_N[at] + by[phrase])
        return ids_NF, lengths_B

    def _leave_out(
        self, ids_NF: Longs, lengths_B: Longs, found: FoundNotes, draws: PhraseChanges
    ) -> tuple[Longs, Longs, FoundNotes]:
        """The phrases without the programs that are dropped, or with the one that is kept alone."""
        program = found.program - DRUMS
        there_BP = np.zeros((len(lengths_B), _N_PROGRAMS), bool)
        there_BP[found.phrase, program] = True
        n_programs = there_BP.sum(1)
        nth = (draws.which * n_programs).astype(np.int64)
        chosen_B = (there_BP.cumsum(1) > nth[:, None]).argmax(1)
        kind = np.where(n_programs > 1, draws.programs, KEEP)[found.phrase]
        out_n = (kind != KEEP) & ((program == chosen_B[found.phrase]) != (kind == SOLO))
        out_N = np.zeros(len(ids_NF), bool)
        gone = found.steps_nA[out_n]
        out_N[gone[gone >= 0]] = True
        if not self._field:  # an onset without a note or a tempo goes
            onsets = self._onsets(ids_NF, np.cumsum(lengths_B) - lengths_B, found)
            of_note = np.searchsorted(onsets.step, found.steps_nA[:, _PITCH], side="right") - 1
            before = np.bincount(of_note, minlength=len(onsets.step))
            after = np.bincount(of_note[~out_n], minlength=len(onsets.step))
            out_N[onsets.step[(before > 0) & (after == 0) & ~onsets.tempo_here]] = True
        phrase_N = np.repeat(np.arange(len(lengths_B)), lengths_B)
        place_N = np.cumsum(~out_N) - 1
        steps_nA = found.steps_nA[~out_n]
        left = replace(
            found,
            bar=found.bar[~out_n],
            position=found.position[~out_n],
            pitch=found.pitch[~out_n],
            program=found.program[~out_n],
            phrase=found.phrase[~out_n],
            steps_nA=np.where(steps_nA >= 0, place_N[steps_nA], -1),
        )
        return ids_NF[~out_N], np.bincount(phrase_N[~out_N], minlength=len(lengths_B)), left

    def _onsets(self, ids_NF: Longs, starts_B: Longs, found: FoundNotes) -> _Onsets:
        """All occupied positions, in order."""
        if self._field:
            places = np.stack([found.phrase, found.bar, found.position])
            first = np.ones(len(found), bool)
            first[1:] = (np.diff(places) != 0).any(0)
            step, (phrase, bar, position) = found.steps_nA[first, _PITCH], places[:, first]
        else:
            rank_N = self._position.rank_V.take(ids_NF[:, self._position.column])
            step = np.flatnonzero(rank_N >= 0)
            position = rank_N[step]
            bar_at = np.flatnonzero(self._is_bar.take(ids_NF[:, self._bar_column]))
            phrase = np.searchsorted(starts_B, step, side="right") - 1
            bar = np.searchsorted(bar_at, step) - 1 - np.searchsorted(bar_at, starts_B)[phrase]
        column = self._tempo.column
        if column < 0 or len(step) == 0:
            tempo_here = np.zeros(len(step), bool)
        elif column == self._position.column:  # stated after the position
            behind = np.append(ids_NF[:, column], 0)[step + 1]
            tempo_here = self._tempo.rank_V.take(behind) >= 0
        else:
            first = np.diff(phrase, prepend=-1) != 0
            changed = np.diff(ids_NF[step, column].astype(np.int64), prepend=-1) != 0
            tempo_here = np.where(first, (bar == 0) & (position == 0), changed)
        return _Onsets(step, phrase, bar, position, tempo_here)

    def _jitter(self, ids_NF: Longs, starts_B: Longs, found: FoundNotes, keys_B: Keys) -> None:
        """Moves onsets by a position where there is room."""
        at = self._onsets(ids_NF, starts_B, found)
        if len(at.step) == 0:
            return
        end = self._positions(ids_NF, at.step)
        where = (at.phrase, at.bar, at.position, end, at.tempo_here)
        moves = jittered(keys_B[at.phrase], *where, self._settings.jitter)
        of_step = np.searchsorted(at.step, np.arange(len(ids_NF)), side="right") - 1
        move_N = np.where(of_step >= 0, moves[of_step], 0)
        for scale in self._placed:
            column = ids_NF[:, scale.column]
            rank = scale.rank_V.take(column)
            going = (rank >= 0) & (move_N != 0)
            column[going] = scale.ids[rank[going] + move_N[going]]

    def _positions(self, ids_NF: Longs, step: Longs) -> Longs:
        """Positions of the bar at each of these steps, by the meter said last."""
        if self._meter_column < 0:
            return np.full(len(step), self._positions_V[0])
        positions_N = self._positions_V.take(ids_NF[:, self._meter_column])
        said_at = np.flatnonzero(positions_N > 0)
        return positions_N[said_at[np.searchsorted(said_at, step, side="right") - 1]]


def _fitting(by_B: Longs, phrase: Longs, rank: Longs, n: int) -> Longs:
    """The shift of each phrase, cut so that all its ranks stay in 0 to ``n - 1``; shape (B,)."""
    lowest, highest = np.full(len(by_B), n), np.full(len(by_B), -1)
    np.minimum.at(lowest, phrase, rank)
    np.maximum.at(highest, phrase, rank)
    # A phrase without such tokens has nothing to move.
    fits: Longs = np.where(highest >= 0, np.clip(by_B, -lowest, n - 1 - highest), 0)
    return fits


def _positions_of_meters(spec: TokenSpec) -> tuple[int, Longs]:
    """The field of meters, and positions of a bar of each of its ids, 0 for other ids.

    Where there is none, -1 and the positions of the only meter.
    """
    grid = from_spec(spec).grid

    def positions(meter: tuple[int, int]) -> int:
        return grid.bar_ticks(meter) // grid.step_ticks(meter)

    for column, field in enumerate(spec.fields):
        if (is_meter := field.is_type("TimeSig")).any():
            positions_V = np.zeros(len(field), np.int64)
            for i in np.flatnonzero(is_meter):
                numerator, denominator = field.values[i].split("/")
                positions_V[i] = positions((int(numerator), int(denominator)))
            return column, positions_V
    return -1, np.array([positions((4, 4))], np.int64)


class PhraseAugmenter:
    """Reads and augments the phrases of a batch.

    Attributes:
        as_notes: Why phrases are augmented as notes and encoded again, which is slower; empty where
            as tokens.
    """

    def __init__(self, spec: TokenSpec, settings: AugmentSettings) -> None:
        self.as_notes = why_not(spec)
        self._tokens = None if self.as_notes else TokenAugmenter(spec, settings)
        self._notes = NoteAugmenter(spec, settings) if self.as_notes else None

    def read(self, reader: PhraseReader, phrases: Phrases) -> list[Longs]:
        """Token ids of each phrase, shape (T, F); one whose key is 0 stays as it is."""
        assert phrases.key is not None
        where = zip(phrases.places(), phrases.key.tolist(), strict=True)
        if (notes := self._notes) is not None:
            return [
                reader(*place, partial(notes, key=key) if key else None)[0] for place, key in where
            ]
        assert self._tokens is not None
        ids = [reader(*place)[0] for place, _ in where]
        if not phrases.key.any():
            return ids
        lengths = np.array([len(i) for i in ids], np.int64)
        ids_NF, lengths = self._tokens(np.concatenate(ids), lengths, phrases.key)
        return np.split(ids_NF, np.cumsum(lengths)[:-1])
