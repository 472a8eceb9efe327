"""What is asked before a run starts: do its validation and test songs fit what it is given?"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.markup import escape

from midigenre.build import class_of, plain
from midigenre.commands.console import console
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.shards import ManifestTable, ShardSet
from midigenre.data.splits import HOLDOUT
from midigenre.errors import UserError
from midigenre.files import read_json
from midigenre.run import RunFolder
from midigenre.spec import UNKNOWN

log = logging.getLogger(__name__)

_LEARNT = {
    "classifier": "labels and notes",
    "generator": "notes, and labels if it was told them,",
}


def warn_of_shared_songs(cfg: DictConfig, shards: ShardSet) -> None:
    """Warns where ``init_from`` was trained on songs that this run, of one split, is tested on.

    Songs are looked up in the shards of that run. Where those are gone, the settings that deal the
    songs tell, as far as the corpus is the same.

    Args:
        cfg: Config of the run.
        shards: Its songs.
    """
    source = cfg.get("init_from")
    run = None if source is None else RunFolder.of(source)
    if run is None or not run.has_config:  # a checkpoint alone
        return
    saved = run.config
    protocol = saved.get("protocol") or {"name": HOLDOUT}
    there = _shards_of(run)
    if protocol["name"] == HOLDOUT and there is not None:
        if there.name == shards.folder.name:
            return
        theirs = _song_ids(ManifestTable(there / "manifest.csv"), ("train", "val"))
        ours = _song_ids(shards.manifest, ("test",))
        if shared := len(theirs & ours) if _same_corpus(saved, cfg) else 0:
            _warn(
                f"init_from={source} is a {_kind(saved)} and has learnt {_learnt(saved)} of "
                f"{shared:,} of the {len(ours):,} test songs here, which its split has in training "
                "or validation; set the same split, labels and corpus in both"
            )
    elif _same_corpus(saved, cfg) and (differing := _differing(saved, plain(cfg))):
        _warn(
            f"init_from={source} is a {_kind(saved)} whose songs were dealt by other settings "
            f"({', '.join(differing)}): it may have learnt {_learnt(saved)} of test songs here"
        )


def source_of(cfg: DictConfig, name: str) -> str | None:
    """What a part starts from: the same part of ``init_from`` where that was dealt likewise.

    Args:
        cfg: Config of the part.
        name: Its name.

    Raises:
        UserError: ``init_from`` was dealt otherwise, or its part is not finished.
    """
    source = cfg.get("init_from")
    if source is None:
        return None
    folder = Path(source).expanduser()
    run = RunFolder(folder)
    if not run.has_config:
        _warn(f"init_from={source}: it is not known which songs it was trained on; it may have "
              f"seen the test songs of {name}")  # fmt: skip
        return str(source)
    saved = run.config
    theirs = saved.get("protocol") or {"name": HOLDOUT}
    differing = _differing(saved, plain(cfg))
    if theirs["name"] != HOLDOUT and theirs.get("part") is None:
        if differing:
            raise UserError(
                f"init_from={source} was dealt by other settings ({', '.join(differing)}), so its "
                "parts have seen test songs of this run; set the same, or give another run"
            )
        part = folder / name
        if not (part / "checkpoints" / "best.ckpt").is_file() or not finished(part):
            raise UserError(
                f"init_from={source} has no finished {name}; go on with: midigenre train "
                f"resume={source}"
            )
        return os.fspath(part)
    # By its name: of leave_one_source_out, the numbers depend on protocol.sources.
    if theirs["name"] != HOLDOUT and not differing and _part_name(folder) == name:
        return str(source)
    _warn(
        f"init_from={source} is a {_kind(saved)} that was not trained by this part's songs alone: "
        f"it may have learnt {_learnt(saved)} of test songs of {name}; train it with "
        f"protocol={cfg.protocol.name} too and give that run"
    )
    return str(source)


def finished(folder: Path) -> bool:
    """Whether a run or a part has all that it leaves at its end."""
    return all((folder / f"{name}.json").is_file() for name in ("evaluation", "metrics", "cost"))


def _shards_of(run: RunFolder) -> Path | None:
    """The shards of a run, where they are still there."""
    found = run.shards if run.spec_path.is_file() else None
    return found if found is not None and (found / "manifest.csv").is_file() else None


def _song_ids(manifest: ManifestTable, splits: Sequence[str]) -> set[str]:
    pairs = zip(manifest.column("song_id"), manifest.column("split"), strict=True)
    return {song_id for song_id, split in pairs if split in splits}


def _part_name(folder: Path) -> str | None:
    metrics = folder / "metrics.json"
    about = (read_json(metrics).get("protocol") if metrics.is_file() else None) or {}
    name: str | None = about.get("name")
    return name


def _kind(saved: Mapping[str, Any]) -> str:
    return class_of(saved["task"]).kind


def _learnt(saved: Mapping[str, Any]) -> str:
    return _LEARNT.get(_kind(saved), "notes (no labels)")


def _same_corpus(saved: Mapping[str, Any], cfg: DictConfig) -> bool:
    """Whether both read the same files; other ones may have songs of the same names."""
    here, there = dict(plain(cfg.corpus)), dict(saved["corpus"])
    return all(
        here.get(key) == there.get(key) for key in ("_target_", "root", "path", "url", "seed")
    )


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Settings that deal the songs and differ."""

    def dealt(config: Mapping[str, Any]) -> dict[str, Any]:
        protocol = config.get("protocol") or {}
        return {
            "protocol": protocol.get("name", HOLDOUT),
            "protocol.folds": protocol.get("folds"),
            "split.seed": config["split"]["seed"],
            "split.fractions": list(config["split"]["fractions"]),
            "labels": config.get("labels"),
            "corpus": config["corpus"],
            "shards": config.get("shards"),
            "prepare.grouping": (config.get("prepare") or {}).get("grouping"),
        }

    there, here = dealt(theirs), dealt(ours)
    return [
        f"{key}={there[key]} there, {here[key]} here" if key != "corpus" else "another corpus"
        for key in there
        if there[key] != here[key]
    ]


