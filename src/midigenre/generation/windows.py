"""The last bars of music in the making, as the model was shown music in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midigenre.generation.grammar import Grammar, Ids, Rows
from midigenre.tokenizers.phrases import PhraseCutter


@dataclass(frozen=True)
class Context:
    """What a model was trained to see at once.

    Attributes:
        max_tokens: Most steps.
        bars: Most bars.
    """

    max_tokens: int
    bars: int


class Windows:
    """Cuts windows that begin at a bar; what is in force there is restated.

    Args:
        grammar: The grammar of the rows.
        context: What the model was trained to see.
    """

    def __init__(self, grammar: Grammar, context: Context) -> None:
        self.spec = grammar.tokenizer.spec
        # A window that slides must keep a whole bar before the one that is being written.
        self.bars = max(2, min(context.bars, self.spec.max_bars))
        self.max_tokens = context.max_tokens
        self._cutter = None if self.spec.bars == "none" else PhraseCutter(self.spec)
        types = np.array(self.spec.fields[0].types)
        self._is = {
            kind: np.isin(types, names)
            for kind, names in {
                "TimeSig": ["TimeSig"],
                "Tempo": ["Tempo"],
                "Program": ["Program"],
                "on": ["NoteOn", "DrumOn"],
                "off": ["NoteOff", "DrumOff"],
            }.items()
        }

    def first_bar(self, rows: Rows, row: int, first: int, max_bars: int | None) -> int:
        """Where the row's window should begin, now that the row is in its last bar.

        Half a window of past is kept. A piece that fits one window keeps it whole; otherwise the
        window moves on as soon as its last bar begins, because the model never saw a bar after it.

        Args:
            rows: The rows.
            row: Which one.
            first: Bar with which its window begins now.
            max_bars: Bar with which the piece ends; None for no end.
        """
        if max_bars is not None and max_bars - first <= self.bars:
            return first
        bar = len(rows.bar_steps(row)) - 1
        if bar - first + 1 < self.bars:
            return first
        return max(first, min(bar - 1, bar - self.bars // 2 + 1))

    def shorter(self, rows: Rows, row: int, first: int, n_steps: int) -> int | None:
        """Where a window begins whose steps have become too many: half of them go, by bars.

        Returns:
            A later bar than ``first``; None if there is none, because the bars are too long.
        """
        steps = rows.bar_steps(row)
        wanted = n_steps - self.max_tokens // 2
        at = [bar for bar in range(first + 1, len(steps) - 1) if steps[bar] >= wanted]
        if at:
            return at[0]
        return len(steps) - 2 if len(steps) - 2 > first else None

    def cut(self, ids_TF: Ids, rows: Rows, row: int, first: int) -> Ids:
        """The steps of the bars from ``first`` on.

        Args:
            ids_TF: All steps of the row, bars numbered from its beginning.
            rows: The rows.
            row: Which one.
            first: A bar of it.

        Returns:
            int64, shape (T, F): the model's window.
        """
        if first == 0:
            return ids_TF
        steps = np.array([*rows.bar_steps(row), len(ids_TF)], np.int32)
        if self._cutter is not None:
            tempo = self._cutter.bar_tempo(ids_TF, steps)
            return self._cutter.cut(ids_TF, steps, tempo, first, len(steps) - 1)[0]
        before, after = ids_TF[: steps[first]], self._without_orphans(ids_TF[steps[first] :])
        shifts = rows.opening(row, first)
        opening = []
        said = after[:2, 0] if not len(shifts) else after[:0, 0]
        for kind in ("TimeSig", "Tempo"):
            is_kind = self._is[kind]
            last = np.flatnonzero(is_kind[before[:, 0]])
            if len(last) and not is_kind[said[: 1 if kind == "TimeSig" else 2]].any():
                opening.append((kind, before[last[-1]]))
        # Meter before tempo: a meter that the bar itself says stays in front.
        own = int(len(said) > 0 and bool(self._is["TimeSig"][said[0]]))
        restated = np.array([step for _, step in opening], np.int64).reshape(-1, ids_TF.shape[1])
        return np.concatenate([after[:own], restated, shifts, after[own:]])

    def renumbered(self, step: Sequence[int], first: int) -> list[int]:
        """A step of a window that begins with bar ``first``, bars numbered from the beginning."""
        out = list(step)
        for column, low in self._cutter.number_fields if self._cutter else ():
            if out[column] >= low:  # specials lie below
                out[column] += first
        return out

    def _without_orphans(self, ids_TF: Ids) -> Ids:
        """Without the ends of notes that began before."""
        program, sounding, keep = -1, set(), np.ones(len(ids_TF), bool)
        field = self.spec.fields[0]
        for at, i in enumerate(ids_TF[:, 0].tolist()):
            if self._is["Program"][i]:
                program = i
            elif self._is["on"][i]:
                sounding.add((program, field.types[i].startswith("Drum"), field.values[i]))
            elif self._is["off"][i]:
                note = (program, field.types[i].startswith("Drum"), field.values[i])
                if note in sounding:
                    sounding.discard(note)
                else:
                    keep[at] = False
                    if at and self._is["Program"][ids_TF[at - 1, 0]]:
                        keep[at - 1] = False
        return ids_TF[keep]
