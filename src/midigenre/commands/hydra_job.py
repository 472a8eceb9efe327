"""What Hydra runs: a command with its composed config, here or in the processes of a launcher.

A launcher's processes import this module with the task function, and so get the resolvers that the
config needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from midigenre import registry
from midigenre.errors import UserError
from midigenre.files import FULL
from midigenre.run import RunFolder, claimed, literal, locked

FOLDER_BYTES = 120
"""Longest name of a job's folder without its number; file systems take 255, people read less."""

TITLE_BYTES = 128
"""Longest title of a run; Weights & Biases takes no more."""


def run_name(task: str) -> str:
    """Default of ``name``: corpus, tokenizer, model and task; ``sweep`` for all jobs of one."""
    # A sweep's folder is named before there is a job whose choices could name it.
    if not HydraConfig.initialized() or HydraConfig.get().mode == RunMode.MULTIRUN:
        return "sweep"
    chosen = HydraConfig.get().runtime.choices
    return "-".join([*(str(chosen[group]) for group in ("corpus", "tokenizer", "model")), task])


def run_title(name: str) -> str:
    """Name of a run in a list of all runs: that of the sweep with the job's own."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return name
    job = HydraConfig.get().job
    return shortened(f"{name}/{job.num}-{job.override_dirname}", TITLE_BYTES)


def folder_name(overrides: str) -> str:
    """Overrides as one folder: a slash in a value (``fold=1/2``, a path) would make two."""
    return shortened(overrides.replace("/", "_"), FOLDER_BYTES)


def shortened(text: str, n_bytes: int) -> str:
    """A text of at most this many bytes in UTF-8; a hash replaces what is cut off."""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) <= n_bytes:
        return text
    digest = "-" + hashlib.sha256(data).hexdigest()[:8]
    return data[: n_bytes - len(digest)].decode("utf-8", "ignore") + digest


OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("run_title", run_title, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
# An id that no other run has. Cached: within one config it stays the same.
OmegaConf.register_new_resolver("new_id", lambda: uuid.uuid4().hex, use_cache=True, replace=True)


def swept_settings() -> dict[str, str]:
    """What differs between the jobs of this sweep and this job's value; none in a single run."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return {}
    given = (o.lstrip("+").partition("=") for o in hydra.overrides.task)
    fixed = hydra.job.config.override_dirname.exclude_keys
    return {key: value for key, _, value in given if key not in fixed}


