"""When ``last.ckpt`` is written, whatever validation goes by."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from midigenre.tasks.callbacks import LastCheckpoint


class Spy(BoringModel):
    """Notes how many batches of the epoch were done whenever a checkpoint is made."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[tuple[int, int]] = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        self.saved.append((self.trainer.current_epoch, done))


def train(folder: Path, **settings: Any) -> Spy:
    model = Spy()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, limit_train_batches=6, limit_val_batches=1,
        callbacks=[LastCheckpoint(str(folder), every_minutes=None)], **settings,
    )  # fmt: skip
    trainer.fit(model)
    return model


@pytest.mark.parametrize(
    "validation",
    [
        {},
        {"check_val_every_n_epoch": 5},
        {"check_val_every_n_epoch": None, "val_check_interval": "00:01:00:00"},
    ],
    ids=["each epoch", "every fifth", "by the clock"],
)
def test_it_is_written_after_each_epoch(tmp_path: Path, validation: dict[str, Any]) -> None:
    model = train(tmp_path, max_epochs=3, **validation)
    assert [epoch for epoch, _ in model.saved] == [0, 1, 2]
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (2, 18)


def test_it_never_leaves_out_accumulated_gradients(tmp_path: Path) -> None:
    model = train(
        tmp_path, max_epochs=1, accumulate_grad_batches=4, check_val_every_n_epoch=None,
        val_check_interval=3,
    )  # fmt: skip
    assert model.saved == [(0, 6)]  # not after the third batch, where a validation was
