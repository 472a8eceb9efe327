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
from midigenre.build import (
    labels_of,
    make_data,
    make_task,
    make_trainer,
    plain,
    prepared,
    tokens_of,
)
from midigenre.checks import (
    check_clock,
    check_compile,
    check_listing,
    check_settings,
    check_songs,
    labels_without_val,
    source_of,
    warn_of_shared_songs,
)
from midigenre.commands.console import console, progress_bars, quiet_lightning, say, warn
from midigenre.commands.folds import (
    check_devices,
    part_of,
    plan_parts,
    protocol_of,
    run_parts,
    say_part,
)
from midigenre.commands.hydra_job import is_first_process, swept_settings
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import phrase_length
from midigenre.data.prepare import refresh_report
from midigenre.data.report import print_report
from midigenre.data.shards import ShardSet
from midigenre.errors import StoppedError, UserError
from midigenre.files import FULL, remove_parts, write_json
from midigenre.models import Encoder
from midigenre.models.kernels import compile_layers
from midigenre.registry import reading
from midigenre.run import SWEEP, RunFolder
from midigenre.tasks.base import Outcome, Task, peak_memory_bytes
from midigenre.tasks.callbacks import tensorboard_of
from midigenre.tasks.fit import fit
from midigenre.tasks.loggers import final_tag, finish_hparams, start_hparams
from midigenre.trained import Start, check_last, finetuned, load_run, start_from
from midigenre.wording import plural


def run(cfg: DictConfig, paths: Sequence[str]) -> float:
    """Trains, tests and leaves a run folder.

    Returns:
        The best validation score (macro-F1 of a classifier, loss of a generator), for sweeps.

    Raises:
        UserError: A setting or the data is not usable.
    """
    if paths:
        raise UserError(f"train takes no paths after --, got {paths[0]!r}; set corpus.root=DIR")
    folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    quiet_lightning()
    resumed = cfg.resume is not None  # the saved config knows nothing of it
    cfg = _resumed(cfg) if resumed else _new(cfg, folder)
    check_compile(cfg)
    if resumed and is_first_process():
        remove_parts(folder)
    songs = functools.partial(_songs, cfg, resumed)
    protocol = protocol_of(cfg)
    if protocol is None:
        score = train(cfg, folder, songs, resumed)
    elif protocol.part is not None:
        make_trainer(cfg, folder)  # rejects what this machine lacks before songs are prepared
        shards = songs()
        part = part_of(protocol, shards, protocol.part, labels_of(cfg))
        cfg.init_from = source_of(cfg, part.name, warn)
        score = train(cfg, folder, lambda: shards, resumed)
    else:
        check_devices(cfg)
        shards = songs()
        plan = plan_parts(cfg, folder, shards, protocol)
        _start(next(given for *_, given in plan if given is not None))  # rejects what does not fit
        score = run_parts(
            cfg, folder, shards, plan,
            lambda given, below, resumed: train(
                given, below, lambda: shards, resumed, whole=(folder, cfg)
            ),
        )  # fmt: skip
    if is_first_process():
        print(folder)
    return score


