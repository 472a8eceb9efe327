"""Runs midigenre's commands for the studies; what they print is shown only where one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from midigenre.commands.console import progress_bars

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
