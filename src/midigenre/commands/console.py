"""Output for people: everything here goes to stderr, so that stdout stays machine-readable."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
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

# A log or a pipe has no width to break lines at.
console = Console(stderr=True, width=None if sys.stderr.isatty() else 200)

_log = logging.getLogger(__name__)


def say(message: str) -> None:
    """Shows a line and keeps it in the log of a run."""
    _log.info(message)
    console.print(escape(message), highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Shows a warning and keeps it in the log of a run."""
    _log.warning(message)
    console.print(f"[yellow]warning:[/] {escape(message)}", highlight=False, soft_wrap=True)


@contextmanager
def progress_bars(on: Console = console) -> Iterator[Callable[..., None]]:
    """Shows work that takes long: bars on a terminal, else a line every half minute.

    Args:
        on: Where to.

    Yields:
        A function to pass as ``progress``; with total 0 it shows a count only. It takes a fourth
        argument too, a note that is shown beside the bar.
    """
    if not on.is_terminal:
        yield _Lines(on)
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=on) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None, rate="", note="")
            speed = bars.tasks[tasks[what]].speed
            rate = f"{speed:,.1f}/s" if speed else ""
            bars.update(tasks[what], completed=done, total=total or None, rate=rate, note=note)

        yield report


class _Lines:
    """Progress for logs: one line per kind of work every :attr:`every` seconds, with time left."""

    every = 30.0

    def __init__(self, on: Console) -> None:
        self._on = on
        self._since: dict[str, tuple[float, int]] = {}
        self._said = time.monotonic()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        started, first = self._since.setdefault(what, (now, done))
        if now - self._said < self.every:
            return
        self._said = now
        line = f"{what}: {done:,}"
        if total:
            rate = (done - first) / max(1e-9, now - started)
            left = f", {(total - done) / rate:,.0f} s left" if rate else ""
            line += f" of {total:,} ({rate:,.1f}/s{left})"
        line += f", {note}" if note else ""
        self._on.print(line, highlight=False)


def quiet_lightning() -> None:
    """Keeps Lightning's advertisements and internal notes off the console."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    # It looks for a method of the loader; ours resumes by the datamodule's state.
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