def train(
    cfg: DictConfig,
    folder: Path,
    songs: Callable[[], ShardSet],
    resumed: bool = False,
    whole: tuple[Path, DictConfig] | None = None,
) -> float:
    """Trains one model and tests its best checkpoint.

    Args:
        cfg: Its config.
        folder: Its folder.
        songs: Gives the songs, prepared if need be.
        resumed: Whether it was begun before.
        whole: Folder and config of the run that this one is a part of.

    Returns:
        The best validation score.

    Raises:
        UserError: A setting or the data is not usable, or there is no room for the run.
        StoppedError: A signal ended it.
    """
    began = time.perf_counter()
    ckpt = _last(folder, cfg) if resumed else None
    start = _start(cfg) if ckpt is None else None  # else the checkpoint has the weights
    trainer = make_trainer(cfg, folder)
    check_clock(cfg, trainer.world_size)
    shards = songs()

    # All that is random follows from the seed alone.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = make_data(cfg, shards)
    check_songs(cfg, data)
    task = make_task(cfg, shards, data)
    task.freeze_first(cfg.freeze_layers or 0)
    loaded = {} if start is None else start.load_into(task.model)
    if cfg.compile:
        backbone = task.model.backbone
        assert isinstance(backbone, Encoder)  # Others have been rejected by check_compile.
        compile_layers(backbone)
    if not is_first_process():
        fit(trainer, task, data, ckpt, lambda: None)
        return _best_score(trainer)

    for place, given in ((folder, cfg), whole or (folder, cfg)):
        _describe(given, place, shards)  # not before: what is rejected leaves no run
    for label in labels_without_val(data):
        warn(f"no validation song is labelled with {label}: other labels choose the best epoch")
    if data.part is not None:
        say_part(data.part, cfg.protocol.part)
    _say_fold(data)
    n_parameters = sum(p.numel() for p in task.model.parameters())
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
    resume = f"midigenre train resume={folder if whole is None else whole[0]}"
    try:
        fit(trainer, task, data, ckpt, _say_stopping)
    except StoppedError as error:
        raise StoppedError(f"{error}; go on with: {resume}", error.signal) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; make room there, then go on with: "
            f"{resume}"
        ) from error
    score, cost = _best_score(trainer), _cost(task, trainer, n_parameters)

    best = load_run(str(folder), kind=task.kind).model.to(trainer.strategy.root_device)
    outcome = task.test(best, data, folder, plain(cfg.task))
    cost["seconds"] = round(time.perf_counter() - began, 3)
    monitor = str(trainer.checkpoint_callback.monitor)  # type: ignore[union-attr]
    # Those that were begun: `current_epoch` is one less in a run that had nothing left to train.
    n_epochs = trainer.fit_loop.epoch_progress.current.ready
    metrics: dict[str, Any] = {
        "val": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        "best": {monitor: score},
        "test": outcome.scores,
        "parameters": n_parameters,
        "epochs": n_epochs,
        "steps": trainer.global_step,
        "fold": cfg.fold,
    }
    if data.part is not None:
        metrics["protocol"] = {"part": cfg.protocol.part} | data.part.to_dict()
    write_json(folder / "evaluation.json", outcome.evaluation)
    write_json(folder / "metrics.json", metrics)
    # Apart from the metrics, which a seed makes the same every time.
    write_json(folder / "cost.json", cost)
    final = {monitor.replace("/", "_"): score} | outcome.final
    finish_hparams(trainer, type(task), final, cost)
    _log_test(trainer, outcome)
    task.show(outcome.evaluation, console)
    say(
        f"trained {plural(n_epochs, 'epoch')}, "
        f"{plural(trainer.global_step, 'step')} in {cost['fit_seconds']:.0f} s "
        f"({cost['tokens_per_second']:,.0f} tokens/s, at most "
        f"{cost['peak_memory_bytes'] / 2**20:,.0f} MB); {cost['seconds']:.0f} s since this command"
    )
    console.print(task.next_command(folder), highlight=False, soft_wrap=True)
    return score


def _new(cfg: DictConfig, folder: Path) -> DictConfig:
    """The config of a new run, rejected as early as it can be."""
    cfg = finetuned(cfg, HydraConfig.get().overrides.task)
    # Further processes of a distributed run have the same command line; the first speaks for all.
    if is_first_process():
        if RunFolder(folder).has_config:
            raise UserError(f"{folder} holds another run; start again in a second, or set name=")
        check_settings(cfg)
    return cfg


def _resumed(cfg: DictConfig) -> DictConfig:
    """The saved config with the new bounds of the trainer."""
    run = RunFolder(Path(cfg.resume))
    if not run.has_config:
        if (run.path / SWEEP).is_file():
            jobs = [
                str(job) for job in sorted(run.path.glob("[0-9]*")) if RunFolder(job).has_config
            ]
            raise UserError(
                f"resume={cfg.resume} is a sweep: the command line that started it resumes it, and "
                f"resume=JOB one of its jobs ({', '.join(jobs) or 'none has begun'})"
            )
        raise UserError(f"resume={cfg.resume} is no run (no config.yaml); give runs/<name>/<when>")
    # A sweep resumes its own jobs, by the command line that started them.
    given = [] if HydraConfig.get().mode == RunMode.MULTIRUN else HydraConfig.get().overrides.task
    changed = [o for o in given if not o.startswith("resume=")]
    # A class of one's own is named again: that lets the saved config name it.
    wrong = [
        o for o in changed
        if not o.lstrip("+").startswith(("trainer.max_", "debug=", "home="))
        and not o.partition("=")[0].endswith(registry.TARGET)
    ]  # fmt: skip
    if wrong:
        raise UserError(
            f"{wrong[0]} cannot change on resume: the saved config wins; only trainer.max_* may"
        )
    run.check_for_training()
    saved = run.as_config()
    for override in changed:
        key = override.split("=", 1)[0].lstrip("+")
        if key.startswith("trainer.max_"):
            OmegaConf.update(saved, key, OmegaConf.select(cfg, key), force_add=True)
    with reading(run.config_path, "bring back the file that the run was trained with"):
        check_settings(saved)
    return saved


