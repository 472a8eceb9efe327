"""``midigenre train``: prepare if needed, train, test the best checkpoint."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape

from midigenre import __version__, registry
from midigenre.build import (
    check,
    class_of,
    make_data,
    make_task,
    make_trainer,
    plain,
    prepared,
    tokens_of,
)
from midigenre.commands.console import console, progress_bars, quiet_lightning
from midigenre.commands.folds import (
    check_devices,
    part_of,
    plan_parts,
    protocol_of,
    run_parts,
    say_part,
)
from midigenre.commands.job import (
    check_clock,
    check_compile,
    is_first_process,
    swept_settings,
)
from midigenre.commands.start import (
    check_classes,
    check_val_labels,
    say_val_labels,
    source_of,
    warn_of_shared_songs,
)
from midigenre.corpora.base import no_progress
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import phrase_length
from midigenre.data.prepare import refresh_report
from midigenre.data.report import print_report
from midigenre.data.shards import ShardSet
from midigenre.errors import StoppedError, UserError
from midigenre.files import FULL, remove_parts, write_json
from midigenre.models import Encoder
from midigenre.registry import reading
from midigenre.run import RunFolder
from midigenre.tasks.base import Outcome, Task, peak_memory_bytes
from midigenre.tasks.callbacks import tensorboard_of
from midigenre.tasks.fit import fit
from midigenre.tasks.loggers import final_tag, finish_hparams, start_hparams
from midigenre.trained import Start, check_last, finetuned, load_run, start_from
from midigenre.wording import plural

log = logging.getLogger(__name__)


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
    # Lightning starts the further processes of a distributed run with the same command line.
    first = is_first_process()
    quiet_lightning()
    started = time.perf_counter()
    resumed = cfg.resume is not None  # the saved config knows nothing of it
    cfg, ckpt = _checked(cfg, folder, first)
    check_compile(cfg)
    protocol = protocol_of(cfg)
    if protocol is None:  # a part's start follows from its songs
        start = _start(cfg, ckpt)
    if protocol is not None and protocol.part is None:
        check_devices(cfg)
    else:
        trainer = make_trainer(cfg, folder)
        check_clock(cfg, trainer.world_size)
    with progress_bars() if first else contextlib.nullcontext(no_progress) as progress:
        shards = prepared(cfg, progress)
    if protocol is not None and protocol.part is not None:
        labels = class_of(plain(cfg.task)).labels_of(plain(cfg.task))
        part = part_of(protocol, shards, protocol.part, labels)
        cfg.init_from = source_of(cfg, part.name)
        start = _start(cfg, ckpt)
    elif protocol is not None:
        plan = plan_parts(cfg, folder, shards, protocol)
        _start(next(given for *_, given in plan if given is not None), None)
    elif first and ckpt is None:
        warn_of_shared_songs(cfg, shards)
    if not first:
        task, data, _ = _built(cfg, shards, start)
        fit(trainer, task, data, ckpt, lambda: None)
        return _best_score(trainer)
    if resumed:
        remove_parts(folder)
    report = refresh_report(shards, phrase_length(cfg.data, shards.tokens), cfg.data.max_tokens)
    print_report(report, console, tables=False)
    if protocol is None or protocol.part is not None:
        score = _trained(cfg, folder, shards, trainer, start, ckpt, resumed, {folder: cfg}, started)
    else:

        def train_part(given: DictConfig, below: Path, goes_on: bool) -> float:
            ckpt = _last(below, given)
            began = time.perf_counter()
            start, trainer = _start(given, ckpt), make_trainer(given, below)
            about = {folder: cfg, below: given}
            return _trained(given, below, shards, trainer, start, ckpt, goes_on, about, began)

        score = run_parts(cfg, folder, shards, plan, train_part)
    print(folder)
    return score


def _describe(cfg: DictConfig, folder: Path, shards: ShardSet) -> None:
    """Writes what explains a run."""
    OmegaConf.save(OmegaConf.create(plain(cfg)), folder / "config.yaml")
    write_json(
        folder / "spec.json",
        {"tokens": shards.tokens.to_dict(), "labels": shards.labels.to_dict(),
         "shards": str(shards.folder), "version": __version__},
    )  # fmt: skip


def _trained(
    cfg: DictConfig,
    folder: Path,
    shards: ShardSet,
    trainer: L.Trainer,
    start: Start | None,
    ckpt: str | None,
    resumed: bool,
    about: Mapping[Path, DictConfig],
    started: float,
) -> float:
    """Trains one model and tests it.

    Args:
        cfg: Its config.
        folder: Its folder.
        shards: The songs.
        trainer: The trainer.
        start: What the weights start from.
        ckpt: What it goes on from.
        resumed: Whether it goes on.
        about: The folders to explain and their configs; the first is to be resumed if this stops.
        started: When this began.

    Returns:
        The best validation score.
    """
    task, data, loaded = _built(cfg, shards, start)
    for place, given in about.items():  # not before: what is refused leaves no run
        _describe(given, place, shards)
    say_val_labels(data)
    if data.part is not None:
        say_part(data.part, cfg.protocol.part)
    _say_fold(data)
    n_parameters = sum(p.numel() for p in task.model.parameters())
    _say(
        f"run {folder}: {n_parameters:,} parameters, {shards.tokens.n_tokens} tokens in "
        f"{plural(len(shards.tokens.fields), 'field')}, {_devices(trainer)}"
    )
    if start is not None:
        _say(
            f"started from {cfg.init_from}: {' and '.join(loaded)}, {sum(loaded.values()):,} of "
            f"{n_parameters:,} weights"
        )
    if resumed:
        _say(_goes_on(ckpt, task))
    start_hparams(trainer, type(task), plain(cfg), swept_settings())
    try:
        fit(trainer, task, data, ckpt, _say_stopping)
    except StoppedError as error:
        raise StoppedError(
            f"{error}; go on with: midigenre train resume={next(iter(about))}", error.signal
        ) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; make room there, then go on with: "
            f"midigenre train resume={next(iter(about))}"
        ) from error
    cost = _cost(task, trainer, n_parameters)
    score = _best_score(trainer)

    best = load_run(str(folder), kind=task.kind).model.to(trainer.strategy.root_device)
    outcome = task.test(best, data, folder, plain(cfg.task))
    write_json(folder / "evaluation.json", outcome.evaluation)
    monitor = trainer.checkpoint_callback.monitor  # type: ignore[union-attr]
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
    write_json(folder / "metrics.json", metrics)
    # Apart from the metrics, which a seed makes the same every time.
    cost["seconds"] = round(time.perf_counter() - started, 3)
    write_json(folder / "cost.json", cost)
    final = {str(monitor).replace("/", "_"): score} | outcome.final
    finish_hparams(trainer, type(task), final, cost)
    _log_test(trainer, outcome)
    task.show(outcome.evaluation, console)
    _say(
        f"trained {plural(n_epochs, 'epoch')}, "
        f"{plural(trainer.global_step, 'step')} in {cost['fit_seconds']:.0f} s "
        f"({cost['tokens_per_second']:,.0f} tokens/s, at most "
        f"{cost['peak_memory_bytes'] / 2**20:,.0f} MB); {cost['seconds']:.0f} s since this command"
    )
    console.print(task.next_command(folder), highlight=False, soft_wrap=True)
    return score


def _start(cfg: DictConfig, ckpt: str | None) -> Start | None:
    """What the model starts from; a run that goes on has its weights in its own checkpoint."""
    source = cfg.get("init_from")  # runs of older versions do not have the key
    if source is None or ckpt is not None:
        return None
    return start_from(source, plain(cfg.model), plain(cfg.task), tokens_of(cfg))


def _built(
    cfg: DictConfig, shards: ShardSet, start: Start | None
) -> tuple[Task, PhraseDataModule, dict[str, int]]:
    """Task, data, and how many weights each part took over; new ones follow from the seed alone."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = make_data(cfg, shards)
    check_classes(cfg, data)
    check_val_labels(data)
    task = make_task(cfg, shards, data)
    task.freeze_first(cfg.get("freeze_layers") or 0)  # older runs do not have the key
    loaded = {} if start is None else start.load_into(task.model)
    if cfg.get("compile"):
        backbone = task.model.backbone
        assert isinstance(backbone, Encoder)  # Others have been refused by check_compile.
        backbone.compile_layers()
    return task, data, loaded


