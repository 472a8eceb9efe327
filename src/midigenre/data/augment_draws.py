"""What chance decides about an augmented phrase: the same for its tokens and for its notes.

Every number is a hash of the phrase's key, of what it is for, and (for single notes and onsets) of
where the note stands. So nothing depends on the order in which phrases are read, on the batch they
are in, or on how a tokenizer writes them; and no generator is made for each phrase.

B phrases   n notes or onsets
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import GAMMA, Floats, Keys, Longs, scramble
from midigenre.data.augment import AugmentSettings

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
class Draws:
    """What is decided for each phrase, columns of shape (B,).

    A phrase whose key is 0 is left as it is: no shift, a factor of 1.

    Attributes:
        keys: The phrases' keys.
        transpose: Semitones.
        tempo: Steps on the vocabulary's tempi.
        velocity: Steps on its velocities.
        duration: Factor of the durations.
        programs: :data:`KEEP`, :data:`DROP` or :data:`SOLO`.
        which: A number in [0, 1) that chooses one of the programs.
    """

    keys: Keys
    transpose: Longs
    tempo: Longs
    velocity: Longs
    duration: Floats
    programs: Longs
    which: Floats

    @classmethod
    def of(cls, keys: Keys, settings: AugmentSettings) -> Draws:
        """The draws of phrases with these keys, shape (B,)."""
        on = keys != 0

        def steps(purpose: int, bounds: tuple[int, int] | None) -> Longs:
            low, high = bounds or (0, 0)
            return np.where(on, integers(uniform(keys, purpose), low, high), 0)

        low, high = settings.duration or (1.0, 1.0)
        # Log-uniform, so that half and double are equally likely.
        factor = np.exp(np.log(low) + uniform(keys, _DURATION) * (np.log(high) - np.log(low)))
        u = uniform(keys, _PROGRAMS)
        programs = np.where(u < settings.drop, DROP, KEEP)
        programs = np.where(
            (u >= settings.drop) & (u < settings.drop + settings.solo), SOLO, programs
        )
        return cls(
            keys=keys,
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


def jitter_wishes(keys: Keys, bar: Longs, position: Longs, share: float) -> Longs:
    """Where each onset would go, -1, 0 or 1 positions, all columns of shape (n,).

    Args:
        keys: Key of each onset's phrase.
        bar: Its bar.
        position: Its position.
        share: Probability of going at all; both directions have the same.
    """
    u = uniform(keys, _JITTER, bar * 4096 + position)
    wishes = np.where(u < share / 2, -1, np.where(u < share, 1, 0))
    return np.where(keys != 0, wishes, 0)
