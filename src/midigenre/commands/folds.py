"""All parts of a protocol in turn: a run folder for each, and one evaluation over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from midigenre.build import class_of, labels_of, plain
from midigenre.checks import check_one_device, source_of
from midigenre.commands.console import console, say, warn
from midigenre.data.shards import ShardSet
from midigenre.data.splits import CROSSVAL, Fold, Protocol, settings_of
from midigenre.errors import UserError
from midigenre.evaluation.crossval import PartRun, mean_and_sd, pool, tested
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.scores import evaluation_figures
from midigenre.evaluation.metrics import METRICS
from midigenre.evaluation.predictions import LEVELS
from midigenre.files import read_json, write_json
from midigenre.run import RunFolder, as_config, locked
from midigenre.spec import UNKNOWN
from midigenre.wording import plural

TrainPart = Callable[[DictConfig, Path, bool], float]
"""Trains a part: its config, its folder, whether it goes on."""


def protocol_of(cfg: DictConfig) -> Protocol | None:
    """The protocol of a run; None for the prepared split.

    Raises:
        UserError: A setting is out of range.
    """
    return Protocol.from_config(settings_of(plain(cfg.protocol), plain(cfg.split), labels_of(cfg)))


def check_devices(cfg: DictConfig) -> None:
    """Refuses several devices for parts in turn: their processes start with the command, once.

    Raises:
        UserError: ``trainer.devices`` asks for more than one.
    """
    check_one_device(
        cfg,
        f"protocol={cfg.protocol.name} trains one part after the other on one device; set "
        "trainer.devices=1, or train each part alone with protocol.part=1, 2, ...",
    )


def part_of(protocol: Protocol, shards: ShardSet, number: int, labels: Sequence[str]) -> Fold:
    """The songs of a part that can be trained.

    Args:
        protocol: How songs are dealt.
        shards: The songs.
        number: The part's number.
        labels: The task's labels.

    Raises:
        UserError: It has no song to test, to train on or to choose the best checkpoint by, or none
            to train on that has one of the labels.
    """
    return _usable(protocol.split(shards, number), number, shards, labels)


def _usable(part: Fold, number: int, shards: ShardSet, labels: Sequence[str]) -> Fold:
    for split, word in (("test", "test"), ("train", "train on"), ("val", "validate on")):
        if not len(part.rows[split]):
            why = (
                "; each of its classes occurs in no other source"
                if split == "test" and part.untestable else ""
            )  # fmt: skip
            raise UserError(f"protocol.part={number} ({part.name}) has no song to {word}{why}")
    class_of_song = shards.label_indices()
    for label in labels:
        if (class_of_song[label][part.rows["train"]] == UNKNOWN).all():
            raise UserError(
                f"protocol.part={number} ({part.name}) has no training song labelled with {label}; "
                "take a task without it, or leave the part out (protocol.sources=[...])"
            )
    return part


def say_part(part: Fold, number: int) -> None:
    """Tells which songs a part has, and which cannot be tested."""
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
    say_untestable(part)


def say_untestable(part: Fold) -> None:
    """Tells the songs whose class no other source teaches."""
    for label, counts in part.untestable.items():
        named = ", ".join(f"{name} {n:,}" for name, n in counts.items())
        warn(
            f"{part.name}: {plural(sum(counts.values()), 'song')} cannot be tested, since no other "
            f"source has their {label} ({named})"
        )


Planned = tuple[int, Fold, DictConfig | None]
"""A part's number, its songs and its config; None where no song of it can be tested."""


def plan_parts(
    cfg: DictConfig, folder: Path, shards: ShardSet, protocol: Protocol
) -> list[Planned]:
    """All parts, refused as early as they can be.

    Args:
        cfg: The run's config, ``protocol.part`` null.
        folder: Its folder; parts that are finished there are kept.
        shards: The songs.
        protocol: What ``cfg`` says of the parts.

    Raises:
        UserError: A part cannot be trained, or a finished one has other bounds of the trainer.
    """
    plan: list[Planned] = []
    labels = labels_of(cfg)
    for number, name in enumerate(protocol.names(shards), 1):
        part = protocol.split(shards, number)
        if not len(part.rows["test"]):  # a source of unlabelled songs, or of classes of its own
            plan.append((number, part, None))
            continue
        _usable(part, number, shards, labels)
        given = part_config(cfg, number, name)
        if RunFolder(folder / name).finished:
            _check_bounds(given, folder / name)
        plan.append((number, part, given))
    if all(given is None for _, _, given in plan):
        raise UserError(
            f"protocol={protocol.name}: no song can be tested, since no source has labelled songs "
            "of a class that another one has too; take protocol=crossval"
        )
    return plan


