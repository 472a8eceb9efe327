"""``midigenre train``: prepare if needed, train, test the best checkpoint."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from midigenre import __version__, registry
from midigenre.build import make_data, make_task, make_trainer, plain, prepared, tokens_of
from midigenre.checks import (
    check_clock,
    check_compile,
    check_listing,
    check_settings,
    check_sharding,
    check_songs,
    protocol_of,
    source_of,
    warn_of_shared_songs,
)
from midigenre.commands.console import console, progress_bars, quiet_lightning, say, warn
from midigenre.commands.crossval import check_part, say_part, train_parts
from midigenre.commands.hydra_job import is_first_process, swept_settings
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import phrase_length
from midigenre.data.prepare import refresh_report
from midigenre.data.report import print_report
from midigenre.data.shards import ShardSet
from midigenre.data.splits import Protocol
from midigenre.errors import StoppedError, UserError
from midigenre.files import FULL, remove_parts, write_json
from midigenre.models.kernels import compile_layers
from midigenre.registry import reading
from midigenre.run import SWEEP, RunFolder
from midigenre.tasks.base import FinalScores, Task, fit, peak_memory_bytes, tensorboard_of
from midigenre.tasks.loggers import final_tag, finish_hparams, start_hparams
from midigenre.trained import Start, check_last, finetuned, load_run, start_from
from midigenre.wording import plural


def run(cfg: DictConfig, paths: Sequence[str]) -> float:
    """Trains, tests and writes a run folder.

    Returns:
        The best validation score (macro-F1 of a classifier, loss of a generator), for sweeps.

    Raises:
        UserError: A setting or the data is not usable.
    """
    if paths:
        raise UserError(f"train takes no paths after --, got {paths[0]!r}; set corpus.root=DIR")
    folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    quiet_lightning()
    resumed = cfg.resume is not None  # the saved config does not have it
    cfg = _resumed(cfg) if resumed else finetuned(cfg, HydraConfig.get().overrides.task)
    # Further processes of a distributed run have the same command line; the first speaks for all.
    if not resumed and is_first_process():
        if RunFolder(folder).has_config:
            raise UserError(f"{folder} holds another run; start again in a second, or set name=")
        check_settings(cfg)
    check_compile(cfg)
    check_sharding(cfg)
    if resumed and is_first_process():
        remove_parts(folder)
    protocol = protocol_of(cfg)
    songs = functools.partial(_songs, cfg, protocol, resumed)
    if protocol is None or protocol.part is not None:
        score = train(cfg, folder, songs, resumed)
    else:
        score = train_parts(cfg, folder, songs, protocol, train)
    if is_first_process():
        print(folder)
    return score


def train(
    cfg: DictConfig,
    folder: Path,
    songs: Callable[[], ShardSet],
    resumed: bool = False,
    whole: tuple[DictConfig, Path] | None = None,
) -> float:
    """Trains one model and tests its best checkpoint.

    Args:
        cfg: Its config.
        folder: Its folder.
        songs: Gives the songs, prepared if need be.
        resumed: Whether it was begun before.
        whole: Config and folder of the run that this one is a part of.

    Returns:
        The best validation score.

    Raises:
        UserError: A setting or the data is not usable, or there is no room for the run.
        StoppedError: A signal ended it.
    """
    began = time.perf_counter()
    trainer = make_trainer(cfg, folder)
    check_clock(cfg, trainer.world_size)
    # A run resumes from its last checkpoint; without one it starts over, which gives the same.
    last = folder / "checkpoints" / "last.ckpt"
    ckpt = str(last) if resumed and last.is_file() else None
    if ckpt is not None:
        check_last(last, cfg, RunFolder(folder))
    # Rejected before songs are prepared, but a part's start is known only with its songs.
    is_part = cfg.protocol.part is not None
    start = None if ckpt or is_part else start_of(cfg)
    shards = songs()
    if is_part and ckpt is None:
        start = start_of(cfg)

    # All randomness follows from the seed alone.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = make_data(cfg, shards)
    no_validation = check_songs(cfg, data)
    task = make_task(cfg, shards, data)
    task.freeze_first(cfg.freeze_layers or 0)
    loaded = {} if start is None else start.load_into(task.model)
    if cfg.compile:
        compile_layers(task.model.backbone)  # type: ignore[arg-type]
    if not is_first_process():
        fit(trainer, task, data, ckpt, lambda: None)
        return _best_score(trainer)

    # Results of an earlier end: until there are new ones, the run is not finished.
    for name in ("evaluation.json", "cost.json"):
        (folder / name).unlink(missing_ok=True)
    # Not earlier: a rejected start leaves no run.
    for given, place in ((cfg, folder), whole or (cfg, folder)):
        OmegaConf.save(OmegaConf.create(plain(given)), place / "config.yaml")
        specs = {"tokens": shards.tokens.to_dict(), "labels": shards.labels.to_dict()}
        about = {"shards": str(shards.folder), "version": __version__}
        write_json(place / "spec.json", specs | about)
    n_parameters = sum(p.numel() for p in task.model.parameters())
    for label in no_validation:
        warn(f"no validation song is labelled with {label}: other labels choose the best epoch")
    _say_songs(cfg, data)
    say(
        f"run {folder}: {n_parameters:,} parameters, {shards.tokens.n_tokens} tokens in "
        f"{plural(len(shards.tokens.fields), 'field')}, {_devices(trainer)}"
    )
    if start is not None:
        say(
            f"started from {cfg.init_from}: {' and '.join(loaded)}, {sum(loaded.values()):,} of "
            f"{n_parameters:,} weights"
        )
    if resumed:
        say(_resumes(ckpt, task))
    start_hparams(trainer, type(task), plain(cfg), swept_settings())
    resume = f"midigenre train resume={folder if whole is None else whole[1]}"
    stopping = "[yellow]stopping after this step; Ctrl-C again stops at once[/]"
    try:
        fit(trainer, task, data, ckpt, functools.partial(console.print, stopping))
    except StoppedError as error:
        raise StoppedError(f"{error}; resume with: {resume}", error.signal) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; make room there, then resume with: "
            f"{resume}"
        ) from error
    return _finish(cfg, folder, trainer, task, data, began)


def _finish(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    task: Task,
    data: PhraseDataModule,
    began: float,
) -> float:
    """Tests the best checkpoint unless ``test=false``, and writes the run's results.

    Returns:
        The best validation score.
    """
    score = _best_score(trainer)
    cost: dict[str, Any] = {
        "fit_seconds": round(task.cost.seconds, 3),
        "train_tokens": task.cost.tokens,
        "train_phrases": task.cost.phrases,
        "tokens_per_second": round(task.cost.tokens / task.cost.seconds, 1),
        "peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "device": trainer.strategy.root_device.type,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
    }
    tested = FinalScores({}, {}, {})
    if cfg.test:
        trained = load_run(str(folder), kind=task.kind.name)
        best = trained.model.to(trainer.strategy.root_device)
        tested = task.test(best, data, folder, plain(cfg.task))
    cost["seconds"] = round(time.perf_counter() - began, 3)
    monitor = str(trainer.checkpoint_callback.monitor)  # type: ignore[union-attr]
    metrics: dict[str, Any] = {
        "val": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        "best": {monitor: score},
        "tested": {"epoch": trained.epoch, "step": trained.step} if cfg.test else None,
        "test": tested.scores,
        "parameters": cost["parameters"],
        # Those that were begun: `current_epoch` is one less in a run that had nothing to train.
        "epochs": trainer.fit_loop.epoch_progress.current.ready,
        "steps": trainer.global_step,
        "fold": cfg.fold,
    }
    if data.part is not None:
        metrics["protocol"] = {"part": cfg.protocol.part} | data.part.to_dict()
    if cfg.test:
        write_json(folder / "evaluation.json", tested.evaluation)
    write_json(folder / "metrics.json", metrics)
    # Apart from the metrics, which are the same for a given seed.
    write_json(folder / "cost.json", cost)
    finish_hparams(trainer, type(task), {monitor.replace("/", "_"): score} | tested.final, cost)
    for logger in trainer.loggers:
        logger.log_metrics(tested.scores, step=trainer.global_step)
        logger.save()
    if (writer := tensorboard_of(trainer)) is not None:
        for tag, figure in tested.figures.items():
            writer.add_figure(final_tag(tag), figure, trainer.global_step)
        writer.flush()
    for logger in trainer.loggers:
        logger.finalize("success")
    if cfg.test:
        task.show(tested.evaluation, console)
        end = f"tested epoch {trained.epoch}'s checkpoint"
    else:
        end = f"not tested: {monitor} {score:.4f} at best"
    early: Any = trainer.early_stopping_callback
    say(
        f"trained {plural(metrics['epochs'], 'epoch')}"
        f"{' (stopped early)' if early and early.stopped_epoch else ''}, "
        f"{plural(metrics['steps'], 'step')}, {end}; "
        f"{cost['fit_seconds']:.0f} s ({cost['tokens_per_second']:,.0f} tokens/s, at most "
        f"{cost['peak_memory_bytes'] / 2**20:,.0f} MB); {cost['seconds']:.0f} s since this command"
    )
    following = (
        task.next_command(folder) if cfg.test else f"test it with: {RunFolder(folder).test_command}"
    )
    console.print(following, highlight=False, soft_wrap=True)
    return score


def start_of(cfg: DictConfig) -> Start | None:
    """What a new model starts from; weights that do not fit raise ``UserError``."""
    if cfg.init_from is None:
        return None
    return start_from(cfg.init_from, plain(cfg.model), plain(cfg.task), tokens_of(cfg))


def _resumed(cfg: DictConfig) -> DictConfig:
    """The saved config with the new limits of the trainer, and whether it is tested."""
    run = RunFolder(Path(cfg.resume))
    if not run.has_config and (run.path / SWEEP).is_file():
        jobs = [str(job) for job in sorted(run.path.glob("[0-9]*")) if RunFolder(job).has_config]
        raise UserError(
            f"resume={cfg.resume} is a sweep: the command line that started it resumes it, and "
            f"resume=JOB one of its jobs ({', '.join(jobs) or 'none has begun'})"
        )
    if not run.has_config:
        raise UserError(f"resume={cfg.resume}: no run (no config.yaml); give runs/<name>/<when>")
    # A sweep resumes its own jobs, by the command line that started them.
    is_job = HydraConfig.get().mode == RunMode.MULTIRUN
    given = [] if is_job else HydraConfig.get().overrides.task
    bounds = ["test"] if is_job else []
    for override in given:
        key = override.partition("=")[0].lstrip("+")
        if key.startswith("trainer.max_") or key == "test":
            bounds.append(key)
        # A custom class must be named again on the command line, so that the saved config may name
        # it.
        elif key not in ("resume", "debug", "home") and not key.endswith(registry.TARGET):
            raise UserError(
                f"{override} cannot change on resume: the saved config wins; only trainer.max_* "
                "and test may"
            )
    if "test" in bounds and not cfg.test and run.tested and not is_job:
        raise UserError(f"resume={cfg.resume} is tested already; leave test=false out")
    run.check_for_training()
    saved = run.as_config()
    for key in bounds:
        OmegaConf.update(saved, key, OmegaConf.select(cfg, key), force_add=True)
    if run.finished and saved == run.as_config() and (run.tested or not saved.test):
        limits = {k: v for k, v in saved.trainer.items() if k.startswith("max_") and v != -1}
        shown = ", ".join(f"trainer.{k}={v}" for k, v in limits.items() if v is not None)
        raise UserError(
            f"resume={cfg.resume} is finished: it stopped early or reached {shown}; to train on, "
            "give a higher trainer.max_epochs, max_steps or max_time"
        )
    with reading(run.config_path, "bring back the file that the run was trained with"):
        check_settings(saved)
    return saved


def _songs(cfg: DictConfig, protocol: Protocol | None, resumed: bool) -> ShardSet:
    """The songs of a run, prepared if need be; of a part of a protocol, ``init_from`` follows."""
    check = functools.partial(check_listing, cfg)
    if is_first_process():
        with progress_bars() as progress:
            shards = prepared(cfg, progress, check=check)
        length = phrase_length(cfg.data, shards.tokens)
        say(f"songs and the files named below: {shards.folder}")
        print_report(refresh_report(shards, length, cfg.data.max_tokens), console, tables=False)
        if protocol is None and not resumed:
            warn_of_shared_songs(cfg, shards, warn)
    else:
        shards = prepared(cfg, check=check)
    if protocol is not None and protocol.part is not None:
        part = protocol.split(shards)
        check_part(cfg, shards, part, protocol.part)
        cfg.init_from = source_of(cfg, part.name, warn)
    return shards


def _say_songs(cfg: DictConfig, data: PhraseDataModule) -> None:
    """Shows which part and which fold of the songs a run has."""
    if data.part is not None:
        say_part(data.part, cfg.protocol.part)
    if data.fold is None:
        return
    songs = " and ".join(
        f"{len(data.rows(split)):,} of {len(data.split_rows(split)):,} {name} songs"
        for split, name in (("train", "training"), ("val", "validation"))
    )
    say(f"fold {data.fold}: {songs}; the test songs are those of all folds")
    for label, names in data.classes_lost().items():
        for name in names:
            warn(f"{label} {name!r} has no training song in fold {data.fold}")


def _resumes(ckpt: str | None, task: Task) -> str:
    """Where a resumed run begins, in words; rejects weights that are another model's."""
    if ckpt is None:
        return "stopped before its first checkpoint: it starts over, with the same result"
    with reading(ckpt, "delete it to start the run over"):
        saved = torch.load(ckpt, map_location="cpu", weights_only=True)
        task.load_state_dict(saved["state_dict"])
        return f"resumes after {plural(saved['global_step'], 'step')}"


def _devices(trainer: L.Trainer) -> str:
    kind = trainer.strategy.root_device.type
    if trainer.world_size > 1:
        return f"{trainer.world_size} processes on {kind}"
    return plural(torch.get_num_threads(), "thread") if kind == "cpu" else kind


def _best_score(trainer: L.Trainer) -> float:
    checkpoint: Any = trainer.checkpoint_callback
    if checkpoint is None or checkpoint.best_model_score is None:
        raise UserError(
            "training ended before its first validation, so there is no best checkpoint; "
            "raise trainer.max_epochs, max_steps or max_time"
        )
    return float(checkpoint.best_model_score)
