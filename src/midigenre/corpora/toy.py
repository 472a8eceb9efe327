"""A small synthetic corpus with genre and emotion by rule: for tests, examples and first steps.

Genre shows in instruments, texture and meter; emotion by mode, register, density, tempo and
loudness (Russell's two axes: valence by mode, arousal by the rest). A small model learns both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path

import numpy as np
from symusic.core import ScoreTick

from midigenre.corpora.base import (
    Corpus,
    Listing,
    Progress,
    SongRef,
    cached_listing,
    no_progress,
    stratified,
)
from midigenre.corpora.sequencer import (
    HAT,
    KICK,
    RIDE,
    SCALES,
    SNARE,
    Canvas,
    bar_steps,
    degree,
    in_register,
    triad,
)
from midigenre.files import write_bytes
from midigenre.midi.song import Meter

FORMAT_VERSION = 1
"""To be raised whenever a rule changes, so that caches are made again."""


@dataclass(frozen=True)
class Mood:
    """The rule of an emotion.

    Attributes:
        mode: Name of the scale.
        qpm: Range of the tempo, quarter notes per minute.
        velocity: Mean loudness, MIDI velocity.
        lengths: Durations of the melody in sixteenths, drawn with equal chance.
        register: Lowest note of the melody's octave, MIDI pitch.
    """

    mode: str
    qpm: tuple[int, int]
    velocity: int
    lengths: tuple[int, ...]
    register: int


EMOTIONS: Mapping[str, Mood] = {
    "happy": Mood("major", (125, 160), 88, (1, 2, 2), 72),
    "sad": Mood("minor", (55, 80), 52, (4, 4, 8), 60),
    "angry": Mood("harmonic minor", (140, 180), 114, (1, 1, 2), 55),
    "calm": Mood("major", (55, 85), 58, (4, 8), 67),
}
"""The emotions and their rules, in the order of the classes."""


@dataclass
class _Song:
    """What a genre's bar needs to know."""

    rng: np.random.Generator
    canvas: Canvas
    root: int
    mood: Mood

    def velocity(self, offset: int = 0) -> int:
        return int(self.mood.velocity + offset + self.rng.integers(-5, 6))

    def chord(self, index: int, low: int) -> list[int]:
        return triad(self.root, SCALES[self.mood.mode], index, low)


def _waltz(song: _Song, start: int, length: int, index: int) -> None:
    """Bass on the one, chords on the other beats."""
    pitches = song.chord(index, 55)
    song.canvas.add("bass", start, 4, in_register(pitches[0], 36), song.velocity(4))
    for step in range(4, length, 4):
        song.canvas.chord("accompaniment", start + step, 3, pitches, song.velocity(-8))


def _rock(song: _Song, start: int, length: int, index: int) -> None:
    """Power chords and bass in eighths, backbeat."""
    base = in_register(song.chord(index, 40)[0], 40)
    for step in range(0, length, 2):
        song.canvas.chord("accompaniment", start + step, 2, [base, base + 7], song.velocity())
        song.canvas.add("bass", start + step, 2, base - 12, song.velocity())
        song.canvas.add("drums", start + step, 1, HAT, song.velocity(-6))
        if step % 8 == 0 or song.rng.random() < 0.1:
            song.canvas.add("drums", start + step, 1, KICK, song.velocity(6))
        if step % 8 == 4:
            song.canvas.add("drums", start + step, 1, SNARE, song.velocity(8))


def _ballad(song: _Song, start: int, length: int, index: int) -> None:
    """Broken chords in eighths over a held bass."""
    pitches = song.chord(index, 48)
    figure = [pitches[0], pitches[1], pitches[2], pitches[0] + 12]
    song.canvas.add("bass", start, length, in_register(pitches[0], 36), song.velocity(-4))
    for n, step in enumerate(range(0, length, 2)):
        song.canvas.add("accompaniment", start + step, 2, figure[n % 4], song.velocity(-10))


def _swing(song: _Song, start: int, length: int, index: int) -> None:
    """Walking bass, ride cymbal, seventh chords off the beat."""
    pitches = song.chord(index, 52)
    pitches = [*pitches, degree(song.root, SCALES[song.mood.mode], index + 6) % 12 + 60]
    for n, step in enumerate(range(0, length, 4)):
        walk = pitches[n % 3] + int(song.rng.integers(-1, 2)) * (n % 2)
        song.canvas.add("bass", start + step, 4, in_register(walk, 36), song.velocity())
        song.canvas.add("drums", start + step, 1, RIDE, song.velocity(-4))
        if step % 8 == 4:
            song.canvas.add("drums", start + step + 3, 1, RIDE, song.velocity(-8))
            song.canvas.chord("accompaniment", start + step + 2, 1, pitches, song.velocity(-6))


