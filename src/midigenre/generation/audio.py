"""Sound as arrays: how loud it is, and files of it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midigenre.errors import UserError
from midigenre.files import write_bytes

Samples = NDArray[np.float32]

FORMATS = {"wav": ("WAV", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}
"""Format and subtype of libsndfile for each suffix."""

SILENT_DB = -70.0
"""A piece that the synthesizer plays below this peak, in dB of full scale, is silent.

The synthesizer's output has 16 bits: there are ten steps below, too few for music.
"""


@dataclass(frozen=True)
class Audio:
    """A rendered piece.

    Attributes:
        samples: Stereo, float32 of shape (frames, 2), full scale is 1.
        rate: Frames a second.
        raw_peak_db: Loudest sample before normalising, dB of full scale; minus infinity for none.
    """

    samples: Samples
    rate: int
    raw_peak_db: float

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.samples) / self.rate

    @property
    def silent(self) -> bool:
        """Whether nothing is to be heard (:data:`SILENT_DB`)."""
        return self.raw_peak_db < SILENT_DB


def decibels(amplitude: float | NDArray[np.floating]) -> NDArray[np.float64]:
    """Amplitudes in dB of full scale; 0 is minus infinity."""
    with np.errstate(divide="ignore"):
        return np.asarray(20 * np.log10(np.abs(np.asarray(amplitude, np.float64))))


def loudness_db(samples: Samples, rate: int, window_seconds: float = 0.4) -> NDArray[np.float64]:
    """Loudness over time: RMS of both channels in windows that do not overlap.

    Args:
        samples: Shape (frames, 2).
        rate: Frames a second.
        window_seconds: Length of a window; 0.4 s is the momentary loudness of EBU Tech 3341,
            here without its frequency weighting. The last window may be shorter.

    Returns:
        dB of full scale, shape (windows,); digital silence is minus infinity.
    """
    starts = np.arange(0, len(samples), max(1, round(window_seconds * rate)))
    if not len(starts):
        return np.zeros(0)
    power = np.add.reduceat((samples.astype(np.float64) ** 2).mean(1), starts)
    return decibels(np.sqrt(power / np.diff([*starts, len(samples)])))


def check_format(name: str | None, key: str = "audio") -> None:
    """Refuses what cannot be written.

    Args:
        name: ``wav``, ``mp3`` or None for no audio.
        key: The setting's name, for the message.

    Raises:
        UserError: Another format.
    """
    if name is not None and name not in FORMATS:
        raise UserError(f"{key}={name}: choose {', '.join(FORMATS)} or null for no audio")


def write_audio(path: Path | str, samples: Samples, rate: int) -> None:
    """Writes a sound file; it appears whole or not at all.

    Args:
        path: The file; its suffix, ``.wav`` (16 bits) or ``.mp3``, says what it becomes.
        samples: Shape (frames, 2), at most 1 in size.
        rate: Frames a second.

    Raises:
        UserError: Another suffix.
    """
    import soundfile  # takes long to load, and only who writes audio needs it

    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UserError(f"{path}: audio is written as .wav or .mp3")
    kind, subtype = FORMATS[suffix]
    # Not to the disk itself: where that is full, libsndfile says only "system error".
    sound = io.BytesIO()
    soundfile.write(sound, samples, rate, format=kind, subtype=subtype)
    write_bytes(Path(path), sound.getvalue())
