"""Optimizers, what they train and at which rate, and the schedules of the learning rate.

With ``trainer.max_time`` a run may end long before its last step. A schedule over steps alone would
never come to its end there, and the low rates at the end are what most of a schedule's gain is from
(Hägele et al. 2024, arXiv 2405.18392). So a schedule is as far as the steps or the clock.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from midigenre.errors import UserError

SCHEDULES = ("linear", "cosine", "wsd", "constant")


# --- what is trained ------------------------------------------------------------------------------


_LAYER = re.compile(r"^backbone\.(?:layers\.(\d+)\.|lstm\.\w+_l(\d+)(?:_reverse)?$)")

Named = list[tuple[str, nn.Parameter]]


def matrices(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of two dimensions or more."""
    return frozenset(name for name, p in model.named_parameters() if p.ndim >= 2)


def trained(model: nn.Module) -> Named:
    """The parameters that need gradients, by the names that they have without FSDP."""
    # FSDP puts a name of its own between those of the modules that it wraps.
    used = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [(name.replace("_fsdp_wrapped_module.", ""), p) for name, p in used]


def n_layers(names: Iterable[str]) -> int:
    """Number of layers of the backbone that these names of parameters belong to."""
    return 1 + max((_layer(name) for name in names), default=-1)


def depth(name: str, layers: int) -> int:
    """How far from the tokens a parameter lies.

    Norms go with their layer: one before the first layer with the first, one behind the last with
    the last. What :data:`midigenre.trained.SHARED` leaves out (pooling, heads, CLS) is new in a
    model that starts from another one and lies highest.

    Args:
        name: Its name, without FSDP's.
        layers: Number of layers of the backbone.

    Returns:
        0 for the embedding and what stands between it and the layers (learned positions, the local
        convolution), 1 to ``layers`` for the layers, ``layers + 1`` for the rest.
    """
    layer = _layer(name)
    if layer >= 0:
        return layer + 1
    if name.startswith(("embedding.", "backbone.positions.", "backbone.local.")):
        return 0
    if name.startswith("backbone.input_norm."):
        return min(1, layers)
    return layers if name.startswith("backbone.") else layers + 1


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return -1 if found is None else int(found[1] or found[2] or 0)


