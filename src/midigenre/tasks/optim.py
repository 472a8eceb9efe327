"""Optimizers and their learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from midigenre.tasks.groups import groups, matrices, trained
from midigenre.tasks.schedule import NOMINAL_STEPS, OneCycle, TimedLR, TimeShare

SCHEDULES = ("linear", "cosine", "wsd", "constant")


class OptimSettings(ABC):
    """What a task trains with.

    Attributes:
        lr: Peak learning rate.
    """

    lr: float

    @abstractmethod
    def optimizer(self, model: nn.Module, decayed: Collection[str] | None = None) -> Optimizer:
        """An optimizer over the parameters that need gradients.

        Args:
            model: Their owner.
            decayed: Names of the parameters to decay; None for :func:`matrices` of ``model``.
                Sharded parameters have lost their shape: there the names must be taken before.
        """

    @abstractmethod
    def scheduler(
        self, optimizer: Optimizer, total_steps: float, share: TimeShare | None = None
    ) -> LRScheduler:
        """What sets the rate of the optimizer before each step.

        Args:
            optimizer: Whose rate.
            total_steps: Steps after which the training ends at the latest; infinite where only the
                clock ends it.
            share: How much of the training's time is over, 0 to 1, where ``trainer.max_time``
                bounds it: the schedule is as far as the steps or the clock, whichever is further,
                so that it has come to its end when the time is up. None for no bound.
        """


@dataclass(frozen=True)
class AdamWSettings(OptimSettings):
    """AdamW (Loshchilov and Hutter 2019) with warm-up and decay of the learning rate.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled decay; norms, biases and single vectors are never decayed.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment.
        schedule: What follows the warm-up: ``linear`` or ``cosine`` decay, ``wsd``
            (warmup-stable-decay, Hu et al. 2024, MiniCPM: constant, then a linear decay over the
            last ``decay_share``), or ``constant``.
        warmup_share: Share of all steps over which the rate rises, unless ``warmup_steps``.
        warmup_steps: Number of those steps; None takes ``warmup_share``.
        decay_share: Share of all steps that ``wsd`` decays over.
        final_ratio: Rate at the end over the peak.
        layer_decay: Rate of a layer over that of the next, for a model that starts from another
            one (:func:`midigenre.tasks.groups.groups`); 1 for one rate.

    Raises:
        ValueError: A value is out of range.
    """

    lr: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    schedule: str = "cosine"
    warmup_share: float = 0.1
    warmup_steps: int | None = None
    decay_share: float = 0.2
    final_ratio: float = 0.0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optim.schedule={self.schedule}; choose {', '.join(SCHEDULES)}")
        _check_adam(self.lr, self.betas, self.eps)
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"optim.layer_decay must lie above 0, up to 1 (off), got {self.layer_decay}"
            )
        for name in ("warmup_share", "decay_share", "final_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must lie in 0 to 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"optim.{name} must be 0 or more, got {value}")

    def optimizer(self, model: nn.Module, decayed: Collection[str] | None = None) -> Optimizer:
        """Groups with and without decay; see :meth:`OptimSettings.optimizer`."""
        decayed = matrices(model) if decayed is None else decayed
        return self._adamw(trained(model), decayed)

    def _adamw(
        self, used: list[tuple[str, nn.Parameter]], decayed: Collection[str]
    ) -> torch.optim.AdamW:
        # `fused` is one pass over all parameters; on CPU too it beats the per-tensor loop.
        return torch.optim.AdamW(
            groups(used, decayed, self.lr, self.weight_decay, self.layer_decay),
            lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=True,
        )  # fmt: skip

    def scheduler(
        self, optimizer: Optimizer, total_steps: float, share: TimeShare | None = None
    ) -> LRScheduler:
        """See :meth:`OptimSettings.scheduler`."""
        if share is None:
            return LambdaLR(optimizer, self.factor(int(total_steps)))
        return TimedLR(optimizer, self.timed_factor(total_steps), share)

    def timed_factor(self, total_steps: float) -> Callable[[int, float], float]:
        """Learning rate over the peak as a function of the step and of the share of the time.

        A warm-up that is a share of the training is over when that share of the steps or of the
        time is; one of ``warmup_steps`` takes these.
        """
        nominal = int(total_steps) if math.isfinite(total_steps) else NOMINAL_STEPS
        counted = replace(self, warmup_steps=None if self.warmup_steps is None else 0)
        by_progress = counted.factor(nominal)
        rise = (self.warmup_steps or 0) + 1

        def at(step: int, share: float) -> float:
            done = step if nominal == total_steps else 0
            return min((step + 1) / rise, by_progress(max(done, share * nominal)))

        return at

    def factor(self, total_steps: int) -> Callable[[float], float]:
        """Learning rate over the peak as a function of the step (the first step is 0)."""
        warmup = (
            round(self.warmup_share * total_steps)
            if self.warmup_steps is None
            else self.warmup_steps
        )
        end = self.final_ratio

        def at(step: float) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if self.schedule == "constant":
                return 1.0
            start = warmup
            if self.schedule == "wsd":
                start = max(warmup, round((1 - self.decay_share) * total_steps))
            done = min(1.0, max(0.0, (step - start) / max(1, total_steps - start)))
            if self.schedule == "cosine":
                return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))
            return end + (1 - end) * (1 - done)

        return at


@dataclass(frozen=True)
class AdamOneCycleSettings(OptimSettings):
    """Adam (Kingma and Ba 2015) without decay, under the one-cycle policy.

    As ``torch.optim.lr_scheduler.OneCycleLR``, whose names and defaults these are: the rate rises
    to its peak and falls along two half cosines, and the decay rate of Adam's first moment goes
    the other way (Smith and Topin 2018, arXiv 1708.07120).

    Attributes:
        lr: Peak learning rate, torch's ``max_lr``.
        betas: Decay rates of the moments; a cycled momentum replaces the first.
        eps: Added to the root of the second moment.
        pct_start: Share of all steps over which the rate rises.
        div_factor: Peak over the first rate.
        final_div_factor: First rate over the last one.
        cycle_momentum: Whether the first moment's decay rate goes from ``max_momentum`` to
            ``base_momentum`` and back.
        base_momentum: That decay rate at the peak.
        max_momentum: That decay rate at both ends.

    Raises:
        ValueError: A value is out of range.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    cycle_momentum: bool = True
    base_momentum: float = 0.85
    max_momentum: float = 0.95

    def __post_init__(self) -> None:
        _check_adam(self.lr, self.betas, self.eps)
        if not 0 < self.pct_start < 1:
            raise ValueError(f"optim.pct_start must lie between 0 and 1, got {self.pct_start}")
        for name in ("div_factor", "final_div_factor"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"optim.{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("base_momentum", "max_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} must be 0 to below 1, got {getattr(self, name)}")

    def optimizer(
        self, model: nn.Module, decayed: Collection[str] | None = None
    ) -> torch.optim.Adam:
        """Nothing decays; see :meth:`OptimSettings.optimizer`."""
        return torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad],
            lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=True,
        )  # fmt: skip

    def scheduler(
        self, optimizer: Optimizer, total_steps: float, share: TimeShare | None = None
    ) -> LRScheduler:
        """See :meth:`OptimSettings.scheduler`."""
        # Torch divides by the steps of the rise less one: with just one step begin at the peak.
        one_step = self.pct_start * total_steps == 1
        return OneCycle(
            optimizer,
            share,
            self.lr,
            total_steps,
            pct_start=self.pct_start * (1 - 1e-12) if one_step else self.pct_start,
            cycle_momentum=self.cycle_momentum,
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
            div_factor=self.div_factor,
            final_div_factor=self.final_div_factor,
        )


def _check_adam(lr: object, betas: tuple[float, float], eps: float) -> None:
    if not isinstance(lr, (int, float)) or not lr > 0:
        raise ValueError(f"optim.lr must be above 0, got {lr}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"optim.betas must be two numbers from 0 to below 1, got {betas}")
    if not eps >= 0:
        raise ValueError(f"optim.eps must be 0 or more, got {eps}")
