"""Trainings of a second, without what the command does around them."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from midigenre.build import make_data, make_task, make_trainer, prepared
from midigenre.cli import conf_dir
from midigenre.commands import hydra_job  # noqa: F401  (registers what the config needs)
from midigenre.tasks.base import fit

BATCHES = 7  # of an epoch
N_EPOCHS = 3
SMALL = ["corpus=toy", "corpus.n_songs=24", "model.d_model=16", "model.n_heads=2", "logger=none",
         "model.n_layers=1", "model.d_ff=16", "data.batch_phrases=8", "trainer.max_epochs=3",
         # Its rates do not depend on where the training ends.
         "optim.schedule=constant", "optim.warmup_share=0", "optim.lr=0.003",
         "callbacks.progress=null", "callbacks.last.every_minutes=null"]  # fmt: skip
TASKS = {
    "genre": ["tokenizer=octuple"],
    "generate": ["tokenizer=octuple", "data.phrase_bars=4", "callbacks.samples=null"],
    "mlm": ["tokenizer=octuple"],
}


def config(home: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir().resolve()), version_base=None):
        return compose("train", overrides=[*SMALL, f"home={home}", *overrides])


def train(cfg: DictConfig, folder: Path, *stops: Callback, resume: bool = False) -> L.Trainer:
    found = prepared(cfg)
    trainer = make_trainer(cfg, folder)
    trainer.callbacks[:0] = stops  # type: ignore[attr-defined]
    L.seed_everything(0, workers=True, verbose=False)
    data = make_data(cfg, found)
    task = make_task(cfg, found, data)
    ckpt = folder / "checkpoints" / "last.ckpt" if resume else None
    fit(trainer, task, data, None if ckpt is None or not ckpt.is_file() else str(ckpt), print)
    return trainer
