"""Augmented training phrases: a function of (seed, epoch, index), and only in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from toysongs import CLASSES, prepared, songs_in

from midigenre.build import make_augment
from midigenre.corpora.toy import Toy
from midigenre.data.augment import AugmentSettings, PhraseChanges, integers, jittered, uniform
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import PhraseReader
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.spec import UNKNOWN, Batch

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "augment").glob("*.yaml"))


def settings(name: str, *overrides: str) -> AugmentSettings:
    with initialize_config_dir(str(CONF), version_base=None):
        made = make_augment(compose("train", [f"augment={name}", *overrides]))
    assert made is not None
    return made


STRONG = settings("strong")


def loader(shards: ShardSet, augment: AugmentSettings | None = STRONG, **more: Any) -> Any:
    return PhraseDataModule(
        shards.folder, batch_phrases=7, augment=augment, **more
    ).train_dataloader()


def phrases(batches: list[Batch]) -> list[tuple[Any, ...]]:
    """Song, first bar and tokens of each phrase."""
    found: list[tuple[Any, ...]] = []
    for b in batches:
        bounds = b.cu_seqlens.tolist()
        for i, (song, first) in enumerate(zip(b.song_B.tolist(), b.start_B.tolist(), strict=True)):
            found.append((song, first, b.ids_NF[bounds[i] : bounds[i + 1]].numpy().tobytes()))
    return found


def epoch(made: Any, number: int) -> list[tuple[Any, ...]]:
    made.batch_sampler.set_epoch(number)
    return phrases(list(made))


# Where and when


def test_without_augmentation_nothing_changes(toy: ShardSet) -> None:
    assert not settings("none").changes
    plain = epoch(loader(toy, None), 1)
    assert epoch(loader(toy, settings("none")), 1) == plain
    never = AugmentSettings(probability=0.0, transpose=(1, 1), drop=1.0)
    assert epoch(loader(toy, never), 1) == plain
    # The phrases that are drawn are the same, only their tokens are not.
    changed = epoch(loader(toy, settings("standard")), 1)
    assert [p[:2] for p in changed] == [p[:2] for p in plain]
    differ = [a != b for a, b in zip(changed, plain, strict=True)]
    assert 0.8 < np.mean(differ) <= 1


@pytest.mark.parametrize("kind", [k for k in CLASSES if k != "cp"])
def test_phrases_depend_on_seed_epoch_and_index_only(kind: str, tmp_path: Path) -> None:
    """Not on workers, batches, or what was read before; also after going on."""
    shards = prepared(Toy(n_songs=12), tmp_path, kind)
    one = loader(shards)
    first, second = epoch(one, 0), epoch(one, 1)
    assert first != second
    assert epoch(one, 0) == first
    assert epoch(loader(shards, num_workers=2), 1) == second
    assert epoch(loader(shards, seed=1), 1) != second
    bigger = PhraseDataModule(shards.folder, batch_phrases=1000, augment=STRONG).train_dataloader()
    assert sorted(epoch(bigger, 1)) == sorted(second)
    again = loader(shards)
    again.batch_sampler.resume(1, 2)
    assert phrases(list(again)) == second[14:]


@pytest.mark.parametrize("kind", ["octuple", "tsd"])
def test_evaluation_reads_phrases_as_they_are(kind: str, tmp_path: Path) -> None:
    shards = prepared(Toy(n_songs=12), tmp_path, kind)
    data = PhraseDataModule(shards.folder, augment=STRONG)
    read = PhraseReader(shards, shards.tokens, 1024)
    for split in ("train", "val", "test"):
        for batch in data.eval_dataloader(split):
            for song, first, ids in phrases([batch]):
                end = min(first + 4, len(shards.bar_onsets(song)))
                assert ids == read(song, first, end)[0].tobytes()
    assert data.phrases("train").key is None


def test_a_share_of_the_phrases_is_changed(toy: ShardSet) -> None:
    plain = epoch(loader(toy, None), 0)
    changed = epoch(loader(toy, AugmentSettings(probability=0.3, transpose=(1, 1))), 0)
    differ = np.mean([a != b for a, b in zip(changed, plain, strict=True)])
    assert 0.15 < differ < 0.45


def test_max_tokens_bounds_augmented_phrases(tmp_path: Path) -> None:
    for kind in ("remi", "tsd"):
        shards = prepared(Toy(n_songs=12), tmp_path, kind)
        for batch in loader(shards, max_tokens=150):
            assert 0 < min(batch.lengths) <= max(batch.lengths) <= 150


# Rare classes


def test_rare_classes_are_changed_more(tmp_path: Path) -> None:
    shards = prepared(songs_in(tmp_path / "in", 40, ("a", "a", "a", "b")), tmp_path)
    rows, labels = shards.rows("train"), shards.label_indices()
    genre = labels["genre"][rows]
    n_a, n_b = (int((genre == c).sum()) for c in (0, 1))
    assert n_a > 2 * n_b
    more = AugmentSettings(probability=0.2, transpose=(1, 1), target="genre", target_power=0.5)
    p = more.probabilities(rows, labels)
    assert p[genre == 0] == pytest.approx(0.2)
    assert p[genre == 1] == pytest.approx(0.2 * (n_a / n_b) ** 0.5)
    certain = AugmentSettings(probability=0.9, transpose=(1, 1), target="genre", target_power=5.0)
    assert certain.probabilities(rows, labels).max() == 1.0
    labels["genre"][rows[0]] = UNKNOWN
    assert more.probabilities(rows, labels)[0] == pytest.approx(0.2)
    with pytest.raises(UserError, match=r"augment.target=mood.*genre"):
        AugmentSettings(transpose=(1, 1), target="mood").probabilities(rows, labels)


# Settings


@pytest.mark.parametrize("name", NAMES)
def test_every_config_can_be_made(name: str, toy: ShardSet) -> None:
    made = settings(name)
    assert made.changes == (name != "none")
    assert len(epoch(loader(toy, made), 0)) == len(loader(toy, None).batch_sampler._draw(0))


def test_a_single_key_suffices() -> None:
    assert settings("none", "augment.transpose=[-5,6]").transpose == (-5, 6)
    assert settings("strong", "augment.transpose=null").transpose is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augment.transpose=[6,-5]", "augment.transpose.*lower one first"),
        ("augment.transpose=3", "augment.transpose=3"),
        ("augment.transpose=[-99,0]", "from -24 to 24"),
        ("augment.transpose=[-0.5,1]", "whole numbers"),
        ("augment.duration=[0,2]", "from 0.1 to 10"),
        ("augment.phrase_bars=[0,4]", "augment.phrase_bars"),
        ("augment.phrase_bars=high", "augment.phrase_bars=high"),
        ("augment.drop=1.5", "augment.drop=1.5 must lie in 0 to 1"),
        ("augment.probability=yes", "augment.probability"),
        ("augment.target_power=-1", "augment.target_power"),
        ("augment.velocity_noise=-1", "augment.velocity_noise"),
        ("augment.solo=0.9", "must not sum to above 1"),
    ],
)
def test_settings_out_of_range_are_rejected(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings("strong", override)


def test_more_bars_than_the_vocabulary_numbers_are_rejected(toy: ShardSet) -> None:
    with pytest.raises(UserError, match=r"augment.phrase_bars=\[2, 65\].*64"):
        PhraseDataModule(toy.folder, augment=AugmentSettings(phrase_bars=(2, 65)))


# Chance


def test_draws_are_even_and_independent_of_each_other() -> None:
    keys = np.random.default_rng(0).integers(1, 2**64 - 1, 20_000, np.uint64)
    draws = PhraseChanges.draw(
        keys, AugmentSettings(transpose=(-5, 6), tempo=(-1, 1), velocity=(-2, 2),
                                           drop=0.2, solo=0.1, duration=(0.5, 2.0)))  # fmt: skip
    counts = np.bincount(draws.transpose + 5, minlength=12)
    assert len(counts) == 12
    assert abs(counts / len(keys) - 1 / 12).max() < 0.01
    assert np.bincount(draws.programs) / len(keys) == pytest.approx([0.7, 0.2, 0.1], abs=0.015)
    assert np.log(draws.duration).mean() == pytest.approx(0, abs=0.02)
    assert 0.5 <= draws.duration.min() < 0.52
    assert 1.95 < draws.duration.max() <= 2.0
    columns = np.stack([draws.transpose, draws.tempo, draws.velocity, draws.duration, draws.which])
    assert abs(np.corrcoef(columns) - np.eye(5)).max() < 0.03
    # Neighbouring keys and places give unrelated numbers, too.
    near = uniform(np.arange(1, 20_001, dtype=np.uint64), 1)
    places = uniform(np.full(20_000, 7, np.uint64), 1, np.arange(20_000))
    for u in (near, places):
        assert np.histogram(u, 10, (0, 1))[0] / 20_000 == pytest.approx(0.1, abs=0.01)
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.03
    bar, one = np.arange(20_000), np.ones(20_000, int)  # each alone in the middle of its bar
    keys, phrase, free = np.full(20_000, 7, np.uint64), 0 * one, np.zeros(20_000, bool)
    moves = jittered(keys, phrase, bar, one, 3 * one, free, 0.3)
    assert np.bincount(moves + 1) / 20_000 == pytest.approx([0.15, 0.7, 0.15], abs=0.015)
    assert integers(np.array([0.0, 1 - 2.0**-53]), -2, 3).tolist() == [-2, 3]
