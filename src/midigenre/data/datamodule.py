"""Phrases for Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from midigenre.data.batches import BatchSampler, PhraseDataset
from midigenre.data.fold import Fold
from midigenre.data.phrases import (
    Longs,
    PhraseReader,
    Phrases,
    RandomStarts,
    consecutive,
    phrase_length,
)
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.spec import UNKNOWN, Batch


class PhraseDataModule(L.LightningDataModule):
    """Streams phrases of prepared shards as packed batches.

    Training draws phrases at random bars, a function of (seed, epoch, index); validation and test
    read every non-overlapping phrase once.

    Args:
        shards: Folder of the prepared corpus.
        phrase_bars: Bars in a phrase; None where ``phrase_seconds`` says its length.
        phrase_seconds: Length of a phrase in seconds (see
            :class:`~midigenre.data.phrases.Seconds`), else None.
        max_tokens: Longest phrase in steps; longer ones end at the last whole bar that fits.
        batch_phrases: Most phrases in a training batch.
        batch_tokens: Most steps in a training batch, None for no bound.
        eval_batch_phrases: The same for validation and test.
        marks: BOS and EOS where a phrase begins or ends its song.
        phrases_per_song: Training phrases of each song in an epoch; None for as many as fit in it
            end to end.
        num_workers: Processes that read ahead; 0 reads in the training process.
        pin_memory: Page-locked batches, for GPUs.
        seed: Seed of the training phrases and their order.
        fold: ``i/n`` for the training and validation songs of one share
            (:class:`~midigenre.data.fold.Fold`); None for all. Nobody trains on the test songs:
            they are the same in every fold, so that scores compare.

    Raises:
        UserError: A setting is out of range, or the shards cannot be used.
    """

    def __init__(
        self,
        shards: str | Path,
        phrase_bars: int | None = 4,
        phrase_seconds: float | None = None,
        max_tokens: int = 1024,
        batch_phrases: int = 32,
        batch_tokens: int | None = None,
        eval_batch_phrases: int = 64,
        marks: bool = False,
        phrases_per_song: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        fold: str | None = None,
    ) -> None:
        super().__init__()
        self.shards = ShardSet(Path(shards))
        length = {"phrase_bars": phrase_bars, "phrase_seconds": phrase_seconds}
        self.length = phrase_length(length, self.shards.tokens)
        for name, value in (
            ("max_tokens", max_tokens),
            ("batch_phrases", batch_phrases),
            ("eval_batch_phrases", eval_batch_phrases),
            ("batch_tokens", batch_tokens),
            ("phrases_per_song", phrases_per_song),
        ):
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be 1 or more, got {value}")
        if num_workers < 0:
            raise UserError(f"data.num_workers must be 0 or more, got {num_workers}")
        self.fold = None if fold is None else Fold.of(fold)
        self.max_tokens = max_tokens
        self.batch_phrases, self.batch_tokens = batch_phrases, batch_tokens
        self.eval_batch_phrases = eval_batch_phrases
        self.phrases_per_song = phrases_per_song
        self.num_workers, self.pin_memory, self.seed = num_workers, pin_memory, seed
        self._done = (0, 0)
        self.labels = self.shards.label_indices()
        self.reader = PhraseReader(self.shards, self.shards.tokens, max_tokens, marks)

    def rows(self, split: str | None) -> Longs:
        """Indices of the songs of a split, or of all splits for None, that the fold leaves."""
        rows = self.shards.rows(split)
        if self.fold is None:
            return rows
        here = self.fold.mask(self.shards.manifest)
        here[self.shards.rows("test")] = True
        return rows[here[rows]]

    def phrases(self, split: str | None) -> Phrases:
        """All non-overlapping phrases of a split (None for all songs), in order."""
        return consecutive(self.shards, self.rows(split), self.length)

    def classes_lost(self) -> dict[str, list[str]]:
        """For each label the classes of the training songs of which the fold leaves none."""
        before, after = self.shards.rows("train"), self.rows("train")
        return {
            label: [
                self.shards.labels.classes[label][i]
                for i in np.setdiff1d(indices[before], [*indices[after], UNKNOWN])
            ]
            for label, indices in self.labels.items()
        }

    def class_counts(self, split: str = "train") -> dict[str, NDArray[np.int64]]:
        """Phrases of each class for each label, shape (C,), over an epoch of a split."""
        songs = (self._random_starts() if split == "train" else self.phrases(split)).song
        return {
            label: np.bincount(
                indices[songs][indices[songs] >= 0],
                minlength=len(self.shards.labels.classes[label]),
            )
            for label, indices in self.labels.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """How far training is: Lightning begins an epoch's loader at its first batch."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epochs = loop.epoch_progress.state_dict()["current"]
        batches = loop.epoch_loop.batch_progress.state_dict()["current"]
        inside = epochs["ready"] > epochs["processed"]
        return {"epoch": epochs["processed"], "n_done": batches["processed"] if inside else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on there."""
        self._done = (state_dict["epoch"], state_dict["n_done"])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Random-start phrases of the training songs."""
        starts = self._random_starts()
        if len(starts) == 0:
            raise UserError(
                f"{self.shards.folder}: no song in the training split{self._of_fold()}; "
                "use more songs"
            )
        trainer = self.trainer
        return self._loader(
            lambda epoch: starts.epoch(self.seed, epoch),
            self.batch_phrases,
            self.batch_tokens,
            done=self._done,
            shuffle_seed=self.seed,
            accumulate=trainer.accumulate_grad_batches if trainer else 1,
            **_processes(trainer),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """All phrases of the validation songs; several processes share them."""
        return self.eval_dataloader("val", **_processes(self.trainer))

    def test_dataloader(self) -> DataLoader[Batch]:
        """All phrases of the test songs."""
        return self.eval_dataloader("test")

    def eval_dataloader(
        self, split: str | None, rank: int = 0, world: int = 1
    ) -> DataLoader[Batch]:
        """All non-overlapping phrases of a split (None for all songs), in order.

        With ``world`` above 1, every world-th batch from ``rank`` on.
        """
        phrases = self.phrases(split)
        if len(phrases) == 0:
            raise UserError(
                f"{self.shards.folder}: no song in the {split} split{self._of_fold()}; prepare "
                "more songs (each class needs three groups to be in every split), or give some "
                f"split={split} where the corpus gives the splits"
            )
        return self._loader(
            lambda epoch: phrases,
            # A process without a batch would not take part in what the others reduce.
            min(self.eval_batch_phrases, max(1, len(phrases) // world)),
            None,
            accumulate=None,
            rank=rank,
            world=world,
        )

    def _random_starts(self) -> RandomStarts:
        return RandomStarts(self.shards, self.rows("train"), self.length, self.phrases_per_song)

    def _of_fold(self) -> str:
        return "" if self.fold is None else f" (fold={self.fold})"

    def _loader(
        self,
        draw: Any,
        batch_phrases: int,
        batch_tokens: int | None,
        done: tuple[int, int] = (0, 0),
        **plan: Any,
    ) -> DataLoader[Batch]:
        sampler = BatchSampler(
            draw,
            self.reader,
            self.labels,
            {label: len(names) for label, names in self.shards.labels.classes.items()},
            batch_phrases,
            batch_tokens,
            **plan,
        )
        sampler.resume(*done)
        return DataLoader(
            PhraseDataset(self.reader, self.labels),
            # A sampler of planned batches with `batch_size=None` would lose Lightning's
            # `set_epoch`; as the batch sampler it is handed on whole to `__getitems__`.
            batch_sampler=sampler,  # type: ignore[arg-type]
            collate_fn=_whole,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
        )


def _processes(trainer: L.Trainer | None) -> dict[str, int]:
    if trainer is None:
        return {}
    return {"rank": trainer.global_rank, "world": trainer.world_size}


def _whole(batch: Any) -> Any:
    return batch
