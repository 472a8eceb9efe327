"""The base of every task: optimizer, cost of a run, contents of a checkpoint, and ``fit``."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from midigenre.data.datamodule import PhraseDataModule
from midigenre.errors import StoppedError, UserError
from midigenre.models.transformer import EncoderLayer
from midigenre.spec import Batch
from midigenre.tasks.kinds import CHECKPOINT_KEY, ModelKind
from midigenre.tasks.optim import OptimSettings, freeze, matrices, time_share

COST_KEY = "midigenre_cost"
"""Where it holds what the run has cost so far."""


class Cost:
    """Counts tokens, phrases and seconds of training, across interruptions.

    Args:
        tokens: Packed steps that were trained on so far (there is no padding).
        phrases: Phrases, likewise.
        seconds: Time in ``fit`` so far, validation included.
    """

    def __init__(self, tokens: int = 0, phrases: int = 0, seconds: float = 0.0) -> None:
        self.tokens, self.phrases, self._before = tokens, phrases, seconds
        self.start()

    def start(self) -> None:
        """Starts the clock."""
        self._started = self._since = time.perf_counter()
        self._tokens_since = self.tokens

    @property
    def seconds(self) -> float:
        """Time in ``fit``, that of earlier, interrupted calls included."""
        return self._before + time.perf_counter() - self._started

    def add(self, tokens: int, phrases: int) -> None:
        """Counts a batch."""
        self.tokens += tokens
        self.phrases += phrases

    def rate(self) -> float:
        """Tokens per second since the last call."""
        now = time.perf_counter()
        rate = (self.tokens - self._tokens_since) / (now - self._since)
        self._tokens_since, self._since = self.tokens, now
        return rate

    def state_dict(self) -> dict[str, Any]:
        """Arguments that make an equal one."""
        return {"tokens": self.tokens, "phrases": self.phrases, "seconds": self.seconds}


def tensorboard_of(trainer: L.Trainer) -> Any:
    """The run's ``SummaryWriter``, or None where no TensorBoard logger is on."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            return logger.experiment
    return None


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class FinalScores:
    """The results of a trained model on the test songs.

    Attributes:
        evaluation: Content of ``evaluation.json``.
        scores: The main ones by their tag, ``test/...``: for ``metrics.json`` and the loggers.
        final: The main ones by their short name (:attr:`Task.final`), for the table of runs.
        figures: For TensorBoard, by tag.
    """

    evaluation: dict[str, Any]
    scores: dict[str, float]
    final: dict[str, float]
    figures: dict[str, Figure] = field(default_factory=dict)