def _warn(message: str) -> None:
    log.warning(message)
    console.print(f"[yellow]warning:[/] {escape(message)}", highlight=False)


def _without_val(data: PhraseDataModule) -> list[str]:
    """Labels of the task that no validation song has."""
    rows = data.rows("val")
    return [k for k in data.task_labels if (data.labels[k][rows] == UNKNOWN).all()]


def check_val_labels(data: PhraseDataModule) -> None:
    """Refuses a validation split that cannot choose the best epoch, in every process alike.

    Raises:
        UserError: No validation song has any of the task's labels.
    """
    without = _without_val(data)
    if without and len(without) == len(data.task_labels):
        raise UserError(
            f"no validation song is labelled with {' or '.join(without)}, so no epoch is the best; "
            "give more labelled songs, another split.seed or a larger fold"
        )


def check_classes(cfg: DictConfig, data: PhraseDataModule) -> None:
    """Refuses to train a classifier that has nothing to tell apart.

    Raises:
        UserError: All songs with one of the task's labels are of one class.
    """
    if _kind(plain(cfg)) != "classifier":
        return
    for label in data.task_labels:
        known = np.unique(data.labels[label][data.labels[label] != UNKNOWN])
        if len(known) == 1:
            name = data.shards.labels.classes[label][known[0]]
            raise UserError(
                f"every song is of one {label}, {name!r}: there is nothing to tell apart and every "
                "score would be 1; give songs of another one too, or set task=mlm or task=generate"
            )


def say_val_labels(data: PhraseDataModule) -> None:
    """Tells which labels have no say in what the best epoch is."""
    for label in _without_val(data):
        _warn(f"no validation song is labelled with {label}: other labels choose the best epoch")
