"""Eight-bit weights: near the model, the same in any company, refused where they cannot be."""

from __future__ import annotations

import warnings

import pytest
import torch
from test_packed import generator, steps
from torch import nn

from midigenre.models import LSTM
from midigenre.models.cpu import Int8Linear, packed, quantize_int8

pytestmark = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="no FBGEMM here"
)


@torch.inference_mode()
def test_a_layer_is_off_by_its_rounding_alone() -> None:
    """Each of I products is off by at most half a step of the row and half a step of the weight."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 40)
    # Rows and outputs of any size: each has its own scale.
    linear.weight.mul_(torch.logspace(-3, 2, 40)[:, None])
    x_NI = torch.randn(9, 96) * torch.logspace(-4, 4, 9)[:, None]
    x_NI[4] = 0
    layer = Int8Linear(linear)
    x_step = x_NI.abs().amax(1, keepdim=True) * layer.scale / 2
    w_step = linear.weight.abs().amax(1) / 127 / 2
    x_sum, w_sum = x_NI.abs().sum(1, keepdim=True), linear.weight.abs().sum(1)
    bound_NO = x_step * w_sum + x_sum * w_step + 96 * x_step * w_step
    off_NO = (layer(x_NI) - linear(x_NI)).abs()
    assert (off_NO <= 1.01 * bound_NO + 1e-6 * linear(x_NI).abs()).all()
    assert torch.equal(layer(x_NI)[4], linear.bias)
    # Rounding errors of 96 products cancel for the most part.
    assert off_NO[0].norm() < 0.02 * linear(x_NI)[0].norm()


@torch.inference_mode()
def test_a_row_does_not_change_with_those_beside_it() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 32))
    x_NI = torch.randn(5, 64)
    alone = torch.cat([layer(row) for row in x_NI.split(1)])
    x_NI[3] *= 1000
    together = layer(x_NI)
    for row in (0, 1, 2, 4):
        assert torch.equal(together[row], alone[row])


def test_a_generator_keeps_its_opinions_and_its_weights() -> None:
    model = generator()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        int8 = packed(quantize_int8(model), 3)
    with torch.inference_mode():
        found, expected = steps(int8), steps(model)
    off = (found - expected).norm() / expected.norm()
    assert 1e-5 < off < 0.04
    assert sum(isinstance(module, Int8Linear) for module in int8.modules()) == 8
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert int8.head.out[0].weight is model.head.out[0].weight


def test_what_has_no_int8_form_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"for the encoder.* LSTM"):
        quantize_int8(generator(LSTM(64, 1), 64))
    with pytest.raises(ValueError, match="this is bfloat16 on cpu"):
        quantize_int8(generator().bfloat16())
    with pytest.raises(ValueError, match="this is float32 on meta"):
        quantize_int8(generator().to("meta"))
    with pytest.raises(ValueError, match="packed already"):
        quantize_int8(quantize_int8(generator()))


def test_an_engine_without_fbgemm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", "onednn")
    with pytest.raises(ValueError, match="engine here is onednn"):
        quantize_int8(generator())
    monkeypatch.undo()
