"""Muon for the matrices of the backbone's layers, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from midigenre.errors import UserError
from midigenre.tasks.groups import groups, matrices, trained
from midigenre.tasks.optim import AdamWSettings


class MuonAdamW(Optimizer):
    """Two optimizers of torch that a trainer and a schedule see as one.

    Their groups and their state are this one's, so that one schedule sets all rates and one
    ``state_dict`` holds everything.

    Args:
        muon: Owns the matrices; None where there are none.
        adamw: Owns the rest; None where there is none.
    """

    def __init__(self, muon: Muon | None, adamw: AdamW | None) -> None:
        self._parts = [part for part in (muon, adamw) if part is not None]
        self._sizes = [len(part.param_groups) for part in self._parts]
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            # Loading a state makes new groups and a new state: take what this one has by now.
            part.param_groups = self.param_groups[first : first + size]
            part.state = self.state
            part.step()  # type: ignore[no-untyped-call]
            first += size
        return loss


@dataclass(frozen=True)
class MuonSettings(AdamWSettings):
    """Muon (Jordan et al. 2024) on the matrices of the backbone's layers, AdamW on the rest.

    Muon's step is the gradient's running mean with all its singular values made about 1. It is
    scaled to AdamW's usual size, 0.2 sqrt(max(rows, columns)) (Liu et al. 2025, Muon is Scalable
    for LLM Training, arXiv 2502.16982, section 2.2), so one rate, one weight decay and one schedule
    serve both. Embeddings, learned positions, norms, biases, pooling and heads are AdamW's.

    Attributes:
        momentum: Decay rate of Muon's running mean.
        ns_steps: Newton-Schulz iterations of each step.

    Raises:
        ValueError: A value is out of range.
    """

    momentum: float = 0.95
    ns_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum must be 0 to below 1, got {self.momentum}")
        if not 1 <= self.ns_steps < 100:
            raise ValueError(f"optim.ns_steps must be 1 to 99, got {self.ns_steps}")

    def optimizer(self, model: nn.Module, decayed: Collection[str] | None = None) -> Optimizer:
        """See :meth:`OptimSettings.optimizer`.

        Raises:
            UserError: The matrices are sharded.
        """
        decayed = matrices(model) if decayed is None else decayed
        used = trained(model)
        hidden = [(n, p) for n, p in used if n in decayed and _is_hidden(n)]
        if any(p.ndim != 2 for _, p in hidden):
            raise UserError(
                "optim=muon needs whole matrices, and trainer=fsdp shards them; set optim=adamw or "
                "another trainer"
            )
        names = {n for n, _ in hidden}
        # One list for both: the rates of the layers are counted from the deepest one there is.
        by_depth = groups(used, decayed, self.lr, self.weight_decay, self.layer_decay)
        at = {id(p): n for n, p in used}

        def part(of_muon: bool) -> list[dict[str, Any]]:
            found = [
                group | {"params": [p for p in group["params"] if (at[id(p)] in names) == of_muon]}
                for group in by_depth
            ]
            return [group for group in found if group["params"]]

        ours, others = part(True), part(False)
        muon = Muon(
            ours, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum,
            ns_steps=self.ns_steps, adjust_lr_fn="match_rms_adamw",
        ) if ours else None  # fmt: skip
        adamw = AdamW(
            others, lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=True
        ) if others else None  # fmt: skip
        return MuonAdamW(muon, adamw)


def _is_hidden(name: str) -> bool:
    """Whether a matrix belongs to the backbone, and is no table of positions."""
    return name.startswith("backbone.") and not name.startswith("backbone.positions.")
