"""Protocols: which songs each part trains on and tests, a function of ids, groups and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.shards import ShardSet
from midigenre.data.splits import (
    BY_SOURCE,
    CROSSVAL,
    HOLDOUT,
    Fold,
    Protocol,
    assign_folds,
    song_groups,
    split_settings,
)
from midigenre.errors import UserError
from midigenre.spec import UNKNOWN, LabelSpec

SPLIT = {"seed": 0, "fractions": [0.8, 0.1, 0.1]}
GENRES = ("jazz", "rock", "waltz")


@dataclass
class Manifest:
    """Columns of a manifest."""

    table: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.table["song_id"])

    @property
    def columns(self) -> list[str]:
        return list(self.table)

    def column(self, name: str) -> list[str]:
        return self.table[name]


class Shards:
    """As much of a ShardSet as a protocol looks at."""

    folder = Path("shards/made-remi-0")

    def __init__(self, rows: Sequence[dict[str, str]]) -> None:
        names = ("song_id", "source", "group", "duplicate_group", "genre")
        table = {name: [row.get(name, "") for row in rows] for name in names}
        self.manifest = Manifest(table)
        self.labels = LabelSpec({"genre": GENRES})

    def __len__(self) -> int:
        return len(self.manifest)

    def label_indices(self) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
        genres = self.manifest.column("genre")
        return {"genre": np.array([GENRES.index(g) if g else UNKNOWN for g in genres], np.int64)}


def song(i: int, genre: str, source: str = "", group: str = "", same: str = "") -> dict[str, str]:
    return {
        "song_id": f"s{i:03}",
        "genre": genre,
        "source": source,
        "group": group,
        "duplicate_group": same,
    }


def parts(shards: Any, labels: Sequence[str] = ("genre",), **chosen: Any) -> list[Fold]:
    given = {"name": CROSSVAL, "folds": 5, "part": None} | chosen
    protocol = Protocol.from_config(
        split_settings(given, SPLIT | {"seed": chosen.get("seed", 0)}, labels)
    )
    assert protocol is not None
    return [protocol.split(shards, k) for k in range(1, len(protocol.names(shards)) + 1)]


SONGS = st.lists(
    st.tuples(
        st.sampled_from(("", *GENRES)),
        st.sampled_from(("a", "b", "c")),
        st.integers(0, 12),
        st.integers(0, 12),
    ),
    min_size=14,
    max_size=60,
).map(
    lambda rows: Shards(
        [
            # Every third song stands alone, so that there are groups enough.
            song(i, genre, source, f"g{g}" if g and i % 3 else "", f"s{d:03}" if d > 9 else "")
            for i, (genre, source, g, d) in enumerate(rows)
        ]
    )
)


@given(SONGS, st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_folds_test_every_song_once_and_keep_groups_whole(
    shards: Shards, n_folds: int, seed: int
) -> None:
    groups = np.array(song_groups(shards))  # type: ignore[arg-type]
    found = parts(shards, folds=n_folds, seed=seed)
    tested = np.concatenate([part.rows["test"] for part in found])
    assert sorted(tested.tolist()) == list(range(len(shards)))
    for part in found:
        rows = np.concatenate([part.rows[split] for split in ("train", "val", "test")])
        assert sorted(rows.tolist()) == list(range(len(shards)))
        held = [set(groups[part.rows[split]]) for split in ("train", "val", "test")]
        assert sum(map(len, held)) == len(set.union(*held))
        assert all((np.diff(rows) > 0).all() for rows in part.rows.values())
    assert [part.name for part in found] == [f"fold-{k + 1}-of-{n_folds}" for k in range(n_folds)]


@given(SONGS, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_folds_do_not_depend_on_the_order_of_the_songs(shards: Shards, random: Any) -> None:
    """Another tokenizer's shards may hold the songs in other parts."""
    order = list(range(len(shards)))
    random.shuffle(order)
    table = shards.manifest.table
    mixed = Shards([{name: table[name][i] for name in table} for i in order])
    for part, other in zip(parts(shards), parts(mixed), strict=True):
        for split in ("train", "val", "test"):
            ids = {table["song_id"][i] for i in part.rows[split]}
            assert ids == {mixed.manifest.table["song_id"][i] for i in other.rows[split]}


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=80), st.integers(2, 6))
@settings(max_examples=80, deadline=None)
def test_single_songs_are_split_evenly(strata: list[str], n_folds: int) -> None:
    fold_S = assign_folds(strata, range(len(strata)), n_folds, seed=1)
    for one in set(strata):
        counts = np.bincount(fold_S[np.array(strata) == one], minlength=n_folds)
        assert counts.max() - counts.min() <= 1
    sizes = np.bincount(fold_S, minlength=n_folds)
    assert sizes.max() - sizes.min() <= max(1, len(set(strata)) - 1)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=60, max_size=90))
