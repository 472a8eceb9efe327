"""Augments a phrase's notes, for tokenizers whose phrases are encoded from them.

It does to a :class:`~midigenre.midi.song.Song` what :mod:`.tokens` does to tokens, from
the same draws; tests compare the two.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from midigenre.arrays import Floats, Ints, Longs
from midigenre.data.augment import (
    KEEP,
    SOLO,
    AugmentSettings,
    PhraseChanges,
    jittered,
    velocity_noise,
)
from midigenre.midi.song import DRUMS, NoteTable, Song
from midigenre.spec import TokenSpec
from midigenre.tokenizers.base import from_spec


class NoteAugmenter:
    """Changes phrases of notes within the vocabulary; call it with a phrase and its key."""

    def __init__(self, spec: TokenSpec, settings: AugmentSettings) -> None:
        self._settings = settings
        tokenizer = from_spec(spec)
        self._grid = tokenizer.grid
        pitches = _numbers(spec, "Pitch", "NoteOn")
        self._pitches = (int(pitches.min()), int(pitches.max()))
        self._velocities = np.unique(_numbers(spec, "Velocity")).astype(np.int32)
        self._tempi = tokenizer.tempi
        # In Octuple only notes state a tempo: a change between them takes effect at the
        # next one.
        self._at_notes = spec.bars == "field"
        self._longest = self._grid.max_duration_beats * self._grid.beat_resolution

    def __call__(self, phrase: Song, key: int) -> Song:
        """The phrase, as ``Song.bars`` gives it, as it is trained on; key 0 leaves it unchanged."""
        if key == 0 or len(phrase.notes) == 0:
            return phrase
        draws = PhraseChanges.draw(np.array([key], np.uint64), self._settings)
        phrase = self._without_programs(phrase, draws)
        if self._at_notes:
            phrase = _tempi_at_notes(phrase)
        notes, keys = phrase.notes, np.full(len(phrase.notes), key, np.uint64)
        pitched = notes.program != DRUMS
        bar_step = np.array([self._grid.step_ticks((int(n), int(d))) for n, d in phrase.meters])
        bar = np.searchsorted(phrase.bar_ticks, notes.onset, side="right") - 1
        step = bar_step[bar]
        position = (notes.onset - phrase.bar_ticks[bar]) // step

        pitch = notes.pitch
        if (by := int(draws.transpose[0])) and pitched.any():
            low, high = self._pitches
            by = np.clip(by, low - pitch[pitched].min(), high - pitch[pitched].max())
            pitch = np.where(pitched, pitch + by, pitch)
        velocity = notes.velocity
        if len(self._velocities):
            program, most = notes.program.astype(np.int64), self._settings.velocity_noise
            at = (bar, position, program, notes.pitch.astype(np.int64))
            steps = draws.velocity[0] + velocity_noise(keys, *at, most)
            rank = np.searchsorted(self._velocities, velocity) + steps
            moved = self._velocities.take(rank, mode="clip")
            velocity = np.where(steps == 0, velocity, moved)
        duration = notes.duration
        if (factor := float(draws.duration[0])) != 1.0:
            steps = np.clip(np.floor(duration / step * factor + 0.5), 1, self._longest)
            duration = np.where(pitched, (steps * step).astype(np.int32), duration)
        onset = notes.onset
        if self._settings.jitter:
            onset = self._jittered(phrase, bar_step, key)

        columns = (onset, duration, pitch, velocity, notes.program)
        notes = NoteTable(*(c.astype(np.int32) for c in columns))
        if self._grid.cut_overlaps:
            notes = _without_overlaps(notes)
        phrase = replace(phrase, notes=notes)
        if (by := int(draws.tempo[0])) and len(self._tempi):
            rank = np.abs(self._tempi[None] - phrase.tempo_qpm[:, None]).argmin(axis=1)
            by = np.clip(by, -rank.min(), len(self._tempi) - 1 - rank.max())
            phrase = replace(phrase, tempo_qpm=self._tempi[rank + by])
        return phrase

    def _without_programs(self, phrase: Song, draws: PhraseChanges) -> Song:
        program = phrase.notes.program
        there = np.unique(program)
        if draws.programs[0] == KEEP or len(there) < 2:
            return phrase
        chosen = program == there[int(draws.which[0] * len(there))]
        kept = chosen if draws.programs[0] == SOLO else ~chosen
        return replace(phrase, notes=phrase.notes.select(kept))

    def _jittered(self, phrase: Song, bar_step: Longs, key: int) -> Ints:
        onset = phrase.notes.onset
        # Every tick with an event; onsets at which the tempo changes stay.
        changes = phrase.tempo_ticks if len(self._tempi) else onset[:0]
        if self._at_notes:
            changes = np.intersect1d(changes, onset)
        ticks = np.union1d(onset, changes)
        bar = np.searchsorted(phrase.bar_ticks, ticks, side="right") - 1
        step = bar_step[bar]
        moves = jittered(
            np.full(len(ticks), key, np.uint64),
            np.zeros(len(ticks), np.int64),
            bar,
            (ticks - phrase.bar_ticks[bar]) // step,
            (phrase.bar_ticks[bar + 1] - phrase.bar_ticks[bar]) // step,
            np.isin(ticks, changes),
            self._settings.jitter,
        )
        return onset + (moves * step)[np.searchsorted(ticks, onset)]


def _tempi_at_notes(phrase: Song) -> Song:
    """The phrase with the tempi that its notes state, each from the first note that states it."""
    onset = np.unique(phrase.notes.onset)
    qpm = phrase.tempo_qpm[np.searchsorted(phrase.tempo_ticks, onset, side="right") - 1]
    changed = np.r_[True, np.diff(qpm) != 0]
    ticks = onset[changed]
    ticks[0] = 0
    return replace(phrase, tempo_ticks=ticks.astype(np.int32), tempo_qpm=qpm[changed])


def _without_overlaps(notes: NoteTable) -> NoteTable:
    """Ends each note where its program starts the same pitch again, as cleaned songs have it."""
    order = np.lexsort((notes.onset, notes.pitch, notes.program))
    onset, duration = notes.onset[order], notes.duration[order]
    same = (np.diff(notes.pitch[order]) == 0) & (np.diff(notes.program[order]) == 0)
    room = np.where(same, np.diff(onset), np.iinfo(np.int32).max)
    cut = np.empty_like(duration)
    cut[order] = np.r_[np.minimum(duration[:-1], room), duration[-1:]]
    return replace(notes, duration=cut)


def _numbers(spec: TokenSpec, *types: str) -> Floats:
    """All numbers that tokens of these types have."""
    tokens = (token for f in spec.fields for token in zip(f.types, f.values, strict=True))
    return np.array([float(value) for type_, value in tokens if type_ in types])
