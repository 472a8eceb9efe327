"""Phrase classification by any set of labels: ``task=genre``, ``emotion``, ``genre_emotion``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.figures import confusion_figure
from midigenre.evaluation.metrics import LabelMetrics
from midigenre.evaluation.report import LEVELS, print_scores
from midigenre.models import FieldEmbedding, LabelHead, PhraseClassifier, Pooling, class_weights
from midigenre.spec import Batch, LabelSpec, TokenSpec
from midigenre.tasks.base import Outcome, Task
from midigenre.tasks.evaluate import evaluate_split
from midigenre.tasks.optim import OptimSettings

METRICS = ("macro_f1", "accuracy")


class ClassifyTask(Task):
    """Trains a :class:`~midigenre.models.PhraseClassifier`.

    Logged beside what all tasks log: ``val/macro_f1`` (mean over the labels), and for each label
    ``val/<label>/{loss,accuracy,macro_f1}``.

    Args:
        model: The classifier; its heads own the losses and the label names.
        optim: Optimizer and schedule.
        describe: Plain data that rebuilds the model; it goes into every checkpoint.
        seed: Seed of the dropout.
    """

    kind = "classifier"
    final = (
        "val_macro_f1",
        *(f"test_{level}_{metric}" for metric in METRICS for level in LEVELS),
    )
    model: PhraseClassifier

    def __init__(
        self,
        model: PhraseClassifier,
        optim: OptimSettings,
        describe: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        super().__init__(model, optim, describe, seed)
        self.val_metrics = nn.ModuleDict(
            {label: LabelMetrics(len(head.classes)) for label, head in model.label_heads().items()}
        )
        self._val_loss: dict[str, list[Tensor]] = {}

    @staticmethod
    def labels_of(task: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`Task.labels_of`."""
        return tuple(task["labels"])

    @classmethod
    def make_model(
        cls,
        task: Mapping[str, Any],
        model: Mapping[str, Any],
        backbone: nn.Module,
        tokens: TokenSpec,
        labels: LabelSpec,
        counts: Mapping[str, Any] | None = None,
    ) -> PhraseClassifier:
        """See :meth:`Task.make_model`."""
        d_model: int = backbone.d_model  # type: ignore[assignment]
        embedding = FieldEmbedding(
            tokens.sizes, d_model, model["combine"], model["d_field"], model["dropout"]
        )
        heads = [
            LabelHead(
                label,
                labels.classes[label],
                d_model,
                None if counts is None
                else class_weights(torch.as_tensor(counts[label]), task["class_weight_power"]),
                task["label_smoothing"],
                task["head_dropout"],
                loss_weight,
            )
            for label, loss_weight in task["labels"].items()
        ]  # fmt: skip
        return PhraseClassifier(embedding, backbone, Pooling(model["pooling"], d_model), heads)

    @classmethod
    def test(cls, model: nn.Module, data: PhraseDataModule, folder: Path | None) -> Outcome:
        """See :meth:`Task.test`."""
        assert isinstance(model, PhraseClassifier)
        predictions = None if folder is None else folder / "predictions.csv"
        device = next(model.parameters()).device
        evaluation = evaluate_split(
            model, data, "test", device=device, train=data, predictions=predictions
        )
        scores: dict[str, float] = {}
        final: dict[str, float] = {}
        figures = {}
        for level in LEVELS:
            for label, levels in evaluation.items():
                found = levels[level]
                scores |= {f"test/{label}/{level}/{name}": found[name] for name in METRICS}
                figures[f"test/{label}/{level}/confusion"] = confusion_figure(
                    found["confusion"], found["labels"], f"{label}, test {level}s"
                )
            for name in METRICS:
                # With several labels the mean over those that have the score.
                known = [levels[level][name] for levels in evaluation.values()]
                known = [score for score in known if score is not None]
                if known:
                    final[f"test_{level}_{name}"] = sum(known) / len(known)
        return Outcome(evaluation, scores, final, figures)

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
        return cast(dict[str, LabelMetrics], dict(self.val_metrics.items()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, scaled so that an accumulated step equals one large batch."""
        logits = self.model(batch)
        loss, _ = self.model.loss(logits, batch)
        self.count(batch)
        # Undo the scaling by the step's other batches: what is logged is this batch's own mean.
        with torch.no_grad():
            own, by_label = self.model.loss(logits, _alone(batch))
        self.log("train/loss", own, on_step=True, on_epoch=False, batch_size=batch.n_phrases)
        if len(by_label) > 1:
            for label, value in by_label.items():
                self.log(f"train/{label}/loss", value, batch_size=batch.n_phrases)
        return loss

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


def _alone(batch: Batch) -> Batch:
    return replace(batch, step_counts={}, step_batches=1)
