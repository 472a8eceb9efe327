"""Generation: the next step from those before, ``task=generate``; sample pieces in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import rank_zero_warn
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE
from tensorboard.plugins.audio import metadata
from torch import Tensor, nn
from torch.utils.tensorboard import summary

from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.evaluation.figures.piano_roll import piano_roll_figure
from midigenre.evaluation.tokens import TokenMetrics, by_class, nats_per_note_interval
from midigenre.generation.audio import MAX_SECONDS, Audio, check_soundfont, length_seconds, render
from midigenre.generation.grammar import Grammar
from midigenre.generation.sampling import Sample, Sampler, SamplingSettings
from midigenre.models import PhraseGenerator
from midigenre.spec import UNKNOWN, Batch, TokenSpec
from midigenre.tasks.base import FinalScores, Task, tensorboard_of
from midigenre.tasks.kinds import GeneratorKind, context_for
from midigenre.tasks.optim import OptimSettings
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.wording import plural

AUDIO_RATE = 24_000
"""Frames per second in the event files, mono: a quarter of the bytes, enough to judge by ear."""

CARD_INCHES = 5.0
"""Width of a picture: TensorBoard's cards are narrow, and a wider one would be shrunk to them."""


CAUSAL_SCORES = ("loss", "nats_per_note", "accuracy")


