"""Masked modelling beside the labels, several labels, linear heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from midigenre.models import (
    Encoder,
    FieldEmbedding,
    LabelHead,
    MaskedHead,
    MaskedLoss,
    Masking,
    PhraseClassifier,
    Pooling,
)
from midigenre.spec import UNKNOWN, Batch, Field, TokenSpec
from midigenre.tasks.classify import losses
from midigenre.tasks.kinds import class_weights

SPEC = TokenSpec(
    "toy",
    (
        Field("Pitch", ("PAD_None", "BOS_None", "EOS_None", "MASK_None",
                        *(f"Pitch_{p}" for p in range(60, 72)))),
        Field("Velocity", ("PAD_None", "BOS_None", "EOS_None", "MASK_None",
                           *(f"Velocity_{v}" for v in range(10, 100, 10)))),
    ),
    "field", 4, {},
)  # fmt: skip
LENGTHS = (3, 5, 2, 6, 4)


def classifier(mlm: float = 0.0, pooling: Any = "mean", dropout: float = 0.0) -> PhraseClassifier:
    torch.manual_seed(0)
    counts = torch.tensor([5.0, 2.0, 1.0])
    masked = None
    if mlm:
        masking = Masking(SPEC, share=0.5)
        masked = MaskedLoss(masking, MaskedHead(SPEC.sizes, 8, masking.fields), mlm)
    return PhraseClassifier(
        FieldEmbedding(SPEC.sizes, 8, dropout=dropout), Encoder(8, 1, 2, 8, dropout=dropout),
        Pooling(pooling, 8),
        [LabelHead("genre", ("a", "b", "c"), 8, class_weights(counts), 0.1, dropout),
         LabelHead("emotion", ("x", "y"), 8, None, 0.0, dropout)],
        masked,
    )  # fmt: skip


def batch(genre: Any = (0, 1, 2, 0, 1), emotion: Any = (0, 1, 1, UNKNOWN, 0)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    n = sum(LENGTHS)
    ids_NF = torch.stack([torch.randint(4, s, (n,), generator=generator) for s in SPEC.sizes], 1)
    zeros_B = torch.zeros(len(LENGTHS), dtype=torch.int64)
    cu = torch.tensor(np.concatenate([[0], np.cumsum(LENGTHS)]), dtype=torch.int32)
    labels = {"genre": torch.tensor(genre), "emotion": torch.tensor(emotion)}
    return Batch(ids_NF, cu, LENGTHS, labels, zeros_B, zeros_B)


def gradients(model: PhraseClassifier, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_with_nothing_on_it_is_the_plain_loss_to_the_bit() -> None:
    model = classifier(dropout=0.3)
    found, plain = [], []
    given = replace(batch(), step_counts={"genre": torch.tensor([4.0, 3, 2])}, step_batches=2)
    torch.manual_seed(3)
    ours = losses(model, given)
    found = gradients(model, ours.total)
    after = torch.rand(1)
    torch.manual_seed(3)
    total = model.loss(model(given), given)[0]
    plain = gradients(model, total)
    assert torch.equal(ours.total, total)
    assert torch.equal(after, torch.rand(1))  # nothing else was drawn
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    assert ours.masked is None
    alone = replace(given, step_counts={}, step_batches=1)
    torch.manual_seed(3)
    assert torch.equal(ours.own, model.loss(model(alone), alone)[0])


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_masked_modelling_shares_the_pass(pooling: Any) -> None:
    model = classifier(0.3, pooling)
    torch.manual_seed(5)
    found = losses(model, batch())
    torch.manual_seed(5)
    assert model.masked is not None
    seen, hidden_NF = model.masked.hide(batch())
    assert 0 < int(hidden_NF.sum()) < hidden_NF.numel()
    assert not torch.equal(seen.ids_NF, batch().ids_NF)
    labels = model.loss(model(seen), batch())[0]
    h_ND = model.encode(seen)[1]
    assert h_ND.shape == (sum(LENGTHS), 8)
    nats_NF, _ = model.masked.head.loss(h_ND, batch().ids_NF, hidden_NF)  # type: ignore[operator]
    mlm = nats_NF.sum() / hidden_NF.sum()
    torch.testing.assert_close(found.masked, mlm)
    torch.testing.assert_close(found.own, labels)
    torch.testing.assert_close(found.total, labels + 0.3 * mlm)
    torch.manual_seed(5)
    again = losses(model, batch())
    assert torch.equal(found.total, again.total)
    # What a model is asked sees everything.
    assert all(torch.equal(v, model(batch())[k]) for k, v in model(batch()).items())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_steps_are_those_of_the_backbone_without_cls(pooling: Any) -> None:
    """Steps of a phrase do not depend on the phrases around it, so none is shifted."""
    model = classifier(0.3, pooling).eval()
    h_ND = model.encode(batch())[1]
    start = 0
    for i, length in enumerate(LENGTHS):
        ids_NF = batch().ids_NF[start : start + length]
        one = replace(
            batch(), ids_NF=ids_NF, lengths=(length,),
            cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        )  # fmt: skip
        torch.testing.assert_close(h_ND[start : start + length], model.encode(one)[1])
        torch.testing.assert_close(model.encode(batch())[0][i], model.encode(one)[0][0])
        start += length


def test_songs_without_a_label_still_teach_masked_modelling() -> None:
    nothing = batch([UNKNOWN] * 5, [UNKNOWN] * 5)
    model = classifier(0.3)
    found = losses(model, nothing)
    assert found.own == 0
    grads = gradients(model, found.total)
    assert grads["backbone.layers.0.attention.qkv.weight"].abs().sum() > 0
    assert not grads["heads.0.out.weight"].any()
    assert torch.isfinite(found.total)


def test_a_masked_head_changes_no_weight_beside_it() -> None:
    plain, with_head = classifier().state_dict(), classifier(0.3).state_dict()
    assert {k for k in with_head if k not in plain} == {
        k for k in with_head if k.startswith("masked.")
    }
    classifier().load_state_dict(plain)


def test_a_label_that_nobody_knows_adds_no_loss() -> None:
    model = classifier()
    found = losses(model, batch())
    torch.testing.assert_close(found.total, found.by_label["genre"] + found.by_label["emotion"])
    unknown = losses(model, batch(emotion=[UNKNOWN] * 5))
    torch.testing.assert_close(unknown.total, found.by_label["genre"])
    grads = gradients(model, unknown.total)
    assert not grads["heads.1.out.weight"].any()


def test_masked_modelling_is_a_function_of_the_seed() -> None:
    model = classifier(0.3, dropout=0.2)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(losses(model, batch()).total)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_linear_head_has_one_layer() -> None:
    head = LabelHead("genre", ("a", "b"), 8, dropout=0.0, linear=True)
    h_BD = torch.randn(3, 8)
    torch.testing.assert_close(head(h_BD), torch.nn.functional.linear(h_BD, head.out.weight))
    assert {name for name, _ in head.named_parameters()} == {"out.weight", "out.bias"}
