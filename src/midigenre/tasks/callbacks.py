"""Callbacks: checkpoints, averaged weights, the progress bar."""

from __future__ import annotations

import copy
import io
import os
import shutil
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import timedelta
from logging import getLogger
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from midigenre.errors import UserError
from midigenre.files import whole, write_bytes
from midigenre.tasks.optim import time_limits

log = getLogger(__name__)


TRIAL: ContextVar[Any] = ContextVar("trial", default=None)
"""The trial of ``midigenre tune`` (``optuna.Trial``) that this process trains, if any."""

PRUNED = "pruned"
"""The trial's attribute for the validation after which it was stopped."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes every checkpoint beside the one that it replaces, which is kept until then.

    Lightning writes into the temporary folder and moves: to another file system that is a copy over
    the old file, and a kill or a full disk in the middle leaves neither.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Writes one; an OSError leaves the former checkpoint as it was."""
        # To memory first: `torch.save` turns the file's OSError into one that has no reason.
        data = io.BytesIO()
        torch.save(checkpoint, data)
        write_bytes(Path(path), data.getbuffer())


class ValidateLastStep(Callback):
    """Validates when ``trainer.max_steps`` ends training inside an epoch.

    Lightning does so for ``max_time``; without it such a run would have no best checkpoint.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Asks the trainer to stop, which validates, instead of just breaking off."""
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True


