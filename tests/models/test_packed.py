"""Layers laid out for decoding say what the model says, and leave it as it is."""

from __future__ import annotations

import pytest
import torch
from packing import make_batch
from torch import Tensor, nn

from midigenre.models import (
    LSTM,
    ConditionEmbedding,
    Encoder,
    FieldEmbedding,
    FieldHead,
    PhraseGenerator,
    cpu,
)
from midigenre.models.cpu import (
    Frozen,
    PackedLinear,
    TransposedLinear,
    packed,
    use_cpu_kernels,
)


def generator(backbone: nn.Module | None = None, d_model: int = 256) -> PhraseGenerator:
    """Wide enough that its layers are worth packing."""
    torch.manual_seed(0)
    made = PhraseGenerator(
        FieldEmbedding((11, 7), d_model, dropout=0.0),
        backbone or Encoder(d_model, 2, 4, 512, dropout=0.0),
        ConditionEmbedding({"genre": 3}, d_model),
        FieldHead((11, 7), d_model),
    )
    with torch.no_grad():
        for weights in made.parameters():
            if weights.ndim == 1:  # Biases are zero at first, and would not be missed.
                weights.add_(0.1 * torch.randn_like(weights))
    return use_cpu_kernels(made).eval()


def steps(model: PhraseGenerator, n_rows: int = 3, n: int = 6) -> Tensor:
    """What the model foretells step by step, shape (B, T, D)."""
    batch = make_batch([n] * n_rows, (11, 7), [0, 1, 2] * (n_rows // 3) or [1])
    ids_BTF = batch.ids_NF.unflatten(0, (n_rows, n))
    h_BD, rows = model.begin(batch.labels, list(ids_BTF[:, :1]), n)
    further = [model.advance(ids_BTF[:, t], rows) for t in range(1, n - 1)]
    return torch.stack([h_BD, *further], 1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs on any processor that has oneDNN: what is measured on AVX-512 is right elsewhere."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("n_threads", [1, 2])  # conftest.py puts it back
@pytest.mark.parametrize("n_rows", [1, 3, 66])
@torch.inference_mode()
def test_packed_layers_foretell_the_same(n_rows: int, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    model = generator()
    twin = packed(model, n_rows)
    kind = TransposedLinear if n_rows == n_threads == 1 else PackedLinear
    assert {type(m) for m in twin.modules() if isinstance(m, Frozen)} == {kind}
    assert not any(isinstance(module, Frozen) for module in model.modules())
    torch.testing.assert_close(steps(twin, n_rows), steps(model, n_rows), rtol=0, atol=1e-5)
    torch.testing.assert_close(steps(twin, n_rows), steps(model, n_rows), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("here")
@torch.no_grad()
def test_packing_again_sees_weights_that_have_changed() -> None:
    """The copy shares what it did not pack; packing a packed model packs nothing twice."""
    model = generator()
    before = steps(packed(model, 3))
    for weights in model.backbone.parameters():
        weights.add_(0.05 * torch.randn_like(weights))
    twin = packed(packed(model, 3), 3)
    assert not any(isinstance(m, PackedLinear) and isinstance(m.linear, PackedLinear)
                   for m in twin.modules())  # fmt: skip
    torch.testing.assert_close(steps(twin), steps(model), rtol=0, atol=1e-4)
    assert (steps(model) - before).abs().max() > 0.01
    assert twin.start_D is model.start_D


@pytest.mark.usefixtures("here")
def test_what_was_not_measured_is_not_packed() -> None:
    half, double = generator().bfloat16(), generator().double()
    narrow = generator(Encoder(64, 1, 4, 128), 64)
    for model in (half, double, narrow, generator(LSTM(64, 1), 64)):
        assert not any(isinstance(module, PackedLinear) for module in packed(model, 3).modules())
    large = nn.Linear(256, cpu._LARGE // 256)
    assert isinstance(packed(nn.Sequential(large), 3)[0], PackedLinear)
