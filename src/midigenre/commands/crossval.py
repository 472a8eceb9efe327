"""All parts of a protocol in turn: a run folder for each, and one evaluation over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from midigenre.build import class_of, labels_of, plain
from midigenre.checks import check_one_device, source_of
from midigenre.commands.console import console, say, warn
from midigenre.data.shards import ShardSet
from midigenre.data.splits import CROSSVAL, Fold, Protocol
from midigenre.errors import UserError
from midigenre.evaluation.crossval import PartRun, mean_and_sd, pool
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.charts import evaluation_figures
from midigenre.evaluation.metrics import METRICS
from midigenre.evaluation.predictions import LEVELS, PIECE
from midigenre.files import read_json, write_json
from midigenre.run import RunFolder, as_config, locked
from midigenre.spec import UNKNOWN
from midigenre.wording import plural


def check_part(cfg: DictConfig, shards: ShardSet, part: Fold, number: int) -> None:
    """Rejects a part that cannot be trained.

    Raises:
        UserError: It has no song to test, to train on or to choose the best checkpoint by, or none
            to train on that has one of the task's labels.
    """
    named = f"protocol.part={number} ({part.name})"
    for split, word in (("test", "test"), ("train", "train on"), ("val", "validate on")):
        if not len(part.rows[split]):
            only = split == "test" and part.untestable
            why = "; each of its classes occurs in no other source" if only else ""
            raise UserError(f"{named} has no song to {word}{why}")
    class_of_song = shards.label_indices()
    for label in labels_of(cfg):
        if (class_of_song[label][part.rows["train"]] == UNKNOWN).all():
            raise UserError(
                f"{named} has no training song labelled with {label}; "
                "take a task without it, or leave the part out (protocol.sources=[...])"
            )


def say_part(part: Fold, number: int) -> None:
    """Shows which songs a part has, and which cannot be tested."""
    songs = ", ".join(
        f"{len(part.rows[split]):,} {word}"
        for split, word in (("train", "training"), ("val", "validation"), ("test", "test"))
    )
    say(f"part {number}, {part.name}: {songs} songs")
    if part.left_out:
        warn(
            f"{part.name}: {plural(part.left_out, 'song')} of other sources left out, for they "
            "belong to a group of it"
        )
    _warn_of_untestable(part)


def _warn_of_untestable(part: Fold) -> None:
    for label, counts in part.untestable.items():
        named = ", ".join(f"{name} {n:,}" for name, n in counts.items())
        warn(
            f"{part.name}: {plural(sum(counts.values()), 'song')} cannot be tested, since no other "
            f"source has their {label} ({named})"
        )


def train_parts(
    cfg: DictConfig,
    folder: Path,
    songs: Callable[[], ShardSet],
    protocol: Protocol,
    train: Callable[..., float],
) -> float:
    """Trains the parts that are not finished, then scores all of them together.

    Args:
        cfg: The run's config, ``protocol.part`` null.
        folder: Its folder; each part has one inside, and parts that are finished there are kept.
        songs: Gives the songs, prepared if need be.
        protocol: The protocol of ``cfg``.
        train: :func:`midigenre.commands.train.train`.

    Returns:
        The mean of the parts' best validation scores, for sweeps.

    Raises:
        UserError: A part cannot be trained, or a finished one has other trainer limits.
    """
    # With several devices the processes start once, with the command.
    check_one_device(
        cfg,
        f"protocol={cfg.protocol.name} trains one part after the other on one device; set "
        "trainer.devices=1, or train each part alone with protocol.part=1, 2, ...",
    )
    shards = songs()
    parts: list[tuple[PartRun, DictConfig]] = []
    skipped: list[Fold] = []
    for number, name in enumerate(protocol.names(shards), 1):
        part = protocol.split(shards, number)
        if not len(part.rows["test"]):  # a source of unlabelled songs, or of classes of its own
            skipped.append(part)
            continue
        check_part(cfg, shards, part, number)
        own = _config(cfg, number, name)
        if RunFolder(folder / name).finished:
            _check_bounds(own, folder / name)
        parts.append((PartRun(number, part, folder / name), own))
    if not parts:
        raise UserError(
            f"protocol={protocol.name}: no song can be tested, since no source has labelled songs "
            "of a class that another one has too; take protocol=crossval"
        )
    if protocol.name == CROSSVAL:
        say(
            f"{len(parts) + len(skipped)} folds of {plural(len(shards), 'song')} by "
            f"split.seed={cfg.split.seed}; the prepared split is not used"
        )
    for part in skipped:
        _warn_of_untestable(part)
        warn(f"{part.name} is left out: it has no song to test")
    began = time.perf_counter()
    for run, own in parts:
        there = RunFolder(run.folder)
        if there.finished:
            say_part(run.part, run.number)
            say(f"{run.part.name} is finished")
            continue
        resumed = there.has_config
        run.folder.mkdir(exist_ok=True)
        with locked(run.folder):
            try:
                train(own, run.folder, lambda: shards, resumed, whole=(cfg, folder))
            except UserError as error:
                if error.status != UserError.status:  # a signal
                    raise
                raise UserError(f"part {run.number}, {run.part.name}: {error}") from error
    return _pooled(cfg, folder, [run for run, _ in parts], skipped, time.perf_counter() - began)


def _config(cfg: DictConfig, number: int, name: str) -> DictConfig:
    """The config of a part, a run of its own."""
    own = plain(cfg)
    own["protocol"]["part"] = number
    for logger in (own["logger"] or {}).values():
        if logger is not None and "id" in logger:  # Weights & Biases: one run a part
            logger["id"], logger["name"] = f"{logger['id']}-{number}", f"{logger['name']}/{name}"
    found = as_config(own)
    found.init_from = source_of(found, name, warn)
    return found


def _check_bounds(own: DictConfig, folder: Path) -> None:
    """A finished part is kept, so the others must have the same trainer limits."""
    saved = RunFolder(folder).config.get("trainer") or {}
    for key, value in plain(own.trainer).items():
        if key.startswith("max_") and value != saved.get(key):
            raise UserError(
                f"trainer.{key}={value}, but {folder} was finished with {saved.get(key)}: the "
                "parts must train alike; start a new run"
            )


def _pooled(
    cfg: DictConfig, folder: Path, runs: Sequence[PartRun], skipped: Sequence[Fold], seconds: float
) -> float:
    """Writes what a run leaves, over all parts."""
    n_tested = sum(len(run.part.rows["test"]) for run in runs)
    evaluation = pool(runs, folder, skipped)
    of_levels = [
        (label, level, levels[level])
        for label, levels in evaluation.items()
        for level in (*LEVELS, PIECE)
        if level in levels
    ]
    metrics = [read_json(run.folder / "metrics.json") for run in runs]
    (monitor,) = metrics[0]["best"]
    best = mean_and_sd([of["best"][monitor] for of in metrics])
    assert best["mean"] is not None
    over = {key: mean_and_sd([of["test"].get(key) for of in metrics]) for key in metrics[0]["test"]}
    scores = {
        f"test/{label}/{level}/{metric}": found[metric]
        for label, level, found in of_levels
        for metric in METRICS
    } or {key: of["mean"] for key, of in over.items()}
    about = {
        "name": cfg.protocol.name,
        "tested": n_tested,
        "parts": [run.part.to_dict() for run in runs],
        "skipped": [part.to_dict() for part in skipped],
    }
    write_json(folder / "evaluation.json", evaluation)
    write_json(
        folder / "metrics.json",
        {
            "best": {monitor: best["mean"]},
            "test": scores,
            "over_parts": {monitor: best, **over},
            "parameters": metrics[0]["parameters"],
            "epochs": [of["epochs"] for of in metrics],
            "steps": [of["steps"] for of in metrics],
            "fold": cfg.fold,
            "protocol": about,
        },
    )
    costs = [read_json(run.folder / "cost.json") for run in runs]
    cost = dict(costs[0])
    for key in ("fit_seconds", "train_tokens", "train_phrases", "seconds"):
        cost[key] = round(sum(of[key] for of in costs), 3)
    cost["tokens_per_second"] = round(cost["train_tokens"] / cost["fit_seconds"], 1)
    cost["peak_memory_bytes"] = max(of["peak_memory_bytes"] for of in costs)
    write_json(folder / "cost.json", cost)
    if of_levels:
        for place, figure in evaluation_figures(evaluation, "out-of-fold").items():
            save(figure, folder / "figures" / f"{place.replace('/', '-')}.png")
    class_of(plain(cfg.task)).show(evaluation, console)
    for label, level, found in of_levels:
        over_parts = _shown(found["over_parts"]["macro_f1"])
        say(f"{label}, {level} level: macro-F1 of the parts {over_parts}")
    say(
        f"{plural(len(runs), 'part')}, {plural(n_tested, 'song')} tested once each; "
        f"{monitor} {_shown(best)}; {seconds:.0f} s since this command"
    )
    return best["mean"]


def _shown(found: Mapping[str, Any]) -> str:
    mean, sd = found["mean"], found["sd"]
    return "–" if mean is None else f"{mean:.3f}" + ("" if sd is None else f" (sd {sd:.3f})")