def groups(
    used: Named, decayed: Collection[str], lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, the one with the highest rate first.

    Args:
        used: What it trains.
        decayed: Names of the parameters that are decayed.
        lr: Rate of the head.
        weight_decay: Decay of the decayed.
        layer_decay: The rate of a layer over that of the next one (Clark et al. 2020, ELECTRA,
            appendix A; Bao et al. 2022, BEiT, appendix): ``lr`` for the heads, ``lr *
            layer_decay ** (L + 1 - depth)`` for the others of ``L`` layers (:func:`depth`).
            1 gives all the same rate, in two groups.

    Returns:
        Groups that hold at least one parameter.
    """
    layers = n_layers(name for name, _ in used)
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, p in used:
        below_heads = 0 if layer_decay == 1 else layers + 1 - depth(name, layers)
        found.setdefault((below_heads, name not in decayed), []).append(p)
    return [
        {
            "params": params,
            "weight_decay": 0.0 if plain else weight_decay,
            "lr": lr * layer_decay**below_heads,
        }
        for (below_heads, plain), params in sorted(found.items())
    ]


def check_frozen(freeze_layers: Any, layers: int) -> None:
    """Rejects a setting ``freeze_layers`` that does not fit a backbone of so many layers.

    Raises:
        UserError: It is neither ``all`` nor a number from 0 to ``layers``.
    """
    is_number = isinstance(freeze_layers, int) and not isinstance(freeze_layers, bool)
    if freeze_layers != "all" and not (is_number and 0 <= freeze_layers <= layers):
        raise UserError(
            f"freeze_layers={freeze_layers}: give all (the whole backbone) or 0 (nothing) to "
            f"{layers}, the layers of this model"
        )


def freeze(model: nn.Module, freeze_layers: int | str) -> tuple[nn.Module, ...]:
    """Takes the gradients from the embedding and the first layers of a model's backbone.

    Args:
        model: A model with an ``embedding`` and a ``backbone``, not yet wrapped by a strategy.
        freeze_layers: How many layers to freeze; the embedding and what stands before the layers
            goes with the first of them. ``all``: the whole backbone with its last norm, for a
            probe. 0: nothing.

    Returns:
        The modules that are frozen as a whole and belong into evaluation mode: a probe sees what
        the backbone says without dropout. None where some layers go on learning: there dropout
        stays on, as in ordinary fine-tuning.

    Raises:
        UserError: See :func:`check_frozen`.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = n_layers(names)
    check_frozen(freeze_layers, layers)
    if freeze_layers == 0:
        return ()
    whole = freeze_layers == "all"
    for name, p in model.named_parameters():
        inside = name.startswith(("embedding.", "backbone."))
        # The last norm stands behind the whole backbone, not in a layer that may be frozen.
        below = not name.startswith("backbone.final_norm.")
        if inside and (whole or (below and depth(name, layers) <= int(freeze_layers))):
            p.requires_grad_(False)
    if not whole:
        return ()
    return model.get_submodule("embedding"), model.get_submodule("backbone")


# --- schedules ------------------------------------------------------------------------------------


NOMINAL_STEPS = 100_000
"""Length of a schedule that only the clock ends: its resolution, no number of steps."""

TimeShare = Callable[[], float]
"""Share of the training's time that is over, 0 to 1; it never falls."""


def time_limits(trainer: L.Trainer) -> list[tuple[Timer, float]]:
    """The timers that bound the training (``trainer.max_time``), and their seconds."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    timers = [(x, x.time_remaining()) for x in callbacks if isinstance(x, Timer)]
    return [(timer, timer.time_elapsed() + left) for timer, left in timers if left is not None]


def time_share(trainer: L.Trainer) -> TimeShare | None:
    """How much of ``trainer.max_time`` is over; None where nothing bounds the time.

    That is the time in the training loop, validation included, over all interruptions: the count of
    Lightning's Timer is in the checkpoints. All processes take the time of the first, or their
    rates would part.
    """
    if not (limits := time_limits(trainer)):
        return None

    def share() -> float:
        over = max(timer.time_elapsed() / max(limit, 1e-9) for timer, limit in limits)
        return float(trainer.strategy.broadcast(min(1.0, over)))

    return share


class TimedLR(LRScheduler):
    """A rate that follows the step and the clock.

    What is saved is the step alone: the clock has its own state, and a run that is resumed with
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

    Also of one that is resumed with another ``trainer.max_*``; and it is as far as the clock where
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
        """Resumes, with the length of this run."""
        length = ("total_steps", "_schedule_phases")
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in length})


# --- settings -------------------------------------------------------------------------------------


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
            one (:func:`groups`); 1 for one rate.

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
        # `fused` is one pass over all parameters; on CPU too it beats the per-tensor loop.
        return torch.optim.AdamW(
            groups(trained(model), decayed, self.lr, self.weight_decay, self.layer_decay),
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
        settings = {k: v for k, v in asdict(self).items() if k not in ("lr", "betas", "eps")}
        if one_step:
            settings["pct_start"] *= 1 - 1e-12
        return OneCycle(optimizer, share, self.lr, total_steps, **settings)


def _check_adam(lr: object, betas: tuple[float, float], eps: float) -> None:
    if not isinstance(lr, (int, float)) or not lr > 0:
        raise ValueError(f"optim.lr must be above 0, got {lr}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"optim.betas must be two numbers from 0 to below 1, got {betas}")
    if not eps >= 0:
        raise ValueError(f"optim.eps must be 0 or more, got {eps}")
