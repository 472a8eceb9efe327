"""``midigenre train``: prepare if needed, train, test the best checkpoint."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from midigenre import __version__
from midigenre.build import check, load_run, make_data, make_task, make_trainer, plain, prepared
from midigenre.commands.console import console, progress_bars, quiet_lightning
from midigenre.data.prepare import refresh_report
from midigenre.data.report import print_report
from midigenre.errors import UserError
from midigenre.evaluation.figures import confusion_figure
from midigenre.evaluation.report import print_scores
from midigenre.files import write_json
from midigenre.tasks.callbacks import tensorboard_of
from midigenre.tasks.evaluate import evaluate_split

log = logging.getLogger(__name__)


def run(cfg: DictConfig, paths: Sequence[str]) -> float:
    """Trains, tests and leaves a run folder.

    Returns:
        The best validation macro-F1, for sweeps.

    Raises:
        UserError: A setting or the data is not usable.
    """
    if paths:
        raise UserError(f"train takes no paths after --, got {paths[0]!r}; set corpus.root=DIR")
    folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    quiet_lightning()
    try:
        cfg, ckpt = _checked(cfg, folder)
        trainer = make_trainer(cfg, folder)
    except UserError:
        _remove_empty(folder)
        raise
    OmegaConf.save(OmegaConf.create(plain(cfg)), folder / "config.yaml")
    started = time.perf_counter()
    with progress_bars() as progress:
        shards = prepared(cfg, progress)
    print_report(refresh_report(shards, cfg.data.phrase_bars, cfg.data.max_tokens), console)
    write_json(
        folder / "spec.json",
        {"tokens": shards.tokens.to_dict(), "labels": shards.labels.to_dict(),
         "shards": str(shards.folder), "version": __version__},
    )  # fmt: skip

    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = make_data(cfg, shards)
    task = make_task(cfg, shards, data)
    n_parameters = sum(p.numel() for p in task.model.parameters())
    message = (
        f"run {folder}: {n_parameters:,} parameters, {shards.tokens.n_tokens} tokens in "
        f"{len(shards.tokens.fields)} field(s), {torch.get_num_threads()} threads"
    )
    log.info(message)
    console.print(message, highlight=False)
    fit_started = time.perf_counter()
    # Our own checkpoints hold plain data only: the safe loader is enough.
    trainer.fit(task, datamodule=data, ckpt_path=ckpt, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    fit_seconds = time.perf_counter() - fit_started

    best = load_run(str(folder))
    evaluation = evaluate_split(best.model, data, "test", train=data)
    write_json(folder / "evaluation.json", evaluation)
    score = _best_score(trainer)
    metrics: dict[str, Any] = {
        "val": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        "best": {"val/macro_f1": score},
        "test": {
            f"test/{label}/{level}/{name}": values[level][name]
            for label, values in evaluation.items()
            for level in ("phrase", "song")
            for name in ("accuracy", "macro_f1")
        },
        "parameters": n_parameters,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
    }
    write_json(folder / "metrics.json", metrics)
    _log_test(trainer, metrics["test"], evaluation)
    print_scores(evaluation, console)
    seconds = time.perf_counter() - started
    message = (
        f"trained {trainer.current_epoch} epochs, {trainer.global_step} steps in "
        f"{fit_seconds:.0f} s; {seconds:.0f} s in all"
    )
    log.info(message)
    console.print(message, highlight=False)
    console.print(
        f"predict with: midigenre predict run={folder} -- FILE.mid", highlight=False, soft_wrap=True
    )
    print(folder)
    return score


def _checked(cfg: DictConfig, folder: Path) -> tuple[DictConfig, str | None]:
    """The config to train with, refused as early as it can be, and the checkpoint to go on from."""
    if cfg.resume is not None:
        return _resumed(cfg)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds another run; start again in a second, or set name=")
    check(cfg)
    return cfg, None


def _remove_empty(folder: Path) -> None:
    """A command that was refused leaves no folder with nothing but an empty log."""
    if {p.name for p in folder.iterdir()} <= {"train.log"} and not any(
        p.stat().st_size for p in folder.iterdir()
    ):
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # the name's folder goes too, if this was its only run
            folder.parent.rmdir()


def _resumed(cfg: DictConfig) -> tuple[DictConfig, str]:
    """The saved config with the new bounds of the trainer, and the last checkpoint."""
    folder = Path(cfg.resume)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={cfg.resume} is no run (no config.yaml); give runs/<name>/<when>")
    ckpt = folder / "checkpoints" / "last.ckpt"
    if not ckpt.is_file():
        raise UserError(f"resume={cfg.resume} has no checkpoints/last.ckpt; train it anew")
    changed = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
    wrong = [
        o for o in changed if not o.lstrip("+").startswith(("trainer.max_", "debug=", "home="))
    ]
    if wrong:
        raise UserError(
            f"{wrong[0]} cannot change on resume: the saved config wins; only trainer.max_* may"
        )
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    for override in changed:
        key = override.split("=", 1)[0].lstrip("+")
        if key.startswith("trainer.max_"):
            OmegaConf.update(saved, key, OmegaConf.select(cfg, key))
    OmegaConf.set_struct(saved, True)
    return saved, str(ckpt)


def _best_score(trainer: L.Trainer) -> float:
    checkpoint: Any = trainer.checkpoint_callback
    if checkpoint is None or checkpoint.best_model_score is None:
        raise UserError(
            "training ended before its first validation, so there is no best checkpoint; "
            "raise trainer.max_epochs, max_steps or max_time"
        )
    return float(checkpoint.best_model_score)


def _log_test(trainer: L.Trainer, metrics: dict[str, float], evaluation: dict[str, Any]) -> None:
    """Test scores and confusion beside the training's own."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)
        logger.save()
    writer = tensorboard_of(trainer)
    if writer is not None:
        for label, levels in evaluation.items():
            for level in ("phrase", "song"):
                figure = confusion_figure(
                    levels[level]["confusion"], levels[level]["labels"], f"{label}, test {level}s"
                )
                writer.add_figure(f"test/{label}/{level}/confusion", figure, trainer.global_step)
        writer.flush()
    for logger in trainer.loggers:
        logger.finalize("success")
