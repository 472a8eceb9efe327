"""Which phrases an epoch of training reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Longs
from midigenre.data.phrases import PhraseLength, Phrases, chain, phrase_ends
from midigenre.data.shards import Songs
from midigenre.spec import UNKNOWN

# Third number of a generator's seed: each purpose has its own stream (1 orders the phrases of an
# epoch, see BatchSampler).
_KEYS, _BARS, _BALANCE, _CHANGED = 2, 3, 4, 5


@dataclass(frozen=True)
class Balance:
    """How far the classes of a label are drawn equally often.

    Attributes:
        class_S: Class index of each training song, shape (songs,).
        share: 0 draws each class as often as its songs have phrases, 1 all classes equally often;
            between them its number of phrases is interpolated.
    """

    class_S: Longs
    share: float


class RandomStarts:
    """Training phrases: each song gives as many as it has consecutive ones, at random bars.

    Any bar may be the first, the last ones too: those phrases are shorter, as the last one of a
    song often is in evaluation.

    The phrases of an epoch are a function of the seed, the epoch and their index.

    Args:
        songs: Where the songs are.
        rows: Indices of the training songs.
        length: Length of a phrase.
        phrases_per_song: Phrases of each song in an epoch; None for as many as it has.
        bars: Fewest and most bars of a phrase, instead of ``length``, each number equally likely;
            a song gives as many phrases as with ``length``.
        balance: Draws the classes of a label more equally. An epoch has as many phrases as
            without, and every epoch as many of each class; those of a song follow from chance, so
            that over the epochs all of them are read. Songs without the label give what they have.
        changed_S: Probability that a phrase of each of ``rows`` is augmented: it gets a key. None
            for no keys.
    """

    def __init__(
        self,
        songs: Songs,
        rows: Longs,
        length: PhraseLength,
        phrases_per_song: int | None = None,
        *,
        bars: tuple[int, int] | None = None,
        balance: Balance | None = None,
        changed_S: NDArray[np.float64] | None = None,
    ) -> None:
        counts: list[int] = []
        places: list[_Starts | _AnyStarts] = []
        for row in rows.tolist():
            onsets = songs.bar_onsets(row)
            of_bar = phrase_ends(songs, row, length)
            counts.append(phrases_per_song or len(chain(of_bar)))
            places.append(_AnyStarts.of(onsets) if bars else _Starts.of(onsets, of_bar))
        self._bars = bars
        self._rows = rows
        self._changed_S = changed_S
        n_starts = [len(place.first) for place in places]
        none = np.zeros(0, np.int32 if bars else np.int64)
        self._starts = np.concatenate([none, *(place.first for place in places)])
        self._ends = np.concatenate([none, *(p.end for p in places if isinstance(p, _Starts))])
        self._n_starts = np.array(n_starts, np.int64)
        self._first_start = np.r_[0, np.cumsum(self._n_starts)][:-1]
        self._counts = np.array(counts, np.int64)
        self._expected = _balanced(self._counts, balance) if balance and balance.share else None
        self._class_S = balance.class_S if balance else None

    def __len__(self) -> int:
        return int(self._counts.sum())

    @property
    def song(self) -> Longs:
        """Song of each phrase of an epoch.

        The same in every epoch; where classes are balanced, the same number of each class.
        """
        return self._rows[self._slots(0, 0)]

    def _slots(self, seed: int, epoch: int) -> Longs:
        """Which of the training songs gives each phrase."""
        counts = self._counts
        if self._expected is not None:
            assert self._class_S is not None
            counts = counts.copy()
            offsets = np.random.default_rng([seed, epoch, _BALANCE]).random(len(self._expected))
            for (class_, expected), offset in zip(self._expected.items(), offsets, strict=True):
                # Systematic sampling: the sum is that of the expected numbers, each song gets the
                # whole number below or above its own, on average its own.
                total = round(float(expected.sum()))
                edges = np.floor(np.r_[0.0, np.cumsum(expected)] + offset).astype(np.int64)
                edges = np.minimum(edges, total)  # sums of fractions are not exact
                edges[-1] = total
                counts[self._class_S == class_] = np.diff(edges)
        return np.repeat(np.arange(len(self._rows)), counts)

    def epoch(self, seed: int, epoch: int) -> Phrases:
        """The phrases of an epoch."""
        slot = self._slots(seed, epoch)
        draw = np.random.default_rng([seed, epoch]).random(len(slot))
        pick = (draw * self._n_starts[slot]).astype(np.int64)
        chosen = self._first_start[slot] + pick
        if self._bars is None:
            first, end = self._starts[chosen], self._ends[chosen]
        else:
            low, high = self._bars
            bars = np.random.default_rng([seed, epoch, _BARS]).integers(low, high + 1, len(slot))
            n_bars, filled = self._n_starts[slot], self._starts[chosen].astype(np.int64)
            # Silent all through: the next bar with an onset begins the phrase.
            first = np.where((filled >= pick) & (filled < pick + bars), pick, filled)
            first = np.where(bars >= n_bars, 0, first)  # one phrase holds the whole song
            end = np.minimum(first + bars, n_bars)
        return Phrases(self._rows[slot], first, end, self._keys(seed, epoch, slot))

    def _keys(self, seed: int, epoch: int, slot: Longs) -> NDArray[np.uint64] | None:
        if self._changed_S is None:
            return None
        stream = np.random.default_rng([seed, epoch, _KEYS])
        keys = stream.integers(1, 2**64 - 1, len(slot), np.uint64, endpoint=True)
        changed = np.random.default_rng([seed, epoch, _CHANGED]).random(len(slot))
        return np.where(changed < self._changed_S[slot], keys, np.uint64(0))


@dataclass(frozen=True)
class _Starts:
    """First bars of a song's phrases of a fixed length, and the bars after their last ones."""

    first: Longs
    end: Longs

    @classmethod
    def of(cls, onsets: NDArray[np.int32], of_bar: Longs) -> _Starts:
        total = np.r_[0, np.cumsum(onsets)]
        cut = np.minimum(of_bar, len(of_bar))
        filled = total[cut] > total[:-1]
        # Phrases that the end of the song cuts short are drawn too: evaluation meets them.
        valid = np.flatnonzero(filled)
        if of_bar[0] >= len(of_bar):  # one phrase holds the whole song
            valid = valid[:1]
        return cls(valid, cut[valid])


