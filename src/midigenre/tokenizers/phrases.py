"""Cuts a phrase out of an encoded song, for every tokenizer in which bars can be found."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.spec import TokenSpec

AnyIds = NDArray[np.integer[Any]]


class PhraseCutter:
    """Slices bars out of a token stream and makes the slice stand on its own.

    Three things make a slice equal to encoding the phrase alone: bar numbers are rebased to the
    phrase, and the tempo in force at its start is restated at position 0 where the slice does not
    say it (the meter needs nothing: each bar token has it beside it, each Octuple step in it).

    Args:
        spec: A spec whose ``bars`` is ``token`` or ``field``.

    Attributes:
        number_fields: The fields that number bars, each with its id of bar 0.
    """

    def __init__(self, spec: TokenSpec) -> None:
        if spec.bars == "none":
            raise ValueError(f"{spec.name}: phrases are not slices of the token stream")
        self.spec = spec
        self.number_fields: list[tuple[int, int]] = []
        self._bar_field = -1
        self._is_bar = np.zeros(0, bool)
        for column, f in enumerate(spec.fields):
            # `Bar_3` and `BarPosEnc_3` number bars; `Bar_None` only opens one.
            numbered = f.is_type("Bar", "BarPosEnc") & np.array([v != "None" for v in f.values])
            if numbered.any():
                self.number_fields.append((column, int(np.flatnonzero(numbered)[0])))
            if self._bar_field < 0 and f.is_type("Bar").any():
                self._bar_field, self._is_bar = column, f.is_type("Bar")
        self._opening = _TempoOpening(spec) if spec.bars == "token" else None

    def bar_steps(self, ids_TF: AnyIds, n_bars: int, n_filled: int) -> NDArray[np.int32]:
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

    def bar_tempo(self, ids_TF: AnyIds, bar_steps: NDArray[np.int32]) -> NDArray[np.uint16]:
        """Tempo token in force before each bar, shape (bars,); see :class:`Encoded`."""
        if self._opening is None:
            return np.zeros(len(bar_steps) - 1, np.uint16)
        return self._opening.in_force(ids_TF, bar_steps[:-1])

    def cut(
        self,
        ids_TF: AnyIds,
        bar_steps: NDArray[np.int32],
        bar_tempo: AnyIds,
        first: int,
        end: int,
        max_tokens: int | None = None,
    ) -> tuple[NDArray[np.int64], int]:
        """Tokens of the bars ``first`` to ``end - 1``.

        A phrase longer than ``max_tokens`` steps ends with the last whole bar that fits; when not
        even its first bar fits, that bar is cut inside.

        Returns:
            The ids, int64 of shape (T, F), and the bar at which they end (``end`` if none was cut).
        """
        start = int(bar_steps[first])
        extra = 0
        opening: NDArray[np.int64] | None = None
        at = 0
        if self._opening is not None:
            at, opening = self._opening.rows(ids_TF[start : bar_steps[end]], int(bar_tempo[first]))
            extra = len(opening)
        stop = end
        if max_tokens is not None and bar_steps[end] - start + extra > max_tokens:
            fits = np.searchsorted(bar_steps, start + max_tokens - extra, side="right") - 1
            stop = max(first + 1, min(end, int(fits)))
        ids = ids_TF[start : bar_steps[stop]].astype(np.int64)
        if opening is not None and extra:
            ids = np.concatenate([ids[:at], opening, ids[at:]])
        if max_tokens is not None:
            ids = ids[:max_tokens]
        for column, low in self.number_fields:
            numbers = ids[:, column]  # specials lie below `low` and stay
            numbers[numbers >= low] -= first
        return ids, stop


class _TempoOpening:
    """Restates the tempo at the start of a phrase where it stands in steps of its own.

    In REMI ``Position_0 Tempo_x`` follows the first bar's ``Bar`` (and ``TimeSig``); in CP the
    compound step of a position holds the tempo, so that only a missing position 0 is added.
    """

    def __init__(self, spec: TokenSpec) -> None:
        self._compound = len(spec.fields) > 1
        names = {f.name: column for column, f in enumerate(spec.fields)}
        # Compound vocabularies other than CP (MuMIDI) say the tempo in every step: nothing to do.
        self._tempo_column = names.get("Tempo", -1) if self._compound else 0
        position_column = names.get("Position", -1) if self._compound else 0
        tempo = spec.fields[self._tempo_column].is_type("Tempo")
        self._has_tempo = bool(tempo.any()) and self._tempo_column >= 0 and position_column >= 0
        if not self._has_tempo:
            return
        self._is_tempo = tempo
        self._position_column = position_column
        self._position_0 = spec.fields[position_column].index["Position_0"]
        self._is_meter = (
            np.zeros(len(spec.fields[0]), bool)
            if self._compound
            else spec.fields[0].is_type("TimeSig")
        )
        self._blank = np.array([f.index.get("Ignore_None", 0) for f in spec.fields], np.int64)
        if self._compound:
            self._blank[names["Family"]] = spec.fields[names["Family"]].index["Family_Metric"]

    def in_force(self, ids_TF: AnyIds, steps: NDArray[np.int32]) -> NDArray[np.uint16]:
        if not self._has_tempo:
            return np.zeros(len(steps), np.uint16)
        column = ids_TF[:, self._tempo_column]
        where = np.flatnonzero(self._is_tempo[column])
        last = np.searchsorted(where, steps) - 1
        # The first bar's own tempo stands inside it.
        return column[where[np.maximum(last, 0)]].astype(np.uint16)

    def rows(self, ids_TF: AnyIds, tempo: int) -> tuple[int, NDArray[np.int64]]:
        """Where to insert into the phrase, and the rows, shape (0, 1 or 2, F)."""
        nothing = np.zeros((0, ids_TF.shape[1]), np.int64)
        if not self._has_tempo:
            return 0, nothing
        at = 1
        if not self._compound and at < len(ids_TF) and self._is_meter[ids_TF[at, 0]]:
            at += 1
        at_zero = at < len(ids_TF) and int(ids_TF[at, self._position_column]) == self._position_0
        if self._compound:
            if at_zero:
                return at, nothing
            row = self._blank.copy()
            row[self._position_column] = self._position_0
            row[self._tempo_column] = tempo
            return at, row[None]
        if not at_zero:
            return at, np.array([[self._position_0], [tempo]], np.int64)
        at += 1
        if at < len(ids_TF) and self._is_tempo[ids_TF[at, 0]]:
            return at, nothing
        return at, np.array([[tempo]], np.int64)
