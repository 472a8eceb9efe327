"""Rates by layer, frozen layers: which parameters move, and how far."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from midigenre.errors import UserError
from midigenre.models import (
    LSTM,
    Encoder,
    FieldEmbedding,
    LabelHead,
    PhraseClassifier,
    Pooling,
)
from midigenre.spec import Batch
from midigenre.tasks.optim import AdamWSettings, depth, freeze, matrices


def classifier(kind: str = "encoder", n_layers: int = 3, seed: int = 0) -> PhraseClassifier:
    torch.manual_seed(seed)
    backbones = {
        "encoder": lambda: Encoder(8, n_layers, 2, 16, positions="learned", conv_width=3),
        "lstm": lambda: LSTM(8, n_layers, bidirectional=True),
    }
    return PhraseClassifier(
        FieldEmbedding((5, 7), 8), backbones[kind](), Pooling("attention", 8),
        [LabelHead("genre", ("a", "b"), 8)],
    )  # fmt: skip


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids_NF = torch.stack([torch.randint(0, n, (9,), generator=generator) for n in (5, 7)], 1)
    zeros_B = torch.zeros(3, dtype=torch.int64)
    return Batch(
        ids_NF, torch.tensor([0, 2, 5, 9], dtype=torch.int32), (2, 3, 4),
        {"genre": torch.tensor([0, 1, 0])}, zeros_B, zeros_B,
    )  # fmt: skip


def train(model: PhraseClassifier, optimizer: Any, n: int, first: int = 0) -> None:
    for i in range(first, first + n):
        torch.manual_seed(i)
        optimizer.zero_grad()
        model.loss(model(batch(i)), batch(i))[0].backward()
        optimizer.step()


EXPECTED = {
    "encoder": {
        "embedding.tables.0.weight": 0, "embedding.project.weight": 0,
        "backbone.positions.table.weight": 0, "backbone.local.norm.weight": 0,
        "backbone.local.project.weight": 0,
        "backbone.layers.0.attention_norm.weight": 1, "backbone.layers.0.attention.qkv.weight": 1,
        "backbone.layers.2.feed_forward.down.bias": 3, "backbone.final_norm.weight": 3,
        "pooling.score.0.weight": 4, "heads.0.out.bias": 4, "cls_D": 4,
    },
    "lstm": {
        "embedding.tables.1.weight": 0, "backbone.input_norm.bias": 1,
        "backbone.lstm.weight_ih_l0": 1, "backbone.lstm.bias_hh_l0_reverse": 1,
        "backbone.lstm.weight_hh_l2_reverse": 3, "backbone.final_norm.bias": 3,
        "heads.0.hidden.weight": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_rate_falls_towards_the_tokens(kind: str) -> None:
    model = classifier(kind)
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer = AdamWSettings(lr=0.1, layer_decay=0.5, weight_decay=0.3).optimizer(model)
    found = {
        names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups
        for p in g["params"]
    }  # fmt: skip
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(found) == len(names)
    matrix = matrices(model)
    for name, (rate, decay) in found.items():
        assert rate == pytest.approx(0.1 * 0.5 ** (4 - depth(name, 3))), name
        assert decay == (0.3 if name in matrix else 0.0), name
    for name, at in EXPECTED[kind].items():
        assert depth(name, 3) == at, name
        assert name in found or name == "cls_D" or "table.weight" in name


def test_one_rate_makes_the_groups_of_before() -> None:
    """Or no older run could resume."""
    model = classifier()
    optimizer = AdamWSettings(lr=0.1, weight_decay=0.3).optimizer(model)
    matrix = matrices(model)
    order = [
        [p for n, p in model.named_parameters() if (n in matrix) == decayed]
        for decayed in (True, False)
    ]
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [
        [id(p) for p in group] for group in order
    ]


@pytest.mark.parametrize("kind", ["encoder", "lstm"])
@pytest.mark.parametrize("n", [1, 2, 3, "all"])
def test_frozen_layers_stay_to_the_bit_and_the_others_move(kind: str, n: int | str) -> None:
    model = classifier(kind)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    still = freeze(model, n)
    assert still == ((model.embedding, model.backbone) if n == "all" else ())
    optimizer = AdamWSettings(0.1, weight_decay=0.5).optimizer(model)
    train(model, optimizer, 3)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name in frozen), name
        assert (p in optimizer.state) == (name not in frozen)
    shared = {name for name in before if name.startswith(("embedding.", "backbone."))}
    norm = {f"backbone.final_norm.{kind}" for kind in ("weight", "bias")}
    if n == "all":
        assert frozen == shared
    else:
        assert frozen == {k for k in shared if depth(k, 3) <= int(n)} - norm


def test_nothing_is_frozen_by_default() -> None:
    model = classifier()
    assert freeze(model, 0) == ()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("value", [4, -1, "some", 1.5, None, True])
def test_a_number_of_layers_that_there_are_not_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=rf"freeze_layers={value}.*0 \(nothing\) to 3"):
        freeze(classifier(), value)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan")])
def test_a_bad_decay_of_the_rate_is_named(value: float) -> None:
    with pytest.raises(ValueError, match=r"optim\.layer_decay"):
        AdamWSettings(0.1, layer_decay=value)
