"""Pieces of a trained generator."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from symusic.core import ScoreTick, TextMetaTick

from midigenre.arrays import Longs
from midigenre.corpora.base import Progress, no_progress
from midigenre.data.sandbox import FileReader
from midigenre.errors import RejectedSongError, UserError
from midigenre.files import write_bytes
from midigenre.generation.grammar import Grammar
from midigenre.generation.sampling import Choice, Sample, Sampler, SamplingSettings
from midigenre.midi.song import NoteTable, Song
from midigenre.models import PhraseGenerator
from midigenre.models.kernels import quantize_int8
from midigenre.spec import UNKNOWN
from midigenre.tasks.kinds import context_for
from midigenre.tokenizers.base import from_spec
from midigenre.trained import Run, device_of
from midigenre.wording import plural


@dataclass(frozen=True)
class Primer:
    """The music that a piece begins with.

    Attributes:
        path: Its file.
        ids_TF: Its steps, int64 of shape (T, F).
        n_bars: Its bars.
    """

    path: Path
    ids_TF: Longs
    n_bars: int


@dataclass(frozen=True)
class Piece:
    """A generated piece.

    Attributes:
        sample: Its steps, and why it ended.
        score: Its music as a symusic score.
        song: The same on the grid of the model's tokenizer; None without a note.
    """

    sample: Sample
    score: ScoreTick
    song: Song | None

    @property
    def notes(self) -> NoteTable:
        """Columns of its notes (onset, duration, pitch, velocity, program), int32 of shape (n,).

        Times are in ticks, of which ``piece.song.tpq`` make a quarter.
        """
        return NoteTable.of([], [], [], [], []) if self.song is None else self.song.notes

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes it as a MIDI file, to the end of its last bar.

        Raises:
            OSError: The file cannot be written.
        """
        score = self.score.copy()
        if self.song is not None:
            with_rests(score, self.song, self.sample.n_bars)
        write_bytes(Path(path), score.dumps_midi())


def with_rests(score: ScoreTick, song: Song, n_bars: int) -> Song:
    """A song of this many bars, the last ones empty; a marker keeps them in its score too.

    A file ends with its last event (symusic writes the end one tick later): without one in its last
    bar it would lose the rests.
    """
    if n_bars <= song.n_bars:
        return song
    song = song.with_rests(n_bars)
    score.markers.append(TextMetaTick(int(song.bar_ticks[-1]) - 1, "end"))
    return song


