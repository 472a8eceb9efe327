"""Sweeps of ``midigenre train``: what is settled before the jobs start, and told at their end."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table

from midigenre.commands.compare import shipped
from midigenre.commands.console import console
from midigenre.commands.job import check_one_device
from midigenre.data.prepare import default_workers
from midigenre.errors import UserError
from midigenre.evaluation.compare import compare
from midigenre.evaluation.compare_table import legend, table
from midigenre.evaluation.runs import find_runs


@dataclass(frozen=True)
class Sweep:
    """A sweep that may start.

    Attributes:
        folder: Where its jobs have their folders.
        n_jobs: How many there are.
        settings: Further settings of Hydra: one folder for all jobs, names of their folders that
            tell only what is swept, and how many run at a time.
    """

    folder: Path
    n_jobs: int
    settings: dict[str, Any]

    def discard_empty(self) -> None:
        """Removes the folder of a sweep that was refused before its first job."""
        if self.folder.is_dir() and {p.name for p in self.folder.iterdir()} <= {"multirun.yaml"}:
            shutil.rmtree(self.folder)
            with contextlib.suppress(OSError):  # other sweeps of that name
                self.folder.parent.rmdir()


def plan(cfg: DictConfig, overrides: Sequence[str]) -> Sweep:
    """What a sweep will do.

    Args:
        cfg: The config that its jobs have in common, with Hydra's own.
        overrides: Of the command line.

    Raises:
        UserError: ``resume=``, or several devices for each run.
    """
    if cfg.resume is not None:
        raise UserError("resume= goes on with one run; start it without a sweep")
    check_one_device(cfg)
    params: Any = OmegaConf.to_container(cfg.hydra.sweeper.get("params") or OmegaConf.create({}))
    parsed = OverridesParser.create().parse_overrides(
        [*(f"{key}={value}" for key, value in params.items()), *overrides]
    )
    # As Hydra has it: the command line's values take the place of a sweep's own.
    by_key = {override.get_key_element(): override for override in parsed}
    swept = {key: o for key, o in by_key.items() if o.is_sweep_override()}
    n_jobs = math.prod(map(_n_values, swept.values()))
    settings: dict[str, Any] = {
        "hydra.sweep.dir": str(cfg.hydra.sweep.dir),
        "hydra.job.config.override_dirname.exclude_keys": sorted(
            {o.key_or_group for o in by_key.values()} - {o.key_or_group for o in swept.values()}
        ),
    }
    if cfg.hydra.launcher.get("n_jobs") == -1:
        places = default_workers()
        if cfg.trainer.accelerator in ("gpu", "cuda"):
            import torch

            places = max(1, torch.cuda.device_count())
        # No more than there are jobs, so that joblib divides all cores among them.
        settings["hydra.launcher.n_jobs"] = min(places, n_jobs)
    return Sweep(Path(os.path.relpath(str(cfg.hydra.sweep.dir))), n_jobs, settings)


def _n_values(override: Override) -> int:
    return sum(1 for _ in override.sweep_string_iterator()) if override.is_discrete_sweep() else 1


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
