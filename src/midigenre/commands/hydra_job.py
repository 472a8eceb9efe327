"""What Hydra runs: a command with its composed config, here or in the processes of a launcher.

Launchers pickle the task function by name, so it is an object of this module, whose import gives
the other process the resolver that the config needs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import logging
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from midigenre import registry
from midigenre.errors import StoppedError, UserError
from midigenre.files import FULL, read_json, whole
from midigenre.run import FAILED, RunFolder, locked

log = logging.getLogger(__name__)

FOLDER_BYTES = 120
"""Longest name of a job's folder without its number; file systems take 255, people read less."""

TITLE_BYTES = 128
"""Longest title of a run; Weights & Biases takes no more."""

GRACE_SECONDS = 20
"""How long a job may take to keep its last step when the process of its sweep has ended."""

ONE_DEVICE = "a sweep gives each run one device; set trainer.devices=1, or train without a sweep"
"""Launchers would start the processes of several wrongly."""

CONSOLE = "console.log"
"""What a job prints that runs beside others."""


def run_name() -> str:
    """Default of ``name``: corpus, tokenizer, model and task; ``sweep`` for all jobs of one."""
    # A sweep's folder is named before there is a job whose choices could name it.
    if not HydraConfig.initialized() or HydraConfig.get().mode == RunMode.MULTIRUN:
        return "sweep"
    chosen = HydraConfig.get().runtime.choices
    return "-".join(str(chosen[group]) for group in ("corpus", "tokenizer", "model", "task"))


def run_title(name: str) -> str:
    """Name of a run where all runs stand in one list: that of the sweep with the job's own."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return name
    job = HydraConfig.get().job
    return shortened(f"{name}/{job.num}-{job.override_dirname}", TITLE_BYTES)


def folder_name(overrides: str) -> str:
    """Overrides as one folder: a slash in a value (``fold=1/2``, a path) would make two."""
    return shortened(overrides.replace("/", "_"), FOLDER_BYTES)


def shortened(text: str, n_bytes: int) -> str:
    """A text of at most so many bytes in UTF-8; a hash stands for what is cut off."""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) <= n_bytes:
        return text
    digest = "-" + hashlib.sha256(data).hexdigest()[:8]
    return data[: n_bytes - len(digest)].decode("utf-8", "ignore") + digest


def new_id() -> str:
    """An id that no other run has."""
    return uuid.uuid4().hex


OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("run_title", run_title, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
# Cached: within one config it stays the same.
OmegaConf.register_new_resolver("new_id", new_id, use_cache=True, replace=True)


def swept_settings() -> dict[str, str]:
    """What differs between the jobs of this sweep and this job's value; none in a single run."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return {}
    given = (o.lstrip("+").partition("=") for o in hydra.overrides.task)
    fixed = hydra.job.config.override_dirname.exclude_keys
    return {key: value for key, _, value in given if key not in fixed}


@dataclass(frozen=True)
class Job:
    """A command; its errors are the caller's.

    Attributes:
        command: Its module in :mod:`midigenre.commands`.
        paths: What follows ``--``.
    """

    command: str
    paths: tuple[str, ...] = ()

    def __call__(self, cfg: DictConfig) -> Any:
        """Runs it.

        Raises:
            UserError: An override of the wrong type, or what the command refuses.
        """
        trust_typed(cfg)
        check_types(cfg, self.command)
        plain_names(cfg)
        module = importlib.import_module(f"midigenre.commands.{self.command}")
        execute: Callable[[DictConfig, Sequence[str]], Any] = module.run
        status = 1
        try:
            with self._lock():
                result = execute(cfg, self.paths)
            status = 0
        finally:
            # Lightning leaves a run of Weights & Biases open: the next job would write into it.
            if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
                wandb.finish(exit_code=status)
        return result

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        """Of the run's folder; the further processes of a distributed run rely on their first."""
        if self.command != "train" or not is_first_process():
            return contextlib.nullcontext()
        hydra = HydraConfig.get()
        # Those of a sweep that was killed may be ending still.
        patience = 2 * GRACE_SECONDS if hydra.mode == RunMode.MULTIRUN else 0
        return locked(Path(os.path.relpath(hydra.runtime.output_dir)), patience)


