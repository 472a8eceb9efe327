"""The classes that a file may name, so that no code named in a stranger's file is ever called.

A checkpoint, the ``spec.json`` of shards and a run's ``config.yaml`` name classes by ``_target_``,
and whoever wrote the file chose the name: importing it, or calling what it stands for, could do
anything. So a name is looked up here first, and only then imported. Known are, for each config
group, the classes that the config tree names, and those that the user gave to
this command: in the composed config, or in the YAML files of a ``--config-dir``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from midigenre.errors import UserError

TARGET = "_target_"

# Errors that content of another shape causes in the code that reads it.
_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, yaml.YAMLError)

_typed: set[tuple[str, str]] = set()
"""Group and name of the classes that the user gave."""


class UnknownTargetError(UserError):
    """A file names something that is not a midigenre class of that group."""


def conf_dir() -> Path:
    """The config tree: inside the installed package, or beside ``src`` in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def trust(config: Mapping[str, Any], folders: Iterable[Path] = ()) -> None:
    """Registers the classes that the user names, in place of earlier ones.

    Args:
        config: The composed config of this command, as plain data.
        folders: Config trees that were given to it (``--config-dir``, ``hydra.searchpath``).
    """
    _typed.clear()
    for group, node in config.items():
        _typed.update((group, name) for name in _targets(node) if isinstance(name, str))
    _typed.update(*map(_of_tree, folders))


def trust_class(group: str, name: str) -> None:
    """Registers one more class, which another process of this command has looked up."""
    _typed.add((group, name))


def is_known(group: str, name: Any) -> bool:
    """Whether a file may name a class in a config group."""
    return isinstance(name, str) and ((group, name) in _of_tree(conf_dir()) | _typed)


def check(node: Any, group: str) -> None:
    """Rejects a node of a config group that names anything but the group's classes, at any depth.

    Raises:
        UnknownTargetError: It does.
    """
    for name in _targets(node):
        if not is_known(group, name):
            known = sorted(n for g, n in _of_tree(conf_dir()) if g == group)
            raise UnknownTargetError(
                f"{group}: {TARGET}={name!r} is no {group} of midigenre ({', '.join(known)}), and "
                "a file may name no other; for a class of your own add --config-dir=DIR with the "
                f"YAML that names it, or to train also +{group}.NAME.{TARGET}={name}"
            )


def find_class(group: str, name: Any) -> Any:
    """The class that a file names in a config group.

    Raises:
        UnknownTargetError: There is none of that name.
        UserError: It cannot be imported here.
    """
    check({TARGET: name}, group)
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{group}.{TARGET}={name}: {error}") from error


@contextmanager
def reading(path: Any, remedy: str = "") -> Iterator[None]:
    """Turns errors from a file's content into one line with the file and the remedy.

    Raises:
        UserError: The content is not what this version writes, or names an unknown class.
    """
    try:
        yield
    except UnknownTargetError as error:
        raise UserError(f"{path}: {error}") from error
    except _DAMAGED as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        what = what if len(what) < 300 else f"{what[:300]} ..."
        more = f"; {remedy}" if remedy else ""
        raise UserError(f"{path} is damaged, or another version wrote it ({what}){more}") from error


def _targets(node: Any) -> Iterator[Any]:
    """The classes named in a node, at any depth."""
    if isinstance(node, Mapping):
        if TARGET in node:
            yield node[TARGET]
        node = list(node.values())
    for value in node if isinstance(node, (list, tuple)) else ():
        yield from _targets(value)


@lru_cache(maxsize=8)
def _of_tree(root: Path) -> frozenset[tuple[str, str]]:
    """Group and name of all classes that a config tree names, in the folders of our groups."""
    found: set[tuple[str, str]] = set()
    for folder in sorted(path.name for path in conf_dir().iterdir() if path.is_dir()):
        for path in sorted((root / folder).rglob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            if TARGET not in text:
                continue
            with reading(path):
                data = yaml.safe_load(text)
            # A recipe has the groups inside; other files are one.
            is_recipe = "@package _global_" in text and isinstance(data, Mapping)
            for group, node in data.items() if is_recipe else [(folder, data)]:
                found.update((str(group), n) for n in _targets(node) if isinstance(n, str))
    return frozenset(found)
