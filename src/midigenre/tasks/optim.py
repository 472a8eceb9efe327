"""Optimizers, what they train and at which rate, and the schedules of the learning rate.

With ``trainer.max_time`` a run may end long before its last step. A schedule over steps alone would
never come to its end there, and the low rates at the end bring most of a schedule's gain
(Hägele et al. 2024, arXiv 2405.18392). So a schedule progresses with the steps or the clock,
whichever is further.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from midigenre.errors import UserError

SCHEDULES = ("linear", "cosine", "constant")

# --- what is trained ------------------------------------------------------------------------------

_LAYER = re.compile(r"^backbone\.(?:layers\.(\d+)\.|lstm\.\w+_l(\d+)(?:_reverse)?$)")


def matrices(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of two dimensions or more."""
    return frozenset(name for name, p in model.named_parameters() if p.ndim >= 2)


def n_layers(names: Collection[str]) -> int:
    """Number of layers of the backbone that these names of parameters belong to."""
    return 1 + max((_layer(name) for name in names), default=-1)


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return -1 if found is None else int(found[1] or found[2] or 0)


def depth(name: str, layers: int) -> int:
    """Depth of a parameter, by its name, in a backbone of ``layers`` layers.

    0 for the embedding and what lies between it and the layers (learned positions, the local
    convolution), 1 to ``layers`` for the layers, ``layers + 1`` for the rest: pooling, heads, CLS.
    Norms go with their layer: one before the first with the first, one after the last with the
    last.
    """
    layer = _layer(name)
    if layer >= 0:
        return layer + 1
    if name.startswith(("embedding.", "backbone.positions.", "backbone.local.")):
        return 0
    if name.startswith("backbone.input_norm."):
        return min(1, layers)
    return layers if name.startswith("backbone.") else layers + 1


def check_frozen(freeze_layers: Any, layers: int) -> None:
    """Rejects a setting ``freeze_layers`` that does not fit a backbone of ``layers`` layers.

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
    """Disables gradients of the embedding and the first layers of a model's backbone.

    Args:
        model: A model with an ``embedding`` and a ``backbone``, not yet wrapped by a strategy.
        freeze_layers: How many layers to freeze, with all that precedes them. ``all``: the
            whole backbone with its last norm, for a probe. 0: nothing.

    Returns:
        The modules that are frozen entirely and belong in evaluation mode: a probe sees the
        backbone's output without dropout. Where some layers train, dropout stays on.
    """
    layers = n_layers([name for name, _ in model.named_parameters()])
    check_frozen(freeze_layers, layers)
    whole = freeze_layers == "all"
    for name, p in model.named_parameters() if freeze_layers != 0 else ():
        inside = name.startswith(("embedding.", "backbone."))
        # The last norm belongs to the whole backbone, not to a layer that may be frozen.
        below = not name.startswith("backbone.final_norm.")
        if inside and (whole or (below and depth(name, layers) <= int(freeze_layers))):
            p.requires_grad_(False)
    parts = ("embedding", "backbone") if whole else ()
    return tuple(model.get_submodule(part) for part in parts)


# --- schedules ------------------------------------------------------------------------------------

NOMINAL_STEPS = 100_000
"""Length of a schedule that only the clock ends: its resolution, not a number of steps."""

TimeShare = Callable[[], float]
"""Share of the training time that has passed, 0 to 1; it never decreases."""


def time_limits(trainer: L.Trainer) -> list[tuple[Timer, float]]:
    """The timers that bound the training (``trainer.max_time``), and their seconds."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    timers = [(x, x.time_remaining()) for x in callbacks if isinstance(x, Timer)]
    return [(timer, timer.time_elapsed() + left) for timer, left in timers if left is not None]


def time_share(trainer: L.Trainer) -> TimeShare | None:
    """Share of ``trainer.max_time`` that has passed; None without a limit.

    That is the time in the training loop, validation included, over all interruptions: the count of
    Lightning's Timer is in the checkpoints. All processes take the time of the first.
    """
    if not (limits := time_limits(trainer)):
        return None

    def share() -> float:
        over = max(timer.time_elapsed() / max(limit, 1e-9) for timer, limit in limits)
        return float(trainer.strategy.broadcast(min(1.0, over)))

    return share


