"""The insides of Lightning and PyTorch that we lean on are there in the installed versions."""

from __future__ import annotations

import inspect
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.optim.lr_scheduler import OneCycleLR

from midigenre.tasks.callbacks import Loop, average_weights


class Spy(L.Callback):
    """Asks the loop behind each batch, as ``LastCheckpoint`` does."""

    def __init__(self) -> None:
        self.found: list[tuple[bool, bool, bool, bool]] = []
        self.loops: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert callable(trainer.fit_loop._iteration_based_training)
        Loop(trainer).end_epochs_once()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        loop = Loop(trainer)
        self.found.append(
            (loop.is_last_batch, loop.validates(), loop.may_stop, loop.received_sigterm)
        )
        loop.received_sigterm = False
        self.loops = {"fit_loop": trainer.fit_loop.state_dict()}


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Spy:
    found = Spy()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path_factory.mktemp("run"),
        limit_train_batches=4, limit_val_batches=1, val_check_interval=2, max_epochs=2, min_steps=6,
        num_sanity_val_steps=0, callbacks=[found],
    )  # fmt: skip
    trainer.fit(BoringModel())
    return found


def test_the_loop_says_where_it_is(spy: Spy) -> None:
    last, validates, may_stop, sigterm = zip(*spy.found, strict=True)
    assert last == (False, False, False, True) * 2
    assert validates == (False, True) * 4
    assert may_stop == (False,) * 5 + (True,) * 3
    assert sigterm == (False,) * 8


def test_the_loops_state_has_what_is_put_back(spy: Spy) -> None:
    loop = spy.loops["fit_loop"]
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    epochs["current"]["processed"] = epochs["current"]["ready"]
    batches["is_last_batch"] = False
    done = batches["current"]["completed"], loop["epoch_loop.state_dict"]["_batches_that_stepped"]
    Loop.inside(spy.loops)
    now = batches["current"]["completed"], loop["epoch_loop.state_dict"]["_batches_that_stepped"]
    assert now == (done[0] - 1, done[1] - 1)


def test_averaging_has_lightnings_hooks() -> None:
    assert type(average_weights(None)) is L.Callback
    for name in ("_average_model", "_swap_models", "_copy_average_to_current"):
        assert name in inspect.getsource(L.pytorch.callbacks.WeightAveraging)


def test_one_cycle_reads_its_place_in_last_epoch() -> None:
    """``optim.OneCycle`` sets it to where the clock is, and drops the length from the state."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = OneCycleLR(optimizer, 0.1, 10, cycle_momentum=False)
    assert {"total_steps", "_schedule_phases"} <= schedule.state_dict().keys()
    rates = [schedule.get_lr()[0]]
    for place in (1.5, 2.0):  # between two steps, and the peak
        schedule.last_epoch = place
        rates.append(schedule.get_lr()[0])
    assert rates[0] < rates[1] < rates[2] == pytest.approx(0.1)
