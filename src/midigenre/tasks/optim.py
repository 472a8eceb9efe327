"""AdamW and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import nn

SCHEDULES = ("linear", "cosine", "wsd", "constant")


def matrices(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of two dimensions or more."""
    return frozenset(name for name, p in model.named_parameters() if p.ndim >= 2)


@dataclass(frozen=True)
class AdamWSettings:
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

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optim.schedule={self.schedule}; choose {', '.join(SCHEDULES)}")
        if not isinstance(self.lr, (int, float)) or not self.lr > 0:
            raise ValueError(f"optim.lr must be above 0, got {self.lr}")
        for name in ("warmup_share", "decay_share", "final_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must lie in 0 to 1, got {getattr(self, name)}")
        for name in ("weight_decay", "eps", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"optim.{name} must be 0 or more, got {value}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas must be two numbers from 0 to below 1, got {self.betas}")

    def optimizer(
        self, model: nn.Module, decayed: Collection[str] | None = None
    ) -> torch.optim.AdamW:
        """AdamW over the parameters that need gradients, in two groups.

        Args:
            model: Their owner.
            decayed: Names of the parameters to decay; None for :func:`matrices` of ``model``.
                Sharded parameters have lost their shape: there the names must be taken before.
        """
        decayed = matrices(model) if decayed is None else decayed
        used = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in used if name in decayed],
             "weight_decay": self.weight_decay},
            {"params": [p for name, p in used if name not in decayed], "weight_decay": 0.0},
        ]  # fmt: skip
        # `fused` is one pass over all parameters; on CPU too it beats the per-tensor loop.
        return torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=True,
        )  # fmt: skip

    def factor(self, total_steps: int) -> Callable[[int], float]:
        """Learning rate over the peak as a function of the step (the first step is 0)."""
        warmup = (
            round(self.warmup_share * total_steps)
            if self.warmup_steps is None
            else self.warmup_steps
        )
        end = self.final_ratio

        def at(step: int) -> float:
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