class Generator:
    """A trained generator; :func:`midigenre.load` opens one.

    Args:
        trained: The run.
        device: ``cpu`` or ``cuda``.
        quantize: ``int8`` for eight-bit weights on the CPU.

    Attributes:
        trained: The run.
        tokenizer: Its tokenizer.
        classes: Class names of each condition.

    Raises:
        UserError: Its tokenizer has no grammar, or it cannot be quantised.
    """

    def __init__(self, trained: Run, device: str = "cpu", quantize: str | None = None) -> None:
        self.trained, self.tokenizer = trained, from_spec(trained.tokens)
        labels = trained.labels.classes
        self.classes = {label: labels[label] for label in conditions_of(trained)}
        self._sampler = make_sampler(trained, device_of(device), quantize)

    def generate(
        self, *, bars: int | None = 16, seconds: float | None = None, tokens: int | None = 8192,
        seed: int = 0, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
        min_p: float = 0.0, guidance: float = 1.0, prime: str | os.PathLike[str] | None = None,
        prime_bars: int | None = 4, **conditions: str | None,
    ) -> Piece:  # fmt: skip
        """A piece: the first one that ``midigenre generate`` writes with these settings.

        Args:
            bars: It has exactly this many (a primer's come on top); None: until the end token.
            seconds: It ends with the bar in which this time is reached.
            tokens: Most steps.
            seed: The same seed draws the same piece.
            temperature: 0 always takes the likeliest token.
            top_k: Only the k likeliest tokens; 0 for all.
            top_p: Only the likeliest that together have this probability.
            min_p: Only those at least this share as likely as the likeliest.
            guidance: Above 1 strengthens the condition; doubles the work.
            prime: A MIDI file to continue.
            prime_bars: Its first bars with music in them; None: all of it.
            conditions: The class of each condition, as ``genre="bach"``; None: unknown.

        Raises:
            UserError: A condition, a class or the primer is unknown, or a setting makes no sense.

        Example:
            >>> piece = model.generate(genre="waltz", bars=2, seed=1)
            >>> piece.sample.n_bars
            2
            >>> piece.write("waltz.mid")
        """
        settings = sampling_settings({
            "bars": bars, "seconds": seconds, "tokens": tokens, "seed": seed, "top_k": top_k,
            "temperature": temperature, "top_p": top_p, "min_p": min_p, "guidance": guidance,
        })  # fmt: skip
        names = self.named(conditions)
        primer = None if prime is None else self.primer(prime, prime_bars, warnings.warn)
        (piece,) = self.pieces(1, settings, names, primer)
        return piece

    def named(self, wanted: Mapping[str, str | None]) -> dict[str, str | None]:
        """The class of each condition, None for "unknown".

        Raises:
            UserError: There is no such condition or class.
        """
        for label, name in wanted.items():
            if label not in self.classes:
                raise UserError(
                    f"{label}={name}: this generator is not conditioned on {label}; its conditions "
                    f"are {', '.join(self.classes) or 'none'} (task.conditions when it was trained)"
                )
            if name is not None and name not in (known := self.classes[label]):
                near = difflib.get_close_matches(str(name), known, 1)
                guess = f"did you mean {near[0]}? " if near else ""
                raise UserError(
                    f"{label}={name}: {guess}this generator knows {', '.join(known)} (and null, "
                    "unknown)"
                )
        return {label: wanted.get(label) for label in self.classes}

    def primer(
        self, path: str | os.PathLike[str], bars: int | None, warn: Callable[[str], object]
    ) -> Primer:
        """The first bars with music of a MIDI file.

        Args:
            path: The file.
            bars: How many; None for all.
            warn: Called with a line where it has fewer.

        Raises:
            UserError: The file cannot be read, or ``bars`` is below 1.
        """
        if bars is not None and bars < 1:
            raise UserError(f"prime_bars={bars} must be 1 or more, or null for all")
        file = Path(path).expanduser()
        try:
            with FileReader() as reader:
                song, _ = reader.read(file, self.tokenizer.spec)
        except RejectedSongError as error:
            raise UserError(f"prime={path}: {error}; give a MIDI file with notes") from error
        first = int(np.flatnonzero(song.onsets_per_bar())[0])
        wanted = song.n_bars if bars is None else first + bars
        end = min(song.n_bars, wanted)
        if end < wanted:
            warn(f"{file} has {plural(end - first, 'bar')} of music, not prime_bars={bars}")
        phrase = song.bars(first, end)
        ids_TF = self.tokenizer.encode(phrase).ids_TF.astype(np.int64)
        return Primer(Path(path), ids_TF, phrase.n_bars)

    def pieces(
        self, n: int, settings: SamplingSettings, names: Mapping[str, str | None],
        primer: Primer | None = None, batch: int = 16, progress: Progress = no_progress,
    ) -> Iterator[Piece]:  # fmt: skip
        """Pieces of one condition, drawn batch by batch.

        Args:
            n: How many.
            settings: How they are drawn.
            names: The class of each condition (:meth:`named`).
            primer: What all begin with.
            batch: Most that are drawn side by side.
            progress: Called with the bars of a batch that are finished.

        Raises:
            UserError: The primer does not fit the model.
        """
        labels = {
            label: UNKNOWN if name is None else self.classes[label].index(name)
            for label, name in names.items()
        }
        ids, primer_bars = (None, 0) if primer is None else (primer.ids_TF, primer.n_bars)
        for first in range(0, n, batch):
            size = min(batch, n - first)
            what = f"pieces {first} to {first + size - 1}" if n > batch else "bars"
            try:
                samples = self._sampler.sample(
                    {label: [index] * size for label, index in labels.items()}, settings, n=size,
                    first=first, primer=ids, primer_bars=primer_bars,
                    report=partial(progress, what),
                )  # fmt: skip
            except ValueError as error:
                raise UserError(f"prime={primer and primer.path}: {error}") from error
            yield from (self._piece(sample) for sample in samples)

    def _piece(self, sample: Sample) -> Piece:
        score = self.tokenizer.decode(sample.ids_TF)
        return Piece(sample, score, self.tokenizer.clean(score) if score.note_num() else None)


def sampling_settings(values: Mapping[str, Any]) -> SamplingSettings:
    """How pieces are drawn, from the settings of ``conf/sampling``.

    Raises:
        UserError: An invalid value.
    """
    for key in ("guidance", "seed", "bars", "seconds", "tokens", *Choice.__dataclass_fields__):
        if isinstance(values[key], (bool, str)):
            raise UserError(f"{key}={values[key]} is not a number")
    try:
        choice = Choice(*(values[key] for key in ("temperature", "top_k", "top_p", "min_p")))
        ends = (values[key] for key in ("bars", "seconds", "tokens"))
        return SamplingSettings(choice, values["guidance"], values["seed"], *ends)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def make_sampler(trained: Run, device: torch.device, quantize: str | None) -> Sampler:
    """A sampler of a trained generator; ``quantize=int8`` gives it eight-bit weights.

    Raises:
        UserError: Its tokenizer has no grammar, or it cannot be quantised.
    """
    model = trained.model.to(device)
    assert isinstance(model, PhraseGenerator)
    if quantize not in (None, "int8"):
        raise UserError(f"quantize={quantize}; choose int8 or null")
    try:
        model = model if quantize is None else quantize_int8(model)
    except ValueError as error:
        raise UserError(f"quantize={quantize}: {error}") from error
    grammar = Grammar(from_spec(trained.tokens))
    return Sampler(model, grammar, context_for(trained.data, trained.tokens))


def conditions_of(generator: Run) -> tuple[str, ...]:
    """Labels that a generator is conditioned on."""
    model = generator.model
    assert isinstance(model, PhraseGenerator)
    return tuple(model.conditions.classes) if model.conditions else ()
