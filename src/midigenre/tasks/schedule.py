"""Schedules of the learning rate that know how much time is left.

With ``trainer.max_time`` a run may end long before its last step. A schedule over steps alone would
never come to its end there, and the low rates at the end are what most of a schedule's gain is from
(Hägele et al. 2024, arXiv 2405.18392).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

NOMINAL_STEPS = 100_000
"""Length of a schedule that only the clock ends: its resolution, no number of steps."""

TimeShare = Callable[[], float]
"""Share of the training's time that is over, 0 to 1; it never falls."""


def time_share(trainer: L.Trainer) -> TimeShare | None:
    """How much of ``trainer.max_time`` is over, as Lightning's own Timer counts it.

    That is the time in the training loop, validation included, over all interruptions: the Timer's
    count is in the checkpoints. All processes are told the time of the first, or their rates
    would part.

    Args:
        trainer: The run's trainer.

    Returns:
        None where nothing bounds the time.
    """
    timers = [
        (callback, callback._duration)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and callback._duration is not None
    ]
    if not timers:
        return None

    def share() -> float:
        over = max(timer.time_elapsed() / max(limit, 1e-9) for timer, limit in timers)
        return float(trainer.strategy.broadcast(min(1.0, over)))

    return share


class TimedLR(LRScheduler):
    """A rate that follows the step and the clock.

    What is saved is the step alone: the clock has its own state, and a run that goes on with
    another ``trainer.max_time`` follows the new one.

    Args:
        optimizer: Whose rate.
        factor: ``(step, share of the time) -> rate over the peak``.
        share: The clock.
    """

    def __init__(
        self, optimizer: Optimizer, factor: Callable[[int, float], float], share: TimeShare
    ) -> None:
        self._factor, self._share = factor, share
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """The rate of each group for the coming step."""
        factor = self._factor(self.last_epoch, self._share())
        return [peak * factor for peak in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {k: v for k, v in super().state_dict().items() if k not in ("_factor", "_share")}


class OneCycle(OneCycleLR):
    """Torch's one cycle, whose length is that of the run.

    Also of one that goes on with another ``trainer.max_*``; and it is as far as the clock where
    that is further than the steps.

    Args:
        optimizer: Whose rate.
        share: The clock; None for none.
        max_lr: The peak.
        total_steps: Length of the cycle; infinite where only the clock ends it.
        settings: Torch's own.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        share: TimeShare | None,
        max_lr: float,
        total_steps: float,
        **settings: Any,
    ) -> None:
        self._share, self._by_steps = share, math.isfinite(total_steps)
        steps = int(total_steps) if self._by_steps else NOMINAL_STEPS
        super().__init__(optimizer, max_lr, steps, **settings)

    def get_lr(self) -> list[Any]:
        """The rate of each group for the coming step."""
        if self._share is None:
            return super().get_lr()
        step = self.last_epoch
        # Torch reads the place in the cycle here.
        self.last_epoch = self._place(step, self._share())  # type: ignore[assignment]
        try:
            return super().get_lr()
        finally:
            self.last_epoch = step

    def _place(self, step: int, share: float) -> float:
        last = self.total_steps - 1
        return min(last, max(step if self._by_steps else 0, share * last))

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        ours = ("_share", "_by_steps")
        return {k: v for k, v in super().state_dict().items() if k not in ours}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on, with the length of this run."""
        length = ("total_steps", "_schedule_phases")
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in length})
