"""Callbacks that the tests add to a training run."""

import json
import os
import shutil
import signal
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback


class SignalAt(Callback):
    """Sends this process a signal while it trains batch ``SIGNAL_AT`` (counted over all epochs)."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        number, _, at = os.environ.get("SIGNAL_AT", "0:-1").partition(":")
        if trainer.fit_loop.epoch_loop.total_batch_idx == int(at):
            os.kill(os.getpid(), signal.Signals(int(number)))


class KillInSave(Callback):
    """Kills this process when half of the ``KILL_IN_SAVE``-th ``last.ckpt`` has been written."""

    def setup(self, trainer, pl_module, stage):
        self.left = int(os.environ.get("KILL_IN_SAVE", "0"))
        write, copy = Path.write_bytes, shutil.copyfile

        def write_bytes(path, data):
            self.kill_at(path, data)
            return write(path, data)

        def copyfile(source, path, **options):  # what moves to another file system
            self.kill_at(Path(path), Path(source).read_bytes())
            return copy(source, path, **options)

        Path.write_bytes, shutil.copyfile = write_bytes, copyfile

    def kill_at(self, path, data):
        self.left -= "last.ckpt" in path.name
        if self.left == 0 and "last.ckpt" in path.name:
            with path.open("wb") as file:
                file.write(bytes(data[: len(data) // 2]))
            os.kill(os.getpid(), signal.SIGKILL)


class WriteBatches(Callback):
    """Writes what each process trains on to ``BATCHES_TO/<rank>.jsonl``."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        place = {"epoch": trainer.current_epoch, "step": trainer.global_step, "batch": batch_idx}
        phrases = list(zip(batch.song_B.tolist(), batch.start_B.tolist(), strict=True))
        with (Path(os.environ["BATCHES_TO"]) / f"{trainer.global_rank}.jsonl").open("a") as out:
            out.write(json.dumps(place | {"phrases": phrases}) + "\n")


class WriteWeights(Callback):
    """Writes the weights as they are before the first step to ``WEIGHTS_TO``."""

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            torch.save(pl_module.state_dict(), os.environ["WEIGHTS_TO"])
