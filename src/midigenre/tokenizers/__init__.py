"""Songs to token streams and back; one interface with MidiTok behind it.

``base`` holds the interface and cuts phrases, ``miditok`` wraps any MidiTok class (REMI, CP,
Octuple, MIDI-like, TSD ...), ``fast`` encodes the common ones, ``notes`` finds notes in tokens.
"""

from midigenre.tokenizers.base import Encoded, PhraseCutter, Tokenizer, from_spec

__all__ = ["Encoded", "PhraseCutter", "Tokenizer", "from_spec"]
