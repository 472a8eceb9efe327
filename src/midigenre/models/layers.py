"""``nn.Linear`` and ``nn.Dropout`` with faster insides on CPU; same parameters, same meaning.

    N packed tokens   I, O width going in and coming out

Measured on one AVX-512 thread (AMD Zen 5, torch 2.13; GFLOP/s, higher is better), widths of the
model ``small``. PyTorch multiplies float32 with MKL, which takes AVX2 kernels on AMD's processors;
oneDNN, which is part of PyTorch too, takes AVX-512:

====================  ====  =======  ===============
product                MKL   oneDNN   oneDNN, blocks
====================  ====  =======  ===============
forward                 92  175-216                -
gradient of the input   92  176-218                -
gradient of weights     90  130-190          158-193
====================  ====  =======  ===============

Few rows, as generation has them, are faster too where the weights are many: 512 to 2,048 on two
threads takes 239 (MKL) and 92 us (oneDNN) for one row, 377 and 182 us for 16; 128 to 128 takes 8
and 13 us.

PyTorch's own dropout draws one number of a generator for each value: 31 ms for 5.6 million values
with their residual, against 8 ms for the bits that :func:`drop_add` draws.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_BLOCK = 512  # Rows of a product over the tokens: both operands stay in the second-level cache.
_MANY_ROWS = 64
_LARGE = 1 << 16  # Weights of a product that is worth the call for few rows, as in generation.
_LEVELS = 1 << 16  # A dropout rate is rounded to 16 bits.


class Linear(nn.Linear):
    """``nn.Linear`` whose three products run in oneDNN where that is faster (see the module)."""

    def forward(self, input: Tensor) -> Tensor:
        """Shape (N, I) to shape (N, O)."""
        if _onednn_is_faster(input, self.weight):
            if input.shape[0] < _MANY_ROWS:
                return _times_transposed(input.contiguous(), self.weight, self.bias)
            out_NO: Tensor = _OneDnnLinear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return out_NO
        return super().forward(input)


def _onednn_is_faster(x_NI: Tensor, weight: Tensor) -> bool:
    """Whether this product is one that was measured: rows of float32 on a CPU with AVX-512."""
    return bool(
        x_NI.device.type == "cpu"
        and x_NI.dtype == weight.dtype == torch.float32
        and x_NI.ndim == 2
        and (x_NI.shape[0] >= _MANY_ROWS or _few_but_worth_it(x_NI, weight))
        and "AVX512" in torch.backends.cpu.get_cpu_capability()
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")  # Autocast knows nn.Linear and makes it bfloat16.
        and not torch.compiler.is_compiling()  # True for torch.export as well.
    )


def _few_but_worth_it(x_NI: Tensor, weight: Tensor) -> bool:
    """Whether the product of few rows costs more than the call, and nothing must flow back."""
    return not torch.is_grad_enabled() and x_NI.shape[0] > 0 and weight.numel() >= _LARGE


def _times_transposed(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias`` in oneDNN; PyTorch has no public name for it (Inductor calls this one)."""
    product_MN: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, bias_N, "none", [], "")
    return product_MN


def _even_rows(x_NI: Tensor) -> Tensor:
    """``x``, contiguous, with rows of zeros added up to the next of eight lengths an octave.

    oneDNN writes and keeps code for each number of rows that it meets, and packed batches bring
    ever new ones: as they come, a process grew by 5 MB a step. Making that code takes the time that
    the added rows, 3% on average, take.
    """
    rows = x_NI.shape[0]
    step = max(64, 1 << max(0, (rows - 1).bit_length() - 4))
    # Other strides are right too, but oneDNN's kernels for them are a hundred times slower.
    x_NI = x_NI.contiguous()
    return nn.functional.pad(x_NI, (0, 0, 0, -rows % step)) if rows % step else x_NI


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        N = x_NI.shape[0]
        x_NI = _even_rows(x_NI)
        ctx.save_for_backward(x_NI, weight_OI)
        return _times_transposed(x_NI, weight_OI, bias_O)[:N]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        N, grad_NO = grad_NO.shape[0], _even_rows(grad_NO)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _times_transposed(grad_NO, weight_OI.t())[:N] if wants_x else None,
            _weight_gradient(x_NI, grad_NO) if wants_weight else None,
            grad_NO.sum(0) if wants_bias else None,
        )


def _weight_gradient(x_NI: Tensor, grad_NO: Tensor) -> Tensor:
    """``grad.T @ x``, shape (O, I), summed over blocks of rows."""
    sum_IO: Tensor | None = None
    blocks = zip(torch.split(x_NI, _BLOCK), torch.split(grad_NO, _BLOCK), strict=True)
    for x_bI, grad_bO in blocks:
        product_IO = _times_transposed(x_bI.t(), grad_bO.t())
        sum_IO = product_IO if sum_IO is None else sum_IO.add_(product_IO)
    assert sum_IO is not None  # A tensor without rows splits into one block.
    return sum_IO.t().contiguous()


def drop_add(residual: Tensor, x: Tensor, p: float, training: bool) -> Tensor:
    """``residual + dropout(x)`` (Srivastava et al. 2014): values are zeroed with probability ``p``.

    On CPU each value's fate is 16 bits of PyTorch's default generator, so ``p`` is rounded to a
    multiple of 1/65536; what is kept is scaled by the rounded rate, so that the mean stays exact.

    Args:
        residual: Any shape.
        x: Same shape.
        p: Probability, 0 to 1.
        training: Without it nothing is dropped.

    Returns:
        Same shape.
    """
    if not training or p == 0.0:
        return residual + x
    dropped = round(p * _LEVELS)
    if x.device.type != "cpu" or not 0 < dropped < _LEVELS:
        return residual + nn.functional.dropout(x, p)
    # 64 bits a draw, cut into four; `random_()` without bounds would leave the sign bit at 0.
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    # The comparison writes 0 and 1 in the type of x, which saves a pass over memory.
    keep = torch.ge(bits, dropped - _LEVELS // 2, out=torch.empty(x.shape, dtype=x.dtype))
    return torch.addcmul(residual, x, keep, value=_LEVELS / (_LEVELS - dropped))
