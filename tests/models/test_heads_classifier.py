"""Losses that do not depend on how a step was cut into batches; the whole classifier."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from packing import make_batch
from torch.nn.functional import cross_entropy, one_hot

from midigenre.models import (
    Encoder,
    FieldEmbedding,
    LabelHead,
    PhraseClassifier,
    Pooling,
)
from midigenre.spec import UNKNOWN, Batch
from midigenre.tasks.kinds import class_weights

CLASSES = ("jazz", "rock", "folk", "pop")
WEIGHT_C = torch.tensor([0.5, 2.0, 1.0, 3.0])
TARGET_B = torch.tensor([0, 3, UNKNOWN, 1, 1, UNKNOWN, 2])
KNOWN_B = TARGET_B != UNKNOWN


def make_head(**settings: object) -> LabelHead:
    return LabelHead("genre", CLASSES, 8, **settings)


def loss(
    head: LabelHead, logits_BC: torch.Tensor, target_B: torch.Tensor,
    counts_C: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The loss of phrases of one token with these labels."""
    batch = make_batch([1] * len(target_B), labels=target_B.tolist())
    return head.loss(logits_BC, replace(batch, step_counts={} if counts_C is None else {
        "genre": counts_C}))  # fmt: skip


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight_C", [None, WEIGHT_C, WEIGHT_C * torch.tensor([1, 1, 0, 1])])
def test_loss_equals_torch(weight_C: torch.Tensor | None, smoothing: float) -> None:
    head = make_head(class_weights=weight_C, label_smoothing=smoothing)
    logits_BC = torch.randn(7, 4)
    got = loss(head, logits_BC, TARGET_B)
    options = {"weight": weight_C, "label_smoothing": smoothing}
    torch.testing.assert_close(
        got, cross_entropy(logits_BC, TARGET_B, ignore_index=UNKNOWN, **options)
    )
    torch.testing.assert_close(got, cross_entropy(logits_BC[KNOWN_B], TARGET_B[KNOWN_B], **options))
    # Written out: the smoothed target weighs every class by its own weight.
    weights = torch.ones(4) if weight_C is None else weight_C
    nll_BC = -logits_BC[KNOWN_B].log_softmax(-1) * weights
    share_BC = one_hot(TARGET_B[KNOWN_B], 4) * (1 - smoothing) + smoothing / 4
    want = (nll_BC * share_BC).sum() / weights[TARGET_B[KNOWN_B]].sum()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("with_counts", [False, True])
def test_unknown_labels_add_nothing(with_counts: bool) -> None:
    head = make_head(label_smoothing=0.1)
    logits_BC = torch.randn(3, 4, requires_grad=True)
    counts_C = torch.zeros(4) if with_counts else None
    nothing = loss(head, logits_BC, torch.full((3,), UNKNOWN), counts_C)
    nothing.backward()
    assert nothing.item() == 0.0
    assert (logits_BC.grad == 0).all()

    logits_BC = torch.randn(7, 4, requires_grad=True)
    loss(head, logits_BC, TARGET_B).backward()
    assert (logits_BC.grad[~KNOWN_B] == 0).all()
    assert (logits_BC.grad[KNOWN_B] != 0).any(1).all()


def test_only_classes_of_weight_zero_is_zero_not_nan() -> None:
    head = make_head(class_weights=[1, 1, 0, 1], label_smoothing=0.1)
    assert loss(head, torch.randn(2, 4), torch.tensor([2, 2])).item() == 0.0


def make_classifier(pooling: str = "mean", **head: object) -> PhraseClassifier:
    torch.manual_seed(0)
    return PhraseClassifier(
        FieldEmbedding((11,), 8, dropout=0.0),
        Encoder(8, 1, 2, 8, dropout=0.0),
        Pooling(pooling, 8),
        [LabelHead("genre", CLASSES, 8, dropout=0.0, **head)],
    ).double()


def cut(batch: Batch, first: int, last: int) -> Batch:
    """Phrases ``first`` to ``last`` of a batch."""
    a, b = int(batch.cu_seqlens[first]), int(batch.cu_seqlens[last])
    return replace(
        batch,
        ids_NF=batch.ids_NF[a:b],
        cu_seqlens=batch.cu_seqlens[first : last + 1] - a,
        lengths=batch.lengths[first:last],
        labels={k: v[first:last] for k, v in batch.labels.items()},
    )


@pytest.mark.parametrize("cuts", [(0, 1, 7), (0, 2, 3, 7), (0, 4, 5, 6, 7)])
@pytest.mark.parametrize("weight_C", [None, WEIGHT_C])
def test_accumulation_equals_one_large_batch(
    cuts: tuple[int, ...], weight_C: torch.Tensor | None
) -> None:
    """Micro-batches unequal in phrases, tokens and classes; one of them without any label."""
    settings = {"class_weights": weight_C, "label_smoothing": 0.1}
    large = make_batch((3, 9, 1, 4, 4, 2, 6), labels=TARGET_B.tolist())
    whole, pieces, naive = (make_classifier(**settings) for _ in range(3))
    total, _ = whole.loss(whole(large), large)
    total.backward()

    counts_C = torch.bincount(TARGET_B[KNOWN_B], minlength=4).float()
    n = len(cuts) - 1
    values = []
    for first, last in pairwise(cuts):
        small = cut(large, first, last)
        own, _ = naive.loss(naive(small), small)
        (own / n).backward()
        small = replace(small, step_counts={"genre": counts_C}, step_batches=n)
        part, _ = pieces.loss(pieces(small), small)
        (part / n).backward()  # As the trainer does.
        values.append(part.detach() / n)

    torch.testing.assert_close(sum(values), total.detach(), atol=1e-6, rtol=1e-6)
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-5)
    # The usual way, each batch over its own phrases, is another gradient: the test can fail.
    pairs = zip(whole.parameters(), naive.parameters(), strict=True)
    assert not all(torch.allclose(a.grad, b.grad, atol=1e-7, rtol=1e-5) for a, b in pairs)