def is_first_process() -> bool:
    """Whether this is the first or only one of the processes that train a run together."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def run_once(cfg: DictConfig, command: str, paths: Sequence[str]) -> None:
    """Runs a command in this process.

    Args:
        cfg: Its config, with Hydra's own.
        command: Its module in :mod:`midigenre.commands`.
        paths: What follows ``--``.

    Raises:
        UserError: What the command rejects.
    """
    cfg.hydra.mode = RunMode.RUN
    HydraConfig.instance().set_config(cfg)
    try:
        with _run_folder(cfg) if command == "train" else contextlib.nullcontext(".") as folder:
            with read_write(cfg.hydra):
                cfg.hydra.run.dir = literal(str(folder))
                cfg.hydra.runtime.output_dir = literal(os.path.abspath(folder))
            HydraConfig.instance().set_config(cfg)
            configure_log(cfg.hydra.job_logging, cfg.hydra.verbose)
            with read_write(cfg), open_dict(cfg):
                del cfg["hydra"]
            execute(command, paths, cfg)
    finally:
        HydraConfig.instance().cfg = None  # it must not name the next command's folder


@contextlib.contextmanager
def _run_folder(cfg: DictConfig) -> Iterator[Path]:
    """The folder of a run, locked: of the one to resume, one that a user names, or a new one."""
    folder = Path(cfg.hydra.run.dir)
    named = any(o.startswith("hydra.run.dir=") for o in cfg.hydra.overrides.hydra)
    resumed = None if cfg.resume is None else RunFolder(Path(cfg.resume))
    if resumed is not None and resumed.has_config:
        resumed.check_entries()  # the log is opened there
        with locked(resumed.path) if is_first_process() else contextlib.nullcontext():
            yield resumed.path
    # The further processes of a distributed run are given their folder by the first.
    elif not is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    elif named and folder.is_dir():
        with locked(folder):
            yield folder
    else:
        with claimed(folder) as own:
            yield own


def execute(command: str, paths: Sequence[str], cfg: DictConfig) -> Any:
    """Runs a command with its config; Hydra's own config must be set globally.

    Raises:
        UserError: An override has the wrong type, or the command rejects it.
    """
    folders = [Path(s.path) for s in HydraConfig.get().runtime.config_sources if s.schema == "file"]
    registry.trust(OmegaConf.to_container(cfg, resolve=True), folders)  # type: ignore[arg-type]
    check_types(cfg, command)
    plain_names(cfg)
    run: Callable[..., Any] = importlib.import_module(f"midigenre.commands.{command}").run
    status = 1
    try:
        result = run(cfg, paths)
        status = 0
    finally:
        # Lightning leaves a run of Weights & Biases open: the next job would write into it.
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            wandb.finish(exit_code=status)
    return result


def check_types(cfg: DictConfig, command: str) -> None:
    """Rejects an override whose type differs from that of the default it replaces.

    Raises:
        UserError: For instance text where the config has a number.
    """
    hydra = HydraConfig.get()
    given = [o.lstrip("+~") for o in hydra.overrides.task]
    chosen = [o for o in given if o.partition("=")[0] in hydra.runtime.choices]
    set_ = {o.partition("=")[0] for o in given if "=" in o and o not in chosen}
    keys = [key for key in sorted(set_) if "@" not in key and "/" not in key]
    if not keys:
        return
    # The user's own choices may be there.
    chosen += [o for o in hydra.overrides.hydra if o.startswith("hydra.searchpath=")]
    default = compose(command, chosen)
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    for key in keys:
        was, now = (OmegaConf.select(c, key, throw_on_missing=False) for c in (default, cfg))
        if now is None or type(was) not in kinds:
            continue
        takes = (int, float) if isinstance(was, float) else type(was)
        if not isinstance(now, takes) or isinstance(now, bool) != isinstance(was, bool):
            raise UserError(f"{key}={now}: must be {kinds[type(was)]}; the default is {was}")


def one_line(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return f"{text}; make room there and try again" if error.errno in FULL else text
    return " ".join(f"{type(error).__name__}: {error}".split())


def quoted(text: str) -> str:
    """A string literal of Hydra's override grammar for exactly ``text``.

    Backslashes double before a quote (Hydra's rule) and before ``${`` (OmegaConf's, which then
    does not take it for an interpolation).
    """
    text = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), literal(text))
    return f"'{text}'"


# Hydra's grammar takes letters, digits, _ and - in a key; a class of songs may be called `R&B`.
_HEX = "hex-of-utf8-"
_WORDS = ("null", "true", "false", "nan", "inf")  # Hydra reads these as values


def hydra_key(name: str) -> str:
    """A key that Hydra takes, from which :func:`plain_names` gets the name back."""
    if re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII) and name.lower() not in _WORDS:
        return name
    return _HEX + os.fsencode(name).hex()


def plain_names(cfg: DictConfig) -> None:
    """Puts the names of the classes in ``labels.map`` back, in place."""

    def plain(key: Any) -> Any:
        return os.fsdecode(bytes.fromhex(key[len(_HEX) :])) if str(key).startswith(_HEX) else key

    with open_dict(cfg):
        for label, names in ((cfg.get("labels") or {}).get("map") or {}).items():
            if OmegaConf.is_dict(names):
                # Not resolved: a name may hold an escaped ${.
                raw: Any = OmegaConf.to_container(names, resolve=False)
                cfg.labels.map[label] = {plain(key): name for key, name in raw.items()}
