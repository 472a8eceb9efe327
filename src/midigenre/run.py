"""A run's folder as it lies on disk: the one place where its ``config.yaml`` is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from midigenre import registry
from midigenre.errors import UserError
from midigenre.files import inside, read_json
from midigenre.registry import reading
from midigenre.storage import check_writable

# Settings of callbacks and loggers that say where they write.
_PLACES = ("dirpath", "dir", "filename", "name", "version", "sub_dir")

GROUPS = ("corpus", "tokenizer", "model", "task")
"""Groups that the config of every run has."""


def literal(data: Any) -> Any:
    """Plain data as OmegaConf must be given it, so that it takes no text for an interpolation.

    A ``${...}`` in a file, say of an environment variable, is text like any other.
    """
    if isinstance(data, Mapping):
        return {key: literal(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [literal(value) for value in data]
    # OmegaConf's rule: a backslash before ${ keeps it, and those before that one double.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", data) if isinstance(data, str) else data


def as_config(data: Mapping[str, Any]) -> DictConfig:
    """Plain data as a config in which every text stands for itself; no keys can be added."""
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
        """The run that a person names, by its folder or by ``RUN/checkpoints/NAME.ckpt``."""
        path = Path(named).expanduser()
        return cls(path.parent.parent if path.is_file() else path)

    @property
    def config_path(self) -> Path:
        """Its ``config.yaml``."""
        return self.path / "config.yaml"

    @property
    def has_config(self) -> bool:
        """Whether it is a run at all, and not a folder with a checkpoint alone."""
        return self.config_path.is_file()

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its resolved config as plain data, which may be anybody's.

        Texts stand for themselves: nothing is interpolated. The classes that it names are looked
        up where they are used (:mod:`midigenre.registry`).

        Raises:
            UserError: It is empty, cut, or no config of a run.
        """
        path = self.config_path
        remedy = "bring back the file that the run was trained with, or train again"
        try:
            text = path.read_text(encoding="utf-8")
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
                raise ValueError("it has aliases, which could stand for any amount of data")
            # OmegaConf's own, which reads 1e-3 as a number.
            data: Any = yaml.load(text, get_yaml_loader())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            what = " ".join(str(error).split())
            raise UserError(f"{path} cannot be read ({what[:300]}); {remedy}") from error
        missing = [
            group for group in GROUPS
            if not (isinstance(data, dict) and isinstance(data.get(group), dict))
        ]  # fmt: skip
        if missing:
            what = "empty" if not data else f"cut or no config of a run: it has no {missing[0]}"
            raise UserError(f"{path} is {what}; {remedy}")
        for group in GROUPS:
            if not isinstance(data[group].get("name", ""), str):
                raise UserError(f"{path}: {group}.name={data[group]['name']} is no name; {remedy}")
        config: dict[str, Any] = data
        return config

    def as_config(self) -> DictConfig:
        """The same as a config; see :func:`as_config`.

        Songs are prepared on this machine again: the cluster of then may be gone, and what a Dask
        scheduler answers is unpickled.
        """
        config = as_config(self.config)
        if isinstance(config.get("prepare"), DictConfig):
            config.prepare.backend, config.prepare.scheduler = "loky", None
        return config

    def check_entries(self) -> None:
        """Refuses to write into a run with links out of it, pipes or devices, before anything is.

        Raises:
            UserError: There is such an entry, or the folder cannot be written.
        """
        check_writable(self.path, "resume a copy of the run that is yours: cp -r RUN COPY")
        root = os.path.realpath(self.path)
        for path in self.path.rglob("*"):
            target = Path(os.path.realpath(path))  # `Path.resolve` raises on a loop of links
            if not target.is_relative_to(root):
                why = f"a link to {target}, out of the run"
            elif not (path.is_file() or path.is_dir()):
                why = "neither a regular file nor a folder"
            else:
                continue
            raise UserError(f"{path} is {why}; replace it with a file or folder of its own")

    def check_for_training(self) -> None:
        """Refuses to train by a config that names foreign classes or writes elsewhere.

        Raises:
            UserError: It does; or a logger has settings of several values, such as the server that
                Weights & Biases would send its key to.
        """
        with reading(self.config_path):
            for group, node in self.config.items():
                registry.check(node, group)
            writers = {"profiler": self.config.get("profiler")} | {
                f"{group}.{name}": node
                for group in ("callbacks", "logger")
                for name, node in (self.config.get(group) or {}).items()
            }
            places = [(n, *item) for n, node in writers.items() for item in (node or {}).items()]
        for name, key, value in places:
            named = value if key in _PLACES and isinstance(value, str) else ""
            if named and not inside(named):
                why = "lies outside of the run"
            # Lightning formats names: a field may reach any attribute of a metric, and its format
            # ask for any width.
            elif re.search(r"[{}]", re.sub(r"\{[\w-]*(:0?\d{0,2}(\.\d)?[defg]?)?\}", "", named)):
                why = "has more in its braces than the name of a metric"
            elif name.startswith("logger.") and isinstance(value, Mapping):
                why = "must be one value"
            else:
                continue
            raise UserError(
                f"{self.config_path}: {name}.{key}={value} {why}; mend it there if the run is yours"
            )

    @property
    def spec_path(self) -> Path:
        """Its ``spec.json``."""
        return self.path / "spec.json"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Its vocabulary, its class names and where its shards lay, as plain data.

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
        """The shards that it was trained on, where they lay then.

        Raises:
            UserError: Its ``spec.json`` is missing or damaged.
        """
        with reading(self.spec_path):
            return Path(self.spec["shards"])
