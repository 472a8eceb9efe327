"""Names of instruments."""

from __future__ import annotations

from miditok.constants import MIDI_INSTRUMENTS

from midigenre.midi.song import DRUMS


def program_name(program: int) -> str:
    """Name of a General MIDI program (1991, sound set), 0 to 127; ``Drums`` for the drum channel.

    Raises:
        ValueError: There is no such program.
    """
    if program == DRUMS:
        return "Drums"
    if not 0 <= program < len(MIDI_INSTRUMENTS):
        raise ValueError(f"{program} is no General MIDI program")
    return str(MIDI_INSTRUMENTS[program]["name"])
