"""Eight-bit generators write whole music; a piece is the same in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_sampling import check, sampler

from midigenre.evaluation.quantized import int8_cost
from midigenre.generation.sampling import Sampler, SamplingSettings
from midigenre.generation.windows import Context
from midigenre.models.cpu import quantize_int8
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


def test_the_cost_of_int8_is_taken_on_the_same_windows():
    made = sampler("remi")
    spec = made.grammar.tokenizer.spec
    random = torch.Generator().manual_seed(0)
    batches = []
    for n in (30, 50):
        ids_NF = torch.randint(spec.sizes[0], (n, 1), generator=random)
        zero = torch.zeros(1, dtype=torch.int64)
        starts = torch.tensor([0, n], dtype=torch.int32)
        batches.append(Batch(ids_NF, starts, (n,), {"genre": zero}, zero, zero))
    cost = int8_cost(made.model, iter(batches), spec)
    with torch.no_grad():
        nats = torch.cat([made.model.loss(batch)[0] for batch in batches]).double()
    assert cost["float32"]["loss"] == pytest.approx(float(nats.mean()))
    assert cost["int8"]["loss"] == pytest.approx(cost["float32"]["loss"], rel=0.02)
    assert cost["int8"]["loss"] != cost["float32"]["loss"]
