"""Augmentation of training phrases: its settings, and the random draws for a phrase.

The changes are the same for a phrase's tokens (:mod:`.tokens`) and for its notes (:mod:`.notes`).
Every draw is a hash of the phrase's key, of its purpose, and (for single notes and onsets) of
where the note is. So nothing depends on the order in which phrases are read, on the batch they
are in, or on how a tokenizer writes them; and no generator is made for each phrase.

B phrases   n notes   m onsets
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import GAMMA, Bools, Floats, Keys, Longs, scramble
from midigenre.errors import UserError
from midigenre.spec import UNKNOWN, TokenSpec

MAX_SEMITONES = 24
MAX_BINS = 64

# Lowest and highest end of each range, and whether it has whole numbers only.
_RANGES: Mapping[str, tuple[float, float | None, bool]] = {
    "transpose": (-MAX_SEMITONES, MAX_SEMITONES, True),
    "tempo": (-MAX_BINS, MAX_BINS, True),
    "velocity": (-MAX_BINS, MAX_BINS, True),
    "phrase_bars": (1, None, True),
    "duration": (0.1, 10.0, False),
}


@dataclass(frozen=True)
class AugmentSettings:
    """How training phrases are changed, ``conf/augment``, where each setting is explained.

    Shifts are uniform over all whole numbers of their range, 0 among them. Those on tempo and
    velocity count steps of the vocabulary, so that an augmented phrase stays within the
    vocabulary: pitches, and tempi, of a phrase go together, only as far as all fit, so that
    its intervals stay; each velocity ends at the last one. Factors of durations are log-uniform.

    All notes of an onset move together; none leaves its bar, meets or passes a neighbour; onsets at
    which the tempo changes, and the phrase's start, stay. The only program of a phrase is never
    left out. Songs without the label ``target`` keep ``probability``.

    Raises:
        UserError: A value is out of range.
    """

    probability: float = 1.0
    transpose: tuple[int, int] | None = None
    tempo: tuple[int, int] | None = None
    velocity: tuple[int, int] | None = None
    velocity_noise: int = 0
    jitter: float = 0.0
    duration: tuple[float, float] | None = None
    drop: float = 0.0
    solo: float = 0.0
    phrase_bars: tuple[int, int] | None = None
    target: str | None = None
    target_power: float = 0.5

    def __post_init__(self) -> None:
        for name in ("probability", "jitter", "drop", "solo"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise UserError(f"augment.{name}={value} must lie in 0 to 1")
        if self.drop + self.solo > 1:
            raise UserError(
                f"augment.drop={self.drop} and augment.solo={self.solo} must not sum to above 1"
            )
        if not _is_number(self.target_power) or not 0 <= self.target_power < np.inf:
            raise UserError(f"augment.target_power={self.target_power} must be 0 or more")
        noise = self.velocity_noise
        if not isinstance(noise, int) or not 0 <= noise <= MAX_BINS:
            raise UserError(f"augment.velocity_noise={noise} must lie in 0 to {MAX_BINS}")
        for name in _RANGES:
            if (value := getattr(self, name)) is not None:  # which YAML gives as a list
                object.__setattr__(self, name, _range(name, value))

    @property
    def changes(self) -> bool:
        """Whether anything is ever done to a phrase (its length does not count)."""
        shifts = (self.transpose, self.tempo, self.velocity, self.duration)
        shares = (self.velocity_noise, self.jitter, self.drop, self.solo)
        return self.probability > 0 and (any(p is not None for p in shifts) or any(shares))

    def check(self, tokens: TokenSpec) -> None:
        """Rejects settings that the vocabulary cannot express.

        Raises:
            UserError: ``phrase_bars`` passes the bars that it numbers.
        """
        if self.phrase_bars is not None and self.phrase_bars[1] > tokens.max_bars:
            raise UserError(
                f"augment.phrase_bars={list(self.phrase_bars)} must end at {tokens.max_bars} "
                "(tokenizer.max_bars) at most"
            )

    def probabilities(self, rows: Longs, labels: Mapping[str, Longs]) -> Floats:
        """The probability that a phrase of each training song is changed, shape (songs,).

        ``labels`` has the class index of every song, ``rows`` the indices of the training songs.

        Raises:
            UserError: The songs have no label ``target``.
        """
        even = np.full(len(rows), float(self.probability) if self.changes else 0.0)
        if self.target is None or not self.changes:
            return even
        if self.target not in labels:
            raise UserError(
                f"augment.target={self.target}: these songs have the labels {', '.join(labels)}"
            )
        found = labels[self.target][rows]
        known = found != UNKNOWN
        if not known.any():
            return even
        songs_C = np.bincount(found[known])
        rarer_C = (songs_C.max() / np.maximum(songs_C, 1)) ** self.target_power
        return np.where(known, np.minimum(1.0, even * rarer_C[found]), even)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _range(name: str, value: Any) -> tuple[Any, ...]:
    least, most, is_whole = _RANGES[name]
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    numbers = all(_is_number(v) and (isinstance(v, int) or not is_whole) for v in pair)
    if len(pair) == 2 and numbers and least <= pair[0] <= pair[1] <= (most or np.inf):
        return pair
    what = "whole numbers" if is_whole else "numbers"
    bounds = f"from {least}" + ("" if most is None else f" to {most}")
    raise UserError(
        f"augment.{name}={value} must be null or two {what} {bounds}, the lower one first, "
        f"such as [{least}, {most or 2}]"
    )


KEEP, DROP, SOLO = 0, 1, 2
"""What happens to the programs of a phrase: nothing, one is left out, or one alone is kept."""

# One number for each purpose; a new purpose takes a new number, so that old draws stay.
_TRANSPOSE, _TEMPO, _VELOCITY, _DURATION, _PROGRAMS, _WHICH, _NOISE, _JITTER = range(1, 9)


def uniform(keys: Keys, purpose: int, places: NDArray[np.integer[Any]] | int = 0) -> Floats:
    """Numbers in [0, 1), a function of (key, purpose, place), in the shape of ``keys``."""
    with np.errstate(over="ignore"):  # of 64 bits, on purpose
        z = scramble(keys + GAMMA * np.uint64(purpose))
        z = scramble(z + GAMMA * (np.asarray(places).astype(np.uint64) + np.uint64(1)))
    numbers: Floats = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def integers(u: Floats, low: int, high: int) -> Longs:
    """Integers from ``low`` to ``high``, both included, of numbers in [0, 1)."""
    return low + np.floor(u * (high - low + 1)).astype(np.int64)


@dataclass(frozen=True)
class PhraseChanges:
    """The draws for each phrase, columns of shape (B,); a phrase whose key is 0 is not changed.

    ``programs`` is :data:`KEEP`, :data:`DROP` or :data:`SOLO`; ``which``, in [0, 1), chooses one of
    them. ``transpose`` counts semitones, ``tempo`` and ``velocity`` steps of the vocabulary;
    ``duration`` is a factor.
    """

    transpose: Longs
    tempo: Longs
    velocity: Longs
    duration: Floats
    programs: Longs
    which: Floats

    @classmethod
    def draw(cls, keys: Keys, settings: AugmentSettings) -> PhraseChanges:
        """The draws of phrases with these keys, shape (B,)."""
        on = keys != 0

        def steps(purpose: int, bounds: tuple[int, int] | None) -> Longs:
            low, high = bounds or (0, 0)
            return np.where(on, integers(uniform(keys, purpose), low, high), 0)

        low, high = settings.duration or (1.0, 1.0)
        # Log-uniform, so that half and double are equally likely.
        factor = np.exp(np.log(low) + uniform(keys, _DURATION) * (np.log(high) - np.log(low)))
        u, drop = uniform(keys, _PROGRAMS), settings.drop
        programs = np.where(u < drop, DROP, np.where(u < drop + settings.solo, SOLO, KEEP))
        return cls(
            transpose=steps(_TRANSPOSE, settings.transpose),
            tempo=steps(_TEMPO, settings.tempo),
            velocity=steps(_VELOCITY, settings.velocity),
            duration=np.where(on & (settings.duration is not None), factor, 1.0),
            programs=np.where(on, programs, KEEP),
            which=uniform(keys, _WHICH),
        )


def velocity_noise(
    keys: Keys, bar: Longs, position: Longs, program: Longs, pitch: Longs, most: int
) -> Longs:
    """Steps from ``-most`` to ``most`` for each note, all columns of shape (n,).

    A phrase has no two notes of one program and pitch at one place, so that these name the note.
    """
    places = ((bar * 4096 + position) * 256 + program + 1) * 128 + pitch
    steps = integers(uniform(keys, _NOISE, places), -most, most)
    return np.where(keys != 0, steps, 0)


def jittered(
    keys: Keys, phrase: Longs, bar: Longs, position: Longs, end: Longs, fixed: Bools, share: float
) -> Longs:
    """By how many positions each onset moves, -1, 0 or 1, all columns of shape (m,).

    ``bar`` and ``position`` are places in the phrase, ``end`` the number of positions of the bar;
    ``fixed`` onsets stay. ``share`` is the probability of moving where there is room; both
    directions have the same.
    """
    u = uniform(keys, _JITTER, bar * 4096 + position)
    wishes = np.where(u < share / 2, -1, np.where(u < share, 1, 0))
    wishes[fixed | (keys == 0)] = 0
    # A neighbour that would come nearer counts as there already, so that two never meet.
    together = (np.diff(phrase) == 0) & (np.diff(bar) == 0)
    before, after = np.full(len(end), -1), end.copy()
    before[1:][together] = (position + (wishes == 1))[:-1][together]
    after[:-1][together] = (position - (wishes == -1))[1:][together]
    moved = position + wishes
    return np.where((moved > before) & (moved < after), wishes, 0)
