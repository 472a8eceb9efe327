"""Runs ``trainer.fit``: what may happen to it becomes an error that says how to go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from midigenre.data.datamodule import PhraseDataModule
from midigenre.errors import StoppedError, UserError
from midigenre.models.transformer import EncoderLayer
from midigenre.tasks.base import Task


class EncoderFSDPStrategy(FSDPStrategy):
    """Lightning's sharding of parameters, one unit for each layer of the encoder.

    Args:
        settings: Those of Lightning's ``FSDPStrategy``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(auto_wrap_policy={EncoderLayer}, **settings)


class _Began(Callback):
    """Tells a checkpoint that cannot be resumed from what fails in training later on."""

    def __init__(self) -> None:
        self.training = False

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Optimizer and learning rate have used what was restored."""
        self.training = True


def fit(
    trainer: L.Trainer,
    task: Task,
    data: PhraseDataModule,
    ckpt: str | None,
    on_interrupt: Any,
) -> None:
    """Trains.

    Args:
        trainer: Lightning's Trainer.
        task: What to train.
        data: On what.
        ckpt: Checkpoint to go on from.
        on_interrupt: Called at the first Ctrl-C, which lets the step end; a second one does not.

    Raises:
        StoppedError: SIGTERM or Ctrl-C.
        UserError: Out of memory, or the checkpoint's state of the training is damaged.
    """
    began = _Began()
    trainer.callbacks.append(began)  # type: ignore[attr-defined]
    try:
        with _graceful_interrupt(on_interrupt) as interrupted:
            # Our own checkpoints hold plain data only: the safe loader is enough.
            trainer.fit(task, datamodule=data, ckpt_path=ckpt, weights_only=True)
    except SIGTERMException:
        number = signal.SIGINT if interrupted else signal.SIGTERM
        raise StoppedError("stopped", number) from None
    except SystemExit as error:  # Lightning's answer to a second Ctrl-C
        raise StoppedError("interrupted", signal.SIGINT) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(_out_of_memory(task, data)) from error
    except (UserError, OSError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            raise UserError(_out_of_memory(task, data)) from error
        if ckpt is None or began.training:
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{ckpt} cannot be resumed: its state of the training is damaged, or another version "
            f"wrote it ({why}); delete it to start the run over, or train a new one with init_from="
        ) from error


@contextmanager
def _graceful_interrupt(say: Any) -> Iterator[list[int]]:
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
    half = max(1, data.settings.batch_phrases // 2)
    fewer = (
        f"data.batch_phrases={half} trainer.accumulate_grad_batches="
        f"{2 * task.trainer.accumulate_grad_batches} makes the same steps from half the memory; "
        if half < data.settings.batch_phrases
        else ""
    )
    return (
        f"out of memory in step {task.trainer.global_step} with data.batch_phrases="
        f"{data.settings.batch_phrases} and up to {data.settings.max_tokens} tokens each; "
        f"{fewer}precision=bf16, a smaller data.max_tokens or model need less"
    )
