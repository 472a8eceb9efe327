"""Phrases for Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from midigenre.data.batches import BatchSampler, PhraseDataset
from midigenre.data.phrases import PhraseReader, RandomStarts, consecutive
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.spec import Batch, TokenSpec


class PhraseDataModule(L.LightningDataModule):
    """Streams phrases of prepared shards as packed batches.

    Training draws phrases at random bars, a function of (seed, epoch, index); validation and test
    read every non-overlapping phrase once.

    Args:
        shards: Folder of the prepared corpus.
        phrase_bars: Bars in a phrase.
        max_tokens: Longest phrase in steps; longer ones end at the last whole bar that fits.
        batch_phrases: Most phrases in a training batch.
        batch_tokens: Most steps in a training batch, None for no bound.
        eval_batch_phrases: The same for validation and test.
        phrases_per_song: Training phrases of each song in an epoch; None for as many as fit in it
            end to end.
        num_workers: Processes that read ahead; 0 reads in the training process.
        pin_memory: Page-locked batches, for GPUs.
        seed: Seed of the training phrases and their order.

    Raises:
        UserError: A setting is out of range, or the shards cannot be used.
    """

    def __init__(
        self,
        shards: str | Path,
        phrase_bars: int = 4,
        max_tokens: int = 1024,
        batch_phrases: int = 32,
        batch_tokens: int | None = None,
        eval_batch_phrases: int = 64,
        phrases_per_song: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shards = ShardSet(Path(shards))
        check_phrases(self.shards.tokens, phrase_bars, max_tokens)
        for name, value in (
            ("batch_phrases", batch_phrases),
            ("eval_batch_phrases", eval_batch_phrases),
            ("batch_tokens", batch_tokens),
            ("phrases_per_song", phrases_per_song),
        ):
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be 1 or more, got {value}")
        if num_workers < 0:
            raise UserError(f"data.num_workers must be 0 or more, got {num_workers}")
        self.phrase_bars, self.max_tokens = phrase_bars, max_tokens
        self.batch_phrases, self.batch_tokens = batch_phrases, batch_tokens
        self.eval_batch_phrases = eval_batch_phrases
        self.phrases_per_song = phrases_per_song
        self.num_workers, self.pin_memory, self.seed = num_workers, pin_memory, seed
        self.labels = self.shards.label_indices()
        self.reader = PhraseReader(self.shards, self.shards.tokens, max_tokens)

    def class_counts(self, split: str = "train") -> dict[str, NDArray[np.int64]]:
        """Phrases of each class for each label, shape (C,), over an epoch of a split."""
        rows = self.shards.rows(split)
        songs = (
            self._random_starts().song
            if split == "train"
            else consecutive(self.shards, rows, self.phrase_bars).song
        )
        return {
            label: np.bincount(
                indices[songs][indices[songs] >= 0],
                minlength=len(self.shards.labels.classes[label]),
            )
            for label, indices in self.labels.items()
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Random-start phrases of the training songs."""
        starts = self._random_starts()
        if len(starts) == 0:
            raise UserError(f"{self.shards.folder}: no song in the training split; use more songs")
        trainer = self.trainer
        return self._loader(
            lambda epoch: starts.epoch(self.seed, epoch),
            self.batch_phrases,
            self.batch_tokens,
            shuffle_seed=self.seed,
            accumulate=trainer.accumulate_grad_batches if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """All phrases of the validation songs."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """All phrases of the test songs."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str | None) -> DataLoader[Batch]:
        """All non-overlapping phrases of a split (None for all songs), in order."""
        phrases = consecutive(self.shards, self.shards.rows(split), self.phrase_bars)
        if len(phrases) == 0:
            raise UserError(
                f"{self.shards.folder}: no song in the {split} split; prepare more songs "
                "(each class needs three groups to be in every split)"
            )
        return self._loader(lambda epoch: phrases, self.eval_batch_phrases, None, accumulate=None)

    def _random_starts(self) -> RandomStarts:
        return RandomStarts(
            self.shards, self.shards.rows("train"), self.phrase_bars, self.phrases_per_song
        )

    def _loader(
        self, draw: Any, batch_phrases: int, batch_tokens: int | None, **plan: Any
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


def check_phrases(tokens: TokenSpec, phrase_bars: int, max_tokens: int) -> None:
    """Refuses phrase settings that the vocabulary cannot hold.

    Raises:
        UserError: ``phrase_bars`` or ``max_tokens`` is out of range.
    """
    if not 1 <= phrase_bars <= tokens.max_bars:
        raise UserError(
            f"data.phrase_bars must lie in 1 to {tokens.max_bars} (tokenizer.max_bars), "
            f"got {phrase_bars}"
        )
    if max_tokens < 1:
        raise UserError(f"data.max_tokens must be 1 or more, got {max_tokens}")


def _whole(batch: Any) -> Any:
    return batch
