"""Names of classes as keys of Hydra's overrides, and back.

Hydra's grammar takes letters, digits, _ and - in a key; a folder of songs may be called ``R&B``.
"""

from __future__ import annotations

import os
import re
from typing import Any

_HEX = "hex-of-utf8-"
_WORDS = ("null", "true", "false", "nan", "inf")  # Hydra reads these as values


def hydra_key(name: str) -> str:
    """A key that Hydra takes, from which :func:`plain_names` gets the name back."""
    if re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII) and name.lower() not in _WORDS:
        return name
    return _HEX + os.fsencode(name).hex()


def plain_names(cfg: Any) -> None:
    """Puts the names of the classes in ``labels.map`` back, in place."""
    from omegaconf import OmegaConf, open_dict

    with open_dict(cfg):
        for label, names in ((cfg.get("labels") or {}).get("map") or {}).items():
            if OmegaConf.is_dict(names):
                # Not resolved: a name may hold an escaped ${.
                raw: Any = OmegaConf.to_container(names, resolve=False)
                cfg.labels.map[label] = {_plain(key): name for key, name in raw.items()}


def _plain(key: Any) -> Any:
    if not str(key).startswith(_HEX):
        return key
    return os.fsdecode(bytes.fromhex(key.removeprefix(_HEX)))
