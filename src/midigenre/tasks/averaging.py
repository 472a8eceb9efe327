"""Averaged weights: what a run validates, keeps as its best and tests."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from midigenre.errors import UserError


class AverageWeights(WeightAveraging):
    """An exponential moving average of the weights over the steps (Polyak and Juditsky 1992).

    Validation sees the average, and both checkpoints hold it as the model, so that what was
    validated is what is tested and used. Training goes on with its own weights, which are in the
    checkpoints too: a resumed run ends as if it had not been stopped.

    Lightning's own ``EMAWeightAveraging`` averages buffers as well: constants such as class weights
    would drift by rounding, and whole numbers would be cut. Here only what is trained is averaged.

    Args:
        decay: Share of the average that stays at a step, for instance 0.999; None for no averaging.
            Step t (from 0) takes ``min(decay, (1 + t) / (10 + t))``, or the first steps would hang
            on in short runs (TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``).

    Raises:
        ValueError: ``decay`` is not between 0 and 1.
    """

    def __init__(self, decay: float | None = None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, or be null (off), got {decay}")
        super().__init__(use_buffers=False)
        self.decay = decay

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the average's own copy of the model.

        Raises:
            UserError: The weights are sharded.
        """
        if self.decay is None or stage != "fit":
            return
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError(
                "callbacks.average.decay: sharded weights cannot be averaged; set "
                "callbacks.average.decay=null or another trainer"
            )
        self._average_model = AveragedModel(
            pl_module, device=pl_module.device, multi_avg_fn=self._average
        )

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, n_averaged: Any) -> None:
        # Torch copies the weights at the first call and asks from the second on.
        t = int(n_averaged)
        keep = min(self.decay or 0.0, (1 + t) / (10 + t))
        pairs = [(a, c) for a, c in zip(averaged, current, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in pairs], [c for _, c in pairs], 1 - keep)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every optimizer step, if at all."""
        return self._average_model is not None and step_idx is not None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the average in the model."""
        if self._average_model is not None:
            super().on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Nothing where it is off: checkpoints stay what they were."""
        return super().state_dict() if self._average_model is not None else {}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts the average where a model is read from; the weights in training go beside it."""
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes both back."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _swap_models(self, pl_module: L.LightningModule) -> None:
        """Swaps the parameters; buffers, such as what metrics count with, stay where they are."""
        assert self._average_model is not None
        for ours, theirs in self._pairs(pl_module):
            kept = ours.data.clone()
            ours.data.copy_(theirs.data)
            theirs.data.copy_(kept)

    def _copy_average_to_current(self, pl_module: L.LightningModule) -> None:
        for ours, theirs in self._pairs(pl_module):
            theirs.data.copy_(ours.data)

    def _pairs(self, pl_module: L.LightningModule) -> list[tuple[Tensor, Tensor]]:
        assert self._average_model is not None
        average = self._average_model.module.parameters()
        return list(zip(average, pl_module.parameters(), strict=True))
