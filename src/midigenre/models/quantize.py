"""A generator with eight-bit weights, for the CPU.

    N packed tokens   I, O width going in and coming out

Weights have one scale for each output (symmetric, -127 to 127), activations one for each row, taken
when they come: a row does not change with those beside it, so a piece stays what its seed says
whatever is drawn with it. All products of a decoding step of ``deep`` (512 x 12), one thread with
AVX-512 VNNI (AMD Zen 4, torch 2.13), ms:

=====================================================  =====  =======  =======
                                                       1 row  16 rows  64 rows
=====================================================  =====  =======  =======
float32, packed (midigenre.models.packed)               11.8     16.0     51.9
FBGEMM, a scale for each row: this module                3.5      6.6     17.9
FBGEMM, one scale for all rows (``linear_dynamic``)      3.2      5.7     16.2
oneDNN, one scale for all rows                           4.9      7.9     17.9
``torch._int_mm``, a scale for each row                  5.1     11.5     22.9
torchao 0.18, dynamic int8, without ``torch.compile``   26.6     33.1     51.6
=====================================================  =====  =======  =======

So it is FBGEMM, which PyTorch takes by default on x86, called by its operators:
``torch.ao.quantization`` has no scale for each row.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from midigenre.models.generator import PhraseGenerator
from midigenre.models.packed import Frozen, with_linears

_ENGINES = ("x86", "fbgemm")  # Both are FBGEMM where linear layers are concerned.
_SMALLEST = 1e-12  # A row of zeros stays one.


class Int8Linear(Frozen):
    """A linear layer in eight bits.

    Args:
        linear: The layer: float32, on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_OI = linear.weight.detach()
        scale_O = weight_OI.abs().amax(1).clamp(min=_SMALLEST).double() / 127
        with warnings.catch_warnings():
            # PyTorch means to drop its quantised tensor types some day (its issue 184982); what
            # shall stand in their place on CPU is the slow torchao above.
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
        largest_N1 = x_NI.abs().amax(1, keepdim=True).clamp_(min=_SMALLEST)
        product_NO = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x_NI / largest_N1, self.scale, self.zero, self.packed
        )
        return torch.addcmul(self.bias_O, product_NO, largest_N1)


def quantize_int8(model: PhraseGenerator) -> PhraseGenerator:
    """The generator with the linear layers of its backbone in eight bits.

    Embedding and head stay as they are: a hundredth of the weights, and the ones that name tokens.

    Args:
        model: The generator; it stays as it is, and what is not quantised is shared with it.

    Returns:
        A copy for use without gradients.

    Raises:
        ValueError: The backbone is an LSTM, the weights are not float32 on the CPU, or PyTorch has
            no FBGEMM here.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.backbone.modules()):
        raise ValueError("int8 is for the encoder; this generator's backbone is an LSTM")
    if any(isinstance(module, Frozen) for module in model.modules()):
        raise ValueError("int8 is made of a model as it was trained; this one is packed already")
    weight = next(model.backbone.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        name = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"int8 is made of float32 on the cpu; this is {name} on {weight.device}")
    if (engine := torch.backends.quantized.engine) not in _ENGINES:
        raise ValueError(f"int8 needs FBGEMM (x86); PyTorch's engine here is {engine}")
    twin = with_linears(model, lambda linear: None)
    twin.backbone = with_linears(model.backbone, Int8Linear)
    return twin
