"""Vectorised encoders that write MidiTok's ids, for the tokenizers that most runs use.

MidiTok makes an object for each token and sorts them, which is nearly all the time of preparing a
corpus. A cleaned song is already sorted and on the grid of the vocabulary, so that for REMI, CP and
Octuple the same ids follow from array operations. MidiTok stays the vocabulary, the decoder and the
oracle of the tests, and encodes what is not covered here; :func:`fast_encoder` decides that once
for a tokenizer, :meth:`FastEncoder.encode` for a song.
"""

from __future__ import annotations

from typing import Protocol

import miditok
import numpy as np

from midigenre.midi.song import Song
from midigenre.tokenizers.base import Encoded
from midigenre.tokenizers.fast_columns import MISSING, Ids, Longs, Lookups, NotCoveredError
from midigenre.tokenizers.fast_cp import FastCPWord
from midigenre.tokenizers.fast_octuple import FastOctuple
from midigenre.tokenizers.fast_remi import FastREMI

_COVERED = frozenset(
    {
        "use_note_duration_programs",
        "use_pitchdrum_tokens",
        "use_programs",
        "use_tempos",
        "use_time_signatures",
        "use_velocities",
    }
)
"""Switches of ``miditok.TokenizerConfig`` that the encoders read; any other one must be off."""


class _Writer(Protocol):
    look: Lookups

    def write(self, song: Song) -> tuple[Ids, Longs]:
        """The token stream and the first step of each bar that it has, the others being empty.

        Ids have shape (T, F); :data:`MISSING` stands where a value has no token.
        """


class FastEncoder:
    """Encodes cleaned songs with the ids that MidiTok gives them.

    Args:
        tok: A tokenizer that :func:`why_not` has no objection to.
    """

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        self._programs = bool(tok.config.use_programs)
        self._max_bars = int(tok.config.additional_params.get("max_bar_embedding") or 0)
        self._writer: _Writer = _WRITERS[type(tok)](tok)
        # Octuple says the tempo with every note, so that none has to be in force.
        self._says_tempo = self._writer.look.tempi and type(tok) is not miditok.Octuple

    def encode(self, song: Song) -> Encoded:
        """A song or phrase as tokens.

        Raises:
            NotCoveredError: MidiTok must encode it; the message is the reason.
        """
        if reason := self._objection(song):
            raise NotCoveredError(reason)
        ids_TF, bar_at = self._writer.write(song)
        if (ids_TF == MISSING).any():
            raise NotCoveredError(f"no token for a value of {self._writer.look.missing(song)}")
        bar_steps = np.full(song.n_bars + 1, len(ids_TF), np.int32)
        bar_steps[: len(bar_at)] = bar_at
        return Encoded(ids_TF, bar_steps, self._bar_tempo(song))

    def _bar_tempo(self, song: Song) -> Ids:
        """Id of the tempo before each bar, at the first one its own; see :class:`Encoded`."""
        if not self._says_tempo:
            return np.zeros(song.n_bars, np.uint16)
        before = np.searchsorted(song.tempo_ticks, song.bar_ticks[:-1]) - 1
        ids: Ids = self._writer.look.tempo(song).take(np.maximum(before, 0))
        return ids

    def _objection(self, song: Song) -> str:
        """What keeps a song from being one that :meth:`Tokenizer.clean` returns, or nothing."""
        notes, end = song.notes, song.bar_ticks[-1]
        if song.n_bars == 0:
            return "no bars"
        if self._max_bars and song.n_bars > self._max_bars:
            return f"more than the {self._max_bars} bars that the vocabulary numbers"
        if not len(song.tempo_ticks) or song.tempo_ticks[0] != 0:
            return "no tempo at tick 0"
        if song.tempo_ticks[-1] >= end or (len(notes) and notes.onset[-1] >= end):
            return "notes or tempi behind the last bar"
        if not self._programs and notes.program.any():
            return "several programs, which the vocabulary does not have"
        return ""


_WRITERS: dict[type[miditok.MusicTokenizer], type[FastREMI | FastCPWord | FastOctuple]] = {
    miditok.REMI: FastREMI,
    miditok.CPWord: FastCPWord,
    miditok.Octuple: FastOctuple,
}


def fast_encoder(tok: miditok.MusicTokenizer) -> tuple[FastEncoder | None, str]:
    """The fast encoder of a tokenizer, or None and the reason why there is none."""
    reason = why_not(tok)
    return (None if reason else FastEncoder(tok)), reason


def why_not(tok: miditok.MusicTokenizer) -> str:
    """Why a tokenizer has no fast encoder, in words; empty where it has one."""
    config = tok.config
    if type(tok) not in _WRITERS:
        return f"no fast encoder for {type(tok).__name__}"
    for name, value in vars(config).items():
        if name.startswith("use_") and name not in _COVERED and value:
            return f"no fast encoder with {name}"
    for name, value in config.additional_params.items():
        if name != "max_bar_embedding" and value:
            return f"no fast encoder with {name}"
    if config.program_changes:
        return "no fast encoder with program_changes"
    if tok.attribute_controls:
        return "no fast encoder with attribute controls"
    if config.use_programs and not config.one_token_stream_for_programs:
        return "no fast encoder with one stream for each program"
    played = set(config.programs) if config.use_programs else {0}
    if config.using_note_duration_tokens and not played <= set(config.use_note_duration_programs):
        return "no fast encoder with durations for some programs only"
    vocabularies = tok.vocab if tok.is_multi_voc else [tok.vocab]
    if max(len(vocabulary) for vocabulary in vocabularies) >= MISSING:
        return f"no fast encoder for a vocabulary of {MISSING} tokens or more"
    return ""
