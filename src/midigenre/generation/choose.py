"""One token out of the logits of a field.

B rows   V vocabulary of a field
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from midigenre.errors import UserError


@dataclass(frozen=True)
class Choice:
    """How a token is drawn; the filters apply to each field of a step, in this order.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_k: Only the k likeliest tokens (Fan et al. 2018, arXiv 1805.04833, section 5.3); 0 for
            all.
        top_p: Only the likeliest tokens that together have this probability, at least one (nucleus
            sampling, Holtzman et al. 2020, arXiv 1904.09751, section 3.1).
        min_p: Only tokens at least this share as likely as the likeliest (Nguyen et al. 2024,
            arXiv 2407.01082, section 3).

    Raises:
        ValueError: A value that makes no sense.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0, 100),
            ("top_k", 0, 2**31),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high or (name == "top_p" and value == 0):
                least = "more than 0" if name == "top_p" else f"{low} or more"
                raise ValueError(f"{name}={value} must be {least}, and at most {high}")

    def __call__(self, logits_BV: Tensor, allowed_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """Draws.

        Args:
            logits_BV: Shape (B, V).
            allowed_BV: What may be drawn, at least one token a row.
            uniform_B: Numbers in [0, 1), float64: the same number draws the same token.

        Returns:
            Ids, int64 (B,).

        Raises:
            UserError: The logits of a row are no numbers.
        """
        x_BV = logits_BV.double().masked_fill(~allowed_BV, -torch.inf)
        best_B1 = x_BV.amax(-1, keepdim=True)
        if not best_B1.isfinite().all():
            raise UserError(
                "the model's logits are not finite, so its weights are broken; take another "
                "checkpoint (ckpt=last, ckpt=PATH) or train with a lower optim.lr"
            )
        if self.temperature == 0:
            return x_BV.argmax(-1)
        x_BV = (x_BV - best_B1) / self.temperature
        if 0 < self.top_k < x_BV.shape[-1]:
            x_BV = x_BV.masked_fill(x_BV < x_BV.topk(self.top_k).values[:, -1:], -torch.inf)
        if self.top_p < 1:
            sorted_BV, order_BV = x_BV.sort(descending=True)
            p_BV = sorted_BV.softmax(-1)
            # A token stays as long as those before it have not reached top_p.
            out_BV = p_BV.cumsum(-1) - p_BV >= self.top_p
            out_BV[:, 0] = False
            x_BV = x_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), -torch.inf)
        p_BV = x_BV.softmax(-1)
        if self.min_p > 0:
            p_BV = p_BV.masked_fill(p_BV < self.min_p * p_BV.amax(-1, keepdim=True), 0.0)
        upto_BV = p_BV.cumsum(-1)
        # Below the sum whatever the rounding; "right" never lands on a token of probability 0.
        at_B1 = uniform_B[:, None].clamp(max=1 - 1e-12) * upto_BV[:, -1:]
        return torch.searchsorted(upto_BV, at_B1, right=True)[:, 0]