@settings(max_examples=30, deadline=None)
def test_every_label_is_stratified(strata: list[tuple[str, str]]) -> None:
    fold_S = assign_folds(strata, range(len(strata)), 3)
    for label in (0, 1):
        values = np.array([s[label] for s in strata])
        for one in set(values):
            counts = np.bincount(fold_S[values == one], minlength=3)
            assert counts.max() - counts.min() <= 3, (one, counts)


def test_the_seed_moves_the_folds_and_nothing_else_does() -> None:
    shards = Shards([song(i, GENRES[i % 3]) for i in range(60)])
    first, again, other = parts(shards), parts(shards), parts(shards, seed=1)
    for k in range(5):
        assert np.array_equal(first[k].rows["test"], again[k].rows["test"])
    assert any(not np.array_equal(first[k].rows["test"], other[k].rows["test"]) for k in range(5))


def test_validation_has_its_share_of_the_rest_and_every_class() -> None:
    shards = Shards([song(i, GENRES[i % 3]) for i in range(270)])
    genre = shards.label_indices()["genre"]
    for part in parts(shards):
        assert abs(len(part.rows["val"]) - 216 / 9) <= 3
        assert set(genre[part.rows["val"]]) == {0, 1, 2}


def by_source(labels: Sequence[str] = ("genre",), **chosen: Any) -> tuple[Shards, list[Fold]]:
    rows = [song(i, GENRES[i % 2], "groove") for i in range(20)]
    rows += [song(20 + i, GENRES[i % 2], "synth") for i in range(20)]
    rows += [song(40 + i, "waltz", "synth") for i in range(5)]
    rows += [song(45, "", "groove"), song(46, "rock", "synth", group="band")]
    rows += [song(47, "rock", "groove", group="band"), song(48, "jazz", "synth", same="s000")]
    rows[0]["duplicate_group"] = "s000"
    shards = Shards(rows)
    return shards, parts(shards, labels, name=BY_SOURCE, folds=None, sources=None, **chosen)


def test_a_source_is_tested_by_the_others_and_leaks_nothing() -> None:
    shards, (groove, synth) = by_source()
    source = np.array(shards.manifest.column("source"))
    groups = np.array(song_groups(shards))  # type: ignore[arg-type]
    assert [groove.name, synth.name] == ["source-groove", "source-synth"]
    for part, name in ((groove, "groove"), (synth, "synth")):
        assert set(source[part.rows["test"]]) == {name}
        learnt = np.concatenate([part.rows["train"], part.rows["val"]])
        assert name not in set(source[learnt])
        # Nor a copy, nor the same band, of what is tested.
        assert not set(groups[learnt]) & set(groups[source == name])
        assert part.left_out == 2
    assert len(groove.rows["test"]) == 21  # all but the one without a label
    assert 45 not in groove.rows["test"]


def test_classes_of_one_source_are_counted_as_untestable() -> None:
    shards, (groove, synth) = by_source()
    assert groove.untestable == {}
    assert synth.untestable == {"genre": {"waltz": 5}}
    assert not set(range(40, 45)) & set(synth.rows["test"].tolist())
    assert synth.to_dict()["untestable"] == {"genre": {"waltz": 5}}
    visible = synth.visible(shards.label_indices())["genre"]
    assert (visible[40:45] == UNKNOWN).all()
    assert np.array_equal(visible[:40], shards.label_indices()["genre"][:40])


def test_without_labels_a_source_is_tested_as_a_whole() -> None:
    shards, (groove, synth) = by_source(labels=())
    source = np.array(shards.manifest.column("source"))
    assert len(groove.rows["test"]) == (source == "groove").sum()
    assert len(synth.rows["test"]) == (source == "synth").sum()


