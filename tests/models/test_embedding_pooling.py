"""What stands before and behind the backbone: embedding, prefix, pooling."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import packed
from torch import nn

from midigenre.models import FieldEmbedding, Pooling
from midigenre.models.sequences import LARGEST_INTERVAL, Intervals, insert_prefix

SIZES = (7, 5, 3)
IDS_NF = torch.tensor([[6, 4, 2], [0, 0, 0], [3, 4, 1], [6, 0, 2]])


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_one_field_is_one_table(combine: str) -> None:
    embedding = FieldEmbedding((7,), 16, combine, d_field=4, dropout=0.0)
    assert [p.shape for p in embedding.parameters()] == [(7, 16)]
    table = nn.Embedding(7, 16)
    table.load_state_dict(embedding.tables[0].state_dict())
    assert torch.equal(embedding(IDS_NF[:, :1]), table(IDS_NF[:, 0]))


@pytest.mark.parametrize("d_field", [None, 4])
def test_concat_against_naive(d_field: int | None) -> None:
    embedding = FieldEmbedding(SIZES, 16, "concat", d_field, dropout=0.0)
    rows = [
        torch.cat([table.weight[i] for table, i in zip(embedding.tables, step, strict=True)])
        for step in IDS_NF.tolist()
    ]
    assert rows[0].shape == (3 * (d_field or 16),)
    want = torch.stack(rows) @ embedding.project.weight.T + embedding.project.bias
    torch.testing.assert_close(embedding(IDS_NF), want)


def test_sum_against_naive() -> None:
    embedding = FieldEmbedding(SIZES, 16, "sum", dropout=0.0)
    rows = [
        sum(table.weight[i] for table, i in zip(embedding.tables, step, strict=True))
        for step in IDS_NF.tolist()
    ]
    torch.testing.assert_close(embedding(IDS_NF), torch.stack(rows))


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [((500,), {}), ((500,) * 8, {"combine": "sum"}), ((500,) * 8, {"d_field": 32})],
)
def test_steps_start_on_one_scale(sizes: tuple[int, ...], settings: dict) -> None:
    ids_NF = torch.stack([torch.randint(size, (400,)) for size in sizes], dim=1)
    h_ND = FieldEmbedding(sizes, 128, dropout=0.0, **settings)(ids_NF)
    assert h_ND.std().item() == pytest.approx(0.02, rel=0.1)


def test_embedding_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"combine='mean'.*concat, sum"):
        FieldEmbedding(SIZES, 16, "mean")
    with pytest.raises(ValueError, match=r"d_field=4.*d_model=16"):
        FieldEmbedding(SIZES, 16, "sum", d_field=4)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        FieldEmbedding(SIZES, 16)(IDS_NF[:, :2])
    with pytest.raises(IndexError):  # Not silently another field's vector.
        FieldEmbedding(SIZES, 16, "sum")(torch.tensor([[0, 5, 0]]))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 3))
def test_prefix_goes_in_and_comes_out(lengths: list[int], P: int) -> None:
    h_ND, cu_seqlens = packed(lengths, 4)
    prefix_BPD = packed([len(lengths)], P, 4, seed=1)[0]
    h_ND.requires_grad_()
    out = insert_prefix(h_ND, cu_seqlens, lengths, prefix_BPD)
    parts = zip(prefix_BPD, h_ND.split(lengths), strict=True)
    assert torch.equal(out.h_MD, torch.cat([row for pair in parts for row in pair]))
    assert out.lengths == tuple(n + P for n in lengths)
    assert out.cu_seqlens.diff().tolist() == list(out.lengths)
    assert out.cu_seqlens.dtype == torch.int32
    assert torch.equal(out.h_MD[out.tokens_N], h_ND)
    out.h_MD[out.tokens_N].sum().backward()
    assert (h_ND.grad == 1).all()


def test_gradients_of_a_shared_prefix_add_up() -> None:
    h_ND, cu_seqlens = packed((2, 3, 1), 4)
    cls_D = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    out = insert_prefix(h_ND, cu_seqlens, (2, 3, 1), cls_D.expand(3, 1, -1))
    out.h_MD.sum().backward()
    assert (cls_D.grad == 3).all()


def make_pooling(kind: str) -> Pooling:
    pooling = Pooling(kind, 8).double()
    for parameter in pooling.parameters():
        nn.init.normal_(parameter)
    return pooling


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.sampled_from(["cls", "mean", "attention", "mean_max"]),
)
def test_pooling_against_a_loop(lengths: list[int], kind: str) -> None:
    torch.manual_seed(0)
    pooling = make_pooling(kind)
    h_ND, cu_seqlens = packed(lengths, 8)
    h_ND.requires_grad_()
    rows = []
    for phrase in h_ND.split(lengths):
        if kind == "cls":
            rows.append(phrase[0])
        elif kind == "mean":
            rows.append(phrase.mean(0))
        elif kind == "mean_max":
            rows.append(pooling.project(torch.cat((phrase.mean(0), phrase.max(0).values))))
        else:
            rows.append(pooling.score(phrase).squeeze(-1).softmax(0) @ phrase)
    want = torch.stack(rows)
    got = pooling(h_ND, cu_seqlens)
    # Pooling sums in float32 whatever comes in.
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    gradient = packed([len(lengths)], 8, seed=1)[0]
    (want_grad,) = torch.autograd.grad(want, h_ND, gradient)
    (got_grad,) = torch.autograd.grad(got, h_ND, gradient)
    torch.testing.assert_close(got_grad, want_grad, atol=1e-5, rtol=1e-4)


def test_attention_weights_sum_to_one_and_start_as_the_mean() -> None:
    lengths = (3, 1, 6)
    h_ND, cu_seqlens = packed(lengths, 8)
    h_ND = h_ND * 100  # Large scores must not overflow.
    # What is pooled is a weighted mean: it has an added constant in full, and lies between values.
    pooling = make_pooling("attention")
    h_ND[:, 0] = 7
    nn.init.zeros_(pooling.score[0].weight[:, 0])
    pooled_BD = pooling(h_ND, cu_seqlens)
    torch.testing.assert_close(pooled_BD[:, 0], torch.full((3,), 7.0).double(), atol=1e-5, rtol=0)
    for row, phrase in zip(pooled_BD, h_ND.split(lengths), strict=True):
        assert (row >= phrase.amin(0) - 1e-3).all()
        assert (row <= phrase.amax(0) + 1e-3).all()
    fresh, mean = Pooling("attention", 8).double(), Pooling("mean", 8)
    torch.testing.assert_close(
        fresh(h_ND, cu_seqlens), mean(h_ND, cu_seqlens), atol=1e-4, rtol=1e-4
    )


def test_pooling_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"pooling='max'.*cls, mean, attention"):
        Pooling("max", 8)


# Intervals

# Ids of a stream's one field (PAD, Bar, two positions, then pitches), and of Octuple's two.
STREAM = [[-1, -1, -1, -1, *range(60, 72)]], [[False, True, True, True, *[False] * 12]]
OCTUPLE = [[-1, -1, *range(60, 72)], [-1] * 5], [[False] * 14, [False, True, True, True, True]]
Ids = list[tuple[int, ...]]


def intervals_of(phrase: Ids, pitches: list[list[int]], times: list[list[bool]]) -> Ids:
    """Columns of one phrase, onset by onset."""
    onsets: list[list[int]] = []
    before: tuple[int, ...] | None = None
    for ids in phrase:
        said = [field for field, i in enumerate(ids) if times[field][i]]
        if before is None or any(ids[field] != before[field] for field in said):
            onsets.append([])
        onsets[-1].append(pitches[0][ids[0]])
        before = ids
    found, last = [], None
    for onset in onsets:
        bass = min((pitch for pitch in onset if pitch >= 0), default=None)
        for pitch in onset:
            if pitch < 0:
                found.append((0, 0))
                continue
            melodic = 0 if last is None else pitch - last + LARGEST_INTERVAL + 1
            found.append((melodic, pitch - bass + 1))
            last = pitch
    return found


@pytest.mark.parametrize("vocabulary", [STREAM, OCTUPLE], ids=["stream", "octuple"])
@given(data=st.data(), up=st.integers(-2, 2))
@settings(deadline=None)
def test_intervals_are_those_of_each_phrase_by_itself(
    vocabulary: tuple[list[list[int]], list[list[bool]]], data: st.DataObject, up: int
) -> None:
    pitches, _ = vocabulary
    token = st.tuples(*(st.integers(0, len(of) - 1) for of in pitches))
    phrase = st.lists(token, min_size=1, max_size=12)
    phrases = data.draw(st.lists(phrase, min_size=1, max_size=6))
    made = Intervals(*vocabulary, 4)
    ids_NF = torch.tensor([ids for phrase in phrases for ids in phrase])
    cu_seqlens = torch.tensor([0, *accumulate(map(len, phrases))], dtype=torch.int32)
    found = made.of(ids_NF, cu_seqlens)
    want = [row for phrase in phrases for row in intervals_of(phrase, *vocabulary)]
    assert list(zip(*(of_N.tolist() for of_N in found), strict=True)) == want
    # In another key they stay.
    first, moved_NF = pitches[0].index(60), ids_NF.clone()
    notes = moved_NF[:, 0] >= first
    moved_NF[notes, 0] += up
    if ((moved_NF[notes, 0] >= first) & (moved_NF[notes, 0] < first + 12)).all():
        torch.testing.assert_close(made.of(moved_NF, cu_seqlens), found)


def test_large_intervals_count_as_the_largest() -> None:
    made = Intervals([[0, 127], [-1]], [[False, False], [True]], 4)
    ids_NF = torch.tensor([[0, 0], [1, 0], [0, 0]])
    melodic_N, harmonic_N = made.of(ids_NF, torch.tensor([0, 3], dtype=torch.int32))
    assert melodic_N.tolist() == [0, 2 * LARGEST_INTERVAL + 1, 1]
    assert harmonic_N.tolist() == [1, LARGEST_INTERVAL + 1, 1]
    assert made.melodic.num_embeddings == 2 * LARGEST_INTERVAL + 2
    assert made.harmonic.num_embeddings == LARGEST_INTERVAL + 2


@pytest.mark.parametrize(
    ("pitches", "times"), [([[-1, -1]], [[True, False]]), ([[-1, 60]], [[False, False]])]
)
def test_a_vocabulary_without_pitches_or_times_has_no_intervals(
    pitches: list[list[int]], times: list[list[bool]]
) -> None:
    with pytest.raises(ValueError, match=r"no tokens of pitch .* set model\.intervals=false"):
        Intervals(pitches, times, 4)


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_intervals_are_added_to_the_fields(combine: str) -> None:
    made = Intervals(*OCTUPLE, 16)
    embedding = FieldEmbedding((14, 5), 16, combine, dropout=0.0, intervals=made)
    assert embedding.sizes == (14, 5)  # what heads predict
    plain = FieldEmbedding((14, 5), 16, combine, dropout=0.0)
    plain.load_state_dict(embedding.state_dict(), strict=False)
    ids_NF = torch.tensor([[2, 1], [9, 1], [0, 1], [5, 2]])
    cu_seqlens = torch.tensor([0, 2, 4], dtype=torch.int32)
    added_ND = made.melodic.weight[[0, 44, 0, 0]] + made.harmonic.weight[[1, 8, 0, 1]]
    torch.testing.assert_close(embedding(ids_NF, cu_seqlens), plain(ids_NF) + added_ND)
    assert not added_ND[2].any()  # no note: the fields alone
