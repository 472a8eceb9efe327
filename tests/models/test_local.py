"""The convolution before the first layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import packed
from torch import nn

from midigenre.models.sequences import positions_N
from midigenre.models.transformer import Encoder, LocalConvolution


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_against_torchs_convolution(lengths: list[int], width: int) -> None:
    torch.manual_seed(0)
    local = LocalConvolution(8, width).double().eval()
    h_ND, cu_seqlens = packed(lengths, 8)
    got = local(h_ND, positions_N(cu_seqlens, len(h_ND)))
    conv = nn.Conv1d(8, 8, width).double()
    # The k-th block of columns is for the step k before; a kernel's last weight is for the newest.
    kernel = torch.stack(local.project.weight.split(8, dim=1)[::-1], dim=-1)
    conv.weight.data, conv.bias.data = kernel, local.project.bias.data
    want = []
    for phrase in h_ND.split(lengths):
        past = nn.functional.pad(local.norm(phrase).T, (width - 1, 0))
        want.append(phrase + nn.functional.gelu(conv(past[None])[0].T))
    torch.testing.assert_close(got, torch.cat(want))


def test_no_width_is_no_convolution_and_a_negative_one_is_refused() -> None:
    assert Encoder(8, 1, 2, 8).local is None
    with pytest.raises(ValueError, match="conv_width=-1"):
        Encoder(8, 1, 2, 8, conv_width=-1)