def test_some_sources_in_their_order() -> None:
    shards, _ = by_source()
    given = {"name": BY_SOURCE, "sources": ["synth"], "part": None}
    protocol = Protocol.from_config(split_settings(given, SPLIT))
    assert protocol is not None
    assert protocol.names(shards) == ["source-synth"]  # type: ignore[arg-type]


def test_names_of_sources_stay_apart_as_folders() -> None:
    shards = Shards([song(i, "rock", ("a b", "a/b", "c")[i % 3]) for i in range(9)])
    found = parts(shards, name=BY_SOURCE, folds=None, sources=None)
    assert [part.name for part in found] == ["source-a_b", "source-a_b-2", "source-c"]


def one_part(shards: Any, **chosen: Any) -> Fold:
    protocol = Protocol.from_config(
        split_settings({"name": CROSSVAL, "folds": 5, "part": None} | chosen, SPLIT)
    )
    assert protocol is not None
    return protocol.split(shards, protocol.part or 1)


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one fold": ({"folds": 1}, ["protocol.folds=1", "2 or more"]),
    "half a fold": ({"folds": 2.5}, ["protocol.folds=2.5"]),
    "too many folds": ({"folds": 99}, ["protocol.folds=99", "20 groups"]),
    "part 0": ({"part": 0}, ["protocol.part=0"]),
    "a part too many": ({"part": 9}, ["protocol.part=9", "5 parts"]),
    "a part of what has none": ({"name": HOLDOUT, "part": 2}, ["protocol.part=2", "no parts"]),
    "no such protocol": ({"name": "loo"}, ["protocol.name=loo", "crossval"]),
    "no sources": (
        {"name": BY_SOURCE, "sources": None},
        ["come from 'one'", "corpus=manifest", "column `source`", "protocol=crossval"],
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_clear_line(what: str) -> None:
    chosen, words = MISTAKES[what]
    shards = Shards([song(i, "rock", "one") for i in range(20)])
    with pytest.raises(UserError) as error:
        one_part(shards, **chosen)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_an_unknown_source_is_named_with_those_there_are() -> None:
    shards, _ = by_source()
    given = {"name": BY_SOURCE, "sources": ["lakh"], "part": 1}
    protocol = Protocol.from_config(split_settings(given, SPLIT))
    assert protocol is not None
    with pytest.raises(UserError, match="'lakh'; there is groove, synth"):
        protocol.split(shards)  # type: ignore[arg-type]


def test_the_data_module_reads_the_songs_of_its_part(toy: ShardSet) -> None:
    given = {"name": CROSSVAL, "folds": 4}
    tested: Counter[int] = Counter()
    for k in range(1, 5):
        about = split_settings(given | {"part": k}, SPLIT, ("genre",))
        data = PhraseDataModule(toy.folder, protocol=about)
        rows = {split: data.rows(split).tolist() for split in ("train", "val", "test")}
        tested.update(rows["test"])
        assert sorted(chain.from_iterable(rows.values())) == list(range(len(toy)))
        read = {int(s) for batch in data.test_dataloader() for s in batch.song_B}
        assert read == set(rows["test"])
        trained = {int(s) for batch in data.train_dataloader() for s in batch.song_B}
        assert trained <= set(rows["train"])
        assert data.class_counts()["genre"].sum() > 0
        assert len(data.rows(None)) == len(toy)
    assert set(tested.values()) == {1}
    assert len(tested) == len(toy)


def test_a_fold_takes_its_share_of_a_part(toy: ShardSet) -> None:
    about = split_settings({"name": CROSSVAL, "folds": 4, "part": 2}, SPLIT)
    whole = PhraseDataModule(toy.folder, protocol=about)
    halves = [PhraseDataModule(toy.folder, protocol=about, fold=f"{i}/2") for i in (1, 2)]
    both = [set(half.rows("train").tolist()) for half in halves]
    assert both[0] | both[1] == set(whole.rows("train").tolist())
    assert not both[0] & both[1]
    for half in halves:
        assert np.array_equal(half.rows("test"), whole.rows("test"))


def test_the_prepared_split_is_the_default(toy: ShardSet) -> None:
    assert split_settings({"name": HOLDOUT, "part": None}, SPLIT) is None
    assert split_settings(None, SPLIT) is None
    data = PhraseDataModule(toy.folder, protocol=None)
    for split in ("train", "val", "test", None):
        assert np.array_equal(data.rows(split), toy.rows(split))
