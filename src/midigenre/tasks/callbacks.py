"""What happens around training: the last checkpoint; figures and tables for TensorBoard."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO

from midigenre.evaluation.figures import confusion_figure
from midigenre.files import write_bytes
from midigenre.spec import UNKNOWN, Batch
from midigenre.tasks.classify import ClassifyTask


def tensorboard_of(trainer: L.Trainer) -> Any:
    """The run's ``SummaryWriter``, or None where no TensorBoard logger is on."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            return logger.experiment
    return None


class WholeCheckpoints(TorchCheckpointIO):
    """Writes every checkpoint beside the one that it replaces, which stands until then.

    Lightning writes into the temporary folder and moves: to another file system that is a copy over
    the old file, and a kill or a full disk in the middle leaves neither.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Writes one.

        Raises:
            OSError: The disk is full or cannot be written; the former checkpoint is as it was.
        """
        # To memory first: `torch.save` turns the file's OSError into one that has no reason.
        data = io.BytesIO()
        torch.save(checkpoint, data)
        write_bytes(Path(path), data.getbuffer())


class ValidateLastStep(Callback):
    """Validates when ``trainer.max_steps`` ends training inside an epoch.

    Lightning does so for ``max_time``; without it such a run would have no best checkpoint.
    """

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Asks the trainer to stop, which validates, where it would only break off."""
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, from which training goes on exactly.

    It is written after each epoch, every few minutes within one, and when SIGTERM asks to stop.
    Within an epoch it is written after a whole optimizer step only: accumulated gradients are in no
    checkpoint. Lightning's ``save_last`` would only copy the latest *best* one.

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
        self._stopping = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._saved = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves when the time has come or the process is asked to stop."""
        signals = trainer._signal_connector
        self._stopping |= signals.received_sigterm
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        # Lightning stops at once; hold it back until the step is whole. After the epoch's last
        # batch a checkpoint would leave out the validation: there it stops after that.
        signals.received_sigterm = self._stopping and whole_step and not last
        if not whole_step or last:
            return
        due = self.every_minutes is not None and (
            time.monotonic() - self._saved >= 60 * self.every_minutes
        )
        # All processes save together or none does.
        if trainer.strategy.broadcast(due or self._stopping):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._saved = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves, and stops if that was held back."""
        super().on_train_epoch_end(trainer, pl_module)
        self._saved = time.monotonic()
        trainer._signal_connector.received_sigterm |= self._stopping


class ConfusionFigures(Callback):
    """After each validation, the confusion matrix of each label as a figure."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws them."""
        writer = tensorboard_of(trainer)
        if trainer.sanity_checking or writer is None:
            return
        assert isinstance(pl_module, ClassifyTask)
        heads = pl_module.model.label_heads()
        for label, metrics in pl_module.label_metrics().items():
            figure = confusion_figure(
                metrics.confusion(), heads[label].classes, f"{label}, validation phrases"
            )
            writer.add_figure(f"val/{label}/confusion", figure, trainer.global_step)


class PhraseTable(Callback):
    """After each validation, the same few phrases with their prediction and the truth, as text.

    Args:
        n_phrases: Number of phrases, spread over the validation set.
    """

    def __init__(self, n_phrases: int = 8) -> None:
        self.n_phrases = n_phrases
        self._rows: list[str] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the table."""
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes phrases at even distances over all batches."""
        n_batches = int(trainer.num_val_batches[0])
        due = sum(k * n_batches // self.n_phrases == batch_idx for k in range(self.n_phrases))
        if tensorboard_of(trainer) is None or due == 0:
            return
        assert isinstance(pl_module, ClassifyTask)
        model = pl_module.model
        # The step's own logits: a second pass would be outside autocast, and outside FSDP's root.
        probabilities = {k: v.float().softmax(-1).cpu() for k, v in outputs.items()}
        shards = trainer.datamodule.shards  # type: ignore[attr-defined]
        for i in sorted({k * batch.n_phrases // due for k in range(due)}):
            song = shards.manifest[int(batch.song_B[i])]["song_id"]
            cells = [f"{song}, bar {int(batch.start_B[i]) + 1}"]
            for label, head in model.label_heads().items():
                p, best = probabilities[label][i].max(-1)
                truth = int(batch.labels[label][i])
                name = "?" if truth == UNKNOWN else head.classes[truth]
                mark = "" if truth in (UNKNOWN, int(best)) else " ✗"
                cells += [name, f"{head.classes[int(best)]} ({float(p):.0%}){mark}"]
            self._rows.append(" | ".join(cells))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the table."""
        writer = tensorboard_of(trainer)
        if trainer.sanity_checking or writer is None or not self._rows:
            return
        assert isinstance(pl_module, ClassifyTask)
        labels = pl_module.model.label_heads()
        heads = ["phrase"] + [h for label in labels for h in (label, f"predicted {label}")]
        lines = [" | ".join(heads), " | ".join("---" for _ in heads), *self._rows[: self.n_phrases]]
        writer.add_text("val/phrases", "\n".join(f"| {x} |" for x in lines), trainer.global_step)