def test_class_weights() -> None:
    counts_C = torch.tensor([8, 2, 0, 5])
    balanced_C = class_weights(counts_C)
    torch.testing.assert_close(balanced_C, torch.tensor([15 / 24, 15 / 6, 0.0, 15 / 15]))
    assert (balanced_C * counts_C).sum().item() == pytest.approx(15)  # A mean of 1 over phrases.
    torch.testing.assert_close(class_weights(counts_C, 0.5), balanced_C.sqrt())
    assert class_weights(counts_C, 0.0).tolist() == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="power=-1"):
        class_weights(counts_C, -1)
    with pytest.raises(ValueError, match="all counts are 0"):
        class_weights(torch.zeros(4))


def test_class_weights_equal_sklearn() -> None:
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    y = [0] * 8 + [1] * 2 + [2] * 5
    want = sklearn.compute_class_weight("balanced", classes=np.unique(y), y=y)
    torch.testing.assert_close(
        class_weights(torch.tensor([8, 2, 5])), torch.tensor(want, dtype=torch.float32)
    )


def test_head_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=1.5"):
        make_head(label_smoothing=1.5)


def test_class_weights_travel_with_the_weights() -> None:
    state = make_head(class_weights=WEIGHT_C).state_dict()
    head = make_head()
    head.load_state_dict(state)
    assert torch.equal(head.weight_C, WEIGHT_C)


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
@pytest.mark.parametrize("sizes", [(11,), (7, 5, 3)])
def test_classifier_learns_and_phrases_keep_to_themselves(
    pooling: str, sizes: tuple[int, ...]
) -> None:
    model = PhraseClassifier(
        FieldEmbedding(sizes, 16, dropout=0.0),
        Encoder(16, 1, 2, 16, dropout=0.0),
        Pooling(pooling, 16),
        [LabelHead("genre", CLASSES, 16, dropout=0.0)],
    )
    assert (model.cls_D is not None) == (pooling == "cls")
    batch = make_batch((3, 9, 1, 4), sizes, labels=(0, 1, 2, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for step in range(150):
        optimizer.zero_grad()
        total, losses = model.loss(model(batch), batch)
        total.backward()
        if step == 0:
            assert losses["genre"].item() == pytest.approx(torch.tensor(4.0).log().item(), abs=0.1)
            # Attention pooling starts as the mean, so its hidden layer waits one step.
            assert all(
                p.grad is not None and (p.grad != 0).any()
                for name, p in model.named_parameters()
                if "pooling.score.0" not in name and "qkv.bias" not in name
            )
        optimizer.step()
    model.eval()
    logits_BC = model(batch)["genre"]
    assert logits_BC.argmax(-1).tolist() == [0, 1, 2, 3]
    for i in range(4):
        torch.testing.assert_close(model(cut(batch, i, i + 1))["genre"], logits_BC[i : i + 1])
    assert [len(h) for h in model.encode(batch)] == [4, 17]


def test_pretrained_weights_load_by_name() -> None:
    encoder = make_classifier().backbone
    model = make_classifier("cls")
    names = {k for k in model.state_dict() if k.startswith("backbone.")}
    assert names == {f"backbone.{k}" for k in encoder.state_dict()}


def test_the_losses_of_several_heads_are_added() -> None:
    heads = [
        LabelHead("genre", CLASSES, 8, dropout=0.0),
        LabelHead("emotion", ("happy", "sad"), 8, dropout=0.0),
    ]
    model = PhraseClassifier(
        FieldEmbedding((11,), 8, dropout=0.0), Encoder(8, 1, 2, 8), Pooling("mean", 8), heads
    )
    batch = make_batch((3, 2), labels=(0, UNKNOWN))
    batch = replace(batch, labels={**batch.labels, "emotion": torch.tensor([1, 0])})
    logits = model(batch)
    assert {k: v.shape for k, v in logits.items()} == {"genre": (2, 4), "emotion": (2, 2)}
    total, losses = model.loss(logits, batch)
    torch.testing.assert_close(total, losses["genre"] + losses["emotion"])


def test_classifier_refuses_what_does_not_fit() -> None:
    head = LabelHead("genre", CLASSES, 8)
    with pytest.raises(ValueError, match=r"one head for each label.*genre.*genre"):
        PhraseClassifier(
            FieldEmbedding((11,), 8), Encoder(8, 1, 2, 8), Pooling("mean", 8), [head, head]
        )
