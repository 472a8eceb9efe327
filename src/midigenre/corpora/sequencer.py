"""A step sequencer for synthesised music: meters, forms, scales, chords, drums.

Time is counted in *steps* of a sixteenth note; a pattern is a list of (step, duration in steps).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from symusic.core import NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from midigenre.midi.song import Meter

TICKS_PER_QUARTER = 480
STEP_TICKS = TICKS_PER_QUARTER // 4

Pattern = list[tuple[int, int]]

# General MIDI percussion key map
KICK, SNARE, HAT, OPEN_HAT, CRASH, RIDE, TOM = 36, 38, 42, 46, 49, 51, 45

SCALES: Mapping[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "major pentatonic": (0, 2, 4, 7, 9),
    "minor pentatonic": (0, 3, 5, 7, 10),
}

# One distribution for all styles, so that the meter alone does not reveal the style.
METERS: tuple[Meter, ...] = ((4, 4), (3, 4), (6, 8), (2, 4), (2, 2))
METER_SHARES = (0.6, 0.12, 0.12, 0.08, 0.08)

# V verse, C chorus, B bridge; an intro comes before and the chorus may come once more.
FORMS = ("VC", "VVC", "VCVC", "VCBC", "VCV", "VBC", "VCVCB")


def bar_steps(meter: Meter) -> int:
    """Length of a bar in sixteenths."""
    return 16 * meter[0] // meter[1]


@dataclass(frozen=True)
class Plan:
    """What a song is made from besides its style.

    Attributes:
        root: Pitch class of the key, 0 to 11.
        meter: Of the whole song.
        sections: Letter (I intro, V verse, C chorus, B bridge, O outro) and bars of each section.
    """

    root: int
    meter: Meter
    sections: tuple[tuple[str, int], ...]

    @property
    def n_bars(self) -> int:
        """Bars of the song."""
        return sum(bars for _, bars in self.sections)

    @property
    def bar(self) -> int:
        """Length of a bar in sixteenths."""
        return bar_steps(self.meter)

    @property
    def beat(self) -> int:
        """Length of the felt beat in sixteenths: a dotted quarter in 6/8, a half in 2/2."""
        return 6 if self.meter[1] == 8 else 16 // self.meter[1]

    def bars(self) -> Iterator[tuple[int, str, int, bool]]:
        """First step, section letter, bar in the section, whether it is the section's last."""
        step = 0
        for letter, n_bars in self.sections:
            for i in range(n_bars):
                yield step, letter, i, i == n_bars - 1
                step += self.bar


def plan_song(rng: np.random.Generator) -> Plan:
    """Key, meter and a form of 16 to 48 bars."""
    meter = METERS[rng.choice(len(METERS), p=METER_SHARES)]
    lengths = {
        "I": int(rng.choice([2, 4])),
        "V": int(rng.choice([4, 6, 8], p=[0.4, 0.1, 0.5])),
        "C": int(rng.choice([4, 8])),
        "B": int(rng.choice([2, 4])),
        "O": int(rng.choice([1, 2, 4])),
    }
    form = str(rng.choice(FORMS))
    form = ("I" if rng.random() < 0.7 else "") + form + ("O" if rng.random() < 0.5 else "")
    while sum(lengths[letter] for letter in form) < 16:
        form += "C"
    while sum(lengths[letter] for letter in form) > 48:
        form = form[:-1]
    return Plan(int(rng.integers(12)), meter, tuple((letter, lengths[letter]) for letter in form))


