"""The interface that every tokenizer fulfils."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick

from midigenre import registry
from midigenre.errors import UserError
from midigenre.midi.clean import read_score
from midigenre.midi.song import Grid, Song
from midigenre.spec import TokenSpec

Ids = NDArray[np.uint16]


@dataclass(frozen=True)
class Encoded:
    """A song as tokens.

    Attributes:
        ids_TF: The token stream, shape (T, F). A field of bar numbers holds the song's own bars,
            beyond the model's vocabulary; they are rebased when a phrase is cut.
        bar_steps: Step at which each bar starts and, last, T; shape (bars + 1,). Empty where
            phrases are not slices of the stream.
        bar_tempo: Id of the tempo token in force where each bar starts, shape (bars,); 0 where the
            vocabulary has no tempo of its own step.
        fallback: Why MidiTok encoded the song instead of the fast encoder, in words; empty where
            the fast one did, or where a tokenizer has only one way.
    """

    ids_TF: Ids
    bar_steps: NDArray[np.int32]
    bar_tempo: Ids
    fallback: str = ""


class Tokenizer(ABC):
    """Turns songs into token streams and back.

    Attributes:
        spec: Vocabulary and settings, which travel with shards and runs.
        grid: How time is quantised before encoding.
    """

    spec: TokenSpec
    grid: Grid

    @abstractmethod
    def clean(self, score: ScoreTick) -> Song:
        """The score with all that this vocabulary can say, and nothing else.

        Raises:
            midigenre.errors.RefusedSongError: The score cannot be used.
        """

    @abstractmethod
    def encode(self, song: Song) -> Encoded:
        """Tokens of a song or phrase that :meth:`clean` returned."""

    @abstractmethod
    def decode(self, ids_TF: NDArray[np.integer[Any]]) -> ScoreTick:
        """The music of a phrase's tokens, starting at tick 0, in ``grid.tpq`` ticks a quarter."""

    def read(self, data: bytes) -> Song:
        """Bytes of a MIDI file to a clean song; its repairs hold those of the file, too.

        Raises:
            midigenre.errors.RefusedSongError: The file cannot be read or used.
        """
        repairs: dict[str, int] = {}
        song = self.clean(read_score(data, repairs))
        return replace(song, repairs=repairs | song.repairs) if repairs else song


def from_spec(spec: TokenSpec) -> Tokenizer:
    """The tokenizer that made a spec, for instance on a machine that has only the checkpoint.

    Raises:
        UserError: The spec names no tokenizer of midigenre; or this version makes another
            vocabulary from the same settings.
    """
    tokenizer = _from_settings(json.dumps(dict(spec.tokenizer), sort_keys=True))
    if tokenizer.spec.fields != spec.fields:
        raise UserError(
            f"tokenizer {spec.name!r}: the installed MidiTok makes another vocabulary than the one "
            "that was stored; install the versions in constraints.txt or run `midigenre prepare`"
        )
    return tokenizer


@lru_cache(maxsize=8)
def _from_settings(settings_json: str) -> Tokenizer:
    settings = json.loads(settings_json)
    name = settings.pop(registry.TARGET, None)
    found = registry.find("tokenizer", name)
    if not (isinstance(found, type) and issubclass(found, Tokenizer)):
        raise UserError(f"tokenizer.{registry.TARGET}={name} is no Tokenizer")
    try:
        return found(**settings)
    except TypeError as error:
        raise UserError(f"tokenizer {settings.get('name')!r}: {error}") from error
