"""Which phrases an epoch of training reads, and in which batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from midigenre.arrays import Floats, Ints, Keys, Longs
from midigenre.data.augment.tokens import PhraseAugmenter
from midigenre.data.phrases import PhraseLength, PhraseReader, Phrases, chain, phrase_ends
from midigenre.data.shards import SongSource
from midigenre.spec import UNKNOWN, Batch

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
        starts, ends = [np.zeros(0, np.int32 if bars else np.int64)], [np.zeros(0, np.int64)]
        for row in rows.tolist():
            onsets = songs.bar_onsets(row)
            of_bar = phrase_ends(songs, row, length)
            counts.append(phrases_per_song or len(chain(of_bar)))
            if bars:
                starts.append(_next_filled(onsets))
            else:
                first, end = _filled_starts(onsets, of_bar)
                starts.append(first)
                ends.append(end)
        self._bars = bars
        self._rows = rows
        self._changed_S = changed_S
        n_starts = [len(of) for of in starts[1:]]
        self._starts, self._ends = np.concatenate(starts), np.concatenate(ends)
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

    def _keys(self, seed: int, epoch: int, slot: Longs) -> Keys | None:
        if self._changed_S is None:
            return None
        stream = np.random.default_rng([seed, epoch, _KEYS])
        keys = stream.integers(1, 2**64 - 1, len(slot), np.uint64, endpoint=True)
        changed = np.random.default_rng([seed, epoch, _CHANGED]).random(len(slot))
        return np.where(changed < self._changed_S[slot], keys, np.uint64(0))


def _filled_starts(onsets: Ints, of_bar: Longs) -> tuple[Longs, Longs]:
    """First bars of a song's phrases of a fixed length, and the bars after their last ones."""
    total = np.r_[0, np.cumsum(onsets)]
    cut = np.minimum(of_bar, len(of_bar))
    # Phrases that the end of the song cuts short are drawn too: evaluation meets them.
    valid = np.flatnonzero(total[cut] > total[:-1])
    if of_bar[0] >= len(of_bar):  # one phrase holds the whole song
        valid = valid[:1]
    return valid, cut[valid]


def _next_filled(onsets: Ints) -> Ints:
    """For each bar the first one from there on with an onset, else the song's last such one."""
    filled = np.flatnonzero(onsets)
    following = np.searchsorted(filled, np.arange(len(onsets)))
    return filled.take(following, mode="clip").astype(np.int32)


def _balanced(counts_S: Longs, balance: Balance) -> dict[int, Floats]:
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


@dataclass(frozen=True)
class PlannedBatch:
    """The phrases of one batch, and what its optimizer step holds in all.

    Attributes:
        phrases: The phrases.
        step_counts: For each label, phrases of each class in the optimizer step, shape (C,).
        step_batches: See :class:`~midigenre.spec.Batch`.
        step_size: Likewise.
    """

    phrases: Phrases
    step_counts: Mapping[str, NDArray[np.float32]]
    step_batches: int
    step_size: int


def group_by_budget(lengths: Longs, batch_phrases: int, batch_tokens: int | None) -> list[Longs]:
    """Consecutive runs of indices that make a batch.

    Args:
        lengths: Steps of each phrase, in the order in which they are to be batched.
        batch_phrases: Most phrases in a batch.
        batch_tokens: Most steps in a batch, None for no such bound; a phrase that is longer by
            itself makes a batch alone.
    """
    groups: list[Longs] = []
    begin, tokens = 0, 0
    for i, length in enumerate(lengths.tolist()):
        full = i - begin >= batch_phrases or (
            batch_tokens is not None and i > begin and tokens + length > batch_tokens
        )
        if full:
            groups.append(np.arange(begin, i))
            begin, tokens = i, 0
        tokens += length
    if begin < len(lengths):
        groups.append(np.arange(begin, len(lengths)))
    return groups


def exactly(groups: list[Longs], n: int) -> list[Longs]:
    """The first ``n`` groups; where there are fewer, the fullest are halved until there are.

    Groups of one phrase cannot be halved: there may then be fewer than ``n``.
    """
    groups = groups[:n]
    while len(groups) < n:
        fullest = max(range(len(groups)), key=lambda i: len(groups[i]), default=None)
        if fullest is None or len(groups[fullest]) < 2:
            break
        middle = len(groups[fullest]) // 2
        halves = groups[fullest][:middle], groups[fullest][middle:]
        groups[fullest : fullest + 1] = halves
    return groups


