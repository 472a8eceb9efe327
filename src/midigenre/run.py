"""A run's folder: its files, its lock, and the settings in which runs differ.

This is the one place where a run's ``config.yaml`` is opened.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from midigenre import registry
from midigenre.errors import UserError
from midigenre.files import inside, read_json
from midigenre.registry import reading
from midigenre.storage import check_writable

GROUPS = ("corpus", "tokenizer", "model", "optim", "task")
"""Groups that the config of every run has; :func:`settings_of` names them by their choices."""

_TRAINING = (
    *GROUPS, "data", "trainer", "precision", "split", "labels", "prepare", "protocol",
    "augment", "seed", "fold", "shards", "init_from",
    "freeze_layers", "test", "compile", "n_workers",
)  # fmt: skip
"""What a config must have for a run to resume."""

HOLDOUT = "holdout"
"""The protocol of a run that is trained and tested once, on the prepared split."""

FAILED = "failed.txt"
"""In the folder of a job that failed: the reason in its first line, then the traceback if any."""

SWEEP = "sweep.json"
"""In a sweep's folder: its command line, its jobs and the config that they have in common."""


EXPORTED = "model.safetensors"
"""Weights in the folder of an exported model, which stands where a run's folder may."""

EXPORTED_ABOUT = "config.json"
"""Beside them: what is needed to rebuild the model."""


def folder_of(checkpoint: Path) -> Path:
    """The folder of the run, ``RUN/checkpoints/NAME.ckpt``, or of the exported model."""
    parent = checkpoint.absolute().parent
    return parent if checkpoint.name == EXPORTED else parent.parent


