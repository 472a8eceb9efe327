"""k accumulated batches give the gradients of one large batch, however unequal they are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from midigenre.data.phrases import PhraseReader, Phrases, consecutive
from midigenre.data.sampler import BatchSampler, PhraseDataset
from midigenre.data.shards import ShardSet
from midigenre.models import Encoder, FieldEmbedding, LabelHead, PhraseClassifier, Pooling
from midigenre.spec import UNKNOWN, Batch


def classifier(shards: ShardSet) -> PhraseClassifier:
    torch.manual_seed(0)
    weights = {"genre": [1.0, 0.3, 2.0, 0.7], "emotion": None}
    return PhraseClassifier(
        FieldEmbedding(shards.tokens.sizes, 8, dropout=0.0),
        Encoder(8, 1, 2, 8, dropout=0.0),
        Pooling("attention", 8),
        [
            LabelHead(label, names, 8, weights[label], label_smoothing=0.1, dropout=0.0)
            for label, names in shards.labels.classes.items()
        ],
    ).double()  # fmt: skip


def gradients(
    model: PhraseClassifier, batches: Sequence[Batch], divide_by: int
) -> dict[str, Tensor]:
    """What lies in ``grad`` after the batches of a step, accumulated as Lightning does."""
    model = copy.deepcopy(model)
    for batch in batches:
        loss, _ = model.loss(model(batch), batch)
        (loss / divide_by).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of all gradients."""
    assert found.keys() == expected.keys()
    off = torch.cat([(found[n] - expected[n]).flatten() for n in expected]).norm()
    return float(off / torch.cat([g.flatten() for g in expected.values()]).norm())


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert difference(found, expected) < 1e-6  # the loss is computed in float32


def steps(
    toy: ShardSet, accumulate: int | None, batch_phrases: int, rank: int = 0, world: int = 1
) -> tuple[list[Batch], Phrases, dict[str, np.ndarray]]:
    labels = toy.label_indices()
    labels["genre"][toy.rows(None)[::5]] = UNKNOWN
    phrases = consecutive(toy, np.arange(8), 4)
    reader = PhraseReader(toy, toy.tokens, 400)
    sampler = BatchSampler(
        lambda epoch: phrases, labels, {"genre": 4, "emotion": 4},
        batch_phrases, 0, accumulate, rank, world,
    )  # fmt: skip
    dataset = PhraseDataset(reader, labels)
    return [dataset[planned] for planned in sampler], phrases, labels


def large(toy: ShardSet, batches: Sequence[Batch], labels: dict[str, np.ndarray]) -> Batch:
    """One batch of the phrases of all of them, that knows nothing of a step."""
    song = torch.cat([b.song_B for b in batches]).numpy()
    first = torch.cat([b.start_B for b in batches]).numpy()
    ids = [part.numpy() for b in batches for part in torch.split(b.ids_NF, list(b.lengths))]
    return Batch.from_phrases(ids, {k: v[song] for k, v in labels.items()}, song, first)


@pytest.mark.parametrize(("accumulate", "batch_phrases"), [(1, 6), (3, 5), (4, 6), (50, 3)])
def test_accumulated_batches_equal_a_large_one(
    toy: ShardSet, accumulate: int, batch_phrases: int
) -> None:
    model = classifier(toy)
    batches, _, labels = steps(toy, accumulate, batch_phrases)
    assert len({b.n_phrases for b in batches}) > 1
    assert any((b.labels["genre"] == UNKNOWN).any() for b in batches)
    for begin in range(0, len(batches), accumulate):
        step = batches[begin : begin + accumulate]
        expected = gradients(model, [large(toy, step, labels)], 1)
        found = gradients(model, step, accumulate)  # Lightning never divides by less
        same(found, expected)


def test_each_batch_by_itself_would_not(toy: ShardSet) -> None:
    """The test above can fail: means of unequal batches are not the mean of all."""
    model = classifier(toy)
    batches, _, labels = steps(toy, 4, 9)  # 9, 9, 9 and 1
    step = batches[:4]
    alone = [replace(b, step_counts={}, step_batches=1) for b in step]
    expected = gradients(model, [large(toy, step, labels)], 1)
    found = gradients(model, alone, 4)
    assert difference(found, expected) > 0.02


@pytest.mark.parametrize(("accumulate", "batch_phrases"), [(1, 6), (5, 5), (50, 3)])
def test_means_of_batches_count_alike_in_every_step(
    toy: ShardSet, accumulate: int, batch_phrases: int
) -> None:
    """Also in an epoch's last step, which has fewer: the trainer divides by ``accumulate``."""
    batches = steps(toy, accumulate, batch_phrases)[0]
    assert accumulate == 1 or len(batches) % accumulate
    for begin in range(0, len(batches), accumulate):
        step = batches[begin : begin + accumulate]
        weights = [b.mean_scale / accumulate for b in step]
        assert weights == pytest.approx([1 / len(step)] * len(step))
    assert {b.mean_scale for b in steps(toy, None, batch_phrases)[0]} == {1}


def test_two_processes_equal_one_large_batch(toy: ShardSet) -> None:
    """DDP takes the mean of the gradients of the processes."""
    model = classifier(toy)
    ranks = [steps(toy, 2, 4, rank, 2)[0] for rank in range(2)]
    labels = steps(toy, 2, 4)[2]
    for begin in range(0, len(ranks[0]), 2):
        step = [r[begin : begin + 2] for r in ranks]
        expected = gradients(model, [large(toy, step[0] + step[1], labels)], 1)
        found = [gradients(model, batches, 2) for batches in step]
        same({name: (found[0][name] + found[1][name]) / 2 for name in expected}, expected)


def test_losses_of_an_evaluation_add_up_to_the_mean(toy: ShardSet) -> None:
    model = classifier(toy).eval()
    batches, _, labels = steps(toy, None, 6)
    with torch.no_grad():
        total = sum(float(model.loss(model(b), b)[0]) for b in batches)
        whole = large(toy, batches, labels)
        assert total == pytest.approx(float(model.loss(model(whole), whole)[0]), rel=1e-6)
