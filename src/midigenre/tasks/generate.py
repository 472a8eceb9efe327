"""Generation: the next step from those before, ``task=generate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.tokens import TokenMetrics, by_class, nats_per_note_interval
from midigenre.generation.grammar import Grammar
from midigenre.models import ConditionEmbedding, FieldHead, PhraseGenerator
from midigenre.spec import UNKNOWN, Batch, TokenSpec
from midigenre.tasks.base import Outcome, Parts, Task
from midigenre.tasks.optim import OptimSettings
from midigenre.tokenizers.base import from_spec

SHOWN = ("loss", "nats_per_note", "accuracy")


class GenerateTask(Task):
    """Trains a :class:`~midigenre.models.PhraseGenerator` to predict the next step.

    Logged beside what all tasks log: ``val/nats_per_note``, ``val/accuracy``,
    ``val/step_accuracy``, ``val/<field>/{loss,accuracy}`` with several fields, and
    ``val/batch_mean_{loss,accuracy}`` (see :class:`~midigenre.evaluation.tokens.TokenMetrics`).
    The loss is nats per step.

    Args:
        model: The generator.
        optim: Optimizer and schedule.
        describe: Plain data that rebuilds the model; it goes into every checkpoint.
        seed: Seed of the dropout, that of the conditions too.
    """

    kind = "generator"
    final = ("test_nats_per_note", "test_loss", "test_accuracy", "val_loss")
    causal = True
    model: PhraseGenerator

    def __init__(
        self, model: PhraseGenerator, optim: OptimSettings, describe: Mapping[str, Any],
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(model, optim, describe, seed)
        self.val_metrics = TokenMetrics(TokenSpec.from_dict(describe["tokens"]))

    @staticmethod
    def labels_of(task: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`Task.labels_of`."""
        return tuple(task["conditions"])

    @classmethod
    def make_model(cls, task: Mapping[str, Any], parts: Parts) -> PhraseGenerator:
        """See :meth:`Task.make_model`."""
        width = parts.embedding.d_model
        classes = {label: len(parts.labels.classes[label]) for label in task["conditions"]}
        conditions = (
            ConditionEmbedding(classes, width, task["condition_dropout"]) if classes else None
        )
        # Each field is predicted after those that the grammar lets decide on it.
        head = FieldHead(parts.tokens.sizes, width, Grammar(from_spec(parts.tokens)).order)
        return PhraseGenerator(
            parts.embedding, parts.backbone, conditions, head, task["condition_by"]
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean nats per token of a batch."""
        nats_NF, _ = self.model.loss(batch)
        loss = nats_NF.sum(1).mean()
        self.count(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=False, batch_size=batch.n_tokens)
        return loss * batch.mean_scale

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects the sums."""
        nats_NF, hits_NF = self.model.loss(batch)
        self.val_metrics.update(nats_NF, hits_NF, batch.ids_NF)

    @classmethod
    @torch.no_grad()
    def test(
        cls, model: nn.Module, data: PhraseDataModule, folder: Path | None, task: Mapping[str, Any]
    ) -> Outcome:
        """See :meth:`Task.test`: under the songs' own labels, and with all of them hidden."""
        assert isinstance(model, PhraseGenerator)
        model.eval()
        spec, device = data.shards.tokens, model.start_D.device
        metrics, hidden = TokenMetrics(spec).to(device), TokenMetrics(spec).to(device)
        nats, notes, song = [], [], []
        truth: dict[str, list[Any]] = {label: [] for label in data.labels}
        for loaded in data.eval_dataloader("test"):
            batch = loaded.to(device)
            nats_NF, hits_NF = model.loss(batch)
            metrics.update(nats_NF, hits_NF, batch.ids_NF)
            of_N = torch.repeat_interleave(
                torch.arange(batch.n_phrases), torch.tensor(batch.lengths)
            )
            is_note_N = metrics.notes_N(batch.ids_NF).cpu().numpy()
            nats_N = nats_NF.sum(1).double().cpu().numpy()
            nats.append(np.bincount(of_N, nats_N, batch.n_phrases))
            notes.append(np.bincount(of_N, is_note_N, batch.n_phrases).astype(np.int64))
            song.append(loaded.song_B.numpy())
            for label, values in loaded.labels.items():
                truth[label].append(values.numpy())
            hidden.update(*model.loss(unlabelled(batch)), batch.ids_NF)
        nats_B, notes_B, song_B = map(np.concatenate, (nats, notes, song))
        found = {k: float(v) for k, v in metrics.compute().items()}
        without = {k: float(v) for k, v in hidden.compute().items()}
        evaluation = {
            "tokens": {
                "n": len(nats_B),
                "n_steps": int(metrics.counts[0]),
                "n_notes": int(notes_B.sum()),
                **found,
                "ci95": {"nats_per_note": nats_per_note_interval(nats_B, notes_B, song_B)},
                "without_condition": {name: without[name] for name in SHOWN},
                "by_class": by_class(
                    nats_B, notes_B, data.shards.labels.classes,
                    {label: np.concatenate(values) for label, values in truth.items()},
                ),
            }
        }  # fmt: skip
        scores = {f"test/{name}": value for name, value in found.items()}
        return Outcome(evaluation, scores, {f"test_{name}": found[name] for name in SHOWN})

    @staticmethod
    def show(evaluation: Mapping[str, Any], console: Console) -> None:
        """See :meth:`Task.show`."""
        scores = evaluation["tokens"]
        low, high = scores["ci95"]["nats_per_note"]
        table = Table(title="next step, test songs", title_justify="left")
        for name in ("conditions", "nats per step", "nats per note", "95 %", "token accuracy"):
            table.add_column(name, justify="left" if name == "conditions" else "right")
        for name, row, span in (
            ("the songs' own", scores, f"{low:.3f}–{high:.3f}"),
            ("hidden", scores["without_condition"], ""),
        ):
            table.add_row(
                name, f"{row['loss']:.3f}", f"{row['nats_per_note']:.3f}", span,
                f"{row['accuracy']:.3f}",
            )  # fmt: skip
        console.print(table)

    @staticmethod
    def next_command(folder: Path) -> str:
        """See :meth:`Task.next_command`."""
        return f"write music with: midigenre generate run={folder}"


def unlabelled(batch: Batch) -> Batch:
    """The batch with every label unknown."""
    return replace(batch, labels={k: torch.full_like(v, UNKNOWN) for k, v in batch.labels.items()})