class Task(L.LightningModule):
    """A model, its optimizer and its metrics.

    Logged in every task: ``train/loss``, ``train/lr``, ``train/grad_norm``,
    ``train/tokens_per_second``, ``train/memory_mb``, ``val/loss``.

    Args:
        model: What is trained.
        optim: Optimizer and schedule.
        describe: Plain data that rebuilds the model; it goes into every checkpoint.
        seed: Seed of the dropout.

    Attributes:
        kind: The kind of model that it trains.
        final: Short names of the scores that end a run, for the table of runs.
    """

    kind: ClassVar[type[ModelKind]]
    final: ClassVar[tuple[str, ...]]

    def __init__(
        self, model: nn.Module, optim: OptimSettings, describe: Mapping[str, Any], seed: int = 0
    ) -> None:
        super().__init__()
        self.model, self.optim, self.describe, self.seed = model, optim, dict(describe), seed
        self._decayed = matrices(model)
        self.cost = Cost()
        self._still: tuple[nn.Module, ...] = ()
        self._losses: list[tuple[int, float, Tensor]] = []  # step, learning rate, loss

    # --- what each task defines

    @classmethod
    @abstractmethod
    def test(
        cls, model: nn.Module, data: PhraseDataModule, folder: Path | None, task: Mapping[str, Any]
    ) -> FinalScores:
        """Scores of a trained model on the test songs.

        Args:
            model: The best checkpoint's, on the device that it is to be tested on.
            data: The run's songs.
            folder: Where tables of single predictions go, and what is fitted after training; None
                for no files.
            task: ``cfg.task`` as plain data.
        """

    @staticmethod
    @abstractmethod
    def show(evaluation: Mapping[str, Any], console: Console) -> None:
        """Prints an evaluation for people."""

    @staticmethod
    @abstractmethod
    def next_command(folder: Path) -> str:
        """The command to run next."""

    # --- the optimizer

    def freeze_first(self, freeze_layers: int | str) -> None:
        """Keeps the embedding and the first layers as they are (:func:`~.optim.freeze`)."""
        self._still = freeze(self.model, freeze_layers)

    def configure_optimizers(self) -> Any:
        """The optimizer, with a schedule over the steps that the trainer will make.

        Raises:
            UserError: Nothing ends the training.
        """
        optimizer = self.optim.optimizer(self.model, self._decayed)
        total = self.trainer.estimated_stepping_batches
        share = time_share(self.trainer)
        if total == float("inf") and share is None:
            raise UserError(
                "trainer.max_epochs=-1: the learning rate's schedule needs an end; set "
                "trainer.max_steps, max_epochs or max_time"
            )
        schedule = self.optim.scheduler(optimizer, total, share)
        stepwise = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": stepwise}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:  # fmt: skip
        """Clips the global norm of the gradients and logs the norm before clipping."""
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
        self.log("train/lr", self._rate())

    def _rate(self) -> float:
        """The learning rate; that of the head if it differs by layer."""
        return float(max(group["lr"] for group in self.trainer.optimizers[0].param_groups))

    # --- around a batch

    def setup(self, stage: str) -> None:
        """Keeps FSDP from converting batches, whose ids and counts belong as they are."""
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, FSDPPrecision):
            plugin.convert_input = lambda data: data  # type: ignore[method-assign]

    def on_fit_start(self) -> None:
        """Starts the clock."""
        self.cost.start()

    def on_train_epoch_start(self) -> None:
        """Leaves the time of validation out of the throughput."""
        self.cost.rate()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes the dropout a function of (seed, epoch, batch), so that resuming is exact."""
        for module in self._still:
            module.eval()
        place = [self.seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def count(self, batch: Batch) -> None:
        """Counts a batch; in ``training_step``, since a checkpoint is written before its end."""
        world = self.trainer.world_size
        self.cost.add(batch.n_tokens * world, batch.n_phrases * world)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs throughput, in packed tokens (there is no padding), and memory."""
        if self.trainer.should_stop and self.trainer.check_val_every_n_epoch is not None:
            # The clock or the last step ends the training here: the validation is due now, also in
            # an epoch that would have none, or best.ckpt would lack what was learned since the
            # last.
            self.trainer.check_val_every_n_epoch = 1
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0:
            self.check_losses()
            self.log("train/tokens_per_second", self.cost.rate())
            self.log("train/memory_mb", peak_memory_bytes(self.device) / 2**20)

    def on_validation_epoch_end(self) -> None:
        """Logs the scores over the whole split."""
        metrics: Any = self.val_metrics
        for name, value in metrics.compute().items():
            self.log(f"val/{name}", value.float(), prog_bar=name == "loss")
        metrics.reset()

    # --- losses and weights that are not finite

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Records the loss; no step is made from one that is not finite.

        On a GPU this does not synchronise: losses are read with the others, at every
        ``trainer.log_every_n_steps``-th step and before every checkpoint.
        """
        self._losses.append((self.trainer.global_step + 1, self._rate(), loss.detach()))
        if loss.device.type == "cpu" and self.trainer.world_size == 1:
            self.check_losses()
        super().backward(loss, *args, **kwargs)

    def check_losses(self) -> None:
        """Ends the training where a loss since the last call is not finite, in every process.

        Raises:
            UserError: It is not; the message names the first one's step and learning rate.
        """
        losses, self._losses = self._losses, []
        finite = torch.stack([x[2] for x in losses]).isfinite().tolist() if losses else []
        if self._anywhere(not all(finite)):
            step, rate, loss = losses[finite.index(False) if False in finite else -1]
            self._diverged(f"the loss is {float(loss)} in step {step}", rate)

    def on_validation_end(self) -> None:
        """Ends the training with a UserError where the loss of the validation is not finite."""
        loss = float(self.trainer.callback_metrics["val/loss"])
        if not math.isfinite(loss):
            step = self.trainer.global_step
            self._diverged(f"the validation loss is {loss} after step {step}", self._rate())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what rebuilds the model, and what the run has cost so far.

        Raises:
            UserError: The weights or a loss are not finite: they would replace good ones.
        """
        self.check_losses()
        finite = torch.stack([p.detach().isfinite().all() for p in self.parameters()]).all()
        if self._anywhere(not finite):
            step = self.trainer.global_step
            self._diverged(f"weights are infinite or no number after step {step}", self._rate())
        checkpoint[CHECKPOINT_KEY] = self.describe
        checkpoint[COST_KEY] = self.cost.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counts from where the checkpoint was."""
        self.cost = Cost(**checkpoint[COST_KEY])

    def _anywhere(self, is_so: bool) -> bool:
        return self.trainer.strategy.reduce_boolean_decision(is_so, all=False)

    def _diverged(self, what: str, rate: float) -> NoReturn:
        half = " or precision=bf16" if self.trainer.precision == "16-mixed" else ""
        raise UserError(
            f"{what} at learning rate {rate:.3g}: training has stopped, and the checkpoints are "
            f"those from before; start again with a lower optim.lr{half}"
        )


# --- fit ------------------------------------------------------------------------------------------


class EncoderFSDPStrategy(FSDPStrategy):
    """Lightning's sharding of parameters, one unit for each layer of the encoder."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(auto_wrap_policy={EncoderLayer}, **settings)


