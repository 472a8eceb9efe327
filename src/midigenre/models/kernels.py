"""Faster kernels, put into a finished model from outside; same weights, same function.

    N packed tokens   I, O width going in and coming out

:func:`use_cpu_kernels` and :func:`compile_layers` for training, :func:`packed` for decoding once
the weights no longer change, :func:`quantize_int8` for a generator in eight bits. All private
PyTorch operators that the models call are here, each with a test against the public one.
Measurements and reasons: ``experiments/speed/README.md``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from midigenre.models.generator import PhraseGenerator
from midigenre.models.sequences import attend_varlen, positions_N
from midigenre.models.transformer import DropAdd, Encoder, LabelHead, Pooling, Rotary

Model = TypeVar("Model", bound=nn.Module)

# Where its kernels take AVX-512; `torch.backends.mkldnn.enabled` switches oneDNN off.
_HAS_ONEDNN = (
    "AVX512" in torch.backends.cpu.get_cpu_capability() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
)
_BLOCK = 512  # Rows of a product over the tokens: both operands stay in the second-level cache.
_MANY_ROWS = 64
_LARGE = 1 << 16  # Weights above which a product of few rows, as in generation, is worth it.
_LEVELS = 1 << 16  # A dropout rate is rounded to 16 bits.
# Under torch.compile the longest phrase is rounded up to a multiple of it: the attention's grid
# becomes larger, and the blocks that have nothing to do end at once.
LONGEST_STEP = 2048


# --- training on CPU ------------------------------------------------------------------------------


def use_cpu_kernels(model: Model) -> Model:
    """Gives the layers that run over tokens their CPU kernels; on other machines nothing changes.

    Linear layers and :class:`DropAdd` change their class, nothing else. Heads and pooling are left
    alone: they see a row for each phrase and not for each token.
    """
    for child in model.children():
        if type(child) is nn.Linear:
            child.__class__ = Linear
        elif type(child) is DropAdd:
            child.__class__ = FastDropAdd
        elif not isinstance(child, (LabelHead, Pooling)):
            use_cpu_kernels(child)
    return model


class Linear(nn.Linear):
    """``nn.Linear`` whose three products run in oneDNN where that was measured to be faster.

    PyTorch multiplies float32 with MKL, which takes AVX2 kernels on AMD's processors; oneDNN, which
    is part of PyTorch too, takes AVX-512 and is twice as fast there.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Shape (N, I) to shape (N, O)."""
        rows, flows_back = input.shape[0], torch.is_grad_enabled()
        few_but_large = rows > 0 and self.weight.numel() >= _LARGE and not flows_back
        if not (
            input.device.type == "cpu"
            and input.dtype == self.weight.dtype == torch.float32
            and input.ndim == 2
            and (rows >= _MANY_ROWS or few_but_large)
            and _HAS_ONEDNN
            and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled("cpu")  # autocast turns nn.Linear to bfloat16
            and not torch.compiler.is_compiling()  # True for torch.export as well.
        ):
            return super().forward(input)
        if flows_back:
            return cast(Tensor, _OneDnnLinear.apply(input, self.weight, self.bias))  # type: ignore[no-untyped-call]
        x_NI = input.contiguous() if rows < _MANY_ROWS else _even_rows(input)
        return _times_transposed(x_NI, self.weight, self.bias)[:rows]


def _times_transposed(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias`` in oneDNN; PyTorch has no public name for it (Inductor calls this one)."""
    product_MN = torch.ops.mkldnn._linear_pointwise.default(a_MK, b_NK, bias_N, "none", [], "")
    return cast(Tensor, product_MN)


def _even_rows(x_NI: Tensor) -> Tensor:
    """``x``, contiguous, with rows of zeros added up to the next of eight lengths an octave.

    oneDNN writes and keeps code for each number of rows that it meets, and packed batches bring
    ever new ones.
    """
    rows = x_NI.shape[0]
    step = max(64, 1 << max(0, (rows - 1).bit_length() - 4))
    # Other strides work too, but oneDNN's kernels for them are a hundred times slower.
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