class Pruning(Callback):
    """Reports every validation to :data:`TRIAL`, and stops a run that it prunes."""

    def __init__(self) -> None:
        self._validations = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reports the score that chooses the best checkpoint."""
        if (trial := TRIAL.get()) is None:  # a trial that is resumed by itself
            return
        self._validations += 1
        monitor = str(trainer.checkpoint_callback.monitor)  # type: ignore[union-attr]
        trial.report(float(trainer.callback_metrics[monitor]), self._validations)
        # A run that was killed after it was pruned may be resumed before that, and then go on.
        pruned = trial.should_prune()
        trial.set_user_attr(PRUNED, self._validations if pruned else None)
        trainer.should_stop |= pruned

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self._validations = state_dict["validations"]


class Loop:
    """The internals of Lightning that :class:`LastCheckpoint` needs, all in one place.

    They are not part of its interface: ``tests/tasks/test_lightning_insides.py`` checks them
    against the installed version.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._fit, self._signals = trainer.fit_loop, trainer._signal_connector

    def end_epochs_once(self) -> None:
        """Makes the next epoch begin where one has ended; with ``max_steps`` it ends twice."""
        self._fit._iteration_based_training = lambda: False  # type: ignore[method-assign]

    @property
    def received_sigterm(self) -> bool:
        """Whether the process was asked to stop, which Lightning does after the batch."""
        return self._signals.received_sigterm

    @received_sigterm.setter
    def received_sigterm(self, is_so: bool) -> None:
        self._signals.received_sigterm = is_so

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch is the last one of the epoch."""
        return self._fit.epoch_loop.batch_progress.is_last_batch

    @property
    def may_stop(self) -> bool:
        """Whether ``min_epochs`` and ``min_steps`` let the training stop."""
        return self._fit._can_stop_early

    def validates(self) -> bool:
        """Whether a validation follows the batch."""
        assert self._fit._data_fetcher is not None
        return self._fit.epoch_loop._should_check_val_fx(self._fit._data_fetcher)

    @staticmethod
    def inside(loops: dict[str, Any]) -> None:
        """Puts the end of a training, as a checkpoint holds it, to where its last batch was."""
        loop = loops["fit_loop"]
        epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
        finished = epochs["current"]["processed"] == epochs["current"]["ready"]
        if finished and not batches["is_last_batch"]:
            for counts in ("total", "current"):
                epochs[counts]["processed"] -= 1
                batches[counts]["completed"] -= 1
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, from which training resumes exactly.

    It is written after each epoch, every few minutes within one, and when the training is asked to
    stop, by a signal, the clock or ``trainer.max_steps``. Within an epoch it is written after a
    whole optimizer step only: accumulated gradients are in no checkpoint.

    Where training ends between two validations there is one more, which chooses the best checkpoint
    too. If the run is resumed with a later end, it is undone: scores, patience and the
    best checkpoint are restored to those before it, as in a run that was never stopped.

    Args:
        every_minutes: Longest time without a checkpoint while an epoch trains; None for none.
    """

    def __init__(self, dirpath: str | None = None, every_minutes: float | None = 5.0) -> None:
        super().__init__(
            dirpath, filename="last", save_top_k=1, enable_version_counter=False,
            auto_insert_metric_name=False,
            # Whatever validation goes by: after one in mid-step, gradients would be lost.
            save_on_train_epoch_end=True,
        )  # fmt: skip
        self.every_minutes = every_minutes
        self._stopping = self._ending = self._after_validation = False
        self._scores: dict[str, float] = {}
        # The states of the other callbacks before a validation that only the end of training made.
        self._before: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """See :meth:`Loop.end_epochs_once`."""
        super().setup(trainer, pl_module, stage)
        Loop(trainer).end_epochs_once()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Saves when the time has come or the process is asked to stop."""
        loop = Loop(trainer)
        last = loop.is_last_batch
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # Lightning stops at once; hold it back until the step is whole.
        self._stopping |= loop.received_sigterm
        self._ending |= trainer.should_stop
        trainer.should_stop = False
        validates = loop.validates()
        trainer.should_stop = self._ending and (whole_step or last)
        ends = trainer.should_stop and loop.may_stop
        # After the last batch, of the epoch or of all, a checkpoint would leave out the validation:
        # there it is saved, and stops, after that.
        loop.received_sigterm = self._stopping and whole_step and not last and not ends
        self._before = self._states(trainer) if ends and not validates else None
        if not whole_step or last or ends:
            return
        due = self.every_minutes is not None and (
            time.monotonic() - self._saved >= 60 * self.every_minutes
        )
        # All processes save together or none does.
        if trainer.strategy.broadcast(due or self._stopping):
            self._after_validation = validates
            if not validates:
                self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the scores, and makes the save that was due before this validation."""
        super().on_validation_end(trainer, pl_module)
        self._scores = {
            k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")
        }
        if self._after_validation:
            self._after_validation = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves, and stops if that was held back; the log of the run has a line of the scores."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero:
            found = trainer.callback_metrics
            names = ("train/loss", getattr(trainer.checkpoint_callback, "monitor", None))
            shown = [f"{name} {float(found[name]):.4f}" for name in names if name in found]
            log.info("epoch %d: %s", trainer.current_epoch + 1, ", ".join(shown))
        self._saved = time.monotonic()
        Loop(trainer).received_sigterm |= self._stopping
        if self._before is not None and trainer.is_global_zero:
            for path, kept in _best_files(self._before):
                if kept.samefile(path):  # the last validation was not the best
                    kept.unlink()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the scores of the last validation to a run that had nothing left to train."""
        for name, value in self._scores.items():
            trainer.callback_metrics.setdefault(name, torch.tensor(value))

    def _save(self, trainer: L.Trainer) -> None:
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return super().state_dict() | {"scores": self._scores, "before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        super().load_state_dict(state_dict)
        self._scores = state_dict["scores"]

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Turns the saved end of a resumed training into a point inside it."""
        states, done = checkpoint["callbacks"], checkpoint["global_step"]
        before = states.get(self.state_key, {}).get("before")
        for each in (states, before or {}):
            _move(each, str(self.dirpath))
        time_is_up = any(
            timer.state_key in states and states[timer.state_key]["time_elapsed"]["train"] >= limit
            for timer, limit in time_limits(trainer)
        )
        if time_is_up or 0 <= trainer.max_steps <= done:  # nothing left to do
            return
        Loop.inside(checkpoint["loops"])
        if before is not None:
            states |= before
            if trainer.is_global_zero:
                for path, kept in _best_files(before):
                    if kept.is_file():
                        os.replace(kept, path)

    def _states(self, trainer: L.Trainer) -> dict[str, Any]:
        """States of the other callbacks; the files that they name as the best are kept."""
        states = {
            callback.state_key: copy.deepcopy(callback.state_dict())
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if callback is not self and callback.state_dict()
        }
        for path, kept in _best_files(states) if trainer.is_global_zero else ():
            kept.unlink(missing_ok=True)
            try:
                os.link(path, kept)
            except OSError:  # a file system without hard links
                with whole(kept) as part:
                    shutil.copyfile(path, part)
        return states


