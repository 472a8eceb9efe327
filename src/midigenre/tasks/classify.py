"""Phrase classification by any set of labels, ``task.labels``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from midigenre.arrays import Longs
from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.blend import SONG_MODELS_FOLDER
from midigenre.evaluation.figures.charts import confusion_figure, evaluation_figures
from midigenre.evaluation.metrics import METRICS, Counts, as_array, scores_of
from midigenre.evaluation.predictions import LEVELS, PREDICTIONS_FILE
from midigenre.evaluation.report import print_scores
from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN, Batch
from midigenre.tasks.base import FinalScores, Task, tensorboard_of
from midigenre.tasks.evaluate import evaluate_split, fit_blends, fit_calibration, fitted_baselines
from midigenre.tasks.kinds import ClassifierKind
from midigenre.tasks.optim import OptimSettings
from midigenre.tasks.predict import predict_phrases, song_kind

_MACRO_F1_FIRST = sorted(METRICS, key=lambda name: name != "macro_f1")


class Losses(NamedTuple):
    """Losses of a batch in training.

    Attributes:
        total: What to minimise.
        own: That of the labels over this batch alone, not as a share of its optimizer step.
        by_label: The same for each label.
        masked: That of masked modelling, without its weight; None where it is off.
    """

    total: Tensor
    own: Tensor
    by_label: dict[str, Tensor]
    masked: Tensor | None = None


def losses(model: PhraseClassifier, batch: Batch) -> Losses:
    """Losses of a batch in training; with masked modelling the model sees some tokens hidden."""
    if model.masked is None:
        logits, masked = model(batch), None
    else:
        seen, hidden_NF = model.masked.hide(batch)
        h_BD, h_ND = model.encode(seen)
        logits, masked = model.logits(h_BD), model.masked(h_ND, batch.ids_NF, hidden_NF)
    total, _ = model.loss(logits, batch)
    with torch.no_grad():
        # Undo the scaling by the step's other batches: the log gets this batch's own mean.
        own, by_label = model.loss(logits, replace(batch, step_counts={}, step_batches=1))
    if model.masked is not None and masked is not None:
        # The labels' losses know the whole step; this one is a mean over the batch.
        total = total + model.masked.weight * masked * batch.mean_scale
    return Losses(total, own, by_label, masked)


class LabelMetrics(MulticlassConfusionMatrix):
    """Every metric of one label during training; phrases whose label is UNKNOWN are left out.

    The state is one confusion matrix (C, C), summed over processes, so the scores of a
    distributed run are over all its phrases, not a mean of the processes' scores.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, n_classes: int, **kwargs: Any) -> None:
        # Its checks look at the values and so synchronise at every step; they also reject
        # a single class. The one that matters, the shape, is in update().
        super().__init__(n_classes, ignore_index=UNKNOWN, validate_args=False, **kwargs)
        self._confusion_CC: Longs | None = None

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds phrases.

        Args:
            preds: Logits or log-probabilities, shape (B, C), or classes, shape (B,).
            target: True classes, int64 (B,); UNKNOWN ones are left out.

        Raises:
            ValueError: Shapes that do not fit.
        """
        shapes = ((len(target), self.num_classes), (len(target),))
        if target.ndim != 1 or tuple(preds.shape) not in shapes:
            raise ValueError(f"predictions {tuple(preds.shape)} for targets {tuple(target.shape)}")
        super().update(preds.argmax(1) if preds.ndim == 2 else preds, target)

    # The base class returns the matrix itself.
    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """All of :data:`METRICS` of everything since the last reset; NaN without counts."""
        # Here, and only here, the state holds the sum over all processes: keep it for confusion().
        self._confusion_CC = as_array(self.confmat).astype(np.int64)
        found = scores_of(Counts.of_confusion(self._confusion_CC))
        return {k: torch.tensor(v, device=self.confmat.device) for k, v in found.items()}

    def confusion(self) -> Longs:
        """Counts over all processes, shape (C, C); rows are the truth.

        In a distributed run that is a collective call: where only one process wants the matrix, let
        all of them call ``compute()`` first.
        """
        self.compute()
        assert self._confusion_CC is not None
        return self._confusion_CC

    def reset(self) -> None:
        """Drops all counts."""
        super().reset()
        self._confusion_CC = None


class ClassifyTask(Task):
    """Trains a :class:`~midigenre.models.PhraseClassifier`.

    Logged beside what all tasks log: ``val/macro_f1`` (mean over the labels), and for each label
    ``val/<label>/{loss,accuracy,macro_f1}``; ``train/mlm_loss`` where masked modelling is on.
    Validation hides nothing. Arguments as of :class:`~midigenre.tasks.base.Task`.
    """

    kind = ClassifierKind
    final = (
        *(f"test_{level}_{metric}" for metric in _MACRO_F1_FIRST for level in LEVELS),
        "val_macro_f1",
    )
    model: PhraseClassifier

    def __init__(
        self, model: PhraseClassifier, optim: OptimSettings, describe: Mapping[str, Any],
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(model, optim, describe, seed)
        self.val_metrics = nn.ModuleList(
            LabelMetrics(len(head.classes)) for head in model.label_heads().values()
        )
        self._val_loss: dict[str, list[Tensor]] = {}

    @classmethod
    def test(
        cls, model: nn.Module, data: PhraseDataModule, folder: Path | None, task: Mapping[str, Any]
    ) -> FinalScores:
        """See :meth:`Task.test`."""
        assert isinstance(model, PhraseClassifier)
        device = next(model.parameters()).device
        fitted, val, blends = fitted_baselines(model, data), None, None
        if len(data.rows("val")):  # read once for the blends and the calibration
            val = predict_phrases(model, data.eval_dataloader("val"), device)
        if song_kind(task) == "blend":
            blends = fit_blends(model, data, fitted, val)
        calibration = fit_calibration(model, data, device=device, blends=blends, found=val)
        if folder is not None:
            if blends is not None:
                blends.save(folder / SONG_MODELS_FOLDER)
            if calibration is not None:
                calibration.save(folder)
        evaluation = evaluate_split(
            model, data, "test", device=device, train=data,
            predictions=None if folder is None else folder / PREDICTIONS_FILE,
            calibration=calibration, blends=blends, fitted=fitted,
        )  # fmt: skip
        scores: dict[str, float] = {}
        final: dict[str, float] = {}
        for level in LEVELS:
            found = {label: levels[level] for label, levels in evaluation.items()}
            for name in METRICS:
                scores |= {f"test/{label}/{level}/{name}": x[name] for label, x in found.items()}
                # With several labels the mean over those that have the score.
                known = [x[name] for x in found.values() if x[name] is not None]
                if known:
                    final[f"test_{level}_{name}"] = sum(known) / len(known)
        drawn = evaluation_figures(evaluation, "test")
        figures = {f"test/{place}": figure for place, figure in drawn.items()}
        return FinalScores(evaluation, scores, final, figures)

    @staticmethod
    def show(evaluation: Mapping[str, Any], console: Console) -> None:
        """See :meth:`Task.show`."""
        print_scores(evaluation, console)

    @staticmethod
    def next_command(folder: Path) -> str:
        """See :meth:`Task.next_command`."""
        return f"predict with: midigenre predict run={folder} -- FILE.mid"

    def label_metrics(self) -> dict[str, LabelMetrics]:
        """Validation scores of each label."""
        metrics = cast(Iterable[LabelMetrics], self.val_metrics)
        return dict(zip(self.model.label_heads(), metrics, strict=True))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, scaled so that an accumulated step equals one large batch."""
        found = losses(self.model, batch)
        self.count(batch)
        self.log("train/loss", found.own, on_step=True, on_epoch=False, batch_size=batch.n_phrases)
        if len(found.by_label) > 1:
            for label, value in found.by_label.items():
                self.log(f"train/{label}/loss", value, batch_size=batch.n_phrases)
        if found.masked is not None:
            self.log("train/mlm_loss", found.masked.detach(), batch_size=batch.n_phrases)
        return found.total

    def on_validation_epoch_start(self) -> None:
        """The callbacks have drawn the last confusion by now."""
        for metrics in self.label_metrics().values():
            metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Collects loss and confusion of every label; gives the logits to the callbacks."""
        logits: dict[str, Tensor] = self.model(batch)
        total, by_label = self.model.loss(logits, batch)
        for name, value in {"": total, **by_label}.items():
            self._val_loss.setdefault(name, []).append(value.detach())
        for label, metrics in self.label_metrics().items():
            metrics.update(logits[label], batch.labels[label])
        return logits

    def on_validation_epoch_end(self) -> None:
        """Logs the means over the phrases and the scores over all of them."""
        for name, values in self._val_loss.items():
            # Each batch's loss is divided by the whole split's class weights, of which processes
            # hold parts: their sum is the mean.
            self.log(
                f"val/{name}/loss" if name else "val/loss", torch.stack(values).sum(),
                prog_bar=not name, sync_dist=True, reduce_fx="sum",
            )  # fmt: skip
        scores = []
        for label, metrics in self.label_metrics().items():
            for name, value in metrics.compute().items():
                self.log(f"val/{label}/{name}", value)
                # A label that no validation phrase has does not influence the best epoch.
                if name == "macro_f1" and math.isfinite(value):
                    scores.append(float(value))
        self.log("val/macro_f1", sum(scores) / max(1, len(scores)), prog_bar=True)
        self._val_loss.clear()


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
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Takes phrases at even distances over all batches."""
        n_batches = int(trainer.num_val_batches[0])
        due = sum(k * n_batches // self.n_phrases == batch_idx for k in range(self.n_phrases))
        if tensorboard_of(trainer) is None or due == 0:
            return
        assert isinstance(pl_module, ClassifyTask)
        # The step's own logits: a second pass would be outside autocast and FSDP's root module.
        probabilities = {k: v.float().softmax(-1).cpu() for k, v in outputs.items()}
        shards = trainer.datamodule.shards  # type: ignore[attr-defined]
        for i in sorted({k * batch.n_phrases // due for k in range(due)}):
            song = shards.manifest[int(batch.song_B[i])]["song_id"]
            cells = [f"{song}, bar {int(batch.start_B[i]) + 1}"]
            for label, head in pl_module.model.label_heads().items():
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
