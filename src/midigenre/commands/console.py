"""People's output: everything here goes to stderr, so that stdout stays machine-readable."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from midigenre.corpora.base import Progress as Report

console = Console(stderr=True, soft_wrap=False)


@contextmanager
def progress_bars() -> Iterator[Report]:
    """Bars with rate and time left; one line a kind of work. Calls with total 0 only show a count.

    Yields:
        A function to pass as ``progress``.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None, rate="")
            task = tasks[what]
            speed = bars.tasks[task].speed
            bars.update(
                task,
                completed=done,
                total=total or None,
                rate=f"{speed:,.1f}/s" if speed else "",
            )

        yield report


def quiet_lightning() -> None:
    """Keeps Lightning's advertisements and notes about its own internals off the console."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
