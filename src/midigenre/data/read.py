"""Bytes of a MIDI file to a row of a shard: the work that is done for each song."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from midigenre.data.near import sketch
from midigenre.data.shards import song_columns
from midigenre.midi.clean import clean, read_score
from midigenre.midi.song import Grid, Song
from midigenre.tokenizers.base import Tokenizer

DIGEST_BYTES = 16

# One for all tokenizers, fine enough for ticks that were stretched; merged tracks and coarse grids
# would hide likenesses.
_SKETCH_GRID = Grid(24, max_song_bars=1 << 24)


def encoded_song(data: bytes, tokenizer: Tokenizer) -> dict[str, Any]:
    """Reads, cleans and encodes a song.

    Args:
        data: Bytes of a MIDI file.
        tokenizer: The tokenizer.

    Returns:
        ``columns`` (of the shard's row), ``tokens`` (steps of the stream), ``repairs``,
        ``fallback`` (why MidiTok encoded it, "" if the vectorised encoder did), ``notes_digest``
        and ``sketch`` for the search for duplicates.

    Raises:
        RefusedSongError: The file cannot be read or used.
    """
    repairs: dict[str, int] = {}
    score = read_score(data, repairs)
    song = tokenizer.clean(score)
    encoded = tokenizer.encode(song)
    return {
        "columns": song_columns(song, encoded),
        "tokens": len(encoded.ids_TF),
        "repairs": repairs | song.repairs,
        "fallback": encoded.fallback,
        "notes_digest": notes_digest(song),
        "sketch": sketch(clean(score, _SKETCH_GRID)),
    }


def read_song(data: bytes, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``song`` of a MIDI file's bytes, and its tokens, ``encoded``.

    Raises:
        RefusedSongError: The file cannot be read or used.
    """
    song = tokenizer.read(data)
    return {"song": song, "encoded": tokenizer.encode(song)}


def notes_digest(song: Song) -> bytes:
    """Hash of the notes and the meters of a clean song; equal ones sound alike but for tempo."""
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for column in (*song.notes.columns().values(), song.meters):
        found.update(np.ascontiguousarray(column, np.int32).tobytes())
    return found.digest()


def refusal(reason: str, detail: str) -> dict[str, Any]:
    """An answer that stands for no song."""
    return {"reason": reason, "detail": detail}
