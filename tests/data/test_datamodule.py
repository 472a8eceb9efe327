"""The data module: settings, coverage, what Lightning calls."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from toysongs import prepared, songs_in

from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import consecutive
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.spec import Batch


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("phrase_bars", 0),
        ("phrase_bars", 65),
        ("max_tokens", 0),
        ("batch_phrases", 0),
        ("eval_batch_phrases", -1),
        ("phrases_per_song", 0),
        ("num_workers", -1),
    ],
)
def test_settings_out_of_range_are_named(toy: ShardSet, name: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"data\.{name} must .*{value}"):
        PhraseDataModule(toy.folder, **{name: value})


def test_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="midigenre prepare"):
        PhraseDataModule(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_evaluation_reads_every_phrase_once_in_order(toy: ShardSet, split: str, batch: int) -> None:
    data = PhraseDataModule(toy.folder, eval_batch_phrases=batch)
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader)
    expected = consecutive(toy, toy.rows(split), 4)
    assert torch.cat([b.song_B for b in batches]).tolist() == expected.song.tolist()
    assert torch.cat([b.start_B for b in batches]).tolist() == expected.first.tolist()
    assert max(b.n_phrases for b in batches) <= batch
    total = sum(np.bincount(b.labels["genre"], minlength=4) for b in batches)
    assert all(b.step_counts["genre"].tolist() == total.tolist() for b in batches)


def test_all_splits_at_once(toy: ShardSet) -> None:
    batches = list(PhraseDataModule(toy.folder).eval_dataloader(None))
    assert set(torch.cat([b.song_B for b in batches]).tolist()) == set(range(len(toy)))


def test_training_reads_training_songs_only(toy: ShardSet) -> None:
    data = PhraseDataModule(toy.folder, phrases_per_song=3, batch_phrases=8)
    songs = Counter(i for b in data.train_dataloader() for i in b.song_B.tolist())
    assert songs == dict.fromkeys(toy.rows("train").tolist(), 3)


def test_class_counts(toy: ShardSet) -> None:
    data = PhraseDataModule(toy.folder)
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        counts = data.class_counts(split)
        for label in ("genre", "emotion"):
            found = sum(np.bincount(b.labels[label], minlength=4) for b in loader)
            assert counts[label].tolist() == found.tolist()


def test_empty_splits_are_explained(tmp_path: Path) -> None:
    shards = prepared(songs_in(tmp_path, 2), tmp_path)
    data = PhraseDataModule(shards.folder)
    assert len(list(data.train_dataloader())) == 1
    with pytest.raises(UserError, match="no song in the val split"):
        data.val_dataloader()
    none = prepared(songs_in(tmp_path, 2), tmp_path, fractions=(0.0, 0.5, 0.5))
    with pytest.raises(UserError, match="no song in the training split"):
        PhraseDataModule(none.folder).train_dataloader()


class Reads(L.LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[tuple[int, int]]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert batch.step_batches == 2
        self.seen[-1] += zip(batch.song_B.tolist(), batch.start_B.tolist(), strict=True)
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, seed: int, epochs: int = 3) -> list[list[tuple[int, int]]]:
    model = Reads()
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=2,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, PhraseDataModule(folder, batch_phrases=16, seed=seed))
    return model.seen


def test_lightning_moves_on_to_the_next_epoch(toy: ShardSet) -> None:
    """Lightning finds ``set_epoch``, so that every epoch has phrases of its own."""
    seen = fit(toy.folder, 0)
    songs = [Counter(s for s, _ in epoch) for epoch in seen]
    assert songs[0] == songs[1] == songs[2]
    assert len({tuple(epoch) for epoch in seen}) == 3
    assert fit(toy.folder, 0) == seen
    assert fit(toy.folder, 1, 1)[0] != seen[0]
