"""What a step costs besides the model: loader, Lightning, reading phrases at random."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import open_dict
from torch import nn

from midigenre import build
from midigenre.data.phrases import PhraseReader, Phrases


def loader_ms(data: Any, repeats: int) -> list[float]:
    """Milliseconds a training batch out of our DataLoader, one number for each epoch."""
    out = []
    for epoch in range(repeats):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        len(loader)  # Plans the epoch: once, before its first step.
        begin = time.perf_counter()
        n_batches = sum(1 for _ in loader)
        out.append((time.perf_counter() - begin) * 1e3 / n_batches)
    return out


class _Clock(L.Callback):
    def on_train_start(self, *_: Any) -> None:
        self.begin = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.begin


def lightning_ms(cfg: Any, shards: Any, folder: Path, repeats: int, steps: int) -> dict[str, Any]:
    """Milliseconds a step of our task under Lightning's Trainer, and of the same loop by hand.

    The model is far smaller than any of ours, so that the difference is not lost in its noise; the
    difference does not depend on the model. Both read the same batches from the same loader; the
    Trainer logs to TensorBoard, without checkpoints and validation, which are not paid by the step.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.model.update(d_model=16, n_layers=1, n_heads=2, d_ff=16)
        cfg.data.batch_phrases = 8
    trainer_ms, bare_ms = [], []
    for _ in range(repeats):
        data = build.make_data(cfg, shards)
        task = build.make_task(cfg, shards, data)
        clock = _Clock()
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_steps=steps, limit_val_batches=0, callbacks=[clock],
            logger=TensorBoardLogger(str(folder), name=""), enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            gradient_clip_val=cfg.trainer.gradient_clip_val,
            log_every_n_steps=cfg.trainer.log_every_n_steps,
        )  # fmt: skip
        trainer.fit(task, datamodule=data)
        trainer_ms.append(clock.seconds * 1e3 / trainer.global_step)
        bare_ms.append(_bare(cfg, shards, trainer.global_step))
    return {"trainer": trainer_ms, "bare": bare_ms}


def _bare(cfg: Any, shards: Any, steps: int) -> float:
    data = build.make_data(cfg, shards)
    model = build.make_task(cfg, shards, data).model.train()
    optimizer = build.make_optim(cfg).optimizer(model)
    begin, done, epoch = time.perf_counter(), 0, 0
    while done < steps:
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for batch in islice(loader, steps - done):
            optimizer.zero_grad()
            model.loss(model(batch), batch)[0].backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), cfg.trainer.gradient_clip_val)
            optimizer.step()
            done += 1
        epoch += 1
    return (time.perf_counter() - begin) * 1e3 / done


def reading(data: Any, folder: Path, repeats: int) -> dict[str, Any]:
    """Shuffled phrases/s, as tensors, of our shards and of HF ``datasets`` in torch format.

    The same phrases (all of the training songs) in the same random order, one by one and 32 at
    once; interleaved. ``datasets`` holds them cut and tokenised on disk, ours cuts them from songs.
    """
    from datasets import Dataset, load_from_disk

    phrases = data.phrases("train")
    reader: PhraseReader = data.reader
    ids = [_ids(reader, phrases, i) for i in range(len(phrases))]
    labels = data.labels["genre"][phrases.song]
    Dataset.from_dict({"input_ids": [i[:, 0] for i in ids], "label": labels}).save_to_disk(folder)
    theirs = load_from_disk(str(folder)).with_format("torch")
    order = np.random.default_rng(0).permutation(len(phrases)).tolist()
    for i in order[:32]:  # The first reads open files and fill caches.
        same = torch.equal(theirs[i]["input_ids"], torch.from_numpy(_ids(reader, phrases, i)[:, 0]))
        assert same, "the two do not hold the same phrases"
    groups = [order[i : i + 32] for i in range(0, len(order), 32)]

    def ours_by_one(i: int) -> object:
        return torch.from_numpy(_ids(reader, phrases, i)), int(labels[i])

    def timed(read: Any, items: list[Any]) -> float:
        begin = time.perf_counter()
        for item in items:
            read(item)
        return len(order) / (time.perf_counter() - begin)

    rates: dict[str, list[float]] = {k: [] for k in ("ours", "ours 32", "datasets", "datasets 32")}
    for _ in range(repeats):
        rates["ours"].append(timed(ours_by_one, order))
        rates["datasets"].append(timed(theirs.__getitem__, order))
        rates["ours 32"].append(timed(lambda group: [ours_by_one(i) for i in group], groups))
        rates["datasets 32"].append(timed(theirs.__getitem__, groups))
    return {"n_phrases": len(order), "phrases_per_second": rates}


def _ids(reader: PhraseReader, phrases: Phrases, i: int) -> Any:
    return reader(int(phrases.song[i]), int(phrases.first[i]), int(phrases.end[i]))[0]
