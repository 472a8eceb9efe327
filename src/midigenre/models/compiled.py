"""The encoder's layers under ``torch.compile``, for training on a GPU.

    N packed tokens   D model width   B phrases

A packed batch is as long as its phrases happen to be, and a compiler that takes that for a constant
compiles anew for every batch. So N and B are marked as varying, and of the phrase lengths only a
rounded bound of the longest goes in. The angles of rotary positions come in ready-made: otherwise
every kernel that turns a query would work out sines again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import repeat
from typing import Any, Protocol

import torch
from torch import Tensor

from midigenre.models.attention import attend_varlen
from midigenre.models.positions import Rotary

LONGEST_STEP = 2048
"""The longest phrase is rounded up to a multiple of it: the attention's grid becomes larger, and
the blocks that have nothing to do end at once."""


class Layers(Protocol):
    """What is compiled: :class:`midigenre.models.Encoder`."""

    def run_layers(self, h_ND: Tensor, rotary: Rotary | None, attends: Iterable[Any]) -> Tensor:
        """See :meth:`midigenre.models.Encoder.run_layers`."""


class CompiledLayers:
    """Runs the layers of an encoder compiled; compiles at the first call.

    The encoder is an argument of the call, so that a copy of it (averaged weights) runs its own.

    Args:
        options: Of ``torch.compile``.
    """

    def __init__(self, **options: Any) -> None:
        self._run = torch.compile(_run, **options)

    def __call__(
        self,
        layers: Layers,
        h_ND: Tensor,
        rotary: Rotary | None,
        cu_seqlens: Tensor,
        longest: int,
        causal: bool,
    ) -> Tensor:
        """All layers and the last norm.

        Args:
            layers: The encoder.
            h_ND: Packed vectors on a GPU, shape (N, D); under autocast to half precision, or in it.
            rotary: Angles of the tokens, or None without rotary positions.
            cu_seqlens: Phrase boundaries, int32, shape (B + 1,).
            longest: Length of the longest phrase.
            causal: Whether a token sees only itself and those before it.

        Returns:
            Shape (N, D).
        """
        for varying in (h_ND, cu_seqlens, *(rotary or ())):
            torch._dynamo.maybe_mark_dynamic(varying, 0)
        bound = -(-longest // LONGEST_STEP) * LONGEST_STEP
        out_ND: Tensor = self._run(layers, h_ND, rotary, cu_seqlens, bound, causal)
        return out_ND


def _run(
    layers: Layers,
    h_ND: Tensor,
    rotary: Rotary | None,
    cu_seqlens: Tensor,
    longest: int,
    causal: bool,
) -> Tensor:
    attend = partial(attend_varlen, cu_seqlens=cu_seqlens, longest=longest, causal=causal)
    return layers.run_layers(h_ND, rotary, repeat(attend))