def fit(
    trainer: L.Trainer, task: Task, data: PhraseDataModule, ckpt: str | None,
    on_interrupt: Callable[[], object],
) -> None:  # fmt: skip
    """Trains; foreseeable failures become errors that say how to continue.

    Args:
        trainer: Lightning's Trainer.
        task: The task.
        data: The data.
        ckpt: Checkpoint to resume from.
        on_interrupt: Called at the first Ctrl-C, which lets the step end; a second one does not.

    Raises:
        StoppedError: SIGTERM or Ctrl-C.
        UserError: Out of memory, or the checkpoint's state of the training is damaged.
    """
    # Set once optimizer and learning rate have used what was restored.
    began = threading.Event()
    trainer.callbacks.append(  # type: ignore[attr-defined]
        LambdaCallback(on_train_batch_end=lambda *_: began.set())
    )
    try:
        with _graceful_interrupt(on_interrupt) as interrupted:
            # Our own checkpoints hold plain data only: the safe loader is enough.
            trainer.fit(task, datamodule=data, ckpt_path=ckpt, weights_only=True)
    except SIGTERMException:
        number = signal.SIGINT if interrupted else signal.SIGTERM
        raise StoppedError("stopped", number) from None
    except SystemExit as error:  # Lightning's answer to a second Ctrl-C
        raise StoppedError("interrupted", signal.SIGINT) from error
    except (UserError, OSError):
        raise
    except Exception as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        ):
            raise UserError(_out_of_memory(task, data)) from error
        if ckpt is None or began.is_set():
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{ckpt} cannot be resumed: its state of the training is damaged, or another version "
            f"wrote it ({why}); delete it to start the run over, or train a new one with init_from="
        ) from error


@contextmanager
def _graceful_interrupt(say: Callable[[], object]) -> Iterator[list[int]]:
    """Makes the first Ctrl-C a SIGTERM to this process: Lightning ends the step, then stops."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before)
        say()
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _out_of_memory(task: Task, data: PhraseDataModule) -> str:
    settings = data.settings
    half = max(1, settings.batch_phrases // 2)
    fewer = (
        f"data.batch_phrases={half} trainer.accumulate_grad_batches="
        f"{2 * task.trainer.accumulate_grad_batches} makes the same steps from half the memory; "
        if half < settings.batch_phrases
        else ""
    )
    return (
        f"out of memory in step {task.trainer.global_step} with data.batch_phrases="
        f"{settings.batch_phrases} and up to {settings.max_tokens} tokens each; {fewer}"
        "precision=bf16, a smaller data.max_tokens or model need less"
    )
