"""The tokenizer interface, and how a phrase is cut out of an encoded song."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick

from midigenre import registry
from midigenre.arrays import Floats, Ints, Longs
from midigenre.errors import UserError
from midigenre.midi.song import Grid, Song
from midigenre.spec import TokenSpec

Ids = NDArray[np.uint16]
AnyIds = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Encoded:
    """A song as tokens.

    Attributes:
        ids_TF: The token stream, shape (T, F). A field of bar numbers holds the song's own bars,
            beyond the model's vocabulary; they are rebased when a phrase is cut.
        bar_steps: Step at which each bar starts and, last, T; shape (bars + 1,). Empty where
            phrases are not slices of the stream.
        bar_tempo: Id of the tempo token in force where each bar starts, shape (bars,); 0 where the
            vocabulary has no tempo of its own step.
        fallback: Why MidiTok encoded the song instead of the fast encoder, in words; empty where
            the fast one did, or where a tokenizer has only one way.
    """

    ids_TF: Ids
    bar_steps: Ints
    bar_tempo: Ids
    fallback: str = ""


class Tokenizer(ABC):
    """Turns songs into token streams and back.

    Attributes:
        spec: Vocabulary and settings, which travel with shards and runs.
        grid: How time is quantised before encoding.
        tempi: Those of clean songs, ascending, in quarter notes per minute; none if all have one.
    """

    spec: TokenSpec
    grid: Grid
    tempi: Floats = np.zeros(0)

    @abstractmethod
    def clean(self, score: ScoreTick) -> Song:
        """The score reduced to what this vocabulary can encode.

        Raises:
            midigenre.errors.RejectedSongError: The score cannot be used.
        """

    @abstractmethod
    def encode(self, song: Song) -> Encoded:
        """Tokens of a song or phrase that :meth:`clean` returned."""

    @abstractmethod
    def decode(self, ids_TF: AnyIds) -> ScoreTick:
        """The music of a phrase's tokens, starting at tick 0, in ``grid.tpq`` ticks per quarter."""


def from_spec(spec: TokenSpec) -> Tokenizer:
    """Rebuilds the tokenizer that made a spec, for instance from a checkpoint alone.

    Raises:
        UserError: The spec names no tokenizer of midigenre; or this version makes another
            vocabulary from the same settings.
    """
    tokenizer = _from_settings(json.dumps(dict(spec.tokenizer), sort_keys=True))
    if tokenizer.spec.fields != spec.fields:
        raise UserError(
            f"tokenizer {spec.name!r}: the installed MidiTok makes another vocabulary than the one "
            "that was stored; install the versions in constraints.txt or run `midigenre prepare`"
        )
    return tokenizer


@lru_cache(maxsize=8)
def _from_settings(settings_json: str) -> Tokenizer:
    settings = json.loads(settings_json)
    name = settings.pop(registry.TARGET, None)
    found = registry.find_class("tokenizer", name)
    if not (isinstance(found, type) and issubclass(found, Tokenizer)):
        raise UserError(f"tokenizer.{registry.TARGET}={name} is no Tokenizer")
    try:
        return found(**settings)
    except TypeError as error:
        raise UserError(f"tokenizer {settings.get('name')!r}: {error}") from error


@lru_cache(maxsize=8)
def phrase_cutter(spec: TokenSpec) -> PhraseCutter | None:
    """What cuts phrases out of a vocabulary's streams; None where they are no slices of them."""
    return None if spec.bars == "none" else PhraseCutter(spec)


