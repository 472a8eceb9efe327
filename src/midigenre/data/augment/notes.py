"""Augments a phrase's notes, for tokenizers whose phrases are encoded from them.

It does to a :class:`~midigenre.midi.song.Song` what :mod:`.tokens` does to tokens, from
the same draws: tests hold the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from symusic.core import NoteTick, NoteTickList, ScoreTick, TempoTick, TempoTickList, TrackTick

from midigenre.arrays import Longs
from midigenre.data.augment import (
    KEEP,
    SOLO,
    AugmentSettings,
    PhraseChanges,
    jitter_wishes,
    velocity_noise,
)
from midigenre.midi.song import DEFAULT_METER, DRUMS, Grid, NoteTable, Song
from midigenre.spec import TokenSpec
from midigenre.tokenizers.base import Tokenizer, from_spec

_PITCHED = ("Pitch", "NoteOn")


class NoteAugmenter:
    """Changes phrases of notes; call it with a phrase and its key.

    Args:
        spec: The vocabulary, which bounds what may be said.
        settings: What is done, and how much.
    """

    def __init__(self, spec: TokenSpec, settings: AugmentSettings) -> None:
        self._settings = settings
        tokenizer = from_spec(spec)
        self._grid = tokenizer.grid
        pitches = _numbers(spec, *_PITCHED)
        self._pitches = (int(pitches.min()), int(pitches.max()))
        self._velocities = np.unique(_numbers(spec, "Velocity")).astype(np.int64)
        self._tempi = _tempi(spec, tokenizer)
        # In Octuple a tempo is said by notes only: what changes between them takes effect at the
        # next one.
        self._at_notes = spec.bars == "field"
        self._longest = self._grid.max_duration_beats * self._grid.beat_resolution

    def __call__(self, phrase: Song, key: int) -> Song:
        """The phrase as it is trained on.

        Args:
            phrase: A phrase, as ``Song.bars`` gives it.
            key: Its key; 0 leaves it as it is.
        """
        if key == 0 or len(phrase.notes) == 0:
            return phrase
        draws = PhraseChanges.draw(np.array([key], np.uint64), self._settings)
        phrase = self._programs(phrase, draws)
        if self._at_notes:
            phrase = _tempi_at_notes(phrase)
        places = _Places.from_phrase(phrase, self._grid)
        keys = np.full(len(phrase.notes), key, np.uint64)
        notes = phrase.notes
        pitch = self._transposed(notes, int(draws.transpose[0]))
        velocity = self._velocity(notes, places, keys, int(draws.velocity[0]))
        duration = self._duration(notes, places, float(draws.duration[0]))
        onset = self._jittered(phrase, places, key)
        columns = (onset, duration, pitch, velocity, notes.program)
        phrase = replace(phrase, notes=NoteTable(*(c.astype(np.int32) for c in columns)))
        if self._grid.cut_overlaps:
            phrase = replace(phrase, notes=_without_overlaps(phrase.notes))
        return self._at_tempo(phrase, int(draws.tempo[0]))

    def _programs(self, phrase: Song, draws: PhraseChanges) -> Song:
        program = phrase.notes.program
        there = np.unique(program)
        if draws.programs[0] == KEEP or len(there) < 2:
            return phrase
        chosen = program == there[int(draws.which[0] * len(there))]
        kept = chosen if draws.programs[0] == SOLO else ~chosen
        return replace(phrase, notes=phrase.notes.select(kept))

    def _transposed(self, notes: NoteTable, by: int) -> NDArray[np.int32]:
        pitched = notes.program != DRUMS
        if by == 0 or not pitched.any():
            return notes.pitch
        low, high = self._pitches
        fits = np.clip(by, low - notes.pitch[pitched].min(), high - notes.pitch[pitched].max())
        return np.where(pitched, notes.pitch + fits, notes.pitch)

    def _velocity(
        self, notes: NoteTable, places: _Places, keys: NDArray[np.uint64], by: int
    ) -> NDArray[np.int32]:
        if len(self._velocities) == 0:
            return notes.velocity
        program, pitch = notes.program.astype(np.int64), notes.pitch.astype(np.int64)
        most = self._settings.velocity_noise
        noise = velocity_noise(keys, places.bar, places.position, program, pitch, most)
        rank = np.searchsorted(self._velocities, notes.velocity) + by + noise
        moved = self._velocities.take(rank, mode="clip").astype(np.int32)
        return np.where(by + noise == 0, notes.velocity, moved)

    def _duration(self, notes: NoteTable, places: _Places, factor: float) -> NDArray[np.int32]:
        if factor == 1.0:
            return notes.duration
        steps = np.floor(notes.duration / places.step * factor + 0.5)
        scaled = (np.clip(steps, 1, self._longest) * places.step).astype(np.int32)
        return np.where(notes.program == DRUMS, notes.duration, scaled)

    def _jittered(self, phrase: Song, places: _Places, key: int) -> NDArray[np.int32]:
        onset = phrase.notes.onset
        if self._settings.jitter == 0:
            return onset
        # Every tick at which something stands; where there are tempi, they stay.
        changes = phrase.tempo_ticks if len(self._tempi) else onset[:0]
        if self._at_notes:
            changes = np.intersect1d(changes, onset)
        ticks = np.union1d(onset, changes)
        bar = np.searchsorted(phrase.bar_ticks, ticks, side="right") - 1
        step = places.bar_step[bar]
        position = (ticks - phrase.bar_ticks[bar]) // step
        last = (phrase.bar_ticks[bar + 1] - phrase.bar_ticks[bar]) // step - 1
        keys = np.full(len(ticks), key, np.uint64)
        wishes = jitter_wishes(keys, bar, position, self._settings.jitter)
        wishes[np.isin(ticks, changes)] = 0
        moves = wishes.copy()
        for i, wish in enumerate(wishes):
            beside = i + wish
            room = 0 <= position[i] + wish <= last[i]
            if room and 0 <= beside < len(ticks) and bar[beside] == bar[i]:
                gap = abs(position[beside] - position[i])
                # One that would come nearer counts as there already.
                room = gap - (wishes[beside] == -wish) > 1
            moves[i] = wish if room else 0
        return onset + (moves * step)[np.searchsorted(ticks, onset)]

    def _at_tempo(self, phrase: Song, by: int) -> Song:
        if by == 0 or len(self._tempi) == 0:
            return phrase
        rank = np.abs(self._tempi[None] - phrase.tempo_qpm[:, None]).argmin(axis=1)
        fits = np.clip(by, -rank.min(), len(self._tempi) - 1 - rank.max())
        return replace(phrase, tempo_qpm=self._tempi[rank + fits])


@dataclass(frozen=True)
class _Places:
    """Where the notes of a phrase stand, columns of shape (n,).

    Attributes:
        bar: Bar of each note.
        position: Its position in the bar.
        step: Ticks of a position there.
        bar_step: Ticks of a position in each bar, shape (bars,).
    """

    bar: Longs
    position: Longs
    step: Longs
    bar_step: Longs

    @classmethod
    def from_phrase(cls, phrase: Song, grid: Grid) -> _Places:
        bar_step = np.array([grid.step_ticks((int(n), int(d))) for n, d in phrase.meters], np.int64)
        bar = np.searchsorted(phrase.bar_ticks, phrase.notes.onset, side="right") - 1
        step = bar_step[bar]
        position = (phrase.notes.onset - phrase.bar_ticks[bar]) // step
        return cls(bar, position, step, bar_step)


def _tempi_at_notes(phrase: Song) -> Song:
    """The phrase with the tempi that its notes say, each from the first note that says it."""
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


def _numbers(spec: TokenSpec, *types: str) -> NDArray[np.float64]:
    """All numbers that tokens of these types say."""
    said = [
        float(value)
        for field in spec.fields
        for type_, value in zip(field.types, field.values, strict=True)
        if type_ in types
    ]
    return np.array(said)


def _tempi(spec: TokenSpec, tokenizer: Tokenizer) -> NDArray[np.float64]:
    """The vocabulary's tempi, ascending, as exactly as cleaned songs have them.

    Tokens name them to two decimals, which is not what songs hold: a song with one bar in each of
    them tells.
    """
    named = np.unique(_numbers(spec, "Tempo"))
    if len(named) == 0:
        return named
    score = ScoreTick(tokenizer.grid.tpq)
    bar = tokenizer.grid.bar_ticks(DEFAULT_METER)
    score.tempos = TempoTickList([TempoTick(i * bar, float(q)) for i, q in enumerate(named)])
    program = max(_numbers(spec, "Program"), default=0)
    pitch = int(_numbers(spec, *_PITCHED)[0])
    track = TrackTick("", int(max(program, 0)), bool(program == DRUMS))
    track.notes = NoteTickList([NoteTick(i * bar, bar, pitch, 64) for i in range(len(named))])
    score.tracks.append(track)
    exact = tokenizer.clean(score).tempo_qpm
    if len(exact) != len(named):
        raise ValueError(f"{spec.name}: {len(named)} tempo tokens for {len(exact)} tempi")
    return np.sort(exact)
