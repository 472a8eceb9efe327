"""Phrase classification by any set of labels: ``task=genre``, ``emotion``, ``genre_emotion``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from midigenre.evaluation.metrics import LabelMetrics
from midigenre.models import PhraseClassifier
from midigenre.spec import Batch
from midigenre.tasks.cost import Cost, peak_memory_bytes
from midigenre.tasks.optim import AdamWSettings, matrices

CHECKPOINT_KEY = "midigenre"
"""Where a checkpoint holds what is needed to rebuild the model, as plain data."""

COST_KEY = "midigenre_cost"
"""Where it holds what the run has cost so far."""


class ClassifyTask(L.LightningModule):
    """Trains a :class:`~midigenre.models.PhraseClassifier`.

    Logged (the same tags in every task): ``train/loss``, ``train/lr``, ``train/grad_norm``,
    ``train/tokens_per_second``, ``train/memory_mb``, ``val/loss``, ``val/macro_f1`` (mean over the
    labels), and for each label ``val/<label>/{loss,accuracy,macro_f1}``.

    Args:
        model: The classifier; its heads own the losses and the label names.
        optim: Optimizer and schedule.
        describe: Plain data that rebuilds the model; it goes into every checkpoint.
        seed: Seed of the dropout.
    """

    def __init__(
        self,
        model: PhraseClassifier,
        optim: AdamWSettings,
        describe: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.model = model
        self.optim = optim
        self._decayed = matrices(model)
        self.describe = dict(describe)
        self.val_metrics = nn.ModuleDict(
            {label: LabelMetrics(len(head.classes)) for label, head in model.label_heads().items()}
        )
        self._val_loss: dict[str, list[Tensor]] = {}
        self.cost = Cost()

    def label_metrics(self) -> dict[str, LabelMetrics]:
        """Validation scores of each label."""
        return cast(dict[str, LabelMetrics], dict(self.val_metrics.items()))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes the dropout a function of (seed, epoch, batch), so that resuming is exact."""
        place = [self.seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, scaled so that an accumulated step equals one large batch."""
        logits = self.model(batch)
        loss, _ = self.model.loss(logits, batch)
        # Here, and not when the batch has ended: a checkpoint is written before that.
        world = self.trainer.world_size
        self.cost.add(batch.n_tokens * world, batch.n_phrases * world)
        # Undo the scaling by the step's other batches: what is logged is this batch's own mean.
        with torch.no_grad():
            own, by_label = self.model.loss(logits, _alone(batch))
        self.log("train/loss", own, on_step=True, on_epoch=False, batch_size=batch.n_phrases)
        if len(by_label) > 1:
            for label, value in by_label.items():
                self.log(f"train/{label}/loss", value, batch_size=batch.n_phrases)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs throughput, in packed tokens (there is no padding), and memory."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0:
            self.log("train/tokens_per_second", self.cost.rate())
            self.log("train/memory_mb", peak_memory_bytes(self.device) / 2**20)

    def on_train_epoch_start(self) -> None:
        """Leaves the time of validation out of the throughput."""
        self.cost.rate()

    def on_fit_start(self) -> None:
        """Starts the clock."""
        self.cost.start()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm of all gradients together and logs it as it was before."""
        if gradient_clip_algorithm not in (None, "norm"):
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
            return
        limit = gradient_clip_val if gradient_clip_val else float("inf")
        sharded = self.trainer.strategy.model
        norm = (
            sharded.clip_grad_norm_(limit)  # each process holds a part of every gradient
            if isinstance(sharded, FullyShardedDataParallel)
            else nn.utils.clip_grad_norm_(self.parameters(), limit)
        )
        self.log("train/grad_norm", norm)
        self.log("train/lr", optimizer.param_groups[0]["lr"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects loss and confusion of every label."""
        logits = self.model(batch)
        total, by_label = self.model.loss(logits, batch)
        for name, value in {"": total, **by_label}.items():
            self._val_loss.setdefault(name, []).append(value.detach())
        for label, metrics in self.label_metrics().items():
            metrics.update(logits[label], batch.labels[label])

    def on_validation_epoch_end(self) -> None:
        """Logs the means over the phrases and the scores over all of them."""
        for name, values in self._val_loss.items():
            # Each batch's loss is already divided by the whole split's class weights.
            mean = torch.stack(values).sum()
            # Processes that share the split hold parts of that sum.
            self.log(
                f"val/{name}/loss" if name else "val/loss", mean, prog_bar=not name,
                sync_dist=True, reduce_fx="sum",
            )  # fmt: skip
        scores = []
        for label, metrics in self.label_metrics().items():
            for name, value in metrics.compute().items():
                self.log(f"val/{label}/{name}", value)
                if name == "macro_f1":
                    scores.append(float(value))
        self.log("val/macro_f1", sum(scores) / len(scores), prog_bar=True)
        self._val_loss.clear()

    def on_validation_epoch_start(self) -> None:
        """The callbacks have drawn the last confusion by now."""
        for metrics in self.label_metrics().values():
            metrics.reset()

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule over the steps that the trainer will make."""
        optimizer = self.optim.optimizer(self.model, self._decayed)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, self.optim.factor(total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what rebuilds the model, and what the run has cost so far."""
        checkpoint[CHECKPOINT_KEY] = self.describe
        checkpoint[COST_KEY] = self.cost.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on counting where the checkpoint was."""
        self.cost = Cost(**checkpoint[COST_KEY])


def _alone(batch: Batch) -> Batch:
    return replace(batch, step_counts={}, step_batches=1)