def _best_files(states: dict[str, Any]) -> Iterator[tuple[Path, Path]]:
    """The files that the states of callbacks name as the best checkpoints.

    With each where it waits while the last validation may put another in its place.
    """
    for state in states.values():
        for path in map(Path, state.get("best_k_models", ())):
            if path.is_file():
                yield path, path.with_name(f".{path.name}.before")


def _move(states: dict[str, Any], here: str) -> None:
    """Makes the paths of checkpoints those of the run's folder: it may have been moved."""
    for state in states.values():
        if "best_k_models" not in state:
            continue
        state["dirpath"] = here
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = str(Path(here, Path(state[key]).name)) if state[key] else ""
        state["best_k_models"] = {
            str(Path(here, Path(path).name)): score
            for path, score in state["best_k_models"].items()
        }


class AverageWeights(WeightAveraging):
    """An exponential moving average of the weights over the steps (Polyak and Juditsky 1992).

    Validation sees the average, and both checkpoints hold it as the model, so that what was
    validated is what is tested and used. Training keeps its own weights, which are in the
    checkpoints too: a resumed run ends as if it had not been stopped.

    Args:
        decay: Share of the average that stays at a step. Step t (from 0) keeps
            ``min(decay, (1 + t) / (10 + t))``, or the first steps would hang on in short runs
            (TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, n_averaged: Tensor) -> Tensor:
            t = int(n_averaged)  # torch copies the weights at first, and asks from then on
            return averaged.lerp(current, 1 - min(decay, (1 + t) / (10 + t)))

        # Averaged buffers would drift by rounding: they are constants such as class weights.
        super().__init__(use_buffers=False, avg_fn=average)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the average's own copy of the model; a UserError where the weights are sharded."""
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError(
                "callbacks.average.decay: sharded weights cannot be averaged; set "
                "callbacks.average.decay=null or another trainer"
            )
        super().setup(trainer, pl_module, stage)


def average_weights(decay: float | None = None) -> Callback:
    """:class:`AverageWeights`, or a callback that does nothing for None.

    Raises:
        ValueError: ``decay`` is not between 0 and 1.
    """
    if decay is None:
        return Callback()
    if not 0 < decay < 1:
        raise ValueError(f"decay must lie between 0 and 1, or be null (off), got {decay}")
    return AverageWeights(decay)


class TrainingBar(RichProgressBar):
    """Lightning's bar, which also counts down ``trainer.max_time``.

    Epochs count from 1. Where only the clock ends the training (``trainer.max_epochs=-1``) it names
    no last one.
    """

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The time left as hours:minutes:seconds, then what is logged for the bar."""
        found: dict[str, Any] = super().get_metrics(trainer, pl_module)
        found.pop("v_num", None)
        left = [limit - timer.time_elapsed() for timer, limit in time_limits(trainer)]
        if not left:
            return found
        return {"left": str(timedelta(seconds=max(0, round(min(left)))))} | found

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        description = f"Epoch {current_epoch + 1}" + ("" if last in (None, -1) else f"/{last}")
        return f"{description:{len(self.validation_description)}}"
