"""Training that was stopped and resumed ends as if it had not been, however it was stopped.

What the command does around it (``tests/commands/test_resume.py``) is left out, so that many ways
to stop take a second each.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from short_runs import BATCHES, N_EPOCHS, TASKS, config, train

from midigenre.errors import StoppedError

VARIANTS = {
    "plain": [],
    "accumulated": ["trainer.accumulate_grad_batches=2"],
    "workers": ["data.num_workers=2"],
    "averaged": ["callbacks.average.decay=0.9"],
    "validates within epochs": ["trainer.val_check_interval=3"],
    "validates every other epoch": ["trainer.check_val_every_n_epoch=2"],
}


class Killed(BaseException):
    """What ``kill -9`` leaves is what has been written by then."""


class StopAt(Callback):
    """Stops the training after its ``n``-th batch, over all epochs."""

    def __init__(self, how: str, n: int) -> None:
        self.how, self.n = how, n

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 < self.n:
            return
        if self.how == "time":  # as Lightning's own Timer does
            trainer.should_stop = True
        elif trainer.fit_loop.epoch_loop.total_batch_idx + 1 > self.n:
            return
        elif self.how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.how == "kill":
            raise Killed


def end(folder: Path, trainer: L.Trainer) -> dict[str, Any]:
    """All that follows from a training."""
    last, best = (
        torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for name in ("last", "best")
    )
    early = [v for k, v in last["callbacks"].items() if k.startswith("EarlyStopping")]
    return {
        "files": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        "steps": trainer.global_step,
        "epochs": trainer.fit_loop.epoch_progress.current.ready,
        "val": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        "best": float(trainer.checkpoint_callback.best_model_score),  # type: ignore[union-attr]
        "phrases": last["midigenre_cost"]["phrases"],
        "patience": [(float(state["best_score"]), state["wait_count"]) for state in early],
        "logged": last["loops"]["fit_loop"]["epoch_loop.state_dict"],
        "weights": {k: v.tolist() for k, v in last["state_dict"].items()},
        "moments": [
            {k: v.tolist() for k, v in state.items()}
            for state in last["optimizer_states"][0]["state"].values()
        ],
        "best weights": {k: v.tolist() for k, v in best["state_dict"].items()},
    }


WHOLE: dict[tuple[str, ...], dict[str, Any]] = {}


def uninterrupted(home: Path, settings: list[str], tmp: Path) -> dict[str, Any]:
    key = tuple(settings)
    if key not in WHOLE:
        WHOLE[key] = end(tmp / "whole", train(config(home, *settings), tmp / "whole"))
    return WHOLE[key]


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        assert found[key] == value, key


GRID = [
    pytest.param(task, how, place, variant,
                 marks=[] if (task == "genre" and variant in ("plain", "accumulated")
                              and how != "kill") else pytest.mark.slow)
    for task, how, place, variant in itertools.product(
        TASKS, ("steps", "time", "signal", "kill"), ("inside", "at the end"), VARIANTS)
]  # fmt: skip


@pytest.mark.parametrize(("task", "how", "place", "variant"), GRID)
def test_it_ends_alike(
    task: str, how: str, place: str, variant: str, home: Path, tmp_path: Path
) -> None:
    settings = [f"task={task}", *TASKS[task], *VARIANTS[variant]]
    per_epoch = 4 if variant == "accumulated" else BATCHES
    to_its_end = settings
    if how == "steps":  # which end a training with a validation
        to_its_end = [*settings, f"trainer.max_steps={N_EPOCHS * per_epoch}"]
    wanted = uninterrupted(home, to_its_end, tmp_path)
    assert wanted["steps"] == N_EPOCHS * per_epoch
    run = tmp_path / "run"
    if how == "steps":
        step = per_epoch + (per_epoch if place == "at the end" else per_epoch // 2)
        train(config(home, *settings, f"trainer.max_steps={step}"), run)
    else:
        # The third batch of an epoch is in mid-step, or has a validation after it.
        n_batches = 2 * BATCHES if place == "at the end" else BATCHES + 3
        every = ["callbacks.last.every_minutes=0"] if how == "kill" else []
        try:
            train(config(home, *settings, *every), run, StopAt(how, n_batches))
            assert how == "time"
        except (StoppedError, Killed):
            assert how in ("signal", "kill")
    trainer = train(config(home, *to_its_end), run, resume=True)
    assert_same(end(run, trainer), wanted)


@pytest.mark.parametrize(
    "bound", ["trainer.max_steps=13", "trainer.max_steps=18", "trainer.max_epochs=2"]
)
def test_resumed_after_its_last_step_it_is_the_same(bound: str, home: Path, tmp_path: Path) -> None:
    cfg = config(home, *TASKS["genre"], bound)
    whole = end(tmp_path, train(cfg, tmp_path))
    assert whole["val"]
    assert_same(end(tmp_path, train(cfg, tmp_path, resume=True)), whole)


def test_a_run_that_has_been_moved(home: Path, tmp_path: Path) -> None:
    settings = ["task=genre", *TASKS["genre"]]
    wanted = uninterrupted(home, settings, tmp_path)
    train(config(home, *settings, "trainer.max_steps=13"), tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    trainer = train(config(home, *settings), tmp_path / "there", resume=True)
    assert_same(end(tmp_path / "there", trainer), wanted)
    assert not (tmp_path / "here").exists()
