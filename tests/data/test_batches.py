"""Batches: each phrase once an epoch, the same plan everywhere, counts of the whole step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toysongs import tokenizer

from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import PhraseReader, Phrases, consecutive
from midigenre.data.sampler import (
    BatchSampler,
    PhraseDataset,
    PlannedBatch,
    RandomStarts,
)
from midigenre.data.shards import ShardSet
from midigenre.spec import UNKNOWN, Batch
from midigenre.tasks.predict import group_by_budget

Key = tuple[int, int]


def keys(planned: list[PlannedBatch]) -> list[list[Key]]:
    return [
        list(zip(p.phrases.song.tolist(), p.phrases.first.tolist(), strict=True)) for p in planned
    ]


def flat(planned: list[PlannedBatch]) -> list[Key]:
    return [key for batch in keys(planned) for key in batch]


@pytest.fixture
def sampler(toy: ShardSet) -> Callable[..., BatchSampler]:
    """A sampler over all phrases of the toy corpus; the fourth song has no genre."""
    phrases = consecutive(toy, toy.rows(None), 4)
    labels = toy.label_indices()
    labels["genre"][3] = UNKNOWN

    def make(**settings: Any) -> BatchSampler:
        defaults: dict[str, Any] = {"batch_phrases": 7, "shuffle_seed": 0}
        return BatchSampler(
            lambda epoch: phrases,
            labels,
            {"genre": 4, "emotion": 4},
            **(defaults | settings),
        )

    return make


def counts_of(toy: ShardSet, planned: list[PlannedBatch], label: str) -> list[int]:
    indices = toy.label_indices()[label]
    if label == "genre":
        indices[3] = UNKNOWN
    found = Counter(int(indices[song]) for batch in planned for song in batch.phrases.song)
    return [found[i] for i in range(4)]


# group_by_budget


@given(
    st.lists(st.integers(0, 50), max_size=80),
    st.integers(1, 12),
    st.one_of(st.none(), st.integers(1, 120)),
)
@settings(max_examples=200, deadline=None)
def test_groups_partition_in_order_and_keep_the_bounds(
    lengths: list[int], most: int, tokens: int | None
) -> None:
    groups = [g.tolist() for g in group_by_budget(np.array(lengths, np.int64), most, tokens)]
    assert [i for g in groups for i in g] == list(range(len(lengths)))
    assert all(groups)
    sums = [sum(lengths[i] for i in g) for g in groups]
    for group, total in zip(groups, sums, strict=True):
        assert len(group) <= most
        assert tokens is None or total <= tokens or len(group) == 1
    # Greedy: no batch could have taken the next phrase too.
    for (a, total), b in zip(zip(groups, sums, strict=True), groups[1:], strict=False):
        assert len(a) == most or (tokens is not None and total + lengths[b[0]] > tokens)


# The sampler


def test_each_phrase_once_an_epoch(toy: ShardSet, sampler: Callable[..., BatchSampler]) -> None:
    phrases = consecutive(toy, toy.rows(None), 4)
    made = sampler()
    planned = list(made)
    assert len(planned) == len(made)
    assert sorted(flat(planned)) == sorted(zip(phrases.song, phrases.first, strict=True))
    assert {len(p.phrases) for p in planned[:-1]} == {7}
    assert len(planned[-1].phrases) <= 7


def test_plan_is_a_function_of_seed_and_epoch(sampler: Callable[..., BatchSampler]) -> None:
    plans = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            made = sampler(shuffle_seed=seed)
            made.set_epoch(epoch)
            plans[seed, epoch] = keys(list(made))
            assert keys(list(made)) == plans[seed, epoch]
    assert len({str(p) for p in plans.values()}) == 4
    one = sampler()
    for epoch in (1, 0, 1):
        one.sampler.set_epoch(epoch)
        assert keys(list(one)) == plans[0, epoch]


def test_no_shuffle_keeps_the_order(toy: ShardSet, sampler: Callable[..., BatchSampler]) -> None:
    phrases = consecutive(toy, toy.rows(None), 4)
    assert flat(list(sampler(shuffle_seed=None))) == list(
        zip(phrases.song, phrases.first, strict=True)
    )


def test_shuffle_and_draw_are_apart(toy: ShardSet) -> None:
    """The order must not follow from the draw, though both use one seed."""
    starts = RandomStarts(toy, toy.rows(None), 4)
    drawn = np.random.default_rng([0, 5]).random(len(starts))
    order = np.random.default_rng([0, 5, 1]).permutation(len(starts))
    assert abs(np.corrcoef(drawn, order)[0, 1]) < 0.3


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_an_epoch(
    toy: ShardSet, sampler: Callable[..., BatchSampler], world: int, accumulate: int
) -> None:
    def plan(**settings: int) -> list[PlannedBatch]:
        return list(sampler(batch_phrases=10, accumulate=accumulate, **settings))

    ranks = [plan(rank=r, world=world) for r in range(world)]
    whole = plan()
    assert world == 1 or len(whole) % world  # some batches are left over
    assert {len(r) for r in ranks} == {len(whole) // world}
    together = [b for r in ranks for b in r]
    phrases = flat(together)
    assert len(phrases) == len(set(phrases))
    assert set(phrases) <= set(flat(whole))
    assert len(flat(whole)) - len(phrases) <= 10 * (world - 1)

    steps = range(0, len(ranks[0]), accumulate)
    for begin in steps:
        step = [b for r in ranks for b in r[begin : begin + accumulate]]
        for label in ("genre", "emotion"):
            expected = counts_of(toy, step, label)
            for batch in step:
                # DDP divides the gradients by the number of processes.
                assert batch.step_counts[label].dtype == np.float32
                np.testing.assert_allclose(
                    batch.step_counts[label] * world, expected, rtol=1e-6, err_msg=label
                )
        # Lightning divides by this, also in a last step of fewer batches.
        assert {b.step_batches for b in step} == {accumulate}


def test_last_step_may_be_shorter(toy: ShardSet, sampler: Callable[..., BatchSampler]) -> None:
    planned = list(sampler(accumulate=4, batch_phrases=9))
    assert len(planned) % 4
    last = planned[len(planned) // 4 * 4 :]
    np.testing.assert_array_equal(last[0].step_counts["genre"], counts_of(toy, last, "genre"))
    assert last[0].step_batches == 4


def test_evaluation_counts_the_whole_epoch(
    toy: ShardSet, sampler: Callable[..., BatchSampler]
) -> None:
    planned = list(sampler(accumulate=None, shuffle_seed=None))
    assert len(planned) > 3
    for batch in planned:
        assert batch.step_batches == 1
        for label in ("genre", "emotion"):
            np.testing.assert_array_equal(
                batch.step_counts[label], counts_of(toy, planned, label), label
            )


def test_unknown_labels_are_counted_nowhere(
    toy: ShardSet, sampler: Callable[..., BatchSampler]
) -> None:
    (batch,) = list(sampler(batch_phrases=10_000))
    of_song = int((batch.phrases.song == 3).sum())
    assert of_song > 0
    assert batch.step_counts["genre"].sum() == len(batch.phrases) - of_song
    assert batch.step_counts["emotion"].sum() == len(batch.phrases)


def test_an_epoch_without_phrases(toy: ShardSet) -> None:
    none = Phrases(*(np.zeros(0, np.int64),) * 3)
    for accumulate in (None, 2):
        made = BatchSampler(lambda epoch: none, {}, {}, 4, accumulate=accumulate)
        assert (len(made), list(made)) == (0, [])


# Laying phrases end to end


def test_a_batch_is_packed(toy: ShardSet) -> None:
    phrases = consecutive(toy, np.array([5, 2]), 4)
    reader = PhraseReader(toy, toy.tokens)
    ids = [reader(*p)[0] for p in zip(phrases.song, phrases.first, phrases.end, strict=True)]
    genre = np.arange(len(ids)) % 3 - 1
    batch = Batch.from_phrases(ids, {"genre": genre}, phrases.song, phrases.first)
    assert batch.n_phrases == len(ids)
    assert batch.n_tokens == sum(len(i) for i in ids)
    assert batch.lengths == tuple(len(i) for i in ids)
    assert (batch.ids_NF.dtype, batch.cu_seqlens.dtype) == (torch.int64, torch.int32)
    assert batch.cu_seqlens[0] == 0
    bounds = batch.cu_seqlens.tolist()
    for (begin, end), expected in zip(pairwise(bounds), ids, strict=True):
        np.testing.assert_array_equal(batch.ids_NF[begin:end], expected)
    assert bounds[-1] == batch.n_tokens
    assert batch.labels["genre"].tolist() == genre.tolist()
    assert batch.labels["genre"].dtype == torch.int64
    assert batch.song_B.tolist() == phrases.song.tolist()
    assert batch.start_B.tolist() == phrases.first.tolist()
    assert (batch.step_counts, batch.step_batches, batch.step_size) == ({}, 1, 1)


def test_a_batch_knows_its_step(toy: ShardSet) -> None:
    counts = {"genre": np.array([1, 2], np.float32)}
    planned = PlannedBatch(consecutive(toy, np.array([5, 2]), 4), counts, 3, 2)
    batch = PhraseDataset(PhraseReader(toy, toy.tokens), toy.label_indices())[planned]
    assert batch.step_counts["genre"].tolist() == [1, 2]
    assert batch.step_counts["genre"].dtype == torch.float32
    assert (batch.step_batches, batch.step_size) == (3, 2)


def equal(a: Batch, b: Batch) -> None:
    for name in ("ids_NF", "cu_seqlens", "song_B", "start_B"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.lengths, a.step_batches) == (b.lengths, b.step_batches)
    for name in ("labels", "step_counts"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one)


def test_workers_give_the_same_batches(toy: ShardSet) -> None:
    loaders = [
        PhraseDataModule(toy.folder, batch_phrases=9, num_workers=n).train_dataloader()
        for n in (0, 2)
    ]
    for epoch in (0, 1):
        for loader in loaders:
            loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        here, there = (list(loader) for loader in loaders)
        assert len(here) == len(there) == len(loaders[0])
        for a, b in zip(here, there, strict=True):
            equal(a, b)


def test_batches_hold_what_the_reader_gives(toy: ShardSet) -> None:
    reader = PhraseReader(toy, tokenizer().spec, 200)
    labels = toy.label_indices()
    for batch in PhraseDataModule(toy.folder, max_tokens=200, batch_phrases=9).train_dataloader():
        bounds = batch.cu_seqlens.tolist()
        for i, (song, first) in enumerate(zip(batch.song_B, batch.start_B, strict=True)):
            end = min(int(first) + 4, len(toy.bar_onsets(int(song))))
            ids = batch.ids_NF[bounds[i] : bounds[i + 1]]
            np.testing.assert_array_equal(ids, reader(int(song), int(first), end)[0])
            assert len(ids) <= 200
            for label in labels:
                assert batch.labels[label][i] == labels[label][song]


def test_going_on_leaves_out_what_is_done(toy: ShardSet) -> None:
    sampler: Any = PhraseDataModule(toy.folder, batch_phrases=4).train_dataloader().batch_sampler
    sampler.set_epoch(1)
    whole = [b.phrases.song.tolist() for b in sampler]
    again: Any = PhraseDataModule(toy.folder, batch_phrases=4).train_dataloader().batch_sampler
    again.resume(1, 3)
    assert len(again) == len(whole)  # the trainer counts the whole epoch
    assert [b.phrases.song.tolist() for b in again] == whole[3:]
    again.set_epoch(2)
    assert len(list(again)) == len(again)