class BatchSampler(Sampler[PlannedBatch]):
    """Batches of an epoch in a random order that depends on the seed and the epoch only.

    With several processes (``world``) each takes every world-th batch. For training all take
    equally many, and every epoch has as many as epoch 0: the trainer counts them once. Where
    ``batch_tokens`` makes more, the last ones are left out; where it makes fewer, the fullest are
    halved.

    Args:
        draw: ``draw(epoch)`` gives the phrases of that epoch.
        reader: Tells their lengths.
        labels: Class index of each *song* for each label.
        n_classes: Number of classes of each label.
        batch_phrases: Most phrases in a batch.
        batch_tokens: Most steps in a batch, or None.
        shuffle_seed: Seed of the order; None keeps the order of ``draw``.
        accumulate: Batches that one optimizer step accumulates; None for losses that are to be
            summed over the whole epoch (validation).
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(
        self,
        draw: Callable[[int], Phrases],
        reader: PhraseReader,
        labels: Mapping[str, Longs],
        n_classes: Mapping[str, int],
        batch_phrases: int,
        batch_tokens: int | None = None,
        shuffle_seed: int | None = None,
        accumulate: int | None = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._draw, self._reader = draw, reader
        self._labels, self._n_classes = labels, n_classes
        self._batch_phrases, self._batch_tokens = batch_phrases, batch_tokens
        self._shuffle_seed = shuffle_seed
        self._accumulate = accumulate
        self._rank, self._world = rank, world
        self._planned: tuple[int, list[PlannedBatch]] | None = None
        self._n_batches: int | None = None
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
        """Goes on in an epoch whose first ``n_done`` batches of this process are done."""
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

    def _group(self, epoch: int) -> tuple[Phrases, list[Longs]]:
        """The phrases of an epoch in their order, and which of them make a batch."""
        phrases = self._draw(epoch)
        if self._shuffle_seed is not None:
            # The third number keeps this stream apart from the one that draws the phrases.
            order = np.random.default_rng([self._shuffle_seed, epoch, 1]).permutation(len(phrases))
            phrases = phrases.select(order)
        lengths = self._reader.lengths(phrases)
        return phrases, group_by_budget(lengths, self._batch_phrases, self._batch_tokens)

    def _plan_epoch(self, epoch: int) -> list[PlannedBatch]:
        phrases, groups = self._group(epoch)
        if self._accumulate is not None:
            if self._n_batches is None:
                first = groups if epoch == 0 else self._group(0)[1]
                self._n_batches = len(first) // self._world * self._world
            groups = exactly(groups, self._n_batches)
        planned: list[PlannedBatch] = []
        in_step = len(groups) if self._accumulate is None else self._accumulate * self._world
        # Nothing divides a loss that is summed; gradients are averaged over the processes.
        step_batches = self._accumulate or 1
        shares = 1 if self._accumulate is None else self._world
        for begin in range(0, len(groups), in_step or 1):
            step = groups[begin : begin + in_step]
            songs = phrases.song[np.concatenate(step)]
            counts = {
                label: np.bincount(
                    indices[songs][indices[songs] != UNKNOWN], minlength=self._n_classes[label]
                ).astype(np.float32)
                / np.float32(shares)
                for label, indices in self._labels.items()
            }
            own = step[self._rank :: self._world]
            step_size = 1 if self._accumulate is None else len(own)
            planned += [
                PlannedBatch(phrases.select(group), counts, step_batches, step_size)
                for group in own
            ]
        return planned


class PhraseDataset(Dataset[Batch]):
    """Reads planned batches; a worker process opens the shards for itself.

    Args:
        reader: Reads phrases.
        labels: Class index of each *song* for each label.
        augment: Changes the phrases that have keys; None changes nothing.
    """

    def __init__(
        self,
        reader: PhraseReader,
        labels: Mapping[str, Longs],
        augment: PhraseAugmenter | None = None,
    ) -> None:
        self._reader = reader
        self._labels = labels
        self._augment = augment

    def __getitem__(self, planned: PlannedBatch) -> Batch:
        phrases = planned.phrases
        if self._augment is not None and phrases.key is not None:
            ids = self._augment.read(self._reader, phrases)
        else:
            ids = [
                self._reader(song, first, end)[0]
                for song, first, end in zip(
                    phrases.song.tolist(), phrases.first.tolist(), phrases.end.tolist(), strict=True
                )
            ]
        labels = {label: indices[phrases.song] for label, indices in self._labels.items()}
        return collate(
            ids, labels, phrases, planned.step_counts, planned.step_batches, planned.step_size
        )

    # The DataLoader hands a whole planned batch to this method, and what it gives to `collate_fn`.
    __getitems__ = __getitem__


def collate(
    ids: Sequence[Longs],
    labels: Mapping[str, Longs],
    phrases: Phrases,
    step_counts: Mapping[str, NDArray[np.float32]] | None = None,
    step_batches: int = 1,
    step_size: int = 1,
) -> Batch:
    """Lays phrases end to end.

    Args:
        ids: Token ids of each phrase, shape (T, F).
        labels: Class index of each phrase for each label, shape (B,).
        phrases: Where the phrases come from.
        step_counts: See :class:`~midigenre.spec.Batch`.
        step_batches: See :class:`~midigenre.spec.Batch`.
        step_size: Likewise.
    """
    lengths = tuple(len(i) for i in ids)
    return Batch(
        ids_NF=torch.from_numpy(np.concatenate(ids)),
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32),
        lengths=lengths,
        labels={k: torch.from_numpy(np.asarray(v, np.int64)) for k, v in labels.items()},
        song_B=torch.from_numpy(np.asarray(phrases.song, np.int64)),
        start_B=torch.from_numpy(np.asarray(phrases.first, np.int64)),
        step_counts={k: torch.from_numpy(v) for k, v in (step_counts or {}).items()},
        step_batches=step_batches,
        step_size=step_size,
    )
