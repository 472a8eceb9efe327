"""Augmentation of training phrases: its settings, and who gets how much of it.

What is done to a phrase is in :mod:`.augment_tokens`; to one that is encoded from its notes, in
:mod:`.augment_notes`; what chance decides, in :mod:`.augment_draws`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from midigenre.arrays import Floats, Longs
from midigenre.errors import UserError
from midigenre.spec import UNKNOWN, TokenSpec

MAX_SEMITONES = 24
MAX_BINS = 64


@dataclass(frozen=True)
class AugmentSettings:
    """How training phrases are changed, ``conf/augment``.

    Shifts are uniform over all whole numbers of their range, 0 among them. Those on tempo and
    velocity count steps of the vocabulary, so that an augmented phrase says nothing that the
    vocabulary cannot.

    Attributes:
        probability: Share of the training phrases that are changed at all.
        transpose: Semitones, lowest and highest, for all pitched notes of a phrase together, never
            for drums. Where a note would leave the vocabulary's pitches, the whole phrase goes only
            as far as all fit, so that its intervals stay.
        tempo: Steps of the vocabulary's tempi for all tempi of a phrase together; limited likewise.
        velocity: Steps of its velocities for all notes of a phrase; each ends at the last one.
        velocity_noise: Most steps up or down of each note besides.
        jitter: Share of the onsets that move by one position. All notes of an onset move together;
            none leaves its bar, meets or passes a neighbour; onsets at which the tempo changes, and
            the phrase's start, stay.
        duration: Lowest and highest factor of the pitched notes' durations, log-uniform.
        drop: Probability that one program of a phrase is left out (never its only one).
        solo: Probability that one program of it alone is kept.
        phrase_bars: Fewest and most bars of a training phrase, each number equally likely; None
            for those of ``data``.
        target: Label whose rare classes are changed more; None for all alike.
        target_power: A phrase of class c is changed with probability
            ``min(1, probability * (n_max / n_c) ** target_power)``, with n_c training songs of its
            class and n_max of the largest one. Songs without the label keep ``probability``.

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
        if not isinstance(self.velocity_noise, int) or not 0 <= self.velocity_noise <= MAX_BINS:
            raise UserError(
                f"augment.velocity_noise={self.velocity_noise} must lie in 0 to {MAX_BINS}"
            )
        self._pair("transpose", -MAX_SEMITONES, MAX_SEMITONES)
        self._pair("tempo", -MAX_BINS, MAX_BINS)
        self._pair("velocity", -MAX_BINS, MAX_BINS)
        self._pair("phrase_bars", 1, None)
        self._pair("duration", 0.1, 10.0)

    def _pair(self, name: str, least: float, most: float | None) -> None:
        """Reads a range, which YAML gives as a list."""
        value = getattr(self, name)
        if value is None:
            return
        kinds = (int, float) if name == "duration" else (int,)
        pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
        if (
            len(pair) != 2
            or not all(isinstance(v, kinds) and not isinstance(v, bool) for v in pair)
            or not least <= pair[0] <= pair[1]
            or (most is not None and pair[1] > most)
        ):
            what = "numbers" if name == "duration" else "whole numbers"
            bounds = f"from {least}" + ("" if most is None else f" to {most}")
            raise UserError(
                f"augment.{name}={value} must be null or two {what} {bounds}, the lower one first, "
                f"such as [{least}, {2 if most is None else most}]"
            )
        object.__setattr__(self, name, tuple(pair))

    @property
    def changes(self) -> bool:
        """Whether anything is ever done to a phrase (its length does not count)."""
        shifts = (self.transpose, self.tempo, self.velocity, self.duration)
        return self.probability > 0 and bool(
            any(pair is not None for pair in shifts)
            or self.velocity_noise
            or self.jitter
            or self.drop
            or self.solo
        )

    def check(self, tokens: TokenSpec) -> None:
        """Refuses what the vocabulary cannot say.

        Raises:
            UserError: ``phrase_bars`` passes the bars that it numbers.
        """
        if self.phrase_bars is not None and self.phrase_bars[1] > tokens.max_bars:
            raise UserError(
                f"augment.phrase_bars={list(self.phrase_bars)} must end at {tokens.max_bars} "
                "(tokenizer.max_bars) at most"
            )

    def probabilities(
        self,
        rows: Longs,
        labels: Mapping[str, Longs],
        classes: Mapping[str, Sequence[str]],
    ) -> Floats:
        """The probability that a phrase of each training song is changed, shape (songs,).

        Args:
            rows: Indices of the training songs.
            labels: Class index of every song for each label.
            classes: Class names of each label.

        Raises:
            UserError: The songs have no label ``target``.
        """
        if not self.changes:
            return np.zeros(len(rows))
        even = np.full(len(rows), float(self.probability))
        if self.target is None:
            return even
        if self.target not in labels:
            raise UserError(
                f"augment.target={self.target}: these songs have the labels {', '.join(labels)}"
            )
        found = labels[self.target][rows]
        known = found != UNKNOWN
        songs_C = np.bincount(found[known], minlength=len(classes[self.target]))
        if not known.any():
            return even
        rarer_C = (songs_C.max() / np.maximum(songs_C, 1)) ** self.target_power
        return np.where(known, np.minimum(1.0, even * rarer_C[found]), even)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