def _say(message: str) -> None:
    log.info(message)
    console.print(escape(message), highlight=False)


def _say_fold(data: PhraseDataModule) -> None:
    if data.fold is None:
        return
    songs = " and ".join(
        f"{len(data.rows(split)):,} of {len(data.split_rows(split)):,} {name} songs"
        for split, name in (("train", "training"), ("val", "validation"))
    )
    _say(f"fold {data.fold}: {songs}; the test songs are those of all folds")
    for label, names in data.classes_lost().items():
        for name in names:
            log.warning("%s %r has no training song in fold %s", label, name, data.fold)
            console.print(
                f"[yellow]warning:[/] {escape(f'{label} {name!r}')} has no training song in fold "
                f"{data.fold}"
            )


def _say_stopping() -> None:
    console.print("[yellow]stopping after this step; Ctrl-C again stops at once[/]")


def _goes_on(ckpt: str | None, task: Task) -> str:
    """Where a resumed run goes on, in words."""
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


def _checked(cfg: DictConfig, folder: Path, first: bool) -> tuple[DictConfig, str | None]:
    """The config to train with, refused as early as it can be, and the checkpoint to go on from."""
    if cfg.resume is not None:
        return _resumed(cfg)
    cfg = finetuned(cfg, HydraConfig.get().overrides.task)
    if not first:
        return cfg, None
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds another run; start again in a second, or set name=")
    check(cfg)
    return cfg, None


def _resumed(cfg: DictConfig) -> tuple[DictConfig, str | None]:
    """The saved config with the new bounds of the trainer, and the last checkpoint if any."""
    folder = Path(cfg.resume)
    run = RunFolder(folder)
    if not run.has_config:
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
        check(saved)
    return saved, _last(folder, saved)


def _last(folder: Path, cfg: DictConfig) -> str | None:
    """The checkpoint that a run goes on from; without one it starts over, which gives the same."""
    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return None
    check_last(path, cfg, RunFolder(folder))
    return str(path)


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
