"""Masked modelling: predicting hidden tokens from their context, ``task=mlm``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.tokens import MaskedMetrics, evaluate_masked, phrase_keys
from midigenre.models import MaskedModel
from midigenre.spec import Batch
from midigenre.tasks.base import FinalScores, Task
from midigenre.tasks.kinds import MaskedKind
from midigenre.tasks.optim import OptimSettings
from midigenre.wording import plural

MASKED_SCORES = ("loss", "perplexity", "accuracy")


class PretrainTask(Task):
    """Trains a :class:`~midigenre.models.MaskedModel` on music without labels.

    Every song of the training split is used, labelled or not; those of the other splits never are.

    Logged beside what all tasks log: ``val/perplexity``, ``val/accuracy`` and
    ``val/<attribute>/{perplexity,accuracy}`` (see
    :class:`~midigenre.evaluation.tokens.MaskedMetrics`). The loss is nats per hidden token: its
    mean over a batch in training, over the split in validation. What validation hides depends on
    the song and the bar alone, so that the scores of different epochs, seeds and batch sizes are
    comparable. Arguments as of :class:`~midigenre.tasks.base.Task`.
    """

    kind = MaskedKind
    final = ("test_nats_per_note", *(f"test_{name}" for name in MASKED_SCORES), "val_loss")
    model: MaskedModel

    def __init__(
        self, model: MaskedModel, optim: OptimSettings, describe: Mapping[str, Any], seed: int = 0
    ) -> None:
        super().__init__(model, optim, describe, seed)
        self.val_metrics = MaskedMetrics(model.masking)
        self.eval_share: float = describe["task"]["eval_share"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean nats per hidden token of a batch."""
        nats_NF, _, hidden_NF = self.model.loss(batch)
        loss = nats_NF.sum() / hidden_NF.sum().clamp(min=1)
        self.count(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=False, batch_size=batch.n_phrases)
        return loss * batch.mean_scale

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects the sums."""
        nats_NF, hits_NF, hidden_NF = self.model.loss(batch, self.eval_share, phrase_keys(batch))
        attribute_NF = self.model.masking.attributes_NF(batch.ids_NF)
        self.val_metrics.update(nats_NF, hits_NF, hidden_NF, attribute_NF)

    @classmethod
    @torch.no_grad()
    def test(
        cls, model: nn.Module, data: PhraseDataModule, folder: Path | None, task: Mapping[str, Any]
    ) -> FinalScores:
        """See :meth:`Task.test`."""
        assert isinstance(model, MaskedModel)
        found = evaluate_masked(model, data, "test", task["eval_share"])
        scores = {  # without the nats per note where notes cannot be found in the tokens
            name: found[name]
            for name in ("nats_per_note", *MASKED_SCORES)
            if found[name] is not None
        }
        of_each = {
            f"test/{field}/{name}": values[name]
            for field, values in found["fields"].items()
            for name in ("perplexity", "accuracy")
        }
        tests = {f"test/{name}": value for name, value in scores.items()} | of_each
        final = {f"test_{name}": value for name, value in scores.items()}
        return FinalScores({"masked": found}, tests, final)

    @staticmethod
    def show(evaluation: Mapping[str, Any], console: Console) -> None:
        """See :meth:`Task.show`."""
        found = evaluation["masked"]
        table = Table(
            title=f"hidden tokens, test songs ({found['share']:.0%} of them)", title_justify="left"
        )
        for name in ("", "hidden", "nats", "perplexity", "accuracy"):
            table.add_column(name, justify="right" if name else "left")
        whole = dict(found) | {"n": sum(row["n"] for row in found["fields"].values())}
        for name, row in (*found["fields"].items(), ("all", whole)):
            table.add_row(
                name, f"{row['n']:,}", f"{row['loss']:.3f}", f"{row['perplexity']:.2f}",
                f"{row['accuracy']:.3f}",
            )  # fmt: skip
        console.print(table)
        if found["nats_per_note"] is None:
            console.print(f"no nats per note: {found['why']}", highlight=False, soft_wrap=True)
            return
        low, high = found["ci95"]["nats_per_note"]
        attributes = ", ".join(
            f"{name} {row['nats_per_note']:.3f}" for name, row in found["attributes"].items()
        )
        console.print(
            f"{found['nats_per_note']:.3f} nats per note (95 % {low:.3f}–{high:.3f}) over "
            f"{plural(found['n_notes'], 'hidden note')}: {attributes}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip

    @staticmethod
    def next_command(folder: Path) -> str:
        """See :meth:`Task.next_command`."""
        return f"classify from it with: midigenre train experiment=finetune init_from={folder}"