class PhraseCutter:
    """Slices bars out of a token stream and makes the slice equal to encoding the phrase alone.

    Bar numbers are rebased to the phrase, and the tempo in force at its start is restated at
    position 0 where the slice does not say it. The meter needs no restating: it follows each bar
    token and is part of each Octuple step.

    Args:
        spec: A spec whose ``bars`` is ``token`` or ``field``.

    Attributes:
        number_fields: The fields that number bars, each with its id of bar 0.

    Raises:
        ValueError: Phrases are not slices of the stream (``bars`` is ``none``).
    """

    def __init__(self, spec: TokenSpec) -> None:
        if spec.bars == "none":
            raise ValueError(f"{spec.name}: phrases are not slices of the token stream")
        self.spec = spec
        self.number_fields: list[tuple[int, int]] = []
        for column, f in enumerate(spec.fields):
            # `Bar_3` and `BarPosEnc_3` number bars; `Bar_None` only opens one.
            numbered = f.is_type("Bar", "BarPosEnc") & np.array([v != "None" for v in f.values])
            if numbered.any():
                self.number_fields.append((column, int(np.flatnonzero(numbered)[0])))
        self._bar_field = next(i for i, f in enumerate(spec.fields) if f.is_type("Bar").any())
        self._is_bar = spec.fields[self._bar_field].is_type("Bar")

        # Where a tempo has its own steps: compound vocabularies other than CP (MuMIDI)
        # state it in every step.
        self._compound = len(spec.fields) > 1
        names = {f.name: column for column, f in enumerate(spec.fields)}
        self._tempo_field = names.get("Tempo", -1) if self._compound else 0
        self._position_field = names.get("Position", -1) if self._compound else 0
        self._is_tempo = spec.fields[self._tempo_field].is_type("Tempo")
        fields_known = min(self._tempo_field, self._position_field) >= 0
        self._restates = spec.bars == "token" and fields_known and bool(self._is_tempo.any())
        if self._restates:
            self._position_0 = spec.fields[self._position_field].index["Position_0"]
            self._is_meter = spec.fields[0].is_type("TimeSig")
            self._blank = np.array([f.index.get("Ignore_None", 0) for f in spec.fields], np.int64)
            if self._compound:
                self._blank[names["Family"]] = spec.fields[names["Family"]].index["Family_Metric"]

    def bar_steps(self, ids_TF: AnyIds, n_bars: int, n_filled: int) -> Ints:
        """Step at which each bar of a song starts, and T; shape (n_bars + 1,).

        Args:
            ids_TF: The stream.
            n_bars: Bars of the music.
            n_filled: Bars up to the last onset; of the empty ones after it, tokenizers write those
                up to the last change of tempo or meter, if any.

        Raises:
            ValueError: The stream has fewer bars than ``n_filled`` or more than ``n_bars``.
        """
        column = ids_TF[:, self._bar_field]
        if self.spec.bars == "field":
            first = self.number_fields[0][1]
            steps = np.searchsorted(column.astype(np.int64) - first, np.arange(n_bars + 1))
            return steps.astype(np.int32)
        steps = np.flatnonzero(self._is_bar[column])
        if not n_filled <= len(steps) <= n_bars:
            raise ValueError(
                f"{self.spec.name}: {len(steps)} bar tokens for {n_filled} to {n_bars} bars"
            )
        after = np.full(n_bars - len(steps) + 1, len(ids_TF))
        return np.concatenate([steps, after]).astype(np.int32)

    def bar_tempo(self, ids_TF: AnyIds, bar_steps: Ints) -> Ids:
        """Tempo token in force before each bar, shape (bars,); see :class:`Encoded`."""
        if not self._restates:
            return np.zeros(len(bar_steps) - 1, np.uint16)
        column = ids_TF[:, self._tempo_field]
        where = np.flatnonzero(self._is_tempo[column])
        last = np.searchsorted(where, bar_steps[:-1]) - 1
        # The first bar's own tempo is inside it.
        return column[where[np.maximum(last, 0)]].astype(np.uint16)

    def cut(
        self,
        ids_TF: AnyIds,
        bar_steps: Ints,
        bar_tempo: AnyIds,
        first: int,
        end: int,
        max_tokens: int | None = None,
    ) -> tuple[Longs, int]:
        """Tokens of the bars ``first`` to ``end - 1``.

        A phrase longer than ``max_tokens`` steps ends with the last whole bar that fits; when not
        even its first bar fits, that bar is cut inside.

        Returns:
            The ids, int64 of shape (T, F), and the bar at which they end (``end`` if none was cut).
        """
        start, stop = int(bar_steps[first]), end
        at, opening = 0, np.zeros((0, ids_TF.shape[1]), np.int64)
        if self._restates:
            at, opening = self._opening(ids_TF[start : bar_steps[end]], int(bar_tempo[first]))
        room = None if max_tokens is None else start + max_tokens - len(opening)
        if room is not None and bar_steps[end] > room:
            fits = np.searchsorted(bar_steps, room, side="right") - 1
            stop = max(first + 1, min(end, int(fits)))
        ids = ids_TF[start : bar_steps[stop]].astype(np.int64)
        if len(opening):
            ids = np.concatenate([ids[:at], opening, ids[at:]])
        if max_tokens is not None:
            ids = ids[:max_tokens]
        for column, low in self.number_fields:
            numbers = ids[:, column]  # specials lie below `low` and stay
            numbers[numbers >= low] -= first
        return ids, stop

    def _opening(self, ids_TF: AnyIds, tempo: int) -> tuple[int, Longs]:
        """The steps that restate a tempo in a phrase: where, and their rows, shape (0 to 2, F).

        In REMI ``Position_0 Tempo_x`` follows the first bar's ``Bar`` (and ``TimeSig``); in CP the
        compound step of a position holds the tempo, so only a missing position 0 is added.
        """
        at = 1
        if not self._compound and at < len(ids_TF) and self._is_meter[ids_TF[at, 0]]:
            at += 1
        at_zero = at < len(ids_TF) and int(ids_TF[at, self._position_field]) == self._position_0
        if self._compound:
            row = self._blank.copy()
            row[[self._position_field, self._tempo_field]] = self._position_0, tempo
            return at, np.zeros((0, len(row)), np.int64) if at_zero else row[None]
        if not at_zero:
            return at, np.array([[self._position_0], [tempo]], np.int64)
        said = at + 1 < len(ids_TF) and self._is_tempo[ids_TF[at + 1, 0]]
        return at + 1, np.full((0 if said else 1, 1), tempo, np.int64)
