"""The generator: no leak from what comes, packing changes nothing, conditions matter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from packing import make_batch
from torch import Tensor

from midigenre.models import (
    LSTM,
    ConditionEmbedding,
    Encoder,
    FieldEmbedding,
    FieldHead,
    PhraseGenerator,
)
from midigenre.spec import UNKNOWN, Batch

SIZES = {"one field": (11,), "three fields": (11, 7, 5)}
BACKBONES = {
    "encoder": lambda: Encoder(16, 2, 2, 32, dropout=0.0),
    "encoder with convolution": lambda: Encoder(16, 1, 2, 32, dropout=0.0, conv_width=3),
    "post-norm, learned": lambda: Encoder(16, 1, 2, 32, "post", "learned", dropout=0.0),
    "lstm": lambda: LSTM(16, 2, dropout=0.0),
}


def generator(
    sizes: tuple[int, ...] = (11,),
    backbone: str = "encoder",
    by: str = "prefix",
    told: bool = True,
    dropout: float = 0.0,
) -> PhraseGenerator:
    conditions = ConditionEmbedding({"genre": 3}, 16, dropout) if told else None
    made = PhraseGenerator(
        FieldEmbedding(sizes, 16, dropout=0.0),
        BACKBONES[backbone](),
        conditions,
        FieldHead(sizes, 16),
        by,  # type: ignore[arg-type]
    )
    return made.double().eval()


def nats(model: PhraseGenerator, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.loss(batch)[0]


@pytest.mark.parametrize("by", ["prefix", "add"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_step_depends_on_those_before_it_alone(
    sizes: tuple[int, ...], backbone: str, by: str
) -> None:
    model = generator(sizes, backbone, by)
    batch = make_batch([6, 9], sizes, [0, 2])
    before = model(batch)
    for at in (0, 4, 6, 14):
        changed = batch.ids_NF.clone()
        changed[at] = (changed[at] + 1) % torch.tensor(sizes)
        after = model(replace(batch, ids_NF=changed))
        moved = ((after - before).abs().amax(1) > 1e-9).tolist()
        last = 5 if at < 6 else 14
        # Row t predicts step t: those up to the changed step know nothing of it.
        assert moved == [at < row <= last for row in range(15)]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("by", ["prefix", "add"])
def test_a_phrase_means_the_same_in_any_company(backbone: str, by: str) -> None:
    model = generator((11, 7), backbone, by)
    together = make_batch([5, 1, 8], (11, 7), [1, 0, UNKNOWN])
    found = nats(model, together)
    begin = 0
    for phrase, length in enumerate(together.lengths):
        alone = make_batch([length], (11, 7), [int(together.labels["genre"][phrase])])
        alone = replace(alone, ids_NF=together.ids_NF[begin : begin + length])
        torch.testing.assert_close(nats(model, alone), found[begin : begin + length])
        begin += length


@pytest.mark.parametrize("by", ["prefix", "add"])
def test_a_condition_changes_every_step_and_unknown_is_one(by: str) -> None:
    model = generator(by=by)
    seen = [model(make_batch([4], labels=[label])) for label in (0, 1, 2, UNKNOWN)]
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert ((one - other).abs().amax(1) > 1e-9).all()
    untold = generator(told=False)
    assert torch.equal(untold(make_batch([4], labels=[0])), untold(make_batch([4], labels=[1])))


def test_nats_are_those_of_a_distribution_over_whole_steps() -> None:
    """Over all possible steps the probabilities sum to one, whatever the order of the fields."""
    for order in ((0, 1, 2), (2, 0, 1)):
        torch.manual_seed(0)
        head = FieldHead((4, 3, 2), 8, order).double()
        every = torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(2))
        h_ND = torch.randn(1, 8, dtype=torch.float64).expand(len(every), -1)
        nats_NF, _ = head.loss(h_ND, every)
        assert (-nats_NF.sum(1)).exp().sum().item() == pytest.approx(1, abs=1e-5)
        # A later field knows the earlier ones, an earlier one does not know the later.
        last, first = order[-1], order[0]
        by_first = {int(step[first]): set() for step in every}
        for step, row in zip(every.tolist(), nats_NF.tolist(), strict=True):
            by_first[step[first]].add(round(row[first], 9))
        assert all(len(values) == 1 for values in by_first.values())
        fixed = [
            round(row[last], 9)
            for step, row in zip(every.tolist(), nats_NF.tolist(), strict=True)
            if step[last] == 0
        ]
        assert len(set(fixed)) == len(fixed)


def test_field_logits_are_the_rows_of_the_full_pass() -> None:
    head = FieldHead((4, 3, 2), 8, (2, 0, 1)).double()
    h_ND = torch.randn(5, 8, dtype=torch.float64)
    ids_NF = torch.stack([torch.randint(size, (5,)) for size in (4, 3, 2)], 1)
    whole = head(h_ND, ids_NF)
    for place, field in enumerate(head.order):
        chosen = ids_NF.clone()
        chosen[:, list(head.order[place:])] = -1  # must not be looked at
        torch.testing.assert_close(head.field_logits(h_ND, place, chosen), whole[field])


def test_conditions_are_hidden_by_chance_in_training_only() -> None:
    table = ConditionEmbedding({"genre": 2, "emotion": 3}, 4, dropout=0.25)
    labels = {"genre": torch.ones(4000, dtype=torch.int64), "emotion": torch.zeros(4000).long()}
    told = table.eval()(labels)
    assert told.shape == (4000, 2, 4)
    assert (told == told[:1]).all()
    drawn = table.train()(labels)
    hidden = (drawn != told).any(-1)
    assert hidden.float().mean(0).tolist() == pytest.approx([0.25, 0.25], abs=0.03)
    both = hidden.all(1).float().mean()
    assert both.item() == pytest.approx(0.25**2, abs=0.02)  # each label for itself
    unknown = {label: torch.full((4000,), UNKNOWN) for label in labels}
    assert torch.equal(drawn[hidden], table.eval()(unknown)[hidden])


@pytest.mark.parametrize("backbone", ["encoder", "lstm"])
def test_it_learns_what_the_condition_decides(backbone: str) -> None:
    torch.manual_seed(0)
    model = generator((5, 3), backbone).float().train()
    batch = make_batch([6, 6], (5, 3), [0, 1], seed=3)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(batch)[0].sum(1).mean().backward()
        optimizer.step()
    model.eval()
    assert nats(model, batch).sum(1).max() < 0.1
    swapped = replace(batch, labels={"genre": torch.tensor([1, 0])})
    assert nats(model, swapped).sum(1)[[0, 6]].min() > 1


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"condition_by='cross'.*prefix"):
        generator(by="cross")
    with pytest.raises(ValueError, match=r"condition_dropout=1\.5"):
        ConditionEmbedding({"genre": 2}, 4, 1.5)


def test_lstm_directions() -> None:
    batch = make_batch([4, 7, 4])
    h_ND = torch.randn(15, 16)
    both = LSTM(16, 2, dropout=0.0, bidirectional=True)
    out = both(h_ND, batch.cu_seqlens, batch.lengths, causal=False)
    assert out.shape == (15, 16)
    h2_ND = h_ND.clone()
    h2_ND[10] = torch.randn(16)  # in the second phrase: all of it changes, nothing else
    moved = (both(h2_ND, batch.cu_seqlens, batch.lengths) - out).abs().amax(1) > 1e-7
    assert moved.tolist() == [4 <= row < 11 for row in range(15)]
    with pytest.raises(ValueError, match="has two and the task needs one direction"):
        both(h_ND, batch.cu_seqlens, batch.lengths, causal=True)
    with pytest.raises(ValueError, match="has one and the task needs two directions"):
        LSTM(16, 2)(h_ND, batch.cu_seqlens, batch.lengths, causal=False)
    with pytest.raises(ValueError, match="must be even"):
        LSTM(15, 1, bidirectional=True)


def test_the_lstm_trains_on_what_it_is_evaluated_on() -> None:
    """The faster way through training gives the same outputs and the same gradients."""
    torch.manual_seed(0)
    lstm = LSTM(16, 2, dropout=0.0)
    lengths = (5, 1, 9)
    h_ND = torch.randn(15, 16, requires_grad=True)
    cu_seqlens = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    trained_ND = lstm(h_ND, cu_seqlens, lengths, causal=True)
    with torch.no_grad():
        evaluated_ND = lstm(h_ND, cu_seqlens, lengths, causal=True)
    torch.testing.assert_close(trained_ND, evaluated_ND)
    (gradient,) = torch.autograd.grad(trained_ND.square().sum(), h_ND)
    (expected,) = torch.autograd.grad(lstm.pack(h_ND, lengths)[0].square().sum(), h_ND)
    torch.testing.assert_close(gradient, expected)
