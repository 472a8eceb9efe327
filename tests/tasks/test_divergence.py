"""A loss or weights that are not finite end the training at once and reach no checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from short_runs import TASKS, config, train

from midigenre.errors import UserError


class Break(Callback):
    """Makes the weights, or the validation's alone, no number before the ``n``-th batch."""

    def __init__(self, n: int, *, in_validation: bool = False) -> None:
        self.n, self.in_validation = n, in_validation

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.n and not self.in_validation:
            with torch.no_grad():
                next(module.parameters()).fill_(torch.nan)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.n and self.in_validation:
            with torch.no_grad():
                next(module.parameters()).fill_(torch.nan)


def finite(path: Path) -> bool:
    weights = torch.load(path, weights_only=True)["state_dict"].values()
    return all(bool(w.isfinite().all()) for w in weights)


@pytest.mark.parametrize(
    ("task", "settings", "step"),
    [
        ("genre", [], 10),
        ("genre", ["trainer.accumulate_grad_batches=2"], 6),
        ("genre", ["precision=bf16"], 10),
        ("generate", [], 10),
        ("mlm", [], 10),
    ],
    ids=["classifier", "accumulated", "bf16", "generator", "masked"],
)
def test_it_stops_before_the_step(
    task: str, settings: list[str], step: int, home: Path, tmp_path: Path
) -> None:
    cfg = config(home, f"task={task}", *TASKS[task], *settings)
    with pytest.raises(UserError) as caught:
        train(cfg, tmp_path, Break(10))
    message = str(caught.value)
    assert f"the loss is nan in step {step} at learning rate 0.003" in message
    assert "optim.lr" in message
    found = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in found] == ["best.ckpt", "last.ckpt"]
    assert all(map(finite, found))


def test_where_a_gpu_is_not_waited_for_the_step_is_the_same(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    cfg = config(home, "task=genre", *TASKS["genre"], "trainer.log_every_n_steps=5")
    trainer_of: list[L.Trainer] = []

    class Read(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer_of[:] = [trainer]
            reads.append(trainer.global_step)

    # As several processes and a GPU do; a checkpoint in between would read them too.
    monkeypatch.setattr("lightning.pytorch.Trainer.world_size", 2)
    monkeypatch.setattr("midigenre.data.datamodule._processes", lambda trainer: {})
    with pytest.raises(UserError, match=r"the loss is nan in step 9 at learning rate 0\.003"):
        train(cfg, tmp_path, Break(9), Read())
    assert reads[-1] == 12  # the fifth batch of the second epoch
    assert all(map(finite, (tmp_path / "checkpoints").iterdir()))


@pytest.mark.parametrize("n", [10, 14], ids=["inside an epoch", "at its end"])
def test_weights_that_are_no_number_reach_no_checkpoint(n: int, home: Path, tmp_path: Path) -> None:
    cfg = config(home, "task=genre", *TASKS["genre"], "callbacks.last.every_minutes=0")
    with pytest.raises(UserError) as caught:
        train(cfg, tmp_path, Break(n, in_validation=True))
    assert re.search(rf"after step {n} at learning rate 0\.003", str(caught.value))
    assert all(map(finite, (tmp_path / "checkpoints").iterdir()))
