"""What a run started from, so that seeds of one recipe are seen as such.

Each seed of a recipe that pretrains starts from a pretrained run of its own (``init_from``). Those
runs differ by their seeds alone, and so do the ones that started from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midigenre.evaluation.settings import settings_of
from midigenre.run import RunFolder

_CHAIN = 8  # no recipe has so many stages; a folder that starts from itself ends here


@dataclass(frozen=True)
class Origin:
    """What a run started from.

    Attributes:
        recipe: Equal for runs that started from trainings of the same settings, whatever their
            seeds.
        seeds: Seeds of those trainings, the latest first.
    """

    recipe: str
    seeds: tuple[Any, ...]


def origin_of(config: Mapping[str, Any], chain: int = _CHAIN) -> Origin | None:
    """What a run started from; None where it did not, or where that run cannot be read any more.

    Args:
        config: The content of its ``config.yaml``.
        chain: How many trainings to follow at most.
    """
    source = config.get("init_from")
    if source is None or not chain:
        return None
    named = Path(source).expanduser()
    # A run's folder, whose best checkpoint it was, or RUN/checkpoints/NAME.ckpt.
    folder, checkpoint = (named.parent.parent, named.name) if named.is_file() else (named, "")
    try:
        before = RunFolder(folder).config
        settings = settings_of(before)
    except Exception:  # moved, deleted, damaged or not ours: the path alone tells it from others
        return None
    seed = settings.pop("seed", None)
    earlier = origin_of(before, chain - 1)
    seeds: tuple[Any, ...] = (seed,)
    if earlier is not None:
        settings["init_from"], seeds = earlier.recipe, (seed, *earlier.seeds)
    return Origin(json.dumps([checkpoint, settings], sort_keys=True), seeds)
