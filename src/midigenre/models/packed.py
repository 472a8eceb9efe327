"""A model's linear layers laid out for decoding, once its weights no longer change.

    N packed tokens   I, O width going in and coming out

oneDNN multiplies by weights in blocks of an order of its own. Given plain ones it reads them across
that order at every product, which is lost among many rows but not among the few of a decoding step.
All products of a step of ``deep`` (512 x 12) on one / two threads (AMD Zen 4, torch 2.13), ms:

===========================  ===========  ===========  ===========
weights                            1 row       2 rows      16 rows
===========================  ===========  ===========  ===========
MKL (``nn.Linear``)          12.9 / 12.8  18.0 / 19.6  26.0 / 17.8
MKL, transposed              10.7 / 10.5  14.9 / 14.8  25.9 / 18.7
oneDNN                       11.8 /  6.8  14.8 /  8.8  24.5 / 13.4
oneDNN, packed               10.8 /  6.3  12.5 /  7.6  16.0 /  9.1
===========================  ===========  ===========  ===========

MKL takes one row on one thread, however many there are. On a single thread one row costs what
reading the weights from memory costs; in the midst of a step, where little of oneDNN's code is at
hand, its calls cost more than in this table, and MKL's transposed weights are 14% faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

_MANY_ROWS = 64  # From here on the layer itself is as fast, and keeps no code for each length.
_LARGE = 1 << 16  # Weights of a product that is worth the call (see midigenre.models.layers).


class Frozen(nn.Module):
    """A linear layer in another form, made of one whose weights no longer change."""


class TransposedLinear(Frozen):
    """A linear layer with a second copy of its weights, transposed: for one row on one thread.

    Args:
        linear: The layer.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.weight_IO = linear.weight.detach().t().contiguous()

    def forward(self, x_NI: Tensor) -> Tensor:
        """Shape (N, I) to shape (N, O), without a gradient."""
        bias_O = self.linear.bias
        if x_NI.shape[0] > 1 or bias_O is None:
            out_NO: Tensor = self.linear(x_NI)
            return out_NO
        return torch.addmm(bias_O, x_NI, self.weight_IO)


class PackedLinear(Frozen):
    """A linear layer with a second copy of its weights in oneDNN's order.

    Args:
        linear: The layer: float32, on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        # The order that is best for one or two rows is bad for more; this one is good for all.
        self.packed_OI: Tensor = torch.ops.mkldnn._reorder_linear_weight(
            linear.weight.detach(), _MANY_ROWS
        )

    def forward(self, x_NI: Tensor) -> Tensor:
        """Shape (N, I) to shape (N, O), without a gradient."""
        if x_NI.shape[0] >= _MANY_ROWS:
            out_NO: Tensor = self.linear(x_NI)
            return out_NO
        # PyTorch has no public name for it (Inductor calls this one).
        product_NO: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x_NI.contiguous(), self.packed_OI, self.linear.bias, "none", [], ""
        )
        return product_NO


def packed(model: Model, n_rows: int) -> Model:
    """The model with its large linear layers packed, where that was measured to be faster.

    Args:
        model: Any model; it stays as it is, and what is not packed is shared with it. Pack again
            when its weights have changed.
        n_rows: Rows that it will write side by side; others are right too, but slower.

    Returns:
        A copy for use without gradients. Elsewhere than in float32 on a CPU with AVX-512 its layers
        are the same.
    """
    alone = n_rows == 1 and torch.get_num_threads() == 1
    layer = TransposedLinear if alone else PackedLinear
    return with_linears(model, lambda linear: layer(linear) if _gains(linear) else None)


def with_linears(model: Model, make: Callable[[nn.Linear], Frozen | None]) -> Model:
    """A copy of a model that shares its tensors, with other linear layers.

    Args:
        model: The model.
        make: The new layer of each linear layer; None where it stays.
    """
    frozen = [module for module in model.modules() if isinstance(module, Frozen)]
    shared = [*model.parameters(), *model.buffers(), *frozen]
    twin = copy.deepcopy(model, {id(one): one for one in shared})

    def swap(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                if (made := make(child)) is not None:
                    setattr(parent, name, made)
            elif not isinstance(child, Frozen):
                swap(child)

    swap(twin)
    return twin


def _gains(linear: nn.Linear) -> bool:
    weight = linear.weight
    return bool(
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= _LARGE
        and "AVX512" in torch.backends.cpu.get_cpu_capability()
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.enabled
    )