def _joined(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else "_".join(names)


# A classifier is named after its labels; whoever composes a config imports this module.
OmegaConf.register_new_resolver("joined", _joined, replace=True)


def literal(data: Any) -> Any:
    """Plain data escaped for OmegaConf, so that ``${...}`` in it is plain text."""
    if isinstance(data, Mapping):
        return {key: literal(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [literal(value) for value in data]
    # OmegaConf's rule: a backslash before ${ keeps it, and those before that one double.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", data) if isinstance(data, str) else data


def as_config(data: Mapping[str, Any]) -> DictConfig:
    """Plain data as a config in which every text is literal; no keys can be added."""
    config = OmegaConf.create(literal(data))
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    return config


@dataclass(frozen=True)
class RunFolder:
    """The folder of a training run.

    Attributes:
        path: Where it lies.
    """

    path: Path

    @classmethod
    def of(cls, named: str | Path) -> RunFolder:
        """The run that a user names, by its folder or by ``RUN/checkpoints/NAME.ckpt``."""
        path = Path(named).expanduser()
        return cls(folder_of(path) if path.is_file() else path)

    @property
    def config_path(self) -> Path:
        """Its ``config.yaml``."""
        return self.path / "config.yaml"

    @property
    def has_config(self) -> bool:
        """Whether it is a run, not a folder with a checkpoint alone."""
        return self.config_path.is_file()

    @property
    def finished(self) -> bool:
        """Whether it has all files of a finished run, but for the scores of a test."""
        return all((self.path / f"{name}.json").is_file() for name in ("metrics", "cost"))

    @property
    def tested(self) -> bool:
        """Whether it has scores of the test songs; with ``test=false`` a finished run has none."""
        return (self.path / "evaluation.json").is_file()

    @property
    def best_score(self) -> tuple[str, float]:
        """Name and value of a finished run's best validation score."""
        ((name, value),) = read_json(self.path / "metrics.json")["best"].items()
        return name, float(value)

    @property
    def test_command(self) -> str:
        """What tests it, if it was not."""
        return f"midigenre train resume={self.path} test=true"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its resolved config as plain data; it may be untrusted, so nothing is interpolated.

        The classes that it names are looked up where they are used (:mod:`midigenre.registry`).

        Raises:
            UserError: It is empty, cut, or no config of a run.
        """
        path = self.config_path
        remedy = "bring back the file that the run was trained with, or train again"
        try:
            text = path.read_text(encoding="utf-8")
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
                raise ValueError("it has aliases, which could expand to any amount of data")
            # OmegaConf's own, which reads 1e-3 as a number.
            data: Any = yaml.load(text, get_yaml_loader())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            what = " ".join(str(error).split())
            raise UserError(f"{path} cannot be read ({what[:300]}); {remedy}") from error
        config: dict[str, Any] = data if isinstance(data, dict) else {}
        for group in GROUPS:
            node = config.get(group)
            if not isinstance(node, dict):
                what = f"cut or no config of a run: it has no {group}" if data else "empty"
                raise UserError(f"{path} is {what}; {remedy}")
            if not isinstance(node.get("name", ""), str):
                raise UserError(f"{path}: {group}.name={node['name']} is not a name; {remedy}")
        return config

    def as_config(self) -> DictConfig:
        """The same as a config; see :func:`as_config`.

        Songs are prepared again on this machine: the former cluster may be gone, and answers of a
        Dask scheduler are unpickled.
        """
        config = as_config(self.config)
        if isinstance(config.get("prepare"), DictConfig):
            config.prepare.backend, config.prepare.scheduler = "loky", None
        return config

    def check_entries(self) -> None:
        """Rejects a run with links out of it, pipes or devices, before anything is written.

        Raises:
            UserError: There is such an entry, or the folder cannot be written.
        """
        check_writable(self.path, "resume a copy of the run that is yours: cp -r RUN COPY")
        root = os.path.realpath(self.path)
        for path in self.path.rglob("*"):
            # Weights & Biases links its own log, which nothing is written through.
            if path.is_symlink() and path.match("wandb/*/logs/debug-core.log"):
                continue
            target = Path(os.path.realpath(path))  # `Path.resolve` raises on a loop of links
            if not target.is_relative_to(root):
                why = f"a link to {target}, out of the run"
            elif not (path.is_file() or path.is_dir()):
                why = "neither a regular file nor a folder"
            else:
                continue
            raise UserError(f"{path} is {why}; replace it with a file or folder of its own")

    def check_for_training(self) -> None:
        """Rejects a config that names foreign classes or writes elsewhere.

        Raises:
            UserError: It does; or it lacks a setting; or a logger has settings of several values,
                such as the server that Weights & Biases would send its key to.
        """
        if missing := [key for key in _TRAINING if key not in self.config]:
            raise UserError(
                f"{self.config_path} has no {missing[0]}: another version wrote it; train again"
            )
        with reading(self.config_path):
            for group, node in self.config.items():
                registry.check(node, group)
            writers = {"profiler": self.config.get("profiler")} | {
                f"{group}.{name}": node
                for group in ("callbacks", "logger")
                for name, node in (self.config.get(group) or {}).items()
            }
            settings = [(n, *item) for n, node in writers.items() for item in (node or {}).items()]
        for name, key, value in settings:
            is_place = key in ("dirpath", "dir", "filename", "name", "version", "sub_dir")
            place = value if is_place and isinstance(value, str) else ""
            if place and not inside(place):
                why = "lies outside of the run"
            # Lightning formats names: a field may reach any attribute of a metric, and its format
            # ask for any width.
            elif re.search(r"[{}]", re.sub(r"\{[\w-]*(:0?\d{0,2}(\.\d)?[defg]?)?\}", "", place)):
                why = "has more in its braces than the name of a metric"
            elif name.startswith("logger.") and isinstance(value, Mapping):
                why = "must be one value"
            else:
                continue
            raise UserError(
                f"{self.config_path}: {name}.{key}={value} {why}; edit it there if the run is yours"
            )

    @property
    def spec_path(self) -> Path:
        """Its ``spec.json``."""
        return self.path / "spec.json"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Its vocabulary, its class names and the former path of its shards, as plain data.

        Raises:
            UserError: Its ``spec.json`` is missing or damaged.
        """
        path = self.spec_path
        if not path.is_file():
            raise UserError(f"{path} is missing, so the songs of this run are not known")
        with reading(path, "bring back the file of the run, or train again"):
            found = read_json(path)
            return {"tokens": found["tokens"], "labels": found["labels"], "shards": found["shards"]}

    @property
    def shards(self) -> Path:
        """The shards that it was trained on, at their former path.

        Raises:
            UserError: Its ``spec.json`` is missing or damaged.
        """
        with reading(self.spec_path):
            return Path(self.spec["shards"])


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Makes a new folder, locked: this one, or ``<name>-2``, ... where that is taken.

    Of processes that ask for one name at the same time, each gets a folder of its own. At the end
    it is removed, with the folders that were made for it, if no training began in it and no job
    failed.

    Raises:
        OSError: It cannot be made.
    """
    own, number = folder, 1
    while True:
        above = [path for path in own.parents if not path.exists()]
        try:
            own.mkdir(parents=True)
            break
        except FileExistsError:
            if not own.is_dir():  # a file above it
                raise
            number += 1
            own = folder.with_name(f"{folder.name}-{number}")
    try:
        with locked(own):
            yield own
    finally:
        if not any(path.name in ("config.yaml", FAILED) for path in own.rglob("*")):
            shutil.rmtree(own, ignore_errors=True)
            with contextlib.suppress(OSError):  # other runs are there by now
                for path in above:
                    path.rmdir()


@contextlib.contextmanager
def locked(folder: Path, seconds: float = 0) -> Iterator[None]:
    """Keeps other processes from training in a folder.

    Args:
        folder: The folder.
        seconds: How long to wait for another process that is about to end.

    Raises:
        UserError: Another process trains there.
        OSError: The folder cannot be written.
    """
    lock = FileLock(folder / ".lock")  # which the kernel unlocks when this process ends
    try:
        held = lock.acquire(timeout=seconds)
    except Timeout as error:
        raise UserError(
            f"{folder} is being trained by another process; wait until that ends, or stop it"
        ) from error
    with held:
        yield


# They determine where a run is and what it shows, not what it computes.
_IGNORED = (
    "home", "name", "resume", "test", "debug", "n_workers", "compile", "trainer.log_every_n_steps",
)  # fmt: skip
_IGNORED_GROUPS = ("logger", "profiler", "hydra", "callbacks")
_KEPT = ("callbacks.early_stopping.", "callbacks.average.", "callbacks.checkpoint.monitor")


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings under the names of the command line, without paths and outputs.

    ``corpus``, ``tokenizer``, ``model``, ``optim``, ``task`` and ``precision`` stand for the names
    of their choices; ``optim.lr`` is the rate that was used. What is not set is left out.

    Args:
        config: The content of ``config.yaml``.

    Raises:
        KeyError: It lacks a group that every run has.
    """
    out: dict[str, Any] = {
        # midigenre.corpora.twelve.Twelve
        "corpus": _last(str(config["corpus"]["_target_"]).rpartition(".")[0]),
        "tokenizer": config["tokenizer"]["name"],
        "model": config["model"]["name"],
        # midigenre.tasks.optim.MuonSettings
        "optim": _last(config["optim"]["_target_"]).removesuffix("Settings").lower(),
        "task": config["task"]["name"],
        "precision": config["precision"]["precision"],
    }
    for key, value in flatten(config):
        group, _, name = key.partition(".")
        is_output = group in _IGNORED_GROUPS and not key.startswith(_KEPT)
        is_name = name == "name" or name.endswith("_target_") or group == "precision"
        if not (key in _IGNORED or is_output or is_name or value is None or value == {}):
            out[key] = value
    if (protocol := protocol_name(config)) != HOLDOUT:
        out["protocol"] = protocol
    rate = out.pop("model.lr", None)
    if out.get("optim.lr") is None:
        out["optim.lr"] = rate
    if isinstance(devices := out.get("trainer.devices"), list):
        out["trainer.devices"] = len(devices)  # which device does not matter
    return out


def _last(path: Any) -> str:
    return str(path).rpartition(".")[2]


def protocol_name(config: Mapping[str, Any]) -> str:
    """How the songs of a run were split, :data:`HOLDOUT` where its config does not say."""
    name: str = (config.get("protocol") or {}).get("name", HOLDOUT)
    return name


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested groups, ``group.name`` and value, below a prefix."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Settings that differ, each as ``group.name=1 there, 2 here``."""
    there, here = dict(flatten(theirs)), dict(flatten(ours))
    return [
        f"{key}={_yaml(there.get(key))} there, {_yaml(here.get(key))} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
