"""Wording that several messages share."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 5
"""How many things of a kind a message names."""


def plural(n: int, one: str, many: str = "") -> str:
    """``1 song``, ``2,000 songs``.

    Args:
        n: The number.
        one: The word for one.
        many: The word for any other number; by default with an ``s``.
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def first_few(names: Sequence[str], separator: str = ", ") -> str:
    """The first :data:`NAMED` of them, and how many more there are."""
    more = len(names) - NAMED
    return separator.join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def program_name(program: int) -> str:
    """Name of a General MIDI program (1991, sound set), 0 to 127; ``Drums`` for -1, the drums.

    Raises:
        ValueError: There is no such program.
    """
    from miditok.constants import MIDI_INSTRUMENTS  # MidiTok takes a second, and few need it

    if program == -1:
        return "Drums"
    if not 0 <= program < len(MIDI_INSTRUMENTS):
        raise ValueError(f"{program} is no General MIDI program")
    return str(MIDI_INSTRUMENTS[program]["name"])
