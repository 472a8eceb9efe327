"""Which tokens may come next: masks over each field's vocabulary that keep samples valid music.

``rules`` holds what all families of tokenizers share, ``families`` the rules of each: those that
write bars and positions (REMI, CP, Octuple) and those in which time moves by shifts (MIDI-like,
TSD).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from midigenre.arrays import Longs
from midigenre.errors import UserError
from midigenre.generation.grammar.families import CPRules, OctupleRules, RemiRules, ShiftRules
from midigenre.generation.grammar.rules import SPECIAL, UNBOUNDED, Rules, State
from midigenre.tokenizers.base import Tokenizer

FAMILIES: dict[str, type[Rules]] = {
    "REMI": RemiRules,
    "CPWord": CPRules,
    "Octuple": OctupleRules,
    "MIDILike": ShiftRules,
    "TSD": ShiftRules,
}
"""Rules of each class of MidiTok that can generate."""

_MUSIC = {
    "Bar", "Drum", "DrumOff", "DrumOn", "Duration", "Family", "Ignore", "NoteOff", "NoteOn",
    "Pitch", "PitchDrum", "Position", "Program", "Tempo", "TimeShift", "TimeSig", "Velocity",
}  # fmt: skip


class Grammar:
    """Which streams a tokenizer can write, step by step.

    The masks follow the encoder: the types in its order, positions that grow and lie inside the
    meter's bar, the notes of an onset by program and pitch without duplicates, changes of tempo
    and meter that are real changes. So a generated stream is what the encoder would write for its
    music, except for what follows the last note.

    Attributes:
        order: The columns of a step in the order in which they are sampled, length F.

    Raises:
        UserError: There are no rules for it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        settings, fields = tokenizer.spec.tokenizer, tokenizer.spec.fields
        name, known = settings.get("cls"), ", ".join(f"tokenizer.cls={n}" for n in FAMILIES)
        if name not in FAMILIES:
            raise UserError(
                f"tokenizer {tokenizer.spec.name!r} (tokenizer.cls={name}) cannot generate: there "
                f"is no grammar for it; use one of {known}"
            )
        kinds = {kind for f in fields for kind in f.types}
        unknown = kinds - _MUSIC - set(SPECIAL) - ({"Chord"} if name == "REMI" else set())
        params = settings.get("params", {})
        unknown |= {
            key for key in ("program_changes", "use_rests", "use_microtiming") if params.get(key)
        }
        if name != "MIDILike" and "Duration" not in kinds:
            unknown.add("notes without durations")
        if name == "REMI" and fields[0].types.count("Bar") != 1:
            unknown.add("Bar_End")
        if unknown:
            raise UserError(
                f"tokenizer {tokenizer.spec.name!r} cannot generate: the grammar of {name} does "
                f"not know {', '.join(sorted(unknown))}; leave it out of tokenizer.params"
            )
        self.tokenizer = tokenizer
        self._rules = FAMILIES[name](tokenizer)
        self.order: tuple[int, ...] = self._rules.order

    def start(self, n_rows: int, *, max_bars: int | None = None) -> Rows:
        """Rows before their first step, which is BOS or the beginning of a window.

        Args:
            n_rows: Number of rows, B.
            max_bars: Notes begin and end in bars 0 to ``max_bars - 1``, and a row is done when it
                starts another bar; its end token waits for the last one, and empty bars count.
                None for no bound.

        Raises:
            ValueError: A number below 1.
        """
        if n_rows < 1 or (max_bars is not None and max_bars < 1):
            raise ValueError(f"n_rows={n_rows} and max_bars={max_bars} must be 1 or more")
        return Rows(self.tokenizer, self._rules, n_rows, max_bars or UNBOUNDED)