class FactorLR(LRScheduler):
    """The rate of each group times one factor of the step, asked for once per step.

    Only the step is saved: a run that is resumed with another end follows the new one.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._factor = factor
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """The rate of each group for the coming step."""
        factor = self._factor(self.last_epoch)
        return [peak * factor for peak in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {k: v for k, v in super().state_dict().items() if k != "_factor"}


class OneCycle(OneCycleLR):
    """Torch's one cycle, by the steps or the clock, whichever is further.

    Its length is that of the run, also of one that is resumed with another ``trainer.max_*``.

    Args:
        optimizer: Whose rate.
        max_lr: The peak.
        total_steps: Length of the cycle; infinite where only the clock ends it.
        share: The clock; None for none.
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: float, total_steps: float, share: TimeShare | None
    ) -> None:
        self._share, self._by_steps = share, math.isfinite(total_steps)
        super().__init__(optimizer, max_lr, int(total_steps) if self._by_steps else NOMINAL_STEPS)

    def get_lr(self) -> list[Any]:
        """The rate of each group for the coming step."""
        if self._share is None:
            return super().get_lr()
        step, last = self.last_epoch, self.total_steps - 1
        place = min(last, max(step if self._by_steps else 0, self._share() * last))
        self.last_epoch = place  # type: ignore[assignment]  # torch reads the place here
        try:
            return super().get_lr()
        finally:
            self.last_epoch = step

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        ours = ("_share", "_by_steps")
        return {k: v for k, v in super().state_dict().items() if k not in ours}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes, with the length of this run."""
        length = ("total_steps", "_schedule_phases")
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in length})


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimSettings(ABC):
    """Settings of the optimizer and its schedule.

    Attributes:
        lr: Peak learning rate.
        betas: Decay rates of Adam's moments.
        eps: Added to the root of the second moment.

    Raises:
        ValueError: A value is out of range.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not isinstance(self.lr, (int, float)) or not self.lr > 0:
            raise ValueError(f"optim.lr must be above 0, got {self.lr}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas must be two numbers from 0 to below 1, got {self.betas}")
        if not self.eps >= 0:
            raise ValueError(f"optim.eps must be 0 or more, got {self.eps}")

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
        """The scheduler that sets the learning rate before each step.

        Args:
            optimizer: Whose rate.
            total_steps: Steps after which the training ends at the latest; infinite where only the
                clock ends it.
            share: The clock of ``trainer.max_time``, or None: the schedule is at the progress of
                the steps or the clock, whichever is further.
        """


