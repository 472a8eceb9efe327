"""Phrases for Lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from midigenre.arrays import Longs
from midigenre.data.augment import AugmentSettings
from midigenre.data.augment.tokens import PhraseAugmenter
from midigenre.data.phrases import PhraseReader, Phrases, at_most, consecutive, phrase_length
from midigenre.data.sampler import Balance, BatchSampler, PhraseDataset, RandomStarts
from midigenre.data.shards import ShardSet
from midigenre.data.splits import Protocol, Subset
from midigenre.errors import UserError
from midigenre.spec import UNKNOWN, Batch


@dataclass(frozen=True)
class DataSettings:
    """The settings of ``conf/data``, where each of them is explained.

    Raises:
        UserError: A setting is out of range.
    """

    phrase_bars: int | None = 4
    phrase_seconds: float | None = None
    max_tokens: int = 1024
    batch_phrases: int = 32
    eval_batch_phrases: int = 64
    marks: bool = False
    phrases_per_song: int | None = None
    val_phrases_per_song: int | None = None
    balance: float = 0.0
    unlabelled: bool = True
    num_workers: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch_phrases", "eval_batch_phrases", "phrases_per_song",
                     "val_phrases_per_song"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be 1 or more, got {value}")
        if self.num_workers < 0:
            raise UserError(f"data.num_workers must be 0 or more, got {self.num_workers}")
        if not 0 <= self.balance <= 1:
            raise UserError(f"data.balance must lie in 0 to 1, got {self.balance}")


class PhraseDataModule(L.LightningDataModule):
    """Streams phrases of prepared shards as packed batches.

    Training draws phrases at random bars, a function of (seed, epoch, index); validation and test
    read every non-overlapping phrase once.

    Args:
        shards: The prepared corpus, or its folder.
        seed: Seed of the training phrases and their order.
        fold: ``i/n`` for the training and validation songs of one share
            (:class:`~midigenre.data.splits.Subset`); None for all. No share trains on the test
            songs: they are the same in every share, so that scores compare.
        task_labels: Labels that the task learns, the main one first, for ``balance`` and
            ``unlabelled``; none keeps all songs.
        augment: How training phrases are changed; None for not at all.
        protocol: The part that is trained and tested here, as
            :func:`~midigenre.data.splits.split_settings` gives it; None for the prepared split.
        **data: See :class:`DataSettings`.

    Raises:
        UserError: A setting is out of range, or the shards cannot be used.
    """

    def __init__(
        self,
        shards: ShardSet | str | Path,
        *,
        seed: int = 0,
        fold: str | None = None,
        task_labels: Sequence[str] = (),
        augment: AugmentSettings | None = None,
        protocol: Mapping[str, Any] | None = None,
        **data: Any,
    ) -> None:
        super().__init__()
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet(Path(shards))
        self.settings = settings = DataSettings(**data)
        tokens = self.shards.tokens
        self.length = phrase_length(vars(settings), tokens)
        self.seed, self.task_labels, self.augment = seed, tuple(task_labels), augment
        self.fold = None if fold is None else Subset.from_config(fold)
        if augment is not None:
            augment.check(tokens)
        self.protocol_settings = protocol
        protocol_ = Protocol.from_config(protocol)
        self.part = None if protocol_ is None else protocol_.split(self.shards)
        labels = self.shards.label_indices()
        self.labels = labels if self.part is None else self.part.visible(labels)
        if settings.balance and not task_labels:
            raise UserError(
                f"data.balance={settings.balance}: the task has no label whose classes could be "
                "balanced; set data.balance=0"
            )
        self.reader = PhraseReader(self.shards, tokens, settings.max_tokens, settings.marks)
        self._done = (0, 0)

    def split_rows(self, split: str | None) -> Longs:
        """Indices of the songs of a split before the fold: of the protocol's part, if any."""
        if self.part is None or split is None:
            return self.shards.rows(split)
        return self.part.rows[split]

    def rows(self, split: str | None) -> Longs:
        """Indices of the fold's songs of a split, or of all splits for None."""
        rows = self.split_rows(split)
        if self.fold is None:
            return rows
        here = self.fold.mask(self.shards.manifest)
        here[self.split_rows("test")] = True
        return rows[here[rows]]

    def phrases(self, split: str | None) -> Phrases:
        """All non-overlapping phrases of a split (None for all songs), in order."""
        return consecutive(self.shards, self.rows(split), self.length)

    def classes_lost(self) -> dict[str, list[str]]:
        """For each label the classes that have training songs, but none in the fold."""
        before, after = self.split_rows("train"), self.rows("train")
        return {
            label: [
                self.shards.labels.classes[label][i]
                for i in np.setdiff1d(indices[before], [*indices[after], UNKNOWN])
            ]
            for label, indices in self.labels.items()
        }

    def class_counts(self, split: str = "train") -> dict[str, Longs]:
        """Phrases of each class for each label, shape (C,), over an epoch of a split.

        With ``balance`` those of its own label are the same in every epoch, those of other labels
        nearly so.
        """
        songs = (self._random_starts() if split == "train" else self.phrases(split)).song
        counts = {}
        for label, indices in self.labels.items():
            known = indices[songs][indices[songs] != UNKNOWN]
            counts[label] = np.bincount(known, minlength=len(self.shards.labels.classes[label]))
        return counts

    def state_dict(self) -> dict[str, Any]:
        """How far training is: Lightning begins an epoch's loader at its first batch."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epochs = loop.epoch_progress.state_dict()["current"]
        batches = loop.epoch_loop.batch_progress.state_dict()
        n_done = batches["current"]["processed"]
        # Not by `processed` of the epochs: that is already ahead where training stops inside one.
        if n_done and not batches["is_last_batch"]:
            return {"epoch": epochs["ready"] - 1, "n_done": n_done}
        return {"epoch": epochs["processed"], "n_done": 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes there."""
        self._done = (state_dict["epoch"], state_dict["n_done"])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Random-start phrases of the training songs."""
        starts, trainer = self._random_starts(), self.trainer
        if len(starts) == 0:
            raise UserError(
                f"{self.shards.folder}: no song in the training split{self._of_fold()}; "
                "use more songs"
            )
        sampler = BatchSampler(
            lambda epoch: starts.epoch(self.seed, epoch),
            self.labels,
            self._n_classes(),
            self.settings.batch_phrases,
            shuffle_seed=self.seed,
            accumulate=trainer.accumulate_grad_batches if trainer else 1,
            **_processes(trainer),
        )
        sampler.resume(*self._done)
        return self._loader(sampler, self.augment)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The phrases of the validation songs; several processes share them."""
        per_song = self.settings.val_phrases_per_song
        return self.eval_dataloader("val", per_song=per_song, **_processes(self.trainer))

    def test_dataloader(self) -> DataLoader[Batch]:
        """All phrases of the test songs."""
        return self.eval_dataloader("test")

    def eval_dataloader(
        self, split: str | None, rank: int = 0, world: int = 1, per_song: int | None = None
    ) -> DataLoader[Batch]:
        """All non-overlapping phrases of a split (None for all songs), in order.

        With ``world`` above 1, every world-th batch from ``rank`` on; with ``per_song`` at most
        that many of each song.
        """
        phrases = self.phrases(split)
        if per_song is not None:
            phrases = at_most(phrases, per_song)
        if len(phrases) == 0:
            raise UserError(
                f"{self.shards.folder}: no song in the {split} split{self._of_fold()}; prepare "
                "more songs (each class needs three groups to be in every split), or give some "
                f"split={split} where the corpus gives the splits"
            )
        # A process without a batch would not take part in what the others reduce.
        size = min(self.settings.eval_batch_phrases, max(1, len(phrases) // world))
        sampler = BatchSampler(
            lambda epoch: phrases, self.labels, self._n_classes(), size,
            accumulate=None, rank=rank, world=world,
        )  # fmt: skip
        return self._loader(sampler)

    def _random_starts(self) -> RandomStarts:
        settings, augment, rows = self.settings, self.augment, self.rows("train")
        if not settings.unlabelled and self.task_labels:
            known = [self.labels[label][rows] != UNKNOWN for label in self.task_labels]
            rows = rows[np.any(known, axis=0)]
        balance = changed_S = None
        if settings.balance:
            balance = Balance(self.labels[self.task_labels[0]][rows], settings.balance)
        if augment and augment.changes:
            changed_S = augment.probabilities(rows, self.labels)
        return RandomStarts(
            self.shards, rows, self.length, settings.phrases_per_song,
            bars=augment.phrase_bars if augment else None, balance=balance, changed_S=changed_S,
        )  # fmt: skip

    def _of_fold(self) -> str:
        return "" if self.fold is None else f" (fold={self.fold})"

    def _n_classes(self) -> dict[str, int]:
        return {label: len(names) for label, names in self.shards.labels.classes.items()}

    def _loader(
        self, sampler: BatchSampler, augment: AugmentSettings | None = None
    ) -> DataLoader[Batch]:
        augmenter = None
        if augment is not None and augment.changes:
            augmenter = PhraseAugmenter(self.shards.tokens, augment)
        return DataLoader(
            PhraseDataset(self.reader, self.labels, augmenter),
            # A sampler of planned batches with `batch_size=None` would lose Lightning's
            # `set_epoch`; as the batch sampler it is handed on whole to `__getitems__`.
            batch_sampler=sampler,  # type: ignore[arg-type]
            collate_fn=_whole,
            num_workers=self.settings.num_workers,
            persistent_workers=self.settings.num_workers > 0,
            pin_memory=self.settings.pin_memory,
        )


def _processes(trainer: L.Trainer | None) -> dict[str, int]:
    return {} if trainer is None else {"rank": trainer.global_rank, "world": trainer.world_size}


def _whole(batch: Any) -> Any:
    return batch