class Rows:
    """B sequences that are being written; see :meth:`Grammar.start`."""

    def __init__(self, tokenizer: Tokenizer, rules: Rules, n_rows: int, max_bars: int) -> None:
        self._spec, self._rules, self._max_bars = tokenizer.spec, rules, max_bars
        self._states: list[State] = [rules.start._replace(max_bars=max_bars)] * n_rows

    def __len__(self) -> int:
        return len(self._states)

    @property
    def done_B(self) -> Tensor:
        """Whether each row has ended, bool (B,)."""
        return torch.tensor([s.done for s in self._states])

    @property
    def bars_B(self) -> Tensor:
        """Finished bars of each row, int64 (B,): no event will begin in them."""
        return torch.tensor([s.finished_bars for s in self._states])

    @property
    def notes_B(self) -> Tensor:
        """Whole notes of each row, int64 (B,)."""
        return torch.tensor([s.n_notes for s in self._states])

    def bar_steps(self, row: int) -> list[int]:
        """Step at which each bar of a row begins, BOS counts; without bar tokens its first step."""
        return list(self._states[row].bar_steps)

    def opening(self, row: int, bar: int) -> Longs:
        """Shifts from a bar's line to its first step, int64 (T, F), where time moves by shifts."""
        return self._ids(self._rules.opening(self._states[row], bar))

    def allowed(self, field: int, chosen_BF: Tensor) -> Tensor:
        """What may be sampled for a field; rows that are done may only take PAD.

        Args:
            field: A column.
            chosen_BF: The step so far; columns after ``field`` in ``order`` are not read.

        Returns:
            Mask of the field's vocabulary, bool (B, V), on the device of ``chosen_BF``.

        Raises:
            ValueError: Nothing may follow in a row: its bars have passed the numbers that the
                vocabulary has (see :meth:`slide`).
        """
        mask = np.zeros((len(self._states), len(self._spec.fields[field])), bool)
        for s, chosen, out in zip(self._states, chosen_BF.tolist(), mask, strict=True):
            self._rules.allow(s, field, chosen, out)
        if not (alive := mask.any(axis=1)).all():
            at = int(np.flatnonzero(~alive)[0])
            raise ValueError(
                f"row {at} cannot continue after bar {self._states[at].bar}: {self._spec.name} "
                f"numbers {self._spec.max_bars} bars; slide the row's window first"
            )
        return torch.from_numpy(mask).to(chosen_BF.device)

    def push(self, ids_BF: Tensor) -> Tensor:
        """Appends a step to each row, which :meth:`allowed` has allowed.

        Returns:
            Whether the step belongs to its row, bool (B,) on the CPU: not where the row had ended
            before, nor where the step only announced a bar past the last one.
        """
        before, next_state = self._states, self._rules.next_state
        self._states = [
            next_state(s, step) for s, step in zip(before, ids_BF.tolist(), strict=True)
        ]
        return torch.tensor(
            [new.n_steps > old.n_steps for new, old in zip(self._states, before, strict=True)]
        )

    def feed(self, row: int, ids_TF: Tensor | NDArray[np.integer[Any]]) -> None:
        """Places a row after given steps of music; its notes may sound past ``max_bars``.

        Raises:
            ValueError: A step cannot follow those before it, or the music fills ``max_bars``.
        """
        s = self._states[row]._replace(feeding=True)
        for at, step in enumerate(ids_TF.tolist()):
            if s.done or not self._rules.accepts(s, step):
                word = self._spec.words(np.array([step]))[0]
                raise ValueError(f"step {at}, {word!r}, cannot follow those before it")
            before, s = s, self._rules.next_state(s, step)
            if s.n_steps == before.n_steps:
                raise ValueError(f"the given music has more than max_bars={self._max_bars} bars")
        self._states[row] = s._replace(feeding=False)

    def seal(self, row: int, n_bars: int) -> None:
        """Closes the first bars of a row, which belong to a primer: no event begins in them.

        Raises:
            ValueError: ``max_bars`` leaves no bar after them.
        """
        if n_bars >= self._max_bars:
            raise ValueError(f"{n_bars} sealed bars leave none of max_bars={self._max_bars}")
        self._states[row] = self._states[row]._replace(free_from=n_bars)

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order, and drops the others."""
        self._states = [self._states[i] for i in rows]

    def slide(self, row: int, first_bar: int) -> None:
        """Renumbers the row's bars so that ``first_bar`` becomes bar 0.

        Only a vocabulary that numbers bars (Octuple) is affected.

        Raises:
            ValueError: The row has no such bar yet.
        """
        s = self._states[row]
        if not s.first_bar <= first_bar <= max(0, s.bar):
            raise ValueError(f"row {row} is in bar {s.bar}, not past bar {first_bar}")
        self._states[row] = s._replace(first_bar=first_bar)

    def close(self, row: int) -> tuple[int, Longs]:
        """Ends a row that was cut by a budget of time or tokens, so that it still decodes.

        Returns:
            The number of its steps to keep (BOS counts; a row without a note keeps no music) and
            the steps to write after them, int64 (T, F).
        """
        keep, more = self._rules.closing(self._states[row])
        self._states[row] = self._states[row]._replace(done=True)
        return keep, self._ids(more)

    def _ids(self, steps: list[list[int]]) -> Longs:
        return np.array(steps, np.int64).reshape(-1, len(self._spec.fields))


__all__ = ["FAMILIES", "Grammar", "Rows"]
