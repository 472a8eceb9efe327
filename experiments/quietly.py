"""Runs midigenre's commands for the studies; what they print is shown only where one fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from midigenre.commands.console import progress_bars
from midigenre.errors import UserError
from midigenre.run import locked

_SHOWN = 15  # last lines of a command that failed


def midigenre(*arguments: str) -> str:
    """Runs a command, on one core: studies run several side by side.

    Returns:
        The last line of its stdout: the file or folder that it has written.

    Raises:
        SystemExit: It failed; the message has what it printed last.
    """
    command = [sys.executable, "-m", "midigenre", *arguments]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_core)
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-_SHOWN:])
        sys.exit(f"midigenre {' '.join(arguments)}\nended with {done.returncode}:\n{said}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def training(run: Path, overrides: Sequence[str]) -> list[str] | None:
    """What ``midigenre train`` needs to end a run, whatever an earlier call has left of it.

    Args:
        run: The run's folder.
        overrides: For a run that has not begun.

    Returns:
        Its arguments; None where the run has ended.

    Raises:
        SystemExit: Another process trains there.
    """
    if (run / "cost.json").is_file():  # the last thing that a run writes
        return None
    if run.is_dir():
        try:
            with locked(run):  # what a study starts outlives it when it is killed
                pass
        except UserError as error:
            sys.exit(str(error))
        if (run / "config.yaml").is_file():
            return [f"resume={run}"]
        shutil.rmtree(run)  # it was killed before its training began
    return [f"hydra.run.dir={run}", *overrides]


def side_by_side(what: str, work: Sequence[Callable[[], None]], jobs: int | None = None) -> None:
    """Does work that consists of commands, with progress.

    Args:
        what: It is, for the progress.
        work: Each part runs commands, and depends on no other part.
        jobs: Parts at a time; the cores of the machine where None.

    Raises:
        SystemExit: A command failed. What runs beside it ends first, the rest is not begun.
    """
    with progress_bars() as progress, ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        progress(what, 0, len(work))
        parts = [pool.submit(part) for part in work]
        try:
            for done, part in enumerate(as_completed(parts), 1):
                part.result()
                progress(what, done, len(work))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def commit() -> str:
    """The commit that a study is run at."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    return done.stdout.strip()