@dataclass
class Canvas:
    """Notes of a song by part; :meth:`score` makes the MIDI.

    Attributes:
        meters: Step and meter of each change, the first at step 0.
        qpm: Tempo, quarter notes per minute.
        end: Last step; notes are cut there.
    """

    meters: Sequence[tuple[int, Meter]]
    qpm: float
    end: int
    programs: dict[str, int] = field(default_factory=dict)
    notes: dict[str, dict[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)

    def part(self, name: str, program: int) -> None:
        """Adds a part with a General MIDI program, 0 to 127; -1 is the drum channel."""
        self.programs[name] = program
        self.notes[name] = {}

    def add(self, part: str, step: int, steps: int, pitch: int, velocity: int) -> None:
        """Adds a note; a second one at the same step and pitch replaces the first."""
        length = min(steps, self.end - step)
        if length > 0 and 0 <= pitch <= 127:
            self.notes[part][(step, pitch)] = (length, int(np.clip(velocity, 1, 127)))

    def chord(self, part: str, step: int, steps: int, pitches: Sequence[int], vel: int) -> None:
        """Adds a chord."""
        for pitch in pitches:
            self.add(part, step, steps, pitch, vel)

    def score(self) -> ScoreTick:
        """The song as a symusic score, 480 ticks per quarter; parts without notes are left out."""
        score = ScoreTick(TICKS_PER_QUARTER)
        score.tempos.append(TempoTick(0, qpm=self.qpm))
        for step, meter in self.meters:
            score.time_signatures.append(TimeSignatureTick(step * STEP_TICKS, *meter))
        for name, program in self.programs.items():
            track = TrackTick(name=name, program=max(program, 0), is_drum=program < 0)
            following: dict[int, int] = {}  # pitch -> onset of the next note of that pitch
            for (step, pitch), (length, velocity) in sorted(self.notes[name].items(), reverse=True):
                length = min(length, following.get(pitch, step + length) - step)
                following[pitch] = step
                track.notes.append(
                    NoteTick(step * STEP_TICKS, length * STEP_TICKS, pitch, velocity)
                )
            track.notes.sort(inplace=True)
            if len(track.notes):
                score.tracks.append(track)
        return score


def degree(root: int, scale: Sequence[int], index: int) -> int:
    """Pitch of a scale degree counted from 0 at ``root``, in all octaves."""
    octave, step = divmod(index, len(scale))
    return root + 12 * octave + scale[step]


def in_register(pitch: int, low: int) -> int:
    """The pitch moved by octaves into the octave that starts at ``low``."""
    return low + (pitch - low) % 12


def triad(root: int, scale: Sequence[int], index: int, low: int) -> list[int]:
    """Triad on a degree of a seven-note scale, its root in the octave above ``low``."""
    base = degree(root, scale, index)
    shift = in_register(base, low) - base
    return [degree(root, scale, index + third) + shift for third in (0, 2, 4)]


def rhythm(
    rng: np.random.Generator, n_steps: int, lengths: Sequence[int], shares: ArrayLike
) -> Pattern:
    """Durations drawn one after the other until a bar is full; the last is cut at its end."""
    pattern: Pattern = []
    step = 0
    weights = np.asarray(shares, dtype=float) / np.sum(shares)
    while step < n_steps:
        length = min(int(rng.choice(lengths, p=weights)), n_steps - step)
        pattern.append((step, length))
        step += length
    return pattern


def drum_bar(
    rng: np.random.Generator, song: Plan, hat_steps: int, kicks: float, *, ride: bool = False
) -> list[tuple[int, int]]:
    """One bar of drums as (step, key): backbeat snare, kick on the one and by chance, hats.

    Args:
        rng: Draws the kicks.
        song: For the meter.
        hat_steps: Steps between hats.
        kicks: Chance of a kick on each other eighth.
        ride: Whether a ride cymbal replaces the hat.
    """
    hits = [(step, RIDE if ride else HAT) for step in range(0, song.bar, hat_steps)]
    beats = list(range(0, song.bar, song.beat))
    backbeats = beats[1:] if song.meter == (3, 4) else beats[1::2]
    hits += [(step, SNARE) for step in backbeats]
    hits += [(0, KICK)]
    hits += [
        (step, KICK)
        for step in range(2, song.bar, 2)
        if step not in backbeats and rng.random() < kicks
    ]
    return hits


def drum_fill(rng: np.random.Generator, song: Plan) -> list[tuple[int, int]]:
    """A bar whose last beat runs over snare and toms."""
    start = song.bar - song.beat
    hits = [(step, HAT) for step in range(0, start, 2)] + [(0, KICK)]
    return hits + [(s, int(rng.choice([SNARE, TOM, TOM + 2]))) for s in range(start, song.bar)]
