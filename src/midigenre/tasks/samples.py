"""Short pieces during training, to look at and listen to in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import rank_zero_warn
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE
from tensorboard.plugins.audio import metadata
from torch.utils.tensorboard import summary

from midigenre.data.phrases import Seconds, phrase_length
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.evaluation.figures.piano_roll import piano_roll_figure
from midigenre.generation.audio import MAX_SECONDS, Audio, check_soundfont, length_seconds, render
from midigenre.generation.grammar import Grammar
from midigenre.generation.sampling import Context, Sample, Sampler, SamplingSettings
from midigenre.models import PhraseGenerator
from midigenre.spec import UNKNOWN, TokenSpec
from midigenre.tasks.base import Task
from midigenre.tasks.callbacks import tensorboard_of
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.wording import plural

AUDIO_RATE = 24_000
"""Frames a second in the event files, mono: a quarter of the bytes, and enough to judge by ear."""


CARD_INCHES = 5.0
"""Width of a picture: TensorBoard's cards are narrow, and a wider one would be shrunk to them."""


def context_for(data: Mapping[str, Any], tokens: TokenSpec) -> Context:
    """What a generator is trained to see.

    Args:
        data: ``cfg.data``, or what a checkpoint holds of it.
        tokens: Its vocabulary.
    """
    length = phrase_length(data, tokens)
    bars = length.max_bars if isinstance(length, Seconds) else length
    return Context(data["max_tokens"], bars)


class GeneratedSamples(Callback):
    """Writes a piece for each class of each condition and shows it in TensorBoard.

    Each piece has one class as its condition and nothing else. It stands as ``piano_roll``
    and as ``audio`` under ``val/samples/<label>/<class>``, or ``val/samples/unconditioned``
    (TensorBoard shows nothing of a tag that holds both), and is drawn with the same numbers every
    time, so that only the training makes the difference.

    They are written at the end of a validation, at the first one ``every_steps`` or more after the
    last: a step within an epoch is no place to stop, because a checkpoint may be written there.
    Training is not disturbed: the sampler draws from its own generators and the model is in
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
        self,
        every_steps: int = 500,
        n_samples: int = 12,
        bars: int = 8,
        seconds: float = 30.0,
        tokens: int = 2048,
        seed: int = 0,
        audio: bool = True,
        soundfont: str | None = None,
    ) -> None:
        if min(every_steps, n_samples) < 1:
            raise ValueError(f"every_steps={every_steps}, n_samples={n_samples}: must be 1 or more")
        self.settings = SamplingSettings(seed=seed, bars=bars, seconds=seconds, tokens=tokens)
        if audio:
            check_soundfont(soundfont)
        self.every_steps = every_steps
        self.n_samples = n_samples
        self.audio = audio
        self.soundfont = soundfont
        self._written = 0  # step of the last set

    def state_dict(self) -> dict[str, Any]:
        """When the last pieces were written, for a run that resumes."""
        return {"written": self._written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on after them."""
        self._written = state_dict["written"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Says where there will be no pieces."""
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
        writer = tensorboard_of(trainer)
        if writer is None:
            return
        assert isinstance(pl_module, Task)
        model = pl_module.model
        assert isinstance(model, PhraseGenerator)
        shards: ShardSet = trainer.datamodule.shards  # type: ignore[attr-defined]
        tokenizer = from_spec(shards.tokens)
        wanted = self._wanted(model, shards.labels.classes)
        labels = {
            label: [index if own == label else UNKNOWN for own, _, index in wanted]
            for label in (model.conditions.classes if model.conditions else ())
        }
        context = context_for(pl_module.describe["data"], shards.tokens)
        sampler = Sampler(model, Grammar(tokenizer), context)
        try:
            pieces = sampler.sample(labels, self.settings, n=len(wanted))
        except UserError as error:  # training goes on, or ends with words of its own
            rank_zero_warn(f"no samples in TensorBoard at step {step}: {error}")
            return
        for (label, name, _), piece in zip(wanted, pieces, strict=True):
            of = f"{label}/{name}" if label else "unconditioned"
            self._show(writer, of, step, tokenizer, piece)

    def _wanted(
        self, model: PhraseGenerator, classes: Mapping[str, Sequence[str]]
    ) -> list[tuple[str, str, int]]:
        """Label, class and its index of each piece."""
        if model.conditions is None:
            return [("", "", UNKNOWN)]
        of_each = [
            [(label, name, index) for index, name in enumerate(classes[label])]
            for label in model.conditions.classes
        ]
        in_turn = chain.from_iterable(zip_longest(*of_each))
        return [one for one in in_turn if one is not None][: self.n_samples]

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
            # PyTorch does not say it, and TensorBoard would serve bytes of no type; its fast loader
            # reads that only beside a data class.
            kind = metadata.create_summary_metadata("", "", encoding=metadata.Encoding.WAV)
            kind.data_class = DATA_CLASS_BLOB_SEQUENCE
            sound.value[0].metadata.CopyFrom(kind)
            writer.file_writer.add_summary(sound, step)


def _mono(audio: Audio) -> NDArray[np.float32]:
    """Both channels mixed, at :data:`AUDIO_RATE`, shape (frames,)."""
    # Imported here since it takes long to load.
    from scipy.signal import resample_poly  # type: ignore[attr-defined]

    mono = resample_poly(audio.samples.mean(1), AUDIO_RATE, audio.rate)
    # The filter may overshoot where the peak was: quieter, for what is cut off crackles.
    return np.asarray(mono / max(1.0, np.abs(mono).max()), np.float32)
