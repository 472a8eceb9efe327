"""Which phrases an epoch of training reads, and in which batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from midigenre.arrays import Floats, Keys, Longs
from midigenre.data.augment.tokens import PhraseAugmenter
from midigenre.data.phrases import PhraseLength, PhraseReader, Phrases, SongSource, phrase_ends
from midigenre.spec import UNKNOWN, Batch

# Third number of a generator's seed: each purpose has its own stream.
_ORDER, _KEYS, _BARS, _BALANCE, _CHANGED = range(1, 6)


@dataclass(frozen=True)
class Balance:
    """How equally often the classes of a label are drawn.

    ``class_S`` is the class index of each training song. With ``share`` 0 each class is drawn as
    often as its songs have phrases, with 1 all equally often; between them it is interpolated.
    """

    class_S: Longs
    share: float


class RandomStarts:
    """Training phrases at random bars: each song gives as many as cover it end to end.

    Any bar may be the first, even the last ones: those phrases are shorter, as a song's last phrase
    often is in evaluation. The phrases of an epoch are a function of the seed, the epoch and
    their index.

    Args:
        songs: Where the songs are.
        rows: Indices of the training songs.
        length: Length of a phrase.
        phrases_per_song: Phrases of each song in an epoch; None for as many as it has.
        bars: Fewest and most bars of a phrase, instead of ``length``, each number equally likely;
            a song gives as many phrases as with ``length``.
        balance: Draws the classes of a label more equally. An epoch has as many phrases as
            without, and every epoch as many of each class; those of a song are random, so
            that over the epochs all of them are read. Songs without the label give what they have.
        changed_S: Probability that a phrase of each of ``rows`` is augmented: it gets a key. None
            for no keys.
    """

    def __init__(
        self,
        songs: SongSource,
        rows: Longs,
        length: PhraseLength,
        phrases_per_song: int | None = None,
        *,
        bars: tuple[int, int] | None = None,
        balance: Balance | None = None,
        changed_S: Floats | None = None,
    ) -> None:
        counts: list[int] = []
        starts: list[Longs] = []  # of each song: first bars, or with ``bars`` what each one becomes
        ends: list[Longs] = []
        for row in rows.tolist():
            onsets = songs.bar_onsets(row)
            end_of_bar, end_to_end = phrase_ends(songs, row, length)
            counts.append(phrases_per_song or len(end_to_end))
            if bars:  # the first bar from there on with an onset, else the song's last such one
                filled = np.flatnonzero(onsets)
                at = np.searchsorted(filled, np.arange(len(onsets)))
                starts.append(filled.take(at, mode="clip").astype(np.int32))
                continue
            total = np.r_[0, np.cumsum(onsets)]
            end = np.minimum(end_of_bar, len(onsets))
            start = np.flatnonzero(total[end] > total[:-1])
            if end_of_bar[0] >= len(onsets):  # one phrase holds the whole song
                start = start[:1]
            starts.append(start)
            ends.append(end[start])
        self._rows, self._bars, self._changed_S = rows, bars, changed_S
        self._counts_S = np.array(counts, np.int64)
        self._n_starts_S = np.array([len(of) for of in starts], np.int64)
        self._first_start_S = np.cumsum(self._n_starts_S) - self._n_starts_S
        self._starts = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        self._ends = np.concatenate(ends) if ends else np.zeros(0, np.int64)
        # For each class its songs, and the phrases that each of them is to give on average.
        self._balanced = _balanced(self._counts_S, balance) if balance and balance.share else None

    def __len__(self) -> int:
        return int(self._counts_S.sum())

    @property
    def song(self) -> Longs:
        """Song of each phrase of an epoch.

        The same in every epoch; where classes are balanced, the same number of each class.
        """
        return self._rows[self._slots(0, 0)]

    def _slots(self, seed: int, epoch: int) -> Longs:
        """Which of the training songs gives each phrase."""
        counts_S = self._counts_S.copy()
        if self._balanced is not None:
            offsets = np.random.default_rng([seed, epoch, _BALANCE]).random(len(self._balanced))
            for (songs, expected), offset in zip(self._balanced, offsets, strict=True):
                # Systematic sampling: each song gets its expected number of phrases, rounded down
                # or up so that the average and the sum are exact.
                total = round(float(expected.sum()))
                edges = np.floor(np.r_[0.0, np.cumsum(expected)] + offset).astype(np.int64)
                edges = np.minimum(edges, total)  # sums of fractions are not exact
                edges[-1] = total
                counts_S[songs] = np.diff(edges)
        return np.repeat(np.arange(len(self._rows)), counts_S)

    def epoch(self, seed: int, epoch: int) -> Phrases:
        """The phrases of an epoch."""
        slot = self._slots(seed, epoch)
        n_starts = self._n_starts_S[slot]
        pick = (np.random.default_rng([seed, epoch]).random(len(slot)) * n_starts).astype(np.int64)
        chosen = self._first_start_S[slot] + pick
        first = self._starts[chosen].astype(np.int64)
        if self._bars is None:
            end = self._ends[chosen]
        else:
            low, high = self._bars
            bars = np.random.default_rng([seed, epoch, _BARS]).integers(low, high + 1, len(slot))
            # Silent throughout: the phrase begins at the next bar with an onset.
            first = np.where((first >= pick) & (first < pick + bars), pick, first)
            first = np.where(bars >= n_starts, 0, first)  # one phrase holds the whole song
            end = np.minimum(first + bars, n_starts)
        return Phrases(self._rows[slot], first, end, self._keys(seed, epoch, slot))

    def _keys(self, seed: int, epoch: int, slot: Longs) -> Keys | None:
        if self._changed_S is None:
            return None
        stream = np.random.default_rng([seed, epoch, _KEYS])
        keys = stream.integers(1, 2**64 - 1, len(slot), np.uint64, endpoint=True)
        changed = np.random.default_rng([seed, epoch, _CHANGED]).random(len(slot))
        return np.where(changed < self._changed_S[slot], keys, np.uint64(0))


def _balanced(counts_S: Longs, balance: Balance) -> list[tuple[Longs, Floats]]:
    """For each class its songs, and the phrases that each of them is to give on average.

    They sum to a whole number for each class, and over the classes to what ``counts_S`` does.
    """
    known = balance.class_S != UNKNOWN
    classes, of_song = np.unique(balance.class_S[known], return_inverse=True)
    if len(classes) == 0:
        return []
    phrases_C = np.bincount(of_song, counts_S[known], len(classes))
    wanted_C = (1 - balance.share) * phrases_C + balance.share * phrases_C.sum() / len(classes)
    whole_C = np.floor(wanted_C)
    # The largest remainders get what is left of the total.
    left = round(phrases_C.sum() - whole_C.sum())
    whole_C[np.argsort(whole_C - wanted_C, kind="stable")[:left]] += 1
    songs_C = [np.flatnonzero(balance.class_S == class_) for class_ in classes]
    return [
        (songs, counts_S[songs] * (whole / phrases))
        for songs, whole, phrases in zip(songs_C, whole_C, phrases_C, strict=True)
    ]


@dataclass(frozen=True)
class PlannedBatch:
    """The phrases of one batch, and the totals of its optimizer step.

    ``step_counts`` has for each label the phrases of each class in the step, shape (C,);
    ``step_batches`` and ``step_size`` are those of :class:`~midigenre.spec.Batch`.
    """

    phrases: Phrases
    step_counts: Mapping[str, NDArray[np.float32]]
    step_batches: int
    step_size: int


class BatchSampler(Sampler[PlannedBatch]):
    """Batches of an epoch in a random order that depends on the seed and the epoch only.

    With several processes (``world``) each takes every world-th batch; for training all take
    equally many.

    Args:
        draw: ``draw(epoch)`` gives the phrases of that epoch, as many in each.
        labels: Class index of each *song* for each label.
        n_classes: Number of classes of each label.
        batch_phrases: Most phrases in a batch.
        shuffle_seed: Seed of the order; None keeps the order of ``draw``.
        accumulate: Batches that one optimizer step accumulates; None for losses that are to be
            summed over the whole epoch (validation).
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(
        self,
        draw: Callable[[int], Phrases],
        labels: Mapping[str, Longs],
        n_classes: Mapping[str, int],
        batch_phrases: int,
        shuffle_seed: int | None = None,
        accumulate: int | None = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._draw, self._labels, self._n_classes = draw, labels, n_classes
        self._batch_phrases, self._shuffle_seed = batch_phrases, shuffle_seed
        self._accumulate, self._rank, self._world = accumulate, rank, world
        self._planned: tuple[int, list[PlannedBatch]] | None = None
        self._done = (0, 0)
        self.epoch = 0

    @property
    def sampler(self) -> BatchSampler:
        """Itself: Lightning calls ``set_epoch`` on the batch sampler's ``sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches come next."""
        self.epoch = epoch

    def resume(self, epoch: int, n_done: int) -> None:
        """Resumes in an epoch whose first ``n_done`` batches of this process are done."""
        self.epoch, self._done = epoch, (epoch, n_done)

    def __len__(self) -> int:
        return len(self._plan())

    def __iter__(self) -> Iterator[PlannedBatch]:
        epoch, n_done = self._done
        yield from self._plan()[n_done if epoch == self.epoch else 0 :]

    def _plan(self) -> list[PlannedBatch]:
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = (self.epoch, self._plan_epoch(self.epoch))
        return self._planned[1]

    def _plan_epoch(self, epoch: int) -> list[PlannedBatch]:
        phrases, size = self._draw(epoch), self._batch_phrases
        if self._shuffle_seed is not None:
            stream = np.random.default_rng([self._shuffle_seed, epoch, _ORDER])
            phrases = phrases.select(stream.permutation(len(phrases)))
        batches = [phrases.select(slice(i, i + size)) for i in range(0, len(phrases), size)]
        if self._accumulate is None:  # nothing divides a loss that is summed
            in_step, step_batches, processes = len(batches), 1, 1
        else:  # gradients are averaged over the processes
            in_step, step_batches = self._accumulate * self._world, self._accumulate
            processes = self._world
            batches = batches[: len(batches) // processes * processes]
        planned: list[PlannedBatch] = []
        for begin in range(0, len(batches), in_step or 1):
            step = batches[begin : begin + in_step]
            songs = np.concatenate([batch.song for batch in step])
            counts = {}
            for label, indices in self._labels.items():
                known = indices[songs][indices[songs] != UNKNOWN]
                n_C = np.bincount(known, minlength=self._n_classes[label]).astype(np.float32)
                counts[label] = n_C / np.float32(processes)
            own = step[self._rank :: self._world]
            step_size = 1 if self._accumulate is None else len(own)
            planned += [PlannedBatch(batch, counts, step_batches, step_size) for batch in own]
        return planned


class PhraseDataset(Dataset[Batch]):
    """Reads planned batches; a worker process opens the shards for itself.

    ``labels`` has the class index of each *song*; ``augment`` changes the phrases that have keys.
    """

    def __init__(
        self,
        reader: PhraseReader,
        labels: Mapping[str, Longs],
        augment: PhraseAugmenter | None = None,
    ) -> None:
        self._reader, self._labels, self._augment = reader, labels, augment

    def __getitem__(self, planned: PlannedBatch) -> Batch:
        phrases = planned.phrases
        if self._augment is not None and phrases.key is not None:
            ids = self._augment.read(self._reader, phrases)
        else:
            ids = [self._reader(*where)[0] for where in phrases.places()]
        labels = {label: indices[phrases.song] for label, indices in self._labels.items()}
        return replace(
            Batch.from_phrases(ids, labels, phrases.song, phrases.first),
            step_counts={k: torch.from_numpy(v) for k, v in planned.step_counts.items()},
            step_batches=planned.step_batches,
            step_size=planned.step_size,
        )

    # The DataLoader hands a whole planned batch to this method, and what it gives to `collate_fn`.
    __getitems__ = __getitem__
