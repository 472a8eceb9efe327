"""Help for a command, and Hydra's errors in one line that names the choices.

Hydra must be initialised with the config tree.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from midigenre.errors import UserError
from midigenre.run import flatten

PLUGINS = {
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/submitit_local": "hydra-submitit-launcher",
    "hydra/launcher/submitit_slurm": "hydra-submitit-launcher",
}
"""Configs that come with a plugin of Hydra, and the package that has it."""

_SYNONYMS = {
    "learning_rate": "lr", "hidden_size": "d_model", "max_length": "max_tokens", "gpus": "devices",
    "wd": "weight_decay", "experimental_rerun": "resume",
}  # fmt: skip
"""Settings of other programs whose names share no word with ours."""


def without_plus(line: argparse.Namespace) -> list[str]:
    """The overrides, without the plus of those whose first part the command does not have.

    Hydra adds whatever a plus stands before; without it, it answers a typo as any other.
    """
    overrides: list[str] = line.overrides
    if not any(o.startswith("+") for o in overrides):
        return overrides
    cfg, groups = _composed(line.command, overrides)
    known = {*cfg, *groups, *_options("", overrides, ObjectType.GROUP)}
    return [
        bare if (bare := o.lstrip("+")) != o and re.split("[.@/=]", bare)[0] not in known else o
        for o in overrides
    ]


def check_choices(line: argparse.Namespace) -> None:
    """Rejects ``GROUP=null``, which Hydra answers with a traceback.

    Raises:
        UserError: A group is given null.
    """
    for key in (o.removesuffix("=null") for o in line.overrides if o.endswith("=null")):
        if choices := _options(key, line.overrides):
            raise UserError(
                f"{key}=null: {key} is one of {', '.join(choices)}; leave it out for the default"
            )


def help_of(line: argparse.Namespace) -> str:
    """What a command can be given, with the groups that the command line chooses."""
    cfg, groups = _composed(line.command, line.overrides)
    shown = [
        f"{group}: {', '.join(options)}"
        for group in sorted(groups)
        if not group.startswith("hydra/") and (options := _options(group, line.overrides))
    ]
    settings = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return "\n".join(
        [
            cfg.hydra.help.header,
            "",
            *(["== Groups (GROUP=CHOICE) ==", *shown, ""] if shown else []),
            "== Settings (NAME=VALUE) ==",
            OmegaConf.to_yaml(settings),
        ]
    )


def _options(group: str, overrides: Sequence[str], kind: Any = ObjectType.CONFIG) -> list[str]:
    """The choices of a group in the config tree and in the user's own folders."""
    folders = [o for o in overrides if o.startswith("hydra.searchpath=")]
    return GlobalHydra.instance().config_loader().get_group_options(group, kind, None, folders)


def _composed(command: str, overrides: Sequence[str] = ()) -> tuple[Any, set[str]]:
    """What a command can be given: its settings, with the chosen groups, and its groups."""
    known = ["hydra.searchpath"]
    with contextlib.suppress(HydraException):  # an invalid override
        known += _options("", overrides, ObjectType.GROUP)
    choices = [o for o in overrides if o.partition("=")[0] in known]
    # A group that does not exist, or one that is swept: the defaults will do.
    for given in (choices, []):
        with contextlib.suppress(HydraException):
            cfg = compose(command, given, return_hydra_config=True)
            return cfg, {str(group) for group in cfg.hydra.runtime.choices}
    return OmegaConf.create({}), set()