@dataclass(frozen=True)
class _AnyStarts:
    """For each bar the first one from there on with an onset, else the song's last such one."""

    first: NDArray[np.int32]

    @classmethod
    def of(cls, onsets: NDArray[np.int32]) -> _AnyStarts:
        filled = np.flatnonzero(onsets)
        following = np.searchsorted(filled, np.arange(len(onsets)))
        return cls(filled.take(following, mode="clip").astype(np.int32))


def _balanced(counts_S: Longs, balance: Balance) -> dict[int, NDArray[np.float64]]:
    """For each class the phrases that each of its songs is to give on average, shape (songs,).

    They sum to a whole number for each class, and over the classes to what ``counts_S`` does.
    """
    known = balance.class_S != UNKNOWN
    classes, of_song = np.unique(balance.class_S[known], return_inverse=True)
    if len(classes) == 0:
        return {}
    phrases_C = np.bincount(of_song, counts_S[known], len(classes))
    total = phrases_C.sum()
    wanted_C = (1 - balance.share) * phrases_C + balance.share * total / len(classes)
    whole_C = np.floor(wanted_C)
    # The largest remainders get what is left of the total.
    left = round(total - whole_C.sum())
    whole_C[np.argsort(whole_C - wanted_C, kind="stable")[:left]] += 1
    return {
        int(class_): counts_S[balance.class_S == class_] * (whole_C[i] / phrases_C[i])
        for i, class_ in enumerate(classes)
    }
