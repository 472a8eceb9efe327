"""Sweeps of ``midigenre train``: what is settled before the jobs start, and told at their end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table

from midigenre import __version__
from midigenre.checks import check_one_device
from midigenre.commands.compare import shipped
from midigenre.commands.console import console
from midigenre.commands.hydra_job import ONE_DEVICE
from midigenre.data.prepare import default_workers
from midigenre.errors import UserError
from midigenre.evaluation.compare import compare, legend, table
from midigenre.evaluation.runs import find_runs
from midigenre.files import read_json, write_json
from midigenre.run import SWEEP, RunFolder, claim, locked


@dataclass(frozen=True)
class Sweep:
    """A sweep that may start.

    Attributes:
        folder: Where its jobs have their folders.
        about: What the sweep is, as plain data: two that are equal do the same.
        settings: Further settings of Hydra: names of the jobs' folders that tell only what is
            swept, and how many run at a time.
    """

    folder: Path
    about: dict[str, Any]
    settings: dict[str, Any]

    @property
    def n_jobs(self) -> int:
        """How many jobs there are."""
        return len(self.about["jobs"])

    @contextlib.contextmanager
    def begun(self) -> Iterator[Sweep]:
        """The sweep in a new folder, or in the newest where it ended before all its jobs.

        The folder is locked meanwhile, and removed at the end if no job began.

        Raises:
            OSError: It cannot be written.
        """
        with contextlib.ExitStack() as held:
            for folder in self._unfinished():
                try:
                    held.enter_context(locked(folder))
                except UserError:  # it is running now
                    continue
                console.print(f"going on with {escape(str(folder))}, which is not finished",
                              highlight=False, soft_wrap=True)  # fmt: skip
                yield self._at(folder)
                return
            own = claim(self.folder)
            held.enter_context(locked(own.folder))
            held.callback(own.discard_empty)
            write_json(own.folder / SWEEP, self.about)
            yield self._at(own.folder)

    def _at(self, folder: Path) -> Sweep:
        settings = self.settings | {"hydra.sweep.dir": str(folder)}
        return replace(self, folder=folder, settings=settings)

    def _unfinished(self) -> list[Path]:
        """Folders of the same sweep with jobs that are not finished, the newest first."""
        found = []
        for path in self.folder.parent.glob(f"*/{SWEEP}"):
            try:
                about = read_json(path)
            except (OSError, ValueError) as error:
                console.print(f"[yellow]warning:[/] {escape(str(path))} cannot be read "
                              f"({escape(str(error))}); if it is this sweep, it is not resumed",
                              highlight=False, soft_wrap=True)  # fmt: skip
                continue
            if about == self.about:
                n_finished = sum(RunFolder(job).finished for job in path.parent.glob("[0-9]*"))
                if n_finished < self.n_jobs:
                    found.append((path.stat().st_mtime_ns, path.parent))
        return [folder for _, folder in sorted(found, reverse=True)]


def plan(cfg: DictConfig, overrides: Sequence[str], parser: OverridesParser) -> Sweep:
    """What a sweep will do.

    Args:
        cfg: The config that its jobs have in common, with Hydra's own.
        overrides: Of the command line.
        parser: Of overrides.

    Raises:
        UserError: ``resume=``, or several devices for each run.
    """
    if cfg.resume is not None:
        raise UserError("resume= goes on with one run; start it without a sweep")
    check_one_device(cfg, ONE_DEVICE)
    params: Any = OmegaConf.to_container(cfg.hydra.sweeper.get("params") or OmegaConf.create({}))
    parsed = parser.parse_overrides([*(f"{k}={v}" for k, v in params.items()), *overrides])
    # As Hydra has it: the command line's values take the place of a sweep's own.
    by_key = {override.get_key_element(): override for override in parsed}
    swept = {o.key_or_group for o in by_key.values() if o.is_sweep_override()}
    (jobs,) = BasicSweeper.split_arguments(list(by_key.values()), None)
    settings: dict[str, Any] = {
        "hydra.job.config.override_dirname.exclude_keys": sorted(
            {o.key_or_group for o in by_key.values()} - swept
        ),
    }
    if cfg.hydra.launcher.get("n_jobs") == -1:
        places = default_workers()
        if cfg.trainer.accelerator in ("gpu", "cuda"):
            import torch

            places = max(1, torch.cuda.device_count())
        # No more than there are jobs, so that joblib divides all cores among them.
        settings["hydra.launcher.n_jobs"] = min(places, len(jobs))
    common = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    about = {
        "version": __version__,
        "overrides": list(overrides),
        "jobs": [list(job) for job in jobs],
        "config": OmegaConf.to_yaml(common),
    }
    return Sweep(Path(os.path.relpath(str(cfg.hydra.sweep.dir))), about, settings)


def report(sweep: Sweep) -> bool:
    """Tells how a sweep ended: its runs side by side on stderr, its folder on stdout.

    Returns:
        Whether all jobs have finished.
    """
    started = any(path.is_dir() for path in sweep.folder.glob("[0-9]*"))
    runs, unfinished = find_runs([sweep.folder]) if started else ([], [])
    if runs:
        # In the order of the jobs, so that equal scores stay in it.
        comparison = compare(runs, shipped=shipped).sorted_by(None)
        header, rows, n_words = table(comparison)
        shown = Table(
            title=str(sweep.folder), title_justify="left", caption=escape(legend(comparison)),
            caption_justify="left",
        )  # fmt: skip
        # The jobs' folders lie in the one above and tell what the settings tell.
        for i, name in enumerate(header[:-1]):
            shown.add_column(escape(name), justify="left" if i < n_words else "right")
        for row in rows:
            shown.add_row(*map(escape, row[:-1]))
        console.print(shown)
        for note in comparison.notes:
            console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)
    for job in unfinished:
        how = "[green]finished:[/]" if job.finished else "[red]failed:[/]"
        console.print(f"{how} {escape(f'{job.folder.name}: {job.reason}')}",
                      highlight=False, soft_wrap=True)  # fmt: skip
    n_missing = sweep.n_jobs - len(runs) - len(unfinished)
    if n_missing > 0:
        console.print(f"[red]{n_missing} of {sweep.n_jobs} jobs did not start[/]", highlight=False)
    print(sweep.folder)
    return all(job.finished for job in unfinished) and n_missing <= 0