class GenerateTask(Task):
    """Trains a :class:`~midigenre.models.PhraseGenerator` to predict the next step.

    Logged beside what all tasks log: ``val/nats_per_note``, ``val/accuracy``,
    ``val/step_accuracy``, ``val/<field>/{loss,accuracy}`` with several fields, and
    ``val/batch_mean_{loss,accuracy}`` (see :class:`~midigenre.evaluation.tokens.TokenMetrics`).
    The loss is nats per step. Arguments as of :class:`~midigenre.tasks.base.Task`.
    """

    kind = GeneratorKind
    final = ("test_nats_per_note", "test_loss", "test_accuracy", "val_loss")
    model: PhraseGenerator

    def __init__(
        self, model: PhraseGenerator, optim: OptimSettings, describe: Mapping[str, Any],
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(model, optim, describe, seed)
        self.val_metrics = TokenMetrics(TokenSpec.from_dict(describe["tokens"]))

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
    def test(
        cls, model: nn.Module, data: PhraseDataModule, folder: Path | None, task: Mapping[str, Any]
    ) -> FinalScores:
        """See :meth:`Task.test`: with the songs' own labels, and with all labels hidden."""
        assert isinstance(model, PhraseGenerator)
        evaluation = cls.evaluate(model, data, "test")
        # Numbers of phrases, steps and notes are whole, scores are not.
        found = {k: v for k, v in evaluation["tokens"].items() if isinstance(v, float)}
        scores = {f"test/{name}": value for name, value in found.items()}
        final = {f"test_{name}": found[name] for name in CAUSAL_SCORES}
        return FinalScores(evaluation, scores, final)

    @staticmethod
    @torch.no_grad()
    def evaluate(
        model: PhraseGenerator, data: PhraseDataModule, split: str | None
    ) -> dict[str, Any]:
        """``evaluation.json`` of the songs of a split, or of all songs for None."""
        model.eval()
        spec, device = data.shards.tokens, model.start_D.device
        metrics, hidden = TokenMetrics(spec).to(device), TokenMetrics(spec).to(device)
        nats, notes, song = [], [], []
        truth: dict[str, list[Any]] = {label: [] for label in data.labels}
        for loaded in data.eval_dataloader(split):
            batch = loaded.to(device)
            nats_NF, hits_NF = model.loss(batch)
            metrics.update(nats_NF, hits_NF, batch.ids_NF)
            unknown = {k: torch.full_like(v, UNKNOWN) for k, v in batch.labels.items()}
            hidden.update(*model.loss(replace(batch, labels=unknown)), batch.ids_NF)
            of_N = np.repeat(np.arange(batch.n_phrases), batch.lengths)
            is_note_N = metrics.notes_N(batch.ids_NF).cpu().numpy()
            nats_N = nats_NF.sum(1).double().cpu().numpy()
            nats.append(np.bincount(of_N, nats_N, batch.n_phrases))
            notes.append(np.bincount(of_N, is_note_N, batch.n_phrases).astype(np.int64))
            song.append(loaded.song_B.numpy())
            for label, values in loaded.labels.items():
                truth[label].append(values.numpy())
        nats_B, notes_B, song_B = map(np.concatenate, (nats, notes, song))
        found = {k: float(v) for k, v in metrics.compute().items()}
        without = {k: float(v) for k, v in hidden.compute().items()}
        return {
            "tokens": {
                "n": len(nats_B),
                "n_steps": int(metrics.counts[0]),
                "n_notes": int(notes_B.sum()),
                **found,
                "ci95": {"nats_per_note": nats_per_note_interval(nats_B, notes_B, song_B)},
                "without_condition": {name: without[name] for name in CAUSAL_SCORES},
                "by_class": by_class(
                    nats_B, notes_B, data.shards.labels.classes,
                    {label: np.concatenate(values) for label, values in truth.items()},
                ),
            }
        }  # fmt: skip

    @staticmethod
    def show(evaluation: Mapping[str, Any], console: Console) -> None:
        """See :meth:`Task.show`."""
        scores = evaluation["tokens"]
        low, high = scores["ci95"]["nats_per_note"]
        table = Table(title="next step", title_justify="left")
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


class GeneratedSamples(Callback):
    """Writes a piece for each class of each condition and shows it in TensorBoard.

    Each piece has one class as its condition and nothing else. It appears as ``piano_roll``
    and as ``audio`` under ``val/samples/<label>/<class>``, or ``val/samples/unconditioned``
    (TensorBoard shows nothing for a tag that holds both), and is drawn with the same random numbers
    every time, so that only the training makes a difference.

    They are written at the end of a validation, at the first one ``every_steps`` or more after the
    last. Training is not disturbed: the sampler draws from its own generators and the model is in
    evaluation mode there. Under FSDP, where no process holds the whole model, and without a
    TensorBoard logger nothing is written.

    Args:
        every_steps: Optimizer steps from one set of pieces to the next.
        n_samples: Most pieces of a set; where there are more classes, those of all conditions in
            turn.
        bars: Length of a piece.
        seconds: A piece ends with the bar in which this is reached, whatever its tempo: half a
            minute of audio takes 1.4 MB.
        tokens: Most steps of a piece, which bounds the time that an untrained model takes.
        seed: Seed of the pieces.
        audio: Whether they are rendered.
        soundfont: An SF2 file; None for the one that is installed.

    Raises:
        ValueError: A number below 1.
        UserError: The soundfont cannot be played.
    """

    def __init__(
        self, every_steps: int = 500, n_samples: int = 12, bars: int = 8, seconds: float = 30.0,
        tokens: int = 2048, seed: int = 0, audio: bool = True, soundfont: str | None = None,
    ) -> None:  # fmt: skip
        if min(every_steps, n_samples) < 1:
            raise ValueError(f"every_steps={every_steps}, n_samples={n_samples}: must be 1 or more")
        self.settings = SamplingSettings(seed=seed, bars=bars, seconds=seconds, tokens=tokens)
        if audio:
            check_soundfont(soundfont)
        self.every_steps, self.n_samples = every_steps, n_samples
        self.audio, self.soundfont = audio, soundfont
        self._written = 0  # step of the last set

    def state_dict(self) -> dict[str, Any]:
        """When the last pieces were written, for a run that resumes."""
        return {"written": self._written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after them."""
        self._written = state_dict["written"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Warns if there will be no pieces."""
        if stage == "fit" and isinstance(trainer.strategy, FSDPStrategy):
            rank_zero_warn("no samples in TensorBoard: under FSDP no process has the whole model")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes them when they are due."""
        step = trainer.global_step
        if trainer.sanity_checking or step - self._written < self.every_steps:
            return
        self._written = step  # by every process, since each has its own state
        if not trainer.is_global_zero or isinstance(trainer.strategy, FSDPStrategy):
            return
        if (writer := tensorboard_of(trainer)) is None:
            return
        assert isinstance(pl_module, GenerateTask)
        model = pl_module.model
        shards: ShardSet = trainer.datamodule.shards  # type: ignore[attr-defined]
        tokenizer = from_spec(shards.tokens)
        # Label, class and its index of each piece.
        wanted: list[tuple[str, str, int]] = [("", "", UNKNOWN)]
        conditions: Sequence[str] = list(model.conditions.classes) if model.conditions else []
        if conditions:
            of_each = [
                [(label, name, index) for index, name in enumerate(shards.labels.classes[label])]
                for label in conditions
            ]
            in_turn = chain.from_iterable(zip_longest(*of_each))
            wanted = [one for one in in_turn if one is not None][: self.n_samples]
        labels = {
            label: [index if own == label else UNKNOWN for own, _, index in wanted]
            for label in conditions
        }
        context = context_for(pl_module.describe["data"], shards.tokens)
        sampler = Sampler(model, Grammar(tokenizer), context)
        try:
            pieces = sampler.sample(labels, self.settings, n=len(wanted))
        except UserError as error:  # training continues, or ends with its own error
            rank_zero_warn(f"no samples in TensorBoard at step {step}: {error}")
            return
        for (label, name, _), piece in zip(wanted, pieces, strict=True):
            of = f"{label}/{name}" if label else "unconditioned"
            self._show(writer, of, step, tokenizer, piece)

    def _show(self, writer: Any, of: str, step: int, tokenizer: Tokenizer, piece: Sample) -> None:
        tag = f"val/samples/{of}"
        score = tokenizer.decode(piece.ids_TF)
        if not score.note_num():
            writer.add_text(tag, f"not a note in {plural(piece.n_bars, 'bar')}", step)
            return
        song = tokenizer.clean(score).with_rests(piece.n_bars)
        title = f"{of.replace('/', ' ')}, step {step}"
        figure = piano_roll_figure(song.notes, song.bar_ticks, song.tpq, title, widest=CARD_INCHES)
        writer.add_figure(f"{tag}/piano_roll", figure, step)
        if not self.audio:
            return
        if length_seconds(score) > MAX_SECONDS:
            writer.add_text(tag, f"no audio: longer than {MAX_SECONDS:,.0f} s", step)
        elif (played := render(score, self.soundfont)).silent:
            writer.add_text(tag, "silent: the soundfont lacks its pitches", step)
        else:
            sound = summary.audio(f"{tag}/audio", torch.from_numpy(_mono(played)), AUDIO_RATE)  # type: ignore[no-untyped-call]
            # PyTorch does not set the type, and TensorBoard would serve untyped bytes; its fast
            # loader reads that only beside a data class.
            kind = metadata.create_summary_metadata("", "", encoding=metadata.Encoding.WAV)
            kind.data_class = DATA_CLASS_BLOB_SEQUENCE
            sound.value[0].metadata.CopyFrom(kind)
            writer.file_writer.add_summary(sound, step)


def _mono(audio: Audio) -> NDArray[np.float32]:
    """Both channels mixed, at :data:`AUDIO_RATE`, shape (frames,)."""
    # Imported here since it takes long to load.
    from scipy.signal import resample_poly  # type: ignore[attr-defined]

    mono = resample_poly(audio.samples.mean(1), AUDIO_RATE, audio.rate)
    # The filter may overshoot where the peak was: quieter, since clipping crackles.
    return np.asarray(mono / max(1.0, np.abs(mono).max()), np.float32)
