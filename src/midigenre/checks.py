"""What is checked before a run trains: its settings, the machine, its songs and their labels.

What a ``check_...`` rejects raises :class:`~midigenre.errors.UserError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from midigenre import registry
from midigenre.build import (
    check_labels,
    kind_of,
    labels_of,
    make_augment,
    make_backbone,
    make_corpus,
    make_model,
    make_optim,
    make_tokenizer,
    plain,
    protocol_settings,
)
from midigenre.corpora.base import Listing
from midigenre.data.datamodule import DataSettings, PhraseDataModule
from midigenre.data.labels import LabelSettings
from midigenre.data.phrases import phrase_length
from midigenre.data.shards import ManifestTable, ShardSet
from midigenre.data.splits import Protocol, Subset, check_fractions
from midigenre.errors import UserError
from midigenre.files import read_json
from midigenre.models import Encoder
from midigenre.models.sequences import no_varlen
from midigenre.run import HOLDOUT, RunFolder, differing, protocol_name
from midigenre.spec import UNKNOWN, LabelSpec
from midigenre.tasks.optim import MuonSettings

Say = Callable[[str], None]
"""Shows a line to the user."""


def check_settings(cfg: DictConfig) -> None:
    """Rejects settings that can be rejected before a corpus is prepared."""
    model, task = plain(cfg.model), plain(cfg.task)
    try:
        check_fractions(plain(cfg.split.fractions))
    except ValueError as error:
        raise UserError(str(error)) from error
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed} must lie in 0 to {2**32 - 1}")
    if cfg.fold is not None:
        Subset.from_config(cfg.fold)
    if protocol_of(cfg) is not None and not cfg.test:
        raise UserError(f"test=false: protocol={cfg.protocol.name} is its tests; leave one out")
    for key in ("max_epochs", "max_steps"):
        if (n := cfg.trainer.get(key)) is not None and n < 1 and n != -1:  # -1: no limit
            raise UserError(f"trainer.{key}={n} trains nothing; give 1 or more, or leave it out")
    data = plain(cfg.data)
    if unknown := sorted(data.keys() - DataSettings.__dataclass_fields__.keys()):
        raise UserError(f"data.{unknown[0]}: no such setting; midigenre train --help lists them")
    DataSettings(**data)
    make_backbone(model, kind_of(task).causal)
    make_optim(cfg)
    augment = make_augment(cfg)
    LabelSettings.from_config(plain(cfg.labels))
    if cfg.shards is None:
        corpus = make_corpus(cfg)
        check_labels(task, corpus.labels)
        tokens = make_tokenizer(cfg, corpus).spec
        make_model(model, task, tokens, LabelSpec(dict.fromkeys(corpus.labels, ("a", "b"))))
        phrase_length(cfg.data, tokens)
        augment.check(tokens)


def protocol_of(cfg: DictConfig) -> Protocol | None:
    """The protocol of a run; None for the prepared split."""
    return Protocol.from_config(protocol_settings(cfg))


def check_one_device(cfg: DictConfig, why: str) -> None:
    """Rejects several devices, or an unset number, where one process trains several runs.

    ``why`` says what needs one device, and what to do instead.
    """
    devices = cfg.trainer.devices
    if not (len(devices) == 1 if OmegaConf.is_list(devices) else str(devices) == "1"):
        raise UserError(f"trainer.devices={devices}: {why}")


def check_compile(cfg: DictConfig) -> None:
    """Rejects ``compile=true`` where the compiled layers cannot run.

    That is a backbone without layers to compile, no GPU or one before Ampere, full precision,
    attention dropout, a head width that variable-length attention does not take, sharded weights.
    """
    if not cfg.compile:
        return
    model, trainer, precision = cfg.model, cfg.trainer, cfg.precision.precision
    on_gpu = trainer.accelerator in ("gpu", "cuda", "auto")
    if not issubclass(registry.find_class("model", model._target_), Encoder):
        why = f": model={model.name} has no layers to compile; leave it out"
    elif not on_gpu or str(precision).startswith("32"):
        why = (
            f" needs a GPU and half precision, and this run has trainer.accelerator="
            f"{trainer.accelerator}, precision {precision}: give trainer=gpu precision=bf16, or "
            "leave compile out"
        )
    elif not torch.cuda.is_available():
        why = (
            " needs a GPU, and torch sees no CUDA device here: leave compile out, or train on a "
            "machine that has one"
        )
    elif model.attention_dropout:
        why = (
            " needs variable-length attention, which has no dropout, and model.attention_dropout="
            f"{model.attention_dropout}: set it to 0, or leave compile out"
        )
    elif wanted := no_varlen(model.d_model // model.n_heads, torch.cuda.get_device_capability()):
        why = (
            f" needs variable-length attention, and that {wanted}, with model.d_model="
            f"{model.d_model}, model.n_heads={model.n_heads} on {torch.cuda.get_device_name()}: "
            "change that, or leave compile out"
        )
    elif _is_sharded(cfg):
        why = " does not go with trainer=fsdp; leave it out, or trainer=ddp"
    else:
        return
    raise UserError(f"compile=true{why}")


def check_sharding(cfg: DictConfig) -> None:
    """Rejects Muon with ``trainer=fsdp`` before a corpus is prepared.

    Its optimizer rejects what any other strategy shards, but only once the model is built.
    """
    if _is_sharded(cfg) and registry.find_class("optim", cfg.optim._target_) is MuonSettings:
        raise UserError(
            "trainer=fsdp shards matrices that optim=muon needs whole; give optim=adamw"
        )


def _is_sharded(cfg: DictConfig) -> bool:
    return "FSDP" in str(OmegaConf.select(cfg, "trainer.strategy._target_"))


def check_clock(cfg: DictConfig, n_processes: int) -> None:
    """Rejects validation by the clock with several processes: each has a clock of its own.

    If they pass the moment at different steps, one validates while another waits for gradients.
    """
    interval = cfg.trainer.get("val_check_interval")
    if n_processes > 1 and interval is not None and not isinstance(interval, (int, float)):
        raise UserError(
            f"trainer.val_check_interval={interval} goes by the clock, which {n_processes} "
            "processes do not share; give a number of steps, for instance "
            "trainer.val_check_interval=500"
        )


_LEARNT = {
    "classifier": "labels and notes",
    "generator": "notes, and labels if it was conditioned on them,",
}


def warn_of_shared_songs(cfg: DictConfig, shards: ShardSet, warn: Say) -> None:
    """Warns where ``init_from`` was trained on songs that this run, of one split, is tested on.

    Songs are looked up in the shards of that run. Where those are gone, the settings that split the
    songs are compared, as far as the corpus is the same.
    """
    run = None if cfg.init_from is None else RunFolder.of(cfg.init_from)
    if run is None or not run.has_config:  # a checkpoint alone
        return
    saved = run.config
    # Other files may have songs of the same names.
    place = ("_target_", "root", "path", "url", "seed")
    if any(cfg.corpus.get(key) != saved["corpus"].get(key) for key in place):
        return
    kind = kind_of(saved["task"]).name
    learnt = _LEARNT.get(kind, "notes (no labels)")
    manifest = run.shards / "manifest.csv" if run.spec_path.is_file() else None
    if protocol_name(saved) == HOLDOUT and manifest is not None and manifest.is_file():
        if run.shards.name == shards.folder.name:
            return
        theirs = _song_ids(ManifestTable(manifest), ("train", "val"))
        ours = _song_ids(shards.manifest, ("test",))
        if shared := len(theirs & ours):
            warn(
                f"init_from={cfg.init_from} is a {kind} trained on {learnt} of {shared:,} of "
                f"the {len(ours):,} test songs here, which its split has in training or "
                "validation; set the same split, labels and corpus in both"
            )
    elif different := _differently_split(saved, cfg):
        warn(
            f"init_from={cfg.init_from} is a {kind} whose songs were split by other settings "
            f"({', '.join(different)}): it may have seen {learnt} of test songs here"
        )


def _song_ids(manifest: ManifestTable, splits: tuple[str, ...]) -> set[str]:
    pairs = zip(manifest.column("song_id"), manifest.column("split"), strict=True)
    return {song_id for song_id, split in pairs if split in splits}


def source_of(cfg: DictConfig, name: str, warn: Say) -> str | None:
    """What a part starts from: the same part of ``init_from`` if its songs were split the same way.

    Args:
        cfg: Config of the part.
        name: Its name.
        warn: Shows a line.

    Raises:
        UserError: ``init_from`` has other parts, or its part is not finished.
    """
    source = cfg.init_from
    if source is None:
        return None
    run = RunFolder(Path(source).expanduser())
    if not run.has_config:
        warn(f"init_from={source}: it is not known which songs it was trained on; it may have "
             f"seen the test songs of {name}")  # fmt: skip
        return str(source)
    saved = run.config
    different = _differently_split(saved, cfg)
    is_holdout = protocol_name(saved) == HOLDOUT
    if not is_holdout and saved["protocol"].get("part") is None:
        if different:
            raise UserError(
                f"init_from={source} was split by other settings ({', '.join(different)}), so its "
                "parts have seen test songs of this run; set the same, or give another run"
            )
        part = RunFolder(run.path / name)
        if not (part.path / "checkpoints" / "best.ckpt").is_file() or not part.finished:
            raise UserError(
                f"init_from={source} has no finished {name}; resume it with: midigenre train "
                f"resume={source}"
            )
        return os.fspath(part.path)
    if not is_holdout and not different and (run.path / "metrics.json").is_file():
        # By its name: of leave_one_source_out, the numbers depend on protocol.sources.
        about = read_json(run.path / "metrics.json").get("protocol") or {}
        if about.get("name") == name:
            return str(source)
    kind = kind_of(saved["task"]).name
    warn(
        f"init_from={source} is a {kind} that was not trained by this part's songs alone: it may "
        f"have seen {_LEARNT.get(kind, 'notes (no labels)')} of test songs of {name}; train it "
        f"with protocol={cfg.protocol.name} too and give that run"
    )
    return str(source)


def _differently_split(saved: Mapping[str, Any], cfg: DictConfig) -> list[str]:
    """Settings that split the songs, and differ."""

    def splitting(config: Mapping[str, Any]) -> dict[str, Any]:
        folds = (config.get("protocol") or {}).get("folds")
        prepare = config.get("prepare") or {}
        return {
            "protocol": {"name": protocol_name(config), "folds": folds},
            "prepare": {key: prepare.get(key) for key in ("grouping", "conflicts")},
        } | {key: config.get(key) for key in ("split", "labels", "shards")}

    ours = plain(cfg)
    found = differing(splitting(saved), splitting(ours))
    return found + ["another corpus"] * (saved["corpus"] != ours["corpus"])


def check_listing(cfg: DictConfig, listing: Listing) -> None:
    """Rejects songs of a single class before they are encoded; see :func:`check_songs`."""
    for label in labels_of(cfg) if _is_classifier(cfg) else ():
        names = {song.labels.get(label) for song in listing.songs} - {None, ""}
        if len(names) == 1:
            raise _one_class(label, *names)


def _is_classifier(cfg: DictConfig) -> bool:
    return kind_of(plain(cfg.task)).name == "classifier"


def _one_class(label: str, name: str | None) -> UserError:
    return UserError(
        f"every song is of one {label}, {name!r}: there is nothing to tell apart and every "
        "score would be 1; give songs of another one too, or set task=mlm or task=generate"
    )


def check_songs(cfg: DictConfig, data: PhraseDataModule) -> list[str]:
    """Rejects songs of a single class, and a task none of whose labels a validation song has.

    Returns:
        Labels of the task that no validation song has; they do not influence the best epoch.
    """
    for label in data.task_labels if _is_classifier(cfg) else ():
        known = np.unique(data.labels[label][data.labels[label] != UNKNOWN])
        if len(known) == 1:
            raise _one_class(label, data.shards.labels.classes[label][known[0]])
    rows = data.rows("val")
    without = [k for k in data.task_labels if (data.labels[k][rows] == UNKNOWN).all()]
    if without and len(without) == len(data.task_labels):
        raise UserError(
            f"no validation song is labelled with {' or '.join(without)}, so no epoch is the best; "
            "give more labelled songs, another split.seed or a larger fold"
        )
    return without