def run_parts(
    cfg: DictConfig, folder: Path, shards: ShardSet, plan: Sequence[Planned], train_part: TrainPart
) -> float:
    """Trains the parts that are not finished, then scores all of them together.

    Args:
        cfg: The run's config, ``protocol.part`` null.
        folder: Its folder; each part has one inside.
        shards: The songs.
        plan: The parts.
        train_part: Trains one.

    Returns:
        The mean of the parts' best validation scores, for sweeps.

    Raises:
        UserError: A part cannot be trained.
    """
    if cfg.protocol.name == CROSSVAL:
        say(
            f"{len(plan)} folds of {plural(len(shards), 'song')} by split.seed={cfg.split.seed}; "
            "the prepared split is not used"
        )
    runs: list[PartRun] = []
    skipped: list[Fold] = []
    started = time.perf_counter()
    for number, part, given in plan:
        if given is None:
            skipped.append(part)
            say_untestable(part)
            warn(f"{part.name} is left out: it has no song to test")
            continue
        below = folder / part.name
        if RunFolder(below).finished:
            say_part(part, number)
            say(f"{part.name} is finished")
        else:
            goes_on = RunFolder(below).has_config
            below.mkdir(exist_ok=True)
            with locked(below):
                try:
                    train_part(given, below, goes_on)
                except UserError as error:
                    if error.status != UserError.status:  # a signal
                        raise
                    raise UserError(f"part {number}, {part.name}: {error}") from error
        runs.append(PartRun(number, part, below))
    return _pooled(cfg, folder, runs, skipped, time.perf_counter() - started)


def part_config(cfg: DictConfig, number: int, name: str) -> DictConfig:
    """The config of a part, a run of its own.

    Raises:
        UserError: See :func:`~midigenre.checks.source_of`.
    """
    own = plain(cfg)
    own["protocol"]["part"] = number
    for logger in (own.get("logger") or {}).values():
        if logger is not None and "id" in logger:  # Weights & Biases: one run a part
            logger["id"], logger["name"] = f"{logger['id']}-{number}", f"{logger['name']}/{name}"
    found = as_config(own)
    found.init_from = source_of(found, name, warn)
    return found


def _check_bounds(given: DictConfig, folder: Path) -> None:
    """A finished part stays as it is: the others must train as long.

    Raises:
        UserError: They would not.
    """
    saved = RunFolder(folder).config.get("trainer") or {}
    for key, value in plain(given.trainer).items():
        then = saved.get(key)
        if key.startswith("max_") and value != then:
            raise UserError(
                f"trainer.{key}={value}, but {folder} was finished with {then}: the parts must "
                "train alike; start a new run"
            )


def _pooled(
    cfg: DictConfig,
    folder: Path,
    runs: Sequence[PartRun],
    skipped: Sequence[Fold],
    seconds: float,
) -> float:
    """Writes what a run leaves, over all parts."""
    n_tested = len(tested(runs))
    evaluation = pool(runs, folder, skipped)
    metrics = [read_json(run.folder / "metrics.json") for run in runs]
    costs = [read_json(run.folder / "cost.json") for run in runs]
    (monitor,) = metrics[0]["best"]
    best = mean_and_sd([of["best"][monitor] for of in metrics])
    assert best["mean"] is not None
    write_json(folder / "evaluation.json", evaluation)
    over = {key: mean_and_sd([of["test"].get(key) for of in metrics]) for key in metrics[0]["test"]}
    scores = {
        f"test/{label}/{level}/{metric}": levels[level][metric]
        for label, levels in evaluation.items()
        for level in LEVELS
        if level in levels
        for metric in METRICS
    } or {key: of["mean"] for key, of in over.items()}
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
            "protocol": {
                "name": cfg.protocol.name,
                "tested": n_tested,
                "parts": [run.part.to_dict() for run in runs],
                "skipped": [part.to_dict() for part in skipped],
            },
        },
    )
    write_json(folder / "cost.json", _cost(costs))
    if all(level in levels for levels in evaluation.values() for level in LEVELS):
        for place, figure in evaluation_figures(evaluation, "out-of-fold").items():
            save(figure, folder / "figures" / f"{place.replace('/', '-')}.png")
    task = class_of(plain(cfg.task))
    task.show(evaluation, console)
    for label, levels in evaluation.items():
        for level in LEVELS:
            if level in levels:
                found = levels[level]["over_parts"]["macro_f1"]
                say(f"{label}, {level} level: macro-F1 of the parts {_shown(found)}")
    say(
        f"{plural(len(runs), 'part')}, {plural(n_tested, 'song')} tested once each; "
        f"{monitor} {_shown(best)}; {seconds:.0f} s since this command"
    )
    return best["mean"]


def _shown(found: Mapping[str, float | None]) -> str:
    mean, sd = found["mean"], found["sd"]
    return "–" if mean is None else f"{mean:.3f}" + ("" if sd is None else f" (sd {sd:.3f})")


def _cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all parts have cost together; memory is the largest part's."""
    total = dict(costs[0])
    for key in ("fit_seconds", "train_tokens", "train_phrases", "seconds"):
        total[key] = round(float(np.sum([of[key] for of in costs])), 3)
    for key in ("train_tokens", "train_phrases"):
        total[key] = int(total[key])
    total["tokens_per_second"] = round(total["train_tokens"] / total["fit_seconds"], 1)
    total["peak_memory_bytes"] = max(of["peak_memory_bytes"] for of in costs)
    return total
