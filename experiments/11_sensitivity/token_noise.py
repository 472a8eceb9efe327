"""The slides' noise: Gaussian noise on token ids, truncated to integers."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from midigenre.spec import Batch


class TokenNoise(Callback):
    """Adds Gaussian noise to the ids of every batch, in training and validation.

    An id is an integer, so that truncation leaves it where the noise is positive and takes one off
    where it is negative (0 stays 0): half of the ids become their neighbours in the vocabulary.
    Inputs and targets are both read from the noisy ids. The noise is a function of the seed, the
    step and the batch, so that a run that resumes has the same; every validation has the same.

    Args:
        seed: Of the noise.
        std: Standard deviation, in ids.
    """

    def __init__(self, seed: int, std: float = 0.1) -> None:
        self.seed, self.std = seed, std

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Before a step."""
        self._add(batch, 0, trainer.current_epoch, batch_idx)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Before a batch of the validation songs."""
        self._add(batch, 1, batch_idx)

    def _add(self, batch: Any, *key: int) -> None:
        random = torch.Generator().manual_seed(hash((self.seed, *key)) % 2**63)
        noise = torch.randn(batch.ids_NF.shape, generator=random) * self.std
        batch.ids_NF.copy_((batch.ids_NF + noise.to(batch.ids_NF.device)).trunc().long())
