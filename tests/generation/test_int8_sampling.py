"""Eight-bit generators write whole music; a piece is the same in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_sampling import check, sampler

from midigenre.generation.sampling import Context, Sampler, SamplingSettings
from midigenre.models.kernels import quantize_int8
from midigenre.spec import Batch

pytestmark = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="no FBGEMM here"
)


@pytest.mark.parametrize("name", ["remi", "octuple"])
def test_an_int8_model_writes_valid_music(name):
    made = sampler(name)
    int8 = Sampler(quantize_int8(made.model), made.grammar, Context(1024, 16))
    settings = SamplingSettings(bars=4, seed=3)
    pieces = int8.sample({"genre": [0, 1, 2]}, settings, n=3)
    for piece in pieces:
        check(int8, piece, 4)
    alone = int8.sample({"genre": [1]}, settings, n=1, first=1)[0]
    assert np.array_equal(alone.ids_TF, pieces[1].ids_TF)


def test_an_int8_model_predicts_nearly_as_well():
    made = sampler("remi")
    ids_NF = torch.randint(
        made.grammar.tokenizer.spec.sizes[0], (80, 1), generator=torch.Generator().manual_seed(0)
    )
    zero = torch.zeros(1, dtype=torch.int64)
    starts = torch.tensor([0, 80], dtype=torch.int32)
    batch = Batch(ids_NF, starts, (80,), {"genre": zero}, zero, zero)
    with torch.inference_mode():
        exact, int8 = (
            float(model.loss(batch)[0].mean()) for model in (made.model, quantize_int8(made.model))
        )
    assert int8 == pytest.approx(exact, rel=0.02)
    assert int8 != exact