def _songs(cfg: DictConfig, resumed: bool) -> ShardSet:
    """The songs of a run, prepared if need be; the first process reports them."""
    check = functools.partial(check_listing, cfg)
    if not is_first_process():
        return prepared(cfg, check=check)
    with progress_bars() as progress:
        shards = prepared(cfg, progress, check=check)
    length = phrase_length(cfg.data, shards.tokens)
    print_report(refresh_report(shards, length, cfg.data.max_tokens), console, tables=False)
    if protocol_of(cfg) is None and not resumed:
        warn_of_shared_songs(cfg, shards, warn)
    return shards


def _last(folder: Path, cfg: DictConfig) -> str | None:
    """The checkpoint that a run resumes from; without one it starts over, which gives the same."""
    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return None
    check_last(path, cfg, RunFolder(folder))
    return str(path)


def _start(cfg: DictConfig) -> Start | None:
    """What a new model starts from."""
    if cfg.init_from is None:
        return None
    return start_from(cfg.init_from, plain(cfg.model), plain(cfg.task), tokens_of(cfg))


def _describe(cfg: DictConfig, folder: Path, shards: ShardSet) -> None:
    """Writes what explains a run."""
    OmegaConf.save(OmegaConf.create(plain(cfg)), folder / "config.yaml")
    write_json(
        folder / "spec.json",
        {"tokens": shards.tokens.to_dict(), "labels": shards.labels.to_dict(),
         "shards": str(shards.folder), "version": __version__},
    )  # fmt: skip


def _say_fold(data: PhraseDataModule) -> None:
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


def _say_stopping() -> None:
    console.print("[yellow]stopping after this step; Ctrl-C again stops at once[/]")


def _resumes(ckpt: str | None, task: Task) -> str:
    """Where a resumed run begins, in words."""
    if ckpt is None:
        return "stopped before its first checkpoint: it starts over, with the same result"
    with reading(ckpt, "delete it to start the run over"):
        saved = torch.load(ckpt, map_location="cpu", weights_only=True)
        task.load_state_dict(saved["state_dict"])
        return f"goes on after {plural(saved['global_step'], 'step')}"


def _devices(trainer: L.Trainer) -> str:
    kind = trainer.strategy.root_device.type
    if trainer.world_size > 1:
        return f"{trainer.world_size} processes on {kind}"
    return plural(torch.get_num_threads(), "thread") if kind == "cpu" else kind


def _cost(task: Task, trainer: L.Trainer, n_parameters: int) -> dict[str, Any]:
    """What training took, over all its interruptions."""
    return {
        "fit_seconds": round(task.cost.seconds, 3),
        "train_tokens": task.cost.tokens,
        "train_phrases": task.cost.phrases,
        "tokens_per_second": round(task.cost.tokens / task.cost.seconds, 1),
        "peak_memory_bytes": peak_memory_bytes(trainer.strategy.root_device),
        "parameters": n_parameters,
        "device": trainer.strategy.root_device.type,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
    }


def _best_score(trainer: L.Trainer) -> float:
    checkpoint: Any = trainer.checkpoint_callback
    if checkpoint is None or checkpoint.best_model_score is None:
        raise UserError(
            "training ended before its first validation, so there is no best checkpoint; "
            "raise trainer.max_epochs, max_steps or max_time"
        )
    return float(checkpoint.best_model_score)


def _log_test(trainer: L.Trainer, outcome: Outcome) -> None:
    """Test scores and figures beside the training's own."""
    for logger in trainer.loggers:
        logger.log_metrics(outcome.scores, step=trainer.global_step)
        logger.save()
    writer = tensorboard_of(trainer)
    if writer is not None:
        for tag, figure in outcome.figures.items():
            writer.add_figure(final_tag(tag), figure, trainer.global_step)
        writer.flush()
    for logger in trainer.loggers:
        logger.finalize("success")
