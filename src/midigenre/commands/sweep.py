"""Sweeps of ``midigenre train``: their plan, their jobs, and what is reported at the end."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.markdown import Markdown
from rich.markup import escape

from midigenre import __version__
from midigenre.checks import check_one_device
from midigenre.commands.compare import shipped
from midigenre.commands.console import console
from midigenre.commands.hydra_job import execute, one_line, quoted
from midigenre.data.prepare import default_workers
from midigenre.errors import StoppedError, UserError
from midigenre.evaluation.compare import compare, find_runs, to_markdown
from midigenre.files import read_json, whole, write_json
from midigenre.run import FAILED, SWEEP, RunFolder, claimed, locked

log = logging.getLogger(__name__)

GRACE_SECONDS = 20
"""How long a job may take to save its last step after the process of its sweep has ended."""

# Launchers would start the processes of several devices wrongly.
ONE_DEVICE = "a sweep gives each run one device; set trainer.devices=1, or train without a sweep"

RESUMES = "the same command line resumes the sweep"


def run_sweep(line: argparse.Namespace) -> int:
    """Runs the jobs of a sweep that are not finished.

    Args:
        line: The command line.

    Returns:
        The exit status: 0 where all jobs have finished.

    Raises:
        UserError: ``resume=``, or several devices for each run.
        StoppedError: Ctrl-C.
    """
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    overrides = [*line.overrides, "hydra.mode=MULTIRUN"]
    if line.command != "train":
        task = functools.partial(execute, line.command, line.paths)
        hydra.multirun(line.command, task, overrides)
        return 0
    parser = OverridesParser.create(hydra.config_loader)
    given = parser.parse_overrides(line.overrides)
    common = [str(o.input_line) for o in given if not o.is_sweep_override()]
    cfg = compose("train", common, return_hydra_config=True)
    if cfg.resume is not None:
        raise UserError("resume= continues one run; start it without a sweep")
    check_one_device(cfg, ONE_DEVICE)
    # As in Hydra, the command line's values replace a sweep's own.
    own = [f"{k}={v}" for k, v in (cfg.hydra.sweeper.get("params") or {}).items()]
    by_key = {o.get_key_element(): o for o in [*parser.parse_overrides(own), *given]}
    jobs = list(itertools.product(*map(_values, by_key.values())))
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    about = {
        "version": __version__,
        "overrides": line.overrides,
        "jobs": [list(job) for job in jobs],
        "config": OmegaConf.to_yaml(settings),
    }
    with contextlib.ExitStack() as held:
        folder = _folder(Path(os.path.relpath(cfg.hydra.sweep.dir)), about, held)
        # Names of the jobs' folders have only what is swept.
        fixed = {o.key_or_group for o in by_key.values() if not o.is_sweep_override()}
        exclude = ",".join(quoted(key) for key in sorted(fixed))
        overrides += [
            f"hydra.sweep.dir={quoted(str(folder))}",
            f"hydra.job.config.override_dirname.exclude_keys=[{exclude}]",
            *_at_a_time(cfg, len(jobs)),
        ]
        if cfg.hydra.runtime.choices["hydra/launcher"] != "basic":
            before = signal.signal(signal.SIGTERM, _say_stopped)
            held.callback(signal.signal, signal.SIGTERM, before)
        try:
            hydra.multirun("train", SweepJob(line.paths), overrides)
        except KeyboardInterrupt as error:
            raise StoppedError(f"interrupted; {RESUMES}", signal.SIGINT) from error
        except (UserError, HydraException, OmegaConfBaseException, OSError):
            raise
        except Exception as error:
            # A launcher gives up when one of its processes is killed; jobs keep their errors.
            if cfg.debug:
                traceback.print_exception(error)
            print(f"midigenre: the launcher stopped: {one_line(error)}", file=sys.stderr)
        return 0 if _report(folder, len(jobs)) else 2


def _values(override: Override) -> list[str]:
    """The override with each of its values."""
    swept = override.is_sweep_override()
    values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
    return [f"{override.get_key_element()}={value}" for value in values]


def _say_stopped(number: int, frame: Any) -> None:
    """Ends this process by the signal; its jobs follow (:func:`end_with`)."""
    os.write(2, f"midigenre: stopped; {RESUMES}\n".encode())
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _folder(wanted: Path, about: dict[str, Any], held: contextlib.ExitStack) -> Path:
    """The newest folder of the same sweep with jobs that are not finished, else a new one.

    It is locked until ``held`` ends, and then removed if no job began in it.
    """
    files = wanted.parent.glob(f"*/{SWEEP}")
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        folder = path.parent
        try:
            then = read_json(path)
        except (OSError, ValueError) as error:
            why = escape(f"{path} cannot be read ({error}); if it is this sweep, it is not resumed")
            _say(f"[yellow]warning:[/] {why}")
            continue
        n_finished = sum(RunFolder(job).finished for job in folder.glob("[0-9]*"))
        if then != about or n_finished >= len(about["jobs"]):
            continue
        with contextlib.suppress(UserError):  # it is running now
            held.enter_context(locked(folder))
            _say(f"resuming {escape(str(folder))}, which is not finished")
            return folder
    folder = held.enter_context(claimed(wanted))
    write_json(folder / SWEEP, about)
    return folder


def _at_a_time(cfg: DictConfig, n_jobs: int) -> list[str]:
    """No more jobs at a time than there are, so that joblib divides all cores among them."""
    if cfg.hydra.launcher.get("n_jobs") != -1:
        return []
    places = default_workers()
    if cfg.trainer.accelerator in ("gpu", "cuda"):
        places = max(1, torch.cuda.device_count())
    return [f"hydra.launcher.n_jobs={min(places, n_jobs)}"]


@dataclass(frozen=True)
class SweepJob:
    """A training run of a sweep: if it fails, its folder says why, and the others run.

    Where an earlier start of the same sweep left the run finished, its score is read; where it left
    it interrupted or failed, it is resumed.

    Attributes:
        paths: What follows ``--``.
        sweep_pid: The sweep's process; jobs on the same machine end with it.
    """

    paths: tuple[str, ...] = ()
    sweep_pid: int = field(default_factory=os.getpid)

    def __call__(self, cfg: DictConfig) -> float | None:
        """Trains.

        Returns:
            The best validation score; None of a job that failed.
        """
        hydra = HydraConfig.get()
        run = RunFolder(Path(hydra.runtime.output_dir))
        launcher = hydra.runtime.choices["hydra/launcher"]
        name = f"job {hydra.job.num}  {hydra.job.override_dirname}"
        stderr = sys.stderr
        # Slurm's jobs are on other machines, and end by themselves.
        is_local = launcher not in ("slurm", "submitit_slurm")
        orphaned = end_with(self.sweep_pid) if is_local else threading.Event()
        if run.finished:
            print(f"{name}: finished before", file=stderr, flush=True)
            return run.best_score[1]
        try:
            take_share(cfg, hydra)
            # Parallel jobs must not mix their lines.
            score = train_job(run, cfg, self.paths, "n_jobs" in hydra.launcher)
        except (Exception, SystemExit) as error:
            # A signal to the process that runs all jobs in turn is meant for all of them.
            if isinstance(error, StoppedError) and launcher in (None, "basic"):
                print(f"midigenre: stopped; {RESUMES}", file=stderr)
                raise SystemExit(error.status) from error
            if orphaned.is_set():
                os._exit(1)  # loky's process would take the next job
            print(f"{name}: failed: {note_failure(run, error)}", file=stderr, flush=True)
            return None
        print(f"{name}: {cfg.callbacks.checkpoint.monitor} {score:.4f}", file=stderr, flush=True)
        return score


def train_job(run: RunFolder, cfg: DictConfig, paths: Sequence[str], to_file: bool) -> float:
    """Trains one of several jobs in its folder, or resumes it there.

    Args:
        run: The folder; Hydra has made it.
        cfg: The job's config.
        paths: What follows ``--``.
        to_file: Whether what it prints is kept in its ``console.log`` instead of being shown.

    Returns:
        The best validation score.

    Raises:
        UserError: ``train`` rejects it, it has several devices, or another process trains there.
        StoppedError: A signal ended it.
    """
    (run.path / FAILED).unlink(missing_ok=True)
    if run.has_config:
        cfg.resume = str(run.path)
    check_one_device(cfg, ONE_DEVICE)
    with contextlib.ExitStack() as held:
        # stdout is for the answer of the whole command.
        out = sys.stderr
        if to_file:
            path = run.path / "console.log"
            out = held.enter_context(path.open("a", encoding="utf-8", errors="surrogateescape"))
            held.enter_context(contextlib.redirect_stderr(out))
        held.enter_context(contextlib.redirect_stdout(out))
        # A job that was killed may be ending still.
        held.enter_context(locked(Path(os.path.relpath(run.path)), 2 * GRACE_SECONDS))
        score: float = execute("train", paths, cfg)
        return score


def note_failure(run: RunFolder, error: BaseException) -> str:
    """Keeps why a job failed in its log and in :data:`~midigenre.run.FAILED`; returns one line."""
    why = one_line(error)
    is_defect = not isinstance(error, UserError)
    log.error(why, exc_info=error if is_defect else None)
    details = "\n" + "".join(traceback.format_exception(error)) if is_defect else ""
    with whole(run.path / FAILED) as part:
        part.write_text(f"{why}\n{details}", encoding="utf-8", errors="surrogateescape")
    return why


@functools.cache
def end_with(pid: int) -> threading.Event:
    """Ends this process soon after another one on this machine has ended.

    A run that trains gets a SIGTERM, upon which it finishes its step and saves it to ``last.ckpt``;
    what is not done with that in :data:`GRACE_SECONDS` is killed.

    Returns:
        An event that is set when the other has ended.
    """
    ended = threading.Event()

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            if sys.platform == "linux":
                select.select([os.pidfd_open(pid)], [], [])
            while sys.platform != "linux":
                os.kill(pid, 0)
                time.sleep(1)
        ended.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    if pid != os.getpid():
        threading.Thread(target=watch, daemon=True, name=f"ends with {pid}").start()
    return ended


def take_share(cfg: DictConfig, hydra: Any) -> None:
    """Bounds a job to its part of a machine that others use too; changes its config in place.

    ``hydra/launcher=cores``: joblib has divided the cores among the jobs (by ``OMP_NUM_THREADS``,
    unless that is set already); GPUs are assigned in turn by the job's number. Slurm assigns the
    GPUs itself; the threads are those that were asked for.
    """
    if "n_jobs" in hydra.launcher:
        # Within a worker joblib has only threads left, and encoding songs is not safe in them.
        cfg.n_workers = 1
        n_gpus = torch.cuda.device_count()
        if cfg.trainer.accelerator in ("gpu", "cuda") and n_gpus:
            cfg.trainer.devices = [hydra.job.num % n_gpus]
    elif hydra.launcher.get("cpus_per_task"):
        torch.set_num_threads(hydra.launcher.cpus_per_task)


def _report(folder: Path, n_jobs: int) -> bool:
    """Shows the runs side by side on stderr, the folder on stdout; whether all have finished."""
    started = any(path.is_dir() for path in folder.glob("[0-9]*"))
    runs, unfinished = find_runs([folder]) if started else ([], [])
    if runs:
        # In the order of the jobs, so that equal scores stay in it.
        comparison = compare(runs, shipped=shipped).sorted_by(None)
        console.print(Markdown(to_markdown(comparison)))
        for note in comparison.notes:
            _say(f"[yellow]{escape(note)}[/]")
    for job in unfinished:
        how = "[green]finished:[/]" if job.finished else "[red]failed:[/]"
        _say(f"{how} {escape(f'{job.folder.name}: {job.reason}')}")
    n_missing = n_jobs - len(runs) - len(unfinished)
    if n_missing > 0:
        _say(f"[red]{n_missing} of {n_jobs} jobs did not start[/]")
    print(folder)
    return all(job.finished for job in unfinished) and n_missing <= 0


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)
