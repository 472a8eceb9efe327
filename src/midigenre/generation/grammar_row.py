"""One row of music in the making: what all grammars share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from midigenre.generation.grammar_vocabulary import Mask, Vocabulary


class Row(ABC):
    """One sequence in the making.

    Attributes:
        vocabulary: What the ids mean.
        order: Fields in the order in which they are chosen.
        max_bars: The music ends with this bar; None for no end.
        exact: Whether the end token waits for the last bar.
        done: Whether the sequence has ended.
        n_steps: Steps so far, BOS too.
        n_notes: Notes so far.
        whole: Steps up to the end of the last whole note (or BOS).
        bar: Index of the bar that is being written, -1 before the first.
        bar_steps: Step at which each bar begins.
        first_bar: Bar that the ids call bar 0 (see ``Rows.slide``).
        free_from: Nothing may begin in bars before this one; what sounds may end there.
        feeding: Whether the steps come from music that exists, which may sound past ``max_bars``.
    """

    def __init__(
        self, vocabulary: Vocabulary, order: Sequence[int], max_bars: int | None, exact: bool
    ) -> None:
        self.vocabulary = vocabulary
        self.order = order
        self.max_bars = max_bars
        self.exact = exact
        self.done = False
        self.n_steps = 0
        self.n_notes = 0
        self.whole = 0
        self.bar = -1
        self.bar_steps: list[int] = []
        self.first_bar = 0
        self.free_from = 0
        self.feeding = False
        self.special = [vocabulary.special(c) for c in range(len(vocabulary.kinds))]

    @property
    def one_voice(self) -> bool:
        """Whether a note waits for the end of the last one."""
        return bool(self.vocabulary.melody)

    @property
    def finished_bars(self) -> int:
        """Bars in which nothing will begin any more."""
        return self.bar + 1 if self.done else max(0, self.bar)

    def allow(self, field: int, chosen: Sequence[int], out: Mask) -> None:
        """Sets what may be chosen for a field, given the fields before it in :attr:`order`.

        Args:
            field: A column.
            chosen: The step so far, length F; only the columns before ``field`` are read.
            out: Mask of the field's ids, all false; shape (V,).
        """
        special = self.special[field]
        if self.done:
            out[special["PAD"]] = True
            return
        first = self.order[0]
        if field != first:
            kind = self.vocabulary.kinds[first][chosen[first]]
            if kind in ("BOS", "EOS"):
                out[special[kind]] = True
                return
        else:
            if self.n_steps == 0 and "BOS" in special:
                out[special["BOS"]] = True
            if "EOS" in special and self.n_notes and self._may_end():
                out[special["EOS"]] = True
        self._allow(field, chosen, out)

    def push(self, step: Sequence[int]) -> bool:
        """Goes on by a step that was allowed; returns whether it belongs to the row."""
        if self.done:
            return False
        kind = self.vocabulary.kinds[self.order[0]][step[self.order[0]]]
        if kind == "EOS":
            self.done = True
        elif kind == "BOS":
            self.whole = 1
        elif self._closes(step):
            self.done = True
            self.bar = self.max_bars - 1 if self.max_bars else self.bar
            return False
        else:
            self._push(step)
        self.n_steps += 1
        return True

    def check(self, step: Sequence[int]) -> int:
        """The first field (column) that was not allowed, -1 if all were."""
        for field in self.order:
            out = np.zeros(len(self.vocabulary.kinds[field]), bool)
            self.allow(field, step, out)
            if not out[step[field]]:
                return field
        return -1

    def close(self) -> tuple[int, list[list[int]]]:
        """Steps to keep and steps to add so that a sequence cut here is whole."""
        self.done = True
        return self.whole, []

    def opening(self, bar: int) -> list[list[int]]:
        """Steps that lead from a bar's line to its first step in the stream."""
        return []

    @classmethod
    @abstractmethod
    def field_order(cls, vocabulary: Vocabulary) -> tuple[int, ...]:
        """The columns in the order in which they are chosen."""

    @abstractmethod
    def _allow(self, field: int, chosen: Sequence[int], out: Mask) -> None: ...

    @abstractmethod
    def _push(self, step: Sequence[int]) -> None: ...

    @abstractmethod
    def _closes(self, step: Sequence[int]) -> bool:
        """Whether an allowed step only says that there would be another bar."""

    @abstractmethod
    def _may_end(self) -> bool: ...

    def _bars_written(self) -> bool:
        """Whether the end token need not wait for further bars."""
        return self.max_bars is None or not self.exact or self.bar >= self.max_bars - 1