@dataclass(frozen=True)
class AdamWSettings(OptimSettings):
    """AdamW (Loshchilov and Hutter 2019) with warm-up and decay of the learning rate.

    Attributes:
        weight_decay: Decoupled decay; norms, biases and single vectors are never decayed.
        schedule: What follows the warm-up: ``linear`` or ``cosine`` decay, or ``constant``.
        warmup_share: Share of all steps over which the rate rises, unless ``warmup_steps``.
        warmup_steps: Number of those steps; None takes ``warmup_share``.
        final_ratio: Final rate relative to the peak.
        layer_decay: Rate of a layer over that of the next, for a model that starts from another
            one (Clark et al. 2020, ELECTRA, appendix A; Bao et al. 2022, BEiT, appendix); 1 for
            one rate.
    """

    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup_share: float = 0.1
    warmup_steps: int | None = None
    final_ratio: float = 0.0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optim.schedule={self.schedule}; choose {', '.join(SCHEDULES)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"optim.layer_decay must lie above 0, up to 1 (off), got {self.layer_decay}"
            )
        for name in ("warmup_share", "final_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must lie in 0 to 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"optim.{name} must be 0 or more, got {value}")

    def optimizer(self, model: nn.Module, decayed: Collection[str] | None = None) -> Optimizer:
        """AdamW over :meth:`groups`; see :meth:`OptimSettings.optimizer`."""
        # `fused` is one pass over all parameters; on CPU too it beats the per-tensor loop.
        return torch.optim.AdamW(
            self.groups(model, decayed), lr=self.lr, betas=(self.betas[0], self.betas[1]),
            eps=self.eps, fused=True,
        )  # fmt: skip

    def groups(
        self, model: nn.Module, decayed: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """The trained parameters by layer and decay, the highest rate first.

        ``lr`` for the heads, ``lr * layer_decay ** (L + 1 - depth)`` for the others of L layers.
        """
        decayed = matrices(model) if decayed is None else decayed
        # FSDP inserts its own name between those of the modules that it wraps.
        used = {
            name.replace("_fsdp_wrapped_module.", ""): p
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        layers = n_layers(used)
        found: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, p in used.items():
            below_heads = 0 if self.layer_decay == 1 else layers + 1 - depth(name, layers)
            found.setdefault((below_heads, name not in decayed), []).append(p)
        return [
            {
                "params": params,
                "weight_decay": 0.0 if plain else self.weight_decay,
                "lr": self.lr * self.layer_decay**below_heads,
            }
            for (below_heads, plain), params in sorted(found.items())
        ]

    def scheduler(
        self, optimizer: Optimizer, total_steps: float, share: TimeShare | None = None
    ) -> LRScheduler:
        """See :meth:`OptimSettings.scheduler`."""
        if share is None:
            return FactorLR(optimizer, self.factor(int(total_steps)))
        timed = self.timed_factor(total_steps)
        return FactorLR(optimizer, lambda step: timed(step, share()))

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
        warmup = self.warmup_steps
        if warmup is None:
            warmup = round(self.warmup_share * total_steps)
        end = self.final_ratio

        def at(step: float) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if self.schedule == "constant":
                return 1.0
            done = min(1.0, max(0.0, (step - warmup) / max(1, total_steps - warmup)))
            if self.schedule == "cosine":
                return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))
            return end + (1 - end) * (1 - done)

        return at


# --- Muon -----------------------------------------------------------------------------------------

_LOGITS = re.compile(r"(^|\.)heads?\.(.*\.)?out\.")


def hidden_matrices(model: nn.Module) -> frozenset[str]:
    """Names of the weights of linear layers, but for the last ones of heads, which make logits."""
    return frozenset(
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not _LOGITS.search(f"{name}.")
    )


class Muon(torch.optim.AdamW):
    """Muon for the groups with ``muon=True``, matrices all of them, and AdamW for the others.

    The update of a matrix is its Nesterov momentum with all singular values near 1, so that rare
    directions are learned as fast as common ones (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon). It is scaled to the root mean square of AdamW's
    (Liu et al. 2025, arXiv 2502.16982, section 2.2), and so takes AdamW's rate and decay.

    ``torch.optim.Muon`` takes matrices alone, where a run has one optimizer, and computes in
    bfloat16: 1,054 ms instead of 64 for ``model=shallow`` on a CPU that emulates it.
    """

    MOMENTUM = 0.95  # this and the coefficients are Jordan's and torch's
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    ITERATIONS = 5

    def __init__(self, groups: list[dict[str, Any]], **adamw: Any) -> None:
        super().__init__([{"muon": False} | group for group in groups], **adamw)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups."""
        loss = None
        if closure is not None:  # before the groups are divided: it clears their gradients
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        self.param_groups = [group for group in every if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            for p in group["params"] if group["muon"] else ():
                if p.grad is not None:
                    self._step_matrix(p, p.grad, group["lr"], group["weight_decay"])
        return loss

    @torch.no_grad()
    def _step_matrix(self, p: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(grad)
            state["step"] = torch.zeros(())  # AdamW looks for it in what it loads
        state["step"] += 1
        momentum = state["momentum"].lerp_(grad, 1 - self.MOMENTUM)
        update = self.orthogonal(grad.lerp(momentum, self.MOMENTUM))
        p.mul_(1 - lr * weight_decay)
        p.add_(update, alpha=-lr * 0.2 * math.sqrt(max(p.shape)))

    @classmethod
    def orthogonal(cls, matrix: Tensor) -> Tensor:
        """The matrix with singular values of 0.7 to 1.2, by Newton-Schulz iterations.

        A singular value far below the largest one, or a matrix of zeros, stays small.
        """
        a, b, c = cls.COEFFICIENTS
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T.float() if tall else matrix.float()
        x = x / x.norm().clamp_min(1e-7)
        for _ in range(cls.ITERATIONS):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.T if tall else x).to(matrix.dtype)


@dataclass(frozen=True)
class MuonSettings(AdamWSettings):
    """:class:`Muon` for :func:`hidden_matrices`, AdamW for the rest, with AdamW's settings."""

    def optimizer(self, model: nn.Module, decayed: Collection[str] | None = None) -> Muon:
        """See :meth:`AdamWSettings.optimizer`.

        Raises:
            UserError: The matrices are sharded.
        """
        hidden = hidden_matrices(model)
        sharded = [n for n, p in model.named_parameters() if n in hidden and p.ndim != 2]
        if sharded:
            raise UserError("optim=muon needs whole matrices; with trainer=fsdp take optim=adamw")
        groups: list[dict[str, Any]] = []
        names = {p: name for name, p in model.named_parameters()}
        for group in self.groups(model, decayed):
            for muon in (True, False):
                params = [p for p in group["params"] if (names[p] in hidden) == muon]
                if params:
                    groups.append(group | {"params": params, "muon": muon})
        return Muon(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps)


@dataclass(frozen=True)
class OneCycleSettings(OptimSettings):
    """Adam (Kingma and Ba 2015) without decay, under torch's ``OneCycleLR`` with its defaults.

    The rate rises to its peak and falls along two half cosines, and the decay rate of Adam's first
    moment goes the other way (Smith and Topin 2018, arXiv 1708.07120), whatever ``betas`` says.
    """

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
        return OneCycle(optimizer, self.lr, total_steps, share)