@dataclass(frozen=True)
class _Genre:
    bar: Callable[[_Song, int, int, int], None]
    meter: Meter
    other_meter: Meter  # of the bars after the change that some songs have
    programs: Mapping[str, int]


_PIANO, _STRINGS = 0, 48  # General MIDI programs
GENRES: Mapping[str, _Genre] = {
    "waltz": _Genre(_waltz, (3, 4), (6, 4), {"melody": 40, "accompaniment": _STRINGS, "bass": 43}),
    "rock": _Genre(
        _rock, (4, 4), (2, 4), {"melody": 29, "accompaniment": 30, "bass": 33, "drums": -1}
    ),
    "ballad": _Genre(_ballad, (4, 4), (3, 4), {"melody": 73, "accompaniment": _PIANO, "bass": 32}),
    "swing": _Genre(
        _swing, (4, 4), (3, 4), {"melody": 65, "accompaniment": _PIANO, "bass": 32, "drums": -1}
    ),
}
"""The genres and their rules, in the order of the classes."""

PROGRESSIONS = ((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 5, 3), (0, 1, 4, 0))
METER_CHANGES = 0.3  # share of the songs whose meter changes after half of the bars


def toy_song(rng: np.random.Generator, genre: str, emotion: str) -> ScoreTick:
    """A song of 8 to 16 bars for a genre of :data:`GENRES` and an emotion of :data:`EMOTIONS`."""
    rules, mood = GENRES[genre], EMOTIONS[emotion]
    n_bars = int(rng.integers(8, 17))
    change = n_bars // 2 if rng.random() < METER_CHANGES else n_bars
    meters = [rules.meter] * change + [rules.other_meter] * (n_bars - change)
    starts = np.concatenate([[0], np.cumsum([bar_steps(m) for m in meters])]).tolist()
    changes = [(starts[i], m) for i, m in enumerate(meters) if i == 0 or m != meters[i - 1]]
    canvas = Canvas(changes, float(rng.integers(*mood.qpm)), starts[-1])
    for part, program in rules.programs.items():
        canvas.part(part, program)
    song = _Song(rng, canvas, int(rng.integers(12)), mood)
    scale = SCALES[mood.mode]
    chords = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    low = in_register(song.root, mood.register)
    for i, meter in enumerate(meters):
        index, length = chords[i % 4], bar_steps(meter)
        rules.bar(song, starts[i], length, index)
        step = 0
        while step < length:
            steps = min(int(rng.choice(mood.lengths)), length - step)
            # A chord's tone on the beat, any tone of the scale between.
            tone = index + int(rng.choice([0, 2, 4])) if step % 4 == 0 else int(rng.integers(7))
            canvas.add("melody", starts[i] + step, steps, degree(low, scale, tone), song.velocity())
            step += steps
    return canvas.score()


class Toy(Corpus):
    """The toy corpus, generated in a second or two on the first call.

    Args:
        limit: At most this many songs, stratified.
        n_songs: Spread evenly over the combinations of genre and emotion.
        seed: Makes the songs.
        tracks: See :class:`~midigenre.corpora.base.Corpus`.

    Raises:
        ValueError: A number is below 1, or ``tracks`` is unknown.
    """

    name = "toy"
    labels = ("genre", "emotion")

    def __init__(
        self, limit: int | None = None, n_songs: int = 96, seed: int = 0, tracks: str = "all"
    ) -> None:
        super().__init__(limit, tracks)
        if n_songs < 1:
            raise ValueError(f"corpus.n_songs must be 1 or more, got {n_songs}")
        self.n_songs = n_songs
        self.seed = seed

    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The genres and the emotions."""
        return {"genre": tuple(GENRES), "emotion": tuple(EMOTIONS)}

    def songs(self, cache: Path, n_workers: int = 1, progress: Progress = no_progress) -> Listing:
        """The songs, in turn one of each combination of genre and emotion."""
        settings = {"format": FORMAT_VERSION, "n_songs": self.n_songs, "seed": self.seed}

        def build(folder: Path) -> Listing:
            combinations = cycle(product(GENRES, EMOTIONS))
            songs = []
            for i, (genre, emotion) in enumerate(islice(combinations, self.n_songs)):
                path = folder / genre / f"{genre}-{emotion}-{i:04d}.mid"
                rng = np.random.default_rng([self.seed, i])
                write_bytes(path, toy_song(rng, genre, emotion).dumps_midi())
                songs.append(SongRef(path.stem, path, {"genre": genre, "emotion": emotion}))
                progress("songs", i + 1, self.n_songs)
            return Listing(songs)

        listing = cached_listing(cache, self.name, settings, build)
        return Listing(stratified(listing.songs, self.limit, self.seed), listing.unusable)
