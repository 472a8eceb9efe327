"""A run's settings, flat: what runs are told apart by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from midigenre.data.splits import HOLDOUT

NAMED = ("corpus", "tokenizer", "model", "task")
"""Config groups that :func:`settings_of` lists by the name of the choice."""

# They say where a run lies and what it shows, not what it computes.
_IGNORED = (
    "home", "name", "resume", "debug", "n_workers", "compile", "trainer.log_every_n_steps",
)  # fmt: skip
_IGNORED_GROUPS = ("logger", "profiler", "hydra", "callbacks")
_KEPT = ("callbacks.early_stopping.", "callbacks.average.", "callbacks.checkpoint.monitor")


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings under the names of the command line, without paths and outputs.

    ``tokenizer``, ``model``, ``task``, ``corpus`` and ``precision`` stand for the names of their
    choices; ``optim.lr`` is the rate that was used. What is not set is left out, so that a run from
    before there was a setting is as one without it.

    Args:
        config: The content of ``config.yaml``.

    Raises:
        KeyError: It lacks a group that every run has.
    """
    flat = dict(flatten(config))
    out: dict[str, Any] = {
        # midigenre.corpora.twelve.Twelve
        "corpus": str(config["corpus"]["_target_"]).rpartition(".")[0].rpartition(".")[2],
        "tokenizer": config["tokenizer"]["name"],
        "model": config["model"]["name"],
        "task": config["task"]["name"],
        "precision": config["precision"]["precision"],
    }
    for key, value in flat.items():
        group, _, name = key.partition(".")
        if key in _IGNORED or (group in _IGNORED_GROUPS and not key.startswith(_KEPT)):
            continue
        if name.endswith("_target_") or name == "name" or group == "precision":
            continue
        if value is not None and value != {}:
            out[key] = value
    protocol = config.get("protocol") or {}
    if protocol.get("name", HOLDOUT) != HOLDOUT:  # which runs from before there was one had
        out["protocol"] = protocol["name"]
    rate = out.pop("model.lr", None)
    if out.get("optim.lr") is None:
        out["optim.lr"] = rate
    if isinstance(devices := out.get("trainer.devices"), list):
        out["trainer.devices"] = len(devices)  # which one says nothing
    return out


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested groups, ``group.name`` and value, below a prefix."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