class FastDropAdd(DropAdd):
    """:class:`DropAdd` from 16 random bits per value, where PyTorch draws a whole number for each.

    ``p`` is rounded to a multiple of 1/65536; what is kept is scaled by the rounded rate, so that
    the mean stays exact.
    """

    def forward(self, h: Tensor, change: Tensor) -> Tensor:
        """Two tensors of one shape to a third; the seed of PyTorch's default generator decides."""
        if not self.training:
            return h + change
        dropped = round(self.p * _LEVELS)
        if change.device.type != "cpu" or self.p == 0.0 or not 0 < dropped < _LEVELS:
            return super().forward(h, change)
        # 64 bits per draw, cut into four; `random_()` without bounds would leave the sign bit at 0.
        words = torch.empty(-(-change.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: change.numel()].view(change.shape)
        # The comparison writes 0 and 1 in the type of `change`, which saves a pass over memory.
        keep = torch.empty(change.shape, dtype=change.dtype)
        torch.ge(bits, dropped - _LEVELS // 2, out=keep)
        return torch.addcmul(h, change, keep, value=_LEVELS / (_LEVELS - dropped))


# --- training on a GPU ----------------------------------------------------------------------------


class CompiledEncoder(Encoder):
    """An encoder whose training passes go through ``torch.compile``; evaluation stays as it is."""

    compiled: Callable[..., Tensor]

    def forward(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *, causal: bool = False
    ) -> Tensor:
        """See :meth:`Encoder.forward`."""
        if not self.training:
            return super().forward(h_ND, cu_seqlens, lengths, causal=causal)
        positions, longest = positions_N(cu_seqlens, len(h_ND)), max(lengths)
        if self.local is not None:
            h_ND = self.local(h_ND, positions)
        h_ND, rotary = self.place(h_ND, positions, longest)
        # Dynamic sizes must be marked as such, or every batch is compiled again.
        for varying in (h_ND, cu_seqlens, *(rotary or ())):
            torch._dynamo.maybe_mark_dynamic(varying, 0)
        bound = -(-longest // LONGEST_STEP) * LONGEST_STEP
        return self.compiled(self, h_ND, rotary, cu_seqlens, bound, causal)


def compile_layers(encoder: Encoder, **options: Any) -> None:
    """Makes an encoder a :class:`CompiledEncoder`; its weights keep their names.

    Training then needs a GPU and half precision (:func:`~midigenre.models.sequences.attend_varlen`)
    and no attention dropout. ``options`` are those of ``torch.compile``.
    """

    def run(
        encoder: Encoder, h_ND: Tensor, rotary: Rotary | None, cu_seqlens: Tensor, longest: int,
        causal: bool,
    ) -> Tensor:  # fmt: skip
        # The encoder is an argument, so that a copy of it runs its own weights.
        attend = partial(attend_varlen, cu_seqlens=cu_seqlens, longest=longest, causal=causal)
        return encoder.run_layers(h_ND, rotary, repeat(attend))

    encoder.__class__ = CompiledEncoder
    cast(CompiledEncoder, encoder).compiled = torch.compile(run, **options)


# --- decoding: weights that no longer change ------------------------------------------------------


class Frozen(nn.Module):
    """A linear layer in another form, made from one whose weights no longer change."""


class TransposedLinear(Frozen):
    """A linear layer with a second copy of its weights, transposed: for one row on one thread."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.weight_IO = linear.weight.detach().t().contiguous()

    def forward(self, x_NI: Tensor) -> Tensor:
        """Shape (N, I) to shape (N, O), without a gradient."""
        bias_O = self.linear.bias
        if x_NI.shape[0] > 1 or bias_O is None:
            return cast(Tensor, self.linear(x_NI))
        return torch.addmm(bias_O, x_NI, self.weight_IO)


class PackedLinear(Frozen):
    """A float32 layer with a second copy of its weights in the order that oneDNN multiplies in.

    From plain weights oneDNN reorders at every product: negligible for many
    rows but not for the few of a decoding step.
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
        if x_NI.shape[0] >= _MANY_ROWS:  # as fast, and keeps no code for each length
            return cast(Tensor, self.linear(x_NI))
        return _times_transposed(x_NI.contiguous(), self.packed_OI, self.linear.bias)


class Int8Linear(Frozen):
    """A float32 layer in eight bits, by FBGEMM's operators.

    Weights have one scale for each output (symmetric, -127 to 127), activations one for each row,
    computed at run time: a piece depends on its seed only, whatever is drawn with it.
    """

    SMALLEST = 1e-12  # A row of zeros stays zero.

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_OI = linear.weight.detach()
        scale_O = weight_OI.abs().amax(1).clamp(min=self.SMALLEST).double() / 127
        with warnings.catch_warnings():
            # PyTorch plans to drop its quantised tensor types (its issue 184982); their successor
            # on CPU, torchao, is seven times slower here.
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor.*deprecated")
            rounded_OI = torch.quantize_per_channel(
                weight_OI, scale_O, torch.zeros(len(scale_O), dtype=torch.int64), 0, torch.qint8
            )
            self.packed = torch.ops.quantized.linear_prepack(rounded_OI, None)
        # Unsigned, zero in the middle. Without VNNI two products meet in 16 bits, where eight bits
        # could overflow and seven cannot.
        self.zero = 128 if torch.cpu.get_capabilities().get("avx512_vnni") else 64
        self.scale = 1 / (self.zero - 1)
        bias_O = linear.bias
        self.bias_O = torch.zeros(linear.out_features) if bias_O is None else bias_O.detach()

    def forward(self, x_NI: Tensor) -> Tensor:
        """Shape (N, I) to shape (N, O), without a gradient."""
        largest_N1 = x_NI.abs().amax(1, keepdim=True).clamp_(min=self.SMALLEST)
        product_NO = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x_NI / largest_N1, self.scale, self.zero, self.packed
        )
        return torch.addcmul(self.bias_O, product_NO, largest_N1)


def packed(model: Model, n_rows: int) -> Model:
    """A copy for use without gradients with its large linear layers packed, where that is faster.

    That is float32 on a CPU with AVX-512. Pack again when the weights have changed.

    Args:
        model: Any model; it stays as it is, and what is not packed is shared with it.
        n_rows: Rows that it will write side by side; other numbers work too, but slower.
    """
    # MKL takes one row on one thread, however many there are, and is then ahead of oneDNN.
    alone = n_rows == 1 and torch.get_num_threads() == 1
    layer = TransposedLinear if alone else PackedLinear

    def made(linear: nn.Linear) -> Frozen | None:
        weight = linear.weight
        on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
        onednn = _HAS_ONEDNN and torch.backends.mkldnn.enabled
        gains = on_cpu and weight.numel() >= _LARGE and onednn
        return layer(linear) if gains else None

    return with_linears(model, made)


def with_linears(model: Model, make: Callable[[nn.Linear], Frozen | None]) -> Model:
    """A copy that shares a model's tensors, with ``make(linear)`` in place of what it makes."""
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


def quantize_int8(model: PhraseGenerator) -> PhraseGenerator:
    """A copy for use without gradients with the linear layers of the backbone in eight bits.

    Embedding and head, a hundredth of the weights, are shared with ``model``, which stays as it is.

    Raises:
        ValueError: The backbone is an LSTM, the weights are not float32 on the CPU, or PyTorch has
            no FBGEMM here.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.backbone.modules()):
        raise ValueError("int8 is for the encoder; this generator's backbone is an LSTM")
    if any(isinstance(module, Frozen) for module in model.modules()):
        raise ValueError("int8 needs the model as it was trained; this one is packed already")
    weight = next(model.backbone.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        name = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"int8 needs float32 on the cpu; this is {name} on {weight.device}")
    engine = torch.backends.quantized.engine
    if engine not in ("x86", "fbgemm"):  # FBGEMM both, where linear layers are concerned
        raise ValueError(f"int8 needs FBGEMM (x86); PyTorch's engine here is {engine}")
    twin = with_linears(model, lambda linear: None)
    twin.backbone = with_linears(model.backbone, Int8Linear)
    return twin
