"""What Hydra shows of a command, and its errors in words: one line that names the choices.

Hydra composes configs for this module by the same classes that run a command.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import (
    HydraException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf import OmegaConf

from midigenre.commands.hydra_job import reason
from midigenre.errors import UserError
from midigenre.registry import conf_dir
from midigenre.run import flatten

PLUGINS = {
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/submitit_local": "hydra-submitit-launcher",
    "hydra/launcher/submitit_slurm": "hydra-submitit-launcher",
}
"""Configs that come with a plugin of Hydra, and the package that has it."""

_SYNONYMS = {
    "learning_rate": "lr", "hidden_size": "d_model", "max_length": "max_tokens", "gpus": "devices",
    "wd": "weight_decay",
}  # fmt: skip
"""Settings of other programs whose names have no word in common with ours."""


@contextlib.contextmanager
def tree(args: Any) -> Iterator[Hydra]:
    """Hydra over the config tree and the person's own folder, ``--config-dir``, as for a command.

    Args:
        args: The command line as Hydra has parsed it.

    Raises:
        HydraException: There is no such folder.
    """
    path = create_config_search_path(str(conf_dir().resolve()))
    if args.config_dir is not None:
        own = os.path.abspath(args.config_dir)
        if not os.path.isdir(own):
            raise SearchPathException(f"--config-dir={args.config_dir}: no such folder")
        path.prepend("command-line", f"file://{own}", SearchPathQuery(provider="schema"))
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("midigenre", path)
    finally:
        GlobalHydra.instance().hydra = before


def help_of(command: str, args: Any) -> str:
    """What a command can be given, with the groups that ``args`` chooses."""
    cfg, groups = _composed(command, args)
    header = cfg.hydra.help.header
    with tree(args) as hydra:
        choices = [
            f"{group}: {', '.join(options)}"
            for group in sorted(groups)
            if not group.startswith("hydra/")
            and (options := hydra.config_loader.get_group_options(group, ObjectType.CONFIG))
        ]
    settings = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return "\n".join(
        [
            header,
            "",
            *(["== Groups (GROUP=CHOICE) ==", *choices, ""] if choices else []),
            "== Settings (NAME=VALUE) ==",
            OmegaConf.to_yaml(settings),
        ]
    )


def _composed(command: str, args: Any, chosen: bool = True) -> tuple[Any, set[str]]:
    """What a command can be given: its settings, with the chosen groups, and its groups."""
    with tree(args) as hydra:
        groups = {*hydra.config_loader.list_groups(""), "hydra.searchpath"}
        choices = [o for o in args.overrides if o.partition("=")[0] in groups]
        # A group that does not exist, or one that is swept: the defaults will do.
        for overrides in (choices, []) if chosen else ([],):
            with contextlib.suppress(HydraException):
                cfg = compose(command, overrides, return_hydra_config=True)
                return cfg, {str(group) for group in cfg.hydra.runtime.choices}
    return OmegaConf.create({}), set()


def _nearest(key: str, cfg: Any, groups: set[str]) -> list[str]:
    """At most three settings or groups that may be meant, the likeliest first.

    They are told by their last part, letter by letter and word by word: ``epochs`` is
    ``trainer.max_epochs``.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    hydra = {"hydra": plain.pop("hydra", {})}
    known = flatten(hydra if key.startswith("hydra.") else plain)
    parent, _, leaf = key.rpartition(".")
    words = _long_words(leaf)
    scores: dict[str, float] = {}
    groups = {group for group in groups if "hydra" not in group}
    for setting in {*(name for name, _ in known), *plain, *groups}:
        above, _, name = setting.rpartition(".")
        alike = difflib.SequenceMatcher(None, name, leaf).ratio()
        if above == parent and alike > 0.6:
            alike += 0.3
        if name in (leaf, _SYNONYMS.get(leaf)):
            alike = 2
        elif shared := words & _long_words(name):
            alike = max(alike, 0.6 + 0.4 * len(shared) / len(words | _long_words(name)))
        if alike > 0.7 and name != "_target_":
            scores[setting] = alike
    likeliest = sorted(scores, key=lambda setting: (-scores[setting], setting))[:3]
    return [setting for setting in likeliest if scores[setting] > scores[likeliest[0]] - 0.2]


def _long_words(name: str) -> set[str]:
    return {word for word in name.split("_") if len(word) > 1}


def _instead(key: str, command: str, args: Any, commands: Sequence[str]) -> str:
    """What to write instead of a setting that a command does not have."""
    if key.startswith("labels.map"):
        return "write labels.map.LABEL.CLASS=NAME for each class, as labels.map.genre.hiphop=rap"
    cfg, groups = _composed(command, args)
    if key == "device" and "trainer" in groups:
        return "write trainer=gpu or trainer=cpu"
    hints = [f"did you mean {near}?"] if (near := " or ".join(_nearest(key, cfg, groups))) else []
    top = key.partition(".")[0]
    for other in commands if top not in cfg and top not in groups else ():
        theirs, their_groups = _composed(other, args, chosen=False)
        if top in theirs or top in their_groups:
            hints.append(f"{top} belongs to midigenre {other}")
            break
    if not hints and (theirs := _nearest(key, *_composed("train", args, chosen=False))):
        hints.append(f"midigenre train has {' and '.join(theirs)}")
    return " ".join(hints) or f"midigenre {command} --help lists the settings"


def option(option: str, command: str, args: Any) -> str:
    """The message for ``--model tiny``, which argparse does not know."""
    name, equals, value = option.lstrip("-").partition("=")
    key = name.replace("-", "_")
    values = [value] if equals else [o for o in args.overrides if "=" not in o]
    cfg, groups = _composed(command, args)
    if key not in cfg and key not in groups:
        near = _nearest(key, cfg, groups)
        key = near[0] if near else ""
    how = f"write {key}={values[0] if values else 'VALUE'}" if key else "settings are key=value"
    return f"{option}: no such option; {how}"


def worded(error: BaseException, command: str, args: Any, commands: Sequence[str]) -> str:
    """An error as one line that names the value and the choices.

    Args:
        error: What was raised.
        command: While this command ran.
        args: The command line as Hydra has parsed it.
        commands: All commands, to say which one has a setting.
    """
    # Hydra's exception for a missing file is an OSError too.
    if isinstance(error, (UserError, OSError)) and not isinstance(error, HydraException):
        return reason(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is no setting; write key=value, and paths after --"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        if error.missing_cfg_file in PLUGINS:
            return (
                f"hydra/launcher needs {PLUGINS[error.missing_cfg_file]}, which is not installed: "
                'pip install "midigenre[sweep]"'
            )
        if error.options is not None:
            group, _, name = error.missing_cfg_file.rpartition("/")
            near = difflib.get_close_matches(name, error.options, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            there = f"; {guess}there is {', '.join(error.options)}" if error.options else ""
            return f"{group}={name}: no such choice{there}"
    text = str(error)
    for override in args.overrides:
        key = override.partition("=")[0].lstrip("+~")
        if text.startswith(f"Could not override '{key}'"):
            return f"{key}: no such setting; {_instead(key, command, args, commands)}"
    return " ".join(text.split())