def is_first_process() -> bool:
    """Whether this is the first or only one of the processes that train a run together."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def trust_typed(cfg: DictConfig) -> None:
    """Lets files name the classes that the command line gives, itself or by a ``--config-dir``."""
    sources = HydraConfig.get().runtime.config_sources
    folders = [Path(s.path) for s in sources if s.schema == "file"]
    registry.trust(OmegaConf.to_container(cfg, resolve=True), folders)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SweepJob:
    """A training run of a sweep: when it fails it says why in its folder, and the others go on.

    Where an earlier start of the same sweep left the run finished, its score is read; where it left
    it interrupted or failed, it is resumed.

    Attributes:
        paths: What follows ``--``.
        sweep_pid: The process of the sweep, which its jobs on the same machine do not outlive.
    """

    paths: tuple[str, ...] = ()
    sweep_pid: int = field(default_factory=os.getpid)

    def __call__(self, cfg: DictConfig) -> float | None:
        """Trains.

        Returns:
            The best validation score; None of a job that failed.
        """
        from midigenre.checks import check_one_device

        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        run = RunFolder(folder)
        beside_others = "n_jobs" in hydra.launcher
        name = f"job {hydra.job.num}  {hydra.job.override_dirname}"
        stderr = sys.stderr
        orphaned = (
            threading.Event()  # Slurm's jobs are on other machines, and end by themselves
            if hydra.runtime.choices["hydra/launcher"] in ("slurm", "submitit_slurm")
            else end_with(self.sweep_pid)
        )
        if run.finished:
            (kept,) = read_json(folder / "metrics.json")["best"].values()
            print(f"{name}: finished before", file=stderr, flush=True)
            return float(kept)
        try:
            (folder / FAILED).unlink(missing_ok=True)
            if run.has_config:
                cfg.resume = str(folder)
            check_one_device(cfg, ONE_DEVICE)
            take_share(cfg, hydra)
            with _output(folder / CONSOLE if beside_others else None):
                score: float = Job("train", self.paths)(cfg)
        except (Exception, SystemExit) as error:
            # A signal to the process that runs all jobs in turn is meant for all of them.
            if isinstance(error, StoppedError) and hydra.runtime.choices["hydra/launcher"] in (
                None, "basic",
            ):  # fmt: skip
                print("midigenre: stopped; the same command line goes on with the sweep",
                      file=stderr)  # fmt: skip
                raise SystemExit(error.status) from error
            if orphaned.is_set():
                os._exit(1)  # loky's process would take the next job
            why = reason(error)
            user = isinstance(error, UserError)
            log.error(why, exc_info=None if user else error)
            with whole(folder / FAILED) as part:
                details = "" if user else "\n" + "".join(traceback.format_exception(error))
                part.write_text(f"{why}\n{details}", encoding="utf-8", errors="surrogateescape")
            print(f"{name}: failed: {why}", file=stderr, flush=True)
            return None
        print(f"{name}: {cfg.callbacks.checkpoint.monitor} {score:.4f}", file=stderr, flush=True)
        return score


@functools.cache
def end_with(pid: int) -> threading.Event:
    """Lets this process end soon after another one, on this machine, has ended.

    A run that trains gets a SIGTERM, by which it ends its step and keeps it in ``last.ckpt``; what
    is not done with that in :data:`GRACE_SECONDS` is killed.

    Returns:
        What is set when the other has ended.
    """
    ended = threading.Event()
    if pid == os.getpid():
        return ended

    def watch() -> None:
        _wait_for(pid)
        ended.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name=f"ends with {pid}").start()
    return ended


def _wait_for(pid: int) -> None:
    """Returns when a process, a child of this one or not, has ended."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "linux":
            handle = os.pidfd_open(pid)
            select.select([handle], [], [])
            os.close(handle)
            return
        while True:
            os.kill(pid, 0)
            time.sleep(1)


def reason(error: BaseException) -> str:
    """An error as one line."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return f"{text}; make room there and try again" if error.errno in FULL else text
    return " ".join(f"{type(error).__name__}: {error}".split())


def take_share(cfg: DictConfig, hydra: Any) -> None:
    """Bounds a job to its part of a machine that others use at the same time.

    ``hydra/launcher=cores``: joblib has divided the cores among the jobs (by ``OMP_NUM_THREADS``,
    unless that is set already); GPUs are dealt in turn by the job's number. Slurm deals the GPUs
    itself; the threads are those that were asked for.

    Args:
        cfg: Config of the job; changed in place.
        hydra: Hydra's own config of the job.
    """
    import torch

    if "n_jobs" in hydra.launcher:
        # Within a worker joblib has only threads left, and encoding songs is not safe in them.
        cfg.n_workers = 1
        n_gpus = torch.cuda.device_count()
        if cfg.trainer.accelerator in ("gpu", "cuda") and n_gpus:
            cfg.trainer.devices = [hydra.job.num % n_gpus]
    elif hydra.launcher.get("cpus_per_task"):
        torch.set_num_threads(hydra.launcher.cpus_per_task)


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[None]:
    """Keeps stdout for the sweep's own answer, and parallel jobs from mixing their lines."""
    if path is None:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8", errors="surrogateescape") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def check_types(cfg: Any, command: str) -> None:
    """Rejects an override of another type than the default it replaces.

    Raises:
        UserError: For instance text where a number stands in the config.
    """
    groups = set(HydraConfig.get().runtime.choices)
    given = [o.lstrip("+~") for o in HydraConfig.get().overrides.task]
    chosen = [o for o in given if o.partition("=")[0] in groups]
    # The person's own choices may lie there.
    chosen += [o for o in HydraConfig.get().overrides.hydra if o.startswith("hydra.searchpath=")]
    keys = [o.partition("=")[0] for o in given if "=" in o]
    dotted = [key for key in keys if "@" not in key and "/" not in key]
    default = compose(command, overrides=chosen)
    for key in dotted:
        was, now = (OmegaConf.select(c, key, throw_on_missing=False) for c in (default, cfg))
        if was is None or now is None or isinstance(was, str) or OmegaConf.is_config(was):
            continue
        right = (
            isinstance(now, bool) if isinstance(was, bool)
            else isinstance(now, int) and not isinstance(now, bool) if isinstance(was, int)
            else isinstance(now, (int, float)) and not isinstance(now, bool)
        )  # fmt: skip
        if not right:
            kinds = {bool: "true or false", int: "a whole number", float: "a number"}
            raise UserError(f"{key}={now}: must be {kinds[type(was)]}; the default is {was}")


# Hydra's grammar takes letters, digits, _ and - in a key; a class of songs may be called `R&B`.
_HEX = "hex-of-utf8-"
_WORDS = ("null", "true", "false", "nan", "inf")  # Hydra reads these as values


def hydra_key(name: str) -> str:
    """A key that Hydra takes, from which :func:`plain_names` gets the name back."""
    if re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII) and name.lower() not in _WORDS:
        return name
    return _HEX + os.fsencode(name).hex()


def plain_names(cfg: Any) -> None:
    """Puts the names of the classes in ``labels.map`` back, in place."""
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
