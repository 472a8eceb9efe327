"""The training's progress bar."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, Timer

LEFT = "left"
"""What the bar calls the time until ``trainer.max_time`` is up."""


class TrainingBar(RichProgressBar):
    """Lightning's bar, which also counts down ``trainer.max_time``.

    Where only the clock ends the training (``trainer.max_epochs=-1``) it names no last epoch.
    """

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The time left as hours:minutes:seconds, then what is logged for the bar."""
        found: dict[str, Any] = super().get_metrics(trainer, pl_module)
        found.pop("v_num", None)
        seconds = [
            left
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None
        ]
        if not seconds:
            return found
        return {LEFT: str(timedelta(seconds=max(0, round(min(seconds)))))} | found

    def _get_train_description(self, current_epoch: int) -> str:
        description = super()._get_train_description(current_epoch)
        return f"{description.split('/')[0]:10}" if self.trainer.max_epochs == -1 else description