def _nearest(key: str, cfg: Any, groups: set[str]) -> list[str]:
    """At most three settings or groups that may be meant, the likeliest first.

    They are compared by their last part, letter by letter and word by word: ``epochs`` is
    ``trainer.max_epochs``.
    """
    settings: Any = OmegaConf.to_container(cfg, resolve=False)
    hydra = {"hydra": settings.pop("hydra", {})}
    names = {name for name, _ in flatten(hydra if key.startswith("hydra.") else settings)}
    names |= {*settings, *(group for group in groups if "hydra" not in group)}
    parent, _, leaf = key.rpartition(".")
    words = _long_words(leaf)
    scores: dict[str, float] = {}
    for full in names:
        above, _, name = full.rpartition(".")
        alike = difflib.SequenceMatcher(None, name, leaf).ratio()
        if above == parent and alike > 0.6:
            alike += 0.3
        if name in (leaf, _SYNONYMS.get(leaf)):
            alike = 2
        elif shared := words & _long_words(name):
            alike = max(alike, 0.6 + 0.4 * len(shared) / len(words | _long_words(name)))
        if alike > 0.7 and name != "_target_":
            scores[full] = alike
    likeliest = sorted(scores, key=lambda full: (-scores[full], full))[:3]
    return [full for full in likeliest if scores[full] > scores[likeliest[0]] - 0.2]


def _long_words(name: str) -> set[str]:
    return {word for word in name.split("_") if len(word) > 1}


def _instead(key: str, line: argparse.Namespace, commands: Sequence[str]) -> str:
    """What to write instead of a setting that a command does not have."""
    cfg, groups = _composed(line.command, line.overrides)
    if key.startswith("labels.map") and "labels" in cfg:
        return "write labels.map.LABEL.CLASS=NAME for each class, as labels.map.genre.hiphop=rap"
    if key == "device" and "trainer" in groups:
        return "write trainer=gpu or trainer=cpu"
    hints = [f"did you mean {near}?"] if (near := " or ".join(_nearest(key, cfg, groups))) else []
    top = key.partition(".")[0]
    for other in commands if top not in cfg and top not in groups else ():
        theirs, their_groups = _composed(other)
        if top in theirs or top in their_groups:
            hints.append(f"{top} belongs to midigenre {other}")
            break
    if not hints and (in_train := _nearest(key, *_composed("train"))):
        hints.append(f"midigenre train has {' and '.join(in_train)}")
    return " ".join(hints) or f"midigenre {line.command} --help lists the settings"


def option(line: argparse.Namespace) -> str:
    """The message for ``--model tiny``, which is not an option."""
    unknown: str = line.unknown[0]
    name, equals, value = unknown.lstrip("-").partition("=")
    key = name.replace("-", "_")
    values = [value] if equals else [o for o in line.overrides if "=" not in o]
    cfg, groups = _composed(line.command, line.overrides)
    if key not in cfg and key not in groups:
        key = next(iter(_nearest(key, cfg, groups)), "")
    how = f"write {key}={values[0] if values else 'VALUE'}" if key else "settings are key=value"
    return f"{unknown}: no such option; {how}"


def worded(error: Exception, line: argparse.Namespace, commands: Sequence[str]) -> str:
    """An error of Hydra as one line that names the value and the choices.

    Args:
        error: What was raised.
        line: The command line.
        commands: All commands, to say which one has a setting.
    """
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is not a setting; write key=value, and paths after --"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        if plugin := PLUGINS.get(error.missing_cfg_file):
            return (
                f"hydra/launcher needs {plugin}, which is not installed: "
                'pip install "midigenre[sweep]"'
            )
        if error.options is not None:
            group, _, name = error.missing_cfg_file.rpartition("/")
            near = difflib.get_close_matches(name, error.options, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            there = f"; {guess}there is {', '.join(error.options)}" if error.options else ""
            return f"{group}={name}: no such choice{there}"
    text = " ".join(str(error).split())
    if swept := re.match(r"Ambiguous value for argument '(([^=]*)=(.*?))' 1\.", text):
        return f"{swept[1]}: -m runs a sweep over several values; a list is {swept[2]}=[{swept[3]}]"
    for override in line.overrides:
        key = override.partition("=")[0].lstrip("+~")
        if text.startswith(f"Could not override '{key}'"):
            return f"{key}: no such setting; {_instead(key, line, commands)}"
    return text
