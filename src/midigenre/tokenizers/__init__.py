"""Songs to token streams and back; one interface with MidiTok behind it.

``base`` holds the interface, ``phrases`` cuts a phrase out of an encoded song, ``miditok`` wraps
any MidiTok class (REMI, CP, Octuple, MIDI-like, TSD ...), ``octuple`` has the one decoder that
MidiTok cannot give.
"""

from midigenre.tokenizers.base import Encoded, Tokenizer, from_spec
from midigenre.tokenizers.phrases import PhraseCutter

__all__ = ["Encoded", "PhraseCutter", "Tokenizer", "from_spec"]
